"""Record what a policy, or a mixture of several, does in an environment: a local dataset in Minari's format.

A policy is a zip of Stable-Baselines3 (PPO, A2C, TRPO; SAC, TQC; TD3, DDPG; an "MlpPolicy" without gSDE), a run folder
of our own scripts, or the word `random`. Nothing is unpickled: of a zip the plain JSON and the weights are read, and
the network is rebuilt from the names and sizes of the weights. Stable-Baselines3 is not needed.

    python results/datasets/collect.py --env-id Hopper-v5 --policy ppo.zip --dataset-id edq/hopper/medium-v0
    python results/datasets/collect.py --env-id Hopper-v5 --policy early.zip late.zip runs/<run folder> random \
        --weights 1 2 1 1 --noise 0 0.1 0.3 --dataset-id edq/hopper/medium-replay-v0

Where a policy saw observations normalised by VecNormalize, export those statistics (a pickle, so not read here) with
    s = VecNormalize.load("vecnormalize.pkl", venv).obs_rms; np.savez("stats.npz", mean=s.mean, var=s.var)
and add --obs-stats stats.npz. Equal arguments give equal arrays on one machine; another processor may round otherwise.
"""

import importlib
import io
import json
import os
import re
import signal
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import storage
import torch
import torch.nn.functional as F
import tyro
from import_d4rl import FAMILIES
from torch import nn
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)
ROOT, SCRIPTS = Path(__file__).resolve().parents[2], ("edq_mujoco.py", "edq_antmaze.py", "edq_adroit.py")
ROWS = 10  # environments in lockstep; always as many, as products of another size round otherwise
# D4RL's time limits of Adroit, and its returns of a random and an expert policy.
HANDS = {hand: FAMILIES[hand][1] for hand in ("pen", "door", "hammer", "relocate")}
REFERENCES = {name.split("-")[0]: row[4:] for name, row in FAMILIES.items()} | {"pointmaze": (0.0, 1.0)}
# What a zip may hold, told by a weight that no other kind has: hidden layers, last layer, how far actions are spread,
# the activation unless the file names one, and weights that take no part in acting.
Kind = namedtuple("Kind", "name hidden head spread activation idle")
KINDS = {
    "action_net.weight": Kind("PPO-like", "mlp_extractor.policy_net", ["action_net"], ["log_std"], "Tanh",
                              ("mlp_extractor.value_net.", "value_net.")),
    "actor.mu.weight": Kind("SAC-like", "actor.latent_pi", ["actor.mu"],
                            ["actor.log_std.weight", "actor.log_std.bias"], "ReLU", ("critic.", "critic_target.")),
    "actor.mu.0.weight": Kind("TD3-like", "actor.mu", [], [], "ReLU", ("critic.", "critic_target.", "actor_target.")),
}  # fmt: skip
ACTIVATIONS = {name: getattr(nn, name)() for name in "Tanh ReLU LeakyReLU ELU SiLU GELU Mish Softplus Sigmoid".split()}
# draw(rng) -> the noise of one action `[Z]`; act(observations of all rows, noise [ROWS, Z]) -> [ROWS, A]
Policy = namedtuple("Policy", "name kind draw act")
STOP: list[int] = []  # signals that came


@dataclass
class Args:
    """Record a policy, or a mixture of policies, as a local dataset in Minari's format."""

    env_id: str  # registered Gymnasium id with actions in [-1, 1], such as Hopper-v5 or AdroitHandPen-v1
    policy: tuple[str, ...]  # one or more: zip of Stable-Baselines3, run folder of our own scripts, the word random
    weights: tuple[float, ...] = ()  # share of the episodes, one number for each policy; by default equal
    deterministic: bool = False  # the mean action of Stable-Baselines3 policies (TD3 and DDPG have no other)
    noise: tuple[float, ...] = (0.0,)  # std of normal noise on every action; of several, each episode draws one
    random_share: float = 0.0  # share of single actions that are replaced by uniform ones
    # npz with mean and var of Stable-Baselines3's observations, one for all or one for each policy, made from
    # s = VecNormalize.load("vecnormalize.pkl", venv).obs_rms by np.savez("stats.npz", mean=s.mean, var=s.var)
    obs_stats: tuple[Path, ...] = ()
    transitions: int = 100_000  # exactly so many: the last episode is cut to fit, and marked as truncated
    seed: int = 0  # seed of starts, noise and actions
    dataset_id: str | None = None  # Minari id of the new dataset; by default edq/<environment>/collected-v0
    reference: tuple[float, float] | None = None  # returns of score 0 and 100; by default D4RL's


