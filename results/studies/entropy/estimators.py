"""Entropy estimators of a diffusion policy that the scripts do not have.

obs `[B, S]`, noise `[T + 1, B, A]` -> value `[B]`, nats, summed over action dimensions.
"""

import math
from collections.abc import Callable

import ennemi
import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

import edq_mujoco as edq

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def bridge_entropy(sde: edq.MeanRevertingSDE, a0: Tensor, aT: Tensor) -> Tensor:
    """The paper's Eq. 14 to the letter: -log p(a_1 | a_T, a_0) by Bayes' rule, `[B, A]` -> `[B]`.

    It is a constant: the density of a_1 between a known a_0 and a known a_T is the same Gaussian
    whatever the policy is. So its gradient in the policy vanishes.
    """
    first = sde.theta_bar[0]
    last = sde.theta_bar[-1]
    a1 = torch.exp(-first) * a0
    to_first = edq.log_transition(a1, a0, first)
    first_to_last = edq.log_transition(aT, a1, last - first)
    to_last = edq.log_transition(aT, a0, last)
    return -(first_to_last + to_first - to_last).sum(-1)


def quad(a0: Tensor) -> Tensor:
    """What the released estimate comes to in closed form (T = 5, mean over a_T)."""
    return (0.7786518 + 0.0627517 * a0**2).sum(-1)


def log_det(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """function(x) `[B, A]` and log |det of its Jacobian| `[B]`, floored at log 0.001."""
    out, pull_back = torch.func.vjp(function, x)
    A = x.shape[-1]
    rows = []
    for unit in torch.eye(A):
        (row,) = pull_back(unit.expand_as(out))
        rows.append(row)
    jacobian = torch.stack(rows, -2)  # [B, A, A]
    if A == 1:
        det = jacobian[..., 0, 0]
    else:
        det = torch.linalg.det(jacobian)
    return out, 0.5 * torch.log(det**2 + 1e-6)


def chain_jacobian(
    sde: edq.MeanRevertingSDE,
    actor: Callable,
    obs: Tensor,
    noise: Tensor,
) -> Tensor:
    """H(a_1) bounded by the chain above it, plus E log |det d a_0 / d a_1|.

    This is the entropy without noise in the last step; its second part is exact if a_1 -> a_0 is
    one-to-one. Where a_0 leaves the box nothing is counted: the clamp would make it an atom, and
    the gradient would push further out.
    """
    a_t = noise[0]
    bound = HALF_LOG_2PI + 0.5 * a_t**2
    for t in reversed(range(1, sde.num_steps)):
        z = noise[sde.num_steps - t]
        std = sde.posterior_var[t].sqrt()
        eps = actor(a_t, t, obs)
        a0 = sde.predict_a0(a_t, t, eps).clamp(-1, 1)
        mean = sde.posterior_mean(a_t, a0, t)
        a_prev = mean + std * z
        bound = bound + edq.log_transition(a_t, a_prev, sde.theta_dt[t])
        surprise = HALF_LOG_2PI + 0.5 * z**2 + std.log()  # -log density of this step
        bound = bound + surprise
        a_t = a_prev

    def last_step(a_1: Tensor) -> Tensor:
        eps = actor(a_1, 0, obs)
        return sde.predict_a0(a_1, 0, eps)

    a0, volume = log_det(last_step, a_t)
    inside = (a0.abs() < 1).all(-1)
    return bound.sum(-1) + torch.where(inside, volume, 0.0)


def ddim_log_det(
    sde: edq.MeanRevertingSDE,
    actor: Callable,
    obs: Tensor,
    noise: Tensor,
) -> Tensor:
    """Entropy of the deterministic sampler by its Jacobians.

    a_{t-1} = C a_0 + sqrt(1 - C^2) eps, with C = e^-theta_bar_{t-1}.
    """
    a_t = noise[0]
    entropy = (HALF_LOG_2PI + 0.5 * a_t**2).sum(-1)
    for t in reversed(range(sde.num_steps)):

        def step(a: Tensor, t: int = t) -> Tensor:
            eps = actor(a, t, obs)
            a0 = sde.predict_a0(a, t, eps)
            if t == 0:
                return a0
            keep = torch.exp(-sde.theta_bar[t - 1])
            return keep * a0 + sde.sigma[t - 1] * eps

        a_t, volume = log_det(step, a_t)
        entropy = entropy + volume
    return entropy


def path_kl(
    sde: edq.MeanRevertingSDE,
    actor: Callable,
    clone: Callable,
    obs: Tensor,
    noise: Tensor,
    last_std: float,
) -> Tensor:
    """Sum over the chain of KL(reverse step || the clone's), both of one variance; `[B]`."""
    a_t = noise[0]
    total = torch.zeros_like(a_t)
    for t in reversed(range(sde.num_steps)):
        if t > 0:
            std = sde.posterior_var[t].sqrt()
        else:
            std = torch.full_like(sde.sigma[0], last_std)
        eps = actor(a_t, t, obs)
        clones_eps = clone(a_t, t, obs)
        a0 = sde.predict_a0(a_t, t, eps).clamp(-1, 1)
        clones_a0 = sde.predict_a0(a_t, t, clones_eps).clamp(-1, 1)
        distance = sde.w_0[t] * (a0 - clones_a0)  # of the two means
        total = total + 0.5 * (distance / std) ** 2
        mean = sde.posterior_mean(a_t, a0, t)
        z = noise[sde.num_steps - t]
        a_t = mean + std * z
    return total.sum(-1)


# === From samples, without a gradient; actions `[n, A]` ===
def mixture_entropy(actions: np.ndarray) -> float:
    """DACER's: three Gaussians are fitted; -sum w log w + sum w H_k, as if they did not overlap."""
    fit = GaussianMixture(3, random_state=0).fit(actions)
    _, log_dets = np.linalg.slogdet(fit.covariances_)
    constant = actions.shape[1] * math.log(2 * math.pi * math.e)
    parts = 0.5 * (constant + log_dets)
    weights = fit.weights_
    entropy = weights * (parts - np.log(weights))
    return float(entropy.sum())


def knn_entropy(actions: np.ndarray) -> float:
    """Kozachenko-Leonenko with three neighbours (library ennemi); ties are parted by 1e-6."""
    noise = np.random.default_rng(0).normal(size=actions.shape)
    parted = actions + 1e-6 * noise
    return float(ennemi.estimate_entropy(parted, k=3, multidim=True))
