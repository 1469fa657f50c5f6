"""The toy study: its transitions, its returns, and a table against a naive sum over the record."""

import csv
import statistics
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import edq_mujoco as edq
from results.common import small_agents
from results.common.known_tasks import toy_reward
from results.studies.samplers.mixtures import ExactActor, Mixture
from results.studies.toy import run, tables

pytestmark = pytest.mark.study
RECORDS = ROOT / "results" / "records"


def test_transitions_are_those_of_a_naive_loop():
    data = run.transitions(3)
    for i in range(run.EPISODES):
        position = 0.0
        for step, row in enumerate((i, run.EPISODES + i)):
            assert data.obs[row].tolist() == pytest.approx([position, step])
            position += float(data.action[row, 0])
            reward = float(toy_reward(torch.tensor(position)))
            assert data.next_obs[row].tolist() == pytest.approx([position, step + 1], abs=1e-6)
            assert float(data.reward[row]) == pytest.approx(reward, abs=1e-5)
            assert data.end[row] == step


def test_an_epoch_is_one_pass_over_the_data():
    stream = run.batches([1, 2], 5)
    for _ in range(2):
        epoch = [next(stream)[0] for _ in range(run.UPDATES)]
        for row, seed in enumerate([1, 2]):
            seen = torch.cat([batch.action[row, :, 0] for batch in epoch])
            all_actions = run.transitions(seed).action[:, 0]
            assert torch.equal(seen.sort().values, all_actions.sort().values)


def test_five_steps_lose_part_of_the_rich_mode_even_with_the_exact_network():
    """5 % of the first actions go there, of 12 % in the data, and 14 % to places without data."""
    sde = edq.MeanRevertingSDE(5)
    mixture = Mixture(((-0.8,), (0.8,)), 0.1, (0.88, 0.12), "")
    g = torch.Generator().manual_seed(0)
    actor = ExactActor(mixture, sde)
    action = edq.sample_actions(actor, sde, torch.zeros(100_000, 2), generator=g)
    near = torch.minimum((action - 0.8).abs(), (action + 0.8).abs()) < 0.3
    assert float((action > 0).float().mean()) == pytest.approx(0.05, abs=0.005)
    assert float((~near).float().mean()) == pytest.approx(0.14, abs=0.005)


@pytest.mark.parametrize("estimator", run.ESTIMATORS)
def test_every_estimator_trains(estimator, monkeypatch):
    monkeypatch.setattr(small_agents, "compiled", lambda function, *example: function)
    cloning, _ = run.make_agents(run.PAIR, "none", [0])
    clone = small_agents.copied(cloning.weights["actor"])
    agents, acting_noise = run.make_agents(run.PAIR, estimator, [0], clone)
    agents.update(*next(run.batches([0], 5)))
    if acting_noise:
        before = acting_noise.std.clone()
        acting_noise.adapt(agents, torch.tensor([run.START]))
        assert agents.extra["noise_std"] != before
    after = agents.weights["actor"]
    assert all(w.isfinite().all() for w in after.values())
    assert any((w != clone[name]).any() for name, w in after.items())


def test_returns_of_policies_that_are_known(monkeypatch):
    """One goes to the rich mode and stays: 1 + 1. One goes half way at each step."""
    empty = {"w": torch.zeros(2, 1)}
    agents = SimpleNamespace(sde=SimpleNamespace(num_steps=5), seeds=[0, 1], extra={})
    agents.args = run.PAIR
    agents.weights = {"actor": empty, "target_q": empty}
    agents.one = lambda *_: None
    monkeypatch.setattr(run, "act", lambda agent, obs, *_: 0.8 * (1 - obs[:, 1:]))
    assert run.returns(agents, "one", 4).tolist() == pytest.approx([2, 2])
    monkeypatch.setattr(run, "act", lambda agent, obs, *_: torch.full_like(obs[:, 1:], 0.4))
    half = float(toy_reward(torch.tensor(0.4)))
    assert run.returns(agents, "argmax", 4).tolist() == pytest.approx([1 + half, 1 + half])


def test_tables_agree_with_naive_sums_over_the_record():
    with open(RECORDS / "toy" / "runs.csv", newline="") as file:
        file.readline()
        rows = list(csv.DictReader(file))

    def values(method: str, estimator: str) -> list[float]:
        chosen = [r for r in rows if (r["method"], r["estimator"]) == (method, estimator)]
        return [float(r["return_argmax"]) for r in chosen]

    found = tables.tables(RECORDS)
    x = values("+ both", "chain")
    cell = f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f} ({min(x):.2f})"
    (line,) = [s for s in found["toy-returns"].splitlines() if s.startswith("| + both | chain |")]
    assert cell in line
    rival = values("+ Q-ensemble", "none")
    gain = statistics.mean(x) - statistics.mean(rival)
    (line,) = [s for s in found["toy-claim"].splitlines() if s.startswith("| chain |")]
    assert f"{gain:+.2f} [" in line
