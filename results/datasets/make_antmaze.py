"""Record the six AntMaze sets with D4RL's recipe: a walker over a trained ant. In Minari's format, without a download.

A breadth-first search knows, for every cell of the maze, the next one on a shortest way to the goal. Its centre, moved
by up to 0.4 m, is the waypoint, until the ant is within 1 m of it; the last is the goal itself. A small network that
has learnt to run to a point (train_ant.py) walks to the waypoint, with normal noise on its torques. The goal stays
after an arrival, and the ant circles there, at reward 1 a step for most of the time, until the episode is over.

    python results/datasets/antmaze.py --task large-diverse --transitions 1000000

Starts and goals are those of the script that made Minari's published D4RL/antmaze sets: one of each, those of the
evaluation, in umaze; all free cells in umaze-diverse and in the two *play* sets; the maze's own hand-picked cells
(`*_DIVERSE_GR`) in the other *diverse* sets. (In D4RL's paper it is *play* that has the hand-picked ones.) Both are
moved by up to 1 m within their cell. The evaluation environment has one start and goal and ends on arrival.

What comes out is a rebuilt set, not the published data: another ant, faster; float32 instead of float64; and of the
infos only success, since goal, qpos and qvel are in the observations (qpos = achieved_goal + observation[:13], qvel =
observation[13:]). Every episode keeps its seed: reset the recovered environment with it and repeat the actions.

Equal arrays for the same arguments on one machine, whatever the number of processes. Twenty episodes are a group, which
walks in lockstep, so that the network runs once a step for all of them, and the bare simulator is stepped instead of
the environment. Finished groups wait in a hidden folder beside the dataset-to-be, where a second start finds them.
"""

import copy
import fcntl
import functools
import hashlib
import multiprocessing
import os
import shutil
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

import gymnasium as gym
import gymnasium_robotics
import mujoco
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze import maps
from storage import fail, folder_of, save
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)
# Of a task: the simulator, its map, steps of an episode, and the start and goal (row, column) of the evaluation.
TASKS = {
    "umaze": ("AntMaze_UMaze-v4", None, 700, (3, 1), (1, 1)),  # None: the map of the evaluation
    "umaze-diverse": ("AntMaze_UMaze-v4", maps.U_MAZE, 700, (3, 1), (1, 1)),
    "medium-play": ("AntMaze_Medium-v4", maps.MEDIUM_MAZE, 1000, (1, 1), (6, 6)),
    "medium-diverse": ("AntMaze_Medium_Diverse_GR-v4", maps.MEDIUM_MAZE_DIVERSE_GR, 1000, (1, 1), (6, 6)),
    "large-play": ("AntMaze_Large-v4", maps.LARGE_MAZE, 1000, (1, 1), (7, 9)),
    "large-diverse": ("AntMaze_Large_Diverse_GR-v4", maps.LARGE_MAZE_DIVERSE_GR, 1000, (1, 1), (7, 9)),
}
ANT = Path(__file__).with_name("ant_goal.npz")
GROUP = 20  # episodes that walk in lockstep; another number would change the last digits, and so all the data
CELL, RADIUS, NEAR, JITTER = 4.0, 0.45, 1.0, 0.4  # metres: a cell, the goal, where a waypoint is reached, its shift
FLIP = np.array([[1, 1], [1, -1], [1, -1], [1, 1]])  # [leg, hip or ankle]: two of the ankles bend the other way


@dataclass
class Args:
    """Record an AntMaze dataset."""

    task: str = "large-diverse"
    """umaze, umaze-diverse, medium-play, medium-diverse, large-play or large-diverse"""
    transitions: int = 1_000_000
    """number of transitions, rounded up to whole episodes"""
    seed: int = 0
    """seed of starts, goals, waypoints and noise"""
    processes: int = 0
    """how many groups are recorded side by side, one thread each; 0: as many as there are cores"""
    action_noise: float = 0.2
    """std of the normal noise added to every torque, before clipping to [-1, 1]"""
    dataset_id: str | None = None
    """name of the dataset, edq/antmaze/TASK-v0 if not given; it goes to MINARI_DATASETS_PATH or ~/.minari/datasets"""
    record: Path | None = None
    """CSV file to which a row with the figures of this set is added"""


