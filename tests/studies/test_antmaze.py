"""The look inside AntMaze agents: naive loops, the simulator itself, and paths made by hand."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results.common.records import csv_rows, read_record, write_csv
from results.common.runs import load_run, script_of
from results.common.walks import watch
from results.studies.antmaze import acting, suspects
from results.studies.antmaze import run as study

pytestmark = pytest.mark.study


@pytest.fixture(scope="module")
def antmaze():
    return script_of("edq_antmaze")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run of the embedded task."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = "--no-compile --num-critics 2 --hidden-dim 8 --batch-size 8 --gradient-steps 50"
    flags += " --eval-every 50 --eval-episodes 3 --eval-envs 2 --num-candidates 3"
    command = [sys.executable, "edq_antmaze.py", *flags.split(), "--run-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_steps_and_returns_by_hand(antmaze):
    """Three episodes: one that ends, one cut by the clock, one that ends and then goes on."""
    obs = torch.tensor([[0.0], [1], [2], [10], [11], [20], [21], [22]])
    after = torch.tensor([[1.0], [2], [3], [11], [12], [21], [22], [23]])
    reward = torch.tensor([-2.0, -2, 2, -2, -2, -2, 2, -2])
    end = torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 0])
    data = antmaze.Transitions(obs, None, reward, after, end)
    steps, returns = study.to_the_end(data, 0.5)
    nan = float("nan")
    np.testing.assert_allclose(steps, [3, 2, 1, nan, nan, 2, 1, nan])
    np.testing.assert_allclose(returns, [-2.5, -1, 2, nan, nan, -1, 2, nan])


def test_rounding_to_tf32_keeps_ten_bits_and_errs_less_than_bf16(antmaze):
    few = torch.tensor([1.0, 1 + 2**-10, -3.5, 19.25, 0.0, 2.0**-20])
    assert torch.equal(study.tf32(few), few)
    torch.manual_seed(0)
    args = antmaze.Args(num_critics=4, hidden_dim=64, precision="fp32")
    agent = antmaze.Agent(5, 2, args)
    obs, action = torch.randn(30, 7, 5), torch.rand(30, 7, 2)
    with torch.no_grad():
        exact = study.q_of(agent, obs, action)
        errors = {}
        for precision in ("tf32", "bf16"):
            error = study.q_in(precision, agent, obs, action) - exact
            errors[precision] = float(error.square().mean().sqrt())
    assert 0 < 3 * errors["tf32"] < errors["bf16"]


def test_a_step_from_an_observation_is_the_simulators(antmaze):
    """Half a second of a real episode: from each observation, its action leads to the next one."""
    env = antmaze.make_env(antmaze.TASKS["antmaze-umaze"])
    rng = np.random.default_rng(0)
    obs, actions = [antmaze.flatten_obs(env.reset(seed=1)[0])], []
    for _ in range(10):
        actions.append(rng.uniform(-1, 1, 8).astype(np.float32))
        obs.append(antmaze.flatten_obs(env.step(actions[-1])[0]))
    obs, actions = torch.tensor(np.array(obs)), torch.tensor(np.array(actions))
    both = torch.stack([torch.zeros(10, 8), actions], 1)
    found = study.ant_steps(antmaze, "antmaze-umaze", obs[:-1], both)
    torch.testing.assert_close(found[:, 1], obs[1:], rtol=0, atol=2e-3)
    assert float((found[:, 0] - obs[1:]).abs().max()) > 0.1


def test_movement_of_a_path_made_by_hand():
    """Down a column of open cells at 2 m/s, on its back for a quarter of the time."""
    walls = np.ones((7, 3), bool)
    walls[1:6, 1] = False
    path = np.zeros((101, 31), np.float32)
    path[:, 28] = 8.1 - 0.1 * np.arange(101)  # from the middle of row 1 to the lower edge of row 3
    path[:, 30], path[:, 1] = -8, 1  # goal in row 5; upright
    path[:25, 1:5] = (0, 1, 0, 0)
    found = study.movement(path, walls)
    assert abs(found["metres_per_second"] - 2) < 1e-3
    assert abs(found["upside_down"] - 25 / 101) < 1e-6
    assert (found["cells_to_goal"], found["cells_nearer"]) == (4, 2)


def test_a_run_is_diagnosed(trained, tmp_path):
    args = study.Args(runs=(trained,), states=20, out=tmp_path / "out.csv")
    study.main(args)
    about, rows = read_record(tmp_path / "out.csv")
    assert about["dataset"]["hash"]
    assert len(rows) >= 2
    returns = [row["return"] for row in rows]
    assert returns == sorted(returns, reverse=True), "the farther, the less"
    assert all(row["lcb_error_bf16"] > row["lcb_error_tf32"] > 0 for row in rows)


def test_watched_episodes_are_those_of_the_evaluation(trained):
    run = load_run(trained)
    results, paths = watch(run, 3)
    evaluations = csv_rows(trained / "evaluations.csv")
    lengths = [int(row["length"]) for row in evaluations]
    assert [result["length"] for result in results] == lengths
    assert len(paths) == 3
    for result, path in zip(results, paths):
        assert len(path) == result["length"] + 1
        assert not np.array_equal(path[0], path[-1])
        assert np.linalg.norm(path[0, :2] - path[1, :2]) < 0.2, "a step is a small one"


def test_the_mean_of_one_sample_is_the_script_s_own_acting(trained):
    run = load_run(trained, num_candidates=1, eval_episodes=3)
    envs = run.script.vector_env(run.args)
    reference = run.record["dataset"]["reference"]
    own = run.script.means(run.script.evaluate(run.agent, envs, run.args, reference, 3))
    envs.close()
    before = run.script.act
    found = acting.score(run, 1, 3)
    assert found == pytest.approx(own, nan_ok=True)
    assert run.script.act is before


def test_samples_and_their_spread_against_a_loop(trained):
    run = load_run(trained)
    obs = torch.randn(3, len(run.agent.obs_mean))
    noise = torch.randn(run.args.num_diffusion_steps, 3, 4, 2)
    with torch.no_grad():
        found = acting.samples_of(run, obs, noise)
        for r in range(3):
            for k in range(4):
                scaled = (obs[r] - run.agent.obs_mean) / run.agent.obs_std
                one = run.script.sample_actions(
                    run.agent.actor,
                    run.agent.sde,
                    scaled[None],
                    run.args.action_clip,
                    noise=noise[:, r, k][:, None],
                )
                torch.testing.assert_close(found[r, k], one[0])
    of_samples, of_data = acting.spreads(run, states=50, count=8)
    assert 0 < of_samples < 1
    assert 0 < of_data < 2


def test_suspects_keep_the_runs_that_are_not_named(trained, tmp_path):
    record = tmp_path / "suspects.csv"
    write_csv(record, [{"run": "old", "method": "iql"}, {"run": trained.name, "method": "iql"}])
    suspects.main(suspects.Args((trained,), record))
    rows = {row["run"]: row["method"] for row in csv_rows(record)}
    assert rows == {"old": "iql", trained.name: "edq"}
