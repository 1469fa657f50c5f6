"""Table of the README's first runs; collect.py records the runs, chance.py what random actions score."""

from pathlib import Path

from made_sets import seeds
from record import markdown, read_record

EMBEDDED = "pointmaze-umaze-embedded"


def tables(records: Path) -> dict[str, str]:
    """One table: last evaluation of EDQ and of cloning beside random actions and the data's own episodes."""
    names = ("first-runs", "datasets-runs", EMBEDDED, "chance", "pointmaze-sets")
    first, later, embedded, chance, sets = (read_record(records / f"{name}.csv")[1] for name in names)
    random = {row["task"]: f"{row['score']:.1f}" for row in chance}
    rows = []

    def add(label: str, runs: list[dict], data: str | None = None, digits: int = 1) -> None:
        shared = ("task", "critics", "updates", "data")
        ((task, critics, updates, of_data),) = {tuple(run[k] for k in shared) for run in runs}
        scores = [seeds(runs, preset, digits=digits) for preset in ("edq", "diffusion-bc")]
        budget = f"M = {critics:.0f}, {updates:,.0f} updates"
        rows.append([label, budget, *scores, random.get(task, "-"), data or f"{of_data:.1f}"])

    def pick(runs: list[dict], task: str, **wanted: object) -> list[dict]:
        return [r for r in runs if r["task"] == task and all(r[k] == v for k, v in wanted.items())]

    # That record names no ensemble size: 4 is the one of the task's own row in edq_antmaze.py.
    of_data = next(row["success"] for row in embedded if row["what"] == "data")
    names = {"task": EMBEDDED, "critics": 4, "data": of_data}
    runs = [{**r, **names, "preset": r["what"], "last": r["success"]} for r in embedded if r["what"] != "data"]
    add(f"{EMBEDDED}, success in %", runs, digits=0)
    add("door-human, human demonstrations", pick(first, "door-human"))
    hopper = "hopper-medium-expert"
    add(f"{hopper}, stand-in, the authors' row", pick(first, hopper, diffusion_loss="likelihood_released"))
    add("the same with `--diffusion-loss noise --action-clip`", pick(first, hopper, diffusion_loss="noise"))
    add("antmaze-umaze, stand-in, success in %", pick(first, "antmaze-umaze"))
    add("antmaze-umaze, rebuilt, `--normalize-obs`, success in %", pick(later, "antmaze-umaze", updates=60_000))
    rare = next(row for row in sets if row["dataset"] == "edq/pointmaze/rare-v0")
    label = f"pointmaze-rare, success in % within {rare['limit']:.0f} steps"
    add(label, pick(later, "pointmaze-rare"), f"{rare['success_within_limit']:.0f}", digits=0)
    add("pointmaze-medium, *wander*, success in %", pick(later, "pointmaze-medium"), digits=0)
    head = ["task and data", "budget", "EDQ, per seed", "cloning, per seed", "random", "data"]
    return {"first-runs": markdown(head, rows)}


def figures(records: Path, out: Path) -> None:
    """None: this is a table."""
