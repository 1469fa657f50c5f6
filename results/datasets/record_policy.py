"""Record what a policy, or a mixture of several, does in an environment, in Minari's format.

A policy is a zip of Stable-Baselines3 (PPO, A2C, TRPO; SAC, TQC; TD3, DDPG; an "MlpPolicy" without
gSDE), an npz with the weights of an MLP, a run folder of our own scripts, or the word `random`.
Nothing is unpickled: of a zip the plain JSON and the weights are read, and the network is rebuilt
from the names and sizes of the weights. Stable-Baselines3 is not needed.

    python results/datasets/record_policy.py --env-id Hopper-v5 --policy ppo.zip \\
        --dataset-id edq/hopper/medium-v0
    python results/datasets/record_policy.py --env-id Hopper-v5 \\
        --policy early.zip late.zip random --weights 2 2 1 --noise 0 0.1 0.3 \\
        --dataset-id edq/hopper/medium-replay-v0

Where a policy saw observations normalised by VecNormalize, export those statistics (a pickle, so
not read here) with
    s = VecNormalize.load("vecnormalize.pkl", venv).obs_rms
    np.savez("stats.npz", mean=s.mean, var=s.var)
and add --obs-stats stats.npz.

An npz holds W0, b0, W1, b1, ... (matrices `[in, out]`), activation (such as "Tanh"), squash
(whether tanh follows the last layer), and for policies with noise of their own log_std `[A]`, or
std_W and std_b, a layer that gives the log std from the last hidden layer. What scales inputs and
outputs beside the layers is to be folded into the first and the last of them.

Equal arguments give equal arrays on one machine; another processor may round otherwise.
"""

import importlib
import io
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import gymnasium_robotics
import minari_writer
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from import_d4rl import FAMILIES, HANDS
from torch import Tensor, nn
from tqdm import tqdm

gym.register_envs(gymnasium_robotics)
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("edq_mujoco.py", "edq_antmaze.py", "edq_adroit.py")
ROWS = 10  # environments in lockstep; always as many, as a matmul of another size rounds otherwise
# D4RL's time limits of Adroit, and its returns of a random and an expert policy.
LIMITS = {hand: FAMILIES[hand].limit for hand in HANDS}
REFERENCES = {
    name.split("-")[0]: (family.random_return, family.expert_return)
    for name, family in FAMILIES.items()
}
REFERENCES["pointmaze"] = (0.0, 1.0)


class Kind(NamedTuple):
    """What a zip may hold, told by a weight that no other kind has."""

    name: str
    hidden: str  # name of the hidden layers
    head: list[str]  # of the last layer, if it is apart
    spread: list[str]  # of the weights that say how far actions are spread
    activation: str  # unless the file names one
    idle: tuple[str, ...]  # weights that take no part in acting


KINDS = {
    "action_net.weight": Kind(
        "PPO-like",
        "mlp_extractor.policy_net",
        ["action_net"],
        ["log_std"],
        "Tanh",
        ("mlp_extractor.value_net.", "value_net."),
    ),
    "actor.mu.weight": Kind(
        "SAC-like",
        "actor.latent_pi",
        ["actor.mu"],
        ["actor.log_std.weight", "actor.log_std.bias"],
        "ReLU",
        ("critic.", "critic_target."),
    ),
    "actor.mu.0.weight": Kind(
        "TD3-like",
        "actor.mu",
        [],
        [],
        "ReLU",
        ("critic.", "critic_target.", "actor_target."),
    ),
}
ACTIVATIONS = {
    "Tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "LeakyReLU": nn.LeakyReLU(),
    "ELU": nn.ELU(),
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(),
    "Mish": nn.Mish(),
    "Softplus": nn.Softplus(),
    "Sigmoid": nn.Sigmoid(),
}


class Policy(NamedTuple):
    """Something that acts."""

    name: str
    kind: str
    draw: Callable[[np.random.Generator], np.ndarray]  # the noise of one action, `[Z]`
    act: Callable[[list, np.ndarray], np.ndarray]  # observations, noise `[ROWS, Z]` -> `[ROWS, A]`


STOP: list[int] = []  # signals that came


