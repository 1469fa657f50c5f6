"""The algorithm of each script against closed forms, Monte Carlo, printed figures and naive loops."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

# t, theta', theta_bar, sigma, w_t, w_0, v of the cosine schedule with T = 5, computed independently in float64.
FIGURES = torch.tensor([
    [0.1974880, 0.1974880, 0.5712300, 0.0000000, 1.0000000, 0.0000000],
    [0.7039643, 0.9014523, 0.9138821, 0.1932475, 0.7423355, 0.2951143],
    [1.3858163, 2.2872686, 0.9948311, 0.2110713, 0.3845467, 0.7910888],
    [2.0631655, 4.3504340, 0.9999168, 0.1257621, 0.0999210, 0.9738755],
    [2.5573212, 6.9077553, 0.9999995, 0.0774993, 0.0128237, 0.9938274],
])  # fmt: skip
ENDS = {2: (1.757349, 5.150406), 3: (0.697618, 3.902084), 10: (0.032078, 1.342499), 20: (0.005028, 0.681376),
        50: (0.000465, 0.273862), 100: (0.0000853, 0.137037)}  # fmt: skip


class Linear(nn.Module):
    """A network whose predicted a_0 is k e^(-theta_bar_t) a_t: everything the sampler does is Gaussian then."""

    def __init__(self, sde, k, act_dim=1):
        super().__init__()
        self.sde, self.k, self.act_dim = sde, nn.Parameter(torch.tensor(float(k))), act_dim

    def forward(self, a_t, t, obs):
        keep = torch.exp(-self.sde.theta_bar[t])
        return (a_t - self.k * keep**2 * a_t) / self.sde.sigma[t]


class TwoModes(nn.Module):
    """The exact noise prediction for data that are two normals at +-mode with a given std."""

    def __init__(self, sde, mode=0.8, std=0.1):
        super().__init__()
        self.sde, self.mode, self.std, self.act_dim = sde, mode, std, 1

    def forward(self, a_t, t, obs):
        keep, sigma = torch.exp(-self.sde.theta_bar[t]), self.sde.sigma[t]
        var = keep**2 * self.std**2 + sigma**2
        weight = torch.sigmoid(2 * a_t * keep * self.mode / var)  # probability of the upper mode
        mean = self.mode * (2 * weight - 1)
        a0 = mean + keep * self.std**2 / var * (a_t - keep * mean)
        return (a_t - keep * a0) / sigma


def small_args(edq, **changes):
    base = dict(num_critics=3, hidden_dim=16, batch_size=8, eta=1.0, diffusion_loss="noise", max_q_backup=False)
    return edq.replace(edq.Args(), **(base | changes))


def small_batch(edq, size=8, obs_dim=5, act_dim=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return edq.Transitions(
        torch.randn(size, obs_dim, generator=g),
        torch.rand(size, act_dim, generator=g) * 2 - 1,
        torch.randn(size, generator=g),
        torch.randn(size, obs_dim, generator=g),
        (torch.rand(size, generator=g) < 0.3).float(),
    )


def test_cosine_schedule_figures(edq):
    sde = edq.MeanRevertingSDE(5, "cosine")
    got = torch.stack([sde.theta_dt, sde.theta_bar, sde.sigma, sde.w_t, sde.w_0, sde.posterior_var], 1)
    torch.testing.assert_close(got, FIGURES, atol=6e-8, rtol=2e-7)
    for steps, (first, last) in ENDS.items():
        sde = edq.MeanRevertingSDE(steps, "cosine")
        assert abs(float(sde.theta_dt[0]) - first) < 6e-7 and abs(float(sde.theta_dt[-1]) - last) < 6e-7


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "vp"])
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_every_schedule_forgets_the_action(edq, schedule, steps):
    sde = edq.MeanRevertingSDE(steps, schedule)
    assert sde.theta_dt.shape == sde.sigma.shape == sde.posterior_var.shape == (steps,)
    assert math.exp(-float(sde.theta_bar[-1])) == pytest.approx(1e-3, rel=1e-4)


def test_ddpm_schedule_is_not_rescaled(edq):
    sde = edq.MeanRevertingSDE(5, "ddpm")
    torch.testing.assert_close(sde.theta_dt, torch.tensor([0.109, 0.307, 0.505, 0.703, 0.901]), atol=5e-7, rtol=0)
    assert float(sde.theta_bar[-1]) == pytest.approx(2.525, abs=1e-5)
    assert float(sde.sigma[0]) == pytest.approx(0.4425772, abs=1e-6)
    assert float(edq.MeanRevertingSDE(5, "vp").sigma[0]) == pytest.approx(0.7804967, abs=1e-6)


def test_marginal_and_posterior_against_many_euler_steps(edq):
    """Simulate da = -theta a dt + sqrt(2 theta) dw in tiny steps and compare (2) and (6, 7) with what comes out."""
    sde, g = edq.MeanRevertingSDE(5), torch.Generator().manual_seed(0)
    a = torch.full((150_000,), 0.6)
    paths = []
    for i in range(3):
        n, dt = 100, float(sde.theta_dt[i]) / 100
        for _ in range(n):
            a = a - a * dt + math.sqrt(2 * dt) * torch.randn(a.shape, generator=g)
        paths.append(a)
    for i, path in enumerate(paths):
        assert float(path.mean()) == pytest.approx(0.6 * math.exp(-float(sde.theta_bar[i])), abs=0.01)
        assert float(path.std()) == pytest.approx(float(sde.sigma[i]), abs=0.01)
    before, after = paths[1], paths[2]  # a_2 given a_3 = 0.5 and a_0, from the simulated pairs
    near = (after - 0.5).abs() < 0.05
    expected = sde.posterior_mean(torch.tensor([[0.5]]), torch.tensor([[0.6]]), 2).item()
    assert float(before[near].mean()) == pytest.approx(expected, abs=0.04)
    assert float(before[near].var()) == pytest.approx(float(sde.posterior_var[2]), abs=0.05)


def test_prediction_inverts_perturbation_and_indexing_by_rows(edq):
    sde, g = edq.MeanRevertingSDE(5), torch.Generator().manual_seed(0)
    a0, noise = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    t = torch.arange(5)
    a_t = sde.perturb(a0, t, noise)
    torch.testing.assert_close(sde.predict_a0(a_t, t, noise), a0, atol=2e-3, rtol=2e-3)
    for i in range(5):
        torch.testing.assert_close(sde.perturb(a0[i : i + 1], i, noise[i : i + 1]), a_t[i : i + 1])
        row = sde.reverse_sde_step(a_t, t, noise, noise)[i]
        torch.testing.assert_close(sde.reverse_sde_step(a_t[i : i + 1], i, noise[i : i + 1], noise[i : i + 1])[0], row)


def wasserstein(x, y):
    return float((x.flatten().sort().values - y.flatten().sort().values).abs().mean())


class OneMode(Linear):
    """The exact noise prediction for data N(0, std^2)."""

    def __init__(self, sde, std=0.1):
        super().__init__(sde, 0.0)
        self.std = std

    def forward(self, a_t, t, obs):
        keep, sigma = torch.exp(-self.sde.theta_bar[t]), self.sde.sigma[t]
        return (a_t - keep**2 * self.std**2 / (keep**2 * self.std**2 + sigma**2) * a_t) / sigma


def distance(edq, sde, net, data, sampler):
    out = edq.sample_actions(net, sde, torch.zeros(len(data), 1), sampler, generator=torch.Generator().manual_seed(1))
    assert out.shape == data.shape and float(out.abs().max()) <= 1
    return wasserstein(out, data.clamp(-1, 1))


def test_posterior_sampler_narrows_a_single_mode_as_computed(edq):
    """A mode of std 0.1 comes out of five steps with std 0.0141: linear-Gaussian, so propagated by hand."""
    sde, n = edq.MeanRevertingSDE(5), 200_000
    variance = 1.0
    for t in reversed(range(5)):
        keep, sigma = math.exp(-float(FIGURES[t, 1])), float(FIGURES[t, 2])
        slope = float(FIGURES[t, 3]) + float(FIGURES[t, 4]) * keep * 0.01 / (keep**2 * 0.01 + sigma**2)
        variance = slope**2 * variance + float(FIGURES[t, 5])
    out = edq.sample_actions(OneMode(sde), sde, torch.zeros(n, 1), generator=torch.Generator().manual_seed(0))
    assert float(out.std()) == pytest.approx(math.sqrt(variance), rel=0.02)
    assert math.sqrt(variance) == pytest.approx(0.0141, abs=1e-4)


def test_samplers_with_few_and_with_many_steps(edq):
    """Wasserstein distances with exact networks, as measured.

    On one mode two posterior steps are far nearer than two Euler steps. On two modes at +-0.8 and T = 5 they are *not*:
    0.29 against 0.18 for Euler, since the last step returns E[a_0 | a_1] and sigma_1 = 0.57. With T = 50 all are near.
    """
    g, n = torch.Generator().manual_seed(0), 20_000
    one = 0.1 * torch.randn(n, 1, generator=g)
    two = 0.8 * (torch.randint(2, (n, 1), generator=g) * 2.0 - 1) + 0.1 * torch.randn(n, 1, generator=g)
    sde = edq.MeanRevertingSDE(2)
    assert distance(edq, sde, OneMode(sde), one, "posterior") < 0.1
    assert min(distance(edq, sde, OneMode(sde), one, s) for s in ("sde", "ode")) > 0.2
    sde = edq.MeanRevertingSDE(5)
    assert distance(edq, sde, TwoModes(sde), two, "posterior") == pytest.approx(0.29, abs=0.03)
    assert distance(edq, sde, TwoModes(sde), two, "sde") == pytest.approx(0.18, abs=0.03)
    assert distance(edq, sde, TwoModes(sde), two, "ode") == pytest.approx(0.205, abs=0.03)
    sde = edq.MeanRevertingSDE(50)
    assert max(distance(edq, sde, TwoModes(sde), two, s) for s in ("posterior", "sde", "ode")) < 0.05


def test_sampler_recovers_two_modes_with_a_trained_network(mujoco):
    """A small network trained on +-0.8: with T = 10 the posterior sampler's distance is below 0.15, halves balanced."""
    torch.manual_seed(0)
    sde, net, obs = mujoco.MeanRevertingSDE(10), mujoco.ScoreMLP(1, 1, 64), torch.zeros(512, 1)
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(1200):
        a0 = 0.8 * (torch.randint(2, (512, 1)) * 2.0 - 1) + 0.1 * torch.randn(512, 1)
        t, eps = torch.randint(10, (512,)), torch.randn(512, 1)
        loss = ((net(sde.perturb(a0, t, eps), t, obs) - eps) ** 2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        out = mujoco.sample_actions(net, sde, torch.zeros(4000, 1))
    data = 0.8 * (torch.randint(2, (4000, 1)) * 2.0 - 1) + 0.1 * torch.randn(4000, 1)
    assert wasserstein(out, data.clamp(-1, 1)) < 0.15
    assert float((out > 0).float().mean()) == pytest.approx(0.5, abs=0.1)


def test_action_clip_bounds_every_prediction(edq):
    """Without the clamp an unbounded prediction passes through the intermediate steps; with it it cannot."""
    sde, obs = edq.MeanRevertingSDE(5), torch.zeros(4, 1)
    seen = []

    class Far(nn.Module):
        act_dim = 1

        def forward(self, a_t, t, obs):
            seen.append(a_t)
            return (a_t - 5 * torch.exp(-sde.theta_bar[t])) / sde.sigma[t]  # predicts a_0 = 5

    noise = torch.zeros(5, 4, 1)
    for clip, largest in ((True, 1.5), (False, 5.0)):
        seen.clear()
        assert float(edq.sample_actions(Far(), sde, obs, "posterior", clip, noise=noise).max()) == 1
        assert max(float(a.max()) for a in seen) == pytest.approx(largest, rel=0.75)
        assert (max(float(a.max()) for a in seen) <= 1.01) == clip


# --- entropy ---
def test_released_entropy_figures(edq):
    sde = edq.MeanRevertingSDE(5)
    for a0, aT, expected in ((0, 0, 0.778650), (0, 1, 0.778652), (0.5, 0, 0.794337), (0.5, 1, 0.793961),
                             (1, 0, 0.841401), (1, 1, 0.840645)):  # fmt: skip
        got = edq.entropy_estimate(sde, torch.full((1, 1), float(a0)), torch.full((1, 1), float(aT)), "released")
        assert got.shape == (1,) and float(got) == pytest.approx(expected, abs=3e-6)
    two = edq.entropy_estimate(sde, torch.tensor([[0.5, 1.0]]), torch.zeros(1, 2), "released")
    assert float(two) == pytest.approx(0.794337 + 0.841401, abs=5e-6)  # a sum over dimensions
    aT, a0 = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)), torch.full((200_000, 1), 0.7)
    mean = float(edq.entropy_estimate(sde, a0, aT, "released").mean())
    assert mean == pytest.approx(0.7786518 + 0.0627517 * 0.49, abs=1e-4)


