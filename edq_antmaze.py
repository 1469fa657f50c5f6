# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "gymnasium==1.4.0",
#     "gymnasium-robotics==1.4.2",
#     "mujoco==3.3.7",
#     "minari[hdf5,hf]==0.5.4",
#     "tyro==1.0.17",
#     "tqdm==4.70.1",
#     "wandb==0.31.0",
#     "moviepy==2.2.1",
# ]
# ///
"""EDQ on the Adroit hand and the Franka kitchen: offline RL with an entropy-regularised diffusion policy and a Q-ensemble.

The problem: learn to act from a fixed dataset. Whatever the Q-function believes about actions that are not in the data
cannot be tested, so a policy that simply maximises Q runs off to where Q is wrong.
The idea, in three parts: (1) the policy is a diffusion model, so it can hold all the modes of the data, and it walks
back from noise to an action in five steps, because every conditional of its mean-reverting SDE is a known Gaussian;
(2) an entropy term keeps it from shrinking onto one mode; (3) M Q-networks, each with its own target, disagree where
there is no data, and the policy climbs their lower confidence bound (LCB) instead of their mean.

One update, on a batch (s, a, r, s') of the data:
    a' ~ policy(s')                                      reverse diffusion, averaged (EMA) weights
    y_m = r + gamma Q'_m(s', a')                         one target for each of the M members
    critic: least squares Q_m(s, a) -> y_m
    t ~ {1..T}, eps ~ N(0, I)
    a_t = e^(-theta_bar_t) a + sigma_t eps               noise the data action
    a_0 = (a_t - sigma_t eps_net(a_t, t, s)) e^(theta_bar_t)      and predict it back
    LCB = mean_m Q_m(s, a_0) - beta std_m Q_m(s, a_0)
    actor: diffusion loss - eta LCB / |Q| - entropy term
    averages: EMA of the actor, Polyak average of the critics

Paper: Zhang, Luo, Sjolund, Schon, Mattsson, "Entropy-regularized Diffusion Policy with Q-Ensembles for Offline
Reinforcement Learning", NeurIPS 2024, arXiv 2402.04080. Numbers in brackets are its equations; "released" is the
authors' code. Reading guide, metrics and differences: README.md.

    python edq_adroit.py --env-id pen-human --seed 1
    python edq_adroit.py --evaluate runs/<run folder> --capture-video
"""

import argparse
import copy
import csv
import difflib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import gymnasium as gym
import gymnasium_robotics
import minari
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from minari.storage.datasets_root_dir import get_dataset_path
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)


@dataclass
class Args:
    """Train EDQ, evaluate it in the simulator, or score a saved run. Values shown are those of the chosen task."""

    env_id: str = "pen-human"
    """task, by the paper's name: {pen, door, hammer, relocate}-{human, cloned, expert}, kitchen-{complete, partial, mixed}"""
    # --- shared: arguments ---
    preset: Literal["edq", "edq-paper", "diffusion-ql", "diffusion-bc"] = "edq"
    """edq: the authors' code; edq-paper: the paper's Section 4.1; the others: baselines (table PRESETS)"""

    # Experiment
    exp_name: str = "edq"
    """a name for this kind of run; part of the run folder's name"""
    seed: int = 0
    """seed of network weights, batches, noise and evaluation episodes"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is one"""
    torch_deterministic: bool = True
    """let torch choose only deterministic kernels (matters on a GPU)"""
    track: bool = False
    """log to Weights & Biases as well"""
    wandb_project_name: str = "edq"
    """Weights & Biases project"""
    wandb_entity: str | None = None
    """Weights & Biases entity (team)"""
    capture_video: bool = False
    """write mp4s of the first three episodes of the last evaluation (or of --evaluate) to RUN_DIR/videos"""
    run_dir: str | None = None
    """folder of this run; by default runs/<env_id>__<exp_name>__<seed>__<time>"""
    resume: str | None = None
    """run folder to continue; may be joined by --gradient-steps (longer), --device and --track only"""
    evaluate: str | None = None
    """run folder whose newest checkpoint is scored again, without training"""

    # Task
    dataset_id: str | None = None
    """Minari id or folder, several joined by commas; by default the task's own"""
    reward: Literal["raw", "antmaze", "standardize"] = "raw"
    """reward the critic sees: as is, 4 (r - 0.5), or (r - mean) / std over the data"""
    normalize_obs: bool = False
    """standardise observations by the data's mean and std (the paper does not)"""

    # Optimisation
    gradient_steps: int = 2_000_000
    """number of updates"""
    batch_size: int = 256
    """B, transitions per update"""
    actor_lr: float = 3e-4
    """Adam rate of the diffusion policy"""
    critic_lr: float = 3e-4
    """Adam rate of the Q-ensemble"""
    lr_decay: bool = False
    """cosine decay of both rates to 0 over the run (released ends at 99.9 % of its start: in effect off)"""
    grad_clip: float = 4.0
    """largest gradient norm, of the actor and of all critics together"""
    gamma: float = 0.99
    """discount factor per step"""
    tau: float = 0.005
    """Polyak rate of the target critics, every update"""
    ema_decay: float = 0.995
    """decay of the averaged actor"""
    ema_start: int = 1000
    """updates before the averaged actor starts to follow; until then it keeps its initial weights, as released"""
    ema_every: int = 5
    """updates between two averagings of the actor"""
    hidden_dim: int = 256
    """width of all hidden layers"""

    # Diffusion
    num_diffusion_steps: int = 5
    """T, steps of the mean-reverting SDE"""
    schedule: Literal["cosine", "linear", "constant", "vp", "ddpm"] = "cosine"
    """how theta_t grows with t; ddpm is Diffusion-QL's, not rescaled to e^(-theta_bar_T) = 0.001"""
    diffusion_loss: Literal["noise", "likelihood", "likelihood_released"] = "noise"
    """noise: Eq. 5; likelihood: on the optimal path; likelihood_released: its Euler variant in the authors' code"""
    action_clip: bool = True
    """clamp the predicted a_0 to the action box at every sampling step"""
    sampler: Literal["posterior", "sde", "ode"] = "posterior"
    """reverse process: the paper's posterior (Prop. 3.1), Euler on the reverse SDE (3), or its probability-flow ODE"""
    policy_action: Literal["one_step", "chain"] = "one_step"
    """action in the actor's Q term: the one-step a_0 of Eq. 8 (released), or a sample of the whole chain"""

    # Ensemble and entropy
    num_critics: int = 64
    """M, Q-networks"""
    pessimism: Literal["lcb", "min"] = "lcb"
    """value the actor climbs and candidates are ranked by: the LCB of Eq. 17, or the minimum"""
    target: Literal["own", "min"] = "own"
    """TD target of a member: its own target network (Eq. 16), or the minimum over all"""
    lcb_coef: float = 4.0
    """beta, standard deviations below the mean"""
    entropy_estimator: Literal["none", "released", "bridge", "chain"] = "released"
    """released: the authors' code; bridge: Eq. 14 to the letter; chain: a lower bound that sees the policy's spread"""
    ent_coef: float | Literal["auto"] = 0.01
    """alpha, weight of the entropy term; auto: learned for each state (App. B.3), needs chain"""
    target_entropy: float | None = None
    """for auto: nats per action dimension; by default read off the cloned policy after a warm-up of 5 %"""
    chain_std: float | None = None
    """for chain: std of the policy's last step; by default min(0.2, sigma_1), and never above sigma_1"""
    eta: float = 1.0
    """weight of the Q term against the diffusion loss"""
    max_q_backup: bool = False
    """target from the best of ten next actions, member by member"""

    # Evaluation and logging
    eval_every: int = 50_000
    """updates between two evaluations; a checkpoint is written after each"""
    eval_episodes: int = 100
    """episodes of one evaluation"""
    eval_envs: int = 20
    """environments stepped together; changes speed, not results"""
    num_candidates: int = 50
    """K, actions drawn per state when acting"""
    action_selection: Literal["softmax", "argmax"] = "softmax"
    """how one of the K is chosen by its LCB"""
    log_every: int = 1000
    """updates between two rows of metrics.csv"""
    # --- end shared ---


class Task(NamedTuple):
    """One task: our own simulator settings and data. Nothing of it is ever taken from a dataset's file."""

    env: str  # registered Gymnasium id
    env_kwargs: dict  # keyword arguments of gym.make
    dataset: str | None  # Minari id(s); two are joined in memory
    reference: tuple[float, float]  # D4RL's return of a random and of an expert policy, used if the metadata has none
    like: str  # whose hyper-parameters: the authors' own row, else the nearest one
    row: dict  # what the authors set for it