@dataclass
class Args:
    """Record a policy, or a mixture of policies, as a local dataset in Minari's format."""

    env_id: str
    """registered Gymnasium id with actions in [-1, 1], such as Hopper-v5 or AdroitHandPen-v1"""
    policy: tuple[str, ...]
    """one or more: zip of Stable-Baselines3, npz, run folder of our own scripts, the word random"""
    weights: tuple[float, ...] = ()
    """share of the episodes, one number for each policy; by default equal"""
    temperature: tuple[float, ...] = (1.0,)
    """factor of the std of a policy's own noise, one for all or one for each; 0: the mean action"""
    noise: tuple[float, ...] = (0.0,)
    """std of normal noise on every action; of several, each episode draws one"""
    random_share: float = 0.0
    """share of single actions that are replaced by uniform ones"""
    obs_stats: tuple[Path, ...] = ()
    """npz with mean and var of the observations, one for all policies or one for each"""
    transitions: int = 100_000
    """exactly so many: the last episode is cut to fit, and marked as truncated"""
    seed: int = 0
    """seed of starts, noise and actions"""
    dataset_id: str | None = None
    """Minari id of the new dataset; by default edq/<environment>/collected-v0"""
    reference: tuple[float, float] | None = None
    """returns of score 0 and 100; by default D4RL's"""


def fail(sentence: str, error: Exception | None = None) -> None:
    """Bad input: one sentence, exit code 2."""
    if error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sentence = f"{sentence} ({reason[:200]})"
    minari_writer.fail(sentence)


