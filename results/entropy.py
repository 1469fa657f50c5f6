"""Does the entropy term raise entropy? Every published estimator on a diffusion policy, against a known truth.

    python results/entropy.py --study known --task bandit    # and toy; an hour each on one core
    python results/entropy.py --study real --task rare       # wander, hopper; half an hour each, need their data
    python results/entropy.py --study scale                  # weights and numbers of action dimensions
    python results/report.py                                 # tables and pictures, from the records alone

Known truth: one action dimension, a known Q, the density of the sampled action by quadrature. Each policy first clones
its data for 1,500 updates, as a learned Q says nothing at first either; with the true Q from the first update on, a
policy without any entropy term finds the rare mode while it is still broad, and there is nothing to see.
Real tasks: the scripts' own data, losses and evaluation; only the entropy term is the arm's.

Written down before any run:
  (i)   released = quad = none: their entropies lie within 0.05 nats per action dimension of each other;
  (ii)  chain moves the measured entropy with its coefficient;
  (iii) at equal measured entropy chain beats noise: its value with 50 candidates is higher.

Arms
  none       no entropy term
  noise      none, acting with N(0, coef^2) added to each action: best-of-50 acting turns any spread into reward
  released   the authors' code (`entropy_estimate`); in closed form 0.7787 + 0.0628 a_0^2 per dimension
  quad       that closed form itself
  bridge     the paper's Eq. 14 to the letter; a constant
  score      gradient of the entropy of the policy smoothed to t = 1: a_1 . stop_gradient(score(a_1))
  chain      lower bound by the forward process (`chain_entropy_bound`; after DIME, Celik et al. 2025)
  chainJ     chain for t >= 2, and the exact change of variables log |det d a_0 / d a_1| for the last, noiseless step
  logdet     change of variables through all steps of the deterministic sampler (DDIM), as in FLAME, FMER, GenPO
  gmm        DACER (Wang et al. 2024): no gradient; a mixture of Gaussians fitted to 200 actions gives an entropy, which
             drives the size of noise that is added to the action, toward -0.9 nats per dimension
  pathkl     BDPO (Gao et al. 2025): KL of each reverse step to that of a cloned policy, along the policy's own chain
"""

import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import record
import stacked
from stacked import edq

HERE = Path(__file__).resolve().parent
COEFS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
NOISES = [0.03, 0.1, 0.2, 0.3, 0.5, 1.0]  # std of the acting noise
SEEDS, WARMUP, BUDGETS = list(range(20)), 1500, [1000, 3000]  # updates without Q, then with it


# === Estimators that the scripts do not have. obs [B, S]; noise [T + 1, B, A]; value [B], nats, sum over dimensions =
def one_step(agent, batch, noise) -> Tensor:
    """The predicted action of `actor_losses`, unclamped; `[B, A]`."""
    a_t = agent.sde.perturb(batch.action, noise.t, noise.eps)
    return agent.sde.predict_a0(a_t, noise.t, agent.score(a_t, noise.t, batch.obs))


