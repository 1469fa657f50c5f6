"""The paper's toy task (Fig. 1): do an entropy term and a Q-ensemble find the rich mode that the
data seldom visit?

    OMP_NUM_THREADS=1 python results/studies/toy/run.py     # half an hour on one busy thread

A point at 0 moves by its action, twice; the reward is a mixture of two Gaussians over where it
arrives (results/common/known_tasks.py). Of 320 episodes an eighth goes to the rich mode, the
others to the poor one, from which the rich one is out of reach: the first action decides.
Everything is learned from these 640 transitions, Q included, by the scripts' own losses. Ten
seeds are trained at once, each with its own data.

Methods
  cloning           no Q: what the data alone teach (for reference, not in the paper's figure)
  diffusion policy  M = 2 critics, the smaller one in target and actor, as Diffusion-QL has it
  + entropy         the same with the entropy term of an estimator (../entropy/arms.py)
  + Q-ensemble      M = 16, each its own target, the actor climbs mean - 4 std
  + both

500 passes over the data, 5,000 updates, stand for the paper's 500 epochs. So some settings are
not the scripts': 64 units a layer for the policy and 32 for a critic, batch 64, Adam rates 1e-3
and 3e-3, eta 0.1 (with 1 both methods leave the data), and the EMA actor follows in every update
from the first on (rate 0.005). The scripts wait 1,000 updates and then take each fifth, which is
too slow for 5,000. These were chosen in short trials of cloning and of the methods without an
entropy term (and one of `chain`, with eta 1). The weights of the entropy terms were fixed before
the run, the same for all seeds: the authors' 0.01 where the term is scaled as theirs, else 0.03
(chain, chainJ, logdet) or 0.1.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import edq_mujoco as edq
from results.common.known_tasks import (
    CENTRES,
    TASKS,
    action_law,
    law_figures,
    toy_data,
    toy_q,
    toy_reward,
)
from results.common.records import RECORDS, write_record
from results.common.small_agents import (
    Net,
    SmallAgents,
    Weights,
    act,
    copied,
    row_of,
    seeded_draws,
)
from results.studies.entropy.arms import ActingNoise, losses_of

SEEDS = list(range(10))
EPISODES = 320  # of a seed's data
TRANSITIONS = 2 * EPISODES
EPOCHS = 500
BATCH = 64
UPDATES = TRANSITIONS // BATCH  # of an epoch
HIDDEN = 64
CRITIC_HIDDEN = 32
LR = 1e-3
CRITIC_LR = 3e-3
EMA_RATE = 0.005
EVERY = 25  # epochs between evaluations
LONG = 256  # episodes of the last one
BARS = 80  # bins of a law over the action box
START = (0.0, 0.0)  # observation before the first step

CANDIDATES = {"one": 1, "softmax": 50, "argmax": 50}  # K of each way to act
CURVES = {"one": 64, "softmax": 32}  # episodes of an evaluation on the way

BASE = edq.Args(
    batch_size=BATCH,
    hidden_dim=HIDDEN,
    actor_lr=LR,
    critic_lr=CRITIC_LR,
    ema_decay=1 - EMA_RATE,
    eta=0.1,
    diffusion_loss="noise",
    action_clip=True,
    entropy_estimator="none",
    precision="fp32",
)
PAIR = replace(BASE, num_critics=2, pessimism="min", target="min")
ENSEMBLE = replace(BASE, num_critics=16)
METHODS = {
    "cloning": replace(PAIR, eta=0.0),
    "diffusion policy": PAIR,
    "+ entropy": PAIR,
    "+ Q-ensemble": ENSEMBLE,
    "+ both": ENSEMBLE,
}
COEFS = {
    "none": 0.0,
    "released": 0.01,
    "bridge": 0.01,
    "quad": 0.01,
    "score": 0.1,
    "chain": 0.03,
    "chainJ": 0.03,
    "logdet": 0.03,
    "gmm": 0.1,
    "pathkl": 0.1,
}
ESTIMATORS = [name for name in COEFS if name != "none"]
RUNS = [("cloning", "none"), ("diffusion policy", "none"), ("+ Q-ensemble", "none")]
RUNS += [(method, name) for method in ("+ entropy", "+ both") for name in ESTIMATORS]


# === Data and training. N seeds, B batch, M critics, E episodes, K candidates ===
def transitions(seed: int) -> edq.Transitions:
    """A seed's dataset: all first steps, then the second ones of the same episodes."""
    g = torch.Generator().manual_seed(seed)
    obs, action = toy_data(g, TRANSITIONS)
    position = obs[:, 0] + action[:, 0]
    next_obs = torch.stack([position, obs[:, 1] + 1], -1)
    is_last = (obs[:, 1] == 1.0).float()
    return edq.Transitions(obs, action, toy_reward(position), next_obs, is_last)


