# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "gymnasium-robotics==1.4.2", "mujoco==3.3.7",
#     "minari[hdf5,hf]==0.5.4", "tyro==1.0.17", "tqdm==4.70.1", "wandb==0.31.0", "moviepy==2.2.1", "matplotlib==3.11.2",
# ]
# ///
"""EDQ on sparse-reward mazes: offline RL with an entropy-regularised diffusion policy and a Q-ensemble.

Problem: learn to act from a fixed dataset. What the Q-function believes of actions that are not in the data cannot be
tested, so a policy that simply maximises Q runs off to where Q is wrong.
Idea: (1) the policy is a diffusion model, so it holds all modes of the data, and walks from noise to an action in five
steps, as every conditional of its mean-reverting SDE is a known Gaussian; (2) an entropy term keeps it from shrinking
onto one mode; (3) M Q-networks, each with its own target, disagree where there is no data, and the policy climbs their
lower confidence bound (LCB) instead of their mean.

One update, on a batch (s, a, r, s') of the data:
    a' ~ policy(s')                                      reverse diffusion, averaged (EMA) weights
    y_m = r + gamma Q'_m(s', a')                         one target for each of the M members
    critic: least squares Q_m(s, a) -> y_m
    a_t = e^(-theta_bar_t) a + sigma_t eps               noise the data action, t ~ {1..T}, eps ~ N(0, I)
    a_0 = (a_t - sigma_t eps_net(a_t, t, s)) e^(theta_bar_t)      and predict it back
    LCB = mean_m Q_m(s, a_0) - beta std_m Q_m(s, a_0)
    actor: diffusion loss - eta LCB / |Q| - entropy term
    averages: EMA of the actor, Polyak average of the critics

Paper: Zhang et al., "Entropy-regularized Diffusion Policy with Q-Ensembles for Offline Reinforcement Learning", NeurIPS
2024, arXiv 2402.04080; numbers in brackets are its equations, "released" is the authors' code. More: README.md.
    python edq_antmaze.py --env-id antmaze-large-diverse --seed 3
    python edq_antmaze.py --evaluate runs/<run folder> --capture-video
"""

import copy
import difflib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import timeit
from collections import namedtuple
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import count, pairwise
from pathlib import Path
from typing import Literal

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
from tqdm import tqdm


@dataclass
class Args:
    """Train EDQ, evaluate it in the simulator, or score a saved run. Values shown are those of the chosen task."""

    env_id: str = "pointmaze-umaze-embedded"  # antmaze-{umaze, umaze-diverse, medium-play, ...}, pointmaze-{umaze, ...}
    # --- shared: arguments ---
    preset: Literal["edq", "edq-entropy", "edq-paper", "diffusion-ql", "diffusion-bc"] = "edq"  # edq: authors' code
    exp_name: str = "edq"  # a name for this kind of run; part of the run folder's name
    seed: int = 0  # seed of network weights, batches, noise and evaluation episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one
    compile: Literal["auto", "on", "off"] = "auto"  # fuse an update; auto: on a GPU, or for 5,000 updates and more
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"  # of products; auto: tf32 (GPU), bf16 (CPUs with it)
    torch_deterministic: bool = True  # let torch choose only deterministic kernels (matters on a GPU)
    track: bool = False  # log to Weights & Biases as well
    wandb_project_name: str = "edq"  # Weights & Biases project
    wandb_entity: str | None = None  # Weights & Biases entity (team)
    capture_video: bool = False  # mp4s of three episodes of the last evaluation (or --evaluate) in RUN_DIR/videos
    run_dir: str | None = None  # folder of this run; by default runs/<env_id>__<exp_name>__<seed>__<time>
    resume: str | None = None  # run folder to continue; allowed beside it: longer --gradient-steps, --device, --track
    evaluate: str | None = None  # run folder whose newest checkpoint is scored again, without training
    dataset_id: str | None = None  # Minari id or folder, several joined by commas; by default the task's own
    reward: Literal["raw", "antmaze", "standardize"] = "raw"  # the critic sees r, 4 (r - 0.5), or (r - mean) / std
    normalize_obs: bool = False  # standardise observations by the data's mean and std (the paper does not)
    gradient_steps: int = 2_000_000  # number of updates
    batch_size: int = 256  # B, transitions per update
    actor_lr: float = 3e-4  # Adam rate of the diffusion policy
    critic_lr: float = 3e-4  # Adam rate of the Q-ensemble
    lr_decay: bool = False  # cosine decay of both rates to 0 (released ends at 99.9 % of its start: in effect off)
    grad_clip: float = 4.0  # largest gradient norm, of the actor and of all critics together
    gamma: float = 0.99  # discount factor per step
    tau: float = 0.005  # Polyak rate of the target critics, every update
    ema_decay: float = 0.995  # decay of the averaged actor
    hidden_dim: int = 256  # width of all hidden layers
    # --- diffusion ---
    num_diffusion_steps: int = 5  # T, steps of the mean-reverting SDE
    schedule: Literal["cosine", "linear", "constant", "vp", "ddpm"] = "cosine"  # theta_t; ddpm: Diffusion-QL's
    diffusion_loss: Literal["noise", "likelihood", "likelihood_released"] = "noise"  # Eq. 5; App. A.3; as released
    action_clip: bool = True  # clamp the predicted a_0 to the action box at every sampling step
    sampler: Literal["posterior", "sde", "ode"] = "posterior"  # Prop. 3.1; Euler on the reverse SDE (3), or its ODE
    policy_action: Literal["one_step", "chain"] = "one_step"  # in the actor's Q term: a_0 of Eq. 8, or a whole chain
    # --- ensemble and entropy ---
    num_critics: int = 64  # M, Q-networks
    pessimism: Literal["lcb", "min"] = "lcb"  # what the actor climbs and ranks by: the LCB of Eq. 17, or the minimum
    target: Literal["own", "min"] = "own"  # TD target of a member: its own target net (Eq. 16), or the minimum of all
    lcb_coef: float = 4.0  # beta, standard deviations below the mean
    entropy_estimator: Literal["none", "released", "bridge", "chain"] = "released"  # code; Eq. 14; a lower bound
    ent_coef: float | Literal["auto"] = 0.01  # alpha, entropy weight; auto: learned per state (App. B.3), needs chain
    target_entropy: float | None = None  # for auto: nats per action dimension; default: that of a clone (5 % warm-up)
    chain_std: float | None = None  # for chain: std of the last step, at most sigma_1; by default min(0.2, sigma_1)
    eta: float = 1.0  # weight of the Q term against the diffusion loss
    max_q_backup: bool = False  # target from the best of ten next actions, member by member
    # --- evaluation and logging ---
    eval_every: int = 50_000  # updates between two evaluations; a checkpoint is written after each
    eval_episodes: int = 100  # episodes of one evaluation
    eval_envs: int | None = None  # environments stepped together; default: 10 per core; results do not change
    num_candidates: int = 50  # K, actions drawn per state when acting
    action_selection: Literal["softmax", "argmax"] = "softmax"  # how one of the K is chosen by its LCB
    log_every: int = 1000  # updates between two rows of metrics.csv


# A task, by our own settings: registered Gymnasium id, keyword arguments, Minari id(s) or folder, D4RL's returns of a
# random and an expert policy (if the metadata has none), whose hyper-parameters (its own or a near task's), and those.
Task = namedtuple("Task", "env env_kwargs dataset reference like row")
PRESETS = {"edq": {}, "edq-paper": {}}  # what a preset changes in every task; in single ones: PRESET_ROWS
PRESETS["edq-entropy"] = dict(entropy_estimator="chain", ent_coef=0.1)  # it sees the spread: results/README.md
PRESETS["diffusion-bc"] = dict(eta=0.0, entropy_estimator="none", num_candidates=1)
PRESETS["diffusion-ql"] = dict(num_critics=2, target="min", pessimism="min", policy_action="chain", schedule="ddpm")
PRESETS["diffusion-ql"] |= dict(diffusion_loss="noise", action_clip=True, entropy_estimator="none")
# --- end shared ---
ANTMAZE = dict(gradient_steps=1_000_000, actor_lr=3e-4, eta=2.0, grad_clip=4.0, max_q_backup=True, reward="antmaze")
ANTMAZE |= dict(diffusion_loss="noise", action_clip=True, eval_episodes=100)
UMAZE = ANTMAZE | dict(max_q_backup=False)  # as the authors have it, umaze alone goes without
# Small enough for two CPU cores and some minutes; a larger tau lets values travel the maze within so few updates.
EMBEDDED = dict(UMAZE, gradient_steps=7500, num_critics=4, hidden_dim=128, tau=0.02, eval_every=2500, eval_episodes=20)
DATASETS = Path(__file__).resolve().parent / "results" / "datasets"
# Walls, and the cells (row, column) where an evaluation episode starts and has its goal.
MAZES = {"UMaze": (maps.U_MAZE, (3, 1), (1, 1)), "Medium": (maps.MEDIUM_MAZE, (1, 1), (6, 6)),
         "Large": (maps.LARGE_MAZE, (1, 1), (7, 9)), "Open": (maps.OPEN, (3, 1), (1, 5))}  # fmt: skip
