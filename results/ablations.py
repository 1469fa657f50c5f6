"""Tables and picture of the ablations: suites ablation-maze, ablation-hopper and ablation-door, made by benchmark.py.

Every arm is `edq` with some flags changed (in one or two by another preset), three seeds, last evaluation. Beside an
arm's mean stands its difference from `edq` with the same seeds, and a 95 % t interval of that difference: with three
seeds it is wide, and an arm whose interval holds 0 is not shown to differ, nor to be equal. Among some forty such
intervals two or so miss by chance alone.
"""

import tomllib
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from record import csv_rows, markdown
from scipy import stats
from scores import column, mean_se

HERE, BASE = Path(__file__).resolve().parent, "edq"
SUITES = {  # suite: what the table is called, the picture's title
    "ablation-maze": "pointmaze-medium, wander",
    "ablation-hopper": "hopper-medium-replay, stand-in",
    "ablation-door": "door-human, stand-in",
}


def arms(records: Path, suite: str) -> dict[str, list[dict]]:
    """Rows of each arm, as the seeds go; `edq` first, the others as the suite's file names them."""
    rows: dict[str, list[dict]] = {}
    for row in csv_rows(records / "benchmark" / f"{suite}.csv"):
        rows.setdefault(row["arm"], []).append(row)
    if suite == "ablation-door":  # its `edq` and the others to compare with are among the benchmark's own runs
        for row in csv_rows(records / "benchmark" / "stand-ins.csv"):
            if row["task"] == "door-human":
                rows.setdefault(row["arm"], []).append(row)
    for of in rows.values():
        of.sort(key=lambda row: int(row["seed"]))
    order = []  # as the suite's file has them
    for group in tomllib.loads((HERE / "suites" / f"{suite}.toml").read_text())["runs"]:
        order += [
            name for arm in group["arms"] for name in (arm, *(f"{arm}, {how}" for how in group.get("acting", {})))
        ]
    names = [BASE, *(arm for arm in order if arm != BASE), *(arm for arm in rows if arm not in order and arm != BASE)]
    return {name: rows[name] for name in names if name in rows}


def difference(rows: list[dict], base: list[dict]) -> str:
    """Mean over the seeds that both have of the difference, and half the width of its 95 % t interval."""
    of = {row["seed"]: float(row["last"]) for row in base}
    values = np.array([float(row["last"]) - of[row["seed"]] for row in rows if row["seed"] in of])
    if len(values) < 2:
        return "-"
    if values.std() == 0:  # no spread to make an interval of: a rounding of successes, not certainty
        return f"{values.mean():+.1f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():+.1f} ± {half:.1f}"


SAID = {  # sentences of the page: arms of the maze, as they are called there
    "maze-pessimism": {
        "one Q, no entropy term": "one Q", "minimum": "the minimum of four", "beta = 1": "beta = 1",
        "beta = 2": "beta = 2", "edq": "beta = 4",
    },
    "maze-parts": {
        "one Q, no entropy term": "neither", "no entropy term": "ensemble alone",
        "one Q, chain 0.1": "entropy alone (chain)", "edq": "both (released)", "chain 0.1": "both (chain)",
    },
    "maze-members": {"M = 2": "M = 2", "edq": "M = 4", "M = 16": "M = 16", "M = 64": "M = 64"},
    "maze-acting": {"edq, K = 1": "one candidate", "edq": "softmax over 50", "edq, argmax": "the best of 50"},
    "maze-alpha": {"no entropy term": "none", "chain 0.1": "0.1", "chain, automatic": "automatic"},
}  # fmt: skip


def tables(records: Path) -> dict[str, str]:
    """One table a suite that was run, and the sentences."""
    maze, found = arms(records, "ablation-maze"), {}
    for name, called in SAID.items():
        parts = [f"{label} {mean_se(column(maze[arm], 'last'), 0)}" for arm, label in called.items() if arm in maze]
        found[name] = ", ".join(parts)
    for suite in (suite for suite in SUITES if (records / "benchmark" / f"{suite}.csv").exists()):
        all_arms, rows = arms(records, suite), []
        for arm, of in all_arms.items():
            last = column(of, "last")
            against = "" if arm == BASE else difference(of, all_arms[BASE])
            spread = mean_se(last) if len(last) > 1 else f"{last[0]:.1f}"
            rows.append([arm, spread, ", ".join(f"{v:g}" for v in last), against])
        found[suite] = markdown(["arm", "last score", "of each seed", "difference from `edq`"], rows)
    return found


def figures(records: Path, out: Path) -> None:
    """ablations.png: a line an arm, a dot a seed, a bar their mean."""
    suites = [suite for suite in SUITES if (records / "benchmark" / f"{suite}.csv").exists()]
    figure = Figure((11, 6), layout="constrained")
    for axes, suite in zip(np.atleast_1d(figure.subplots(1, len(suites))), suites):
        all_arms = arms(records, suite)
        for i, of in enumerate(all_arms.values()):
            last = column(of, "last")
            axes.plot(last, np.full(len(last), -i), "o", color="#0b6e99", alpha=0.55, markersize=5, markeredgewidth=0)
            axes.plot([last.mean()] * 2, [-i - 0.3, -i + 0.3], color="black", linewidth=2)
        axes.axvline(column(all_arms[BASE], "last").mean(), color="grey", linewidth=0.8, linestyle=":")
        axes.set_yticks(-np.arange(len(all_arms)), [*all_arms], fontsize=8)
        axes.set_title(SUITES[suite], fontsize=10)
        axes.set_xlabel("last score of each seed")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "ablations.png", dpi=110)
