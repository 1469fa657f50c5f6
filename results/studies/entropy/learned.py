"""Learned tasks: the scripts' own data, networks, losses and evaluation; only the term is the
arm's.

The agents of all seeds and coefficients of an arm are trained at once. Small networks and budgets,
the same for all arms. Both mazes are made by results/datasets (recipes rare and wander); hopper is
a stand-in recorded for this project.
"""

import importlib
import time
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import edq_mujoco as edq
from results.common.records import RECORDS, write_record
from results.common.small_agents import SmallAgents, Weights, copied, raw_actions
from results.studies.entropy.arms import ActingNoise, losses_of
from results.studies.entropy.estimators import knn_entropy
from results.studies.entropy.scale import stacked_batch

SMALL = "--num-critics 4 --hidden-dim 64 --batch-size 128 --tau 0.02 --no-max-q-backup"
SMALL += " --precision fp32 --no-compile"


@dataclass(frozen=True)
class Learned:
    """A script and its flags beside those of SMALL."""

    script: str
    flags: str


TASKS = {
    "rare": Learned(
        "edq_antmaze",
        "--env-id pointmaze-rare --gradient-steps 8000 --eval-episodes 30",
    ),
    "wander": Learned(
        "edq_antmaze",
        "--env-id pointmaze-medium --dataset-id edq/pointmaze/medium-wander-v0"
        " --gradient-steps 10000 --eval-episodes 30",
    ),
    "hopper": Learned(
        "edq_mujoco",
        "--env-id hopper-medium-replay --dataset-id standin/hopper/medium-replay-v0"
        " --gradient-steps 6000 --eval-episodes 10 --diffusion-loss noise --action-clip",
    ),
}
COEFS = {
    "none": [0.0],
    "released": [0.01, 0.1],
    "chain": [0.03, 0.1, 0.3],
    "chainJ": [0.1],
    "quad": [0.01],
    "score": [0.3],
    "pathkl": [0.1],
    "gmm": [0.1],
    "logdet": [0.03],
    "bridge": [0.01],
}
NOISES = [0.1, 0.2, 0.4]
SEEDS = list(range(5))
STATES = 256  # data states in which entropy is measured
SAMPLES = 200  # actions in each
RECENT = 500  # updates over which loss and estimate are averaged


