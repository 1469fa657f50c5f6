"""Known truth: one action dimension, a known Q, the density of the sampled action by quadrature.

Each policy first clones its data for 1,500 updates, as a learned Q says nothing at first either.
With the true Q from the first update on, a policy without any entropy term finds the rare mode
while it is still broad, and there is nothing to see.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

import edq_mujoco as edq
from results.common.known_tasks import TASKS, Task, action_law, law_figures
from results.common.records import RECORDS, write_record
from results.common.small_agents import (
    SmallAgents,
    Weights,
    copied,
    raw_actions_of_all,
    seeded_draws,
)
from results.studies.entropy.arms import ARMS, ActingNoise, losses_of, one_step
from results.studies.entropy.estimators import (
    bridge_entropy,
    chain_jacobian,
    ddim_log_det,
    knn_entropy,
    mixture_entropy,
    path_kl,
    quad,
)

HIDDEN = 64
BATCH = 64
DATA = 2000  # transitions of a seed's dataset
LR = 1e-3  # Adam rate
CHUNK = 50  # updates whose noise is drawn at once
SEEDS = list(range(20))
WARMUP = 1500  # updates without Q
BUDGETS = [1000, 3000]  # updates with Q after these, at which is measured
RECENT = 200  # updates over which the diffusion loss is averaged
COEFS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
NOISES = [0.03, 0.1, 0.2, 0.3, 0.5, 1.0]  # std of the acting noise
DELTAS = [0.0, 0.25, 0.5]  # nats above the clone, for automatic coefficients

ARGS = edq.Args(
    pessimism="min",
    num_critics=1,
    eta=1.0,
    diffusion_loss="noise",
    action_clip=True,
    hidden_dim=HIDDEN,
    actor_lr=LR,
    grad_clip=4.0,
)


@dataclass(frozen=True)
class Variant:
    """An arm with its settings. automatic: the coefficient is learned, so that the arm's own
    estimate reaches that of the cloned policy plus a delta; deltas stand in the place of coefs."""

    arm: str
    coefs: list[float]
    automatic: bool = False
    chain_std: float = 0.2


VARIANTS = {arm: Variant(arm, COEFS) for arm in ARMS}
VARIANTS["none"] = Variant("none", [0.0])
VARIANTS["logdet"] = Variant("logdet", COEFS[1::2])  # it costs the most
VARIANTS["chain-auto"] = Variant("chain", DELTAS, automatic=True)
VARIANTS["chainJ-auto"] = Variant("chainJ", DELTAS, automatic=True)
VARIANTS["chain-std0.05"] = Variant("chain", COEFS, chain_std=0.05)
VARIANTS["chain-std0.4"] = Variant("chain", COEFS, chain_std=0.4)


def batches(task: Task, seeds: list[int]) -> Iterator[tuple[edq.Transitions, edq.Noise]]:
    """Endless batches `[seeds, B, ...]` of each seed's fixed dataset, with the noise of an
    update.
    """
    datasets = [task.data(torch.Generator().manual_seed(seed), DATA) for seed in seeds]
    all_obs, all_action = (torch.stack(x) for x in zip(*datasets))  # [seeds, DATA, ...]
    T = ARGS.num_diffusion_steps

    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(DATA, (CHUNK, BATCH), generator=g)
        t = torch.randint(T, (CHUNK, BATCH), generator=g)
        eps = torch.randn(CHUNK, BATCH, 1, generator=g)
        aT = torch.randn(CHUNK, BATCH, 1, generator=g)
        chain = torch.randn(CHUNK, T + 1, BATCH, 1, generator=g)
        return index, t, eps, aT, chain

    rows = torch.arange(len(seeds)).unsqueeze(-1)
    unused = torch.zeros(len(seeds), BATCH)
    for drawn in seeded_draws(seeds, draw):
        for index, t, eps, aT, chain in zip(*(x.unbind(1) for x in drawn)):
            obs = all_obs[rows, index]
            action = all_action[rows, index]
            batch = edq.Transitions(obs, action, unused, obs, unused)
            yield batch, edq.Noise(unused, t, eps, aT, chain)


def cloned(task: Task, seeds: list[int], updates: int) -> Weights:
    """Actors trained without Q and entropy: where every arm starts, and the target of `pathkl`."""
    args = replace(ARGS, eta=0.0)
    agents = SmallAgents(args, task.obs_dim, 1, seeds, [0.0], losses_of("none"), known_q=task.q)
    stream = batches(task, seeds)
    for _ in range(updates):
        agents.update(*next(stream))
    return copied(agents.weights["actor"])


@torch.no_grad()
def estimates(task: Task, agents: SmallAgents, clone: Weights) -> list[dict[str, float]]:
    """What every estimator says of every policy in the probe state, from 1,000 samples."""
    sde = agents.sde
    g = torch.Generator().manual_seed(1)
    n = 1000
    all_obs, all_action = task.data(g, 40 * n)
    at_probe = (all_obs == torch.tensor(task.probe)).all(-1)
    obs = all_obs[at_probe][:n]
    unused = torch.zeros(n)
    batch = edq.Transitions(obs, all_action[at_probe][:n], unused, obs, unused)
    t = torch.randint(5, (n,), generator=g)
    eps = torch.randn(n, 1, generator=g)
    aT = torch.randn(n, 1, generator=g)
    chain = torch.randn(6, n, 1, generator=g)
    noise = edq.Noise(None, t, eps, aT, chain)

    def one(weights: Weights, clone: Weights) -> dict[str, Tensor]:
        agent = agents.one({"actor": weights}, {"clone": clone})
        actor = agent.actor
        a0 = one_step(agent, batch, noise)
        values = {
            "released": edq.entropy_estimate(sde, a0, aT),
            "quad": quad(a0),
            "bridge": bridge_entropy(sde, a0, aT),
            "chain": edq.chain_entropy_bound(sde, actor, obs, 0.2, noise=chain),
            "chainJ": chain_jacobian(sde, actor, obs, chain),
            "logdet": ddim_log_det(sde, actor, obs, chain),
            "pathkl": -path_kl(sde, actor, agent.clone, obs, chain, 0.2),
        }
        return {name: value.mean() for name, value in values.items()}

    said = torch.func.vmap(one, chunk_size=20)(agents.weights["actor"], clone)
    actions = raw_actions_of_all(agents, obs, g).numpy()
    rows = []
    for i, own in enumerate(actions):
        row = {name: float(value[i]) for name, value in said.items()}
        row["gmm"] = mixture_entropy(own[:200])
        row["knn"] = knn_entropy(own[:200])
        rows.append(row)
    return rows


def train_and_measure(
    task: Task,
    variant: Variant,
    clones: Weights,
    seeds: list[int],
    budgets: list[int],
) -> list[dict]:
    """Train a variant at every coefficient and seed; a row for each of these and each budget."""
    arm = variant.arm
    clone = {k: w.repeat_interleave(len(variant.coefs), 0) for k, w in clones.items()}
    labels = torch.tensor(variant.coefs).repeat(len(seeds))  # [N]
    acting_noise = ActingNoise(labels) if arm == "gmm" else None
    extra = {}
    if arm == "pathkl":
        extra["clone"] = clone
    if acting_noise:
        extra["noise_std"] = acting_noise.std
    agents = SmallAgents(
        ARGS,
        task.obs_dim,
        1,
        seeds,
        [0.01] * len(variant.coefs) if variant.automatic else variant.coefs,
        losses_of(arm),
        known_q=task.q,
        start=clones,
        extra=extra,
        chain_std=variant.chain_std,
    )
    if variant.automatic:
        target = labels + torch.tensor([row[arm] for row in estimates(task, agents, clone)])
    stream = batches(task, seeds)
    recent = []
    rows = []
    for number in range(1, max(budgets) + 1):
        logged = agents.update(*next(stream))
        diffusion, entropy = logged.unbind(-1)
        recent = [*recent[1 - RECENT :], diffusion]
        if acting_noise and number % 30 == 0:
            acting_noise.adapt(agents, torch.tensor([task.probe]))
        if variant.automatic:
            log_coef = agents.coef.log() + 3e-3 * (target - entropy)
            agents.coef.copy_(log_coef.clamp(math.log(1e-4), 0).exp())
        if number in budgets:
            loss = torch.stack(recent).mean(0)
            std = acting_noise.std if acting_noise else torch.zeros_like(labels)
            measured = measure(task, arm, agents, clone, loss, std)
            keys = product(seeds, variant.coefs)
            for (seed, coef), found in zip(keys, measured):
                for own in found:
                    about = {"arm": arm, "coef": coef, "seed": seed, "updates": number}
                    rows.append(about | own)
    return rows


def measure(
    task: Task,
    arm: str,
    agents: SmallAgents,
    clone: Weights,
    diffusion_loss: Tensor,
    acting_std: Tensor,
) -> list[list[dict]]:
    """For each agent its figures; of `none` those of acting with noise as well."""
    probe = torch.tensor(task.probe)
    said = estimates(task, agents, clone)
    found = []
    for i, own in enumerate(said):
        actor = agents.actor(i)
        law = action_law(actor, agents.sde, probe, float(acting_std[i]))
        figures = law_figures(task, law)
        figures["diffusion_loss"] = float(diffusion_loss[i])
        figures |= {f"says_{name}": value for name, value in own.items()}
        rows = [figures]
        if arm == "none":  # the same policy, acting with noise
            for std in NOISES:
                noisy = law_figures(task, action_law(actor, agents.sde, probe, std))
                rows.append(figures | noisy | {"arm": "noise", "coef": std})
        found.append(rows)
    return found


def run(name: str, variants: list[str]) -> None:
    """Each variant's record as it ends."""
    torch.set_num_threads(1)
    task = TASKS[name]
    clones = cloned(task, SEEDS, WARMUP)
    for key in variants or list(VARIANTS):
        started = time.time()
        variant = VARIANTS[key]
        rows = train_and_measure(task, variant, clones, SEEDS, BUDGETS)
        for row in rows:
            if row["arm"] == variant.arm:
                row["arm"] = key
        write_record(
            RECORDS / "entropy" / f"known-{name}-{key}.csv",
            rows,
            started,
            task=name,
            variant=key,
            chain_std=variant.chain_std,
            seeds=SEEDS,
            lr=LR,
            batch=BATCH,
            hidden=HIDDEN,
            transitions=DATA,
        )
        print(f"{name} {key}: {time.time() - started:.0f} s", flush=True)
