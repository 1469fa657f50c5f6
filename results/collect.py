"""Collect finished runs of the three scripts into one CSV record.

    python results/collect.py results/records/first-runs.csv runs/*

One row a run: what was run, on which data, and its last, best and offline-selected score with the data's own mean.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

from record import csv_rows


def scores_so_far(folder: Path) -> dict[str, dict]:
    """What summary.json will hold, of a run that is not finished and has been evaluated: its last and best score."""
    scores, history = {}, []
    for episode in csv_rows(folder / "evaluations.csv"):
        scores.setdefault(int(episode["step"]), []).append(float(episode["score"]))
    for step, of in scores.items():
        error = statistics.stdev(of) / len(of) ** 0.5 if len(of) > 1 else 0.0
        history.append({"step": step, "score": statistics.fmean(of), "standard_error": error})
    return {"last": history[-1], "best": max(history, key=lambda h: h["score"]), "offline": {**history[-1], "note": ""}}


def collect(folder: Path) -> dict:
    """The row of a run, from what its folder holds; of one that is not finished, as far as it has been evaluated."""
    run, finished = json.loads((folder / "run.json").read_text()), (folder / "summary.json").exists()
    summary = json.loads((folder / "summary.json").read_text()) if finished else scores_so_far(folder)
    metrics = [row for row in csv_rows(folder / "metrics.csv") if int(row["step"]) <= summary["last"]["step"]]
    seconds = float(metrics[-1]["charts/seconds"]) if metrics else 0.0
    args, data = run["args"], run["dataset"]
    return {
        "task": args["env_id"], "preset": args["preset"], "seed": args["seed"], "dataset": data["id"],
        "hash": data["hash"], "updates": summary["last"]["step"], "critics": args["num_critics"],
        "diffusion_loss": args["diffusion_loss"], "action_clip": args["action_clip"],
        "episodes": args["eval_episodes"], "last": round(summary["last"]["score"], 1),
        "standard_error": round(summary["last"]["standard_error"], 1), "best": round(summary["best"]["score"], 1),
        "offline": round((summary["offline"] or summary["last"])["score"], 1), "data": round(data["mean_score"], 1),
        "seconds": round(seconds), "threads": run["threads"], "torch": run["versions"]["torch"],
        "flags": " ".join(run["flags"]), "settled": "note" not in (summary["offline"] or {}),
        "gpu": run["gpu"] or "", "capability": run["system"][2], "precision": args["precision"],
        "compile": args["compile"], "git_commit": run["git_commit"], "finished": finished,
        "updates_per_second": statistics.median(float(row["charts/sps"]) for row in metrics) if metrics else "",
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    rows = [collect(Path(folder)) for folder in sys.argv[2:]]
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: (r["task"], r["diffusion_loss"], r["preset"], r["seed"])))