ROWS = {  # task: maze, Minari id or folder, hyper-parameters of, those
    **{f"antmaze-{data}": (maze, f"D4RL/antmaze/{data}-v1", f"antmaze-{data}", UMAZE if data == "umaze" else ANTMAZE)
       for data, maze in zip("umaze umaze-diverse medium-play medium-diverse large-play large-diverse".split(),
                             "UMaze UMaze Medium Medium Large Large".split())},
    "pointmaze-umaze": ("UMaze", "D4RL/pointmaze/umaze-v2", "antmaze-umaze", UMAZE),
    "pointmaze-medium": ("Medium", "D4RL/pointmaze/medium-v2", "antmaze-medium-play", ANTMAZE),
    "pointmaze-large": ("Large", "D4RL/pointmaze/large-v2", "antmaze-large-play", ANTMAZE),
    "pointmaze-open": ("Open", "D4RL/pointmaze/open-v2", "antmaze-umaze", UMAZE),
    "pointmaze-rare": ("Open", "edq/pointmaze/rare-v0", "antmaze-umaze", UMAZE),  # its maze comes with the data
    "pointmaze-umaze-embedded": ("UMaze", str(DATASETS / "pointmaze-umaze-embedded"), "antmaze-umaze", EMBEDDED),
}  # fmt: skip
TASKS = {}
for name, (maze, dataset, like, row) in ROWS.items():
    walls, start, goal = MAZES[maze]
    cells = [[{start: "r", goal: "g"}.get((i, j), cell) for j, cell in enumerate(line)] for i, line in enumerate(walls)]
    kwargs = dict(maze_map=cells, continuing_task=False, reset_target=False, max_episode_steps=None)  # ends on arrival
    kwargs |= dict(d4rl_ant=False) if name.startswith("ant") else {}
    env = f"AntMaze_{maze}-v4" if name.startswith("ant") else f"PointMaze_{maze}-v3"
    TASKS[name] = Task(env, kwargs, dataset, (0.0, 1.0), like, row)
# Diffusion-QL's own eta and clip (Wang et al. 2023); as it sums its two critics' errors, clip g would be g / 2 here.
ETA_CLIP = {"umaze": (0.5, 2), "umaze-diverse": (2, 3), "medium-play": (2, 2), "medium-diverse": (3, 1),
            "large-play": (4.5, 10), "large-diverse": (3.5, 7)}  # fmt: skip
PRESET_ROWS = {("diffusion-ql", f"antmaze-{maze}"): dict(eta=e, grad_clip=g) for maze, (e, g) in ETA_CLIP.items()}
PRESET_ROWS["diffusion-ql", "antmaze-medium-play"]["actor_lr"] = 1e-3
SCORE, SUCCESS_ENDS = "success rate in %", True  # a reward above 0 is an arrival, and ends the task


def make_env(task: Task, render_mode: str | None = None) -> gym.Env:
    """The simulator, from our own table: an environment spec out of a file could run any code."""
    kwargs = {key: value for key, value in task.env_kwargs.items() if key != "d4rl_ant"}
    env = gym.make(task.env, render_mode=render_mode, disable_env_checker=True, **kwargs)
    os.unlink(env.unwrapped.tmp_xml_file_path)  # the maze's model, which it leaves behind
    if task.env_kwargs.get("d4rl_ant"):  # weaker, acts half as often and lands softer than Gymnasium's
        model = env.unwrapped.ant_env.model
        model.opt.timestep, model.actuator_gear[:, 0] = 0.02, 30
        model.geom_solref[:], model.geom_solimp[:, :3] = (0.02, 1), (0.8, 0.8, 0.01)
    return env


def flatten_obs(obs: dict) -> np.ndarray:
    """What the networks see, `[..., S]`: observation, own position unless it is in there already (PointMaze), goal."""
    own = ["achieved_goal"] if obs["observation"].shape[-1] == 27 else []
    return np.concatenate([obs[key] for key in ("observation", *own, "desired_goal")], -1).astype(np.float32)


def episode_result(rewards: np.ndarray, reference: tuple[float, float]) -> dict[str, float]:
    """Figures of one episode: 100 if it ever reached the goal, else 0, and after how many steps."""
    first = next((step + 1 for step, reward in enumerate(rewards) if reward > 0), math.nan)
    return {"score": 100.0 * (first > 0), "steps_to_goal": first, "return": sum(rewards), "length": len(rewards)}


def fit_task(metadata: dict, spec: dict, eval_spec: dict, task: Task) -> Task:
    """The task in the maze of its data: a policy has to act there. Specs are JSON, and never made into anything."""
    kwargs = task.env_kwargs | ({"d4rl_ant": "d4rl" in metadata} if "d4rl_ant" in task.env_kwargs else {})
    mazes = [k.get("maze_map") or [[]] for k in (spec.get("kwargs", {}), eval_spec.get("kwargs", {}), kwargs)]
    data, scored, ours = ([[cell == 1 for cell in line] for line in maze] for maze in mazes)
    if data not in ([[]], ours):
        ends, limit = [c for line in mazes[1] for c in line if c not in (0, 1)], eval_spec.get("max_episode_steps")
        what = "the data were recorded in another maze than the task's, and name no start, goal and time limit in it"
        fail(what, when=scored != data or sorted(ends) != ["g", "r"] or type(limit) is not int or limit < 1)
        kwargs |= dict(maze_map=mazes[1], max_episode_steps=limit)
        print("note: scored in the maze of the data, from the start to the goal of their evaluation spec")
    return task._replace(env_kwargs=kwargs)


def draw_paths(run_dir: Path, results: list[dict], paths: list[np.ndarray], states: np.ndarray) -> None:
    """Leave what an evaluation's picture needs in paths.npz, and have evaluation.png drawn of it."""
    xy = slice(27, 29) if states.shape[1] == 31 else slice(0, 2)
    content = dict(states=states[:, xy], steps=[len(p) for p in paths], goals=[p[0, -2:] for p in paths])
    content |= dict(paths=np.concatenate([p[:, xy] for p in paths]), arrived=[r["score"] > 0 for r in results])
    np.savez_compressed(file := io.BytesIO(), **content)
    write(run_dir / "paths.npz", file.getvalue())
    subprocess.run([sys.executable, DATASETS / "draw_paths.py", run_dir])  # which cannot end a long run, if it fails


# --- shared: algorithm and plumbing ---
# === The algorithm. B batch, S observation, A action, M critics, T diffusion steps, K candidates ======================
# The paper's t = 1..T is index t - 1 here, in tensors and arguments alike. Numbers in brackets: its equations.
def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)) with one exponential: a small update spends more on activations than on products."""
    u = x.clamp(max=20).exp() + 1
    return torch.addcdiv(x, x, u.square().add_(1), value=-2)  # x - 2 x / ((1 + e^x)^2 + 1)


class ScoreMLP(nn.Module):
    """Noise prediction eps_hat(a_t, t, s); the score of p(a_t | s) is -eps_hat / sigma_t."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dim: int = 256):
        super().__init__()
        self.act_dim = act_dim
        self.register_buffer("freqs", 10000 ** (-torch.arange(8) / 7), persistent=False)
        self.time_in, self.time_out = nn.Linear(16, 32), nn.Linear(32, 16)
        sizes = [act_dim + 16 + obs_dim, hidden_dim, hidden_dim, hidden_dim, act_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, a_t: Tensor, t: int | Tensor, obs: Tensor) -> Tensor:
        """a_t `[..., A]`, t an index (int or `[...]`), obs `[..., S]` -> `[..., A]`."""
        angle = t * self.freqs if isinstance(t, int) else t.unsqueeze(-1) * self.freqs
        emb = self.time_out(mish(self.time_in(torch.cat([angle.sin(), angle.cos()], -1))))
        x = torch.cat([a_t, emb.expand(*a_t.shape[:-1], 16), obs], -1)
        for i, layer in enumerate(self.layers):
            x = layer(mish(x) if i > 0 else x)
        return x


