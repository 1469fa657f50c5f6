"""One suspect at a time, from one common start: a cloned actor and critics that know its value.

    python results/studies/antmaze/branches.py critics --clone runs/clone --folder runs/branches
    python results/studies/antmaze/branches.py branch --clone runs/clone --folder runs/branches \\
        --name half --eta 0.5

The actor is that of a finished run of `edq_antmaze.py --preset diffusion-bc`. `critics` trains M
critics with TD targets from this fixed actor. `branch` goes on from there: the script's own
`update` for some thousand updates with the named settings, then an evaluation. Every branch begins
with an actor that walks and with values that have settled. So what a setting does to them shows in
minutes instead of hours. `act` scores the start itself, by another way of acting.

The critics have a width of their own. A branch leaves run.json, metrics.csv and evaluations.csv, as
a run of the script does; `suspects.py` makes records and tables of both.
"""

import copy
import csv
import importlib.metadata
import json
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


@dataclass
class Args:
    """Train critics for a cloned actor, or go on from both with other settings."""

    stage: tyro.conf.Positional[Literal["critics", "branch", "act"]]
    """critics: the start; branch: updates from there; act: score the start"""
    clone: Path
    """run folder of the cloned actor"""
    folder: Path
    """where the critics and the branches are kept"""
    name: str = "critics"
    """name of the branch, and of its folder"""
    seed: int = 100
    """seed of critics, batches, noise and evaluation episodes"""
    steps: int = 3000
    """number of updates"""
    batch_size: int = 256
    """transitions per update"""
    actor_lr: float = 3e-4
    """Adam rate of the actor"""
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
    """discount factor"""
    reward: Literal["raw", "antmaze"] = "antmaze"
    """critics see r, or 4 (r - 0.5)"""
    policy_action: Literal["one_step", "chain"] = "one_step"
    """in the actor's Q term: one-step prediction, or a whole chain"""
    num_candidates: int = 1
    """K when acting"""
    action_selection: Literal["softmax", "argmax"] = "argmax"
    """how one of the K is chosen"""
    eval_episodes: int = 50
    """episodes of an evaluation"""


CHANGED = ("seed", "batch_size", "actor_lr", "num_critics", "lcb_coef", "eta", "tau")
CHANGED += (
    "policy_action",
    "num_candidates",
    "action_selection",
    "eval_episodes",
    "gamma",
    "reward",
)


def script_args(args: Args, saved: dict):
    """The arguments of the clone's run, with those of the branch."""
    flags = ["--env-id", saved["env_id"], "--device", "cpu"]
    if saved["dataset_id"]:
        flags += ["--dataset-id", saved["dataset_id"]]
    edq_args = edq.parse_args(flags)
    edq_args.entropy_estimator = "none"
    edq_args.max_q_backup = False
    edq_args.hidden_dim = saved["hidden_dim"]
    edq_args.normalize_obs = saved["normalize_obs"]
    for name in CHANGED:
        setattr(edq_args, name, getattr(args, name))
    return edq_args


def start_of(args: Args, edq_args, obs_dim: int, act_dim: int):
    """The clone's actor with new critics."""
    torch.manual_seed(args.seed)
    agent = edq.Agent(obs_dim, act_dim, edq_args, "cpu")
    checkpoint = torch.load(args.clone / "checkpoint.pt", weights_only=True)
    saved = checkpoint["agent"]
    actor = {}
    for name, value in saved.items():
        if name.startswith("actor."):
            actor[name.removeprefix("actor.")] = value
    agent.actor.load_state_dict(actor)
    agent.actor_ema.load_state_dict(actor)
    agent.obs_mean.copy_(saved["obs_mean"])
    agent.obs_std.copy_(saved["obs_std"])
    agent.q = edq.QEnsemble(obs_dim, act_dim, args.num_critics, args.critic_dim, False)
    agent.target_q = copy.deepcopy(agent.q).requires_grad_(False)
    rate = torch.tensor(edq_args.critic_lr)
    adam = torch.optim.Adam(agent.q.parameters(), rate, fused=True)
    agent.optimisers["critic"] = adam
    return agent


def load_critics(agent, args: Args) -> None:
    """The first M of the trained critics."""
    saved = torch.load(args.folder / "critics.pt", weights_only=True)
    M = args.num_critics
    for net, name in ((agent.q, "q"), (agent.target_q, "target_q")):
        first = {k: v[:M] for k, v in saved[name].items()}
        net.load_state_dict(first)


