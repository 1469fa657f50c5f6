"""The AntMaze generator and the ant's training: equal, resumable, and what the real environment would give."""

import csv
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import gymnasium.envs.mujoco
import minari
import mujoco as mj
import numpy as np
import pytest
import torch
from conftest import ROOT

FOLDER = ROOT / "results" / "datasets"
sys.path.insert(0, str(FOLDER))  # as the generators find each other when they are run
import antmaze as generator  # noqa: E402
import train_ant  # noqa: E402

# A set with episodes short enough for a test.
SMALL = """
import antmaze
print("figures", antmaze.collect(antmaze.Args("{task}", {count}, 3, {processes}), {length})["hash"])
"""


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    """Datasets go to a folder of the test; XML files left behind would be seen in another."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "tmp")
    )  # of this process, which has read TMPDIR already
    (tmp_path / "tmp").mkdir()
    yield tmp_path / "minari"
    assert not list((tmp_path / "tmp").glob("*.xml"))


def start(root, task="umaze", episodes=41, processes=2, length=40) -> subprocess.Popen:
    """A process that makes a small set below `root`."""
    code = SMALL.format(task=task, count=episodes * length, processes=processes, length=length)
    env = {**os.environ, "MINARI_DATASETS_PATH": str(root), "PYTHONPATH": str(FOLDER)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env=env, start_new_session=True, **pipes)


def make(root, **kwargs) -> str:
    """Make a small set below `root`; returns what was printed."""
    process = start(root, **kwargs)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def content(root, task="umaze") -> str:
    """A hash of all that Minari reads of a set."""
    digest = hashlib.sha256()
    for e in minari.MinariDataset(str(root / "edq" / "antmaze" / f"{task}-v0" / "data")):
        arrays = (
            *e.observations.values(),
            e.actions,
            e.rewards,
            e.terminations,
            e.truncations,
            e.infos["success"],
        )
        for array in arrays:
            digest.update(array.tobytes())
    return digest.hexdigest()


def test_equal_whatever_the_number_of_processes(tmp_path):
    """Also: another seed is another set, and nothing but the set is left."""
    one, two = make(tmp_path / "one", processes=1), make(tmp_path / "two", processes=2)
    assert "; 1 processes" in one and "; 2 processes" in two
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.split("figures")[1] == two.split("figures")[1]
    assert not list(tmp_path.glob("*/edq/antmaze/.unfinished*"))
    assert [p.name for p in (tmp_path / "one" / "edq" / "antmaze").iterdir() if p.is_dir()] == [
        "umaze-v0"
    ]
    generator.record_group("umaze", 40, 4, 0.2, 0, 1, tmp_path / "other.npz")
    generator.record_group("umaze", 40, 3, 0.2, 0, 1, tmp_path / "same.npz")
    first = next(
        iter(minari.MinariDataset(str(tmp_path / "one" / "edq" / "antmaze" / "umaze-v0" / "data")))
    )
    same, other = (
        generator.load_arrays(tmp_path / f"{name}.npz")["actions"][0] for name in ("same", "other")
    )
    # This process may use more threads, and so round otherwise, which grows along an episode.
    assert np.allclose(same[:3], first.actions[:3], atol=1e-3) and not np.allclose(
        other[:3], first.actions[:3], atol=0.1
    )


def children(pid: int) -> list[int]:
    return [
        int(x)
        for x in subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True
        ).stdout.split()
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_started_again(tmp_path, how):
    """Finished groups are kept and not made again; the workers end; the set equals that of an undisturbed run."""
    size = dict(episodes=60, length=150)
    process, deadline = start(tmp_path / "cut", processes=1, **size), time.time() + 60
    while not (parts := list((tmp_path / "cut").rglob(".unfinished-antmaze-*/*.npz"))):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    workers = children(process.pid)
    os.kill(
        process.pid, how
    )  # the process alone: a terminal's Ctrl-C would reach the workers too, who ignore it
    process.communicate(timeout=20)
    assert process.returncode != 0 and workers
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.time() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "cut" / "edq" / "antmaze" / "umaze-v0").exists()
    parts = list((tmp_path / "cut").rglob(".unfinished-antmaze-*/*.npz"))
    assert 0 < len(parts) < 3, "killed too late for a test"
    # A mark in a finished part shows that it is used as it is: an action of 0.25 that nobody took.
    part = generator.load_arrays(parts[0])
    part["actions"][0, 0, 0] = 0.25
    np.savez(parts[0], **part)
    assert f"{len(parts) * 20 * 150} are there already" in make(tmp_path / "cut", **size)
    make(tmp_path / "whole", **size)
    cut, whole = (
        minari.MinariDataset(str(tmp_path / name / "edq" / "antmaze" / "umaze-v0" / "data"))
        for name in ("cut", "whole")
    )
    assert len(cut) == len(whole) == 60
    for a, b in zip(cut, whole):
        same = a.actions == b.actions
        assert same.sum() >= same.size - (a.id == int(parts[0].stem)) and np.array_equal(
            a.rewards, b.rewards
        )
        assert a.id != int(parts[0].stem) or a.actions[0, 0] == 0.25
        assert all(
            np.array_equal(a.observations[key], b.observations[key]) for key in a.observations
        )
    assert not list((tmp_path / "cut").rglob(".unfinished*"))


@pytest.mark.parametrize("task", generator.TASKS)
def test_replay_in_the_real_environment(datasets, task):
    """Seed and actions give back what is stored, for every task; the walker moves; specs and layout are right."""
    length, steps = (300, 700) if task == "umaze" else (60, 700 if "umaze" in task else 1000)
    make(datasets, task=task, episodes=2, processes=1, length=length)
    dataset = minari.load_dataset(f"edq/antmaze/{task}-v0")
    env, eval_env = dataset.recover_environment(), dataset.recover_environment(eval_env=True)
    for made in (env, eval_env):
        os.unlink(made.unwrapped.tmp_xml_file_path)
    assert env.spec.max_episode_steps == length and eval_env.spec.max_episode_steps == steps
    seeds = [int(metadata["seed"]) for metadata in dataset.storage.get_episode_metadata(range(2))]
    assert seeds[0] != seeds[1]
    for e in dataset:
        obs, info = env.reset(seed=seeds[e.id])
        observations, rewards, success, cut = [obs], [], [info["success"]], []
        for action in e.actions:
            obs, reward, terminated, truncated, info = env.step(action)
            observations, rewards, success = (
                observations + [obs],
                rewards + [reward],
                success + [info["success"]],
            )
            cut.append((terminated, truncated))
        for key, size in {"observation": 27, "achieved_goal": 2, "desired_goal": 2}.items():
            assert (
                e.observations[key].shape == (length + 1, size)
                and e.observations[key].dtype == np.float32
            )
            assert (
                np.abs(np.array([o[key] for o in observations]) - e.observations[key]).max() < 1e-5
            )
        assert np.array_equal(rewards, e.rewards) and np.array_equal(success, e.infos["success"])
        assert np.array_equal(np.array(cut), np.stack([e.terminations, e.truncations], 1))
        way = np.linalg.norm(
            e.observations["achieved_goal"] - e.observations["achieved_goal"][0], axis=1
        )
        assert way.max() > 2 and np.abs(e.actions).max() <= 1 and e.actions.dtype == np.float32
        if task == "umaze":
            assert 0 < e.rewards.sum() < length - 50
    # The evaluation: the same walls, one start, one goal, over on arrival.
    maze, scored = env.unwrapped.maze, eval_env.unwrapped.maze
    same = [
        [(a == 1) == (b == 1) for a, b in zip(*lines)]
        for lines in zip(maze.maze_map, scored.maze_map)
    ]
    assert np.all(same) and len(maze.maze_map) == len(scored.maze_map)
    assert len(scored.unique_goal_locations) == len(scored.unique_reset_locations) == 1
    assert (
        not eval_env.unwrapped.continuing_task
        and env.unwrapped.continuing_task
        and not env.unwrapped.reset_target
    )
    cells = {
        "umaze": 1,
        "umaze-diverse": 7,
        "medium-play": 26,
        "medium-diverse": 4,
        "large-play": 46,
        "large-diverse": 8,
    }
    assert len(maze.unique_goal_locations) == len(maze.unique_reset_locations) == cells[task]
    metadata = json.loads(
        (datasets / "edq" / "antmaze" / f"{task}-v0" / "data" / "metadata.json").read_text()
    )
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (
        0,
        1,
    ) and "not the published" in metadata["description"]
    env.close(), eval_env.close()


def test_the_script_loads_it(antmaze, datasets):
    """As 31 numbers and a reward of 1 at the goal, in the task's own maze; nothing is noted or refused."""
    name, dataset_id = "antmaze-umaze-diverse", "edq/antmaze/umaze-diverse-v0"
    make(datasets, task="umaze-diverse", episodes=20, length=150)
    args = antmaze.replace(antmaze.Args(), env_id=name, dataset_id=dataset_id, reward="raw")
    before = antmaze.TASKS[name]
    data, info = antmaze.load_dataset(args, "cpu")
    assert (
        data.obs.shape == (3000, 31) and data.action.shape == (3000, 8) and info["episodes"] == 20
    )
    near = (data.next_obs[:, 27:29] - data.next_obs[:, 29:]).norm(dim=1) <= generator.RADIUS
    assert near.any() and not near.all()
    assert torch.equal(data.reward, near.float()) and torch.equal(data.end, near.float())
    assert antmaze.TASKS[name] == before


