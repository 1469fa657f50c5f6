"""Turn one of D4RL's own HDF5 files into a local dataset in Minari's format.

    python results/datasets/import_d4rl.py hopper_medium_replay-v2.hdf5
    python edq_mujoco.py --env-id hopper-medium-replay-d4rl

What a script then trains on are the transitions of D4RL's `qlearning_dataset`, row for row:
- The step at a timeout is dropped: its next observation is missing. A file without `timeouts` (the
  kitchen) has one where an episode reaches the task's time limit.
- The step at a terminal stays. Its next observation is the file's next row, the start of another
  episode; it has no weight, as no future follows. `next_observations` are only compared.
- The file's last row has no next observation, and is dropped.

AntMaze needs more. D4RL's 29 numbers are x, y, then Gymnasium's 27; its origin is the start cell,
its rows go up where Gymnasium-Robotics' go down. So x and y are moved (by whole metres), and the
maze in the metadata is D4RL's upside down: no number of an observation or action is mirrored. The
ant itself differs (a fifth of the torque, steps of 0.1 s instead of 0.05), and edq_antmaze.py
scores these data with D4RL's. In the locomotion sets the environments are Gymnasium's version 4,
D4RL's physics. Of the kitchen's 60 numbers the last 30 are a constant goal, and are left out.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import gymnasium_robotics
import h5py
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze import maps
from minari_writer import fail, folder_of, save
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)


class Family(NamedTuple):
    """What the files of one environment have in common."""

    env_id: str
    limit: int  # steps of an episode
    obs_dim: int
    act_dim: int
    random_return: float  # D4RL's, for scores
    expert_return: float


FAMILIES = {
    "halfcheetah": Family("HalfCheetah-v4", 1000, 17, 6, -280.178953, 12135.0),
    "hopper": Family("Hopper-v4", 1000, 11, 3, -20.272305, 3234.3),
    "walker2d": Family("Walker2d-v4", 1000, 17, 6, 1.629008, 4592.3),
    "antmaze-umaze": Family("AntMaze_UMaze-v4", 700, 29, 8, 0.0, 1.0),
    "antmaze-medium": Family("AntMaze_Medium-v4", 1000, 29, 8, 0.0, 1.0),
    "antmaze-large": Family("AntMaze_Large-v4", 1000, 29, 8, 0.0, 1.0),
    "pen": Family("AdroitHandPen-v1", 100, 45, 24, 96.262799, 3076.833102),
    "door": Family("AdroitHandDoor-v1", 200, 39, 28, -56.512833, 2880.569309),
    "hammer": Family("AdroitHandHammer-v1", 200, 46, 26, -274.856578, 12794.134825),
    "relocate": Family("AdroitHandRelocate-v1", 200, 39, 30, -6.425911, 4233.877798),
    "kitchen": Family("FrankaKitchen-v1", 280, 60, 9, 0.0, 4.0),
}
HANDS = ("pen", "door", "hammer", "relocate")
# D4RL's mazes are Gymnasium-Robotics' with rows counted upwards, and the cell (row, column) of the
# evaluation's goal; all start in cell (1, 1).
MAZES = {
    "antmaze-umaze": (maps.U_MAZE, (3, 1)),
    "antmaze-medium": (maps.MEDIUM_MAZE, (6, 6)),
    "antmaze-large": (maps.LARGE_MAZE, (7, 9)),
}
FILE_NAMES = {  # what D4RL's server calls them
    r"(hopper|halfcheetah)_mixed": r"\1-medium-replay-v0",
    r"walker_mixed": r"walker2d-medium-replay-v0",
    r"(hopper|halfcheetah|walker2d)_([a-z_]+)": r"\1-\2-v0",
    r"(pen|door|hammer|relocate)-v0_demos_clipped": r"\1-human-v0",
    r"(pen|door|hammer|relocate)-v0_expert_clipped": r"\1-expert-v0",
    r"(pen|door|hammer|relocate)-demos-v0-bc-combined": r"\1-cloned-v0",
    r"mini_kitchen_microwave_kettle_light_slider-v0": r"kitchen-complete-v0",
    r"kitchen_microwave_kettle_light_slider-v0": r"kitchen-partial-v0",
    r"kitchen_microwave_kettle_bottomburner_light-v0": r"kitchen-mixed-v0",
}
ANT_FILE = re.compile(
    r"Ant_maze_(?P<maze>u-maze|big-maze|hardest-maze)_noisy"
    r"_multistart_(?P<starts>True|False)_multigoal_(?P<goals>True|False)_sparse(?P<fixed>_fixed)?"
)
ANT_MAZES = {"u-maze": "umaze", "big-maze": "medium", "hardest-maze": "large"}
COLUMNS = (
    "observations",
    "actions",
    "rewards",
    "terminals",
    "timeouts",
    "next_observations",
    "infos/goal",
)
REQUIRED = COLUMNS[:4]
SCALARS = COLUMNS[2:5]


@dataclass
class Args:
    """Import one of D4RL's HDF5 files."""

    file: tyro.conf.Positional[Path]
    """the file: gym_mujoco_v2, antmaze v0 or v2, adroit v0 or v1, kitchen v0"""
    name: str | None = None
    """D4RL's name of it, such as hopper-medium-replay-v2; by default read off the file's name"""
    dataset_id: str | None = None
    """Minari id of the new dataset; by default d4rl/hopper/medium-replay-v2 and the like"""