# The authors' two rows: pen-human = pen-cloned, and the kitchen.
HAND = dict(
    gradient_steps=1_000_000, actor_lr=3e-5, eta=0.1, grad_clip=8.0, max_q_backup=False, reward="standardize",
    diffusion_loss="noise", action_clip=True, eval_episodes=100,
)  # fmt: skip
KITCHEN = dict(
    gradient_steps=1_000_000, actor_lr=3e-4, eta=0.005, grad_clip=10.0, max_q_backup=False, reward="raw",
    diffusion_loss="likelihood_released", action_clip=False, eval_episodes=100,
)  # fmt: skip
HANDS = {  #    simulator               D4RL's time limit         D4RL's random, expert return
    "pen": ("AdroitHandPen-v1", dict(max_episode_steps=100), (96.262799, 3076.833102)),
    "door": ("AdroitHandDoor-v1", dict(max_episode_steps=200), (-56.512833, 2880.569309)),
    "hammer": ("AdroitHandHammer-v1", dict(max_episode_steps=200), (-274.856578, 12794.134825)),
    "relocate": ("AdroitHandRelocate-v1", dict(max_episode_steps=200), (-6.425911, 4233.877798)),
}
KITCHENS = {  #  the four things to do in an episode; the return counts those done
    "complete": ["microwave", "kettle", "light switch", "slide cabinet"],
    "partial": ["microwave", "kettle", "light switch", "slide cabinet"],
    "mixed": ["microwave", "kettle", "bottom burner", "light switch"],
}
TASKS = {
    f"{hand}-{data}": Task(
        env, limit, f"D4RL/{hand}/{data}-v2", reference, f"pen-{'cloned' if data == 'cloned' else 'human'}", HAND
    )
    for hand, (env, limit, reference) in HANDS.items()
    for data in ("human", "cloned", "expert")
} | {
    f"kitchen-{data}": Task(
        "FrankaKitchen-v1", dict(tasks_to_complete=todo, max_episode_steps=280), f"D4RL/kitchen/{data}-v2", (0.0, 4.0),
        f"kitchen-{data}", KITCHEN,
    )
    for data, todo in KITCHENS.items()
}  # fmt: skip
PRESETS = {  # what a preset changes in every task ...
    "edq": {},
    "edq-paper": dict(num_diffusion_steps=10, entropy_estimator="chain", ent_coef="auto"),  # Sec. 4.1 of the paper
    "diffusion-ql": dict(
        num_critics=2, target="min", pessimism="min", policy_action="chain", schedule="ddpm", diffusion_loss="noise",
        entropy_estimator="none", action_clip=True,
    ),
    "diffusion-bc": dict(eta=0.0, entropy_estimator="none", num_candidates=1),
}  # fmt: skip
# ... and task by task: Diffusion-QL's own rows (Wang et al. 2023). It sums the errors of its two critics where we take
# the mean, so for the critics its clip g amounts to g / 2 here; it trains kitchen-complete for 250,000 updates: said,
# not reproduced.
PRESET_ROWS = {"diffusion-ql": {
    "pen-human": dict(eta=0.15, grad_clip=7.0),
    "pen-cloned": dict(eta=0.1, grad_clip=8.0),
    "kitchen-complete": dict(eta=0.005, grad_clip=9.0),
    "kitchen-partial": dict(eta=0.005, grad_clip=10.0),
    "kitchen-mixed": dict(eta=0.005, grad_clip=10.0),
}}  # fmt: skip


# ======================================================================================================================
# The algorithm. Shapes: B batch, S observation, A action, M critics, T diffusion steps, K candidates.
# The paper's t = 1..T is index i = t - 1 here, in tensors and arguments alike.
# ======================================================================================================================
# --- shared: networks ---
def mish(x: torch.Tensor) -> torch.Tensor:
    """x tanh(log(1 + e^x)) with a single exponential: most of a small update is activations, not products."""
    u = x.clamp(max=20).exp()
    n = u * (u + 2)
    return x * (n / (n + 2))