def test_bridge_entropy_is_bayes_and_blind(edq):
    """-log p(a_1 | a_T, a_0) from the joint Gaussian of (a_1, a_T) given a_0; constant, with no gradient."""
    sde = edq.MeanRevertingSDE(5)
    first, total = float(sde.theta_bar[0]), float(sde.theta_bar[-1])
    var_1, var_T, cov = 1 - math.exp(-2 * first), 1 - math.exp(-2 * total), 0.0
    cov = math.exp(-(total - first)) * var_1
    var = var_1 - cov**2 / var_T
    assert var == pytest.approx(0.326304, abs=1e-6)
    for a0, aT in ((0.0, 0.3), (0.5, -1.0), (1.0, 2.0)):
        mean = math.exp(-first) * a0 + cov / var_T * (aT - math.exp(-total) * a0)
        expected = 0.5 * math.log(2 * math.pi * var) + (math.exp(-first) * a0 - mean) ** 2 / (2 * var)
        x = torch.full((1, 1), a0, requires_grad=True)
        got = edq.entropy_estimate(sde, x, torch.full((1, 1), aT), "bridge")
        assert got.item() == pytest.approx(expected, abs=2e-5)
        assert got.item() == pytest.approx(0.358975, abs=2e-3)
        (grad,) = torch.autograd.grad(got.sum(), x)
        assert abs(float(grad)) < 2e-3  # float32; 1e-3 in the exponent's cross term
    at_zero = edq.entropy_estimate(sde, torch.tensor([[0.5]]), torch.zeros(1, 1), "bridge")
    assert float(at_zero) == pytest.approx(0.358975, abs=2e-6)


