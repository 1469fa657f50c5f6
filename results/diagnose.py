"""Look inside trained agents: does Q tell how far the goal is, do its members disagree, what are the actions like?

    python results/diagnose.py runs/<run folder> ... --out results/records/diagnose.csv

For states of a run's own data, from which the data go on to an `end` (in a maze: to the goal), by the number of steps
that takes them. `return` is what the data then collect, discounted, as the critic sees it: a Q of the data's own policy
would be near it, one of a better policy above. Of the K candidates that the agent acts by in such a state: how far
apart they lie, how many of their components are at the edge of the box, and what the critics say of them.
"""

import importlib
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from record import RECORDS, write_record

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BINS = {"1 to 50": (0, 50), "51 to 150": (50, 150), "151 to 300": (150, 300), "above 300": (300, 10**9)}
Tensor = torch.Tensor


@dataclass
class Args:
    """Diagnose trained agents."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders; a suite's are named after task, arm and seed"""
    states: int = 1000
    """states of each number of steps left"""
    out: Path = RECORDS / "diagnose.csv"
    """CSV file for the rows"""


def to_the_end(data, gamma: float) -> tuple[Tensor, Tensor]:
    """Steps that the data take to an `end` from each transition on, and their discounted return; `[N]`, NaN if none."""
    reward, end = data.reward.tolist(), data.end.tolist()
    follows = (data.next_obs[:-1] == data.obs[1:]).all(1).tolist()  # the next row goes on where this one stopped
    found, after = [], (math.nan, math.nan)
    for i in reversed(range(len(reward))):
        if end[i]:
            after = (1, reward[i])
        elif i < len(follows) and follows[i]:
            after = (after[0] + 1, reward[i] + gamma * after[1])
        else:
            after = (math.nan, math.nan)
        found.append(after)
    steps, returns = torch.tensor(found[::-1], dtype=torch.float64).T
    return steps, returns


@torch.no_grad()
def look(edq, agent, args, obs: Tensor, action: Tensor, returns: Tensor, g: torch.Generator) -> dict[str, float]:
    """Figures of a set of transitions: obs `[N, S]`, action `[N, A]`, returns `[N]`."""
    K = args.num_candidates if args.num_candidates > 1 else 50
    several = obs.unsqueeze(1).expand(-1, K, -1)  # [N, K, S]
    candidates = edq.sample_actions(agent.score, agent.sde, several, args.sampler, args.action_clip, g)  # [N, K, A]
    bound = edq.chain_entropy_bound(agent.sde, agent.score, obs, agent.chain_std, g) / agent.score.act_dim
    row = {"states": len(obs), "return": returns.mean(), "entropy_bound": bound.mean()}
    row |= {"spread": candidates.std(1).mean(), "from_data": (candidates - action.unsqueeze(1)).abs().mean()}
    row |= {
        "saturated": (candidates.abs() > 0.99).float().mean(),
        "saturated_data": (action.abs() > 0.99).float().mean(),
    }
    if agent.q:
        of_data = agent.target_q(obs, action)  # [M, N]
        pairs = zip(several.flatten(0, 1).split(5000), candidates.flatten(0, 1).split(5000))
        q = torch.cat([agent.target_q(*pair) for pair in pairs], 1).unflatten(1, (len(obs), K))  # [M, N, K]
        value = q.amin(0) if args.pessimism == "min" else edq.lower_confidence_bound(q, args.lcb_coef)
        best = q.mean(0).gather(1, value.argmax(1, keepdim=True)).squeeze(1)
        row |= {"q_data": of_data.mean(), "member_std_data": of_data.std(0).mean(), "q_candidates": q.mean()}
        row |= {"member_std_candidates": q.std(0).mean(), "lcb_spread": value.std(1).mean()}
        row |= {"best_above_data": (best - of_data.mean(0)).mean()}
        row |= {"q_and_return": torch.corrcoef(torch.stack([of_data.mean(0).double(), returns]))[0, 1]}
    return {k: float(v) for k, v in row.items()}


def main(args: Args) -> None:
    started, rows, device = time.time(), [], "cuda" if torch.cuda.is_available() else "cpu"
    loaded, about = {}, {}
    for folder in args.runs:
        edq = importlib.import_module(Path(json.loads((folder / "run.json").read_text())["script"]).stem)
        run, _ = edq.parse_args(["--evaluate", str(folder)])
        if run.dataset_id not in loaded:
            data, info = edq.load_dataset(run, device)
            about = {"dataset": {"id": info["id"], "hash": info["hash"]}}
            loaded[run.dataset_id] = data, *(x.to(device) for x in to_the_end(data, run.gamma))
        data, steps, returns = loaded[run.dataset_id]
        agent = edq.Agent(data.obs.shape[1], data.action.shape[1], replace(run, precision="fp32"), device)
        at = edq.load_checkpoint(folder, agent)["at"]["step"]
        for name, (low, high) in BINS.items():
            g = torch.Generator(device).manual_seed(0)  # the same states for every run
            found = torch.where((steps > low) & (steps <= high))[0]
            if len(found) < 2:
                continue
            found = found[torch.randperm(len(found), generator=g, device=device)[: args.states]]
            obs = (data.obs[found] - agent.obs_mean) / agent.obs_std
            figures = look(edq, agent, run, obs, data.action[found], returns[found], g)
            rows.append({"run": folder.name, "preset": run.preset, "seed": run.seed, "step": at, "steps_left": name})
            rows[-1] |= {"return": 0.0, "q_data": "", "member_std_data": "", "q_candidates": ""} | figures
            print(*(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()), flush=True)
    names = dict.fromkeys(name for row in rows for name in row)
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    write_record(args.out, [dict.fromkeys(names, "") | row for row in rows], started, gpu=gpu, **about)


if __name__ == "__main__":
    main(tyro.cli(Args))
