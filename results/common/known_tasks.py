"""Two small tasks whose answer is known, and the exact law of a small policy's action.

bandit  one state; 80 % of the data at the action -0.5, 20 % at 0.5, which pays more.
toy     the two-step task of the paper's Fig. 1, for which the paper gives no numbers: a point at 0
        moves by its action, twice; the reward is a mixture of Gaussians over the position where it
        arrives. Most of the data go to the poor mode and stay there; from there the rich one is out
        of reach. obs: position, number of the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import edq_mujoco as edq

MODE_STD = 0.1  # of the data around a mode
POOR = -0.8  # positions of the toy task's modes
RICH = 0.8
RICH_SHARE = 0.12


@dataclass(frozen=True)
class Task:
    """One action dimension, data in two modes, the better one rare.

    data(g, n) -> obs `[n, S]`, action `[n, 1]`; q(obs `[B, S]`, action `[B, 1]`) -> `[B]`, the
    true value. Entropy and value are measured in the state `probe`, where the data's modes are
    `common` and `rare`.
    """

    name: str
    obs_dim: int
    probe: tuple[float, ...]
    common: float
    rare: float
    rare_share: float
    data: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
    q: Callable[[Tensor, Tensor], Tensor]


def bump(
    x: Tensor,
    centre: float,
    height: float,
    width: float = 0.2,
) -> Tensor:
    """height exp(-(x - centre)^2 / (2 width^2)): one mode of a reward."""
    z = (x - centre) / width
    return height * torch.exp(-0.5 * z**2)


def two_modes(
    g: torch.Generator,
    n: int,
    common: float,
    rare: float,
    rare_share: float,
) -> Tensor:
    """n actions `[n]`, a `rare_share` of them at `rare`."""
    is_rare = torch.rand(n, generator=g) < rare_share
    centre = torch.where(is_rare, rare, common)
    noise = torch.randn(n, generator=g)
    action = centre + MODE_STD * noise
    return action.clamp(-1, 1)


def bandit_data(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """80 % of the actions at -0.5, 20 % at 0.5; there is one state."""
    action = two_modes(g, n, -0.5, 0.5, 0.2)
    return torch.zeros(n, 1), action.unsqueeze(-1)


def bandit_q(obs: Tensor, action: Tensor) -> Tensor:
    """Reward 1 at the rare mode and 0.4 at the common one."""
    reward = bump(action, 0.5, 1.0) + bump(action, -0.5, 0.4)
    return reward.squeeze(-1)


def toy_reward(position: Tensor) -> Tensor:
    """1 at the rich mode, 0.5 at the poor one."""
    return bump(position, RICH, 1.0) + bump(position, POOR, 0.5)


def toy_data(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """n / 2 episodes of two steps: all first steps, then all second ones, which aim at the nearer
    mode.
    """
    episodes = n // 2
    first = two_modes(g, episodes, POOR, RICH, RICH_SHARE)
    aim = torch.where(first > 0, RICH, POOR)
    noise = torch.randn(episodes, generator=g)
    second = aim - first + MODE_STD * noise
    second = second.clamp(-1, 1)
    position = torch.cat([torch.zeros_like(first), first])
    step = torch.arange(2.0).repeat_interleave(episodes)
    obs = torch.stack([position, step], -1)
    action = torch.cat([first, second])
    return obs, action.unsqueeze(-1)


def toy_q(obs: Tensor, action: Tensor) -> Tensor:
    """Value of the data's own behaviour, in closed form (no discount): reward now, and after a
    first step the next one.

    The next action arrives at the nearer mode with std 0.1: on average 0.89 of its height, as the
    reward is 0.2 wide.
    """
    position = obs[:, 0] + action[:, 0]
    height = torch.where(position > 0, 1.0, 0.5)
    next_reward = height * 0.2 / math.hypot(0.2, MODE_STD)
    is_first = 1 - obs[:, 1]
    return toy_reward(position) + is_first * next_reward


TASKS = {
    "bandit": Task(
        name="bandit",
        obs_dim=1,
        probe=(0.0,),
        common=-0.5,
        rare=0.5,
        rare_share=0.2,
        data=bandit_data,
        q=bandit_q,
    ),
    "toy": Task(
        name="toy",
        obs_dim=2,
        probe=(0.0, 0.0),
        common=POOR,
        rare=RICH,
        rare_share=RICH_SHARE,
        data=toy_data,
        q=toy_q,
    ),
}


# === The law of a sampled action, by quadrature ===
EDGES = torch.linspace(-2, 2, 1601)  # of the bins on which a law is kept
CENTRES = 0.5 * (EDGES[1:] + EDGES[:-1])


def normal_density(x: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    z = (x - mean) / std
    scale = std * math.sqrt(2 * math.pi)
    return torch.exp(-0.5 * z**2) / scale


@torch.no_grad()
def action_law(
    actor: Callable,
    sde: edq.MeanRevertingSDE,
    obs: Tensor,
    last_std: float = 0.0,
) -> Tensor:
    """Probability, by bin, of the posterior sampler's action in one state, before the last clamp;
    obs `[S]`.

    One action dimension; predicted actions are clamped inside (`action_clip`). The density of a_t
    is carried from t = T to 1 on a grid. The last step is a map, so each grid cell of a_1 spreads
    its mass evenly between the images of its ends; `last_std` adds noise to it. Mass beyond the
    bins counts as theirs.
    """
    grid = torch.linspace(-5, 5, 501)  # every step but the last adds noise of std 0.5 or more
    fine = torch.linspace(-5, 5, 4001)
    cell = grid[1] - grid[0]
    density = normal_density(grid, 0.0, 1.0)

    def predicted(a_t: Tensor, t: int) -> Tensor:
        eps = actor(a_t, t, obs.expand(len(a_t), -1))
        return sde.predict_a0(a_t, t, eps)

    for t in reversed(range(1, sde.num_steps)):
        a_t = grid.unsqueeze(-1)
        a0 = predicted(a_t, t).clamp(-1, 1)
        mean = sde.posterior_mean(a_t, a0, t).squeeze(-1)
        std = sde.posterior_var[t].sqrt()
        to = fine if t == 1 else grid
        kernel = normal_density(to.unsqueeze(-1), mean, std)
        density = kernel @ density * cell
    a0 = predicted(fine.unsqueeze(-1), 0).squeeze(-1)
    mass = 0.5 * (density[1:] + density[:-1])  # of a cell of a_1
    low = torch.minimum(a0[1:], a0[:-1])
    high = torch.maximum(a0[1:], a0[:-1])
    width = (high - low).clamp(min=1e-9)
    below = (EDGES.unsqueeze(-1) - low) / width  # share of a cell, [edges, cells]
    below = below.clamp(0, 1)
    cumulative = below @ (mass / mass.sum())
    cumulative[0] = 0
    cumulative[-1] = 1
    law = cumulative.diff()
    return smoothed(law, last_std) if last_std > 0 else law


def smoothed(law: Tensor, std: float) -> Tensor:
    """The law with normal noise added."""
    z = (CENTRES.unsqueeze(-1) - CENTRES) / std
    kernel = torch.exp(-0.5 * z**2)
    return (kernel / kernel.sum(0)) @ law


def law_figures(task: Task, law: Tensor) -> dict[str, float]:
    """Entropy (nats) and value of a law in the probe state; the action box cuts what is acted."""
    bin_width = float(EDGES[1] - EDGES[0])
    acted = CENTRES.clamp(-1, 1)
    obs = torch.tensor(task.probe).expand(len(acted), -1)
    value = task.q(obs, acted.unsqueeze(-1))
    log_density = law.clamp(min=1e-30).log() - math.log(bin_width)
    to_rare = (acted - task.rare).abs()
    to_common = (acted - task.common).abs()
    off_data = torch.minimum(to_rare, to_common) >= 3 * MODE_STD
    return {
        "entropy": float(-(law * log_density).sum()),
        "value_1": float((law * value).sum()),
        "value_50": best_of(50, law, value),
        "rare_share": float(law[to_rare < to_common].sum()),
        "off_data": float(law[off_data].sum()),
        "off_box": float(law[CENTRES.abs() > 1].sum()),
    }


def best_of(candidates: int, law: Tensor, value: Tensor) -> float:
    """Expected value of the best of so many draws from a law over bins."""
    order = value.argsort()
    below = law[order].cumsum(0).clamp(max=1)
    before = torch.cat([below.new_zeros(1), below[:-1]])
    is_best = below**candidates - before**candidates
    return float((is_best * value[order]).sum())
