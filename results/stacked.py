"""Two small tasks whose answer is known, and many small policies trained on them at once.

A policy here is the scripts' own (`ScoreMLP`, `MeanRevertingSDE`, `actor_losses`, unchanged), only small; the weights
of all seeds and coefficients stand in one tensor, `[N, ...]`, and `torch.func.vmap` runs the loss of one policy over
them. Policies share nothing: each has its own data, noise, gradient norm and Adam moments. Policies of one seed get
the same data and noise, so that a difference between two coefficients is not one of luck.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import edq_mujoco as edq

HIDDEN, BATCH, DATA, LR = 64, 64, 2000, 1e-3  # width, batch, transitions of a seed's dataset, Adam rate


def bump(x: Tensor, centre: float, height: float, width: float = 0.2) -> Tensor:
    """height exp(-(x - centre)^2 / (2 width^2)): one hill of a reward."""
    return height * torch.exp(-0.5 * ((x - centre) / width) ** 2)


@dataclass(frozen=True)
class Task:
    """One action dimension, data in two modes, the better one rare.

    data(g, n) -> obs `[n, S]`, action `[n, 1]`; q(obs `[B, S]`, action `[B, 1]`) -> `[B]`, the true value; entropy and
    value are measured in the state `probe`, where the data's modes are `common` and `rare`, both of std 0.1.
    """

    name: str
    obs_dim: int
    probe: tuple[float, ...]
    common: float
    rare: float
    rare_share: float
    data: Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
    q: Callable[[Tensor, Tensor], Tensor]


def two_modes(g: torch.Generator, n: int, common: float, rare: float, rare_share: float) -> Tensor:
    """n actions `[n]`, a `rare_share` of them at `rare`, std 0.1."""
    centre = torch.where(torch.rand(n, generator=g) < rare_share, rare, common)
    return (centre + 0.1 * torch.randn(n, generator=g)).clamp(-1, 1)


def bandit_data(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """80 % of the actions at -0.5, 20 % at 0.5; there is one state."""
    return torch.zeros(n, 1), two_modes(g, n, -0.5, 0.5, 0.2).unsqueeze(-1)


def bandit_q(obs: Tensor, action: Tensor) -> Tensor:
    """Reward 1 at the rare mode and 0.4 at the common one."""
    return (bump(action, 0.5, 1.0) + bump(action, -0.5, 0.4)).squeeze(-1)


# The two-step task of the paper's Fig. 1, whose numbers it does not give: a point at 0 moves by its action, twice;
# the reward is a mixture of Gaussians over where it arrives, which at the first step is the action itself. Most of the
# data go to the poor hill and stay there; from there the rich one is out of reach. obs: position, number of the step.
POOR, RICH, RICH_SHARE = -0.8, 0.8, 0.12


def toy_reward(position: Tensor) -> Tensor:
    """1 at the rich hill, 0.5 at the poor one."""
    return bump(position, RICH, 1.0) + bump(position, POOR, 0.5)


def toy_data(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """n / 2 episodes of two steps, all first steps and then all second ones; the second aims at the nearer hill."""
    first = two_modes(g, n // 2, POOR, RICH, RICH_SHARE)
    aim = torch.where(first > 0, RICH, POOR)
    second = (aim - first + 0.1 * torch.randn(n // 2, generator=g)).clamp(-1, 1)
    obs = torch.stack([torch.cat([0 * first, first]), torch.arange(2.0).repeat_interleave(n // 2)], -1)
    return obs, torch.cat([first, second]).unsqueeze(-1)


def toy_q(obs: Tensor, action: Tensor) -> Tensor:
    """Value of the data's own behaviour, in closed form (no discount): reward now, and after a first step its next one.

    The next arrives at the nearer hill with std 0.1: on average 0.89 of the hill's height, as the reward is 0.2 wide.
    """
    position = obs[:, 0] + action[:, 0]
    height = torch.where(position > 0, 1.0, 0.5)
    return toy_reward(position) + (1 - obs[:, 1]) * height * 0.2 / math.hypot(0.2, 0.1)


TASKS = {
    "bandit": Task("bandit", 1, (0.0,), -0.5, 0.5, 0.2, bandit_data, bandit_q),
    "toy": Task("toy", 2, (0.0, 0.0), POOR, RICH, RICH_SHARE, toy_data, toy_q),
}


class Net:
    """A module with given weights, called as the scripts call it."""

    def __init__(self, module: nn.Module, weights: dict[str, Tensor]):
        self.module, self.weights, self.act_dim = module, weights, 1

    def __call__(self, *inputs: Tensor, **options: bool) -> Tensor:
        return functional_call(self.module, self.weights, inputs, options)


def stack(make: Callable[[], nn.Module], seeds: list[int], copies: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A template and weights `[len(seeds) * copies, ...]`: equal within a seed, seed by seed."""
    modules = []
    for seed in seeds:
        torch.manual_seed(seed)
        modules.append(make())
    weights, _ = stack_module_state(modules)
    return modules[0], {k: w.detach().repeat_interleave(copies, 0) for k, w in weights.items()}


