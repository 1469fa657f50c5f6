"""Collect runs of the embedded task into records, and draw their learning curves.

    python results/embedded.py runs/pointmaze-umaze-embedded__*

Writes results/records/pointmaze-umaze-embedded.csv, which `python edq_antmaze.py` prints beside its own figures, and
the evaluations behind it; report.py draws results/figures/embedded.png from them. Nothing in them is typed by hand.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from record import RECORDS, read_record

NAME = "pointmaze-umaze-embedded"
COLOURS = {"edq": "#0b6e99", "diffusion-bc": "#c7522a"}
LABELS = {"edq": "EDQ", "diffusion-bc": "diffusion behaviour cloning"}


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write dicts with equal keys as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def collect(folders: list[Path]) -> tuple[list[dict], list[dict]]:
    """One row a run (last evaluation) and one a run and evaluation, plus the data's own figures."""
    runs, curves = [], []
    for folder in folders:
        run, summary = (json.loads((folder / f).read_text()) for f in ("run.json", "summary.json"))
        args, last, data = run["args"], summary["last"], run["dataset"]
        with open(folder / "evaluations.csv") as file:
            episodes = list(csv.DictReader(file))
        with open(folder / "metrics.csv") as file:
            seconds = float(list(csv.DictReader(file))[-1]["charts/seconds"])
        runs.append({
            "what": args["preset"], "seed": args["seed"], "success": last["score"],
            "steps_to_goal": last["steps_to_goal"], "best": summary["best"]["score"],
            "episodes": args["eval_episodes"], "updates": last["step"], "seconds": round(seconds),
            "threads": run["threads"], "compile": args["compile"], "precision": args["precision"],
            "dataset": data["hash"], "torch": run["versions"]["torch"],
            "system": str(run["system"]).replace(",", ""),
        })  # fmt: skip
        for step in sorted({int(e["step"]) for e in episodes}):
            scores = [float(e["score"]) for e in episodes if int(e["step"]) == step]
            curves.append({"what": args["preset"], "seed": args["seed"], "update": step, "success": np.mean(scores)})
    empty = dict.fromkeys(runs[0], "")
    of_data = {"what": "data", "success": data["mean_score"], "steps_to_goal": data["mean_steps_to_goal"]}
    runs = sorted(runs, key=lambda r: (r["what"] != "edq", r["seed"]))
    for row in runs:
        row["success"], row["steps_to_goal"] = round(row["success"], 1), round(row["steps_to_goal"], 1)
    return [*runs, empty | {k: round(v, 1) if k != "what" else v for k, v in of_data.items()}], curves


def tables(records: Path) -> dict[str, str]:
    """The success rates of the README's first lines, in the order of the seeds."""
    _, rows = read_record(records / f"{NAME}.csv")
    return {
        f"embedded-{name}": ", ".join(f"{row['success']:.0f}" for row in rows if row["what"] == what)
        for name, what in (("edq", "edq"), ("cloning", "diffusion-bc"))
    }


def figures(records: Path, out: Path) -> None:
    """Success rate over updates: a line a seed, the mean in bold."""
    (_, runs), (_, curves) = (read_record(records / f"{NAME}{part}.csv") for part in ("", "-curves"))
    (data_score,) = (row["success"] for row in runs if row["what"] == "data")
    fig = Figure(figsize=(6.4, 3.4), dpi=150)
    ax = fig.subplots()
    for what, colour in COLOURS.items():
        seeds = sorted({c["seed"] for c in curves if c["what"] == what})
        lines = []
        for seed in seeds:
            points = [(c["update"], c["success"]) for c in curves if (c["what"], c["seed"]) == (what, seed)]
            lines.append(np.array(points))
            ax.plot(*lines[-1].T, color=colour, alpha=0.35, lw=1)
        label = f"{LABELS[what]}, {len(seeds)} seeds"
        ax.plot(lines[0][:, 0], np.mean(lines, 0)[:, 1], color=colour, lw=2.5, marker="o", ms=4, label=label)
    ax.axhline(data_score, color="0.5", ls=":", lw=1.2, label="episodes of the dataset")
    ax.set(
        xlabel="updates",
        ylabel="success rate in % (20 episodes)",
        ylim=(-3, 103),
        title="PointMaze umaze, the dataset in this repository",
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    fig.tight_layout()
    fig.savefig(out / "embedded.png", metadata={"Software": None})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs, curves = collect([Path(folder) for folder in sys.argv[1:]])
    write_csv(RECORDS / f"{NAME}.csv", runs)
    write_csv(RECORDS / f"{NAME}-curves.csv", curves)
