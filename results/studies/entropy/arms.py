"""Arms: what each entropy term adds to the scripts' loss of the actor.

none       no entropy term
noise      none, acting with N(0, coef^2) added to each action: best-of-50 acting turns any spread
           into reward
released   the authors' code (`entropy_estimate`); in closed form 0.7787 + 0.0628 a_0^2 a dimension
quad       that closed form itself
bridge     the paper's Eq. 14 to the letter; a constant
score      gradient of the entropy of the policy smoothed to t = 1: a_1 . stop_grad(score(a_1))
chain      lower bound by the forward process (`chain_entropy_bound`; after DIME, Celik et al. 2025)
chainJ     chain for t >= 2, and the exact change of variables log |det d a_0 / d a_1| for the last,
           noiseless step
logdet     change of variables through all steps of the deterministic sampler (DDIM), as in FLAME,
           FMER, GenPO
gmm        DACER (Wang et al. 2024): no gradient; a mixture of Gaussians fitted to 200 actions gives
           an entropy, which drives the size of noise that is added to the action, toward -0.9 nats
           per dimension
pathkl     BDPO (Gao et al. 2025): KL of each reverse step to that of a cloned policy, along the
           policy's own chain
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor

import edq_mujoco as edq
from results.common.small_agents import (
    ActorLosses,
    SmallAgents,
    raw_actions_of_all,
)
from results.studies.entropy.estimators import (
    bridge_entropy,
    chain_jacobian,
    ddim_log_det,
    mixture_entropy,
    path_kl,
    quad,
)

IN_SCRIPTS = ("none", "released", "chain")
ARMS = [
    "none",
    "released",
    "bridge",
    "chain",
    "quad",
    "score",
    "chainJ",
    "logdet",
    "gmm",
    "pathkl",
]


def one_step(agent, batch, noise) -> Tensor:
    """The predicted action of `actor_losses`, unclamped; `[B, A]`."""
    a_t = agent.sde.perturb(batch.action, noise.t, noise.eps)
    eps = agent.actor(a_t, noise.t, batch.obs)
    return agent.sde.predict_a0(a_t, noise.t, eps)


def normalised(entropy: Tensor) -> Tensor:
    """The term of an estimate in the released code's scale."""
    return -entropy.mean() / entropy.abs().mean().detach()


def score_term(agent, batch, noise) -> Tensor:
    """a_1 . stop_gradient(score(a_1)), whose gradient is that of the entropy at t = 1."""
    a0 = one_step(agent, batch, noise).clamp(-1, 1)
    a_1 = agent.sde.perturb(a0, 0, noise.aT)
    with torch.no_grad():
        eps = agent.actor(a_1, 0, batch.obs)
        score = -eps / agent.sde.sigma[0]
    return (a_1 * score).sum(-1).mean()


def term_of(arm: str, agent, batch, noise) -> tuple[Tensor, Tensor]:
    """The term to minimise, before its weight, and the arm's entropy estimate; nats a dimension."""
    A = batch.action.shape[-1]
    sde = agent.sde
    if arm == "score":
        term = score_term(agent, batch, noise) / A
        return term, 0 * term
    if arm in ("quad", "bridge"):
        a0 = one_step(agent, batch, noise)
        entropy = quad(a0) if arm == "quad" else bridge_entropy(sde, a0, noise.aT)
        return normalised(entropy), entropy.mean() / A
    chain = (batch.obs, noise.chain)
    if arm == "chainJ":
        entropy = chain_jacobian(sde, agent.actor, *chain)
    elif arm == "logdet":
        entropy = ddim_log_det(sde, agent.actor, *chain)
    else:  # pathkl
        entropy = -path_kl(sde, agent.actor, agent.clone, *chain, agent.chain_std)
    mean = entropy.mean() / A
    return -mean, mean


class NoisyQ:
    """Critics that see the action with noise on it."""

    def __init__(self, q, noise: Tensor):
        self.q = q
        self.noise = noise

    def frozen(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.q.frozen(obs, (action + self.noise).clamp(-1, 1))


def arm_losses(arm: str, agent, batch, noise, args: edq.Args, coef) -> dict[str, Tensor]:
    """The scripts' `actor_losses` with the entropy term of an arm, weighted by coef."""
    own = arm if arm in IN_SCRIPTS else "none"
    weight = 0.0 if own == "none" else coef
    args = replace(args, entropy_estimator=own, ent_coef=weight)
    view = SimpleNamespace(
        sde=agent.sde,
        actor=agent.actor,
        q=getattr(agent, "q", None),
        alpha=None,
        chain_std=agent.chain_std,
    )
    if arm == "chain":  # as a learned one would come: a tensor
        view.alpha = lambda obs: coef + 0 * obs[:, 0]
    if arm == "gmm":  # the policy that acts, and is improved, has noise on its action
        view.q = NoisyQ(agent.q, agent.noise_std * noise.aT)
    out = edq.actor_losses(view, batch, noise, args)
    if arm in IN_SCRIPTS or arm == "gmm":
        return out
    term, entropy = term_of(arm, agent, batch, noise)
    out["losses/entropy"] = (coef * term).detach()
    out["policy/entropy"] = entropy.detach()
    out["losses/actor"] = out["losses/actor"] + coef * term
    return out


def losses_of(arm: str) -> ActorLosses:
    """The losses of one agent, for `SmallAgents`."""

    def losses(agent, batch, noise, args, coef):
        return arm_losses(arm, agent, batch, noise, args, coef)

    return losses


class ActingNoise:
    """gmm: the std of the noise on the actions of N agents, driven by their entropy.

    It starts at 3 coef. Each adaptation is one Adam step on its logarithm: less noise where the
    entropy of 200 actions a state is above -0.9 nats a dimension, else more. DACER makes a hundred
    adaptations in a run.
    """

    def __init__(self, coef: Tensor):
        self.coef = coef  # [N]
        self.log_alpha = torch.full_like(coef, math.log(3.0)).requires_grad_()
        self.adam = torch.optim.Adam([self.log_alpha], lr=0.03)
        self.generator = torch.Generator().manual_seed(2)
        self.std = 3 * coef

    def adapt(self, agents: SmallAgents, obs: Tensor) -> None:
        """One step, in the states obs `[n, S]`; `std` is changed in place."""
        wide = obs.repeat_interleave(200, 0)
        action = raw_actions_of_all(agents, wide, self.generator)  # [N, n * 200, A]
        noise = torch.randn(action.shape, generator=self.generator)
        action = (action + self.std.view(-1, 1, 1) * noise).clamp(-1, 1)
        by_state = action.unflatten(1, (len(obs), 200)).numpy()
        fitted = [[mixture_entropy(a) for a in states] for states in by_state]
        entropy = torch.tensor(fitted, dtype=torch.float32).mean(1)  # [N]
        self.log_alpha.grad = entropy + 0.9 * action.shape[-1]
        self.adam.step()
        self.std.copy_(self.coef * self.log_alpha.detach().exp())