class ScoreMLP(nn.Module):
    """Noise prediction eps_hat(a_t, t, s); the score of p(a_t | s) is -eps_hat / sigma_t."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dim: int = 256):
        super().__init__()
        self.act_dim = act_dim
        self.register_buffer("freqs", 10000 ** (-torch.arange(8) / 7), persistent=False)
        self.time_in, self.time_out = nn.Linear(16, 32), nn.Linear(32, 16)
        self.layers = nn.ModuleList(
            [nn.Linear(i, hidden_dim) for i in (act_dim + 16 + obs_dim, hidden_dim, hidden_dim)]
        )
        self.head = nn.Linear(hidden_dim, act_dim)

    def forward(self, a_t: torch.Tensor, t: int | torch.Tensor, obs: torch.Tensor) -> torch.Tensor:
        """a_t `[..., A]`, t an index (int or `[...]`), obs `[..., S]` -> `[..., A]`."""
        angle = t * self.freqs if isinstance(t, int) else t.unsqueeze(-1) * self.freqs
        emb = self.time_out(mish(self.time_in(torch.cat([angle.sin(), angle.cos()], -1))))
        x = torch.cat([a_t, emb.expand(*a_t.shape[:-1], 16), obs], -1)
        for layer in self.layers:
            x = mish(layer(x))
        return self.head(x)


class QEnsemble(nn.Module):
    """M independent Q-networks as one batched product; weights `[M, in, out]`, biases `[M, 1, out]`."""

    def __init__(self, obs_dim: int, act_dim: int, num_critics: int = 64, hidden_dim: int = 256):
        super().__init__()
        sizes = [obs_dim + act_dim, hidden_dim, hidden_dim, hidden_dim, 1]
        self.num_critics = num_critics
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for size_in, size_out in zip(sizes, sizes[1:]):
            # As released (EDAC's initialisation): the "fan" of a hidden layer is its output size, its bias 0.1.
            bound = 3e-3 if size_out == 1 else 1 / math.sqrt(size_out)
            weight = torch.empty(num_critics, size_in, size_out).uniform_(-bound, bound)
            bias = torch.empty(num_critics, 1, size_out)
            self.weights.append(weight)
            self.biases.append(bias.uniform_(-bound, bound) if size_out == 1 else bias.fill_(0.1))

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """obs `[B, S]`, action `[B, A]` -> Q `[M, B]`."""
        x = torch.cat([obs, action], -1).expand(self.num_critics, -1, -1)  # [M, B, S + A], a view
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, mish(x) if i > 0 else x, weight)
        return x.squeeze(-1)


class StateCoefficient(nn.Module):
    """alpha(s) = softplus of a network with one hidden layer of 32 (App. B.3); starts at 0.01 in every state."""

    def __init__(self, obs_dim: int):
        super().__init__()
        self.hidden, self.head = nn.Linear(obs_dim, 32), nn.Linear(32, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, math.log(math.expm1(0.01)))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """obs `[B, S]` -> `[B]`."""
        return F.softplus(self.head(mish(self.hidden(obs)))).squeeze(-1)


# --- end shared ---


# --- shared: diffusion ---
class MeanRevertingSDE:
    """da = -theta_t a dt + sqrt(2 theta_t) dw (1): pulls every action to N(0, I), all conditionals known Gaussians.

    Tensors of length T, index i for the paper's step i + 1: `theta_dt` (theta'_t), `theta_bar` (its running sum),
    `sigma` (std of a_t given a_0), `w_t`, `w_0` and `posterior_var` of p(a_{t-1} | a_t, a_0) (6, 7).
    """

    def __init__(self, num_steps: int, schedule: str = "cosine", device: str | torch.device = "cpu"):
        T, t = num_steps, torch.arange(1, num_steps + 1, dtype=torch.float64)
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / (T + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        theta = {
            "cosine": 1 - f[1:] / f[0],
            "linear": torch.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T, dtype=torch.float64),
            "constant": torch.ones(T, dtype=torch.float64),
            "vp": 1 - torch.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2),
            "ddpm": 0.5 * (0.1 / T + 4.95 * (2 * t - 1) / T**2),
        }[schedule]
        if schedule != "ddpm":  # the time step is chosen so that e^(-theta_bar_T) = 0.001: a_T has forgotten a_0
            theta = theta * (math.log(1000) / theta.sum())
        theta_bar = theta.cumsum(0)
        keep = torch.exp(-theta)  # A
        kept = torch.exp(-theta_bar)  # B
        kept_before = torch.exp(-(theta_bar - theta))  # C
        kept_before[0] = 1.0
        tables = dict(
            theta_dt=theta,
            theta_bar=theta_bar,
            sigma=torch.sqrt(1 - kept**2),
            w_t=keep * (1 - kept_before**2) / (1 - kept**2),
            w_0=kept_before * (1 - keep**2) / (1 - kept**2),
            posterior_var=(1 - keep**2) * (1 - kept_before**2) / (1 - kept**2),
        )
        self.num_steps = num_steps
        for name, table in tables.items():  # built in float64, then cast: in float32 theta'_1 is off by 1e-4 at T = 100
            setattr(self, name, table.to(device, torch.float32))

    def perturb(self, a0: torch.Tensor, t: int | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Sample p(a_t | a_0) = N(e^(-theta_bar_t) a_0, sigma_t^2) (2, 4); all `[B, A]`, t an index, int or `[B]`."""
        return torch.exp(-self.theta_bar[t]).unsqueeze(-1) * a0 + self.sigma[t].unsqueeze(-1) * noise

    def predict_a0(self, a_t: torch.Tensor, t: int | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Invert `perturb`: (a_t - sigma_t eps) e^(theta_bar_t) (8)."""
        return (a_t - self.sigma[t].unsqueeze(-1) * noise) * torch.exp(self.theta_bar[t]).unsqueeze(-1)

    def posterior_mean(self, a_t: torch.Tensor, a0: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
        """Mean of p(a_{t-1} | a_t, a_0), the optimal path from a_t to a_0 (6, 7; App. A.3)."""
        return self.w_t[t].unsqueeze(-1) * a_t + self.w_0[t].unsqueeze(-1) * a0

    def reverse_sde_step(
        self, a_t: torch.Tensor, t: int | torch.Tensor, eps: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """One Euler step of the reverse SDE (3) with score -eps / sigma_t; the last step (index 0) adds no noise."""
        theta, sigma = self.theta_dt[t].unsqueeze(-1), self.sigma[t].unsqueeze(-1)
        moving = (torch.as_tensor(t, device=a_t.device) > 0).unsqueeze(-1)
        return a_t + theta * a_t - 2 * theta * eps / sigma + torch.sqrt(2 * theta) * noise * moving

    def ode_step(self, a_t: torch.Tensor, t: int | torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """One Euler step of the probability-flow ODE of (3)."""
        theta, sigma = self.theta_dt[t].unsqueeze(-1), self.sigma[t].unsqueeze(-1)
        return a_t + theta * a_t - theta * eps / sigma


def sample_actions(
    score: nn.Module,
    sde: MeanRevertingSDE,
    obs: torch.Tensor,
    sampler: str = "posterior",
    action_clip: bool = True,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw one action per observation by running the diffusion backwards from N(0, I).

    obs `[..., S]` -> actions `[..., A]` in [-1, 1]. `noise` `[T, ..., A]` replaces the generator's draws: its first
    row is a_T, the others are spent one a step.
    """
    if noise is None:
        shape = (sde.num_steps, *obs.shape[:-1], score.act_dim)
        noise = torch.randn(shape, device=obs.device, generator=generator)
    a_t = noise[0]
    for t in reversed(range(sde.num_steps)):
        eps = score(a_t, t, obs)
        z = noise[sde.num_steps - t] if t > 0 else torch.zeros_like(a_t)
        if sampler == "sde":
            a_t = sde.reverse_sde_step(a_t, t, eps, z)
        elif sampler == "ode":
            a_t = sde.ode_step(a_t, t, eps)
        else:
            a0 = sde.predict_a0(a_t, t, eps)
            a0 = a0.clamp(-1, 1) if action_clip else a0
            a_t = sde.posterior_mean(a_t, a0, t) + sde.posterior_var[t].sqrt() * z  # Prop. 3.1 with a_0 predicted
    return a_t.clamp(-1, 1)


def log_transition(x: torch.Tensor, y: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
    """Log density, per dimension, of reaching x from y after SDE time dt: N(x; e^(-dt) y, 1 - e^(-2 dt)) (2)."""
    var = -torch.expm1(-2 * dt)
    return -0.5 * (torch.log(2 * math.pi * var) + (x - y * torch.exp(-dt)) ** 2 / var)


def entropy_estimate(sde: MeanRevertingSDE, a0: torch.Tensor, aT: torch.Tensor, kind: str) -> torch.Tensor:
    """-log p(a_1 | a_T, a_0) by Bayes' rule from three transition densities (13, 14); `[B, A]` -> `[B]`.

    bridge: the equation to the letter. Its value does not depend on the policy and its gradient vanishes.
    released: what the authors' code computes: arguments of two densities exchanged, the index one step late. In closed
    form 0.7787 + 0.0628 a_0^2 per dimension (T = 5): it rewards large a_0 and does not see how spread the policy is.
    """
    bar = sde.theta_bar
    if kind == "bridge":
        a1 = torch.exp(-bar[0]) * a0
        log_p = log_transition(aT, a1, bar[-1] - bar[0]) + log_transition(a1, a0, bar[0])
        return -(log_p - log_transition(aT, a0, bar[-1])).sum(-1)
    a1 = a0 * (1 - sde.theta_dt[0])
    log_p = log_transition(a1, aT, bar[-1] - bar[1]) + log_transition(a0, a1, bar[1] - bar[0])
    return -(log_p - log_transition(a0, aT, bar[-1] - bar[0])).sum(-1)


def chain_entropy_bound(
    sde: MeanRevertingSDE,
    score: nn.Module,
    obs: torch.Tensor,
    chain_std: float,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lower bound on the entropy of the policy with std `chain_std` in its last step; obs `[B, S]` -> `[B]`, in nats.

    H >= E[log f(a^1..a^T | a^0) - log q(a^0..a^T)] with q our reverse chain (10) and f the SDE's own transitions (2),
    an idea of maximum-entropy diffusion RL (Celik et al. 2025, DIME). The bound has gradients in the policy.
    `noise` `[T + 1, B, A]` replaces the generator's draws.
    """
    if noise is None:
        noise = torch.randn(sde.num_steps + 1, *obs.shape[:-1], score.act_dim, device=obs.device, generator=generator)
    a_t = noise[0]
    bound = 0.5 * (math.log(2 * math.pi) + a_t**2)  # -log N(a_T; 0, I)
    for t in reversed(range(sde.num_steps)):
        z = noise[sde.num_steps - t]
        std = sde.posterior_var[t].sqrt() if t > 0 else torch.full_like(sde.sigma[0], chain_std)
        a0 = sde.predict_a0(a_t, t, score(a_t, t, obs)).clamp(-1, 1)  # else entropy is bought outside the action box
        a_prev = sde.posterior_mean(a_t, a0, t) + std * z
        bound = bound + log_transition(a_t, a_prev, sde.theta_dt[t])
        bound = bound + 0.5 * (math.log(2 * math.pi) + z**2) + torch.log(std)  # -log of the step just taken
        a_t = a_prev
    return bound.sum(-1)


def lower_confidence_bound(q: torch.Tensor, coef: float) -> torch.Tensor:
    """mean - coef * std over the members (17); q `[M, ...]` -> `[...]`. Unbiased std, so M >= 2."""
    return q.mean(0) - coef * q.std(0)


# --- end shared ---


# --- shared: update ---
METRICS = (
    "losses/critic", "losses/diffusion", "losses/q", "losses/entropy", "losses/actor",
    "q/mean", "q/std", "q/max_abs", "q/target", "policy/entropy", "policy/alpha",
)  # fmt: skip


class Agent(nn.Module):
    """Everything that learns, and what must survive a restart with it: its state_dict is the checkpoint's core."""

    def __init__(self, obs_dim: int, act_dim: int, args: Args, device: str):
        super().__init__()
        self.sde = MeanRevertingSDE(args.num_diffusion_steps, args.schedule, device)
        self.chain_std = args.chain_std or min(0.2, float(self.sde.sigma[0]))
        self.score = ScoreMLP(obs_dim, act_dim, args.hidden_dim)
        self.score_ema = copy.deepcopy(self.score).requires_grad_(False)
        self.q = QEnsemble(obs_dim, act_dim, args.num_critics, args.hidden_dim) if uses_critic(args) else None
        self.target_q = copy.deepcopy(self.q).requires_grad_(False) if uses_critic(args) else None
        self.alpha = StateCoefficient(obs_dim) if args.ent_coef == "auto" else None
        self.register_buffer("target_entropy", torch.tensor(args.target_entropy or 0.0))  # nats per action dimension
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))
        self.register_buffer("metric_sum", torch.zeros(len(METRICS)))  # since the last row of metrics.csv
        self.register_buffer("diffusion_sum", torch.zeros(()))  # since the last evaluation
        self.register_buffer("first_bad", torch.full((len(METRICS),), -1))  # first update with a non-finite value
        self.register_buffer("first_large_q", torch.tensor(-1))  # first update with |Q| out of reach of the rewards
        self.to(device)
        self.actor_opt = torch.optim.Adam(self.score.parameters(), args.actor_lr, fused=True)
        self.critic_opt = torch.optim.Adam(self.q.parameters(), args.critic_lr, fused=True) if self.q else None
        self.alpha_opt = torch.optim.Adam(self.alpha.parameters(), 3e-4, fused=True) if self.alpha else None


class Transitions(NamedTuple):
    """A dataset, or a batch of it."""

    obs: torch.Tensor  # [B, S]
    action: torch.Tensor  # [B, A]
    reward: torch.Tensor  # [B]
    next_obs: torch.Tensor  # [B, S]
    terminal: torch.Tensor  # [B], 1 where the future is worth nothing: never a time limit


class Noise(NamedTuple):
    """All randomness of one update, drawn before it, so that the update is a function."""

    target: torch.Tensor  # [T, B * N, A], N = 10 with max_q_backup, else 1
    t: torch.Tensor  # [B], diffusion step of each row
    eps: torch.Tensor  # [B, A]
    end: torch.Tensor  # [B, A], a_T of the released and bridge entropy
    chain: torch.Tensor  # [T + 1, B, A]


def draw_batch(data: Transitions, args: Args, generator: torch.Generator) -> tuple[Transitions, Noise]:
    """A uniform batch, with replacement, and the noise of one update."""
    size, B, A, T = len(data.obs), args.batch_size, data.action.shape[-1], args.num_diffusion_steps
    index = torch.randint(size, (B,), device=data.obs.device, generator=generator)

    def randn(*shape):
        return torch.randn(shape, device=data.obs.device, generator=generator)

    noise = Noise(
        target=randn(T, B * (10 if args.max_q_backup else 1), A) if uses_critic(args) else None,
        t=torch.randint(T, (B,), device=data.obs.device, generator=generator),
        eps=randn(B, A),
        end=randn(B, A) if args.entropy_estimator in ("released", "bridge") else None,
        chain=randn(T + 1, B, A) if "chain" in (args.policy_action, args.entropy_estimator) else None,
    )
    return Transitions(*(x[index] for x in data)), noise


def td_target(agent: Agent, batch: Transitions, noise: torch.Tensor, args: Args) -> torch.Tensor:
    """r + gamma Q'(s', a') with a' from the averaged policy; `[M, B]`, each member its own target (16)."""
    repeats = noise.shape[1] // len(batch.reward)
    next_obs = batch.next_obs.repeat_interleave(repeats, 0)  # [B * N, S], each copy with noise of its own
    next_action = sample_actions(agent.score_ema, agent.sde, next_obs, args.sampler, args.action_clip, noise=noise)
    next_q = agent.target_q(next_obs, next_action).unflatten(1, (-1, repeats)).amax(-1)  # max-Q, member by member
    if args.target == "min":
        next_q = next_q.amin(0, keepdim=True).expand_as(next_q)
    return batch.reward + args.gamma * (1 - batch.terminal) * next_q


def diffusion_loss(
    sde: MeanRevertingSDE, a_t: torch.Tensor, a0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor,
    eps_hat: torch.Tensor, kind: str,
) -> torch.Tensor:  # fmt: skip
    """How well the noise `eps` was predicted from a_t; behaviour cloning. All `[B, A]`, t `[B]` -> scalar."""
    if kind == "noise":
        return F.mse_loss(eps_hat, eps)  # (5)
    optimal = sde.posterior_mean(a_t, a0, t)  # a_{t-1} on the best path to the data action (App. A.3)
    if kind == "likelihood":
        return F.mse_loss(sde.posterior_mean(a_t, sde.predict_a0(a_t, t, eps_hat), t), optimal)
    # Released: the Euler step (3) against the exact path. With coarse steps the two differ even for the true noise
    # (by 1.6 at t = 5), so this loss pulls the network away from it. The authors' locomotion rows use it.
    return F.mse_loss(sde.reverse_sde_step(a_t, t, eps_hat, torch.zeros_like(a_t)), optimal)


def actor_losses(agent: Agent, batch: Transitions, noise: Noise, args: Args, warmup: bool) -> dict[str, torch.Tensor]:
    """The actor's loss (15) and its parts: stay near the data, climb the LCB, keep entropy."""
    sde, obs, out = agent.sde, batch.obs, {}
    a_t = sde.perturb(batch.action, noise.t, noise.eps)
    eps_hat = agent.score(a_t, noise.t, obs)
    a0_hat = sde.predict_a0(a_t, noise.t, eps_hat)
    out["losses/diffusion"] = diffusion_loss(sde, a_t, batch.action, noise.t, noise.eps, eps_hat, args.diffusion_loss)
    loss = out["losses/diffusion"]

    if args.eta > 0:
        action = a0_hat.clamp(-1, 1)
        if args.policy_action == "chain":
            action = sample_actions(agent.score, sde, obs, args.sampler, args.action_clip, noise=noise.chain[:-1])
        q = agent.q(obs, action)  # [M, B]
        value = q.amin(0) if args.pessimism == "min" else lower_confidence_bound(q, args.lcb_coef)
        out["losses/q"] = -value.mean() / q.abs().mean().detach()  # the scale of Q drops out, eta means the same
        out |= {"q/mean": q.mean(), "q/std": (q.std(0) if len(q) > 1 else q * 0).mean()}
        loss = loss + (0.0 if warmup else args.eta) * out["losses/q"]

    if args.entropy_estimator in ("released", "bridge"):
        entropy = entropy_estimate(sde, a0_hat, noise.end, args.entropy_estimator)  # [B]
        out["losses/entropy"] = -args.ent_coef * entropy.mean() / entropy.abs().mean().detach()
        out |= {"policy/entropy": entropy.mean() / a0_hat.shape[-1], "policy/alpha": entropy.new_tensor(args.ent_coef)}
    elif args.entropy_estimator == "chain":
        entropy = chain_entropy_bound(sde, agent.score, obs, agent.chain_std, noise=noise.chain) / a0_hat.shape[-1]
        alpha = agent.alpha(obs) if agent.alpha else torch.full_like(entropy, args.ent_coef)  # [B]
        if agent.alpha:  # pushed up in states where the entropy is below its target, down where it is above (App. B.3)
            out["alpha_loss"] = (alpha * (entropy.detach() - agent.target_entropy)).mean()
            alpha = alpha.detach().clamp(1e-4, 1)
        out["losses/entropy"] = -(0.0 if warmup else 1.0) * (alpha * entropy).mean()
        out |= {"policy/entropy": entropy.mean(), "policy/alpha": alpha.mean()}
    out["losses/actor"] = loss + out.get("losses/entropy", 0.0)
    return out


def minimise(loss: torch.Tensor, net: nn.Module, optimiser: torch.optim.Optimizer, grad_clip: float) -> None:
    """One Adam step on `net` alone: other networks in the loss get no gradient."""
    optimiser.zero_grad()
    loss.backward(inputs=list(net.parameters()))
    nn.utils.clip_grad_norm_(net.parameters(), grad_clip)
    optimiser.step()


def update(agent: Agent, batch: Transitions, noise: Noise, args: Args, step: int, warmup: bool) -> torch.Tensor:
    """Update number `step` (from 0): critics, actor, averages, in this order. Returns METRICS, still on the device."""
    out = {}
    if agent.q:
        with torch.no_grad():
            target = td_target(agent, batch, noise.target, args)
        q = agent.q(batch.obs, batch.action)
        out["losses/critic"] = F.mse_loss(q, target)
        minimise(out["losses/critic"], agent.q, agent.critic_opt, args.grad_clip)
        out |= {"q/max_abs": q.abs().max(), "q/target": target.mean()}

    out |= actor_losses(agent, batch, noise, args, warmup)
    minimise(out["losses/actor"], agent.score, agent.actor_opt, args.grad_clip)
    if agent.alpha and not warmup:
        minimise(out["alpha_loss"], agent.alpha, agent.alpha_opt, math.inf)

    with torch.no_grad():
        if step >= args.ema_start and step % args.ema_every == 0:
            torch._foreach_lerp_(list(agent.score_ema.parameters()), list(agent.score.parameters()), 1 - args.ema_decay)
        if agent.q:
            torch._foreach_lerp_(list(agent.target_q.parameters()), list(agent.q.parameters()), args.tau)
        zero = torch.zeros((), device=batch.obs.device)
        return torch.stack([out.get(name, zero).detach().to(zero) for name in METRICS])


@torch.no_grad()
def remember(agent: Agent, metrics: torch.Tensor, step: int, q_limit: float) -> None:
    """Add up an update's metrics and note the first bad one, all on the device: nothing is read back here."""
    agent.metric_sum += metrics
    agent.diffusion_sum += metrics[METRICS.index("losses/diffusion")]
    agent.first_bad.copy_(torch.where((agent.first_bad < 0) & ~metrics.isfinite(), step, agent.first_bad))
    large = (agent.first_large_q < 0) & (metrics[METRICS.index("q/max_abs")] > q_limit)
    agent.first_large_q.copy_(torch.where(large, step, agent.first_large_q))


def uses_critic(args: Args) -> bool:
    """Whether Q enters anything: the actor's loss, or the ranking of candidates."""
    return args.eta > 0 or args.num_candidates > 1


# --- end shared ---


# ======================================================================================================================
# The task's side: simulator, observation, score.
# ======================================================================================================================
SCORE = "D4RL-normalised score"


def make_env(task: Task, render_mode: str | None = None) -> gym.Env:
    """The simulator, from our own table: an environment spec out of a file could run any code."""
    return gym.make(task.env, render_mode=render_mode, disable_env_checker=True, **task.env_kwargs)


def flatten_obs(obs: np.ndarray | dict) -> np.ndarray:
    """What the networks see, `[..., S]`: the observation, in the kitchen without the goals, which never change."""
    return np.asarray(obs["observation"] if isinstance(obs, dict) else obs, np.float32)


def critic_terminal(reward: np.ndarray, termination: np.ndarray) -> np.ndarray:
    """Steps after which the future is worth nothing: real ends, never time limits."""
    return termination


def episode_result(rewards: list[float], reference: tuple[float, float]) -> dict[str, float]:
    """Figures of one episode; the score is 0 for a random and 100 for an expert policy, in the kitchen tasks done / 4."""
    low, high = reference
    total = float(np.sum(rewards))
    return {"return": total, "score": 100 * (total - low) / (high - low), "length": len(rewards)}


def check_metadata(spec: dict, task: Task) -> None:
    """Compare where the data come from with where the policy will act; `spec` is JSON, and never made into anything."""
    if spec.get("id") != task.env:
        print(f"note: the data were recorded in {spec.get('id')}, the policy is scored in {task.env}")
    limit, ours = spec.get("max_episode_steps"), task.env_kwargs["max_episode_steps"]
    if limit != ours:
        print(f"note: the data's time limit is {limit} steps; the policy is scored at D4RL's, {ours}")


# ======================================================================================================================
# Plumbing: acting and evaluation, data, checkpoints, checks.
# ======================================================================================================================
# --- shared: evaluation ---
ACTOR_EPISODES = 10  # episodes in one actor call, always: a product's rounding depends on its size


@torch.no_grad()
def act(agent: Agent, obs: torch.Tensor, noise: torch.Tensor, u: torch.Tensor, args: Args) -> torch.Tensor:
    """Best of K (not in the paper): draw K candidates a state, keep one with probability softmax(LCB).

    obs `[R, S]`, noise `[T, R, K, A]`, u `[R]` uniform in [0, 1) -> actions `[R, A]`. Online policy, target critics.
    """
    R, K = noise.shape[1:3]
    obs = ((obs - agent.obs_mean) / agent.obs_std).unsqueeze(1).expand(R, K, -1)
    candidates = sample_actions(agent.score, agent.sde, obs, args.sampler, args.action_clip, noise=noise)  # [R, K, A]
    if agent.target_q is None or K == 1:
        return candidates[:, 0]
    q = agent.target_q(obs.flatten(0, 1), candidates.flatten(0, 1)).unflatten(1, (R, K))  # [M, R, K]
    value = q.amin(0) if args.pessimism == "min" else lower_confidence_bound(q, args.lcb_coef)
    if args.action_selection == "argmax":
        choice = value.argmax(1)
    else:
        choice = (value.softmax(1).cumsum(1) < u.unsqueeze(1)).sum(1).clamp(max=K - 1)
    return candidates[torch.arange(R, device=obs.device), choice]


def evaluate(
    agent: Agent, envs: gym.vector.VectorEnv, args: Args, reference: tuple[float, float], episodes: int, stop: list
) -> list[dict[str, float]] | None:
    """Run `episodes` episodes, `envs.num_envs` at a time; None if `stop` fills up meanwhile.

    Every episode has its own seed, noise generator and row in a padded actor batch, so its result does not depend on
    which others run beside it.
    """
    device, K, T = agent.obs_mean.device, args.num_candidates, args.num_diffusion_steps
    obs_dim, act_dim, results = len(agent.obs_mean), envs.single_action_space.shape[0], []
    for first in range(0, episodes, envs.num_envs):
        seeds = [(args.seed + 100) * 10_000 + first + i for i in range(envs.num_envs)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rewards = [[] for _ in seeds]
        running = np.arange(envs.num_envs) < episodes - first
        obs, _ = envs.reset(seed=seeds)
        while running.any():
            if stop:
                return None
            action = np.zeros((envs.num_envs, act_dim), np.float32)
            slots = (first + np.arange(envs.num_envs)) // ACTOR_EPISODES
            for slot in np.unique(slots[running]):
                rows = np.flatnonzero((slots == slot) & running)
                places = (first + rows) % ACTOR_EPISODES
                padded = torch.zeros(ACTOR_EPISODES, obs_dim)
                noise, u = torch.zeros(T, ACTOR_EPISODES, K, act_dim), torch.zeros(ACTOR_EPISODES)
                for row, place in zip(rows, places):
                    padded[place] = torch.from_numpy(obs[row])
                    noise[:, place] = torch.randn(T, K, act_dim, generator=generators[row])
                    u[place] = torch.rand((), generator=generators[row])
                action[rows] = act(agent, padded.to(device), noise.to(device), u.to(device), args).cpu().numpy()[places]
            # A finished environment starts a new episode by itself; what happens there is ignored.
            obs, reward, terminated, truncated, _ = envs.step(action)
            for row in np.flatnonzero(running):
                rewards[row].append(float(reward[row]))
            running &= ~(terminated | truncated)
        for i in range(min(envs.num_envs, episodes - first)):
            results.append({"episode": first + i, "seed": seeds[i], **episode_result(rewards[i], reference)})
    return results


def vector_env(task: Task, num_envs: int, video_dir: Path | None = None) -> gym.vector.VectorEnv:
    """`num_envs` simulators in one process, observations flat; with `video_dir` every episode is filmed."""

    def make():
        env = make_env(task, "rgb_array" if video_dir else None)
        if video_dir:
            env = gym.wrappers.RecordVideo(env, str(video_dir), episode_trigger=lambda _: True, disable_logger=True)
        shape = flatten_obs(env.observation_space.sample()).shape
        space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        return gym.wrappers.TransformObservation(env, flatten_obs, space)

    return gym.vector.SyncVectorEnv([make] * num_envs)


def film(agent: Agent, task: Task, args: Args, reference: tuple[float, float], run_dir: Path) -> None:
    """Write the first three episodes of an evaluation as mp4 files."""
    envs = vector_env(task, 1, run_dir / "videos")
    evaluate(agent, envs, args, reference, min(3, args.eval_episodes), [])
    envs.close()
    print(f"videos: {run_dir / 'videos'}")


def column(results: list[dict], name: str) -> np.ndarray:
    """One figure of all episodes, without those that lack it."""
    values = np.array([r[name] for r in results], np.float64)
    return values[np.isfinite(values)]


def describe(results: list[dict]) -> str:
    """One line: score with standard error, and the other figures' means."""
    score = column(results, "score")
    error = score.std(ddof=1) / math.sqrt(len(score)) if len(score) > 1 else math.nan
    others = [k for k in results[0] if k not in ("episode", "seed", "score", "success")]
    means = ", ".join(f"{k} {column(results, k).mean():.1f}" for k in others if len(column(results, k)))
    return f"{SCORE} {score.mean():.1f} +- {error:.1f} (s.e., {len(score)} episodes), {means}"


def selections(history: list[dict]) -> dict[str, dict]:
    """Last, best and offline-selected evaluation (App. B.8: the first at which the diffusion loss has settled)."""
    trained = [h for h in history if not h["warmup"]]
    settled = [b for a, b in zip(trained, trained[1:]) if abs(b["diffusion_loss"] - a["diffusion_loss"]) < 4e-3]
    best = max(history, key=lambda h: h["score"])
    return {"last": history[-1], "best": best, "offline": settled[0] if settled else {**history[-1], "never": True}}


# --- end shared ---


# --- shared: data ---
def fail(message: str) -> None:
    """Bad input: one sentence, exit code 2."""
    sys.exit(print(f"error: {message}", file=sys.stderr) or 2)


def find_dataset(dataset_id: str) -> Path:
    """The data folder of a Minari id or of a folder, downloaded if it is not on this machine."""
    for folder in (Path(dataset_id), get_dataset_path(dataset_id)):
        if (folder / "data").is_dir():
            return folder / "data"
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # whatever the network, the hub or the id does wrong
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        fail(
            f"dataset {dataset_id} is not on this machine and cannot be downloaded ({reason}); where there is a network "
            f"run 'minari download {dataset_id}', or name a local set with --dataset-id FOLDER or MINARI_DATASETS_PATH"
        )
    return get_dataset_path(dataset_id) / "data"


def read_episodes(dataset_id: str, task: Task) -> tuple[dict, list[tuple[np.ndarray, ...]]]:
    """Metadata and, per episode, obs `[N + 1, S]` and N actions, rewards, terminations of a Minari dataset.

    The file may come from a stranger. Minari would make an environment from it (and so run its code) if it did not
    state its spaces, hence the check; nothing else in the metadata is ever acted on.
    """
    path, episodes = find_dataset(dataset_id), []
    try:
        metadata = json.loads((path / "metadata.json").read_text())
        if metadata["data_format"] != "hdf5" or not {"observation_space", "action_space"} <= metadata.keys():
            raise ValueError("not an HDF5 dataset that states its spaces")
        for episode in minari.MinariDataset(str(path)):
            obs = flatten_obs(episode.observations)
            arrays = [np.asarray(x) for x in (episode.actions, episode.rewards, episode.terminations)]
            if {len(x) for x in arrays} != {len(obs) - 1} or obs.ndim != 2 or arrays[0].ndim != 2:
                raise ValueError(f"episode {episode.id} does not hold N actions and N + 1 observations")
            episodes.append((obs, *arrays))
        if sum(len(e[1]) for e in episodes) != metadata["total_steps"]:
            raise ValueError("it holds fewer steps than its metadata says")
    except Exception as error:  # h5py, JSON and Minari fail in many ways on a broken file
        fail(
            f"dataset {dataset_id} is damaged or incomplete: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )
    if not episodes:
        fail(f"dataset {dataset_id} is empty")
    return metadata, episodes


def load_dataset(args: Args, task: Task, obs_dim: int, act_dim: int, device: str) -> tuple[Transitions, dict]:
    """All transitions of the named sets as flat float32 tensors on the device, and what the run should say of them.

    N actions give N transitions: none crosses an episode's end, and a time limit (truncation) is not a terminal.
    """
    ids = (args.dataset_id or task.dataset or "").split(",")
    if ids == [""]:
        fail(f"Minari has no dataset for {args.env_id}: name one with --dataset-id (a Minari id or a folder)")
    parts, results, reference, source = [], [], None, "D4RL's table"
    for dataset_id in ids:
        metadata, episodes = read_episodes(dataset_id, task)
        check_metadata(json.loads(metadata.get("env_spec") or "{}"), task)
        if reference is None and {"ref_min_score", "ref_max_score"} <= metadata.keys():
            reference, source = (float(metadata["ref_min_score"]), float(metadata["ref_max_score"])), "the metadata"
        for obs, action, reward, termination in episodes:
            if (obs.shape[1], action.shape[1]) != (obs_dim, act_dim):
                fail(
                    f"dataset {dataset_id} has {obs.shape[1]} observations and {action.shape[1]} actions, "
                    f"{args.env_id} ({task.env}) has {obs_dim} and {act_dim}"
                )
            parts.append((obs[:-1], action, reward, obs[1:], critic_terminal(reward, termination)))
            results.append(episode_result(reward, reference or task.reference))
    flat = [np.concatenate(x).astype(np.float32) for x in zip(*parts)]
    if not all(np.isfinite(x).all() for x in flat):
        fail(f"dataset {args.dataset_id or task.dataset} has NaN or infinite numbers in it")
    content = hashlib.sha256(b"".join(hashlib.sha256(x.tobytes()).digest() for x in flat)).hexdigest()[:16]
    outside = float((np.abs(flat[1]) > 1).mean())
    flat[1] = flat[1].clip(-1, 1)
    if args.reward == "antmaze":
        flat[2] = 4 * (flat[2] - 0.5)
    elif args.reward == "standardize":
        flat[2] = (flat[2] - flat[2].mean(dtype=np.float64)) / flat[2].std(ddof=1, dtype=np.float64)
    info = {
        "id": ",".join(ids), "hash": content, "transitions": len(flat[0]), "episodes": len(results),
        "reference": reference or task.reference, "reference_from": source,
        "score": float(np.mean([r["score"] for r in results])), "actions_clipped": outside,
    }  # fmt: skip
    return Transitions(*(torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device) for x in flat)), info


# --- end shared ---


# --- shared: checkpoints ---
def save_checkpoint(run_dir: Path, step: int, state: dict) -> None:
    """Write checkpoint_<step>.pt so that a kill at any moment leaves a whole file, and keep the last two.

    The file is torch's format and a SHA-256 of it behind: torch itself would load many a changed byte in silence.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    path, temporary = run_dir / f"checkpoint_{step:09d}.pt", run_dir / "checkpoint.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(payload + hashlib.sha256(payload).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fail(f"cannot save a checkpoint in {run_dir}: {error.strerror}; the one before is still there")
    for old in sorted(run_dir.glob("checkpoint_*.pt"))[:-2]:
        old.unlink()


def load_checkpoint(run_dir: Path) -> dict:
    """The newest whole checkpoint; `weights_only` keeps torch from running code that a file may carry."""
    for path in sorted(run_dir.glob("checkpoint_*.pt"), reverse=True):
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() == content[-32:]:
            try:
                return torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
            except Exception as error:  # a file with a right checksum that is no checkpoint of ours
                print(
                    f"warning: {path} cannot be read ({type(error).__name__}), trying the one before", file=sys.stderr
                )
        else:
            print(f"warning: {path} is damaged, trying the one before", file=sys.stderr)
    fail(f"there is no whole checkpoint in {run_dir}")


def lock(run_dir: Path):
    """Hold the folder for this process; the system lets go of it however the process ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = open(run_dir / "lock", "w")
    except OSError as error:
        fail(f"cannot write to the run folder {run_dir}: {error.strerror}")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fail(f"another run is writing to {run_dir}")
    return handle


def append_row(path: Path, row: dict) -> None:
    """Add a line to a CSV file, and the header if it is new."""
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, row.keys())
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


# --- end shared ---


# --- shared: arguments and checks ---
def parse_args(argv: list[str] | None = None) -> Args:
    """Dataclass default < task row < preset < flag; for --resume and --evaluate the saved run's arguments < flag."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("env_id", "preset", "resume", "evaluate"):
        finder.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given, _ = finder.parse_known_args(argv)
    if given.resume or given.evaluate:
        saved = load_args(Path(given.resume or given.evaluate))
        args = tyro.cli(Args, default=replace(saved, resume=given.resume, evaluate=given.evaluate), args=argv)
        free = {"resume", "gradient_steps", "device", "track", "run_dir"}
        if args.evaluate:
            free = {"evaluate", "device", "seed", "capture_video", "run_dir"}
            free |= {"eval_episodes", "eval_envs", "num_candidates", "action_selection"}
        for f in fields(Args):
            old, new = getattr(saved, f.name), getattr(args, f.name)
            if old != new and f.name not in free:
                fail(f"the run in {given.resume or given.evaluate} was made with {f.name} = {old}, not {new}")
        if args.gradient_steps < saved.gradient_steps:
            fail(f"--gradient-steps can only grow on --resume (the run has {saved.gradient_steps})")
        return args

    env_id = given.env_id if given.env_id in TASKS else re.sub(r"-v\d+$", "", given.env_id or Args.env_id)
    if env_id not in TASKS:
        near = difflib.get_close_matches(env_id, TASKS, 3, 0.3)
        fail(f"there is no task {given.env_id} here; did you mean {', '.join(near) or 'one of ' + ', '.join(TASKS)}?")
    default = replace(Args(), **TASKS[env_id].row)
    if given.preset in PRESETS:
        default = replace(default, preset=given.preset, **PRESETS[given.preset])
        default = replace(default, **PRESET_ROWS.get(given.preset, {}).get(TASKS[env_id].like, {}))
    args = tyro.cli(Args, default=default, args=argv)
    return replace(args, env_id=env_id, action_clip=args.action_clip or args.entropy_estimator == "chain")


def load_args(run_dir: Path) -> Args:
    """Arguments of a saved run of this script."""
    try:
        saved = json.loads((run_dir / "run.json").read_text())
        script, values = saved["script"], saved["args"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"there is no run in {run_dir} ({type(error).__name__} while reading run.json)")
    if script != Path(__file__).name or values.get("env_id") not in TASKS:
        fail(f"{run_dir} is a run of {script} on {values.get('env_id')}, which this script cannot continue")
    if values.keys() != {f.name for f in fields(Args)} or not all(fits(values[f.name], f.type) for f in fields(Args)):
        fail(f"the arguments in {run_dir}/run.json are not those of this version of {script}")
    return Args(**values)


def fits(value, kind) -> bool:
    """Whether a JSON value has the type of a field."""
    options = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) is Literal:
        return value in options
    return (
        any(fits(value, k) for k in options) if options else type(value) in ((int, float) if kind is float else (kind,))
    )


LIMITS = {  # smallest and largest sensible value
    **dict.fromkeys(["gradient_steps", "batch_size", "hidden_dim", "num_diffusion_steps", "num_critics"], (1, 10**9)),
    **dict.fromkeys(["eval_every", "eval_episodes", "eval_envs", "num_candidates", "log_every"], (1, 10**9)),
    **dict.fromkeys(["actor_lr", "critic_lr", "grad_clip"], (1e-12, 1e9)),
    **dict.fromkeys(["gamma", "tau", "ema_decay"], (0, 1)),
    **dict.fromkeys(["eta", "lcb_coef", "ent_coef", "ema_start", "seed"], (0, 10**9)),
    **dict.fromkeys(["ema_every"], (1, 10**9)),
    "target_entropy": (-100, math.log(2)),  # above log 2 no policy on [-1, 1] can be
    "chain_std": (1e-6, 10),
}


def check_args(args: Args) -> None:
    """Say in one sentence what cannot work, before anything is written."""
    for name, (low, high) in LIMITS.items():
        value = getattr(args, name)
        if value not in (None, "auto") and not low <= value <= high:
            fail(f"--{name.replace('_', '-')} must lie between {low:g} and {high:g}, not {value}")
    if args.device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda, but torch sees no CUDA device here")
    if uses_critic(args) and args.num_critics < 2 and args.pessimism == "lcb":
        fail("the LCB needs at least two critics (a std over one does not exist): --num-critics 2 or --pessimism min")
    if args.entropy_estimator == "released" and args.num_diffusion_steps < 3:
        fail("--entropy-estimator released needs at least three diffusion steps")
    if args.entropy_estimator == "bridge" and args.num_diffusion_steps < 2:
        fail("--entropy-estimator bridge needs at least two diffusion steps")
    if args.ent_coef == "auto" and args.entropy_estimator != "chain":
        fail("--ent-coef auto needs --entropy-estimator chain, the only estimate that sees the policy's spread")
    if args.target_entropy is not None and args.ent_coef != "auto":
        fail("--target-entropy is for --ent-coef auto")
    sigma_1 = float(MeanRevertingSDE(args.num_diffusion_steps, args.schedule).sigma[0])
    if args.chain_std is not None and args.chain_std > sigma_1:
        fail(f"--chain-std may be at most sigma_1 = {sigma_1:.4f} with this schedule and number of steps")


# --- end shared ---


# --- shared: main ---
def optimisers(agent: Agent) -> dict[str, torch.optim.Optimizer]:
    """Those that exist, by name."""
    every = {"actor": agent.actor_opt, "critic": agent.critic_opt, "alpha": agent.alpha_opt}
    return {name: optimiser for name, optimiser in every.items() if optimiser}


def restore(agent: Agent, state: dict, source: str) -> None:
    """Put a checkpoint's weights and optimisers into the agent."""
    try:
        agent.load_state_dict(state["agent"])
        for name, optimiser in optimisers(agent).items():
            optimiser.load_state_dict(state["optimisers"][name])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        fail(f"the checkpoint in {source} does not fit its run.json: {str(error).splitlines()[0]}")


def provenance(args: Args, task: Task, info: dict) -> dict:
    """What one needs to run this again, for run.json."""
    packages = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")
    here = Path(__file__).resolve()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here.parent, capture_output=True, text=True)
    return {
        "script": here.name, "command": " ".join([here.name, *sys.argv[1:]]), "git_commit": git.stdout.strip() or None,
        "args": asdict(replace(args, resume=None)), "hyper_parameters_of": task.like, "dataset": info,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                    "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None},
    }  # fmt: skip


