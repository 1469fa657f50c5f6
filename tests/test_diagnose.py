"""results/diagnose.py: its figures against naive loops, the simulator itself, and paths whose figures are known."""

import os
import subprocess
import sys

import numpy as np
import torch
from conftest import ROOT, run_script
from test_numerics import small_batch
from test_runs import TINY

sys.path.insert(0, str(ROOT / "results"))
import diagnose
from record import read_record


def test_steps_and_returns_by_hand(edq):
    """Three episodes: one that ends, one cut by the clock, one that ends and then goes on."""
    obs = torch.tensor([[0.0], [1], [2], [10], [11], [20], [21], [22]])
    after = torch.tensor([[1.0], [2], [3], [11], [12], [21], [22], [23]])
    reward, end = (
        torch.tensor([-2.0, -2, 2, -2, -2, -2, 2, -2]),
        torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 0]),
    )
    steps, returns = diagnose.to_the_end(edq.Transitions(obs, None, reward, after, end), 0.5)
    nan = float("nan")
    expected = [3, 2, 1, nan, nan, 2, 1, nan], [-2 - 1 + 0.5, -2 + 1, 2, nan, nan, -1, 2, nan]
    for found, right in zip((steps, returns), expected):
        np.testing.assert_allclose(found, right)


def test_rounding_to_tf32_keeps_ten_bits():
    """Numbers with ten bits stay; others move by half a unit at most, to a number with ten bits."""
    few = torch.tensor([1.0, 1 + 2**-10, -3.5, 19.25, 0.0, 2.0**-20])
    assert torch.equal(diagnose.tf32(few), few)
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    rounded = diagnose.tf32(x).double()
    mantissa, exponent = np.frexp(rounded.numpy())
    assert (np.abs(mantissa * 2**11) % 1 == 0).all()
    error = np.abs(rounded.numpy() - x.double().numpy()) / 2.0**exponent
    assert error.max() <= 2**-12 and error.max() > 0.9 * 2**-12


def test_bf16_is_the_networks_own_and_errs_more_than_tf32(edq):
    torch.manual_seed(0)
    args = edq.replace(edq.Args(), num_critics=4, hidden_dim=64, compile="off", precision="fp32")
    agent = edq.Agent(5, 2, args)
    obs, action = torch.randn(30, 7, 5), torch.rand(30, 7, 2)
    flat = obs.flatten(0, 1).double(), action.flatten(0, 1).double()
    exact = agent.target_q.double()(*flat).unflatten(1, (30, 7))
    agent.target_q.float()
    found = {p: diagnose.q_in(p, agent, obs, action) for p in ("tf32", "bf16")}
    assert found["bf16"].shape == exact.shape == (4, 30, 7)
    agent.target_q.half = True
    own = agent.target_q(obs.flatten(0, 1), action.flatten(0, 1)).unflatten(1, (30, 7))
    torch.testing.assert_close(found["bf16"], own, rtol=0, atol=1e-4)
    errors = {p: float((q - exact).square().mean().sqrt()) for p, q in found.items()}
    assert 0 < 3 * errors["tf32"] < errors["bf16"]


def test_a_step_from_an_observation_is_the_simulators(antmaze):
    """Half a second of a real episode: from each observation, its action leads to the next one."""
    env = antmaze.make_env(antmaze.TASKS["antmaze-umaze"])
    rng, obs, actions = np.random.default_rng(0), [antmaze.flatten_obs(env.reset(seed=1)[0])], []
    for _ in range(10):
        actions.append(rng.uniform(-1, 1, 8).astype(np.float32))
        obs.append(antmaze.flatten_obs(env.step(actions[-1])[0]))
    obs, actions = torch.tensor(np.array(obs)), torch.tensor(np.array(actions))
    other = torch.zeros(10, 8)
    found = diagnose.ant_steps(antmaze, "antmaze-umaze", obs[:-1], torch.stack([other, actions], 1))
    torch.testing.assert_close(found[:, 1], obs[1:], rtol=0, atol=2e-3)
    assert float((found[:, 0] - obs[1:]).abs().max()) > 0.1