def batches(seeds: list[int], T: int) -> Iterator[tuple[edq.Transitions, edq.Noise]]:
    """Endless batches `[N, B, ...]` and noise of an update; an epoch's are one pass over the
    data.
    """
    datasets = [transitions(seed) for seed in seeds]
    data = [torch.stack(x) for x in zip(*datasets)]
    rows = torch.arange(len(seeds)).unsqueeze(-1)

    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randperm(TRANSITIONS, generator=g).view(UPDATES, BATCH)
        t = torch.randint(T, (UPDATES, BATCH), generator=g)
        target = torch.randn(UPDATES, T, BATCH, 1, generator=g)
        eps = torch.randn(UPDATES, BATCH, 1, generator=g)
        aT = torch.randn(UPDATES, BATCH, 1, generator=g)
        chain = torch.randn(UPDATES, T + 1, BATCH, 1, generator=g)
        return index, target, t, eps, aT, chain

    for epoch in seeded_draws(seeds, draw):
        for index, *noise in zip(*(x.unbind(1) for x in epoch)):
            batch = edq.Transitions(*(x[rows, index] for x in data))
            yield batch, edq.Noise(*noise)


def make_agents(
    args: edq.Args,
    estimator: str,
    seeds: list[int],
    clone: Weights | None = None,
) -> tuple[SmallAgents, ActingNoise | None]:
    """An agent for each seed, and the noise with which it acts (gmm)."""
    coef = COEFS[estimator]
    extra = {}
    acting_noise = None
    if estimator == "pathkl":
        extra["clone"] = clone
    if estimator == "gmm":
        acting_noise = ActingNoise(torch.full((len(seeds),), coef))
        extra["noise_std"] = acting_noise.std
    agents = SmallAgents(
        args,
        2,
        1,
        seeds,
        [coef],
        losses_of(estimator),
        critic_hidden=CRITIC_HIDDEN,
        extra=extra,
        ema_start=0,
        ema_every=1,
    )
    return agents, acting_noise