def fail(sentence: str, error: Exception | None = None, when: bool = True) -> None:
    """Bad input: one sentence, exit code 2."""
    if when:
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        storage.fail(f"{sentence} ({why})" if error else sentence)


def short_name(env_id: str) -> str:
    """Hopper-v5 -> hopper, AdroitHandPen-v1 -> pen, AntMaze_UMaze-v4 -> antmaze-umaze."""
    return re.sub(r"-v\d+$", "", env_id).lower().removeprefix("adroithand").replace("_", "-")


def make_envs(env_id: str) -> list[gym.Env]:
    """The environments of all rows. An id like "module:id" would import; no such is registered."""
    fail(f"there is no registered environment {env_id!r}", when=env_id not in gym.registry)
    try:
        limit, envs = HANDS.get(short_name(env_id)), []
        for _ in range(ROWS):
            envs.append(gym.make(env_id, max_episode_steps=limit, disable_env_checker=True))
            if model := getattr(envs[-1].unwrapped, "tmp_xml_file_path", None):  # a maze leaves it behind
                os.unlink(model)
    except Exception as error:  # old versions, missing packages
        fail(f"{env_id} cannot be made", error)
    box = envs[0].action_space
    fits = isinstance(box, gym.spaces.Box) and box.low.ndim == 1 and (box.low == -1).all() and (box.high == 1).all()
    fail(f"the actions of {env_id} are not a vector in [-1, 1]", when=not fits)
    return envs


