"""What each precision does to the lower confidence bound of trained networks, and to final scores.

    python results/precision.py runs/a runs/b ...

Every run folder gives a row for fp32 and one for bf16: the error of the LCB against float64 on the run's data states
with K actions of its own policy, and what that error does to acting (how much probability the softmax over the K
candidates moves, how often the best one changes); and the run's final score beside the precision it was trained in.
The networks are the newest checkpoint's.
"""

import csv
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from record import markdown, read_record

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass
class Args:
    """Compare precisions on finished runs."""

    runs: tyro.conf.Positional[list[Path]]
    states: int = 500  # data states
    out: Path = ROOT / "results" / "records" / "precision.csv"


def load(run: Path):
    """The run's script as a module, its arguments, its agent and its data."""
    import importlib
    import json

    record = json.loads((run / "run.json").read_text())
    edq = importlib.import_module(record["script"].removesuffix(".py"))
    args, _ = edq.parse_args(["--evaluate", str(run)])
    env = edq.make_env(edq.TASKS[args.env_id])
    obs_dim, act_dim = len(edq.flatten_obs(env.reset(seed=0)[0])), env.action_space.shape[0]
    agent = edq.Agent(obs_dim, act_dim, args)
    edq.load_checkpoint(run, agent)
    data, _ = edq.load_dataset(args, "cpu")
    return edq, args, agent, data, json.loads((run / "summary.json").read_text())


@torch.no_grad()
def errors(run: Path, states: int) -> list[dict]:
    """One row for each precision; the reference is the same network in float64."""
    edq, args, agent, data, summary = load(run)
    g, K = torch.Generator().manual_seed(0), args.num_candidates
    obs = data.obs[torch.randint(len(data.obs), (states,), generator=g)]
    obs = ((obs - agent.obs_mean) / agent.obs_std).repeat_interleave(K, 0)  # [states * K, S]
    action = edq.sample_actions(agent.score, agent.sde, obs, args.sampler, args.action_clip, g)

    def lcb(precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.float64 if precision == "fp64" else torch.float32
        q_net = agent.target_q.to(dtype)
        q_net.half = precision == "bf16"
        q = q_net(obs.to(dtype), action.to(dtype)).double()
        return edq.lower_confidence_bound(q, args.lcb_coef).unflatten(0, (-1, K)), q

    data_id = ",".join(Path(x).name if x[0] == "/" else x for x in summary["data"]["id"].split(","))
    exact, q = lcb("fp64")
    rows = []
    for precision in ("fp32", "bf16"):
        value, _ = lcb(precision)
        moved = 0.5 * (value.softmax(1) - exact.softmax(1)).abs().sum(1)
        rows.append({
            "run": run.name, "task": args.env_id, "data": data_id,
            "data_hash": summary["data"]["hash"], "M": args.num_critics, "seed": args.seed,
            "updates": args.gradient_steps, "trained_in": args.precision, "score": summary["last"]["score"],
            "standard_error": summary["last"]["standard_error"], "lcb_in": precision,
            "mean_abs_q": float(q.abs().mean()), "ensemble_std": float(q.std(0).mean()),
            "lcb_std_over_candidates": float(exact.std(1).mean()),
            "lcb_error_rms": float((value - exact).square().mean().sqrt()),
            "lcb_error_max": float((value - exact).abs().max()),
            "probability_moved": float(moved.mean()),
            "best_changed": float((value.argmax(1) != exact.argmax(1)).double().mean()),
        })  # fmt: skip
    return rows


def tables(records: Path) -> dict[str, str]:
    """Means over the runs of a task and size; of the LCB in each precision, and the final scores by seed."""
    _, rows = read_record(records / "precision.csv")
    head = ["networks", "M", r"\|Q\|", "LCB over the candidates, std", "Q over the members, std"]
    head += [
        "error of the LCB, fp32",
        "bf16",
        "probability moved, bf16",
        "best candidate changed, bf16",
    ]
    head += ["final scores, trained in fp32", "in bf16"]
    table = []
    for task, M in dict.fromkeys((row["task"], row["M"]) for row in rows):
        fp32, bf16 = (
            [r for r in rows if (r["task"], r["M"], r["lcb_in"]) == (task, M, p)]
            for p in ("fp32", "bf16")
        )

        def mean(column: str, of: list[dict] = bf16) -> float:
            return statistics.mean(row[column] for row in of)

        cells = [task, f"{M:.0f}", f"{mean('mean_abs_q'):.0f}"]
        cells += [f"{mean(x):.1f}" for x in ("lcb_std_over_candidates", "ensemble_std")]
        cells += [f"{mean('lcb_error_rms', of):.2g}" for of in (fp32, bf16)]
        cells += [f"{100 * mean(x):.2g} %" for x in ("probability_moved", "best_changed")]
        for mode in ("fp32", "bf16"):  # a run has two rows, one for each precision of the LCB
            cells.append(
                ", ".join(f"{row['score']:.3g}" for row in bf16 if row["trained_in"] == mode) or "-"
            )
        table.append(cells)
    return {"precision": markdown(head, table)}


def figures(records: Path, out: Path) -> None:
    """None: this is a table."""


def main(args: Args) -> None:
    rows = [row for run in args.runs for row in errors(run, args.states)]
    for row in rows:
        print(*(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))
    with open(args.out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
