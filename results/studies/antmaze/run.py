"""Look inside trained agents: does Q tell how far the goal is, and which action is better?

    python results/studies/antmaze/run.py runs/<run folder> ... --out inside.csv
    python results/studies/antmaze/run.py runs/<run folder> ... --walk 20 --actor runs/<another>

A row for each run and number of steps that the data still take to an `end` (in a maze: to the
goal). `return` is what they then collect, discounted, as the critic sees it: a Q of the data's own
policy would be near it, one of a better policy above. Of the K candidates that the agent acts by
in such a state: how far apart they lie, how many of their components are at the edge of the box,
and what the critics say of them.

Also how far matmuls in tf32 and bf16 move the LCB of a candidate, beside what they do to all of
its state, and in how many states they make another candidate the best. Both are rounded to
nearest, a model of what the hardware does.

In AntMaze an observation is the whole state, so the simulator can make one step from it with each
candidate. What the same critics say of where that leads (mean Q of candidates there) is set
against their Q of the candidate: within a state the two correlate at 1 where Q knows what its
actions lead to, and at 0 where it does not.

With --walk the agents are let loose in AntMaze instead, as in an evaluation, and a row says how
they move; with --actor also with candidates of that run's policy, from which their critics choose:
as in an evaluation (by softmax of the LCB), the one of largest LCB, and the one of largest mean Q.
"""

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "datasets"))
from results.common.records import RECORDS, write_record
from results.common.runs import Run, fail, load_data, load_run
from results.common.walks import watch

CHOICES = {
    "softmax": {"action_selection": "softmax"},
    "argmax": {"action_selection": "argmax"},
    "argmax of the mean": {
        "action_selection": "argmax",
        "lcb_coef": 0.0,
        "pessimism": "lcb",
    },
}
BINS = {  # steps to an end: above, up to
    "1": (0, 1),
    "2 to 50": (1, 50),
    "51 to 150": (50, 150),
    "151 to 300": (150, 300),
    "above 300": (300, 10**9),
}
STEP_SECONDS = 0.05  # of an ant
CHUNK = 5000  # pairs of observation and action that the critics get at once


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
    out: Path = RECORDS / "antmaze" / "inside.csv"
    """CSV file for the rows"""


# === What the data say ========================================================================
def to_the_end(data, gamma: float):
    """Steps to an `end` from each transition on, and their discounted return; `[N]`, NaN if
    none."""
    reward = data.reward.tolist()
    end = data.end.tolist()
    same = data.next_obs[:-1] == data.obs[1:]
    follows = same.all(1).tolist()  # the next row goes on here
    follows.append(False)
    steps, returns = math.nan, math.nan
    found = []
    for i in reversed(range(len(reward))):
        if end[i]:
            steps = 1
            returns = reward[i]
        elif follows[i]:
            steps = steps + 1
            returns = reward[i] + gamma * returns
        else:
            steps = math.nan
            returns = math.nan
        found.append((steps, returns))
    both = torch.tensor(found[::-1], dtype=torch.float64).T
    return both[0], both[1]


# === What the critics say =====================================================================
def q_of(agent, obs: Tensor, action: Tensor) -> Tensor:
    """Q of the target networks; obs and action `[..., S]`, `[..., A]` -> `[M, ...]`."""
    shape = obs.shape[:-1]
    obs = obs.flatten(0, -2)
    action = action.flatten(0, -2)
    parts = []
    for pair in zip(obs.split(CHUNK), action.split(CHUNK)):
        parts.append(agent.target_q(*pair))
    return torch.cat(parts, 1).unflatten(1, shape)


