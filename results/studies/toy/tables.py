"""Tables and pictures of the toy study, from its records alone."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from results.common.intervals import bootstrap
from results.common.known_tasks import toy_reward
from results.common.records import column, markdown, pick, read_record

METHODS = ["cloning", "diffusion policy", "+ entropy", "+ Q-ensemble", "+ both"]
ESTIMATORS = "released bridge quad score chain chainJ logdet gmm pathkl".split()
ACTING = {
    "one": "K = 1",
    "softmax": "K = 50, softmax",
    "argmax": "K = 50, argmax",
}
WITHOUT = {
    "+ entropy": "diffusion policy",
    "+ both": "+ Q-ensemble",
}  # the entropy term
COLOURS = {
    "cloning": "0.55",
    "diffusion policy": "#000000",
    "+ entropy": "#E69F00",
    "+ Q-ensemble": "#0072B2",
    "+ both": "#D55E00",
}
LINES = [  # of the first picture: method, estimator, dash
    ("cloning", "none", "-"),
    ("diffusion policy", "none", "-"),
    ("+ Q-ensemble", "none", "-"),
    ("+ entropy", "chain", "-"),
    ("+ entropy", "released", "--"),
    ("+ both", "chain", "-"),
    ("+ both", "released", "--"),
]


def load(records: Path, kind: str) -> list[dict]:
    return read_record(records / "toy" / f"{kind}.csv")[1]


def name_of(method: str, estimator: str) -> str:
    return method if estimator == "none" else f"{method} ({estimator})"


# === Tables ===
def spread(rows: list[dict], name: str) -> str:
    """Mean, std and the worst seed."""
    x = column(rows, name)
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f} ({x.min():.2f})"


def percent(rows: list[dict], name: str) -> str:
    return f"{100 * column(rows, name).mean():.0f}"


def returns_table(runs: list[dict]) -> str:
    """A row a method and estimator."""
    data = pick(runs, method="data")
    share = percent(data, "rare_share")
    body = [["data", "", "", spread(data, "return_one"), "", "", "", share, "", ""]]
    for method in METHODS:
        for estimator in ["none"] if method not in WITHOUT else ESTIMATORS:
            rows = pick(runs, method=method, estimator=estimator)
            coef = f"{rows[0]['coef']:g}"
            line = [method, "", ""] if estimator == "none" else [method, estimator, coef]
            line += [spread(rows, f"return_{acting}") for acting in ACTING]
            line.append(f"{column(rows, 'late_one').mean():.2f}")
            line += [percent(rows, "rare_share"), percent(rows, "off_data")]
            line.append(f"{column(rows, 'entropy').mean():.2f}")
            body.append(line)
    head = ["method", "estimator", "coefficient", *ACTING.values()]
    head += [
        "K = 1, last five evaluations",
        "rich side in %",
        "off the data in %",
        "entropy",
    ]
    return markdown(head, body)


def compare(runs: list[dict], estimator: str, acting: str) -> tuple[str, str]:
    """Entropy and ensemble together beside the best of what lacks one of them or both, paired
    over seeds; and the rank of their std among the four, 1 the smallest."""
    four = {}
    for method in METHODS[1:]:
        used = estimator if method in WITHOUT else "none"
        rows = pick(runs, method=method, estimator=used)
        four[method] = column(rows, f"return_{acting}")
    both = four["+ both"]
    others = [method for method in METHODS[1:-1]]
    rival = max(others, key=lambda method: four[method].mean())
    gain = both - four[rival]
    low, high = bootstrap(gain)
    rank = 1 + sum(four[method].std() < both.std() for method in others)
    return (
        f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}] to {rival}",
        f"{rank} of 4",
    )


def claim_table(runs: list[dict]) -> str:
    """A row an estimator."""
    body = []
    for estimator in ESTIMATORS:
        line = [estimator]
        for acting in ACTING:
            line += compare(runs, estimator, acting)
        body.append(line)
    head = ["estimator"]
    for label in ACTING.values():
        head += [f"{label}: gain", "rank of std"]
    return markdown(head, body)


def tables(records: Path) -> dict[str, str]:
    """Returns by method and estimator; both together against the best of the others."""
    runs = load(records, "runs")
    return {"toy-returns": returns_table(runs), "toy-claim": claim_table(runs)}


# === Pictures ===
def density(laws: list[dict], method: str, estimator: str) -> tuple[np.ndarray, np.ndarray]:
    """Density of the first action, mean over seeds, and the edges of its bins."""
    rows = pick(laws, method=method, estimator=estimator)
    edges = np.append(column(rows, "low"), 1.0)
    return column(rows, "mean") * len(rows) / 2, edges


def draw_task(ax: Axes, laws: list[dict]) -> None:
    ax.stairs(
        *density(laws, "data", "none"),
        fill=True,
        color="0.8",
        label="first actions of the data",
    )
    ax.set(
        xlabel="position (first step: the action)",
        ylabel="density of the data",
        ylim=(0, None),
    )
    ax.set_title("a. The task", loc="left")
    reward = ax.twinx()
    x = torch.linspace(-1.2, 1.2, 241)
    reward.plot(x, toy_reward(x), color="#009E73", lw=2, label="reward")
    reward.set(ylabel="reward of arriving there", ylim=(0, 1.4))
    handles = ax.get_legend_handles_labels()[0] + reward.get_legend_handles_labels()[0]
    ax.legend(handles=handles, frameon=False, loc="upper center", fontsize=8)
    ax.spines["top"].set_visible(False)
    reward.spines["top"].set_visible(False)


def draw_learning(ax: Axes, curves: list[dict], data_return: float) -> None:
    """Return against epochs, mean of the seeds and its 95 % interval."""
    seeds = [name for name in curves[0] if name.startswith("seed_")]
    quantile = round(stats.t.ppf(0.975, len(seeds) - 1), 3)
    for method, estimator, dash in LINES:
        rows = pick(curves, method=method, estimator=estimator, acting="one")
        points = np.array([[row[seed] for seed in seeds] for row in rows])
        epochs = column(rows, "epoch")
        mean = points.mean(1)
        half = quantile * points.std(1, ddof=1) / len(seeds) ** 0.5
        colour = COLOURS[method]
        ax.plot(
            epochs,
            mean,
            lw=1.8,
            label=name_of(method, estimator),
            color=colour,
            ls=dash,
        )
        ax.fill_between(epochs, mean - half, mean + half, color=colour, alpha=0.13, lw=0)
    ax.axhline(data_return, color="0.4", ls=":", lw=1.2, label="data")
    ax.set(xlabel="epochs", ylabel="return, K = 1")
    ax.set_title(f"b. Learning, mean of {len(seeds)} seeds and 95 % interval", loc="left")
    ax.legend(frameon=False, fontsize=8, ncols=2)


def draw_q(ax: Axes, q: list[dict]) -> None:
    """Learned mean and bound over the first action, beside the behaviour's true value."""
    pair = pick(q, method="diffusion policy", estimator="none")
    ensemble = pick(q, method="+ Q-ensemble", estimator="none")
    ax.plot(
        column(pair, "action"),
        column(pair, "true"),
        color="0.4",
        ls=":",
        label="behaviour's",
    )
    for rows, members, how, bound in (
        (pair, "M = 2", "smaller one", "min"),
        (ensemble, "M = 16", "LCB", "lcb"),
    ):
        action, mean, low = (column(rows, name) for name in ("action", "mean", bound))
        colour = COLOURS[rows[0]["method"]]
        ax.plot(action, mean, color=colour, lw=2, label=f"{members}, mean")
        ax.plot(
            action,
            low,
            color=colour,
            ls="--",
            lw=1.2,
            label=f"{members}, {how}",
        )
        ax.fill_between(action, low, mean, color=colour, alpha=0.15, lw=0)
    ax.set(xlabel="first action, at position 0", ylabel="Q")
    ax.set_title("c. Learned Q without entropy term, mean over seeds", loc="left")
    ax.legend(frameon=False, fontsize=8)


