"""Turn one of D4RL's own HDF5 files into a local dataset in Minari's format.

    python results/datasets/import_d4rl.py hopper_medium_replay-v2.hdf5
    python edq_mujoco.py --env-id hopper-medium-replay --dataset-id d4rl/hopper/medium-replay-v2

What a script then trains on are the transitions of D4RL's `qlearning_dataset`, row for row:
- The step at a timeout is dropped: its next observation is missing. A file without `timeouts` (the kitchen) has one
  where an episode reaches the task's time limit.
- The step at a terminal stays. Its next observation is the file's next row, the start of another episode; it has no
  weight, as no future follows. `next_observations` are not used (nor are they there), only compared.
- The file's last row has no next observation, and is dropped.

AntMaze needs more. D4RL's 29 numbers are x, y, then Gymnasium's 27; its origin is the start cell, its rows go up where
Gymnasium-Robotics' go down. So x and y are moved (by whole metres), and the maze in the metadata is D4RL's upside down:
no number of an observation or action is mirrored. The ant itself differs (a fifth of the torque, steps of 0.1 s instead
of 0.05), and edq_antmaze.py scores these data with D4RL's. In the locomotion sets the simulators are Gymnasium's
version 4, D4RL's physics. Of the kitchen's 60 numbers the last 30 are a constant goal, and are left out.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import h5py
import numpy as np
import storage
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze import maps
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)

FAMILIES = {  # simulator, its time limit, numbers of an observation and an action, D4RL's random and expert return
    "halfcheetah": ("HalfCheetah-v4", 1000, 17, 6, -280.178953, 12135.0),
    "hopper": ("Hopper-v4", 1000, 11, 3, -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1000, 17, 6, 1.629008, 4592.3),
    "antmaze-umaze": ("AntMaze_UMaze-v4", 700, 29, 8, 0.0, 1.0),
    "antmaze-medium": ("AntMaze_Medium-v4", 1000, 29, 8, 0.0, 1.0),
    "antmaze-large": ("AntMaze_Large-v4", 1000, 29, 8, 0.0, 1.0),
    "pen": ("AdroitHandPen-v1", 100, 45, 24, 96.262799, 3076.833102),
    "door": ("AdroitHandDoor-v1", 200, 39, 28, -56.512833, 2880.569309),
    "hammer": ("AdroitHandHammer-v1", 200, 46, 26, -274.856578, 12794.134825),
    "relocate": ("AdroitHandRelocate-v1", 200, 39, 30, -6.425911, 4233.877798),
    "kitchen": ("FrankaKitchen-v1", 280, 60, 9, 0.0, 4.0),
}
# D4RL's mazes are Gymnasium-Robotics' with rows counted upwards; all start in cell (1, 1), and end in (row, column).
MAZES = {
    "antmaze-umaze": (maps.U_MAZE, (3, 1)),
    "antmaze-medium": (maps.MEDIUM_MAZE, (6, 6)),
    "antmaze-large": (maps.LARGE_MAZE, (7, 9)),
}
FILE_NAMES = [  # what D4RL's server calls them
    (r"(hopper|halfcheetah)_mixed", r"\1-medium-replay-v0"),
    (r"walker_mixed", "walker2d-medium-replay-v0"),
    (r"(hopper|halfcheetah|walker2d)_([a-z_]+)", r"\1-\2-v0"),
    (r"(pen|door|hammer|relocate)-v0_demos_clipped", r"\1-human-v0"),
    (r"(pen|door|hammer|relocate)-v0_expert_clipped", r"\1-expert-v0"),
    (r"(pen|door|hammer|relocate)-demos-v0-bc-combined", r"\1-cloned-v0"),
    (r"mini_kitchen_microwave_kettle_light_slider-v0", "kitchen-complete-v0"),
    (r"kitchen_microwave_kettle_light_slider-v0", "kitchen-partial-v0"),
    (r"kitchen_microwave_kettle_bottomburner_light-v0", "kitchen-mixed-v0"),
    (r"Ant_maze_(u-maze|big-maze|hardest-maze)_noisy_multistart_(True|False)_multigoal_(True|False)_sparse(_fixed)?",
     lambda m: "antmaze-" + {"u-maze": "umaze", "big-maze": "medium", "hardest-maze": "large"}[m[1]]
     + ("-diverse" if m[3] == "True" else "-play" if m[2] == "True" else "") + ("-v2" if m[4] else "-v0")),
]  # fmt: skip


@dataclass
class Args:
    """Import one of D4RL's HDF5 files."""

    file: tyro.conf.Positional[Path]
    """the file: gym_mujoco_v2, antmaze v0 or v2, adroit v0 or v1, kitchen v0"""
    name: str | None = None
    """D4RL's name of it, such as hopper-medium-replay-v2; by default read off the file's name"""
    dataset_id: str | None = None
    """Minari id of the new dataset; by default d4rl/hopper/medium-replay-v2 and the like"""


