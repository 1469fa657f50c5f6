"""The loader on small datasets with known transitions, and the pieces of evaluation that need no training."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import episode, hopper_episodes, write_dataset


def load(module, folder, env_id, obs_dim, act_dim, **changes):
    args = module.replace(module.Args(), **(module.TASKS[env_id].row | dict(env_id=env_id, dataset_id=str(folder))))
    data, info = module.load_dataset(module.replace(args, **changes), "cpu")
    assert (data.obs.shape[1], data.action.shape[1]) == (obs_dim, act_dim)
    return data, info


def test_no_transition_crosses_an_episode_and_truncation_is_no_terminal(mujoco, tmp_path):
    obs = [np.arange(4)[:, None] + 10 * i + np.zeros((4, 11)) for i in range(2)]
    episodes = [
        episode(obs[0].astype(np.float32), np.full((3, 3), 0.1), np.array([1.0, 2.0, 3.0]), "termination"),
        episode(obs[1].astype(np.float32), np.full((3, 3), 0.2), np.array([4.0, 5.0, 6.0]), "truncation"),
    ]
    data, info = load(mujoco, write_dataset(tmp_path / "set", episodes), "hopper-medium", 11, 3)
    assert data.obs[:, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 11, 12, 13]
    assert data.end.tolist() == [0, 0, 1, 0, 0, 0]
    assert data.reward.tolist() == [1, 2, 3, 4, 5, 6]
    assert all(x.dtype == torch.float32 for x in data) and data.action.shape == (6, 3)
    low, high = mujoco.TASKS["hopper-medium"].reference
    assert info["reference_from"] == "D4RL's table" and info["transitions"] == 6 and info["episodes"] == 2
    assert info["mean_score"] == pytest.approx(np.mean([100 * (r - low) / (high - low) for r in (6, 15)]))


def test_joined_sets_and_reference_from_the_metadata(mujoco, tmp_path):
    a = write_dataset(tmp_path / "a", hopper_episodes(2, 5), ref_min_score=-1.0, ref_max_score=9.0)
    b = write_dataset(tmp_path / "b", hopper_episodes(3, 4, seed=1))
    data, info = load(mujoco, f"{a},{b}", "hopper-medium-expert", 11, 3)
    assert len(data.obs) == 2 * 5 + 3 * 4 and info["reference"] == (-1.0, 9.0) and info["reference_from"] == "metadata"
    one, other = (load(mujoco, x, "hopper-medium", 11, 3)[0] for x in (a, b))
    assert torch.equal(data.obs, torch.cat([one.obs, other.obs]))


def test_content_hash_sees_every_number(mujoco, tmp_path):
    episodes = hopper_episodes(2, 5)
    first = load(mujoco, write_dataset(tmp_path / "a", episodes), "hopper-medium", 11, 3)[1]["hash"]
    again = load(mujoco, write_dataset(tmp_path / "b", episodes), "hopper-medium", 11, 3)[1]["hash"]
    episodes[1]["rewards"][2] += 1e-3
    other = load(mujoco, write_dataset(tmp_path / "c", episodes), "hopper-medium", 11, 3)[1]["hash"]
    assert first == again != other


def test_reward_transforms(mujoco, hopper_set):
    raw, antmaze, standard = (
        load(mujoco, hopper_set, "hopper-medium", 11, 3, reward=r)[0].reward for r in ("raw", "antmaze", "standardize")
    )
    torch.testing.assert_close(antmaze, 4 * (raw - 0.5))
    torch.testing.assert_close(standard, (raw - raw.mean()) / raw.std(), atol=1e-5, rtol=1e-5)


def test_actions_outside_the_box_are_clipped_and_counted(mujoco, tmp_path):
    episodes = hopper_episodes(1, 10)
    episodes[0]["actions"][0] = (3.0, -2.0, 0.0)
    data, info = load(mujoco, write_dataset(tmp_path / "set", episodes), "hopper-medium", 11, 3)
    assert data.action[0].tolist() == [1, -1, 0] and info["action_components_clipped"] == pytest.approx(2 / 30)


def maze_episode(rewards, ant):
    n, size = len(rewards), 27 if ant else 4
    obs = {
        "observation": np.arange((n + 1) * size, dtype=np.float32).reshape(n + 1, size),
        "achieved_goal": np.full((n + 1, 2), 7, np.float32),
        "desired_goal": np.full((n + 1, 2), 9, np.float32),
    }
    return episode(obs, np.zeros((n, 8 if ant else 2)), np.array(rewards, float), "truncation")


@pytest.mark.parametrize("ant", [True, False])
def test_maze_observations_and_success(antmaze, tmp_path, ant):
    env_id = "antmaze-umaze" if ant else "pointmaze-umaze"
    spec = {"id": antmaze.TASKS[env_id].env, "kwargs": {}}
    episodes = [maze_episode([0, 1, 1, 0], ant), maze_episode([0, 0], ant)]
    folder = write_dataset(tmp_path / "set", episodes, spec)
    data, info = load(antmaze, folder, env_id, 31 if ant else 6, 8 if ant else 2)
    assert data.end.tolist() == [0, 1, 1, 0, 0, 0]  # every step at the goal is an end; the data after it stay
    assert data.reward.tolist() == [-2, 2, 2, -2, -2, -2]
    assert data.obs[1].tolist() == [*(range(27, 54) if ant else range(4, 8)), *([7, 7] if ant else []), 9, 9]
    assert info["mean_score"] == 50 and info["mean_steps_to_goal"] == 2


RING = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def maze_spec(cells, **changes) -> dict:
    kwargs = {"maze_map": cells, "continuing_task": True}
    return json.loads(gym.spec("PointMaze_UMaze-v3").to_json()) | {"kwargs": kwargs} | changes


def test_a_maze_comes_with_its_data(antmaze, tmp_path):
    """Walls, start, goal and time limit are those of the evaluation spec, whatever the task is called."""
    scored = [list(line) for line in RING]
    scored[1][1], scored[2][2] = "r", "g"
    specs = dict(eval_env_spec=json.dumps(maze_spec(scored, max_episode_steps=77)))
    folder = write_dataset(tmp_path / "set", [maze_episode([0, 1], False)], maze_spec(RING), **specs)
    load(antmaze, folder, "pointmaze-umaze", 6, 2)
    env = antmaze.make_env(antmaze.TASKS["pointmaze-umaze"])
    assert env.spec.max_episode_steps == 77 and env.unwrapped.maze.map_width == 4
    obs = env.reset(seed=0)[0]  # cells of 1 m, noise of 0.25 m
    assert np.abs(obs["achieved_goal"] - (-0.5, 0.5)).max() < 0.26
    assert np.abs(obs["desired_goal"] - (0.5, -0.5)).max() < 0.26
    load(antmaze, folder, "pointmaze-umaze", 6, 2)  # as when a run is resumed
    assert antmaze.TASKS["pointmaze-umaze"].env_kwargs["maze_map"] == scored
    env.close()


def test_mazes_that_do_not_fit_are_refused(antmaze, tmp_path, capsys):
    other, umaze = (json.loads(gym.spec(f"PointMaze_{maze}-v3").to_json()) for maze in ("Large", "UMaze"))
    nowhere = write_dataset(tmp_path / "nowhere", [maze_episode([0, 1], False)], other)
    with pytest.raises(SystemExit) as stop:
        load(antmaze, nowhere, "pointmaze-umaze", 6, 2)
    assert stop.value.code == 2 and "another maze" in capsys.readouterr().err
    here = write_dataset(tmp_path / "here", [maze_episode([0, 1], False)], umaze)
    with pytest.raises(SystemExit) as stop:  # no time limit
        endless = json.dumps(maze_spec([["r", "g"], [0, 0]], max_episode_steps=None))
        folder = [maze_episode([0, 1], False)], maze_spec([[0, 0]] * 2)
        load(antmaze, write_dataset(tmp_path / "endless", *folder, eval_env_spec=endless), "pointmaze-umaze", 6, 2)
    assert stop.value.code == 2 and "time limit" in capsys.readouterr().err
    scored = json.dumps(maze_spec([["r", "g"], [0, 0]]))
    there = write_dataset(
        tmp_path / "there", [maze_episode([0, 1], False)], maze_spec([[0, 0]] * 2), eval_env_spec=scored
    )
    with pytest.raises(SystemExit) as stop:
        load(antmaze, f"{here},{there}", "pointmaze-umaze", 6, 2)
    assert stop.value.code == 2 and "another simulator" in capsys.readouterr().err


def test_the_ant_of_d4rl(antmaze, mujoco, tmp_path):
    """Data that say they are D4RL's are scored with its ant, and locomotion data of version 4 in version 4."""
    spec, episodes = {"id": "AntMaze_UMaze-v4", "kwargs": {}}, [maze_episode([0, 1], True)]
    models = []
    for name, metadata in (("ours", {}), ("theirs", {"d4rl": "antmaze-umaze-v2"})):
        load(antmaze, write_dataset(tmp_path / name, episodes, spec, **metadata), "antmaze-umaze", 31, 8)
        env = antmaze.make_env(antmaze.TASKS["antmaze-umaze"])
        env.reset(seed=0)
        env.step(np.ones(8, np.float32))
        model, data = env.unwrapped.ant_env.model, env.unwrapped.ant_env.data
        models.append((model.opt.timestep, float(data.qfrc_actuator.max()), round(float(data.time), 6)))
        env.close()
    assert models == [(0.01, 150.0, 0.05), (0.02, 30.0, 0.1)]  # seconds a substep, torque, seconds a step
    four, five = (write_dataset(tmp_path / v, hopper_episodes(), {"id": f"Hopper-{v}"}) for v in ("v4", "v5"))
    for pair in (f"{four},{five}", f"{five},{four}"):
        with pytest.raises(SystemExit):
            load(mujoco, pair, "hopper-medium", 11, 3)
    load(mujoco, four, "hopper-expert", 11, 3)
    assert mujoco.TASKS["hopper-expert"].env == "Hopper-v4"


