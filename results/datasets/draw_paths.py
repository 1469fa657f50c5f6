"""Draw the last evaluation of a maze run: the maze, a sample of the data in grey, the paths coloured by success.

    python results/datasets/draw_paths.py runs/<run folder>           # writes evaluation.png there

edq_antmaze.py calls it after every evaluation and with --evaluate. It reads paths.npz (positions in metres: of 4,000
states of the data, and of every step of every episode) and run.json, which names the maze.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

GAP = np.full((1, 2), np.nan)  # between two paths of one line


@dataclass
class Args:
    """Draw the last evaluation of a maze run."""

    run_dir: tyro.conf.Positional[Path]
    """folder of a run of edq_antmaze.py"""
    out: Path | None = None
    """the picture, png, svg or pdf by its name; by default evaluation.png in the run folder"""


def draw(run: dict, data: dict[str, np.ndarray]) -> Figure:
    """`run` is run.json; `data` holds states, paths `[sum of steps, 2]`, steps and arrived `[E]`, goals `[E, 2]`."""
    env_id, kwargs = run["simulator"]
    walls = np.array([[cell == 1 for cell in line] for line in kwargs["maze_map"]])[1:-1, 1:-1]
    y, x = np.array(walls.shape) * (2 if env_id.startswith("Ant") else 0.5)  # a cell is 4 m wide for an ant, else 1 m
    fig = Figure(figsize=(6, 6 * y / x + 0.6), dpi=100, layout="constrained")
    title = f"{run['args']['env_id']}, {run['args']['preset']}, seed {run['args']['seed']}"
    ax = fig.add_subplot(xticks=[], yticks=[], title=title)
    ax.imshow(walls, "Greys", vmin=0, vmax=1.8, extent=(-x, x, -y, y))
    ax.spines[:].set(lw=5, color="0.53")  # the outer wall
    ax.plot(*data["states"].T, ".", color="0.75", ms=2, label="data")
    paths = np.split(data["paths"], np.cumsum(data["steps"])[:-1])
    for arrived, colour, word in ((False, "#c7522a", "did not arrive"), (True, "#0b6e99", "arrived")):
        lines = [np.vstack([path, GAP]) for path, a in zip(paths, data["arrived"]) if a == arrived]
        label = f"{len(lines)} of {len(paths)} {word}"
        ax.plot(*np.vstack([*lines, GAP]).T, color=colour, lw=0.8, alpha=0.7, label=label)
    starts = np.array([path[0] for path in paths])
    ax.plot(*starts.T, "o", color="white", mec="black", ms=5, label="start")
    ax.plot(*data["goals"].T, "*", color="gold", mec="black", ms=11, label="goal")
    fig.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return fig


def main(args: Args) -> None:
    out = args.out or args.run_dir / "evaluation.png"
    try:
        run = json.loads((args.run_dir / "run.json").read_text())
        with np.load(args.run_dir / "paths.npz", allow_pickle=False) as data:
            fig = draw(run, dict(data))
        fig.savefig(temporary := out.with_name(f".unfinished-{out.name}"))
        os.replace(temporary, out)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: cannot draw {out}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