def draw_policy(ax: Axes, laws: list[dict]) -> None:
    """Densities of the first action."""
    for method, estimator, dash in LINES:
        ax.stairs(
            *density(laws, method, estimator),
            lw=1.5,
            label=name_of(method, estimator),
            color=COLOURS[method],
            ls=dash,
        )
    of_data = density(laws, "data", "none")
    ax.stairs(*of_data, fill=True, color="0.85", zorder=0, label="data")
    ax.set(
        xlabel="first action, at position 0",
        ylabel="density",
        yscale="log",
        ylim=(0.01, 100),
    )
    ax.set_title("d. First action after training, mean over seeds", loc="left")
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def draw_estimators(ax: Axes, runs: list[dict], acting: str) -> None:
    """Final returns of every seed, their mean and 95 % interval; a line an estimator."""
    for method, members, mark, offset in (
        ("+ entropy", "M = 2", "o", -0.15),
        ("+ both", "M = 16", "s", 0.15),
    ):
        colour = COLOURS[WITHOUT[method]]
        for at, estimator in enumerate(["none", *ESTIMATORS]):
            used = WITHOUT[method] if estimator == "none" else method
            rows = pick(runs, method=used, estimator=estimator)
            points = column(rows, f"return_{acting}")
            y = at + offset
            first = at == 0  # one entry in the legend
            seeds = dict(marker="|", ls="", color=colour, ms=5, alpha=0.5)
            ax.plot(
                points, [y] * len(points), label=f"{members}: a seed" if first else None, **seeds
            )
            interval = dict(color=colour, lw=1.5, marker=mark, ms=5, markevery=[1])
            low, high = bootstrap(points)
            label = f"{members}: mean and its 95 % interval" if first else None
            ax.plot([low, points.mean(), high], [y] * 3, label=label, **interval)
    cloned = column(pick(runs, method="cloning"), "return_one").mean()
    ax.axvline(cloned, color="0.5", ls=":", lw=1.2, label="mean of cloning, K = 1")
    ax.set_yticks(range(len(ESTIMATORS) + 1), ["none", *ESTIMATORS])
    ax.set(xlabel="return", title=ACTING[acting])
    ax.spines[["top", "right"]].set_visible(False)


def figures(records: Path, out: Path) -> None:
    """toy.png: task, learning, learned Q, first actions; toy-estimators.png: by estimator."""
    runs = load(records, "runs")
    laws = load(records, "laws")
    no_software = {"Software": None}

    fig = Figure(figsize=(11, 8), dpi=110)
    (task, learning), (value, policy) = fig.subplots(2, 2)
    draw_task(task, laws)
    data_return = column(pick(runs, method="data"), "return_one").mean()
    draw_learning(learning, load(records, "curves"), data_return)
    draw_q(value, load(records, "q"))
    draw_policy(policy, laws)
    for ax in (learning, value, policy):
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(out / "toy.png", metadata=no_software)

    fig = Figure(figsize=(11, 4.3), dpi=110, layout="constrained")
    for ax, acting in zip(fig.subplots(1, 3, sharey=True), ACTING):
        draw_estimators(ax, runs, acting)
    fig.axes[0].invert_yaxis()
    fig.axes[0].set_ylabel("entropy term")
    handles, labels = fig.axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    fig.savefig(out / "toy-estimators.png", metadata=no_software)
