"""Does EDQ learn? Tables and picture of the long runs: tasks x methods, all seeds there are.

The suites of SUITES are made by `results/run_suite.py`, a record each; the peer's record is made by
pilots.py. A task appears as soon as one of its runs is recorded, and a cell says of how many seeds
it is the mean if these are not SEEDS yet. All arms of a task have the same data, row and budget.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from results.common.intervals import mean_se
from results.common.records import column, csv_rows, markdown, pick
from results.studies.benchmark.aggregates import of_scores

SUITES = ("hands", "mazes", "locomotion-small")
SEEDS = 3
ARMS = {  # preset edq-entropy, preset edq, and so on; README says what each is
    "edq-entropy": "EDQ, entropy bound",
    "edq-released": "EDQ, as released",
    "edq-none": "EDQ, no entropy",
    "diffusion-ql": "Diffusion-QL",
    "diffusion-bc": "diffusion BC",
}
STEADINESS = {  # the same, and an ensemble four times as large
    "edq-entropy": ARMS["edq-entropy"],
    "edq-released": ARMS["edq-released"],
    "M = 16": "EDQ, as released, M = 16",
    "edq-none": ARMS["edq-none"],
    "diffusion-ql": ARMS["diffusion-ql"],
    "diffusion-bc": ARMS["diffusion-bc"],
}
COLOURS = {
    "edq-entropy": "#3f8f4f",
    "edq-released": "#0b6e99",
    "M = 16": "black",
    "edq-none": "#6bb7d6",
    "diffusion-ql": "#7a5195",
    "diffusion-bc": "#c7522a",
}
TASKS = {  # as a reader knows them; the hands' sets take the place of D4RL's cloned ones
    "pen-cloned": "pen-mixed",
    "hammer-cloned": "hammer-mixed",
    "pointmaze-medium": "PointMaze medium, *wander*",
    "pointmaze-large": "PointMaze large, *wander*",
    "hopper-medium-expert": "hopper-medium-expert",
}
PEER = "IQL"

Runs = dict[str, dict[str, list[dict]]]  # task -> arm -> rows by seed


def runs(records: Path, suites=SUITES, names=ARMS) -> Runs:
    """Finished runs of every task of the suites, of the arms that are named."""
    rows = []
    for suite in suites:
        for row in csv_rows(records / "benchmark" / f"{suite}.csv"):
            rows.append(row | {"suite": suite})
    found: Runs = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        if row["arm"] in names and row["finished"] == "True":
            arms = found.setdefault(row["task"], {arm: [] for arm in names})
            arms[row["arm"]].append(row)
    for task, arms in found.items():
        equal = {
            (r["hash"], r["updates"], r["episodes"]) for of_arm in arms.values() for r in of_arm
        }
        if len(equal) > 1:
            raise ValueError(f"runs of {task} differ in data, updates or episodes")
    return {task: found[task] for task in TASKS if task in found}


def first_of(arms: dict[str, list[dict]]) -> dict:
    """Any run of a task: what all have in common is in it."""
    return next(row for rows in arms.values() for row in rows)


def cell(values: np.ndarray) -> str:
    """Mean and standard error, and the number of seeds if it is another than SEEDS."""
    if len(values) == 0:
        return "-"
    text = mean_se(values)
    if len(values) == SEEDS:
        return text
    return f"{text} ({len(values)} seed{'s' if len(values) > 1 else ''})"


def peer_scores(records: Path, dataset: str) -> np.ndarray:
    """Last scores of the peer on the same data."""
    rows = csv_rows(records / "benchmark" / "peer.csv")
    return column(pick(rows, method=PEER.lower(), dataset=dataset), "last")


def headline(records: Path) -> str:
    """A task a row: the data's own mean, and each method's last score."""
    lines = []
    for task, arms in runs(records).items():
        first = first_of(arms)
        scores = [cell(column(arms[arm], "last")) for arm in ARMS]
        scores.append(cell(peer_scores(records, first["dataset"])))
        updates = f"{int(first['updates']):,}"
        lines.append([TASKS[task], f"{float(first['data']):.0f}", *scores, updates])
    head = ["task (stand-in)", "data", *ARMS.values(), f"{PEER} (d3rlpy)", "updates"]
    return markdown(head, lines)


def last_and_best(records: Path) -> str:
    """A task and an arm a row: every seed's last score, and its best evaluation."""
    lines = []
    for task, arms in runs(records).items():
        for arm, rows in arms.items():
            if not rows:
                continue
            last, best = column(rows, "last"), column(rows, "best")
            seconds = column(rows, "seconds")
            lines.append(
                [
                    TASKS[task],
                    ARMS[arm],
                    ", ".join(f"{score:.0f}" for score in last),
                    ", ".join(f"{score:.0f}" for score in best),
                    f"{(best - last).mean():.0f}",
                    f"{seconds.mean() / 60:.0f}",
                ]
            )
    head = ["task", "arm", "last, per seed", "best, per seed", "best − last", "minutes a run"]
    return markdown(head, lines)


