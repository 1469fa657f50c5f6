"""Does a weight mean the same for any number of action dimensions?

A product of A bandits is cloned with `chain`, its value divided by A (as in the scripts) or not.
All terms of the actor's loss are means over dimensions, so a policy should not notice how many
others are trained beside it. One-dimensional marginals are measured by spacings (SciPy).
"""

import time
from dataclasses import replace

import numpy as np
import torch
from scipy import stats

import edq_mujoco as edq
from results.common.known_tasks import bandit_data
from results.common.records import RECORDS, write_record
from results.common.small_agents import (
    SmallAgents,
    raw_actions_of_all,
)
from results.studies.entropy.arms import losses_of
from results.studies.entropy.known import ARGS, BATCH, DATA

SIZES = [1, 2, 4, 8]  # A
SEEDS = list(range(5))
UPDATES = 3000
COEF = 0.1


def bandits(A: int, g: torch.Generator) -> edq.Transitions:
    """A seed's dataset: A independent bandits."""
    action = torch.cat([bandit_data(g, DATA)[1] for _ in range(A)], -1)
    zero = torch.zeros(DATA)
    obs = zero.unsqueeze(-1)
    return edq.Transitions(obs, action, zero, obs, zero)


def stacked_batch(
    datasets: list[edq.Transitions],
    args: edq.Args,
    generators: list[torch.Generator],
) -> tuple[edq.Transitions, edq.Noise]:
    """The scripts' `draw_batch` of every seed, `[seeds, ...]`."""
    drawn = [edq.draw_batch(data, args, g) for data, g in zip(datasets, generators)]
    batches, noises = zip(*drawn)
    batch = edq.Transitions(*(torch.stack(x) for x in zip(*batches)))
    noise = edq.Noise(*(torch.stack(x) for x in zip(*noises)))
    return batch, noise


def entropies(A: int, coef: float, updates: int, seeds: list[int]) -> list[float]:
    """Mean entropy of a dimension after cloning A bandits, for each seed."""
    args = replace(ARGS, eta=0.0, batch_size=BATCH)
    agents = SmallAgents(args, 1, A, seeds, [coef], losses_of("chain"))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    datasets = [bandits(A, g) for g in generators]
    for _ in range(updates):
        agents.update(*stacked_batch(datasets, args, generators))
    g = torch.Generator().manual_seed(9)
    actions = raw_actions_of_all(agents, torch.zeros(4000, 1), g).numpy()
    return [float(np.mean([stats.differential_entropy(x) for x in own.T])) for own in actions]


def run() -> None:
    torch.set_num_threads(1)
    started = time.time()
    rows = []
    for A in SIZES:
        for scale, coef in (
            ("per dimension", COEF),
            ("sum", COEF * A),
        ):
            for seed, entropy in zip(SEEDS, entropies(A, coef, UPDATES, SEEDS)):
                about = {
                    "act_dim": A,
                    "scale": scale,
                    "weight": coef,
                    "seed": seed,
                }
                rows.append(about | {"entropy": entropy})
    path = RECORDS / "entropy" / "scale.csv"
    write_record(
        path,
        rows,
        started,
        seeds=SEEDS,
        coef=COEF,
        updates=UPDATES,
    )
