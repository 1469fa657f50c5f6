"""The entropy study: estimators and measures against closed forms, Monte Carlo and naive loops."""

import copy
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "results"))
import entropy
import stacked
from stacked import edq

SDE = edq.MeanRevertingSDE(5)


class Linear(nn.Module):
    """A network whose predicted action is k e^-theta_bar_t a_t: all laws are Gaussian, with known variances."""

    def __init__(self, k: float):
        super().__init__()
        self.k, self.act_dim = k, 1

    def forward(self, a_t, t, obs):
        """Solve (a_t - sigma_t eps) e^theta_bar_t = a_0 for eps."""
        return (a_t - self.k * torch.exp(-2 * SDE.theta_bar[t]) * a_t) / SDE.sigma[t]

    def std(self, upto: int) -> float:
        """Std of a_t at t = upto (index; -1: the action), by the recursion of the variance."""
        var = 1.0
        for t in reversed(range(upto + 1, 5)):
            slope = float(SDE.w_t[t] + SDE.w_0[t] * self.k * torch.exp(-SDE.theta_bar[t]))
            var = slope**2 * var + float(SDE.posterior_var[t])
        return math.sqrt(var)


@pytest.fixture(scope="module")
def net():
    """A small network that has learned nothing, in 2-D."""
    torch.manual_seed(3)
    return edq.ScoreMLP(3, 2, 32)


