"""Records of the paths that runs took in a maze, and the pictures of the README that are drawn from them.

    python results/paths.py runs/<run folder> ...    # runs of edq_antmaze.py

Writes, for every run, results/records/paths-*.csv with a row an episode of its last evaluation, and states-*.csv, the
sample of the data that is drawn in grey, the same for every run on a dataset. Positions are in metres, to the
millimetre (of an ant: centimetre). Of a path only the points are kept without which it would run more than five
millimetres (of an ant: six centimetres) elsewhere; a pixel of the pictures is as wide or wider.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from record import RECORDS, read_record, write_record

sys.path.append(str(Path(__file__).resolve().parent / "datasets"))
from draw_paths import draw

PICTURES = {  # of the small mazes the seed with EDQ's median score
    "embedded-paths": ["pointmaze-umaze-embedded-edq-0"],
    "mazes": [
        f"pointmaze-{maze}-{preset}-1"
        for maze in ("rare", "medium")
        for preset in ("edq", "diffusion-bc")
    ],
    "antmaze-gpu-paths": [
        f"antmaze-large-diverse-{preset}-0" for preset in ("edq", "diffusion-ql", "diffusion-bc")
    ],
}


def thin(path: np.ndarray, tolerance: float) -> np.ndarray:
    """Ramer, Douglas and Peucker: keep both ends, and what is farthest from their line if far; both sides likewise."""
    keep, todo = {0, len(path) - 1}, [(0, len(path) - 1)]
    while todo:
        first, last = todo.pop()
        way, away = path[last] - path[first], path[first : last + 1] - path[first]
        along = np.clip(away @ way / max(way @ way, 1e-12), 0, 1)
        distance = np.linalg.norm(away - along[:, None] * way, axis=1)
        if distance.max() > tolerance:
            middle = first + int(distance.argmax())
            keep.add(middle)
            todo += [(first, middle), (middle, last)]
    return path[sorted(keep)]


def metres(x: float, digits: int = 3) -> str:
    """To the millimetre, as short as it goes."""
    return f"{round(float(x), digits) + 0.0:g}"


def write_records(folder: Path) -> None:
    """Record the last evaluation of one run."""
    started, run = time.time(), json.loads((folder / "run.json").read_text())
    args, data_id = run["args"], run["dataset"]["id"]
    flags = [
        x for name, x in zip([None, *run["flags"]], run["flags"]) if "--run-dir" not in (name, x)
    ]
    about = {
        "simulator": run["simulator"],
        "args": {k: args[k] for k in ("env_id", "preset", "seed")},
    }
    about |= {
        "run": {
            "script": run["script"],
            "flags": flags,
            "threads": run["threads"],
            "versions": run["versions"],
        }
    }
    data_id = Path(data_id).name if Path(data_id).is_absolute() else data_id
    about |= {"dataset": {"id": data_id, "hash": run["dataset"]["hash"]}}
    with np.load(folder / "paths.npz", allow_pickle=False) as file:
        data = dict(file)
    paths = np.split(data["paths"], np.cumsum(data["steps"])[:-1])
    tolerance, digits = (0.06, 2) if run["simulator"][0].startswith("Ant") else (0.005, 3)
    rows = [
        {"episode": i, "arrived": int(arrived), "goal_x": metres(x), "goal_y": metres(y),
         "path": " ".join(metres(x, digits) for x in thin(path, tolerance).flatten())}
        for i, (path, arrived, (x, y)) in enumerate(zip(paths, data["arrived"], data["goals"]))
    ]  # fmt: skip
    write_record(
        RECORDS / f"paths-{args['env_id']}-{args['preset']}-{args['seed']}.csv",
        rows,
        started,
        **about,
    )
    states = [{"x": metres(x), "y": metres(y)} for x, y in data["states"]]
    write_record(
        RECORDS / f"states-{args['env_id']}.csv", states, started, dataset=about["dataset"]
    )


def read_panel(records: Path, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What draw_paths.py needs of a run: where and what it was, and the arrays of its paths.npz."""
    run, rows = read_record(records / f"paths-{name}.csv")
    _, states = read_record(records / f"states-{run['args']['env_id']}.csv")
    paths = [np.array(row["path"].split(), float).reshape(-1, 2) for row in rows]
    return run, {
        "states": np.array([(row["x"], row["y"]) for row in states]),
        "paths": np.concatenate(paths), "steps": np.array([len(path) for path in paths]),
        "arrived": np.array([row["arrived"] == 1 for row in rows]),
        "goals": np.array([(row["goal_x"], row["goal_y"]) for row in rows]),
    }  # fmt: skip


def tables(records: Path) -> dict[str, str]:
    """None: these are pictures."""
    return {}


def figures(records: Path, out: Path) -> None:
    """The mazes of the README."""
    for picture, names in PICTURES.items():
        draw([read_panel(records, name) for name in names], out / f"{picture}.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for folder in map(Path, sys.argv[1:]):
        write_records(folder)
