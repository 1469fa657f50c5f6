"""Schedules and samplers that the scripts do not hold.

The scripts know the cosine and the DDPM schedule and draw by the posterior step; here are three
more schedules, and Euler steps of the reverse SDE and of its probability-flow ODE.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import edq_mujoco as edq

SCHEDULES = ("cosine", "linear", "constant", "vp")
SAMPLERS = ("posterior", "sde", "ode")


def rates(schedule: str, T: int) -> Tensor:
    """theta_t of a schedule up to a factor, `[T]` in float64."""
    t = torch.arange(1, T + 1, dtype=torch.float64)  # the paper's
    if schedule == "linear":
        return torch.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T, dtype=torch.float64)
    if schedule == "constant":
        return torch.ones(T, dtype=torch.float64)
    if schedule == "vp":
        return 1 - torch.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2)
    angle = (t / (T + 1) + 0.008) / 1.008 * math.pi / 2  # cosine
    f = torch.cos(angle) / math.cos(0.004 / 1.008 * math.pi)
    return 1 - f**2


class ScheduledSDE(edq.MeanRevertingSDE):
    """The scripts' SDE with any of SCHEDULES; tables `[T]` as there (Eq. 6, 7)."""

    def __init__(self, num_steps: int, schedule: str = "cosine"):
        super().__init__(num_steps)
        theta = rates(schedule, num_steps)
        theta = theta * (
            math.log(1000) / theta.sum()
        )  # so e^(-theta_bar_T) = 0.001: a_0 is forgotten
        bar = theta.cumsum(0)
        before = torch.cat([bar.new_zeros(1), bar[:-1]])  # theta_bar_{t-1}
        step_var = -torch.expm1(-2 * theta)
        var = -torch.expm1(-2 * bar)
        var_before = -torch.expm1(-2 * before)
        self.theta_dt = theta.float()
        self.theta_bar = bar.float()
        self.sigma = var.sqrt().float()
        self.w_t = (torch.exp(-theta) * var_before / var).float()
        self.w_0 = (torch.exp(-before) * step_var / var).float()
        self.posterior_var = (step_var * var_before / var).float()


def reverse_sde_step(
    sde: edq.MeanRevertingSDE,
    a_t: Tensor,
    t: int,
    eps: Tensor,
    z: Tensor,
) -> Tensor:
    """One Euler step of the reverse SDE (Eq. 3) with score -eps / sigma_t; the last adds no
    noise.
    """
    theta = sde.theta_dt[t]
    mean = a_t + theta * a_t - 2 * theta * eps / sde.sigma[t]
    return mean + torch.sqrt(2 * theta) * z if t > 0 else mean


def ode_step(sde: edq.MeanRevertingSDE, a_t: Tensor, t: int, eps: Tensor) -> Tensor:
    """One Euler step of the probability-flow ODE of Eq. 3."""
    theta = sde.theta_dt[t]
    return a_t + theta * a_t - theta * eps / sde.sigma[t]


def sample(
    actor: Callable,
    sde: edq.MeanRevertingSDE,
    obs: Tensor,
    sampler: str,
    noise: Tensor,
) -> Tensor:
    """`sample_actions` with a sampler by name; noise `[T, ..., A]`, laid out as there."""
    if sampler == "posterior":
        return edq.sample_actions(actor, sde, obs, noise=noise)
    a_t = noise[0]
    for t in reversed(range(sde.num_steps)):
        eps = actor(a_t, t, obs)
        if sampler == "sde":
            a_t = reverse_sde_step(sde, a_t, t, eps, noise[-t])
        else:
            a_t = ode_step(sde, a_t, t, eps)
    return a_t.clamp(-1, 1)