def log_det(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """function(x) and log |det of its Jacobian| row by row, floored at log 0.001; x `[B, A]` -> `[B, A]`, `[B]`."""
    out, pull_back = torch.func.vjp(function, x)
    jacobian = torch.stack([pull_back(row.expand_as(out))[0] for row in torch.eye(x.shape[-1])], -2)  # [B, A, A]
    det = jacobian[..., 0, 0] if x.shape[-1] == 1 else torch.linalg.det(jacobian)
    return out, 0.5 * torch.log(det**2 + 1e-6)


def chain_jacobian(sde: edq.MeanRevertingSDE, score: Callable, obs: Tensor, noise: Tensor) -> Tensor:
    """H(a_1) bounded by the chain above it, plus E log |det d a_0 / d a_1|: the entropy without noise in the last step.

    Exact in the second part if a_1 -> a_0 is one-to-one. Where a_0 leaves the box nothing is counted: the clamp would
    make it an atom, and the gradient would push further out.
    """
    a_t = noise[0]
    bound = 0.5 * (math.log(2 * math.pi) + a_t**2)
    for t in reversed(range(1, sde.num_steps)):
        z, std = noise[sde.num_steps - t], sde.posterior_var[t].sqrt()
        a0 = sde.predict_a0(a_t, t, score(a_t, t, obs)).clamp(-1, 1)
        a_prev = sde.posterior_mean(a_t, a0, t) + std * z
        bound = bound + edq.log_transition(a_t, a_prev, sde.theta_dt[t])
        bound = bound + 0.5 * (math.log(2 * math.pi) + z**2) + std.log()
        a_t = a_prev
    a0, volume = log_det(lambda a_1: sde.predict_a0(a_1, 0, score(a_1, 0, obs)), a_t)
    return bound.sum(-1) + torch.where((a0.abs() < 1).all(-1), volume, 0.0)


def ddim_log_det(sde: edq.MeanRevertingSDE, score: Callable, obs: Tensor, noise: Tensor) -> Tensor:
    """Entropy of the deterministic sampler a_{t-1} = C a_0 + sqrt(1 - C^2) eps by its Jacobians, C = e^-theta_bar."""
    a_t = noise[0]
    entropy = (0.5 * (math.log(2 * math.pi) + a_t**2)).sum(-1)
    for t in reversed(range(sde.num_steps)):

        def step(a: Tensor, t: int = t) -> Tensor:
            eps = score(a, t, obs)
            a0 = sde.predict_a0(a, t, eps)
            return a0 if t == 0 else torch.exp(-sde.theta_bar[t - 1]) * a0 + sde.sigma[t - 1] * eps

        a_t, volume = log_det(step, a_t)
        entropy = entropy + volume
    return entropy


def path_kl(sde: edq.MeanRevertingSDE, score: Callable, clone: Callable, obs: Tensor, noise: Tensor, last_std: float):
    """Sum over the policy's chain of KL(its reverse step || the clone's); both have the same variance; `[B]`."""
    a_t, total = noise[0], 0.0
    for t in reversed(range(sde.num_steps)):
        std = sde.posterior_var[t].sqrt() if t > 0 else torch.full_like(sde.sigma[0], last_std)
        a0, theirs = (sde.predict_a0(a_t, t, net(a_t, t, obs)).clamp(-1, 1) for net in (score, clone))
        total = total + 0.5 * (sde.w_0[t] * (a0 - theirs) / std) ** 2
        a_t = sde.posterior_mean(a_t, a0, t) + std * noise[sde.num_steps - t]
    return total.sum(-1)


def quad(a0: Tensor) -> Tensor:
    """What `released` comes to (T = 5, mean over a_T)."""
    return (0.7786518 + 0.0627517 * a0**2).sum(-1)


def mixture_entropy(actions: np.ndarray) -> float:
    """DACER's: three Gaussians by scikit-learn, -sum w log w + sum w H_k; their overlap is not subtracted; `[n, A]`."""
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(3, random_state=0).fit(actions)
    parts = 0.5 * (actions.shape[1] * math.log(2 * math.pi * math.e) + np.linalg.slogdet(fit.covariances_)[1])
    return float((fit.weights_ * (parts - np.log(fit.weights_))).sum())


def knn_entropy(actions: np.ndarray) -> float:
    """Kozachenko-Leonenko with three neighbours (library ennemi), nats; `[n, A]`. Ties are parted by 1e-6."""
    import ennemi

    actions = actions + 1e-6 * np.random.default_rng(0).normal(size=actions.shape)
    return float(ennemi.estimate_entropy(actions, k=3, multidim=True))


# === Arms: what each adds to the loss ===============================================================================
IN_SCRIPTS = ("none", "released", "bridge", "chain")
ARMS = [*IN_SCRIPTS, "quad", "score", "chainJ", "logdet", "gmm", "pathkl"]
ARGS = edq.Args(pessimism="min", num_critics=1, eta=1.0, diffusion_loss="noise", action_clip=True, hidden_dim=64)


def arm_losses(
    original: Callable, arm: str, agent, batch, noise, args, coef, warmup: bool = False
) -> dict[str, Tensor]:
    """`actor_losses` (given as `original`) with the entropy term of an arm, weighted by coef."""
    A = batch.action.shape[-1]
    own = arm if arm in IN_SCRIPTS else "none"
    args = replace(args, entropy_estimator=own, ent_coef=0.0 if own == "none" else coef)
    view = SimpleNamespace(sde=agent.sde, score=agent.score, q=agent.q, alpha=None, chain_std=agent.chain_std)
    if arm == "chain":
        view.alpha = lambda obs: coef + 0 * obs[:, 0]  # as a learned one would come: a tensor
    if arm == "gmm":  # the policy that acts, and is improved, has noise on its action
        view.q = lambda obs, action, frozen: agent.q(obs, (action + agent.noise_std * noise.aT).clamp(-1, 1), frozen)
    out = original(view, batch, noise, args, warmup)
    if arm in IN_SCRIPTS or arm == "gmm":
        return out
    if arm == "quad":  # scaled as `released` is
        entropy = quad(one_step(agent, batch, noise))
        term, entropy = -entropy.mean() / entropy.mean().detach(), entropy.mean() / A
    elif arm == "score":
        a0 = one_step(agent, batch, noise).clamp(-1, 1)
        a_1 = agent.sde.perturb(a0, 0, noise.aT)
        with torch.no_grad():
            score = -agent.score(a_1, 0, batch.obs) / agent.sde.sigma[0]
        term = (a_1 * score).sum(-1).mean() / A
        entropy = 0 * term
    elif arm == "pathkl":
        entropy = -path_kl(agent.sde, agent.score, agent.clone, batch.obs, noise.chain, agent.chain_std).mean() / A
        term = -entropy
    else:
        estimate = {"chainJ": chain_jacobian, "logdet": ddim_log_det}[arm]
        entropy = estimate(agent.sde, agent.score, batch.obs, noise.chain).mean() / A
        term = -entropy
    out["losses/entropy"], out["policy/entropy"] = (coef * term).detach(), entropy.detach()
    out["losses/actor"] = out["losses/actor"] + coef * term
    return out


# === Known truth ====================================================================================================
class Clones:
    """Policies trained without Q and entropy: where every arm starts, and the target of `pathkl` and of auto."""

    def __init__(self, task: stacked.Task, seeds: list[int], updates: int):
        args = replace(ARGS, eta=0.0)
        trained = stacked.train(task, losses_of("none", args), [0.0], seeds, [updates], {})
        self.weights = trained[updates][0]


def losses_of(arm: str, args: edq.Args = ARGS, chain_std: float = 0.2) -> stacked.Losses:
    """The losses of one policy, for `stacked.train`."""

    def losses(agent, batch, noise, coef):
        agent.chain_std, extra = chain_std, agent.extra
        if "std" in extra:
            agent.noise_std = extra["std"]
        if "clone" in extra:
            agent.clone = stacked.Net(agent.module, extra["clone"])
        return arm_losses(edq.actor_losses, arm, agent, batch, noise, args, coef)

    return losses


def sample(template, weights: dict[str, Tensor], obs: Tensor, g: torch.Generator) -> Tensor:
    """Actions of all policies before the last clamp: obs `[n, S]` -> `[N, n, A]`."""
    sde, N = edq.MeanRevertingSDE(5), len(next(iter(weights.values())))
    noise = torch.randn(N, sde.num_steps, len(obs), template.act_dim, generator=g)

    def one(weights, noise):
        return raw_actions(stacked.Net(template, weights), sde, obs, noise)

    with torch.no_grad():
        return torch.func.vmap(one)(weights, noise)


def raw_actions(score: Callable, sde: edq.MeanRevertingSDE, obs: Tensor, noise: Tensor) -> Tensor:
    """`sample_actions` with `action_clip`, but for the clamp of its last step: atoms at +-1 have no entropy."""
    a_t = noise[0]
    for t in reversed(range(1, sde.num_steps)):
        a0 = sde.predict_a0(a_t, t, score(a_t, t, obs)).clamp(-1, 1)
        a_t = sde.posterior_mean(a_t, a0, t) + sde.posterior_var[t].sqrt() * noise[-t]
    return sde.predict_a0(a_t, 0, score(a_t, 0, obs))


def estimates(
    task: stacked.Task, template, weights: dict[str, Tensor], clone: dict[str, Tensor]
) -> list[dict[str, float]]:
    """What every estimator says of every policy, in the probe state, from 1,000 samples; a row a policy."""
    sde, g, n = edq.MeanRevertingSDE(5), torch.Generator().manual_seed(1), 1000
    obs, action = task.data(g, 40 * n)
    at_probe = (obs == torch.tensor(task.probe)).all(-1)
    batch = SimpleNamespace(obs=obs[at_probe][:n], action=action[at_probe][:n])
    noise = edq.Noise(None, *(torch.randint(5, (n,), generator=g) if k == "t" else torch.randn(
        (6, n, 1) if k == "chain" else (n, 1), generator=g) for k in ("t", "eps", "aT", "chain")))  # fmt: skip

    def one(weights, clone):
        score, theirs = stacked.Net(template, weights), stacked.Net(template, clone)
        a0 = one_step(SimpleNamespace(sde=sde, score=score), batch, noise)
        values = {
            "released": edq.entropy_estimate(sde, a0, noise.aT, "released"),
            "quad": quad(a0),
            "bridge": edq.entropy_estimate(sde, a0, noise.aT, "bridge"),
            "chain": edq.chain_entropy_bound(sde, score, batch.obs, 0.2, noise=noise.chain),
            "chainJ": chain_jacobian(sde, score, batch.obs, noise.chain),
            "logdet": ddim_log_det(sde, score, batch.obs, noise.chain),
            "pathkl": -path_kl(sde, score, theirs, batch.obs, noise.chain, 0.2),
        }
        return {k: v.mean() for k, v in values.items()}

    with torch.no_grad():
        tables = torch.func.vmap(one, chunk_size=20)(weights, clone)
        actions = sample(template, weights, batch.obs, g).numpy()
    rows = [{k: float(v[i]) for k, v in tables.items()} for i in range(len(actions))]
    for row, own in zip(rows, actions):
        row |= {"gmm": mixture_entropy(own[:200]), "knn": knn_entropy(own[:200])}
    return rows


def known(task: stacked.Task, arm: str, clones: Clones, seeds: list[int], budgets: list[int], coefs: list[float],
          auto: bool = False, chain_std: float = 0.2) -> list[dict]:  # fmt: skip
    """Train one arm at every coefficient and seed; a row for each of these and each budget.

    auto: the numbers in `coefs` are delta, and the coefficient is learned so that the arm's own estimate reaches
    that of the cloned policy plus delta.
    """
    copies, sde = len(coefs), edq.MeanRevertingSDE(5)
    clone = {k: w.repeat_interleave(copies, 0) for k, w in clones.weights.items()}
    template, extra, every = edq.ScoreMLP(task.obs_dim, 1, stacked.HIDDEN), {}, None
    if arm == "pathkl":
        extra["clone"] = clone
    # gmm starts at 3 coef; one Adam step of 0.03 on its logarithm every 30 updates, 100 times in a run as DACER's
    acting_std = {budget: torch.zeros(len(seeds) * copies) for budget in budgets}
    if arm == "gmm":
        log_alpha = torch.full((len(seeds) * copies,), math.log(3.0), requires_grad=True)
        adam, g = torch.optim.Adam([log_alpha], lr=0.03), torch.Generator().manual_seed(2)
        scale = torch.tensor(coefs).repeat(len(seeds))
        extra["std"] = scale * 3

        def every(number, weights, coef, entropy):
            if number % 30 == 0:
                action = sample(template, weights, torch.tensor([task.probe]).expand(200, -1), g)
                action = action + extra["std"].view(-1, 1, 1) * torch.randn(action.shape, generator=g)
                fitted = [mixture_entropy(a) for a in action.clamp(-1, 1).numpy()]
                log_alpha.grad = torch.tensor(fitted, dtype=torch.float32) + 0.9
                adam.step()
                extra["std"].copy_(scale * log_alpha.detach().exp())
            if number in budgets:
                acting_std[number] = extra["std"].clone()

    if auto:
        rows = estimates(task, template, clone, clone)
        target = torch.tensor([row[arm] for row in rows]) + torch.tensor(coefs).repeat(len(seeds))

        def every(number, weights, coef, entropy):
            coef.copy_((coef.log() + 3e-3 * (target - entropy)).clamp(math.log(1e-4), 0).exp())

    losses = losses_of(arm, chain_std=chain_std)
    coefs_now = [0.01] * copies if auto else coefs
    trained = stacked.train(task, losses, coefs_now, seeds, budgets, extra, every, clones.weights)
    rows = []
    for budget, (weights, diffusion) in trained.items():
        said = estimates(task, template, weights, clone)
        for i, (seed, coef) in enumerate((s, c) for s in seeds for c in coefs):
            policy = stacked.Net(template, {k: w[i] for k, w in weights.items()})

            def law(last_std: float, policy=policy) -> Tensor:
                return stacked.action_law(policy, sde, torch.tensor(task.probe), stacked.BINS, last_std)

            figures = stacked.law_figures(task, law(float(acting_std[budget][i])))
            figures |= {"diffusion_loss": float(diffusion[i])} | {f"says_{k}": v for k, v in said[i].items()}
            rows.append({"arm": arm, "coef": coef, "seed": seed, "updates": budget, **figures})
            if arm == "none":  # the same policy, acting with noise
                for std in NOISES:
                    noisy = figures | stacked.law_figures(task, law(std))
                    rows.append({"arm": "noise", "coef": std, "seed": seed, "updates": budget, **noisy})
    return rows


VARIANTS = {  # name in the record: arm, automatic coefficient, std of the last step
    **{arm: (arm, False, 0.2) for arm in ARMS},
    "chain-auto": ("chain", True, 0.2),
    "chainJ-auto": ("chainJ", True, 0.2),
    "chain-std0.05": ("chain", False, 0.05),
    "chain-std0.4": ("chain", False, 0.4),
}
DELTAS = [0.0, 0.25, 0.5]  # nats above the clone, for automatic coefficients


def run_known(task: str, variants: list[str]) -> None:
    """Each variant's record as it ends."""
    torch.set_num_threads(1)
    clones = Clones(stacked.TASKS[task], SEEDS, WARMUP)
    for name in variants:
        started, (arm, auto, chain_std) = time.time(), VARIANTS[name]
        coefs = DELTAS if auto else {"none": [0.0], "logdet": COEFS[1::2]}.get(arm, COEFS)  # logdet costs the most
        rows = known(stacked.TASKS[task], arm, clones, SEEDS, BUDGETS, coefs, auto, chain_std)
        about = dict(task=task, variant=name, chain_std=chain_std, seeds=SEEDS, lr=stacked.LR, batch=stacked.BATCH)
        about |= dict(hidden=stacked.HIDDEN, transitions=stacked.DATA)
        path = record.RECORDS / "entropy" / f"known-{task}-{name}.csv"
        record.write_record(path, [row | {"arm": name} if row["arm"] == arm else row for row in rows], started, **about)
        print(f"{task} {name}: {time.time() - started:.0f} s", flush=True)


# === Real tasks =====================================================================================================
# The scripts' data, networks, losses, simulators and evaluation; the agents of all seeds and coefficients of an arm are
# trained at once (`stacked.Learned`). Small networks and budgets, the same for all arms. Both mazes are made by
# `results/datasets/pointmaze.py` (recipes rare and wander); hopper is a stand-in recorded for this project.
SMALL = "--num-critics 4 --hidden-dim 64 --batch-size 128 --tau 0.02 --no-max-q-backup --precision fp32 --compile off"
REAL = {
    "rare": ("edq_antmaze", "--env-id pointmaze-rare --gradient-steps 8000 --eval-episodes 30"),
    "wander": (
        "edq_antmaze",
        "--env-id pointmaze-medium --dataset-id edq/pointmaze/medium-wander-v0 --gradient-steps 10000 "
        "--eval-episodes 30",
    ),
    "hopper": (
        "edq_mujoco",
        "--env-id hopper-medium-replay --dataset-id standin/hopper/medium-replay-v0 --gradient-steps 6000 "
        "--eval-episodes 10 --diffusion-loss noise --action-clip",
    ),
}
REAL_COEFS = {"none": [0.0], "released": [0.01, 0.1], "chain": [0.03, 0.1, 0.3], "chainJ": [0.1], "quad": [0.01]}
REAL_COEFS |= {"score": [0.3], "pathkl": [0.1], "gmm": [0.1], "logdet": [0.03], "bridge": [0.01]}
REAL_NOISES, REAL_SEEDS, STATES, SAMPLES = [0.1, 0.2, 0.4], list(range(5)), 256, 200


def train_real(script, args, data, arm: str, coefs: list[float], clone: dict | None = None) -> tuple:
    """All agents of an arm; and their diffusion loss and entropy estimate over the last 500 updates, `[N, 2]`."""
    N, (obs_dim, act_dim) = len(REAL_SEEDS) * len(coefs), (data.obs.shape[1], data.action.shape[1])
    extra = {"clone": clone} if clone else {}
    if arm == "gmm":  # as in `known`, on four data states
        scale, every = torch.tensor(coefs).repeat(len(REAL_SEEDS)), args.gradient_steps // 100
        log_alpha, g = torch.full((N,), math.log(3.0), requires_grad=True), torch.Generator().manual_seed(2)
        adam, extra = torch.optim.Adam([log_alpha], lr=0.03), {"noise_std": 3 * scale}

    def losses(agent, batch, noise, args, coef):
        return arm_losses(edq.actor_losses, "none" if arm == "clone" else arm, agent, batch, noise, args, coef)

    agents = stacked.Learned(obs_dim, act_dim, args, losses, REAL_SEEDS, coefs, extra)
    generators, logged = [torch.Generator().manual_seed(seed) for seed in REAL_SEEDS], []
    for number in range(args.gradient_steps):
        drawn = [script.draw_batch(data, args, g) for g in generators]
        batch, noise = ([torch.stack(x) for x in zip(*parts)] for parts in zip(*drawn))
        logged = [*logged[-499:], agents.update(edq.Transitions(*batch), edq.Noise(*noise))]
        if arm == "gmm" and number % every == 0:
            obs = data.obs[torch.randint(len(data.obs), (4,), generator=g)].repeat_interleave(SAMPLES, 0)
            action = sample(agents.modules["score"], agents.weights["score"], obs, g)
            action = (action + extra["noise_std"].view(-1, 1, 1) * torch.randn(action.shape, generator=g)).clamp(-1, 1)
            fitted = [np.mean([mixture_entropy(x) for x in own.unflatten(0, (4, -1)).numpy()]) for own in action]
            log_alpha.grad = torch.tensor(fitted, dtype=torch.float32) + 0.9 * act_dim
            adam.step()
            extra["noise_std"].copy_(scale * log_alpha.detach().exp())
    return agents, torch.stack(logged).mean(0)


@torch.no_grad()
def diagnose(agent, data, noise_std: float) -> dict[str, float]:
    """Entropy, distance to data and ensemble spread at fixed data states; nothing is simulated."""
    from sklearn.neighbors import NearestNeighbors

    g, A = torch.Generator().manual_seed(0), data.action.shape[-1]
    obs = data.obs[torch.linspace(0, len(data.obs) - 1, STATES).long()]
    noise = torch.randn(agent.sde.num_steps, SAMPLES, STATES, A, generator=g)
    raw = raw_actions(agent.score, agent.sde, obs.expand(SAMPLES, -1, -1), noise)
    raw = raw.transpose(0, 1)  # [STATES, SAMPLES, A]
    raw = raw + noise_std * torch.randn(raw.shape, generator=g)
    entropy = [knn_entropy(own) / A for own in raw.numpy()]
    acted, std = raw.clamp(-1, 1), data.obs.std(0).clamp(min=1e-3)
    near = NearestNeighbors(n_neighbors=50).fit((data.obs / std).numpy()).kneighbors((obs / std).numpy())[1]
    distance = torch.cdist(acted, data.action[torch.from_numpy(near)]).amin(-1)  # to actions taken in states like it
    rows = obs.unsqueeze(1).expand(-1, SAMPLES, -1).flatten(0, 1)
    q = agent.target_q(rows, acted.flatten(0, 1))
    return {
        "entropy": float(np.mean(entropy)),
        "off_box": float((raw.abs() > 1).any(-1).float().mean()),
        "data_distance": float(distance.mean()),
        "q_spread": float(q.std(0).mean() / q.abs().mean()),
    }


def run_real(task: str, arms: list[str]) -> None:
    """Each arm's record as it ends: a row an agent."""
    script, flags = importlib.import_module(REAL[task][0]), f"{SMALL} {REAL[task][1]}"
    torch.set_num_threads(1)
    args, _ = script.parse_args(flags.split())
    args = replace(args, entropy_estimator="none")
    data, info = script.load_dataset(args, "cpu")
    envs, clean = script.vector_env(args), script.sample_actions
    for arm in arms:
        started, coefs, clone = time.time(), REAL_COEFS[arm], None
        if arm == "pathkl":
            cloned = train_real(script, replace(args, eta=0.0), data, "clone", [0.0])[0].weights["score"]
            clone = {k: w.repeat_interleave(len(coefs), 0) for k, w in cloned.items()}
        agents, logged = train_real(script, args, data, arm, coefs, clone)
        seconds, rows = time.time() - started, []
        for i, (seed, coef) in enumerate((s, c) for s in REAL_SEEDS for c in coefs):
            agent = agents.agent(i, lambda: script.Agent(data.obs.shape[1], data.action.shape[1], args))
            own = float(agents.extra["noise_std"][i]) if arm == "gmm" else 0.0
            for name, std in [(arm, own)] + [("noise", s) for s in REAL_NOISES if arm == "none"]:
                g = torch.Generator().manual_seed(seed)

                def noisy(*inputs, std=std, g=g, **options):
                    action = clean(*inputs, **options)
                    return (action + std * torch.randn(action.shape, generator=g)).clamp(-1, 1)

                script.sample_actions = noisy if std > 0 else clean  # `act` calls it by name
                figures = diagnose(agent, data, std)
                for candidates in (1, 50):
                    acting = replace(args, num_candidates=candidates, seed=seed)
                    results = script.evaluate(agent, envs, acting, info["reference"], args.eval_episodes)
                    figures[f"score_{candidates}"] = script.means(results)["score"]
                figures |= {"diffusion_loss": float(logged[i, 0]), "says": float(logged[i, 1]), "acting_std": std}
                rows.append({"arm": name, "coef": std if name == "noise" else coef, "seed": seed, **figures})
                print(task, {k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
        script.sample_actions = clean
        about = dict(
            task=task, flags=flags, dataset=info["id"], dataset_hash=info["hash"], data_score=info["mean_score"]
        )
        about |= dict(states=STATES, samples=SAMPLES, seeds=REAL_SEEDS, seconds_of_training=round(seconds))
        record.write_record(record.RECORDS / "entropy" / f"real-{task}-{arm}.csv", rows, started, **about)


# === Does a weight mean the same for any number of action dimensions? ===============================================
SIZES = [1, 2, 4, 8]


def run_scale() -> None:
    """Clone a product of A bandits with `chain`, its value divided by A (as in the scripts) or not; its entropy.

    All terms of the actor's loss are means over dimensions, so a policy should not notice how many others are trained
    beside it. One-dimensional marginals are measured by spacings (scipy, Vasicek's estimator and its successors).
    """
    from scipy import stats

    started, rows, seeds = time.time(), [], list(range(5))
    torch.set_num_threads(1)
    args = replace(ARGS, eta=0.0, batch_size=stacked.BATCH, actor_lr=stacked.LR)

    def losses(agent, batch, noise, args, coef):
        return arm_losses(edq.actor_losses, "chain", agent, batch, noise, args, coef)

    for A in SIZES:
        for scale, coef in (("per dimension", 0.1), ("sum", 0.1 * A)):
            agents = stacked.Learned(1, A, args, losses, seeds, [coef], {})
            data, generators = [], [torch.Generator().manual_seed(seed) for seed in seeds]
            for g in generators:
                action = torch.cat([stacked.bandit_data(g, stacked.DATA)[1] for _ in range(A)], -1)
                zero = torch.zeros(stacked.DATA)
                data.append(edq.Transitions(zero.unsqueeze(-1), action, zero, zero.unsqueeze(-1), zero))
            for _ in range(3000):
                drawn = [edq.draw_batch(d, args, g) for d, g in zip(data, generators)]
                batch, noise = ([torch.stack(x) for x in zip(*parts)] for parts in zip(*drawn))
                agents.update(edq.Transitions(*batch), edq.Noise(*noise))
            template, g = agents.modules["score"], torch.Generator().manual_seed(9)
            template.act_dim = A
            action = sample(template, agents.weights["score"], torch.zeros(4000, 1), g).numpy()
            for seed, own in zip(seeds, action):
                entropy = np.mean([stats.differential_entropy(x) for x in own.T])
                rows.append({"act_dim": A, "scale": scale, "weight": coef, "seed": seed, "entropy": float(entropy)})
    record.write_record(record.RECORDS / "entropy" / "scale.csv", rows, started, seeds=seeds, coef=0.1, updates=3000)


# === Tables and pictures, from the records alone ====================================================================
LABELS = {"none": "none", "noise": "noise (acting)", "gmm": "gmm (DACER)", "pathkl": "pathkl (BDPO)"}
COLOURS = {"released": "#b2182b", "quad": "#ef8a62", "bridge": "#999999", "score": "#5aae61", "noise": "#888888"}
COLOURS |= {"chain": "#2166ac", "chainJ": "#053061", "pathkl": "#9970ab", "gmm": "#bf812d", "logdet": "#e6ab02"}
COLOURS |= {"none": "black"}
PANELS = {"bandit": "bandit, 80 % poor and 20 % good actions", "toy": "two-step toy, 12 % of the data good"}
ESTIMATORS = ["released", "bridge", "quad", "chain", "chainJ", "logdet", "gmm", "pathkl", "knn"]
# Policies on which estimators are judged. Those of released and quad are left out: their own numbers run away.
JUDGES = ("none", "score", "chain", "chainJ", "pathkl")


def load(records: Path, kind: str, task: str) -> list[dict]:
    """All rows of a task, arm by arm."""
    paths = sorted((records / "entropy").glob(f"{kind}-{task}-*.csv"))
    return [row for path in paths for row in record.read_record(path)[1]]


def pick(rows: list[dict], key: str, **wanted) -> np.ndarray:
    """A column of the rows with these values, in the order of the seeds."""
    chosen = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    return np.array([r[key] for r in sorted(chosen, key=lambda r: r["seed"])])


def interval(x: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t)."""
    from scipy import stats

    return float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def coefs_of(rows: list[dict], arm: str) -> list[float]:
    return sorted({r["coef"] for r in rows if r["arm"] == arm})


def against_noise(rows: list[dict], arm: str, coef: float, value: str) -> np.ndarray:
    """Value of an arm minus that of `noise` at the same entropy, seed by seed; seeds out of noise's range are left out.

    For each seed `noise` is the line through its own policy without and with each acting noise.
    """
    out = []
    for own in (r for r in rows if r["arm"] == arm and r["coef"] == coef):
        line = sorted(
            (r["entropy"], r[value]) for r in rows if r["seed"] == own["seed"] and r["arm"] in ("none", "noise")
        )
        x, y = np.array(line).T
        if x[0] <= own["entropy"] <= x[-1]:
            out.append(own[value] - np.interp(own["entropy"], x, y))
    return np.array(out)


def judged(rows: list[dict], estimator: str) -> tuple[float, float, float]:
    """Rank correlation of an estimate with the true entropy, its least-squares slope, and its mean error in nats."""
    from scipy import stats

    rows = [r for r in rows if r["arm"] in JUDGES]
    truth, said = (np.array([r[k] for r in rows]) for k in ("entropy", f"says_{estimator}"))
    if said.std() < 1e-6 * abs(said.mean()):
        return 0.0, 0.0, float((said - truth).mean())
    return stats.spearmanr(truth, said).statistic, float(np.polyfit(truth, said, 1)[0]), float((said - truth).mean())


def number(x: float) -> str:
    return f"{x:.2f}".replace("-0.00", "0.00") if abs(x) < 100 else f"{x:.0f}"


def verdicts(records: Path) -> str:
    """The three statements of the head of this file on every task, each with the figures that decide it."""
    known = {task: [r for r in load(records, "known", task) if r["updates"] == max(BUDGETS)] for task in PANELS}
    every = known | {task: load(records, "real", task) for task in REAL}
    lines = []

    def line(
        statement: str, task: str, what: str, gaps: dict[float, tuple[float, float]], shown: dict[str, list]
    ) -> None:
        weights, figures = (
            ", ".join(x) for x in ((f"{c:g}" for c in gaps), (f"{m:+.2f} ± {h:.2f}" for m, h in gaps.values()))
        )
        said = "; ".join(f"{word} at {', '.join(f'{c:g}' for c in found)}" for word, found in shown.items() if found)
        lines.append([statement, task, what, weights, figures, said or "nothing"])

    for task, rows in every.items():
        none = pick(rows, "entropy", arm="none")
        for arm in [a for a in ("released", "quad") if coefs_of(rows, a)]:
            gaps = {c: interval(pick(rows, "entropy", arm=arm, coef=c) - none) for c in coefs_of(rows, arm)}
            shown = {"within 0.05": [c for c, (m, h) in gaps.items() if abs(m) + h < 0.05]}
            shown |= {"lower": [c for c, (m, h) in gaps.items() if m + h < 0]}
            shown |= {"higher": [c for c, (m, h) in gaps.items() if m - h > 0]}
            line("(i)", task, f"entropy, {arm} - none", gaps, shown)
    for task, rows in every.items():
        none = pick(rows, "entropy", arm="none")
        gaps = {c: interval(pick(rows, "entropy", arm="chain", coef=c) - none) for c in coefs_of(rows, "chain")}
        line("(ii)", task, "entropy, chain - none", gaps, {"higher": [c for c, (m, h) in gaps.items() if m > h]})
        means = [m for m, _ in gaps.values()]
        lines[-1][-1] += "; rising at every step" if means == sorted(means) else "; not rising at every step"
    for task, rows in every.items():
        for K in (50, 1):
            value = f"value_{K}" if task in PANELS else f"score_{K}"
            gaps = {c: against_noise(rows, "chain", c, value) for c in coefs_of(rows, "chain")}
            gaps = {c: interval(x) for c, x in gaps.items() if len(x) > 2}
            shown = {
                "better": [c for c, (m, h) in gaps.items() if m > h],
                "worse": [c for c, (m, h) in gaps.items() if -m > h],
            }
            line("(iii)", task, f"{value.split('_')[0]} at equal entropy, K = {K}, chain - noise", gaps, shown)
    return record.markdown(["", "task", "what", "weights", "difference, 95 % interval", "shown"], lines)


def headline(records: Path) -> str:
    """What the two terms do at the weights of the presets, against none: entropy, and value of the best of 50."""
    parts = []
    for arm, coef in (("released", 0.01), ("chain", 0.1)):
        gaps, values = [], []
        for task in PANELS:
            rows = [r for r in load(records, "known", task) if r["updates"] == max(BUDGETS)]
            gap = interval(pick(rows, "entropy", arm=arm, coef=coef) - pick(rows, "entropy", arm="none"))
            gaps.append(f"{gap[0]:+.2f} ± {gap[1]:.2f}")
            means = [pick(rows, "value_50", arm=a, coef=c).mean() for a, c in (("none", 0.0), (arm, coef))]
            values.append("from {:.2f} to {:.2f}".format(*means))
        parts.append(f"`{arm}` at {coef} changes the entropy by {' and '.join(gaps)} nats")
        parts[-1] += f" and the value of the best of 50 actions {' and '.join(values)}"
    return "; ".join(parts)


def tables(records: Path) -> dict[str, str]:
    """Markdown by name."""
    out = {"entropy-predictions": verdicts(records), "entropy-headline": headline(records)}
    known = {task: load(records, "known", task) for task in PANELS}
    late = {task: [r for r in rows if r["updates"] == max(BUDGETS)] for task, rows in known.items()}
    lines = []
    for task, rows in late.items():
        for arm in [a for a in [*VARIANTS, "noise"] if coefs_of(rows, a) and not a.endswith("auto")]:
            by_coef = {c: pick(rows, "entropy", arm=arm, coef=c) for c in coefs_of(rows, arm)}
            if arm == "none":
                cells = [f"{by_coef[0.0].mean():.2f} ± {by_coef[0.0].std():.2f}"] + ["-"] * (len(COEFS) - 1)
            else:
                own = [f"{x.mean():.2f} ± {x.std():.2f}" for x in by_coef.values()]
                cells = (
                    own
                    if len(own) == len(COEFS)
                    else [own[list(by_coef).index(c)] if c in by_coef else "-" for c in COEFS]
                )
            lines.append([task, LABELS.get(arm, arm), *cells])
    out["entropy-known"] = record.markdown(["task", "arm", *map(str, COEFS)], lines)
    lines = []
    for task, rows in known.items():
        for arm in [a for a in [*VARIANTS, "noise"] if coefs_of(rows, a)]:
            coef = 0.0 if arm == "none" else 0.3 if arm == "noise" else 0.25 if arm.endswith("auto") else 0.1
            for budget in BUDGETS:
                keys = ("entropy", "diffusion_loss", "value_1", "value_50", "rare_share", "off_data", "off_box")
                cells = [pick(rows, k, arm=arm, coef=coef, updates=budget).mean() for k in keys]
                lines.append([task, LABELS.get(arm, arm), f"{coef:g}", f"{budget:,}", *map(number, cells[:-3])])
                lines[-1] += [f"{100 * x:.0f}" for x in cells[-3:]]
    head = ["task", "arm", "coef", "updates", "entropy", "diffusion loss", "value, K = 1", "K = 50"]
    out["entropy-value"] = record.markdown([*head, "rare mode, %", "off the data, %", "outside the box, %"], lines)
    lines = []
    for estimator in ESTIMATORS:
        cells = [number(x) for rows in late.values() for x in judged(rows, estimator)]
        lines.append([estimator if estimator != "knn" else "nearest neighbours (200 samples)", *cells])
    head = [f"{task}: {what}" for task in PANELS for what in ("rank correlation", "slope", "mean error, nats")]
    out["entropy-estimators"] = record.markdown(["estimator", *head], lines)
    lines = []
    for task in REAL:
        rows = load(records, "real", task)
        for arm in [a for a in [*REAL_COEFS, "noise"] if coefs_of(rows, a)]:
            for coef in coefs_of(rows, arm):
                keys = ("entropy", "data_distance", "q_spread", "off_box", "diffusion_loss", "score_1", "score_50")
                cells = [pick(rows, k, arm=arm, coef=coef) for k in keys]
                own = [f"{cells[0].mean():.2f} ± {cells[0].std(ddof=1):.2f}", f"{cells[1].mean():.3f}"]
                own += [f"{cells[2].mean():.3f}", f"{100 * cells[3].mean():.0f}", f"{cells[4].mean():.3f}"]
                own += [f"{x.mean():.1f} ± {x.std(ddof=1) / len(x) ** 0.5:.1f}" for x in cells[5:]]
                lines.append([task, LABELS.get(arm, arm), f"{coef:g}", *own])
    head = ["task", "arm", "coef", "entropy, nats a dimension", "distance to data", "spread of Q / \\|Q\\|"]
    head += ["outside the box, %", "diffusion loss", "score, K = 1", "score, K = 50"]
    out["entropy-real"] = record.markdown(head, lines)
    lines = []
    for task, rows in late.items():
        for arm in [a for a in ("none", "chain-auto", "chainJ-auto") if coefs_of(rows, a)]:
            for coef in coefs_of(rows, arm):
                keys = ("entropy", "value_1", "value_50", "rare_share", "off_data")
                cells = [pick(rows, k, arm=arm, coef=coef).mean() for k in keys]
                own = [*map(number, cells[:3]), *(f"{100 * x:.0f}" for x in cells[3:])]
                lines.append([task, arm, "-" if arm == "none" else f"clone + {coef:g}", *own])
    head = ["task", "arm", "target", "entropy", "value, K = 1", "K = 50", "rare mode, %", "off the data, %"]
    out["entropy-auto"] = record.markdown(head, lines)
    rows, lines = record.read_record(records / "entropy" / "scale.csv")[1], []
    for scale in ("per dimension", "sum"):
        cells = [interval(pick(rows, "entropy", scale=scale, act_dim=A)) for A in SIZES]
        lines.append([scale, *(f"{m:.2f} ± {h:.2f}" for m, h in cells)])
    out["entropy-scale"] = record.markdown(["chain's value", *(f"A = {A}" for A in SIZES)], lines)
    return out


def figures(records: Path, out: Path) -> None:
    """entropy.png: known truth; entropy-real.png: the three real tasks."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(12, 6.6), layout="constrained")
    axes = fig.subplots(2, 3, width_ratios=[1.25, 0.85, 1.1])
    shown = ["chainJ", "chain", "score", "pathkl", "released", "quad", "gmm", "logdet", "bridge"]
    for (task, title), (raised, ranks, value) in zip(PANELS.items(), axes):
        rows = [r for r in load(records, "known", task) if r["updates"] == max(BUDGETS)]
        none = interval(pick(rows, "entropy", arm="none"))
        raised.axhspan(none[0] - none[1], none[0] + none[1], color="0.85", label="no term, 95 %")
        for arm in [a for a in shown if coefs_of(rows, a)]:
            points = np.array([(c, *interval(pick(rows, "entropy", arm=arm, coef=c))) for c in coefs_of(rows, arm)])
            bold = dict(lw=2.4) if arm in ("released", "chain", "chainJ") else dict(lw=1.2, alpha=0.9)
            raised.errorbar(
                *points.T[:2], points[:, 2], color=COLOURS[arm], label=LABELS.get(arm, arm), capsize=2, **bold
            )
        raised.set(xscale="log", xlabel="weight of the entropy term", ylabel="true entropy of the policy, nats")
        raised.set_title(title, fontsize=10)
        names = ESTIMATORS[::-1]
        bars = [judged(rows, e)[0] for e in names]
        ranks.barh(
            [e if e != "knn" else "(neighbours)" for e in names], bars, color=[COLOURS.get(e, "0.6") for e in names]
        )
        ranks.axvline(0, color="black", lw=0.8)
        ranks.set(xlim=(-1, 1), xlabel="rank correlation with the truth")
        ranks.set_title("does the estimate see the entropy?", fontsize=10)
        for arm in [a for a in ("noise", "released", "chain", "chainJ") if coefs_of(rows, a)]:
            points = [("none", 0.0)] * (arm == "noise") + [(arm, c) for c in coefs_of(rows, arm)]
            x, y = ([pick(rows, k, arm=a, coef=c).mean() for a, c in points] for k in ("entropy", "value_50"))
            value.plot(x, y, "o-", color=COLOURS[arm], label=LABELS.get(arm, arm), lw=2, ms=4)
        value.set(xlabel="true entropy, nats", ylabel="value of the best of 50 actions")
        value.set_title("what it buys at equal entropy", fontsize=10)
        value.legend(frameon=False, fontsize=8)
    legend = axes[1, 0].get_legend_handles_labels()  # all arms are in it
    axes[0, 0].legend(*legend, frameon=False, fontsize=7, ncols=3, loc="upper left")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(low, high + 0.45 * (high - low))
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(
        "The released entropy term does not raise entropy; a bound that sees the spread does (20 seeds, known Q)"
    )
    fig.savefig(out / "entropy.png", dpi=110, metadata={"Software": None})

    fig = Figure(figsize=(12, 7.4), layout="constrained")
    axes = fig.subplots(2, len(REAL))
    for task, (top, bottom) in zip(REAL, axes.T):
        rows = load(records, "real", task)
        for arm in [a for a in [*REAL_COEFS, "noise"] if coefs_of(rows, a)]:
            coefs, style = coefs_of(rows, arm), dict(color=COLOURS[arm], label=LABELS.get(arm, arm), marker="o", ms=5)
            for ax, key in ((top, "score_50"), (bottom, "data_distance")):
                points = [[pick(rows, k, arm=arm, coef=c) for k in ("entropy", key)] for c in coefs]
                x, y = ([p[i].mean() for p in points] for i in (0, 1))
                error = [p[1].std(ddof=1) / len(p[1]) ** 0.5 for p in points]
                ax.errorbar(x, y, error, lw=1.5 if len(coefs) > 1 else 0, elinewidth=1, capsize=2, **style)
        top.set(title=task, ylabel="score, best of 50")
        bottom.set(xlabel="entropy, nats per action dimension", ylabel="distance to the nearest data action")
        for ax in (top, bottom):
            ax.spines[["top", "right"]].set_visible(False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=9, ncols=6)
    fig.suptitle(
        "Three learned tasks, five seeds: entropy at fixed data states against score, and against distance to the data"
    )
    fig.savefig(out / "entropy-real.png", dpi=100, metadata={"Software": None})


@dataclass
class Args:
    """Run a study of the entropy estimators; see the head of this file."""

    study: Literal["known", "real", "scale"]
    task: Literal["bandit", "toy", "rare", "wander", "hopper"] = "bandit"
    variants: tuple[str, ...] = ()  # by default all


if __name__ == "__main__":
    args = tyro.cli(Args)
    if args.study == "known":
        run_known(args.task, list(args.variants or VARIANTS))
    elif args.study == "scale":
        run_scale()
    else:
        run_real(args.task, list(args.variants or REAL_COEFS))
