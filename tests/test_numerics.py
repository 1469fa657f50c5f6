"""The algorithm of each script against closed forms, Monte Carlo, figures and naive loops."""

import copy
import math
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

# t, theta', theta_bar, sigma, w_t, w_0, v of the cosine schedule with T = 5, computed
# independently in float64.
FIGURES = torch.tensor(
    [
        [0.1974880, 0.1974880, 0.5712300, 0.0000000, 1.0000000, 0.0000000],
        [0.7039643, 0.9014523, 0.9138821, 0.1932475, 0.7423355, 0.2951143],
        [1.3858163, 2.2872686, 0.9948311, 0.2110713, 0.3845467, 0.7910888],
        [2.0631655, 4.3504340, 0.9999168, 0.1257621, 0.0999210, 0.9738755],
        [2.5573212, 6.9077553, 0.9999995, 0.0774993, 0.0128237, 0.9938274],
    ]
)
# theta'_1 and theta'_T for other T.
ENDS = {
    2: (1.757349, 5.150406),
    3: (0.697618, 3.902084),
    10: (0.032078, 1.342499),
    20: (0.005028, 0.681376),
    50: (0.000465, 0.273862),
    100: (0.0000853, 0.137037),
}


class Gaussian(nn.Module):
    """The exact noise prediction for data N(0, std^2)."""

    act_dim = 1

    def __init__(self, sde, std):
        super().__init__()
        self.sde = sde
        self.std = std

    def forward(self, a_t, t, obs):
        keep = torch.exp(-self.sde.theta_bar[t])
        sigma = self.sde.sigma[t]
        a0 = keep * self.std**2 / (keep**2 * self.std**2 + sigma**2) * a_t
        return (a_t - keep * a0) / sigma


class Linear(nn.Module):
    """A network whose predicted a_0 is k e^(-theta_bar_t) a_t: all of a chain is Gaussian."""

    act_dim = 1

    def __init__(self, sde, k):
        super().__init__()
        self.sde = sde
        self.k = nn.Parameter(torch.tensor(float(k)))

    def forward(self, a_t, t, obs):
        keep = torch.exp(-self.sde.theta_bar[t])
        return (a_t - self.k * keep**2 * a_t) / self.sde.sigma[t]


def small_args(edq, **changes):
    base = {
        "num_critics": 3,
        "hidden_dim": 16,
        "batch_size": 8,
        "eta": 1.0,
        "diffusion_loss": "noise",
        "max_q_backup": False,
        "action_clip": True,
    }
    return edq.replace(edq.Args(), **(base | changes))


def small_batch(edq, size=8, obs_dim=5, act_dim=2):
    g = torch.Generator().manual_seed(0)
    return edq.Transitions(
        obs=torch.randn(size, obs_dim, generator=g),
        action=torch.rand(size, act_dim, generator=g) * 2 - 1,
        reward=torch.randn(size, generator=g),
        next_obs=torch.randn(size, obs_dim, generator=g),
        end=(torch.arange(size) % 3 == 0).float(),
    )


def small_agent(edq, args):
    torch.manual_seed(0)
    agent = edq.Agent(5, 2, args)
    for net in (agent.q, agent.target_q):  # as initialised, the last layer is almost 0
        if net:
            net.layers[-1].weight.data.mul_(100)
    return agent


def small_update(edq, **changes):
    """Arguments, agent, batch and noise of one update."""
    args = small_args(edq, **changes)
    data = small_batch(edq)
    batch, noise = edq.draw_batch(data, args, torch.Generator().manual_seed(1))
    return args, small_agent(edq, args), batch, noise


# --- the SDE ---
def test_cosine_schedule_figures(edq):
    sde = edq.MeanRevertingSDE(5, "cosine")
    columns = (sde.theta_dt, sde.theta_bar, sde.sigma, sde.w_t, sde.w_0, sde.posterior_var)
    torch.testing.assert_close(torch.stack(columns, 1), FIGURES, atol=6e-8, rtol=2e-7)
    for steps, (first, last) in ENDS.items():
        sde = edq.MeanRevertingSDE(steps)
        assert float(sde.theta_dt[0]) == pytest.approx(first, abs=1e-6)
        assert float(sde.theta_dt[-1]) == pytest.approx(last, abs=1e-6)
        assert float(sde.theta_bar[-1]) == pytest.approx(math.log(1000), rel=1e-5)
        assert sde.sigma.shape == sde.posterior_var.shape == (steps,)


