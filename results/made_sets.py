"""Tables of results/datasets: the sets that its generators made, and what was trained on them.

    python results/made_sets.py    # writes results/records/pointmaze-sets.csv

The command reads the three PointMaze sets that the flags in its table make, and records how many of their episodes see
the goal. Runs on them are recorded by results/collect.py; the other sets were recorded as they were made.
"""

import sys
import time
from pathlib import Path

from record import RECORDS, markdown, read_record, write_record

POINTMAZE = {  # of each set: the task, and the flags of pointmaze.py
    "edq/pointmaze/rare-v0": ("pointmaze-rare", "`--recipe rare --transitions 30000`"),
    "edq/pointmaze/medium-wander-v0": ("pointmaze-medium", "`--recipe wander --maze medium --transitions 60000`"),
    "edq/pointmaze/umaze-wander-v0": ("pointmaze-umaze", "`--recipe wander --transitions 30000`, umaze"),
}
BESIDE = {  # of each recorded set of Hopper: what D4RL's own is
    "edq/hopper/medium-v0": "a tenth of the size; D4RL's policy is an early-stopped SAC",
    "edq/hopper/medium-replay-v0": "five checkpoints and three levels of noise, where D4RL has a replay buffer",
}


def write_sets() -> None:
    """Record the PointMaze sets: size, share of episodes that see the goal, and that do so before a run is stopped."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import gymnasium as gym

    import edq_antmaze as edq

    rows, started = [], time.time()
    for dataset_id, (env_id, _) in POINTMAZE.items():
        args, _ = edq.parse_args(["--env-id", env_id, "--dataset-id", dataset_id])
        data, info = edq.load_dataset(args, "cpu")
        env, kwargs, *_ = edq.TASKS[env_id]
        limit = kwargs.get("max_episode_steps") or gym.spec(env).max_episode_steps
        at_goal = data[-1].bool().reshape(info["episodes"], -1).numpy()
        rows.append({
            "dataset": dataset_id, "hash": info["hash"], "transitions": info["transitions"],
            "episodes": info["episodes"], "success": float(100 * at_goal.any(1).mean()), "limit": limit,
            "success_within_limit": float(100 * at_goal[:, :limit].any(1).mean()),
        })  # fmt: skip
    write_record(RECORDS / "pointmaze-sets.csv", rows, started)


def seeds(runs: list[dict], preset: str, column: str = "last", digits: int = 0) -> str:
    """One column of the runs with a preset, in the order of their seeds."""
    runs = sorted((run for run in runs if run["preset"] == preset), key=lambda run: run["seed"])
    return ", ".join(f"{run[column]:.{digits}f}" for run in runs)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def tables(records: Path) -> dict[str, str]:
    """The recorded sets of each generator, with the runs on those of pointmaze.py, and the scores under mazes.png."""
    names = ("pointmaze-sets", "datasets-runs", "antmaze-sets", "collect")
    point_sets, all_runs, ant_sets, hopper_sets = (read_record(records / f"{name}.csv")[1] for name in names)
    point, last_scores = [], {}
    for s in point_sets:
        task, flags = POINTMAZE[s["dataset"]]
        runs = [run for run in all_runs if (run["task"], run["hash"]) == (task, s["hash"])]
        (updates,) = {run["updates"] for run in runs}
        seen = f"{s['success']:.0f} %"
        if s["success_within_limit"] < s["success"]:
            seen += f", {s['success_within_limit']:.0f} % within the limit of {s['limit']:.0f} steps"
        last, best = ([seeds(runs, preset, x) for preset in ("edq", "diffusion-bc")] for x in ("last", "best"))
        last_scores[task] = " against ".join(last)
        scores = [a + (f" ({b})" if a != b else "") for a, b in zip(last, best)]
        point.append([flags, f"{s['transitions']:,.0f}", seen, f"{updates:,.0f}", *scores])
    ant = [
        [s["task"], f"{s['transitions']:,.0f}", *(percent(s[x]) for x in ("success", "reward_share", "upside_down")),
         f"{s['cells']:.0f} of {s['free_cells']:.0f}", f"{s['squares']:.0f}"]
        for s in sorted(ant_sets, key=lambda s: ("umaze", "medium", "large").index(s["task"].split("-")[0]))
    ]  # fmt: skip
    hopper = [
        [s["dataset"], f"{s['transitions']:,.0f}", f"{s['return_mean']:.0f} +- {s['return_std']:.0f}",
         f"{s['score']:.1f}", BESIDE[s["dataset"]]]
        for s in hopper_sets
    ]  # fmt: skip
    point_head = ["set", "transitions", "episodes that see the goal", "updates", "EDQ", "cloning"]
    ant_head = ["set", "transitions", "episodes that arrive", "steps with reward 1", "upside down"]
    return {
        "pointmaze-sets": markdown(point_head, point),
        "antmaze-sets": markdown([*ant_head, "free cells visited", "1 m squares"], ant),
        "collect": markdown(["set", "transitions", "return", "D4RL's score", "beside D4RL's own"], hopper),
        "mazes": f"{last_scores['pointmaze-rare']} (rare) and {last_scores['pointmaze-medium']} (wander)",
    }


def figures(records: Path, out: Path) -> None:
    """None: these are tables."""


if __name__ == "__main__":
    write_sets()