def test_bridge_entropy_against_a_sampled_histogram(edq):
    """Simulate a_0 -> a_1 -> a_T, keep paths that end near a given a_T, and look up the density at e^(-theta_1) a_0."""
    sde, g = edq.MeanRevertingSDE(2), torch.Generator().manual_seed(0)
    a0 = torch.full((1_000_000, 1), 0.5)
    a1 = sde.perturb(a0, 0, torch.randn(a0.shape, generator=g))
    keep = math.exp(-float(sde.theta_dt[1]))
    aT = keep * a1 + math.sqrt(1 - keep**2) * torch.randn(a0.shape, generator=g)
    chosen = a1[(aT - 0.4).abs() < 0.05]
    point, half = math.exp(-float(sde.theta_dt[0])) * 0.5, 0.15
    density = float(((chosen - point).abs() < half).float().mean()) / (2 * half)
    got = edq.entropy_estimate(sde, torch.tensor([[0.5]]), torch.tensor([[0.4]]), "bridge")
    assert float(got) == pytest.approx(-math.log(density), abs=0.04)  # its standard error is 0.015


@pytest.mark.parametrize("std, figures", [
    (0.05, {0: (-1.576794, -1.579375), 0.2: (-0.796459, -1.450168), 0.5: (0.082214, -1.273054),
            0.8: (0.611261, -1.114224), 1: (0.882338, -1.021802)}),
    (0.2, {0: (-0.190499, -0.231792), 0.2: (-0.084913, -0.102586), 0.5: (0.299198, 0.074528),
           0.8: (0.697654, 0.233358), 1: (0.934373, 0.325780)}),
])  # fmt: skip
def test_chain_bound_of_linear_gaussian_chains(edq, std, figures, monkeypatch):
    """Below the exact entropy, moving with it, and equal to the closed form; the clamp of a_0 is lifted for this."""
    sde, obs = edq.MeanRevertingSDE(5), torch.zeros(100_000, 1)
    monkeypatch.setattr(sde, "predict_a0", lambda a_t, t, eps: Unclamped(type(sde).predict_a0(sde, a_t, t, eps)))
    bounds = []
    for k, (exact, closed) in figures.items():
        g = torch.Generator().manual_seed(0)
        net = Linear(sde, k)
        out = edq.chain_entropy_bound(sde, net, obs, std, g)
        assert out.shape == (len(obs),)
        assert float(out.mean()) == pytest.approx(closed, abs=0.012)
        assert float(out.mean()) < exact
        bounds.append(float(out.mean()))
        variance = 1.0  # the exact entropy, by propagating the variance through the chain
        for t in reversed(range(5)):
            slope = float(sde.w_t[t]) + float(sde.w_0[t]) * k * math.exp(-float(sde.theta_bar[t]))
            variance = slope**2 * variance + (float(sde.posterior_var[t]) if t else std**2)
        assert 0.5 * math.log(2 * math.pi * math.e * variance) == pytest.approx(exact, abs=2e-6)
    assert bounds == sorted(bounds)


