# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "gymnasium-robotics==1.4.2",
#     "mujoco==3.3.7", "minari[hdf5,hf]==0.5.4", "tyro==1.0.17", "wandb==0.31.0", "moviepy==2.2.1",
# ]
# ///
"""EDQ on sparse-reward mazes: offline RL with an entropy-regularised diffusion policy, Q-ensemble.

Problem: learn to act from a fixed dataset. What a Q-function believes of actions that are not in
the data cannot be tested, so a policy that simply maximises Q runs off to where Q is wrong.
Idea: (1) the policy is a diffusion model, so it holds all modes of the data, and goes from noise
to an action in five steps; (2) an entropy term keeps it from shrinking onto one mode; (3) M
Q-networks, each with its own target, disagree where there is no data, and the policy maximises
their lower confidence bound (LCB) instead of their mean.

One update, on a batch (s, a, r, s') of the data:
    a' ~ policy(s')                                           reverse diffusion, EMA actor
    y_m = r + gamma (1 - end) Q'_m(s', a')                    a target for each of the M critics
    critic: least squares Q_m(s, a) -> y_m
    a_t = e^(-theta_bar_t) a + sigma_t eps                    noise the data action, eps ~ N(0, I)
    a_0 = (a_t - sigma_t eps_hat(a_t, t, s)) e^(theta_bar_t)  and predict it back
    LCB = mean_m Q_m(s, a_0) - beta std_m Q_m(s, a_0)
    actor: diffusion loss - eta LCB / |Q| - entropy term
    averages: EMA of the actor, Polyak average of the critics

Paper: Zhang et al., "Entropy-regularized Diffusion Policy with Q-Ensembles for Offline
Reinforcement Learning", NeurIPS 2024, arXiv 2402.04080; "Eq. 8" is its equation 8, "released" its
authors' code. More in README.md.
    python edq_antmaze.py --env-id antmaze-large-diverse --seed 3
    python edq_antmaze.py --evaluate runs/<run folder> --capture-video
"""

# --- shared: imports ---
import copy
import csv
import fcntl
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import time
import zipfile
from collections import namedtuple
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

# --- end shared ---
import gymnasium as gym
import gymnasium_robotics  # noqa: F401, registers its environments
import minari
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from gymnasium_robotics.envs.maze import maps
from minari.storage.datasets_root_dir import get_dataset_path
from torch import Tensor, nn
from torch.func import functional_call


@dataclass
class Args:
    """Train EDQ, evaluate it in the environment, or score a saved run.

    The values shown by --help are those of the chosen task and preset. The defaults below are the
    last resort: a task's row in TASKS goes before them, then its preset, then your flags.
    """

    env_id: str = "pointmaze-rare-embedded"
    """the task, one of TASKS: antmaze-{umaze,medium-play,...}, pointmaze-{umaze,...}"""
    # --- shared: arguments ---
    preset: Literal["edq", "edq-entropy", "edq-paper", "diffusion-ql", "diffusion-bc"] = "edq"
    """the method, see PRESETS; edq: as in the authors' code"""
    seed: int = 0  # seed of network weights, batches, noise and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one
    compile: bool = True  # fuse an update; on a GPU also capture it as a CUDA graph
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """of matmuls; auto: tf32 on a GPU, fp32 on a CPU"""
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "edq"  # Weights & Biases project
    capture_video: bool = False  # film three episodes of the last policy, in RUN_DIR/videos
    run_dir: str | None = None  # new folder of this run; by default one in runs
    resume: str | None = None  # run folder to continue
    evaluate: str | None = None  # run folder whose newest checkpoint is scored again

    # --- data ---
    dataset_id: str | None = None  # Minari id or folder, several with commas; default: the task's
    reward: Literal["raw", "antmaze", "standardize"] = "raw"
    """critics see r, 4 (r - 0.5), or (r - mean) / std"""
    normalize_obs: bool = False  # by the data's mean and std (the paper does not)

    # --- training ---
    gradient_steps: int = 2_000_000  # number of updates
    batch_size: int = 256  # B, transitions in an update
    actor_lr: float = 3e-4  # Adam rate of the diffusion policy
    critic_lr: float = 3e-4  # Adam rate of the Q-ensemble
    grad_clip: float = 4.0  # largest gradient norm, of the actor and of all critics together
    gamma: float = 0.99  # discount factor of a step
    tau: float = 0.005  # Polyak rate of the target critics, every update
    ema_decay: float = 0.995  # decay of the EMA actor, every fifth update from 1,000 on
    hidden_dim: int = 256  # width of all hidden layers

    # --- diffusion policy ---
    num_diffusion_steps: int = 5  # T, steps of the mean-reverting SDE
    schedule: Literal["cosine", "ddpm"] = "cosine"  # theta_t; ddpm: Diffusion-QL's
    diffusion_loss: Literal["noise", "likelihood", "likelihood_released"] = "noise"
    """behaviour cloning by Eq. 5, by App. A.3, or by App. A.3 as released"""
    action_clip: bool = True  # clamp the predicted a_0 to the action box at every sampling step
    policy_action: Literal["one_step", "chain"] = "one_step"
    """the action in the Q term: a_0 of Eq. 8, or that of all sampling steps"""
    eta: float = 1.0  # weight of the Q term against the diffusion loss

    # --- ensemble ---
    num_critics: int = 64  # M, Q-networks
    lcb_coef: float = 4.0  # beta, standard deviations below the mean
    pessimism: Literal["lcb", "min"] = "lcb"
    """what the actor maximises: the LCB (Eq. 17), or the minimum"""
    target: Literal["own", "min"] = "own"
    """TD target: each critic's own (Eq. 16), or the minimum of all"""
    max_q_backup: bool = False  # TD target from the best of ten next actions, critic by critic

    # --- entropy ---
    entropy_estimator: Literal["none", "released", "chain"] = "released"
    """released: as in the authors' code; chain: a lower bound that sees the policy's spread"""
    ent_coef: float | Literal["auto"] = 0.01
    """alpha, its weight: for released against the term's own size, for chain per nat and dimension;
    auto: learned per state (App. B.3)"""
    target_entropy: float | None = None  # for auto: nats per action dimension
    chain_std: float = 0.2  # for chain: std of the last step (sigma_1, if that is smaller)

    # --- evaluation and logging ---
    eval_every: int = 50_000  # updates between two evaluations; each is followed by a checkpoint
    eval_episodes: int = 100  # episodes of one evaluation
    eval_envs: int = 10  # environments stepped together; results depend on it
    eval_workers: bool = False  # each of them in a process of its own: for slow simulators
    num_candidates: int = 50  # K, actions drawn for a state when acting
    action_selection: Literal["softmax", "argmax"] = "softmax"  # how one of K is chosen by its LCB
    log_every: int = 1000  # updates between two rows of metrics.csv


# === The algorithm ===
# B batch, S observation, A action, M critics, T diffusion steps, K candidates.
# The paper's t = 1..T is index t - 1 here, in tensors and arguments alike.
class Mish(nn.Module):
    """x tanh(log(1 + e^x)) with one exponential: at small widths it costs more than the matmuls."""

    def forward(self, x: Tensor) -> Tensor:
        u = x.clamp(max=20).exp() + 1
        u = u.square().add_(1)
        return torch.addcdiv(x, x, u, value=-2)  # x - 2 x / ((1 + e^x)^2 + 1)


