"""Fixtures: the three scripts as modules, and small datasets in Minari's format."""

import importlib.util
import json
import os
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
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for the network; this also saves the retries
os.environ["OMP_NUM_THREADS"] = "1"  # of the runs that tests start, as below
torch.set_num_threads(1)  # the tests' tensors are small, and a busy machine makes waiting threads very slow


def load_script(name: str):
    """Import a script of the top folder under its own name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(autouse=True)
def plain_functions():
    """A run in this process may put compiled functions in place of a script's own, and fit tasks: undo that."""
    names = ("td_target", "critic_loss", "actor_losses", "act")
    tasks = [(sys.modules[s].TASKS, dict(sys.modules[s].TASKS)) for s in SCRIPTS if s in sys.modules]
    before = [(sys.modules[s], n, getattr(sys.modules[s], n)) for s in SCRIPTS if s in sys.modules for n in names]
    yield
    for module, name, function in before:
        setattr(module, name, function)
    for table, original in tasks:
        table.update(original)


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


def write_dataset(folder: Path, episodes: list[dict], env_spec: dict | None = None, **metadata) -> Path:
    """Write episodes (observations, actions, rewards, terminations, truncations) as a Minari dataset folder."""
    data = folder / "data"
    data.mkdir(parents=True)
    first = episodes[0] if episodes else {"observations": np.zeros((1, 11)), "actions": np.zeros((0, 3))}
    obs, act_dim = first["observations"], first["actions"].shape[-1]
    space = (
        gym.spaces.Dict({k: box(*v.shape[1:]) for k, v in obs.items()})
        if isinstance(obs, dict)
        else box(*obs.shape[1:])
    )
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
        for i, episode in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            group.attrs.update({"id": i, "total_steps": len(episode["rewards"])})
            for name, value in episode.items():
                if isinstance(value, dict):
                    for key, part in value.items():
                        group.create_dataset(f"{name}/{key}", data=part)
                else:
                    group.create_dataset(name, data=value)
    return folder


def episode(obs: np.ndarray | dict, actions: np.ndarray, rewards: np.ndarray, ends: str) -> dict:
    """One episode; `ends` is "termination" or "truncation"."""
    last = np.arange(len(rewards)) == len(rewards) - 1
    return {
        "observations": obs,
        "actions": actions.astype(np.float32),
        "rewards": rewards,
        "terminations": last & (ends == "termination"),
        "truncations": last & (ends == "truncation"),
    }


def hopper_episodes(count: int = 4, length: int = 50, obs_dim: int = 11, act_dim: int = 3, seed: int = 0) -> list[dict]:
    """Made-up episodes of Hopper's sizes."""
    rng = np.random.default_rng(seed)
    return [
        episode(
            rng.normal(size=(length + 1, obs_dim)).astype(np.float32),
            rng.uniform(-1, 1, (length, act_dim)),
            rng.normal(size=length),
            "termination" if i % 2 else "truncation",
        )
        for i in range(count)
    ]


@pytest.fixture
def hopper_set(tmp_path):
    return write_dataset(tmp_path / "hopper-set", hopper_episodes())


def run_script(name: str, *flags, env: dict | None = None, **kwargs) -> subprocess.CompletedProcess:
    """Run a script through the real command line."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "disabled", **(env or {})},
        timeout=600,
        **kwargs,
    )


for script in SCRIPTS:
    load_script(script)
