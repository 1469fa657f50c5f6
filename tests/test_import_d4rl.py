"""Files written in D4RL's layout come out as the rows of its `qlearning_dataset`, through import and loader."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from conftest import ROOT, run_script

SCRIPT = ROOT / "results" / "datasets" / "import_d4rl.py"
WIDTHS = {"hopper": (11, 3), "antmaze": (29, 8), "pen": (45, 24), "kitchen": (60, 9)}


def made_file(path, family, rows=60, terminals=(), timeouts=None, seed=0, **more):
    """A file of random numbers in D4RL's layout."""
    rng, (obs_dim, act_dim) = np.random.default_rng(seed), WIDTHS[family]
    columns = {
        "observations": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, act_dim)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.isin(np.arange(rows), terminals),
    }
    if timeouts is not None:
        columns["timeouts"] = np.isin(np.arange(rows), timeouts)
    with h5py.File(path, "w") as file:
        for key, value in (columns | more).items():
            file.create_dataset(key, data=value, compression="gzip")
    return columns | more


def rows_of_d4rl(columns, limit):
    """What D4RL's function keeps, one row after the other: indices of transitions, and whether each is terminal."""
    kept, steps = [], 0
    for i in range(len(columns["rewards"]) - 1):
        over = columns["timeouts"][i] if "timeouts" in columns else steps == limit - 1
        if over:
            steps = 0
            continue
        if columns["terminals"][i]:
            steps = 0
        kept.append(i)
        steps += 1
    return kept


