"""The PointMaze generator: what each recipe promises, read back from the dataset it writes."""

import os
import signal
import sys

import minari
import numpy as np
import pytest
import tyro
from conftest import ROOT

pytestmark = pytest.mark.study
sys.path.insert(0, str(ROOT / "results" / "datasets"))  # as the makers find each other
import make_pointmaze  # noqa: E402


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Datasets go to a folder of the test; what signals do is put back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "sets"
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*flags):
    make_pointmaze.main(tyro.cli(make_pointmaze.Args, args=[str(flag) for flag in flags]))


def made(out, **flags):
    make_pointmaze.main(make_pointmaze.Args(out=out, **flags))
    return minari.MinariDataset(str(out / "data"))


def positions(dataset):
    return np.stack([e.observations["achieved_goal"] for e in dataset])


def recovered(dataset, eval_env):
    env = dataset.recover_environment(eval_env=eval_env)
    os.unlink(env.unwrapped.tmp_xml_file_path)
    return env


def test_equal_arrays_for_equal_seeds(tmp_path):
    size = {"recipe": "wander", "maze": "medium", "transitions": 1200}
    first = made(tmp_path / "first", seed=3, **size)
    again = made(tmp_path / "again", seed=3, **size)
    other = made(tmp_path / "other", seed=4, **size)
    for a, b in zip(first, again):
        assert np.array_equal(a.actions, b.actions)
        for key in a.observations:
            assert np.array_equal(a.observations[key], b.observations[key])
    assert not np.array_equal(positions(first), positions(other))
    assert first.total_steps == 1200
    assert first.total_episodes == 2
    env = recovered(first, eval_env=True)
    assert env.spec.max_episode_steps == 600
    assert env.spec.kwargs["continuing_task"] is False


def test_the_set_that_ships_is_the_one_that_is_made(tmp_path):
    """In its layout and figures; another processor may round the last digits otherwise."""
    ships = minari.MinariDataset(str(make_pointmaze.EMBEDDED / "data"))
    first = made(tmp_path / "set", transitions=300)[0]
    assert ships.total_steps == 30_000
    assert np.allclose(first.actions[:5], ships[0].actions[:5], atol=1e-3)
    assert ships.storage.metadata["made_by"] == "make_pointmaze.py"


def test_a_recorded_episode_is_the_simulator_s(tmp_path):
    """Set to a stored state, the recovered environment answers with the next one and its reward."""
    dataset = made(tmp_path / "set", recipe="wander", transitions=300)
    env = recovered(dataset, eval_env=False)
    episode = dataset[0]
    states = episode.observations["observation"]
    goals = episode.observations["desired_goal"]
    env.reset(seed=0)
    for t in range(0, 300, 10):
        env.unwrapped.goal = goals[t]
        env.unwrapped.point_env.set_state(states[t, :2], states[t, 2:])
        obs, reward, *_ = env.step(episode.actions[t])
        assert np.abs(obs["observation"] - states[t + 1]).max() < 1e-4
        near = np.linalg.norm(obs["achieved_goal"] - goals[t]) <= 0.45
        assert reward == episode.rewards[t] == near
    env.close()


def test_wander_ignores_the_goal_and_sees_all_of_the_maze(tmp_path):
    dataset = made(tmp_path / "set", recipe="wander", transitions=6000)
    cells = {
        (int(np.floor(2.5 - y)), int(np.floor(x + 2.5))) for x, y in np.vstack(positions(dataset))
    }
    assert cells == {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}
    goals = np.stack([e.observations["desired_goal"] for e in dataset])
    assert np.ptp(goals, 1).max() == 0
    assert np.abs(goals[:, 0] - (-1, 1)).max() < 0.26  # one goal, with its noise
    arrived = [e.rewards for e in dataset if e.rewards.any()]
    assert np.mean([np.flatnonzero(rewards)[-1] < 299 for rewards in arrived]) > 0.5  # it goes by


def test_goal_walkers_arrive_again_and_again(tmp_path):
    """A new goal after an arrival, and at no other time."""
    dataset = made(tmp_path / "set", recipe="goal", maze="umaze", transitions=3000)
    for episode in dataset:
        arrivals = np.flatnonzero(episode.rewards)
        assert len(arrivals) >= 2
        moves = np.abs(np.diff(episode.observations["desired_goal"], axis=0)).max(1)
        changes = np.flatnonzero(moves) + 1
        assert set(changes) <= set(arrivals + 1) | set(arrivals + 2)


def test_rare_has_two_routes_and_time_for_one(tmp_path):
    dataset = made(tmp_path / "set", recipe="rare", transitions=30_000)
    steps = []
    is_short = []
    for episode in dataset:
        steps.append(int(np.flatnonzero(episode.rewards)[0]) + 1)
        way = episode.observations["achieved_goal"][: steps[-1]]
        is_short.append(bool((way[:, 1] > 1.4).all()))  # it never left the ring's upper side
    assert 0.04 < np.mean(is_short) < 0.18  # 10 % of 100 episodes, within 2.7 standard errors
    short = np.array(steps)[is_short]
    long = np.array(steps)[~np.array(is_short)]
    assert short.max() < make_pointmaze.RARE_LIMIT < long.min()
    env = recovered(dataset, eval_env=True)
    assert env.spec.max_episode_steps == make_pointmaze.RARE_LIMIT
    obs = env.reset(seed=0)[0]
    assert np.abs(obs["achieved_goal"] - (-2, 2)).max() < 0.26
    assert np.abs(obs["desired_goal"] - (2, 2)).max() < 0.26
    env.close()


def test_an_open_maze_of_any_size(tmp_path):
    flags = {"recipe": "goal", "maze": "open", "size": (4, 6)}
    dataset = made(tmp_path / "set", transitions=600, **flags)
    x, y = np.vstack(positions(dataset)).T
    assert np.abs(x).max() < 3
    assert np.abs(y).max() < 2
    env = recovered(dataset, eval_env=True)
    cells = [cell for line in env.spec.kwargs["maze_map"] for cell in line]
    assert len(cells) == 6 * 8
    assert cells.count("r") == cells.count("g") == 1


def test_out_replaces_nothing_but_its_own(tmp_path, monkeypatch, capsys):
    """`--out .` among a student's files, a home folder, a symlink: all stay as they are."""
    flags = ("--recipe", "goal", "--transitions", 300)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for out in (".", "~", home, "..", tmp_path / "link", home / "thesis.tex"):
        with pytest.raises(SystemExit) as stop:
            run(*flags, "--out", out)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("error: ") == 1
        assert [path.name for path in home.iterdir()] == ["thesis.tex"]
    run(*flags, "--out", "~/set")
    run(*flags, "--out", "~/set")  # its own
    assert sorted(path.name for path in home.iterdir()) == ["set", "thesis.tex"]


BAD = [
    ("--transitions", "0"),
    ("--action-noise", "-1"),
    ("--size", "1", "5"),
    ("--dataset-id", "../x"),
]


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags(sets, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        run("--recipe", "goal", *flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert not sets.exists()