def compiled(function: Callable, *example) -> Callable:
    """Trace a function of tensors, vmap and gradients included, into plain operations, and fuse these."""
    return torch.compile(make_fx(function)(*example), dynamic=False)


def seeded(seeds: list[int], draw: Callable[[torch.Generator], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Endless draws, stacked over seeds: each seed has its own stream, and no row depends on the others."""
    generators = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    while True:
        yield tuple(torch.stack(x) for x in zip(*(draw(g) for g in generators)))


def clip_rows(grads: dict[str, Tensor], limit: float) -> None:
    """Scale each policy's gradient to a norm of at most `limit`, as the scripts do with one."""
    norm = sum(g.flatten(1).square().sum(1) for g in grads.values()).sqrt()  # [N]
    scale = (limit / (norm + 1e-6)).clamp(max=1)
    for g in grads.values():
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


CHUNK = 50  # updates whose noise is drawn at once


def batches(task: Task, seeds: list[int], copies: int, T: int) -> Iterator[tuple[edq.Transitions, edq.Noise]]:
    """Batches `[N, B, ...]` of each seed's fixed dataset with the noise of an update, as `draw_batch` gives them."""
    datasets = [task.data(torch.Generator().manual_seed(seed), DATA) for seed in seeds]
    all_obs, all_action = (torch.stack(x) for x in zip(*datasets))  # [seeds, DATA, ...]

    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        index, t = (torch.randint(high, (CHUNK, BATCH), generator=g) for high in (DATA, T))
        shapes = ((CHUNK, BATCH, 1), (CHUNK, BATCH, 1), (CHUNK, T + 1, BATCH, 1))
        return index, t, *(torch.randn(shape, generator=g) for shape in shapes)

    rows = torch.arange(len(seeds)).unsqueeze(-1)
    for drawn in seeded(seeds, draw):
        for index, t, eps, aT, chain in zip(*(x.unbind(1) for x in drawn)):
            obs, action = (x[rows, index].repeat_interleave(copies, 0) for x in (all_obs, all_action))
            t, eps, aT, chain = (x.repeat_interleave(copies, 0) for x in (t, eps, aT, chain))
            none = torch.zeros(len(obs), BATCH)
            yield edq.Transitions(obs, action, none, obs, none), edq.Noise(none, t, eps, aT, chain)


@torch.no_grad()
def action_law(score: Callable, sde: edq.MeanRevertingSDE, obs: Tensor, bins: Tensor, last_std: float = 0.0) -> Tensor:
    """Probability `[len(bins) - 1]` of the sampler's action in one state, before the last clamp, by quadrature.

    obs `[S]`; one action dimension; predicted actions are clamped inside (`action_clip`). The density of a_t is carried
    from t = T to 1 on a grid. The last step is a map, so that each grid cell of a_1 spreads its mass evenly between the
    images of its ends; `last_std` adds noise to it. Mass beyond the bins counts as theirs.
    """
    grid = torch.linspace(-5, 5, 501)  # every step but the last adds noise of std 0.5 or more
    density = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    fine = torch.linspace(-5, 5, 4001)
    for t in reversed(range(1, sde.num_steps)):
        a_t = grid.unsqueeze(-1)
        a0 = sde.predict_a0(a_t, t, score(a_t, t, obs.expand(len(grid), -1))).clamp(-1, 1)
        mean, std = sde.posterior_mean(a_t, a0, t).squeeze(-1), sde.posterior_var[t].sqrt()
        to = fine if t == 1 else grid
        kernel = torch.exp(-0.5 * ((to.unsqueeze(-1) - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        density = kernel @ density * (grid[1] - grid[0])
    a_1 = fine.unsqueeze(-1)
    a0 = sde.predict_a0(a_1, 0, score(a_1, 0, obs.expand(len(fine), -1))).squeeze(-1)
    mass = 0.5 * (density[1:] + density[:-1])
    low, high = torch.minimum(a0[1:], a0[:-1]), torch.maximum(a0[1:], a0[:-1])
    inside = ((bins.unsqueeze(-1) - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)  # [bins, cells], share below
    cumulative = inside @ (mass / mass.sum())
    cumulative[0], cumulative[-1] = 0, 1
    law = cumulative.diff()
    if last_std > 0:
        centres = 0.5 * (bins[1:] + bins[:-1])
        kernel = torch.exp(-0.5 * ((centres.unsqueeze(-1) - centres) / last_std) ** 2)
        law = (kernel / kernel.sum(0)) @ law
    return law


BINS = torch.linspace(-2, 2, 1601)


def law_figures(task: Task, law: Tensor) -> dict[str, float]:
    """Entropy and value of a law over BINS, in the probe state; the action box cuts what is acted."""
    centres, width = 0.5 * (BINS[1:] + BINS[:-1]), float(BINS[1] - BINS[0])
    acted = centres.clamp(-1, 1)
    value = task.q(torch.tensor(task.probe).expand(len(acted), -1), acted.unsqueeze(-1))
    order = value.argsort()
    below = law[order].cumsum(0).clamp(max=1)
    best = below**50 - torch.cat([below.new_zeros(1), below[:-1]]) ** 50  # which of 50 draws is the best one
    rare_side = (acted - task.rare).abs() < (acted - task.common).abs()
    near = torch.minimum((acted - task.rare).abs(), (acted - task.common).abs()) < 0.3
    return {
        "entropy": float(-(law * (law.clamp(min=1e-30).log() - math.log(width))).sum()),
        "value_1": float((law * value).sum()),
        "value_50": float((best * value[order]).sum()),
        "rare_share": float(law[rare_side].sum()),
        "off_data": float(law[~near].sum()),
        "off_box": float(law[centres.abs() > 1].sum()),
    }


Losses = Callable[[edq.Agent, edq.Transitions, edq.Noise, Tensor], dict[str, Tensor]]


def train(task: Task, losses: Losses, coefs: list[float], seeds: list[int], budgets: list[int], extra: dict,
          every: Callable[[int, dict, Tensor, Tensor], None] | None = None,
          start: dict[str, Tensor] | None = None) -> dict[int, tuple[dict, Tensor]]:  # fmt: skip
    """Train a policy for each seed and coefficient with a known Q; budget -> weights `[N, ...]`, diffusion loss `[N]`.

    `losses(agent, batch, noise, coef)` gives what `actor_losses` does, for one policy; agent has `score`, `q`, `sde`,
    `chain_std`, `alpha` and what `extra` holds for each policy (`[N, ...]`: a clone's weights, say). `every(step,
    weights, coef, entropy)` may change `coef` in place between updates. `start`: weights `[seeds, ...]` to begin from.
    The diffusion loss is a mean over the last 200 updates.
    """
    sde, copies = edq.MeanRevertingSDE(5), len(coefs)
    template, weights = stack(lambda: edq.ScoreMLP(task.obs_dim, 1, HIDDEN), seeds, copies)
    if start:
        weights = {k: w.repeat_interleave(copies, 0) for k, w in start.items()}
    coef = torch.tensor(coefs).repeat(len(seeds))  # [N]

    def loss(weights, batch, noise, coef, extra):
        agent = Policy(Net(template, weights), sde, task.q, extra, template)
        out = losses(agent, edq.Transitions(*batch), edq.Noise(*noise), coef)
        entropy = out.get("policy/entropy", torch.zeros(()))
        return out["losses/actor"], (out["losses/diffusion"].detach(), entropy.detach())

    def step(weights, batch, noise, coef, extra):
        return vmap(grad_and_value(loss, has_aux=True))(weights, batch, noise, coef, extra)

    stream = batches(task, seeds, copies, sde.num_steps)
    batch, noise = next(stream)
    step = compiled(step, weights, tuple(batch), tuple(noise), coef, extra)
    optimiser = torch.optim.Adam(weights.values(), lr=LR, fused=True)
    out, recent = {}, []
    for number in range(1, max(budgets) + 1):
        grads, (_, (diffusion, entropy)) = step(weights, tuple(batch), tuple(noise), coef, extra)
        clip_rows(grads, 4.0)
        for name, weight in weights.items():
            weight.grad = grads[name].contiguous()  # the fused Adam misreads other strides
        optimiser.step()
        recent = [*recent[-199:], diffusion]
        if every:
            every(number, weights, coef, entropy)
        if number in budgets:
            out[number] = ({k: w.clone() for k, w in weights.items()}, torch.stack(recent).mean(0))
        batch, noise = next(stream)
    return out


class Policy:
    """What `actor_losses` reads of an `Agent`, with a known Q."""

    def __init__(self, score: Net, sde: edq.MeanRevertingSDE, q: Callable, extra: dict[str, Tensor], module: nn.Module):
        self.score, self.sde, self.true_q, self.extra, self.module = score, sde, q, extra, module
        self.alpha, self.chain_std = None, 0.2

    def q(self, obs: Tensor, action: Tensor, frozen: bool = False) -> Tensor:
        """`[1, B]`: an ensemble of one that knows."""
        return self.true_q(obs, action).unsqueeze(0)


class Learned:
    """N = len(seeds) * len(coefs) agents whose Q is learned as well, trained at once; seed by seed.

    `losses(agent, batch, noise, args, coef)` gives what `actor_losses` does. `weights[net]`, `[N, ...]`: of score,
    score_ema, q, target_q; `extra`: what else `losses` reads of an agent, `[N, ...]`; `clone`: weights of a score.
    """

    def __init__(self, obs_dim: int, act_dim: int, args: edq.Args, losses: Callable, seeds: list[int],
                 coefs: list[float], extra: dict):  # fmt: skip
        self.args, self.losses, self.seeds, self.copies, self.extra = args, losses, seeds, len(coefs), extra
        self.sde, self.coef = edq.MeanRevertingSDE(args.num_diffusion_steps), torch.tensor(coefs).repeat(len(seeds))
        score, scores = stack(lambda: edq.ScoreMLP(obs_dim, act_dim, args.hidden_dim), seeds, len(coefs))
        q, qs = stack(lambda: edq.QEnsemble(obs_dim, act_dim, args.num_critics, args.hidden_dim), seeds, len(coefs))
        self.modules = {"score": score, "score_ema": score, "clone": score, "q": q, "target_q": q}
        self.weights = {"score": scores, "q": qs}
        self.weights["score_ema"], self.weights["target_q"] = (
            {k: w.clone() for k, w in x.items()} for x in (scores, qs)
        )
        rates = {"q": args.critic_lr, "score": args.actor_lr}  # in the order of the scripts' update
        self.optimisers = {k: torch.optim.Adam(self.weights[k].values(), lr=r, fused=True) for k, r in rates.items()}
        if args.eta == 0:
            del self.optimisers["q"]  # cloning
        self.steps, self.done = {}, 0

    def gradients(self, net: str) -> Callable:
        """Gradient and loss of one network for all agents, as a function of its weights, all weights and the rest."""

        def loss(own, weights, extra, coef, batch, noise):
            agent, batch, noise = SimpleNamespace(alpha=None), edq.Transitions(*batch), edq.Noise(*noise)
            agent.sde, agent.chain_std = self.sde, 0.2
            for name, value in (weights | extra | {net: own}).items():
                setattr(agent, name, Net(self.modules[name], value) if name in self.modules else value)
            if net == "q":
                target = edq.td_target(agent, batch, noise.target, self.args)
                return edq.critic_loss(agent, batch, target)["losses/critic"], own[next(iter(own))].new_zeros(())
            agent.score.act_dim = batch.action.shape[-1]
            out = self.losses(agent, batch, noise, self.args, coef)
            return out["losses/actor"], torch.stack(
                [out["losses/diffusion"], out.get("policy/entropy", 0 * coef)]
            ).detach()

        return lambda *inputs: vmap(grad_and_value(loss, has_aux=True))(*inputs)

    def update(self, batch: edq.Transitions, noise: edq.Noise) -> Tensor:
        """Critics, then actors with the new critics, then the averages; diffusion loss and entropy `[N, 2]`."""
        batch, noise = (tuple(x.repeat_interleave(self.copies, 0) for x in y) for y in (batch, noise))  # [seeds, ...]
        for net, optimiser in self.optimisers.items():
            inputs = (self.weights[net], self.weights, self.extra, self.coef, batch, noise)
            if net not in self.steps:
                self.steps[net] = compiled(self.gradients(net), *inputs)
            grads, (_, logged) = self.steps[net](*inputs)
            clip_rows(grads, self.args.grad_clip)
            for name, weight in self.weights[net].items():
                weight.grad = grads[name].contiguous()  # the fused Adam misreads other strides
            optimiser.step()
            optimiser.zero_grad()
        averages = [("target_q", "q", self.args.tau)] if "q" in self.optimisers else []
        if self.done >= 1000 and self.done % 5 == 0:
            averages.append(("score_ema", "score", 1 - self.args.ema_decay))
        for average, net, rate in averages:
            torch._foreach_lerp_([*self.weights[average].values()], [*self.weights[net].values()], rate)
        self.done += 1
        return logged

    def agent(self, row: int, make: Callable[[], nn.Module]) -> nn.Module:
        """One of them as an `Agent` of a script, to be evaluated by it."""
        agent = make()
        for name, weights in self.weights.items():
            getattr(agent, name).load_state_dict({k: w[row] for k, w in weights.items()}, strict=False)
        return agent
