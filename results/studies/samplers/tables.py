"""Tables and pictures of the sampler study, from its records alone."""

from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from results.common.records import column, markdown, pick, read_record
from results.studies.samplers.mixtures import MIXTURES

STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 100)  # T
SHOWN = (1, 2, 5, 10, 50)  # T in the pictures of samples
NETWORKS = ("exact", "trained")
LABELS = {
    "posterior": "posterior",
    "sde": "Euler, reverse SDE",
    "ode": "Euler, ODE",
}
SAMPLERS = tuple(LABELS)
COLOURS = {"posterior": "#0072B2", "sde": "#D55E00", "ode": "#009E73"}
SCHEDULES = {
    "cosine": "#0072B2",
    "linear": "#E69F00",
    "constant": "#CC79A7",
    "vp": "#000000",
}
NAMES = {"vp": "vp (DDPM's betas as theta_t, scaled as the others)"}
ARMS = {  # flags beside the locomotion row: loss, clamp
    "as released": ("likelihood_released", 0),
    "`--action-clip`": ("likelihood_released", 1),
    "`--diffusion-loss noise`": ("noise", 0),
    "both": ("noise", 1),
}
TITLES = {
    "distance": "On one mode two posterior steps are at least 7 times nearer than two Euler steps; "
    "on several\nmodes Euler steps are nearer at T = 5, and all samplers are within 0.07 "
    "from T = 20 on (cosine)",
    "schedules": "Posterior sampler, exact networks: at T = 5 the linear schedule is nearest,\n"
    "except where a mode lies in the middle: there cosine is (three modes, checker)",
    "modes": "Five steps find one mode, too narrow, and blur several; fifty steps keep all modes\n"
    "(exact networks, cosine; high peaks are cut)",
    "points": "Five posterior steps fill the space between the modes, fifty keep them apart\n"
    "(exact networks, cosine; grey: two std around each mode)",
}


def load(records: Path, kind: str) -> list[dict]:
    return read_record(records / "samplers" / f"{kind}.csv")[1]


def mean(rows: list[dict], name: str) -> float:
    """Over seeds."""
    return float(column(rows, name).mean())


def show(rows: list[dict], name: str) -> str:
    """Mean and std over seeds."""
    x = column(rows, name)
    return f"{x.mean():.3f} ± {x.std(ddof=1):.3f}"


def floors(records: Path) -> dict[str, float]:
    """Distance of two sets of data, by distribution."""
    rows = load(records, "floor")
    return {name: mean(pick(rows, distribution=name), "floor") for name in MIXTURES}


# === Tables ===
def distance_table(records: Path) -> str:
    """Exact networks, cosine."""
    rows = pick(load(records, "distances"), network="exact", schedule="cosine")
    body = []
    for name, sampler in product(MIXTURES, SAMPLERS):
        mine = pick(rows, distribution=name)
        cells = [show(pick(mine, T=T), sampler) for T in STEPS]
        body.append([name, sampler, *cells, f"{floors(records)[name]:.3f}"])
    head = [
        "distribution",
        "sampler",
        *(f"T = {T}" for T in STEPS),
        "noise floor",
    ]
    return markdown(head, body)


def first_step(rows: list[dict], sampler: str, threshold: float) -> str:
    """Smallest T whose mean distance is at most `threshold`."""
    for T in STEPS:
        if mean(pick(rows, T=T), sampler) <= threshold:
            return str(T)
    return f"> {STEPS[-1]}"


def reach_table(records: Path) -> str:
    """How many steps each sampler needs, cosine."""
    rows = pick(load(records, "distances"), schedule="cosine")
    body = []
    for network, (name, mixture) in product(NETWORKS, MIXTURES.items()):
        mine = pick(rows, network=network, distribution=name)
        floor = floors(records)[name]
        fine = [first_step(mine, sampler, 2 * floor) for sampler in SAMPLERS]
        coarse = [first_step(mine, sampler, 0.05) for sampler in SAMPLERS]
        body.append(
            [
                network,
                name,
                mixture.about,
                f"{floor:.3f}",
                *fine,
                *coarse,
            ]
        )
    head = ["network", "distribution", "modes at", "noise floor"]
    head += [f"{sampler}, twice the floor" for sampler in SAMPLERS]
    head += [f"{sampler}, 0.05" for sampler in SAMPLERS]
    return markdown(head, body)


