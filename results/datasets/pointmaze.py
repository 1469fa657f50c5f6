"""Record a PointMaze dataset with a scripted walker, in Minari's format, without a download.

The walker follows breadth-first paths over the maze's cells with D4RL's recipe: a PD controller that pushes towards the
next cell, plus normal noise on the action. In a share of the episodes it heads for the goal it is shown; in the others
it wanders between random cells and ignores the goal, which stays where it is. Cloning such data means wandering, too:
the way to the goal has to be put together from pieces by their value.

    python results/datasets/pointmaze.py                       # rebuild the set that ships with the repository
    python results/datasets/pointmaze.py --out /tmp/my-set --transitions 100000 --goal-share 0.5 --seed 7

Equal arrays for the same arguments on one machine; on another processor a trajectory may differ in its last digits.
"""

import json
import os
import shutil
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import h5py
import numpy as np
import tyro
from gymnasium_robotics.envs.maze import maps
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)


@dataclass
class Args:
    """Record a PointMaze umaze dataset."""

    out: Path = Path(__file__).parent / "pointmaze-umaze-embedded"
    """folder of the new dataset; replaced if it exists"""
    transitions: int = 20_100
    """number of transitions, rounded up to whole episodes"""
    episode_length: int = 300
    """steps in an episode; it goes on after an arrival"""
    goal_share: float = 0.3
    """share of episodes whose walker heads for the goal; in the others it wanders"""
    turn_rate: float = 0.08
    """chance, at every step, that a wandering walker changes its mind and heads for another cell"""
    jitter: float = 0.15
    """largest distance, in each direction, of a waypoint from the middle of its cell (a cell is 1 wide)"""
    action_noise: float = 0.5
    """std of the normal noise added to every action component"""
    seed: int = 0
    """seed of starts, goals, targets and noise"""


def path_to(walls: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells of a shortest path from start (left out) to goal; ties broken in a fixed order."""
    came_from, queue = {start: start}, deque([start])
    while queue:
        cell = queue.popleft()
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            near = (cell[0] + step[0], cell[1] + step[1])
            if not walls[near] and near not in came_from:
                came_from[near] = cell
                queue.append(near)
    path = [goal]
    while path[-1] != start:
        path.append(came_from[path[-1]])
    return path[-2::-1] or [goal]


def record(args: Args) -> tuple[list[dict], gym.Env]:
    """All episodes as arrays, observations one longer than actions, and the environment they come from."""
    cells = [[{(1, 1): "g"}.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(maps.U_MAZE)]
    env = gym.make(
        "PointMaze_UMaze-v3", maze_map=cells, continuing_task=True, reset_target=False,
        max_episode_steps=args.episode_length, disable_env_checker=True,
    )  # fmt: skip
    os.unlink(env.unwrapped.tmp_xml_file_path)
    maze, walls = env.unwrapped.maze, np.array(maps.U_MAZE) == 1
    free = [tuple(int(x) for x in cell) for cell in np.argwhere(~walls)]
    rng = np.random.default_rng(args.seed)
    episodes = []
    for _ in tqdm(range(-(-args.transitions // args.episode_length)), unit="episode", disable=None):
        to_goal = rng.random() < args.goal_share
        obs, info = env.reset(seed=int(rng.integers(2**31)))
        observations, actions, rewards, success, path = [obs], [], [], [info["success"]], []
        offset = np.zeros(2)
        for _ in range(args.episode_length):
            here = tuple(int(x) for x in maze.cell_xy_to_rowcol(obs["achieved_goal"]))
            if not path or (not to_goal and rng.random() < args.turn_rate):
                path = path_to(walls, here, (1, 1) if to_goal else free[rng.integers(len(free))])
            target = maze.cell_rowcol_to_xy(np.array(path[0])) + offset
            if to_goal and len(path) == 1 and path[0] == (1, 1):
                target = obs["desired_goal"]
            elif np.linalg.norm(target - obs["achieved_goal"]) < 0.5:
                path, offset = path[1:], rng.uniform(-args.jitter, args.jitter, 2)
            push = 10 * (target - obs["achieved_goal"]) - obs["observation"][2:]
            action = np.clip(push + args.action_noise * rng.normal(size=2), -1, 1).astype(np.float32)
            obs, reward, _, truncated, info = env.step(action)
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
            success.append(info["success"])
        assert truncated
        episodes.append({
            "observations": {k: np.array([o[k] for o in observations], np.float32) for k in obs},
            "actions": np.array(actions), "rewards": np.array(rewards), "infos": {"success": np.array(success)},
            "terminations": np.zeros(len(actions), bool), "truncations": np.arange(len(actions)) == len(actions) - 1,
        })  # fmt: skip
    return episodes, env


def save(args: Args, episodes: list[dict], env: gym.Env) -> None:
    """Write the folder `out` in Minari's layout, compressed; an unfinished one is never left behind."""
    from minari.serialization import serialize_space

    boxes = {
        k: gym.spaces.Box(-np.inf, np.inf, v.shape[1:], np.float32) for k, v in episodes[0]["observations"].items()
    }
    metadata = {
        "total_episodes": len(episodes), "total_steps": sum(len(e["rewards"]) for e in episodes), "data_format": "hdf5",
        "observation_space": serialize_space(gym.spaces.Dict(boxes)), "action_space": serialize_space(env.action_space),
        "env_spec": env.spec.to_json(), "dataset_id": "edq/pointmaze-umaze-embedded-v0", "minari_version": "0.5.4",
        "ref_min_score": 0.0, "ref_max_score": 1.0, "num_episodes_average_score": 100, "jpeg_encoding": False,
        "algorithm_name": "breadth-first walker with a PD controller", "author": ["EDQ authors"],
        "description": f"Scripted walker: {args.goal_share:.0%} of the episodes to the goal, the others wander; action "
                       f"noise {args.action_noise}, seed {args.seed}. Made by results/datasets/pointmaze.py.",
    }  # fmt: skip

    def put(group: h5py.Group, name: str, value: dict | np.ndarray) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                put(group.require_group(name), key, part)
        else:
            group.create_dataset(
                name, data=value, compression="gzip", compression_opts=9, shuffle=True, chunks=value.shape
            )

    with tempfile.TemporaryDirectory(dir=args.out.parent) as unfinished:
        data = Path(unfinished, "set", "data")
        data.mkdir(parents=True)
        (data / "metadata.json").write_text(json.dumps(metadata, indent=1))
        with h5py.File(data / "main_data.hdf5", "w", libver=("v110", "v110")) as file:
            for i, episode in enumerate(episodes):
                group = file.create_group(f"episode_{i}")
                group.attrs.update({"id": i, "total_steps": len(episode["rewards"])})
                for name, value in episode.items():
                    put(group, name, value)
        shutil.rmtree(args.out, ignore_errors=True)
        os.rename(data.parent, args.out)


if __name__ == "__main__":
    args = tyro.cli(Args)
    if args.transitions < 1 or args.episode_length < 1 or not 0 <= args.goal_share <= 1 or args.action_noise < 0:
        print("error: transitions and episode length start at 1, the share lies in 0..1, the noise is not negative")
        sys.exit(2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    episodes, env = record(args)
    save(args, episodes, env)
    reached = np.mean([e["rewards"].max() for e in episodes])
    steps = sum(len(e["rewards"]) for e in episodes)
    print(f"{args.out}: {len(episodes)} episodes, {steps} transitions, {reached:.0%} of the episodes see the goal")
