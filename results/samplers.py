"""Posterior sampler against Euler steps on the reverse SDE and on the probability-flow ODE, for T = 1 to 100 steps.

    OMP_NUM_THREADS=1 python results/samplers.py        # 13 minutes on one thread of a busy two-core machine

Six mixtures of normals inside the action box, in one and two dimensions, are sampled with the exact network (known in
closed form, ten seeds, all T, four schedules) and with trained ones (five seeds: cosine at all T, the other schedules
at T = 5). What comes out is compared with fresh data: Wasserstein distance (SciPy) in 1-D, sliced Wasserstein distance
(POT, 50 directions) in 2-D, spread and share of each mode, and the share of samples farther than three std from all of
them. The noise floor is the same distance between two sets of data of that size. Samplers share their noise, seed by
seed. The exact network belongs to the mixture before data are clamped to the box, which moves 2 % of the far modes.

What to expect: the last posterior step returns E[a_0 | a_1], so modes come out narrow; and as long as sigma_1 (0.57 for
T = 5, cosine) is not small beside the distance of two modes, samples land between them.
"""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "results")]
from record import RECORDS, markdown, read_record, write_record  # noqa: E402

import edq_mujoco as edq  # noqa: E402

Tensor = torch.Tensor
STEPS = (1, 2, 3, 5, 10, 20, 30, 50, 100)  # T
SCHEDULES = ("cosine", "linear", "constant", "vp")
SAMPLERS = ("posterior", "sde", "ode")
EXACT_SEEDS, TRAINED_SEEDS = range(10), range(5)
SAMPLES = 4000  # of each seed
UPDATES, BATCH, HIDDEN, LR = 3000, 128, 64, 1e-2  # of the trained networks; the rate decays to 0 with a half cosine
SHOWN = (1, 2, 5, 10, 50)  # T in the pictures of samples
BINS = 80  # of the histograms, over [-1, 1]
POINTS = 200  # of a 2-D picture


@dataclass(frozen=True)
class Mixture:
    """Normals with one std in all directions; data are clamped to the box, as actions are."""

    means: tuple[tuple[float, ...], ...]
    std: float
    weights: tuple[float, ...]
    about: str

    @property
    def act_dim(self) -> int:
        return len(self.means[0])

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """`[size, A]`."""
        mode = torch.multinomial(torch.tensor(self.weights), size, replacement=True, generator=generator)
        noise = torch.randn(size, self.act_dim, generator=generator)
        return (torch.tensor(self.means)[mode] + self.std * noise).clamp(-1, 1)


def even(means: list[tuple[float, ...]], std: float, about: str) -> Mixture:
    return Mixture(tuple(means), std, (1 / len(means),) * len(means), about)


RING = [(0.7 * math.cos(k * math.pi / 4), 0.7 * math.sin(k * math.pi / 4)) for k in range(8)]
CHECKER = [(x, y) for x, y in product((-0.7, 0.0, 0.7), repeat=2) if (x == 0) == (y == 0)]
MIXTURES = {
    "one mode": even([(0.5,)], 0.1, "at 0.5"),
    "far modes": even([(-0.8,), (0.8,)], 0.1, "±0.8, 1.6 apart"),
    "near modes": even([(-0.5,), (0.5,)], 0.1, "±0.5, 1.0 apart"),
    "three modes": Mixture(((-0.7,), (0.0,), (0.7,)), 0.1, (0.5, 0.2, 0.3), "-0.7, 0, 0.7 (50, 20, 30 %)"),
    "ring": even(RING, 0.05, "2-D, eight on a circle, 0.54 apart"),
    "checker": even(CHECKER, 0.1, "2-D, corners and centre, 0.99 apart"),
}


