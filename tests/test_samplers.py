"""The sampler study: exact networks, distances, vectorised training, and tables against naive sums over the record."""

import csv
import math
import statistics
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
import samplers

RECORDS = ROOT / "results" / "records"


def read(kind=""):
    with open(RECORDS / f"samplers{kind}.csv", newline="") as file:
        assert file.readline().startswith("# {")
        return list(csv.DictReader(file))


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


@pytest.mark.parametrize("name", ["one mode", "three modes"])
def test_exact_network_is_the_expected_noise_by_quadrature(mujoco, name):
    mixture, sde = samplers.MIXTURES[name], mujoco.MeanRevertingSDE(5)
    a0 = np.linspace(-2, 2, 40_001)
    prior = sum(
        w * np.exp(-0.5 * ((a0 - m) / mixture.std) ** 2)
        for (m,), w in zip(mixture.means, mixture.weights)
    )
    for t in range(5):
        keep, sigma = math.exp(-float(sde.theta_bar[t])), float(sde.sigma[t])
        for a_t in (-1.3, -0.2, 0.0, 0.4, 2.0):
            eps = (a_t - keep * a0) / sigma
            weight = prior * np.exp(-0.5 * eps**2)
            expected = (weight * eps).sum() / weight.sum()
            got = samplers.ExactScore(mixture, sde)(torch.tensor([[a_t]]), t, None)
            assert float(got) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", ["ring", "checker"])
def test_exact_network_is_the_gradient_of_the_log_density_in_2d(mujoco, name):
    mixture, sde = samplers.MIXTURES[name], mujoco.MeanRevertingSDE(5, "vp")
    a_t = torch.randn(
        64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    for t in range(5):
        keep, sigma = torch.exp(-sde.theta_bar[t].double()), sde.sigma[t].double()
        cov = ((keep * mixture.std) ** 2 + sigma**2) * torch.eye(2, dtype=torch.float64)
        modes = torch.distributions.MultivariateNormal(
            keep * torch.tensor(mixture.means, dtype=torch.float64), cov
        )
        weights = torch.distributions.Categorical(
            torch.tensor(mixture.weights, dtype=torch.float64)
        )
        density = torch.distributions.MixtureSameFamily(weights, modes)
        (gradient,) = torch.autograd.grad(density.log_prob(a_t).sum(), a_t)
        got = samplers.ExactScore(mixture, sde)(a_t.detach().float(), t, None)
        torch.testing.assert_close(got.double(), -sigma * gradient, atol=2e-5, rtol=1e-4)


def test_data_have_the_stated_modes():
    mixture, n = samplers.MIXTURES["three modes"], 40_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    for i, (center, weight) in enumerate(((-0.7, 0.5), (0.0, 0.2), (0.7, 0.3))):
        mine = x[(x - center).abs() < 0.35]
        assert len(mine) / n == pytest.approx(weight, abs=0.01) and float(
            mine.mean()
        ) == pytest.approx(center, abs=0.01)
        assert samplers.mode_std(x, mixture, i) == pytest.approx((0.1, weight), abs=0.01)
    assert samplers.between(torch.tensor([[-0.35], [0.35], [0.69], [0.02]]), mixture) == 0.5
    assert (
        float(samplers.MIXTURES["ring"].sample(n, torch.Generator().manual_seed(0)).abs().max())
        <= 1
    )


def test_distances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 1)), rng.normal(1, 2, size=(500, 1))
    assert samplers.distance(x, y) == pytest.approx(np.abs(np.sort(x, 0) - np.sort(y, 0)).mean())
    x = rng.normal(size=(500, 2))
    shifted = samplers.distance(x, x + [0.3, 0.4])  # a direction sees 0.5 |cos|, on average 1 / pi
    assert shifted == pytest.approx(1 / math.pi, rel=0.15)


def test_five_posterior_steps_narrow_a_mode(mujoco):
    """0.1 in, 0.0141 out, and the record of the study says so."""
    sde, mixture = mujoco.MeanRevertingSDE(5), samplers.MIXTURES["one mode"]
    noise = samplers.draw_noise(5, 1, range(2))
    out = samplers.run_samplers(samplers.ExactScore(mixture, sde), sde, noise)
    assert float(out["posterior"].std()) == pytest.approx(0.0141, rel=0.03)
    rows = [
        r
        for r in read("-modes")
        if (r["network"], r["distribution"], r["T"]) == ("exact", "one mode", "5")
    ]
    assert len(rows) == 10
    assert statistics.mean(float(r["std_posterior"]) for r in rows) == pytest.approx(
        0.0141, abs=2e-4
    )


def test_record_holds_every_setting_and_the_known_distances():
    rows = read()
    keys = {(r["network"], r["distribution"], r["schedule"], r["T"], r["seed"]) for r in rows}
    assert len(keys) == len(rows)
    for name in samplers.MIXTURES:
        for T in (1, 2, 3, 5, 10, 20, 30, 50, 100):
            for schedule in ("cosine", "linear", "constant", "vp"):
                assert all(("exact", name, schedule, str(T), str(s)) in keys for s in range(10))
                if schedule == "cosine" or T == 5:
                    assert all(
                        ("trained", name, schedule, str(T), str(s)) in keys for s in range(5)
                    )
    where = {"network": "exact", "distribution": "far modes", "schedule": "cosine", "T": "5"}
    far = [r for r in rows if where.items() <= r.items()]
    for sampler, expected in (
        ("posterior", 0.29),
        ("sde", 0.18),
        ("ode", 0.205),
    ):  # as in test_numerics.py
        assert statistics.mean(float(r[sampler]) for r in far) == pytest.approx(expected, abs=0.015)