def features(obs: np.ndarray, rel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations `[B, 27]` and the way to the target `[B, 2]` as the network sees them, `[B, 30]`, and k `[B]`.

    An ant looks the same after a quarter turn about its own axis. So everything is told in its own frame, and the legs
    are renumbered by k quarter turns such that the target lies within 45 degrees of the front: one gait is enough.
    """
    w, x, y, z = obs[:, 1:5].T
    turn = 2 * np.array([[0.5 - y * y - z * z, x * y - w * z, x * z + w * y],
                         [x * y + w * z, 0.5 - x * x - z * z, y * z - w * x],
                         [x * z - w * y, y * z + w * x, 0.5 - x * x - y * y]])  # [3, 3, B], body to world  # fmt: skip
    distance, zero = np.maximum(np.hypot(*rel.T), 1e-9), np.zeros(len(obs))
    seen = np.array([[zero, zero, zero + 1], [*(rel.T / distance), zero], obs[:, 13:16].T])  # [3, 3, B]
    seen = np.concatenate(
        [np.einsum("ijb,vib->vjb", turn, seen), obs[None, :, 16:19].mT]
    )  # spin is already of the body
    k = np.rint(np.arctan2(seen[1, 1], seen[1, 0]) / (np.pi / 2)).astype(int) % 4
    cos, sin = np.array([1, 0, -1, 0])[k], np.array([0, 1, 0, -1])[k]
    x, y, z = seen.transpose(1, 0, 2)
    up, ahead, speed, spin = np.stack([cos * x + sin * y, cos * y - sin * x, z], 2)  # [B, 3] each
    legs = np.stack([obs[:, 5:13], obs[:, 19:27]], 1).reshape(-1, 2, 4, 2) * FLIP  # [B, angle or speed, leg, joint]
    legs = legs[np.arange(len(obs))[:, None], :, (np.arange(4) + k[:, None]) % 4]  # [B, leg, angle or speed, joint]
    legs = legs.transpose(0, 2, 3, 1).reshape(-1, 16)
    return np.concatenate([obs[:, :1], up, ahead, np.minimum(distance, 8)[:, None], speed, spin, legs], 1), k


def torques(out: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The network's output `[B, 8]`, four hips and four ankles seen from the target, as an action `[B, 8]`."""
    order = np.array([3, 0, 1, 2])  # the ant's motors begin with the fourth leg
    legs = out.reshape(-1, 2, 4)[np.arange(len(out))[:, None], :, (order - k[:, None]) % 4]  # [B, leg, joint]
    return (legs * FLIP[order]).reshape(-1, 8)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Of an npz file: the network's weights, or the episodes of a group. Nothing in it is run."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def act(ant: dict[str, np.ndarray], obs: np.ndarray, rel: np.ndarray) -> np.ndarray:
    """Torques `[B, 8]` that walk towards the targets. B matters: another batch size gives other last digits."""
    x, k = features(obs, rel)
    x = np.clip((x - ant["mean"]) / ant["std"], -10, 10).astype(np.float32)
    for i in range(2):
        x = x @ ant[f"W{i}"] + ant[f"b{i}"]
        x = x / (1 + np.exp(-x))
    return torques(np.clip(x @ ant["W2"] + ant["b2"], -1, 1), k)


def append_row(path: Path, row: dict) -> None:
    """Add a line to a CSV file of plain values, below a header."""
    with open(path, "a") as file:
        header = "" if file.tell() else ",".join(row) + "\n"
        file.write(header + ",".join(map(str, row.values())) + "\n")


def specs(task: str, length: int | None = None) -> tuple[EnvSpec, EnvSpec]:
    """The environment of the data, and that of the evaluation."""
    env_id, cells, steps, start, goal = TASKS[task]
    eval_id = env_id.replace("_Diverse_GR", "")
    walls = gym.spec(eval_id).kwargs["maze_map"]
    scored = [
        [{start: "r", goal: "g"}.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)
    ]
    env, eval_env = copy.deepcopy(gym.spec(env_id)), copy.deepcopy(gym.spec(eval_id))
    env.kwargs |= dict(maze_map=cells or scored, continuing_task=True, reset_target=False)
    eval_env.kwargs |= dict(maze_map=scored, continuing_task=False, reset_target=False)
    env.max_episode_steps = length or steps
    return env, eval_env


def walls_of(env: EnvSpec) -> np.ndarray:
    """Where the walls are, `[rows, columns]`."""
    return np.array([[cell == 1 for cell in line] for line in env.kwargs["maze_map"]])


def cells_at(xy: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """The cells, `[..., (row, column)]`, of positions `[..., 2]`; 0 is the maze's middle, and rows count downwards."""
    rows, columns = walls.shape
    return np.floor(np.stack([rows / 2 - xy[..., 1] / CELL, columns / 2 + xy[..., 0] / CELL], -1)).astype(int)


def centre_of(cell: tuple[int, int], walls: np.ndarray) -> np.ndarray:
    """Its position, `[2]`."""
    rows, columns = walls.shape
    return CELL * np.array([cell[1] + 0.5 - columns / 2, rows / 2 - cell[0] - 0.5])


def way_to(goal: tuple[int, int], walls: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    """For every cell from which the goal can be reached, the next one on a shortest way; the goal's own is itself."""
    following, queue = {goal: goal}, deque([goal])
    while queue:
        i, j = cell = queue.popleft()
        for near in ((i, j + 1), (i + 1, j), (i, j - 1), (i - 1, j)):
            if not walls[near] and near not in following:
                following[near] = cell
                queue.append(near)
    return following


@functools.cache
def make_env(task: str, length: int) -> gym.Env:
    """The environment of the data, once in a process."""
    env = gym.make(specs(task, length)[0], disable_env_checker=True)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    return env


def record_group(task: str, length: int, seed: int, noise: float, first: int, count: int, part: Path) -> int:
    """Record `count` episodes from number `first` on, in lockstep, and store them in `part`; returns the steps."""
    env, ant, walls = make_env(task, length).unwrapped, load_arrays(ANT), walls_of(specs(task)[0])
    rngs = [np.random.default_rng([seed, first + i]) for i in range(count)]
    seeds = [int(rng.integers(2**31)) for rng in rngs]
    noises = noise * np.stack([rng.normal(size=(length, 8)) for rng in rngs], 1)  # [N, count, 8]
    data = [mujoco.MjData(env.model) for _ in range(count)]
    states = np.zeros((length + 1, GROUP, 29))  # qpos and qvel; rows from count on stay unused
    actions, goals, ways = np.zeros((length, count, 8), np.float32), np.zeros((count, 2)), []
    for i in range(count):
        goals[i] = env.reset(seed=seeds[i])[0]["desired_goal"]
        data[i].qpos[:], data[i].qvel[:] = env.data.qpos, env.data.qvel
        mujoco.mj_forward(env.model, data[i])  # as the environment does
        states[0, i] = np.concatenate([data[i].qpos, data[i].qvel])
        ways.append(way_to(tuple(cells_at(goals[i], walls).tolist()), walls))
    # At first every ant is "lost": not next to the cell it aims at, and so sent to the next one from where it is.
    aims, targets, rel = np.full((count, 2), -9), np.zeros((count, 2)), np.ones((GROUP, 2))
    for t in range(length):
        xy = states[t, :count, :2]
        here = cells_at(xy, walls)
        lost, near = np.abs(here - aims).sum(1) > 1, np.hypot(*(targets - xy).T) < NEAR
        for i in np.flatnonzero(lost | near & (targets != goals).any(1)):
            aims[i] = aim = ways[i][tuple((here if lost[i] else aims)[i].tolist())]
            shift = rngs[i].uniform(-JITTER, JITTER, 2)
            targets[i] = goals[i] if ways[i][aim] == aim else centre_of(aim, walls) + shift
        rel[:count] = targets - xy
        # Rounded to float32 before the step, not only when stored: so the stored actions repeat the very same episode.
        actions[t] = np.clip(act(ant, states[t, :, 2:], rel)[:count] + noises[t], -1, 1)
        for i in range(count):
            data[i].ctrl[:] = actions[t, i]
            mujoco.mj_step(env.model, data[i], nstep=5)
            states[t + 1, i, :15], states[t + 1, i, 15:] = data[i].qpos, data[i].qvel
    states = states[:, :count].swapaxes(0, 1)  # [count, N + 1, 29]
    success = np.linalg.norm(states[..., :2] - goals[:, None], axis=-1) <= RADIUS
    with open(part.with_suffix(".tmp"), "wb") as file:
        np.savez(file, states=states.astype(np.float32), goals=goals.astype(np.float32), seeds=np.array(seeds),
                 success=success, actions=actions.swapaxes(0, 1))  # fmt: skip
    os.replace(part.with_suffix(".tmp"), part)  # a part is whole or not there
    return count * length


def episodes_of(parts: list[Path], walls: np.ndarray, figures: dict) -> Iterator[dict]:
    """All episodes in order, one part in memory at a time; fills in the figures at the end."""
    digest, cells, squares, sums = hashlib.sha256(), set(), set(), np.zeros(5)
    for part in parts:
        group = load_arrays(part)
        for i, seed in enumerate(group["seeds"].tolist()):
            states, goal, actions, success = (group[name][i] for name in ("states", "goals", "actions", "success"))
            count, xy = len(actions), states[:, :2]
            obs = {"observation": states[:, 2:], "achieved_goal": xy, "desired_goal": np.tile(goal, (count + 1, 1))}
            for array in (states, goal, actions, success):
                digest.update(array.tobytes())
            cells.update(map(tuple, cells_at(xy, walls).tolist()))
            squares.update(map(tuple, np.floor(xy).astype(int).tolist()))
            flipped = 2 * np.square(states[1:, 4:6]).sum(1) > 1  # the torso's own z axis points downwards
            sums += 1, count, success[1:].any(), success[1:].sum(), flipped.sum()
            yield {
                "observations": obs, "actions": actions, "rewards": success[1:].astype(float), "seed": seed,
                "terminations": np.zeros(count, bool), "truncations": np.arange(count) == count - 1,
                "infos": {"success": success},
            }  # fmt: skip
    figures |= {"episodes": int(sums[0]), "transitions": int(sums[1]), "success": round(sums[2] / sums[0], 4)}
    figures |= {"reward_share": round(sums[3] / sums[1], 4), "upside_down": round(sums[4] / sums[1], 4)}
    figures |= {"cells": len(cells), "free_cells": int((~walls).sum()), "squares": len(squares)}
    figures |= {"hash": digest.hexdigest()[:16]}


def end_with_parent() -> None:
    """In a worker: stop when the parent is gone, however it went."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def collect(args: Args, length: int | None = None) -> dict:
    """Record all groups that are not there yet, then write the dataset; returns its figures."""
    dataset_id, length = args.dataset_id or f"edq/antmaze/{args.task}-v0", length or TASKS[args.task][2]
    folder, (env, eval_env), count = folder_of(dataset_id), specs(args.task, length), -(-args.transitions // length)
    same = (args.task, length, args.seed, args.action_noise)
    key = hashlib.sha256(repr((*same, count, dataset_id, mujoco.__version__, np.__version__)).encode())
    key.update(ANT.read_bytes() + Path(__file__).read_bytes())  # parts of another ant or program are of no use
    work = folder.parent / f".unfinished-antmaze-{key.hexdigest()[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it when this process ends, whatever way
        except BlockingIOError:
            fail(f"another process is at work on {dataset_id} already")
        jobs = [(*same, i, min(GROUP, count - i), work / f"{i:07}.npz") for i in range(0, count, GROUP)]
        missing = [job for job in jobs if not job[-1].exists()]
        todo, total = length * sum(job[-2] for job in missing), length * count
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        processes = max(1, min(args.processes or cores, len(missing)))
        found = f"; {total - todo} are there already" if todo < total else ""
        print(f"{dataset_id}: {count} episodes of {length} steps, {total} transitions{found}; {processes} processes")
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the workers fill the cores already
        pool, began = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), end_with_parent), time.time()
        with pool, tqdm(total=total, initial=total - todo, unit="step", disable=None) as bar:
            try:
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the parent alone
                futures = [pool.submit(record_group, *job) for job in missing]
                signal.signal(signal.SIGINT, handler)
                for future in as_completed(futures):
                    bar.update(future.result())
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
        seconds, figures = time.time() - began, {}
        save(
            work / "set", dataset_id, episodes_of([job[-1] for job in jobs], walls_of(env), figures), env, eval_env,
            ref_min_score=0.0, ref_max_score=1.0, algorithm_name="breadth-first waypoints + PPO ant",
            description=f"AntMaze {args.task}, rebuilt with D4RL's recipe; not the published data. Action noise "
                        f"{args.action_noise}, seed {args.seed}. Made by results/datasets/antmaze.py.",
        )  # fmt: skip
        os.rename(work / "set", folder)
        shutil.rmtree(work, ignore_errors=True)
    speed = round(todo / seconds) if todo else 0
    return figures | {"folder": folder, "seconds": round(seconds, 1), "steps_per_second": speed, "processes": processes}


def main(args: Args) -> None:
    """Check the arguments, collect, and tell what came out."""
    if args.task not in TASKS:
        fail(f"there is no task {args.task}; there are {', '.join(TASKS)}")
    if args.transitions < 1 or args.seed < 0 or args.processes < 0 or not 0 <= args.action_noise < np.inf:
        fail("transitions start at 1, seed and processes at 0, and the noise is neither negative nor infinite")
    if args.record and (args.record.is_dir() or not args.record.absolute().parent.is_dir()):
        fail(f"{args.record} cannot be a file: it is a folder, or its folder is missing")
    try:
        f = collect(args)
    except KeyboardInterrupt:
        print("stopped; the finished groups are kept, and the same command goes on from there")
        sys.exit(130)
    except (OSError, BrokenProcessPool) as error:
        fail(f"{error}; the finished groups are kept, and the same command goes on from there")
    print(f"{f['folder']}: {f['transitions']} transitions, {f['success']:.1%} of the {f['episodes']} episodes arrive, "
          f"{f['reward_share']:.1%} of the steps have reward 1, {f['upside_down']:.1%} are upside down; "
          f"{f['cells']} of {f['free_cells']} free cells and {f['squares']} squares of 1 m visited; "
          f"{f['steps_per_second']} steps a second in {f['processes']} processes")  # fmt: skip
    if args.record:
        columns = "reward_share cells free_cells squares upside_down seconds steps_per_second processes hash".split()
        row = {"task": args.task, "transitions": f["transitions"], "seed": args.seed, "success": f["success"]}
        append_row(args.record, row | {key: f[key] for key in columns})


if __name__ == "__main__":
    main(tyro.cli(Args))
