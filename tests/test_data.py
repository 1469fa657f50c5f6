"""The loader on small datasets with known transitions, the environments, and an evaluation."""

import json

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from conftest import episode, hopper_episodes, pen_episodes, refuse, write_dataset


def load(module, dataset, env_id, **changes):
    values = module.TASKS[env_id].row | {"env_id": env_id, "dataset_id": str(dataset)} | changes
    return module.load_dataset(module.replace(module.Args(), **values), "cpu")


def numbered_set(folder, **changes):
    """Two episodes of three steps, one that terminates and one cut by a time limit."""
    episodes = []
    for i, ends in enumerate(("termination", "truncation")):
        obs = np.arange(4)[:, None] + 10 * i + np.zeros((4, 11))
        actions = np.full((3, 3), 0.1)
        rewards = np.array([1.0, 2.0, 3.0]) + 3 * i
        made = episode(obs.astype(np.float32), actions, rewards, ends)
        episodes.append(made | {name: change(made[name]) for name, change in changes.items()})
    return write_dataset(folder, episodes)


def test_no_transition_crosses_an_episode_and_a_time_limit_is_no_end(mujoco, tmp_path):
    data, info = load(mujoco, numbered_set(tmp_path / "set"), "hopper-medium")
    assert data.obs[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 11, 12, 13]
    assert data.end.tolist() == [0, 0, 1, 0, 0, 0]
    assert data.reward.tolist() == [1, 2, 3, 4, 5, 6]
    assert all(x.dtype == torch.float32 for x in data)
    assert (info["transitions"], info["episodes"]) == (6, 2)
    low, high = mujoco.TASKS["hopper-medium"].reference
    assert info["reference_from"] == "D4RL's table"
    scores = [100 * (total - low) / (high - low) for total in (6, 15)]
    assert info["mean_score"] == pytest.approx(np.mean(scores))


def test_columns_are_flattened(mujoco, tmp_path):
    plain = load(mujoco, numbered_set(tmp_path / "plain"), "hopper-medium")[0]
    columns = {name: lambda x: x[:, None] for name in ("rewards", "terminations", "truncations")}
    data, _ = load(mujoco, numbered_set(tmp_path / "columns", **columns), "hopper-medium")
    assert all(torch.equal(a, b) for a, b in zip(plain, data))


@pytest.mark.parametrize(
    "name, change",
    [
        ("rewards", lambda x: np.stack([x, x], 1)),
        ("terminations", lambda x: np.stack([x, x], 1)),
        ("observations", lambda x: x[:-1]),
        ("observations", lambda x: x[:, :, None]),
        ("actions", lambda x: x[:, :, None]),
        ("actions", lambda x: x[:, 0]),
    ],
)
def test_wrong_shapes_are_one_sentence(mujoco, tmp_path, capsys, name, change):
    folder = numbered_set(tmp_path / "set", **{name: change})
    flags = ("--env-id", "hopper-medium", "--dataset-id", folder, "--run-dir", tmp_path / "run")
    assert "cannot be read" in refuse(mujoco, capsys, *flags)
    assert not (tmp_path / "run").exists()


def test_sets_are_joined_and_metadata_may_bring_the_reference(mujoco, tmp_path):
    a = write_dataset(tmp_path / "a", hopper_episodes(2, 5), ref_min_score=-1.0, ref_max_score=9.0)
    b = write_dataset(tmp_path / "b", hopper_episodes(3, 4, seed=1))
    data, info = load(mujoco, f"{a},{b}", "hopper-medium-expert")
    assert info["reference"] == [-1, 9] and info["reference_from"] == "metadata"
    one = load(mujoco, a, "hopper-medium")[0]
    other = load(mujoco, b, "hopper-medium")[0]
    assert torch.equal(data.obs, torch.cat([one.obs, other.obs]))
    assert len(data.reward) == 2 * 5 + 3 * 4


