"""Many small agents trained at once, on tasks small enough to know the answer.

An agent here is the scripts' own (their networks, SDE and losses, unchanged), only small. The
weights of all N agents stand in one tensor, `[N, ...]`, and `torch.func.vmap` runs the losses of
one agent over them. Agents share nothing: each has its own data, noise, gradient norm and Adam
moments. Agents of one seed get the same data and noise, so that a difference between two
coefficients is not one of luck.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import (
    functional_call,
    grad_and_value,
    stack_module_state,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx

import edq_mujoco as edq

Weights = dict[str, Tensor]
ActorLosses = Callable[..., dict[str, Tensor]]  # (agent, batch, noise, args, coef)


class Net:
    """A module with given weights, called as the scripts call it."""

    def __init__(self, module: nn.Module, weights: Weights):
        self.module = module
        self.weights = weights
        self.act_dim = getattr(module, "act_dim", None)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return functional_call(self.module, self.weights, inputs)

    def frozen(self, *inputs: Tensor) -> Tensor:
        """The same, without a gradient for the weights."""
        weights = {name: w.detach() for name, w in self.weights.items()}
        return functional_call(self.module, weights, inputs)


class KnownQ:
    """An ensemble of one that knows the value."""

    def __init__(self, q: Callable[[Tensor, Tensor], Tensor]):
        self.q = q

    def frozen(self, obs: Tensor, action: Tensor) -> Tensor:
        """`[1, B]`."""
        return self.q(obs, action).unsqueeze(0)


def stack(
    make: Callable[[], nn.Module], seeds: list[int], copies: int
) -> tuple[nn.Module, Weights]:
    """A template and weights `[len(seeds) * copies, ...]`: equal within a seed, seed by seed."""
    modules = []
    for seed in seeds:
        torch.manual_seed(seed)
        modules.append(make())
    weights, _ = stack_module_state(modules)
    return modules[0], {k: w.detach().repeat_interleave(copies, 0) for k, w in weights.items()}


def row_of(weights: Weights, row: int) -> Weights:
    """The weights of one agent."""
    return {name: w[row] for name, w in weights.items()}


def copied(weights: Weights) -> Weights:
    return {name: w.detach().clone() for name, w in weights.items()}


def compiled(function: Callable, *example) -> Callable:
    """Trace a function of tensors, vmap and gradients included, into plain operations, and fuse
    these.
    """
    return torch.compile(make_fx(function)(*example), dynamic=False)


def seeded_draws(
    seeds: list[int],
    draw: Callable[[torch.Generator], tuple[Tensor, ...]],
) -> Iterator[tuple[Tensor, ...]]:
    """Endless draws, stacked over seeds: each seed has its own stream, whatever the others are."""
    generators = [torch.Generator().manual_seed(10_000 + seed) for seed in seeds]
    while True:
        drawn = [draw(g) for g in generators]
        yield tuple(torch.stack(x) for x in zip(*drawn))


def clip_gradients(grads: Weights, limit: float) -> None:
    """Scale each agent's gradient to a norm of at most `limit`, as the scripts do with one."""
    squares = sum(g.flatten(1).square().sum(1) for g in grads.values())  # [N]
    scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1)
    for g in grads.values():
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


