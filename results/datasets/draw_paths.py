"""Draw the last evaluation of maze runs: the maze, a sample of the data in grey, the paths coloured by success.

    python results/datasets/draw_paths.py runs/<run folder>               # writes evaluation.png there
    python results/datasets/draw_paths.py runs/<one> runs/<another> --out paper.pdf

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

GAP = np.full((1, 2), np.nan)  # between two paths of one line


@dataclass
class Args:
    """Draw the last evaluation of maze runs."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs of edq_antmaze.py, a panel each"""
    out: Path | None = None
    """the picture, png, svg or pdf by its name; by default evaluation.png in the (first) run folder"""


def panel(ax: Axes, run: dict, data: dict[str, np.ndarray]) -> None:
    """`run` is run.json; `data` holds states, paths `[sum of steps, 2]`, steps and arrived `[E]`, goals `[E, 2]`."""
    (env_id, kwargs), args = run["simulator"], run["args"]
    walls = np.array([[cell == 1 for cell in line] for line in kwargs["maze_map"]])[1:-1, 1:-1]
    y, x = np.array(walls.shape) * (
        2 if env_id.startswith("Ant") else 0.5
    )  # a cell is 4 m wide for an ant, else 1 m
    ax.imshow(walls, "Greys", vmin=0, vmax=1.8, extent=(-x, x, -y, y))
    ax.spines[:].set(lw=5, color="0.53")  # the outer wall
    ax.plot(*data["states"].T, ".", color="0.75", ms=2, label="data")
    paths = np.split(data["paths"], np.cumsum(data["steps"])[:-1])
    for arrived, colour, word in (
        (False, "#c7522a", "did not arrive"),
        (True, "#0b6e99", "arrived"),
    ):
        lines = [np.vstack([path, GAP]) for path, a in zip(paths, data["arrived"]) if a == arrived]
        ax.plot(*np.vstack([*lines, GAP]).T, color=colour, lw=0.8, alpha=0.7, label=word)
    starts = np.array([path[0] for path in paths])
    ax.plot(*starts.T, "o", color="white", mec="black", ms=5, label="start")
    ax.plot(*data["goals"].T, "*", color="gold", mec="black", ms=11, label="goal")
    count = f"{data['arrived'].sum()} of {len(paths)} arrive"
    ax.set(
        xticks=[],
        yticks=[],
        title=f"{args['env_id']}, {args['preset']}, seed {args['seed']}: {count}",
    )


def draw(panels: list[tuple[dict, dict[str, np.ndarray]]], out: Path) -> None:
    """Draw panels, each of a run and its data as `panel` takes them, then put the picture in its place in one step."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    mazes = [np.shape(run["simulator"][1]["maze_map"]) for run, _ in panels]
    height = 6 * max((y - 2) / (x - 2) for y, x in mazes) + 0.4  # inches; a panel is 6 wide
    fig = Figure(figsize=(6 * columns, height * rows + 0.4), dpi=100, layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).flatten()
    for ax, (run, data) in zip(axes, panels):
        panel(ax, run, data)
    for ax in axes[len(panels) :]:
        ax.remove()
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    fig.savefig(temporary := out.with_name(f".unfinished-{out.name}"), bbox_inches="tight")
    if out.suffix == ".png":  # 256 colours do, at a third of the size
        Image.open(temporary).convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(temporary)
    os.replace(temporary, out)


def main(args: Args) -> None:
    """Read the runs and draw them."""
    out = args.out or args.run_dirs[0] / "evaluation.png"
    try:
        panels = []
        for run_dir in args.run_dirs:
            with np.load(run_dir / "paths.npz", allow_pickle=False) as data:
                panels.append((json.loads((run_dir / "run.json").read_text()), dict(data)))
        draw(panels, out)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: cannot draw {out}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