class QEnsemble(nn.Module):
    """M independent Q-networks as one batched product; weights `[M, in, out]`, biases `[M, 1, out]`."""

    def __init__(self, obs_dim: int, act_dim: int, num_critics: int = 64, hidden_dim: int = 256, half: bool = False):
        super().__init__()
        self.num_critics, self.half = num_critics, half
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for size_in, size_out in pairwise([obs_dim + act_dim, hidden_dim, hidden_dim, hidden_dim, 1]):
            # As released (EDAC's initialisation): the "fan" of a hidden layer is its output size, its bias 0.1.
            bound = 3e-3 if size_out == 1 else 1 / math.sqrt(size_out)
            self.weights.append(torch.empty(num_critics, size_in, size_out).uniform_(-bound, bound))
            bias = torch.full((num_critics, 1, size_out), 0.1)
            self.biases.append(bias.uniform_(-bound, bound) if size_out == 1 else bias)

    def forward(self, obs: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """obs `[B, S]`, action `[B, A]` -> Q `[M, B]`; frozen: a gradient for the action, none for the weights."""
        x = torch.cat([obs, action], -1).expand(self.num_critics, -1, -1)  # [M, B, S + A], a view
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x, (weight, bias) = mish(x) if i > 0 else x, (w.detach() if frozen else w for w in (weight, bias))
            if self.half and 0 < i < 3:  # bf16: only the two large products; input, head and all that follows are fp32
                x = torch.bmm(x.bfloat16(), weight.bfloat16()).float().add_(bias)
            else:
                x = torch.bmm(x, weight).add_(bias)
        return x.squeeze(-1)


class MeanRevertingSDE:
    """da = -theta_t a dt + sqrt(2 theta_t) dw (1): draws actions to N(0, I); all conditionals are known Gaussians."""

    # Tensors of length T: theta_dt (theta'_t), theta_bar (its running sum), sigma (std of a_t given a_0), and w_t, w_0,
    # posterior_var of p(a_{t-1} | a_t, a_0) (6, 7). In the methods t is an index, int or [B]; everything else [B, A].
    def __init__(self, num_steps: int, schedule: str = "cosine", device: str | torch.device = "cpu"):
        T, t = num_steps, torch.arange(1, num_steps + 1, dtype=torch.float64)  # t: the paper's
        f = torch.cos((t / (T + 1) + 0.008) / 1.008 * math.pi / 2) / math.cos(0.004 / 1.008 * math.pi)
        theta = {
            "cosine": 1 - f**2,
            "linear": torch.linspace(1000 / T * 1e-4, 1000 / T * 0.02, T, dtype=torch.float64),
            "constant": torch.ones(T, dtype=torch.float64),
            "vp": 1 - torch.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2),
            "ddpm": 0.5 * (0.1 / T + 4.95 * (2 * t - 1) / T**2),
        }[schedule]
        if schedule != "ddpm":  # the time step is chosen so that e^(-theta_bar_T) = 0.001: a_T has forgotten a_0
            theta = theta * (math.log(1000) / theta.sum())
        bar = theta.cumsum(0)
        before = torch.cat([bar.new_zeros(1), bar[:-1]])  # theta_bar_{t-1}, theta_bar_0 = 0
        step_var, var, var_before = (-torch.expm1(-2 * x) for x in (theta, bar, before))  # 1 - A^2, 1 - B^2, 1 - C^2
        self.num_steps, w_t, w_0 = num_steps, torch.exp(-theta) * var_before / var, torch.exp(-before) * step_var / var
        tables = dict(theta_dt=theta, theta_bar=bar, sigma=var.sqrt(), w_t=w_t, w_0=w_0)
        tables["posterior_var"] = step_var * var_before / var
        for name, table in tables.items():  # cast only now: built in float32, theta'_1 would be off by 1e-4 at T = 100
            setattr(self, name, table.to(device, torch.float32))

    def perturb(self, a0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Sample p(a_t | a_0) = N(e^(-theta_bar_t) a_0, sigma_t^2) (2, 4); `[B, A]`."""
        return torch.exp(-self.theta_bar[t]).unsqueeze(-1) * a0 + self.sigma[t].unsqueeze(-1) * noise

    def predict_a0(self, a_t: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
        """Invert `perturb`: (a_t - sigma_t eps) e^(theta_bar_t) (8)."""
        return (a_t - self.sigma[t].unsqueeze(-1) * noise) * torch.exp(self.theta_bar[t]).unsqueeze(-1)

    def posterior_mean(self, a_t: Tensor, a0: Tensor, t: int | Tensor) -> Tensor:
        """Mean of p(a_{t-1} | a_t, a_0), the optimal path from a_t to a_0 (6, 7; App. A.3)."""
        return self.w_t[t].unsqueeze(-1) * a_t + self.w_0[t].unsqueeze(-1) * a0

    def reverse_sde_step(self, a_t: Tensor, t: int | Tensor, eps: Tensor, noise: Tensor) -> Tensor:
        """One Euler step of the reverse SDE (3) with score -eps / sigma_t; the last step (index 0) adds no noise."""
        theta, sigma = self.theta_dt[t].unsqueeze(-1), self.sigma[t].unsqueeze(-1)
        noise = noise * ((t > 0).unsqueeze(-1) if isinstance(t, Tensor) else t > 0)
        return a_t + theta * a_t - 2 * theta * eps / sigma + torch.sqrt(2 * theta) * noise

    def ode_step(self, a_t: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """One Euler step of the probability-flow ODE of (3)."""
        theta, sigma = self.theta_dt[t].unsqueeze(-1), self.sigma[t].unsqueeze(-1)
        return a_t + theta * a_t - theta * eps / sigma


def sample_actions(score: nn.Module, sde: MeanRevertingSDE, obs: Tensor, sampler="posterior", action_clip: bool = True,
                   generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:  # fmt: skip
    """One action per observation, running the diffusion back from N(0, I); obs `[..., S]` -> `[..., A]` in [-1, 1]."""
    if noise is None:  # [T, ..., A]: first a_T, then one row a step
        noise = torch.randn(sde.num_steps, *obs.shape[:-1], score.act_dim, device=obs.device, generator=generator)
    a_t = noise[0]
    for t in reversed(range(sde.num_steps)):
        eps = score(a_t, t, obs)
        z = noise[-t]  # of no effect in the last step, t = 0
        if sampler == "sde":
            a_t = sde.reverse_sde_step(a_t, t, eps, z)
        elif sampler == "ode":
            a_t = sde.ode_step(a_t, t, eps)
        else:
            a0 = sde.predict_a0(a_t, t, eps)
            a0 = a0.clamp(-1, 1) if action_clip else a0
            a_t = sde.posterior_mean(a_t, a0, t) + sde.posterior_var[t].sqrt() * z  # Prop. 3.1 with a_0 predicted
    return a_t.clamp(-1, 1)


def log_transition(x: Tensor, y: Tensor, dt: Tensor) -> Tensor:
    """Log density, per dimension, of reaching x from y after SDE time dt: N(x; e^(-dt) y, 1 - e^(-2 dt)) (2)."""
    var = -torch.expm1(-2 * dt)
    return -0.5 * (torch.log(2 * math.pi * var) + (x - y * torch.exp(-dt)) ** 2 / var)


def entropy_estimate(sde: MeanRevertingSDE, a0: Tensor, aT: Tensor, kind: str) -> Tensor:
    """-log p(a_1 | a_T, a_0) by Bayes' rule from three transition densities (13, 14); `[B, A]` -> `[B]`."""
    # bridge: to the letter; a constant, whose gradient in the policy vanishes. released: as in the authors' code, with
    # arguments of two densities exchanged and the index a step late: 0.7787 + 0.0628 a_0^2 per dimension (T = 5), which
    # rewards large a_0 and does not see how spread the policy is.
    bar = sde.theta_bar
    if kind == "bridge":
        a1 = torch.exp(-bar[0]) * a0
        log_p = log_transition(aT, a1, bar[-1] - bar[0]) + log_transition(a1, a0, bar[0])
        return -(log_p - log_transition(aT, a0, bar[-1])).sum(-1)
    a1 = a0 * (1 - sde.theta_dt[0])
    log_p = log_transition(a1, aT, bar[-1] - bar[1]) + log_transition(a0, a1, bar[1] - bar[0])
    return -(log_p - log_transition(a0, aT, bar[-1] - bar[0])).sum(-1)


def chain_entropy_bound(sde: MeanRevertingSDE, score: nn.Module, obs: Tensor, chain_std: float,
                        generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:  # fmt: skip
    """Lower bound, in nats, on the entropy of the policy with std `chain_std` in its last step; `[B, S]` -> `[B]`."""
    # H >= E[log f(a^1..a^T | a^0) - log q(a^0..a^T)], q our reverse chain (10), f the SDE's transitions (2): an idea
    # of maximum-entropy diffusion RL (Celik et al. 2025, DIME). It has a gradient in the policy's spread.
    if noise is None:  # [T + 1, B, A]
        noise = torch.randn(sde.num_steps + 1, *obs.shape[:-1], score.act_dim, device=obs.device, generator=generator)
    a_t = noise[0]
    bound = 0.5 * (math.log(2 * math.pi) + a_t**2)  # -log N(a_T; 0, I)
    for t in reversed(range(sde.num_steps)):
        z = noise[sde.num_steps - t]
        std = sde.posterior_var[t].sqrt() if t > 0 else torch.full_like(sde.sigma[0], chain_std)
        a0 = sde.predict_a0(a_t, t, score(a_t, t, obs)).clamp(-1, 1)  # else entropy is bought outside the action box
        a_prev = sde.posterior_mean(a_t, a0, t) + std * z
        bound = bound + log_transition(a_t, a_prev, sde.theta_dt[t])
        bound = bound + 0.5 * (math.log(2 * math.pi) + z**2) + std.log()  # -log density of the step just taken
        a_t = a_prev
    return bound.sum(-1)


def lower_confidence_bound(q: Tensor, coef: float) -> Tensor:
    """mean - coef * std over the members (17); q `[M, ...]` -> `[...]`. Unbiased std, so M >= 2."""
    return q.mean(0) - coef * q.std(0)


METRICS = [f"losses/{x}" for x in ("critic", "diffusion", "q", "entropy", "actor")]
METRICS += [f"q/{x}" for x in ("mean", "std", "max_abs", "target")] + ["policy/entropy", "policy/alpha"]


class Agent(nn.Module):
    """All that learns, and what has to survive a restart with it: its state_dict is the checkpoint's core."""

    def __init__(self, obs_dim: int, act_dim: int, args: Args, device: str = "cpu"):
        super().__init__()
        self.sde = MeanRevertingSDE(args.num_diffusion_steps, args.schedule, device)
        self.chain_std = args.chain_std or min(0.2, float(self.sde.sigma[0]))
        self.score = ScoreMLP(obs_dim, act_dim, args.hidden_dim)
        self.score_ema = copy.deepcopy(self.score).requires_grad_(False)
        self.q = self.target_q = self.alpha = None
        if args.eta > 0 or args.num_candidates > 1:  # Q is in the actor's loss, or it ranks the candidates
            self.q = QEnsemble(obs_dim, act_dim, args.num_critics, args.hidden_dim, args.precision == "bf16")
            self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        if args.ent_coef == "auto":  # alpha(s), App. B.3
            hidden, head = nn.Linear(obs_dim, 32), nn.Linear(32, 1)
            self.alpha = nn.Sequential(hidden, nn.Mish(), head, nn.Softplus(), nn.Flatten(0))
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, math.log(math.expm1(0.01)))  # it starts at 0.01 in every state
        self.register_buffer("target_entropy", torch.tensor(args.target_entropy or 0.0))  # nats per action dimension
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))  # for --normalize-obs
        self.register_buffer("metric_sum", torch.zeros(len(METRICS)))  # since the last row of metrics.csv
        self.register_buffer("diffusion_sum", torch.zeros(()))  # since the last evaluation
        self.register_buffer("states", torch.zeros(4000, obs_dim))  # a sample of the data, for a maze's picture
        self.register_buffer("q_limit", torch.tensor(math.inf))  # max |r| / (1 - gamma)
        self.register_buffer("first_bad", torch.full((len(METRICS) + 1,), -1))  # first update with NaN; |Q| > q_limit
        self.to(device)
        nets = dict(actor=(self.score, args.actor_lr), critic=(self.q, args.critic_lr), alpha=(self.alpha, 3e-4))
        nets = {k: (n.parameters(), torch.tensor(lr, device=device)) for k, (n, lr) in nets.items() if n}
        self.optimisers = {k: torch.optim.Adam(*n, fused=True, capturable=device == "cuda") for k, n in nets.items()}


