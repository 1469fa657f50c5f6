"""The sampler study: exact networks, Euler steps, schedules, training side by side, tables."""

import csv
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

import edq_mujoco as edq
from results.studies.samplers import clone, run, tables
from results.studies.samplers.diffusion import (
    SCHEDULES,
    ScheduledSDE,
    ode_step,
    reverse_sde_step,
    sample,
)
from results.studies.samplers.mixtures import MIXTURES, ExactActor, between, even, mode_std

pytestmark = pytest.mark.study
RECORDS = ROOT / "results" / "records"


# === Schedules and Euler steps ===
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_every_schedule_forgets_the_action(schedule, steps):
    sde = ScheduledSDE(steps, schedule)
    assert sde.theta_dt.shape == sde.sigma.shape == sde.posterior_var.shape == (steps,)
    assert math.exp(-float(sde.theta_bar[-1])) == pytest.approx(1e-3, rel=1e-4)


def test_tables_of_the_cosine_schedule_are_the_scripts():
    own = ScheduledSDE(5, "cosine")
    theirs = edq.MeanRevertingSDE(5)
    for name in ("theta_dt", "theta_bar", "sigma", "w_t", "w_0", "posterior_var"):
        torch.testing.assert_close(getattr(own, name), getattr(theirs, name))
    assert float(ScheduledSDE(5, "vp").sigma[0]) == pytest.approx(0.7804967, abs=1e-6)


def test_small_euler_steps_carry_one_normal_to_the_next():
    """With the exact score of N(0, 0.5^2) both keep the marginals; small steps, as T = 400."""
    sde = ScheduledSDE(400, "constant")
    actor = ExactActor(even([(0.0,)], 0.5, ""), sde)
    g = torch.Generator().manual_seed(0)
    by_sde = by_ode = torch.randn(20_000, 1, generator=g)
    for t in reversed(range(200, 400)):
        z = torch.randn(by_sde.shape, generator=g)
        by_sde = reverse_sde_step(sde, by_sde, t, actor(by_sde, t, None), z)
        by_ode = ode_step(sde, by_ode, t, actor(by_ode, t, None))
    keep = math.exp(-float(sde.theta_bar[199]))
    std = math.sqrt((0.5 * keep) ** 2 + float(sde.sigma[199]) ** 2)
    assert float(by_sde.std()) == pytest.approx(std, abs=0.02)
    assert float(by_ode.std()) == pytest.approx(std, abs=0.02)


def test_samplers_with_few_and_with_many_steps():
    """Wasserstein distances with exact networks, as recorded.

    On one mode two posterior steps are far nearer than two Euler steps. On two modes at +-0.8 and
    T = 5 they are not: 0.29 against 0.18 for Euler steps of the SDE, since the last posterior step
    returns E[a_0 | a_1] and sigma_1 = 0.57.
    """
    n = 10_000

    def distances(name: str, T: int) -> dict[str, float]:
        sde = edq.MeanRevertingSDE(T)
        mixture = MIXTURES[name]
        g = torch.Generator().manual_seed(1)
        data = mixture.sample(n, g).numpy()
        noise = torch.randn(T, n, 1, generator=g)
        actor = ExactActor(mixture, sde)
        found = {}
        for sampler in ("posterior", "sde", "ode"):
            out = sample(actor, sde, torch.zeros(n, 0), sampler, noise)
            assert float(out.abs().max()) <= 1
            found[sampler] = run.distance(out.numpy(), data)
        return found

    two = distances("one mode", 2)
    assert two["posterior"] < 0.1
    assert min(two["sde"], two["ode"]) > 0.5
    five = distances("far modes", 5)
    expected = {"posterior": 0.29, "sde": 0.18, "ode": 0.205}
    assert five == pytest.approx(expected, abs=0.03)
    assert max(distances("far modes", 50).values()) < 0.07


