"""Benchmark of what was run here: headline table, aggregates with intervals, what best-of-run is worth, curves.

The runs are those of the suites pointmaze, stand-ins and small-antmaze, made by benchmark.py. Shown are the tasks that
have every preset with seeds 0 to 2. Aggregates and their intervals are rliable's (Agarwal et al. 2021): a bootstrap
that draws anew within each task from its seeds. With three seeds the interval is too narrow: three values drawn
anew have two thirds of the unbiased variance, so what is meant for 95 % holds the true mean in 89 % at best.
"""

import functools
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from record import csv_rows, markdown
from rliable import library, metrics

SUITES = ("pointmaze", "stand-ins", "small-antmaze")
ARMS = {"edq": "EDQ", "edq-entropy": "EDQ, chain entropy", "diffusion-ql": "Diffusion-QL", "diffusion-bc": "cloning"}
COLOURS = dict(zip(ARMS, ("#0b6e99", "#3f8f4f", "#7a5195", "#c7522a")))
TASKS = {  # task: what the table calls it; in the order of the table
    "pointmaze-umaze": "pointmaze-umaze, *wander*",
    "pointmaze-medium": "pointmaze-medium, *wander*",
    "pointmaze-large": "pointmaze-large, *wander*",
    "antmaze-umaze": "antmaze-umaze, rebuilt",
    "antmaze-large-diverse": "antmaze-large-diverse, rebuilt",
    "hopper-medium-replay": "hopper-medium-replay, stand-in",
    "hopper-medium-expert": "hopper-medium-expert, stand-in",
    "halfcheetah-medium-replay": "halfcheetah-medium-replay, stand-in",
    "halfcheetah-medium-expert": "halfcheetah-medium-expert, stand-in",
    "walker2d-medium-replay": "walker2d-medium-replay, stand-in",
    "walker2d-medium-expert": "walker2d-medium-expert, stand-in",
    "door-human": "door-human, stand-in",
    "pen-expert": "pen-expert, stand-in",
}
SEEDS, REPS, LATE = 3, 1000, 20_000


def runs(records: Path) -> dict[str, dict[str, list[dict]]]:
    """Rows of the tasks with every preset, SEEDS of each, by task and arm, in the order of their seeds."""
    found: dict[str, dict[str, list[dict]]] = {}
    for suite in SUITES:
        for row in csv_rows(records / "benchmark" / f"{suite}.csv"):
            if row["arm"] in ARMS and int(row["seed"]) < SEEDS:
                found.setdefault(row["task"], {}).setdefault(row["arm"], []).append(row)
    whole = {task for task, arms in found.items() if all(len(arms.get(arm, [])) == SEEDS for arm in ARMS)}
    for task in whole:  # one set of data and one budget
        if len({(r["hash"], r["updates"], r["episodes"]) for rows in found[task].values() for r in rows}) > 1:
            raise ValueError(f"runs of {task} differ in data, updates or episodes")
    return {
        task: {a: sorted(found[task][a], key=lambda r: int(r["seed"])) for a in ARMS} for task in TASKS if task in whole
    }


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def mean_se(values: np.ndarray, digits: int = 1) -> str:
    """Mean and standard error over seeds."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / math.sqrt(len(values)):.{digits}f}"


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """rliable's probability of improvement, without its slow test statistic: P(x > y) + P(x = y) / 2, mean of tasks."""
    return np.array([((x[:, None] > y).mean() + (x[:, None] == y).mean() / 2)])  # x, y [seed, task]


def estimates(records: Path) -> dict[str, dict]:
    """For each arm (point, low, high) of mean and interquartile mean, of its profile, and of P(it beats another)."""
    scores = {a: np.stack([column(rows[a], "last") for rows in runs(records).values()], 1) for a in ARMS}
    return bootstrapped(tuple((arm, tuple(map(tuple, of))) for arm, of in scores.items()))


@functools.cache
def bootstrapped(of: tuple) -> dict[str, dict]:
    """The estimates for scores `[seed, task]` of each arm."""
    scores, taus = {arm: np.array(rows) for arm, rows in of}, np.linspace(0, 100, 51)

    def interval(of: dict, function) -> dict:
        before = np.random.get_state()
        np.random.seed(0)  # rliable 1.2.0 draws from numpy's global generator, whatever random state it is given
        points, intervals = library.get_interval_estimates(of, function, reps=REPS)
        np.random.set_state(before)
        return {name: (points[name], *intervals[name]) for name in of}

    pairs = {f"{x},{y}": (scores[x], scores[y]) for x in ARMS for y in ARMS if x != y}
    return {
        "aggregate": interval(scores, lambda x: np.array([metrics.aggregate_mean(x), metrics.aggregate_iqm(x)])),
        "profile": interval(scores, lambda x: (x.reshape(-1, 1) > taus).mean(0)),
        "better": interval(pairs, improvement),
        "taus": taus,
    }


