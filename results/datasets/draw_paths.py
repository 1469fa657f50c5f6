"""Draw where the policies of maze runs go: the maze, the data in grey, paths by success.

    python results/datasets/draw_paths.py runs/<run folder>               # writes paths.png there
    python results/datasets/draw_paths.py runs/<one> runs/<another> --out paper.pdf

Evaluates the newest checkpoint of each run of edq_antmaze.py once more, in a panel each.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minari_writer import fail
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
import edq_antmaze as edq  # noqa: E402

GAP = np.full((1, 2), np.nan)  # between two paths of one line
FORMATS = (".png", ".pdf", ".svg")


@dataclass
class Args:
    """Draw where the policies of maze runs go."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs of edq_antmaze.py"""
    out: Path | None = None
    """the picture, png, pdf or svg by its name; by default paths.png in the first run folder"""
    episodes: int = 20
    """of each run"""
    data: bool = True
    """show a sample of the dataset, which has to be on this machine"""


class Panel(NamedTuple):
    """A run, and what it does."""

    args: edq.Args
    paths: list[np.ndarray]  # `[steps + 1, 2]` in metres, one an episode
    goals: np.ndarray  # `[E, 2]`
    arrived: list[bool]
    states: np.ndarray  # `[N, 2]`, positions in the data
    title: str = ""  # by default task, preset and seed
    most: int | None = None  # how many paths are drawn, the first ones; all are counted


def positions(obs: np.ndarray) -> np.ndarray:
    """Of flat observations `[..., S]`, `[..., 2]`."""
    first = 27 if obs.shape[-1] == 31 else 0  # an ant's come after its body
    return obs[..., first : first + 2]


class Recorder(gym.vector.VectorWrapper):
    """Keeps the observations of every episode, in the order in which they begin."""

    def __init__(self, envs: gym.vector.VectorEnv):
        super().__init__(envs)
        self.episodes: list[list[np.ndarray]] = []
        self.running: dict[int, list[np.ndarray]] = {}  # by environment

    def reset(self, **kwargs) -> tuple[np.ndarray, dict]:
        obs, info = super().reset(**kwargs)
        self.running = {}
        for i, row in enumerate(obs):
            self.running[i] = [row.copy()]
            self.episodes.append(self.running[i])
        return obs, info

    def step(self, actions: np.ndarray) -> tuple:
        obs, reward, terminated, truncated, info = super().step(actions)
        for i in list(self.running):
            self.running[i].append(obs[i].copy())
            over = terminated[i] or truncated[i]
            if over:
                del self.running[i]
        return obs, reward, terminated, truncated, info


def evaluate(run_dir: Path, episodes: int, with_data: bool) -> Panel:
    """Evaluate the newest checkpoint, as the script does, and keep the way of each episode."""
    flags = ["--evaluate", str(run_dir), "--device", "cpu"]
    flags += ["--eval-episodes", str(episodes)]
    args = edq.parse_args(flags)
    run = json.loads((run_dir / "run.json").read_text())
    reference = run["dataset"]["reference"]
    envs = Recorder(edq.vector_env(args))
    obs_dim = envs.single_observation_space.shape[0]
    act_dim = envs.single_action_space.shape[0]
    agent = edq.Agent(obs_dim, act_dim, args, "cpu")
    if edq.load_checkpoint(run_dir, agent) is None:
        fail(f"{run_dir} has no checkpoint yet")
    results = edq.evaluate(agent, envs, args, reference, episodes)
    envs.close()
    recorded = [np.array(obs) for obs in envs.episodes[:episodes]]
    paths = [positions(obs) for obs in recorded]
    goals = [obs[0, -2:] for obs in recorded]
    arrived = [result["score"] > 0 for result in results]
    states = np.zeros((0, 2))
    if with_data:
        data, _ = edq.load_dataset(args, "cpu")
        obs = data.obs.numpy()
        rows = np.linspace(0, len(obs) - 1, 4000).astype(int)
        states = positions(obs[rows])
    return Panel(
        args=args,
        paths=paths,
        goals=np.array(goals),
        arrived=arrived,
        states=states,
    )


