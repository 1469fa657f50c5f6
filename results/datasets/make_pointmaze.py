"""Make a PointMaze dataset of any size without a download: a scripted walker in the real simulator, in Minari's format.

The walker follows breadth-first paths over the maze's cells, as D4RL's does: a PD controller pushes towards the next
cell, and normal noise is added to the action. What it is after is the recipe:
- goal: to a random goal that it is shown, and on arrival to the next. Cloning is enough.
- wander: D4RL's maze2d. It wanders between random cells while one goal stays where it is; cloning means wandering, too,
  and the way to the goal has to be put together from pieces, by their value.
- rare: one start, one goal, two routes. One episode in ten takes the short one, 4 cells instead of 12, and the task's
  time limit leaves no time for the other. Whoever follows the crowd fails; whoever loses the rare mode does, too.
- embedded: the set that ships with the repository, umaze: three episodes in ten to the goal, in the others the walker
  wanders and often changes its mind.

    python results/datasets/pointmaze.py                                   # rebuild the set that ships
    python results/datasets/pointmaze.py --recipe wander --maze medium --transitions 200000
    python edq_antmaze.py --env-id pointmaze-medium --dataset-id edq/pointmaze/medium-wander-v0
    python results/datasets/pointmaze.py --recipe rare && python edq_antmaze.py --env-id pointmaze-rare

Equal arrays for the same arguments on one machine; on another processor a trajectory may differ in its last digits.
"""

import copy
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import storage
import tyro
from gymnasium_robotics.envs.maze import maps
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)

# A block with a corridor around it: from its upper left to its upper right corner 4 cells one way, 12 the other.
RING = [[1] * 7, [1] + [0] * 5 + [1], *([[1, 0, 1, 1, 1, 0, 1]] * 3), [1] + [0] * 5 + [1], [1] * 7]
MAZES = {  # registered id, walls, start and goal of an evaluation, steps of an episode
    "umaze": ("PointMaze_UMaze-v3", maps.U_MAZE, (3, 1), (1, 1), 300),
    "medium": ("PointMaze_Medium-v3", maps.MEDIUM_MAZE, (1, 1), (6, 6), 600),
    "large": ("PointMaze_Large-v3", maps.LARGE_MAZE, (1, 1), (7, 9), 800),
    "open": ("PointMaze_Open-v3", maps.OPEN, (3, 1), (1, 5), 300),
    "ring": ("PointMaze_Open-v3", RING, (1, 1), (1, 5), 300),
}
RECIPES = {  # share of episodes to the goal; chance, at every step, that a wandering walker heads for another cell
    "goal": (1.0, 0.0),
    "wander": (0.0, 0.0),
    "rare": (1.0, 0.0),
    "embedded": (0.3, 0.08),
}
RARE_SHARE, RARE_LIMIT = 0.1, 150  # of the episodes; of the steps in an evaluation


@dataclass
class Args:
    """Make a PointMaze dataset."""

    recipe: Literal["goal", "wander", "rare", "embedded"] = "embedded"
    """what the walker is after; rare has a maze of its own, embedded is umaze"""
    maze: Literal["umaze", "medium", "large", "open"] = "umaze"
    """for goal and wander"""
    size: tuple[int, int] = (3, 5)
    """rows and columns of the open maze, in cells of 1 m"""
    transitions: int | None = None
    """number of transitions, rounded up to whole episodes; by default 100,000, of the embedded set 20,100"""
    action_noise: float = 0.5
    """std of the normal noise added to every action component"""
    seed: int = 0
    """seed of starts, goals, targets and noise"""
    dataset_id: str | None = None
    """Minari id of the new dataset; by default edq/pointmaze/<maze>-<recipe>-v0, or rare-v0"""
    out: Path | None = None
    """a folder instead, replaced if it exists; that of the embedded set by default"""


Cell = tuple[int, int]


def path_to(walls: np.ndarray, start: Cell, goal: Cell) -> list[Cell]:
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


def make_specs(args: Args) -> tuple[str, gym.Env, gym.envs.registration.EnvSpec, Cell]:
    """Name of the maze, the simulator the data come from, the spec a policy is scored by, and its goal cell."""
    maze = {"rare": "ring", "embedded": "umaze"}.get(args.recipe, args.maze)
    env_id, walls, start, goal, length = MAZES[maze]
    if maze == "open" and args.size != (3, 5):
        rows, columns = args.size
        walls = [[1] * (columns + 2), *([[1] + [0] * columns + [1]] * rows), [1] * (columns + 2)]
        maze, start, goal, length = f"open-{rows}x{columns}", (rows, 1), (1, columns), 60 * (rows + columns)
    marks = {"goal": {}, "rare": {start: "r", goal: "g"}}.get(args.recipe, {goal: "g"})  # no marks: anywhere
    cells, scored = (
        [[mark.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)]
        for mark in (marks, {start: "r", goal: "g"})
    )
    kwargs = dict(maze_map=cells, continuing_task=True, reset_target=args.recipe == "goal")
    env = gym.make(env_id, max_episode_steps=length, disable_env_checker=True, **kwargs)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    spec = copy.deepcopy(env.spec)
    spec.kwargs |= dict(maze_map=scored, continuing_task=False, reset_target=False)
    spec.max_episode_steps = RARE_LIMIT if args.recipe == "rare" else length
    return maze, env, spec, goal