def train(
    args: edq.Args,
    data: edq.Transitions,
    arm: str,
    coefs: list[float],
    clone: Weights | None = None,
) -> tuple[SmallAgents, Tensor, Tensor]:
    """All agents of an arm, `[seeds * coefs]`; their logged figures `[N, 2]` and acting noise
    `[N]`.
    """
    labels = torch.tensor(coefs).repeat(len(SEEDS))
    acting_noise = ActingNoise(labels) if arm == "gmm" else None
    extra = {}
    if clone:
        extra["clone"] = {k: w.repeat_interleave(len(coefs), 0) for k, w in clone.items()}
    if acting_noise:
        extra["noise_std"] = acting_noise.std
    sizes = data.obs.shape[1], data.action.shape[1]
    agents = SmallAgents(args, *sizes, SEEDS, coefs, losses_of(arm), extra=extra)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    recent = []
    for number in range(args.gradient_steps):
        batch, noise = stacked_batch([data] * len(SEEDS), args, generators)
        recent = [*recent[1 - RECENT :], agents.update(batch, noise)]
        if acting_noise and number % (args.gradient_steps // 100) == 0:
            index = torch.randint(len(data.obs), (4,), generator=acting_noise.generator)
            acting_noise.adapt(agents, data.obs[index])
    std = acting_noise.std if acting_noise else torch.zeros_like(labels)
    return agents, torch.stack(recent).mean(0), std


@torch.no_grad()
def diagnose(agent, data: edq.Transitions, noise_std: float) -> dict[str, float]:
    """Entropy, distance to data and ensemble spread at fixed data states; nothing is simulated."""
    g = torch.Generator().manual_seed(0)
    A = data.action.shape[-1]
    obs = data.obs[torch.linspace(0, len(data.obs) - 1, STATES).long()]
    noise = torch.randn(agent.sde.num_steps, SAMPLES, STATES, A, generator=g)
    raw = raw_actions(agent.actor, agent.sde, obs.expand(SAMPLES, -1, -1), noise)
    raw = raw.transpose(0, 1)  # [STATES, SAMPLES, A]
    raw = raw + noise_std * torch.randn(raw.shape, generator=g)
    acted = raw.clamp(-1, 1)
    entropy = [knn_entropy(own) / A for own in raw.numpy()]
    near = data.action[nearest_states(data.obs, obs)]  # [STATES, 50, A]
    wide = obs.repeat_interleave(SAMPLES, 0)
    q = agent.target_q(wide, acted.flatten(0, 1))
    return {
        "entropy": float(np.mean(entropy)),
        "off_box": float((raw.abs() > 1).any(-1).float().mean()),
        "data_distance": float(torch.cdist(acted, near).amin(-1).mean()),
        "q_spread": float(q.std(0).mean() / q.abs().mean()),
    }


def nearest_states(data_obs: Tensor, obs: Tensor) -> Tensor:
    """Rows of the 50 data states nearest to each of obs, in units of their std; `[n, 50]`."""
    std = data_obs.std(0).clamp(min=1e-3)
    search = NearestNeighbors(n_neighbors=50).fit((data_obs / std).numpy())
    _, index = search.kneighbors((obs / std).numpy())
    return torch.from_numpy(index)


def noisy_sampler(sample_actions, std: float, seed: int):
    """The scripts' sampler with normal noise added to its actions."""
    g = torch.Generator().manual_seed(seed)

    def sample(*inputs, **options) -> Tensor:
        action = sample_actions(*inputs, **options)
        noise = torch.randn(action.shape, generator=g)
        return (action + std * noise).clamp(-1, 1)

    return sample


def score(script, agent, envs, args: edq.Args, reference, std: float) -> dict[str, float]:
    """Scores of the policy itself and of the best of 50, acting with noise of that std."""
    clean = script.sample_actions
    if std > 0:
        script.sample_actions = noisy_sampler(clean, std, args.seed)  # `act` calls it by name
    figures = {}
    for candidates in (1, 50):
        acting = replace(args, num_candidates=candidates)
        results = script.evaluate(agent, envs, acting, reference, args.eval_episodes)
        figures[f"score_{candidates}"] = script.means(results)["score"]
    script.sample_actions = clean
    return figures


def run(name: str, arms: list[str]) -> None:
    """Each arm's record as it ends: a row an agent."""
    torch.set_num_threads(1)
    script = importlib.import_module(TASKS[name].script)
    flags = f"{SMALL} {TASKS[name].flags}"
    args = script.parse_args(flags.split())
    args = replace(args, entropy_estimator="none")
    data, info = script.load_dataset(args, "cpu")
    envs = script.vector_env(args)
    sizes = data.obs.shape[1], data.action.shape[1]
    for arm in arms or list(COEFS):
        started = time.time()
        coefs = COEFS[arm]
        clone = None
        if arm == "pathkl":
            cloning, _, _ = train(replace(args, eta=0.0), data, "none", [0.0])
            clone = copied(cloning.weights["actor"])
        agents, logged, acting_std = train(args, data, arm, coefs, clone)
        seconds = time.time() - started
        rows = []
        for i, (seed, coef) in enumerate(product(SEEDS, coefs)):
            agent = agents.as_script_agent(i, script.Agent(*sizes, args))
            ways = [(arm, coef, float(acting_std[i]))]
            if arm == "none":
                ways += [("noise", std, std) for std in NOISES]
            for label, weight, std in ways:
                row = {"arm": label, "coef": weight, "seed": seed}
                row |= diagnose(agent, data, std)
                seeded = replace(args, seed=seed)
                row |= score(script, agent, envs, seeded, info["reference"], std)
                row["diffusion_loss"] = float(logged[i, 0])
                row["says"] = float(logged[i, 1])
                row["acting_std"] = std
                rows.append(row)
                print(name, row, flush=True)
        write_record(
            RECORDS / "entropy" / f"real-{name}-{arm}.csv",
            rows,
            started,
            task=name,
            flags=flags,
            dataset=info["id"],
            dataset_hash=info["hash"],
            data_score=info["mean_score"],
            states=STATES,
            samples=SAMPLES,
            seeds=SEEDS,
            seconds_of_training=round(seconds),
        )
