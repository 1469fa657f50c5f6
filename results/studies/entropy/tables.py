"""Tables and pictures of the entropy study, from its records alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from results.common.intervals import interval, mean_se
from results.common.records import markdown, pick, read_record

KNOWN = {
    "bandit": "bandit, 80 % poor and 20 % good actions",
    "toy": "two-step toy, 12 % of the data good",
}
LEARNED = ["rare", "wander", "hopper"]
UPDATES = 3000  # the larger budget of the known tasks
OFFSETS = {0.003: (-26, 6), 0.1: (-4, -11), 0.3: (6, -4), 1.0: (5, -3)}  # points, of labels
ESTIMATORS = [
    "released",
    "bridge",
    "quad",
    "chain",
    "chainJ",
    "logdet",
    "gmm",
    "pathkl",
    "knn",
]
# Policies on which estimators are judged. The numbers of released and quad run away on their own.
JUDGES = ("none", "score", "chain", "chainJ", "pathkl")
LEARNED_ARMS = [
    "none",
    "released",
    "chain",
    "chainJ",
    "quad",
    "score",
    "pathkl",
    "gmm",
    "logdet",
    "bridge",
    "noise",
]
LABELS = {
    "noise": "noise (acting)",
    "gmm": "gmm (DACER)",
    "pathkl": "pathkl (BDPO)",
}
COLOURS = {
    "none": "black",
    "released": "#b2182b",
    "quad": "#ef8a62",
    "bridge": "#e7298a",
    "score": "#5aae61",
    "noise": "#7f6000",
    "chain": "#2166ac",
    "chainJ": "#053061",
    "pathkl": "#9970ab",
    "gmm": "#bf812d",
    "logdet": "#e6ab02",
}


# === Reading ===
def load(records: Path, kind: str, task: str) -> list[dict]:
    """All rows of a task, arm by arm."""
    paths = sorted((records / "entropy").glob(f"{kind}-{task}-*.csv"))
    return [row for path in paths for row in read_record(path)[1]]


def load_all(records: Path) -> dict[str, list[dict]]:
    """Rows of every task; of the known ones those of the larger budget."""
    found = {}
    for task in KNOWN:
        found[task] = pick(load(records, "known", task), updates=UPDATES)
    for task in LEARNED:
        found[task] = load(records, "real", task)
    return found


def values(rows: list[dict], key: str, **wanted: object) -> np.ndarray:
    """A column of the rows with these values, in the order of the seeds."""
    chosen = sorted(pick(rows, **wanted), key=lambda row: row["seed"])
    return np.array([row[key] for row in chosen])


def coefs_of(rows: list[dict], arm: str) -> list[float]:
    return sorted({row["coef"] for row in rows if row["arm"] == arm})


def gains(rows: list[dict], arm: str) -> dict[float, tuple[float, float]]:
    """By coefficient: entropy of an arm minus that of none, paired over seeds, and half its 95 %
    interval.
    """
    none = values(rows, "entropy", arm="none")
    return {
        coef: interval(values(rows, "entropy", arm=arm, coef=coef) - none)
        for coef in coefs_of(rows, arm)
    }


def against_noise(rows: list[dict], arm: str, coef: float, value: str) -> np.ndarray:
    """Value of an arm minus that of `noise` at the same entropy, seed by seed.

    For each seed `noise` is the line through its own policy without and with each acting noise.
    Seeds beyond the entropies that noise reaches are left out.
    """
    out = []
    for own in pick(rows, arm=arm, coef=coef):
        same_seed = pick(rows, seed=own["seed"])
        line = sorted(
            (row["entropy"], row[value]) for row in same_seed if row["arm"] in ("none", "noise")
        )
        entropies, noise_values = np.array(line).T
        if entropies[0] <= own["entropy"] <= entropies[-1]:
            out.append(own[value] - np.interp(own["entropy"], entropies, noise_values))
    return np.array(out)


def judged(rows: list[dict], estimator: str) -> tuple[float, float, float]:
    """An estimate against the true entropy: rank correlation, least-squares slope, mean error in
    nats.
    """
    rows = [row for row in rows if row["arm"] in JUDGES]
    truth = np.array([row["entropy"] for row in rows])
    said = np.array([row[f"says_{estimator}"] for row in rows])
    error = float((said - truth).mean())
    if said.std() < 1e-6 * abs(said.mean()):  # a constant
        return 0.0, 0.0, error
    slope, _ = np.polyfit(truth, said, 1)
    return stats.spearmanr(truth, said).statistic, float(slope), error


# === Tables ===
def number(x: float) -> str:
    if abs(x) >= 100:
        return f"{x:.0f}"
    return f"{x:.2f}".replace("-0.00", "0.00")


def best_of_50(task: str) -> str:
    """The column of a task that says what 50 candidates are worth."""
    return "value_50" if task in KNOWN else "score_50"


def headline(records: Path) -> str:
    """What the two terms do at the weights of the presets, against none."""
    terms = (("released", 0.01), ("chain", 0.1))
    lines = []
    for task, rows in load_all(records).items():
        line = [task]
        for arm, coef in terms:
            mean, half = gains(rows, arm)[coef]
            line.append(f"{mean:+.2f} ± {half:.2f}")
        for arm, coef in (("none", 0.0), *terms):
            mean = values(rows, best_of_50(task), arm=arm, coef=coef).mean()
            line.append(f"{mean:.2f}" if task in KNOWN else f"{mean:.0f}")
        lines.append(line)
    head = ["task", "entropy, `released` 0.01 - none", "entropy, `chain` 0.1 - none"]
    head += ["best of 50: none", "`released`", "`chain`"]
    return markdown(head, lines)


def verdict_line(
    statement: str,
    task: str,
    what: str,
    gaps: dict[float, tuple[float, float]],
    shown: dict[str, list[float]],
) -> list[str]:
    """A row: differences by weight, and the weights at which something is certain."""
    weights = ", ".join(f"{coef:g}" for coef in gaps)
    differences = ", ".join(f"{mean:+.2f} ± {half:.2f}" for mean, half in gaps.values())
    certain = [
        f"{word} at {', '.join(f'{coef:g}' for coef in coefs)}"
        for word, coefs in shown.items()
        if coefs
    ]
    return [statement, task, what, weights, differences, "; ".join(certain) or "nothing"]


def predictions(records: Path) -> str:
    """The three statements of run.py on every task, each with the figures that decide it."""
    lines = []
    every = load_all(records)
    for task, rows in every.items():
        for arm in ("released", "quad"):
            gaps = gains(rows, arm)
            shown = {
                "within 0.05": [c for c, (mean, half) in gaps.items() if abs(mean) + half < 0.05],
                "lower": [c for c, (mean, half) in gaps.items() if mean + half < 0],
                "higher": [c for c, (mean, half) in gaps.items() if mean - half > 0],
            }
            lines.append(verdict_line("(i)", task, f"entropy, {arm} - none", gaps, shown))
    for task, rows in every.items():
        gaps = gains(rows, "chain")
        shown = {"higher": [c for c, (mean, half) in gaps.items() if mean > half]}
        line = verdict_line("(ii)", task, "entropy, chain - none", gaps, shown)
        means = [mean for mean, _ in gaps.values()]
        rising = "rising" if means == sorted(means) else "not rising"
        line[-1] += f"; {rising} at every step"
        lines.append(line)
    for task, rows in every.items():
        for K in (50, 1):
            measure = "value" if task in KNOWN else "score"
            gaps = {}
            for coef in coefs_of(rows, "chain"):
                difference = against_noise(rows, "chain", coef, f"{measure}_{K}")
                if len(difference) > 2:
                    gaps[coef] = interval(difference)
            shown = {
                "better": [c for c, (mean, half) in gaps.items() if mean > half],
                "worse": [c for c, (mean, half) in gaps.items() if -mean > half],
            }
            what = f"{measure} at equal entropy, K = {K}, chain - noise"
            lines.append(verdict_line("(iii)", task, what, gaps, shown))
    head = ["", "task", "what", "weights", "difference, 95 % interval", "shown"]
    return markdown(head, lines)


def estimators(records: Path) -> str:
    """Each estimate, as a number, against the truth."""
    every = load_all(records)
    lines = []
    for estimator in ESTIMATORS:
        cells = [number(x) for task in KNOWN for x in judged(every[task], estimator)]
        name = "nearest neighbours (200 samples)" if estimator == "knn" else estimator
        lines.append([name, *cells])
    measures = ("rank correlation", "slope", "mean error, nats")
    head = [f"{task}: {what}" for task in KNOWN for what in measures]
    return markdown(["estimator", *head], lines)


def last_step(records: Path) -> str:
    """`chain` with three stds of its last step, on the bandit: entropy, mean and std of the
    seeds.
    """
    rows = load_all(records)["bandit"]
    coefs = coefs_of(rows, "chain")
    lines = []
    for std, arm in ((0.05, "chain-std0.05"), (0.2, "chain"), (0.4, "chain-std0.4")):
        found = [values(rows, "entropy", arm=arm, coef=coef) for coef in coefs]
        lines.append([f"{std:g}", *(f"{x.mean():.2f} ± {x.std():.2f}" for x in found)])
    return markdown(["std of the last step", *(f"weight {coef:g}" for coef in coefs)], lines)


def automatic(records: Path) -> str:
    """Automatic coefficients by their target."""
    every = load_all(records)
    lines = []
    for task in KNOWN:
        rows = every[task]
        for arm in ("none", "chain-auto"):
            for coef in coefs_of(rows, arm):
                keys = ("entropy", "value_1", "value_50", "rare_share", "off_data")
                means = [values(rows, key, arm=arm, coef=coef).mean() for key in keys]
                target = "-" if arm == "none" else f"clone + {coef:g}"
                cells = [number(x) for x in means[:3]]
                cells += [f"{100 * x:.0f}" for x in means[3:]]
                lines.append([task, arm, target, *cells])
    head = ["task", "arm", "target", "entropy", "value, K = 1", "K = 50"]
    return markdown([*head, "rare mode, %", "off the data, %"], lines)


def by_dimensions(records: Path) -> str:
    """Entropy of one dimension by their number, the term divided by it or not."""
    rows = read_record(records / "entropy" / "scale.csv")[1]
    sizes = sorted({int(row["act_dim"]) for row in rows})
    lines = []
    for scale in ("per dimension", "sum"):
        cells = [interval(values(rows, "entropy", scale=scale, act_dim=A)) for A in sizes]
        lines.append([scale, *(f"{mean:.2f} ± {half:.2f}" for mean, half in cells)])
    return markdown(["chain's value", *(f"A = {A}" for A in sizes)], lines)


def learned(records: Path) -> str:
    """A row an arm and weight of the learned tasks."""
    every = load_all(records)
    lines = []
    for task in LEARNED:
        rows = every[task]
        for arm in LEARNED_ARMS:
            for coef in coefs_of(rows, arm):
                mine = pick(rows, arm=arm, coef=coef)
                lines.append([task, LABELS.get(arm, arm), f"{coef:g}", *learned_cells(mine)])
    head = ["task", "arm", "coef", "entropy, nats a dimension", "distance to data"]
    head += ["spread of Q / \\|Q\\|", "outside the box, %", "diffusion loss"]
    return markdown([*head, "score, K = 1", "score, K = 50"], lines)


def learned_cells(rows: list[dict]) -> list[str]:
    """Means over seeds; of entropy with std, of scores with standard error."""
    entropy = values(rows, "entropy")
    cells = [
        f"{entropy.mean():.2f} ± {entropy.std(ddof=1):.2f}",
        f"{values(rows, 'data_distance').mean():.3f}",
        f"{values(rows, 'q_spread').mean():.3f}",
        f"{100 * values(rows, 'off_box').mean():.0f}",
        f"{values(rows, 'diffusion_loss').mean():.3f}",
    ]
    return cells + [mean_se(values(rows, name)) for name in ("score_1", "score_50")]


TABLES: dict[str, Callable[[Path], str]] = {
    "entropy-headline": headline,
    "entropy-predictions": predictions,
    "entropy-estimators": estimators,
    "entropy-last-step": last_step,
    "entropy-auto": automatic,
    "entropy-scale": by_dimensions,
    "entropy-real": learned,
}


def tables(records: Path) -> dict[str, str]:
    """Markdown by name."""
    return {name: make(records) for name, make in TABLES.items()}


# === Pictures ===
def plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def draw_raised(ax: Axes, rows: list[dict], title: str) -> None:
    """True entropy by weight, 95 % intervals."""
    mean, half = interval(values(rows, "entropy", arm="none"))
    ax.axhspan(mean - half, mean + half, color="0.85", label="no term, 95 %")
    shown = "chainJ chain score pathkl released quad gmm logdet bridge".split()
    for arm in shown:
        coefs = coefs_of(rows, arm)
        if not coefs:
            continue
        found = [interval(values(rows, "entropy", arm=arm, coef=coef)) for coef in coefs]
        means, halves = zip(*found)
        bold = arm in ("released", "chain", "chainJ")
        style = dict(lw=2.4) if bold else dict(lw=1.2, alpha=0.9)
        ax.errorbar(
            coefs,
            means,
            halves,
            color=COLOURS[arm],
            label=LABELS.get(arm, arm),
            capsize=2,
            **style,
        )
    ax.set(
        xscale="log",
        xlabel="weight of the entropy term",
        ylabel="true entropy of the policy, nats",
    )
    ax.set_title(title, fontsize=10)


def draw_ranks(ax: Axes, rows: list[dict]) -> None:
    """Rank correlation of each estimate with the truth."""
    names = ESTIMATORS[::-1]
    ranks = [judged(rows, name)[0] for name in names]
    ax.barh(
        ["nearest\nneighbours" if name == "knn" else name for name in names],
        ranks,
        color=[COLOURS.get(name, "#1b9e77") for name in names],
    )
    for at, rank in enumerate(ranks):
        if abs(rank) < 0.005:  # else the row looks forgotten
            ax.text(0.02, at, "0", va="center", fontsize=9)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlim=(-1, 1), xlabel="rank correlation with the truth")
    ax.set_title("does the estimate see the entropy?", fontsize=10)


def draw_value(ax: Axes, rows: list[dict]) -> None:
    """Value of the best of 50 against entropy."""
    for arm in ("noise", "released", "chain", "chainJ"):
        points = [(arm, coef) for coef in coefs_of(rows, arm)]
        if arm == "noise":
            points = [("none", 0.0), *points]
        x = [values(rows, "entropy", arm=a, coef=c).mean() for a, c in points]
        y = [values(rows, "value_50", arm=a, coef=c).mean() for a, c in points]
        ax.plot(x, y, "o-", color=COLOURS[arm], label=LABELS.get(arm, arm), lw=2, ms=4)
        if arm == "released":  # its line turns back: say which point is which weight
            at = {coef: point for (_, coef), point in zip(points, zip(x, y)) if coef in OFFSETS}
            for coef, point in at.items():
                style = dict(xytext=OFFSETS[coef], textcoords="offset points", fontsize=7)
                ax.annotate(f"{coef:g}", point, color=COLOURS[arm], **style)
    ax.set(xlabel="true entropy, nats", ylabel="value of the best of 50 actions")
    ax.set_title("what it buys at equal entropy", fontsize=10)
    ax.legend(frameon=False, fontsize=8)


def known_figure(records: Path) -> Figure:
    fig = Figure(figsize=(12, 6.6), layout="constrained")
    axes = fig.subplots(2, 3, width_ratios=[1.25, 0.85, 1.1])
    every = load_all(records)
    for (task, title), (raised, ranks, value) in zip(KNOWN.items(), axes):
        draw_raised(raised, every[task], title)
        draw_ranks(ranks, every[task])
        draw_value(value, every[task])
    handles, labels = axes[1, 0].get_legend_handles_labels()  # all arms are in it
    axes[0, 0].legend(handles, labels, frameon=False, fontsize=7, ncols=3, loc="upper left")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.45 * (high - low))
    for ax in axes.flat:
        plain(ax)
    fig.suptitle(
        "The released entropy term does not raise entropy; "
        "a bound that sees the spread does (20 seeds, known Q)"
    )
    return fig


def draw_against_entropy(ax: Axes, rows: list[dict], key: str) -> None:
    """A column against entropy, one line an arm, standard errors of the seeds."""
    for arm in LEARNED_ARMS:
        coefs = coefs_of(rows, arm)
        entropies = [values(rows, "entropy", arm=arm, coef=coef).mean() for coef in coefs]
        found = [values(rows, key, arm=arm, coef=coef) for coef in coefs]
        ax.errorbar(
            entropies,
            [x.mean() for x in found],
            [x.std(ddof=1) / len(x) ** 0.5 for x in found],
            lw=1.5 if len(coefs) > 1 else 0,
            elinewidth=1,
            capsize=2,
            color=COLOURS[arm],
            label=LABELS.get(arm, arm),
            marker="o",
            ms=5,
        )


def learned_figure(records: Path) -> Figure:
    fig = Figure(figsize=(12, 7.4), layout="constrained")
    axes = fig.subplots(2, len(LEARNED))
    every = load_all(records)
    for task, (top, bottom) in zip(LEARNED, axes.T):
        draw_against_entropy(top, every[task], "score_50")
        draw_against_entropy(bottom, every[task], "data_distance")
        top.set(title=task, ylabel="score, best of 50")
        bottom.set(
            xlabel="entropy, nats per action dimension",
            ylabel="distance to the nearest data action",
        )
        plain(top)
        plain(bottom)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=6)
    fig.suptitle(
        "Three learned tasks, five seeds: entropy at fixed data states "
        "against score, and against distance to the data"
    )
    return fig


def figures(records: Path, out: Path) -> None:
    """entropy.png: known truth; entropy-real.png: the three learned tasks."""
    no_software = {"Software": None}
    known_figure(records).savefig(out / "entropy.png", dpi=110, metadata=no_software)
    learned_figure(records).savefig(out / "entropy-real.png", dpi=100, metadata=no_software)