class SmallAgents:
    """N = len(seeds) * len(coefs) agents, seed by seed.

    `weights[net]`: tensors `[N, ...]` by name, for net in actor, actor_ema, q, target_q. `coef`
    `[N]`: the weight of the entropy term. `extra`: what else the losses read of an agent, `[N,
    ...]`: `clone` (weights of a cloned actor), `noise_std`. All three may be changed in place
    between updates.

    `known_q`: the true Q in the place of critics. `start`: weights `[len(seeds), ...]` with which
    the actors begin.

    The EMA actor follows from update `ema_start` on, in each `ema_every`-th update, at the rate 1
    - args.ema_decay. As given that is the rule of the scripts (1,000 and 5). Runs shorter than
    that need another one: see toy/run.py.
    """

    def __init__(
        self,
        args: edq.Args,
        obs_dim: int,
        act_dim: int,
        seeds: list[int],
        coefs: list[float],
        actor_losses: ActorLosses,
        *,
        known_q: Callable[[Tensor, Tensor], Tensor] | None = None,
        start: Weights | None = None,
        critic_hidden: int | None = None,
        extra: dict | None = None,
        chain_std: float = 0.2,
        ema_start: int = 1000,
        ema_every: int = 5,
    ):
        self.args = args
        self.seeds = seeds
        self.copies = len(coefs)
        self.coef = torch.tensor(coefs).repeat(len(seeds))
        self.actor_losses = actor_losses
        self.known_q = known_q
        self.extra = extra or {}
        self.chain_std = chain_std
        self.ema_start = ema_start
        self.ema_every = ema_every
        self.sde = edq.MeanRevertingSDE(args.num_diffusion_steps)
        self.updates = 0
        self.gradients = {}  # compiled at the first update
        self.modules = {}
        self.weights = {}

        def make_actor() -> nn.Module:
            return edq.NoiseMLP(obs_dim, act_dim, args.hidden_dim)

        def make_critics() -> nn.Module:
            width = critic_hidden or args.hidden_dim
            return edq.QEnsemble(obs_dim, act_dim, args.num_critics, width)

        self.add_network("actor", "actor_ema", make_actor, start)
        self.modules["clone"] = self.modules["actor"]
        if known_q is None:
            self.add_network("q", "target_q", make_critics)
        rates = {
            "q": args.critic_lr,
            "actor": args.actor_lr,
        }  # in the order of the scripts' update
        if known_q or args.eta == 0:  # nothing to learn for critics
            del rates["q"]
        self.optimisers = {
            net: torch.optim.Adam(self.weights[net].values(), lr=rate, fused=True)
            for net, rate in rates.items()
        }

    def add_network(
        self,
        net: str,
        average: str,
        make: Callable,
        start: Weights | None = None,
    ) -> None:
        """A learned network and its moving average."""
        module, weights = stack(make, self.seeds, self.copies)
        if start is not None:
            weights = {k: w.repeat_interleave(self.copies, 0) for k, w in start.items()}
        self.modules[net] = self.modules[average] = module
        self.weights[net] = weights
        self.weights[average] = copied(weights)

    def one(self, weights: dict[str, Weights], extra: dict) -> SimpleNamespace:
        """One agent, as far as the scripts' losses and `act` look into it; weights and extra of
        its row.
        """
        agent = SimpleNamespace(sde=self.sde, alpha=None, chain_std=self.chain_std)
        if self.known_q:
            agent.q = KnownQ(self.known_q)
        for name, value in (weights | extra).items():
            if name in self.modules:
                value = Net(self.modules[name], value)
            setattr(agent, name, value)
        return agent

    def loss_of(self, net: str) -> Callable:
        """Loss of one agent as a function of that network's weights; beside it diffusion loss and
        entropy, `[2]`.
        """

        def critic(own, weights, extra, coef, batch, noise):
            agent = self.one(weights | {"q": own}, extra)
            batch = edq.Transitions(*batch)
            target = edq.td_target(
                agent,
                batch,
                edq.Noise(*noise).target,
                self.args,
            )
            loss = edq.critic_loss(agent, batch, target)["losses/critic"]
            return loss, loss.new_zeros(2)

        def actor(own, weights, extra, coef, batch, noise):
            agent = self.one(weights | {"actor": own}, extra)
            batch = edq.Transitions(*batch)
            noise = edq.Noise(*noise)
            out = self.actor_losses(agent, batch, noise, self.args, coef)
            entropy = out.get("policy/entropy", torch.zeros_like(coef))
            logged = torch.stack([out["losses/diffusion"], entropy])
            return out["losses/actor"], logged.detach()

        return critic if net == "q" else actor

    def update(self, batch: edq.Transitions, noise: edq.Noise) -> Tensor:
        """Critics, then actors with the new critics, then the averages; batch and noise
        `[len(seeds), ...]`.

        Returns diffusion loss and entropy estimate, `[N, 2]`.
        """
        batch = tuple(x.repeat_interleave(self.copies, 0) for x in batch)
        noise = tuple(x.repeat_interleave(self.copies, 0) for x in noise)
        for net, optimiser in self.optimisers.items():
            inputs = (
                self.weights[net],
                self.weights,
                self.extra,
                self.coef,
                batch,
                noise,
            )
            if net not in self.gradients:
                every_agent = vmap(grad_and_value(self.loss_of(net), has_aux=True))
                self.gradients[net] = compiled(lambda *x, f=every_agent: f(*x), *inputs)
            grads, (_, logged) = self.gradients[net](*inputs)
            clip_gradients(grads, self.args.grad_clip)
            for name, weight in self.weights[net].items():
                weight.grad = grads[name].contiguous()  # fused Adam misreads other strides
            optimiser.step()
            optimiser.zero_grad()
        self.average()
        self.updates += 1
        return logged

    def average(self) -> None:
        """Moving averages of the weights: target critics in every update, the EMA actor when it
        is due.
        """
        if "q" in self.optimisers:
            self.follow("target_q", "q", self.args.tau)
        due = self.updates >= self.ema_start and self.updates % self.ema_every == 0
        if due:
            self.follow("actor_ema", "actor", 1 - self.args.ema_decay)

    def follow(self, average: str, net: str, rate: float) -> None:
        old = list(self.weights[average].values())
        new = list(self.weights[net].values())
        torch._foreach_lerp_(old, new, rate)

    def actor(self, row: int) -> Net:
        """The actor of one agent."""
        return Net(
            self.modules["actor"],
            row_of(self.weights["actor"], row),
        )

    def as_script_agent(self, row: int, agent: nn.Module) -> nn.Module:
        """The weights of one agent put into an `Agent` of a script, to be evaluated by it."""
        for name, weights in self.weights.items():
            getattr(agent, name).load_state_dict(row_of(weights, row), strict=False)
        return agent


