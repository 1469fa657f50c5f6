"""Make a PointMaze dataset of any size without a download: a scripted walker in the real simulator.

The walker follows breadth-first paths over the maze's cells, as D4RL's does: a PD controller pushes
towards the next cell, and normal noise is added to the action. What it is after is the recipe:
- goal: to a random goal that it is shown, and on arrival to the next. BC is enough.
- wander: D4RL's maze2d. It wanders between random cells while one goal stays where it is. BC
  wanders, too; the way to the goal has to be put together from pieces, by their value.
- rare: one start, one goal, two routes. One episode in ten takes the short one, 4 cells instead of
  12, and the task's time limit leaves no time for the other. Whoever follows the crowd fails;
  whoever loses the rare mode does, too.
- embedded: the set that ships with the repository, 30,000 transitions of *rare*.

    python results/datasets/make_pointmaze.py                      # rebuild the set that ships
    python results/datasets/make_pointmaze.py --recipe rare && \\
        python edq_antmaze.py --env-id pointmaze-rare
    python results/datasets/make_pointmaze.py --recipe wander --maze medium --transitions 200000
    python edq_antmaze.py --env-id pointmaze-medium --dataset-id edq/pointmaze/medium-wander-v0

Equal arrays for the same arguments on one machine; on another processor a trajectory may differ in
its last digits.
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
from typing import Literal, NamedTuple

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze import maps
from minari_writer import fail, folder_of, save
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)
EMBEDDED = Path(__file__).resolve().parent / "pointmaze-rare-embedded"

Cell = tuple[int, int]  # row, column


class Maze(NamedTuple):
    """A simulator and its walls; start and goal are those of an evaluation."""

    env_id: str
    walls: list[list[int]]
    start: Cell
    goal: Cell
    steps: int  # of an episode


# A block with a corridor around it: between its upper corners 4 cells one way, 12 the other.
RING = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1],
]
MAZES = {
    "umaze": Maze("PointMaze_UMaze-v3", maps.U_MAZE, (3, 1), (1, 1), 300),
    "medium": Maze("PointMaze_Medium-v3", maps.MEDIUM_MAZE, (1, 1), (6, 6), 600),
    "large": Maze("PointMaze_Large-v3", maps.LARGE_MAZE, (1, 1), (7, 9), 800),
    "open": Maze("PointMaze_Open-v3", maps.OPEN, (3, 1), (1, 5), 300),
    "ring": Maze("PointMaze_Open-v3", RING, (1, 1), (1, 5), 300),
}


RARE = ("rare", "embedded")  # recipes
RARE_SHARE = 0.1  # of the episodes that take the short route
RARE_LIMIT = 150  # steps of an evaluation


@dataclass
class Args:
    """Make a PointMaze dataset."""

    recipe: Literal["goal", "wander", "rare", "embedded"] = "embedded"
    """what the walker is after; rare and embedded have a maze of their own"""
    maze: Literal["umaze", "medium", "large", "open"] = "umaze"
    """for goal and wander"""
    size: tuple[int, int] = (3, 5)
    """rows and columns of the open maze, in cells of 1 m; another size needs a row of its own in
    the table of edq_antmaze.py"""
    transitions: int | None = None
    """number of transitions, rounded up to whole episodes; by default 100,000, embedded 30,000"""
    action_noise: float = 0.5
    """std of the normal noise added to every action component"""
    seed: int = 0
    """seed of starts, goals, targets and noise"""
    dataset_id: str | None = None
    """Minari id of the new dataset; by default edq/pointmaze/<maze>-<recipe>-v0, or <recipe>-v0"""
    out: Path | None = None
    """a folder instead: new, empty, or a set of this tool, which is replaced; that of the embedded
    set by default"""


def path_to(walls: np.ndarray, start: Cell, goal: Cell) -> list[Cell]:
    """Cells of a shortest path from start (left out) to goal; ties broken in a fixed order."""
    came_from = {start: start}
    queue = deque([start])
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


def maze_of(args: Args) -> tuple[str, Maze]:
    """The maze of a set, and its name."""
    if args.recipe in RARE:
        return "ring", MAZES["ring"]
    if args.maze == "open" and args.size != (3, 5):
        rows, columns = args.size
        border = [1] * (columns + 2)
        walls = [border, *([[1] + [0] * columns + [1]] * rows), border]
        steps = 60 * (rows + columns)
        maze = Maze(MAZES["open"].env_id, walls, (rows, 1), (1, columns), steps)
        return f"open-{rows}x{columns}", maze
    return args.maze, MAZES[args.maze]


def marked(walls: list[list[int]], marks: dict[Cell, str]) -> list[list]:
    """A map in which some cells are starts, "r", or goals, "g"; without marks all of them are."""
    return [
        [marks.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)
    ]


def make_envs(recipe: str, maze: Maze) -> tuple[gym.Env, EnvSpec]:
    """The simulator the data come from, and the spec a policy is scored by."""
    both = {maze.start: "r", maze.goal: "g"}
    if recipe == "goal":
        marks = {}
    elif recipe in RARE:
        marks = both
    else:
        marks = {maze.goal: "g"}
    env = gym.make(
        maze.env_id,
        max_episode_steps=maze.steps,
        disable_env_checker=True,
        maze_map=marked(maze.walls, marks),
        continuing_task=True,
        reset_target=recipe == "goal",
    )
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    spec = copy.deepcopy(env.spec)
    spec.kwargs["maze_map"] = marked(maze.walls, both)
    spec.kwargs |= {"continuing_task": False, "reset_target": False}
    spec.max_episode_steps = RARE_LIMIT if recipe in RARE else maze.steps
    return env, spec


class Walker:
    """Chooses the actions. Plain numbers: numpy costs as much as a step of the simulator."""

    def __init__(self, args: Args, env: gym.Env, goal: Cell, rng: np.random.Generator):
        self.recipe = args.recipe
        self.wanders = args.recipe == "wander"
        self.noise = args.action_noise
        self.rng = rng
        self.maze = env.unwrapped.maze
        self.walls = np.array([[cell == 1 for cell in line] for line in self.maze.maze_map])
        self.free = [(int(i), int(j)) for i, j in np.argwhere(~self.walls)]
        self.route = cache(lambda start, end: path_to(self.walls, start, end))
        self.goal = goal

    def begin(self) -> None:
        """Decide what this episode is about. Drawn before the environment is reset."""
        self.rng.random()  # not used any more; without it, sets made earlier would come out new
        self.path = []
        self.shown = None
        self.offset = (0.0, 0.0)

    def choose_route(self) -> None:
        """Of the recipe rare: the short route, or the other one. Drawn after the reset."""
        walls = self.walls
        if self.rng.random() >= RARE_SHARE:
            walls = walls.copy()
            walls[1, 3] = True  # the middle of the ring's upper side
        self.path = path_to(walls, (1, 1), self.goal)

    def cell_at(self, x: float, y: float) -> Cell:
        row = math.floor(self.maze.y_map_center - y)
        column = math.floor(x + self.maze.x_map_center)
        return row, column

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """Push towards the next cell of the path, with noise; `[2]`."""
        x, y, speed_x, speed_y = obs["observation"].tolist()
        goal_x, goal_y = obs["desired_goal"].tolist()
        if self.recipe == "goal" and (goal_x, goal_y) != self.shown:
            # Redrawn, one step after an arrival.
            self.shown = (goal_x, goal_y)
            self.path = []
            self.goal = self.cell_at(goal_x, goal_y)
        if self.path and self.wanders:
            self.rng.random()  # as in begin
        if not self.path:
            end = self.free[self.rng.integers(len(self.free))] if self.wanders else self.goal
            self.path = self.route(self.cell_at(x, y), end)
        row, column = self.path[0]
        to_x = column + 0.5 - self.maze.x_map_center + self.offset[0]
        to_y = self.maze.y_map_center - row - 0.5 + self.offset[1]
        if not self.wanders and len(self.path) == 1 and self.path[0] == self.goal:
            to_x = goal_x
            to_y = goal_y
        elif math.hypot(to_x - x, to_y - y) < 0.5:
            # From the next step on, aim at a point near the middle of the next cell.
            self.path = self.path[1:]
            self.offset = self.rng.uniform(-0.15, 0.15, 2).tolist()
        push = (10 * (to_x - x) - speed_x, 10 * (to_y - y) - speed_y)
        noise = self.rng.normal(size=2).tolist()
        action = [min(max(p + self.noise * n, -1.0), 1.0) for p, n in zip(push, noise)]
        return np.array(action, np.float32)


def record(args: Args, env: gym.Env, goal: Cell, count: int) -> Iterator[dict]:
    """`count` episodes one by one; a walker goes on after an arrival."""
    length = env.spec.max_episode_steps
    rng = np.random.default_rng(args.seed)
    walker = Walker(args, env, goal, rng)
    for _ in tqdm(range(count), unit="episode", disable=None):
        walker.begin()
        obs, info = env.reset(seed=int(rng.integers(2**31)))
        if args.recipe in RARE:
            walker.choose_route()
        observations = [obs]
        actions = []
        rewards = []
        success = [info["success"]]
        for _ in range(length):
            action = walker.act(obs)
            obs, reward, _, truncated, info = env.step(action)
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
            success.append(info["success"])
        assert truncated
        yield {
            "observations": {
                key: np.array([o[key] for o in observations], np.float32) for key in obs
            },
            "actions": np.array(actions),
            "rewards": np.array(rewards),
            "terminations": np.zeros(length, bool),
            "truncations": np.arange(length) == length - 1,
            "infos": {"success": np.array(success)},
        }


class Arrivals:
    """Counts episodes that see their goal, and steps at it."""

    def __init__(self):
        self.episodes = 0
        self.steps = 0

    def watch(self, episodes: Iterator[dict]) -> Iterator[dict]:
        for episode in episodes:
            self.episodes += int(episode["rewards"].any())
            self.steps += int(episode["rewards"].sum())
            yield episode


def main(args: Args) -> None:
    transitions = args.transitions
    if transitions is None:
        transitions = 30_000 if args.recipe == "embedded" else 100_000
    if transitions < 1 or args.action_noise < 0 or not all(2 <= n <= 50 for n in args.size):
        fail(
            "transitions start at 1, noise is not negative, "
            "an open maze has 2 to 50 rows and columns"
        )
    name, maze = maze_of(args)
    set_name = args.recipe if args.recipe in RARE else f"{name}-{args.recipe}"
    dataset_id = args.dataset_id or f"edq/pointmaze/{set_name}-v0"
    if args.out:
        folder = args.out.expanduser().resolve()
    elif args.recipe == "embedded" and not args.dataset_id:
        folder = EMBEDDED
    else:
        folder = folder_of(dataset_id)
    env, scored = make_envs(args.recipe, maze)
    count = -(-transitions // maze.steps)
    arrivals = Arrivals()
    start = time.time()
    try:
        metadata = save(
            folder,
            dataset_id,
            arrivals.watch(record(args, env, maze.goal, count)),
            env.spec,
            scored,
            tool=Path(__file__).name,
            ref_min_score=0.0,
            ref_max_score=1.0,
            algorithm_name="breadth-first walker with a PD controller",
            description=f"Scripted walker, recipe {args.recipe}, action noise "
            f"{args.action_noise}, seed {args.seed}.",
        )
    except OSError as error:
        fail(f"{folder} cannot be written: {error}")
    episodes = metadata["total_episodes"]
    steps = metadata["total_steps"]
    speed = steps / (time.time() - start)
    print(f"{folder}: {episodes} episodes, {steps} transitions, {speed:.0f} a second")
    print(
        f"{arrivals.episodes / episodes:.0%} of the episodes see their goal, "
        f"{arrivals.steps / steps:.1%} of the steps are at it"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
