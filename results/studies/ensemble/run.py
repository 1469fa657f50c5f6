"""What a part of a large ensemble says, beside the whole: why the gain of one more member shrinks.

    python results/studies/ensemble/run.py runs/ablation-maze/pointmaze-medium__M=64__*

The target critics of finished runs are cut into disjoint groups of M' members. At data states
with K candidates of the run's own policy each group ranks the candidates by its own lower
confidence bound (the run's beta), and is compared with the members that are not in it. Members
learn apart, but from the actions of one policy that climbed all of them.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from scipy.stats import mannwhitneyu
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import edq_mujoco as edq
from results.common.records import RECORDS, write_record
from results.common.runs import load_data, load_run

STATES = 300  # data states
SIZES = (2, 4, 8, 16, 32)  # members of a group


@dataclass
class Args:
    """Cut the ensembles of finished runs into groups."""

    runs: tyro.conf.Positional[list[Path]]


def compare_groups(q: Tensor, beta: float, groups: list[Tensor]) -> dict[str, float]:
    """How groups of members choose, against all members not in them; q `[M, states, K]`."""
    same = []
    lost = []
    values = []
    for members in groups:
        outside = torch.ones(len(q), dtype=torch.bool)
        outside[members] = False
        value = edq.lower_confidence_bound(q[members], beta)  # [states, K]
        others = edq.lower_confidence_bound(q[outside], beta)
        choice = value.argmax(1, keepdim=True)
        best = others.max(1, keepdim=True).values
        given_up = (best - others.gather(1, choice)).squeeze(1)
        same.append((choice.squeeze(1) == others.argmax(1)).float().mean())
        lost.append((given_up / others.std(1)).mean())
        values.append(value)
    noise = torch.stack(values).var(0).mean() / q.var(0).mean()
    return {
        "same_choice": float(torch.stack(same).mean()),
        "loss_in_std": float(torch.stack(lost).mean()),
        "lcb_noise": float(noise.sqrt()),  # in units of the members' std
    }


def random_seen(q_data: Tensor, q_random: Tensor) -> float:
    """Probability that members differ more on a random action than on a data action; `[M,
    states]`.
    """
    on_random = q_random.std(0).numpy()
    on_data = q_data.std(0).numpy()
    wins = mannwhitneyu(on_random, on_data).statistic
    return float(wins / (len(on_random) * len(on_data)))


@torch.no_grad()
def look(folder: Path) -> list[dict]:
    """Rows of a run, one for each size of group that leaves at least two groups."""
    run = load_run(folder)
    data, _ = load_data(run)
    agent = run.agent
    args = run.args
    g = torch.Generator().manual_seed(0)
    K = args.num_candidates
    index = torch.randint(len(data.obs), (STATES,), generator=g)
    action = data.action[index]
    obs = (data.obs[index] - agent.obs_mean) / agent.obs_std
    wide = obs.repeat_interleave(K, 0)  # [STATES * K, S]
    candidates = run.script.sample_actions(
        agent.actor,
        agent.sde,
        wide,
        args.action_clip,
        generator=g,
    )
    q = agent.target_q(wide, candidates).unflatten(1, (STATES, K))  # [M, STATES, K]
    q_data = agent.target_q(obs, action)  # [M, STATES]
    q_random = agent.target_q(obs, torch.rand(action.shape, generator=g) * 2 - 1)
    about = {
        "run": folder.name,
        "task": args.env_id,
        "dataset": args.dataset_id,
        "seed": args.seed,
        "beta": args.lcb_coef,
        "candidates": K,
        "std_data": float(q_data.std(0).mean()),
        "std_policy": float(q.std(0).mean()),
        "std_random": float(q_random.std(0).mean()),
        "mean_q_over_candidates": float(q.mean(0).std(1).mean()),
    }
    rows = []
    M = len(q)
    for size in SIZES:
        if 2 * size > M:
            continue
        order = torch.randperm(M, generator=g)
        groups = list(order.split(size))[: M // size]
        row = about | {"members": size, "groups": len(groups)}
        row |= compare_groups(q, args.lcb_coef, groups)
        seen = [random_seen(q_data[members], q_random[members]) for members in groups]
        row["random_seen"] = sum(seen) / len(seen)
        rows.append(row)
    return rows


def main(args: Args) -> None:
    started = time.time()
    folders = [path for path in args.runs if path.is_dir()]
    rows = [row for folder in folders for row in look(folder)]
    write_record(RECORDS / "ensemble" / "groups.csv", rows, started)


if __name__ == "__main__":
    main(tyro.cli(Args))