def headline(records: Path) -> str:
    """A task a row: the data's own mean, and each preset's last score."""
    rows = []
    for task, arms in runs(records).items():
        first = arms["edq"][0]
        cells = [mean_se(column(arms[arm], "last")) for arm in ARMS]
        budget = f"{int(first['updates']):,}"
        rows.append([TASKS[task], budget, f"{float(first['data']):.1f}", *cells])
    found = estimates(records)["aggregate"]
    for i, name in enumerate(("mean", "interquartile mean")):
        cells = [f"{found[arm][0][i]:.1f} ({found[arm][1][i]:.1f} to {found[arm][2][i]:.1f})" for arm in ARMS]
        rows.append([f"{name} of the tasks (interval)", "", "", *cells])
    return markdown(["task", "updates", "data", *ARMS.values()], rows)


def selected(records: Path) -> str:
    """By preset: mean last, offline-selected and best score, over the tasks with three evaluations or more."""
    counts: dict[str, set] = {}
    for suite in SUITES:
        for row in csv_rows(records / "benchmark" / f"{suite}-curves.csv"):
            counts.setdefault(row["task"], set()).add(row["step"])
    tasks, rows = [task for task in runs(records) if len(counts[task]) >= 3], []
    for arm, label in ARMS.items():
        of = {
            name: np.stack([column(runs(records)[task][arm], name) for task in tasks])  # [task, seed]
            for name in ("last", "offline", "best")
        }
        gain = of["best"] - of["last"]
        most = int(gain.mean(1).argmax())
        largest = f"{gain.mean(1)[most]:.0f} ({tasks[most]}, {len(counts[tasks[most]])} evaluations)"
        settled = [row["settled"] == "True" for task in tasks for row in runs(records)[task][arm]]
        means = [f"{values.mean():.1f}" for values in of.values()]
        rows.append([label, *means, f"{gain.mean():.1f}", largest, f"{sum(settled)} of {len(settled)}"])
    head = ["preset", "last", "offline", "best of the run", "best − last", "largest of a task", "offline rule met"]
    return markdown(head, rows)


def worth(records: Path) -> str:
    """Best minus last of each preset, as `selected` has it, in a sentence."""
    rows = [line.split(" | ") for line in selected(records).splitlines()[2:]]
    return ", ".join(f"{row[0].removeprefix('| ')} {float(row[4]):.0f}" for row in rows)


def better(records: Path) -> str:
    """Probability that a run of the row's preset beats one of the column's on a task, averaged over tasks."""
    found, rows = estimates(records)["better"], []
    for x, label in ARMS.items():
        cells = ["" if x == y else "{:.2f} ({:.2f} to {:.2f})".format(*(v[0] for v in found[f"{x},{y}"])) for y in ARMS]
        rows.append([label, *cells])
    return markdown(["", *(f"over {label}" for label in ARMS.values())], rows)


def curve(records: Path, task: str, arm: str, name: str = "score") -> tuple[np.ndarray, np.ndarray]:
    """Updates `[E]` and scores (or another column) `[seed, E]` of every evaluation."""
    rows = [r for r in csv_rows(records / "benchmark" / "pointmaze-curves.csv") if (r["task"], r["arm"]) == (task, arm)]
    steps = sorted({int(row["step"]) for row in rows})
    seeds = sorted({row["seed"] for row in rows})
    at = {(row["seed"], int(row["step"])): float(row[name]) for row in rows}
    return np.array(steps), np.array([[at[seed, step] for step in steps] for seed in seeds])


def stability(records: Path) -> str:
    """The long runs on the medium maze: first peak, and what is left of it late in training."""
    rows = []
    for arm, label in ARMS.items():
        steps, scores = curve(records, "pointmaze-medium", arm)
        peak = int(scores.mean(0).argmax())
        late = scores[:, steps > LATE]  # [seed, evaluation]
        chance = np.sqrt(late * (100 - late) / float(runs(records)["pointmaze-medium"][arm][0]["episodes"])).mean()
        rows.append([
            label, f"{scores.mean(0)[peak]:.0f} at {steps[peak]:,}", f"{late.mean():.0f}",
            ", ".join(f"{v:.0f}" for v in late.mean(1)), f"{late.mean(1).min():.0f}", f"{late.min():.0f}",
            f"{late.std(1, ddof=1).mean():.0f}", f"{chance:.0f}", f"{late.mean(1).std(ddof=1):.0f}",
        ])  # fmt: skip
    head = ["preset", "highest mean of the seeds", f"mean after {LATE:,}", "of each seed", "worst seed"]
    head += ["worst evaluation", "std over evaluations", "of which chance of the episodes", "std over seeds"]
    return markdown(head, rows)