class ExactScore:
    """The noise prediction that is right for a mixture: E[eps | a_t], from E[a_0 | a_t] in closed form."""

    def __init__(self, mixture: Mixture, sde: edq.MeanRevertingSDE):
        self.sde, self.act_dim, self.std = sde, mixture.act_dim, mixture.std
        self.means, self.log_weights = torch.tensor(mixture.means), torch.tensor(mixture.weights).log()

    def __call__(self, a_t: Tensor, t: int, obs: Tensor) -> Tensor:
        """a_t `[..., A]` -> `[..., A]`; -sigma_t times the gradient of log p(a_t)."""
        keep, sigma = torch.exp(-self.sde.theta_bar[t]), self.sde.sigma[t]
        var = (keep * self.std) ** 2 + sigma**2  # of a_t given the mode
        distance = (a_t.unsqueeze(-2) - keep * self.means).square().sum(-1)  # [..., modes]
        mean = torch.softmax(self.log_weights - distance / (2 * var), -1) @ self.means
        a0 = mean + keep * self.std**2 / var * (a_t - keep * mean)
        return (a_t - keep * a0) / sigma


class TrainedScores:
    """N trained networks as one: a_t is `[N, ..., A]`."""

    def __init__(self, params: dict[str, Tensor], buffers: dict[str, Tensor], act_dim: int):
        self.state, self.act_dim, self.base = (params, buffers), act_dim, skeleton(act_dim)

    def __call__(self, a_t: Tensor, t: int | Tensor, obs: Tensor) -> Tensor:
        axis = None if isinstance(t, int) else 0
        call = vmap(lambda p, b, *x: functional_call(self.base, (p, b), x), in_dims=(0, 0, 0, axis, 0))
        return call(*self.state, a_t, t, obs)

    def part(self, rows: slice) -> "TrainedScores":
        return TrainedScores(*({k: v[rows] for k, v in x.items()} for x in self.state), self.act_dim)


def skeleton(act_dim: int) -> edq.ScoreMLP:
    """A network without weights, to be called with those of others."""
    return edq.ScoreMLP(0, act_dim, HIDDEN).to("meta")


_compiled: dict[int, Callable] = {}