def introduce(args: Args, task: Task, info: dict, device: str, run_dir: Path) -> None:
    """Say what is about to happen."""
    own = "" if task.like == args.env_id else f" (the authors give no row for it: that of {task.like})"
    print(f"{args.env_id} in {task.env}{own}, preset {args.preset}, on {device}; run folder {run_dir}")
    print(
        f"data {info['id']} [{info['hash']}]: {info['transitions']} transitions, {info['episodes']} episodes, their own "
        f"{SCORE} {info['score']:.1f}; 0 and 100 are returns of {info['reference'][0]:g} and {info['reference'][1]:g}, "
        f"from {info['reference_from']}"
    )
    if info["actions_clipped"]:
        print(
            f"note: {info['actions_clipped']:.2%} of the data's action components lay outside [-1, 1] and were clipped"
        )
    hidden = ("env_id", "preset", "run_dir", "resume", "evaluate", "wandb_project_name", "wandb_entity")
    print("arguments " + " ".join(f"{k}={v}" for k, v in asdict(args).items() if k not in hidden))


def check_finite(agent: Agent, step: int, run_dir: Path) -> None:
    """Stop at the first NaN or infinity, before it gets into a checkpoint."""
    bad = {name: int(at) for name, at in zip(METRICS, agent.first_bad.tolist()) if at >= 0}
    if not bad and not all(bool(p.isfinite().all()) for p in agent.parameters()):
        bad = {"a network weight": step - 1}
    if bad:
        name = min(bad, key=bad.get)
        last = max(run_dir.glob("checkpoint_*.pt"), default="none")
        print(f"error: {name} is not finite from update {bad[name]} on; last good checkpoint: {last}", file=sys.stderr)
        sys.exit(1)