def test_tables_state_the_record():
    tables, rows, floor = samplers.tables(RECORDS), read(), read("-floor")
    assert all(name.startswith("samplers-") for name in tables)

    def values(network, name, schedule, T, column):
        where = (network, name, schedule, str(T))
        return [
            float(r[column])
            for r in rows
            if (r["network"], r["distribution"], r["schedule"], r["T"]) == where
        ]

    for network in ("exact", "trained"):
        table = cells(tables[f"samplers-distance-{network}"])
        assert len(table) == 18
        for name, sampler, *line, last in table:
            for T, cell in zip((1, 2, 3, 5, 10, 20, 30, 50, 100), line):
                x = values(network, name, "cosine", T, sampler)
                mean, std = map(float, cell.split(" ± "))
                assert mean == pytest.approx(statistics.mean(x), abs=5.1e-4)
                assert std == pytest.approx(statistics.stdev(x), abs=5.1e-4)
            expected = statistics.mean(
                float(r["floor"]) for r in floor if r["distribution"] == name
            )
            assert float(last) == pytest.approx(expected, abs=5.1e-4)
    for network, name, _, _, *reached in cells(tables["samplers-reach"]):
        limit = 2 * statistics.mean(float(r["floor"]) for r in floor if r["distribution"] == name)
        for sampler, threshold, cell in zip(
            ("posterior", "sde", "ode") * 2, (limit,) * 3 + (0.05,) * 3, reached
        ):
            mean = {
                T: statistics.mean(values(network, name, "cosine", T, sampler))
                for T in samplers.STEPS
            }
            good = [T for T in samplers.STEPS if mean[T] <= threshold]
            assert cell == (str(good[0]) if good else "> 100")
    for network, name, sampler, *line in cells(tables["samplers-schedules"]):
        for schedule, cell in zip(("cosine", "linear", "constant", "vp"), line):
            expected = statistics.mean(values(network, name, schedule, 5, sampler))
            assert float(cell.split(" ± ")[0]) == pytest.approx(expected, abs=5.1e-4)
    for network, name, mode, _, *line in cells(tables["samplers-modes"]):
        mine = [
            r
            for r in read("-modes")
            if (r["network"], r["distribution"], r["T"]) == (network, name, "5")
        ]
        mine = [r for r in mine if float(r["mode"]) == float(mode)]
        for sampler, cell in zip(("posterior", "sde", "ode"), line):
            assert float(cell) == pytest.approx(
                statistics.mean(float(r[f"std_{sampler}"]) for r in mine), abs=5.1e-4
            )


def test_training_lowers_the_loss_and_is_that_of_each_network_alone(mujoco, monkeypatch):
    """The second of three networks trained as one, against the same network in an ordinary loop."""
    monkeypatch.setattr(samplers, "HIDDEN", 16)
    mixture, sde, updates, seeds = (
        samplers.MIXTURES["checker"],
        mujoco.MeanRevertingSDE(5),
        150,
        range(3),
    )
    scores, history = samplers.train([mixture], sde, seeds, updates, compiled=False)
    assert history.shape == (updates, 3)
    assert bool((history[-20:].mean(0) < 0.5 * history[:5].mean(0)).all())

    g, shape = torch.Generator().manual_seed(0), (updates, 3, samplers.BATCH)
    a0 = mixture.sample(math.prod(shape), g).reshape(*shape, 2)
    t, eps = torch.randint(5, shape, generator=g), torch.randn(a0.shape, generator=g)
    torch.manual_seed(1)
    net = mujoco.ScoreMLP(0, 2, 16)
    optimiser = torch.optim.Adam(net.parameters())
    for i in range(updates):
        optimiser.param_groups[0]["lr"] = samplers.LR * (1 + math.cos(math.pi * i / updates)) / 2
        a_t = sde.perturb(a0[i, 1], t[i, 1], eps[i, 1])
        loss = ((net(a_t, t[i, 1], a_t[:, :0]) - eps[i, 1]) ** 2).mean()
        assert loss.item() == pytest.approx(float(history[i, 1]), rel=2e-2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randn(3, 7, 2, generator=g)
    with torch.no_grad():
        torch.testing.assert_close(
            scores(x, 2, x[..., :0])[1], net(x[1], 2, x[1, :, :0]), atol=2e-2, rtol=2e-2
        )
        alone = scores.part(slice(1, 2))(x[1:2], 2, x[1:2, :, :0])
        torch.testing.assert_close(scores(x, 2, x[..., :0])[1:2], alone, atol=1e-5, rtol=1e-5)


def test_figures_from_the_record_alone(tmp_path):
    samplers.figures(RECORDS, tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == [
        "samplers-modes.png",
        "samplers-points.png",
        "samplers-schedules.png",
        "samplers.png",
    ]
    assert all(5_000 < path.stat().st_size < 300_000 for path in tmp_path.iterdir())
    assert sum(path.stat().st_size for path in RECORDS.glob("samplers*.csv")) < 400_000
