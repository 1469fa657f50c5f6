"""The toy task: its transitions, one update beside the scripts' own, and tables against naive sums over the record."""

import csv
import re
import statistics
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
import samplers
import stacked
import toy

RECORDS = ROOT / "results" / "records"


def test_transitions_are_those_of_a_naive_loop():
    data = toy.transitions(3)
    obs, action = stacked.toy_data(torch.Generator().manual_seed(3), 2 * toy.EPISODES)
    for i in range(toy.EPISODES):
        position = 0.0
        for step, row in enumerate((i, toy.EPISODES + i)):
            assert data.obs[row].tolist() == pytest.approx([position, step])
            position += float(action[row, 0])
            assert data.next_obs[row].tolist() == pytest.approx([position, step + 1], abs=1e-6)
            assert float(data.reward[row]) == pytest.approx(
                float(stacked.toy_reward(torch.tensor(position))), abs=1e-5
            )
            assert data.end[row] == step and torch.equal(data.action[row], action[row])
            assert torch.equal(data.obs[row], obs[row])


def test_an_epoch_is_one_pass_over_the_data():
    stream, updates = toy.batches([1, 2], 5), 2 * toy.EPISODES // toy.BATCH
    for _ in range(2):
        batch = [next(stream)[0] for _ in range(updates)]
        for row, seed in enumerate([1, 2]):
            seen = torch.cat([b.action[row, :, 0] for b in batch])
            assert torch.equal(seen.sort().values, toy.transitions(seed).action[:, 0].sort().values)


def test_five_steps_lose_part_of_the_rich_hill_even_with_the_exact_network(mujoco):
    mixture, sde = (
        samplers.Mixture(((-0.8,), (0.8,)), 0.1, (0.88, 0.12), ""),
        mujoco.MeanRevertingSDE(5),
    )
    score, g = samplers.ExactScore(mixture, sde), torch.Generator().manual_seed(0)
    action = mujoco.sample_actions(score, sde, torch.zeros(100_000, 2), generator=g)
    near = torch.minimum((action - 0.8).abs(), (action + 0.8).abs()) < 0.3
    assert float((action > 0).float().mean()) == pytest.approx(0.05, abs=0.005)
    assert float((~near).float().mean()) == pytest.approx(0.14, abs=0.005)


def agents(models, args):
    """The scripts' own agents with the weights of each model."""
    for i in range(len(models.seeds)):
        agent = stacked.edq.Agent(2, 1, args)
        agent.q = stacked.edq.QEnsemble(2, 1, args.num_critics, toy.CRITIC_HIDDEN)
        agent.target_q = stacked.edq.QEnsemble(
            2, 1, args.num_critics, toy.CRITIC_HIDDEN
        ).requires_grad_(False)
        agent.optimisers["critic"] = torch.optim.Adam(agent.q.parameters(), lr=args.critic_lr)
        for name in models.state:
            getattr(agent, name).load_state_dict(
                {k: w[i].detach() for k, w in models.state[name].items()}
            )
        yield agent


