"""Tables and pictures of the benchmark: last scores, aggregates, last against best, stability."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.common.intervals import mean_se
from results.common.pictures import draw_mazes
from results.common.records import column, csv_rows, markdown
from results.studies.benchmark import ablations, evidence, first_runs, made_sets, pilots, published
from results.studies.benchmark.aggregates import TAUS, estimates
from results.studies.benchmark.scores import ARMS, COLOURS, SUITES, curve, label, mazes, runs

MAZE_PATHS = {  # a seed with EDQ's median score
    "pointmaze-rare-embedded-edq-0": "EDQ, rare",
    "pointmaze-rare-embedded-diffusion-bc-0": "BC, rare",
    "pointmaze-large-edq-0": "EDQ, wander (large)",
    "pointmaze-large-diffusion-bc-0": "BC, wander (large)",
}
LATE = 20_000  # updates of the medium maze after which training counts as late
PARTS = (ablations, evidence, first_runs, made_sets, pilots, published)


def headline(records: Path) -> str:
    """A task a row: the data's own mean, and each method's last score."""
    rows = []
    for (suite, task), arms in runs(records).items():
        first = arms["edq"][0]
        updates = f"{int(first['updates']):,}"
        data = f"{float(first['data']):.1f}"
        scores = [mean_se(column(arms[arm], "last")) for arm in ARMS]
        rows.append([label(suite, task), updates, data, *scores])
    return markdown(["task", "updates", "data", *ARMS.values()], rows)


def aggregates(records: Path) -> str:
    """Mean and interquartile mean over the mazes, with their intervals."""
    found = estimates(records)["aggregate"]
    rows = []
    for i, name in enumerate(("mean", "interquartile mean")):
        cells = []
        for arm in ARMS:
            point, low, high = (values[i] for values in found[arm])
            cells.append(f"{point:.1f} ({low:.1f} to {high:.1f})")
        rows.append([f"{name} of the mazes (interval)", *cells])
    return markdown(["", *ARMS.values()], rows)


def evaluations_of(records: Path):
    """How often each task was evaluated in a run."""
    steps = {}
    for suite in SUITES:
        for row in csv_rows(records / "benchmark" / f"{suite}-curves.csv"):
            key = suite, row["task"]
            steps.setdefault(key, set()).add(row["step"])
    return {key: len(of_task) for key, of_task in steps.items()}


def selected(records: Path) -> str:
    """Mean last, offline-selected and best score, over the tasks with three evaluations or more."""
    counts = evaluations_of(records)
    found = runs(records)
    tasks = [key for key in found if counts[key] >= 3]
    rows = []
    for arm, name in ARMS.items():
        scores = {}  # [task, seed]
        for kind in ("last", "offline", "best"):
            by_task = [column(found[key][arm], kind) for key in tasks]
            scores[kind] = np.stack(by_task)
        gain = scores["best"] - scores["last"]
        of_tasks = gain.mean(1)
        most = int(of_tasks.argmax())
        key = tasks[most]
        largest = f"{of_tasks[most]:.0f} ({key[1]}, {counts[key]} evaluations)"
        settled = []
        for key in tasks:
            settled += [row["settled"] == "True" for row in found[key][arm]]
        means = [f"{values.mean():.1f}" for values in scores.values()]
        met = f"{sum(settled)} of {len(settled)}"
        rows.append([name, *means, f"{gain.mean():.1f}", largest, met])
    head = ["method", "last", "offline", "best of the run", "best − last", "largest of a task"]
    return markdown([*head, "offline rule met"], rows)


def stability(records: Path) -> str:
    """The long runs on the medium maze: first peak, and what is left of it late in training."""
    of_task = runs(records)["pointmaze", "pointmaze-medium"]
    rows = []
    for arm, name in ARMS.items():
        steps, scores = curve(records, "pointmaze-medium", arm)
        means = scores.mean(0)
        peak = int(means.argmax())
        late = scores[:, steps > LATE]  # [seed, evaluation]
        of_seeds = late.mean(1)
        episodes = float(of_task[arm][0]["episodes"])
        chance = np.sqrt(late * (100 - late) / episodes)
        rows.append(
            [
                name,
                f"{means[peak]:.0f} at {steps[peak]:,.0f}",
                f"{late.mean():.0f}",
                ", ".join(f"{v:.0f}" for v in of_seeds),
                f"{late.min():.0f}",
                f"{late.std(1, ddof=1).mean():.0f}",
                f"{chance.mean():.0f}",
                f"{of_seeds.std(ddof=1):.0f}",
            ]
        )
    head = ["method", "highest mean of the seeds", f"mean after {LATE:,}", "of each seed"]
    head += ["worst evaluation", "std over evaluations", "of which chance of the episodes"]
    return markdown([*head, "std over seeds"], rows)


def tables(records: Path) -> dict[str, str]:
    """Every table of this folder's pages, and those of the made datasets."""
    found = {
        "benchmark": headline(records),
        "benchmark-aggregates": aggregates(records),
        "selection": selected(records),
        "stability": stability(records),
    }
    for part in PARTS:
        found |= part.tables(records)
    return found