class NoiseMLP(nn.Module):
    """The actor: predicts noise, eps_hat(a_t, t, s). The score is -eps_hat / sigma_t."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dim: int = 256):
        super().__init__()
        self.act_dim = act_dim
        frequencies = 10000 ** (-torch.arange(8) / 7)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_embedding = nn.Sequential(
            nn.Linear(16, 32),
            Mish(),
            nn.Linear(32, 16),
        )
        self.layers = nn.Sequential(
            nn.Linear(act_dim + 16 + obs_dim, hidden_dim),
            Mish(),
            nn.Linear(hidden_dim, hidden_dim),
            Mish(),
            nn.Linear(hidden_dim, hidden_dim),
            Mish(),
            nn.Linear(hidden_dim, act_dim),
        )

    def forward(self, a_t: Tensor, t: int | Tensor, obs: Tensor) -> Tensor:
        """a_t `[..., A]`, t an index (int or `[...]`), obs `[..., S]` -> `[..., A]`."""
        if isinstance(t, Tensor):
            t = t.unsqueeze(-1)
        angle = t * self.frequencies
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        time = self.time_embedding(waves)
        time = time.expand(*a_t.shape[:-1], 16)
        return self.layers(torch.cat([a_t, time, obs], -1))


class EnsembleLinear(nn.Module):
    """M linear layers as one batched matmul: `[M, B, in]` -> `[M, B, out]`."""

    def __init__(self, num_critics: int, size_in: int, size_out: int, bf16: bool = False):
        super().__init__()
        self.bf16 = bf16
        self.weight = nn.Parameter(torch.empty(num_critics, size_in, size_out))
        self.bias = nn.Parameter(torch.full((num_critics, 1, size_out), 0.1))
        # As released (EDAC's): a hidden layer's bound follows its output size, its bias is 0.1.
        if size_out > 1:
            bound = 1 / math.sqrt(size_out)
            nn.init.uniform_(self.weight, -bound, bound)
        else:
            nn.init.uniform_(self.weight, -3e-3, 3e-3)
            nn.init.uniform_(self.bias, -3e-3, 3e-3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.bf16:
            x = x.bfloat16()
            weight = weight.bfloat16()
        return torch.bmm(x, weight).float().add_(self.bias)


class QEnsemble(nn.Module):
    """M independent Q-networks. bf16 is for the two large matmuls alone."""

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        num_critics: int = 64,
        hidden_dim: int = 256,
        bf16: bool = False,
    ):
        super().__init__()
        self.num_critics = num_critics
        self.layers = nn.Sequential(
            EnsembleLinear(num_critics, obs_dim + act_dim, hidden_dim),
            Mish(),
            EnsembleLinear(num_critics, hidden_dim, hidden_dim, bf16),
            Mish(),
            EnsembleLinear(num_critics, hidden_dim, hidden_dim, bf16),
            Mish(),
            EnsembleLinear(num_critics, hidden_dim, 1),
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """obs `[B, S]`, action `[B, A]` -> Q `[M, B]`."""
        x = torch.cat([obs, action], -1)
        x = x.expand(self.num_critics, -1, -1)  # [M, B, S + A], a view
        return self.layers(x).squeeze(-1)

    def frozen(self, obs: Tensor, action: Tensor) -> Tensor:
        """The same with a gradient for the action alone: one for the weights would cost time."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return functional_call(self, weights, (obs, action))