def name_of_file(stem: str) -> str:
    """D4RL's name of a file of its server, or the stem itself."""
    for pattern, name in FILE_NAMES.items():
        if match := re.fullmatch(pattern, stem):
            return match.expand(name)
    match = ANT_FILE.fullmatch(stem)
    if not match:
        return stem
    if match["goals"] == "True":
        kind = "-diverse"
    elif match["starts"] == "True":
        kind = "-play"
    else:
        kind = ""
    version = "v2" if match["fixed"] else "v0"
    return f"antmaze-{ANT_MAZES[match['maze']]}{kind}-{version}"


def d4rl_name(file: Path, name: str | None) -> tuple[str, str]:
    """D4RL's name of a file and its family, a key of FAMILIES."""
    name = (name or name_of_file(file.stem)).lower().replace("_", "-")
    for family in FAMILIES:
        if re.fullmatch(family + r"(-[a-z-]+)?-v\d+", name):
            return name, family
    return fail(f"{name} is no D4RL set of a task of ours; give its name: --name hopper-medium-v2")


def timeouts_by_count(terminals: np.ndarray, limit: int) -> np.ndarray:
    """Where D4RL assumes a timeout in a file without them, `[N]`."""
    timeouts = np.zeros(len(terminals), bool)
    step = 0
    for i, terminal in enumerate(terminals):
        if step == limit - 1:
            timeouts[i] = True
            step = 0
        elif terminal:
            step = 1  # as D4RL counts: after a terminal it begins with 1
        else:
            step += 1
    return timeouts


def spans(
    terminals: np.ndarray, timeouts: np.ndarray, through_terminals: bool
) -> Iterator[tuple[int, int]]:
    """Episodes as (first row, end); the last observation of each is row `end`.

    A timeout's row is dropped, so it only gives the last observation. AntMaze's terminals mark
    steps at the goal, and its episodes go on through them.
    """
    last = len(terminals) - 1
    seams = timeouts if through_terminals else timeouts | terminals
    first = 0
    for i in np.flatnonzero(seams).tolist():
        end = min(i if timeouts[i] else i + 1, last)
        if end > first:
            yield first, end
        first = i + 1
    if last > first:
        yield first, last


def goals_of(
    file: h5py.File, rewards: np.ndarray, centre: np.ndarray, timeouts: np.ndarray
) -> tuple[np.ndarray, str]:
    """The goal `[N, 2]` that rewards refer to in D4RL's frame, and where it was found.

    A step is rewarded where it ends, in the next row. After a timeout, and after a jump, the next
    row is the start of another episode and says nothing of the goal.
    """
    xy = file["observations"][:, :2]
    jumps = np.linalg.norm(np.diff(xy, axis=0), axis=1) > 2
    print(
        f"{jumps.sum()} steps move the ant by more than 2 m, {timeouts.sum()} are timeouts: apart "
        "from ants that start where\nanother ended the two should be equal; in some v0 files they "
        "are not (D4RL issue 77)"
    )
    rewarded = np.flatnonzero((rewards[:-1] > 0) & ~timeouts[:-1] & ~jumps)
    places = xy[rewarded + 1]
    why = ""
    if "infos/goal" in file:  # where the ant was sent
        sent = file["infos/goal"][:].astype(np.float32)
        distance = np.linalg.norm(places - sent[rewarded], axis=1)
        near = (distance < 0.6).mean() if len(places) else 1.0
        if near >= 0.5:
            return sent, "infos/goal"
        why = f", as infos/goal is near only {near:.0%} of them"
    # D4RL computed the rewards of most sets anew, for one goal near the centre of a cell.
    if len(places):
        one = np.median(places, 0)
        source = f"the middle of the rewarded places{why}"
    else:
        one = centre
        source = "the centre of the evaluation's goal cell"
    return np.broadcast_to(np.float32(one), (len(rewards), 2)), source