def test_hash_sees_every_number(mujoco, tmp_path):
    episodes = hopper_episodes(2, 5)
    hashes = []
    for i in range(3):
        if i == 2:
            episodes[1]["rewards"][2] += 1e-3
        folder = write_dataset(tmp_path / str(i), episodes)
        hashes.append(load(mujoco, folder, "hopper-medium")[1]["hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_reward_transforms(mujoco, hopper_set):
    kinds = ("raw", "antmaze", "standardize")
    raw, antmaze, standard = (
        load(mujoco, hopper_set, "hopper-medium", reward=kind)[0].reward for kind in kinds
    )
    torch.testing.assert_close(antmaze, 4 * (raw - 0.5))
    torch.testing.assert_close(standard, (raw - raw.mean()) / raw.std(), atol=1e-4, rtol=1e-4)


def test_actions_outside_the_box_are_clipped_and_told(mujoco, tmp_path, capsys):
    episodes = hopper_episodes(1, 10)
    episodes[0]["actions"][0] = (3.0, -2.0, 0.0)
    data, info = load(mujoco, write_dataset(tmp_path / "set", episodes), "hopper-medium")
    assert data.action[0].tolist() == [1, -1, 0]
    assert info["clipped_actions"] == pytest.approx(2 / 30)
    assert "warning: 7 % of the data's action components are clipped" in capsys.readouterr().out
    episodes[0]["actions"][0] = (1.5, 0.0, 0.0)  # 3 %
    load(mujoco, write_dataset(tmp_path / "less", episodes), "hopper-medium")
    assert "warning" not in capsys.readouterr().out


def test_places(mujoco, tmp_path, monkeypatch):
    """A home folder's ~, also in the second of a list; ids are looked up in Minari's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_dataset(tmp_path / "a", hopper_episodes(1, 5))
    write_dataset(tmp_path / "minari/test/b-v0", hopper_episodes(1, 6))
    sizes = {"~/a": 5, "test/b-v0": 6, "~/a, ~/a": 10, "test/b-v0,~/a": 11}
    for dataset, size in sizes.items():
        assert load(mujoco, dataset, "hopper-medium")[1]["transitions"] == size


# --- sets that do not fit ---
def wrong(module, capsys, env_id, folder) -> str:
    with pytest.raises(SystemExit) as stop:
        load(module, folder, env_id)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and len(text.splitlines()) == 1
    return text


def test_the_environment_of_the_data_decides_not_its_shapes(mujoco, adroit, tmp_path, capsys):
    episodes = hopper_episodes(1, 5, obs_dim=17, act_dim=6)
    cheetah = write_dataset(tmp_path / "cheetah", episodes, {"id": "HalfCheetah-v5"})
    load(mujoco, cheetah, "halfcheetah-medium")
    text = wrong(mujoco, capsys, "walker2d-medium", cheetah)
    assert "HalfCheetah-v5" in text and "Walker2d-v5" in text and "another task" in text
    door = write_dataset(tmp_path / "door", pen_episodes(), {"id": "AdroitHandDoor-v1"})
    assert "AdroitHandDoor-v1" in wrong(adroit, capsys, "pen-human", door)
    four = write_dataset(tmp_path / "four", hopper_episodes(1, 5), {"id": "Hopper-v4"})
    load(mujoco, four, "hopper-medium-d4rl")
    assert "Hopper-v4" in wrong(mujoco, capsys, "hopper-medium", four)
    five = write_dataset(tmp_path / "five", hopper_episodes(1, 5))
    assert "Hopper-v5" in wrong(mujoco, capsys, "hopper-medium-d4rl", five)


def maze_episode(rewards, ant=False):
    n = len(rewards)
    size = 27 if ant else 4
    obs = {
        "observation": np.arange((n + 1) * size, dtype=np.float32).reshape(n + 1, size),
        "achieved_goal": np.full((n + 1, 2), 7, np.float32),
        "desired_goal": np.full((n + 1, 2), 9, np.float32),
    }
    return episode(obs, np.zeros((n, 8 if ant else 2)), np.array(rewards, float), "truncation")


def maze_set(folder, ant, cells=None, **metadata):
    name = "AntMaze_UMaze-v4" if ant else "PointMaze_UMaze-v3"
    kwargs = {"maze_map": cells} if cells else {}
    episodes = [maze_episode([0, 1, 1, 0], ant), maze_episode([0, 0], ant)]
    return write_dataset(folder, episodes, {"id": name, "kwargs": kwargs}, **metadata)


@pytest.mark.parametrize("ant", [True, False])
def test_maze_observations_and_success(antmaze, tmp_path, ant):
    env_id = "antmaze-umaze" if ant else "pointmaze-umaze"
    data, info = load(antmaze, maze_set(tmp_path / "set", ant), env_id)
    assert data.end.tolist() == [0, 1, 1, 0, 0, 0]  # every step at the goal is an end
    assert data.reward.tolist() == [-2, 2, 2, -2, -2, -2]
    own = [*range(27, 54), 7, 7] if ant else [4, 5, 6, 7]
    assert data.obs[1].tolist() == [*own, 9, 9]
    assert info["mean_score"] == 50 and info["mean_steps_to_goal"] == 2


def test_mazes_that_do_not_fit(antmaze, tmp_path, capsys):
    umaze = antmaze.maps.U_MAZE
    load(antmaze, maze_set(tmp_path / "same", False, umaze), "pointmaze-umaze")
    open_maze = maze_set(tmp_path / "open", False, antmaze.maps.OPEN)
    assert "its maze is another one" in wrong(antmaze, capsys, "pointmaze-umaze", open_maze)
    ant = maze_set(tmp_path / "ant", True)
    assert "AntMaze_UMaze-v4" in wrong(antmaze, capsys, "pointmaze-umaze", ant)
    d4rl = maze_set(tmp_path / "d4rl", True, umaze[::-1], d4rl="antmaze-umaze-v0")
    load(antmaze, d4rl, "antmaze-umaze-d4rl")
    assert "-d4rl tasks" in wrong(antmaze, capsys, "antmaze-umaze", d4rl)
    assert "-d4rl tasks" in wrong(antmaze, capsys, "antmaze-umaze-d4rl", ant)
    one_goal = maze_set(tmp_path / "fixed", True, umaze, fixed_goal=True)
    load(antmaze, one_goal, "antmaze-umaze-fixed")
    assert "task with -fixed" in wrong(antmaze, capsys, "antmaze-umaze", one_goal)


def test_kitchen_observations_and_scores(adroit, tmp_path, capsys):
    """A dict of which the observation is seen; a return counts the things done."""
    rng = np.random.default_rng(0)
    obs = {"observation": rng.normal(size=(6, 59))}  # float64, as Minari's
    made = episode(obs, rng.uniform(-1, 1, (5, 9)), np.array([0, 1, 0, 2, 0.0]), "truncation")
    spec = {"id": "FrankaKitchen-v1"}
    data, info = load(adroit, write_dataset(tmp_path / "set", [made], spec), "kitchen-mixed")
    assert data.obs.shape == (5, 59) and info["mean_score"] == 75
    d4rl = write_dataset(tmp_path / "d4rl", [made], spec, d4rl="kitchen-mixed-v0")
    assert "-d4rl tasks" in wrong(adroit, capsys, "kitchen-mixed", d4rl)
    load(adroit, d4rl, "kitchen-mixed-d4rl")


# --- evaluation ---
def test_every_environment_of_the_tables_can_be_made(edq):
    seen = set()
    for env_id, task in edq.TASKS.items():
        if (task.env, str(task.env_kwargs)) in seen:
            continue
        seen.add((task.env, str(task.env_kwargs)))
        env = edq.make_env(task)
        obs = edq.flatten_obs(env.reset(seed=0)[0])
        assert obs.dtype == np.float32 and obs.ndim == 1
        assert np.abs(env.action_space.low).max() == np.abs(env.action_space.high).max() == 1
        limits = {"pen": 100, "door": 200, "hammer": 200, "relocate": 200, "kitchen": 280}
        family = env_id.split("-")[0]
        assert env.spec.max_episode_steps == limits.get(family, env.spec.max_episode_steps)
        env.close()


def test_mazes_are_scored_from_one_cell_to_another_and_end_on_arrival(antmaze):
    far = {"umaze": 2, "medium": 7, "large": 10, "open": 4.5, "rare": 4}
    for name, distance in far.items():
        env = antmaze.make_env(antmaze.TASKS[f"pointmaze-{name}"])
        all_obs = [env.reset(seed=seed)[0] for seed in range(10)]
        starts = [obs["achieved_goal"] for obs in all_obs]
        goals = [obs["desired_goal"] for obs in all_obs]
        assert np.ptp(starts, axis=0).max() <= 0.5 and np.ptp(goals, axis=0).max() <= 0.5
        apart = np.linalg.norm(np.mean(starts, 0) - np.mean(goals, 0))
        assert apart == pytest.approx(distance, abs=0.7)
        assert env.unwrapped.continuing_task is False
        env.close()


def test_fixed_mazes_have_one_start_and_one_goal(antmaze):
    """The centres of their cells, 4 m wide, as in D4RL; those of Gymnasium are drawn."""
    for name, spread in (("antmaze-umaze-fixed", 0), ("antmaze-umaze", 0.5)):
        env = antmaze.make_env(antmaze.TASKS[name])
        all_obs = [env.reset(seed=seed)[0] for seed in range(10)]
        starts = np.array([obs["achieved_goal"] for obs in all_obs])
        goals = np.array([obs["desired_goal"] for obs in all_obs])
        assert np.ptp(goals, axis=0).min() >= spread
        if not spread:
            assert np.ptp(goals, axis=0).max() == 0
            np.testing.assert_allclose(goals[0], [-4, 4])
            # MuJoCo's own noise of 0.1 on the joints stays.
            assert np.abs(starts - [-4, -4]).max() < 0.5
        env.close()


def test_the_ant_of_d4rl_is_another_one(antmaze):
    models = []
    for name in ("antmaze-umaze", "antmaze-umaze-d4rl"):
        env = antmaze.make_env(antmaze.TASKS[name])
        env.reset(seed=0)
        env.step(np.ones(8, np.float32))
        ant = env.unwrapped.ant_env
        models.append((ant.model.opt.timestep, float(ant.data.qfrc_actuator.max())))
        env.close()
    assert models == [(0.01, 150.0), (0.02, 30.0)]


def test_evaluation_repeats_and_starts_differ(mujoco):
    changes = {"num_critics": 3, "hidden_dim": 32, "num_candidates": 5, "eval_envs": 3}
    args = mujoco.replace(mujoco.Args(), env_id="hopper-medium", eval_episodes=7, **changes)
    torch.manual_seed(0)
    agent = mujoco.Agent(11, 3, args)
    scored = []
    for seed in (0, 0, 1):
        args = mujoco.replace(args, seed=seed)
        envs = mujoco.vector_env(args)
        assert envs.num_envs == 3
        scored.append(mujoco.evaluate(agent, envs, args, (0.0, 100.0), 7))
        envs.close()
    assert scored[0] == scored[1] != scored[2]
    assert len(scored[0]) == 7 and len({r["return"] for r in scored[0]}) > 5
    assert all(r["score"] == pytest.approx(r["return"]) for r in scored[0])


def test_means_skip_what_is_missing(antmaze):
    results = [antmaze.episode_result(np.array(r), (0, 1)) for r in ([0, 0, 1, 0], [0, 0], [1])]
    figures = antmaze.means(results)
    assert figures["score"] == pytest.approx(200 / 3) and figures["steps_to_goal"] == 2
    assert figures["standard_error"] == pytest.approx(np.std([100, 0, 100], ddof=1) / 3**0.5)
    assert antmaze.means(results[1:2])["standard_error"] == 0


def test_what_a_dataset_says_is_never_run(mujoco, tmp_path, monkeypatch, capsys):
    """A spec that names a module to import, with the spaces that it should state and without."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Env: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    wrapper = {"name": "W", "entry_point": "evil:Env", "kwargs": {}}
    spec = {"entry_point": "evil:Env", "additional_wrappers": [wrapper]}
    evaluation = json.dumps(json.loads(gym.spec("Hopper-v5").to_json()) | spec)
    folder = write_dataset(tmp_path / "set", hopper_episodes(1), spec, eval_env_spec=evaluation)
    load(mujoco, folder, "hopper-medium")
    path = folder / "data/metadata.json"
    text = json.loads(path.read_text())
    del text["observation_space"]
    path.write_text(json.dumps(text))
    assert "states its spaces" in wrong(mujoco, capsys, "hopper-medium", folder)
    assert not (tmp_path / "ran").exists()


def half(data):
    path = data / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_an_episode(data):
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1"]


def claim_more(data):
    text = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps(text | {"total_steps": 99}))


def lose_metadata(data):
    (data / "metadata.json").unlink()


@pytest.mark.parametrize("harm", [half, lose_an_episode, claim_more, lose_metadata])
def test_damaged_sets(mujoco, tmp_path, capsys, harm):
    folder = write_dataset(tmp_path / "set", hopper_episodes(2, 10))
    harm(folder / "data")
    assert "cannot be read" in wrong(mujoco, capsys, "hopper-medium", folder)