class Unclamped(torch.Tensor):
    """A tensor whose clamp does nothing, to compare the bound with closed forms of unclamped chains."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.clamp:
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_chain_bound_has_a_gradient_in_the_spread_and_clamps(edq):
    sde, g = edq.MeanRevertingSDE(5), torch.Generator().manual_seed(0)
    net = Linear(sde, 0.5)
    (grad,) = torch.autograd.grad(edq.chain_entropy_bound(sde, net, torch.zeros(50_000, 1), 0.2, g).mean(), net.k)
    assert float(grad) > 0.1
    wide = Linear(sde, 50.0)  # all predictions far outside: clamped, the bound stays that of a policy in the box
    assert float(edq.chain_entropy_bound(sde, wide, torch.zeros(2000, 1), 0.2, g).mean()) < math.log(2) + 0.5


def test_log_transition_integrates_to_one(edq):
    x = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    density = edq.log_transition(
        x, torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    ).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-6)
    assert float(torch.trapezoid(x * density, x)) == pytest.approx(0.7 * math.exp(-0.4), abs=1e-6)


@pytest.mark.parametrize("target, rises", [(5.0, True), (-5.0, False)])
def test_automatic_alpha_moves_towards_its_target(edq, target, rises):
    args = small_args(edq, entropy_estimator="chain", ent_coef="auto", target_entropy=min(target, 0.69))
    torch.manual_seed(0)
    agent, g, data = edq.Agent(5, 2, args), torch.Generator().manual_seed(0), small_batch(edq, 64)
    agent.target_entropy.fill_(target)
    torch.testing.assert_close(agent.alpha(data.obs), torch.full((64,), 0.01), atol=1e-6, rtol=1e-4)
    for step in range(60):
        edq.update(agent, *edq.draw_batch(data, args, g), args, step)
    alpha = float(agent.alpha(data.obs).mean())
    assert (alpha > 0.0102) if rises else (alpha < 0.0098)


def test_warmup_trains_neither_alpha_nor_towards_q(edq):
    """With warmup the actor's gradient is that of cloning alone; alpha stays."""
    data = small_batch(edq, 32)
    grads = []
    for changes, warmup in ((dict(entropy_estimator="chain", ent_coef="auto"), True),
                            (dict(entropy_estimator="none", eta=0.0), False)):  # fmt: skip
        args = small_args(edq, action_clip=True, **changes)
        torch.manual_seed(0)
        agent = edq.Agent(5, 2, args)
        _, noise = edq.draw_batch(data, args, torch.Generator().manual_seed(1))
        noise = noise._replace(t=torch.arange(8) % 5, eps=torch.ones(8, 2))
        batch = edq.Transitions(*(x[:8] for x in data))
        loss = edq.actor_losses(agent, batch, noise, args, warmup)["losses/actor"]
        grads.append(torch.autograd.grad(loss, list(agent.score.parameters())))
        if agent.alpha:
            before = copy.deepcopy(agent.alpha.state_dict())
            edq.update(agent, batch, noise, args, 0, warmup=True)
            assert all(torch.equal(before[k], v) for k, v in agent.alpha.state_dict().items())
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# --- diffusion losses ---
def test_likelihood_losses_at_the_true_noise(edq):
    sde = edq.MeanRevertingSDE(5)
    a0, eps, t = torch.full((5, 1), 0.5), torch.ones(5, 1), torch.arange(5)
    a_t = sde.perturb(a0, t, eps)
    assert float(edq.diffusion_loss(sde, a_t, a0, t, eps, eps, "noise")) == 0
    assert float(edq.diffusion_loss(sde, a_t, a0, t, eps, eps, "likelihood")) < 1e-8
    differences = torch.tensor([-0.015964, -0.224493, -0.704387, -1.220528, -1.639497])
    for i in range(5):
        got = edq.diffusion_loss(sde, a_t[i : i + 1], a0[:1], t[i : i + 1], eps[:1], eps[:1], "likelihood_released")
        assert float(got) == pytest.approx(float(differences[i]) ** 2, rel=1e-4)