def check(condition: object, sentence: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        fail(sentence)


def short_name(env_id: str) -> str:
    """Hopper-v5 -> hopper, AdroitHandPen-v1 -> pen, AntMaze_UMaze-v4 -> antmaze-umaze."""
    name = re.sub(r"-v\d+$", "", env_id).lower()
    return name.removeprefix("adroithand").replace("_", "-")


def make_envs(env_id: str) -> list[gym.Env]:
    """The environments of all rows. An id like "module:id" would import; no such is registered."""
    check(env_id in gym.registry, f"there is no registered environment {env_id!r}")
    limit = LIMITS.get(short_name(env_id))
    envs = []
    try:
        for _ in range(ROWS):
            env = gym.make(env_id, max_episode_steps=limit, disable_env_checker=True)
            model = getattr(env.unwrapped, "tmp_xml_file_path", None)
            if model:  # a maze leaves it behind
                os.unlink(model)
            envs.append(env)
    except Exception as error:  # old versions, missing packages
        fail(f"{env_id} cannot be made", error)
    box = envs[0].action_space
    is_vector = isinstance(box, gym.spaces.Box) and box.low.ndim == 1
    fits = is_vector and (box.low == -1).all() and (box.high == 1).all()
    check(fits, f"the actions of {env_id} are not a vector in [-1, 1]")
    return envs


@dataclass
class Mlp:
    """A policy's network. A layer is (weight `[out, in]`, bias `[out]`)."""

    layers: list[tuple[Tensor, Tensor]]
    activation: nn.Module
    squash: bool  # tanh after the last layer; else actions are clipped, as all are
    log_std: Tensor | None = None  # `[A]`
    std_layer: tuple[Tensor, Tensor] | None = None  # log std from the last hidden layer
    mean: np.ndarray | None = None  # of observations, as VecNormalize has them
    var: np.ndarray | None = None

    @torch.no_grad()
    def act(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Observations `[N, S]`, standard normal noise `[N, A]` -> actions `[N, A]`."""
        if self.mean is not None:
            obs = np.clip((obs - self.mean) / np.sqrt(self.var + 1e-8), -10, 10)
        x = torch.from_numpy(obs.astype(np.float32))
        z = torch.from_numpy(noise.astype(np.float32))
        for layer in self.layers[:-1]:
            x = self.activation(F.linear(x, *layer))
        out = F.linear(x, *self.layers[-1])
        if self.log_std is not None:
            out = out + z * self.log_std.exp()
        elif self.std_layer is not None:
            out = out + z * F.linear(x, *self.std_layer).clamp(-20, 2).exp()
        if self.squash:
            out = out.tanh()
        return out.numpy()


def sb3_network(path: Path) -> tuple[Mlp, str]:
    """The actor in a zip of Stable-Baselines3, and its kind.

    What its JSON holds as pickles (":serialized:") is left alone.
    """
    with zipfile.ZipFile(path) as file:
        data = json.loads(file.read("data"))
        content = io.BytesIO(file.read("policy.pth"))
    loaded = torch.load(content, map_location="cpu", weights_only=True)
    state = {key: value.float() for key, value in loaded.items()}
    check(not data.get("use_sde"), f"{path} explores by gSDE, which is not supported")
    kind = next((kind for key, kind in KINDS.items() if key in state), None)
    check(kind, f"{path} holds no actor like PPO's, SAC's or TD3's for continuous actions")
    pattern = re.compile(re.escape(kind.hidden) + r"\.(\d+)\.weight")
    matches = [pattern.fullmatch(key) for key in state]
    numbers = sorted(int(match[1]) for match in matches if match)
    names = [f"{kind.hidden}.{number}" for number in numbers] + kind.head
    used = [f"{name}.{part}" for name in names for part in ("weight", "bias")] + kind.spread
    odd = []
    for key in state:
        if key not in used and not key.startswith(kind.idle):  # CNN, LSTM, norms, ...
            odd.append(key)
    for key in used:
        dims = 2 if key.endswith("weight") else 1
        if key not in state or state[key].ndim != dims or not state[key].isfinite().all():
            odd.append(key)
    kwargs = {key: str(value) for key, value in (data.get("policy_kwargs") or {}).items()}
    activation = kwargs.get("activation_fn", kind.activation)
    activation = activation.removeprefix("<class 'torch.nn.modules.activation.").removesuffix("'>")
    if activation not in ACTIVATIONS:
        odd.append(activation)
    extractor = kwargs.get("features_extractor_class", "FlattenExtractor")
    if "FlattenExtractor" not in extractor:
        odd.append(extractor)
    if odd:
        fail(f"{path} is no MlpPolicy that can be rebuilt: {odd[0]} is missing or unsupported")
    spread = [state[key] for key in kind.spread]
    network = Mlp(
        layers=[(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names],
        activation=ACTIVATIONS[activation],
        squash=kind.name != "PPO-like",  # PPO's is clipped
        log_std=spread[0] if len(spread) == 1 else None,
        std_layer=tuple(spread) if len(spread) == 2 else None,
    )
    return network, kind.name


def npz_network(path: Path) -> tuple[Mlp, str]:
    """The network in an npz file; see the top of this file for its layout."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    activation = str(arrays.pop("activation"))
    squash = bool(arrays.pop("squash"))
    check(activation in ACTIVATIONS, f"{path} has the unsupported activation {activation}")
    count = sum(re.fullmatch(r"W\d+", name) is not None for name in arrays)
    layers = [(f"W{i}", f"b{i}") for i in range(count)]
    names = {name for layer in layers for name in layer}
    for name, array in arrays.items():
        known = name in names or name in ("log_std", "std_W", "std_b")
        check(known and np.isfinite(array).all(), f"{path} has a {name} that cannot be used")

    def layer(weight: str, bias: str) -> tuple[Tensor, Tensor]:
        return torch.tensor(arrays[weight].T).float(), torch.tensor(arrays[bias]).float()

    network = Mlp([layer(*pair) for pair in layers], ACTIVATIONS[activation], squash)
    if "log_std" in arrays:
        network.log_std = torch.tensor(arrays["log_std"]).float()
    elif "std_W" in arrays:
        network.std_layer = layer("std_W", "std_b")
    return network, "MLP"


def mlp_policy(
    path: Path, obs_dim: int, act_dim: int, temperature: float, stats: Path | None
) -> Policy:
    """A policy from a zip or an npz file."""
    network, kind = npz_network(path) if path.suffix == ".npz" else sb3_network(path)
    sizes = (network.layers[0][0].shape[1], network.layers[-1][0].shape[0])
    expected = (obs_dim, act_dim)
    check(sizes == expected, f"{path} has {sizes} observations and actions, not {expected}")
    if stats:
        with np.load(stats.expanduser(), allow_pickle=False) as file:
            network.mean = np.asarray(file["mean"], np.float64)
            network.var = np.asarray(file["var"], np.float64)
        fits = network.mean.shape == network.var.shape == (obs_dim,)
        good = fits and np.isfinite([network.mean, network.var]).all() and network.var.min() >= 0
        check(good, f"{stats} does not hold mean and var of {obs_dim} observations")

    def draw(rng: np.random.Generator) -> np.ndarray:
        return temperature * rng.standard_normal(act_dim)

    def act(observations: list[np.ndarray], noise: np.ndarray) -> np.ndarray:
        return network.act(np.stack(observations), noise)

    # Raises if the layers do not fit together.
    act([np.zeros(obs_dim)] * ROWS, np.zeros((ROWS, act_dim)))
    return Policy(path.name, kind, draw, act)


def random_policy(act_dim: int) -> Policy:
    """Uniform actions."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1, 1, act_dim)

    return Policy("random", "random", draw, lambda observations, noise: noise)


def own_policy(folder: Path, env_id: str, observation: dict | np.ndarray, act_dim: int) -> Policy:
    """A run of our own, acting as in its evaluations: the script's functions, its checkpoint."""
    name = json.loads((folder / "run.json").read_text())["script"]
    # It will be imported.
    check(name in SCRIPTS, f"{folder} holds a run of {name!r}, none of our scripts")
    sys.path.append(str(ROOT))
    script = importlib.import_module(name.removesuffix(".py"))
    args = script.parse_args(["--evaluate", str(folder), "--device", "cpu"])
    theirs = script.TASKS[args.env_id].env
    same = short_name(theirs) == short_name(env_id)
    check(same, f"{folder} acts in {theirs}, not in {env_id}")
    agent = script.Agent(len(script.flatten_obs(observation)), act_dim, args)
    loaded = script.load_checkpoint(folder, agent)
    check(loaded is not None, f"{folder} has no checkpoint yet")
    torch.set_num_threads(1)  # the checkpoint brings its own number
    shape = (args.num_diffusion_steps, args.num_candidates, act_dim)

    def draw(rng: np.random.Generator) -> np.ndarray:
        """The noise of all candidates, and the number that chooses one of them."""
        return np.append(rng.standard_normal(np.prod(shape)), rng.random())

    def act(observations: list, noise: np.ndarray) -> np.ndarray:
        obs = torch.from_numpy(np.stack([script.flatten_obs(o) for o in observations]))
        noise = torch.from_numpy(noise.astype(np.float32))
        chain = noise[:, :-1].unflatten(1, shape).transpose(0, 1)
        return script.act(agent, obs, chain, noise[:, -1], args).numpy()

    return Policy(folder.resolve().name, name, draw, act)


def load_policy(args: Args, number: int, observation: dict | np.ndarray, act_dim: int) -> Policy:
    """One of --policy."""
    if args.policy[number] == "random":
        return random_policy(act_dim)
    path = Path(args.policy[number]).expanduser()
    temperature = args.temperature[number % len(args.temperature)]
    check(path.exists(), f"there is no policy file or run folder {path}")
    try:
        if path.is_dir():
            words = f"--temperature means nothing to {path}, which samples from a diffusion"
            check(temperature == 1, words)
            return own_policy(path, args.env_id, observation, act_dim)
        is_vector = isinstance(observation, np.ndarray) and observation.ndim == 1
        check(is_vector, f"{path} cannot act in {args.env_id}, whose observations are no vector")
        stats = args.obs_stats[number % len(args.obs_stats)] if args.obs_stats else None
        return mlp_policy(path, len(observation), act_dim, temperature, stats)
    except Exception as error:  # zipfile, JSON, NumPy and torch fail in many ways
        fail(f"{path} cannot be read as a policy, without unpickling", error)


def tree_map(function: Callable, *trees: dict | np.ndarray) -> dict | np.ndarray:
    """Apply to arrays, or to those in dicts of dicts."""
    if isinstance(trees[0], dict):
        return {key: tree_map(function, *(tree[key] for tree in trees)) for key in trees[0]}
    return function(*trees)


def copy_of(obs: np.ndarray) -> np.ndarray:
    """Stored as float32; a copy, as an environment may use its array again."""
    return np.array(obs, np.float32)


class Episode:
    """One running episode, with randomness of its own."""

    def __init__(self, args: Args, env: gym.Env, number: int, policy: int):
        self.args = args
        self.env = env
        self.policy = policy
        self.rng = np.random.default_rng([args.seed, number])
        self.seed = int(self.rng.integers(2**31))
        self.std = self.rng.choice(args.noise)
        self.obs = env.reset(seed=self.seed)[0]  # as it is, for the policy
        self.observations = [tree_map(copy_of, self.obs)]
        self.actions = []
        self.rewards = []
        self.terminations = []
        self.truncations = []

    def step(self, action: np.ndarray) -> None:
        size = len(action)
        action = action + self.std * self.rng.standard_normal(size)
        if self.rng.random() < self.args.random_share:
            action = self.rng.uniform(-1, 1, size)
        action = action.clip(-1, 1).astype(np.float32)
        self.obs, reward, terminated, truncated, _ = self.env.step(action)
        self.observations.append(tree_map(copy_of, self.obs))
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.terminations.append(bool(terminated))
        self.truncations.append(bool(truncated))

    def is_over(self) -> bool:
        return self.terminations[-1] or self.truncations[-1]

    def first_steps(self, count: int) -> dict:
        """As the writer wants it; an episode that is cut counts as truncated."""
        truncations = np.array(self.truncations[:count])
        truncations[-1] |= not self.terminations[count - 1]
        return {
            "observations": tree_map(lambda *x: np.stack(x), *self.observations[: count + 1]),
            "actions": np.array(self.actions[:count]),
            "rewards": np.array(self.rewards[:count]),
            "terminations": np.array(self.terminations[:count]),
            "truncations": truncations,
            "seed": self.seed,
        }


def run_batch(
    args: Args,
    envs: list[gym.Env],
    policies: list[Policy],
    chosen: list[int],
    first: int,
    most: int,
) -> list[Episode]:
    """Episodes first, first + 1, ... in lockstep; none goes beyond `most` steps."""
    episodes = [
        Episode(args, env, first + row, policy)
        for row, (env, policy) in enumerate(zip(envs, chosen))
    ]
    running = list(range(ROWS))
    action = np.zeros((ROWS, *envs[0].action_space.shape))
    while running:
        if STOP:
            # Not in the signal's handler: raised within a callback, an exit may get lost.
            sys.exit(128 + STOP[0])
        observations = [episode.obs for episode in episodes]
        for number in {chosen[row] for row in running}:
            own = [row for row in running if chosen[row] == number]
            drawn = np.array([policies[number].draw(episodes[row].rng) for row in own])
            noise = np.zeros((ROWS, drawn.shape[1]))
            noise[own] = drawn
            action[own] = policies[number].act(observations, noise)[own]
        for row in running:
            episodes[row].step(action[row])
        running = [
            row
            for row in running
            if not episodes[row].is_over() and len(episodes[row].rewards) < most
        ]
    return episodes


class Log(NamedTuple):
    """What is told of an episode at the end."""

    policy: int
    total: float  # return
    length: int
    cut: bool  # to fit the number of transitions


def record(
    args: Args, envs: list[gym.Env], policies: list[Policy], weights: np.ndarray, log: list[Log]
) -> Iterator[dict]:
    """Episodes, as many transitions as asked; fills `log`."""
    left = args.transitions
    first = 0
    shares = weights / weights.sum()
    counts = np.zeros(len(policies))
    bar = tqdm(total=args.transitions, unit="transition", disable=None)
    while left:
        chosen = []
        for _ in range(ROWS):  # the turn of the policy that is furthest behind its share
            behind = shares * (counts.sum() + 1) - counts
            chosen.append(int(np.argmax(behind)))
            counts[chosen[-1]] += 1
        for episode in run_batch(args, envs, policies, chosen, first, left):
            count = min(left, len(episode.rewards))
            if count == 0:
                break
            cut = count < len(episode.rewards) or not episode.is_over()
            stored = episode.first_steps(count)
            log.append(Log(episode.policy, stored["rewards"].sum(), count, cut))
            left -= count
            bar.update(count)
            yield stored
        first += ROWS
    bar.close()


def check_args(args: Args, reference: tuple[float, float] | None, weights: np.ndarray) -> None:
    """Refuse arguments that cannot be meant."""
    count = len(args.policy)
    per_policy = (1, count)
    has_files = any(text != "random" and not Path(text).is_dir() for text in args.policy)
    check(count, "there is no --policy")
    check(args.transitions >= 1 and args.seed >= 0, "--transitions starts at 1, --seed at 0")
    good = len(weights) == count and (weights > 0).all() and np.isfinite(weights).all()
    check(good, "--weights are numbers above 0, one for each policy")
    for name in ("noise", "temperature"):
        numbers = getattr(args, name)
        good = numbers and all(0 <= number < np.inf for number in numbers)
        check(good, f"--{name} is one or more numbers from 0 on")
    check(len(args.temperature) in per_policy, "--temperature: one for all, or one for each policy")
    check(0 <= args.random_share <= 1, "--random-share lies in 0..1")
    check(reference, f"there are no reference returns for {args.env_id}: give --reference LOW HIGH")
    low, high = reference
    check(-np.inf < low < high < np.inf, "--reference is a return, and a higher one")
    good = not args.obs_stats or (has_files and len(args.obs_stats) in per_policy)
    check(good, "--obs-stats is for files: one for all policies, or one for each")


def numbers(values: tuple[float, ...] | np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


def report(args: Args, policies: list[Policy], log: list[Log], reference: tuple) -> None:
    """Tell what came out."""
    whole = [episode for episode in log if not episode.cut] or log
    total = np.array([episode.total for episode in whole])
    length = np.mean([episode.length for episode in whole])
    # A maze may go on after an arrival, which counts once.
    scored = total.clip(max=1) if "maze" in short_name(args.env_id) else total
    score = 100 * (scored.mean() - reference[0]) / (reference[1] - reference[0])
    steps = sum(episode.length for episode in log)
    print(f"{len(log)} episodes, {steps} transitions")
    print(
        f"return {total.mean():.1f} +- {total.std():.1f} (std), score {score:.1f}, "
        f"length {length:.1f} over {len(whole)} episodes"
        + (", without the last one, which was cut to fit" if len(whole) < len(log) else "")
    )
    for number, policy in enumerate(policies):
        own = [episode for episode in log if episode.policy == number]
        returns = [episode.total for episode in whole if episode.policy == number]
        own_steps = sum(episode.length for episode in own)
        print(
            f"  {policy.name} ({policy.kind}): {len(own) / len(log):.1%} of the episodes, "
            f"{own_steps / steps:.1%} of the transitions, "
            f"return {np.mean(returns) if returns else np.nan:.1f}"
        )


def main(args: Args) -> None:
    """Check everything, then record and write, then tell what came out."""
    torch.set_num_threads(1)
    envs = make_envs(args.env_id)
    name = short_name(args.env_id)
    reference = args.reference or REFERENCES.get(name.split("-")[0])
    weights = np.array(args.weights or [1] * len(args.policy))
    check_args(args, reference, weights)
    dataset_id = args.dataset_id or f"edq/{name}/collected-v0"
    folder = minari_writer.folder_of(dataset_id)
    observation = envs[0].reset(seed=0)[0]
    act_dim = len(envs[0].action_space.low)
    policies = [load_policy(args, i, observation, act_dim) for i in range(len(args.policy))]
    what = (
        f"policies {', '.join(policy.name for policy in policies)}; weights {numbers(weights)}; "
        f"temperature {numbers(args.temperature)}; action noise of std {numbers(args.noise)}; "
        f"uniform actions {args.random_share:.0%}; seed {args.seed}"
    )
    log = []
    try:
        minari_writer.save(
            folder,
            dataset_id,
            record(args, envs, policies, weights, log),
            envs[0].spec,
            envs[0].spec,
            tool=Path(__file__).name,
            ref_min_score=reference[0],
            ref_max_score=reference[1],
            algorithm_name=", ".join(policy.kind for policy in policies),
            description=f"Recorded: {what}.",
        )
    except OSError as error:
        fail(f"{folder} cannot be written", error)
    print(f"{dataset_id}, in {folder}: {what}")
    report(args, policies, log, reference)


if __name__ == "__main__":
    # Heeded between two steps, so that nothing unfinished stays behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: STOP.append(number))
    main(tyro.cli(Args))
