"""Collect finished runs of the three scripts into one CSV record.

    python results/collect.py results/records/first-runs.csv runs/*

One row a run: what was run, on which data, and its last, best and offline-selected score with the data's own mean.
"""

import csv
import json
import sys
from pathlib import Path


def collect(folder: Path) -> dict:
    """The row of a finished run, from what its folder holds."""
    run, summary = (json.loads((folder / name).read_text()) for name in ("run.json", "summary.json"))
    with open(folder / "metrics.csv") as file:
        seconds = float(list(csv.DictReader(file))[-1]["charts/seconds"])
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
        "compile": args["compile"], "git_commit": run["git_commit"],
    }  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    rows = [collect(Path(folder)) for folder in sys.argv[2:]]
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: (r["task"], r["diffusion_loss"], r["preset"], r["seed"])))