@pytest.mark.parametrize("estimator", ["none", "released", "bridge", "chain"])
@pytest.mark.parametrize("method", ["+ entropy", "+ both"])
def test_update_is_the_scripts_own(method, estimator):
    args = toy.METHODS[method]
    models = toy.Models(args, estimator, [0, 1])
    for (
        name,
        weights,
    ) in models.state.items():  # averages unlike their originals, as after some updates
        torch.manual_seed(len(name))
        for w in weights.values():
            w.add_(0.02 * torch.randn_like(w))
    own = replace(args, entropy_estimator=estimator, ent_coef=toy.COEFS[estimator])
    theirs, stream = list(agents(models, own)), toy.batches([0, 1], 5)
    for _ in range(2):
        batch, noise = next(stream)
        models.update(batch, noise)
        for i, agent in enumerate(
            theirs
        ):  # from update 1,000 on, each fifth, the scripts' average follows
            row = (
                stacked.edq.Transitions(*(x[i] for x in batch)),
                stacked.edq.Noise(*(x[i] for x in noise)),
            )
            stacked.edq.update(agent, *row, own, 1000)
    for i, agent in enumerate(theirs):
        for name, weights in models.state.items():
            for k, w in getattr(agent, name).state_dict().items():
                torch.testing.assert_close(weights[k][i].detach(), w, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", toy.ESTIMATORS)
def test_every_estimator_trains(estimator):
    clone = toy.Models(toy.PAIR, "none", [0]).state["score"]
    models = toy.Models(toy.PAIR, estimator, [0], clone)
    before = {k: w.clone() for k, w in models.state["score"].items()}
    models.update(*next(toy.batches([0], 5)))
    assert all(w.isfinite().all() for net in models.state.values() for w in net.values())
    assert any((w != before[k]).any() for k, w in models.state["score"].items())


def test_acting_is_the_scripts_own():
    models = toy.Models(toy.ENSEMBLE, "none", [5])
    (agent,) = agents(models, toy.ENSEMBLE)
    g = torch.Generator().manual_seed(0)
    obs, noise, u = (
        torch.randn(7, 2, generator=g),
        torch.randn(5, 7, 50, 1, generator=g),
        torch.rand(7, generator=g),
    )
    for acting, selection in (("softmax", "softmax"), ("argmax", "argmax"), ("one", "softmax")):
        K = toy.ACTING[acting]
        args = replace(toy.ENSEMBLE, num_candidates=K, action_selection=selection)
        with torch.no_grad():
            own = toy.choose(agent, obs, noise[:, :, :K], u, torch.zeros(7, K, 1), args, acting)
        torch.testing.assert_close(own, stacked.edq.act(agent, obs, noise[:, :, :K], u, args))


def test_returns_of_a_policy_that_is_known(monkeypatch):
    """It goes to the rich hill and stays: 1 + 1; then it goes there half way at each step."""
    models = SimpleNamespace(
        sde=SimpleNamespace(num_steps=5), seeds=[0, 1], extra={}, nets=None, args=None
    )
    models.state = {"score": {"w": torch.zeros(2, 1)}, "target_q": {"w": torch.zeros(2, 1)}}
    monkeypatch.setattr(toy, "view", lambda *_: None)
    monkeypatch.setattr(toy, "choose", lambda agent, obs, *_: 0.8 * (1 - obs[:, 1:]))
    assert toy.returns(models, "one", 4).tolist() == pytest.approx([2, 2])
    monkeypatch.setattr(toy, "choose", lambda agent, obs, *_: torch.full_like(obs[:, 1:], 0.4))
    half = float(stacked.toy_reward(torch.tensor(0.4)))
    assert toy.returns(models, "argmax", 4).tolist() == pytest.approx([1 + half, 1 + half])


def records(kind=""):
    with open(RECORDS / f"toy{kind}.csv", newline="") as file:
        assert file.readline().startswith("# {")
        return list(csv.DictReader(file))


def values(runs, method, estimator, name):
    return [float(r[name]) for r in runs if (r["method"], r["estimator"]) == (method, estimator)]


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_the_record_holds_every_method_and_seed():
    runs = records()
    for arm in toy.ARMS:
        assert [int(s) for s in values(runs, *arm, "seed")] == list(range(10))
    curves, laws = records("-curves"), records("-laws")
    for method, estimator in toy.ARMS:
        mine = [r for r in curves if (r["method"], r["estimator"]) == (method, estimator)]
        assert [int(r["epoch"]) for r in mine if r["acting"] == "one"] == list(range(25, 501, 25))
        for seed in range(10):  # the last five evaluations of the curve are what the run's row says
            late = [float(r[f"seed_{seed}"]) for r in mine if r["acting"] == "one"][-5:]
            assert sum(late) / 5 == pytest.approx(
                values(runs, method, estimator, "late_one")[seed], abs=1e-3
            )
        assert sum(values(laws, method, estimator, "mean")) == pytest.approx(1, abs=1e-3)
        on_rich_side = sum(float(r["mean"]) for r in laws if (r["method"], r["estimator"]) == (method, estimator)
                           and float(r["low"]) >= 0)  # fmt: skip
        assert on_rich_side == pytest.approx(
            statistics.mean(values(runs, method, estimator, "rare_share")), abs=0.01
        )
    for name in ("", "-curves", "-laws", "-q"):
        assert (RECORDS / f"toy{name}.csv").stat().st_size < 200_000


def test_tables_agree_with_a_naive_sum_over_the_record():
    runs, tables = records(), toy.tables(RECORDS)
    rows = cells(tables["toy-returns"])
    assert len(rows) == len(toy.ARMS) + 1
    for method, estimator, coef, one, softmax, argmax, late, rich, off, entropy in rows[1:]:
        arm = method, estimator or "none"
        for name, shown in (("one", one), ("softmax", softmax), ("argmax", argmax)):
            x = values(runs, *arm, f"return_{name}")
            assert shown == f"{statistics.mean(x):.2f} ± {statistics.stdev(x):.2f} ({min(x):.2f})"
        assert late == f"{statistics.mean(values(runs, *arm, 'late_one')):.2f}"
        assert float(rich) == pytest.approx(
            100 * statistics.mean(values(runs, *arm, "rare_share")), abs=0.6
        )
        assert float(off) == pytest.approx(
            100 * statistics.mean(values(runs, *arm, "off_data")), abs=0.6
        )
        assert float(entropy) == pytest.approx(
            statistics.mean(values(runs, *arm, "entropy")), abs=0.006
        )
        assert float(coef or 0) == values(runs, *arm, "coef")[0]


def test_verdict_is_that_of_naive_comparisons():
    runs, text = records(), toy.tables(RECORDS)["toy-verdict"]
    claim = cells(toy.tables(RECORDS)["toy-claim"])
    for number, (acting, label) in enumerate(toy.ACTED.items()):
        best, steady = [], []
        for row, estimator in zip(claim, toy.ESTIMATORS):
            four = [
                ("diffusion policy", "none"),
                ("+ entropy", estimator),
                ("+ Q-ensemble", "none"),
                ("+ both", estimator),
            ]
            four = [values(runs, *arm, f"return_{acting}") for arm in four]
            means, stds = [statistics.mean(x) for x in four], [statistics.stdev(x) for x in four]
            gain, low, high = (
                float(x) for x in re.findall(r"[+-]\d\.\d+", row[1 + 2 * number])[:3]
            )
            assert row[0] == estimator and gain == pytest.approx(
                means[3] - max(means[:3]), abs=0.006
            )
            differences = [a - b for a, b in zip(four[3], four[means.index(max(means[:3]))])]
            half = (
                1.96 * statistics.stdev(differences) / 10**0.5
            )  # the bootstrap's is a little narrower
            assert high - low == pytest.approx(2 * half, rel=0.25, abs=0.02) and low <= gain <= high
            assert row[2 + 2 * number] == f"{1 + sum(s < stds[3] for s in stds)} of 4"
            best += [estimator] if means[3] > max(means[:3]) else []
            steady += [estimator] if stds[3] == min(stds) else []
        assert (
            f"Acting with {label}, both together have the highest mean of the four with {toy.listed(best)}, "
            in text
        )
        assert (
            f" and the smallest std over seeds with {toy.listed(steady)}; "
            in text[text.index(label) :]
        )


def test_interval_of_a_mean():
    x = np.random.default_rng(0).normal(1, 2, size=400)
    low, high = toy.interval(x)
    assert low == pytest.approx(x.mean() - 1.96 * x.std() / 20, abs=0.03)
    assert high == pytest.approx(x.mean() + 1.96 * x.std() / 20, abs=0.03)


def test_pictures_are_drawn_from_the_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "Models", None)
    toy.figures(RECORDS, tmp_path)
    for name in ("toy.png", "toy-estimators.png"):
        assert 10_000 < (tmp_path / name).stat().st_size < 300_000
