"""Other learners on the same data, scored by our own evaluation: IQL, TD3+BC, ReBRAC, BC, and EDQ's
authors' own code.

    python -m venv venv-peer
    venv-peer/bin/pip install -r results/studies/benchmark/peer-requirements.txt
    venv-peer/bin/pip install --no-deps d3rlpy==2.8.1
    venv-peer/bin/python results/studies/benchmark/peer.py --script edq_adroit --algorithm iql \\
        --env-id pen-cloned --dataset-id agents/pen/mixed-v0 --run-dir runs/pen__iql__0

The learners are those of d3rlpy; `--algorithm authors` needs none of it, but a clone of
github.com/ruoqizzz/entropy-offlineRL, named with `--authors`. The data are read by the script's own
`load_dataset`: both learn from the same transitions, with the same end of an episode. Batches are
drawn here, uniformly, and handed to the learner. The actions of the trained policy are scored by
the script's own `evaluate`, on its seeds. Where the peer arrives and EDQ does not, the reason is
ours; where neither does, it is the data.

The run folder has the files of a script's run: run.json, metrics.csv, evaluations.csv and
summary.json. So `pilots.py` reads it like any other. There is no checkpoint: a run takes minutes.

Networks and learning rates are d3rlpy's own: two hidden layers of 256, batch 256. Observations
are standardised. What differs by family is in `SETTINGS`, from the papers: IQL (Kostrikov et al.
2021), TD3+BC (Fujimoto and Gu 2021), ReBRAC (Tarasov et al. 2023). BC minimises the mean squared
error. The authors' agent has the row of our umaze pilot: four critics, beta = 1, no entropy term,
and the best of 50 candidates acts.
"""

import csv
import importlib
import importlib.metadata
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from results.common.runs import evaluate_with, fail

SETTINGS = {
    ("iql", "adroit"): {"expectile": 0.7, "weight_temp": 0.5},
    ("iql", "mujoco"): {"expectile": 0.7, "weight_temp": 3.0},
    ("iql", "antmaze"): {"expectile": 0.9, "weight_temp": 10.0},
    ("td3bc", "adroit"): {},
    ("td3bc", "mujoco"): {},
    ("td3bc", "antmaze"): {},
    ("rebrac", "adroit"): {"actor_beta": 0.1, "critic_beta": 0.1},
    ("rebrac", "mujoco"): {"actor_beta": 0.01, "critic_beta": 0.01},
    ("rebrac", "antmaze"): {"actor_beta": 0.003, "critic_beta": 0.002},
    ("bc", "adroit"): {},
    ("bc", "mujoco"): {},
    ("bc", "antmaze"): {},
    ("authors", "antmaze"): {
        "eta": 2.0,
        "n_timesteps": 5,
        "lr": 1e-3,
        "grad_norm": 4.0,
        "ent_coef": 0.0,
        "num_critics": 4,
        "lcb_coef": 1.0,
        "loss_type": "NML",
        "action_clip": True,
    },
}
CANDIDATES = 50  # of the authors' agent, when it acts


@dataclass
class Args:
    """Train another learner on a Minari set and score it as the scripts score theirs."""

    script: Literal["edq_adroit", "edq_antmaze", "edq_mujoco"]
    """whose data loading and evaluation are used"""
    env_id: str
    """task of that script"""
    run_dir: Path
    """folder of this run"""
    algorithm: Literal["iql", "td3bc", "rebrac", "bc", "authors"] = "iql"
    """learner"""
    authors: Path | None = None
    """clone of the authors' repository, for the learner of that name"""
    dataset_id: str | None = None
    """Minari id or folder; by default the task's own"""
    reward: Literal["raw", "antmaze", "standardize"] | None = None
    """what critics see; by default the task's own"""
    seed: int = 0
    """seed of networks, batches and evaluation episodes"""
    gradient_steps: int = 20_000
    """number of updates"""
    batch_size: int = 256
    """transitions per update"""
    gamma: float = 0.99
    """discount factor per step"""
    tau: float = 0.02
    """Polyak rate of the target critics, the same as in the suite's row for EDQ"""
    eval_every: int = 5000
    """updates between two evaluations"""
    eval_episodes: int = 20
    """episodes of one evaluation"""


