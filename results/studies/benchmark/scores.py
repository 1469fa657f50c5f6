"""The runs that the benchmark's tables and pictures are made of, and what they are called.

They are made by `results/run_suite.py`, one record a suite. Shown are the tasks that have every
method with seeds 0 to 2, all on the same data and with the same number of updates. The suite
`learned` is not among them: its arm `edq` has no entropy term, and its networks are wider.
"""

import tomllib
from pathlib import Path

import numpy as np

from results.common.records import ROOT, column, csv_rows, pick

SUITES = {  # suite: what its data are called in the tables
    "pointmaze": ", *wander*",
    "stand-ins": ", stand-in",
    "small-antmaze": ", rebuilt",
}
ARMS = {
    "edq": "EDQ",
    "edq-entropy": "EDQ, chain entropy",
    "diffusion-ql": "Diffusion-QL",
    "diffusion-bc": "diffusion BC",
}
COLOURS = {
    "edq": "#0b6e99",
    "edq-entropy": "#3f8f4f",
    "diffusion-ql": "#7a5195",
    "diffusion-bc": "#c7522a",
}
MAZES = ("pointmaze", "small-antmaze")  # suites scored by success in %
SEEDS = 3

Runs = dict[tuple[str, str], dict[str, list[dict]]]  # (suite, task) -> arm -> rows by seed


def tasks_of(suite: str):
    """Tasks of a suite, in the order of its file."""
    path = ROOT / "results" / "suites" / f"{suite}.toml"
    groups = tomllib.loads(path.read_text())["runs"]
    names = [task for group in groups for task in group["tasks"]]
    order = {"pointmaze-umaze": 0, "pointmaze-medium": 1, "pointmaze-large": 2}
    return sorted(dict.fromkeys(names), key=lambda task: order.get(task, 3))


def check_equal(task: str, rows):
    """One set of data and one budget."""
    settings = {(row["hash"], row["updates"], row["episodes"]) for row in rows}
    if len(settings) > 1:
        raise ValueError(f"runs of {task} differ in data, updates or episodes")


def runs(records: Path) -> Runs:
    """Rows of the tasks that have every arm with every seed."""
    found: Runs = {}
    for suite in SUITES:
        rows = csv_rows(records / "benchmark" / f"{suite}.csv")
        rows = [row for row in rows if row["arm"] in ARMS]
        rows = [row for row in rows if int(row["seed"]) < SEEDS]
        for task in tasks_of(suite) if rows else []:
            arms = {}
            for arm in ARMS:
                chosen = pick(rows, task=task, arm=arm)
                arms[arm] = sorted(chosen, key=lambda row: int(row["seed"]))
            if all(len(chosen) == SEEDS for chosen in arms.values()):
                check_equal(task, [row for chosen in arms.values() for row in chosen])
                found[suite, task] = arms
    return found


def mazes(records: Path) -> Runs:
    """Those of them that are mazes: success and D4RL's scores have no common scale."""
    return {(suite, task): of for (suite, task), of in runs(records).items() if suite in MAZES}


def label(suite: str, task: str) -> str:
    """What a table calls a task."""
    return task + SUITES[suite]


def curve(records: Path, task: str, arm: str, name: str = "score"):
    """Updates `[E]` and scores (or another column) `[seed, E]` of every evaluation in a maze."""
    rows = csv_rows(records / "benchmark" / "pointmaze-curves.csv")
    rows = pick(rows, task=task, arm=arm)
    rows.sort(key=lambda row: int(row["step"]))
    values = []
    for seed in sorted({row["seed"] for row in rows}):
        of_seed = pick(rows, seed=seed)
        steps = column(of_seed, "step")
        values.append(column(of_seed, name))
    return steps, np.array(values)
