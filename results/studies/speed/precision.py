"""What each precision does to the lower confidence bound of trained networks, and to final scores.

    python results/studies/speed/precision.py runs/a runs/b ...

Every run folder gives a row for fp32 and one for bf16: the error of the LCB against float64 on the
run's data states with K actions of its own policy, and what that error does to acting (how much
probability the softmax over the K candidates moves, how often the best one changes); and the run's
final score beside the precision it was trained in. The networks are the newest checkpoint's.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from results.common.records import RECORDS, write_record
from results.common.runs import Run, load_data, load_run, read_json


@dataclass
class Args:
    """Compare precisions on finished runs."""

    runs: tyro.conf.Positional[list[Path]]
    states: int = 500  # data states
    out: Path = RECORDS / "speed" / "precision.csv"


def set_bf16(q_net, on: bool):
    """The two large matmuls of an ensemble in bf16, or not."""
    for layer in q_net.layers:
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.shape[1] == weight.shape[2]:
            layer.bf16 = on


def q_in(run: Run, precision: str, obs: Tensor, action: Tensor) -> Tensor:
    """Q of the target networks, computed in fp64, fp32 or bf16; `[M, B]` in float64."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    q_net = run.agent.target_q.to(dtype)
    set_bf16(q_net, precision == "bf16")
    return q_net(obs.to(dtype), action.to(dtype)).double()


@torch.no_grad()
def errors(folder: Path, states: int):
    """One row for each precision; the reference is the same network in float64."""
    run = load_run(folder)
    data, info = load_data(run)
    summary = read_json(folder / "summary.json")
    args = run.args
    agent = run.agent
    K = args.num_candidates
    g = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(data.obs), (states,), generator=g)
    obs = (data.obs[chosen] - agent.obs_mean) / agent.obs_std
    obs = obs.repeat_interleave(K, 0)  # [states K, S]
    action = run.script.sample_actions(agent.actor, agent.sde, obs, args.action_clip, g)

    def lcb(q: Tensor) -> Tensor:
        value = run.script.lower_confidence_bound(q, args.lcb_coef)
        return value.unflatten(0, (-1, K))

    q = q_in(run, "fp64", obs, action)
    exact = lcb(q)
    names = []
    for name in info["id"].split(","):
        is_path = name[0] == "/"
        names.append(Path(name).name if is_path else name)
    rows = []
    for precision in ("fp32", "bf16"):
        value = lcb(q_in(run, precision, obs, action))
        error = value - exact
        moved = (value.softmax(1) - exact.softmax(1)).abs()
        changed = value.argmax(1) != exact.argmax(1)
        figures = {
            "mean_abs_q": q.abs().mean(),
            "ensemble_std": q.std(0).mean(),
            "lcb_std_over_candidates": exact.std(1).mean(),
            "lcb_error_rms": error.square().mean().sqrt(),
            "lcb_error_max": error.abs().max(),
            "probability_moved": (0.5 * moved.sum(1)).mean(),
            "best_changed": changed.double().mean(),
        }
        row = {
            "run": folder.name,
            "task": args.env_id,
            "data": ",".join(names),
            "data_hash": info["hash"],
            "M": args.num_critics,
            "seed": args.seed,
            "updates": args.gradient_steps,
            "trained_in": run.record["args"]["precision"],
            "score": summary["last"]["score"],
            "standard_error": summary["last"]["standard_error"],
            "lcb_in": precision,
        }
        for name, figure in figures.items():
            row[name] = float(figure)
        rows.append(row)
    return rows


def main(args: Args):
    started = time.time()
    rows = []
    for folder in args.runs:
        rows += errors(folder, args.states)
    for row in rows:
        cells = []
        for name, value in row.items():
            if isinstance(value, float):
                value = f"{value:.3g}"
            cells.append(f"{name}={value}")
        print(*cells)
    write_record(args.out, rows, started)


if __name__ == "__main__":
    main(tyro.cli(Args))