def budget(records: Path) -> str:
    """What was run of each suite, and for how long."""
    rows = []
    for suite in (*SUITES, "ablation-maze", "ablation-hopper", "ablation-door"):
        trained = [row for row in csv_rows(records / "benchmark" / f"{suite}.csv") if int(row["seconds"])]
        if trained:
            minutes = sum(int(row["seconds"]) for row in trained) / 60
            updates = sorted({int(row["updates"]) for row in trained})
            shown = ", ".join(f"{n:,}" for n in updates)
            rows.append([suite, str(len(trained)), shown, f"{minutes:.0f}", f"{60 * minutes / len(trained):.0f} s"])
    return markdown(["suite", "runs recorded", "updates a run", "core-minutes*", "a run, mean"], rows)


def tables(records: Path) -> dict[str, str]:
    """Headline, selection, probability of improvement, stability."""
    found = {
        "benchmark": headline(records),
        "selection": selected(records),
        "worth": worth(records),
        "improvement": better(records),
        "stability": stability(records),
        "budget": budget(records),
    }
    first = next(iter(runs(records).values()))["edq"][0]
    found["benchmark-setting"] = f"M = {first['critics']}, torch {first['torch']}, {first['threads']} thread a run"
    return found


def figures(records: Path, out: Path) -> None:
    """benchmark.png: intervals, profile, improvement over cloning; stability.png: curves of the wander mazes."""
    found = estimates(records)
    figure = Figure((11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 1))
    for i, arm in enumerate([*ARMS][::-1]):
        point, low, high = found["aggregate"][arm]
        for j, marker in ((0, "D"), (1, "o")):
            y = i + (0.15 if j else -0.15)
            left.plot([low[j], high[j]], [y, y], color=COLOURS[arm], linewidth=3, alpha=0.5)
            left.plot(point[j], y, marker, color=COLOURS[arm], markersize=5)
        point, low, high = found["profile"][arm]
        middle.step(found["taus"], point, where="post", color=COLOURS[arm], label=ARMS[arm])
        middle.fill_between(found["taus"], low, high, step="post", color=COLOURS[arm], alpha=0.12, linewidth=0)
    left.set_yticks(range(len(ARMS)), [*ARMS.values()][::-1])
    left.set_xlabel("score; ● interquartile mean, ◆ mean")
    left.set_title(f"{len(runs(records))} tasks, last evaluation", fontsize=10)
    middle.set(xlabel="score τ", ylabel="share of runs above τ", ylim=(0, 1))
    middle.set_title("performance profile", fontsize=10)
    middle.legend(fontsize=8, frameon=False)
    others = [arm for arm in ARMS if arm != "edq"][::-1]
    for i, arm in enumerate(others):
        point, low, high = (v[0] for v in found["better"][f"edq,{arm}"])
        right.plot([low, high], [i, i], color=COLOURS[arm], linewidth=3, alpha=0.5)
        right.plot(point, i, "o", color=COLOURS[arm], markersize=5)
    right.axvline(0.5, color="grey", linewidth=0.8)
    right.set(xlim=(0, 1), yticks=range(len(others)), xlabel="P(EDQ's run is the better one)")
    right.set_yticklabels([ARMS[arm] for arm in others])
    right.set_title("EDQ against", fontsize=10)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "benchmark.png", dpi=110)

    mazes = [task for task in runs(records) if task.startswith("pointmaze")]
    figure = Figure((13, 3.3), layout="constrained")
    *panels, last = figure.subplots(1, len(mazes) + 1)
    for axes, task in [*zip(panels, mazes), (last, "pointmaze-medium")]:
        for arm in [*ARMS][::-1]:
            if axes is last and arm == "diffusion-bc":  # it has no Q
                continue
            steps, values = curve(records, task, arm, "q_mean" if axes is last else "score")
            axes.plot(steps / 1000, values.mean(0), color=COLOURS[arm], linewidth=2, label=ARMS[arm])
            axes.fill_between(steps / 1000, values.min(0), values.max(0), color=COLOURS[arm], alpha=0.13, linewidth=0)
        axes.set_title("medium: mean Q" if axes is last else task, fontsize=10)
        axes.set_xlabel("thousand updates")
        axes.spines[["top", "right"]].set_visible(False)
    for axes, task in zip(panels, mazes):
        axes.axhline(float(runs(records)[task]["edq"][0]["data"]), color="grey", linewidth=1, linestyle=":")
        axes.set_ylim(-2, 102)
    figure.axes[0].set_ylabel("success in %, mean and range of seeds")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(out / "stability.png", dpi=110)