def d4rl_name(file: Path, name: str | None) -> tuple[str, str]:
    """D4RL's name of a file and its family, a key of FAMILIES."""
    for pattern, proper in FILE_NAMES if name is None else []:
        if match := re.fullmatch(pattern, file.stem):
            name = proper(match) if callable(proper) else match.expand(proper)
            break
    name = (name or file.stem).lower().replace("_", "-")
    for family in FAMILIES:
        if re.fullmatch(family + r"(-[a-z-]+)?-v\d+", name):
            return name, family
    return storage.fail(
        f"{name} is no D4RL set that the scripts have a task for; give its name: --name hopper-medium-v2"
    )


def seams(terminals: np.ndarray, timeouts: np.ndarray | None, limit: int) -> np.ndarray:
    """Which rows `[N]` are dropped as the last of a timed-out episode."""
    if timeouts is not None:
        return timeouts
    dropped, step = np.zeros(len(terminals), bool), 0
    for i, terminal in enumerate(terminals):  # D4RL counts steps, and after a terminal begins with 1
        dropped[i] = step == limit - 1
        step = 0 if dropped[i] else 1 if terminal else step + 1
    return dropped


def spans(terminals: np.ndarray, dropped: np.ndarray, through_terminals: bool) -> Iterator[tuple[int, int]]:
    """Episodes as (first row, row after the last kept one); of each the row after it holds the last observation."""
    # AntMaze's terminals mark steps at the goal; its episodes go on through them.
    last, first = len(terminals) - 1, 0
    for i in np.flatnonzero(dropped | (terminals & (not through_terminals))):
        end = min(int(i) + (not dropped[i]), last)
        if end > first:
            yield first, end
        first = int(i) + 1
    if last > first:
        yield first, last


def goals_of(file: h5py.File, rewards: np.ndarray, centre: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, str]:
    """The goal `[N, 2]` that rewards refer to in D4RL's frame, and where it was found."""
    xy, rewarded = file["observations"][:, :2], np.flatnonzero(rewards[:-1] > 0)
    jumps = int((np.linalg.norm(np.diff(xy, axis=0), axis=1) > 2).sum())
    print(
        f"{jumps} steps move the ant by more than 2 m, {dropped.sum()} are timeouts: apart from ants that start where"
    )
    print("another ended the two should be equal; in some v0 files they are not (D4RL issue 77)")
    if "infos/goal" in file:  # where the ant was sent
        goal = file["infos/goal"][:].astype(np.float32)
        near = np.linalg.norm(xy[rewarded + 1] - goal[rewarded], axis=1) < 0.6
        if len(rewarded) == 0 or near.mean() >= 0.5:
            return goal, "infos/goal"
    # D4RL computed the rewards of most sets anew, for one goal near the centre of a cell: where they were given.
    source = "the middle of the rewarded places" if len(rewarded) else "the centre of the evaluation's goal cell"
    why = f", as infos/goal is near only {near.mean():.0%} of them" if "infos/goal" in file else ""
    one = np.median(xy[rewarded + 1], 0) if len(rewarded) else centre
    return np.broadcast_to(np.float32(one), (len(rewards), 2)), source + why