def complete(records: Path) -> Runs:
    """The tasks of which every arm has SEEDS seeds."""
    found = {}
    for task, arms in runs(records).items():
        if all(len(rows) >= SEEDS for rows in arms.values()):
            found[task] = {arm: rows[:SEEDS] for arm, rows in arms.items()}
    return found


def estimates(records: Path) -> dict:
    """By rliable, over the complete tasks, a score being a share of the data's own mean."""
    tasks = complete(records)
    key = []
    for arm in ARMS:
        by_task = []
        for arms in tasks.values():
            own = float(first_of(arms)["data"])
            by_task.append(column(arms[arm], "last") / own)
        key.append((arm, tuple(map(tuple, zip(*by_task)))))
    return of_scores(tuple(key))


def aggregates(records: Path) -> str:
    """Mean and interquartile mean of an arm, and how likely it beats the released one."""
    if not complete(records):
        return "No task is complete yet."
    found = estimates(records)
    lines = []
    for arm, name in ARMS.items():
        cells = [name]
        for i in (0, 1):
            point, low, high = (values[i] for values in found["aggregate"][arm])
            cells.append(f"{point:.2f} ({low:.2f} to {high:.2f})")
        if arm == "edq-released":
            cells.append("-")
        else:
            point, low, high = (values[0] for values in found["better"][f"{arm},edq-released"])
            cells.append(f"{point:.2f} ({low:.2f} to {high:.2f})")
        lines.append(cells)
    head = ["arm", "mean", "interquartile mean", "P(its run is better than a released one)"]
    return markdown(head, lines)


def curve(records: Path, of_arm: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Updates `[E]` and scores `[seed, E]` of the runs of a task and an arm."""
    first = of_arm[0]
    rows = csv_rows(records / "benchmark" / f"{first['suite']}-curves.csv")
    rows = pick(rows, task=first["task"], arm=first["arm"])
    by_seed = [pick(rows, seed=run["seed"]) for run in of_arm]
    steps = column(by_seed[0], "step")
    return steps, np.array([column(of_seed, "score") for of_seed in by_seed])


def longest(records: Path) -> Runs:
    """Mazes: the runs of the suite stability, and of mazes the arms that it does not have."""
    found = runs(records, ("mazes",), STEADINESS)
    for task, arms in runs(records, ("stability",), STEADINESS).items():
        for arm, rows in arms.items():
            if rows:
                found[task][arm] = rows
    return found


def steadiness(records: Path) -> str:
    """How much of what a seed has reached it keeps."""
    lines = []
    for task, arms in longest(records).items():
        for arm, rows in arms.items():
            if not rows:
                continue
            steps, scores = curve(records, rows)
            peak = int(scores.mean(0).argmax())
            cells = [TASKS[task], STEADINESS[arm]]
            cells.append(f"{len(rows)}")
            cells.append(f"{scores.mean(0)[peak]:.0f} at {steps[peak]:,.0f}")
            cells.append(", ".join(f"{score:.0f}" for score in scores.mean(0)))
            fall = np.maximum.accumulate(scores, 1) - scores  # [seed, E], below its best so far
            cells.append(f"{fall.max():.0f}")
            cells.append(", ".join(f"{score:.0f}" for score in scores[:, -1]))
            lines.append(cells)
    head = ["task", "arm", "seeds", "highest mean of the seeds", "mean at each evaluation"]
    return markdown([*head, "deepest fall of a seed", "last, per seed"], lines)


def tables(records: Path) -> dict[str, str]:
    return {
        "evidence": headline(records),
        "evidence-best": last_and_best(records),
        "evidence-aggregates": aggregates(records),
        "evidence-steadiness": steadiness(records),
    }


def figures(records: Path, out: Path):
    """Score against updates: a panel a task, a thin line a seed, a thick one their mean."""
    found = runs(records)
    longer = longest(records)
    for task, arms in longer.items():
        found[task]["M = 16"] = arms["M = 16"]
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    figure = Figure((3.2 * columns + 1.8, 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in panels[len(found) :]:
        unused.remove()
    panels = panels[: len(found)]
    for axes, (task, arms) in zip(panels, found.items()):
        for arm in [arm for arm in STEADINESS if arms.get(arm)][::-1]:
            steps, scores = curve(records, arms[arm])
            colour = COLOURS[arm]
            axes.plot(steps / 1000, scores.T, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(
                steps / 1000, scores.mean(0), color=colour, linewidth=2, label=STEADINESS[arm]
            )
        for arm, rows in longer.get(task, {}).items():  # the arms that were trained on
            if rows and rows[0]["suite"] == "stability" and arm in ARMS:
                steps, scores = curve(records, rows)
                style = dict(color=COLOURS[arm], linewidth=1, linestyle="--")
                axes.plot(steps / 1000, scores.T, **style)
        own = float(first_of(arms)["data"])
        axes.axhline(own, color="grey", linestyle=":", linewidth=1, label="mean of the data")
        axes.set_title(TASKS[task].replace("*", ""), fontsize=10)
        axes.set_xlabel("thousand updates")
        axes.set(xlim=(0, None), ylim=(min(0, axes.get_ylim()[0]), None))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("score, or success in %")
    handles = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels()):
            handles[name] = handle
    figure.legend(handles.values(), handles, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(out / "evidence.png", dpi=110)
