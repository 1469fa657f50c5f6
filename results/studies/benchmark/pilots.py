"""Pilots: short runs on seeds from 100 up that choose the CPU-sized row of a family.

    python results/studies/benchmark/pilots.py runs/pilots/*
    python results/studies/benchmark/pilots.py runs/peer/* --record peer.csv

The first command writes results/records/pilots/runs.csv. One row a run, made from the run folder
alone: run.json, evaluations.csv and metrics.csv. A run that is not finished gives its last
evaluation so far.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from results.common.records import RECORDS, csv_rows, write_record

USED = (  # arguments of a run that go into its row
    "num_critics",
    "lcb_coef",
    "hidden_dim",
    "batch_size",
    "actor_lr",
    "lr_decay",
    "tau",
    "gamma",
    "eta",
    "entropy_estimator",
    "ent_coef",
    "num_candidates",
    "action_selection",
    "normalize_obs",
    "precision",
    "compile",
)
CURVE = {
    "diffusion": "losses/diffusion",
    "entropy": "policy/entropy",
    "q_mean": "q/mean",
    "q_std": "q/std",
}


@dataclass
class Args:
    """Write one record of the named run folders."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders"""
    record: Path = RECORDS / "pilots" / "runs.csv"
    """file to write"""


def evaluations_of(folder: Path) -> list[dict]:
    """Mean score and its standard error at each evaluation."""
    episodes: dict[int, list[dict]] = {}
    for row in csv_rows(folder / "evaluations.csv"):
        episodes.setdefault(int(row["step"]), []).append(row)
    history = []
    for step, rows in episodes.items():
        scores = [float(row["score"]) for row in rows]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        point = {"step": step, "episodes": len(scores), "score": statistics.fmean(scores)}
        history.append(point | {"standard_error": error})
    return history


def dataset_of(ids: str) -> str:
    """Names of the sets, whether they were given as ids or as folders."""
    return ",".join("/".join(Path(one).parts[-3:]) for one in ids.split(","))


def row_of(folder: Path) -> dict:
    """What was run and what came out."""
    run = json.loads((folder / "run.json").read_text())
    history = evaluations_of(folder)
    last = history[-1]
    best = max(history, key=lambda point: point["score"])
    metrics = [row for row in csv_rows(folder / "metrics.csv") if int(row["step"]) <= last["step"]]
    args, data = run["args"], run["dataset"]
    row = {
        "run": folder.name,
        "script": run["script"],
        "task": args["env_id"],
        "method": args["preset"],
        "seed": args["seed"],
        "dataset": dataset_of(data["id"]),
        "hash": data["hash"],
        "transitions": data["transitions"],
        "data": round(data["mean_score"], 1),
        "updates": last["step"],
        "asked": args["gradient_steps"],
        "episodes": last["episodes"],
        "last": round(last["score"], 1),
        "standard_error": round(last["standard_error"], 1),
        "best": round(best["score"], 1),
        "best_at": best["step"],
    }
    row |= {name: args.get(name, "") for name in USED}
    row |= {name: float(metrics[-1].get(of) or 0) for name, of in CURVE.items()}
    row["updates_per_second"] = statistics.median(float(m["charts/sps"]) for m in metrics)
    row["seconds"] = round(float(metrics[-1]["charts/seconds"]))
    row |= {"threads": run["threads"], "torch": run["versions"]["torch"]}
    row |= {"git_commit": run["git_commit"], "flags": " ".join(run["flags"])}
    return row


def score_text(row: dict) -> str:
    return f"{row['last']:.1f} ± {row['standard_error']:.1f}"


def main(args: Args) -> None:
    started = time.time()
    rows = [row_of(folder) for folder in args.runs if (folder / "evaluations.csv").exists()]
    rows.sort(key=lambda row: (row["task"], row["run"]))
    write_record(args.record, rows, started, data="stand-ins, not D4RL's")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