class MeanRevertingSDE:
    """da = -theta_t a dt + sqrt(2 theta_t) dw (Eq. 1), which draws every action to N(0, I).

    Its conditionals are Gaussians in closed form. Tables of length T: theta_dt is theta'_t,
    theta_bar its running sum, sigma the std of a_t given a_0; w_t, w_0 and posterior_var give
    p(a_{t-1} | a_t, a_0). In the methods t is an index, int or `[B]`; all else is `[B, A]`.
    """

    def __init__(self, num_steps: int, schedule: str = "cosine", device="cpu"):
        T = num_steps
        t = torch.arange(1, T + 1, dtype=torch.float64)
        if schedule == "ddpm":
            low, high = 0.1, 10.0  # beta_min and beta_max
            theta = 0.5 * (low / T + 0.5 * (high - low) * (2 * t - 1) / T**2)
        else:
            angle = (t / (T + 1) + 0.008) / 1.008 * math.pi / 2
            f = torch.cos(angle) / math.cos(0.004 / 1.008 * math.pi)
            theta = 1 - f**2
            # The step dt is such that e^(-theta_bar_T) = 0.001: a_T has forgotten a_0.
            theta = theta * (math.log(1000) / theta.sum())
        theta_bar = theta.cumsum(0)
        theta_bar_before = torch.cat([theta_bar.new_zeros(1), theta_bar[:-1]])  # of t - 1

        step_var = -torch.expm1(-2 * theta)  # of a_t given a_{t-1}
        var = -torch.expm1(-2 * theta_bar)  # of a_t given a_0
        var_before = -torch.expm1(-2 * theta_bar_before)  # of a_{t-1} given a_0

        # Cast only now: computed in float32, theta'_1 would be off by 1e-4 at T = 100.
        table = partial(torch.Tensor.to, device=device, dtype=torch.float32)
        self.num_steps = num_steps
        self.theta_dt = table(theta)
        self.theta_bar = table(theta_bar)
        self.sigma = table(var.sqrt())
        self.w_t = table(torch.exp(-theta) * var_before / var)  # Eq. 7
        self.w_0 = table(torch.exp(-theta_bar_before) * step_var / var)
        self.posterior_var = table(step_var * var_before / var)

    def perturb(self, a0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Sample p(a_t | a_0) = N(e^(-theta_bar_t) a_0, sigma_t^2), Eq. 4."""
        decay = torch.exp(-self.theta_bar[t]).unsqueeze(-1)
        return decay * a0 + self.sigma[t].unsqueeze(-1) * noise

    def predict_a0(self, a_t: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Invert `perturb`: (a_t - sigma_t eps) e^(theta_bar_t), Eq. 8."""
        growth = torch.exp(self.theta_bar[t]).unsqueeze(-1)
        sigma = self.sigma[t].unsqueeze(-1)
        return (a_t - sigma * noise) * growth

    def posterior_mean(self, a_t: Tensor, a0: Tensor, t: int | Tensor) -> Tensor:
        """Mean of p(a_{t-1} | a_t, a_0), Eq. 7."""
        w_t = self.w_t[t].unsqueeze(-1)
        w_0 = self.w_0[t].unsqueeze(-1)
        return w_t * a_t + w_0 * a0

    def euler_step(self, a_t: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """Mean of a_{t-1} by one Euler step of the reverse SDE (Eq. 3), score -eps / sigma_t."""
        theta = self.theta_dt[t].unsqueeze(-1)
        sigma = self.sigma[t].unsqueeze(-1)
        return a_t + theta * a_t - 2 * theta * eps / sigma


def sample_actions(
    actor,
    sde,
    obs: Tensor,
    action_clip: bool = True,
    generator=None,
    noise: Tensor | None = None,
) -> Tensor:
    """Run the diffusion back from N(0, I): obs `[..., S]` -> actions `[..., A]` in [-1, 1].

    noise `[T, ..., A]` is a_T and then one row a step; without it, it is drawn.
    """
    if noise is None:
        shape = (sde.num_steps, *obs.shape[:-1], actor.act_dim)
        noise = torch.randn(shape, device=obs.device, generator=generator)
    a_t = noise[0]
    for t in reversed(range(sde.num_steps)):
        a0 = sde.predict_a0(a_t, t, actor(a_t, t, obs))
        if action_clip:
            a0 = a0.clamp(-1, 1)
        a_t = sde.posterior_mean(a_t, a0, t)  # Prop. 3.1, with a_0 predicted
        if t > 0:  # the last step has variance 0
            a_t = a_t + sde.posterior_var[t].sqrt() * noise[sde.num_steps - t]
    return a_t.clamp(-1, 1)


def log_transition(x: Tensor, y: Tensor, dt: Tensor) -> Tensor:
    """Log density per dimension of N(x; e^(-dt) y, 1 - e^(-2 dt)): from y to x in SDE time dt."""
    var = -torch.expm1(-2 * dt)
    distance = x - y * torch.exp(-dt)
    return -0.5 * (torch.log(2 * math.pi * var) + distance**2 / var)


def entropy_estimate(sde, a0: Tensor, aT: Tensor) -> Tensor:
    """The released -log p(a_1 | a_T, a_0), Eq. 13 and 14; `[B, A]` -> `[B]`.

    Right would be log p(a_T | a_1) + log p(a_1 | a_0) - log p(a_T | a_0). The code exchanges from
    and to, and takes t = 2 and 1 for t = 1 and 0. For T = 5 that leaves, on average over a_T,
    0.7787 + 0.0628 a_0^2 per dimension: it rewards large a_0 and does not see the policy's spread.
    aT is drawn from N(0, I), whatever a_0 is.
    """
    bar_0 = sde.theta_bar[0]
    bar_1 = sde.theta_bar[1]
    bar_T = sde.theta_bar[-1]
    a1 = a0 * (1 - sde.theta_dt[0])
    log_p = log_transition(a1, aT, bar_T - bar_1)
    log_p = log_p + log_transition(a0, a1, bar_1 - bar_0)
    log_p = log_p - log_transition(a0, aT, bar_T - bar_0)
    return -log_p.sum(-1)


def chain_entropy_bound(
    sde,
    actor,
    obs: Tensor,
    chain_std: float,
    generator=None,
    noise: Tensor | None = None,
) -> Tensor:
    """Lower bound, in nats, on the policy's entropy; obs `[B, S]` -> `[B]`.

    H >= E[log f(a_1..a_T | a_0) - log q(a_0..a_T)]: f is the SDE, q our reverse chain (Eq. 10),
    whose last step has std `chain_std` here (when acting it has none, and no density). An idea of
    maximum-entropy diffusion RL (Celik et al. 2025, DIME). Unlike the released term it has a
    gradient in the spread. noise is `[T + 1, B, A]`.
    """
    if noise is None:
        shape = (sde.num_steps + 1, *obs.shape[:-1], actor.act_dim)
        noise = torch.randn(shape, device=obs.device, generator=generator)
    log_2pi = math.log(2 * math.pi)
    a_t = noise[0]
    bound = 0.5 * (log_2pi + a_t**2)  # -log N(a_T; 0, I)
    for t in reversed(range(sde.num_steps)):
        z = noise[sde.num_steps - t]
        std = sde.posterior_var[t].sqrt()
        if t == 0:
            std = torch.full_like(std, chain_std)
        a0 = sde.predict_a0(a_t, t, actor(a_t, t, obs))
        a0 = a0.clamp(-1, 1)  # else entropy is bought outside the action box
        a_prev = sde.posterior_mean(a_t, a0, t) + std * z
        bound = bound + log_transition(a_t, a_prev, sde.theta_dt[t])
        bound = bound + 0.5 * (log_2pi + z**2) + std.log()  # -log q(a_prev | a_t)
        a_t = a_prev
    return bound.sum(-1)


def lower_confidence_bound(q: Tensor, coef: float) -> Tensor:
    """Eq. 17: mean - coef * std over the critics, unbiased, so M >= 2; q `[M, ...]` -> `[...]`."""
    return q.mean(0) - coef * q.std(0)


METRICS = [
    "losses/critic",
    "losses/diffusion",
    "losses/q",
    "losses/entropy",
    "losses/actor",
    "q/mean",
    "q/std",
    "q/max_abs",
    "q/target",
    "policy/entropy",
    "policy/alpha",
]


class Agent(nn.Module):
    """All that learns, and the buffers that have to survive a restart with it."""

    def __init__(self, obs_dim: int, act_dim: int, args, device: str = "cpu"):
        super().__init__()
        self.sde = MeanRevertingSDE(args.num_diffusion_steps, args.schedule, device)
        self.chain_std = min(args.chain_std, float(self.sde.sigma[0]))
        self.actor = NoiseMLP(obs_dim, act_dim, args.hidden_dim)
        self.actor_ema = copy.deepcopy(self.actor).requires_grad_(False)
        self.q = None
        self.target_q = None
        self.alpha = None
        if args.eta > 0 or args.num_candidates > 1:  # Q is in the actor's loss, or ranks candidates
            bf16 = args.precision == "bf16"
            self.q = QEnsemble(obs_dim, act_dim, args.num_critics, args.hidden_dim, bf16)
            self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        if args.ent_coef == "auto":  # alpha(s), App. B.3
            hidden = nn.Linear(obs_dim, 32)
            head = nn.Linear(32, 1)
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, math.log(math.expm1(0.01)))  # 0.01 in every state at first
            self.alpha = nn.Sequential(
                hidden,
                Mish(),
                head,
                nn.Softplus(),
                nn.Flatten(0),
            )
        self.register_buffer("obs_mean", torch.zeros(obs_dim))  # for --normalize-obs
        self.register_buffer("obs_std", torch.ones(obs_dim))
        self.register_buffer("metric_sum", torch.zeros(len(METRICS)))  # since the last logged row
        self.to(device)

        def adam(net, lr: float):
            rate = torch.tensor(lr, device=device)  # a tensor, so that a CUDA graph sees a schedule
            on_gpu = device == "cuda"
            return torch.optim.Adam(net.parameters(), rate, fused=True, capturable=on_gpu)

        self.optimisers = {"actor": adam(self.actor, args.actor_lr)}
        if self.q:
            self.optimisers["critic"] = adam(self.q, args.critic_lr)
        if self.alpha:
            self.optimisers["alpha"] = adam(self.alpha, 3e-4)


# obs [B, S], action [B, A], reward [B], next_obs [B, S], end [B]: 1 where the episode is over. At a
# time limit it is 0: the target goes on from there.
Transitions = namedtuple("Transitions", "obs action reward next_obs end")
# All randomness of an update is drawn before it, so that the update itself is a function:
# target [T, B * N, A] with N = 10 for max_q_backup, else 1; t [B]; eps [B, A]; aT [B, A] for the
# released entropy; chain [T + 1, B, A].
Noise = namedtuple("Noise", "target t eps aT chain")


def draw_batch(data, args, g) -> tuple[Transitions, Noise]:
    """A uniform batch, with replacement, and the noise of one update."""
    B = args.batch_size
    A = data.action.shape[-1]
    T = args.num_diffusion_steps
    N = 10 if args.max_q_backup else 1
    uniform = partial(torch.randint, size=(B,), generator=g, device=g.device)
    normal = partial(torch.randn, generator=g, device=g.device)
    index = uniform(len(data.obs))
    t = uniform(T)
    noise = Noise(
        target=normal(T, B * N, A),
        t=t,
        eps=normal(B, A),
        aT=normal(B, A),
        chain=normal(T + 1, B, A),
    )
    return Transitions(*(x[index] for x in data)), noise


def td_target(agent, batch, noise: Tensor, args) -> Tensor:
    """Eq. 16: r + gamma Q'(s', a'), a' from the EMA actor; `[M, B]`, a target for each critic."""
    noise = noise.unflatten(1, (len(batch.reward), -1))  # [T, B, N, A]
    N = noise.shape[2]
    next_obs = batch.next_obs.unsqueeze(1).expand(-1, N, -1)
    next_action = sample_actions(
        agent.actor_ema, agent.sde, next_obs, args.action_clip, noise=noise
    )  # [B, N, A]
    # max-Q, critic by critic; one of the N at a time, as memory would grow by a factor of N.
    next_q = agent.target_q(batch.next_obs, next_action[:, 0])  # [M, B]
    for i in range(1, N):
        next_q = torch.maximum(next_q, agent.target_q(batch.next_obs, next_action[:, i]))
    if args.target == "min":
        next_q = next_q.amin(0).expand_as(next_q)
    return batch.reward + args.gamma * (1 - batch.end) * next_q


def critic_loss(agent, batch, target: Tensor) -> dict[str, Tensor]:
    """Mean squared TD error over critics and batch; target `[M, B]`."""
    q = agent.q(batch.obs, batch.action)  # [M, B]
    return {
        "losses/critic": F.mse_loss(q, target),
        "q/max_abs": q.detach().abs().max(),
        "q/target": target.mean(),
    }


def diffusion_loss(
    sde,
    a_t: Tensor,
    a0: Tensor,
    t: Tensor,
    eps: Tensor,
    eps_hat: Tensor,
    kind: str,
) -> Tensor:
    """Behaviour cloning (BC): how well a_t's noise is predicted; `[B, A]`, t `[B]` -> scalar."""
    if kind == "noise":
        return F.mse_loss(eps_hat, eps)  # Eq. 5
    # a_{t-1} on the best path to the data action, App. A.3
    optimal = sde.posterior_mean(a_t, a0, t)
    if kind == "likelihood":
        a0_hat = sde.predict_a0(a_t, t, eps_hat)
        return F.mse_loss(sde.posterior_mean(a_t, a0_hat, t), optimal)
    # Released: an Euler step against the exact path, which differ even for the true noise.
    return F.mse_loss(sde.euler_step(a_t, t, eps_hat), optimal)


def actor_losses(agent, batch, noise, args) -> dict[str, Tensor]:
    """Eq. 15 and its parts: stay near the data, maximise the LCB, keep entropy."""
    sde = agent.sde
    obs, a0, t, eps = batch.obs, batch.action, noise.t, noise.eps
    a_t = sde.perturb(a0, t, eps)
    eps_hat = agent.actor(a_t, t, obs)
    a0_hat = sde.predict_a0(a_t, t, eps_hat)  # Eq. 8
    loss = diffusion_loss(sde, a_t, a0, t, eps, eps_hat, args.diffusion_loss)
    out = {"losses/diffusion": loss}

    if args.eta > 0:
        action = a0_hat.clamp(-1, 1)
        if args.policy_action == "chain":
            chain = noise.chain[:-1]
            action = sample_actions(agent.actor, sde, obs, args.action_clip, noise=chain)
        q = agent.q.frozen(obs, action)  # [M, B]
        value = pessimistic_value(q, args)
        scale = q.abs().mean().detach()  # so that eta means the same at any scale of Q
        out["losses/q"] = -value.mean() / scale
        out["q/mean"] = q.mean()
        correction = min(1, len(q) - 1)  # a single Q has no std
        out["q/std"] = q.std(0, correction=correction).mean()
        loss = loss + args.eta * out["losses/q"]

    if args.entropy_estimator == "released":
        entropy = entropy_estimate(sde, a0_hat, noise.aT)  # [B]
        scale = entropy.abs().mean().detach()
        out["losses/entropy"] = -args.ent_coef * entropy.mean() / scale
        out["policy/entropy"] = entropy.mean() / agent.actor.act_dim
        out["policy/alpha"] = 0 * scale + args.ent_coef  # may be a tensor
        loss = loss + out["losses/entropy"]
    if args.entropy_estimator == "chain":
        bound = chain_entropy_bound(sde, agent.actor, obs, agent.chain_std, noise=noise.chain)
        entropy = bound / agent.actor.act_dim  # [B]
        if agent.alpha:
            alpha = agent.alpha(obs).detach().clamp(1e-4, 1)  # [B]
        else:
            alpha = torch.full_like(entropy, args.ent_coef)
        out["losses/entropy"] = -(alpha * entropy).mean()
        out["policy/entropy"] = entropy.mean()
        out["policy/alpha"] = alpha.mean()
        out["entropy"] = entropy  # for the update of alpha
        loss = loss + out["losses/entropy"]

    out = {name: value.detach() for name, value in out.items()}
    return out | {"losses/actor": loss}


def pessimistic_value(q: Tensor, args) -> Tensor:
    """What the actor maximises and what ranks candidates: q `[M, ...]` -> `[...]`."""
    return q.amin(0) if args.pessimism == "min" else lower_confidence_bound(q, args.lcb_coef)


def minimise(loss: Tensor, net, optimiser, grad_clip: float):
    """One Adam step on `net` alone: other networks in the loss get no gradient."""
    optimiser.zero_grad()
    loss.backward(inputs=list(net.parameters()))
    nn.utils.clip_grad_norm_(net.parameters(), grad_clip)
    optimiser.step()


def update(agent, batch, noise, args, step: int | Tensor):
    """Update number `step`, from 0: critics, actor, averages. Nothing is read from the device."""
    out = {}
    if agent.q:
        with torch.no_grad():
            target = td_target(agent, batch, noise.target, args)  # [M, B]
        out |= critic_loss(agent, batch, target)
        minimise(out["losses/critic"], agent.q, agent.optimisers["critic"], args.grad_clip)

    out |= actor_losses(agent, batch, noise, args)
    minimise(out["losses/actor"], agent.actor, agent.optimisers["actor"], args.grad_clip)

    if agent.alpha:  # rises where the entropy is below its target, falls where above (App. B.3)
        gap = out["entropy"] - args.target_entropy
        alpha_loss = (agent.alpha(batch.obs) * gap).mean()
        minimise(alpha_loss, agent.alpha, agent.optimisers["alpha"], math.inf)

    with torch.no_grad():
        # As released: the EMA actor keeps its initial weights until update 1,000.
        due = (step >= 1000) & (step % 5 == 0)
        rate = (1 - args.ema_decay) * due
        pairs = zip(agent.actor_ema.parameters(), agent.actor.parameters())
        for average, new in pairs:
            average.lerp_(new, rate)
        if agent.q:
            targets = list(agent.target_q.parameters())
            torch._foreach_lerp_(targets, list(agent.q.parameters()), args.tau)
        zero = torch.zeros_like(agent.metric_sum[0])
        metrics = [out.get(name, zero).detach() for name in METRICS]
        agent.metric_sum += torch.stack(metrics)


@torch.no_grad()
def act(agent, obs: Tensor, noise: Tensor, u: Tensor, args) -> Tensor:
    """One of K candidates (not in the paper), with probability softmax(LCB of the target critics).

    As released, candidates come from the online actor, while TD targets use the EMA actor.
    obs `[R, S]`, noise `[T, R, K, A]`, u `[R]` uniform in [0, 1) -> actions `[R, A]`.
    """
    R, K = noise.shape[1:3]
    obs = (obs - agent.obs_mean) / agent.obs_std
    obs = obs.unsqueeze(1).expand(R, K, -1)
    candidates = sample_actions(agent.actor, agent.sde, obs, args.action_clip, noise=noise)
    if K == 1:
        return candidates[:, 0]
    q = agent.target_q(obs.flatten(0, 1), candidates.flatten(0, 1))  # [M, R * K]
    value = pessimistic_value(q, args).unflatten(0, (R, K))
    choice = value.argmax(1)
    if args.action_selection == "softmax":  # invert the cumulative probabilities at u
        cumulative = value.softmax(1).cumsum(1)
        choice = (cumulative < u.unsqueeze(1)).sum(1)
        choice = choice.clamp(max=K - 1)
    return candidates[torch.arange(R, device=obs.device), choice]


# === Speed: the same update, in fewer and larger pieces ===
def compile_functions():
    """Fuse what lies between the matmuls: bias, activation, losses, and their gradients."""
    global td_target, critic_loss, actor_losses, act
    td_target = torch.compile(td_target, dynamic=False)
    critic_loss = torch.compile(critic_loss, dynamic=False)
    actor_losses = torch.compile(actor_losses, dynamic=False)
    act = torch.compile(act, dynamic=False)


def make_step(agent, data, args, g, first: int):
    """Update number `first` and those after it, draws included, as a function of nothing."""
    number = torch.tensor(first, device=g.device)

    def step():
        update(agent, *draw_batch(data, args, g), args, number)
        number.add_(1)

    if g.device.type == "cuda" and args.compile:
        return capture(step, g)
    return step


def capture(step, g):
    """After three calls to warm up, record a CUDA graph: an update is then a single launch.

    So what changes between calls has to be a tensor, and nothing may be read back.
    """
    torch.cuda.synchronize()
    torch.cuda.set_stream(torch.cuda.Stream())  # a graph must not meet work of the default stream
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(g)
    calls = 0

    def replay():
        nonlocal calls
        calls += 1
        if calls < 4:
            return step()
        if calls == 4:
            with torch.cuda.graph(graph):
                step()
        graph.replay()

    return replay


# === Evaluation ===
# env_kwargs are those of gym.make; reference: D4RL's returns of a random and of an expert policy,
# used if the data have none in their metadata; dataset: Minari id(s) or folder; row:
# hyperparameters; presets: what a preset changes in this task alone.
Task = namedtuple("Task", "env env_kwargs reference dataset row presets")


def vector_env(args, film_dir=None):
    """Environments stepped together, observations flat; three that are filmed, with `film_dir`."""
    task = TASKS[args.env_id]
    probe = make_env(task)
    shape = flatten_obs(probe.reset(seed=0)[0]).shape
    probe.close()
    space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)

    def make(i: int):
        if multiprocessing.parent_process():
            os.setpgrp()  # a signal to the run's process group is not for its simulators
        env = make_env(task, "rgb_array" if film_dir else None)
        if film_dir:
            env = gym.wrappers.RecordVideo(
                env,
                str(film_dir),
                episode_trigger=lambda episode: episode == 0,
                name_prefix=str(i),
                disable_logger=True,
            )
        return gym.wrappers.TransformObservation(env, flatten_obs, space)

    count = 3 if film_dir else min(args.eval_envs, args.eval_episodes)
    makers = [partial(make, i) for i in range(count)]
    if args.eval_workers and not film_dir:
        return gym.vector.AsyncVectorEnv(makers)
    return gym.vector.SyncVectorEnv(makers)


