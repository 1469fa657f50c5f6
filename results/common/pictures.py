"""Pictures of paths in a maze: records of the paths of an evaluation, and drawing from them.

Positions are in metres, to the millimetre (of an ant: centimetre). Of a path only the points are
kept without which it would run more than five millimetres (of an ant: six centimetres) elsewhere;
a pixel of the pictures is as wide or wider.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from results.common.records import RECORDS, ROOT, column, read_record, write_record
from results.common.runs import Run, load_data
from results.common.walks import watch

sys.path.append(str(ROOT / "results" / "datasets"))
from draw_paths import Panel, draw, positions


def thin(path: np.ndarray, tolerance: float) -> np.ndarray:
    """Ramer, Douglas and Peucker: both ends, and what is farthest from their line if far, and so
    on."""
    keep = {0, len(path) - 1}
    todo = [(0, len(path) - 1)]
    while todo:
        first, last = todo.pop()
        way = path[last] - path[first]
        away = path[first : last + 1] - path[first]
        along = np.clip(away @ way / max(way @ way, 1e-12), 0, 1)
        distance = np.linalg.norm(away - along[:, None] * way, axis=1)
        if distance.max() > tolerance:
            middle = first + int(distance.argmax())
            keep.add(middle)
            todo += [(first, middle), (middle, last)]
    return path[sorted(keep)]


def metres(x: float, digits: int = 3) -> str:
    """As short as it goes."""
    return f"{round(float(x), digits) + 0.0:g}"


STATES = 4000  # of the data, drawn in grey


def write_paths(study: str, run: Run) -> None:
    """Record the paths of an evaluation of a run, and the states that are drawn beneath them."""
    started = time.time()
    args, task = run.args, run.script.TASKS[run.args.env_id]
    data, info = load_data(run)
    results, paths = watch(run, args.eval_episodes)
    is_ant = task.env.startswith("Ant")
    tolerance, digits = (0.06, 2) if is_ant else (0.005, 3)
    rows = []
    for i, (result, path) in enumerate(zip(results, paths)):
        x, y = path[0, -2:]  # the goal
        thinned = thin(positions(path).astype(float), tolerance)
        points = " ".join(metres(x, digits) for x in thinned.flatten())
        row = {"episode": i, "arrived": int(result["score"] > 0)}
        row |= {"goal_x": metres(x), "goal_y": metres(y)}
        rows.append(row | {"path": points})
    dataset = {"id": info["id"], "hash": info["hash"]}
    about = {
        "simulator": [task.env, task.env_kwargs],
        "args": {"env_id": args.env_id, "preset": args.preset, "seed": args.seed},
        "run": {k: run.record[k] for k in ("script", "threads", "versions")},
        "dataset": dataset,
    }
    folder = RECORDS / study
    name = f"{args.env_id}-{args.preset}-{args.seed}"
    write_record(folder / f"paths-{name}.csv", rows, started, **about)
    chosen = np.random.default_rng(0).choice(len(data.obs), STATES, replace=False)
    sample = positions(data.obs.numpy()[np.sort(chosen)])
    states = [{"x": metres(x), "y": metres(y)} for x, y in sample]
    write_record(folder / f"states-{args.env_id}.csv", states, started, dataset=dataset)


def read_panel(folder: Path, name: str) -> Panel:
    """A recorded run as draw_paths.py draws it."""
    run, rows = read_record(folder / f"paths-{name}.csv")
    _, states = read_record(folder / f"states-{run['args']['env_id']}.csv")
    return Panel(
        args=SimpleNamespace(**run["args"]),
        paths=[np.array(row["path"].split(), float).reshape(-1, 2) for row in rows],
        goals=np.stack([column(rows, "goal_x"), column(rows, "goal_y")], 1),
        arrived=[row["arrived"] == "1" for row in rows],
        states=np.stack([column(states, "x"), column(states, "y")], 1),
    )


def draw_mazes(folder: Path, names: list[str], path: Path) -> None:
    """A panel a recorded run."""
    draw([read_panel(folder, name) for name in names], path)