def between_table(records: Path) -> str:
    """Share of the samples between the modes, in %, cosine."""
    rows = pick(load(records, "distances"), schedule="cosine")
    floor = load(records, "floor")
    body = []
    for network, name in product(NETWORKS, MIXTURES):
        shares = [mean(pick(floor, distribution=name), "between")]
        for T in (5, 50):
            mine = pick(rows, network=network, distribution=name, T=T)
            shares += [mean(mine, f"between_{sampler}") for sampler in SAMPLERS]
        body.append([network, name, *(f"{100 * share:.1f}" for share in shares)])
    head = ["network", "distribution", "data"]
    head += [f"{sampler}, T = {T}" for T in (5, 50) for sampler in SAMPLERS]
    return markdown(head, body)


def narrowing_table(records: Path) -> str:
    """Std of the mode of `one mode`, 0.1 in the data."""
    rows = pick(load(records, "modes"), distribution="one mode")
    body = []
    for network, sampler in product(NETWORKS, SAMPLERS):
        mine = pick(rows, network=network)
        stds = [mean(pick(mine, T=T), f"std_{sampler}") for T in STEPS]
        body.append([network, sampler, *(f"{std:.4f}" for std in stds)])
    return markdown(["network", "sampler", *(f"T = {T}" for T in STEPS)], body)


def training_table(records: Path) -> str:
    """Noise loss of the trained networks / of the exact ones, cosine."""
    rows = pick(load(records, "training"), schedule="cosine")
    body = []
    for name in MIXTURES:
        line = [name]
        for T in STEPS:
            mine = pick(rows, distribution=name, T=T)
            line.append(f"{mean(mine, 'loss'):.4f} / {mean(mine, 'exact_loss'):.4f}")
        body.append(line)
    return markdown(["distribution", *(f"T = {T}" for T in STEPS)], body)


def clone_cell(rows: list[dict]) -> str:
    """Share at the edge in %, with the range of the seeds, and the distance."""
    share = 100 * column(rows, "edge")
    text = f"{share.mean():.1f}"
    if share.max() - share.min() >= 0.05:
        text += f" ({share.min():.1f} to {share.max():.1f})"
    return f"{text}; {mean(rows, 'distance'):.2f}"


def clone_table(records: Path) -> str:
    """The locomotion row by itself and with what mends it, after so many updates."""
    rows = load(records, "locomotion-clone")
    head = ["updates"]
    for name, (loss, clip) in ARMS.items():
        count = len({row["seed"] for row in pick(rows, loss=loss, clip=clip)})
        head.append(f"{name} ({count} seed{'s' * (count > 1)})")
    body = []
    for updates in dict.fromkeys(row["updates"] for row in rows):
        mine = pick(rows, updates=updates)
        cells = [clone_cell(pick(mine, loss=loss, clip=clip)) for loss, clip in ARMS.values()]
        body.append([f"{updates:,.0f}", *cells])
    return markdown(head, body)


def tables(records: Path) -> dict[str, str]:
    """Markdown by name."""
    return {
        "samplers-reach": reach_table(records),
        "samplers-narrowing": narrowing_table(records),
        "samplers-between": between_table(records),
        "samplers-distance-exact": distance_table(records),
        "samplers-training": training_table(records),
        "samplers-clone": clone_table(records),
    }


