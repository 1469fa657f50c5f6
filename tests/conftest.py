"""Fixtures: the three scripts as modules, small datasets in Minari's format, runs as commands."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from minari.serialization import serialize_space

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("edq_mujoco", "edq_antmaze", "edq_adroit")
EMBEDDED = ROOT / "results/datasets/pointmaze-rare-embedded"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the network
os.environ["OMP_NUM_THREADS"] = "1"  # of the runs that tests start
torch.set_num_threads(1)  # the tests' tensors are small, and waiting threads slow a busy machine


def load_script(name: str):
    """Import a script of the top folder under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


for script in SCRIPTS:
    load_script(script)


@pytest.fixture(autouse=True)
def plain_functions():
    """A run in this process may leave compiled functions and signals behind: undo that."""
    modules = [sys.modules[script] for script in SCRIPTS]
    names = ("td_target", "critic_loss", "actor_losses", "act")
    before = [(module, name, getattr(module, name)) for module in modules for name in names]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for module, name, function in before:
        setattr(module, name, function)
    for module in modules:
        module.signals.clear()
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=SCRIPTS)
def edq(request):
    """Each of the three scripts in turn."""
    return load_script(request.param)


@pytest.fixture
def mujoco():
    return load_script("edq_mujoco")


@pytest.fixture
def antmaze():
    return load_script("edq_antmaze")


@pytest.fixture
def adroit():
    return load_script("edq_adroit")


def box(*shape: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, shape, np.float32)


def write_dataset(folder: Path, episodes: list[dict], env_spec=None, **metadata) -> Path:
    """Write episodes as a Minari dataset folder; Hopper-v5's unless `env_spec` says otherwise."""
    data = folder / "data"
    data.mkdir(parents=True)
    nothing = {"observations": np.zeros((1, 11)), "actions": np.zeros((0, 3))}
    first = episodes[0] if episodes else nothing
    obs = first["observations"]
    space = box(*np.shape(obs)[1:]) if not isinstance(obs, dict) else None
    if space is None:
        space = gym.spaces.Dict({key: box(*value.shape[1:]) for key, value in obs.items()})
    act_dim = first["actions"].shape[-1]
    text = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(e["rewards"]) for e in episodes),
        "data_format": "hdf5",
        "observation_space": serialize_space(space),
        "action_space": serialize_space(gym.spaces.Box(-1, 1, (act_dim,), np.float32)),
        "dataset_id": "test/set-v0",
        "minari_version": "0.5.4",
        "env_spec": json.dumps(json.loads(gym.spec("Hopper-v5").to_json()) | (env_spec or {})),
    }
    (data / "metadata.json").write_text(json.dumps(text | metadata))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for i, one in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            group.attrs.update({"id": i, "total_steps": len(one["rewards"])})
            for name, value in one.items():
                parts = value if isinstance(value, dict) else {"": value}
                for key, part in parts.items():
                    group.create_dataset(f"{name}/{key}".strip("/"), data=part)
    return folder


def episode(obs, actions: np.ndarray, rewards: np.ndarray, ends: str) -> dict:
    """One episode; `ends` is "termination" or "truncation"."""
    last = np.arange(len(rewards)) == len(rewards) - 1
    return {
        "observations": obs,
        "actions": actions.astype(np.float32),
        "rewards": rewards,
        "terminations": last & (ends == "termination"),
        "truncations": last & (ends == "truncation"),
    }


def hopper_episodes(
    count: int = 4, length: int = 50, obs_dim: int = 11, act_dim: int = 3, seed: int = 0
) -> list[dict]:
    """Made-up episodes of Hopper's sizes."""
    rng = np.random.default_rng(seed)
    episodes = []
    for i in range(count):
        obs = rng.normal(size=(length + 1, obs_dim)).astype(np.float32)
        actions = rng.uniform(-1, 1, (length, act_dim))
        rewards = rng.normal(size=length)
        episodes.append(episode(obs, actions, rewards, "termination" if i % 2 else "truncation"))
    return episodes


def pen_episodes() -> list[dict]:
    """One made-up episode of the pen's sizes."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(31, 45)).astype(np.float32)
    return [episode(obs, rng.uniform(-1, 1, (30, 24)), rng.normal(size=30), "truncation")]


@pytest.fixture
def hopper_set(tmp_path):
    return write_dataset(tmp_path / "hopper-set", hopper_episodes())


def command(name: str, *flags) -> list[str]:
    return [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)]


def run_script(name: str, *flags, env: dict | None = None, **kwargs) -> subprocess.CompletedProcess:
    """Run a script through the real command line."""
    env = {**os.environ, "WANDB_MODE": "disabled", **(env or {})}
    options = {"capture_output": True, "text": True, "timeout": 600, **kwargs}
    return subprocess.run(command(name, *flags), env=env, **options)


def run_here(module, *flags):
    """The same in this process: seconds of imports less."""
    module.main(module.parse_args([str(flag) for flag in flags]))


def refuse(module, capsys, *flags) -> str:
    """Run in this process; it has to end with code 2 and one sentence on stderr: return that."""
    with pytest.raises(SystemExit) as stop:
        run_here(module, *flags)
    text = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert text.startswith("error: ") and len(text.splitlines()) == 1, text
    return text


def rows(path: Path) -> list[dict]:
    """The rows of a CSV file, but for their clocks."""
    with open(path) as file:
        table = list(csv.DictReader(file))
    return [{name: v for name, v in row.items() if name != "charts/sps"} for row in table]
