"""Record AntMaze sets with D4RL's recipe: a walker over a trained ant. No download is needed.

A breadth-first search knows, for every cell of the maze, the next one on a shortest way to the
goal. Its centre, moved by up to 0.4 m, is the waypoint until the ant is within 1 m of it; the last
waypoint is the goal itself. A small network that has learnt to run to a point (train_ant.py) walks
to the waypoint, with normal noise on its torques. The goal stays after an arrival, and the ant
circles there until the episode is over.

    python results/datasets/make_antmaze.py --task large-diverse
    python results/datasets/make_antmaze.py --task umaze --form minari d4rl

The form says what is rewarded and shown. Both can be written from one recording.
- minari: the walker's own goal, as in Minari's D4RL/antmaze sets. Reward 1 within 0.45 m of it.
- d4rl: the goal of the evaluation, as in D4RL's own sets, wherever the walker was sent. Reward 1
  within 0.5 m of the centre of its cell, `desired_goal` is constant, and the walker's goals are not
  shown. A rewarded step is terminal, as in D4RL's `qlearning_dataset`, but its episode goes on, and
  episodes that never pass the goal stay in.

Starts and the walker's goals are those of the script that made Minari's sets: one of each, those of
the evaluation, in umaze; all free cells in umaze-diverse and in the two *play* sets; the maze's own
hand-picked cells (`*_DIVERSE_GR`) in the other *diverse* sets. (In D4RL's paper it is *play* that
has the hand-picked ones.) Both are moved by up to 1 m within their cell. The evaluation environment
has one start and one goal, and ends on arrival.

These are rebuilt sets, not the published data: another ant, faster; float32 instead of float64; of
the infos only success, since qpos and qvel are in the observations (qpos = achieved_goal +
observation[:13], qvel = observation[13:]). Every episode keeps its seed: reset the recovered
environment with it and repeat the actions.

Equal arrays for the same arguments on one machine, for any number of processes. Twenty episodes are
a group, which walks in lockstep: the network runs once a step for all of them, and the bare
simulator is stepped instead of the environment. Finished groups wait in a hidden folder beside the
dataset, where a second start finds them.
"""

import copy
import fcntl
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze import maps
from minari_writer import fail, folder_of, mark_namespaces, new_file, save
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)
ROOT = Path(__file__).resolve().parents[2]
ANT = Path(__file__).with_name("ant_goal.npz")


class Task(NamedTuple):
    """Where the walker walks, and where a policy is scored. Cells are (row, column)."""

    env_id: str
    cells: list | None  # the map of the data; None: that of the evaluation
    steps: int  # of an episode
    start: tuple[int, int]  # of the evaluation
    goal: tuple[int, int]


TASKS = {
    "umaze": Task("AntMaze_UMaze-v4", None, 700, (3, 1), (1, 1)),
    "umaze-diverse": Task("AntMaze_UMaze-v4", maps.U_MAZE, 700, (3, 1), (1, 1)),
    "medium-play": Task("AntMaze_Medium-v4", maps.MEDIUM_MAZE, 1000, (1, 1), (6, 6)),
    "medium-diverse": Task(
        "AntMaze_Medium_Diverse_GR-v4",
        maps.MEDIUM_MAZE_DIVERSE_GR,
        1000,
        (1, 1),
        (6, 6),
    ),
    "large-play": Task("AntMaze_Large-v4", maps.LARGE_MAZE, 1000, (1, 1), (7, 9)),
    "large-diverse": Task(
        "AntMaze_Large_Diverse_GR-v4",
        maps.LARGE_MAZE_DIVERSE_GR,
        1000,
        (1, 1),
        (7, 9),
    ),
}
GROUP = 20  # episodes in lockstep; another number would change the last digits, so all the data
CELL = 4.0  # metres, as all lengths here
RADIUS = {"minari": 0.45, "d4rl": 0.5}  # how near the goal a step is rewarded
NEAR = 1.0  # where a waypoint is reached
JITTER = 0.4  # how far a waypoint is moved from its cell's centre
FLIP = np.array(  # [leg, hip or ankle]: two ankles bend inversely
    [
        [1, 1],
        [1, -1],
        [1, -1],
        [1, 1],
    ]
)
SUFFIX = {"minari": "", "d4rl": "-d4rl"}