def draw_panel(ax: Axes, panel: Panel) -> None:
    """One run."""
    task = edq.TASKS[panel.args.env_id]
    cells = task.env_kwargs["maze_map"]
    walls = np.array([[cell == 1 for cell in line] for line in cells])
    walls = walls[1:-1, 1:-1]  # without the outer one
    half_cell = 2 if task.env.startswith("Ant") else 0.5  # metres
    y, x = np.array(walls.shape) * half_cell
    edges = (-x, x, -y, y)
    ax.imshow(walls, "Greys", vmin=0, vmax=1.8, extent=edges)
    ax.spines[:].set(lw=5, color="0.53")  # the outer wall
    style = dict(color="0.75", ms=2)
    ax.plot(*panel.states.T, ".", label="data", **style)
    paths = panel.paths[: panel.most]
    for arrived, colour, word in (
        (False, "#c7522a", "did not arrive"),
        (True, "#0b6e99", "arrived"),
    ):
        lines = [GAP]
        for path, success in zip(paths, panel.arrived):
            if success == arrived:
                lines += [path, GAP]
        style = dict(color=colour, lw=0.8, alpha=0.7)
        ax.plot(*np.vstack(lines).T, label=word, **style)
    starts = [path[0] for path in paths]
    style = dict(color="white", mec="black", ms=5)
    ax.plot(*np.transpose(starts), "o", label="start", **style)
    goals = panel.goals[: panel.most]
    style = dict(color="gold", mec="black", ms=11)
    ax.plot(*goals.T, "*", label="goal", **style)
    count = f"{sum(panel.arrived)} of {len(panel.paths)} arrive"
    args = panel.args
    title = panel.title or f"{args.env_id}, {args.preset}, seed {args.seed}"
    ax.set(xticks=[], yticks=[], title=f"{title}: {count}")


def draw(panels: list[Panel], out: Path, columns: int = 2) -> None:
    """Draw all panels, then put the picture in its place in one step."""
    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    ratios = []  # height over width
    for panel in panels:
        task = edq.TASKS[panel.args.env_id]
        y, x = np.shape(task.env_kwargs["maze_map"])
        ratios.append((y - 2) / (x - 2))
    height = 6 * max(ratios) + 0.4  # inches; a panel is 6 wide
    size = (6 * columns, height * rows + 0.4)
    fig = Figure(figsize=size, dpi=100, layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels):
        draw_panel(ax, panel)
    for ax in axes[len(panels) :]:
        ax.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    style = dict(loc="outside lower center", ncols=5, frameon=False)
    fig.legend(handles, labels, **style)
    unfinished = out.with_name(f".unfinished-{out.name}")
    fig.savefig(unfinished, bbox_inches="tight")
    if out.suffix == ".png":  # 256 colours do, at a third of the size
        picture = Image.open(unfinished).convert("RGB")
        method = Image.Quantize.MAXCOVERAGE
        dither = Image.Dither.NONE
        picture = picture.quantize(256, method, dither=dither)
        picture.save(unfinished)
    os.replace(unfinished, out)


def main(args: Args) -> None:
    """Evaluate the runs and draw them."""
    run_dirs = [path.expanduser() for path in args.run_dirs]
    if not run_dirs or args.episodes < 1:
        fail("name a run folder, and at least one episode")
    out = args.out or run_dirs[0] / "paths.png"
    out = out.expanduser()
    has_folder = out.absolute().parent.is_dir()
    if out.suffix not in FORMATS or not has_folder:
        fail(f"{out} is no png, pdf or svg in a folder that is there")
    try:
        panels = []
        for run_dir in run_dirs:
            panels.append(evaluate(run_dir, args.episodes, args.data))
        draw(panels, out)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"cannot draw {out}: {error}")
    print(out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
