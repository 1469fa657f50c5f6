"""Tables of results/datasets: the sets that its generators made, and what was trained on them."""

from pathlib import Path

from results.common.records import column, markdown, pick, read_record

POINTMAZE = {  # of each set: the task, and the flags of make_pointmaze.py
    "edq/pointmaze/rare-v0": (
        "pointmaze-rare",
        "`--recipe rare --transitions 30000`",
    ),
    "edq/pointmaze/medium-wander-v0": (
        "pointmaze-medium",
        "`--recipe wander --maze medium --transitions 60000`",
    ),
    "edq/pointmaze/umaze-wander-v0": (
        "pointmaze-umaze",
        "`--recipe wander --transitions 30000`, umaze",
    ),
}
HOPPER = {  # of each recorded set: what D4RL's own is
    "edq/hopper/medium-v0": "a tenth of the size; D4RL's policy is an early-stopped SAC",
    "edq/hopper/medium-replay-v0": (
        "five checkpoints and three levels of noise, where D4RL has a replay buffer"
    ),
}
MAZES = ("umaze", "medium", "large")


def by_seed(runs, preset: str, name: str = "last", digits: int = 0) -> str:
    """One column of the runs with a preset, in the order of their seeds."""
    chosen = sorted(pick(runs, preset=preset), key=lambda run: run["seed"])
    return ", ".join(f"{value:.{digits}f}" for value in column(chosen, name))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def pointmaze(records: Path) -> str:
    """The sets of make_pointmaze.py, and how EDQ and BC do on them."""
    _, sets = read_record(records / "datasets" / "pointmaze-sets.csv")
    _, all_runs = read_record(records / "benchmark" / "made-sets.csv")
    rows = []
    for made in sets:
        task, flags = POINTMAZE[made["dataset"]]
        runs = pick(all_runs, task=task, hash=made["hash"])
        seen = f"{made['success']:.0f} %"
        if made["success_within_limit"] < made["success"]:
            within = f"{made['success_within_limit']:.0f} % within the limit"
            seen += f", {within} of {made['limit']:.0f} steps"
        scores = []
        for preset in ("edq", "diffusion-bc"):
            last, best = by_seed(runs, preset), by_seed(runs, preset, "best")
            scores.append(last if last == best else f"{last} ({best})")
        updates = f"{runs[0]['updates']:,.0f}"
        rows.append([flags, f"{made['transitions']:,.0f}", seen, updates, *scores])
    head = ["set", "transitions", "episodes that see the goal", "updates", "EDQ", "diffusion BC"]
    return markdown(head, rows)


def antmaze(records: Path) -> str:
    """The sets of make_antmaze.py."""
    _, sets = read_record(records / "datasets" / "antmaze-sets.csv")
    rows = []
    for made in sorted(sets, key=lambda made: MAZES.index(made["task"].split("-")[0])):
        shares = [percent(made[x]) for x in ("success", "reward_share", "upside_down")]
        cells = f"{made['cells']:.0f} of {made['free_cells']:.0f}"
        squares = f"{made['squares']:.0f}"
        rows.append([made["task"], f"{made['transitions']:,.0f}", *shares, cells, squares])
    head = ["set", "transitions", "episodes that arrive", "steps with reward 1", "upside down"]
    return markdown([*head, "free cells visited", "1 m squares"], rows)


def antmaze_forms(records: Path) -> str:
    """What is rewarded in each form of one recording, beside what is reported of D4RL's own."""
    rows = []
    for name in ("umaze", "medium-play"):
        _, sets = read_record(records / "datasets" / f"antmaze-{name}.csv")
        for made in sets:
            shares = [percent(made[x]) for x in ("reward_share", "success")]
            rows.append([name, made["form"], f"{made['transitions']:,.0f}", *shares])
    rows.append(["D4RL's medium-play", "its own", "1,000,000", "1 % at most", "about 11 %"])
    head = ["set", "form", "transitions", "steps with reward 1", "episodes that see the goal"]
    return markdown(head, rows)


def hopper(records: Path) -> str:
    """The sets of record_policy.py."""
    _, sets = read_record(records / "datasets" / "hopper-sets.csv")
    rows = []
    for made in sets:
        returns = f"{made['return_mean']:.0f} +- {made['return_std']:.0f}"
        size, score = f"{made['transitions']:,.0f}", f"{made['score']:.1f}"
        rows.append([made["dataset"], size, returns, score, HOPPER[made["dataset"]]])
    head = ["set", "transitions", "return", "D4RL's score", "beside D4RL's own"]
    return markdown(head, rows)


def tables(records: Path) -> dict[str, str]:
    return {
        "pointmaze-sets": pointmaze(records),
        "antmaze-sets": antmaze(records),
        "antmaze-forms": antmaze_forms(records),
        "collect": hopper(records),
    }