def sb3_policy(path: Path, obs_dim: int, act_dim: int, deterministic: bool, stats: Path | None) -> Policy:
    """The actor in a zip of Stable-Baselines3; what its JSON holds as pickles (":serialized:") is left alone."""
    with zipfile.ZipFile(path) as file:
        data, state = json.loads(file.read("data")), io.BytesIO(file.read("policy.pth"))
    state = {key: value.float() for key, value in torch.load(state, map_location="cpu", weights_only=True).items()}
    fail(f"{path} explores by gSDE, which is not supported", when=data.get("use_sde"))
    kind = next((kind for key, kind in KINDS.items() if key in state), None)
    fail(f"{path} holds no actor like PPO's, SAC's or TD3's for continuous actions", when=not kind)
    numbers = (re.fullmatch(re.escape(kind.hidden) + r"\.(\d+)\.weight", key) for key in state)
    layers = [f"{kind.hidden}.{number}" for number in sorted(int(match[1]) for match in numbers if match)] + kind.head
    used = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")] + kind.spread
    odd = [key for key in state if key not in used and not key.startswith(kind.idle)]  # CNN, LSTM, norms, ...
    odd += [key for key in used if key not in state or state[key].ndim != 1 + key.endswith("weight")]
    odd += [key for key in used if key in state and not state[key].isfinite().all()]
    kwargs = {key: str(value) for key, value in (data.get("policy_kwargs") or {}).items()}
    activation = kwargs.get("activation_fn", kind.activation)
    activation = activation.removeprefix("<class 'torch.nn.modules.activation.").removesuffix("'>")
    extractor = kwargs.get("features_extractor_class", "FlattenExtractor")
    odd += [activation] * (activation not in ACTIVATIONS) + [extractor] * ("FlattenExtractor" not in extractor)
    fail(f"{path} is no MlpPolicy that can be rebuilt: {''.join(odd[:1])} is missing or unsupported", when=bool(odd))
    sizes = (state[used[0]].shape[1], state[f"{layers[-1]}.weight"].shape[0])
    fail(f"{path} has {sizes} observations and actions, not {(obs_dim, act_dim)}", when=sizes != (obs_dim, act_dim))
    mean, var = np.zeros(obs_dim), None
    if stats:
        with np.load(stats, allow_pickle=False) as file:
            mean, var = (np.asarray(file[name], np.float64) for name in ("mean", "var"))
        good = mean.shape == var.shape == (obs_dim,) and np.isfinite([mean, var]).all() and var.min() >= 0
        fail(f"{stats} does not hold mean and var of {obs_dim} observations", when=not good)

    @torch.no_grad()
    def act(observations: list[np.ndarray], noise: np.ndarray) -> np.ndarray:
        x = np.stack(observations)
        x = x if var is None else np.clip((x - mean) / np.sqrt(var + 1e-8), -10, 10)  # VecNormalize's numbers
        x, noise = (torch.from_numpy(array.astype(np.float32)) for array in (x, noise))
        for layer in layers[:-1]:
            x = ACTIVATIONS[activation](F.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"]))
        out = F.linear(x, state[f"{layers[-1]}.weight"], state[f"{layers[-1]}.bias"])
        spread = [state[key] for key in kind.spread] if not deterministic else []
        if len(spread) == 1:
            out = out + noise * spread[0].exp()
        elif spread:
            out = out + noise * F.linear(x, *spread).clamp(-20, 2).exp()
        return (out if kind.name == "PPO-like" else out.tanh()).numpy()  # PPO's is clipped, as all actions are

    act([np.zeros(obs_dim)] * ROWS, np.zeros((ROWS, act_dim)))  # raises if the layers do not fit together
    return Policy(path.name, kind.name, lambda rng: rng.standard_normal(act_dim), act)


def own_policy(folder: Path, env_id: str, observation: dict | np.ndarray, act_dim: int) -> Policy:
    """A run of our own, acting as in its evaluations: the script's functions, and the newest checkpoint."""
    name = json.loads((folder / "run.json").read_text())["script"]
    fail(f"{folder} holds a run of {name!r}, none of our scripts", when=name not in SCRIPTS)  # it will be imported
    sys.path.append(str(ROOT))
    script = importlib.import_module(name.removesuffix(".py"))
    args, _ = script.parse_args(["--evaluate", str(folder), "--device", "cpu"])
    theirs = script.TASKS[args.env_id].env
    fail(f"{folder} acts in {theirs}, not in {env_id}", when=short_name(theirs) != short_name(env_id))
    agent = script.Agent(len(script.flatten_obs(observation)), act_dim, args)
    script.load_checkpoint(folder, agent)
    torch.set_num_threads(1)  # the checkpoint brings its own number
    shape = (args.num_diffusion_steps, args.num_candidates, act_dim)

    def draw(rng: np.random.Generator) -> np.ndarray:  # the noise of all candidates, and what chooses one of them
        return np.append(rng.standard_normal(np.prod(shape)), rng.random())

    def act(observations: list, noise: np.ndarray) -> np.ndarray:
        obs = torch.from_numpy(np.stack([script.flatten_obs(o) for o in observations]))
        noise = torch.from_numpy(noise.astype(np.float32))
        return script.act(agent, obs, noise[:, :-1].unflatten(1, shape).transpose(0, 1), noise[:, -1], args).numpy()

    return Policy(folder.resolve().name, name, draw, act)


def load_policy(args: Args, number: int, observation: dict | np.ndarray, act_dim: int) -> Policy:
    """One of --policy."""
    path, vector = Path(args.policy[number]), isinstance(observation, np.ndarray) and observation.ndim == 1
    if args.policy[number] == "random":
        return Policy("random", "random", lambda rng: rng.uniform(-1, 1, act_dim), lambda observations, noise: noise)
    fail(f"there is no policy file or run folder {path}", when=not path.exists())
    try:
        if path.is_dir():
            fail(f"--deterministic means nothing to {path}, which samples from a diffusion", when=args.deterministic)
            return own_policy(path, args.env_id, observation, act_dim)
        fail(f"{path} cannot act in {args.env_id}, whose observations are no vector", when=not vector)
        stats = args.obs_stats[number % len(args.obs_stats)] if args.obs_stats else None
        return sb3_policy(path, len(observation), act_dim, args.deterministic, stats)
    except Exception as error:  # zipfile, JSON, NumPy and torch fail in many ways
        fail(f"{path} cannot be read as a policy, without unpickling", error)


def tree_map(function, *trees):
    """Apply to arrays, or to those in dicts of dicts."""
    if isinstance(trees[0], dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)


def run_batch(args: Args, envs: list, policies: list[Policy], chosen: list[int], first: int, most: int) -> list[dict]:
    """Episodes first, first + 1, ... in lockstep, each with randomness of its own; none goes beyond `most` steps."""
    single = partial(np.array, dtype=np.float32)
    rngs = [np.random.default_rng([args.seed, first + row]) for row in range(ROWS)]
    seeds, stds = [int(rng.integers(2**31)) for rng in rngs], [rng.choice(args.noise) for rng in rngs]
    now = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)]  # as it is, for the policy
    visited = [[tree_map(single, obs)] for obs in now]  # copies, as an environment may use its array again
    steps, action, running = [[] for _ in envs], np.zeros((ROWS, *envs[0].action_space.shape)), list(range(ROWS))
    while running:
        if STOP:
            sys.exit(128 + STOP[0])  # not in the signal's handler: raised within a callback, an exit may get lost
        for number in {chosen[row] for row in running}:
            own = [row for row in running if chosen[row] == number]
            drawn = np.array([policies[number].draw(rngs[row]) for row in own])
            noise = np.zeros((ROWS, drawn.shape[1]))
            noise[own] = drawn
            action[own] = policies[number].act(now, noise)[own]
        for row in running:
            made = action[row] + stds[row] * rngs[row].standard_normal(action.shape[1])
            if rngs[row].random() < args.random_share:
                made = rngs[row].uniform(-1, 1, action.shape[1])
            made = made.clip(-1, 1).astype(np.float32)
            now[row], reward, terminated, truncated, _ = envs[row].step(made)
            visited[row].append(tree_map(single, now[row]))
            steps[row].append((made, float(reward), bool(terminated), bool(truncated)))
        running = [row for row in running if not any(steps[row][-1][2:]) and len(steps[row]) < most]
    names = ("actions", "rewards", "terminations", "truncations")
    return [
        dict(zip(names, map(np.array, zip(*steps[row]))), seed=seeds[row], policy=chosen[row])
        | {"observations": tree_map(lambda *x: np.stack(x), *visited[row])}
        for row in range(ROWS)
    ]


