"""Look inside trained agents: does Q tell how far the goal is, and which action is better? How do they move?

    python results/diagnose.py runs/<run folder> ... --out results/records/diagnose.csv
    python results/diagnose.py runs/<run folder> ... --walk 20 --actor runs/<another>

A row for each run and number of steps that the data still take to an `end` (in a maze: to the goal). `return` is what
they then collect, discounted, as the critic sees it: a Q of the data's own policy would be near it, one of a better
policy above. Of the K candidates that the agent acts by in such a state: how far apart they lie, how many of their
components are at the edge of the box, and what the critics say of them.

Also how far products in tf32 and bf16 move the LCB of a candidate, beside what they do to all of its state, and in how
many states they make another candidate the best. Both are rounded to nearest, a model of what the hardware does.

In AntMaze an observation is the whole state, so the simulator can make one step from it with each candidate. What the
same critics say of where that leads (mean Q of candidates there) is set against their Q of the candidate: within a
state the two correlate at 1 where Q knows what its actions lead to, and at 0 where it does not.

With --walk the agents are let loose in AntMaze instead, as in an evaluation, and a row says how they move; with --actor
also with candidates of that run's policy, from which their critics choose: as in an evaluation (by softmax of the
LCB), the one of largest LCB, and the one of largest mean Q.
"""

import importlib
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from record import RECORDS, write_record

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results" / "datasets")]
CHOICES = {
    "softmax": dict(action_selection="softmax"),
    "argmax": dict(action_selection="argmax"),
    "argmax of the mean": dict(action_selection="argmax", lcb_coef=0.0, pessimism="lcb"),
}
BINS = {
    "1": (0, 1),
    "2 to 50": (1, 50),
    "51 to 150": (50, 150),
    "151 to 300": (150, 300),
    "above 300": (300, 10**9),
}
Tensor = torch.Tensor


@dataclass
class Args:
    """Diagnose trained agents."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders"""
    states: int = 1000
    """states of each number of steps left"""
    steps_from: int = 100
    """of these so many from which the simulator makes a step"""
    walk: int = 0
    """episodes in which the agents are watched; 0: look at states of the data instead"""
    actor: Path | None = None
    """run folder of a policy whose candidates the critics choose from, in --walk"""
    out: Path = RECORDS / "diagnose.csv"
    """CSV file for the rows"""


def fail(sentence: str) -> None:
    """Bad input: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def to_the_end(data, gamma: float) -> tuple[Tensor, Tensor]:
    """Steps that the data take to an `end` from each transition on, and their discounted return; `[N]`, NaN if none."""
    reward, end = data.reward.tolist(), data.end.tolist()
    follows = (
        (data.next_obs[:-1] == data.obs[1:]).all(1).tolist()
    )  # the next row goes on where this one stopped
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


def q_of(agent, obs: Tensor, action: Tensor) -> Tensor:
    """Q of the target networks, a part at a time; obs and action `[..., S]`, `[..., A]` -> `[M, ...]`."""
    pairs = zip(obs.flatten(0, -2).split(5000), action.flatten(0, -2).split(5000))
    return torch.cat([agent.target_q(*pair) for pair in pairs], 1).unflatten(1, obs.shape[:-1])


def tf32(x: Tensor) -> Tensor:
    """Rounded to tf32's ten bits behind the leading one."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def q_in(precision: str, agent, obs: Tensor, action: Tensor) -> Tensor:
    """`q_of` with products in tf32 or bf16 and sums in fp32, on whatever hardware."""
    bmm, agent.target_q.half = torch.bmm, precision == "bf16"
    if precision == "tf32":
        torch.bmm = lambda a, b: bmm(tf32(a), tf32(b))
    else:
        torch.bmm = lambda a, b: bmm(a.float(), b.float()).to(a.dtype)
    try:
        return q_of(agent, obs, action)
    finally:
        torch.bmm, agent.target_q.half = bmm, False


def ant_steps(edq, env_id: str, obs: Tensor, actions: Tensor) -> Tensor:
    """Where one step of the simulator leads from obs `[N, 31]` with each of actions `[N, K, A]`; `[N, K, 31]`."""
    env = edq.make_env(edq.TASKS[env_id])
    env.reset(seed=0)
    ant, found = env.unwrapped.ant_env, []
    for o, tried in zip(obs.double().cpu().numpy(), actions.double().cpu().numpy()):
        for action in tried:
            ant.set_state(np.concatenate([o[27:29], o[:13]]), o[13:27])
            ant.do_simulation(action, ant.frame_skip)
            qpos = ant.data.qpos
            found.append(np.concatenate([qpos[2:], ant.data.qvel, qpos[:2], o[29:]]))
    env.close()
    return torch.tensor(np.array(found), dtype=torch.float32, device=obs.device).unflatten(
        0, actions.shape[:2]
    )


