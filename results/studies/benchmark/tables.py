"""Tables and pictures of the benchmark: last scores, aggregates, last against best, stability."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.common.intervals import mean_se
from results.common.pictures import draw_mazes
from results.common.records import column, csv_rows, markdown
from results.studies.benchmark import ablations, first_runs, made_sets, pilots, published
from results.studies.benchmark.aggregates import TAUS, estimates
from results.studies.benchmark.scores import ARMS, COLOURS, SUITES, curve, label, runs

EMBEDDED_PATHS = ["pointmaze-umaze-embedded-edq-0"]
MAZE_PATHS = [  # the seed with EDQ's median score
    "pointmaze-rare-edq-1",
    "pointmaze-rare-diffusion-bc-1",
    "pointmaze-medium-edq-1",
    "pointmaze-medium-diffusion-bc-1",
]
LATE = 20_000  # updates of the medium maze after which training counts as late
PARTS = (ablations, first_runs, made_sets, pilots, published)


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
    """Mean and interquartile mean over tasks, with their intervals."""
    found = estimates(records)["aggregate"]
    rows = []
    for i, name in enumerate(("mean", "interquartile mean")):
        cells = []
        for arm in ARMS:
            point, low, high = (values[i] for values in found[arm])
            cells.append(f"{point:.1f} ({low:.1f} to {high:.1f})")
        rows.append([f"{name} of the tasks (interval)", *cells])
    return markdown(["", *ARMS.values()], rows)


def evaluations_of(records: Path):
    """How often each task was evaluated in a run."""
    steps = {}
    for suite in SUITES:
        for row in csv_rows(records / "benchmark" / f"{suite}-curves.csv"):
            steps.setdefault((suite, row["task"]), set()).add(row["step"])
    return {key: len(of_task) for key, of_task in steps.items()}


def selected(records: Path) -> str:
    """Mean last, offline-selected and best score, over the tasks with three evaluations or more."""
    counts, found = evaluations_of(records), runs(records)
    tasks = [key for key in found if counts[key] >= 3]
    rows = []
    for arm, name in ARMS.items():
        scores = {}  # [task, seed]
        for kind in ("last", "offline", "best"):
            scores[kind] = np.stack([column(found[key][arm], kind) for key in tasks])
        gain = scores["best"] - scores["last"]
        most = int(gain.mean(1).argmax())
        largest = f"{gain.mean(1)[most]:.0f} ({tasks[most][1]}, {counts[tasks[most]]} evaluations)"
        settled = [row["settled"] == "True" for key in tasks for row in found[key][arm]]
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
        peak = int(scores.mean(0).argmax())
        late = scores[:, steps > LATE]  # [seed, evaluation]
        episodes = float(of_task[arm][0]["episodes"])
        chance = np.sqrt(late * (100 - late) / episodes).mean()
        rows.append(
            [
                name,
                f"{scores.mean(0)[peak]:.0f} at {steps[peak]:,}",
                f"{late.mean():.0f}",
                ", ".join(f"{v:.0f}" for v in late.mean(1)),
                f"{late.min():.0f}",
                f"{late.std(1, ddof=1).mean():.0f}",
                f"{chance:.0f}",
                f"{late.mean(1).std(ddof=1):.0f}",
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


def draw_aggregates(axes: Axes, found: dict):
    """A bar an interval; a diamond the mean, a circle the interquartile mean."""
    for i, arm in enumerate([*ARMS][::-1]):
        point, low, high = found["aggregate"][arm]
        for j, marker, shift in ((0, "D", -0.15), (1, "o", 0.15)):
            y = i + shift
            axes.plot([low[j], high[j]], [y, y], color=COLOURS[arm], linewidth=3, alpha=0.5)
            axes.plot(point[j], y, marker, color=COLOURS[arm], markersize=5)
    axes.set_yticks(range(len(ARMS)), [*ARMS.values()][::-1])
    axes.set_xlabel("score; ● interquartile mean, ◆ mean")


def draw_profile(axes: Axes, found: dict):
    for arm in [*ARMS][::-1]:
        point, low, high = found["profile"][arm]
        style = dict(step="post", color=COLOURS[arm], alpha=0.12, linewidth=0)
        axes.step(TAUS, point, where="post", color=COLOURS[arm], label=ARMS[arm])
        axes.fill_between(TAUS, low, high, **style)
    axes.set(xlabel="score τ", ylabel="share of runs above τ", ylim=(0, 1))
    axes.set_title("performance profile", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw_improvement(axes: Axes, found: dict):
    """How likely a run of EDQ beats one of another method on the same task."""
    others = [arm for arm in ARMS if arm != "edq"][::-1]
    for i, arm in enumerate(others):
        point, low, high = (values[0] for values in found["better"][f"edq,{arm}"])
        axes.plot([low, high], [i, i], color=COLOURS[arm], linewidth=3, alpha=0.5)
        axes.plot(point, i, "o", color=COLOURS[arm], markersize=5)
    axes.axvline(0.5, color="grey", linewidth=0.8)
    axes.set(xlim=(0, 1), yticks=range(len(others)), xlabel="P(EDQ's run is the better one)")
    axes.set_yticklabels([ARMS[arm] for arm in others])
    axes.set_title("EDQ against", fontsize=10)


def draw_benchmark(records: Path, path: Path):
    found = estimates(records)
    figure = Figure((11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.3, 1))
    draw_aggregates(left, found)
    left.set_title(f"{len(runs(records))} tasks, last evaluation", fontsize=10)
    draw_profile(middle, found)
    draw_improvement(right, found)
    for axes in (left, middle, right):
        plain(axes)
    figure.savefig(path, dpi=110)


def draw_curves(axes: Axes, records: Path, task: str, column: str, arms):
    """Mean and range of the seeds against updates."""
    for arm in arms[::-1]:
        steps, values = curve(records, task, arm, column)
        x, low, high = steps / 1000, values.min(0), values.max(0)
        axes.plot(x, values.mean(0), color=COLOURS[arm], linewidth=2, label=ARMS[arm])
        axes.fill_between(x, low, high, color=COLOURS[arm], alpha=0.13, linewidth=0)
    axes.set_xlabel("thousand updates")
    plain(axes)


def draw_stability(records: Path, path: Path):
    """The wander mazes: success, and mean Q on the medium one."""
    found = {task: arms for (suite, task), arms in runs(records).items() if suite == "pointmaze"}
    figure = Figure((13, 3.3), layout="constrained")
    *panels, last = figure.subplots(1, len(found) + 1)
    for axes, (task, arms) in zip(panels, found.items()):
        draw_curves(axes, records, task, "score", [*ARMS])
        axes.axhline(float(arms["edq"][0]["data"]), color="grey", linewidth=1, linestyle=":")
        axes.set_title(task, fontsize=10)
        axes.set_ylim(-2, 102)
    with_q = [arm for arm in ARMS if arm != "diffusion-bc"]
    draw_curves(last, records, "pointmaze-medium", "q_mean", with_q)
    last.set_title("medium: mean Q", fontsize=10)
    panels[0].set_ylabel("success in %, mean and range of seeds")
    handles, labels = panels[0].get_legend_handles_labels()
    style = dict(loc="outside right upper", fontsize=8, frameon=False)
    figure.legend(handles[::-1], labels[::-1], **style)
    figure.savefig(path, dpi=110)


def figures(records: Path, out: Path):
    """Benchmark, stability, ablations, the embedded task's curves, and paths in mazes."""
    draw_benchmark(records, out / "benchmark.png")
    draw_stability(records, out / "stability.png")
    ablations.figures(records, out)
    first_runs.figures(records, out)
    draw_mazes(records / "benchmark", EMBEDDED_PATHS, out / "embedded-paths.png")
    draw_mazes(records / "benchmark", MAZE_PATHS, out / "mazes.png")
