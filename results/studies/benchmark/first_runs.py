"""First runs of each family beside random actions and the data; curves of the embedded task."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from results.common.records import column, markdown, pick, read_record
from results.studies.benchmark.made_sets import by_seed
from results.studies.benchmark.scores import COLOURS

EMBEDDED = "pointmaze-rare-embedded"
HOPPER = "hopper-medium-expert"
RARE = "edq/pointmaze/rare-v0"


def benchmark(records: Path, name: str):
    return read_record(records / "benchmark" / f"{name}.csv")[1]


def line(
    label: str,
    runs,
    random,
    data: str = "",
    digits: int = 1,
):
    """A row of the table, of runs with one budget."""
    first = runs[0]
    for name in ("task", "critics", "updates", "data"):
        values = {run[name] for run in runs}
        assert len(values) == 1, f"{label}: runs differ in {name}"
    budget = f"M = {first['critics']:.0f}, {first['updates']:,.0f} updates"
    ours = by_seed(runs, "edq", digits=digits)
    clones = by_seed(runs, "diffusion-bc", digits=digits)
    chance = random.get(first["task"], "-")
    data = data or f"{first['data']:.1f}"
    return [label, budget, ours, clones, chance, data]


def tables(records: Path) -> dict[str, str]:
    """One table: last evaluation of EDQ and of BC."""
    first = benchmark(records, "first-runs")
    made = benchmark(records, "made-sets")
    embedded = benchmark(records, "embedded")
    chance = benchmark(records, "chance")
    random = {row["task"]: f"{row['score']:.1f}" for row in chance}
    _, sets = read_record(records / "datasets" / "pointmaze-sets.csv")
    (rare,) = pick(sets, dataset=RARE)
    hopper = pick(first, task=HOPPER)
    authors = pick(hopper, diffusion_loss="likelihood_released")
    mended = pick(hopper, diffusion_loss="noise")
    door = pick(first, task="door-human")
    short_ant = pick(first, task="antmaze-umaze")
    long_ant = pick(made, task="antmaze-umaze", updates=60_000)
    of_rare = pick(made, task="pointmaze-rare")
    wander = pick(made, task="pointmaze-medium")
    within = f"pointmaze-rare, success in % within {rare['limit']:.0f} steps"
    seen = f"{rare['success_within_limit']:.0f}"
    rows = [
        line(f"{EMBEDDED}, success in % within 150 steps", embedded, random, digits=0),
        line("door-human, human demonstrations", door, random),
        line(f"{HOPPER}, stand-in, the authors' row", authors, random),
        line("the same with `--diffusion-loss noise --action-clip`", mended, random),
        line("antmaze-umaze, stand-in, success in %", short_ant, random),
        line("antmaze-umaze, rebuilt, `--normalize-obs`, success in %", long_ant, random),
        line(within, of_rare, random, seen, digits=0),
        line("pointmaze-medium, *wander*, success in %", wander, random, digits=0),
    ]
    head = ["task and data", "budget", "EDQ, per seed", "diffusion BC, per seed", "random", "data"]
    return {"first-runs": markdown(head, rows)}


def figures(records: Path, out: Path):
    """embedded.png: success rate over updates, a line a seed, the mean in bold."""
    runs = benchmark(records, "embedded")
    curves = benchmark(records, "embedded-curves")
    figure = Figure(figsize=(6.4, 3.4), dpi=150)
    axes = figure.subplots()
    for arm, name in (("edq", "EDQ"), ("diffusion-bc", "diffusion BC")):
        of_arm = pick(curves, arm=arm)
        seeds = sorted({row["seed"] for row in of_arm})
        colour = COLOURS[arm]
        lines = []
        for seed in seeds:
            rows = pick(of_arm, seed=seed)
            steps = column(rows, "step")
            scores = column(rows, "score")
            lines.append(scores)
            axes.plot(steps, scores, color=colour, alpha=0.35, lw=1)
        mean = np.mean(lines, 0)
        style = dict(color=colour, lw=2.5, marker="o", ms=4)
        axes.plot(steps, mean, label=f"{name}, {len(seeds)} seeds", **style)
    of_data = runs[0]["data"]
    style = dict(color="0.5", ls=":", lw=1.2)
    axes.axhline(of_data, label="episodes of the dataset", **style)
    axes.set(xlabel="updates", ylabel="success rate in % (20 episodes)", ylim=(-3, 103))
    axes.set_title("The rare maze, the dataset in this repository")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(out / "embedded.png", metadata={"Software": None})