# === Exact networks, data, distances ===
def test_exact_network_is_the_expected_noise_by_quadrature():
    mixture = MIXTURES["three modes"]
    sde = edq.MeanRevertingSDE(5)
    a0 = np.linspace(-2, 2, 40_001)
    prior = 0
    for (mean,), weight in zip(mixture.means, mixture.weights):
        prior = prior + weight * np.exp(-0.5 * ((a0 - mean) / mixture.std) ** 2)
    for t in range(5):
        keep = math.exp(-float(sde.theta_bar[t]))
        for a_t in (-1.3, -0.2, 0.0, 0.4, 2.0):
            eps = (a_t - keep * a0) / float(sde.sigma[t])
            weight = prior * np.exp(-0.5 * eps**2)
            got = ExactActor(mixture, sde)(torch.tensor([[a_t]]), t, None)
            assert float(got) == pytest.approx((weight * eps).sum() / weight.sum(), abs=2e-5)


def test_exact_network_is_the_gradient_of_the_log_density_in_2d():
    mixture = MIXTURES["checker"]
    sde = ScheduledSDE(5, "vp")
    g = torch.Generator().manual_seed(0)
    a_t = torch.randn(64, 2, generator=g, dtype=torch.float64).requires_grad_()
    means = torch.tensor(mixture.means, dtype=torch.float64)
    weights = torch.tensor(mixture.weights, dtype=torch.float64)
    for t in range(5):
        keep = torch.exp(-sde.theta_bar[t].double())
        sigma = sde.sigma[t].double()
        cov = ((keep * mixture.std) ** 2 + sigma**2) * torch.eye(2, dtype=torch.float64)
        modes = torch.distributions.MultivariateNormal(keep * means, cov)
        choice = torch.distributions.Categorical(weights)
        density = torch.distributions.MixtureSameFamily(choice, modes)
        (gradient,) = torch.autograd.grad(density.log_prob(a_t).sum(), a_t)
        got = ExactActor(mixture, sde)(a_t.detach().float(), t, None)
        torch.testing.assert_close(got.double(), -sigma * gradient, atol=2e-5, rtol=1e-4)


def test_data_have_the_stated_modes():
    mixture = MIXTURES["three modes"]
    x = mixture.sample(40_000, torch.Generator().manual_seed(0))
    for mode, weight in enumerate((0.5, 0.2, 0.3)):
        assert mode_std(x, mixture, mode) == pytest.approx((0.1, weight), abs=0.01)
    assert between(torch.tensor([[-0.35], [0.35], [0.69], [0.02]]), mixture) == 0.5


def test_distances():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 1))
    y = rng.normal(1, 2, size=(500, 1))
    sorted_difference = np.abs(np.sort(x, 0) - np.sort(y, 0)).mean()
    assert run.distance(x, y) == pytest.approx(sorted_difference)
    x = rng.normal(size=(500, 2))
    shifted = run.distance(x, x + [0.3, 0.4])  # a direction sees 0.5 |cos|, on average 1 / pi
    assert shifted == pytest.approx(1 / math.pi, rel=0.15)