# obs [B, S], action [B, A], reward [B], next_obs [B, S], end [B]: 1 where no future follows (never at a time limit)
Transitions = namedtuple("Transitions", "obs action reward next_obs end")
# All randomness of one update, drawn before it, so that the update itself is a function: `target` [T, B * N, A] with
# N = 10 for max_q_backup, else 1; `t` [B]; `eps` [B, A]; `aT` [B, A], for released and bridge; `chain` [T + 1, B, A].
Noise = namedtuple("Noise", "target t eps aT chain")


def draw_batch(data: Transitions, args: Args, g: torch.Generator) -> tuple[Transitions, Noise]:
    """A uniform batch, with replacement, and the noise of one update."""
    B, A, T, N = args.batch_size, data.action.shape[-1], args.num_diffusion_steps, 10 if args.max_q_backup else 1
    index, t = (torch.randint(high, (B,), generator=g, device=g.device) for high in (len(data.obs), T))
    shapes = ((T, B * N, A), (B, A), (B, A), (T + 1, B, A))
    target, eps, aT, chain = (torch.randn(shape, generator=g, device=g.device) for shape in shapes)
    return Transitions(*(x[index] for x in data)), Noise(target, t, eps, aT, chain)


def td_target(agent: Agent, batch: Transitions, noise: Tensor, args: Args) -> Tensor:
    """r + gamma Q'(s', a') with a' from the averaged policy; `[M, B]`, each member its own target (16)."""
    noise = noise.unflatten(1, (len(batch.reward), -1))  # [T, B, N, A]
    next_obs = batch.next_obs.unsqueeze(1).expand(-1, noise.shape[2], -1)
    next_action = sample_actions(agent.score_ema, agent.sde, next_obs, args.sampler, args.action_clip, noise=noise)
    # max-Q, member by member; one of the N at a time, for together their activations are N times as large.
    next_q = reduce(torch.maximum, (agent.target_q(batch.next_obs, a) for a in next_action.unbind(1)))
    next_q = next_q.amin(0).expand_as(next_q) if args.target == "min" else next_q
    return batch.reward + args.gamma * (1 - batch.end) * next_q


def critic_loss(agent: Agent, batch: Transitions, target: Tensor) -> dict[str, Tensor]:
    """Mean squared TD error over members and batch, target `[M, B]`."""
    q = agent.q(batch.obs, batch.action)  # [M, B]
    return {"losses/critic": F.mse_loss(q, target), "q/max_abs": q.detach().abs().max(), "q/target": target.mean()}


def diffusion_loss(sde: MeanRevertingSDE, a_t: Tensor, a0: Tensor, t: Tensor, eps: Tensor, eps_hat: Tensor, kind: str):
    """Behaviour cloning: how well the noise in a_t was predicted. All `[B, A]`, t `[B]` -> scalar."""
    if kind == "noise":
        return F.mse_loss(eps_hat, eps)  # (5)
    optimal = sde.posterior_mean(a_t, a0, t)  # a_{t-1} on the best path to the data action (App. A.3)
    if kind == "likelihood":
        return F.mse_loss(sde.posterior_mean(a_t, sde.predict_a0(a_t, t, eps_hat), t), optimal)
    # Released: an Euler step of (3) against the exact path, which differ even for the true noise (by 1.6 at t = 5).
    return F.mse_loss(sde.reverse_sde_step(a_t, t, eps_hat, torch.zeros_like(a_t)), optimal)