def judge(agent, data, edq_args, steps: int, g: torch.Generator) -> list[dict]:
    """Critics with TD targets from the fixed actor; a row of figures each tenth of the way."""
    rows = []
    started = time.time()
    every = max(1, steps // 10)
    adam = agent.optimisers["critic"]
    for step in range(1, steps + 1):
        batch, noise = edq.draw_batch(data, edq_args, g)
        with torch.no_grad():
            target = edq.td_target(agent, batch, noise.target, edq_args)
        loss = edq.critic_loss(agent, batch, target)["losses/critic"]
        edq.minimise(loss, agent.q, adam, edq_args.grad_clip)
        with torch.no_grad():
            pairs = zip(agent.target_q.parameters(), agent.q.parameters())
            for average, new in pairs:
                average.lerp_(new, edq_args.tau)
        if step % every == 0:
            seconds = time.time() - started
            row = {
                "step": step,
                "losses/critic": float(loss),
                "q/mean": float(target.mean()),
                "q/std": float(target.std(0).mean()),
                "charts/sps": step / seconds,
                "charts/seconds": seconds,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def go_on(agent, data, edq_args, steps: int, g: torch.Generator) -> list[dict]:
    """The script's own updates; a row of its metrics each tenth of the way."""
    rows = []
    started = time.time()
    every = max(1, steps // 10)
    for step in range(1, steps + 1):
        batch, noise = edq.draw_batch(data, edq_args, g)
        late = torch.tensor(10_000 + step)  # the EMA follows
        edq.update(agent, batch, noise, edq_args, late)
        if step % every == 0:
            means = agent.metric_sum / every
            figures = dict(zip(edq.METRICS, means.tolist()))
            agent.metric_sum.zero_()
            seconds = time.time() - started
            row = {
                "step": step,
                **figures,
                "charts/sps": step / seconds,
                "charts/seconds": seconds,
            }
            rows.append(row)
            told = {k: round(v, 4) for k, v in figures.items() if v}
            print(step, told, flush=True)
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
    args: Args,
    edq_args,
    info: dict,
    metrics: list[dict],
    episodes: list[dict],
) -> None:
    """The files that a run of the script leaves."""
    folder = args.folder / args.name
    folder.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "numpy", "mujoco", "minari")
    versions = {name: importlib.metadata.version(name) for name in packages}
    of_branch = {"preset": args.stage, "gradient_steps": args.steps}
    run = {
        "script": "results/studies/antmaze/branches.py",
        "flags": sys.argv[1:],
        "args": asdict(edq_args) | of_branch,
        "critic_dim": args.critic_dim,
        "dataset": info,
        "git_commit": None,
        "threads": torch.get_num_threads(),
        "gpu": False,
        "versions": versions,
        "python": sys.version.split()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    (folder / "run.json").write_text(json.dumps(run, indent=1))
    write_rows(folder / "metrics.csv", metrics)
    if episodes:
        write_rows(folder / "evaluations.csv", episodes)


def main(args: Args) -> None:
    saved = json.loads((args.clone / "run.json").read_text())["args"]
    edq_args = script_args(args, saved)
    data, info = edq.load_dataset(edq_args, "cpu")
    obs_dim = data.obs.shape[1]
    act_dim = data.action.shape[1]
    agent = start_of(args, edq_args, obs_dim, act_dim)
    obs = (data.obs - agent.obs_mean) / agent.obs_std
    next_obs = (data.next_obs - agent.obs_mean) / agent.obs_std
    data = data._replace(obs=obs, next_obs=next_obs)
    g = torch.Generator().manual_seed(args.seed)
    edq.compile_functions()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.stage == "critics":
        rows = judge(agent, data, edq_args, args.steps, g)
        nets = {"q": agent.q.state_dict(), "target_q": agent.target_q.state_dict()}
        torch.save(nets, args.folder / "critics.pt")
        write_run(args, edq_args, info, rows, [])
        return
    load_critics(agent, args)
    rows = [{"step": 0, "charts/sps": 0.0, "charts/seconds": 0.0}]
    if args.stage == "branch":
        rows = go_on(agent, data, edq_args, args.steps, g)
    episodes = scored(agent, edq_args, info["reference"], rows[-1]["step"])
    write_run(args, edq_args, info, rows, episodes)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
