"""The measurements of speed: a compiled update is the eager one, and a tiny sweep gives rows."""

import copy
import json
import shutil
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results.common.runs import script_of
from results.studies.speed import measure, run

pytestmark = pytest.mark.study
HEADERS = Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and HEADERS), reason="no C++ compiler, or no Python headers"
)
SETTING = {"M": 2, "T": 5, "B": 8, "max_q": False, "precision": "fp32", "entropy": "released"}


@pytest.fixture
def edq():
    """A script whose functions are put back after they were compiled."""
    script = script_of("edq_mujoco")
    before = dict(vars(script))
    yield script
    vars(script).update(before)


def train(edq, agent, data, args, updates: int) -> np.ndarray:
    """Metrics after each update, from noise drawn beforehand; `[updates, metrics]`."""
    g = torch.Generator().manual_seed(1)
    rows = []
    for step in range(updates):
        batch, noise = edq.draw_batch(data, args, g)
        edq.update(agent, batch, noise, args, step)
        rows.append(agent.metric_sum.numpy().copy())
    return np.array(rows)


@needs_compiler
def test_compiled_updates_are_the_eager_ones(edq):
    """Same weights, same noise: the losses of 30 updates agree to 1e-3."""
    args = edq.Args(num_critics=4, hidden_dim=32, batch_size=32, precision="fp32", compile=False)
    args = replace(args, diffusion_loss="noise", action_clip=True)
    g = torch.Generator().manual_seed(0)
    data = measure.random_data(edq, 5, 2, g)
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args)
    weights = copy.deepcopy(agent.state_dict())
    eager = train(edq, agent, data, args, 30)
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args)
    assert all(torch.equal(weights[k], v) for k, v in agent.state_dict().items())
    plain = edq.actor_losses
    edq.compile_functions()
    assert edq.actor_losses is not plain
    fast = train(edq, agent, data, args, 30)
    assert not np.array_equal(fast, eager)  # it was other code that ran
    np.testing.assert_allclose(fast, eager, rtol=1e-3, atol=1e-3)


def test_the_matmuls_of_an_update_are_counted():
    """A critic of four layers: four products forward, and one for each gradient."""
    x, weight = torch.randn(3, 8, 4), torch.randn(3, 4, 5, requires_grad=True)
    with measure.Products() as products:
        torch.bmm(x, weight).sum().backward()
    assert sum(products.seen.values()) == 2
    measure.products_alone(products.seen, "cpu")()


def test_settings_go_around_the_base():
    args = run.Args(critics=(4, 8), steps=(5, 2), batch=(256,), max_q=(False,), precision=("fp32",))
    found = run.settings(args, "cpu")
    assert found[0] == {**SETTING, "M": 4, "B": 256, "compile": "on"}
    assert len(found) == len({json.dumps(setting) for setting in found})
    assert {s["entropy"] for s in found if s["T"] == 2} == {"none"}


def test_an_update_and_an_evaluation_are_timed(monkeypatch):
    monkeypatch.setattr(measure, "wait_for_turn", lambda: [])
    monkeypatch.setattr(measure, "DATA_ROWS", 100)
    args = run.Args(rounds=2, seconds=0.001)
    row = measure.time_update(args, {**SETTING, "compile": "off"}, "cpu")
    assert row["ms"] > row["products_ms"] > 0
    assert row["ms_min"] <= row["ms"] <= row["ms_max"]
    acting = {"M": 2, "T": 5, "K": 2, "compile": "off", "precision": "fp32"}
    row = measure.time_acting(args, acting, "cpu")
    assert row["steps_per_second"] > 0
    assert row["environments"] == 10