def actor_losses(agent: Agent, batch: Transitions, noise: Noise, args: Args, warmup: bool) -> dict[str, Tensor]:
    """The actor's loss (15) and its parts: stay near the data, climb the LCB, keep entropy."""
    sde, obs = agent.sde, batch.obs
    a_t = sde.perturb(batch.action, noise.t, noise.eps)
    eps_hat = agent.score(a_t, noise.t, obs)
    a0_hat = sde.predict_a0(a_t, noise.t, eps_hat)
    loss = diffusion_loss(sde, a_t, batch.action, noise.t, noise.eps, eps_hat, args.diffusion_loss)
    out = {"losses/diffusion": loss}
    if args.eta > 0:
        action = a0_hat.clamp(-1, 1)
        if args.policy_action == "chain":
            action = sample_actions(agent.score, sde, obs, args.sampler, args.action_clip, noise=noise.chain[:-1])
        q = agent.q(obs, action, frozen=True)  # [M, B]
        value = q.amin(0) if args.pessimism == "min" else lower_confidence_bound(q, args.lcb_coef)
        out["losses/q"] = -value.mean() / q.abs().mean().detach()  # so that eta means the same at any scale of Q
        out |= {"q/mean": q.mean(), "q/std": q.std(0, correction=min(1, len(q) - 1)).mean()}
        loss = loss + (0.0 if warmup else args.eta) * out["losses/q"]
    if args.entropy_estimator in ("released", "bridge"):
        entropy = entropy_estimate(sde, a0_hat, noise.aT, args.entropy_estimator)  # [B]
        out["losses/entropy"] = -args.ent_coef * entropy.mean() / entropy.abs().mean().detach()
        out |= {"policy/entropy": entropy.mean() / agent.score.act_dim, "policy/alpha": 0 * loss + args.ent_coef}
    elif args.entropy_estimator == "chain":
        entropy = chain_entropy_bound(sde, agent.score, obs, agent.chain_std, noise=noise.chain) / agent.score.act_dim
        alpha = agent.alpha(obs) if agent.alpha else torch.full_like(entropy, args.ent_coef)  # [B]
        alpha = alpha.detach().clamp(1e-4, 1)
        out["losses/entropy"] = -(0.0 if warmup else 1.0) * (alpha * entropy).mean()
        out |= {"policy/entropy": entropy.mean(), "policy/alpha": alpha.mean(), "entropy": entropy}
    return {k: x.detach() for k, x in out.items()} | {"losses/actor": loss + out.get("losses/entropy", 0.0)}


def minimise(loss: Tensor, net: nn.Module, optimiser: torch.optim.Optimizer, grad_clip: float) -> None:
    """One Adam step on `net` alone: other networks in the loss get no gradient."""
    optimiser.zero_grad()
    loss.backward(inputs=list(net.parameters()))
    nn.utils.clip_grad_norm_(net.parameters(), grad_clip)
    optimiser.step()


def update(agent: Agent, batch: Transitions, noise: Noise, args: Args, step: int | Tensor, warmup=False) -> Tensor:
    """Update number `step` (from 0): critics, actor, averages, in this order. Nothing is read back from the device."""
    out = {}
    if agent.q:
        with torch.no_grad():
            target = td_target(agent, batch, noise.target, args)  # [M, B]
        out |= critic_loss(agent, batch, target)
        minimise(out["losses/critic"], agent.q, agent.optimisers["critic"], args.grad_clip)
    out |= actor_losses(agent, batch, noise, args, warmup)
    minimise(out["losses/actor"], agent.score, agent.optimisers["actor"], args.grad_clip)
    if agent.alpha and not warmup:  # it rises where the entropy is below its target, falls where above (App. B.3)
        alpha_loss = (agent.alpha(batch.obs) * (out["entropy"] - agent.target_entropy)).mean()
        minimise(alpha_loss, agent.alpha, agent.optimisers["alpha"], math.inf)
    with torch.no_grad():
        due = (step >= 1000) & (step % 5 == 0)  # until then the averaged actor keeps its initial weights, as released
        for average, new in zip(agent.score_ema.parameters(), agent.score.parameters()):
            average.lerp_(new, (1 - args.ema_decay) * due)
        if agent.q:
            torch._foreach_lerp_([*agent.target_q.parameters()], [*agent.q.parameters()], args.tau)
        zero = torch.zeros((), device=batch.obs.device)
        metrics = torch.stack([out.get(name, zero).detach() for name in METRICS])
        agent.metric_sum += metrics
        agent.diffusion_sum += out["losses/diffusion"]
        bad = torch.cat([~metrics.isfinite(), metrics[METRICS.index("q/max_abs")].unsqueeze(0) > agent.q_limit])
        agent.first_bad.copy_(torch.where((agent.first_bad < 0) & bad, step, agent.first_bad))
    return metrics