def loss_and_gradient(act_dim: int, example: tuple, compiled: bool) -> Callable:
    """(params, buffers, a_t, t, eps) -> gradients, (sum of losses, losses); the noise loss of N networks at once."""

    def loss(params: dict, buffers: dict, a_t: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        eps_hat = TrainedScores(params, buffers, act_dim)(a_t, t, a_t[..., :0])
        one = vmap(lambda e, e_hat: edq.diffusion_loss(None, None, None, None, e, e_hat, "noise"))
        losses = one(eps, eps_hat)
        return losses.sum(), losses

    function = grad_and_value(loss, has_aux=True)
    if not compiled:
        return function
    if act_dim not in _compiled:  # flattened first: torch.compile does not see through vmap and grad
        _compiled[act_dim] = torch.compile(make_fx(function)(*example))
    return _compiled[act_dim]


def train(mixtures: list[Mixture], sde: edq.MeanRevertingSDE, seeds: range, updates: int = UPDATES,
          compiled: bool = True) -> tuple[TrainedScores, Tensor]:  # fmt: skip
    """Networks for every mixture (all of one dimension) and seed, `[mixtures * seeds]`, and losses `[updates, N]`."""
    act_dim, nets = mixtures[0].act_dim, []
    for seed in [seed for _ in mixtures for seed in seeds]:
        torch.manual_seed(seed)
        nets.append(edq.ScoreMLP(0, act_dim, HIDDEN))
    params, buffers = stack_module_state(nets)
    # Not fused: fused Adam reads gradients in memory order, and those out of vmap have other strides than the weights.
    optimiser = torch.optim.Adam(params.values(), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    g, shape = torch.Generator().manual_seed(0), (updates, len(seeds), BATCH)
    a0 = torch.cat([m.sample(math.prod(shape), g).reshape(*shape, act_dim) for m in mixtures], 1)
    t, eps = torch.randint(sde.num_steps, a0.shape[:-1], generator=g), torch.randn(a0.shape, generator=g)
    a_t = sde.perturb(a0, t, eps)
    function = loss_and_gradient(act_dim, (params, buffers, a_t[0], t[0], eps[0]), compiled)
    history = []
    for batch in zip(a_t, t, eps):
        gradients, (_, losses) = function(params, buffers, *batch)
        for name, param in params.items():
            param.grad = gradients[name]
        optimiser.step()
        schedule.step()
        history.append(losses.detach())
    return TrainedScores({k: v.detach() for k, v in params.items()}, buffers, act_dim), torch.stack(history)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def held_out_loss(
    score: TrainedScores, mixture: Mixture, sde: edq.MeanRevertingSDE, seeds: range
) -> tuple[Tensor, Tensor]:
    """Noise loss of trained networks and of the exact one on fresh data, `[seeds]` each."""
    g, shape = seeded(3000), (len(seeds), SAMPLES)
    a0 = mixture.sample(math.prod(shape), g).reshape(*shape, mixture.act_dim)
    eps, t = torch.randn(a0.shape, generator=g), torch.arange(SAMPLES) % sde.num_steps
    a_t = sde.perturb(a0, t, eps)
    exact, best = ExactScore(mixture, sde), torch.empty_like(eps)
    for i in range(sde.num_steps):
        best[:, t == i] = exact(a_t[:, t == i], i, None)
    mean = (1, 2)
    hat = score(a_t, t.expand(shape), a_t[..., :0])
    return (hat - eps).square().mean(mean), (best - eps).square().mean(mean)


def draw_noise(num_steps: int, act_dim: int, seeds: range) -> Tensor:
    """What a sampler uses up, `[T, seeds, n, A]`; the same for every sampler."""
    return torch.stack([torch.randn(num_steps, SAMPLES, act_dim, generator=seeded(s)) for s in seeds], 1)


@torch.no_grad()
def run_samplers(score: Callable, sde: edq.MeanRevertingSDE, noise: Tensor) -> dict[str, Tensor]:
    """Samples `[seeds, n, A]` of each sampler, and of the posterior sampler without the clamp on a_0."""
    obs = noise[0, ..., :0]
    out = {s: edq.sample_actions(score, sde, obs, s, noise=noise) for s in SAMPLERS}
    return out | {"unclipped": edq.sample_actions(score, sde, obs, "posterior", action_clip=False, noise=noise)}


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein distance of two samples `[n, A]`; in 2-D the mean over 50 directions."""
    if x.shape[1] == 1:
        from scipy.stats import wasserstein_distance

        return float(wasserstein_distance(x[:, 0], y[:, 0]))
    from ot import sliced_wasserstein_distance

    return float(sliced_wasserstein_distance(x, y, n_projections=50, p=1, seed=0))


def mode_of(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The nearest mode of each sample and how far it is, `[n]`."""
    far, mode = torch.cdist(x, torch.tensor(mixture.means)).min(1)
    return mode, far


def between(x: Tensor, mixture: Mixture) -> float:
    """Share of samples farther than three std from every mode."""
    return float((mode_of(x, mixture)[1] > 3 * mixture.std).float().mean())


def mode_std(x: Tensor, mixture: Mixture, mode: int) -> tuple[float, float]:
    """Std and share of the samples nearest to a mode (1-D)."""
    mine = x[mode_of(x, mixture)[0] == mode]
    return float(mine.std()) if len(mine) > 1 else 0.0, len(mine) / len(x)


def compare(about: dict, out: dict[str, Tensor], mixture: Mixture, data: list[Tensor], seeds: range) -> list[dict]:
    """One row a seed: distance to the data of each sampler and samples between the modes."""
    rows = []
    for i, seed in enumerate(seeds):
        row = about | {"seed": seed}
        row |= {k: round(distance(x[i].numpy(), data[seed].numpy()), 4) for k, x in out.items()}
        row |= {f"between_{s}": round(between(out[s][i], mixture), 4) for s in SAMPLERS}
        rows.append(row)
    return rows


def compare_modes(about: dict, out: dict[str, Tensor], mixture: Mixture, seeds: range) -> list[dict]:
    """One row a seed and mode: std and share of that mode in what each sampler draws."""
    rows = []
    for mode, (i, seed) in product(range(len(mixture.means)), enumerate(seeds)):
        stats = {s: mode_std(out[s][i], mixture, mode) for s in SAMPLERS}
        row = about | {"mode": mixture.means[mode][0], "seed": seed}
        row |= {f"std_{s}": round(std, 4) for s, (std, _) in stats.items()}
        rows.append(row | {f"share_{s}": round(share, 4) for s, (_, share) in stats.items()})
    return rows


def histogram(about: dict, out: dict[str, Tensor], data: Tensor) -> list[dict]:
    """Counts over all seeds; bins without a sample have no row."""
    edges = np.linspace(-1, 1, BINS + 1)
    columns = {"data": data} | {s: out[s] for s in SAMPLERS}
    counts = {k: np.histogram(x.numpy(), edges)[0] for k, x in columns.items()}
    rows = [about | {"low": round(float(edges[i]), 3)} | {k: int(c[i]) for k, c in counts.items()} for i in range(BINS)]
    return [row for row in rows if any(row[k] for k in counts)]


def points(about: dict, out: dict[str, Tensor]) -> list[dict]:
    """The first samples of seed 0, to the pixel."""
    rows = []
    for i in range(POINTS):
        xy = {f"{axis}_{s}": round(float(out[s][0, i, j]), 2) for s in SAMPLERS for j, axis in enumerate("xy")}
        rows.append(about | xy)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    started, rows = time.time(), defaultdict(list)
    data = {k: [m.sample(SAMPLES, seeded(1000 + s)) for s in EXACT_SEEDS] for k, m in MIXTURES.items()}
    for name, mixture in MIXTURES.items():
        for seed in EXACT_SEEDS:
            other = mixture.sample(SAMPLES, seeded(2000 + seed))
            floor = round(distance(other.numpy(), data[name][seed].numpy()), 4)
            row = {"distribution": name, "seed": seed, "floor": floor}
            rows["floor"].append(row | {"between": round(between(other, mixture), 4)})

    def evaluate(network: str, schedule: str, name: str, score: Callable, noise: Tensor, seeds: range) -> None:
        mixture, sde = MIXTURES[name], sdes[schedule, noise.shape[0]]
        out = run_samplers(score, sde, noise)
        key = {"network": network, "distribution": name}
        rows[""] += compare(key | {"schedule": schedule, "T": len(noise)}, out, mixture, data[name], seeds)
        key["T"] = len(noise)
        if schedule == "cosine" and mixture.act_dim == 1:
            rows["modes"] += compare_modes(key, out, mixture, seeds)
            if network == "exact" and len(noise) in SHOWN:
                rows["histograms"] += histogram({"distribution": name, "T": len(noise)}, out, torch.cat(data[name]))
        elif schedule == "cosine" and network == "exact" and len(noise) in SHOWN:
            rows["points"] += points({"distribution": name, "T": len(noise)}, out)

    sdes = {(s, T): edq.MeanRevertingSDE(T, s) for s, T in product(SCHEDULES, STEPS)}
    for T, act_dim in product(STEPS, (1, 2)):
        noise = draw_noise(T, act_dim, EXACT_SEEDS)
        for (name, mixture), schedule in product(MIXTURES.items(), SCHEDULES):
            if mixture.act_dim == act_dim:
                evaluate("exact", schedule, name, ExactScore(mixture, sdes[schedule, T]), noise, EXACT_SEEDS)
    print(f"exact networks: {time.time() - started:.0f} s", flush=True)

    count = len(TRAINED_SEEDS)
    for (schedule, T), sde in sdes.items():
        if schedule != "cosine" and T != 5:
            continue
        for act_dim in (1, 2):
            names = [k for k, m in MIXTURES.items() if m.act_dim == act_dim]
            scores, _ = train([MIXTURES[k] for k in names], sde, TRAINED_SEEDS)
            noise = draw_noise(T, act_dim, TRAINED_SEEDS)
            for i, name in enumerate(names):
                score = scores.part(slice(i * count, (i + 1) * count))
                evaluate("trained", schedule, name, score, noise, TRAINED_SEEDS)
                for seed, loss, least in zip(TRAINED_SEEDS, *held_out_loss(score, MIXTURES[name], sde, TRAINED_SEEDS)):
                    row = {"distribution": name, "schedule": schedule, "T": T, "seed": seed}
                    rows["training"].append(row | {"loss": float(loss), "exact_loss": float(least)})
        print(f"trained networks, {schedule}, T = {T}: {time.time() - started:.0f} s", flush=True)

    about = dict(exact_seeds=list(EXACT_SEEDS), trained_seeds=list(TRAINED_SEEDS), samples=SAMPLES)
    about |= dict(updates=UPDATES, batch=BATCH, hidden=HIDDEN, lr=LR)
    for kind, table in rows.items():
        write_record(RECORDS / f"samplers{kind and '-'}{kind}.csv", table, started, **about)


def load(records: Path, kind: str = "") -> list[dict]:
    return read_record(records / f"samplers{kind and '-'}{kind}.csv")[1]


def pick(rows: list[dict], **where: object) -> list[dict]:
    return [row for row in rows if all(row[k] == v for k, v in where.items())]


def mean_std(rows: list[dict], column: str) -> tuple[float, float]:
    """Over seeds."""
    values = np.array([row[column] for row in rows])
    return float(values.mean()), float(values.std(ddof=1))


def show(rows: list[dict], column: str) -> str:
    mean, std = mean_std(rows, column)
    return f"{mean:.3f} ± {std:.3f}"


def tables(records: Path) -> dict[str, str]:
    """Markdown tables by name; mean and std over seeds."""
    rows, floor, modes = load(records), load(records, "floor"), load(records, "modes")
    training, out = load(records, "training"), {}
    floors = {name: mean_std(pick(floor, distribution=name), "floor")[0] for name in MIXTURES}

    head = ["distribution", "sampler", *(f"T = {T}" for T in STEPS), "noise floor"]
    for network in ("exact", "trained"):
        body = []
        for name, sampler in product(MIXTURES, SAMPLERS):
            mine = pick(rows, network=network, distribution=name, schedule="cosine")
            line = [show(pick(mine, T=T), sampler) for T in STEPS]
            body.append([name, sampler, *line, f"{floors[name]:.3f}"])
        out[f"samplers-distance-{network}"] = markdown(head, body)

    body = []
    for network, (name, mixture) in product(("exact", "trained"), MIXTURES.items()):
        mine = pick(rows, network=network, distribution=name, schedule="cosine")
        reach = [str(first_step(mine, sampler, 2 * floors[name])) for sampler in SAMPLERS]
        coarse = [str(first_step(mine, sampler, 0.05)) for sampler in SAMPLERS]
        body.append([network, name, mixture.about, f"{floors[name]:.3f}", *reach, *coarse])
    head = ["network", "distribution", "modes at", "noise floor", *(f"{s}, twice the floor" for s in SAMPLERS)]
    out["samplers-reach"] = markdown([*head, *(f"{s}, 0.05" for s in SAMPLERS)], body)

    body = []
    for network, name in product(("exact", "trained"), (k for k, m in MIXTURES.items() if m.act_dim == 1)):
        mine = pick(modes, network=network, distribution=name, T=5)
        for (mean,), weight in zip(MIXTURES[name].means, MIXTURES[name].weights):
            mode = pick(mine, mode=round(mean, 4))
            stds = [f"{mean_std(mode, f'std_{s}')[0]:.3f}" for s in SAMPLERS]
            shares = [f"{100 * mean_std(mode, f'share_{s}')[0]:.0f}" for s in SAMPLERS]
            body.append([network, name, f"{mean:g}", f"{MIXTURES[name].std:g}", *stds, f"{100 * weight:.0f}", *shares])
    head = ["network", "distribution", "mode", "std, data", *(f"std, {s}" for s in SAMPLERS)]
    out["samplers-modes"] = markdown([*head, "share in %, data", *(f"share in %, {s}" for s in SAMPLERS)], body)

    body = []
    for network, name in product(("exact", "trained"), MIXTURES):
        data = 100 * mean_std(pick(floor, distribution=name), "between")[0]
        line = []
        for T in (5, 50):
            mine = pick(rows, network=network, distribution=name, schedule="cosine", T=T)
            line += [f"{100 * mean_std(mine, f'between_{s}')[0]:.1f}" for s in SAMPLERS]
        body.append([network, name, f"{data:.1f}", *line])
    head = ["network", "distribution", "data", *(f"{s}, T = {T}" for T in (5, 50) for s in SAMPLERS)]
    out["samplers-between"] = markdown(head, body)

    mine = pick(modes, distribution="one mode")
    body = [
        [network, sampler, *(f"{mean_std(pick(mine, network=network, T=T), f'std_{sampler}')[0]:.4f}" for T in STEPS)]
        for network, sampler in product(("exact", "trained"), SAMPLERS)
    ]
    out["samplers-narrowing"] = markdown(["network", "sampler", *(f"T = {T}" for T in STEPS)], body)

    body = []
    for network, name, sampler in product(("exact", "trained"), MIXTURES, SAMPLERS):
        mine = pick(rows, network=network, distribution=name, T=5)
        body.append([network, name, sampler, *(show(pick(mine, schedule=s), sampler) for s in SCHEDULES)])
    out["samplers-schedules"] = markdown(["network", "distribution", "sampler", *SCHEDULES], body)

    body = []
    for name, column in product(MIXTURES, ("posterior", "unclipped")):
        mine = pick(rows, network="trained", distribution=name, schedule="cosine")
        body.append([name, "on" if column == "posterior" else "off", *(show(pick(mine, T=T), column) for T in STEPS)])
    out["samplers-clip"] = markdown(["distribution", "action_clip", *(f"T = {T}" for T in STEPS)], body)

    body = []
    for name in MIXTURES:
        mine = pick(training, distribution=name, schedule="cosine")
        cells = [[mean_std(pick(mine, T=T), k)[0] for k in ("loss", "exact_loss")] for T in STEPS]
        body.append([name, *(f"{trained:.4f} / {exact:.4f}" for trained, exact in cells)])
    out["samplers-training"] = markdown(["distribution", *(f"T = {T}" for T in STEPS)], body)
    return out


def first_step(rows: list[dict], sampler: str, threshold: float) -> str:
    """Smallest T whose mean distance is at most `threshold`."""
    good = [T for T in STEPS if mean_std(pick(rows, T=T), sampler)[0] <= threshold]
    return str(good[0]) if good else f"> {STEPS[-1]}"


TITLES = {
    "distance": "On one mode two posterior steps are at least 7 times nearer than two Euler steps; on several\n"
    "modes Euler steps are nearer at T = 5, and all samplers are within 0.07 from T = 20 on (cosine)",
    "schedules": "Posterior sampler, exact networks: at T = 5 the linear schedule is nearest,\n"
    "but cosine is where a mode lies in the middle (three modes, checker)",
    "modes": "Five steps find one mode, too narrow, and blur several; fifty steps keep all modes\n"
    "(exact networks, cosine; high peaks are cut)",
    "points": "Five posterior steps fill the space between the modes, fifty keep them apart\n"
    "(exact networks, cosine; grey: two std around each mode)",
}
COLOURS = {"posterior": "#0072B2", "sde": "#D55E00", "ode": "#009E73"}  # told apart by colour-blind readers
SCHEDULE_COLOURS = dict(zip(SCHEDULES, ("#0072B2", "#E69F00", "#CC79A7", "#000000")))
LABELS = {"posterior": "posterior", "sde": "Euler, reverse SDE", "ode": "Euler, ODE"}


def figures(records: Path, out: Path) -> None:
    """samplers.png, samplers-modes.png, samplers-points.png and samplers-schedules.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, floor = load(records), load(records, "floor")
    floors = {name: mean_std(pick(floor, distribution=name), "floor")[0] for name in MIXTURES}
    out.mkdir(parents=True, exist_ok=True)

    def save(figure: plt.Figure, name: str) -> None:
        figure.savefig(out / name, dpi=100, metadata={"Software": None})
        plt.close(figure)

    def panels() -> tuple[plt.Figure, dict[str, plt.Axes]]:
        """One panel a distribution, distance against T, with its noise floor."""
        figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharex=True, sharey=True, layout="constrained")
        axes = dict(zip(MIXTURES, axes.flat))
        for name, ax in axes.items():
            ax.set(xscale="log", yscale="log", ylim=(0.002, 1.2))
            ax.set_title(f"{name}\n{MIXTURES[name].about}", fontsize=10)
            ax.set_xticks(STEPS, [str(T) for T in STEPS])
            ax.minorticks_off()
            ax.axhline(floors[name], color="grey", ls=":", label="noise floor")
            ax.axvline(5, color="grey", lw=0.5)
            ax.grid(alpha=0.25)
        for ax in list(axes.values())[3:]:
            ax.set_xlabel("T, steps of the sampler", fontsize=10)
        figure.supylabel("Wasserstein distance to the data (sliced in 2-D)", fontsize=10)
        return figure, axes

    def line(ax: plt.Axes, mine: list[dict], column: str, **style: object) -> None:
        """Mean over seeds, and the range of the seeds."""
        values = np.array([[row[column] for row in pick(mine, T=T)] for T in STEPS])
        (drawn,) = ax.plot(STEPS, values.mean(1), marker="o", ms=3, lw=1.4, **style)
        ax.fill_between(STEPS, values.min(1), values.max(1), color=drawn.get_color(), alpha=0.18, lw=0)

    figure, axes = panels()
    for (name, ax), sampler, network in product(axes.items(), SAMPLERS, ("exact", "trained")):
        mine = pick(rows, network=network, distribution=name, schedule="cosine")
        label = f"{LABELS[sampler]}, {network}"
        line(ax, mine, sampler, color=COLOURS[sampler], ls="-" if network == "exact" else "--", label=label)
    handles, labels = axes["one mode"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(TITLES["distance"], fontsize=12)
    save(figure, "samplers.png")

    figure, axes = panels()
    for (name, ax), schedule in product(axes.items(), SCHEDULES):
        mine = pick(rows, network="exact", distribution=name, schedule=schedule)
        line(ax, mine, "posterior", color=SCHEDULE_COLOURS[schedule], label=schedule)
    handles, labels = axes["one mode"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle(TITLES["schedules"], fontsize=12)
    save(figure, "samplers-schedules.png")

    counts = load(records, "histograms")
    names = [k for k, m in MIXTURES.items() if m.act_dim == 1]
    figure, axes = plt.subplots(
        len(names), len(SHOWN), figsize=(12, 8), sharex=True, sharey="row", layout="constrained"
    )
    for (i, name), (j, T) in product(enumerate(names), enumerate(SHOWN)):
        ax, mine = axes[i, j], {row["low"]: row for row in pick(counts, distribution=name, T=T)}
        edges = np.linspace(-1, 1, BINS + 1)
        data = [mine.get(round(float(x), 3), {}) for x in edges[:-1]]
        density = {k: np.array([row.get(k, 0) for row in data], float) for k in ("data", *SAMPLERS)}
        density = {k: v / v.sum() / (edges[1] - edges[0]) for k, v in density.items()}
        ax.stairs(density["data"], edges, fill=True, color="0.8", label="data")
        for sampler in SAMPLERS:
            ax.stairs(density[sampler], edges, color=COLOURS[sampler], lw=1.2, label=LABELS[sampler])
        ax.set_ylim(0, 2.2 * density["data"].max())
        ax.set_yticks([])
        if i == 0:
            ax.set_title(f"T = {T}", fontsize=11)
        if j == 0:
            ax.set_ylabel(name, fontsize=11)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    for ax in axes[-1]:
        ax.set_xlabel("action", fontsize=10)
    figure.suptitle(TITLES["modes"], fontsize=12)
    save(figure, "samplers-modes.png")

    drawn, names = load(records, "points"), [k for k, m in MIXTURES.items() if m.act_dim == 2]
    lines = list(product(names, SAMPLERS))
    figure, axes = plt.subplots(len(lines), len(SHOWN), figsize=(9, 11), sharex=True, sharey=True, layout="constrained")
    for (i, (name, sampler)), (j, T) in product(enumerate(lines), enumerate(SHOWN)):
        ax, mine = axes[i, j], pick(drawn, distribution=name, T=T)
        for mean in MIXTURES[name].means:
            ax.add_patch(plt.Circle(mean, 2 * MIXTURES[name].std, color="0.85", lw=0))
        xy = np.array([[row[f"x_{sampler}"], row[f"y_{sampler}"]] for row in mine])
        ax.scatter(*xy.T, s=4, color=COLOURS[sampler], lw=0, zorder=2)
        ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xticks=[], yticks=[])
        if i == 0:
            ax.set_title(f"T = {T}", fontsize=11)
        if j == 0:
            ax.set_ylabel(f"{name}\n{LABELS[sampler]}", fontsize=9)
    figure.suptitle(TITLES["points"], fontsize=12)
    save(figure, "samplers-points.png")


if __name__ == "__main__":
    main()