def test_figures_and_record(datasets, tmp_path, capsys):
    """What is printed and recorded is what is in the set."""
    args = generator.Args(
        "umaze", 650, seed=1, processes=1, dataset_id="some/ant-v3", record=tmp_path / "sets.csv"
    )
    generator.main(args)
    (row,) = csv.DictReader(args.record.open())
    (e,) = minari.load_dataset("some/ant-v3")
    assert len(e.rewards) == 700 == int(row["transitions"])  # rounded up
    assert float(row["success"]) == float(e.rewards.any()) and float(row["reward_share"]) == round(
        e.rewards.mean(), 4
    )
    xy = e.observations["achieved_goal"]
    assert int(row["squares"]) == len({(x // 1, y // 1) for x, y in xy.tolist()})
    assert (
        int(row["cells"]) == len({((x + 10) // 4, (y + 10) // 4) for x, y in xy.tolist()})
        and row["free_cells"] == "7"
    )
    assert (
        "1 episodes of 700 steps" in (out := capsys.readouterr().out)
        and f"{e.rewards.mean():.1%} of the steps" in out
    )
    # The same once more: refused, and the set stays.
    with pytest.raises(SystemExit) as stop:
        generator.main(args)
    assert stop.value.code == 2 and "already" in capsys.readouterr().err
    assert len(minari.load_dataset("some/ant-v3")) == 1


BAD = [
    (("--task", "huge"), "large-diverse"), (("--transitions", "0"), "transitions"), (("--seed", "-1"), "seed"),
    (("--action-noise", "-0.1"), "noise"), (("--action-noise", "nan"), "noise"), (("--processes", "-2"), "processes"),
    (("--dataset-id", "../../away"), "no dataset id"), (("--record", "no/such/folder/x.csv"), "folder"),
]  # fmt: skip


@pytest.mark.parametrize("flags, word", BAD)
def test_bad_flags(datasets, capsys, flags, word):
    with pytest.raises(SystemExit) as stop:
        generator.main(generator.tyro.cli(generator.Args, args=[str(f) for f in flags]))
    text = capsys.readouterr().err.strip()
    assert (
        stop.value.code == 2
        and text.startswith("error: ")
        and len(text.splitlines()) == 1
        and word in text
    )
    assert not datasets.exists() or not list(datasets.iterdir())  # Minari makes the empty folder


def test_shortest_ways():
    """Every free cell is led to the goal, in as many steps as there are when all ways are tried."""
    walls = generator.walls_of(generator.specs("large-play")[0])
    free = [tuple(cell) for cell in np.argwhere(~walls).tolist()]
    for goal in ((7, 9), (1, 1)):
        steps = np.where(walls, np.inf, 99.0)
        steps[goal] = 0
        for _ in range(60):  # relaxation: a cell is one step farther than its nearest neighbour
            for i, j in set(free) - {goal}:
                steps[i, j] = 1 + min(
                    steps[i + 1, j], steps[i - 1, j], steps[i, j + 1], steps[i, j - 1]
                )
        following = generator.way_to(goal, walls)
        assert set(following) == set(free) and following[goal] == goal
        for cell in set(free) - {goal}:
            assert steps[following[cell]] == steps[cell] - 1


def states(count: int, seed: int) -> np.ndarray:
    """Random states `[count, 29]`: qpos and qvel of ants in the air, tilted, with legs anywhere within their limits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 29))
    x[:, 2], x[:, 3:7] = 1.0, rng.normal(size=(count, 4)) * (0.3, 0.1, 0.1, 1) + (1, 0, 0, 0)
    x[:, 3:7] /= np.linalg.norm(x[:, 3:7], axis=1, keepdims=True)
    limits = np.radians(
        [[-30, 30], [30, 70], [-30, 30], [-70, -30], [-30, 30], [-70, -30], [-30, 30], [30, 70]]
    )
    x[:, 7:15] = rng.uniform(*limits.T, (count, 8))
    return x


def product(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Of two quaternions, through MuJoCo."""
    out = np.zeros(4)
    mj.mju_mulQuat(out, p, q)
    return out


def test_features_after_a_quarter_turn_of_the_world():
    """Everything turned about the vertical: the ant sees and does the same."""
    x, rel = states(50, 0), np.random.default_rng(1).normal(size=(50, 2)) * 4
    turned, half = x.copy(), np.sqrt(0.5)
    turned[:, 3:7] = [product(np.array([half, 0, 0, half]), q) for q in x[:, 3:7]]
    turned[:, 15:17] = np.stack([-x[:, 16], x[:, 15]], 1)
    f, k = generator.features(x[:, 2:], rel)
    g, same = generator.features(turned[:, 2:], np.stack([-rel[:, 1], rel[:, 0]], 1))
    assert np.abs(f - g).max() < 1e-12 and np.array_equal(k, same)
    assert f.shape == (50, 30) and len(set(k.tolist())) == 4
    assert (
        np.abs(f[:, 5]) <= f[:, 4] + 1e-9
    ).all()  # the target lies within 45 degrees of the front


def test_features_and_torques_after_a_quarter_turn_of_the_ant():
    """The same ant with its legs numbered from another one: equal features, and the same motion in the simulator."""
    model = mj.MjModel.from_xml_path(
        os.path.join(os.path.dirname(gymnasium.envs.mujoco.__file__), "assets", "ant.xml")
    )
    out = np.random.default_rng(2).uniform(-1, 1, (20, 8))
    x, rel, half = states(20, 3), np.random.default_rng(4).normal(size=(20, 2)) * 4, np.sqrt(0.5)

    def renumbered(x: np.ndarray) -> np.ndarray:
        """The body turned by 90 degrees about its own axis while the legs stay where they are: leg i becomes i - 1."""
        y = x.copy()
        y[:, 3:7] = [product(q, np.array([half, 0, 0, half])) for q in x[:, 3:7]]
        y[:, 18:20] = np.stack([x[:, 19], -x[:, 18]], 1)  # the spin, seen from the body
        for at in (7, 21):
            legs = x[:, at : at + 8].reshape(-1, 4, 2).copy()
            legs[:, :, 1] *= (1, -1, -1, 1)
            legs = np.roll(legs, -1, 1)
            legs[:, :, 1] *= (1, -1, -1, 1)
            y[:, at : at + 8] = legs.reshape(-1, 8)
        return y

    def moved(x: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """The states half a second later; on the floor by then."""
        result, data = [], mj.MjData(model)
        for state, action in zip(x, actions):
            mj.mj_resetData(model, data)
            data.qpos[:], data.qvel[:], data.ctrl[:] = state[:15], state[15:], action
            mj.mj_step(model, data, nstep=50)
            result.append(np.concatenate([data.qpos, data.qvel]))
        return np.array(result)

    (f, k), (g, less) = (
        generator.features(x[:, 2:], rel),
        generator.features(renumbered(x)[:, 2:], rel),
    )
    assert np.abs(f - g).max() < 1e-12 and np.array_equal((k - 1) % 4, less)
    a, b = generator.torques(out, k), generator.torques(out, less)
    assert not np.allclose(a, b)
    first, second = renumbered(moved(x, a)), moved(renumbered(x), b)
    sign = np.sign(
        (first[:, 3:7] * second[:, 3:7]).sum(1, keepdims=True)
    )  # q and -q are the same rotation
    second[:, 3:7] *= sign
    assert np.abs(first - second).max() < 1e-6 and np.abs(first - renumbered(x)).max() > 0.1


def test_the_ant_walks():
    """The weights that come with the repository; and without them, or towards a wrong side, it does not."""
    ant = generator.load_arrays(generator.ANT)
    success, speed = train_ant.evaluate(ant, ants=8)
    assert success == 1 and speed > 1.5
    success, speed = train_ant.evaluate(ant | {"W2": -ant["W2"], "b2": -ant["b2"]}, ants=8)
    assert success < 0.5 and speed < 0.5


def test_training(tmp_path, monkeypatch):
    """A few iterations change the weights, write them in the layout of the generator, and note the curve."""
    monkeypatch.setattr(train_ant, "evaluate", functools.partial(train_ant.evaluate, ants=4))
    args = train_ant.Args(
        tmp_path / "ant.npz", tmp_path / "curve.csv", steps=1000, ants=8, rollout=32, eval_every=2
    )
    trained = train_ant.train(args)
    ant, ours = generator.load_arrays(args.out), generator.load_arrays(generator.ANT)
    assert {k: v.shape for k, v in ant.items()} == {k: v.shape for k, v in ours.items()}
    assert all(np.array_equal(ant[key], trained[key]) for key in ant)
    untrained = train_ant.train(train_ant.Args(tmp_path / "b.npz", steps=1, ants=8, rollout=32))
    assert not np.array_equal(untrained["W1"], ant["W1"])
    actions = generator.act(ant, np.eye(27)[:20], np.ones((20, 2)))
    assert actions.shape == (20, 8) and np.abs(actions).max() <= 1
    rows = list(csv.DictReader(args.record.open()))
    assert [int(row["steps"]) for row in rows] == [512, 1024] and rows[0].keys() >= {
        "seconds",
        "success",
        "closing_speed",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ant.npz", "b.npz", "curve.csv", "tmp"]
    # The same seed once more gives the same weights.
    again = train_ant.train(
        train_ant.Args(tmp_path / "c.npz", steps=1000, ants=8, rollout=32, eval_every=2)
    )
    assert all(np.array_equal(again[key], trained[key]) for key in ant)


@pytest.mark.parametrize(
    "flags", [("--steps", "0"), ("--seed", "-1"), ("--out", "no/such/folder/ant.npz")]
)
def test_bad_flags_of_the_training(tmp_path, flags):
    run = subprocess.run(
        [sys.executable, str(FOLDER / "train_ant.py"), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    errors = [
        line for line in run.stderr.splitlines() if "AdroitHand" not in line
    ]  # Gymnasium-Robotics says a word
    assert run.returncode == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    assert [p.name for p in tmp_path.iterdir()] == ["tmp"]