def set_target_entropy(agent: Agent, obs: torch.Tensor, generator: torch.Generator) -> None:
    """Target of automatic alpha: the entropy of the cloned policy, at most that of a uniform one (ours)."""
    states = obs[torch.randint(len(obs), (4096,), device=obs.device, generator=generator)]
    with torch.no_grad():
        bound = chain_entropy_bound(agent.sde, agent.score, states, agent.chain_std, generator) / agent.score.act_dim
    agent.target_entropy.copy_(bound.mean().clamp(max=math.log(2)))
    print(f"target entropy {float(agent.target_entropy):.3f} nats per action dimension")


def train(args: Args) -> None:
    """The whole run: data and agent, then updates with an evaluation and a checkpoint every `eval_every` of them."""
    task, run_dir = TASKS[args.env_id], Path(args.resume or args.run_dir or f"runs/{default_name(args)}")
    state = load_checkpoint(run_dir) if args.resume else None
    if not state and (run_dir / "run.json").exists():
        fail(f"there is a run in {run_dir} already; continue it with --resume {run_dir}")
    if state:
        torch.set_num_threads(state["threads"])  # how a product rounds depends on it
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    envs = vector_env(task, min(args.eval_envs, args.eval_episodes))
    obs_dim, act_dim = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    data, info = load_dataset(args, task, obs_dim, act_dim, device)

    torch.manual_seed(args.seed)  # for the network weights; all later noise comes from generators of our own
    agent = Agent(obs_dim, act_dim, args, device)
    generator = torch.Generator(device).manual_seed(args.seed)
    if args.normalize_obs:
        agent.obs_mean.copy_(data.obs.mean(0))
        agent.obs_std.copy_(data.obs.std(0).clamp(min=1e-3))
    data = data._replace(**{k: (getattr(data, k) - agent.obs_mean) / agent.obs_std for k in ("obs", "next_obs")})
    q_limit = float(data.reward.abs().max()) / max(1 - args.gamma, 1e-9)  # no return of these rewards is larger
    # Automatic alpha without a given target first clones the data (no Q, no entropy term), then reads its target off that.
    warmup_steps = args.gradient_steps // 20 if args.ent_coef == "auto" and args.target_entropy is None else 0
    step, logged, evaluated, seconds, history = 0, 0, 0, 0.0, []

    if state:
        if state["dataset_hash"] != info["hash"]:
            fail(f"the run in {run_dir} was made on other data ({state['dataset_hash']}, not {info['hash']})")
        restore(agent, state, str(run_dir))
        step, logged, evaluated = state["step"], state["logged"], state["evaluated"]
        seconds, history, warmup_steps = state["seconds"], state["history"], state["warmup_steps"]
        if state["device"] == device:
            generator.set_state(state["generator"])
        else:  # a CPU generator's state means nothing to a GPU's
            generator.manual_seed(args.seed + 10**6 * step)
    held = lock(run_dir)  # noqa: F841, held until the process ends
    for name, size in (state["files"] if state else {}).items():
        os.truncate(run_dir / name, size)  # rows written after this checkpoint will be written again
    (run_dir / "run.json").write_text(json.dumps(provenance(args, task, info), indent=1))
    track = start_tracking(args, run_dir) if args.track else None
    introduce(args, task, info, device, run_dir)

    def checkpoint() -> None:
        check_finite(agent, step, run_dir)
        files = {f.name: f.stat().st_size for f in run_dir.glob("*.csv")}
        save_checkpoint(run_dir, step, {
            "agent": agent.state_dict(), "optimisers": {k: o.state_dict() for k, o in optimisers(agent).items()},
            "generator": generator.get_state(), "device": device, "threads": torch.get_num_threads(), "step": step,
            "logged": logged, "evaluated": evaluated, "history": history, "warmup_steps": warmup_steps, "files": files,
            "seconds": seconds + time.time() - start, "reference": info["reference"], "dataset_hash": info["hash"],
        })  # fmt: skip

    stop = []  # filled by Ctrl-C or SIGTERM; the second one kills
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: (stop.append(n), signal.signal(n, signal.SIG_DFL)))
    start = mark = time.time()
    bar = tqdm(total=args.gradient_steps, initial=step, disable=not sys.stderr.isatty(), unit="update")
    if step == 0:
        checkpoint()
    while not stop:
        if step > evaluated and (step % args.eval_every == 0 or step == args.gradient_steps):
            pause = time.time()
            results = evaluate(agent, envs, args, info["reference"], args.eval_episodes, stop)
            if results is None:
                break
            for result in results:
                append_row(run_dir / "evaluations.csv", {"step": step, **result})
            figures = {name: float(column(results, name).mean()) for name in ("score", "return", "length")}
            loss = float(agent.diffusion_sum) / (step - evaluated)
            history.append({"step": step, **figures, "diffusion_loss": loss, "warmup": evaluated < warmup_steps})
            agent.diffusion_sum.zero_()
            evaluated = step
            checkpoint()
            tqdm.write(f"update {step}: {describe(results)}")
            if track:
                track.log({f"eval/{name}": value for name, value in figures.items()}, step=step)
            mark += time.time() - pause
        if step >= args.gradient_steps:
            break

        if warmup_steps and step == warmup_steps:
            set_target_entropy(agent, data.obs, generator)
        if args.lr_decay:
            decay = 0.5 * (1 + math.cos(math.pi * step / args.gradient_steps))
            agent.actor_opt.param_groups[0]["lr"] = args.actor_lr * decay
            if agent.critic_opt:
                agent.critic_opt.param_groups[0]["lr"] = args.critic_lr * decay
        batch, noise = draw_batch(data, args, generator)
        metrics = update(agent, batch, noise, args, step, warmup=step < warmup_steps)
        remember(agent, metrics, step, q_limit)
        step += 1
        bar.update()

        if step % args.log_every == 0 or step == args.gradient_steps:  # the only place that reads the device
            check_finite(agent, step, run_dir)
            speed = (step - logged) / (time.time() - mark)
            means = dict(zip(METRICS, (agent.metric_sum / (step - logged)).tolist()))
            large = int(agent.first_large_q)
            if logged <= large:
                tqdm.write(
                    f"warning: |Q| exceeds max |r| / (1 - gamma) = {q_limit:.4g} since update {large}: diverging?"
                )
            row = {"step": step, **means, "charts/actor_lr": agent.actor_opt.param_groups[0]["lr"]}
            append_row(
                run_dir / "metrics.csv", {**row, "charts/sps": speed, "charts/seconds": seconds + time.time() - start}
            )
            agent.metric_sum.zero_()
            logged, mark = step, time.time()
            latest = f"{history[-1]['score']:.1f}" if history else "-"
            line = (
                f"critic {means['losses/critic']:.3g} diffusion {means['losses/diffusion']:.3g} Q {means['q/mean']:.3g}"
                f"+-{means['q/std']:.2g} entropy {means['policy/entropy']:.3g} alpha {means['policy/alpha']:.2g}"
                f" score {latest}"
            )
            bar.set_postfix_str(line)
            if bar.disable:
                left = (args.gradient_steps - step) / speed
                print(f"{step}/{args.gradient_steps} {line} {speed:.0f}/s, {left / 60:.1f} min left", flush=True)
            if track:
                track.log(row, step=step)
    bar.close()
    if stop:
        checkpoint()
        print(f"stopped at update {step}; continue with: python {Path(__file__).name} --resume {run_dir}")
        sys.exit(128 + stop[0])
    if args.capture_video:
        film(agent, task, args, info["reference"], run_dir)
    conclude(history, args, info, run_dir)