def test_ddpm_schedule_is_not_rescaled(edq):
    sde = edq.MeanRevertingSDE(5, "ddpm")
    expected = torch.tensor([0.109, 0.307, 0.505, 0.703, 0.901])
    torch.testing.assert_close(sde.theta_dt, expected, atol=1e-6, rtol=0)
    assert float(sde.theta_bar[-1]) == pytest.approx(2.525, abs=1e-5)
    assert float(sde.sigma[0]) == pytest.approx(0.4425772, abs=1e-6)


def test_marginal_and_posterior_against_many_euler_steps(edq):
    """Simulate da = -theta a dt + sqrt(2 theta) dw in tiny steps; compare Eq. 4 and 7 with it."""
    sde = edq.MeanRevertingSDE(5)
    g = torch.Generator().manual_seed(0)
    a = torch.full((50_000,), 0.6)
    paths = []
    for i in range(3):
        dt = float(sde.theta_dt[i]) / 50
        for _ in range(50):
            a = a - a * dt + math.sqrt(2 * dt) * torch.randn(a.shape, generator=g)
        paths.append(a)
    noise = torch.randn(50_000, 1, generator=g)
    for i, path in enumerate(paths):
        ours = sde.perturb(torch.tensor([[0.6]]), i, noise)
        assert float(path.mean()) == pytest.approx(float(ours.mean()), abs=0.04)
        assert float(path.std()) == pytest.approx(float(ours.std()), abs=0.04)
    before, after = paths[1], paths[2]  # a_2 given a_3 and a_0 is a regression on a_3
    slope = float(torch.cov(torch.stack([before, after]))[0, 1] / after.var())
    assert slope == pytest.approx(float(sde.w_t[2]), abs=0.03)
    residual = before - slope * after
    assert float(residual.mean()) == pytest.approx(float(sde.w_0[2]) * 0.6, abs=0.03)
    assert float(residual.var()) == pytest.approx(float(sde.posterior_var[2]), abs=0.05)


def test_prediction_inverts_perturbation_and_an_index_may_be_a_tensor(edq):
    sde = edq.MeanRevertingSDE(5)
    g = torch.Generator().manual_seed(0)
    a0 = torch.randn(5, 3, generator=g)
    eps = torch.randn(5, 3, generator=g)
    t = torch.arange(5)
    a_t = sde.perturb(a0, t, eps)
    torch.testing.assert_close(sde.predict_a0(a_t, t, eps), a0, atol=5e-3, rtol=5e-3)
    methods = (sde.perturb, sde.predict_a0, sde.euler_step)
    for i in range(5):
        for method in methods:
            torch.testing.assert_close(method(a_t, t, eps)[i], method(a_t[i], i, eps[i]))
        both = sde.posterior_mean(a_t, a0, t)
        torch.testing.assert_close(both[i], sde.posterior_mean(a_t[i], a0[i], i))


def test_sampling_with_the_exact_network_of_a_gaussian(edq):
    """All steps are linear-Gaussian, so the spread that comes out is known, and near the data's."""
    for steps, std in ((5, 0.1), (50, 0.3)):
        sde = edq.MeanRevertingSDE(steps)
        variance = 1.0
        for t in reversed(range(steps)):
            keep = math.exp(-float(sde.theta_bar[t]))
            weight = keep * std**2 / (keep**2 * std**2 + float(sde.sigma[t]) ** 2)
            slope = float(sde.w_t[t]) + float(sde.w_0[t]) * weight
            variance = slope**2 * variance + float(sde.posterior_var[t])
        obs = torch.zeros(20_000, 1)
        g = torch.Generator().manual_seed(0)
        out = edq.sample_actions(Gaussian(sde, std), sde, obs, False, g)
        assert float(out.std()) == pytest.approx(math.sqrt(variance), rel=0.05)
        assert float(out.mean()) == pytest.approx(0, abs=0.02)
    assert math.sqrt(variance) == pytest.approx(0.3, abs=0.05)  # with many steps it is the data's