# === Acting ===
def raw_actions(
    actor: Callable,
    sde: edq.MeanRevertingSDE,
    obs: Tensor,
    noise: Tensor,
) -> Tensor:
    """`sample_actions` without the clamp of its last step: atoms at +-1 have no entropy; noise
    `[T, ..., A]`.
    """
    a_t = noise[0]
    for t in reversed(range(1, sde.num_steps)):
        a0 = sde.predict_a0(a_t, t, actor(a_t, t, obs)).clamp(-1, 1)
        std = sde.posterior_var[t].sqrt()
        a_t = sde.posterior_mean(a_t, a0, t) + std * noise[-t]
    return sde.predict_a0(a_t, 0, actor(a_t, 0, obs))


@torch.no_grad()
def raw_actions_of_all(agents: SmallAgents, obs: Tensor, g: torch.Generator) -> Tensor:
    """`raw_actions` of every agent in the same states: obs `[n, S]` -> `[N, n, A]`."""
    weights = agents.weights["actor"]
    module = agents.modules["actor"]
    count = len(next(iter(weights.values())))
    shape = (
        count,
        agents.sde.num_steps,
        len(obs),
        module.act_dim,
    )
    noise = torch.randn(shape, generator=g)

    def one(weights: Weights, noise: Tensor) -> Tensor:
        return raw_actions(Net(module, weights), agents.sde, obs, noise)

    return vmap(one)(weights, noise)


def act(
    agent,
    obs: Tensor,
    noise: Tensor,
    u: Tensor,
    args: edq.Args,
    extra: Tensor | float = 0.0,
) -> Tensor:
    """The scripts' `act`, with `extra` added to its candidates; for `vmap`, and agents that
    normalise nothing.

    obs `[R, S]`, noise `[T, R, K, A]`, u `[R]`, extra `[R, K, A]` -> `[R, A]`.
    """
    R, K, A = noise.shape[1:]
    wide = obs.unsqueeze(1).expand(R, K, -1)
    candidates = edq.sample_actions(agent.actor, agent.sde, wide, noise=noise)
    candidates = (candidates + extra).clamp(-1, 1)
    if K == 1:
        return candidates[:, 0]
    q = agent.target_q(wide.flatten(0, 1), candidates.flatten(0, 1))
    value = edq.pessimistic_value(q, args).unflatten(0, (R, K))
    choice = value.argmax(1)
    if args.action_selection == "softmax":
        cumulative = value.softmax(1).cumsum(1)
        choice = (cumulative < u.unsqueeze(1)).sum(1).clamp(max=K - 1)
    index = choice.view(R, 1, 1).expand(R, 1, A)
    return candidates.gather(1, index).squeeze(1)