signals: list[int] = []  # that have asked this process to stop


def evaluate(agent, envs, args, reference, episodes: int):
    """Results of `episodes` episodes, some at a time; none if a signal comes meanwhile."""
    device = agent.obs_mean.device
    g = torch.Generator(device).manual_seed(args.seed + 100)
    n = envs.num_envs
    act_dim = envs.single_action_space.shape[0]
    noise_shape = (args.num_diffusion_steps, n, args.num_candidates, act_dim)
    results = []
    while len(results) < episodes:
        seed = 10_000 * (args.seed + 100) + len(results)
        obs, _ = envs.reset(seed=seed)  # and seed + 1, ... of the other environments
        rewards = [[] for _ in range(n)]
        running = np.ones(n, bool)
        while running.any():
            if signals:
                return []
            noise = torch.randn(noise_shape, device=device, generator=g)
            u = torch.rand(n, device=device, generator=g)
            obs = torch.from_numpy(obs).to(device)
            action = act(agent, obs, noise, u, args)
            obs, reward, terminated, truncated, _ = envs.step(action.numpy(force=True))
            for i in np.flatnonzero(running):
                rewards[i].append(float(reward[i]))
            running &= ~(terminated | truncated)  # one that is done goes on by itself, unheeded
        results += [episode_result(np.array(r), reference) for r in rewards]
    return results[:episodes]


def means(results) -> dict[str, float]:
    """Mean of each figure over the episodes that have it, and the score's standard error."""
    out = {}
    for name in results[0]:
        values = np.array([result[name] for result in results], float)
        values = values[np.isfinite(values)]  # an episode may never reach the goal
        out[name] = float(values.mean()) if len(values) else math.nan
    scores = [result["score"] for result in results]
    spread = np.std(scores, ddof=min(1, len(scores) - 1))
    out["standard_error"] = float(spread) / math.sqrt(len(scores))
    return out


def film(agent, args, reference, run_dir):
    """Three episodes as mp4 files."""
    envs = vector_env(args, run_dir / "videos")
    evaluate(agent, envs, args, reference, 3)
    envs.close()  # which writes what is not written yet


# === Data ===
def fail(sentence: str, error=None):
    """Bad input: one sentence, exit code 2."""
    if error:
        sentence += f" ({type(error).__name__}: {error})".splitlines()[0][:200]
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def check(condition: bool, sentence: str):
    """What has to hold of the input, and the sentence if it does not."""
    if not condition:
        fail(sentence)


