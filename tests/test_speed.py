"""Faster ways of making the same update: compiled, in bf16, recorded; and the benchmark that measures them."""

import copy
import csv
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, hopper_episodes, run_script, write_dataset
from test_numerics import small_batch
from test_runs import TINY, same_run

COMPILER = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler, or no Python headers")
SETTINGS = {
    "released": dict(entropy_estimator="released", max_q_backup=True),
    "chain": dict(
        entropy_estimator="chain", ent_coef="auto", target_entropy=0.1, policy_action="chain"
    ),
}


def trainer(edq, device="cpu", **changes):
    args = edq.replace(
        edq.Args(), num_critics=4, hidden_dim=32, batch_size=32, eta=1.0, diffusion_loss="noise"
    )
    args = edq.replace(args, action_clip=True, precision="fp32", compile="off", **changes)
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args, device)
    data = edq.Transitions(*(x.to(device) for x in small_batch(edq, 200)))
    return args, agent, data


def train(edq, args, agent, data, updates):
    """Metrics of each update and the gradients of the first, from noise drawn beforehand."""
    g, rows, first = torch.Generator(data.obs.device).manual_seed(1), [], None
    for step in range(updates):
        batch, noise = edq.draw_batch(data, args, g)
        rows.append(edq.update(agent, batch, noise, args, step).tolist())
        if first is None:
            first = {
                name: torch.cat([p.grad.flatten() for p in net.parameters()]).double()
                for name, net in (("critic", agent.q), ("actor", agent.score))
            }
    return np.array(rows), first


@needs_compiler
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled_updates_are_the_eager_ones(mujoco, name):
    """Same state, same noise: gradients of the first update to 1e-5, losses of 50 updates to 1e-3."""
    args, agent, data = trainer(mujoco, **SETTINGS[name])
    twin = copy.deepcopy(agent.state_dict())
    eager, eager_grad = train(mujoco, args, agent, data, 50)
    _, agent, _ = trainer(mujoco, **SETTINGS[name])
    assert all(torch.equal(twin[k], v) for k, v in agent.state_dict().items())
    plain = mujoco.actor_losses
    mujoco.resolve(mujoco.replace(args, compile="on"), "cpu")
    assert mujoco.actor_losses is not plain
    torch._dynamo.reset()
    fast, fast_grad = train(mujoco, args, agent, data, 50)
    assert not np.array_equal(fast, eager)  # it was other code that ran
    for net in ("critic", "actor"):
        assert float((fast_grad[net] - eager_grad[net]).norm() / eager_grad[net].norm()) < 1e-5, net
    np.testing.assert_allclose(fast, eager, rtol=1e-3, atol=1e-5)


def test_bf16_leaves_input_head_and_all_that_is_stored_in_fp32(edq):
    """Close to fp32, with the products of the first and the last layer the very same."""
    torch.manual_seed(0)
    net = edq.QEnsemble(5, 2, 6, 64)
    obs, action = torch.randn(32, 5), torch.rand(32, 2, requires_grad=True)
    exact = net(obs, action)
    net.half = True
    seen, bmm = [], torch.bmm
    torch.bmm = lambda a, b: (seen.append((a.dtype, b.shape[1:])), bmm(a, b))[1]
    try:
        half = net(obs, action)
    finally:
        torch.bmm = bmm
    fp32, bf16 = torch.float32, torch.bfloat16
    assert seen == [(fp32, (7, 64)), (bf16, (64, 64)), (bf16, (64, 64)), (fp32, (64, 1))]
    assert half.dtype == fp32 and not torch.equal(half, exact)
    # Each product rounds to 8 bits, twice in a row; Q is a sum of 64 such terms.
    assert float((half - exact).detach().norm() / exact.detach().norm()) < 0.02
    half.sum().backward()
    assert action.grad.dtype == fp32 and all(
        p.dtype == p.grad.dtype == fp32 for p in net.parameters()
    )