def test_movement_of_a_path_made_by_hand(antmaze):
    """Down a column of open cells at 2 m/s, on its back for a quarter of the time."""
    walls = np.ones((7, 3), bool)
    walls[1:6, 1] = False
    path = np.zeros((101, 31), np.float32)
    path[:, 28] = 8.1 - 0.1 * np.arange(
        101
    )  # from the middle of row 1 to the lower edge of row 3, at -2
    path[:, 30], path[:, 1] = -8, 1  # goal in row 5; upright
    path[:25, 1:5] = (0, 1, 0, 0)
    found = diagnose.movement(path, walls)
    assert (
        abs(found["metres_per_second"] - 2) < 1e-3 and abs(found["upside_down"] - 25 / 101) < 1e-6
    )
    assert (found["cells_to_goal"], found["cells_nearer"]) == (4, 2)


def test_a_run_is_diagnosed(tmp_path):
    run = tmp_path / "run"
    out = run_script(
        "edq_antmaze", *TINY, "--gradient-steps", 50, "--eval-episodes", 1, "--run-dir", run
    )
    assert out.returncode == 0, out.stderr
    command = [
        sys.executable,
        "results/diagnose.py",
        run,
        "--states",
        "20",
        "--out",
        tmp_path / "out.csv",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    about, rows = read_record(tmp_path / "out.csv")
    assert (
        about["dataset"]["hash"]
        and 2 <= len(rows) <= 4
        and all(row["critics"] == 2 for row in rows)
    )
    returns = [row["return"] for row in rows]
    assert returns == sorted(returns, reverse=True), "the farther, the less"
    assert all(
        0 <= row["saturated"] <= 1 and row["lcb_error_bf16"] > row["lcb_error_tf32"] > 0
        for row in rows
    )


def test_runs_of_an_ant_are_diagnosed_and_let_loose(tmp_path):
    """From recorded data to both tables; the critics of one run choose among the candidates of another."""
    env = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path / "data")}
    flags = ["--task", "umaze", "--transitions", "700", "--processes", "1"]
    subprocess.run(
        [sys.executable, "results/datasets/antmaze.py", *flags], cwd=ROOT, env=env, check=True
    )
    flags = [
        "--env-id",
        "antmaze-umaze",
        "--dataset-id",
        "edq/antmaze/umaze-v0",
        "--gradient-steps",
        10,
    ]
    for name, more in (("edq", []), ("other", ["--preset", "diffusion-ql"])):
        more = [*TINY, *flags, *more, "--eval-episodes", 1, "--run-dir", tmp_path / name]
        assert run_script("edq_antmaze", *more, env=env).returncode == 0
    looked, walked = tmp_path / "look.csv", tmp_path / "walk.csv"
    command = [sys.executable, "results/diagnose.py", tmp_path / "other"]
    subprocess.run(
        [*command, "--states", "10", "--steps-from", "3", "--out", looked],
        cwd=ROOT,
        env=env,
        check=True,
    )
    rows = read_record(looked)[1]
    assert len(rows) >= 3 and all(
        -1 <= row["q_and_next_q"] <= 1 and row["next_q_spread"] > 0 for row in rows
    )
    more = ["--walk", "1", "--actor", tmp_path / "edq", "--out", walked]
    subprocess.run([*command, *more], cwd=ROOT, env=env, check=True)
    rows = read_record(walked)[1]
    assert [(row["actor"], row["choose"]) for row in rows] == [
        ("other", "softmax"),
        *(("edq", x) for x in diagnose.CHOICES),
    ]
    assert all(0 <= row["metres_per_second"] < 5 and row["cells_to_goal"] == 6 for row in rows)


def test_rows_that_do_not_follow_have_no_way_to_an_end(edq):
    data = small_batch(edq, 50)
    steps, _ = diagnose.to_the_end(data, 0.99)
    assert torch.equal(steps == 1, data.end > 0) and torch.equal(steps.isnan(), data.end == 0)