def run_import(folder, *flags):
    command = [sys.executable, str(SCRIPT), *map(str, flags)]
    env = {"MINARI_DATASETS_PATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def loaded(module, folder, env_id):
    args = module.replace(
        module.Args(), **(module.TASKS[env_id].row | dict(env_id=env_id, dataset_id=str(folder)))
    )
    return module.load_dataset(module.replace(args, reward="raw"), "cpu")


CASES = {  # file name, family, task, terminals, timeouts (None: the file has none), id
    "hopper": ("hopper_medium_replay-v2", "hopper-medium-replay", (9, 10, 44), (20, 21, 59), "hopper/medium-replay-v2"),
    "hopper-open-end": ("hopper_medium-v2", "hopper-medium", (30, 59), (10,), "hopper/medium-v2"),
    "both-at-once": ("hopper_expert-v2", "hopper-expert", (20, 58), (20, 57), "hopper/expert-v2"),
    "pen": ("pen-v0_demos_clipped", "pen-human", (), (29, 59), "pen/human-v0"),
    "pen-cloned": ("pen-cloned-v1", "pen-cloned", (12,), (40,), "pen/cloned-v1"),
    "kitchen": ("mini_kitchen_microwave_kettle_light_slider-v0", "kitchen-complete", (350, 599), None,
                "kitchen/complete-v0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_qlearning_dataset(mujoco, adroit, tmp_path, case):
    name, env_id, terminals, timeouts, dataset_id = CASES[case]
    family = env_id.split("-")[0]
    columns = made_file(
        tmp_path / f"{name}.hdf5", family, 60 if timeouts is not None else 700, terminals, timeouts
    )
    done = run_import(tmp_path / "sets", tmp_path / f"{name}.hdf5")
    assert done.returncode == 0, done.stderr
    module = mujoco if family == "hopper" else adroit
    data, info = loaded(module, tmp_path / "sets" / "d4rl" / dataset_id, env_id)
    kept, width = (
        rows_of_d4rl(columns, {"kitchen": 280}.get(family)),
        30 if family == "kitchen" else None,
    )
    assert len(data.reward) == len(kept) and info["reference_from"] == "metadata"
    assert np.array_equal(data.obs, columns["observations"][kept, :width])
    assert np.array_equal(data.next_obs, columns["observations"][np.array(kept) + 1, :width])
    assert np.array_equal(data.action, columns["actions"][kept])
    assert np.array_equal(data.reward, columns["rewards"][kept])
    assert np.array_equal(data.end, columns["terminals"][kept])


def test_hand_computed_seams(mujoco, tmp_path):
    """Eight rows: 0, 1 end in a terminal; 2, 3 in a timeout, so 3 goes; 4, 5 in a terminal that is a timeout too, so 5
    goes; 6, 7 at the end of the file, so 7 goes."""
    made_file(
        tmp_path / "hopper_medium-v2.hdf5", "hopper", 8, (1, 5), (3, 5), rewards=np.arange(8.0)
    )
    assert run_import(tmp_path, tmp_path / "hopper_medium-v2.hdf5").returncode == 0
    data, _ = loaded(mujoco, tmp_path / "d4rl" / "hopper" / "medium-v2", "hopper-medium")
    assert data.reward.tolist() == [0, 1, 2, 4, 6] and data.end.tolist() == [0, 1, 0, 0, 0]
    episodes = list(minari.MinariDataset(str(tmp_path / "d4rl/hopper/medium-v2/data")))
    assert [len(e.rewards) for e in episodes] == [2, 1, 1, 1] and "observations" in repr(
        episodes[0]
    )


def ant_columns(maze_goal, rows=50):
    """An ant that walks from the start to a goal in D4RL's frame and stays; terminals and rewards as D4RL's."""
    way = np.linspace(0, 1, rows)[:, None].clip(max=0.8) / 0.8
    obs = np.random.default_rng(0).normal(size=(rows, 29)).astype(np.float32)
    obs[:, :2] = way * np.array(maze_goal)
    near = np.linalg.norm(obs[:, :2] - maze_goal, axis=1) <= 0.5
    reward = np.append(near[1:], False).astype(np.float32)  # of reaching the next row
    return dict(
        observations=obs, rewards=reward, terminals=np.flatnonzero(reward), timeouts=[rows - 1]
    )


@pytest.mark.parametrize(("name", "maze", "goal"), [
    ("Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed", "umaze-v2", (0, 8)),
    ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse", "medium-play-v0", (20, 20)),
    ("Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed", "large-diverse-v2", (32, 24)),
])  # fmt: skip
def test_antmaze_stands_where_gymnasium_robotics_puts_it(antmaze, tmp_path, name, maze, goal):
    """Rows as ever; start and goal of the data are those of the simulator the policy is scored in, so is the maze."""
    columns = made_file(tmp_path / f"{name}.hdf5", "antmaze", 50, **ant_columns(goal))
    done = run_import(tmp_path, tmp_path / f"{name}.hdf5")
    assert done.returncode == 0 and "desired_goal is the middle of" in done.stdout, done.stderr
    data, _ = loaded(antmaze, tmp_path / "d4rl" / "antmaze" / maze, f"antmaze-{maze[:-3]}")
    kept = rows_of_d4rl(columns, 1000)
    assert np.array_equal(data.obs[:, :27], columns["observations"][kept, 2:])
    assert np.array_equal(data.reward, columns["rewards"][kept])
    assert np.array_equal(data.end, columns["terminals"][kept])
    moved = data.obs[:, 27:29].numpy() - columns["observations"][kept, :2]
    assert np.ptp(moved, 0).max() < 1e-5
    env = antmaze.make_env(antmaze.TASKS[f"antmaze-{maze[:-3]}"])
    obs = env.reset(seed=0)[0]
    assert env.unwrapped.ant_env.model.opt.timestep == 0.02
    assert (
        np.abs(obs["achieved_goal"] - data.obs[0, 27:29].numpy()).max() <= 1.01
    )  # noise of a quarter of a cell
    assert np.abs(obs["desired_goal"] - data.obs[0, 29:31].numpy()).max() <= 1.01
    assert (data.obs[-1, 27:29] - data.obs[-1, 29:31]).abs().max() < 0.5  # it has arrived
    env.close()
    # Every free cell of D4RL's maze, at the place where D4RL has it, is free here, and every wall a wall.
    theirs = {
        "u": antmaze.maps.U_MAZE,
        "m": antmaze.maps.MEDIUM_MAZE,
        "l": antmaze.maps.LARGE_MAZE,
    }[maze[0]]
    for i, line in enumerate(theirs):
        for j, cell in enumerate(line):
            place = np.array([4.0 * (j - 1), 4.0 * (i - 1)]) + moved[0]
            row, column = env.unwrapped.maze.cell_xy_to_rowcol(place)
            assert (env.unwrapped.maze.maze_map[row][column] == 1) == (cell == 1)


def test_antmaze_goal_is_the_one_that_rewards_speak_of(antmaze, tmp_path):
    columns, goals = ant_columns((4, 8)), {}
    for name, goal in (("right", (4.2, 8.0)), ("wrong", (0.0, 4.0))):
        infos = {"infos/goal": np.tile(np.float32(goal), (50, 1))}
        made_file(tmp_path / f"{name}.hdf5", "antmaze", 50, **columns, **infos)
        flags = ("--name", "antmaze-umaze-diverse-v2", "--dataset-id", f"d4rl/{name}-v2")
        goals[name] = (
            run_import(tmp_path, tmp_path / f"{name}.hdf5", *flags),
            tmp_path / "d4rl" / f"{name}-v2",
        )
    assert (
        "desired_goal is infos/goal" in goals["right"][0].stdout
        and "issue 199" in goals["right"][0].stdout
    )
    assert loaded(antmaze, goals["right"][1], "antmaze-umaze-diverse")[0].obs[
        0, 29:
    ].tolist() == pytest.approx([0.2, 4])
    assert "near only 0%" in goals["wrong"][0].stdout
    goal = loaded(antmaze, goals["wrong"][1], "antmaze-umaze-diverse")[0].obs[0, 29:].numpy()
    assert np.abs(goal - np.array([0, 4])).max() < 0.5  # where the ant was rewarded


def test_antmaze_goal_of_rewards_made_anew(antmaze, tmp_path):
    """D4RL's one goal lies up to 1.5 m off its cell's centre: rewards tell where."""
    made_file(tmp_path / "anew.hdf5", "antmaze", 50, **ant_columns((1.2, 9.2)))
    done = run_import(tmp_path, tmp_path / "anew.hdf5", "--name", "antmaze-umaze-v2")
    assert "the middle of the rewarded places" in done.stdout
    goal = (
        loaded(antmaze, tmp_path / "d4rl" / "antmaze" / "umaze-v2", "antmaze-umaze")[0]
        .obs[0, 29:]
        .numpy()
    )
    assert np.abs(goal - np.array([1.2 - 4, 9.2 - 4])).max() < 0.5


SERVER = {  # names of files on D4RL's server, and of the sets they hold
    "hopper_mixed": "hopper-medium-replay-v0", "walker_mixed": "walker2d-medium-replay-v0",
    "halfcheetah_medium_expert": "halfcheetah-medium-expert-v0", "walker2d_random-v2": "walker2d-random-v2",
    "door-demos-v0-bc-combined": "door-cloned-v0", "pen-v0_expert_clipped": "pen-expert-v0",
    "pen-human-v1": "pen-human-v1",
    "kitchen_microwave_kettle_light_slider-v0": "kitchen-partial-v0",
    "Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse": "antmaze-medium-diverse-v0",
    "Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed": "antmaze-umaze-diverse-v2",
}  # fmt: skip


def test_names_of_the_server(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import import_d4rl

    for stem, name in SERVER.items():
        assert import_d4rl.d4rl_name(Path(f"{stem}.hdf5"), None) == (
            name,
            next(f for f in import_d4rl.FAMILIES if f in name),
        )
    for stem in (
        "pendulum-v0",
        "ant_medium-v2",
        "Ant_maze_foomaze_noisy_multistart_True_multigoal_True_sparse",
    ):
        with pytest.raises(SystemExit):
            import_d4rl.d4rl_name(Path(f"{stem}.hdf5"), None)


def test_a_stopped_import_leaves_nothing(tmp_path):
    made_file(tmp_path / "hopper_medium-v2.hdf5", "hopper", 400_000, np.arange(0, 400_000, 40), ())
    command = [sys.executable, str(SCRIPT), str(tmp_path / "hopper_medium-v2.hdf5")]
    env = {
        "MINARI_DATASETS_PATH": str(tmp_path / "sets"),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env
    )
    while (
        not list(tmp_path.glob("sets/d4rl/hopper/.unfinished*/set/data/*.hdf5"))
        and process.poll() is None
    ):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 128 + 15 and "Traceback" not in process.stderr.read()
    assert not [path for path in (tmp_path / "sets").rglob("*") if path.is_file()]


def test_kitchen_is_scored_on_what_the_data_show(adroit, tmp_path):
    made_file(tmp_path / "kitchen_microwave_kettle_bottomburner_light-v0.hdf5", "kitchen", 300)
    assert (
        run_import(
            tmp_path, tmp_path / "kitchen_microwave_kettle_bottomburner_light-v0.hdf5"
        ).returncode
        == 0
    )
    plain = adroit.make_env(adroit.TASKS["kitchen-mixed"])
    loaded(adroit, tmp_path / "d4rl" / "kitchen" / "mixed-v0", "kitchen-mixed")
    env = adroit.make_env(adroit.TASKS["kitchen-mixed"])
    full, seen = (adroit.flatten_obs(e.reset(seed=1)[0]) for e in (plain, env))
    assert seen.shape == (30,)
    assert (
        np.abs(seen - np.delete(full, [*range(9, 18), *range(39, 59)])).max() < 0.012
    )  # noise of 0.01 at most
    assert (
        np.abs(seen - env.unwrapped.data.qpos[:30]).max() > 0.002
    )  # where Gymnasium's own is at most 0.001
    plain.close(), env.close()


BAD = {
    "not-hdf5": (lambda path: path.write_bytes(b"no HDF5 at all"), "cannot import"),
    "foreign": (lambda path: h5py.File(path, "w").create_dataset("x", data=[1.0]), "it has no observations"),
    "cut": (lambda path: (made_file(path, "hopper", 5000), os.truncate(path, 60_000)), "cannot import"),
    "wide": (lambda path: made_file(path, "hopper", rewards=np.zeros((60, 2))), "more than a number a row"),
    "lengths": (lambda path: made_file(path, "hopper", rewards=np.zeros(7)), "different lengths"),
    "widths": (lambda path: made_file(path, "pen"), "not ((45,), (24,))"),
    "nan": (lambda path: made_file(path, "hopper", observations=np.full((60, 11), np.nan)), "NaN"),
    "empty": (lambda path: made_file(path, "hopper", 1), "not one whole episode"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence_and_leaves_nothing(tmp_path, case):
    make, words = BAD[case]
    made = make(tmp_path / "hopper_medium-v2.hdf5")
    if hasattr(made, "file"):
        made.file.close()
    (tmp_path / "sets").mkdir()
    done = run_import(tmp_path / "sets", tmp_path / "hopper_medium-v2.hdf5")
    assert done.returncode == 2 and words in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not [path for path in (tmp_path / "sets").rglob("*") if path.is_file()]


def test_names_that_do_not_fit(tmp_path):
    made_file(tmp_path / "ant_medium-v2.hdf5", "hopper")
    assert "--name" in run_import(tmp_path, tmp_path / "ant_medium-v2.hdf5").stderr
    made_file(tmp_path / "hopper_medium-v2.hdf5", "hopper")
    assert run_import(tmp_path, tmp_path / "hopper_medium-v2.hdf5").returncode == 0
    again = run_import(tmp_path, tmp_path / "hopper_medium-v2.hdf5")
    assert again.returncode == 2 and "already" in again.stderr
    outside = run_import(
        tmp_path / "sets", tmp_path / "hopper_medium-v2.hdf5", "--dataset-id", "../out"
    )
    assert outside.returncode == 2 and not (tmp_path / "out").exists()
    for wrong in (
        "d4rl/hopper",
        "d4rl/hopper/medium-v2/data/x-v0",
        "t/int-v0",
    ):  # Minari fails on these for ever after
        assert (
            run_import(
                tmp_path, tmp_path / "hopper_medium-v2.hdf5", "--dataset-id", wrong
            ).returncode
            == 2
        )
    with h5py.File(tmp_path / "hopper_expert-v2.hdf5", "w") as file:
        for key in ("observations", "actions", "rewards", "terminals"):
            file[key] = 1.0
    scalar = run_import(tmp_path, tmp_path / "hopper_expert-v2.hdf5")
    assert scalar.returncode == 2 and "Traceback" not in scalar.stderr


TRAINED = {  # file name, script, task, id
    "hopper": ("hopper_medium_replay-v2", "edq_mujoco", "hopper-medium-replay", "hopper/medium-replay-v2"),
    "antmaze": ("Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed", "edq_antmaze",
                "antmaze-medium-play-v2", "antmaze/medium-play-v2"),
    "pen": ("pen-v0_demos_clipped", "edq_adroit", "pen-human", "pen/human-v0"),
    "kitchen": ("kitchen_microwave_kettle_light_slider-v0", "edq_adroit", "kitchen-partial-v0", "kitchen/partial-v0"),
}  # fmt: skip


@pytest.mark.parametrize("family", TRAINED)
def test_an_imported_set_trains(tmp_path, family):
    """Through both command lines to a score, in D4RL's simulator, and scored again without the data."""
    name, script, env_id, dataset_id = TRAINED[family]
    more = ant_columns((20, 20)) if family == "antmaze" else dict(timeouts=(30,))
    made_file(tmp_path / f"{name}.hdf5", family, 50, **more)
    assert run_import(tmp_path / "sets", tmp_path / f"{name}.hdf5").returncode == 0
    flags = "--num-critics 2 --hidden-dim 16 --gradient-steps 20 --eval-every 20 --eval-episodes 1 --num-candidates 2"
    flags += f" --no-max-q-backup --env-id {env_id} --dataset-id d4rl/{dataset_id}"
    env = {"MINARI_DATASETS_PATH": str(tmp_path / "sets")}
    done = run_script(script, *flags.split(), "--run-dir", tmp_path / "run", env=env)
    assert done.returncode == 0, done.stderr
    simulator = json.loads((tmp_path / "run" / "run.json").read_text())["simulator"]
    version = {"hopper": "Hopper-v4", "pen": "AdroitHandPen-v1"}.get(family)
    assert (
        simulator[0] == version
        or simulator[1]["d4rl_ant" if family == "antmaze" else "d4rl_obs"] is True
    )
    score = json.loads((tmp_path / "run" / "summary.json").read_text())["last"]["score"]
    shutil.rmtree(tmp_path / "sets")
    again = run_script(script, "--evaluate", tmp_path / "run")
    assert again.returncode == 0 and f"score {score:.6g}" in again.stdout
    if family == "antmaze":
        assert (tmp_path / "run" / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
