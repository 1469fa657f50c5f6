"""Files written in D4RL's layout come out as the rows of its `qlearning_dataset`."""

import os
import signal
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import tyro
from conftest import ROOT
from gymnasium_robotics.envs.maze import maps

pytestmark = pytest.mark.study
sys.path.insert(0, str(ROOT / "results" / "datasets"))  # as the makers find each other
import import_d4rl  # noqa: E402

WIDTHS = {"hopper": (11, 3), "antmaze": (29, 8), "pen": (45, 24), "kitchen": (60, 9)}


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Datasets go to a folder of the test; what signals do is put back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "sets"
    for number, handler in before.items():
        signal.signal(number, handler)


def made_file(path, family, rows=60, terminals=(), timeouts=None, **more):
    """A file of random numbers in D4RL's layout."""
    rng = np.random.default_rng(0)
    obs_dim, act_dim = WIDTHS[family]
    columns = {
        "observations": rng.normal(size=(rows, obs_dim)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, act_dim)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.isin(np.arange(rows), terminals),
    }
    if timeouts is not None:
        columns["timeouts"] = np.isin(np.arange(rows), timeouts)
    columns |= more
    with h5py.File(path, "w") as file:
        for key, value in columns.items():
            file.create_dataset(key, data=value, compression="gzip")
    return columns


def run_import(*flags):
    import_d4rl.main(tyro.cli(import_d4rl.Args, args=[str(flag) for flag in flags]))


def refused(capsys, *flags):
    """The sentence with which an import is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_import(*flags)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def flat(dataset_id):
    """All transitions of an imported set, as a script reads them: obs, next_obs, action, ..."""
    parts = {"obs": [], "next_obs": [], "action": [], "reward": [], "end": []}
    for e in minari.load_dataset(dataset_id):
        obs = e.observations
        if isinstance(obs, dict):
            keys = ("observation", "achieved_goal", "desired_goal")
            obs = np.concatenate([obs[key] for key in keys], 1)
        parts["obs"].append(obs[:-1])
        parts["next_obs"].append(obs[1:])
        parts["action"].append(e.actions)
        parts["reward"].append(e.rewards)
        parts["end"].append(e.terminations)
    return {key: np.concatenate(value) for key, value in parts.items()}


def rows_of_d4rl(columns, limit):
    """What D4RL's function keeps: the indices of its transitions."""
    kept = []
    steps = 0
    for i in range(len(columns["rewards"]) - 1):
        over = columns["timeouts"][i] if "timeouts" in columns else steps == limit - 1
        if over:
            steps = 0
            continue
        if columns["terminals"][i]:
            steps = 0
        kept.append(i)
        steps += 1
    return np.array(kept)