# === Training and tables ===
def test_training_at_once_is_that_of_each_network_alone(monkeypatch):
    """The second of three networks, against the same network in an ordinary loop."""
    monkeypatch.setattr(run, "HIDDEN", 16)
    mixture = MIXTURES["checker"]
    sde = edq.MeanRevertingSDE(5)
    updates = 60
    actors, history = run.train([mixture], sde, [0, 1, 2], updates, fuse=False)
    assert bool((history[-10:].mean(0) < 0.7 * history[:3].mean(0)).all())
    g = torch.Generator().manual_seed(0)
    shape = (updates, 3, run.BATCH)
    a0 = mixture.sample(math.prod(shape), g).reshape(*shape, 2)
    t = torch.randint(5, shape, generator=g)
    eps = torch.randn(a0.shape, generator=g)
    torch.manual_seed(1)
    net = edq.NoiseMLP(0, 2, 16)
    optimiser = torch.optim.Adam(net.parameters())
    for i in range(updates):
        rate = run.LR * (1 + math.cos(math.pi * i / updates)) / 2
        optimiser.param_groups[0]["lr"] = rate
        a_t = sde.perturb(a0[i, 1], t[i, 1], eps[i, 1])
        loss = ((net(a_t, t[i, 1], a_t[:, :0]) - eps[i, 1]) ** 2).mean()
        assert loss.item() == pytest.approx(float(history[i, 1]), rel=2e-2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randn(3, 7, 2, generator=g)
    with torch.no_grad():
        together = actors(x, 2, x[..., :0])[1]
        alone = net(x[1], 2, x[1, :, :0])
        part = actors.part(slice(1, 2))(x[1:2], 2, x[1:2, :, :0])[0]
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(together, part, atol=1e-5, rtol=1e-5)


def test_tables_agree_with_naive_sums_over_the_record():
    with open(RECORDS / "samplers" / "distances.csv", newline="") as file:
        file.readline()
        rows = list(csv.DictReader(file))
    wanted = {"network": "exact", "distribution": "far modes", "schedule": "cosine"}
    rows = [row for row in rows if wanted.items() <= row.items()]
    means = []
    cells = []
    for T in ("1", "2", "3", "5", "10", "20", "30", "50", "100"):
        x = [float(row["sde"]) for row in rows if row["T"] == T]
        assert len(x) == 10
        means.append(statistics.mean(x))
        cells.append(f"{statistics.mean(x):.3f} ± {statistics.stdev(x):.3f}")
    found = tables.tables(RECORDS)
    lines = found["samplers-distance-exact"].splitlines()
    (line,) = [s for s in lines if s.startswith("| far modes | sde |")]
    assert " | ".join(cells) in line
    lines = found["samplers-reach"].splitlines()
    (line,) = [s for s in lines if s.startswith("| exact | far modes |")]
    first = next(T for T, mean in zip(tables.STEPS, means) if mean <= 0.05)
    assert line.split(" | ")[-2] == str(first)


# === How slowly the locomotion row clones ===
def test_share_at_the_edge_is_a_plain_count():
    x = (2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    count = 0
    for line in x.tolist():
        for component in line:
            count += component >= 0.999 or component <= -0.999
    assert 0 < count < 1500
    assert clone.edge_share(x) == count / 1500
    assert clone.describe(x, x)["distance"] == 0


def test_the_released_row_is_cloned_and_nothing_else_changes():
    args = clone.row_args("likelihood_released")
    assert (args.diffusion_loss, args.action_clip) == ("likelihood_released", False)
    assert (args.num_diffusion_steps, args.hidden_dim, args.batch_size) == (5, 256, 256)
    assert (args.actor_lr, args.schedule, args.eta) == (3e-4, "cosine", 0)
    assert clone.row_args("noise") == replace(args, diffusion_loss="noise")


@pytest.mark.parametrize("kind", clone.LOSSES)
def test_after_a_short_training_the_clamp_keeps_the_samples_in_place(kind):
    """A small network; without the clamp the released loss has most components at the edge."""
    args = replace(clone.row_args(kind), hidden_dim=32, actor_lr=3e-3)
    data = clone.one_mode(20_000, torch.Generator().manual_seed(0))
    noise = torch.randn(5, 500, 3, generator=torch.Generator().manual_seed(1))
    for updates, agent in clone.clones(args, data, 0, (100, 300)):
        assert {int(s["step"]) for s in agent.optimisers["actor"].state.values()} == {updates}
    inside = clone.actions(agent, data.obs[:500], noise, True).flatten()
    free = clone.actions(agent, data.obs[:500], noise, False).flatten()
    assert sum(abs(x) > 0.99 for x in inside.tolist()) <= 15  # of 1,500
    assert statistics.mean(inside.tolist()) == pytest.approx(0.3, abs=0.05)
    far = sum(abs(x) > 0.99 for x in free.tolist())
    assert far > 1200 if kind == "likelihood_released" else far < 15


def test_clone_table_agrees_with_naive_sums_over_the_record():
    with open(RECORDS / "samplers" / "locomotion-clone.csv", newline="") as file:
        file.readline()
        rows = list(csv.DictReader(file))
    wanted = {"loss": "likelihood_released", "clip": "0", "updates": "10000"}
    rows = [row for row in rows if wanted.items() <= row.items()]
    assert len({row["seed"] for row in rows}) == len(rows) > 0
    share = 100 * statistics.mean(float(row["edge"]) for row in rows)
    distance = statistics.mean(float(row["distance"]) for row in rows)
    lines = tables.tables(RECORDS)["samplers-clone"].splitlines()
    assert f"| as released ({len(rows)} seed" in lines[0]
    (line,) = [s for s in lines if s.startswith("| 10,000 |")]
    cell = line.split(" | ")[1]
    assert cell.startswith(f"{share:.1f}")
    assert cell.endswith(f"; {distance:.2f}")
