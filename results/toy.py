"""The paper's toy task (Fig. 1): do an entropy term and a Q-ensemble find the rich hill that the data seldom visit?

    OMP_NUM_THREADS=1 python results/toy.py        # half an hour on one thread of a busy two-core machine

A point at 0 moves by its action, twice; the reward is a mixture of two Gaussians over where it arrives (`stacked.py`;
the paper gives no numbers). Of 320 episodes an eighth goes to the rich hill, the others to the poor one, and from there
the rich one is out of reach: the first action decides. Everything is learned from these 640 transitions, Q included, by
the scripts' own `td_target`, `critic_loss` and `actor_losses`; ten seeds are trained at once, each with its own data.
Five diffusion steps have a price before anything is learned: even the exact network sends only 5 % of the first actions
to the rich hill, where the data have 12 %, and 14 % to places without data.

Methods
  cloning           no Q: what the data alone teach (for reference, not in the paper's figure)
  diffusion policy  M = 2 critics, the smaller one in target and actor, as Diffusion-QL has it; no entropy term
  + entropy         the same with the entropy term of an estimator (`entropy.py` says what each is)
  + Q-ensemble      M = 16, each its own target, the actor climbs mean - 4 std; no entropy term
  + both

Small networks and 500 passes over the data, 5,000 updates, stand for the paper's 500 epochs. So some settings are not
the scripts': 64 units a layer for the policy and 32 for a critic, batch 64, Adam rates 1e-3 and 3e-3, eta 0.1 (with 1
both methods leave the data), and the averaged actor follows in every update from the first on (rate 0.005); the scripts
wait 1,000 updates and then take each fifth. These were chosen in short trials of cloning and of the methods without an
entropy term (and one of `chain`, with eta 1). The weights of the entropy terms were fixed before the run, the same for
all seeds: the authors' 0.01 where the term is scaled as theirs, else 0.03 (chain, chainJ, logdet) or 0.1.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad_and_value, vmap

sys.path.insert(0, str(Path(__file__).resolve().parent))
import entropy
import stacked
from record import RECORDS, markdown, read_record, write_record
from stacked import edq

SEEDS, EPISODES, EPOCHS, BATCH = list(range(10)), 320, 500, 64
HIDDEN, CRITIC_HIDDEN, LR, CRITIC_LR, AVERAGE = 64, 32, 1e-3, 3e-3, 0.005  # AVERAGE: rate of the averaged actor
EVERY, LONG = 25, 256  # epochs between evaluations; episodes of the last one
ACTING = {"one": 1, "softmax": 50, "argmax": 50}  # K
CURVES = {"one": 64, "softmax": 32}  # episodes of an evaluation on the way
BARS = 80  # bins of a law over the action box
BASE = edq.Args(batch_size=BATCH, diffusion_loss="noise", action_clip=True, precision="fp32", entropy_estimator="none")
BASE = replace(BASE, actor_lr=LR, critic_lr=CRITIC_LR, hidden_dim=HIDDEN, ema_decay=1 - AVERAGE, eta=0.1)
PAIR, ENSEMBLE = replace(BASE, num_critics=2, pessimism="min", target="min"), replace(BASE, num_critics=16)
COEFS = {"none": 0.0, "released": 0.01, "bridge": 0.01, "quad": 0.01, "score": 0.1}
COEFS |= {"chain": 0.03, "chainJ": 0.03, "logdet": 0.03, "gmm": 0.1, "pathkl": 0.1}
ESTIMATORS = list(COEFS)[1:]
METHODS = {"cloning": replace(PAIR, eta=0.0), "diffusion policy": PAIR, "+ entropy": PAIR}
METHODS |= {"+ Q-ensemble": ENSEMBLE, "+ both": ENSEMBLE}
ARMS = [("cloning", "none"), ("diffusion policy", "none"), ("+ Q-ensemble", "none")]
ARMS += list(product(("+ entropy", "+ both"), ESTIMATORS))
START, END = (0.0, 0.0), 1.0  # observation before the first step; number of the last step


# === Data and training. N models (seeds), B batch, M critics, E episodes, K candidates ================================
def transitions(seed: int) -> edq.Transitions:
    """A seed's dataset, `[2 * EPISODES, ...]`: all first steps, then the second ones of the same episodes."""
    obs, action = stacked.toy_data(torch.Generator().manual_seed(seed), 2 * EPISODES)
    next_obs = torch.stack([obs[:, 0] + action[:, 0], obs[:, 1] + 1], -1)
    return edq.Transitions(obs, action, stacked.toy_reward(next_obs[:, 0]), next_obs, (obs[:, 1] == END).float())