CASES = {  # file name, family, terminals, timeouts (None: the file has none), id
    "hopper": ("hopper_medium_replay-v2", (9, 10, 44), (20, 21, 59), "hopper/medium-replay-v2"),
    "open end": ("hopper_medium-v2", (30, 59), (10,), "hopper/medium-v2"),
    "both at once": ("hopper_expert-v2", (20, 58), (20, 57), "hopper/expert-v2"),
    "pen": ("pen-v0_demos_clipped", (), (29, 59), "pen/human-v0"),
    "pen-cloned": ("pen-cloned-v1", (12,), (40,), "pen/cloned-v1"),
    "kitchen": (
        "mini_kitchen_microwave_kettle_light_slider-v0",
        (350, 599),
        None,
        "kitchen/complete-v0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_qlearning_dataset(tmp_path, case):
    name, terminals, timeouts, dataset_id = CASES[case]
    family = dataset_id.split("/")[0]
    rows = 700 if timeouts is None else 60
    columns = made_file(tmp_path / f"{name}.hdf5", family, rows, terminals, timeouts)
    run_import(tmp_path / f"{name}.hdf5")
    data = flat(f"d4rl/{dataset_id}")
    kept = rows_of_d4rl(columns, 280)
    width = 30 if family == "kitchen" else None
    assert np.array_equal(data["obs"], columns["observations"][kept, :width])
    assert np.array_equal(data["next_obs"], columns["observations"][kept + 1, :width])
    assert np.array_equal(data["action"], columns["actions"][kept])
    assert np.array_equal(data["reward"], columns["rewards"][kept])
    assert np.array_equal(data["end"], columns["terminals"][kept])
    metadata = minari.load_dataset(f"d4rl/{dataset_id}").storage.metadata
    low, high = import_d4rl.FAMILIES[family][4:]
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (low, high)


def test_hand_computed_seams(tmp_path):
    """Eight rows: 0, 1 end in a terminal; 2, 3 in a timeout, so 3 goes; 4, 5 in a terminal that is
    a timeout too, so 5 goes; 6, 7 at the end of the file, so 7 goes."""
    path = tmp_path / "hopper_medium-v2.hdf5"
    made_file(path, "hopper", 8, (1, 5), (3, 5), rewards=np.arange(8.0))
    run_import(path)
    data = flat("d4rl/hopper/medium-v2")
    assert data["reward"].tolist() == [0, 1, 2, 4, 6]
    assert data["end"].tolist() == [0, 1, 0, 0, 0]
    episodes = list(minari.load_dataset("d4rl/hopper/medium-v2"))
    assert [len(e.rewards) for e in episodes] == [2, 1, 1, 1]
    assert "observations" in repr(episodes[0])


def ant_columns(goal, rows=50):
    """An ant that walks from the start to a goal in D4RL's frame and stays there."""
    way = np.linspace(0, 1, rows)[:, None].clip(max=0.8) / 0.8
    obs = np.random.default_rng(0).normal(size=(rows, 29)).astype(np.float32)
    obs[:, :2] = way * np.array(goal)
    near = np.linalg.norm(obs[:, :2] - goal, axis=1) <= 0.5
    reward = np.append(near[1:], False).astype(np.float32)  # of reaching the next row
    ends = np.flatnonzero(reward)
    return {"observations": obs, "rewards": reward, "terminals": ends, "timeouts": [rows - 1]}


ANT = "Ant_maze_{}_noisy_multistart_{}_multigoal_{}_sparse"
ANTS = {
    "umaze-v2": (ANT.format("u-maze", "False", "False") + "_fixed", (0, 8), maps.U_MAZE),
    "medium-play-v0": (ANT.format("big-maze", "True", "False"), (20, 20), maps.MEDIUM_MAZE),
    "large-diverse-v2": (
        ANT.format("hardest-maze", "True", "True") + "_fixed",
        (32, 24),
        maps.LARGE_MAZE,
    ),
}


@pytest.mark.parametrize("maze", ANTS)
def test_antmaze_stands_where_gymnasium_robotics_puts_it(tmp_path, capsys, maze):
    """Rows as ever; start, goal and walls of the data are those of the environment that scores."""
    name, goal, walls = ANTS[maze]
    columns = made_file(tmp_path / f"{name}.hdf5", "antmaze", 50, **ant_columns(goal))
    run_import(tmp_path / f"{name}.hdf5")
    assert "desired_goal is the middle of" in capsys.readouterr().out
    data = flat(f"d4rl/antmaze/{maze}")
    kept = rows_of_d4rl(columns, 1000)
    assert np.array_equal(data["obs"][:, :27], columns["observations"][kept, 2:])
    assert np.array_equal(data["reward"], columns["rewards"][kept])
    assert np.array_equal(data["end"], columns["terminals"][kept])
    moved = data["obs"][:, 27:29] - columns["observations"][kept, :2]
    assert np.ptp(moved, 0).max() < 1e-5
    assert np.linalg.norm(data["obs"][-1, 27:29] - data["obs"][-1, 29:]) < 0.5  # it has arrived
    env = minari.load_dataset(f"d4rl/antmaze/{maze}").recover_environment(eval_env=True)
    os.unlink(env.unwrapped.tmp_xml_file_path)
    obs = env.reset(seed=0)[0]
    noise = 1.01  # a quarter of a cell
    assert np.abs(obs["achieved_goal"] - data["obs"][0, 27:29]).max() <= noise
    assert np.abs(obs["desired_goal"] - data["obs"][0, 29:]).max() <= noise
    for i, line in enumerate(walls):
        for j, cell in enumerate(line):
            place = np.array([4.0 * (j - 1), 4.0 * (i - 1)]) + moved[0]
            row, column = env.unwrapped.maze.cell_xy_to_rowcol(place)
            assert (env.unwrapped.maze.maze_map[row][column] == 1) == (cell == 1)
    env.close()


def imported_goal(path, dataset_id, *flags):
    """The goal in the frame of D4RL."""
    run_import(path, *flags, "--dataset-id", dataset_id)
    return flat(dataset_id)["obs"][0, 29:] + 4  # umaze: its start cell lies 4 m from the middle


def test_antmaze_goal_is_the_one_that_rewards_speak_of(tmp_path, capsys):
    columns = ant_columns((4, 8))
    flags = ("--name", "antmaze-umaze-diverse-v2")
    path = tmp_path / "goal.hdf5"
    made_file(path, "antmaze", 50, **columns, **{"infos/goal": np.tile((4.2, 8.0), (50, 1))})
    assert imported_goal(path, "d4rl/right-v2", *flags)[0] == pytest.approx(4.2)
    said = capsys.readouterr().out
    assert "desired_goal is infos/goal" in said
    assert "issue 199" in said
    made_file(path, "antmaze", 50, **columns, **{"infos/goal": np.tile((0.0, 4.0), (50, 1))})
    goal = imported_goal(path, "d4rl/wrong-v2", *flags)
    assert "near only 0%" in capsys.readouterr().out
    assert np.abs(goal - (4, 8)).max() < 0.5  # where the ant was rewarded


def test_the_row_after_a_timeout_is_no_place_of_the_goal(tmp_path):
    """Two episodes of four that are rewarded are so at their timeout: the next row is a start."""
    parts = [ant_columns((1.2, 9.2)) for _ in range(4)]
    columns = {k: np.concatenate([part[k] for part in parts]) for k in ("observations", "rewards")}
    columns["rewards"][:] = 0
    columns["rewards"][[45, 49, 99, 149]] = 1  # one place of the goal, three timeouts
    path = tmp_path / "goal.hdf5"
    made_file(path, "antmaze", 200, (45,), (49, 99, 149, 199), **columns)
    goal = imported_goal(path, "d4rl/timeouts-v2", "--name", "antmaze-umaze-v2")
    assert np.abs(goal - (1.2, 9.2)).max() < 0.5
    # A file of v0 whose timeouts are out of place: the jump says that an episode begins.
    made_file(path, "antmaze", 200, (45,), (48, 98, 148, 199), **columns)
    goal = imported_goal(path, "d4rl/jumps-v2", "--name", "antmaze-umaze-v0")
    assert np.abs(goal - (1.2, 9.2)).max() < 0.5
    # infos/goal is judged by the same places.
    goals = {"infos/goal": np.tile(np.float32((1.0, 9.0)), (200, 1))}
    made_file(path, "antmaze", 200, (45,), (49, 99, 149, 199), **columns, **goals)
    goal = imported_goal(path, "d4rl/told-v2", "--name", "antmaze-umaze-v2")
    assert goal == pytest.approx([1.0, 9.0])


def test_antmaze_without_a_reward_has_the_goal_of_the_evaluation(tmp_path):
    columns = ant_columns((0, 8)) | {"rewards": np.zeros(50), "terminals": ()}
    path = tmp_path / "none.hdf5"
    made_file(path, "antmaze", 50, **columns)
    goal = imported_goal(path, "d4rl/none-v2", "--name", "antmaze-umaze-v2")
    assert goal.tolist() == [0, 8]


SERVER = {  # names of files on D4RL's server, and of the sets they hold
    "hopper_mixed": "hopper-medium-replay-v0",
    "walker_mixed": "walker2d-medium-replay-v0",
    "halfcheetah_medium_expert": "halfcheetah-medium-expert-v0",
    "walker2d_random-v2": "walker2d-random-v2",
    "door-demos-v0-bc-combined": "door-cloned-v0",
    "pen-v0_expert_clipped": "pen-expert-v0",
    "pen-human-v1": "pen-human-v1",
    "kitchen_microwave_kettle_light_slider-v0": "kitchen-partial-v0",
    ANT.format("big-maze", "True", "True"): "antmaze-medium-diverse-v0",
    ANT.format("u-maze", "True", "True") + "_fixed": "antmaze-umaze-diverse-v2",
}


def test_names_of_the_server():
    for stem, name in SERVER.items():
        found, family = import_d4rl.d4rl_name(Path(f"{stem}.hdf5"), None)
        assert found == name
        assert name.startswith(family)
    for stem in ("pendulum-v0", "ant_medium-v2", ANT.format("foomaze", "True", "True")):
        with pytest.raises(SystemExit):
            import_d4rl.d4rl_name(Path(f"{stem}.hdf5"), None)


def test_kitchen_shows_the_positions_of_gymnasium(tmp_path):
    name = "kitchen_microwave_kettle_bottomburner_light-v0"
    made_file(tmp_path / f"{name}.hdf5", "kitchen", 300)
    run_import(tmp_path / f"{name}.hdf5")
    spec = minari.load_dataset("d4rl/kitchen/mixed-v0").storage.metadata["env_spec"]
    kwargs = gym.envs.registration.EnvSpec.from_json(spec).kwargs
    assert "bottom burner" in kwargs["tasks_to_complete"]
    assert flat("d4rl/kitchen/mixed-v0")["obs"].shape[1] == 30


READ = {  # file name, script, task
    "hopper": ("hopper_medium_replay-v2", "mujoco", "hopper-medium-replay-d4rl"),
    "antmaze": (ANTS["medium-play-v0"][0], "antmaze", "antmaze-medium-play-d4rl"),
    "pen": ("pen-cloned-v1", "adroit", "pen-cloned"),
    "kitchen": (
        "kitchen_microwave_kettle_light_slider-v0",
        "adroit",
        "kitchen-partial-d4rl",
    ),
}


@pytest.mark.parametrize("family", READ)
def test_a_script_reads_it_under_the_task_that_is_told(tmp_path, capsys, request, family):
    name, fixture, env_id = READ[family]
    more = ant_columns((20, 20)) if family == "antmaze" else {"timeouts": (30,)}
    made_file(tmp_path / f"{name}.hdf5", family, 50, **more)
    run_import(tmp_path / f"{name}.hdf5")
    flags = capsys.readouterr().out.splitlines()[-1].removeprefix("use: ").split()
    assert flags[:2] == ["--env-id", env_id]
    script = request.getfixturevalue(fixture)
    data, info = script.load_dataset(script.parse_args([*flags, "--device", "cpu"]), "cpu")
    assert info["reference_from"] == "metadata"
    env = script.make_env(script.TASKS[env_id])
    seen = script.flatten_obs(env.reset(seed=0)[0])
    assert seen.shape == data.obs.shape[1:]
    env.close()


def write_foreign(path):
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]


def write_scalars(path):
    with h5py.File(path, "w") as file:
        for key in ("observations", "actions", "rewards", "terminals"):
            file[key] = 1.0


def write_cut(path):
    made_file(path, "hopper", 5000)
    os.truncate(path, 60_000)


BAD = {
    "not HDF5": (lambda path: path.write_bytes(b"no HDF5 at all"), "cannot import"),
    "foreign": (write_foreign, "it has no observations"),
    "scalars": (write_scalars, "cannot import"),
    "cut": (write_cut, "cannot import"),
    "wide": (lambda path: made_file(path, "hopper", rewards=np.zeros((60, 2))), "more than a"),
    "lengths": (lambda path: made_file(path, "hopper", rewards=np.zeros(7)), "different lengths"),
    "widths": (lambda path: made_file(path, "pen"), "not ((45,), (24,))"),
    "nan": (lambda path: made_file(path, "hopper", rewards=np.full(60, np.nan)), "NaN"),
    "empty": (lambda path: made_file(path, "hopper", 1), "not one whole episode"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence_and_leaves_nothing(tmp_path, sets, capsys, case):
    write, words = BAD[case]
    write(tmp_path / "hopper_medium-v2.hdf5")
    assert words in refused(capsys, tmp_path / "hopper_medium-v2.hdf5")
    assert not [path for path in sets.rglob("*") if path.is_file()]


def test_names_that_do_not_fit(tmp_path, capsys):
    made_file(tmp_path / "ant_medium-v2.hdf5", "hopper")
    assert "--name" in refused(capsys, tmp_path / "ant_medium-v2.hdf5")
    made_file(tmp_path / "hopper_medium-v2.hdf5", "hopper")
    run_import(tmp_path / "hopper_medium-v2.hdf5")
    assert "already" in refused(capsys, tmp_path / "hopper_medium-v2.hdf5")
    flags = (tmp_path / "hopper_medium-v2.hdf5", "--dataset-id", "../out-v0")
    assert "no dataset id" in refused(capsys, *flags)


def test_home_in_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made_file(tmp_path / "hopper_medium-v2.hdf5", "hopper")
    run_import("~/hopper_medium-v2.hdf5")
    assert len(flat("d4rl/hopper/medium-v2")["reward"]) == 59
