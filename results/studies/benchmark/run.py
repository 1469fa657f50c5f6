"""What the benchmark measures beside its suites (results/run_suite.py), a record each.

python results/studies/benchmark/run.py chance          # uniform actions, for the first runs
python results/studies/benchmark/run.py sets            # the made PointMaze sets
python results/studies/benchmark/run.py paths RUN ...   # paths of maze runs, for the pictures
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from results.common.pictures import write_paths
from results.common.records import RECORDS, write_record
from results.common.runs import fail, script_of
from results.studies.benchmark.made_sets import POINTMAZE

CHANCE = (  # script, task, episodes
    ("edq_mujoco", "hopper-medium-expert", 10),
    ("edq_adroit", "door-human", 20),
    ("edq_antmaze", "antmaze-umaze", 20),
    ("edq_antmaze", "pointmaze-rare-embedded", 20),
)
FIRST_SEED = 1_000_000  # of the episodes


@dataclass
class Args:
    """Make a record of the benchmark."""

    what: tyro.conf.Positional[Literal["chance", "sets", "paths"]]
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run folders, for paths"""


def random_episode(env, seed: int):
    """Rewards of an episode of uniform actions."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rewards = []
    done = False
    while not done:
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rewards.append(float(reward))
        done = terminated or truncated
    return rewards


def write_chance():
    """What uniform actions score."""
    import numpy as np

    started = time.time()
    rows = []
    for script, env_id, episodes in CHANCE:
        edq = script_of(script)
        task = edq.TASKS[env_id]
        env = edq.make_env(task)
        results = []
        for episode in range(episodes):
            rewards = np.array(random_episode(env, FIRST_SEED + episode))
            results.append(edq.episode_result(rewards, task.reference))
        env.close()
        figures = edq.means(results)
        row = {name: round(figures[name], 1) for name in ("score", "standard_error")}
        rows.append({"task": env_id, "episodes": episodes, **row})
    write_record(RECORDS / "benchmark" / "chance.csv", rows, started)


def write_sets():
    """The PointMaze sets: their size, and the share of episodes that see the goal in time."""
    import gymnasium as gym

    edq = script_of("edq_antmaze")
    started = time.time()
    rows = []
    for dataset_id, (env_id, _) in POINTMAZE.items():
        args = edq.parse_args(["--env-id", env_id, "--dataset-id", dataset_id])
        data, info = edq.load_dataset(args, "cpu")
        task = edq.TASKS[env_id]
        limit = task.env_kwargs.get("max_episode_steps") or gym.spec(task.env).max_episode_steps
        at_goal = data.end.bool().reshape(info["episodes"], -1).numpy()
        row = {
            "dataset": dataset_id,
            "hash": info["hash"],
            "transitions": info["transitions"],
            "episodes": info["episodes"],
            "success": float(100 * at_goal.any(1).mean()),
            "limit": limit,
            "success_within_limit": float(100 * at_goal[:, :limit].any(1).mean()),
        }
        rows.append(row)
    write_record(RECORDS / "datasets" / "pointmaze-sets.csv", rows, started)


def main(args: Args):
    if args.what == "chance":
        write_chance()
    if args.what == "sets":
        write_sets()
    if args.what == "paths":
        if not args.runs:
            fail("which runs?")
        for folder in args.runs:
            study = "antmaze" if "antmaze" in folder.name else "benchmark"
            write_paths(study, folder)


if __name__ == "__main__":
    main(tyro.cli(Args))