def tf32(x: Tensor) -> Tensor:
    """Rounded to tf32's ten bits behind the leading one."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def hidden_layers(q_net) -> list:
    """The layers whose matmuls are in bf16 in that precision."""
    found = []
    for layer in q_net.layers:
        weight = getattr(layer, "weight", None)  # [M, in, out]; activations have none
        if weight is not None and weight.shape[1] == weight.shape[2]:
            found.append(layer)
    return found


def q_in(precision: str, agent, obs: Tensor, action: Tensor) -> Tensor:
    """`q_of` with matmuls in tf32 or bf16 and sums in fp32, on whatever hardware."""
    bmm = torch.bmm
    layers = hidden_layers(agent.target_q)
    for layer in layers:
        layer.bf16 = precision == "bf16"

    def in_tf32(a: Tensor, b: Tensor) -> Tensor:
        return bmm(tf32(a), tf32(b))

    def in_bf16(a: Tensor, b: Tensor) -> Tensor:
        return bmm(a.float(), b.float()).to(a.dtype)

    torch.bmm = in_tf32 if precision == "tf32" else in_bf16
    try:
        return q_of(agent, obs, action)
    finally:
        torch.bmm = bmm
        for layer in layers:
            layer.bf16 = False


def ant_steps(edq, env_id: str, obs: Tensor, actions: Tensor) -> Tensor:
    """Where one step leads from obs `[N, 31]` with each of actions `[N, K, A]`; `[N, K, 31]`."""
    env = edq.make_env(edq.TASKS[env_id])
    env.reset(seed=0)
    ant = env.unwrapped.ant_env
    found = []
    states = obs.double().cpu().numpy()
    tried = actions.double().cpu().numpy()
    for state, of_state in zip(states, tried):
        pose = state[:13]
        velocity = state[13:27]
        position = state[27:29]
        goal = state[29:]
        before = np.concatenate([position, pose])
        for action in of_state:
            ant.set_state(before, velocity)
            ant.do_simulation(action, ant.frame_skip)
            qpos = ant.data.qpos
            qvel = ant.data.qvel
            reached = [qpos[2:], qvel, qpos[:2], goal]
            found.append(np.concatenate(reached))
    env.close()
    after = torch.from_numpy(np.array(found)).float()
    return after.to(obs.device).unflatten(0, actions.shape[:2])


def candidates(run: Run, seen: Tensor, count: int, g: torch.Generator):
    """Observations repeated, and actions of the policy: `[..., count, S]`, `[..., count, A]`."""
    agent = run.agent
    clip = run.args.action_clip
    several = torch.stack([seen] * count, -2)
    actions = run.script.sample_actions(agent.actor, agent.sde, several, clip, g)
    return several, actions


def pessimistic(run: Run, q: Tensor) -> Tensor:
    """q `[M, ...]` -> `[...]`, what the run's acting ranks candidates by."""
    if run.args.pessimism == "min":
        return q.amin(0)
    return run.script.lower_confidence_bound(q, run.args.lcb_coef)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([x, y]))[0, 1]


def rounding(run: Run, several: Tensor, actions: Tensor, value: Tensor):
    """What tf32 and bf16 do to the LCB `[N, K]` of the candidates."""
    row = {}
    for precision in ("tf32", "bf16"):
        q = q_in(precision, run.agent, several, actions)
        other = pessimistic(run, q)
        error = other - value
        error = error - error.mean(1, keepdim=True)  # what moves all candidates changes no choice
        shift = other.softmax(1) - value.softmax(1)
        moved = 0.5 * shift.abs().sum(1)
        changed = other.argmax(1) != value.argmax(1)
        row[f"lcb_error_{precision}"] = error.square().mean().sqrt()
        row[f"best_changed_{precision}"] = changed.float().mean()
        row[f"probability_moved_{precision}"] = moved.mean()
    return row


def what_follows(
    run: Run,
    obs: Tensor,
    actions: Tensor,
    q: Tensor,
    g: torch.Generator,
) -> dict:
    """Value of where each candidate leads, against its own Q `[N, K]`."""
    agent = run.agent
    after = ant_steps(run.script, run.args.env_id, obs, actions)
    after = (after - agent.obs_mean) / agent.obs_std
    several, follow_up = candidates(run, after, 20, g)  # [N, K, 20, ...]
    follow = q_of(agent, several, follow_up).mean((0, 3))  # [N, K]
    in_states = [correlation(*pair) for pair in zip(q, follow)]
    return {
        "next_q_spread": follow.std(1).mean(),
        "q_and_next_q": torch.stack(in_states).mean(),
    }


@torch.no_grad()
def look(run: Run, batch, steps_from: int, g: torch.Generator) -> dict:
    """Figures of some transitions: obs `[N, S]`, action `[N, A]`, returns `[N]`."""
    obs, action, returns = batch
    agent = run.agent
    args = run.args
    seen = (obs - agent.obs_mean) / agent.obs_std
    K = args.num_candidates if args.num_candidates > 1 else 50
    several, actions = candidates(run, seen, K, g)  # [N, K, S], [N, K, A]
    bound = run.script.chain_entropy_bound(agent.sde, agent.actor, seen, agent.chain_std, g)
    row = {
        "states": len(obs),
        "return": returns.mean(),
        "return_std": returns.std(),
        "entropy_bound": bound.mean() / agent.actor.act_dim,
        "spread": actions.std(1).mean(),
        "from_data": (actions - action.unsqueeze(1)).abs().mean(),
        "saturated": (actions.abs() > 0.99).float().mean(),
        "saturated_data": (action.abs() > 0.99).float().mean(),
    }
    if agent.q:
        of_data = q_of(agent, seen, action)  # [M, N]
        q = q_of(agent, several, actions)  # [M, N, K]
        value = pessimistic(run, q)  # [N, K]
        row |= rounding(run, several, actions, value)
        row |= {
            "q_data": of_data.mean(),
            "member_std": of_data.std(0).mean(),
            "q_candidates": q.mean(),
            "lcb_spread": value.std(1).mean(),
            "q_spread": q.mean(0).std(1).mean(),
            "member_std_spread": q.std(0).std(1).mean(),
            "effective_candidates": 1 / value.softmax(1).square().sum(1).mean(),
            "q_and_return": correlation(of_data.mean(0).double(), returns),
        }
        if args.env_id.startswith("antmaze"):
            n = min(steps_from, len(obs))
            few = min(20, K)
            mean_q = q.mean(0)[:n, :few]
            row |= what_follows(run, obs[:n], actions[:n, :few], mean_q, g)
    return {k: float(v) for k, v in row.items()}