def train(
    agents: SmallAgents,
    acting_noise: ActingNoise | None,
    every: Callable[[], None],
    epochs: int = EPOCHS,
) -> None:
    """So many passes over the data; `every` is called after each EVERY of them."""
    stream = batches(agents.seeds, agents.sde.num_steps)
    for epoch in range(1, epochs + 1):
        for _ in range(UPDATES):
            agents.update(*next(stream))
        if acting_noise and epoch % (EPOCHS // 100) == 0:
            acting_noise.adapt(agents, torch.tensor([START]))
        if epoch % EVERY == 0:
            every()


# === Measuring ===
def acting_args(args: edq.Args, acting: str) -> edq.Args:
    selection = "softmax" if acting == "softmax" else "argmax"
    return replace(args, action_selection=selection)


@torch.no_grad()
def returns(agents: SmallAgents, acting: str, episodes: int) -> Tensor:
    """Mean return `[N]` of so many episodes; a seed's noise is the same at each call and for all
    methods.
    """
    T = agents.sde.num_steps
    K = CANDIDATES[acting]
    args = acting_args(agents.args, acting)
    generators = [torch.Generator().manual_seed(20_000 + seed) for seed in agents.seeds]
    count = len(generators)
    noise_std = agents.extra.get("noise_std", torch.zeros(count)).view(-1, 1, 1, 1)
    weights = {net: agents.weights[net] for net in ("actor", "target_q")}

    def draw(function: Callable, *shape: int) -> Tensor:
        return torch.stack([function(*shape, generator=g) for g in generators])

    def act_one(weights, obs, noise, u, extra):
        return act(agents.one(weights, {}), obs, noise, u, args, extra)

    position = torch.zeros(count, episodes)
    total = torch.zeros(count)
    for step in range(2):
        obs = torch.stack([position, torch.full_like(position, step)], -1)
        noise = draw(torch.randn, T, episodes, K, 1)
        extra = noise_std * draw(torch.randn, episodes, K, 1)
        u = draw(torch.rand, episodes)
        action = vmap(act_one, chunk_size=2)(weights, obs, noise, u, extra)  # [N, E, 1]
        position = position + action.squeeze(-1)
        total = total + toy_reward(position).mean(1)
    return total


def box_histogram(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mass in each of BARS bins of the action box."""
    mass, _ = np.histogram(x, np.linspace(-1, 1, BARS + 1), weights=weights)
    return mass


@torch.no_grad()
def first_action(agents: SmallAgents, i: int) -> tuple[dict[str, float], np.ndarray]:
    """The first action's law, by quadrature: its figures, and its mass in each bin when clamped."""
    last_std = float(agents.extra["noise_std"][i]) if "noise_std" in agents.extra else 0.0
    law = action_law(agents.actor(i), agents.sde, torch.tensor(START), last_std)
    figures = law_figures(TASKS["toy"], law)
    bars = box_histogram(CENTRES.clamp(-1, 1).numpy(), law.numpy())
    return {name: figures[name] for name in ("entropy", "rare_share", "off_data")}, bars


@torch.no_grad()
def learned_q(agents: SmallAgents) -> list[dict]:
    """Target critics over the first action, averaged over seeds; the behaviour's true value
    beside them.
    """
    args = agents.args
    action = torch.linspace(-1, 1, BARS + 1).unsqueeze(-1)
    obs = torch.tensor(START).expand(len(action), -1)
    module = agents.modules["target_q"]
    weights = agents.weights["target_q"]
    each = [Net(module, row_of(weights, i))(obs, action) for i in range(len(agents.seeds))]
    q = torch.stack(each)  # [N, M, points]
    lcb = torch.stack([edq.lower_confidence_bound(x, args.lcb_coef) for x in q])
    least = q.amin(1)
    bound = least if args.pessimism == "min" else lcb  # what the actor climbs
    columns = {
        "action": action[:, 0],
        "true": toy_q(obs, action),
        "mean": q.mean((0, 1)),
        "std": q.std(1).mean(0),
        "lcb": lcb.mean(0),
        "min": least.mean(0),
        "bound": bound.mean(0),
        "bound_over_seeds": bound.std(0),
    }
    points = range(len(action))
    return [{k: round(float(x[j]), 3) for k, x in columns.items()} for j in points]


# === The study ===
def study(
    about: dict,
    agents: SmallAgents,
    acting_noise: ActingNoise | None,
) -> dict[str, list[dict]]:
    """Train and measure one method and estimator: rows of the four records."""
    curves = defaultdict(list)

    def every() -> None:
        for acting, episodes in CURVES.items():
            curves[acting].append(returns(agents, acting, episodes))

    train(agents, acting_noise, every)
    final = {acting: returns(agents, acting, LONG) for acting in CANDIDATES}
    late = {acting: torch.stack(points[-5:]).mean(0) for acting, points in curves.items()}
    runs = []
    all_bars = []
    for i, seed in enumerate(agents.seeds):
        figures, bars = first_action(agents, i)
        row = about | {"seed": seed}
        row |= {f"return_{acting}": float(x[i]) for acting, x in final.items()}
        row |= {f"late_{acting}": float(x[i]) for acting, x in late.items()}
        runs.append(row | figures)
        all_bars.append(bars)
    return {
        "runs": runs,
        "curves": curve_rows(about, curves, agents.seeds),
        "laws": law_rows(about, np.stack(all_bars)),
        "q": [about | row for row in learned_q(agents)] if agents.args.eta > 0 else [],
    }


def curve_rows(about: dict, curves: dict[str, list[Tensor]], seeds: list[int]) -> list[dict]:
    """One row an evaluation, one column a seed."""
    rows = []
    for acting, points in curves.items():
        for number, point in enumerate(points, 1):
            by_seed = {f"seed_{s}": round(float(x), 3) for s, x in zip(seeds, point)}
            rows.append(about | {"acting": acting, "epoch": number * EVERY} | by_seed)
    return rows


def law_rows(about: dict, bars: np.ndarray) -> list[dict]:
    """Mean and std over seeds of the first action's mass by bin; bars `[N, BARS]`."""
    lows = np.linspace(-1, 1, BARS + 1)[:-1]
    means = bars.mean(0)
    stds = bars.std(0, ddof=1)
    rows = []
    for low, mean, std in zip(lows, means, stds):
        figures = {
            "low": round(float(low), 3),
            "mean": round(float(mean), 5),
            "std": round(float(std), 5),
        }
        rows.append(about | figures)
    return rows


def data_rows() -> dict[str, list[dict]]:
    """The datasets themselves, beside the runs."""
    about = {"method": "data", "estimator": "none", "coef": 0.0}
    runs = []
    bars = []
    for seed in SEEDS:
        data = transitions(seed)
        first = data.action[:EPISODES, 0].numpy()
        bars.append(box_histogram(first) / EPISODES)
        figures = {
            "return_one": 2 * float(data.reward.mean()),
            "rare_share": float((first > 0).mean()),
        }
        runs.append(about | {"seed": seed} | figures)
    return {"runs": runs, "laws": law_rows(about, np.stack(bars))}


def settings() -> dict:
    """What stands in the head of each record."""
    return {
        "seeds": SEEDS,
        "episodes": EPISODES,
        "epochs": EPOCHS,
        "updates": EPOCHS * UPDATES,
        "batch": BATCH,
        "hidden": HIDDEN,
        "critic_hidden": CRITIC_HIDDEN,
        "lr": LR,
        "critic_lr": CRITIC_LR,
        "average": EMA_RATE,
        "tau": BASE.tau,
        "eta": BASE.eta,
        "critics": ENSEMBLE.num_critics,
        "lcb_coef": BASE.lcb_coef,
        "curve_episodes": CURVES,
        "final_episodes": LONG,
    }


def main() -> None:
    torch.set_num_threads(1)
    started = time.time()
    records = defaultdict(list)
    clone = None
    for kind, rows in data_rows().items():
        records[kind] += rows
    for method, estimator in RUNS:
        begun = time.time()
        agents, acting_noise = make_agents(METHODS[method], estimator, SEEDS, clone)
        about = {"method": method, "estimator": estimator, "coef": COEFS[estimator]}
        found = study(about, agents, acting_noise)
        if method == "cloning":  # what `pathkl` is drawn to
            clone = copied(agents.weights["actor"])
        for kind, rows in found.items():
            records[kind] += rows
            if records[kind]:
                path = RECORDS / "toy" / f"{kind}.csv"
                write_record(path, records[kind], started, **settings())
        score = np.mean([row["return_one"] for row in found["runs"]])
        seconds = time.time() - begun
        print(f"{method}, {estimator}: {seconds:.0f} s, return {score:.2f}", flush=True)


if __name__ == "__main__":
    main()