def gaussian_entropy(std: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


def test_log_det_is_that_of_the_jacobian(net):
    x, obs = torch.randn(6, 2), torch.randn(6, 3)
    out, volume = entropy.log_det(lambda a: net(a, 1, obs) + a, x)
    for i in range(6):
        row = torch.autograd.functional.jacobian(lambda a, i=i: net(a, 1, obs[i]) + a, x[i])
        assert float(volume[i]) == pytest.approx(
            math.log(abs(float(torch.linalg.det(row)))), abs=1e-4
        )
    assert torch.allclose(out, net(x, 1, obs) + x)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_chain_with_jacobian_is_near_the_exact_entropy_from_below(k):
    """Slack of 0.01 to 0.1 nats, where `chain` with std 0.05 in its last step hides a nat and more."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 100_000, 1, generator=g)
    said = float(entropy.chain_jacobian(SDE, Linear(k), torch.zeros(100_000, 1), noise).mean())
    exact = gaussian_entropy(Linear(k).std(-1))
    assert exact - 0.12 < said < exact + 0.01


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_law_of_the_action_by_quadrature_is_the_known_gaussian(k):
    law = stacked.action_law(Linear(k), SDE, torch.zeros(1), stacked.BINS)
    centres = 0.5 * (stacked.BINS[1:] + stacked.BINS[:-1])
    assert float((law * centres).sum()) == pytest.approx(0, abs=1e-3)
    assert float((law * centres**2).sum().sqrt()) == pytest.approx(Linear(k).std(-1), rel=0.01)


def test_law_of_the_action_agrees_with_samples():
    torch.manual_seed(0)
    net = edq.ScoreMLP(1, 1, 32)
    nn.init.normal_(net.layers[-1].weight, std=0.3)  # an untrained one is nearly Gaussian
    noise = torch.randn(5, 100_000, 1, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = entropy.raw_actions(net, SDE, torch.zeros(100_000, 1), noise).squeeze(-1)
        clamped = edq.sample_actions(net, SDE, torch.zeros(100_000, 1), noise=noise).squeeze(-1)
    assert torch.equal(own.clamp(-1, 1), clamped)
    for std in (0.0, 0.3):
        law = stacked.action_law(net, SDE, torch.zeros(1), stacked.BINS, std)
        drawn = own + std * torch.randn(own.shape, generator=torch.Generator().manual_seed(2))
        for edge in (-0.8, -0.2, 0.3, 0.9):
            below = float(law[stacked.BINS[1:] <= edge + 1e-6].sum())
            assert below == pytest.approx(float((drawn < edge).float().mean()), abs=0.01)


def test_figures_of_a_law():
    """A uniform law on the box: entropy log 2; best of 50 by drawing."""
    task, centres = stacked.TASKS["bandit"], 0.5 * (stacked.BINS[1:] + stacked.BINS[:-1])
    law = (centres.abs() < 1).float()
    figures = stacked.law_figures(task, law / law.sum())
    assert figures["entropy"] == pytest.approx(math.log(2), abs=1e-3)
    draws = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    value = task.q(torch.zeros(200_000, 1), draws.reshape(-1, 1)).view(4000, 50)
    assert figures["value_50"] == pytest.approx(float(value.amax(1).mean()), abs=5e-3)
    assert figures["value_1"] == pytest.approx(float(value.mean()), abs=5e-3)
    assert figures["rare_share"] == pytest.approx(0.5, abs=2e-3) and figures["off_box"] == 0
    assert figures["off_data"] == pytest.approx(1 - 0.6, abs=5e-3)  # 0.3 around each of two modes


def test_log_det_of_the_deterministic_sampler_is_the_entropy_of_its_image():
    """Linear networks: the map is linear, its image Gaussian."""
    k, slope = 0.6, 1.0
    for t in reversed(range(5)):
        a0, eps = (
            k * torch.exp(-SDE.theta_bar[t]),
            (1 - k * torch.exp(-2 * SDE.theta_bar[t])) / SDE.sigma[t],
        )
        step = a0 if t == 0 else torch.exp(-SDE.theta_bar[t - 1]) * a0 + SDE.sigma[t - 1] * eps
        slope *= float(step)
    noise = torch.randn(6, 50_000, 1, generator=torch.Generator().manual_seed(0))
    said = float(entropy.ddim_log_det(SDE, Linear(k), torch.zeros(50_000, 1), noise).mean())
    assert said == pytest.approx(gaussian_entropy(slope), abs=0.01)


def test_path_kl_is_a_sum_of_gaussian_kls(net):
    other, obs = copy.deepcopy(net), torch.randn(7, 3)
    nn.init.normal_(other.layers[-1].bias)
    noise = torch.randn(6, 7, 2)
    assert float(entropy.path_kl(SDE, net, net, obs, noise, 0.2).detach().abs().max()) == 0
    total, a_t = torch.zeros(7), noise[0]
    with torch.no_grad():
        for t in reversed(range(5)):
            std = float(SDE.posterior_var[t].sqrt()) if t else 0.2
            laws = []
            for score in (net, other):
                a0 = SDE.predict_a0(a_t, t, score(a_t, t, obs)).clamp(-1, 1)
                laws.append(torch.distributions.Normal(SDE.posterior_mean(a_t, a0, t), std))
            total += torch.distributions.kl_divergence(*laws).sum(-1)
            a_t = laws[0].mean + std * noise[5 - t]
        assert torch.allclose(
            entropy.path_kl(SDE, net, other, obs, noise, 0.2), total, rtol=1e-4, atol=1e-5
        )


def test_quad_is_the_released_estimate_without_its_noise():
    aT = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    for a0 in (0.0, 0.4, -1.3):
        x = torch.full_like(aT, a0)
        mean = float(edq.entropy_estimate(SDE, x, aT, "released").mean())
        assert float(entropy.quad(x)[0]) == pytest.approx(mean, abs=1e-4)


def test_entropy_of_samples_by_neighbours_and_by_a_mixture():
    g = np.random.default_rng(0)
    x = 0.3 * g.normal(size=(2000, 2))
    exact = 2 * gaussian_entropy(0.3)
    assert entropy.knn_entropy(x) == pytest.approx(exact, abs=0.1)
    assert (
        exact < entropy.mixture_entropy(x) < exact + 1.1
    )  # overlapping parts are counted as if apart: at most log 3


def batch_of(B: int = 16, S: int = 3, A: int = 2) -> tuple[edq.Transitions, edq.Noise]:
    g = torch.Generator().manual_seed(5)
    data = [torch.randn(n, generator=g) for n in ((B, S), (B, A), (B,), (B, S))]
    data[1] = data[1].tanh()
    noise = [torch.randn(n, generator=g) for n in ((5, B, A), (B, A), (B, A), (6, B, A))]
    t = torch.randint(5, (B,), generator=g)
    return edq.Transitions(*data, torch.zeros(B)), edq.Noise(noise[0], t, *noise[1:])


@pytest.mark.parametrize("arm", entropy.ARMS)
def test_an_arm_adds_its_term_and_nothing_else(arm, net):
    """With weight 0 every arm is `none`; with weight 1 the loss differs by the term that is logged."""
    q = edq.QEnsemble(3, 2, 4, 32)
    agent = SimpleNamespace(sde=SDE, score=net, q=q, alpha=None, chain_std=0.2)
    agent.clone, agent.noise_std = copy.deepcopy(net), torch.tensor(0.0)
    nn.init.normal_(agent.clone.layers[-1].bias)
    batch, noise = batch_of()
    args = replace(entropy.ARGS, pessimism="lcb", num_critics=4)
    with torch.no_grad():
        none = entropy.arm_losses(
            edq.actor_losses, "none", agent, batch, noise, args, torch.tensor(0.0)
        )
        plain = edq.actor_losses(
            agent, batch, noise, replace(args, entropy_estimator="none"), False
        )
        assert float(none["losses/actor"]) == float(plain["losses/actor"])
        one = entropy.arm_losses(
            edq.actor_losses, arm, agent, batch, noise, args, torch.tensor(1.0)
        )
        term = float(one.get("losses/entropy", 0.0))
        assert float(one["losses/actor"]) == pytest.approx(
            float(none["losses/actor"]) + term, rel=1e-5
        )
        if arm not in ("none", "gmm", "chain"):
            zero = entropy.arm_losses(
                edq.actor_losses, arm, agent, batch, noise, args, torch.tensor(0.0)
            )
            assert float(zero["losses/actor"]) == pytest.approx(
                float(none["losses/actor"]), rel=1e-6
            )
            assert term != 0
        if arm == "gmm":  # noise on the improved action changes the Q term, and nothing else
            agent.noise_std = torch.tensor(0.5)
            noisy = entropy.arm_losses(
                edq.actor_losses, arm, agent, batch, noise, args, torch.tensor(1.0)
            )
            assert float(noisy["losses/diffusion"]) == float(none["losses/diffusion"])
            assert float(noisy["losses/q"]) != float(none["losses/q"])


def test_stacked_training_is_ordinary_training(monkeypatch):
    """Two seeds and two weights at once equal each policy trained by itself with the scripts' `minimise`."""
    task, coefs = stacked.TASKS["toy"], [0.01, 0.3]
    monkeypatch.setattr(stacked, "compiled", lambda function, *example: function)
    trained = stacked.train(task, entropy.losses_of("chain"), coefs, [0, 1], [4], {})[4][0]
    for row, (seed, coef) in enumerate((s, c) for s in (0, 1) for c in coefs):
        torch.manual_seed(seed)
        score = edq.ScoreMLP(2, 1, stacked.HIDDEN)
        agent = SimpleNamespace(sde=SDE, score=score, alpha=None, chain_std=0.2)
        agent.q = lambda obs, action, frozen: task.q(obs, action).unsqueeze(0)
        optimiser, stream = (
            torch.optim.Adam(score.parameters(), lr=stacked.LR),
            stacked.batches(task, [seed], 1, 5),
        )
        args = replace(entropy.ARGS, entropy_estimator="chain", ent_coef=coef)
        for _ in range(4):
            batch, noise = next(stream)
            batch, noise = (
                edq.Transitions(*(x[0] for x in batch)),
                edq.Noise(*(x[0] for x in noise)),
            )
            edq.minimise(
                edq.actor_losses(agent, batch, noise, args, False)["losses/actor"],
                score,
                optimiser,
                4.0,
            )
        for name, weight in score.state_dict().items():
            assert torch.allclose(trained[name][row], weight, atol=2e-5), (row, name)


def test_agents_trained_at_once_are_those_of_the_scripts(monkeypatch):
    """Two updates of one row equal two of `edq.update` on an Agent with the same weights, batch and noise."""
    monkeypatch.setattr(stacked, "compiled", lambda function, *example: function)
    args = edq.Args(
        num_critics=3,
        hidden_dim=32,
        batch_size=16,
        diffusion_loss="noise",
        entropy_estimator="chain",
        ent_coef=0.1,
    )
    args = replace(args, precision="fp32")

    def losses(agent, batch, noise, args, coef):
        return entropy.arm_losses(edq.actor_losses, "chain", agent, batch, noise, args, coef)

    agents = stacked.Learned(3, 2, args, losses, [0, 1], [0.1, 0.5], {})
    agent = agents.agent(2, lambda: edq.Agent(3, 2, args))  # seed 1, weight 0.1
    batch, noise = batch_of()
    for step in range(1000, 1002):  # from here on the actor is averaged
        agents.done = step
        agents.update(*(type(x)(*(torch.stack([y, y]) for y in x)) for x in (batch, noise)))
        edq.update(agent, batch, noise, args, torch.tensor(step))
    for net in ("score", "score_ema", "q", "target_q"):
        for name, weight in getattr(agent, net).named_parameters():
            assert torch.allclose(agents.weights[net][name][2], weight, atol=1e-5), (net, name)


def test_value_at_equal_entropy_is_read_off_the_line_of_noise():
    rows = [
        dict(arm="none", coef=0.0, seed=0, entropy=-1.0, value=0.0),
        dict(arm="noise", coef=0.3, seed=0, entropy=1.0, value=1.0),
        dict(arm="chain", coef=0.1, seed=0, entropy=0.0, value=0.8),
        dict(
            arm="chain", coef=0.3, seed=0, entropy=2.0, value=0.8
        ),  # more than noise reaches: no comparison
    ]
    assert entropy.against_noise(rows, "chain", 0.1, "value") == pytest.approx([0.3])
    assert len(entropy.against_noise(rows, "chain", 0.3, "value")) == 0