def say(text: str):
    """Print a line at once. A reader that has gone, `head` for one, does not end the run."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def find_dataset(name: str):
    """Folder of a Minari dataset, given as a folder or an id; downloaded if need be."""
    path = Path(name).expanduser()
    maker = "results/datasets/import_d4rl.py makes a dataset of D4RL's HDF5"
    check(not path.is_file(), f"{name} is a file, not a Minari dataset; {maker}")
    try:
        if not (path / "data").is_dir():
            path = get_dataset_path(name)
        if not (path / "data").is_dir():
            minari.download_dataset(name)
    except Exception as error:  # network and hub fail in many ways
        fail(f"dataset {name} is not on this machine and cannot be downloaded", error)
    return path / "data"


def read_dataset(name: str, task) -> tuple[dict, list[Transitions]]:
    """Metadata and episodes."""
    path = find_dataset(name)
    try:
        metadata = json.loads((path / "metadata.json").read_text())
        # If a stranger's file states no spaces, Minari would make its environment and run its code.
        stated = {"observation_space", "action_space"} <= metadata.keys()
        if metadata["data_format"] != "hdf5" or not stated:
            raise ValueError("not an HDF5 dataset that states its spaces")
        problem = misfit(metadata, task)
        check(problem is None, f"dataset {name} is for another task: {problem}")
        episodes = [read_episode(episode) for episode in minari.MinariDataset(str(path))]
        total = sum(len(episode.reward) for episode in episodes)
        if not 0 < total == metadata["total_steps"]:
            raise ValueError("it is empty, or not as long as its metadata say")
    except Exception as error:  # h5py, JSON and Minari fail in many ways
        fail(f"dataset {name} cannot be read", error)
    return metadata, episodes


def read_episode(episode):
    """N transitions of N + 1 observations: none crosses the end of the episode."""
    obs = flatten_obs(episode.observations)
    action = np.asarray(episode.actions, np.float32)
    n = len(action)
    if len(obs) != n + 1 or obs.ndim != 2 or action.ndim != 2:
        raise ValueError(f"episode {episode.id}: {obs.shape} observations, {action.shape} actions")
    reward = np.asarray(episode.rewards, np.float32).reshape(n)  # some have a column, [N, 1]
    end = np.asarray(episode.terminations, np.float32).reshape(n)  # a time limit is no end
    if SUCCESS_ENDS:
        end = np.maximum(end, reward > 0).astype(np.float32)
    return Transitions(obs[:-1], action, reward, obs[1:], end)


def load_dataset(args, device: str) -> tuple[Transitions, dict]:
    """All transitions of the named sets as float32 tensors, and what is worth knowing of them."""
    task = TASKS[args.env_id]
    ids = args.dataset_id or task.dataset
    check(ids is not None, f"Minari has no {args.env_id}: name a dataset with --dataset-id")
    episodes = []
    reference = None
    for name in ids.split(","):
        metadata, more = read_dataset(name.strip(), task)
        episodes += more
        if reference is None and metadata.get("ref_max_score") is not None:
            reference = [float(metadata["ref_min_score"]), float(metadata["ref_max_score"])]
    widths = {(e.obs.shape[1], e.action.shape[1]) for e in episodes}
    check(len(widths) == 1, f"the sets {ids} differ in their observations or actions: {widths}")
    flat = Transitions(*map(np.concatenate, zip(*episodes)))
    finite = all(np.isfinite(x).all() for x in flat)
    check(finite, f"dataset {ids} has NaN or infinite numbers in it")

    content = b"".join(x.tobytes() for x in flat)
    info = {
        "id": ids,
        "hash": hashlib.sha256(content).hexdigest()[:16],
        "transitions": len(flat.reward),
        "episodes": len(episodes),
        "reference": reference or list(task.reference),
        "reference_from": "metadata" if reference else "D4RL's table",
        "clipped_actions": float((np.abs(flat.action) > 1).mean()),
    }
    limit = task.env_kwargs.get("max_episode_steps")  # of an evaluation, if it is a shorter one
    results = [episode_result(e.reward[:limit], info["reference"]) for e in episodes]
    info |= {f"mean_{name}": value for name, value in means(results).items()}
    if info["clipped_actions"] > 0.05:
        share = 100 * info["clipped_actions"]
        say(f"warning: {share:.0f} % of the data's action components are clipped to [-1, 1]")

    reward = flat.reward
    if args.reward == "antmaze":
        reward = (reward - 0.5) / 0.25
    if args.reward == "standardize":
        std = reward.std(ddof=1)
        check(std > 0, f"all rewards of {ids} are equal: take --reward raw")
        reward = (reward - reward.mean(dtype=np.float64)) / std
    flat = flat._replace(action=flat.action.clip(-1, 1))
    flat = flat._replace(reward=reward.astype(np.float32))
    tensors = [torch.from_numpy(x).to(device) for x in flat]
    return Transitions(*tensors), info


# === The run and its folder ===
@dataclass
class Run:
    """A training run. What comes after `generator` is in its checkpoints."""

    args: Args
    dir: Path
    info: dict  # of the dataset
    agent: Agent
    generator: torch.Generator
    step: int = 0  # updates done
    logged: int = 0  # update of the last row of metrics.csv
    evaluated: int = 0  # update of the last evaluation
    seconds: float = 0.0  # of training, evaluations included
    diffusion_sum: float = 0.0  # of the diffusion loss, since the last evaluation
    history: list[dict] = field(default_factory=list)  # means of each evaluation
    csv_sizes: dict[str, int] = field(default_factory=dict)  # bytes that belong to the checkpoint


PROGRESS = ("step", "logged", "evaluated", "seconds", "diffusion_sum", "history", "csv_sizes")
CSV_FILES = ("metrics.csv", "evaluations.csv")


def open_run_dir(args):
    """Make or find the folder of the run, and hold it until this process ends."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    default = f"runs/{args.env_id}__{args.preset}__{args.seed}__{stamp}"
    run_dir = Path(args.resume or args.run_dir or default).expanduser()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in run_dir.iterdir()} - {"run.json.tmp"}
        handle = os.open(run_dir, os.O_RDONLY)  # never closed: the lock lasts as long as the run
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing to {run_dir}")
    except OSError as error:
        fail(f"cannot write to the run folder {run_dir}", error)
    if not args.resume:
        check("run.json" not in names, f"{run_dir} holds a run; --resume continues it")
        check(not names, f"{run_dir} is not empty, and a new run needs a folder of its own")
    return run_dir