def test_likelihood_loss_is_the_weighted_noise_loss(edq):
    sde, weights = edq.MeanRevertingSDE(5), (0.69595, 1.67104, 3.76744, 7.74444, 12.82371)
    for i, weight in enumerate(weights):
        t, a0, eps = torch.tensor([i]), torch.tensor([[0.3]]), torch.tensor([[0.8]])
        got = edq.diffusion_loss(sde, sde.perturb(a0, t, eps), a0, t, eps, eps + 0.1, "likelihood")
        assert math.sqrt(float(got)) == pytest.approx(0.1 * weight, rel=1e-3)


def test_released_likelihood_loss_needs_the_clamp(mujoco):
    """One mode at 0.5 of std 0.1 is cloned by every loss, but not by the authors' locomotion row as it stands.

    Their likelihood loss, sampled by the posterior without a clamp of a_0, throws most actions to the edge of the box:
    the network it asks for predicts a_0 = 320 a_T. The clamp, or Euler steps, for which the loss is made, repair it.
    """
    sde, obs, edge = mujoco.MeanRevertingSDE(5), torch.zeros(256, 1), {}
    for kind in ("noise", "likelihood", "likelihood_released"):
        torch.manual_seed(0)
        net = mujoco.ScoreMLP(1, 1, 64)
        opt = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(1500):
            a0, t, eps = 0.5 + 0.1 * torch.randn(256, 1), torch.randint(5, (256,)), torch.randn(256, 1)
            a_t = sde.perturb(a0, t, eps)
            opt.zero_grad()
            mujoco.diffusion_loss(sde, a_t, a0, t, eps, net(a_t, t, obs), kind).backward()
            opt.step()
        more = [("sde", False)] if kind == "likelihood_released" else []
        for sampler, clip in [("posterior", True), ("posterior", False), *more]:
            with torch.no_grad():
                out = mujoco.sample_actions(net, sde, torch.zeros(4000, 1), sampler, clip)
            edge[kind, sampler, clip] = float((out.abs() > 0.99).float().mean())
    assert edge.pop(("likelihood_released", "posterior", False)) > 0.3
    assert max(edge.values()) < 0.05, edge


