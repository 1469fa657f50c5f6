"""Small agents trained at once, beside the scripts' updates; an action's law, beside samples."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import edq_mujoco as edq
from results.common import small_agents
from results.common.known_tasks import (
    CENTRES,
    EDGES,
    TASKS,
    action_law,
    law_figures,
)
from results.common.small_agents import SmallAgents, act, raw_actions
from results.studies.entropy.arms import losses_of

pytestmark = pytest.mark.study
ARGS = edq.Args(
    num_critics=3,
    hidden_dim=16,
    batch_size=8,
    diffusion_loss="noise",
    action_clip=True,
    entropy_estimator="none",
    max_q_backup=False,
    precision="fp32",
)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Nothing is compiled: that takes longer than these updates."""
    monkeypatch.setattr(small_agents, "compiled", lambda function, *example: function)
    torch.manual_seed(0)


def draws(seed: int, obs_dim: int = 3, act_dim: int = 2) -> tuple[edq.Transitions, edq.Noise]:
    """A batch and the noise of an update, as `draw_batch` gives them."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(20, obs_dim, generator=g)
    action = torch.rand(20, act_dim, generator=g) * 2 - 1
    reward = torch.randn(20, generator=g)
    data = edq.Transitions(obs, action, reward, obs.flip(0), torch.zeros(20))
    return edq.draw_batch(data, ARGS, g)


def together(*parts: tuple) -> tuple[edq.Transitions, edq.Noise]:
    """Batches and noises of several seeds, stacked."""
    batches, noises = zip(*parts)
    batch = edq.Transitions(*(torch.stack(x) for x in zip(*batches)))
    return batch, edq.Noise(*(torch.stack(x) for x in zip(*noises)))


@pytest.mark.parametrize("arm", ["none", "released", "chain"])
@pytest.mark.parametrize("pessimism", ["lcb", "min"])
def test_agents_trained_at_once_are_those_of_the_scripts(arm, pessimism):
    """Updates 999 to 1,001 of one row equal the scripts', the EMA actor included."""
    target = "min" if pessimism == "min" else "own"
    args = replace(ARGS, pessimism=pessimism, target=target, ema_decay=0.5, tau=0.5)
    agents = SmallAgents(args, 3, 2, [0, 1], [0.1, 0.5], losses_of(arm))
    own = replace(args, entropy_estimator=arm, ent_coef=0.1)
    agent = agents.as_script_agent(2, edq.Agent(3, 2, own))  # seed 1, weight 0.1
    for step in (999, 1000, 1001):
        agents.updates = step
        parts = [draws(10 * seed + step) for seed in (0, 1)]
        agents.update(*together(*parts))
        edq.update(agent, *parts[1], own, step)
    for net, weights in agents.weights.items():
        for name, weight in getattr(agent, net).named_parameters():
            torch.testing.assert_close(weights[name][2], weight, atol=2e-5, rtol=0)


def test_ema_rule():
    """The scripts' rule by default; another where it is asked for."""
    for rule, moved in (({}, False), ({"ema_start": 0, "ema_every": 1}, True)):
        agents = SmallAgents(ARGS, 3, 2, [0], [0.0], losses_of("none"), **rule)
        before = agents.weights["actor_ema"]["layers.0.weight"].clone()
        agents.update(*together(draws(0)))
        after = agents.weights["actor_ema"]["layers.0.weight"]
        assert bool((before != after).any()) == moved


def test_training_with_a_known_q_is_that_of_each_actor_alone():
    task = TASKS["toy"]
    args = replace(ARGS, num_critics=1, pessimism="min")
    agents = SmallAgents(args, 2, 1, [0, 1], [0.01, 0.3], losses_of("chain"), known_q=task.q)
    actor = edq.NoiseMLP(2, 1, args.hidden_dim)
    actor.load_state_dict(agents.actor(3).weights)  # seed 1, weight 0.3
    optimiser = torch.optim.Adam(actor.parameters(), lr=args.actor_lr)
    agent = SimpleNamespace(sde=agents.sde, actor=actor, alpha=None, chain_std=0.2)
    agent.q = small_agents.KnownQ(task.q)
    own = replace(args, entropy_estimator="chain", ent_coef=0.3)
    for step in range(3):
        parts = [draws(10 * seed + step, 2, 1) for seed in (0, 1)]
        agents.update(*together(*parts))
        loss = edq.actor_losses(agent, *parts[1], own)["losses/actor"]
        edq.minimise(loss, actor, optimiser, args.grad_clip)
    for name, weight in actor.named_parameters():
        torch.testing.assert_close(agents.weights["actor"][name][3], weight, atol=2e-5, rtol=0)