def test_kitchen_observation_is_flat_and_scores_count_tasks(adroit, tmp_path):
    rng = np.random.default_rng(0)
    obs = {"observation": rng.normal(size=(6, 59))}  # float64, as Minari's
    made = write_dataset(
        tmp_path / "set", [episode(obs, rng.uniform(-1, 1, (5, 9)), np.array([0, 1, 0, 2, 0.0]), "truncation")]
    )
    data, info = load(adroit, made, "kitchen-mixed", 59, 9)
    assert data.obs.shape == (5, 59) and info["mean_score"] == 75
    env = adroit.make_env(adroit.TASKS["kitchen-mixed"])
    start, _ = env.reset(seed=0)
    assert adroit.flatten_obs(start).shape == (59,) and env.action_space.shape == (9,)
    assert set(start["desired_goal"]) == {"microwave", "kettle", "bottom burner", "light switch"}
    env.close()


def test_every_simulator_of_the_tables_can_be_made(edq):
    seen = {}
    for env_id, task in edq.TASKS.items():
        key = (task.env, str(task.env_kwargs))
        if key not in seen:
            env = edq.make_env(task)
            obs = edq.flatten_obs(env.reset(seed=0)[0])
            assert obs.dtype == np.float32 and obs.ndim == 1
            assert env.action_space.low.min() == -1 and env.action_space.high.max() == 1
            seen[key] = env.spec.max_episode_steps
            env.close()
        limits = {"pen": 100, "door": 200, "hammer": 200, "relocate": 200, "kitchen": 280}
        if env_id.split("-")[0] in limits:
            assert seen[key] == limits[env_id.split("-")[0]]


