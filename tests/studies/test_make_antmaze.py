"""The AntMaze generator: equal, resumable, in two forms, and what the real environment gives."""

import csv
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
import tyro
from conftest import ROOT

pytestmark = pytest.mark.study
FOLDER = ROOT / "results" / "datasets"
sys.path.insert(0, str(FOLDER))  # as the makers find each other when they are run
import make_antmaze as maker  # noqa: E402

TASKS = tuple(maker.TASKS)


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Datasets go to a folder of the test, what signals do is put back, no XML file is left."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    # Of this process, which has read TMPDIR already.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "sets"
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not list((tmp_path / "tmp").glob("*.xml"))


@pytest.fixture
def inline(monkeypatch):
    """Groups are recorded in this process: starting others takes longer than a small set."""

    def record_groups(jobs, done, total, processes):
        for job in jobs:
            maker.record_group(*job)

    monkeypatch.setattr(maker, "record_groups", record_groups)


def run(*flags):
    maker.main(tyro.cli(maker.Args, args=[str(flag) for flag in flags]))


def start(root, *flags):
    """A process that makes a small umaze set below `root`."""
    env = {**os.environ, "MINARI_DATASETS_PATH": str(root)}
    command = [sys.executable, str(FOLDER / "make_antmaze.py"), "--task", "umaze", *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def make(root, *flags):
    """Make a small set below `root`; returns what was printed."""
    process = start(root, *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def load(root, name="umaze-v0"):
    return minari.MinariDataset(str(root / "edq" / "antmaze" / name / "data"))


def content(dataset):
    """A hash of all that Minari reads of a set."""
    digest = hashlib.sha256()
    for e in dataset:
        arrays = [*e.observations.values(), e.actions, e.rewards, e.terminations, e.truncations]
        for array in [*arrays, e.infos["success"]]:
            digest.update(array.tobytes())
    return digest.hexdigest()


def test_killed_and_started_again(tmp_path):
    """Finished groups are kept and not made again; the workers end; the set is that of a run which
    nobody disturbed, with another number of processes."""
    flags = ("--transitions", 3600, "--length", 60)
    process = start(tmp_path / "cut", *flags, "--processes", 1)
    deadline = time.time() + 100
    parts = []
    while not parts:
        assert process.poll() is None and time.time() < deadline
        parts = list((tmp_path / "cut").rglob(".unfinished-antmaze-*/*.npz"))
        time.sleep(0.01)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    workers = listed.stdout.split()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert workers
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.time() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "cut" / "edq" / "antmaze" / "umaze-v0").exists()
    parts = sorted((tmp_path / "cut").rglob(".unfinished-antmaze-*/*.npz"))
    out = make(tmp_path / "cut", *flags, "--processes", 1)
    if len(parts) < 3:
        assert f"{len(parts) * 20 * 60} are there already; 1 processes" in out
    assert "; 2 processes" in make(tmp_path / "whole", *flags, "--processes", 2)
    assert content(load(tmp_path / "cut")) == content(load(tmp_path / "whole"))
    left = [path.name for path in (tmp_path / "cut" / "edq" / "antmaze").iterdir()]
    assert sorted(left) == ["namespace_metadata.json", "umaze-v0"]


@pytest.mark.parametrize("task", TASKS)
def test_replay_in_the_real_environment(sets, inline, task):
    """Seed and actions give back what is stored; the walker moves; specs and layout are right."""
    length = 300 if task == "umaze" else 60
    steps = 700 if "umaze" in task else 1000
    run("--task", task, "--transitions", 2 * length, "--length", length)
    dataset = minari.load_dataset(f"edq/antmaze/{task}-v0")
    env = dataset.recover_environment()
    eval_env = dataset.recover_environment(eval_env=True)
    for made in (env, eval_env):
        os.unlink(made.unwrapped.tmp_xml_file_path)
    assert env.spec.max_episode_steps == length
    assert eval_env.spec.max_episode_steps == steps
    metadata = list(dataset.storage.get_episode_metadata(range(2)))
    for e in dataset:
        obs, info = env.reset(seed=int(metadata[e.id]["seed"]))
        observations = [obs]
        success = [info["success"]]
        rewards = []
        cut = []
        for action in e.actions:
            obs, reward, terminated, truncated, info = env.step(action)
            observations.append(obs)
            success.append(info["success"])
            rewards.append(reward)
            cut.append((terminated, truncated))
        for key, size in {"observation": 27, "achieved_goal": 2, "desired_goal": 2}.items():
            stored = e.observations[key]
            assert stored.shape == (length + 1, size)
            assert stored.dtype == np.float32
            assert np.abs(np.array([o[key] for o in observations]) - stored).max() < 1e-5
        assert np.array_equal(rewards, e.rewards)
        assert np.array_equal(success, e.infos["success"])
        assert np.array_equal(np.array(cut), np.stack([e.terminations, e.truncations], 1))
        places = e.observations["achieved_goal"]
        assert np.linalg.norm(places - places[0], axis=1).max() > 2
        assert np.abs(e.actions).max() <= 1
        assert e.actions.dtype == np.float32
        if task == "umaze":
            assert 0 < e.rewards.sum() < length - 50
    # The evaluation: the same walls, one start, one goal, over on arrival.
    maze = env.unwrapped.maze
    scored = eval_env.unwrapped.maze
    walls = [[cell == 1 for cell in line] for line in maze.maze_map]
    assert walls == [[cell == 1 for cell in line] for line in scored.maze_map]
    assert len(scored.unique_goal_locations) == len(scored.unique_reset_locations) == 1
    assert not eval_env.unwrapped.continuing_task
    assert env.unwrapped.continuing_task
    assert not env.unwrapped.reset_target
    cells = dict(zip(TASKS, (1, 7, 26, 4, 46, 8), strict=True))
    assert len(maze.unique_goal_locations) == len(maze.unique_reset_locations) == cells[task]
    env.close()
    eval_env.close()


def test_two_forms_of_one_recording(sets, inline, tmp_path):
    """d4rl: reward 1 within 0.5 m of the evaluation's goal, whatever the walker is after."""
    flags = ("--task", "umaze-diverse", "--transitions", 4000, "--length", 200, "--seed", 1)
    run(*flags, "--form", "minari", "d4rl", "--record", tmp_path / "sets.csv")
    own = load(sets, "umaze-diverse-v0")
    one = load(sets, "umaze-diverse-d4rl-v0")
    assert len(own) == len(one) == 20
    goal = np.array([-4, 4])  # cell (1, 1) of a maze of 5 x 5 cells of 4 m
    sent = []
    seen = []
    gone_by = False
    for a, b in zip(own, one, strict=True):
        assert np.array_equal(a.actions, b.actions)
        for key in ("observation", "achieved_goal"):
            assert np.array_equal(a.observations[key], b.observations[key])
        assert (b.observations["desired_goal"] == goal).all()
        sent.append(a.observations["desired_goal"][0])
        near = np.linalg.norm(b.observations["achieved_goal"] - goal, axis=1) <= 0.5
        assert np.array_equal(b.rewards, near[1:])
        assert np.array_equal(b.infos["success"], near)
        assert np.array_equal(b.terminations, near[1:])
        assert b.truncations.tolist() == [False] * 199 + [True]
        seen.append(near[1:].any())
        gone_by |= seen[-1] and not near[-1]
    assert np.ptp(sent, 0).min() > 4  # the walkers' goals are all over the maze, and not shown
    assert 0 < sum(seen) < 20  # the others stay in
    assert gone_by  # an episode goes on after a reward
    # Both name the same environments.
    specs = ("env_spec", "eval_env_spec")
    for name in specs:
        assert own.storage.metadata[name] == one.storage.metadata[name]
    text = (tmp_path / "sets.csv").read_text()
    assert text.startswith("# {")
    rows = list(csv.DictReader(text.splitlines()[1:]))
    assert [row["form"] for row in rows] == ["minari", "d4rl"]
    for row, dataset in zip(rows, (own, one)):
        rewards = np.array([e.rewards for e in dataset])
        assert int(row["transitions"]) == 4000
        assert float(row["reward_share"]) == pytest.approx(rewards.mean(), abs=1e-4)
        assert float(row["success"]) == pytest.approx(rewards.any(1).mean(), abs=1e-4)
        xy = np.concatenate([e.observations["achieved_goal"] for e in dataset])
        assert int(row["squares"]) == len(np.unique(np.floor(xy), axis=0))
        assert int(row["cells"]) == len(np.unique(np.floor((xy + 10) / 4), axis=0))
    assert rows[0]["hash"] != rows[1]["hash"]
    # One form alone is the same set as beside the other.
    run(*flags, "--form", "d4rl", "--dataset-id", "edq/antmaze/alone-v0")
    assert content(load(sets, "alone-v0")) == content(one)


def test_the_script_loads_both_forms(antmaze, sets, inline):
    """As 31 numbers, a reward of 1 at the goal, and an end there."""
    run("--task", "umaze", "--form", "minari", "d4rl", "--transitions", 3000, "--length", 250)
    both = {"umaze-v0": "antmaze-umaze", "umaze-d4rl-v0": "antmaze-umaze-fixed"}
    for name, env_id in both.items():
        flags = ["--env-id", env_id, "--dataset-id", f"edq/antmaze/{name}"]
        args = antmaze.parse_args([*flags, "--reward", "raw", "--device", "cpu"])
        data, info = antmaze.load_dataset(args, "cpu")
        spec = json.loads(load(sets, name).storage.metadata["eval_env_spec"])
        task = antmaze.TASKS["antmaze-umaze"]  # of which -fixed differs in its noise alone
        assert spec["id"] == task.env
        assert spec["kwargs"].items() >= task.env_kwargs.items()
        assert data.obs.shape == (3000, 31)
        assert info["episodes"] == 12
        radius = 0.5 if "d4rl" in name else 0.45
        near = (data.next_obs[:, 27:29] - data.next_obs[:, 29:]).norm(dim=1) <= radius
        assert near.any() and not near.all()
        assert (data.reward == near.float()).all()
        assert (data.end == near.float()).all()


def test_nothing_is_overwritten(sets, inline, tmp_path, capsys):
    """A set that is there, a stranger's file as the record, and one in the work folder."""
    size = ("--task", "umaze", "--transitions", 40, "--length", 20)
    run(*size)
    stranger = tmp_path / "notes.csv"
    stranger.write_text("mine")
    before = content(load(sets))
    for flags in ((), ("--form", "d4rl", "--record", stranger), ("--form", "minari", "d4rl")):
        with pytest.raises(SystemExit) as stop:
            run(*size, *flags)
        assert stop.value.code == 2
        assert "exists already" in capsys.readouterr().err
    assert stranger.read_text() == "mine"
    assert content(load(sets)) == before
    assert sorted(p.name for p in (sets / "edq" / "antmaze").iterdir() if p.is_dir()) == [
        "umaze-v0"
    ]
    work = maker.work_folder(sets / "edq" / "antmaze", "umaze", 20, 0, 0.2, 2)
    (work / "notes.txt").write_text("mine")
    run(*size, "--form", "d4rl")
    assert (work / "notes.txt").read_text() == "mine"
    assert [path.name for path in work.iterdir()] == ["notes.txt"]
    assert "stays" in capsys.readouterr().out


BAD = [
    (("--transitions", "0"), "transitions"),
    (("--seed", "-1"), "seed"),
    (("--action-noise", "-0.1"), "noise"),
    (("--action-noise", "nan"), "noise"),
    (("--processes", "-2"), "processes"),
    (("--dataset-id", "../../away"), "no dataset id"),
    (("--form", "d4rl", "d4rl"), "--form"),
    (("--form", "minari", "d4rl", "--dataset-id", "edq/one-v0"), "one id for each form"),
    (("--record", "no/such/folder/x.csv"), "no folder"),
]


@pytest.mark.parametrize("flags, word", BAD)
def test_bad_flags(sets, capsys, flags, word):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    assert word in text
    assert not sets.exists()


def test_shortest_ways():
    """Every free cell is led to the goal, in as many steps as there are when all ways are tried."""
    walls = maker.walls_of(maker.specs("large-play")[0])
    free = [tuple(cell) for cell in np.argwhere(~walls).tolist()]
    for goal in ((7, 9), (1, 1)):
        others = set(free) - {goal}
        steps = np.where(walls, np.inf, 99.0)
        steps[goal] = 0
        for _ in range(60):  # relaxation: a cell is one step farther than its nearest neighbour
            for i, j in others:
                near = (steps[i + 1, j], steps[i - 1, j], steps[i, j + 1], steps[i, j - 1])
                steps[i, j] = 1 + min(near)
        following = maker.way_to(goal, walls)
        assert set(following) == set(free)
        assert following[goal] == goal
        assert all(steps[following[cell]] == steps[cell] - 1 for cell in others)


def states(count, seed):
    """Random states `[count, 29]`: qpos and qvel of tilted ants in the air, legs anywhere."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 29))
    x[:, 2] = 1.0
    x[:, 3:7] = rng.normal(size=(count, 4)) * (0.3, 0.1, 0.1, 1) + (1, 0, 0, 0)
    x[:, 3:7] /= np.linalg.norm(x[:, 3:7], axis=1, keepdims=True)
    hips = [-30, 30]
    ankles = ([30, 70], [-70, -30], [-70, -30], [30, 70])
    limits = np.radians([limit for ankle in ankles for limit in (hips, ankle)])
    x[:, 7:15] = rng.uniform(*limits.T, (count, 8))
    return x


def product(p, q):
    """Of two quaternions, through MuJoCo."""
    out = np.zeros(4)
    mj.mju_mulQuat(out, p, q)
    return out


QUARTER = np.array([np.sqrt(0.5), 0, 0, np.sqrt(0.5)])  # a quaternion


def test_features_after_a_quarter_turn_of_the_world():
    """Everything turned about the vertical: the ant sees and does the same."""
    x = states(50, 0)
    rel = np.random.default_rng(1).normal(size=(50, 2)) * 4
    turned = x.copy()
    turned[:, 3:7] = [product(QUARTER, q) for q in x[:, 3:7]]
    turned[:, 15:17] = np.stack([-x[:, 16], x[:, 15]], 1)
    f, k = maker.features(x[:, 2:], rel)
    g, same = maker.features(turned[:, 2:], np.stack([-rel[:, 1], rel[:, 0]], 1))
    assert np.abs(f - g).max() < 1e-12
    assert np.array_equal(k, same)
    assert f.shape == (50, 30)
    assert len(set(k.tolist())) == 4
    # The target lies within 45 degrees of the front.
    assert (np.abs(f[:, 5]) <= f[:, 4] + 1e-9).all()


def renumbered(x):
    """The body turned by a quarter about its own axis while the legs stay: leg i becomes i - 1."""
    y = x.copy()
    y[:, 3:7] = [product(q, QUARTER) for q in x[:, 3:7]]
    y[:, 18:20] = np.stack([x[:, 19], -x[:, 18]], 1)  # the spin, seen from the body
    for at in (7, 21):
        legs = x[:, at : at + 8].reshape(-1, 4, 2).copy()
        legs[:, :, 1] *= (1, -1, -1, 1)
        legs = np.roll(legs, -1, 1)
        legs[:, :, 1] *= (1, -1, -1, 1)
        y[:, at : at + 8] = legs.reshape(-1, 8)
    return y


def moved(x, actions):
    """The states half a second later; on the floor by then."""
    assets = os.path.join(os.path.dirname(gymnasium.envs.mujoco.__file__), "assets")
    model = mj.MjModel.from_xml_path(os.path.join(assets, "ant.xml"))
    data = mj.MjData(model)
    result = []
    for state, action in zip(x, actions):
        mj.mj_resetData(model, data)
        data.qpos[:] = state[:15]
        data.qvel[:] = state[15:]
        data.ctrl[:] = action
        mj.mj_step(model, data, nstep=50)
        result.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(result)


def test_features_and_torques_after_a_quarter_turn_of_the_ant():
    """Legs numbered from another one: equal features, and the same motion in the simulator."""
    out = np.random.default_rng(2).uniform(-1, 1, (20, 8))
    x = states(20, 3)
    rel = np.random.default_rng(4).normal(size=(20, 2)) * 4
    f, k = maker.features(x[:, 2:], rel)
    g, less = maker.features(renumbered(x)[:, 2:], rel)
    assert np.abs(f - g).max() < 1e-12
    assert np.array_equal((k - 1) % 4, less)
    a = maker.torques(out, k)
    b = maker.torques(out, less)
    assert not np.allclose(a, b)
    first = renumbered(moved(x, a))
    second = moved(renumbered(x), b)
    # q and -q are the same rotation.
    sign = np.sign((first[:, 3:7] * second[:, 3:7]).sum(1, keepdims=True))
    second[:, 3:7] *= sign
    assert np.abs(first - second).max() < 1e-6
    assert np.abs(first - renumbered(x)).max() > 0.1