def record(args: Args, env: gym.Env, goal: Cell, count: int) -> Iterator[dict]:
    """`count` episodes one by one; a walker goes on after an arrival."""
    (goal_share, turn_rate), maze, length = RECIPES[args.recipe], env.unwrapped.maze, env.spec.max_episode_steps
    walls = np.array([[cell == 1 for cell in line] for line in maze.maze_map])
    free = [(int(i), int(j)) for i, j in np.argwhere(~walls)]
    route = cache(lambda start, end: path_to(walls, start, end))
    blocked = walls.copy()
    blocked[1, 3] = True  # the middle of the ring's upper side: what is left of it is the long route
    rng = np.random.default_rng(args.seed)
    for _ in tqdm(range(count), unit="episode", disable=None):
        to_goal, path, shown, off_x, off_y = rng.random() < goal_share, [], None, 0.0, 0.0
        obs, info = env.reset(seed=int(rng.integers(2**31)))
        if args.recipe == "rare":
            path = path_to(walls if rng.random() < RARE_SHARE else blocked, (1, 1), goal)
        observations, actions, rewards, success = [obs], [], [], [info["success"]]
        for _ in range(length):  # plain numbers, as numpy's cost on two of them is that of the simulator's step
            (x, y, speed_x, speed_y), (goal_x, goal_y) = obs["observation"].tolist(), obs["desired_goal"].tolist()
            if args.recipe == "goal" and (goal_x, goal_y) != shown:  # redrawn, one step after an arrival
                shown, path = (goal_x, goal_y), []
                goal = (math.floor(maze.y_map_center - goal_y), math.floor(goal_x + maze.x_map_center))
            if not path or (not to_goal and rng.random() < turn_rate):
                here = (math.floor(maze.y_map_center - y), math.floor(x + maze.x_map_center))
                path = route(here, goal if to_goal else free[rng.integers(len(free))])
            to_x, to_y = path[0][1] + 0.5 - maze.x_map_center + off_x, maze.y_map_center - path[0][0] - 0.5 + off_y
            if to_goal and len(path) == 1 and path[0] == goal:
                to_x, to_y = goal_x, goal_y
            elif (
                math.hypot(to_x - x, to_y - y) < 0.5
            ):  # aim, from the next step on, at a point near the next cell's middle
                path, (off_x, off_y) = path[1:], rng.uniform(-0.15, 0.15, 2).tolist()
            push = (10 * (to_x - x) - speed_x, 10 * (to_y - y) - speed_y)
            noise = rng.normal(size=2).tolist()
            action = [min(max(p + args.action_noise * n, -1.0), 1.0) for p, n in zip(push, noise)]
            actions.append(np.array(action, np.float32))
            obs, reward, _, truncated, info = env.step(actions[-1])
            observations.append(obs)
            rewards.append(reward)
            success.append(info["success"])
        assert truncated
        yield {
            "observations": {k: np.array([o[k] for o in observations], np.float32) for k in obs},
            "actions": np.array(actions), "rewards": np.array(rewards), "infos": {"success": np.array(success)},
            "terminations": np.zeros(length, bool), "truncations": np.arange(length) == length - 1,
        }  # fmt: skip


def main(args: Args) -> None:
    transitions = (20_100 if args.recipe == "embedded" else 100_000) if args.transitions is None else args.transitions
    if transitions < 1 or args.action_noise < 0 or not all(2 <= n <= 50 for n in args.size):
        storage.fail("transitions start at 1, noise is not negative, an open maze has 2 to 50 rows and columns")
    maze, env, scored, goal = make_specs(args)
    name = "rare" if args.recipe == "rare" else f"{maze}-{args.recipe}"
    dataset_id, folder = args.dataset_id or f"edq/pointmaze/{name}-v0", args.out
    if args.recipe == "embedded" and not args.dataset_id:
        folder = folder or Path(__file__).resolve().parent / "pointmaze-umaze-embedded"
    folder = (folder or storage.folder_of(dataset_id)).absolute()
    arrived, rewarded, start = 0, 0, time.time()

    def counted() -> Iterator[dict]:
        nonlocal arrived, rewarded
        for episode in record(args, env, goal, -(-transitions // env.spec.max_episode_steps)):
            arrived, rewarded = arrived + bool(episode["rewards"].any()), rewarded + int(episode["rewards"].sum())
            yield episode

    description = f"Scripted walker, recipe {args.recipe}, action noise {args.action_noise}, seed {args.seed}. Made by"
    metadata = storage.save(
        folder, dataset_id, counted(), env.spec, scored, ref_min_score=0.0, ref_max_score=1.0,
        algorithm_name="breadth-first walker with a PD controller",
        description=f"{description} results/datasets/pointmaze.py.",
    )  # fmt: skip
    episodes, steps = metadata["total_episodes"], metadata["total_steps"]
    print(f"{folder}: {episodes} episodes, {steps} transitions, {steps / (time.time() - start):.0f} a second")
    print(f"{arrived / episodes:.0%} of the episodes see their goal, {rewarded / steps:.1%} of the steps are at it")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