def episodes(file: h5py.File, family: str) -> Iterator[dict]:
    """The file's episodes one by one, as `save` wants them."""
    rewards = file["rewards"][:].reshape(-1).astype(np.float32)
    terminals = file["terminals"][:].reshape(-1) > 0
    if "timeouts" in file:
        timeouts = file["timeouts"][:].reshape(-1) > 0
    else:
        timeouts = timeouts_by_count(terminals, FAMILIES[family].limit)
    is_maze = family in MAZES
    if is_maze:
        walls, (row, column) = MAZES[family]
        # From the start cell at the origin to the middle of the maze at the origin.
        shift = 6 - 2 * np.array([len(walls[0]), len(walls)], np.float32)
        centre = 4 * np.array([column - 1, row - 1])
        goals, source = goals_of(file, rewards, centre, timeouts)
        print(f"desired_goal is {source}")
    strange = 0
    found = list(spans(terminals, timeouts, through_terminals=is_maze))
    for first, end in tqdm(found, unit="episode", disable=None):
        obs = file["observations"][first : end + 1].astype(np.float32)
        actions = file["actions"][first:end].astype(np.float32)
        if not all(np.isfinite(x).all() for x in (obs, actions, rewards[first:end])):
            raise ValueError(f"rows {first} to {end} hold NaN or infinite numbers")
        ends = terminals[first:end]
        if "next_observations" in file:
            error = np.abs(file["next_observations"][first:end] - obs[1:]).max(1)
            strange += int(((error > 1e-4) & ~ends).sum())
        if is_maze:
            obs = {
                "observation": obs[:, 2:],
                "achieved_goal": obs[:, :2] + shift,
                "desired_goal": goals[first : end + 1] + shift,
            }
        elif family == "kitchen":
            obs = obs[:, :30]
        is_last = np.arange(first, end) == end - 1
        yield {
            "observations": obs,
            "actions": actions,
            "rewards": rewards[first:end],
            "terminations": ends,
            "truncations": is_last & ~ends,
        }
    if strange:
        print(
            f"note: {strange} next_observations are not the next row; "
            "D4RL's function takes the next row, and so do we"
        )


def specs(name: str, family: str) -> tuple[EnvSpec, EnvSpec]:
    """Where the data come from and where a policy is scored."""
    spec = copy.deepcopy(gym.spec(FAMILIES[family].env_id))
    spec.max_episode_steps = FAMILIES[family].limit
    if family == "kitchen":
        third = "bottom burner" if "mixed" in name else "slide cabinet"
        spec.kwargs["tasks_to_complete"] = ["microwave", "kettle", "light switch", third]
    scored = copy.deepcopy(spec)
    if family in MAZES:
        walls, goal = MAZES[family]
        marks = {(1, 1): "r", goal: "g"}
        marked = [
            [marks.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)
        ]
        spec.kwargs |= {"maze_map": walls[::-1], "continuing_task": True}
        scored.kwargs |= {"maze_map": marked[::-1], "continuing_task": False}
        spec.kwargs["reset_target"] = False
        scored.kwargs["reset_target"] = False
    return spec, scored


def check_layout(file: h5py.File, name: str, family: Family) -> int:
    """Raise unless the file has D4RL's layout; returns its number of rows."""
    missing = [key for key in REQUIRED if not isinstance(file.get(key), h5py.Dataset)]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}, so it is none of D4RL's")
    columns = [key for key in COLUMNS if isinstance(file.get(key), h5py.Dataset)]
    rows = {key: len(file[key]) for key in columns}
    if len(set(rows.values())) > 1:
        raise ValueError(f"its columns have different lengths: {rows}")
    wide = [key for key in columns if key in SCALARS and file[key].size != rows[key]]
    if wide:
        raise ValueError(f"{' and '.join(wide)} hold more than a number a row")
    widths = (file["observations"].shape[1:], file["actions"].shape[1:])
    expected = ((family.obs_dim,), (family.act_dim,))
    if widths != expected:
        raise ValueError(
            f"{name} has {family.obs_dim} and {family.act_dim} numbers in an observation and an "
            f"action, not {widths}"
        )
    return rows["rewards"]


def main(args: Args) -> None:
    path = args.file.expanduser()
    name, family = d4rl_name(path, args.name)
    robot, _, rest = name.partition("-")
    dataset_id = args.dataset_id or f"d4rl/{robot}/{rest}"
    folder = folder_of(dataset_id)
    try:
        # A cache that holds a row of chunks, so that each is read once.
        with h5py.File(path, rdcc_nbytes=2**26) as file:
            rows = check_layout(file, name, FAMILIES[family])
            env, eval_env = specs(name, family)
            metadata = save(
                folder,
                dataset_id,
                episodes(file, family),
                env,
                eval_env,
                tool=Path(__file__).name,
                d4rl=name,
                ref_min_score=FAMILIES[family].random_return,
                ref_max_score=FAMILIES[family].expert_return,
                algorithm_name="see D4RL",
                author=["D4RL authors"],
                description=f"D4RL's {name}, imported from {path.name}: the rows of its "
                "qlearning_dataset.",
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # What h5py makes of a damaged file.
        fail(f"cannot import {path}: {' '.join(str(error).split())}"[:300])
    count = metadata["total_episodes"]
    print(f"{folder}: {metadata['total_steps']} transitions in {count} episodes, of {rows} rows")
    if name.startswith("antmaze-umaze-diverse"):
        print("note: this set rewards the first step at a goal only (D4RL issue 199); kept so")
    if family == "kitchen":
        print("note: D4RL's kitchen rewards count what is done so far; a score counts each once")
    task, _, _ = name.rpartition("-v")
    if family not in HANDS:  # the others' simulators differ from Minari's
        task += "-d4rl"
    print(f"use: --env-id {task} --dataset-id {dataset_id}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