def record(args: Args, envs: list[gym.Env], policies: list[Policy], weights: np.ndarray, log: list) -> Iterator[dict]:
    """Episodes, as many transitions as asked; `log` gets policy, return, length of each, and whether it was cut."""
    left, first, counts = args.transitions, 0, np.zeros(len(policies))
    bar = tqdm(total=args.transitions, unit="transition", disable=None)
    while left:
        chosen = []
        for _ in range(ROWS):  # it is the turn of the policy that is furthest behind its share
            chosen.append(int(np.argmax(weights / weights.sum() * (counts.sum() + 1) - counts)))
            counts[chosen[-1]] += 1
        for episode in run_batch(args, envs, policies, chosen, first, left):
            if n := min(left, len(episode["rewards"])):
                episode |= {name: episode[name][:n] for name in ("actions", "rewards", "terminations", "truncations")}
                episode["observations"] = tree_map(lambda x, end=n + 1: x[:end], episode["observations"])
                cut = not (episode["terminations"][-1] or episode["truncations"][-1])
                episode["truncations"][-1] |= cut
                left -= n
                log.append((episode["policy"], episode["rewards"].sum(), n, cut))
                bar.update(n)
                yield episode
        first += ROWS
    bar.close()


def main(args: Args) -> None:
    """Check everything, then record and write, then tell what came out."""
    torch.set_num_threads(1)
    envs, name, inf = make_envs(args.env_id), short_name(args.env_id), float("inf")
    reference, n = args.reference or REFERENCES.get(name.split("-")[0]), len(args.policy)
    dataset_id, weights = args.dataset_id or f"edq/{name}/collected-v0", np.array(args.weights or [1] * n)
    sb3 = any(text != "random" and not Path(text).is_dir() for text in args.policy)
    fail("there is no --policy", when=not n)
    fail("--transitions starts at 1, --seed at 0", when=args.transitions < 1 or args.seed < 0)
    good = len(weights) == n and ((0 < weights) & (weights < inf)).all()
    fail("--weights are numbers above 0, one for each policy", when=not good)
    good = args.noise and all(0 <= std < inf for std in args.noise) and 0 <= args.random_share <= 1
    fail("--noise is one or more numbers from 0 on, --random-share lies in 0..1", when=not good)
    fail(f"there are no reference returns for {args.env_id}: give --reference LOW HIGH", when=not reference)
    fail("--reference is a return, and a higher one", when=not -inf < reference[0] < reference[1] < inf)
    good = len(args.obs_stats) in (0, 1, n) and (sb3 or not args.obs_stats)
    fail("--obs-stats is for Stable-Baselines3: one file for all policies, or one for each", when=not good)
    folder, log, observation = storage.folder_of(dataset_id), [], envs[0].reset(seed=0)[0]
    act_dim = len(envs[0].action_space.low)
    policies = [load_policy(args, number, observation, act_dim) for number in range(len(args.policy))]
    lists = [", ".join(f"{number:g}" for number in numbers) for numbers in (weights, args.noise)]
    what = f"policies {', '.join(p.name for p in policies)}; weights {lists[0]}; action noise of std {lists[1]}; "
    what += f"uniform actions {args.random_share:.0%}; seed {args.seed}" + "; mean actions" * args.deterministic
    try:
        storage.save(
            folder, dataset_id, record(args, envs, policies, weights, log), envs[0].spec, envs[0].spec,
            ref_min_score=reference[0], ref_max_score=reference[1], algorithm_name=", ".join(p.kind for p in policies),
            description=f"Recorded by results/datasets/collect.py: {what}.",
        )  # fmt: skip
    except OSError as error:
        fail(f"{folder} cannot be written", error)
    table = np.array(log, np.float64)  # [episodes, (policy, return, length, cut)]
    owner, total, length, _ = (table if table[:, 3].all() else table[table[:, 3] == 0]).T
    scored = total.clip(max=1) if "maze" in name else total  # a maze may go on after an arrival, which counts once
    score = 100 * (scored.mean() - reference[0]) / (reference[1] - reference[0])
    print(f"{dataset_id}, in {folder}: {len(table)} episodes, {table[:, 2].sum():.0f} transitions\n{what}")
    print(f"return {total.mean():.1f} +- {total.std():.1f}, score {score:.1f}, length {length.mean():.1f}", end="")
    print(f" over {len(total)} episodes" + ", without the last one, which was cut to fit" * (len(total) < len(table)))
    for number, policy in enumerate(policies):
        own, mean = table[:, 0] == number, total[owner == number].mean() if (owner == number).any() else np.nan
        shares = f"{own.mean():.1%} of the episodes, {table[own, 2].sum() / table[:, 2].sum():.1%} of the transitions"
        print(f"  {policy.name} ({policy.kind}): {shares}, return {mean:.1f}")


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # heeded between two steps, so that nothing unfinished stays behind
        signal.signal(number, lambda number, _: STOP.append(number))
    main(tyro.cli(Args))
