"""Posterior sampler against Euler steps on the reverse SDE and on the probability-flow ODE, for T
= 1 to 100 steps.

    OMP_NUM_THREADS=1 python results/studies/samplers/run.py     # 13 minutes on one busy thread

Six mixtures of normals inside the action box, in one and two dimensions, are sampled with the
exact network (known in closed form, ten seeds, all T, four schedules) and with trained ones (five
seeds: cosine at all T, the other schedules at T = 5). What comes out is compared with fresh data:
Wasserstein distance (SciPy) in 1-D, sliced Wasserstein distance (POT, 50 directions) in 2-D,
spread and share of each mode, and the share of samples farther than three std from all of them.
The noise floor is the same distance between two sets of data of that size. Samplers share their
noise, seed by seed.

What to expect: the last posterior step returns E[a_0 | a_1], so modes come out narrow; and as
long as sigma_1 (0.57 for T = 5, cosine) is not small beside the distance of two modes, samples
land between them.
"""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from ot import sliced_wasserstein_distance
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.func import grad_and_value, vmap

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
import edq_mujoco as edq
from results.common.records import RECORDS, write_record
from results.common.small_agents import Net, Weights, compiled, stack
from results.studies.samplers.diffusion import (
    SAMPLERS,
    SCHEDULES,
    ScheduledSDE,
    sample,
)
from results.studies.samplers.mixtures import (
    MIXTURES,
    ExactActor,
    Mixture,
    between,
    mode_std,
)

STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 100)  # T
EXACT_SEEDS = list(range(10))
TRAINED_SEEDS = list(range(5))
SAMPLES = 4000  # of each seed
UPDATES = 3000  # of the trained networks
BATCH = 128
HIDDEN = 64
LR = 1e-2  # it decays to 0 with a half cosine
SHOWN = (1, 2, 5, 10, 50)  # T in the pictures of samples
BINS = 80  # of the histograms, over [-1, 1]
POINTS = 200  # of a 2-D picture


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# === Training: N networks as one; a_t is `[N, ..., A]` ===
class TrainedActors:
    """N trained networks, called as one."""

    def __init__(self, module: torch.nn.Module, weights: Weights):
        self.module = module
        self.weights = weights
        self.act_dim = module.act_dim

    def __call__(self, a_t: Tensor, t: int | Tensor, obs: Tensor) -> Tensor:
        axis = None if isinstance(t, int) else 0

        def one(weights: Weights, a_t: Tensor, t: int | Tensor, obs: Tensor) -> Tensor:
            return Net(self.module, weights)(a_t, t, obs)

        return vmap(one, in_dims=(0, 0, axis, 0))(self.weights, a_t, t, obs)

    def part(self, rows: slice) -> "TrainedActors":
        return TrainedActors(self.module, {k: w[rows] for k, w in self.weights.items()})


COMPILED: dict[int, Callable] = {}  # by action dimensions


