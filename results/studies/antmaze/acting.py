"""Does a diffusion clone fail because it imitates the noise that BC by mean squared error averages?

    python results/studies/antmaze/acting.py runs/clone

The run is one of `edq_antmaze.py --preset diffusion-bc`. Its policy is scored acting with one
sample, as it was trained, and with the mean of K samples, which is what the squared error asks for.
Beside that stands how far samples lie from their mean, in states of the data, and how far the
data's own actions do. Writes results/records/antmaze/acting.csv, a row a way of acting.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from results.common.records import RECORDS, write_record
from results.common.runs import Run, evaluate_with, load_data, load_run


@dataclass
class Args:
    """Score a clone that acts with one sample, and with the mean of several."""

    run: tyro.conf.Positional[Path]
    """run folder of a clone"""
    samples: tuple[int, ...] = (1, 10, 50)
    """K, samples of which the mean acts"""
    episodes: int = 50
    """episodes of an evaluation"""
    states: int = 2000
    """states of the data in which samples are compared"""
    record: Path = RECORDS / "antmaze" / "acting.csv"
    """file to write"""


def samples_of(run: Run, obs: Tensor, noise: Tensor) -> Tensor:
    """Samples `[R, K, A]` of the policy at obs `[R, S]`; noise `[T, R, K, A]`."""
    agent = run.agent
    obs = (obs - agent.obs_mean) / agent.obs_std
    obs = obs.unsqueeze(1).expand(-1, noise.shape[2], -1)
    sample_actions = run.script.sample_actions
    return sample_actions(agent.actor, agent.sde, obs, run.args.action_clip, noise=noise)


def score(run: Run, count: int, episodes: int) -> dict[str, float]:
    """The script's evaluation, in which the mean of `count` samples acts."""
    script = run.script
    args = replace(run.args, num_candidates=count, eval_episodes=episodes)

    @torch.no_grad()
    def mean_action(agent, obs, noise, u, args) -> Tensor:
        return samples_of(run, obs, noise).mean(1)

    envs = script.vector_env(args)
    reference = run.record["dataset"]["reference"]
    results = evaluate_with(mean_action, script, run.agent, envs, args, reference)
    envs.close()
    return script.means(results)


@torch.no_grad()
def spreads(run: Run, states: int, count: int = 50) -> tuple[float, float]:
    """Root mean square per dimension, around the mean of `count` samples: of samples, of data."""
    data, _ = load_data(run)
    g = torch.Generator().manual_seed(0)
    index = torch.randint(len(data.obs), (states,), generator=g)
    act_dim = data.action.shape[1]
    shape = (run.args.num_diffusion_steps, states, count, act_dim)
    samples = samples_of(run, data.obs[index], torch.randn(shape, generator=g))
    mean = samples.mean(1)
    of_samples = samples.std(1).square().mean().sqrt()
    of_data = (data.action[index] - mean).square().mean().sqrt()
    return float(of_samples), float(of_data)


def main(args: Args) -> None:
    started = time.time()
    run = load_run(args.run)
    of_samples, of_data = spreads(run, args.states)
    print(f"spread around the mean sample: samples {of_samples:.3f}, data {of_data:.3f}")
    rows = []
    for count in args.samples:
        figures = score(run, count, args.episodes)
        row = {
            "env_id": run.args.env_id,
            "dataset": run.record["dataset"]["id"],
            "hash": run.record["dataset"]["hash"],
            "seed": run.args.seed,
            "updates": run.step,
            "samples": count,
            "episodes": args.episodes,
            "success": figures["score"],
            "standard_error": figures["standard_error"],
            "spread_of_samples": of_samples,
            "spread_of_data": of_data,
        }
        rows.append(row)
        print(f"mean of {count}: {row['success']:.1f} +- {row['standard_error']:.1f}", flush=True)
    write_record(args.record, rows, started, run=args.run.name, data="stand-ins, not D4RL's")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
