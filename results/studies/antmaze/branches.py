"""One suspect at a time, from one common start: a cloned actor and critics that know its value.

    python results/studies/antmaze/branches.py start --folder runs/branches
    python results/studies/antmaze/branches.py branch --folder runs/branches --name half --eta 0.5

`start` trains a diffusion BC actor (Adam rate 1e-3 with cosine decay to 0), then 16 critics with TD
targets from this fixed actor. `branch` goes on from there: the script's own `update` for some
thousand updates, with the first M critics and the named settings, then an evaluation. Every branch
begins with an actor that walks and with values that have settled. So what a setting does to them
shows in minutes instead of hours.

The actor has three layers of 256, the critics have 128. A branch leaves run.json, metrics.csv and
evaluations.csv, as a run of the script does; `suspects.py` makes records and tables of both.
"""

import copy
import csv
import importlib.metadata
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import edq_antmaze as edq

MOST_CRITICS = 16


@dataclass
class Args:
    """Train the common start, or a branch from it."""

    stage: tyro.conf.Positional[Literal["start", "branch", "act"]]
    """start: clone and critics; branch: go on from there; act: only score a branch or the start"""
    folder: Path
    """where the start and the branches are kept"""
    dataset_id: str = "edq/antmaze/umaze-d4rl-v0"
    """Minari id or folder"""
    name: str = "start"
    """name of the branch, and of its folder"""
    env_id: str = "antmaze-umaze"
    """task"""
    seed: int = 100
    """seed of networks, batches, noise and evaluation episodes"""
    start_steps: int = 20_000
    """updates of the actor, and then of the critics, in the start"""
    steps: int = 5000
    """updates of a branch"""
    batch_size: int = 256
    """transitions per update"""
    actor_lr: float = 3e-4
    """Adam rate of the actor in a branch"""
    hidden_dim: int = 256
    """width of the actor"""
    critic_dim: int = 128
    """width of the critics"""
    num_critics: int = 4
    """M"""
    lcb_coef: float = 1.0
    """beta"""
    eta: float = 2.0
    """weight of the Q term"""
    tau: float = 0.02
    """Polyak rate of the target critics"""
    gamma: float = 0.99
    """discount factor per step"""
    policy_action: Literal["one_step", "chain"] = "one_step"
    """in the actor's Q term: one-step prediction, or a whole chain"""
    normalize_obs: bool = False
    """standardise observations"""
    num_candidates: int = 50
    """K when acting"""
    action_selection: Literal["softmax", "argmax"] = "softmax"
    """how one of the K is chosen"""
    eval_episodes: int = 50
    """episodes of an evaluation"""


def script_args(args: Args):
    """The script's arguments with those of the branch."""
    flags = ["--env-id", args.env_id, "--dataset-id", args.dataset_id, "--device", "cpu"]
    edq_args = edq.parse_args(flags)
    edq_args.entropy_estimator = "none"
    edq_args.max_q_backup = False
    for name in edq_args.__dataclass_fields__.keys() & args.__dataclass_fields__.keys():
        setattr(edq_args, name, getattr(args, name))
    return edq_args


def make_agent(args: Args, edq_args, data):
    """An agent with critics of their own width."""
    torch.manual_seed(args.seed)
    obs_dim, act_dim = data.obs.shape[1], data.action.shape[1]
    agent = edq.Agent(obs_dim, act_dim, edq_args, "cpu")
    bf16 = edq_args.precision == "bf16"
    agent.q = edq.QEnsemble(obs_dim, act_dim, args.num_critics, args.critic_dim, bf16)
    agent.target_q = copy.deepcopy(agent.q).requires_grad_(False)
    rate = torch.tensor(edq_args.critic_lr)
    agent.optimisers["critic"] = torch.optim.Adam(agent.q.parameters(), rate, fused=True)
    if args.normalize_obs:
        agent.obs_mean.copy_(data.obs.mean(0))
        agent.obs_std.copy_(data.obs.std(0).clamp(min=1e-3))
    return agent


def load_start(agent, args: Args) -> None:
    """The cloned actor and the first M critics."""
    saved = torch.load(args.folder / "start.pt", weights_only=True)
    agent.actor.load_state_dict(saved["actor"])
    agent.actor_ema.load_state_dict(saved["actor_ema"])
    for net, name in ((agent.q, "q"), (agent.target_q, "target_q")):
        net.load_state_dict({k: v[: args.num_critics] for k, v in saved[name].items()})


