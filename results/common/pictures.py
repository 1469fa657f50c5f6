"""Pictures of paths in a maze: records of the paths of an evaluation, and drawing from them.

Positions are in metres, to the millimetre (of an ant: centimetre). Of a path only the points are
kept without which it would run more than five millimetres (of an ant: six centimetres) elsewhere;
a pixel of the pictures is as wide or wider.
"""

import sys
import time
from pathlib import Path

import numpy as np

from results.common.records import RECORDS, ROOT, column, read_record, write_record
from results.common.runs import read_json

sys.path.append(str(ROOT / "results" / "datasets"))  # as the tools there find each other
import draw_paths


def thin(path: np.ndarray, tolerance: float) -> np.ndarray:
    """Ramer, Douglas and Peucker: both ends, and what is farthest from their line if far, and so
    on."""
    keep = {0, len(path) - 1}
    todo = [(0, len(path) - 1)]
    while todo:
        first, last = todo.pop()
        way = path[last] - path[first]
        away = path[first : last + 1] - path[first]
        length = max(way @ way, 1e-12)  # squared
        along = np.clip(away @ way / length, 0, 1)
        off = away - np.outer(along, way)
        distance = np.linalg.norm(off, axis=1)
        if distance.max() > tolerance:
            middle = first + int(distance.argmax())
            keep.add(middle)
            todo.append((first, middle))
            todo.append((middle, last))
    return path[sorted(keep)]


def metres(x: float, digits: int = 3) -> str:
    """As short as it goes."""
    return f"{round(float(x), digits) + 0.0:g}"


def part(of: dict, *names: str) -> dict:
    return {name: of[name] for name in names}


def write_paths(study: str, run_dir: Path):
    """Record the paths of an evaluation of a run, and the states that are drawn beneath them."""
    started = time.time()
    record = read_json(run_dir / "run.json")
    episodes = record["args"]["eval_episodes"]
    panel = draw_paths.evaluate(run_dir, episodes, with_data=True)
    args = panel.args
    task = draw_paths.edq.TASKS[args.env_id]
    if task.env.startswith("Ant"):
        tolerance, digits = 0.06, 2
    else:
        tolerance, digits = 0.005, 3
    rows = []
    for i, path in enumerate(panel.paths):
        goal_x, goal_y = panel.goals[i]
        thinned = thin(path.astype(float), tolerance)
        points = [metres(x, digits) for x in thinned.flatten()]
        row = {
            "episode": i,
            "arrived": int(panel.arrived[i]),
            "goal_x": metres(goal_x),
            "goal_y": metres(goal_y),
            "path": " ".join(points),
        }
        rows.append(row)
    dataset = part(record["dataset"], "id", "hash")
    about = {
        "args": part(record["args"], "env_id", "preset", "seed"),
        "run": part(record, "script", "threads", "versions"),
        "dataset": dataset,
    }
    folder = RECORDS / study
    name = f"{args.env_id}-{args.preset}-{args.seed}"
    write_record(folder / f"paths-{name}.csv", rows, started, **about)
    states = []
    for x, y in panel.states:
        states.append({"x": metres(x), "y": metres(y)})
    write_record(folder / f"states-{args.env_id}.csv", states, started, dataset=dataset)


def path_of(row: dict) -> np.ndarray:
    numbers = np.array(row["path"].split(), float)
    return numbers.reshape(-1, 2)


def pairs(rows, x: str, y: str) -> np.ndarray:
    """Two columns, `[N, 2]`."""
    both = [column(rows, x), column(rows, y)]
    return np.stack(both, 1)


def read_panel(folder: Path, name: str, title: str, most: int | None) -> draw_paths.Panel:
    """What draw_paths.py draws of a run."""
    run, rows = read_record(folder / f"paths-{name}.csv")
    args = draw_paths.edq.Args(**run["args"])
    _, states = read_record(folder / f"states-{args.env_id}.csv")
    return draw_paths.Panel(
        args=args,
        paths=[path_of(row) for row in rows],
        goals=pairs(rows, "goal_x", "goal_y"),
        arrived=[row["arrived"] == 1 for row in rows],
        states=pairs(states, "x", "y"),
        title=title,
        most=most,
    )


def draw_mazes(
    folder: Path,
    titles: dict,
    path: Path,
    columns: int = 2,
    most: int | None = None,
):
    """A panel a recorded run, by its name with its title; of each run the first `most` paths."""
    panels = []
    for name, title in titles.items():
        panels.append(read_panel(folder, name, title, most))
    draw_paths.draw(panels, path, columns)