@pytest.mark.parametrize("selection", ["softmax", "argmax"])
@pytest.mark.parametrize("K", [1, 12])
def test_acting_is_the_scripts_own(selection, K):
    args = replace(ARGS, num_candidates=K, action_selection=selection)
    agent = edq.Agent(3, 2, args)
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(7, 3, generator=g)
    noise = torch.randn(5, 7, K, 2, generator=g)
    u = torch.rand(7, generator=g)
    with torch.no_grad():
        own = act(agent, obs, noise, u, args)
    torch.testing.assert_close(own, edq.act(agent, obs, noise, u, args))


# === The law of a sampled action ===
class LinearActor(nn.Module):
    """A network whose predicted action is k e^-theta_bar_t a_t: all laws are Gaussian."""

    act_dim = 1

    def __init__(self, k: float):
        super().__init__()
        self.k = k
        self.sde = edq.MeanRevertingSDE(5)

    def forward(self, a_t, t, obs):
        keep = torch.exp(-self.sde.theta_bar[t])
        return (a_t - self.k * keep**2 * a_t) / self.sde.sigma[t]

    def std(self) -> float:
        """Of the action, by the recursion of the variance."""
        sde = self.sde
        var = 1.0
        for t in reversed(range(5)):
            slope = sde.w_t[t] + sde.w_0[t] * self.k * torch.exp(-sde.theta_bar[t])
            var = float(slope) ** 2 * var + float(sde.posterior_var[t])
        return math.sqrt(var)


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_law_of_a_linear_chain_is_the_known_gaussian(k):
    actor = LinearActor(k)
    law = action_law(actor, actor.sde, torch.zeros(1))
    assert float((law * CENTRES).sum()) == pytest.approx(0, abs=1e-3)
    assert float((law * CENTRES**2).sum().sqrt()) == pytest.approx(actor.std(), rel=0.01)


def test_law_agrees_with_samples():
    torch.manual_seed(0)
    sde = edq.MeanRevertingSDE(5)
    actor = edq.NoiseMLP(1, 1, 32)
    nn.init.normal_(actor.layers[-1].weight, std=0.3)  # an untrained one is nearly Gaussian
    obs = torch.zeros(50_000, 1)
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(5, 50_000, 1, generator=g)
    with torch.no_grad():
        raw = raw_actions(actor, sde, obs, noise)
        clamped = edq.sample_actions(actor, sde, obs, noise=noise)
    assert torch.equal(raw.clamp(-1, 1), clamped)
    for std in (0.0, 0.3):
        law = action_law(actor, sde, torch.zeros(1), std)
        drawn = raw + std * torch.randn(raw.shape, generator=g)
        for edge in (-0.8, -0.2, 0.3, 0.9):
            below = float(law[EDGES[1:] <= edge + 1e-6].sum())
            assert below == pytest.approx(float((drawn < edge).float().mean()), abs=0.015)


def test_figures_of_a_uniform_law():
    """Entropy log 2; the best of 50 by drawing; 0.3 around each of two modes is on the data."""
    task = TASKS["bandit"]
    law = (CENTRES.abs() < 1).float()
    figures = law_figures(task, law / law.sum())
    g = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 50, generator=g) * 2 - 1
    value = task.q(torch.zeros(200_000, 1), draws.reshape(-1, 1)).view(4000, 50)
    assert figures["entropy"] == pytest.approx(math.log(2), abs=1e-3)
    assert figures["value_50"] == pytest.approx(float(value.amax(1).mean()), abs=5e-3)
    assert figures["value_1"] == pytest.approx(float(value.mean()), abs=5e-3)
    assert figures["rare_share"] == pytest.approx(0.5, abs=2e-3)
    assert figures["off_data"] == pytest.approx(0.4, abs=5e-3)
    assert figures["off_box"] == 0