# === How ants move ============================================================================
def movement(path: np.ndarray, walls: np.ndarray):
    """Of an ant's states `[steps + 1, 31]`: speed, share on its back, and how far it got, in
    cells."""
    import make_antmaze

    xy = path[:, 27:29]
    goal = make_antmaze.cells_at(path[0, 29:], walls)
    cells = make_antmaze.cells_at(xy, walls)
    way = make_antmaze.way_to(tuple(goal.tolist()), walls)
    left = []
    for cell in map(tuple, cells.tolist()):
        count = 0
        while cell in way and way[cell] != cell:
            cell = way[cell]
            count += 1
        left.append(count)
    steps = np.diff(xy, axis=0)
    metres = np.linalg.norm(steps, axis=1)
    tilt = np.square(path[:, 2:4]).sum(1)  # x and y of the torso's quaternion
    return {
        "metres_per_second": metres.mean() / STEP_SECONDS,
        "upside_down": (tilt > 0.5).mean(),
        "cells_nearer": left[0] - min(left),
        "cells_to_goal": left[0],
    }


def walk(run: Run, episodes: int, **changes: object):
    """How the ants of an evaluation move: means and standard errors."""
    results, paths = watch(run, episodes, **changes)
    task = run.script.TASKS[run.args.env_id]
    maze = task.env_kwargs["maze_map"]
    walls = np.array([[cell == 1 for cell in line] for line in maze])
    rows = [movement(path, walls) for path in paths]
    found = {"success": run.script.means(results)["score"]}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        spread = values.std(ddof=min(1, len(rows) - 1))
        found[name] = values.mean()
        found[f"{name}_error"] = spread / len(rows) ** 0.5
    return {k: float(v) for k, v in found.items()}


def propose(by: Run, run: Run) -> Run:
    """A run whose candidates are another's, with that one's SDE; its critics choose."""
    agent, actor = run.agent, by.agent
    same_mean = torch.equal(agent.obs_mean, actor.obs_mean)
    same_std = torch.equal(agent.obs_std, actor.obs_std)
    if not (same_mean and same_std):
        fail("the two runs standardise observations differently")
    agent.actor = actor.actor
    agent.sde = actor.sde
    names = ("num_diffusion_steps", "schedule", "action_clip")
    changes = {name: getattr(by.args, name) for name in names}
    args = replace(run.args, **changes)
    return replace(run, args=args)


# === The command ==============================================================================
def about_run(run: Run) -> dict:
    return {
        "run": run.folder.name,
        "preset": run.args.preset,
        "seed": run.args.seed,
        "step": run.step,
        "critics": run.args.num_critics if run.agent.q else 0,
    }


def walk_rows(run: Run, args: Args):
    """The run as it acts, and its critics with candidates of --actor."""
    if not run.args.env_id.startswith("antmaze"):
        fail(f"{run.folder} is no run of AntMaze, and --walk knows only its ant")
    own = {
        "actor": run.folder.name,
        "choose": run.args.action_selection,
        "episodes": args.walk,
    }
    rows = [about_run(run) | own | walk(run, args.walk)]
    if args.actor and run.agent.q:
        by = load_run(args.actor, precision="fp32")
        run = propose(by, run)
        for name, changes in CHOICES.items():
            how = own | {"actor": args.actor.name, "choose": name}
            figures = walk(run, args.walk, **changes)
            rows.append(about_run(run) | how | figures)
    return rows


def state_rows(run: Run, args: Args, device: str):
    """A row for each number of steps left, and what the data are."""
    data, info = load_data(run, device)
    steps, returns = to_the_end(data, run.args.gamma)
    steps = steps.to(device)
    returns = returns.to(device)
    rows = []
    for name, (above, up_to) in BINS.items():
        g = torch.Generator(device).manual_seed(0)  # the same states for every run
        inside = (steps > above) & (steps <= up_to)
        found = inside.nonzero()[:, 0]
        if len(found) < 2:
            continue
        order = torch.randperm(len(found), generator=g, device=device)
        chosen = found[order[: args.states]]
        batch = data.obs[chosen], data.action[chosen], returns[chosen]
        figures = look(run, batch, args.steps_from, g)
        rows.append(about_run(run) | {"steps_left": name} | figures)
    return rows, {"id": info["id"], "hash": info["hash"]}


def main(args: Args):
    started = time.time()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    about = {}
    for folder in args.runs:
        run = load_run(folder, device, precision="fp32")
        if args.walk:
            new = walk_rows(run, args)
        else:
            new, about["dataset"] = state_rows(run, args, device)
        for row in new:
            cells = []
            for name, value in row.items():
                if isinstance(value, float):
                    value = f"{name} {value:.3g}"
                cells.append(value)
            print(*cells, flush=True)
        rows += new
    if not rows:
        fail("from no state do the data go on to an end")
    gpu = torch.cuda.get_device_name() if device == "cuda" else ""
    write_record(args.out, rows, started, gpu=gpu, **about)


if __name__ == "__main__":
    main(tyro.cli(Args))