def batches(seeds: list[int], T: int) -> Iterator[tuple[edq.Transitions, edq.Noise]]:
    """Endless batches `[N, B, ...]` and noise of an update; the batches of an epoch are one pass over the data."""
    data = edq.Transitions(*(torch.stack(x) for x in zip(*map(transitions, seeds))))
    updates, rows = 2 * EPISODES // BATCH, torch.arange(len(seeds)).unsqueeze(-1)
    shapes = [(T, BATCH, 1), (BATCH, 1), (BATCH, 1), (T + 1, BATCH, 1)]

    def draw(g: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randperm(2 * EPISODES, generator=g).view(updates, BATCH)
        t = torch.randint(T, (updates, BATCH), generator=g)
        target, *others = (torch.randn(updates, *shape, generator=g) for shape in shapes)
        return index, target, t, *others

    for epoch in stacked.seeded(seeds, draw):
        for index, *noise in zip(*(x.unbind(1) for x in epoch)):
            yield edq.Transitions(*(x[rows, index] for x in data)), edq.Noise(*noise)


def view(nets: dict, weights: dict, extra: dict, sde: edq.MeanRevertingSDE) -> SimpleNamespace:
    """What the scripts' losses read of an `Agent`, for one model: modules with the weights of its row."""
    of = {"score": "score", "score_ema": "score", "q": "q", "target_q": "q", "clone": "score"}
    agent = SimpleNamespace(sde=sde, alpha=None, chain_std=0.2, noise_std=extra.get("noise_std"))
    for name, w in (weights | {k: x for k, x in extra.items() if k == "clone"}).items():
        setattr(agent, name, stacked.Net(nets[of[name]], w))
    return agent


class Models:
    """N models of one method and estimator, trained at once. `state`: weights of score, score_ema, q, target_q."""

    def __init__(self, args: edq.Args, estimator: str, seeds: list[int], clone: dict[str, Tensor] | None = None):
        self.args, self.estimator, self.seeds = args, estimator, seeds
        self.sde, self.coef = edq.MeanRevertingSDE(args.num_diffusion_steps), COEFS[estimator]
        score, score_weights = stacked.stack(lambda: edq.ScoreMLP(2, 1, HIDDEN), seeds, 1)
        q, q_weights = stacked.stack(lambda: edq.QEnsemble(2, 1, args.num_critics, CRITIC_HIDDEN), seeds, 1)
        self.nets = {"score": score, "q": q}
        self.state = {"score": score_weights, "q": q_weights}
        for average, net in (("score_ema", "score"), ("target_q", "q")):
            self.state[average] = {k: w.clone() for k, w in self.state[net].items()}
        rates = {"q": args.critic_lr, "score": args.actor_lr}
        self.optimisers = {k: torch.optim.Adam(self.state[k].values(), lr=lr, fused=True) for k, lr in rates.items()}
        self.extra = {"clone": clone} if estimator == "pathkl" else {}
        if estimator == "gmm":
            self.start_noise()
        self.steps = {"q": self.critic_step, "score": self.actor_step}

    def critic_step(self, q, state, extra, batch, noise):
        """Gradients and critic loss `[N]`."""

        def loss(q, state, extra, batch, noise):
            agent, batch = view(self.nets, state | {"q": q}, extra, self.sde), edq.Transitions(*batch)
            target = edq.td_target(agent, batch, edq.Noise(*noise).target, self.args)
            return edq.critic_loss(agent, batch, target)["losses/critic"]

        return vmap(grad_and_value(loss))(q, state, extra, batch, noise)

    def actor_step(self, score, state, extra, batch, noise):
        """Gradients and actor loss `[N]`."""

        def loss(score, state, extra, batch, noise):
            agent = view(self.nets, state | {"score": score}, extra, self.sde)
            batch, noise = edq.Transitions(*batch), edq.Noise(*noise)
            losses = edq.actor_losses, self.estimator, agent, batch, noise, self.args, self.coef
            return entropy.arm_losses(*losses)["losses/actor"]

        return vmap(grad_and_value(loss))(score, state, extra, batch, noise)

    def compile(self, batch: edq.Transitions, noise: edq.Noise) -> None:
        """Fuse both steps; worth its seconds for thousands of updates."""

        def fused(net: str, step: Callable) -> Callable:
            example = (self.state[net], self.state, self.extra, tuple(batch), tuple(noise))
            return stacked.compiled(lambda weights, *inputs: step(weights, *inputs), *example)

        self.steps = {net: fused(net, step) for net, step in self.steps.items()}

    def update(self, batch: edq.Transitions, noise: edq.Noise) -> None:
        """Critics, then the actor with the new critics, then averages: the order of the scripts' `update`."""
        for net, optimiser in self.optimisers.items():
            grads, _ = self.steps[net](self.state[net], self.state, self.extra, tuple(batch), tuple(noise))
            stacked.clip_rows(grads, self.args.grad_clip)
            for name, weight in self.state[net].items():
                weight.grad = grads[name].contiguous()  # fused Adam takes gradients in the order of memory
            optimiser.step()
            optimiser.zero_grad()
        for average, net, rate in (("score_ema", "score", 1 - self.args.ema_decay), ("target_q", "q", self.args.tau)):
            torch._foreach_lerp_([*self.state[average].values()], [*self.state[net].values()], rate)

    def start_noise(self) -> None:
        """gmm: the std of the acting noise starts at 3 coef and is changed a hundred times in a run."""
        self.log_alpha = torch.full((len(self.seeds),), 3.0).log().requires_grad_()
        self.noise_adam, self.noise_g = torch.optim.Adam([self.log_alpha], lr=0.03), torch.Generator().manual_seed(2)
        self.extra["noise_std"] = self.coef * self.log_alpha.detach().exp()

    def adapt_noise(self) -> None:
        """gmm: less noise where the entropy of 200 actions in the first state is above -0.9 nats, else more."""
        obs, g = torch.tensor(START).expand(200, -1), self.noise_g
        action = entropy.sample(self.nets["score"], self.state["score"], obs, g)  # [N, 200, 1]
        action = action + self.extra["noise_std"].view(-1, 1, 1) * torch.randn(action.shape, generator=g)
        fitted = [entropy.mixture_entropy(a) for a in action.clamp(-1, 1).numpy()]
        self.log_alpha.grad = torch.tensor(fitted, dtype=torch.float32) + 0.9
        self.noise_adam.step()
        self.extra["noise_std"].copy_(self.coef * self.log_alpha.detach().exp())


# === Measuring =======================================================================================================
def choose(agent, obs: Tensor, noise: Tensor, u: Tensor, extra: Tensor, args: edq.Args, acting: str) -> Tensor:
    """The scripts' `act` with noise added to the candidates: obs `[E, 2]`, noise `[T, E, K, 1]`, extra `[E, K, 1]`."""
    E, K = noise.shape[1:3]
    rows = obs.unsqueeze(1).expand(E, K, -1)
    candidates = (edq.sample_actions(agent.score, agent.sde, rows, noise=noise) + extra).clamp(-1, 1)
    if K == 1:
        return candidates[:, 0]
    q = agent.target_q(rows.flatten(0, 1), candidates.flatten(0, 1)).unflatten(1, (E, K))  # [M, E, K]
    value = q.amin(0) if args.pessimism == "min" else edq.lower_confidence_bound(q, args.lcb_coef)
    choice = value.argmax(1)
    if acting == "softmax":
        choice = (value.softmax(1).cumsum(1) < u.unsqueeze(1)).sum(1).clamp(max=K - 1)
    return candidates.gather(1, choice.view(E, 1, 1)).squeeze(1)


@torch.no_grad()
def returns(models: Models, acting: str, episodes: int) -> Tensor:
    """Mean return `[N]` of that many episodes; the noise is a seed's own, the same at each call and for all methods."""
    T, K, g = models.sde.num_steps, ACTING[acting], [torch.Generator().manual_seed(20_000 + s) for s in models.seeds]
    noise_std = models.extra.get("noise_std", torch.zeros(len(g)))

    def act(score, target_q, obs, noise, u, extra):
        agent = view(models.nets, {"score": score, "target_q": target_q}, {}, models.sde)
        return choose(agent, obs, noise, u, extra, models.args, acting)

    position, total = torch.zeros(len(g), episodes), torch.zeros(len(g))
    for number in range(2):
        obs = torch.stack([position, torch.full_like(position, number)], -1)
        noise, extra, u = (
            torch.stack([draw(*shape, generator=x) for x in g])
            for draw, shape in (
                (torch.randn, (T, episodes, K, 1)),
                (torch.randn, (episodes, K, 1)),
                (torch.rand, (episodes,)),
            )
        )
        extra = extra * noise_std.view(-1, 1, 1, 1)
        state = models.state["score"], models.state["target_q"]
        action = vmap(act, chunk_size=2)(*state, obs, noise, u, extra)  # [N, E, 1]
        position = position + action.squeeze(-1)
        total = total + stacked.toy_reward(position).mean(1)
    return total


@torch.no_grad()
def first_action(models: Models, i: int) -> tuple[dict[str, float], np.ndarray]:
    """Figures of the first action's law, by quadrature, and its probability in each of BARS bins when clamped."""
    score = stacked.Net(models.nets["score"], {k: w[i] for k, w in models.state["score"].items()})
    last_std = float(models.extra["noise_std"][i]) if "noise_std" in models.extra else 0.0
    law = stacked.action_law(score, models.sde, torch.tensor(START), stacked.BINS, last_std)
    figures = stacked.law_figures(stacked.TASKS["toy"], law)
    centres = (0.5 * (stacked.BINS[1:] + stacked.BINS[:-1])).clamp(-1, 1)
    bars, _ = np.histogram(centres.numpy(), np.linspace(-1, 1, BARS + 1), weights=law.numpy())
    return {k: figures[k] for k in ("entropy", "rare_share", "off_data")}, bars


@torch.no_grad()
def learned_q(models: Models) -> list[dict]:
    """Target critics over the first action: mean, std and bounds, averaged over seeds; the behaviour's true value."""
    action = torch.linspace(-1, 1, BARS + 1).unsqueeze(-1)
    obs = torch.tensor(START).expand(len(action), -1)
    q = vmap(lambda w: stacked.Net(models.nets["q"], w)(obs, action))(models.state["target_q"])  # [N, M, points]
    lcb, least = torch.stack([edq.lower_confidence_bound(x, models.args.lcb_coef) for x in q]), q.amin(1)
    bound = least if models.args.pessimism == "min" else lcb  # what the actor climbs
    columns = {
        "action": action[:, 0],
        "true": stacked.toy_q(obs, action),
        "mean": q.mean((0, 1)),
        "std": q.std(1).mean(0),
    }
    columns |= {"lcb": lcb.mean(0), "min": least.mean(0), "bound": bound.mean(0), "bound_over_seeds": bound.std(0)}
    return [{k: round(float(x[j]), 3) for k, x in columns.items()} for j in range(len(action))]


# === The study =======================================================================================================
def train(models: Models, every: Callable[[int], None]) -> None:
    """EPOCHS passes over the data; `every(epoch)` is called after each EVERY of them."""
    stream = batches(models.seeds, models.sde.num_steps)
    models.compile(*next(stream))
    stream = batches(models.seeds, models.sde.num_steps)
    for epoch in range(1, EPOCHS + 1):
        for _ in range(2 * EPISODES // BATCH):
            models.update(*next(stream))
        if "noise_std" in models.extra and epoch % (EPOCHS // 100) == 0:
            models.adapt_noise()
        if epoch % EVERY == 0:
            every(epoch)


def study(about: dict, models: Models) -> dict[str, list[dict]]:
    """Train and measure one method and estimator: rows of the four records."""
    curves = {acting: [] for acting in CURVES}

    def every(epoch: int) -> None:
        for acting, episodes in CURVES.items():
            curves[acting].append(returns(models, acting, episodes))

    train(models, every)
    final = {acting: returns(models, acting, LONG) for acting in ACTING}
    laws = [first_action(models, i) for i in range(len(models.seeds))]
    runs = []
    for i, (seed, (figures, _)) in enumerate(zip(models.seeds, laws)):
        row = about | {"seed": seed} | {f"return_{k}": float(x[i]) for k, x in final.items()}
        runs.append(row | {f"late_{k}": float(torch.stack(x[-5:])[:, i].mean()) for k, x in curves.items()} | figures)
    lines = []
    for acting, points in curves.items():
        for number, point in enumerate(points, 1):
            row = about | {"acting": acting, "epoch": number * EVERY}
            lines.append(row | {f"seed_{s}": round(float(x), 3) for s, x in zip(models.seeds, point)})
    bars = np.stack([bars for _, bars in laws])  # [N, BARS]
    return {
        "": runs,
        "-curves": lines,
        "-laws": law_rows(about, bars),
        "-q": [about | row for row in learned_q(models)] if models.args.eta > 0 else [],
    }


def law_rows(about: dict, bars: np.ndarray) -> list[dict]:
    """Mean and std over seeds of the first action's probability by bin, bars `[N, BARS]`."""
    lows = np.linspace(-1, 1, BARS + 1)[:-1]
    figures = zip(lows, bars.mean(0), bars.std(0, ddof=1))
    return [
        about | {"low": round(float(a), 3), "mean": round(float(m), 5), "std": round(float(s), 5)}
        for a, m, s in figures
    ]


def of_data(runs_row: dict) -> dict[str, list[dict]]:
    """The datasets themselves, in the columns of a run."""
    about = dict(method="data", estimator="none", coef=0.0)
    runs, bars = [], []
    for seed in SEEDS:
        data = transitions(seed)
        first = data.action[:EPISODES, 0].numpy()
        bars.append(np.histogram(first, np.linspace(-1, 1, BARS + 1))[0] / EPISODES)
        figures = {"return_one": 2 * float(data.reward.mean()), "rare_share": float((first > 0).mean())}
        runs.append(dict.fromkeys(runs_row, "") | about | {"seed": seed} | figures)
    return {"": runs, "-laws": law_rows(about, np.stack(bars))}


def main() -> None:
    torch.set_num_threads(1)
    started, records, clone = time.time(), {"": [], "-curves": [], "-laws": [], "-q": []}, None
    about = dict(seeds=SEEDS, episodes=EPISODES, epochs=EPOCHS, updates=EPOCHS * 2 * EPISODES // BATCH, batch=BATCH)
    about |= dict(hidden=HIDDEN, critic_hidden=CRITIC_HIDDEN, lr=LR, critic_lr=CRITIC_LR, average=AVERAGE)
    about |= dict(tau=BASE.tau, eta=BASE.eta, critics=ENSEMBLE.num_critics, lcb_coef=BASE.lcb_coef)
    about |= dict(curve_episodes=CURVES, final_episodes=LONG)
    for method, estimator in ARMS:
        begun = time.time()
        models = Models(METHODS[method], estimator, SEEDS, clone)
        found = study(dict(method=method, estimator=estimator, coef=COEFS[estimator]), models)
        if method == "cloning":  # the clones are where `pathkl` is drawn to; the data go into the records beside them
            clone = {k: w.detach().clone() for k, w in models.state["score"].items()}
            for kind, rows in of_data(found[""][0]).items():
                records[kind] += rows
        for kind, rows in found.items():
            records[kind] += rows
            if records[kind]:
                write_record(RECORDS / f"toy{kind}.csv", records[kind], started, **about)
        means = {k: float(np.mean([row[k] for row in found[""]])) for k in ("return_one", "return_argmax", "entropy")}
        print(f"{method}, {estimator}: {time.time() - begun:.0f} s, {means}", flush=True)


# === Tables and pictures, from the records alone ======================================================================
ACTED = {"one": "K = 1", "softmax": "K = 50, softmax", "argmax": "K = 50, argmax"}
SHOWN = ("chain", "released")  # estimators in the first picture
COLOURS = {"cloning": "0.55", "diffusion policy": "#000000", "+ entropy": "#E69F00"}
COLOURS |= {"+ Q-ensemble": "#0072B2", "+ both": "#D55E00"}
LINES = [(m, "none", "-") for m in ("cloning", "diffusion policy", "+ Q-ensemble")]
LINES += [(m, e, dash) for m in ("+ entropy", "+ both") for e, dash in zip(SHOWN, ("-", "--"))]


def pick(rows: list[dict], **where: object) -> list[dict]:
    return [row for row in rows if all(row[k] == v for k, v in where.items())]


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def interval(x: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over seeds, 10,000 resamples."""
    index = np.random.default_rng(0).integers(len(x), size=(10_000, len(x)))
    low, high = np.percentile(x[index].mean(1), [2.5, 97.5])
    return float(low), float(high)


def name_of(method: str, estimator: str) -> str:
    return method if estimator == "none" else f"{method} ({estimator})"


def compare(runs: list[dict], estimator: str, acting: str) -> dict:
    """Entropy and ensemble together beside what is left without one of them or both, seed by seed."""
    arms = [("diffusion policy", "none"), ("+ entropy", estimator), ("+ Q-ensemble", "none"), ("+ both", estimator)]
    four = {m: column(pick(runs, method=m, estimator=e), f"return_{acting}") for m, e in arms}
    both = four.pop("+ both")
    rival = max(four, key=lambda m: four[m].mean())
    low, high = interval(both - four[rival])
    stds = sorted([both, *four.values()], key=lambda x: x.std(ddof=1))
    return {
        "rival": rival,
        "gain": float((both - four[rival]).mean()),
        "low": low,
        "high": high,
        "rank": next(i for i, x in enumerate(stds, 1) if x is both),  # of its std, 1 the smallest
        "best": bool(both.mean() > four[rival].mean()),
        "clear": all(interval(both - x)[0] > 0 for x in four.values()),
    }


def listed(names: list[str]) -> str:
    return ", ".join(names) if names else "no estimator"


def verdict(runs: list[dict]) -> str:
    """Whether entropy and ensemble together are best and steadiest, in words, for each way to act."""
    parts, seen = [], []
    for acting, label in ACTED.items():
        found = {e: compare(runs, e, acting) for e in ESTIMATORS}
        best, clear = ([e for e in ESTIMATORS if found[e][k]] for k in ("best", "clear"))
        steady = [e for e in ESTIMATORS if found[e]["rank"] == 1]
        seen += [f"{e} at {label}" for e in clear if e in steady]
        means = {arm: column(pick(runs, method=arm[0], estimator=arm[1]), f"return_{acting}").mean() for arm in ARMS}
        top = max(means, key=means.get)
        parts.append(
            f"Acting with {label}, both together have the highest mean of the four with {listed(best)}, clearly with "
            f"{listed(clear)}, and the smallest std over seeds with {listed(steady)}; the best of all is "
            f"{name_of(*top)}, {means[top]:.2f}, against {means['diffusion policy', 'none']:.2f} of the diffusion "
            f"policy, {means['+ Q-ensemble', 'none']:.2f} with the ensemble, {means['cloning', 'none']:.2f} of cloning."
        )
    claim = f"is seen with {listed(seen)} only" if seen else "is not seen here with any estimator"
    head = (
        f"The paper's claim, entropy and ensemble together best and with the lowest variance, {claim}. (Clearly: the "
        "95 % bootstrap interval of the paired difference over seeds is above 0 against each of the other methods; "
        f"{len(ESTIMATORS) * len(ACTED)} comparisons, not corrected for their number.)"
    )
    return " ".join([head, *parts])


def tables(records: Path) -> dict[str, str]:
    """Returns by method and estimator, both together against the best of the others, and the verdict in words."""
    runs = read_record(records / "toy.csv")[1]

    def spread(rows: list[dict], name: str) -> str:
        x = column(rows, name)
        return f"{x.mean():.2f} ± {x.std(ddof=1):.2f} ({x.min():.2f})"

    data = pick(runs, method="data")
    share = f"{100 * column(data, 'rare_share').mean():.0f}"
    body = [["data", "", "", spread(data, "return_one"), "", "", "", share, "", ""]]
    for method, estimator in sorted(ARMS, key=lambda arm: list(METHODS).index(arm[0])):
        rows = pick(runs, method=method, estimator=estimator)
        line = [method, *(["", ""] if estimator == "none" else [estimator, f"{rows[0]['coef']:g}"])]
        line += [spread(rows, f"return_{acting}") for acting in ACTING] + [f"{column(rows, 'late_one').mean():.2f}"]
        line += [f"{100 * column(rows, k).mean():.0f}" for k in ("rare_share", "off_data")]
        body.append([*line, f"{column(rows, 'entropy').mean():.2f}"])
    head = ["method", "estimator", "coefficient", *ACTED.values(), "K = 1, last five evaluations"]
    out = {"toy-returns": markdown([*head, "rich side in %", "off the data in %", "entropy"], body)}

    body = []
    for estimator in ESTIMATORS:
        line = [estimator]
        for acting in ACTING:
            found = compare(runs, estimator, acting)
            line += [f"{found['gain']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}] to {found['rival']}"]
            line += [f"{found['rank']} of 4"]
        body.append(line)
    head = ["estimator", *(x for label in ACTED.values() for x in (f"{label}: gain", "rank of std"))]
    return out | {"toy-claim": markdown(head, body), "toy-verdict": verdict(runs)}


def figures(records: Path, out: Path) -> None:
    """toy.png: task, learning curves, learned Q, first actions; toy-estimators.png: return by estimator."""
    (about, runs), (_, curves), (_, laws), (_, q) = (
        read_record(records / f"toy{kind}.csv") for kind in ("", "-curves", "-laws", "-q")
    )
    fig = Figure(figsize=(11, 8), dpi=110)
    (task, learning), (value, policy) = fig.subplots(2, 2)

    def density(method: str, estimator: str) -> tuple[np.ndarray, np.ndarray]:
        rows = pick(laws, method=method, estimator=estimator)
        return np.append(column(rows, "low"), 1.0), column(rows, "mean") * BARS / 2

    edges, of_data = density("data", "none")
    x = torch.linspace(-1.2, 1.2, 241)
    task.stairs(of_data, edges, fill=True, color="0.8", label="first actions of the data")
    task.set(xlabel="position (first step: the action)", ylabel="density of the data", ylim=(0, None))
    task.set_title("a. The task", loc="left")
    reward = task.twinx()
    reward.plot(x, stacked.toy_reward(x), color="#009E73", lw=2, label="reward")
    reward.set(ylabel="reward of arriving there", ylim=(0, 1.4))
    handles = [*task.get_legend_handles_labels()[0], *reward.get_legend_handles_labels()[0]]
    task.legend(handles=handles, frameon=False, loc="upper center", fontsize=8)

    seeds = [f"seed_{seed}" for seed in about["seeds"]]
    for method, estimator, dash in LINES:
        rows = pick(curves, method=method, estimator=estimator, acting="one")
        points, epochs = np.array([[row[s] for s in seeds] for row in rows]), column(rows, "epoch")
        half = 2.262 * points.std(1, ddof=1) / len(seeds) ** 0.5  # Student's t, nine degrees of freedom
        style = dict(color=COLOURS[method], ls=dash)
        learning.plot(epochs, points.mean(1), lw=1.8, label=name_of(method, estimator), **style)
        learning.fill_between(
            epochs, points.mean(1) - half, points.mean(1) + half, color=COLOURS[method], alpha=0.13, lw=0
        )
        policy.stairs(density(method, estimator)[1], edges, lw=1.5, label=name_of(method, estimator), **style)
    returned = column(pick(runs, method="data"), "return_one").mean()
    learning.axhline(returned, color="0.4", ls=":", lw=1.2, label="data")
    learning.set(xlabel="epochs", ylabel="return, K = 1")
    learning.set_title(f"b. Learning, mean of {len(seeds)} seeds and 95 % interval", loc="left")
    learning.legend(frameon=False, fontsize=8, ncols=2)

    value.plot(column(q[: BARS + 1], "action"), column(q[: BARS + 1], "true"), color="0.4", ls=":", label="behaviour's")
    bounds = {"diffusion policy": ("M = 2, smaller one", "min"), "+ Q-ensemble": ("M = 16, LCB", "lcb")}
    for method, (label, bound) in bounds.items():
        rows = pick(q, method=method, estimator="none")
        action, mean, low = (column(rows, k) for k in ("action", "mean", bound))
        value.plot(action, mean, color=COLOURS[method], lw=2, label=label.split(",")[0] + ", mean")
        value.plot(action, low, color=COLOURS[method], ls="--", lw=1.2, label=label)
        value.fill_between(action, low, mean, color=COLOURS[method], alpha=0.15, lw=0)
    value.set(xlabel="first action, at position 0", ylabel="Q")
    value.set_title("c. Learned Q without entropy term, mean over seeds", loc="left")
    value.legend(frameon=False, fontsize=8)

    policy.stairs(of_data, edges, fill=True, color="0.85", zorder=0, label="data")
    policy.set(xlabel="first action, at position 0", ylabel="density", yscale="log", ylim=(0.01, 100))
    policy.set_title("d. First action after training, mean over seeds", loc="left")
    policy.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    for ax in (task, learning, value, policy):
        ax.spines[["top"] if ax is task else ["top", "right"]].set_visible(False)
    reward.spines["top"].set_visible(False)
    fig.tight_layout()
    fig.savefig(out / "toy.png", metadata={"Software": None})

    fig = Figure(figsize=(11, 3.8), dpi=110)
    for ax, (acting, label) in zip(fig.subplots(1, 3, sharey=True), ACTED.items()):
        for method, mark in (("+ entropy", "o"), ("+ both", "s")):
            offset = 0.15 if method == "+ both" else -0.15
            base = {"+ entropy": "diffusion policy", "+ both": "+ Q-ensemble"}[method]
            for at, estimator in enumerate(["none", *ESTIMATORS]):
                rows = pick(runs, method=base if estimator == "none" else method, estimator=estimator)
                points = column(rows, f"return_{acting}")
                low, high = interval(points)
                ax.plot([low, high], [at + offset] * 2, color=COLOURS[base], lw=1.5)
                ax.plot(points, [at + offset] * len(points), "|", color=COLOURS[base], ms=4, alpha=0.5)
                name = {"+ entropy": "M = 2", "+ both": "M = 16"}[method] if at == 0 else None
                ax.plot(points.mean(), at + offset, mark, color=COLOURS[base], ms=5, label=name)
        cloned = column(pick(runs, method="cloning"), "return_one").mean()
        ax.axvline(cloned, color="0.5", ls=":", lw=1.2, label="cloning, K = 1")
        ax.set_yticks(range(len(COEFS)), COEFS)
        ax.set(xlabel="return", title=label)
        ax.spines[["top", "right"]].set_visible(False)
    fig.axes[0].invert_yaxis()
    fig.axes[0].legend(frameon=False, fontsize=8)
    fig.tight_layout()
    fig.savefig(out / "toy-estimators.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
