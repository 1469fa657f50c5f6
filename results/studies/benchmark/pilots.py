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

from results.common.records import RECORDS, csv_rows, markdown, pick, read_record, write_record

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
    "reward",
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


def seconds_of(metrics: list[dict]) -> float:
    """Time of the updates."""
    seconds = 0.0
    before = 0
    for row in metrics:
        step = int(row["step"])
        seconds += (step - before) / max(float(row["charts/sps"]), 1e-9)
        before = step
    return seconds


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
        "scores": ", ".join(f"{point['score']:.0f}" for point in history),
    }
    row |= {name: args.get(name, "") for name in USED}
    row |= {name: float(metrics[-1].get(of) or 0) for name, of in CURVE.items()}
    row["updates_per_second"] = statistics.median(float(m["charts/sps"]) for m in metrics)
    row["seconds"] = round(seconds_of(metrics))
    row |= {"threads": run["threads"], "torch": run["versions"]["torch"]}
    row |= {"flags": " ".join(run["flags"])}
    return row


def score_text(row: dict) -> str:
    return f"{row['last']:.1f} ± {row['standard_error']:.1f}"


ARMS = {  # of the suite learned
    "diffusion-bc": "diffusion BC",
    "edq": "EDQ without entropy term",
    "edq-entropy": "EDQ, entropy bound at 0.01",
    "edq-released": "EDQ, released entropy term",
    "diffusion-ql": "Diffusion-QL",
}


def learned(records: Path) -> str:
    """The suite so far: an arm a row, the last score of each seed."""
    _, rows = read_record(records / "benchmark" / "learned.csv")
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for arm, label in ARMS.items():
            runs = pick(rows, task=task, arm=arm)
            if not runs:
                continue
            last = ", ".join(score_text(row) for row in runs)
            best = ", ".join(f"{row['best']:.1f}" for row in runs)
            minutes = ", ".join(f"{row['seconds'] / 60:.0f}" for row in runs)
            data = f"{runs[0]['data']:.1f}"
            updates = f"{runs[0]['updates']:,.0f}"
            lines.append([runs[0]["dataset"], label, data, updates, last, best, minutes])
    for row in read_record(records / "benchmark" / "peer.csv")[1]:
        label = f"{row['method'].upper()} (d3rlpy, width 256, batch 256)"
        cells = [row["dataset"], label, f"{row['data']:.1f}", f"{row['updates']:,.0f}"]
        minutes = f"{row['seconds'] / 60:.0f}"
        lines.append([*cells, score_text(row), f"{row['best']:.1f}", minutes])
    head = ["dataset (stand-in)", "arm", "data", "updates", "last, per seed", "best", "minutes"]
    return markdown(head, lines)


def pilots(records: Path) -> str:
    """A run a row."""
    lines = []
    for row in read_record(records / "pilots" / "runs.csv")[1]:
        ours = row["actor_lr"] != ""  # the peer has a row of its own
        acting = f"{row['action_selection']} of {row['num_candidates']:.0f}" if ours else "mean"
        scaled = "no" if row["normalize_obs"] == "False" else "yes"
        lines.append(
            [
                row["task"],
                row["method"],
                f"{row['hidden_dim']:.0f}, {row['batch_size']:.0f}",
                f"{row['actor_lr']:g}" if ours else "-",
                f"{row['eta']:g}" if ours else "-",
                f"{row['tau']:g}" if ours else "-",
                row["reward"] or "-",
                acting,
                scaled,
                f"{row['updates']:,.0f}",
                score_text(row),
                str(row["scores"]).removesuffix(".0"),
                f"{row['data']:.1f}",
            ]
        )
    head = ["task (stand-in)", "method", "width, batch", "actor rate", "eta", "tau", "rewards"]
    head += ["acting", "standardised", "updates", "last", "at each evaluation", "data"]
    return markdown(head, lines)


def tables(records: Path) -> dict[str, str]:
    return {"pilots": pilots(records), "learned": learned(records)}


def main(args: Args) -> None:
    started = time.time()
    rows = [row_of(folder) for folder in args.runs if (folder / "evaluations.csv").exists()]
    rows.sort(key=lambda row: (row["task"], row["run"]))
    write_record(args.record, rows, started, data="stand-ins, not D4RL's")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
