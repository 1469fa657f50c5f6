"""The PointMaze generator: what each recipe promises, read back from the dataset it writes."""

import importlib.util
import subprocess
import sys

import minari
import numpy as np
import pytest
from conftest import ROOT

FOLDER = ROOT / "results" / "datasets"


@pytest.fixture
def pointmaze(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("pointmaze", FOLDER / "pointmaze.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pointmaze", module)
    spec.loader.exec_module(module)
    return module


def made(pointmaze, out, **flags):
    pointmaze.main(pointmaze.Args(out=out, **flags))
    return minari.MinariDataset(str(out / "data"))


def arrays(dataset):
    return [
        np.concatenate([*e.observations.values(), np.pad(e.actions, ((0, 1), (0, 0)))], 1)
        for e in dataset
    ]


def test_equal_arrays_for_equal_seeds(pointmaze, tmp_path):
    sets = [
        made(
            pointmaze,
            tmp_path / str(i),
            recipe="wander",
            maze="medium",
            transitions=1200,
            seed=seed,
        )
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (np.stack(arrays(dataset)) for dataset in sets)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sets[0].total_steps == 1200 and sets[0].total_episodes == 2
    env = sets[0].recover_environment(eval_env=True)
    assert env.spec.max_episode_steps == 600 and env.spec.kwargs["continuing_task"] is False


def test_a_recorded_episode_is_the_simulator_s(pointmaze, tmp_path):
    """The recovered simulator, set to a stored state, answers the stored action with the next state and its reward."""
    dataset = made(pointmaze, tmp_path / "set", recipe="wander", transitions=300)
    env, episode = dataset.recover_environment(), dataset[0]
    env.reset(seed=0)
    for t in range(0, 300, 10):
        state, env.unwrapped.goal = (
            episode.observations["observation"][t],
            episode.observations["desired_goal"][t],
        )
        env.unwrapped.point_env.set_state(state[:2], state[2:])
        obs, reward, *_ = env.step(episode.actions[t])
        assert np.abs(obs["observation"] - episode.observations["observation"][t + 1]).max() < 1e-4
        near = (
            np.linalg.norm(obs["achieved_goal"] - episode.observations["desired_goal"][t]) <= 0.45
        )
        assert reward == episode.rewards[t] == near
    env.close()


def test_wander_ignores_the_goal_and_sees_all_of_the_maze(pointmaze, antmaze, tmp_path):
    dataset = made(pointmaze, tmp_path / "set", recipe="wander", transitions=6000)
    places = np.concatenate([e.observations["achieved_goal"] for e in dataset])
    cells = {(int(np.floor(2.5 - y)), int(np.floor(x + 2.5))) for x, y in places}
    assert cells == {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}
    goals = np.stack([e.observations["desired_goal"] for e in dataset])
    assert (
        np.ptp(goals, 1).max() == 0 and np.abs(goals[:, 0] - (-1, 1)).max() < 0.26
    )  # one goal, with its noise
    left = [np.flatnonzero(e.rewards)[-1] < 299 for e in dataset if e.rewards.any()]
    assert np.mean(left) > 0.5  # it goes by
    args = antmaze.replace(
        antmaze.Args(), env_id="pointmaze-umaze", dataset_id=str(tmp_path / "set")
    )
    assert len(antmaze.load_dataset(args, "cpu")[0].obs) == 6000


def test_goal_walkers_arrive_again_and_again(pointmaze, tmp_path):
    dataset = made(pointmaze, tmp_path / "set", recipe="goal", maze="umaze", transitions=3000)
    for episode in dataset:
        arrivals, goals = np.flatnonzero(episode.rewards), episode.observations["desired_goal"]
        assert len(arrivals) >= 2
        changes = np.flatnonzero(np.abs(np.diff(goals, axis=0)).max(1)) + 1
        assert set(changes) <= set(arrivals + 2) | set(
            arrivals + 1
        )  # a new goal after an arrival, and at no other time


def test_rare_has_two_routes_and_time_for_one(pointmaze, antmaze, tmp_path):
    dataset = made(pointmaze, tmp_path / "set", recipe="rare", transitions=30_000)
    steps, upper = [], []
    for episode in dataset:
        steps.append(int(np.flatnonzero(episode.rewards)[0]) + 1)
        way = episode.observations["achieved_goal"][: steps[-1]]
        upper.append(bool((way[:, 1] > 1.4).all()))  # it never left the upper side of the ring
    assert 0.04 < np.mean(upper) < 0.18  # 10 % of 100 episodes, give or take 2.7 standard errors
    short, long = (np.array(steps)[np.array(upper) == value] for value in (True, False))
    assert short.max() < pointmaze.RARE_LIMIT < long.min()
    args = antmaze.replace(
        antmaze.Args(), env_id="pointmaze-rare", dataset_id=str(tmp_path / "set")
    )
    antmaze.load_dataset(args, "cpu")
    env = antmaze.make_env(antmaze.TASKS["pointmaze-rare"])
    assert env.spec.max_episode_steps == pointmaze.RARE_LIMIT
    start, goal = (env.reset(seed=0)[0][k] for k in ("achieved_goal", "desired_goal"))
    assert np.abs(start - (-2, 2)).max() < 0.26 and np.abs(goal - (2, 2)).max() < 0.26
    env.close()


def test_an_open_maze_of_any_size(pointmaze, antmaze, tmp_path):
    made(pointmaze, tmp_path / "set", recipe="goal", maze="open", size=(4, 6), transitions=600)
    args = antmaze.replace(
        antmaze.Args(), env_id="pointmaze-open", dataset_id=str(tmp_path / "set")
    )
    data, _ = antmaze.load_dataset(args, "cpu")
    assert data.obs[:, 0].abs().max() < 3 and data.obs[:, 1].abs().max() < 2
    maze = np.array(antmaze.TASKS["pointmaze-open"].env_kwargs["maze_map"])
    assert maze.shape == (6, 8) and (maze == "r").sum() == (maze == "g").sum() == 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--transitions", "0"),
        ("--action-noise", "-1"),
        ("--size", "1", "5"),
        ("--dataset-id", "../x"),
    ],
)
def test_bad_flags(flags, tmp_path):
    command = [sys.executable, str(FOLDER / "pointmaze.py"), "--recipe", "goal", *flags]
    env = {"MINARI_DATASETS_PATH": str(tmp_path / "sets"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and done.stderr.count("error:") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