def gradient_function(module: torch.nn.Module, example: tuple, fuse: bool) -> Callable:
    """(weights, a_t, t, eps) -> gradients and noise losses `[N]`."""

    def loss(weights: Weights, a_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        eps_hat = Net(module, weights)(a_t, t, a_t[..., :0])
        return edq.diffusion_loss(None, None, None, None, eps, eps_hat, "noise")

    function = vmap(grad_and_value(loss))
    if not fuse:
        return function
    if module.act_dim not in COMPILED:
        COMPILED[module.act_dim] = compiled(lambda *x: function(*x), *example)
    return COMPILED[module.act_dim]


def train(
    mixtures: list[Mixture],
    sde: edq.MeanRevertingSDE,
    seeds: list[int],
    updates: int = UPDATES,
    fuse: bool = True,
) -> tuple[TrainedActors, Tensor]:
    """Networks for every mixture (all of one dimension) and seed, and their losses `[updates,
    N]`.
    """
    act_dim = mixtures[0].act_dim
    module, weights = stack(lambda: edq.NoiseMLP(0, act_dim, HIDDEN), seeds * len(mixtures), 1)
    optimiser = torch.optim.Adam(weights.values(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    g = seeded(0)
    shape = (updates, len(seeds), BATCH)
    drawn = [m.sample(math.prod(shape), g).reshape(*shape, act_dim) for m in mixtures]
    a0 = torch.cat(drawn, 1)  # [updates, N, B, A]
    t = torch.randint(sde.num_steps, a0.shape[:-1], generator=g)
    eps = torch.randn(a0.shape, generator=g)
    a_t = sde.perturb(a0, t, eps)
    function = gradient_function(module, (weights, a_t[0], t[0], eps[0]), fuse)
    history = []
    for batch in zip(a_t, t, eps):
        gradients, losses = function(weights, *batch)
        for name, weight in weights.items():
            weight.grad = gradients[name]
        optimiser.step()
        schedule.step()
        history.append(losses)
    return TrainedActors(module, weights), torch.stack(history)


@torch.no_grad()
def held_out_loss(
    actors: TrainedActors,
    mixture: Mixture,
    sde: edq.MeanRevertingSDE,
    seeds: list[int],
) -> tuple[Tensor, Tensor]:
    """Noise loss of trained networks and of the exact one on fresh data, `[seeds]` each."""
    g = seeded(3000)
    shape = (len(seeds), SAMPLES)
    a0 = mixture.sample(math.prod(shape), g).reshape(*shape, mixture.act_dim)
    eps = torch.randn(a0.shape, generator=g)
    t = torch.arange(SAMPLES) % sde.num_steps
    a_t = sde.perturb(a0, t, eps)
    exact = ExactActor(mixture, sde)
    best = torch.empty_like(eps)
    for i in range(sde.num_steps):
        best[:, t == i] = exact(a_t[:, t == i], i, None)
    hat = actors(a_t, t.expand(shape), a_t[..., :0])
    return (hat - eps).square().mean((1, 2)), (best - eps).square().mean((1, 2))


# === Sampling and comparing ===
def draw_noise(num_steps: int, act_dim: int, seeds: list[int]) -> Tensor:
    """What a sampler uses up, `[T, seeds, n, A]`; the same for every sampler."""
    shape = (num_steps, SAMPLES, act_dim)
    return torch.stack([torch.randn(shape, generator=seeded(s)) for s in seeds], 1)


@torch.no_grad()
def run_samplers(actor: Callable, sde: edq.MeanRevertingSDE, noise: Tensor) -> dict[str, Tensor]:
    """Samples `[seeds, n, A]` of each sampler, and of the posterior one without clamping a_0."""
    obs = noise[0, ..., :0]
    out = {name: sample(actor, sde, obs, name, noise) for name in SAMPLERS}
    out["unclipped"] = edq.sample_actions(actor, sde, obs, action_clip=False, noise=noise)
    return out


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein distance of two samples `[n, A]`; in 2-D the mean over 50 directions."""
    if x.shape[1] == 1:
        return float(wasserstein_distance(x[:, 0], y[:, 0]))
    return float(sliced_wasserstein_distance(x, y, n_projections=50, p=1, seed=0))


def distance_rows(
    about: dict,
    out: dict[str, Tensor],
    mixture: Mixture,
    data: list[Tensor],
    seeds: list[int],
) -> list[dict]:
    """One row a seed: distance to the data of each sampler, and its samples between the modes."""
    rows = []
    for i, seed in enumerate(seeds):
        row = about | {"seed": seed}
        for name, x in out.items():
            row[name] = round(distance(x[i].numpy(), data[seed].numpy()), 4)
        for name in SAMPLERS:
            row[f"between_{name}"] = round(between(out[name][i], mixture), 4)
        rows.append(row)
    return rows


def mode_rows(
    about: dict,
    out: dict[str, Tensor],
    mixture: Mixture,
    seeds: list[int],
) -> list[dict]:
    """One row a seed and mode: its std and share in what each sampler draws."""
    rows = []
    for mode, (i, seed) in product(range(len(mixture.means)), enumerate(seeds)):
        stats = {name: mode_std(out[name][i], mixture, mode) for name in SAMPLERS}
        row = about | {"mode": mixture.means[mode][0], "seed": seed}
        row |= {f"std_{name}": round(std, 4) for name, (std, _) in stats.items()}
        row |= {f"share_{name}": round(share, 4) for name, (_, share) in stats.items()}
        rows.append(row)
    return rows


def histogram_rows(about: dict, out: dict[str, Tensor], data: Tensor) -> list[dict]:
    """Counts over all seeds; bins without a sample have no row."""
    edges = np.linspace(-1, 1, BINS + 1)
    samples = {"data": data} | {name: out[name] for name in SAMPLERS}
    counts = {name: np.histogram(x.numpy(), edges)[0] for name, x in samples.items()}
    rows = []
    for i, low in enumerate(edges[:-1]):
        row = {name: int(count[i]) for name, count in counts.items()}
        if any(row.values()):
            rows.append(about | {"low": round(float(low), 3)} | row)
    return rows


def point_rows(about: dict, out: dict[str, Tensor]) -> list[dict]:
    """The first samples of seed 0 (2-D), to the pixel."""
    rows = []
    for i in range(POINTS):
        row = dict(about)
        for name in SAMPLERS:
            x, y = out[name][0, i].tolist()
            row[f"x_{name}"] = round(x, 2)
            row[f"y_{name}"] = round(y, 2)
        rows.append(row)
    return rows


class Study:
    """Rows of all records, and the data that samples are compared with."""

    def __init__(self):
        self.rows = defaultdict(list)
        self.data = {
            name: [mixture.sample(SAMPLES, seeded(1000 + seed)) for seed in EXACT_SEEDS]
            for name, mixture in MIXTURES.items()
        }

    def floors(self) -> None:
        """Two sets of data beside each other."""
        for name, mixture in MIXTURES.items():
            for seed in EXACT_SEEDS:
                other = mixture.sample(SAMPLES, seeded(2000 + seed))
                floor = distance(other.numpy(), self.data[name][seed].numpy())
                row = {
                    "distribution": name,
                    "seed": seed,
                    "floor": round(floor, 4),
                }
                row["between"] = round(between(other, mixture), 4)
                self.rows["floor"].append(row)

    def evaluate(
        self,
        network: str,
        schedule: str,
        name: str,
        sde: edq.MeanRevertingSDE,
        actor: Callable,
        noise: Tensor,
        seeds: list[int],
    ) -> None:
        """All samplers with one network (of each seed)."""
        mixture = MIXTURES[name]
        T = len(noise)
        out = run_samplers(actor, sde, noise)
        about = {"network": network, "distribution": name}
        scheduled = about | {"schedule": schedule, "T": T}
        data = self.data[name]
        self.rows["distances"] += distance_rows(scheduled, out, mixture, data, seeds)
        if schedule != "cosine":
            return
        one_d = mixture.act_dim == 1
        if one_d:
            self.rows["modes"] += mode_rows(about | {"T": T}, out, mixture, seeds)
        if network == "exact" and T in SHOWN:
            shown = {"distribution": name, "T": T}
            if one_d:
                self.rows["histograms"] += histogram_rows(shown, out, torch.cat(data))
            else:
                self.rows["points"] += point_rows(shown, out)

    def exact(self) -> None:
        """Every mixture, schedule and T with the exact network."""
        for T, act_dim in product(STEPS, (1, 2)):
            noise = draw_noise(T, act_dim, EXACT_SEEDS)
            for (name, mixture), schedule in product(MIXTURES.items(), SCHEDULES):
                if mixture.act_dim == act_dim:
                    sde = ScheduledSDE(T, schedule)
                    actor = ExactActor(mixture, sde)
                    self.evaluate("exact", schedule, name, sde, actor, noise, EXACT_SEEDS)

    def trained(self, schedule: str, T: int) -> None:
        """Every mixture with trained networks."""
        sde = ScheduledSDE(T, schedule)
        count = len(TRAINED_SEEDS)
        for act_dim in (1, 2):
            names = [name for name, m in MIXTURES.items() if m.act_dim == act_dim]
            actors, _ = train([MIXTURES[name] for name in names], sde, TRAINED_SEEDS)
            noise = draw_noise(T, act_dim, TRAINED_SEEDS)
            for i, name in enumerate(names):
                actor = actors.part(slice(i * count, (i + 1) * count))
                self.evaluate("trained", schedule, name, sde, actor, noise, TRAINED_SEEDS)
                losses = held_out_loss(actor, MIXTURES[name], sde, TRAINED_SEEDS)
                for seed, loss, least in zip(TRAINED_SEEDS, *losses):
                    row = {
                        "distribution": name,
                        "schedule": schedule,
                        "T": T,
                        "seed": seed,
                    }
                    row |= {"loss": float(loss), "exact_loss": float(least)}
                    self.rows["training"].append(row)


def main() -> None:
    torch.set_num_threads(1)
    started = time.time()
    study = Study()
    study.floors()
    study.exact()
    print(f"exact networks: {time.time() - started:.0f} s", flush=True)
    for schedule, T in product(SCHEDULES, STEPS):
        if schedule == "cosine" or T == 5:
            study.trained(schedule, T)
            print(
                f"trained, {schedule}, T = {T}: {time.time() - started:.0f} s",
                flush=True,
            )
    for kind, rows in study.rows.items():
        write_record(
            RECORDS / "samplers" / f"{kind}.csv",
            rows,
            started,
            exact_seeds=EXACT_SEEDS,
            trained_seeds=TRAINED_SEEDS,
            samples=SAMPLES,
            updates=UPDATES,
            batch=BATCH,
            hidden=HIDDEN,
            lr=LR,
        )


if __name__ == "__main__":
    main()