def write_file(path, save, keep=None):
    """Replace a file in one step: there is the old content or the new, whole. `keep`: the old."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        temporary.unlink(missing_ok=True)
        fail(f"cannot write {path}; what was saved before is still there", error)


def write_json(path, content):
    text = json.dumps(content, indent=1)
    write_file(path, lambda temporary: temporary.write_text(text))


def append_row(path, row):
    """Add a line to a CSV file, below a header, and have it on the disk."""
    try:
        with open(path, "a") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fail(f"cannot write {path}; the last checkpoint is whole", error)


def cut_csv_files(run):
    """Drop the rows that came after the checkpoint: they will be written again."""
    for name in CSV_FILES:
        path = run.dir / name
        size = path.stat().st_size if path.exists() else 0
        known = run.csv_sizes.get(name, 0)
        if size > known:
            os.truncate(path, known)
        if size < known:
            say(f"warning: {path} has lost rows, {known - size} bytes of {known}")


def check_finite(run):
    """Stop at NaN or infinity, before it gets into a checkpoint."""
    values = dict(zip(METRICS, run.agent.metric_sum))
    values |= dict(run.agent.named_parameters())
    bad = [name for name, value in values.items() if not value.isfinite().all()]
    if bad:
        where = f"between updates {run.logged} and {run.step}"
        sys.exit(
            f"error: {bad[0]} is not finite, {where}; the last checkpoint of {run.dir} is good"
        )


def save_checkpoint(run):
    """All that it takes to go on, bit for bit; the one before stays as checkpoint_previous.pt."""
    check_finite(run)
    for name in CSV_FILES:
        path = run.dir / name
        if path.exists():
            run.csv_sizes[name] = path.stat().st_size
    optimisers = run.agent.optimisers
    state = {
        "agent": run.agent.state_dict(),
        "optimisers": {name: adam.state_dict()["state"] for name, adam in optimisers.items()},
        "generator": run.generator.get_state(),
        "device": run.generator.device.type,
        "threads": torch.get_num_threads(),  # how a matmul rounds depends on it
        "progress": {name: getattr(run, name) for name in PROGRESS},
    }
    previous = run.dir / "checkpoint_previous.pt"
    write_file(run.dir / "checkpoint.pt", partial(torch.save, state), keep=previous)


def load_checkpoint(run_dir, agent) -> dict | None:
    """Put the newest whole checkpoint into the agent; None if the run died before its first."""
    paths = [run_dir / "checkpoint.pt", run_dir / "checkpoint_previous.pt"]
    paths = [path for path in paths if path.exists()]
    for path in paths:
        try:  # torch itself loads many a changed byte in silence; the zip format has CRCs
            whole = zipfile.ZipFile(path).testzip() is None
        except (zipfile.BadZipFile, OSError):
            whole = False
        if not whole:
            say(f"warning: {path} is damaged")
            continue
        try:  # weights_only keeps torch from running code that a file may carry
            state = torch.load(path, map_location="cpu", weights_only=True)
            agent.load_state_dict(state["agent"])
            for name, adam in agent.optimisers.items():  # its moments; rates and the like are ours
                moments = state["optimisers"][name]
                adam.load_state_dict(adam.state_dict() | {"state": moments})
            torch.set_num_threads(state["threads"])
            return state
        except Exception as error:
            fail(f"{path} is no checkpoint of this run", error)
    check(not paths, f"{run_dir} has no whole checkpoint")
    return None


# --- end shared ---

# === The tasks of this family ===
# The authors' row. Their umaze alone goes without max-Q.
ANTMAZE = {
    "gradient_steps": 1_000_000,
    "actor_lr": 3e-4,
    "eta": 2.0,
    "grad_clip": 4.0,
    "max_q_backup": True,
    "reward": "antmaze",
    "diffusion_loss": "noise",
    "action_clip": True,
    "eval_episodes": 100,
}
UMAZE = ANTMAZE | {"max_q_backup": False}
# For two CPU cores and some minutes. Larger rates let values travel the maze in so few updates, and
# an LCB of four critics is too noisy for a beta of 4.
EMBEDDED = UMAZE | {
    "gradient_steps": 7500,
    "num_critics": 4,
    "hidden_dim": 128,
    "tau": 0.02,
    "actor_lr": 1e-3,
    "lcb_coef": 1.0,
    "action_selection": "argmax",
    "eval_every": 2500,
    "eval_episodes": 20,
}
EMBEDDED_SET = str(Path(__file__).resolve().parent / "results/datasets/pointmaze-rare-embedded")
# A block with a corridor around it: between its upper corners 4 cells one way, 12 the other.
RING_MAZE = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 1, 1, 1, 0, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1],
]


def maze(walls, start, goal, **more):
    """Keyword arguments of an evaluation from one cell (row, column) to another."""
    cells = [list(line) for line in walls]
    cells[start[0]][start[1]] = "r"
    cells[goal[0]][goal[1]] = "g"
    ends_on_arrival = {"continuing_task": False, "reset_target": False}
    return {"maze_map": cells, **ends_on_arrival, **more}


# Walls, start and goal of an evaluation.
U = (maps.U_MAZE, (3, 1), (1, 1))
MEDIUM = (maps.MEDIUM_MAZE, (1, 1), (6, 6))
LARGE = (maps.LARGE_MAZE, (1, 1), (7, 9))
OPEN = (maps.OPEN, (3, 1), (1, 5))
RING = (RING_MAZE, (1, 1), (1, 5))
# Environment, its keyword arguments, returns of a policy that never arrives and of one that does.
RETURNS = (0.0, 1.0)
ANT_U = ("AntMaze_UMaze-v4", maze(*U), RETURNS)
ANT_M = ("AntMaze_Medium-v4", maze(*MEDIUM), RETURNS)
ANT_L = ("AntMaze_Large-v4", maze(*LARGE), RETURNS)
BALL_U = ("PointMaze_UMaze-v3", maze(*U), RETURNS)
BALL_M = ("PointMaze_Medium-v3", maze(*MEDIUM), RETURNS)
BALL_L = ("PointMaze_Large-v3", maze(*LARGE), RETURNS)
BALL_OPEN = ("PointMaze_Open-v3", maze(*OPEN), RETURNS)
# The limit is too short for the long way.
BALL_RING = ("PointMaze_Open-v3", maze(*RING, max_episode_steps=150), RETURNS)
# D4RL's start is within 0.1 m of its cell's centre, its goal up to 1.5 m beyond the centre in x and
# in y; Gymnasium draws both in each episode, up to 1 m off. Here both stand at the centres of their
# cells: for sets in the form of D4RL (results/datasets), whose rows show one goal.
ANT_U_FIXED = ("AntMaze_UMaze-v4", maze(*U, fixed=True), RETURNS)
ANT_M_FIXED = ("AntMaze_Medium-v4", maze(*MEDIUM, fixed=True), RETURNS)
ANT_L_FIXED = ("AntMaze_Large-v4", maze(*LARGE, fixed=True), RETURNS)
# On imported D4RL data: its rows count upwards, and its ant is another one.
D4RL = {"fixed": True, "d4rl_ant": True}
U_D4RL = (maps.U_MAZE[::-1], (1, 1), (3, 1))
MEDIUM_D4RL = (maps.MEDIUM_MAZE[::-1], (6, 1), (1, 6))
LARGE_D4RL = (maps.LARGE_MAZE[::-1], (7, 1), (1, 9))
ANT_U_D4RL = ("AntMaze_UMaze-v4", maze(*U_D4RL, **D4RL), RETURNS)
ANT_M_D4RL = ("AntMaze_Medium-v4", maze(*MEDIUM_D4RL, **D4RL), RETURNS)
ANT_L_D4RL = ("AntMaze_Large-v4", maze(*LARGE_D4RL, **D4RL), RETURNS)
# Diffusion-QL's own (Wang et al. 2023). It sums the errors of its two critics where we take the
# mean, so for its critics a clip g amounts to g / 2 here: said, not reproduced.
QL_U = {"diffusion-ql": {"eta": 0.5, "grad_clip": 2.0}}
QL_U_DIVERSE = {"diffusion-ql": {"eta": 2.0, "grad_clip": 3.0}}
QL_M_PLAY = {"diffusion-ql": {"eta": 2.0, "grad_clip": 2.0, "actor_lr": 1e-3}}
QL_M_DIVERSE = {"diffusion-ql": {"eta": 3.0, "grad_clip": 1.0}}
QL_L_PLAY = {"diffusion-ql": {"eta": 4.5, "grad_clip": 10.0}}
QL_L_DIVERSE = {"diffusion-ql": {"eta": 3.5, "grad_clip": 7.0}}
# fmt: off
TASKS = {
    "antmaze-umaze": Task(*ANT_U, "D4RL/antmaze/umaze-v1", UMAZE, QL_U),
    "antmaze-umaze-diverse": Task(*ANT_U, "D4RL/antmaze/umaze-diverse-v1", ANTMAZE, QL_U_DIVERSE),
    "antmaze-medium-play": Task(*ANT_M, "D4RL/antmaze/medium-play-v1", ANTMAZE, QL_M_PLAY),
    "antmaze-medium-diverse": Task(*ANT_M, "D4RL/antmaze/medium-diverse-v1", ANTMAZE, QL_M_DIVERSE),
    "antmaze-large-play": Task(*ANT_L, "D4RL/antmaze/large-play-v1", ANTMAZE, QL_L_PLAY),
    "antmaze-large-diverse": Task(*ANT_L, "D4RL/antmaze/large-diverse-v1", ANTMAZE, QL_L_DIVERSE),
    "antmaze-umaze-fixed": Task(*ANT_U_FIXED, "edq/antmaze/umaze-d4rl-v0", UMAZE, QL_U),
    "antmaze-medium-fixed": Task(
        *ANT_M_FIXED, "edq/antmaze/medium-play-d4rl-v0", ANTMAZE, QL_M_PLAY),
    "antmaze-large-fixed": Task(*ANT_L_FIXED, "edq/antmaze/large-play-d4rl-v0", ANTMAZE, QL_L_PLAY),
    "antmaze-umaze-d4rl": Task(*ANT_U_D4RL, "d4rl/antmaze/umaze-v0", UMAZE, QL_U),
    "antmaze-umaze-diverse-d4rl": Task(
        *ANT_U_D4RL, "d4rl/antmaze/umaze-diverse-v0", ANTMAZE, QL_U_DIVERSE),
    "antmaze-medium-play-d4rl": Task(
        *ANT_M_D4RL, "d4rl/antmaze/medium-play-v0", ANTMAZE, QL_M_PLAY),
    "antmaze-medium-diverse-d4rl": Task(
        *ANT_M_D4RL, "d4rl/antmaze/medium-diverse-v0", ANTMAZE, QL_M_DIVERSE),
    "antmaze-large-play-d4rl": Task(*ANT_L_D4RL, "d4rl/antmaze/large-play-v0", ANTMAZE, QL_L_PLAY),
    "antmaze-large-diverse-d4rl": Task(
        *ANT_L_D4RL, "d4rl/antmaze/large-diverse-v0", ANTMAZE, QL_L_DIVERSE),
    "pointmaze-umaze": Task(*BALL_U, "D4RL/pointmaze/umaze-v2", UMAZE, QL_U),
    "pointmaze-medium": Task(*BALL_M, "D4RL/pointmaze/medium-v2", ANTMAZE, QL_M_PLAY),
    "pointmaze-large": Task(*BALL_L, "D4RL/pointmaze/large-v2", ANTMAZE, QL_L_PLAY),
    "pointmaze-open": Task(*BALL_OPEN, "D4RL/pointmaze/open-v2", UMAZE, QL_U),
    "pointmaze-rare": Task(*BALL_RING, "edq/pointmaze/rare-v0", UMAZE, QL_U),
    "pointmaze-rare-embedded": Task(*BALL_RING, EMBEDDED_SET, EMBEDDED, QL_U),
}
# fmt: on
SCORE = "success rate in %"
STEPS = "steps_to_goal"  # printed beside it
SUCCESS_ENDS = True  # a reward above 0 is an arrival, and ends the task


def make_env(task, render_mode: str | None = None):
    """From our own table: an environment spec out of a file could run any code."""
    kwargs = dict(task.env_kwargs)
    fixed = kwargs.pop("fixed", False)
    d4rl_ant = kwargs.pop("d4rl_ant", False)
    env = gym.make(task.env, render_mode=render_mode, disable_env_checker=True, **kwargs)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    if fixed:
        env.unwrapped.position_noise_range = 0.0
    if d4rl_ant:  # weaker, acts half as often and lands softer than Gymnasium's
        model = env.unwrapped.ant_env.model
        model.opt.timestep = 0.02
        model.actuator_gear[:, 0] = 30
        model.geom_solref[:] = (0.02, 1)
        model.geom_solimp[:, :3] = (0.8, 0.8, 0.01)
    return env


def flatten_obs(obs) -> np.ndarray:
    """What the networks see, `[..., S]`: observation, own position unless it is in there, goal."""
    keys = ["observation", "desired_goal"]
    if obs["observation"].shape[-1] == 27:  # an ant's; PointMaze's holds the position
        keys.insert(1, "achieved_goal")
    return np.concatenate([obs[key] for key in keys], -1).astype(np.float32)


def episode_result(rewards: np.ndarray, reference):
    """Figures of one episode: 100 if it ever reached the goal, else 0, and after how many steps."""
    arrivals = np.flatnonzero(rewards > 0)
    return {
        "score": 100.0 if len(arrivals) else 0.0,
        "steps_to_goal": float(arrivals[0] + 1) if len(arrivals) else math.nan,
        "return": float(np.sum(rewards)),
        "length": len(rewards),
    }


def misfit(metadata, task) -> str | None:
    """What keeps a dataset from this task: another body, or other walls."""
    spec = json.loads(metadata.get("env_spec") or "{}")
    source = spec.get("id") or "nowhere"
    if source.split("_")[0] != task.env.split("_")[0]:
        return f"its data were recorded in {source}, the policy would be scored in {task.env}"
    if ("d4rl" in metadata) != task.env_kwargs.get("d4rl_ant", False):
        return "D4RL's ant and mazes are those of the -d4rl tasks, and of no other"
    if metadata.get("fixed_goal", False) and not task.env_kwargs.get("fixed", False):
        return "its rows show one goal, so score it in a task with -fixed"
    walls = [[cell == 1 for cell in line] for line in spec.get("kwargs", {}).get("maze_map") or []]
    if walls and walls != [[cell == 1 for cell in line] for line in task.env_kwargs["maze_map"]]:
        return "its maze is another one; a maze of your own is a row of TASKS"
    return None


# --- shared: main ---
# === Command line ===
SCRIPTS = {
    "edq_mujoco.py": ("halfcheetah", "hopper", "walker2d"),
    "edq_antmaze.py": ("antmaze", "pointmaze"),
    "edq_adroit.py": ("pen", "door", "hammer", "relocate", "kitchen"),
}
# What a preset changes in every task, beside what a task changes for it (TASKS).
PRESETS = {
    "edq": {},  # as the authors' code: the rows of TASKS are theirs
    "edq-entropy": {  # with an entropy term that sees the spread of the policy
        "entropy_estimator": "chain",
        "ent_coef": 0.1,
        "action_clip": True,
    },
    "edq-paper": {},  # as the paper: hand and kitchen have T = 10 and automatic alpha
    # Wang et al. 2023, except that there the actor maximises one of the two critics, drawn anew for
    # each update, here their minimum; and that there the learning rate may decay.
    "diffusion-ql": {
        "num_critics": 2,
        "target": "min",
        "pessimism": "min",
        "policy_action": "chain",
        "schedule": "ddpm",
        "diffusion_loss": "noise",
        "action_clip": True,
        "entropy_estimator": "none",
    },
    "diffusion-bc": {  # behaviour cloning
        "eta": 0.0,
        "entropy_estimator": "none",
        "num_candidates": 1,
    },
}


def parse_args(argv):
    """Default < task < preset < flag. A run that goes on, or is scored, starts from its own."""
    without_help = [flag for flag in argv if flag not in ("-h", "--help")]
    asked = tyro.cli(Args, args=without_help)
    folder = asked.evaluate or asked.resume
    if folder:
        start = saved_args(Path(folder).expanduser())
    else:
        check_env_id(asked.env_id)
        task = TASKS[asked.env_id]
        here = task.presets.get(asked.preset, {})
        changes = task.row | PRESETS[asked.preset] | here
        start = Args(env_id=asked.env_id, **changes)
    args = tyro.cli(Args, default=start, args=argv)
    if folder:
        check_changes(start, args)
    check_args(args)
    return args


def check_env_id(env_id: str):
    """The task is one of this script."""
    for script, families in SCRIPTS.items():
        elsewhere = script != Path(__file__).name and env_id.split("-")[0] in families
        check(not elsewhere, f"{env_id} is a task of {script}")
    check(env_id in TASKS, f"there is no task {env_id}, but {', '.join(TASKS)}")


def saved_args(run_dir):
    """The arguments in a run folder."""
    try:
        run = json.loads((run_dir / "run.json").read_text())
        args = Args(**run["args"])
        script = run["script"]
        _ = run["dataset"]["hash"], run["dataset"]["reference"], run["wandb_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"there is no run in {run_dir}", error)
    check(script == Path(__file__).name, f"{run_dir} holds a run of {script}")
    check_env_id(args.env_id)
    return args


def check_changes(saved, args):
    """A run cannot become another one."""
    free = {"resume", "evaluate", "device", "dataset_id", "capture_video"}
    if args.evaluate:
        free |= {"seed", "eval_episodes", "eval_envs", "eval_workers"}
        free |= {"num_candidates", "action_selection"}
    else:
        free.add("track")
        if args.gradient_steps >= saved.gradient_steps:
            free.add("gradient_steps")
    for name, value in asdict(saved).items():
        same = getattr(args, name) == value
        flag = f"--{name.replace('_', '-')}"
        check(same or name in free, f"{flag} of this run is {value}, which cannot change now")


def check_args(args):
    """Bounds, and what does not go together."""
    may_be_zero = ("seed", "eta", "ent_coef", "lcb_coef", "gamma", "tau", "ema_decay")
    at_most_one = ("gamma", "tau", "ema_decay")
    for name, value in asdict(args).items():
        if type(value) not in (int, float) or name == "target_entropy":
            continue
        low_enough = value <= 1 if name in at_most_one else value < 1e9
        high_enough = value >= 0 if name in may_be_zero else value > 0
        check(low_enough and high_enough, f"--{name.replace('_', '-')} cannot be {value}")
    chain = args.entropy_estimator == "chain"
    auto = args.ent_coef == "auto"
    released = args.entropy_estimator == "released"
    cuda = torch.cuda.is_available()
    check(args.device != "cuda" or cuda, "--device cuda, but torch sees no GPU")
    check(args.num_diffusion_steps <= 1000, "--num-diffusion-steps is 1000 at most")
    check(args.num_diffusion_steps > 2 or not released, "the released entropy needs T of 3 or more")
    check(args.num_critics > 1 or args.pessimism == "min", "an LCB needs --num-critics 2 or more")
    check(args.action_clip or not chain, "--entropy-estimator chain needs --action-clip")
    check(chain or not auto, "--ent-coef auto needs --entropy-estimator chain")
    check(
        auto == (args.target_entropy is not None),
        "--ent-coef auto and --target-entropy go together",
    )


# === Main ===
def main(args):
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    setup_torch(args, device)
    if args.capture_video:
        check_rendering(args)
    if args.evaluate:
        score_again(args, device)
        return
    data, info = load_dataset(args, device)
    envs = vector_env(args)
    obs_dim = envs.single_observation_space.shape[0]
    act_dim = envs.single_action_space.shape[0]
    shapes = (data.obs.shape[1], data.action.shape[1])
    check(shapes == (obs_dim, act_dim), f"{info['id']} has {shapes} observations and actions")
    torch.manual_seed(args.seed)  # for the weights; all later noise has generators of its own
    agent = Agent(obs_dim, act_dim, args, device)
    generator = torch.Generator(device).manual_seed(args.seed)
    if args.normalize_obs:
        agent.obs_mean.copy_(data.obs.mean(0))
        std = data.obs.std(0)
        agent.obs_std.copy_(std.where(std > 1e-3, 1.0))  # 1 where all of the data are the same
        obs = (data.obs - agent.obs_mean) / agent.obs_std
        next_obs = (data.next_obs - agent.obs_mean) / agent.obs_std
        data = data._replace(obs=obs, next_obs=next_obs)

    run = Run(args, open_run_dir(args), info, agent, generator)
    start_run(run)
    train(run, envs, data)
    envs.close()
    if not signals:
        report(run)
    if args.capture_video and not signals:
        film(agent, args, info["reference"], run.dir)
    if signals:
        say(f"stopped at update {run.step}; to go on: --resume {run.dir}")
        sys.exit(128 + signals[0])


def setup_torch(args, device: str):
    """Precision, compilation, and what a signal does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if args.precision == "auto":
        args.precision = "tf32" if device == "cuda" else "fp32"
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    if args.compile and shutil.which(os.environ.get("CXX", "g++")):
        compile_functions()
    elif args.compile:
        say("note: without a C++ compiler (g++) updates are eager, and slower")