def test_frozen_critics_pass_a_gradient_on_and_keep_none(edq):
    torch.manual_seed(0)
    net, obs = edq.QEnsemble(5, 2, 3, 16), torch.randn(8, 5)
    a, b = (torch.full((8, 2), 0.3, requires_grad=True) for _ in range(2))
    net(obs, a, frozen=True).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    net(obs, b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


CPUS = {
    "old": "flags : avx2 fma",
    "new": "flags : avx2 avx512f avx512_bf16",
    "amx": "flags : amx_tile amx_bf16",
}


@pytest.mark.parametrize("cpu, best", [("old", "fp32"), ("new", "bf16"), ("amx", "bf16")])
def test_auto_precision_follows_the_instruction_set(mujoco, monkeypatch, capsys, cpu, best):
    monkeypatch.setattr(mujoco.Path, "read_text", lambda self: CPUS[cpu])
    args = mujoco.replace(mujoco.Args(), compile="off")
    assert mujoco.resolve(args, "cpu").precision == best
    assert "bf16" not in capsys.readouterr().out
    assert mujoco.resolve(mujoco.replace(args, precision="bf16"), "cpu").precision == "bf16"
    assert ("80 times slower" in capsys.readouterr().out) == (best == "fp32")
    assert mujoco.resolve(mujoco.replace(args, precision="fp32"), "cpu").precision == "fp32"
    assert capsys.readouterr().out == ""
    mujoco.resolve(mujoco.replace(args, precision="tf32"), "cpu")
    assert "tf32 is the same as fp32" in capsys.readouterr().out


def test_auto_precision_on_a_gpu_is_tf32(mujoco, monkeypatch):
    """As fast as bf16 there, and closer: see test_diagnose.py for how much closer."""
    monkeypatch.setattr(mujoco.torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    args = mujoco.replace(mujoco.Args(), compile="off")
    assert mujoco.resolve(args, "cuda").precision == "tf32"
    assert mujoco.resolve(mujoco.replace(args, precision="bf16"), "cuda").precision == "bf16"


def test_auto_compiles_where_it_pays(mujoco, monkeypatch, capsys):
    args = mujoco.replace(mujoco.Args(), precision="fp32")
    monkeypatch.setattr(mujoco.shutil, "which", lambda name: None)
    assert mujoco.resolve(args, "cpu").compile == "off"
    assert "without a C++ compiler" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        mujoco.resolve(mujoco.replace(args, compile="on"), "cpu")
    assert "needs a C++ compiler" in capsys.readouterr().err
    monkeypatch.setattr(mujoco.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(mujoco.Path, "exists", lambda self: True)
    assert mujoco.resolve(mujoco.replace(args, gradient_steps=4999), "cpu").compile == "off"
    assert "compiling takes" in capsys.readouterr().out
    assert mujoco.resolve(mujoco.replace(args, gradient_steps=5000), "cpu").compile == "on"
    assert capsys.readouterr().out == ""


@needs_compiler
def test_compiled_run_resumes_to_the_last_bit_and_as_it_began(tmp_path, mujoco):
    """Two runs of a mode are equal, one of them stopped half-way; what `auto` had settled is kept."""
    data = write_dataset(tmp_path / "set", hopper_episodes())
    flags = [
        *TINY,
        "--env-id",
        "hopper-medium",
        "--dataset-id",
        data,
        "--eval-every",
        100,
        "--eval-episodes",
        2,
    ]
    flags += ["--gradient-steps", 200, "--compile", "on", "--precision", "bf16"]
    out = run_script("edq_mujoco", *flags, "--run-dir", tmp_path / "whole")
    assert out.returncode == 0, out.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoint_0000000200.pt").unlink()
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    cut = record["flags"].index("--compile")
    record["flags"][cut : cut + 4] = []  # as if both had been auto, which would now give off
    (tmp_path / "cut" / "run.json").write_text(json.dumps(record))
    args, _ = mujoco.parse_args(["--resume", str(tmp_path / "cut")])
    assert (args.compile, args.precision) == ("on", "bf16")
    out = run_script("edq_mujoco", "--resume", tmp_path / "cut")
    assert out.returncode == 0, out.stderr
    assert "compile=on precision=bf16" in out.stdout
    same_run(tmp_path / "whole", tmp_path / "cut")
    again = run_script("edq_mujoco", "--evaluate", tmp_path / "whole")
    last = json.loads((tmp_path / "whole" / "summary.json").read_text())["last"]
    assert f"score {last['score']:.6g}" in again.stdout


def test_simulators_in_processes_give_the_same_episodes(mujoco, monkeypatch):
    args = mujoco.replace(
        mujoco.Args(), env_id="hopper-medium", num_critics=2, hidden_dim=16, num_candidates=3
    )
    args = mujoco.replace(args, precision="fp32", eval_episodes=4)
    torch.manual_seed(0)
    agent, results = mujoco.Agent(11, 3, args), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for seconds, kind in ((1e-5, "SyncVectorEnv"), (1.0, "AsyncVectorEnv")):
        monkeypatch.setattr(
            mujoco.timeit, "timeit", lambda *args, seconds=seconds, **kwargs: seconds
        )
        envs = mujoco.vector_env(args)
        assert type(envs).__name__ == kind
        results.append(mujoco.evaluate(agent, envs, args, (0.0, 100.0), 4))
        envs.close()
    assert results[0] == results[1]


def test_evaluation_says_how_long_it_may_take(mujoco, capsys):
    args = mujoco.replace(
        mujoco.Args(), env_id="hopper-medium", num_critics=2, hidden_dim=16, num_candidates=3
    )
    args = mujoco.replace(args, precision="fp32", eval_episodes=3)
    envs = mujoco.vector_env(args)
    mujoco.evaluate(mujoco.Agent(11, 3, args), envs, args, (0.0, 100.0), 3)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("evaluation: ")]
    assert len(lines) == 1 and "3 episodes, 3 at a time, 1000 steps or less: up to" in lines[0]


OTHER = """
import time
def make_update(setting, data, path):
    assert path == "somewhere" and data.obs.shape[1] == 17 and setting["M"] == 3
    return lambda: time.sleep(0.03)
"""


def test_benchmark_counts_the_work_and_times_another_side(tmp_path):
    """Operations against a count by hand, and a ratio to a side that takes 30 ms."""
    (tmp_path / "other.py").write_text(OTHER)
    command = [
        sys.executable,
        ROOT / "results" / "speed.py",
        "--critics",
        3,
        "--steps",
        5,
        "--batch",
        64,
    ]
    command += [
        "--max-q",
        "False",
        "--compile",
        "off",
        "--precision",
        "fp32",
        "--entropy",
        "none",
        "--no-acting",
    ]
    command += [
        "--rounds",
        2,
        "--seconds",
        0.1,
        "--threads",
        1,
        "--out",
        tmp_path / "speed.csv",
        "--together",
        2,
    ]
    command += ["--plot", "None"]
    command += ["--other", tmp_path / "other.py", "--other-path", "somewhere"]
    out = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    with open(tmp_path / "speed.csv") as file:
        (row,) = csv.DictReader(file)
    H, inside = 256, 17 + 6  # multiplications for one state and action:
    first, hidden, head = inside * H, 2 * H * H, H  # a critic's layers
    embed, mlp = 16 * 32 + 32 * 16, (16 + inside) * H + hidden + H * 6  # the score network
    forward = first + hidden + head
    critics = (
        64 * 3 * (5 * forward + hidden + head)
    )  # target, own, its weights, its inside; actor's action, and back
    sampling = 5 * (64 * mlp + embed)  # one embedding for the whole batch
    training = 64 * (2 * (embed + mlp) + 32 * 16 + mlp)  # forward, weights, inside
    assert float(row["gflop"]) == pytest.approx(2 * (critics + sampling + training) / 1e9, rel=1e-3)
    assert 29 < float(row["other_ms"]) < 60
    assert float(row["over_other"]) == pytest.approx(
        float(row["ms"]) / float(row["other_ms"]), rel=0.5
    )
    with open(tmp_path / "speed-together.csv") as file:
        both = next(r for r in csv.DictReader(file) if r["M"] == "3")
    assert (
        both["runs"] == "2"
        and float(both["updates_per_second_in_all"]) > float(both["slowest"]) > 0
    )
    assert (
        float(row["products_ms"]) < float(row["ms"])
        and row["threads"] == "1"
        and row["torch"].startswith("2.")
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_updates_on_a_gpu_are_the_plain_ones(mujoco, name):
    """Fifty updates, from the same draws, as they are and by compiled functions in a CUDA graph."""
    sums = []
    for mode in ("off", "on"):
        args, agent, data = trainer(mujoco, "cuda", **SETTINGS[name])
        args = mujoco.resolve(mujoco.replace(args, compile=mode), "cuda")
        g = torch.Generator("cuda").manual_seed(1)
        step = mujoco.make_step(agent, data, args, g, 0, False)
        for _ in range(50):
            step()
        sums.append(agent.metric_sum.cpu().double().numpy())
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-3, atol=1e-4)
