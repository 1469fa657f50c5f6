"""Tables and picture of the ablations: suites ablation-large, -maze, -hopper and -door.

Every arm is `edq` with some flags changed (in one or two by another preset), three seeds, last
evaluation. Beside an arm's mean stands its difference from `edq` with the same seeds, and a 95 % t
interval of that difference: with three seeds it is wide, and an arm whose interval holds 0 is not
shown to differ, nor to be equal. Among some forty such intervals two or so miss by chance alone.
"""

import tomllib
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.common.intervals import interval, mean_se
from results.common.records import ROOT, column, csv_rows, markdown, pick

BASE = "edq"
SUITES = {  # suite: title in the picture
    "ablation-large": "pointmaze-large, wander",
    "ablation-maze": "pointmaze-medium, wander",
    "ablation-hopper": "hopper-medium-replay, stand-in",
    "ablation-door": "door-human",
}
ELSEWHERE = {  # suite: another record that holds arms of it, its task, and their names here
    "ablation-large": (
        "mazes",
        "pointmaze-large",
        {"edq-none": "no entropy term", "edq-entropy": "entropy bound"},
    ),
    "ablation-door": (
        "stand-ins",
        "door-human",
        {name: name for name in ("edq", "diffusion-bc", "diffusion-ql", "edq-entropy")},
    ),
}
DIGITS = {"ablation-door": 2}  # of means and differences, where scores are as close as 0.1


def recorded(records: Path):
    """The suites that were run."""
    folder = records / "benchmark"
    return [suite for suite in SUITES if (folder / f"{suite}.csv").exists()]


def arms_in_order(suite: str):
    """Arms as the suite's file names them, each followed by its other ways of acting."""
    path = ROOT / "results" / "suites" / f"{suite}.toml"
    groups = tomllib.loads(path.read_text())["runs"]
    names = []
    for group in groups:
        for arm in group["arms"]:
            names.append(arm)
            for acting in group.get("acting", {}):
                names.append(f"{arm}, {acting}")
    return names


def arms(records: Path, suite: str):
    """Rows of each arm, as the seeds go; `edq` first, then as the suite's file has them."""
    folder = records / "benchmark"
    rows = csv_rows(folder / f"{suite}.csv")
    if suite in ELSEWHERE:
        other, task, names = ELSEWHERE[suite]
        for row in pick(csv_rows(folder / f"{other}.csv"), task=task):
            if row["arm"] in names:
                rows.append(row | {"arm": names[row["arm"]]})
    rows.sort(key=lambda row: int(row["seed"]))
    found = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(row)
    known = [arm for arm in arms_in_order(suite) if arm in found]
    names = dict.fromkeys([BASE, *known, *sorted(found)])
    return {name: found[name] for name in names}


def difference(rows, base, digits: int = 1) -> str:
    """Mean over the seeds that both have of the difference, and half the width of its interval."""
    of_base = {row["seed"]: float(row["last"]) for row in base}
    values = []
    for row in rows:
        seed = row["seed"]
        if seed in of_base:
            values.append(float(row["last"]) - of_base[seed])
    values = np.array(values)
    if len(values) < 2:
        return "-"
    if values.std() == 0:  # no spread to make an interval of: a rounding, not certainty
        return f"{values.mean():+.{digits}f}"
    mean, half = interval(values)
    return f"{mean:+.{digits}f} ± {half:.{digits}f}"


def table(records: Path, suite: str) -> str:
    all_arms = arms(records, suite)
    digits = DIGITS.get(suite, 1)
    rows = []
    for arm, of_arm in all_arms.items():
        last = column(of_arm, "last")
        seeds = ", ".join(f"{value:g}" for value in last)
        against = "" if arm == BASE else difference(of_arm, all_arms[BASE], digits)
        rows.append([arm, mean_se(last, digits), seeds, against])
    return markdown(["arm", "last score", "of each seed", "difference from `edq`"], rows)


def tables(records: Path) -> dict[str, str]:
    return {suite: table(records, suite) for suite in recorded(records)}


def panel(axes: Axes, all_arms):
    """A line an arm, a dot a seed, a bar their mean; equal scores lie above each other."""
    dots = dict(color="#0b6e99", markersize=4, label="a seed")
    bar = dict(color="black", linewidth=2, label="mean")
    for i, of_arm in enumerate(all_arms.values()):
        last = np.sort(column(of_arm, "last"))
        first = np.searchsorted(last, last)  # of those that are equal
        above = np.arange(len(last)) - first
        mean = last.mean()
        axes.plot(last, -i + 0.22 * above, "o", **dots)
        axes.vlines(mean, -i - 0.3, -i + 0.3, **bar)
    base = column(all_arms[BASE], "last").mean()
    style = dict(color="grey", linewidth=1, linestyle=":")
    axes.axvline(base, label=f"mean of {BASE}", **style)
    heights = -np.arange(len(all_arms))
    axes.set_yticks(heights, list(all_arms), fontsize=8)
    axes.set_xlabel("last score")
    axes.spines[["top", "right"]].set_visible(False)


def figures(records: Path, out: Path):
    """ablations.png, a panel a suite."""
    suites = recorded(records)
    figure = Figure((11, 6), layout="constrained")
    panels = figure.subplots(1, len(suites), squeeze=False)
    for axes, suite in zip(panels[0], suites):
        all_arms = arms(records, suite)
        panel(axes, all_arms)
        data = float(all_arms[BASE][0]["data"])
        axes.set_title(f"{SUITES[suite]}; the data: {data:.1f}", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles))
    figure.legend(
        by_label.values(),
        by_label.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    figure.savefig(out / "ablations.png", dpi=110)