# --- critics ---
def plain_critics(ensemble):
    """The ensemble as M separate nn.Sequential."""
    nets = []
    for m in range(ensemble.num_critics):
        layers = []
        for i, (w, b) in enumerate(zip(ensemble.weights, ensemble.biases)):
            linear = nn.Linear(w.shape[1], w.shape[2])
            linear.weight.data, linear.bias.data = w[m].T.detach().clone(), b[m, 0].detach().clone()
            layers += [linear, nn.Mish()] if i < 3 else [linear]
        nets.append(nn.Sequential(*layers))
    return nets


def test_ensemble_equals_a_loop_of_single_critics(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(5, 2, 4, 32)
    obs, action = torch.randn(7, 5), torch.randn(7, 2)
    nets = plain_critics(q)
    expected = torch.stack([net(torch.cat([obs, action], -1)).squeeze(-1) for net in nets])
    out = q(obs, action)
    assert out.shape == (4, 7)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    target = torch.randn(4, 7)
    ((out - target) ** 2).mean().backward()
    ((expected - target) ** 2).mean().backward()
    for i, weight in enumerate(q.weights):
        single = torch.stack([net[2 * i].weight.grad.T for net in nets])
        torch.testing.assert_close(weight.grad, single, atol=1e-6, rtol=1e-4)


def test_ensemble_initialisation(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(17, 6, 8, 256)
    for weight, bias in list(zip(q.weights, q.biases))[:3]:
        assert 0.95 / 16 < float(weight.detach().abs().max()) <= 1 / 16
        assert bool((bias == 0.1).all())
    assert 0.0029 < float(q.weights[3].detach().abs().max()) <= 3e-3
    assert float(q.biases[3].detach().abs().max()) <= 3e-3
    assert not torch.equal(q.weights[1][0], q.weights[1][1])


def test_mish(edq):
    x = torch.linspace(-100, 100, 4001, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(edq.mish(x), nn.functional.mish(x), atol=1e-12, rtol=1e-12)
    ours = torch.autograd.grad(edq.mish(x).sum(), x)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(nn.functional.mish(x).sum(), x)[0], atol=1e-9, rtol=1e-9)


def test_score_network_time_embedding(edq):
    """Sine then cosine of (t - 1) 10000^(-k/7), and an index given as a number or as a tensor."""
    torch.manual_seed(0)
    net = edq.ScoreMLP(5, 2, 16)
    seen = {}
    net.time_in.register_forward_hook(lambda m, x, y: seen.update(x=x[0]))
    obs, a = torch.randn(3, 5), torch.randn(3, 2)
    out = net(a, 3, obs)
    angles = [3 * 10000 ** (-k / 7) for k in range(8)]
    expected = torch.tensor([math.sin(x) for x in angles] + [math.cos(x) for x in angles])
    torch.testing.assert_close(seen["x"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(a, torch.tensor([3, 3, 3]), obs), out)
    assert out.shape == (3, 2)


def test_lower_confidence_bound(edq):
    q = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    torch.testing.assert_close(edq.lower_confidence_bound(q, 4.0), torch.tensor([3 - 4 * 2.0, 2.0]))


@pytest.mark.parametrize("target", ["own", "min"])
def test_targets_member_by_member(edq, target):
    args = small_args(edq, target=target, gamma=0.9)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq)
    noise = torch.randn(5, 8, 2)
    out = edq.td_target(agent, batch, noise, args)
    action = edq.sample_actions(agent.score_ema, agent.sde, batch.next_obs, noise=noise, action_clip=args.action_clip)
    for m, net in enumerate(plain_critics(agent.target_q)):
        q = net(torch.cat([batch.next_obs, action], -1)).squeeze(-1)
        expected = batch.reward + 0.9 * (1 - batch.end) * q
        if target == "own":
            torch.testing.assert_close(out[m], expected, atol=1e-6, rtol=1e-5)
        else:
            assert bool((out[m] <= expected + 1e-6).all())
    assert torch.equal(out[0], out[1]) == (target == "min")
    assert bool((out[:, batch.end == 1] == batch.reward[batch.end == 1]).all())


def test_max_q_backup_takes_the_best_of_ten_for_each_member(edq):
    args = small_args(edq, max_q_backup=True)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq, 4)
    _, noise = edq.draw_batch(batch, edq.replace(args, batch_size=4), torch.Generator().manual_seed(0))
    assert noise.target.shape == (5, 40, 2)
    out = edq.td_target(agent, batch, noise.target, args)
    for b in range(4):
        for m in range(3):
            values = []
            for n in range(10):
                own = noise.target[:, b * 10 + n : b * 10 + n + 1]
                obs = batch.next_obs[b : b + 1]
                action = edq.sample_actions(agent.score_ema, agent.sde, obs, args.sampler, args.action_clip, noise=own)
                values.append(float(agent.target_q(obs, action)[m]))
            expected = float(batch.reward[b]) + args.gamma * (1 - float(batch.end[b])) * max(values)
            assert float(out[m, b]) == pytest.approx(expected, abs=1e-5)


# --- the update ---
def test_gradients_stay_with_their_network(edq):
    """A critic step leaves the actor alone, an actor step the critic; neither collects gradients elsewhere."""
    args = small_args(edq)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq)
    _, noise = edq.draw_batch(batch, args, torch.Generator().manual_seed(0))
    out = edq.actor_losses(agent, batch, noise, args, False)
    edq.minimise(out["losses/actor"], agent.score, agent.optimisers["actor"], 1.0)
    assert all(p.grad is None for p in agent.q.parameters())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in agent.score.parameters())
    before = copy.deepcopy(agent.score.state_dict())
    loss = ((agent.q(batch.obs, batch.action) - edq.td_target(agent, batch, noise.target, args).detach()) ** 2).mean()
    edq.minimise(loss, agent.q, agent.optimisers["critic"], 1.0)
    assert all(torch.equal(before[k], v) for k, v in agent.score.state_dict().items())