@torch.no_grad()
def look(
    edq, agent, args, batch: tuple[Tensor, Tensor, Tensor], steps_from: int, g: torch.Generator
) -> dict:
    """Figures of some transitions: obs `[N, S]`, action `[N, A]`, returns `[N]`."""
    obs, action, returns = batch
    seen = (obs - agent.obs_mean) / agent.obs_std
    K = args.num_candidates if args.num_candidates > 1 else 50

    def candidates(seen: Tensor, count: int) -> tuple[Tensor, Tensor]:
        several = seen.unsqueeze(-2).expand(*seen.shape[:-1], count, -1)
        return several, edq.sample_actions(
            agent.score, agent.sde, several, args.sampler, args.action_clip, g
        )

    several, actions = candidates(seen, K)  # [N, K, S], [N, K, A]
    bound = (
        edq.chain_entropy_bound(agent.sde, agent.score, seen, agent.chain_std, g)
        / agent.score.act_dim
    )
    row = {
        "states": len(obs),
        "return": returns.mean(),
        "return_std": returns.std(),
        "entropy_bound": bound.mean(),
    }
    row |= {
        "spread": actions.std(1).mean(),
        "from_data": (actions - action.unsqueeze(1)).abs().mean(),
    }
    row |= {
        f"saturated{k}": (x.abs() > 0.99).float().mean()
        for k, x in (("", actions), ("_data", action))
    }
    if not agent.q:
        return {k: float(v) for k, v in row.items()}
    of_data, q = q_of(agent, seen, action), q_of(agent, several, actions)  # [M, N], [M, N, K]

    def pessimistic(q: Tensor) -> Tensor:
        return (
            q.amin(0) if args.pessimism == "min" else edq.lower_confidence_bound(q, args.lcb_coef)
        )

    value = pessimistic(q)  # [N, K]
    for precision in ("tf32", "bf16"):
        other = pessimistic(q_in(precision, agent, several, actions))
        error = other - value
        row[f"lcb_error_{precision}"] = (error - error.mean(1, keepdim=True)).square().mean().sqrt()
        row[f"best_changed_{precision}"] = (other.argmax(1) != value.argmax(1)).float().mean()
        row[f"probability_moved_{precision}"] = (
            0.5 * (other.softmax(1) - value.softmax(1)).abs().sum(1).mean()
        )
    row |= {"q_data": of_data.mean(), "member_std": of_data.std(0).mean(), "q_candidates": q.mean()}
    row |= {"lcb_spread": value.std(1).mean(), "q_spread": q.mean(0).std(1).mean()}
    row |= {
        "member_std_spread": q.std(0).std(1).mean(),
        "effective_candidates": 1 / value.softmax(1).square().sum(1).mean(),
    }
    row |= {"q_and_return": torch.corrcoef(torch.stack([of_data.mean(0).double(), returns]))[0, 1]}
    if args.env_id.startswith("antmaze"):
        n, few = min(steps_from, len(obs)), min(20, K)
        after = (
            ant_steps(edq, args.env_id, obs[:n], actions[:n, :few]) - agent.obs_mean
        ) / agent.obs_std
        follow = q_of(agent, *candidates(after, 20)).mean((0, 3))  # [n, few]
        pairs = zip(q.mean(0)[:n, :few], follow)
        row |= {"next_q_spread": follow.std(1).mean()}
        row |= {
            "q_and_next_q": torch.stack(
                [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
            ).mean()
        }
    return {k: float(v) for k, v in row.items()}


def movement(path: np.ndarray, walls: np.ndarray) -> dict[str, float]:
    """Of an ant's states `[steps + 1, 31]`: speed, share of steps upside down, and how far it got, in cells."""
    import antmaze

    xy, (x, y) = path[:, 27:29], path[:, 2:4].T
    way, left = antmaze.way_to(tuple(antmaze.cells_at(path[0, 29:], walls).tolist()), walls), []
    for cell in map(tuple, antmaze.cells_at(xy, walls).tolist()):
        count = 0
        while cell in way and way[cell] != cell:
            cell, count = way[cell], count + 1
        left.append(count)
    return {
        "metres_per_second": np.linalg.norm(np.diff(xy, axis=0), axis=1).mean()
        / 0.05,  # a step is 5 x 0.01 s
        "upside_down": (2 * (x * x + y * y) > 1).mean(),
        "cells_nearer": left[0] - min(left),
        "cells_to_goal": left[0],
    }


def walk(edq, agent, args, folder: Path, episodes: int) -> dict[str, float]:
    """How the ants of an evaluation move."""
    paths, draw = [], edq.draw_paths
    edq.draw_paths = lambda run_dir, results, found, states: paths.extend(found)
    envs = edq.vector_env(replace(args, eval_episodes=episodes))
    try:
        results = edq.evaluate(agent, envs, args, (0.0, 1.0), episodes, run_dir=folder)
    finally:
        envs.close()
        edq.draw_paths = draw
    walls = np.array(
        [[cell == 1 for cell in line] for line in edq.TASKS[args.env_id].env_kwargs["maze_map"]]
    )
    rows, found = (
        [movement(path, walls) for path in paths],
        {"success": edq.means(results)["score"]},
    )
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        found |= {
            name: values.mean(),
            f"{name}_error": values.std(ddof=min(1, len(rows) - 1)) / len(rows) ** 0.5,
        }
    return {k: float(v) for k, v in found.items()}


def propose(by: tuple, agent, args):
    """Put the policy of another run, (script, arguments, agent, step), into an agent, with its SDE and its sampler."""
    _, other, actor, _ = by
    if not (
        torch.equal(agent.obs_mean, actor.obs_mean) and torch.equal(agent.obs_std, actor.obs_std)
    ):
        fail("the two runs standardise observations differently")
    agent.score, agent.sde = actor.score, actor.sde
    same = {
        k: getattr(other, k) for k in ("num_diffusion_steps", "schedule", "sampler", "action_clip")
    }
    return replace(args, **same)


def main(args: Args) -> None:
    started, rows, device = time.time(), [], "cuda" if torch.cuda.is_available() else "cpu"
    loaded, about = {}, {}

    def load(folder: Path):
        edq = importlib.import_module(
            Path(json.loads((folder / "run.json").read_text())["script"]).stem
        )
        run, _ = edq.parse_args(["--evaluate", str(folder)])
        envs = edq.vector_env(replace(run, eval_envs=1))
        (obs_dim,), (act_dim,) = envs.single_observation_space.shape, envs.single_action_space.shape
        envs.close()
        agent = edq.Agent(obs_dim, act_dim, replace(run, precision="fp32"), device)
        return edq, run, agent, edq.load_checkpoint(folder, agent)["at"]["step"]

    for folder in args.runs:
        edq, run, agent, at = load(folder)
        row = {"run": folder.name, "preset": run.preset, "seed": run.seed, "step": at}
        row |= {"critics": len(agent.q.weights[0]) if agent.q else 0}
        if args.walk:
            if not run.env_id.startswith("antmaze"):
                fail(f"{folder} is no run of AntMaze, and --walk knows only its ant")
            for actor in [folder] + [args.actor] * bool(args.actor and agent.q):
                run = run if actor == folder else propose(load(actor), agent, run)
                for choose in CHOICES if actor != folder else [run.action_selection]:
                    how = {"actor": actor.name, "choose": choose, "episodes": args.walk}
                    figures = walk(edq, agent, replace(run, **CHOICES[choose]), folder, args.walk)
                    rows.append(row | how | figures)
                    print(
                        *(
                            f"{k} {v:.3g}" if isinstance(v, float) else v
                            for k, v in rows[-1].items()
                        ),
                        flush=True,
                    )
            continue
        if run.dataset_id not in loaded:
            data, info = edq.load_dataset(run, device)
            about = {"dataset": {"id": info["id"], "hash": info["hash"]}}
            loaded[run.dataset_id] = data, *(x.to(device) for x in to_the_end(data, run.gamma))
        data, steps, returns = loaded[run.dataset_id]
        for name, (low, high) in BINS.items():
            g = torch.Generator(device).manual_seed(0)  # the same states for every run
            found = torch.where((steps > low) & (steps <= high))[0]
            if len(found) < 2:
                continue
            found = found[torch.randperm(len(found), generator=g, device=device)[: args.states]]
            batch = data.obs[found], data.action[found], returns[found]
            rows.append(
                row | {"steps_left": name} | look(edq, agent, run, batch, args.steps_from, g)
            )
            print(
                *(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in rows[-1].items()),
                flush=True,
            )
    if not rows:
        fail("from no state do the data go on to an end")
    names = dict.fromkeys(name for row in rows for name in row)
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    write_record(
        args.out, [dict.fromkeys(names, "") | row for row in rows], started, gpu=gpu, **about
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
