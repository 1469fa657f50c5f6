"""What a part of a large ensemble says, beside the whole: why the gain of one more member shrinks.

    python results/ensemble.py runs/ablation-maze/pointmaze-medium__M=64__*

The target critics of finished runs are cut into disjoint groups of M' members. At data states with K candidates of the
run's own policy each group ranks the candidates by its own lower confidence bound (the run's beta), and is compared
with the members that are not in it. Members learn apart, but from the actions of one policy that climbed all of them.
Beside it stands what can be computed: with Gaussian members the minimum of M is, in the mean, an LCB whose beta is the
expected maximum of M standard normals, and an LCB's own std over ensembles follows from M.
"""

import functools
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from precision import load
from record import RECORDS, markdown, read_record, write_record
from scipy import integrate, stats

STATES, SIZES = 300, (2, 4, 8, 16, 32)


@torch.no_grad()
def compare(run: Path) -> list[dict]:
    """Rows of a run, one for each size of group that leaves at least two groups."""
    edq, args, agent, data, _ = load(run)
    g, K, M = torch.Generator().manual_seed(0), args.num_candidates, args.num_critics
    rows = torch.randint(len(data.obs), (STATES,), generator=g)
    obs = (data.obs[rows] - agent.obs_mean) / agent.obs_std
    wide = obs.repeat_interleave(K, 0)  # [STATES K, S]
    action = edq.sample_actions(agent.score, agent.sde, wide, args.sampler, args.action_clip, g)
    q = agent.target_q(wide, action).unflatten(1, (STATES, K))  # [M, STATES, K]
    q_data = agent.target_q(obs, data.action[rows])  # [M, STATES]
    q_random = agent.target_q(obs, torch.rand(data.action[rows].shape, generator=g) * 2 - 1)
    found = []
    about = {
        "run": run.name, "task": args.env_id, "dataset": args.dataset_id, "seed": args.seed,
        "beta": args.lcb_coef, "candidates": K,
        "std_data": float(q_data.std(0).mean()), "std_policy": float(q.std(0).mean()),
        "std_random": float(q_random.std(0).mean()), "mean_q_over_candidates": float(q.mean(0).std(1).mean()),
    }  # fmt: skip
    for size in (m for m in SIZES if 2 * m <= M):
        order = torch.randperm(M, generator=g)
        groups, same, lost = order.split(size)[: M // size], [], []
        values = torch.stack([edq.lower_confidence_bound(q[members], args.lcb_coef) for members in groups])
        for members, value in zip(groups, values):
            others = edq.lower_confidence_bound(q[order[~torch.isin(order, members)]], args.lcb_coef)  # [STATES, K]
            choice = value.argmax(1, keepdim=True)
            same.append((choice[:, 0] == others.argmax(1)).float().mean())
            lost.append(((others.max(1).values - others.gather(1, choice)[:, 0]) / others.std(1)).mean())
        seen = [
            stats.mannwhitneyu(q_random[members].std(0).numpy(), q_data[members].std(0).numpy()).statistic / STATES**2
            for members in groups
        ]
        found.append({
            **about, "members": size, "groups": len(groups), "same_choice": float(torch.stack(same).mean()),
            "loss_in_std": float(torch.stack(lost).mean()),
            "lcb_noise": float((values.var(0).mean() / q.var(0).mean()).sqrt()), "random_seen": float(np.mean(seen)),
        })  # fmt: skip
    return found


@functools.cache
def minimum_as_beta(members: int) -> float:
    """Expected maximum of so many standard normals: the beta whose LCB the minimum is, in the mean."""

    def weighted(x: float) -> float:
        return x * members * stats.norm.pdf(x) * stats.norm.cdf(x) ** (members - 1)

    return integrate.quad(weighted, -10, 10)[0]


def lcb_noise(members: int, beta: float) -> float:
    """Std of the LCB of so many Gaussian members over ensembles, in units of the members' std."""
    c = math.sqrt(2 / (members - 1)) * math.exp(math.lgamma(members / 2) - math.lgamma((members - 1) / 2))  # E[s]
    return math.sqrt(1 / members + beta**2 * (1 - c**2))  # mean and std of a Gaussian sample are independent


def tables(records: Path) -> dict[str, str]:
    """Pessimism in closed form, and groups of trained members."""
    closed = [
        [str(m), f"{minimum_as_beta(m):.2f}", *(f"{lcb_noise(m, beta):.2f}" for beta in (1, 2, 4))]
        for m in (2, 4, 8, 16, 32, 64, 128)
    ]
    head = ["members M", "beta of which the minimum is the LCB", *(f"noise of the LCB, beta = {b}" for b in (1, 2, 4))]
    found = {"pessimism": markdown(head, closed)}
    _, rows = read_record(records / "ensemble.csv")
    lines = []
    for size in sorted({row["members"] for row in rows}):
        of = [row for row in rows if row["members"] == size]
        mean = {k: np.mean([row[k] for row in of]) for k in ("same_choice", "loss_in_std", "lcb_noise", "random_seen")}
        lines.append([
            f"{size:.0f}", f"{100 * mean['same_choice']:.0f} %", f"{mean['loss_in_std']:.2f}",
            f"{mean['lcb_noise']:.2f}", f"{mean['random_seen']:.2f}",
        ])  # fmt: skip
    head = ["members of a group", "same best of K as the other members", "their LCB given up, in std over candidates"]
    found["groups"] = markdown([*head, "noise of the LCB, in member std", "random action seen (AUC)"], lines)
    names = ("std_data", "std_policy", "std_random", "mean_q_over_candidates")
    spread = [np.mean([row[k] for row in rows if row["members"] == SIZES[0]]) for k in names]
    found["spreads"] = (
        f"members differ by {spread[0]:.2f} on the data's actions, {spread[1]:.2f} on the policy's and {spread[2]:.2f} "
        f"on random ones, and the mean Q of a state's {rows[0]['candidates']:.0f} candidates by {spread[3]:.2f}"
    )
    return found


def figures(records: Path, out: Path) -> None:
    """None: these are tables."""


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    started = time.time()
    rows = [row for run in map(Path, sys.argv[1:]) if run.is_dir() for row in compare(run)]
    write_record(RECORDS / "ensemble.csv", rows, started)