@dataclass
class Arrays:
    """A dataset as numpy arrays. N transitions."""

    obs: np.ndarray  # [N, S]
    action: np.ndarray  # [N, A]
    reward: np.ndarray  # [N, 1]
    next_obs: np.ndarray  # [N, S]
    next_action: (
        np.ndarray
    )  # [N, A], what the data do next; where an episode ends, the action itself
    end: np.ndarray  # [N, 1], 1 where no future follows


def arrays_of(data) -> Arrays:
    """The script's `Transitions`, with the data's next action for the learners that ask for it."""
    obs, action, reward, next_obs, end = (x.numpy() for x in data)
    next_action = action.copy()
    goes_on = (next_obs[:-1] == obs[1:]).all(1)
    next_action[:-1][goes_on] = action[1:][goes_on]
    return Arrays(obs, action, reward[:, None], next_obs, next_action, end[:, None])


def draw(data: Arrays, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A uniform batch, by the names of d3rlpy's `TransitionMiniBatch`."""
    index = rng.integers(len(data.obs), size=size)
    return {
        "observations": data.obs[index],
        "actions": data.action[index],
        "rewards": data.reward[index],
        "next_observations": data.next_obs[index],
        "next_actions": data.next_action[index],
        "terminals": data.end[index],
        "intervals": np.ones((size, 1), np.float32),
    }


def settings_of(args: Args) -> dict:
    """Keyword arguments of the learner's config in d3rlpy."""
    own = SETTINGS[args.algorithm, args.script.removeprefix("edq_")]
    shared = {"batch_size": args.batch_size, "gamma": args.gamma}
    if args.algorithm != "bc":
        shared["tau"] = args.tau
    return shared | own


class Learner:
    """A learner of d3rlpy behind two functions: `update(batch)` and `predict(obs)`."""

    def __init__(self, args: Args, obs_dim: int, act_dim: int):
        import d3rlpy

        configs = {
            "iql": d3rlpy.algos.IQLConfig,
            "td3bc": d3rlpy.algos.TD3PlusBCConfig,
            "rebrac": d3rlpy.algos.ReBRACConfig,
            "bc": d3rlpy.algos.BCConfig,
        }
        d3rlpy.seed(args.seed)
        config = configs[args.algorithm](**settings_of(args))
        self.algorithm = config.create(device="cpu:0")
        self.algorithm.create_impl((obs_dim,), act_dim)
        self.batch_type = d3rlpy.dataset.TransitionMiniBatch

    def update(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        return self.algorithm.update(self.batch_type(**batch, transitions=[]))

    def predict(self, obs: np.ndarray) -> np.ndarray:
        """Greedy actions; `[R, S]` -> `[R, A]` in [-1, 1]."""
        return self.algorithm.predict(obs)


class Authors:
    """The authors' EDQ behind the same two functions."""

    def __init__(self, args: Args, obs_dim: int, act_dim: int):
        sys.path.insert(0, str(args.authors.expanduser()))
        theirs = importlib.import_module("agents.eql_diffusion")
        theirs.tqdm = lambda iterations: iterations  # a progress bar of one update each
        torch.manual_seed(args.seed)
        own = settings_of(args)
        self.batch_size = own.pop("batch_size")
        gamma, tau = own.pop("gamma"), own.pop("tau")
        self.lcb_coef = own["lcb_coef"]
        self.agent = theirs.Diffusion_EQL(obs_dim, act_dim, 1.0, "cpu", gamma, tau, **own)

    def update(self, batch: dict[str, np.ndarray]) -> None:
        names = ("observations", "actions", "next_observations", "rewards")
        tensors = [torch.from_numpy(batch[name]) for name in names]
        not_done = 1 - torch.from_numpy(batch["terminals"])
        buffer = SimpleNamespace(sample=lambda size: (*tensors, not_done))
        self.agent.train(buffer, 1, self.batch_size)

    @torch.no_grad()
    def predict(self, obs: np.ndarray) -> np.ndarray:
        """The candidate with the highest LCB; `[R, S]` -> `[R, A]`."""
        R = len(obs)
        obs = torch.from_numpy(obs).float().repeat_interleave(CANDIDATES, 0)
        action = self.agent.actor(obs)
        q = self.agent.critic_target(obs, action)  # [R * K, M]
        value = (q.mean(1) - self.lcb_coef * q.std(1)).view(R, CANDIDATES)
        best = value.argmax(1)
        return action.view(R, CANDIDATES, -1)[torch.arange(R), best].numpy()


def score(edq, learner, envs, args, reference, mean: np.ndarray, std: np.ndarray) -> list[dict]:
    """The script's evaluation, with the learner's actions in place of the agent's."""

    def act(agent, obs, noise, u, args) -> torch.Tensor:
        action = learner.predict((obs.numpy() - mean) / std)
        return torch.from_numpy(action).float().clamp(-1, 1)

    zeros = torch.zeros(len(mean))
    agent = SimpleNamespace(obs_mean=zeros, obs_std=zeros + 1)
    return evaluate_with(act, edq, agent, envs, args, reference)


def write_rows(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def describe(edq_args, args: Args, info: dict) -> dict:
    """run.json: all that was used."""
    names = ("torch", "numpy", "gymnasium", "mujoco", "minari", "d3rlpy")
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    settings = settings_of(args)
    critics = 0 if args.algorithm == "bc" else settings.get("num_critics", 2)
    own = {
        "preset": args.algorithm,
        "num_critics": critics,
        "reward": edq_args.reward,
        "diffusion_loss": "",
        "action_clip": "",
        "precision": "fp32",
        "compile": False,
        "hidden_dim": 256,
    }
    return {
        "script": "results/studies/benchmark/peer.py",
        "flags": sys.argv[1:],
        "args": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
        | own
        | settings,
        "settings": settings,
        "normalize_obs": True,
        "dataset": info,
        "git_commit": None,
        "threads": torch.get_num_threads(),
        "gpu": False,
        "versions": {name: importlib.metadata.version(name) for name in names if name in installed},
        "python": sys.version.split()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def check(args: Args) -> None:
    """The authors' agent needs their code, and has a row for one family."""
    if args.algorithm != "authors":
        return
    if args.script != "edq_antmaze":
        fail("--algorithm authors has a row for edq_antmaze alone")
    if not args.authors or not (args.authors.expanduser() / "agents").is_dir():
        fail("--algorithm authors needs --authors, a clone of ruoqizzz/entropy-offlineRL")


def main(args: Args, make_learner=None) -> dict:
    """Train, evaluating on the way; returns what summary.json holds."""
    make_learner = make_learner or (Authors if args.algorithm == "authors" else Learner)
    check(args)
    edq = importlib.import_module(args.script)
    flags = ["--env-id", args.env_id, "--seed", str(args.seed), "--device", "cpu"]
    flags += ["--eval-episodes", str(args.eval_episodes), "--num-candidates", "1"]
    if args.dataset_id:
        flags += ["--dataset-id", args.dataset_id]
    if args.reward:
        flags += ["--reward", args.reward]
    edq_args = edq.parse_args(flags)
    transitions, info = edq.load_dataset(edq_args, "cpu")
    data = arrays_of(transitions)
    mean = data.obs.mean(0)
    std = data.obs.std(0)
    std = np.where(std > 1e-3, std, 1.0).astype(std.dtype)  # as the scripts do
    data.obs = (data.obs - mean) / std
    data.next_obs = (data.next_obs - mean) / std
    envs = edq.vector_env(edq_args)
    learner = make_learner(args, data.obs.shape[1], data.action.shape[1])
    rng = np.random.default_rng(args.seed)
    args.run_dir.mkdir(parents=True)
    (args.run_dir / "run.json").write_text(json.dumps(describe(edq_args, args, info), indent=1))
    episodes, metrics, history = [], [], []
    started = time.time()
    paused = 0.0
    for step in range(1, args.gradient_steps + 1):
        learner.update(draw(data, args.batch_size, rng))
        if step % args.eval_every and step < args.gradient_steps:
            continue
        trained = time.time() - started - paused
        row = {"step": step, "charts/sps": step / trained, "charts/seconds": trained}
        metrics.append(row)
        results = score(edq, learner, envs, edq_args, info["reference"], mean, std)
        episodes += [{"step": step, **result} for result in results]
        scores = [result["score"] for result in results]
        error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
        history.append({"step": step, "score": statistics.fmean(scores), "standard_error": error})
        write_rows(args.run_dir / "evaluations.csv", episodes)
        write_rows(args.run_dir / "metrics.csv", metrics)
        print(f"update {step}: score {history[-1]['score']:.1f} +- {error:.1f}", flush=True)
        paused = time.time() - started - trained
    best = max(history, key=lambda point: point["score"])
    summary = {"last": history[-1], "best": best, "offline": history[-1], "data": info}
    (args.run_dir / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
