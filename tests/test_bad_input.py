"""Bad input: one sentence on stderr, exit code 2, nothing written."""

import json

import numpy as np
import pytest
import torch
from conftest import EMBEDDED, hopper_episodes, refuse, run_here, run_script, write_dataset

HOPPER = ("--env-id", "hopper-medium", "--num-critics", 2, "--hidden-dim", 8, "--batch-size", 4)
HOPPER = (*HOPPER, "--num-candidates", 2, "--no-compile")


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty current folder, which must stay empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    yield
    assert not list((tmp_path / "here").iterdir())


def test_tasks_that_are_elsewhere_or_nowhere(mujoco, antmaze, adroit, capsys):
    assert "a task of edq_adroit.py" in refuse(mujoco, capsys, "--env-id", "pen-human")
    assert "a task of edq_mujoco.py" in refuse(antmaze, capsys, "--env-id", "hopper-medium")
    assert "a task of edq_antmaze.py" in refuse(adroit, capsys, "--env-id", "antmaze-umaze")
    assert "hopper-medium-expert" in refuse(mujoco, capsys, "--env-id", "hoper-medium")


IMPOSSIBLE = {
    "num-critics": 0,
    "batch-size": -3,
    "gradient-steps": 0,
    "eval-episodes": 0,
    "eval-every": 0,
    "hidden-dim": 0,
    "gamma": 1.5,
    "tau": -0.1,
    "eta": -1,
    "lcb-coef": "nan",
    "actor-lr": "inf",
    "grad-clip": 0,
}


@pytest.mark.parametrize("flag, value", IMPOSSIBLE.items())
def test_impossible_values(mujoco, capsys, flag, value):
    assert f"--{flag} cannot be" in refuse(mujoco, capsys, f"--{flag}", value)


@pytest.mark.parametrize(
    "flags, part",
    [
        (("--num-critics", 1), "an LCB needs"),
        (("--num-diffusion-steps", 2), "the released entropy needs"),
        (("--ent-coef", "auto", "--target-entropy", 0.1), "chain"),
        (("--target-entropy", 0.1), "auto"),
        (("--entropy-estimator", "chain", "--no-action-clip"), "--action-clip"),
    ],
)
def test_what_does_not_go_together(edq, capsys, flags, part):
    assert part in refuse(edq, capsys, *flags)


def test_flags_that_cannot_be_read():
    out = run_script("edq_mujoco", "--num-critics", "many")
    assert out.returncode == 2 and "num-critics" in out.stdout + out.stderr


def test_no_gpu(mujoco, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in refuse(mujoco, capsys, "--device", "cuda")


def test_datasets_that_are_not_there(mujoco, capsys, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(mujoco.minari, "download_dataset", offline)
    text = refuse(mujoco, capsys, *HOPPER)
    assert "mujoco/hopper/medium-v0 is not on this machine" in text and "no network" in text
    here = write_dataset(tmp_path / "set", hopper_episodes(1, 10))
    second = refuse(mujoco, capsys, *HOPPER, "--dataset-id", f"{here}, second/set-v0")
    assert "second/set-v0 is not on this machine" in second
    text = refuse(mujoco, capsys, *HOPPER, "--env-id", "walker2d-medium-replay")
    assert "--dataset-id" in text


def test_a_file_of_d4rl_names_the_importer(mujoco, capsys, tmp_path):
    file = tmp_path / "hopper_medium-v2.hdf5"
    file.write_bytes(b"")
    assert "import_d4rl.py" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", file)


def test_empty_sets_nan_and_equal_rewards(mujoco, capsys, tmp_path):
    empty = write_dataset(tmp_path / "empty", [])
    assert "empty" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", empty)
    episodes = hopper_episodes(1, 10)
    episodes[0]["rewards"][:] = 2.0
    equal = ("--dataset-id", write_dataset(tmp_path / "equal", episodes))
    text = refuse(mujoco, capsys, *HOPPER, *equal, "--reward", "standardize")
    assert "all rewards" in text and "--reward raw" in text
    episodes[0]["observations"][3, 2] = np.nan
    nan = write_dataset(tmp_path / "nan", episodes)
    assert "NaN" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", nan)


def test_sizes_that_differ(mujoco, capsys, tmp_path):
    small = write_dataset(tmp_path / "small", hopper_episodes(1, 10))
    large = write_dataset(tmp_path / "large", hopper_episodes(1, 10, obs_dim=17, act_dim=6))
    text = refuse(mujoco, capsys, *HOPPER, "--dataset-id", large)
    assert "(17, 6)" in text
    text = refuse(mujoco, capsys, *HOPPER, "--dataset-id", f"{small},{large}")
    assert "differ in their observations or actions" in text
    assert "another task" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", EMBEDDED)


def test_run_folders(mujoco, adroit, hopper_set, capsys, tmp_path):
    data = ("--dataset-id", hopper_set, "--gradient-steps", 4, "--eval-episodes", 1)
    run = tmp_path / "run"
    run_here(mujoco, *HOPPER, *data, "--run-dir", run)
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert "holds a run of edq_mujoco.py" in refuse(adroit, capsys, "--resume", run)
    for flag, value in (("--env-id", "walker2d-medium"), ("--num-critics", 5), ("--seed", 1)):
        assert f"{flag} of this run is" in refuse(mujoco, capsys, "--resume", run, flag, value)
    text = refuse(mujoco, capsys, "--resume", run, "--gradient-steps", 2)
    assert "--gradient-steps of this run is 4" in text
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert "there is no run in" in refuse(mujoco, capsys, "--resume", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("")
    text = refuse(mujoco, capsys, *HOPPER, *data, "--run-dir", tmp_path / "file/run")
    assert "cannot write to the run folder" in text
    record = json.loads(before["run.json"])
    del record["wandb_id"]
    for content in ({}, record):
        (run / "run.json").write_text(json.dumps(content))
        for flag in ("--evaluate", "--resume"):
            assert "there is no run in" in refuse(mujoco, capsys, flag, run)