# === Pictures =================================================================================
def plain(axes: Axes):
    axes.spines[["top", "right"]].set_visible(False)


def draw_interval(axes: Axes, y: float, estimate, arm: str, marker: str = "o"):
    """A bar at height y, and a marker at the point."""
    point, low, high = estimate
    colour = COLOURS[arm]
    bar = dict(color=colour, linewidth=3, alpha=0.5)
    axes.hlines(y, low, high, **bar)
    axes.plot(point, y, marker, color=colour, markersize=5)


def draw_aggregates(axes: Axes, found: dict):
    """A bar an interval; a diamond the mean, a circle the interquartile mean."""
    for i, arm in enumerate([*ARMS][::-1]):
        mean, iqm = np.transpose(found["aggregate"][arm])
        draw_interval(axes, i - 0.15, mean, arm, "D")
        draw_interval(axes, i + 0.15, iqm, arm)
    names = list(ARMS.values())
    axes.set_yticks(range(len(names)), names[::-1])
    axes.set_xlabel("success in %; ● interquartile mean, ◆ mean")


def draw_profile(axes: Axes, found: dict):
    """Without intervals: those of nine runs cover one another."""
    for arm, name in ARMS.items():
        share = found["profile"][arm]
        colour = COLOURS[arm]
        axes.step(TAUS, share, where="post", color=colour, label=name)
    axes.set_xlabel("success τ in %")
    axes.set_ylabel("share of runs above τ")
    axes.set_ylim(0, 1.02)
    axes.set_title("performance profile, no intervals", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw_improvement(axes: Axes, found: dict):
    """How likely a run of EDQ beats one of another method in the same maze."""
    others = [arm for arm in ARMS if arm != "edq"][::-1]
    for i, arm in enumerate(others):
        (estimate,) = np.transpose(found["better"][f"edq,{arm}"])
        draw_interval(axes, i, estimate, arm)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    names = [ARMS[arm] for arm in others]
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(others)), names)
    axes.set_xlabel("P(EDQ's run is the better one)")
    axes.set_title("EDQ against", fontsize=10)


def draw_benchmark(records: Path, path: Path):
    found = estimates(records)
    figure = Figure((11, 3.4), layout="constrained")
    widths = (1.1, 1.3, 1)
    left, middle, right = figure.subplots(1, 3, width_ratios=widths)
    draw_aggregates(left, found)
    left.set_title(f"{len(mazes(records))} mazes, last evaluation", fontsize=10)
    draw_profile(middle, found)
    draw_improvement(right, found)
    for axes in (left, middle, right):
        plain(axes)
    figure.savefig(path, dpi=110)


def draw_curves(axes: Axes, records: Path, task: str, column: str, arms):
    """Mean of the seeds against updates, and a thin line a seed."""
    for arm in arms:
        steps, values = curve(records, task, arm, column)
        thousands = steps / 1000
        thin = dict(color=COLOURS[arm], linewidth=0.7, alpha=0.6)
        thick = dict(color=COLOURS[arm], linewidth=2.2)
        mean = values.mean(0)
        axes.plot(thousands, values.T, **thin)
        axes.plot(thousands, mean, label=ARMS[arm], **thick)
    axes.set_xlabel("thousand updates")
    plain(axes)


def draw_stability(records: Path, path: Path):
    """The wander mazes: success, and mean Q on the medium one."""
    found = {}
    for (suite, task), arms in runs(records).items():
        if suite == "pointmaze":
            found[task] = arms
    figure = Figure((13, 3.6), layout="constrained")
    *panels, last = figure.subplots(1, len(found) + 1)
    for axes, (task, arms) in zip(panels, found.items()):
        draw_curves(axes, records, task, "score", [*ARMS])
        of_data = float(arms["edq"][0]["data"])
        style = dict(color="black", linewidth=1.2, linestyle=":")
        axes.axhline(of_data, label="episodes of the data", **style)
        axes.set_title(task, fontsize=10)
        axes.set_ylim(-2, 102)
    with_q = [arm for arm in ARMS if arm != "diffusion-bc"]
    draw_curves(last, records, "pointmaze-medium", "q_mean", with_q)
    last.set_title("medium: mean Q", fontsize=10)
    panels[0].set_ylabel("success in %: seeds, and their mean")
    handles, labels = panels[0].get_legend_handles_labels()
    style = dict(loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.legend(handles, labels, **style)
    figure.savefig(path, dpi=110)


def figures(records: Path, out: Path):
    """Benchmark, stability, ablations, the embedded task's curves, and paths in mazes."""
    draw_benchmark(records, out / "benchmark.png")
    draw_stability(records, out / "stability.png")
    ablations.figures(records, out)
    evidence.figures(records, out)
    first_runs.figures(records, out)
    draw_mazes(records / "benchmark", MAZE_PATHS, out / "mazes.png")