def test_maze_evaluation_has_one_start_and_one_goal(antmaze):
    for name, far in (("umaze", 2), ("medium", 7), ("large", 10)):
        env = antmaze.make_env(antmaze.TASKS[f"pointmaze-{name}"])
        starts, goals = zip(
            *((o["achieved_goal"], o["desired_goal"]) for o in (env.reset(seed=s)[0] for s in range(20)))
        )
        assert np.ptp(starts, axis=0).max() <= 0.5 and np.ptp(goals, axis=0).max() <= 0.5
        assert np.linalg.norm(np.mean(starts, 0) - np.mean(goals, 0)) == pytest.approx(far, abs=0.6)
        env.close()


def test_results_do_not_depend_on_how_many_run_at_once(mujoco):
    """13 episodes in waves of 3, all together, and the first 7 alone: the same numbers to the last bit."""
    base = mujoco.replace(mujoco.Args(), env_id="hopper-medium", num_critics=3, hidden_dim=32, num_candidates=5)
    torch.manual_seed(0)
    agent = mujoco.Agent(11, 3, base)
    runs = []
    for eval_envs, episodes, together in ((3, 13, 3), (20, 13, 13), (50, 7, 7)):
        args = mujoco.replace(base, eval_envs=eval_envs, eval_episodes=episodes)
        envs = mujoco.vector_env(args)
        assert envs.num_envs == together
        runs.append(mujoco.evaluate(agent, envs, args, (0.0, 100.0), episodes))
        envs.close()
    assert runs[0] == runs[1] and runs[2] == runs[0][:7]
    assert len({r["return"] for r in runs[0]}) > 5  # different starts and noise, not one episode over and over


def test_means_skip_what_is_missing(antmaze):
    rows = [antmaze.episode_result(r, (0, 1)) for r in ([0, 0, 1, 0], [0, 0], [1])]
    figures = antmaze.means([{"episode": i, "seed": i, **row} for i, row in enumerate(rows)])
    assert figures["score"] == pytest.approx(200 / 3) and figures["steps_to_goal"] == 2
    assert figures["standard_error"] == pytest.approx(np.std([100, 0, 100], ddof=1) / 3**0.5)


def test_embedded_dataset_is_rebuilt_to_the_last_bit(tmp_path):
    """The committed file, read beside a fresh recording with the script's defaults; small, and float32."""
    import subprocess
    import sys

    import h5py
    from conftest import ROOT

    folder = ROOT / "results" / "datasets"
    subprocess.run(
        [sys.executable, folder / "pointmaze.py", "--out", tmp_path / "set"], check=True, capture_output=True
    )
    committed = folder / "pointmaze-umaze-embedded" / "data" / "main_data.hdf5"
    assert committed.stat().st_size < 1.5e6
    with h5py.File(committed) as a, h5py.File(tmp_path / "set" / "data" / "main_data.hdf5") as b:
        assert a.keys() == b.keys()
        for name in a:
            assert a[name]["actions"].dtype == a[name]["observations/observation"].dtype == np.float32
            # On another processor a trajectory may differ in its last digits, and these grow along an episode.
            np.testing.assert_allclose(a[name]["actions"][:5], b[name]["actions"][:5], atol=1e-4)
            assert a[name]["rewards"].shape == b[name]["rewards"].shape