def on_signal(number: int, frame):
    """The first signal saves and stops the run, a second one kills it."""
    signals.append(number)
    signal.signal(number, signal.SIG_DFL)


def check_rendering(args):
    """Tell now, not after the training, that this machine cannot film."""
    try:
        env = make_env(TASKS[args.env_id], "rgb_array")
        env.reset(seed=0)
        env.render()
        env.close()
    except Exception as error:  # GL fails in many ways
        fail("--capture-video cannot render here; MUJOCO_GL=egl or osmesa may help", error)


def start_run(run):
    """Go on from the checkpoint of a resumed run; write run.json, and print what it says."""
    args, info = run.args, run.info
    path = run.dir / "run.json"
    wandb_id = secrets.token_hex(8)
    if args.resume:
        saved = json.loads(path.read_text())
        wandb_id = saved["wandb_id"]
        same = saved["dataset"]["hash"] == info["hash"]
        check(same, f"the run in {run.dir} was made on other data than {info['id']}")
        load_progress(run)
    device = run.generator.device.type
    packages = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")
    script = Path(__file__)
    content = {
        "script": script.name,
        "script_hash": hashlib.sha256(script.read_bytes()).hexdigest()[:16],
        "flags": sys.argv[1:],
        "args": asdict(replace(args, resume=None, run_dir=None)),
        "environment": TASKS[args.env_id].env,
        "dataset": info,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "wandb_id": wandb_id,
    }
    write_json(path, content)
    say(f"{args.env_id}, preset {args.preset}, seed {args.seed}, on {device}, in {run.dir}")
    for what in ("args", "dataset"):
        items = [f"{name}={value}" for name, value in content[what].items()]
        say(f"{what}: {' '.join(items)}")
    if args.track:
        start_wandb(run, wandb_id)


