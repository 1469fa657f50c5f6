"""The entropy study: estimators and measures against closed forms, Monte Carlo and naive loops."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import edq_mujoco as edq
from results.studies.entropy import estimators, tables
from results.studies.entropy.arms import ARMS, arm_losses
from results.studies.entropy.known import ARGS

pytestmark = pytest.mark.study
SDE = edq.MeanRevertingSDE(5)


@pytest.fixture(scope="module")
def net():
    """A small network that has learned nothing, in 2-D."""
    torch.manual_seed(3)
    return edq.NoiseMLP(3, 2, 16)


def linear(k: float):
    """A network whose predicted action is k e^-theta_bar_t a_t: all laws are Gaussian."""

    def predict(a_t, t, obs):
        keep = torch.exp(-SDE.theta_bar[t])
        return (a_t - k * keep**2 * a_t) / SDE.sigma[t]

    return predict


def gaussian_entropy(std: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * std**2)


def chain_noise(n: int, A: int = 1) -> torch.Tensor:
    return torch.randn(6, n, A, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_log_det_is_that_of_the_jacobian(net):
    x = torch.randn(6, 2)
    obs = torch.randn(6, 3)
    _, volume = estimators.log_det(lambda a: net(a, 1, obs) + a, x)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda a, i=i: net(a, 1, obs[i]) + a, x[i])
        expected = math.log(abs(float(torch.linalg.det(jacobian))))
        assert volume[i].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_chain_with_jacobian_is_near_the_exact_entropy_from_below(k):
    """Slack of 0.01 to 0.1 nats, where `chain` with std 0.05 in its last step hides a nat."""
    n = 50_000
    said = estimators.chain_jacobian(SDE, linear(k), torch.zeros(n, 1), chain_noise(n)).mean()
    var = 1.0
    for t in reversed(range(5)):
        slope = float(SDE.w_t[t] + SDE.w_0[t] * k * torch.exp(-SDE.theta_bar[t]))
        var = slope**2 * var + float(SDE.posterior_var[t])
    exact = gaussian_entropy(math.sqrt(var))
    assert exact - 0.12 < float(said) < exact + 0.015


def test_log_det_of_the_deterministic_sampler_is_the_entropy_of_its_image():
    """Linear networks: the map is linear, its image Gaussian."""
    k = 0.6
    slope = 1.0
    for t in reversed(range(5)):
        keep = float(torch.exp(-SDE.theta_bar[t]))
        a0 = k * keep
        eps = (1 - k * keep**2) / float(SDE.sigma[t])
        if t > 0:
            a0 = float(torch.exp(-SDE.theta_bar[t - 1])) * a0 + float(SDE.sigma[t - 1]) * eps
        slope *= a0
    n = 50_000
    said = estimators.ddim_log_det(SDE, linear(k), torch.zeros(n, 1), chain_noise(n)).mean()
    assert float(said) == pytest.approx(gaussian_entropy(slope), abs=0.015)


def test_path_kl_is_a_sum_of_gaussian_kls(net):
    other = copy.deepcopy(net)
    nn.init.normal_(other.layers[-1].bias)
    obs = torch.randn(7, 3)
    noise = torch.randn(6, 7, 2)
    total = torch.zeros(7)
    a_t = noise[0]
    with torch.no_grad():
        assert float(estimators.path_kl(SDE, net, net, obs, noise, 0.2).abs().max()) == 0
        for t in reversed(range(5)):
            std = float(SDE.posterior_var[t].sqrt()) if t else 0.2
            laws = []
            for actor in (net, other):
                a0 = SDE.predict_a0(a_t, t, actor(a_t, t, obs)).clamp(-1, 1)
                laws.append(torch.distributions.Normal(SDE.posterior_mean(a_t, a0, t), std))
            total += torch.distributions.kl_divergence(*laws).sum(-1)
            a_t = laws[0].mean + std * noise[5 - t]
        said = estimators.path_kl(SDE, net, other, obs, noise, 0.2)
    torch.testing.assert_close(said, total, rtol=1e-4, atol=1e-5)


def test_quad_is_the_released_estimate_without_its_noise():
    aT = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    for a0 in (0.0, 0.4, -1.3):
        x = torch.full_like(aT, a0)
        mean = float(edq.entropy_estimate(SDE, x, aT).mean())
        assert float(estimators.quad(x)[0]) == pytest.approx(mean, abs=1e-4)


def test_bridge_is_bayes_and_blind():
    """-log p(a_1 | a_T, a_0) from the joint Gaussian of (a_1, a_T) given a_0; no gradient."""
    first = float(SDE.theta_bar[0])
    total = float(SDE.theta_bar[-1])
    var_1 = 1 - math.exp(-2 * first)
    var_T = 1 - math.exp(-2 * total)
    cov = math.exp(-(total - first)) * var_1
    var = var_1 - cov**2 / var_T
    for a0, aT in ((0.0, 0.3), (0.5, -1.0), (1.0, 2.0)):
        x = torch.full((1, 1), a0, requires_grad=True)
        got = estimators.bridge_entropy(SDE, x, torch.full((1, 1), aT))
        mean = math.exp(-first) * a0 + cov / var_T * (aT - math.exp(-total) * a0)
        off = math.exp(-first) * a0 - mean
        expected = 0.5 * math.log(2 * math.pi * var) + off**2 / (2 * var)
        assert got.item() == pytest.approx(expected, abs=2e-5)
        (grad,) = torch.autograd.grad(got.sum(), x)
        assert abs(float(grad)) < 2e-3  # float32; 1e-3 in the exponent's cross term


def test_bridge_against_a_sampled_histogram():
    """Paths a_0 -> a_1 -> a_T that end near a given a_T: their density at e^(-theta_1) a_0."""
    sde = edq.MeanRevertingSDE(2)
    g = torch.Generator().manual_seed(0)
    a0 = torch.full((1_000_000, 1), 0.5)
    a1 = sde.perturb(a0, 0, torch.randn(a0.shape, generator=g))
    keep = math.exp(-float(sde.theta_dt[1]))
    aT = keep * a1 + math.sqrt(1 - keep**2) * torch.randn(a0.shape, generator=g)
    chosen = a1[(aT - 0.4).abs() < 0.05]
    point = math.exp(-float(sde.theta_dt[0])) * 0.5
    half = 0.15
    density = float(((chosen - point).abs() < half).float().mean()) / (2 * half)
    got = estimators.bridge_entropy(sde, torch.tensor([[0.5]]), torch.tensor([[0.4]]))
    assert float(got) == pytest.approx(-math.log(density), abs=0.05)  # standard error 0.015


def test_entropy_of_samples_by_neighbours_and_by_a_mixture():
    x = 0.3 * np.random.default_rng(0).normal(size=(2000, 2))
    exact = 2 * gaussian_entropy(0.3)
    assert estimators.knn_entropy(x) == pytest.approx(exact, abs=0.1)
    mixture = estimators.mixture_entropy(x)  # overlapping parts count as if apart: at most log 3
    assert exact < mixture < exact + 1.1


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_adds_its_term_and_nothing_else(arm, net):
    """With weight 0 an arm is `none`; with weight 1 the loss differs by the term that is logged."""
    g = torch.Generator().manual_seed(5)
    obs = torch.randn(16, 3, generator=g)
    action = torch.randn(16, 2, generator=g).tanh()
    batch = edq.Transitions(obs, action, torch.zeros(16), obs, torch.zeros(16))
    t = torch.randint(5, (16,), generator=g)
    eps = torch.randn(16, 2, generator=g)
    aT = torch.randn(16, 2, generator=g)
    noise = edq.Noise(None, t, eps, aT, chain_noise(16, 2))
    args = replace(ARGS, pessimism="lcb", num_critics=4)
    agent = SimpleNamespace(sde=SDE, actor=net, alpha=None, chain_std=0.2)
    agent.q = edq.QEnsemble(3, 2, 4, 16)
    agent.clone = copy.deepcopy(net)
    nn.init.normal_(agent.clone.layers[-1].bias)

    def losses(arm: str, coef: float, noise_std: float = 0.0) -> dict[str, float]:
        agent.noise_std = torch.tensor(noise_std)
        with torch.no_grad():
            out = arm_losses(arm, agent, batch, noise, args, torch.tensor(coef))
        return {name: float(value.mean()) for name, value in out.items()}

    none = losses("none", 0.0)
    one = losses(arm, 1.0)
    term = one.get("losses/entropy", 0.0)
    assert one["losses/actor"] == pytest.approx(none["losses/actor"] + term, rel=1e-5)
    if arm in ("none", "gmm"):
        assert term == 0
    else:
        assert term != 0
    if arm not in ("none", "gmm", "chain"):  # chain's weight is at least 1e-4
        zero = losses(arm, 0.0)["losses/actor"]
        assert zero == pytest.approx(none["losses/actor"], rel=1e-6)
    if arm == "gmm":  # noise on the improved action changes the Q term, and nothing else
        noisy = losses(arm, 1.0, 0.5)
        assert noisy["losses/diffusion"] == none["losses/diffusion"]
        assert noisy["losses/q"] != none["losses/q"]


def test_value_at_equal_entropy_is_read_off_the_line_of_noise():
    rows = [
        dict(arm="none", coef=0.0, seed=0, entropy=-1.0, value=0.0),
        dict(arm="noise", coef=0.3, seed=0, entropy=1.0, value=1.0),
        dict(arm="chain", coef=0.1, seed=0, entropy=0.0, value=0.8),
        dict(arm="chain", coef=0.3, seed=0, entropy=2.0, value=0.8),  # more than noise reaches
    ]
    assert tables.against_noise(rows, "chain", 0.1, "value") == pytest.approx([0.3])
    assert len(tables.against_noise(rows, "chain", 0.3, "value")) == 0


def test_headline_is_a_plain_mean_of_the_records():
    rows = tables.load_all(ROOT / "results" / "records")["bandit"]
    best = [row["value_50"] for row in rows if (row["arm"], row["coef"]) == ("chain", 0.1)]
    gains = []
    for seed in range(20):
        by_arm = {(r["arm"], r["coef"]): r["entropy"] for r in rows if r["seed"] == seed}
        gains.append(by_arm["chain", 0.1] - by_arm["none", 0.0])
    line = tables.headline(ROOT / "results" / "records").splitlines()[2]
    assert line.startswith("| bandit |")
    assert f"{sum(gains) / 20:+.2f} ±" in line
    assert line.endswith(f"{sum(best) / 20:.2f} |")