def test_gradient_clipping(edq):
    for clip in (1e-3, 1e9):
        net = nn.Linear(4, 1)
        opt = torch.optim.SGD(net.parameters(), 1.0)
        before = [p.detach().clone() for p in net.parameters()]
        edq.minimise(1000 * net(torch.ones(1, 4)).sum(), net, opt, clip)
        moved = math.sqrt(sum(float(((p - b) ** 2).sum()) for p, b in zip(net.parameters(), before)))
        assert moved == pytest.approx(min(clip, 1000 * math.sqrt(5)), rel=1e-3)


def test_averages(edq):
    """Targets move by tau at every update; the averaged actor first in update 1,001, then every fifth."""
    args = small_args(edq, ema_decay=0.9, tau=0.1)
    torch.manual_seed(0)
    agent, data, g = edq.Agent(5, 2, args), small_batch(edq), torch.Generator().manual_seed(0)
    for step, averaged in ((0, False), (999, False), (1000, True), (1001, False), (1004, False), (1005, True)):
        ema, target = copy.deepcopy(agent.score_ema.state_dict()), copy.deepcopy(agent.target_q.state_dict())
        edq.update(agent, *edq.draw_batch(data, args, g), args, step)
        for name, new in agent.target_q.state_dict().items():
            torch.testing.assert_close(new, 0.9 * target[name] + 0.1 * agent.q.state_dict()[name])
        for name, new in agent.score_ema.state_dict().items():
            expected = 0.9 * ema[name] + 0.1 * agent.score.state_dict()[name] if averaged else ema[name]
            torch.testing.assert_close(new, expected)