def clone(agent, data, edq_args, steps: int, g: torch.Generator) -> float:
    """Diffusion BC with cosine decay of the rate; returns the mean loss of the last tenth."""
    optimiser = agent.optimisers["actor"]
    losses = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"].fill_(1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        batch, noise = edq.draw_batch(data, edq_args, g)
        a_t = agent.sde.perturb(batch.action, noise.t, noise.eps)
        eps_hat = agent.actor(a_t, noise.t, batch.obs)
        loss = torch.nn.functional.mse_loss(eps_hat, noise.eps)
        edq.minimise(loss, agent.actor, optimiser, edq_args.grad_clip)
        losses.append(loss.detach())
    agent.actor_ema.load_state_dict(agent.actor.state_dict())
    return float(torch.stack(losses[-steps // 10 :]).mean())


def judge(agent, data, edq_args, steps: int, g: torch.Generator) -> list[dict]:
    """Critics with TD targets from the fixed actor; a row of figures each tenth of the way."""
    rows = []
    for step in range(1, steps + 1):
        batch, noise = edq.draw_batch(data, edq_args, g)
        with torch.no_grad():
            target = edq.td_target(agent, batch, noise.target, edq_args)
        loss = edq.critic_loss(agent, batch, target)["losses/critic"]
        edq.minimise(loss, agent.q, agent.optimisers["critic"], edq_args.grad_clip)
        with torch.no_grad():
            pairs = zip(agent.target_q.parameters(), agent.q.parameters())
            for average, new in pairs:
                average.lerp_(new, edq_args.tau)
        if step % max(1, steps // 10) == 0:
            q = target.detach()
            rows.append({"step": step, "q/mean": float(q.mean()), "q/std": float(q.std(0).mean())})
            print(rows[-1], flush=True)
    return rows


def go_on(agent, data, edq_args, steps: int, g: torch.Generator) -> list[dict]:
    """The script's own updates; a row of its metrics each tenth of the way."""
    rows = []
    started = time.time()
    every = max(1, steps // 10)
    for step in range(1, steps + 1):
        batch, noise = edq.draw_batch(data, edq_args, g)
        edq.update(
            agent, batch, noise, edq_args, 10_000 + step
        )  # so the EMA follows from the first
        if step % every == 0:
            figures = dict(zip(edq.METRICS, (agent.metric_sum / every).tolist()))
            agent.metric_sum.zero_()
            seconds = time.time() - started
            row = {"step": step, **figures}
            rows.append(row | {"charts/sps": step / seconds, "charts/seconds": seconds})
            print(step, {k: round(v, 4) for k, v in figures.items() if v}, flush=True)
    return rows


def scored(agent, edq_args, reference, step: int) -> list[dict]:
    """The script's evaluation."""
    envs = edq.vector_env(edq_args)
    results = edq.evaluate(agent, envs, edq_args, reference, edq_args.eval_episodes)
    scores = [result["score"] for result in results]
    print(f"update {step}: score {statistics.fmean(scores):.1f}", flush=True)
    return [{"step": step, **result} for result in results]


def write_rows(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_run(
    folder: Path, args: Args, edq_args, info: dict, metrics: list, episodes: list
) -> None:
    """The files that a run of the script leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "script": "results/studies/antmaze/branches.py",
        "flags": sys.argv[1:],
        "args": asdict(edq_args) | {"gradient_steps": metrics[-1]["step"], "lr_decay": False},
        "critic_dim": args.critic_dim,
        "start_steps": args.start_steps,
        "dataset": info,
        "git_commit": None,
        "threads": torch.get_num_threads(),
        "gpu": False,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "numpy", "mujoco")
        },
        "python": sys.version.split()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    write_rows(folder / "metrics.csv", metrics)
    write_rows(folder / "evaluations.csv", episodes)


def main(args: Args) -> None:
    if args.stage == "start":
        args.num_critics = MOST_CRITICS
        args.num_candidates = 1
    edq_args = script_args(args)
    transitions, info = edq.load_dataset(edq_args, "cpu")
    agent = make_agent(args, edq_args, transitions)
    scaled = {
        k: (getattr(transitions, k) - agent.obs_mean) / agent.obs_std for k in ("obs", "next_obs")
    }
    data = transitions._replace(**scaled)
    g = torch.Generator().manual_seed(args.seed)
    folder = args.folder / args.name
    edq.compile_functions()
    started = time.time()
    if args.stage == "start":
        args.folder.mkdir(parents=True, exist_ok=True)
        loss = clone(agent, data, edq_args, args.start_steps, g)
        cloned = time.time() - started
        print(f"cloned: loss {loss:.4f}, {cloned:.0f} s", flush=True)
        torch.save(agent.state_dict(), args.folder / "clone.pt")
        episodes = scored(agent, edq_args, info["reference"], args.start_steps)
        began = time.time()
        rows = judge(agent, data, edq_args, args.start_steps, g)
        seconds = time.time() - began + cloned
        for row in rows:
            row |= {"losses/diffusion": loss, "charts/sps": args.start_steps / cloned}
            row |= {"charts/seconds": seconds}
        nets = ("actor", "actor_ema", "q", "target_q")
        torch.save({n: getattr(agent, n).state_dict() for n in nets}, args.folder / "start.pt")
        write_run(folder, args, edq_args, info, rows, episodes)
        return
    load_start(agent, args)
    rows = []
    if args.stage == "branch":
        rows = go_on(agent, data, edq_args, args.steps, g)
        torch.save(agent.state_dict(), args.folder / f"{args.name}.pt")
    elif (args.folder / f"{args.name}.pt").exists():
        agent.load_state_dict(torch.load(args.folder / f"{args.name}.pt", weights_only=True))
    step = rows[-1]["step"] if rows else 0
    rows = rows or [{"step": 0, "charts/sps": 0.0, "charts/seconds": 0.0}]
    ways = {"": (args.num_candidates, args.action_selection)}
    if args.stage == "branch":
        ways["-K1"] = (1, "argmax")
    for suffix, (edq_args.num_candidates, edq_args.action_selection) in ways.items():
        episodes = scored(agent, edq_args, info["reference"], step)
        end = suffix or (
            "" if args.stage == "branch" else f"-{args.action_selection}{args.num_candidates}"
        )
        write_run(args.folder / f"{args.name}{end}", args, edq_args, info, rows, episodes)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
