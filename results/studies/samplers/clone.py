"""How slowly the authors' locomotion row clones, and what mends it.

    OMP_NUM_THREADS=1 python results/studies/samplers/clone.py   # 13 CPU minutes

The script's own `diffusion-bc` with that row, but for two flags: --action-clip and
--diffusion-loss. The data have one mode, N(0.3, 0.1^2) in each of three action components. So
states say nothing: they are normal noise of a hopper's size. After each of UPDATES the online
actor acts in fresh states. Without a critic the clamp acts in sampling alone, so one training
serves both of its arms.

What to expect: sampling begins with t = 5, where a_0 is predicted with a factor of 1,000. An
error of 0.001 in the noise moves a_0 by one, and without the clamp that stays in the chain.
Writes results/records/samplers/locomotion-clone.csv after each training of three CPU minutes.
A training that is there already is not repeated: remove the file to measure anew.
"""

import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import edq_mujoco as edq
from results.common.records import RECORDS, pick, read_record, write_record

TASK = "hopper-medium-expert"  # all locomotion tasks have one row
OBS_DIM, ACT_DIM = 11, 3
LOSSES = ("likelihood_released", "noise")
UPDATES = (1_500, 5_000, 10_000, 20_000, 40_000)
SEEDS = (0, 1)
MEAN, STD = 0.3, 0.1  # of the data, in every component
TRANSITIONS = 1_000_000
SAMPLES = 4_000  # states in which the policy acts
EDGE = 0.999


def row_args(kind: str) -> edq.Args:
    """What the script itself takes for the row, BC and this loss."""
    flags = ["--env-id", TASK, "--preset", "diffusion-bc", "--diffusion-loss", kind]
    return edq.parse_args(flags)


def one_mode(size: int, g: torch.Generator) -> edq.Transitions:
    """States are noise, actions have one mode; a clone needs no rewards."""
    obs = torch.randn(size, OBS_DIM, generator=g)
    action = (MEAN + STD * torch.randn(size, ACT_DIM, generator=g)).clamp(-1, 1)
    nothing = torch.zeros(size)
    return edq.Transitions(obs, action, nothing, obs, nothing)


def clones(
    args: edq.Args,
    data: edq.Transitions,
    seed: int,
    stops: tuple[int, ...],
) -> Iterator[tuple[int, edq.Agent]]:
    """Train one agent; it is handed out after each number of updates in `stops`."""
    torch.manual_seed(seed)
    agent = edq.Agent(OBS_DIM, ACT_DIM, args)
    g = torch.Generator().manual_seed(seed)
    step = edq.make_step(agent, data, args, g, 0)
    for number in range(1, stops[-1] + 1):
        step()
        if number in stops:
            yield number, agent


@torch.no_grad()
def actions(agent: edq.Agent, obs: Tensor, noise: Tensor, clip: bool) -> Tensor:
    """Of the online actor, as when it acts."""
    return edq.sample_actions(agent.actor, agent.sde, obs, clip, noise=noise)


def edge_share(x: Tensor) -> float:
    """Share of the components at the edge of the box."""
    return float((x.abs() >= EDGE).double().mean())


def describe(x: Tensor, data: Tensor) -> dict[str, float]:
    """Samples `[n, A]` beside data, averaged over components."""
    pairs = zip(x.T.numpy(), data.T.numpy())
    return {
        "edge": edge_share(x),
        "distance": float(np.mean([wasserstein_distance(*pair) for pair in pairs])),
        "mean_error": float((x.mean(0) - MEAN).abs().mean()),
        "std": float(x.std(0).mean()),
    }


def main() -> None:
    torch.set_num_threads(1)
    edq.compile_functions()
    started = time.time()
    path = RECORDS / "samplers" / "locomotion-clone.csv"
    rows = read_record(path)[1] if path.exists() else []
    kept = len(rows)
    data = one_mode(TRANSITIONS, torch.Generator().manual_seed(1000))
    fresh = one_mode(SAMPLES, torch.Generator().manual_seed(2000))
    for seed, kind in product(SEEDS, LOSSES):
        if pick(rows, loss=kind, seed=seed):
            continue
        g = torch.Generator().manual_seed(3000 + seed)
        noise = torch.randn(5, SAMPLES, ACT_DIM, generator=g)  # the same for all arms
        args = row_args(kind)
        for updates, agent in clones(args, data, seed, UPDATES):
            for clip in (False, True):
                row = {"loss": kind, "clip": int(clip), "seed": seed, "updates": updates}
                x = actions(agent, fresh.obs, noise, clip)
                rows.append(row | describe(x, fresh.action))
                print(f"{time.time() - started:.0f} s: {rows[-1]}", flush=True)
        write_record(
            path,
            rows,
            started,
            rows_of_earlier_calls=kept,
            row=TASK,
            mean=MEAN,
            std=STD,
            obs_dim=OBS_DIM,
            act_dim=ACT_DIM,
            transitions=TRANSITIONS,
            samples=SAMPLES,
            edge=EDGE,
            width=args.hidden_dim,
            batch=args.batch_size,
            actor_lr=args.actor_lr,
            T=args.num_diffusion_steps,
        )


if __name__ == "__main__":
    main()