@dataclass
class Args:
    """Record AntMaze datasets."""

    task: Literal[
        "umaze",
        "umaze-diverse",
        "medium-play",
        "medium-diverse",
        "large-play",
        "large-diverse",
    ] = "large-diverse"
    """maze, starts and goals"""
    form: tuple[Literal["minari", "d4rl"], ...] = ("minari",)
    """what is rewarded and shown: the walker's goal, that of the evaluation, or a set of each"""
    transitions: int = 1_000_000
    """number of transitions, rounded up to whole episodes"""
    seed: int = 0
    """seed of starts, goals, waypoints and noise"""
    processes: int = 0
    """how many groups are recorded side by side, one thread each; 0: as many as there are cores"""
    action_noise: float = 0.2
    """std of the normal noise added to every torque, before clipping to [-1, 1]"""
    dataset_id: tuple[str, ...] = ()
    """one for each form; by default edq/antmaze/TASK-v0 and edq/antmaze/TASK-d4rl-v0"""
    record: Path | None = None
    """new CSV file with the figures of each set"""
    length: int | None = None
    """steps of an episode; by default 700 in umaze, else 1000"""


def features(obs: np.ndarray, rel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations `[B, 27]` and the way to the target `[B, 2]` as the network sees them.

    An ant looks the same after a quarter turn about its own axis. So everything is told in its own
    frame, and the legs are renumbered by k quarter turns such that the target lies within 45
    degrees of the front: one gait is enough. Returns features `[B, 30]` and k `[B]`.
    """
    w, x, y, z = obs[:, 1:5].T
    body_to_world = 2 * np.array([
        [0.5 - y * y - z * z, x * y - w * z, x * z + w * y],
        [x * y + w * z, 0.5 - x * x - z * z, y * z - w * x],
        [x * z - w * y, y * z + w * x, 0.5 - x * x - y * y],
    ])  # [3, 3, B]  # fmt: skip
    distance = np.maximum(np.hypot(*rel.T), 1e-9)
    zero = np.zeros(len(obs))
    upwards = [zero, zero, zero + 1]
    ahead = [*(rel.T / distance), zero]
    world = np.array([upwards, ahead, obs[:, 13:16].T])  # [vector, axis, B]
    body = np.einsum("ijb,vib->vjb", body_to_world, world)
    spin = obs[None, :, 16:19].mT  # of the body already
    body = np.concatenate([body, spin])
    angle = np.arctan2(body[1, 1], body[1, 0])  # of the target
    k = np.rint(angle / (np.pi / 2)).astype(int) % 4
    cos = np.array([1, 0, -1, 0])[k]
    sin = np.array([0, 1, 0, -1])[k]
    x, y, z = body.transpose(1, 0, 2)
    front = cos * x + sin * y
    left = cos * y - sin * x
    up, ahead, speed, spin = np.stack([front, left, z], 2)  # [B, 3] each
    angles = obs[:, 5:13]
    speeds = obs[:, 19:27]
    legs = np.stack([angles, speeds], 1)  # [B, angle or speed, 8]
    legs = legs.reshape(-1, 2, 4, 2) * FLIP  # [B, angle or speed, leg, joint]
    rows = np.arange(len(obs))[:, None]
    turned = (np.arange(4) + k[:, None]) % 4
    legs = legs[rows, :, turned]  # [B, leg, angle or speed, joint]
    legs = legs.transpose(0, 2, 3, 1).reshape(-1, 16)
    height = obs[:, :1]
    far = np.minimum(distance, 8)[:, None]
    return np.concatenate([height, up, ahead, far, speed, spin, legs], 1), k


def torques(out: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The network's output `[B, 8]`, hips then ankles as seen from the target, as an action."""
    order = np.array([3, 0, 1, 2])  # the ant's motors begin with the fourth leg
    rows = np.arange(len(out))[:, None]
    turned = (order - k[:, None]) % 4
    legs = out.reshape(-1, 2, 4)[rows, :, turned]  # [B, leg, joint]
    legs = legs * FLIP[order]
    return legs.reshape(-1, 8)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Of an npz file: the network's weights, or the episodes of a group. Nothing in it is run."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def act(ant: dict[str, np.ndarray], obs: np.ndarray, rel: np.ndarray) -> np.ndarray:
    """Torques `[B, 8]` that walk towards the targets. Another B gives other last digits."""
    x, k = features(obs, rel)
    x = (x - ant["mean"]) / ant["std"]
    x = np.clip(x, -10, 10).astype(np.float32)
    for i in range(2):
        x = x @ ant[f"W{i}"] + ant[f"b{i}"]
        x = x / (1 + np.exp(-x))
    out = x @ ant["W2"] + ant["b2"]
    return torques(np.clip(out, -1, 1), k)


def specs(task: str, length: int | None = None) -> tuple[EnvSpec, EnvSpec]:
    """The environment of the data, and that of the evaluation."""
    env_id, cells, steps, start, goal = TASKS[task]
    env = copy.deepcopy(gym.spec(env_id))
    eval_env = copy.deepcopy(gym.spec(env_id.replace("_Diverse_GR", "")))
    walls = eval_env.kwargs["maze_map"]
    scored = [list(line) for line in walls]
    for (row, column), mark in ((start, "r"), (goal, "g")):
        scored[row][column] = mark
    env.kwargs |= {
        "maze_map": cells or scored,
        "continuing_task": True,
        "reset_target": False,
    }
    eval_env.kwargs |= {
        "maze_map": scored,
        "continuing_task": False,
        "reset_target": False,
    }
    env.max_episode_steps = length or steps
    return env, eval_env


def walls_of(env: EnvSpec) -> np.ndarray:
    """Where the walls are, `[rows, columns]`."""
    return np.array([[cell == 1 for cell in line] for line in env.kwargs["maze_map"]])


def cells_at(xy: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Cells `[..., (row, column)]` of positions `[..., 2]`; rows count downwards from the top."""
    rows, columns = walls.shape
    row = rows / 2 - xy[..., 1] / CELL
    column = columns / 2 + xy[..., 0] / CELL
    return np.floor(np.stack([row, column], -1)).astype(int)


def centre_of(cell: tuple[int, int], walls: np.ndarray) -> np.ndarray:
    """Its position, `[2]`; the middle of the maze is the origin."""
    rows, columns = walls.shape
    row, column = cell
    x = column + 0.5 - columns / 2
    y = rows / 2 - row - 0.5
    return CELL * np.array([x, y])


def way_to(goal: tuple[int, int], walls: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    """For every cell from which the goal can be reached, the next one on a shortest way.

    The cell after the goal's own is itself.
    """
    following = {goal: goal}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        i, j = cell
        for near in ((i, j + 1), (i + 1, j), (i, j - 1), (i - 1, j)):
            if not walls[near] and near not in following:
                following[near] = cell
                queue.append(near)
    return following


@functools.cache
def make_env(task: str, length: int) -> gym.Env:
    """The environment of the data, once in a process."""
    spec, _ = specs(task, length)
    env = gym.make(spec, disable_env_checker=True)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    return env


class Walkers:
    """The waypoints of ants that walk side by side, each to a goal of its own."""

    def __init__(
        self,
        goals: np.ndarray,
        walls: np.ndarray,
        rngs: list[np.random.Generator],
    ):
        self.goals = goals
        self.walls = walls
        self.rngs = rngs
        cells = cells_at(goals, walls).tolist()
        self.ways = [way_to(tuple(cell), walls) for cell in cells]
        self.aims = np.full((len(goals), 2), -9)  # cells; at first every ant is lost
        self.targets = np.zeros((len(goals), 2))  # positions

    def follow(self, xy: np.ndarray) -> np.ndarray:
        """Where ants at `[N, 2]` run to now, `[N, 2]`."""
        here = cells_at(xy, self.walls)
        # Not next to the cell it aims at: sent to the next one from where it is.
        lost = np.abs(here - self.aims).sum(1) > 1
        near = np.hypot(*(self.targets - xy).T) < NEAR
        under_way = (self.targets != self.goals).any(1)
        for i in np.flatnonzero(lost | near & under_way):
            way = self.ways[i]
            cell = here[i] if lost[i] else self.aims[i]
            aim = way[tuple(cell.tolist())]
            self.aims[i] = aim
            shift = self.rngs[i].uniform(-JITTER, JITTER, 2)
            if way[aim] == aim:
                self.targets[i] = self.goals[i]
            else:
                self.targets[i] = centre_of(aim, self.walls) + shift
        return self.targets


def record_group(
    task: str,
    length: int,
    seed: int,
    noise: float,
    first: int,
    count: int,
    part: Path,
) -> int:
    """Record `count` episodes from number `first` on, in lockstep, and store them in `part`.

    Returns the number of steps.
    """
    env = make_env(task, length).unwrapped
    ant = load_arrays(ANT)
    rngs = [np.random.default_rng([seed, first + i]) for i in range(count)]
    seeds = [int(rng.integers(2**31)) for rng in rngs]
    drawn = [rng.normal(size=(length, 8)) for rng in rngs]
    noises = noise * np.stack(drawn, 1)  # [N, count, 8]
    data = [mujoco.MjData(env.model) for _ in range(count)]
    states = np.zeros((length + 1, GROUP, 29))  # qpos and qvel; rows from count on stay unused
    actions = np.zeros((length, count, 8), np.float32)
    goals = np.zeros((count, 2))
    for i, of_ant in enumerate(data):
        obs, _ = env.reset(seed=seeds[i])
        goals[i] = obs["desired_goal"]
        of_ant.qpos[:] = env.data.qpos
        of_ant.qvel[:] = env.data.qvel
        mujoco.mj_forward(env.model, of_ant)  # as the environment does
        states[0, i, :15] = of_ant.qpos
        states[0, i, 15:] = of_ant.qvel
    spec, _ = specs(task)
    walkers = Walkers(goals, walls_of(spec), rngs)
    rel = np.ones((GROUP, 2))
    for t in range(length):
        xy = states[t, :count, :2]
        rel[:count] = walkers.follow(xy) - xy
        torque = act(ant, states[t, :, 2:], rel)
        # Rounded to float32 before the step: so the stored actions repeat the very same episode.
        actions[t] = np.clip(torque[:count] + noises[t], -1, 1)
        for i, of_ant in enumerate(data):
            of_ant.ctrl[:] = actions[t, i]
            mujoco.mj_step(env.model, of_ant, nstep=5)
            states[t + 1, i, :15] = of_ant.qpos
            states[t + 1, i, 15:] = of_ant.qvel
    states = states[:, :count].swapaxes(0, 1)  # [count, N + 1, 29]
    distance = np.linalg.norm(states[..., :2] - goals[:, None], axis=-1)
    unfinished = part.with_suffix(".tmp")
    with open(unfinished, "wb") as file:
        np.savez(
            file,
            states=states.astype(np.float32),
            goals=goals.astype(np.float32),
            seeds=np.array(seeds),
            success=distance <= RADIUS["minari"],
            actions=actions.swapaxes(0, 1),
        )
    os.replace(unfinished, part)  # a part is whole or not there
    return count * length


def episodes_of(parts: list[Path], form: str, goal: np.ndarray) -> Iterator[dict]:
    """All episodes in order, one part in memory at a time; `goal` is that of the evaluation."""
    goal = goal.astype(np.float32)
    for part in parts:
        group = load_arrays(part)
        for i, seed in enumerate(group["seeds"].tolist()):
            states = group["states"][i]
            actions = group["actions"][i]
            xy = states[:, :2]
            count = len(actions)
            if form == "minari":
                shown = group["goals"][i]
                success = group["success"][i]
                ends = np.zeros(count, bool)
            else:
                shown = goal
                distance = np.linalg.norm(xy - goal, axis=1)
                success = distance <= RADIUS["d4rl"]
                ends = success[1:]
            yield {
                "observations": {
                    "observation": states[:, 2:],
                    "achieved_goal": xy,
                    "desired_goal": np.tile(shown, (count + 1, 1)),
                },
                "actions": actions,
                "rewards": success[1:].astype(float),
                "terminations": ends,
                "truncations": np.arange(count) == count - 1,
                "infos": {"success": success},
                "seed": seed,
            }


class Figures:
    """What is told and recorded of a set, gathered while it is written."""

    def __init__(self, walls: np.ndarray):
        self.walls = walls
        self.digest = hashlib.sha256()
        self.cells = set()  # visited
        self.squares = set()  # of 1 m, visited
        self.episodes = 0
        self.steps = 0
        self.arrived = 0  # episodes
        self.rewarded = 0  # steps
        self.flipped = 0  # steps

    def watch(self, episodes: Iterator[dict]) -> Iterator[dict]:
        """Hand on the episodes and count."""
        for episode in episodes:
            obs = episode["observations"]
            xy = obs["achieved_goal"]
            states = np.concatenate([xy, obs["observation"]], 1)
            arrays = [
                states,
                obs["desired_goal"][0],
                episode["actions"],
                episode["infos"]["success"],
            ]
            for array in arrays:
                self.digest.update(array.tobytes())
            cells = cells_at(xy, self.walls)
            squares = np.floor(xy).astype(int)
            self.cells.update(map(tuple, cells.tolist()))
            self.squares.update(map(tuple, squares.tolist()))
            rewards = episode["rewards"]
            self.episodes += 1
            self.steps += len(rewards)
            self.arrived += int(rewards.any())
            self.rewarded += int(rewards.sum())
            tilt = np.square(states[1:, 4:6]).sum(1)
            flipped = 2 * tilt > 1  # the torso's own z axis points downwards
            self.flipped += int(flipped.sum())
            yield episode

    def row(self) -> dict:
        return {
            "transitions": self.steps,
            "episodes": self.episodes,
            "success": round(self.arrived / self.episodes, 4),
            "reward_share": round(self.rewarded / self.steps, 4),
            "upside_down": round(self.flipped / self.steps, 4),
            "cells": len(self.cells),
            "free_cells": int((~self.walls).sum()),
            "squares": len(self.squares),
            "hash": self.digest.hexdigest()[:16],
        }


def end_with_parent() -> None:
    """In a worker: stop when the parent is gone, however it went."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def record_groups(jobs: list[tuple], done: int, total: int, processes: int) -> None:
    """Record the groups that are missing, in processes of their own."""
    # The workers fill the cores already.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, end_with_parent)
    bar = tqdm(total=total, initial=done, unit="step", disable=None)
    with pool, bar:
        try:
            # Ignored while workers start, and so by them: Ctrl-C is for the parent alone.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            futures = [pool.submit(record_group, *job) for job in jobs]
            signal.signal(signal.SIGINT, handler)
            for future in as_completed(futures):
                bar.update(future.result())
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def remove_work(work: Path, parts: list[Path]) -> None:
    """Remove our own files, by name; a folder with anything else in it stays."""
    for part in parts:
        part.unlink(missing_ok=True)
        part.with_suffix(".tmp").unlink(missing_ok=True)
    (work / "lock").unlink()
    try:
        work.rmdir()
    except OSError as error:
        print(f"{work} stays: {error}")


def work_folder(parent: Path, *arguments: object) -> Path:
    """Where finished groups wait; parts of another ant, program or version are of no use."""
    key = repr((*arguments, mujoco.__version__, np.__version__)).encode()
    digest = hashlib.sha256(key)
    digest.update(ANT.read_bytes())
    digest.update(Path(__file__).read_bytes())
    work = parent / f".unfinished-antmaze-{digest.hexdigest()[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    return work


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def write_set(
    args: Args,
    form: str,
    folder: Path,
    dataset_id: str,
    parts: list[Path],
) -> dict:
    """Write one dataset from the recorded groups; returns its figures."""
    env, eval_env = specs(args.task, args.length)
    walls = walls_of(env)
    figures = Figures(walls)
    goal = centre_of(TASKS[args.task].goal, walls)
    episodes = episodes_of(parts, form, goal)
    save(
        folder,
        dataset_id,
        figures.watch(episodes),
        env,
        eval_env,
        tool=Path(__file__).name,
        ref_min_score=0.0,
        ref_max_score=1.0,
        fixed_goal=form == "d4rl",
        algorithm_name="breadth-first waypoints + PPO ant",
        description=f"AntMaze {args.task} in the form of {form}, rebuilt with D4RL's recipe, not "
        f"the published data. Action noise {args.action_noise}, seed {args.seed}.",
    )
    about = {
        "dataset": dataset_id,
        "task": args.task,
        "form": form,
        "seed": args.seed,
    }
    return about | figures.row()


def collect(args: Args) -> list[dict]:
    """Record all groups that are not there yet, then write a dataset a form; returns figures."""
    length = args.length or TASKS[args.task].steps
    usual = [f"edq/antmaze/{args.task}{SUFFIX[form]}-v0" for form in args.form]
    ids = args.dataset_id or usual
    names = " and ".join(ids)
    folders = [folder_of(dataset_id) for dataset_id in ids]
    count = -(-args.transitions // length)
    same = (args.task, length, args.seed, args.action_noise)
    work = work_folder(folders[0].parent, *same, count)
    with open(work / "lock", "w") as lock:
        try:  # the system frees the lock when this process ends, whatever way
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"another process is at work on {names} already")
        parts = []
        missing = []  # jobs
        total = length * count
        done = 0
        for first in range(0, count, GROUP):
            size = min(GROUP, count - first)
            part = work / f"{first:07}.npz"
            parts.append(part)
            if part.exists():
                done += length * size
            else:
                missing.append((*same, first, size, part))
        wanted = args.processes or usable_cores()
        processes = max(1, min(wanted, len(missing)))
        found = f"; {done} are there already" if done else ""
        print(
            f"{names}: {count} episodes of {length} steps, {total} transitions{found}; "
            f"{processes} processes"
        )
        began = time.time()
        record_groups(missing, done, total, processes)
        seconds = time.time() - began
        speed = {
            "seconds": round(seconds, 1),
            "steps_per_second": round((total - done) / seconds),
            "processes": processes,
        }
        new = [work / f"set-{form}" for form in args.form]
        rows = []
        for form, dataset_id, folder in zip(args.form, ids, new):
            row = write_set(args, form, folder, dataset_id, parts)
            rows.append(row | speed)
        for dataset_id, source, folder in zip(ids, new, folders):
            folder_of(dataset_id)  # once more: recording takes minutes
            os.rename(source, folder)
            mark_namespaces(folder)
        remove_work(work, parts)
    return rows


def check(args: Args) -> None:
    """Refuse arguments that cannot be meant."""
    if not args.form or len(set(args.form)) < len(args.form):
        fail("--form is minari, d4rl, or one of each")
    if args.dataset_id and len(args.dataset_id) != len(args.form):
        fail("--dataset-id takes one id for each form")
    if args.transitions < 1 or args.seed < 0 or args.processes < 0:
        fail("transitions start at 1, seed and processes at 0")
    if args.length is not None and args.length < 1:
        fail("an episode has at least one step")
    if not 0 <= args.action_noise < np.inf:
        fail("the noise is neither negative nor infinite")


def main(args: Args) -> None:
    """Check the arguments, collect, and tell what came out."""
    check(args)
    record = new_file(args.record) if args.record else None
    started = time.time()
    try:
        rows = collect(args)
    except KeyboardInterrupt:
        print("stopped; the finished groups are kept, and the same command goes on from there")
        sys.exit(130)
    except (OSError, BrokenProcessPool) as error:
        fail(f"{error}; the finished groups are kept, and the same command goes on from there")
    for row in rows:
        print(
            f"{row['dataset']}: {row['transitions']} transitions, {row['success']:.1%} of the "
            f"{row['episodes']} episodes see the goal, {row['reward_share']:.1%} of the steps have "
            f"reward 1, {row['upside_down']:.1%} are upside down; {row['cells']} of "
            f"{row['free_cells']} free cells and {row['squares']} squares of 1 m visited; "
            f"{row['steps_per_second']} steps a second in {row['processes']} processes"
        )
    if record:
        sys.path.append(str(ROOT))
        from results.common.records import write_record

        write_record(record, rows, started, seeds=[args.seed])


if __name__ == "__main__":
    main(tyro.cli(Args))