def load_progress(run):
    """A run that died before its first checkpoint begins anew."""
    state = load_checkpoint(run.dir, run.agent)
    if state:
        for name in PROGRESS:
            setattr(run, name, state["progress"][name])
        run.generator.manual_seed(run.args.seed + 10**6 * run.step)
        if state["device"] == run.generator.device.type:  # else the state means nothing here
            run.generator.set_state(state["generator"])
    cut_csv_files(run)


def start_wandb(run, wandb_id: str):
    import wandb

    try:
        wandb.init(
            project=run.args.wandb_project_name,
            id=wandb_id,
            name=run.dir.name,
            resume="allow",
            config=asdict(run.args),
        )
    except Exception as error:
        fail("--track needs 'wandb login', or WANDB_MODE=offline", error)


def track(run, row):
    """Send a row to Weights & Biases, if asked to."""
    if run.args.track:
        import wandb

        wandb.log(row, step=run.step)


def train(run, envs, data):
    """Updates, with an evaluation and a checkpoint every `eval_every`, until done or a signal."""
    args = run.args
    one_update = make_step(run.agent, data, args, run.generator, run.step)
    start = time.time() - run.seconds
    mark = (run.step, time.time())  # where the updates began whose speed is logged next
    while not signals:
        last = run.step == args.gradient_steps
        evaluation_due = run.step > run.evaluated and (last or run.step % args.eval_every == 0)
        row_due = evaluation_due or run.step % args.log_every == 0
        if row_due and run.step > run.logged:  # between rows nothing is read from the device
            log_row(run, *mark)
            mark = (run.step, time.time())
        if evaluation_due:
            try:
                results = evaluate(run.agent, envs, args, run.info["reference"], args.eval_episodes)
            except (EOFError, OSError) as error:
                save_checkpoint(run)
                sys.exit(f"error: a simulator has died ({error!r}); --resume {run.dir} goes on")
            if not results:
                break
            log_evaluation(run, results)
            run.seconds = time.time() - start
            save_checkpoint(run)
            mark = (run.step, time.time())
        if last:
            return
        one_update()
        run.step += 1
    run.seconds = time.time() - start
    save_checkpoint(run)


def log_row(run, first: int, start: float):
    """A row of metrics.csv: means since the last row, and the speed since update `first`."""
    check_finite(run)
    updates = run.step - run.logged
    averages = run.agent.metric_sum / updates
    row = {"step": run.step} | dict(zip(METRICS, averages.tolist()))
    seconds = max(time.time() - start, 1e-9)
    row["charts/sps"] = (run.step - first) / seconds
    append_row(run.dir / "metrics.csv", row)
    track(run, row)
    run.agent.metric_sum.zero_()
    run.logged = run.step
    run.diffusion_sum += updates * row["losses/diffusion"]
    hours_left = (run.args.gradient_steps - run.step) / row["charts/sps"] / 3600
    say(
        f"update {run.step}  critic {row['losses/critic']:.3g}"
        f"  diffusion {row['losses/diffusion']:.3g}  q {row['q/mean']:.3g} +- {row['q/std']:.2g}"
        f"  {row['charts/sps']:.3g} updates/s  {hours_left:.1f} h to go"
    )


def log_evaluation(run, results):
    """Rows of evaluations.csv, one an episode, and their means."""
    for episode, result in enumerate(results):
        row = {"step": run.step, "episode": episode, **result}
        append_row(run.dir / "evaluations.csv", row)
    figures = means(results)
    loss = run.diffusion_sum / (run.step - run.evaluated)
    run.history.append({"step": run.step, **figures, "diffusion_loss": loss})
    run.evaluated = run.step
    run.diffusion_sum = 0.0
    say(f"update {run.step}: {describe(figures)}")
    track(run, {f"eval/{name}": value for name, value in figures.items()})


def describe(figures) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in figures.items())


def report(run):
    """Last, best and offline score, which are easily mixed up, beside the data's own."""
    history = run.history
    settled = [
        after
        for before, after in pairwise(history)
        if abs(after["diffusion_loss"] - before["diffusion_loss"]) < 4e-3
    ]
    scores = {
        "last": history[-1],
        "best": max(history, key=lambda figures: figures["score"]),  # picks luck as well
        "offline": (settled or history[-1:])[0],  # where the diffusion loss settles (App. B.8)
    }
    write_json(run.dir / "summary.json", scores | {"data": run.info})
    args = run.args
    say(f"{args.env_id}, seed {args.seed}: {SCORE}, {args.eval_episodes} episodes an evaluation")
    for name, figures in scores.items():
        error = figures["standard_error"]
        beside = f"{STEPS} {figures[STEPS]:.0f}"
        score = f"{figures['score']:6.1f} +- {error:.1f}"
        say(f"  {name:8}{score}, {beside}, at update {figures['step']}")
    info = run.info
    beside = f"{STEPS} {info[f'mean_{STEPS}']:.0f}"
    say(f"  data    {info['mean_score']:6.1f}, {beside}, the mean of its episodes")


def score_again(args, device: str):
    """Evaluate the newest checkpoint of a finished or running run."""
    run_dir = Path(args.evaluate).expanduser()
    reference = json.loads((run_dir / "run.json").read_text())["dataset"]["reference"]
    envs = vector_env(args)
    obs_dim = envs.single_observation_space.shape[0]
    act_dim = envs.single_action_space.shape[0]
    agent = Agent(obs_dim, act_dim, args, device)
    state = load_checkpoint(run_dir, agent)
    check(state is not None, f"{run_dir} has no checkpoint yet")
    results = evaluate(agent, envs, args, reference, args.eval_episodes)
    envs.close()
    if results:
        say(f"update {state['progress']['step']}: {describe(means(results))} (score: {SCORE})")
    if results and args.capture_video:
        film(agent, args, reference, run_dir)
    if signals:
        sys.exit(128 + signals[0])


if __name__ == "__main__":
    if "MINARI_DATASETS_PATH" in os.environ:
        os.environ["MINARI_DATASETS_PATH"] = os.path.expanduser(os.environ["MINARI_DATASETS_PATH"])
    main(parse_args(sys.argv[1:]))
# --- end shared ---