# === Speed: the same update, in fewer and larger pieces ===============================================================
def resolve(args: Args, device: str) -> Args:
    """Settle what `auto` is on this machine, once (a resumed run goes on as it began), and compile if so settled."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else "_bf16" in cpuinfo
    compiler = shutil.which(os.environ.get("CXX", "g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
    fail("--compile on needs a C++ compiler (g++) and Python's headers", when=args.compile == "on" and not compiler)
    if {"bf16": not fast, "tf32": device == "cpu"}.get(args.precision):  # asked for, and not in the hardware
        print(f"note: on this {device} bf16 may be 80 times slower than fp32, and tf32 is the same as fp32")
    if args.precision == "auto":  # tf32 took an H100 as long as bf16, and errs far less: README.md, On a GPU
        args = replace(args, precision="tf32" if device == "cuda" else "bf16" if fast else "fp32")
    if args.compile == "auto":
        args = replace(args, compile="on" if compiler and (device == "cuda" or args.gradient_steps >= 5000) else "off")
        if args.compile == "off":
            print("note: eager updates,", "as compiling takes half a minute" if compiler else "without a C++ compiler")
    if args.compile == "on":  # fuse what lies between products: bias, activation, casts, losses, and their gradients
        for name in ("td_target", "critic_loss", "actor_losses", "act"):  # `update` goes on calling them by name
            globals()[name] = torch.compile(globals()[name], dynamic=False)
    return args


def make_step(agent: Agent, data: Transitions, args: Args, g: torch.Generator, first: int, warmup: bool):
    """Update number `first` and those after it, draws included, as a function of nothing."""
    number, calls = torch.tensor(first, device=g.device), count()

    def step() -> None:
        update(agent, *draw_batch(data, args, g), args, number, warmup)
        number.add_(1)

    if g.device.type == "cpu" or args.compile == "off":
        return step
    # On a GPU the fourth update is recorded as a CUDA graph, and from then on an update is a single launch. So what
    # changes from one to the next (its number, learning rates, sums) has to be a tensor, and nothing may be read back.
    torch.cuda.synchronize()
    torch.cuda.set_stream(torch.cuda.Stream())  # a graph must not meet work of the default stream
    (graph := torch.cuda.CUDAGraph()).register_generator_state(g)

    def replay() -> None:
        if (call := next(calls)) == 3:
            with torch.cuda.graph(graph):
                step()
        return step() if call < 3 else graph.replay()

    return replay


# === Plumbing: acting and evaluation, data, checkpoints, command line, main ===========================================
@torch.no_grad()
def act(agent: Agent, obs: Tensor, noise: Tensor, u: Tensor, args: Args) -> Tensor:
    """Best of K (not in the paper): of K candidates a state keep one, with probability softmax(LCB of the targets)."""
    R, K = noise.shape[1:3]  # obs [R, S], noise [T, R, K, A], u [R] uniform in [0, 1) -> [R, A]
    obs = ((obs - agent.obs_mean) / agent.obs_std).unsqueeze(1).expand(R, K, -1)
    candidates = sample_actions(agent.score, agent.sde, obs, args.sampler, args.action_clip, noise=noise)  # [R, K, A]
    if K == 1:
        return candidates[:, 0]
    q = agent.target_q(obs.flatten(0, 1), candidates.flatten(0, 1)).unflatten(1, (R, K))  # [M, R, K]
    value = q.amin(0) if args.pessimism == "min" else lower_confidence_bound(q, args.lcb_coef)
    choice = value.argmax(1)
    if args.action_selection == "softmax":  # invert the cumulative probabilities at u
        choice = (value.softmax(1).cumsum(1) < u.unsqueeze(1)).sum(1).clamp(max=K - 1)
    return candidates[torch.arange(R, device=obs.device), choice]


def vector_env(args: Args, film: Path | None = None) -> gym.vector.VectorEnv:
    """Simulators stepped together, observations flat; with `film` three, whose first episodes become mp4s there."""
    task, cores, probe = TASKS[args.env_id], torch.get_num_threads(), make_env(TASKS[args.env_id])
    box = gym.spaces.Box(-np.inf, np.inf, flatten_obs(probe.reset(seed=0)[0]).shape, np.float32)
    seconds = timeit.timeit(lambda: probe.step(probe.action_space.sample()), number=20) / 20
    # Processes save all but 1 / cores of a simulator's step, and talking to them costs some 0.15 ms: kitchen gains.
    apart = seconds * (1 - 1 / cores) > 0.15e-3 and not film

    def make(i: int) -> gym.Env:
        env = make_env(task, "rgb_array" if film else None)
        if film:
            env = gym.wrappers.RecordVideo(env, str(film), lambda e: e == 0, name_prefix=f"{i}", disable_logger=True)
        return gym.wrappers.TransformObservation(env, flatten_obs, box)

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process, not for the simulators'
    fns = [partial(make, i) for i in range(3 if film else min(args.eval_envs or 10 * cores, args.eval_episodes))]
    envs = gym.vector.AsyncVectorEnv(fns) if apart else gym.vector.SyncVectorEnv(fns)
    signal.signal(signal.SIGINT, handler)
    return envs


def evaluate(agent: Agent, envs: gym.vector.VectorEnv, args: Args, reference, episodes: int, stop=(), run_dir=None):
    """Results of `episodes` episodes, a dict each, `envs.num_envs` at a time; none if `stop` fills up meanwhile."""
    # Each has its own seed, noise and row of an actor batch of fixed size (others round otherwise), however many run.
    shape = (args.num_diffusion_steps, args.num_candidates, envs.single_action_space.shape[0])
    results, paths, task, device = [], [], TASKS[args.env_id], agent.obs_mean.device
    n, size = envs.num_envs, 100 if device.type == "cuda" else 10
    steps = task.env_kwargs.get("max_episode_steps") or gym.spec(task.env).max_episode_steps
    for first in range(0, episodes, n):
        own = slice(first % size, first % size + n)  # rows of these episodes in one or more batches
        seeds = [(args.seed + 100) * 10_000 + first - own.start + i for i in range(-(-own.stop // size) * size)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rewards, running, clock = [[] for _ in seeds], np.zeros(len(seeds), bool), []
        running[own][: episodes - first] = True
        obs, padded = envs.reset(seed=seeds[own])[0], torch.zeros(len(seeds), len(agent.obs_mean))
        action, visited = np.zeros((len(seeds), shape[-1]), np.float32), [[o] for o in obs]
        while running.any() and not stop:
            clock.append(time.time())
            if (first, len(clock)) == (0, 5):  # three steps, without the first one's compiling, tell the pace
                most = (clock[4] - clock[1]) / 3 * steps * math.ceil(episodes / n)
                tqdm.write(f"evaluation: {episodes} episodes, {n} at a time, {steps} steps or less: up to {most:.0f} s")
            padded[own] = torch.from_numpy(obs)
            noise = torch.stack([torch.randn(shape, generator=g) for g in generators], 1)  # [T, rows, K, A]
            u = torch.stack([torch.rand((), generator=g) for g in generators])
            for rows in (slice(i, i + size) for i in range(0, len(seeds), size) if running[i : i + size].any()):
                inputs = (x.to(device) for x in (padded[rows], noise[:, rows], u[rows]))
                action[rows] = act(agent, *inputs, args).numpy(force=True)
            obs, reward, terminated, truncated, _ = envs.step(action[own])
            for i in np.flatnonzero(running):
                rewards[i].append(float(reward[i - own.start]))
                visited[i - own.start].append(obs[i - own.start])
            running[own] &= ~(terminated | truncated)  # a finished one goes on by itself, unheeded
        for episode, i in zip(range(first, episodes), range(own.start, own.stop)):
            results.append({"episode": episode, "seed": seeds[i], **episode_result(rewards[i], reference)})
            paths.append(np.array(visited[i - own.start]))  # [steps + 1, S]
    if draw_paths and run_dir and not stop:
        draw_paths(run_dir, results, paths, agent.states.numpy(force=True))
    return [] if stop else results


def means(results: list[dict]) -> dict[str, float]:
    """Each figure's mean over the episodes that have it (some never reach a goal), and the score's standard error."""
    table = {k: np.array([r[k] for r in results], np.float64) for k in results[0] if k not in ("episode", "seed")}
    out = {k: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else math.nan for k, v in table.items()}
    return {**out, "standard_error": float(table["score"].std(ddof=min(1, len(results) - 1))) / len(results) ** 0.5}


def fail(sentence: str, error: Exception | None = None, when: bool = True):
    """Bad input: one sentence, exit code 2."""
    if when:
        why = f" ({type(error).__name__}: {error})".splitlines()[0][:200] if error else ""
        print(f"error: {sentence}{why}", file=sys.stderr)
        sys.exit(2)


def load_dataset(args: Args, device: str) -> tuple[Transitions, dict]:
    """All transitions of the named sets as flat float32 tensors, and what is worth knowing of them; fits the task."""
    task, parts, results, reference = TASKS[args.env_id], [], [], None
    ids = args.dataset_id or task.dataset or fail(f"Minari has no {args.env_id}: name a dataset with --dataset-id")
    for dataset_id in ids.split(","):
        path = Path(dataset_id) if (Path(dataset_id) / "data").is_dir() else get_dataset_path(dataset_id)
        try:
            what = "is not on this machine and cannot be downloaded; --dataset-id FOLDER names a local one"
            if not (path / "data").is_dir():
                minari.download_dataset(dataset_id)
            what = "is damaged or incomplete"
            metadata, before = json.loads((path / "data" / "metadata.json").read_text()), len(parts)
            # A stranger's file that states no spaces would have Minari make its environment, and so run its code.
            if metadata["data_format"] != "hdf5" or not {"observation_space", "action_space"} <= metadata.keys():
                raise ValueError("not an HDF5 dataset that states its spaces")
            if reference is None and metadata.get("ref_max_score") is not None:
                reference = (float(metadata["ref_min_score"]), float(metadata["ref_max_score"]))
            for e in minari.MinariDataset(str(path / "data")):
                obs, action, reward = flatten_obs(e.observations), np.asarray(e.actions), np.asarray(e.rewards)
                if (obs.ndim, action.ndim) != (2, 2) or len(obs) != len(action) + 1 or len(action) != len(reward):
                    raise ValueError(f"episode {e.id} does not hold N actions and N + 1 observations")
                # N transitions: none crosses the episode's end, and a time limit (truncation) does not end the future.
                end = e.terminations | (reward > 0) if SUCCESS_ENDS else e.terminations
                parts.append((obs[:-1], action, reward, obs[1:], end))
                results.append(episode_result(reward, reference or task.reference))
            if not 0 < sum(len(part[1]) for part in parts[before:]) == metadata["total_steps"]:
                raise ValueError("it is empty, or not as long as its metadata say")
            specs = (json.loads(metadata.get(name) or "{}") for name in ("env_spec", "eval_env_spec"))
            fitted = fit_task(metadata, *specs, task)
        except Exception as error:  # network, hub, h5py, JSON and Minari fail in many ways
            fail(f"dataset {dataset_id} {what}", error)
        alike = fitted == task and all(a.shape[1:] == b.shape[1:] for a, b in zip(parts[0], parts[-1]))
        fail(f"{dataset_id} is of another simulator than the sets before it", when=before > 0 and not alike)
        TASKS[args.env_id] = task = fitted
    obs, action, reward, next_obs, end = flat = [np.concatenate(x).astype(np.float32) for x in zip(*parts)]
    fail(f"dataset {ids} has NaN or infinite numbers in it", when=not all(np.isfinite(x).all() for x in flat))
    info = {"id": ids, "hash": hashlib.sha256(b"".join(x.tobytes() for x in flat)).hexdigest()[:16]}
    info |= {"transitions": len(reward), "episodes": len(results)} | {f"mean_{k}": v for k, v in means(results).items()}
    info |= {"reference": reference or task.reference, "reference_from": "metadata" if reference else "D4RL's table"}
    info["action_components_clipped"] = float((np.abs(action) > 1).mean())
    mean, std = (0.5, 0.25) if args.reward == "antmaze" else (reward.mean(dtype=np.float64), reward.std(ddof=1))
    reward = reward if args.reward == "raw" else ((reward - mean) / std).astype(np.float32)
    flat = (obs, action.clip(-1, 1), reward, next_obs, end)
    return Transitions(*(torch.from_numpy(x).to(device) for x in flat)), info


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: whatever happens, the old or the new content is there, whole."""
    temporary = path.with_name("unfinished.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        fail(f"cannot write {path}; what was saved before is still there", error)


def append_row(path: Path, row: dict) -> None:
    """Add a line to a CSV file of numbers, below a header."""
    with open(path, "a") as file:
        header = "" if file.tell() else ",".join(row) + "\n"
        file.write(header + ",".join(map(str, row.values())) + "\n")


def load_checkpoint(run_dir: Path, agent: Agent) -> dict:
    """Put the newest whole checkpoint into the agent; `weights_only` keeps torch from running code a file may carry."""
    for path in sorted(run_dir.glob("checkpoint_*.pt"), reverse=True):
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() == content[-32:]:  # torch itself loads many a changed byte in silence
            try:
                state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
                agent.load_state_dict(state["agent"])
                for name, optimiser in agent.optimisers.items():  # its moments; rates and the like are ours
                    optimiser.load_state_dict(optimiser.state_dict() | {"state": state["optimisers"][name]})
                torch.set_num_threads(state["threads"])  # how a product rounds depends on it
                return state
            except Exception as error:
                fail(f"{path} is no checkpoint of this run", error)
        print(f"warning: {path} is damaged, taking the one before", file=sys.stderr)
    fail(f"there is no whole checkpoint in {run_dir}")


def parse_args(flags: list[str]) -> tuple[Args, list[str]]:
    """Dataclass default < task row < preset < flag; with --resume or --evaluate the saved run's flags go first."""
    asked, saved = tyro.cli(Args, args=[f for f in flags if f not in ("-h", "--help")]), {}
    if run_dir := asked.evaluate or asked.resume:
        try:
            run = json.loads(Path(run_dir, "run.json").read_text())
            flags, saved = [*map(str, run["flags"]), *flags], dict(run["args"])
            env, kwargs = run["simulator"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            fail(f"there is no run in {run_dir}", error)
        fail(f"{run_dir} holds a run of {run.get('script')}", when=run.get("script") != Path(__file__).name)
    asked = tyro.cli(Args, args=[f for f in flags if f not in ("-h", "--help")])  # help waits for the task's row
    env_id = asked.env_id[:-3] if asked.env_id[-3:-1] == "-v" else asked.env_id  # with or without D4RL's version
    if env_id not in TASKS:
        near = difflib.get_close_matches(env_id, TASKS, 3, 0.3) or TASKS
        fail(f"there is no task {env_id} in {Path(__file__).name}; the nearest are {', '.join(near)}")
    task = TASKS[env_id]
    row = task.row | PRESETS[asked.preset] | PRESET_ROWS.get((asked.preset, task.like), {})
    args = replace(tyro.cli(Args, default=Args(**row), args=flags), env_id=env_id)
    args = replace(args, action_clip=args.action_clip or args.entropy_estimator == "chain")
    free = "evaluate resume run_dir device track capture_video".split()
    free += "seed eval_episodes eval_envs num_candidates action_selection".split() if asked.evaluate else []
    for name in saved.keys() - set(free):
        new, longer = getattr(args, name, None), name == "gradient_steps" and not asked.evaluate
        if name in ("compile", "precision") and new == "auto":
            args = replace(args, **{name: saved[name]})  # as it was settled then
        elif new != saved[name] and not (longer and new > saved[name]):
            fail(f"the run in {run_dir} has {name} = {saved[name]}, which cannot become {new} now")
    if saved:  # its simulator was fitted to its data; a file may not choose one that is no variant of our own
        known = env in (task.env, task.env[:-1] + "4") and isinstance(kwargs, dict) and {*kwargs} == {*task.env_kwargs}
        fail(f"{run_dir} is of another simulator", when=not known)
        TASKS[env_id] = task._replace(env=env, env_kwargs=kwargs)
    for name, value in asdict(args).items():
        zero = name in ("seed", "eta", "ent_coef", "lcb_coef", "gamma", "tau", "ema_decay")  # these may be zero
        high = 1 if name in ("gamma", "tau", "ema_decay") else 1000 if name == "num_diffusion_steps" else 10**9
        number = type(value) in (int, float) and name != "target_entropy"
        if number and not (0 < value <= high or (value == 0 and zero)):
            fail(f"--{name.replace('_', '-')} cannot be {value}: {'at least' if zero else 'above'} 0, at most {high:g}")
    auto, fewest = args.ent_coef == "auto", {"released": 3, "bridge": 2}.get(args.entropy_estimator, 1)
    sigma_1 = MeanRevertingSDE(args.num_diffusion_steps, args.schedule).sigma[0]
    fail(f"{args.entropy_estimator} entropy needs {fewest} or more steps", when=args.num_diffusion_steps < fewest)
    fail("--device cuda, but torch sees no GPU", when=args.device == "cuda" and not torch.cuda.is_available())
    fail("an LCB is a matter of at least --num-critics 2", when=args.num_critics < 2 and args.pessimism == "lcb")
    fail("--ent-coef auto needs --entropy-estimator chain", when=auto and args.entropy_estimator != "chain")
    fail("--target-entropy is at most log 2, of a uniform action", when=(args.target_entropy or 0) > math.log(2))
    fail("--target-entropy is for --ent-coef auto", when=args.target_entropy is not None and not auto)
    fail(f"--chain-std can be at most sigma_1, here {sigma_1:.4f}", when=(args.chain_std or 0) > sigma_1)
    return args, flags


def check_finite(agent: Agent, step: int, run_dir: Path) -> int:
    """Stop at a NaN or infinity, before it gets into a checkpoint. Returns the first update with |Q| > q_limit."""
    *firsts, large_q = agent.first_bad.tolist()
    bad = [(first, name) for name, first in zip(METRICS, firsts) if first >= 0]
    bad += [(step - 1, "a network weight") for weight in agent.parameters() if not bool(weight.isfinite().all())]
    if bad:
        last = max(run_dir.glob("checkpoint_*.pt"), default="none")
        sys.exit(f"error: {min(bad)[1]} is not finite from update {min(bad)[0]} on; last good checkpoint: {last}")
    return large_q


def main(args: Args, flags: list[str]) -> None:
    """A whole run: data and agent, then updates, with an evaluation and a checkpoint every `eval_every` of them."""
    run_name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
    run_dir = Path(args.evaluate or args.resume or args.run_dir or f"runs/{run_name}")
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    args = resolve(args, device)
    torch.use_deterministic_algorithms(args.torch_deterministic, warn_only=True)
    torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
    if not args.evaluate:  # before the simulators, as a maze may come with its data
        fail(f"{run_dir} holds a run; --resume continues it", when=not args.resume and (run_dir / "run.json").exists())
        data, info = load_dataset(args, device)
    envs, task = vector_env(args), TASKS[args.env_id]
    (obs_dim,), (act_dim,) = envs.single_observation_space.shape, envs.single_action_space.shape
    torch.manual_seed(args.seed)  # for the network weights; all later noise comes from generators of our own
    agent, generator = Agent(obs_dim, act_dim, args, device), torch.Generator(device).manual_seed(args.seed)
    if args.evaluate:
        state = load_checkpoint(run_dir, agent)
        figures = means(evaluate(agent, envs, args, state["reference"], args.eval_episodes, run_dir=run_dir))
        print(f"update {state['at']['step']}:", *(f"{k} {v:.6g}" for k, v in figures.items()), f"(score: {SCORE})")
        if args.capture_video:
            evaluate(agent, vector_env(args, run_dir / "videos"), args, state["reference"], 3)
        return
    got, ours = (data.obs.shape[1], data.action.shape[1]), (obs_dim, act_dim)
    fail(f"{info['id']} has {got} observations and actions, {args.env_id} has {ours}", when=got != ours)
    agent.states.copy_(data.obs[torch.linspace(0, len(data.obs) - 1, len(agent.states), dtype=float).long()])
    agent.q_limit.fill_(float(data.reward.abs().max()) / max(1 - args.gamma, 1e-9))  # no return can be larger
    if args.normalize_obs:
        agent.obs_mean.copy_(data.obs.mean(0))
        agent.obs_std.copy_(data.obs.std(0).clamp(min=1e-3))
    # Automatic alpha without a target first clones the data (no Q, no entropy term), then reads its target off that.
    warmup = args.gradient_steps // 20 if args.ent_coef == "auto" and args.target_entropy is None else 0
    at = {"step": 0, "logged": 0, "evaluated": 0, "seconds": 0.0, "warmup": warmup, "history": [], "files": {}}
    if args.resume:
        state = load_checkpoint(run_dir, agent)
        at = state["at"]
        fail(f"the run in {run_dir} was made on other data", when=state["dataset_hash"] != info["hash"])
        generator.manual_seed(args.seed + 10**6 * at["step"])
        if state["device"] == device:  # a CPU generator's state means nothing to a GPU's
            generator.set_state(state["generator"])
    earlier, start = at["seconds"], time.time()
    data = data._replace(**{k: (getattr(data, k) - agent.obs_mean) / agent.obs_std for k in ("obs", "next_obs")})
    try:
        if args.track:
            import wandb

            wandb_names = dict(project=args.wandb_project_name, entity=args.wandb_entity, id=run_dir.name)
            wandb.init(**wandb_names, resume="allow", config=asdict(args))
        run_dir.mkdir(parents=True, exist_ok=True)
        held = open(run_dir / "lock", "w")  # until the process ends, however it ends
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing to {run_dir}")
    except OSError as error:
        fail(f"cannot write to the run folder {run_dir}", error)
    except Exception as error:
        fail("--track needs 'wandb login', or WANDB_MODE=offline", error)
    for file in run_dir.glob("*.csv"):
        os.truncate(file, at["files"].get(file.name, 0))  # rows after this checkpoint will be written again
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    write(run_dir / "run.json", json.dumps({
        "script": Path(__file__).name, "flags": flags, "args": asdict(args), "git_commit": git.stdout.strip() or None,
        "simulator": task[:2], "hyper_parameters_of": task.like, "dataset": info,
        "threads": torch.get_num_threads(), "gpu": device == "cuda" and torch.cuda.get_device_name(),
        "versions": {p: importlib.metadata.version(p) for p in "torch numpy gymnasium mujoco minari".split()},
        "system": [sys.version.split()[0], os.uname().release, torch.backends.cpu.get_cpu_capability()],
    }, indent=1).encode())  # fmt: skip
    print(f"{args.env_id} (--env-id names another) in {task.env}, the row of {task.like}, on {device}, in {run_dir}")
    print(*(f"{k}={v}" for k, v in asdict(args).items()), *(f"\ndata {k}={v}" for k, v in info.items()))

    def checkpoint() -> None:
        check_finite(agent, at["step"], run_dir)
        at["seconds"], buffer = earlier + time.time() - start, io.BytesIO()
        at["files"] = {file.name: file.stat().st_size for file in run_dir.glob("*.csv")}
        moments = {name: optimiser.state_dict()["state"] for name, optimiser in agent.optimisers.items()}
        state = {"agent": agent.state_dict(), "optimisers": moments, "generator": generator.get_state(), "at": at}
        state |= {"device": device, "threads": torch.get_num_threads(), "dataset_hash": info["hash"]}
        torch.save(state | {"reference": info["reference"]}, buffer)
        content = buffer.getvalue()
        write(run_dir / f"checkpoint_{at['step']:010d}.pt", content + hashlib.sha256(content).digest())
        for old in sorted(run_dir.glob("checkpoint_*.pt"))[:-2]:
            old.unlink()

    stop, mark = [], time.time()  # mark: when the updates of this row of metrics.csv began
    for number in (signal.SIGINT, signal.SIGTERM):  # the first one saves and stops, a second one kills
        signal.signal(number, lambda n, _: (stop.append(n), signal.signal(n, signal.SIG_DFL)))
    bar = tqdm(total=args.gradient_steps, initial=at["step"], disable=None, unit="update")  # on a terminal only
    one_update = make_step(agent, data, args, generator, at["step"], at["step"] < at["warmup"])
    if not args.resume:
        checkpoint()
    while not stop:
        step = at["step"]
        if step > at["evaluated"] and (step % args.eval_every == 0 or step == args.gradient_steps):
            pause = time.time()
            if not (results := evaluate(agent, envs, args, info["reference"], args.eval_episodes, stop, run_dir)):
                break
            for result in results:
                append_row(run_dir / "evaluations.csv", {"step": step, **result})
            figures, loss = means(results), float(agent.diffusion_sum) / (step - at["evaluated"])
            in_warmup, at["evaluated"] = at["evaluated"] < at["warmup"], step
            at["history"].append({"step": step, **figures, "diffusion_loss": loss, "warmup": in_warmup})
            agent.diffusion_sum.zero_()
            checkpoint()
            tqdm.write(f"update {step}: {', '.join(f'{name} {value:.1f}' for name, value in figures.items())}")
            if args.track:
                wandb.log({f"eval/{name}": value for name, value in figures.items()}, step=step)
            mark += time.time() - pause
        if step >= args.gradient_steps:
            break
        if at["warmup"] and step == at["warmup"]:  # at most log 2: no action in the box is more random than uniform
            states = data.obs[torch.randint(len(data.obs), (4096,), device=device, generator=generator)]
            with torch.no_grad():
                bound = chain_entropy_bound(agent.sde, agent.score, states, agent.chain_std, generator) / act_dim
            agent.target_entropy.copy_(bound.mean().clamp(max=math.log(2)))
            one_update = make_step(agent, data, args, generator, step, False)
        if args.lr_decay:
            for name, rate in zip(agent.optimisers, (args.actor_lr, args.critic_lr)):
                rate *= 0.5 * (1 + math.cos(math.pi * step / args.gradient_steps))
                agent.optimisers[name].param_groups[0]["lr"].fill_(rate)
        one_update()
        at["step"] = step = step + 1
        bar.update()
        if step % args.log_every == 0 or step == args.gradient_steps:  # the only lines that read from the device
            large_q, updates = check_finite(agent, step, run_dir), step - at["logged"]
            if large_q >= at["logged"]:
                tqdm.write(f"warning: |Q| > max |r| / (1 - gamma) = {agent.q_limit:.4g} from update {large_q} on")
            row = {"step": step, **dict(zip(METRICS, (agent.metric_sum / updates).tolist()))}
            row |= {"charts/actor_lr": float(agent.optimisers["actor"].param_groups[0]["lr"])}
            row |= {"charts/sps": updates / (time.time() - mark), "charts/seconds": earlier + time.time() - start}
            append_row(run_dir / "metrics.csv", row)
            agent.metric_sum.zero_()
            at["logged"], mark = step, time.time()
            shown = "losses/critic losses/diffusion q/mean q/std policy/entropy policy/alpha charts/sps".split()
            latest = f"  score {at['history'][-1]['score']:.1f}" if at["history"] else ""
            tqdm.write(f"{step:>8}" + "".join(f"  {name.split('/')[-1]} {row[name]:.3g}" for name in shown) + latest)
            if args.track:
                wandb.log(row, step=step)
    bar.close()
    if stop:
        checkpoint()
        print(f"stopped at update {at['step']}; to continue: python {Path(__file__).name} --resume {run_dir}")
        sys.exit(128 + stop[0])
    if args.capture_video:
        evaluate(agent, vector_env(args, run_dir / "videos"), args, info["reference"], 3)
    history, trained = at["history"], [h for h in at["history"] if not h["warmup"]]
    settled = (b for a, b in pairwise(trained) if abs(b["diffusion_loss"] - a["diffusion_loss"]) < 4e-3)  # App. B.8
    scores = {"last": history[-1], "best": max(history, key=lambda h: h["score"])}  # the best alone picks luck as well
    scores["offline"] = next(settled, {**history[-1], "note": "  (the diffusion loss never settled: the last)"})
    write(run_dir / "summary.json", json.dumps({**scores, "data": info}, indent=1).encode())
    print(f"{args.env_id}, seed {args.seed}, {args.eval_episodes} episodes an evaluation, data {info['id']}; {SCORE}:")
    for name, h in scores.items():
        print(f"  {name:8}{h['score']:6.1f} +- {h['standard_error']:.1f} at update {h['step']}{h.get('note', '')}")
    print(f"  data    {info['mean_score']:6.1f}, the mean of its episodes")
    if (stored := Path(__file__).resolve().parent / "results" / "records" / f"{args.env_id}.csv").exists():
        print(f"stored runs, from {stored}:\n{stored.read_text()}", end="")


if __name__ == "__main__":
    main(*parse_args(sys.argv[1:]))
# --- end shared ---
