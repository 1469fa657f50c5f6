"""Write episodes as a local dataset in Minari's format: compressed, in constant memory, whole or not at all.

Shared by the generators beside it. Minari's own writer is not used, as it does not compress, refuses a relative
MINARI_DATASETS_PATH, and leaves half a dataset behind when it is stopped. `minari.load_dataset` reads what comes out.
"""

import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_dataset import parse_dataset_id
from minari.serialization import serialize_space
from minari.storage import get_dataset_path

SETTINGS = dict(compression="gzip", compression_opts=4, shuffle=True)  # level 9 is 2 % smaller and three times slower


def fail(sentence: str) -> None:
    """Bad input: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def folder_of(dataset_id: str) -> Path:
    """Where a dataset of this id lives, `MINARI_DATASETS_PATH` or ~/.minari/datasets; must not exist yet."""
    root, folder = get_dataset_path().absolute(), get_dataset_path(dataset_id).absolute()
    try:
        proper = parse_dataset_id(dataset_id)[-1] is not None and root in Path(os.path.normpath(folder)).parents
    except (TypeError, ValueError):  # the former without a version
        proper = False
    if not proper or any((parent / "data").exists() for parent in folder.parents if root in parent.parents):
        fail(f"{dataset_id!r} is no dataset id, as edq/hopper/medium-v0 is one: a version at the end, no dataset above")
    if folder.exists():
        fail(f"there is a dataset in {folder} already; remove it, or choose another --dataset-id")
    return folder


def put(group: h5py.Group, name: str, value: dict | np.ndarray) -> None:
    """Store an array, one chunk of it, or a dict of arrays as a group."""
    if isinstance(value, dict):
        for key, part in value.items():
            put(group.require_group(name), key, part)
    else:
        group.create_dataset(name, data=value, chunks=value.shape, **SETTINGS)


def box_space(observations: dict | np.ndarray) -> gym.Space:
    """The space of observations `[N, ...]`, or of a dict of such."""
    if isinstance(observations, dict):
        return gym.spaces.Dict({key: box_space(part) for key, part in observations.items()})
    return gym.spaces.Box(-np.inf, np.inf, observations.shape[1:], observations.dtype)


def save(folder: Path, dataset_id: str, episodes: Iterable[dict], env: EnvSpec, eval_env: EnvSpec, **metadata) -> dict:
    """Write all episodes and rename the result to `folder` at the end; returns the metadata.

    An episode is a dict of observations (array or dict of arrays, `[N + 1, ...]`), actions `[N, A]` in [-1, 1],
    rewards, terminations and truncations `[N]`, and, where there are any, infos (a dict of arrays) and a seed.
    `metadata` are further entries of metadata.json, such as ref_min_score. An exception removes what was written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is usual:  # so that what follows is cleaned up; after SIGKILL .unfinished-* stays
            signal.signal(number, lambda n, _: sys.exit(128 + n))
    count = steps = 0
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as unfinished:
        data = Path(unfinished, "set", "data")
        data.mkdir(parents=True)
        with h5py.File(data / "main_data.hdf5", "w", libver=("v110", "v110")) as file:
            for count, episode in enumerate(episodes, 1):
                if count == 1:
                    obs_space, act_dim = box_space(episode["observations"]), episode["actions"].shape[1]
                group, length = file.create_group(f"episode_{count - 1}"), len(episode["rewards"])
                group.attrs.update({"id": count - 1, "total_steps": length})
                if "seed" in episode:
                    group.attrs["seed"] = episode["seed"]
                group.require_group("infos")  # Minari cannot print an episode without
                for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
                    if name in episode:
                        put(group, name, episode[name])
                steps += length
        if not count:
            raise ValueError("there is not one whole episode")
        versions = {p: importlib.metadata.version(p) for p in ("minari", "mujoco", "gymnasium-robotics", "gymnasium")}
        text = {
            "dataset_id": dataset_id, "total_episodes": count, "total_steps": steps, "data_format": "hdf5",
            "observation_space": serialize_space(obs_space), "jpeg_encoding": False,
            "action_space": serialize_space(gym.spaces.Box(-1, 1, (act_dim,), np.float32)),
            "env_spec": env.to_json(), "eval_env_spec": eval_env.to_json(), "num_episodes_average_score": 100,
            "minari_version": versions["minari"], "author": ["EDQ authors"], "author_email": ["none"],
            "code_permalink": "none", "requirements": [f"{p}=={v}" for p, v in versions.items() if p != "minari"],
            "dataset_size": round((data / "main_data.hdf5").stat().st_size / 2**20, 1),
        } | metadata  # fmt: skip
        (data / "metadata.json").write_text(json.dumps(text, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(data.parent, folder)
    for parent in folder.parents:  # Minari lists a folder only if it is marked as a namespace
        if parent == get_dataset_path().absolute() or get_dataset_path().absolute() not in parent.parents:
            break
        if not (parent / "namespace_metadata.json").exists():
            (parent / "namespace_metadata.json").write_text("{}")
    return text