# === Pictures ===
def panels(records: Path) -> tuple[Figure, dict[str, Axes]]:
    """One panel a distribution, distance against T, with its noise floor."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    axes = dict(zip(MIXTURES, grid.flat))
    for name, ax in axes.items():
        ax.set(xscale="log", yscale="log", ylim=(0.002, 1.2))
        ax.set_title(f"{name}\n{MIXTURES[name].about}", fontsize=10)
        ax.set_xticks(STEPS, [str(T) for T in STEPS])
        ax.minorticks_off()
        ax.axhline(
            floors(records)[name],
            color="grey",
            ls=":",
            label="noise floor",
        )
        ax.axvline(5, color="grey", lw=0.5)
        ax.grid(alpha=0.25)
    for ax in grid[1]:
        ax.set_xlabel("T, steps of the sampler", fontsize=10)
    figure.supylabel("Wasserstein distance to the data (sliced in 2-D)", fontsize=10)
    return figure, axes


def draw_line(ax: Axes, rows: list[dict], name: str, **style: object) -> None:
    """Mean over seeds, and the range of the seeds."""
    values = np.array([column(pick(rows, T=T), name) for T in STEPS])
    (drawn,) = ax.plot(STEPS, values.mean(1), marker="o", ms=3, lw=1.4, **style)
    low = values.min(1)
    high = values.max(1)
    ax.fill_between(STEPS, low, high, color=drawn.get_color(), alpha=0.18, lw=0)


def shared_legend(figure: Figure, ax: Axes, ncols: int, fontsize: int = 9) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=ncols,
        fontsize=fontsize,
        frameon=False,
    )


def distance_figure(records: Path) -> Figure:
    rows = pick(load(records, "distances"), schedule="cosine")
    figure, axes = panels(records)
    for (name, ax), sampler, network in product(axes.items(), SAMPLERS, NETWORKS):
        mine = pick(rows, network=network, distribution=name)
        draw_line(
            ax,
            mine,
            sampler,
            color=COLOURS[sampler],
            ls="-" if network == "exact" else "--",
            label=f"{LABELS[sampler]}, {network}",
        )
    shared_legend(figure, axes["one mode"], ncols=4)
    figure.suptitle(TITLES["distance"], fontsize=12)
    return figure


def schedules_figure(records: Path) -> Figure:
    rows = pick(load(records, "distances"), network="exact")
    figure, axes = panels(records)
    for (name, ax), (schedule, colour) in product(axes.items(), SCHEDULES.items()):
        mine = pick(rows, distribution=name, schedule=schedule)
        draw_line(ax, mine, "posterior", color=colour, label=NAMES.get(schedule, schedule))
    shared_legend(figure, axes["one mode"], ncols=5)
    figure.suptitle(TITLES["schedules"], fontsize=12)
    return figure


def draw_histogram(ax: Axes, rows: list[dict]) -> None:
    """Densities of the data and of each sampler; bins without a sample have no row."""
    edges = np.linspace(-1, 1, 81)
    width = edges[1] - edges[0]
    by_low = {row["low"]: row for row in rows}
    filled = [by_low.get(round(float(low), 3), {}) for low in edges[:-1]]

    def density(name: str) -> np.ndarray:
        counts = np.array([row.get(name, 0) for row in filled], float)
        return counts / counts.sum() / width

    data = density("data")
    ax.stairs(data, edges, fill=True, color="0.8", label="data")
    for sampler in SAMPLERS:
        colour = COLOURS[sampler]
        ax.stairs(
            density(sampler),
            edges,
            color=colour,
            lw=1.2,
            label=LABELS[sampler],
        )
    ax.set_ylim(0, 2.2 * data.max())
    ax.set_yticks([])


def modes_figure(records: Path) -> Figure:
    rows = load(records, "histograms")
    names = [name for name, mixture in MIXTURES.items() if mixture.act_dim == 1]
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(len(names), len(SHOWN), sharex=True, sharey="row")
    for (i, name), (j, T) in product(enumerate(names), enumerate(SHOWN)):
        draw_histogram(axes[i, j], pick(rows, distribution=name, T=T))
        if i == 0:
            axes[i, j].set_title(f"T = {T}", fontsize=11)
        if j == 0:
            axes[i, j].set_ylabel(name, fontsize=11)
    shared_legend(figure, axes[0, 0], ncols=4, fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("action", fontsize=10)
    figure.suptitle(TITLES["modes"], fontsize=12)
    return figure


def draw_points(ax: Axes, rows: list[dict], name: str, sampler: str) -> None:
    """Samples of a 2-D mixture, over circles of two std around its modes."""
    for centre in MIXTURES[name].means:
        ax.add_patch(Circle(centre, 2 * MIXTURES[name].std, color="0.85", lw=0))
    x = column(rows, f"x_{sampler}")
    y = column(rows, f"y_{sampler}")
    ax.scatter(x, y, s=4, color=COLOURS[sampler], lw=0, zorder=2)
    ax.set(
        xlim=(-1.05, 1.05),
        ylim=(-1.05, 1.05),
        aspect="equal",
        xticks=[],
        yticks=[],
    )


def points_figure(records: Path) -> Figure:
    rows = load(records, "points")
    names = [name for name, mixture in MIXTURES.items() if mixture.act_dim == 2]
    lines = list(product(names, SAMPLERS))
    figure = Figure(figsize=(9, 11), layout="constrained")
    axes = figure.subplots(len(lines), len(SHOWN), sharex=True, sharey=True)
    for (i, (name, sampler)), (j, T) in product(enumerate(lines), enumerate(SHOWN)):
        ax = axes[i, j]
        draw_points(ax, pick(rows, distribution=name, T=T), name, sampler)
        if i == 0:
            ax.set_title(f"T = {T}", fontsize=11)
        if j == 0:
            ax.set_ylabel(f"{name}\n{LABELS[sampler]}", fontsize=9)
    figure.suptitle(TITLES["points"], fontsize=12)
    return figure


def figures(records: Path, out: Path) -> None:
    """samplers.png, samplers-modes.png, samplers-points.png and samplers-schedules.png."""
    drawn = {
        "samplers": distance_figure(records),
        "samplers-schedules": schedules_figure(records),
        "samplers-modes": modes_figure(records),
        "samplers-points": points_figure(records),
    }
    for name, figure in drawn.items():
        figure.savefig(out / f"{name}.png", dpi=100, metadata={"Software": None})