def episodes(file: h5py.File, family: str, limit: int) -> Iterator[dict]:
    """The file's episodes one by one, as `storage.save` wants them."""
    column = {key: file[key][:].reshape(-1) for key in ("rewards", "terminals", "timeouts") if key in file}
    terminals, rewards, maze = column["terminals"] > 0, column["rewards"].astype(np.float32), MAZES.get(family)
    dropped = seams(terminals, column["timeouts"] > 0 if "timeouts" in file else None, limit)
    if maze:  # from D4RL's frame, start cell at the origin, to Gymnasium-Robotics', middle of the maze at the origin
        shift = 6 - 2 * np.array([len(maze[0][0]), len(maze[0])], np.float32)
        goals, source = goals_of(file, rewards, 4 * np.array([maze[1][1] - 1, maze[1][0] - 1]), dropped)
        print(f"desired_goal is {source}")
    strange = 0
    for first, end in tqdm(list(spans(terminals, dropped, maze is not None)), unit="episode", disable=None):
        obs = file["observations"][first : end + 1].astype(np.float32)
        actions = file["actions"][first:end].astype(np.float32)
        if not all(np.isfinite(x).all() for x in (obs, actions, rewards[first:end])):
            raise ValueError(f"rows {first} to {end} hold NaN or infinite numbers")
        if "next_observations" in file:
            differ = np.abs(file["next_observations"][first:end] - obs[1:]).max(1) > 1e-4
            strange += int((differ & ~terminals[first:end]).sum())
        if maze:
            xy = obs[:, :2] + shift
            obs = {"observation": obs[:, 2:], "achieved_goal": xy, "desired_goal": goals[first : end + 1] + shift}
        last = np.arange(first, end) == end - 1
        yield {
            "observations": obs[:, :30] if family == "kitchen" else obs, "actions": actions,
            "rewards": rewards[first:end], "terminations": terminals[first:end],
            "truncations": last & ~terminals[first:end],
        }  # fmt: skip
    if strange:
        print(
            f"note: {strange} next_observations are not the next row; D4RL's function takes the next row, and so do we"
        )


def specs(name: str, family: str) -> tuple[EnvSpec, EnvSpec]:
    """Where the data come from and where a policy is scored."""
    spec = copy.deepcopy(gym.spec(FAMILIES[family][0]))
    spec.max_episode_steps = FAMILIES[family][1]
    if family == "kitchen":
        third = "bottom burner" if "mixed" in name else "slide cabinet"
        spec.kwargs["tasks_to_complete"] = ["microwave", "kettle", "light switch", third]
    scored = copy.deepcopy(spec)
    if family in MAZES:
        walls, goal = MAZES[family]
        mark = {(1, 1): "r", goal: "g"}
        marked = [[mark.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)]
        spec.kwargs |= dict(maze_map=walls[::-1], continuing_task=True, reset_target=False)
        scored.kwargs |= dict(maze_map=marked[::-1], continuing_task=False, reset_target=False)
    return spec, scored


def main(args: Args) -> None:
    name, family = d4rl_name(args.file, args.name)
    _, limit, obs_dim, act_dim, low, high = FAMILIES[family]
    head, _, rest = name.partition("-")
    dataset_id = args.dataset_id or f"d4rl/{head}/{rest}"
    folder = storage.folder_of(dataset_id)
    try:
        with h5py.File(args.file, rdcc_nbytes=2**26) as file:  # a cache that holds a row of chunks: read each once
            keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "infos/goal")
            if missing := [key for key in keys[:4] if not isinstance(file.get(key), h5py.Dataset)]:
                raise ValueError(f"it has no {' and no '.join(missing)}, so it is none of D4RL's")
            rows = {key: len(file[key]) for key in keys if isinstance(file.get(key), h5py.Dataset)}
            if len(set(rows.values())) > 1:
                raise ValueError(f"its columns have different lengths: {rows}")
            if wide := [key for key in rows if key in keys[2:5] and file[key].size != rows[key]]:
                raise ValueError(f"{' and '.join(wide)} hold more than a number a row")
            widths = tuple(file[key].shape[1:] for key in keys[:2])
            if widths != ((obs_dim,), (act_dim,)):
                raise ValueError(
                    f"{name} has {obs_dim} and {act_dim} numbers in an observation and an action, not {widths}"
                )
            metadata = storage.save(
                folder, dataset_id, episodes(file, family, limit), *specs(name, family), d4rl=name,
                ref_min_score=low, ref_max_score=high, algorithm_name="see D4RL", author=["D4RL authors"],
                description=f"D4RL's {name}, imported from {args.file.name}: the rows of its qlearning_dataset.",
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # what h5py makes of a damaged file
        storage.fail(f"cannot import {args.file}: {' '.join(str(error).split())}"[:300])
    count, steps = metadata["total_episodes"], metadata["total_steps"]
    print(f"{folder}: {steps} transitions in {count} episodes, of {rows['rewards']} rows")
    if name.startswith("antmaze-umaze-diverse"):
        print("note: this set rewards the first step at a goal only, the others every one (D4RL issue 199); kept so")
    if family == "kitchen":
        print("note: D4RL's kitchen rewards count the things done so far at every step; a score counts each once")
    print(f"use: --dataset-id {dataset_id}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