def test_critic_loss_is_a_mean_over_members_and_batch(edq):
    args = small_args(edq)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq)
    _, noise = edq.draw_batch(batch, args, torch.Generator().manual_seed(0))
    y, q = edq.td_target(agent, batch, noise.target, args), agent.q(batch.obs, batch.action).detach()
    total = sum((float(q[m, b]) - float(y[m, b])) ** 2 for m in range(3) for b in range(8)) / 24
    metrics = edq.update(agent, batch, noise, args, 0)
    assert float(metrics[edq.METRICS.index("losses/critic")]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("pessimism", ["lcb", "min"])
@pytest.mark.parametrize("policy_action", ["one_step", "chain"])
def test_actor_q_term(edq, pessimism, policy_action):
    args = small_args(edq, pessimism=pessimism, policy_action=policy_action, entropy_estimator="none", eta=0.7)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq)
    _, noise = edq.draw_batch(batch, args, torch.Generator().manual_seed(0))
    out = edq.actor_losses(agent, batch, noise, args, False)
    a_t = agent.sde.perturb(batch.action, noise.t, noise.eps)
    action = agent.sde.predict_a0(a_t, noise.t, agent.score(a_t, noise.t, batch.obs)).clamp(-1, 1)
    if policy_action == "chain":
        clip = args.action_clip
        action = edq.sample_actions(agent.score, agent.sde, batch.obs, action_clip=clip, noise=noise.chain[:-1])
    q = np.array([[float(x) for x in row] for row in agent.q(batch.obs, action)])
    value = q.min(0) if pessimism == "min" else q.mean(0) - 4 * q.std(0, ddof=1)
    assert float(out["losses/q"]) == pytest.approx(-value.mean() / np.abs(q).mean(), rel=1e-4)
    total = float(out["losses/diffusion"]) + 0.7 * float(out["losses/q"])
    assert float(out["losses/actor"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("estimator", ["released", "bridge"])
def test_normalised_entropy_term(edq, estimator):
    """Divided by its own size the term is worth exactly the coefficient: what moves is mean H, so that is logged."""
    args = small_args(edq, entropy_estimator=estimator, ent_coef=0.3)
    torch.manual_seed(0)
    agent, batch = edq.Agent(5, 2, args), small_batch(edq)
    _, noise = edq.draw_batch(batch, args, torch.Generator().manual_seed(0))
    out = edq.actor_losses(agent, batch, noise, args, False)
    assert float(out["losses/entropy"]) == pytest.approx(-0.3, rel=1e-5)
    assert float(out["policy/entropy"]) > 0 and float(out["policy/alpha"]) == pytest.approx(0.3)


def test_draws_are_uniform_with_replacement(edq):
    args = small_args(edq, batch_size=30_000)
    data = edq.Transitions(*(torch.arange(10.0)[:, None] if i < 2 or i == 3 else torch.arange(10.0) for i in range(5)))
    batch, noise = edq.draw_batch(data, args, torch.Generator().manual_seed(0))
    counts = torch.bincount(batch.reward.long(), minlength=10)
    assert int(counts.min()) > 2700 and int(counts.max()) < 3300
    assert bool((batch.obs[:, 0] == batch.reward).all()) and bool((batch.end == batch.reward).all())
    assert int(torch.bincount(noise.t).min()) > 5500 and len(torch.bincount(noise.t)) == 5


def test_first_bad_update_is_remembered(edq):
    args = small_args(edq)
    torch.manual_seed(0)
    agent, data, g = edq.Agent(5, 2, args), small_batch(edq), torch.Generator().manual_seed(0)
    agent.q_limit.fill_(1e9)
    for step in range(6):
        batch, noise = edq.draw_batch(data, args, g)
        if step == 3:
            batch = batch._replace(reward=batch.reward * math.nan)
        edq.update(agent, batch, noise, args, step)
    first = dict(zip(edq.METRICS, agent.first_bad.tolist()))
    assert first["losses/critic"] == 3 and int(agent.first_bad[-1]) == -1
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args)
    agent.q_limit.fill_(-1.0)
    edq.update(agent, *edq.draw_batch(data, args, g), args, 9)
    assert int(agent.first_bad[-1]) == 9


# --- acting ---
def test_acting_softmax_and_argmax(edq):
    args = small_args(edq, num_candidates=7)
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args)
    agent.score = OneMode(agent.sde, 0.4)  # candidates that differ, none at the edge of the box
    agent.score.act_dim = 2
    for p in agent.target_q.parameters():
        p.data *= 3
    obs, noise = torch.randn(2, 5), torch.randn(5, 2, 7, 2)
    wide = obs.unsqueeze(1).expand(2, 7, 5)
    candidates = edq.sample_actions(agent.score, agent.sde, wide, args.sampler, args.action_clip, noise=noise)
    values = torch.stack([
        edq.lower_confidence_bound(agent.target_q(wide[i], candidates[i]), args.lcb_coef) for i in range(2)
    ])  # fmt: skip
    best = edq.act(agent, obs, noise, torch.zeros(2), edq.replace(args, action_selection="argmax"))
    for i in range(2):
        torch.testing.assert_close(best[i], candidates[i, int(values[i].argmax())])
    picks = torch.zeros(7)
    for u in torch.linspace(0, 0.9999, 2000):
        action = edq.act(agent, obs, noise, torch.full((2,), float(u)), args)[0]
        picks[int((candidates[0] - action).abs().sum(-1).argmin())] += 1
    torch.testing.assert_close(picks / 2000, values[0].softmax(0), atol=2e-3, rtol=0)