def test_action_clip_bounds_every_prediction(edq):
    sde = edq.MeanRevertingSDE(5)
    seen = []

    class Far(nn.Module):
        act_dim = 1

        def forward(self, a_t, t, obs):
            seen.append(float(a_t.max()))
            return (a_t - 5 * torch.exp(-sde.theta_bar[t])) / sde.sigma[t]  # predicts a_0 = 5

    for clip in (True, False):
        seen.clear()
        out = edq.sample_actions(Far(), sde, torch.zeros(4, 1), clip, noise=torch.zeros(5, 4, 1))
        assert float(out.max()) == 1
        assert (max(seen) <= 1.1) == clip


# --- entropy ---
def test_released_entropy_closed_form(edq):
    sde = edq.MeanRevertingSDE(5)
    figures = {(0, 0): 0.778650, (0, 1): 0.778652, (0.5, 0): 0.794337, (0.5, 1): 0.793961}
    figures |= {(1, 0): 0.841401, (1, 1): 0.840645}
    for (a0, aT), expected in figures.items():
        got = edq.entropy_estimate(sde, torch.full((1, 1), a0 * 1.0), torch.full((1, 1), aT * 1.0))
        assert got.shape == (1,)
        assert float(got) == pytest.approx(expected, abs=1e-5)
    two = edq.entropy_estimate(sde, torch.tensor([[0.5, 1.0]]), torch.zeros(1, 2))
    assert float(two) == pytest.approx(0.794337 + 0.841401, abs=1e-5)  # a sum over dimensions
    aT = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))
    for a0 in (-1.0, 0.3, 0.7):
        mean = float(edq.entropy_estimate(sde, torch.full_like(aT, a0), aT).mean())
        assert mean == pytest.approx(0.7786518 + 0.0627517 * a0**2, abs=3e-4)


def test_log_transition_is_the_density_of_a_normal(edq):
    x = torch.tensor([-0.3, 0.0, 1.2], dtype=torch.float64)
    y = torch.tensor(0.7, dtype=torch.float64)
    dt = torch.tensor(0.4, dtype=torch.float64)
    normal = NormalDist(0.7 * math.exp(-0.4), math.sqrt(1 - math.exp(-0.8)))
    expected = [math.log(normal.pdf(float(v))) for v in x]
    assert edq.log_transition(x, y, dt).tolist() == pytest.approx(expected)


# k, then the exact entropy and the bound, in closed form, for a std of 0.2 in the last step.
CHAINS = {
    0.0: (-0.190499, -0.231792),
    0.2: (-0.084913, -0.102586),
    0.5: (0.299198, 0.074528),
    0.8: (0.697654, 0.233358),
    1.0: (0.934373, 0.325780),
}