def default_name(args: Args) -> str:
    """Folder of a run that was given none."""
    return f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"


def conclude(history: list[dict], args: Args, info: dict, run_dir: Path) -> None:
    """Print and save the three scores of a run. A best-of-run alone says little: it picks luck as well."""
    chosen = selections(history)
    (run_dir / "summary.json").write_text(json.dumps({**chosen, "data_score": info["score"]}, indent=1))
    print(f"{SCORE} of {args.env_id}, seed {args.seed}, {len(history)} evaluations of {args.eval_episodes} episodes")
    print(f"  last     {chosen['last']['score']:6.1f}  update {chosen['last']['step']}")
    print(
        f"  best     {chosen['best']['score']:6.1f}  update {chosen['best']['step']}, chosen by looking at the scores"
    )
    how = "its diffusion loss never settled: the last" if "never" in chosen["offline"] else "the diffusion loss settled"
    print(f"  offline  {chosen['offline']['score']:6.1f}  update {chosen['offline']['step']}, {how} (App. B.8)")
    print(f"  data     {info['score']:6.1f}  mean of the dataset's episodes")


def start_tracking(args: Args, run_dir: Path):
    """A Weights & Biases run; with WANDB_MODE=offline it needs no account."""
    import wandb

    return wandb.init(
        project=args.wandb_project_name, entity=args.wandb_entity, name=run_dir.name, id=run_dir.name, resume="allow",
        dir=run_dir, config=asdict(args),
    )  # fmt: skip


def evaluate_saved(args: Args) -> None:
    """Score the newest checkpoint of a run again."""
    task, run_dir = TASKS[args.env_id], Path(args.evaluate)
    state = load_checkpoint(run_dir)
    torch.set_num_threads(state["threads"])
    envs = vector_env(task, min(args.eval_envs, args.eval_episodes))
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0], args, device)
    restore(agent, state, str(run_dir))
    results = evaluate(agent, envs, args, state["reference"], args.eval_episodes, [])
    print(f"{args.env_id}, update {state['step']}: {describe(results)}")
    if args.capture_video:
        film(agent, task, args, state["reference"], run_dir)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    args = parse_args(argv)
    check_args(args)
    evaluate_saved(args) if args.evaluate else train(args)


if __name__ == "__main__":
    main()
# --- end shared ---