class Unclamped(torch.Tensor):
    """A tensor whose clamp does nothing: the closed forms are those of unclamped chains."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.clamp:
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_chain_bound_is_below_the_entropy_of_a_gaussian_chain(edq, monkeypatch):
    sde = edq.MeanRevertingSDE(5)
    predict = sde.predict_a0
    monkeypatch.setattr(sde, "predict_a0", lambda *args: predict(*args).as_subclass(Unclamped))
    bounds = []
    for k, (exact, closed) in CHAINS.items():
        variance = 1.0
        for t in reversed(range(5)):
            slope = float(sde.w_t[t]) + float(sde.w_0[t]) * k * math.exp(-float(sde.theta_bar[t]))
            variance = slope**2 * variance + (float(sde.posterior_var[t]) if t else 0.2**2)
        assert 0.5 * math.log(2 * math.pi * math.e * variance) == pytest.approx(exact, abs=1e-5)
        obs = torch.zeros(50_000, 1)
        g = torch.Generator().manual_seed(0)
        bound = edq.chain_entropy_bound(sde, Linear(sde, k), obs, 0.2, g).detach()
        assert bound.shape == (50_000,)
        assert float(bound.mean()) == pytest.approx(closed, abs=0.03)
        bounds.append(float(bound.mean()))
    assert bounds == sorted(bounds)


def test_chain_bound_has_a_gradient_in_the_spread_and_clamps(edq):
    sde = edq.MeanRevertingSDE(5)
    g = torch.Generator().manual_seed(0)
    net = Linear(sde, 0.5)
    bound = edq.chain_entropy_bound(sde, net, torch.zeros(20_000, 1), 0.2, g)
    (grad,) = torch.autograd.grad(bound.mean(), net.k)
    assert float(grad) > 0.1
    wide = Linear(sde, 50.0)  # all predictions far outside the box
    bound = edq.chain_entropy_bound(sde, wide, torch.zeros(2000, 1), 0.2, g).detach()
    assert float(bound.mean()) < math.log(2) + 0.5


# --- networks ---
def plain_critics(ensemble):
    """The ensemble as M separate networks."""
    nets = []
    for m in range(ensemble.num_critics):
        layers = []
        for layer in ensemble.layers[::2]:
            linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            linear.weight.data = layer.weight[m].T.detach().clone()
            linear.bias.data = layer.bias[m, 0].detach().clone()
            layers += [linear, nn.Mish()]
        nets.append(nn.Sequential(*layers[:-1]))
    return nets


def plain_q(nets, obs, action):
    return torch.stack([net(torch.cat([obs, action], -1)).squeeze(-1) for net in nets])


def test_ensemble_equals_a_loop_of_single_critics(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(5, 2, 4, 32)
    obs = torch.randn(7, 5)
    action = torch.randn(7, 2)
    nets = plain_critics(q)
    expected = plain_q(nets, obs, action)
    out = q(obs, action)
    assert out.shape == (4, 7)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    target = torch.randn(4, 7)
    F.mse_loss(out, target).backward()
    F.mse_loss(expected, target).backward()
    for i, layer in enumerate(q.layers[::2]):
        single = torch.stack([net[2 * i].weight.grad.T for net in nets])
        torch.testing.assert_close(layer.weight.grad, single, atol=1e-5, rtol=1e-3)


def test_bf16_is_near_fp32(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(5, 2, 4, 64)
    q.layers[-1].weight.data.mul_(100)
    half = edq.QEnsemble(5, 2, 4, 64, bf16=True)
    half.load_state_dict(q.state_dict())
    obs = torch.randn(50, 5)
    action = torch.randn(50, 2)
    exact = q(obs, action)
    error = (half(obs, action) - exact).abs().max() / exact.abs().max()
    assert half(obs, action).dtype == torch.float32
    assert 0 < float(error) < 0.05


def test_frozen_critics_pass_a_gradient_to_the_action_alone(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(5, 2, 4, 32)
    obs = torch.randn(7, 5)
    action = torch.randn(7, 2, requires_grad=True)
    frozen = q.frozen(obs, action)
    torch.testing.assert_close(frozen, q(obs, action))
    (grad,) = torch.autograd.grad(frozen.sum(), action)
    (expected,) = torch.autograd.grad(q(obs, action).sum(), action)
    torch.testing.assert_close(grad, expected)
    q.frozen(obs, action).sum().backward()
    assert all(weight.grad is None for weight in q.parameters())


def test_ensemble_initialisation(edq):
    torch.manual_seed(0)
    q = edq.QEnsemble(17, 6, 8, 256)
    *hidden, head = q.layers[::2]
    for layer in hidden:
        assert 0.9 / 16 < float(layer.weight.abs().max()) <= 1 / 16
        assert bool((layer.bias == 0.1).all())
    assert 0.0025 < float(head.weight.abs().max()) <= 3e-3
    assert float(head.bias.abs().max()) <= 3e-3
    assert not torch.equal(q.layers[2].weight[0], q.layers[2].weight[1])


def test_mish(edq):
    x = torch.linspace(-100, 100, 4001, dtype=torch.float64, requires_grad=True)
    ours = edq.Mish()(x)
    theirs = F.mish(x)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)
    assert bool(edq.Mish()(torch.tensor([-1e4, 1e4])).isfinite().all())


def test_time_embedding(edq):
    """Sine, then cosine, of (t - 1) 10000^(-k/7); an index is a number or a tensor."""
    torch.manual_seed(0)
    net = edq.NoiseMLP(5, 2, 16)
    seen = []
    net.time_embedding[0].register_forward_hook(lambda module, x, y: seen.append(x[0]))
    obs = torch.randn(3, 5)
    a_t = torch.randn(3, 2)
    out = net(a_t, 3, obs)
    angles = [3 * 10000 ** (-k / 7) for k in range(8)]
    expected = [math.sin(x) for x in angles] + [math.cos(x) for x in angles]
    assert seen[0].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(net(a_t, torch.tensor([3, 3, 3]), obs), out)
    assert out.shape == (3, 2)
    assert not torch.allclose(net(a_t, 2, obs), out)


# --- losses ---
def test_lower_confidence_bound_by_hand(edq):
    q = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])  # std 2 and 0, means 3 and 2
    assert edq.lower_confidence_bound(q, 4.0).tolist() == [-5, 2]


@pytest.mark.parametrize("changes", [{}, {"target": "min"}, {"max_q_backup": True}])
def test_td_target_against_a_loop(edq, changes):
    args, agent, batch, noise = small_update(edq, gamma=0.9, **changes)
    N = 10 if args.max_q_backup else 1
    assert noise.target.shape == (5, 8 * N, 2)
    out = edq.td_target(agent, batch, noise.target, args)
    assert out.shape == (3, 8)
    nets = plain_critics(agent.target_q)
    for b in range(8):
        obs = batch.next_obs[b : b + 1]
        values = []  # of each of the N next actions, of each critic
        for n in range(b * N, b * N + N):
            own = noise.target[:, n : n + 1]
            action = edq.sample_actions(agent.actor_ema, agent.sde, obs, noise=own)
            values.append([float(q) for q in plain_q(nets, obs, action)])
        best = [max(value[m] for value in values) for m in range(3)]
        if args.target == "min":
            best = [min(best)] * 3
        for m in range(3):
            expected = float(batch.reward[b]) + 0.9 * (1 - float(batch.end[b])) * best[m]
            assert float(out[m, b]) == pytest.approx(expected, abs=1e-4)


def test_critic_loss_is_a_mean_over_critics_and_batch(edq):
    _, agent, batch, _ = small_update(edq)
    target = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    q = plain_q(plain_critics(agent.q), batch.obs, batch.action)
    out = edq.critic_loss(agent, batch, target)
    squares = [(float(q[m, b]) - float(target[m, b])) ** 2 for m in range(3) for b in range(8)]
    assert float(out["losses/critic"]) == pytest.approx(sum(squares) / 24, rel=1e-4)
    assert float(out["q/max_abs"]) == pytest.approx(float(q.abs().max()), rel=1e-4)


def test_diffusion_losses(edq):
    """At the true noise, and, for an error of 0.1 in it, by the weight of each t."""
    sde = edq.MeanRevertingSDE(5)
    weights = (0.69595, 1.67104, 3.76744, 7.74444, 12.82371)
    differences = (-0.015964, -0.224493, -0.704387, -1.220528, -1.639497)
    a0 = torch.tensor([[0.5]])
    eps = torch.tensor([[1.0]])
    for i in range(5):
        t = torch.tensor([i])
        a_t = sde.perturb(a0, t, eps)
        assert float(edq.diffusion_loss(sde, a_t, a0, t, eps, eps, "noise")) == 0
        assert float(edq.diffusion_loss(sde, a_t, a0, t, eps, eps, "likelihood")) < 1e-6
        released = edq.diffusion_loss(sde, a_t, a0, t, eps, eps, "likelihood_released")
        assert float(released) == pytest.approx(differences[i] ** 2, rel=1e-3)
        off = eps + 0.1
        assert float(edq.diffusion_loss(sde, a_t, a0, t, eps, off, "noise")) == pytest.approx(0.01)
        weighted = edq.diffusion_loss(sde, a_t, a0, t, eps, off, "likelihood")
        assert float(weighted) == pytest.approx((0.1 * weights[i]) ** 2, rel=1e-2)


@pytest.mark.parametrize("pessimism", ["lcb", "min"])
@pytest.mark.parametrize("policy_action", ["one_step", "chain"])
def test_actor_loss_and_its_q_term(edq, pessimism, policy_action):
    changes = {"pessimism": pessimism, "policy_action": policy_action, "eta": 0.7}
    args, agent, batch, noise = small_update(edq, entropy_estimator="none", **changes)
    out = edq.actor_losses(agent, batch, noise, args)
    sde = agent.sde
    a_t = sde.perturb(batch.action, noise.t, noise.eps)
    eps_hat = agent.actor(a_t, noise.t, batch.obs)
    action = sde.predict_a0(a_t, noise.t, eps_hat).clamp(-1, 1)
    if policy_action == "chain":
        action = edq.sample_actions(agent.actor, sde, batch.obs, noise=noise.chain[:-1])
    q = plain_q(plain_critics(agent.q), batch.obs, action).detach().numpy()
    value = q.min(0) if pessimism == "min" else q.mean(0) - 4 * q.std(0, ddof=1)
    assert float(out["losses/q"]) == pytest.approx(-value.mean() / np.abs(q).mean(), rel=1e-3)
    assert float(out["losses/diffusion"]) == pytest.approx(float(F.mse_loss(eps_hat, noise.eps)))
    total = float(out["losses/diffusion"]) + 0.7 * float(out["losses/q"])
    assert float(out["losses/actor"]) == pytest.approx(total, rel=1e-4)


def test_entropy_terms(edq):
    """Divided by its own size the released term is worth its weight; the chain term is in nats."""
    args, agent, batch, noise = small_update(edq, entropy_estimator="released", ent_coef=0.3)
    out = edq.actor_losses(agent, batch, noise, args)
    assert float(out["losses/entropy"]) == pytest.approx(-0.3, rel=1e-4)
    for weight in (0.0, 0.3, 5.0):  # a weight that is given is taken as it is
        args, agent, batch, noise = small_update(edq, entropy_estimator="chain", ent_coef=weight)
        out = edq.actor_losses(agent, batch, noise, args)
        bound = edq.chain_entropy_bound(agent.sde, agent.actor, batch.obs, 0.2, noise=noise.chain)
        nats = float(bound.mean()) / 2
        assert float(out["policy/entropy"]) == pytest.approx(nats, rel=1e-4)
        assert float(out["losses/entropy"]) == pytest.approx(-weight * nats, rel=1e-4)


@pytest.mark.parametrize("target, rises", [(5.0, True), (-5.0, False)])
def test_automatic_alpha_moves_towards_its_target(edq, target, rises):
    changes = {"entropy_estimator": "chain", "ent_coef": "auto", "target_entropy": target}
    args, agent, batch, noise = small_update(edq, **changes)
    alpha = agent.alpha(batch.obs)
    torch.testing.assert_close(alpha, torch.full((8,), 0.01), atol=1e-5, rtol=1e-3)
    for step in range(30):
        edq.update(agent, batch, noise, args, step)
    alpha = float(agent.alpha(batch.obs).mean())
    assert (alpha > 0.01) == rises and abs(alpha - 0.01) > 5e-5


# --- the update ---
class Adam:
    """Adam and gradient clipping, written out."""

    def __init__(self, net, lr, clip):
        self.net = net
        self.lr = lr
        self.clip = clip
        self.count = 0
        self.mean = [torch.zeros_like(p) for p in net.parameters()]
        self.square = [torch.zeros_like(p) for p in net.parameters()]

    def step(self, loss):
        weights = list(self.net.parameters())
        grads = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        self.count += 1
        for i, grad in enumerate(grads):
            grad = grad * min(1.0, self.clip / norm)
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * grad
            self.square[i] = 0.999 * self.square[i] + 0.001 * grad**2
            mean = self.mean[i] / (1 - 0.9**self.count)
            square = self.square[i] / (1 - 0.999**self.count)
            weights[i].data -= self.lr * mean / (square.sqrt() + 1e-8)


def test_updates_against_a_naive_implementation(edq):
    """Three updates around the first one of the EMA actor: all weights and averages."""
    changes = {"grad_clip": 0.5, "actor_lr": 1e-3, "ema_decay": 0.9, "tau": 0.1, "eta": 0.5}
    args, agent, _, _ = small_update(edq, entropy_estimator="released", **changes)
    naive = copy.deepcopy(agent)
    nets = plain_critics(naive.q)
    targets = plain_critics(naive.target_q)
    critics = nn.ModuleList(nets)
    actor_adam = Adam(naive.actor, 1e-3, 0.5)
    critic_adam = Adam(critics, 3e-4, 0.5)
    data = small_batch(edq, 30)
    g = torch.Generator().manual_seed(3)
    sde = agent.sde
    for step in (999, 1000, 1001):
        batch, noise = edq.draw_batch(data, args, g)
        edq.update(agent, batch, noise, args, step)

        s, a, r, s_next, end = batch
        with torch.no_grad():
            a_next = edq.sample_actions(naive.actor_ema, sde, s_next, noise=noise.target)
            y = r + 0.99 * (1 - end) * plain_q(targets, s_next, a_next)
        critic_adam.step(((plain_q(nets, s, a) - y) ** 2).mean())
        keep = torch.exp(-sde.theta_bar[noise.t])[:, None]
        sigma = sde.sigma[noise.t][:, None]
        a_t = keep * a + sigma * noise.eps
        eps_hat = naive.actor(a_t, noise.t, s)
        a0 = (a_t - sigma * eps_hat) / keep
        q = plain_q(nets, s, a0.clamp(-1, 1))
        lcb = q.mean(0) - 4 * q.std(0)
        entropy = edq.entropy_estimate(sde, a0, noise.aT)
        loss = ((eps_hat - noise.eps) ** 2).mean()
        loss = loss - 0.5 * lcb.mean() / q.abs().mean().detach()
        loss = loss - 0.01 * entropy.mean() / entropy.abs().mean().detach()
        actor_adam.step(loss)
        with torch.no_grad():
            if step == 1000:
                for average, new in zip(naive.actor_ema.parameters(), naive.actor.parameters()):
                    average.copy_(0.9 * average + 0.1 * new)
            for target, net in zip(targets, nets):
                for average, new in zip(target.parameters(), net.parameters()):
                    average.copy_(0.9 * average + 0.1 * new)

    close = {"atol": 2e-5, "rtol": 1e-3}
    for name, weight in naive.actor.state_dict().items():
        torch.testing.assert_close(agent.actor.state_dict()[name], weight, **close)
    for name, weight in naive.actor_ema.state_dict().items():
        torch.testing.assert_close(agent.actor_ema.state_dict()[name], weight, **close)
    obs, action = data.obs, data.action
    torch.testing.assert_close(agent.q(obs, action), plain_q(nets, obs, action), **close)
    torch.testing.assert_close(agent.target_q(obs, action), plain_q(targets, obs, action), **close)


def test_averages_and_their_timetable(edq):
    """Targets move in every update; the EMA actor in update 1,001 and each fifth after it."""
    args, agent, batch, noise = small_update(edq, ema_decay=0.9, tau=0.1)
    for step, due in ((0, False), (995, False), (1000, True), (1004, False), (1005, True)):
        ema = copy.deepcopy(agent.actor_ema.state_dict())
        target = copy.deepcopy(agent.target_q.state_dict())
        edq.update(agent, batch, noise, args, torch.tensor(step))
        for name, new in agent.target_q.state_dict().items():
            torch.testing.assert_close(new, 0.9 * target[name] + 0.1 * agent.q.state_dict()[name])
        for name, new in agent.actor_ema.state_dict().items():
            moved = 0.9 * ema[name] + 0.1 * agent.actor.state_dict()[name]
            torch.testing.assert_close(new, moved if due else ema[name])


def test_gradients_stay_with_their_network(edq):
    args, agent, batch, noise = small_update(edq)
    out = edq.actor_losses(agent, batch, noise, args)
    edq.minimise(out["losses/actor"], agent.actor, agent.optimisers["actor"], 1.0)
    assert all(weight.grad is None for weight in agent.q.parameters())
    assert all(bool(weight.grad.abs().sum() > 0) for weight in agent.actor.parameters())


def test_draws_are_uniform_with_replacement(edq):
    args = small_args(edq, batch_size=30_000)
    column = torch.arange(10.0)
    data = edq.Transitions(column[:, None], column[:, None], column, column[:, None], column)
    batch, noise = edq.draw_batch(data, args, torch.Generator().manual_seed(0))
    counts = torch.bincount(batch.reward.long(), minlength=10)
    assert int(counts.min()) > 2700 and int(counts.max()) < 3300
    for part in (batch.obs[:, 0], batch.action[:, 0], batch.next_obs[:, 0], batch.end):
        assert torch.equal(part, batch.reward)
    assert torch.bincount(noise.t).min() > 5500 and len(torch.bincount(noise.t)) == 5


# --- acting ---
def test_acting_by_softmax_argmax_and_alone(edq):
    args = small_args(edq, num_candidates=7)
    agent = small_agent(edq, args)
    agent.actor = Gaussian(agent.sde, 0.4)  # candidates that differ, none at the edge of the box
    agent.actor.act_dim = 2
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(2, 5, generator=g)
    noise = torch.randn(5, 2, 7, 2, generator=g)
    wide = obs.unsqueeze(1).expand(2, 7, 5)
    candidates = edq.sample_actions(agent.actor, agent.sde, wide, noise=noise)
    nets = plain_critics(agent.target_q)
    q = torch.stack([plain_q(nets, wide[i], candidates[i]) for i in range(2)], 1)  # [M, R, K]
    values = edq.lower_confidence_bound(q, 4.0)
    greedy = edq.replace(args, action_selection="argmax")
    best = edq.act(agent, obs, noise, torch.zeros(2), greedy)
    for i in range(2):
        torch.testing.assert_close(best[i], candidates[i, int(values[i].argmax())])
    picks = torch.zeros(7)
    for u in torch.arange(1000) / 1000:
        action = edq.act(agent, obs, noise, u.repeat(2), args)[0]
        picks[int((candidates[0] - action).abs().sum(-1).argmin())] += 1
    torch.testing.assert_close(picks / 1000, values[0].softmax(0).detach(), atol=1e-2, rtol=0)
    alone = edq.act(agent, obs, noise[:, :, :1], torch.zeros(2), args)
    torch.testing.assert_close(alone, candidates[:, 0])


def test_act_sees_normalised_observations(edq):
    args = small_args(edq, num_candidates=3)
    agent = small_agent(edq, args)
    obs = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 2, 3, 2, generator=torch.Generator().manual_seed(1))
    plain = edq.act(agent, obs, noise, torch.zeros(2), args)
    agent.obs_mean.fill_(3.0)
    agent.obs_std.fill_(2.0)
    torch.testing.assert_close(edq.act(agent, obs * 2 + 3, noise, torch.zeros(2), args), plain)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_critic_is_the_eager_one(mujoco):
    """Ten updates of each, from the same draws; tests/studies compiles all of an update."""
    results = []
    for compiled in (False, True):
        args, agent, _, _ = small_update(mujoco)
        if compiled:
            mujoco.critic_loss = torch.compile(mujoco.critic_loss, dynamic=False)
        data = small_batch(mujoco, 30)
        step = mujoco.make_step(agent, data, args, torch.Generator().manual_seed(0), 0)
        for _ in range(10):
            step()
        results.append(agent.metric_sum / 10)
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-3)
