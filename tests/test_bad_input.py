"""Bad input: one sentence, exit code 2, nothing written."""

import json
import resource
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import hopper_episodes, run_script, write_dataset

HOPPER = (
    "--env-id",
    "hopper-medium",
    "--num-critics",
    "2",
    "--hidden-dim",
    "8",
    "--batch-size",
    "4",
)
SHORT = ("--gradient-steps", "4", "--eval-episodes", "1", "--num-candidates", "2")


def refuse(module, capsys, *flags, code=2):
    """Run in this process; return the sentence on stderr."""
    with pytest.raises(SystemExit) as stop:
        module.main(*module.parse_args([str(f) for f in flags]))
    out = capsys.readouterr()
    assert stop.value.code == code
    text = out.err.strip()
    assert text.startswith("error: ") and len(text.splitlines()) == 1, text
    return text


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """An empty current folder, which must stay empty of runs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    yield
    assert not list((tmp_path / "here").glob("runs*"))


def test_unknown_task_offers_near_names(mujoco, adroit, capsys):
    assert "hopper-medium-expert" in refuse(mujoco, capsys, "--env-id", "hoper-medium-expert")
    assert "pen-human" in refuse(adroit, capsys, "--env-id", "pen-humann-v1")


@pytest.mark.parametrize("flags, part", [
    (("--num-critics", 0), "num-critics"), (("--num-critics", 1), "LCB"), (("--batch-size", -3), "batch-size"),
    (("--gradient-steps", 0), "gradient-steps"), (("--eval-episodes", 0), "eval-episodes"), (("--gamma", 1.5), "gamma"),
    (("--tau", -0.1), "tau"), (("--eta", -1), "eta"), (("--lcb-coef", "nan"), "lcb-coef"),
    (("--grad-clip", 0), "grad-clip"),
    (("--actor-lr", "inf"), "actor-lr"), (("--num-diffusion-steps", 2), "released"), (("--ent-coef", "auto"), "chain"),
    (("--num-diffusion-steps", 1, "--entropy-estimator", "bridge"), "bridge"), (("--target-entropy", 0.1), "auto"),
    (("--entropy-estimator", "chain", "--chain-std", 0.9), "sigma_1"), (("--hidden-dim", 0), "hidden-dim"),
    (("--entropy-estimator", "chain", "--ent-coef", "auto", "--target-entropy", 2), "log 2"),
    (("--eval-every", 0), "eval-every"),
])  # fmt: skip
def test_impossible_values(edq, capsys, flags, part):
    assert part in refuse(edq, capsys, *flags)


def test_parser_errors_end_with_2():
    out = run_script("edq_mujoco", "--num-critics", "many")
    assert out.returncode == 2 and "num-critics" in out.stdout + out.stderr


def test_no_cuda(mujoco, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in refuse(mujoco, capsys, "--device", "cuda")


def test_missing_dataset_offers_both_ways(mujoco, capsys, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(mujoco.minari, "download_dataset", offline)
    text = refuse(mujoco, capsys, *HOPPER)
    assert (
        "mujoco/hopper/medium-v0 is not on this machine" in text
        and "--dataset-id" in text
        and "no network" in text
    )


def test_task_without_a_minari_set_names_the_flag(mujoco, capsys):
    assert "--dataset-id" in refuse(mujoco, capsys, "--env-id", "walker2d-medium-replay-v2")


def test_damaged_datasets(mujoco, capsys, tmp_path):
    def broken(name, harm):
        folder = write_dataset(tmp_path / name, hopper_episodes(2, 10))
        harm(folder / "data")
        return refuse(mujoco, capsys, *HOPPER, "--dataset-id", folder)

    def half(data):
        path = data / "main_data.hdf5"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def lose_episode(data):
        with h5py.File(data / "main_data.hdf5", "a") as file:
            del file["episode_1"]

    def shorten(data):
        with h5py.File(data / "main_data.hdf5", "a") as file:
            del file["episode_0/actions"]
            file["episode_0/actions"] = np.zeros((7, 3), np.float32)

    def claim_more(data):
        text = json.loads((data / "metadata.json").read_text())
        (data / "metadata.json").write_text(json.dumps(text | {"total_steps": 99}))

    assert "incomplete" in broken("half", half)
    assert "incomplete" in broken("lost", lose_episode)
    assert "incomplete" in broken("no-json", lambda data: (data / "metadata.json").unlink())
    assert "incomplete" in broken("no-data", lambda data: (data / "main_data.hdf5").unlink())
    assert "N actions" in broken("short", shorten)
    assert "not as long as its metadata" in broken("more", claim_more)


def test_empty_dataset_nan_and_wrong_spaces(mujoco, capsys, tmp_path):
    empty = write_dataset(tmp_path / "empty", [])
    assert "empty" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", empty)
    episodes = hopper_episodes(1, 10)
    episodes[0]["observations"][3, 2] = np.nan
    assert "NaN" in refuse(
        mujoco, capsys, *HOPPER, "--dataset-id", write_dataset(tmp_path / "nan", episodes)
    )
    other = write_dataset(tmp_path / "other", hopper_episodes(1, 10, obs_dim=17, act_dim=6))
    text = refuse(mujoco, capsys, *HOPPER, "--dataset-id", other)
    assert "(17, 6)" in text and "(11, 3)" in text


def test_no_code_in_a_dataset_is_run(mujoco, capsys, tmp_path, monkeypatch):
    """A spec that names a module to import, with and without the spaces that make Minari build the environment."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Env: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"id": "Evil-v0", "entry_point": "evil:Env", "kwargs": {}, "additional_wrappers": [
        {"name": "W", "entry_point": "evil:Env", "kwargs": {}}], "vector_entry_point": None}  # fmt: skip
    folder = write_dataset(
        tmp_path / "evil-set", hopper_episodes(1, 10), spec, eval_env_spec=json.dumps(spec)
    )
    run = ("--dataset-id", folder, "--run-dir", tmp_path / "run")
    mujoco.main(*mujoco.parse_args([*HOPPER, *SHORT, *map(str, run)]))
    assert "Evil-v0" in capsys.readouterr().out
    text = json.loads((folder / "data" / "metadata.json").read_text())
    del text["observation_space"]
    (folder / "data" / "metadata.json").write_text(json.dumps(text))
    assert "states its spaces" in refuse(mujoco, capsys, *HOPPER, "--dataset-id", folder)
    assert not (tmp_path / "ran").exists()


class Payload:
    """What an unpickled checkpoint would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def small_run(mujoco, hopper_set, tmp_path):
    run = tmp_path / "small-run"
    mujoco.main(
        *mujoco.parse_args(
            [*HOPPER, *SHORT, "--dataset-id", str(hopper_set), "--run-dir", str(run)]
        )
    )
    return run


def test_no_code_in_a_checkpoint_is_run(mujoco, small_run, capsys, tmp_path):
    """A checkpoint with a right checksum that carries a call."""
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save({"agent": Payload(tmp_path / "ran")}, buffer)
    content = buffer.getvalue()
    max(small_run.glob("*.pt")).write_bytes(content + hashlib.sha256(content).digest())
    for flag in ("--evaluate", "--resume"):
        assert "no checkpoint of this run" in refuse(mujoco, capsys, flag, small_run)
    assert not (tmp_path / "ran").exists()


def test_resume_of_another_task_or_size(mujoco, adroit, small_run, capsys, tmp_path):
    assert "holds a run of edq_mujoco.py" in refuse(adroit, capsys, "--resume", small_run)
    assert "env_id" in refuse(mujoco, capsys, "--resume", small_run, "--env-id", "walker2d-medium")
    assert "num_critics" in refuse(mujoco, capsys, "--resume", small_run, "--num-critics", 5)
    assert "gradient_steps" in refuse(mujoco, capsys, "--resume", small_run, "--gradient-steps", 2)
    assert "no run" in refuse(mujoco, capsys, "--resume", tmp_path / "nothing")
    other = write_dataset(tmp_path / "other-set", hopper_episodes(seed=5))
    run = json.loads((small_run / "run.json").read_text())
    moved = [str(other) if "hopper-set" in f else f for f in run["flags"]]
    run["args"]["dataset_id"] = str(other)
    (small_run / "run.json").write_text(json.dumps(run | {"flags": moved}))
    assert "other data" in refuse(mujoco, capsys, "--resume", small_run)
    run["args"]["hidden_dim"], run["flags"] = 16, [*moved, "--hidden-dim", "16"]
    (small_run / "run.json").write_text(json.dumps(run))
    assert "no checkpoint of this run" in refuse(mujoco, capsys, "--resume", small_run)
    (small_run / "run.json").write_text("{}")
    assert "no run" in refuse(mujoco, capsys, "--resume", small_run)


def test_no_whole_checkpoint(mujoco, small_run, capsys):
    for path in small_run.glob("*.pt"):
        path.write_bytes(b"x" * 100)
    with pytest.raises(SystemExit) as stop:
        mujoco.main(*mujoco.parse_args(["--evaluate", str(small_run)]))
    assert stop.value.code == 2 and "no whole checkpoint" in capsys.readouterr().err


def test_run_folders(mujoco, small_run, hopper_set, capsys, tmp_path):
    flags = (*HOPPER, *SHORT, "--dataset-id", hopper_set, "--run-dir")
    assert "holds a run; --resume continues it" in refuse(mujoco, capsys, *flags, small_run)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refuse(mujoco, capsys, *flags, tmp_path / "file" / "run")
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
    hold += "print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, small_run / "lock"], stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    before = sorted((p.name, p.stat().st_mtime) for p in small_run.iterdir())
    assert "another run" in refuse(mujoco, capsys, "--resume", small_run)
    assert sorted((p.name, p.stat().st_mtime) for p in small_run.iterdir() if p.name != "lock") == [
        x for x in before if x[0] != "lock"
    ]
    holder.kill()


def test_tracking_without_a_login(hopper_set, tmp_path):
    flags = (*HOPPER, *SHORT, "--dataset-id", hopper_set, "--run-dir", tmp_path / "run", "--track")
    env = {
        "WANDB_MODE": "online",
        "WANDB_API_KEY": "",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "none"),
    }
    out = run_script("edq_mujoco", *flags, env=env, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert out.returncode == 2 and "WANDB_MODE=offline" in out.stderr
    assert not (tmp_path / "run").exists()


def test_full_disk_keeps_the_old_checkpoint(mujoco, small_run, tmp_path):
    """A limit on the size of files stands in for a full disk: the write fails half-way either way."""
    before = {p.name: p.read_bytes() for p in small_run.glob("*.pt")}
    limit = max(map(len, before.values())) // 2

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = ("--resume", small_run, "--gradient-steps", 8)
    out = run_script("edq_mujoco", *flags, preexec_fn=small_files_only)
    assert out.returncode == 2 and "still there" in out.stderr, out.stderr
    assert {p.name: p.read_bytes() for p in small_run.glob("*.pt")} == before
    assert not list(small_run.glob("*.tmp"))
    assert run_script("edq_mujoco", *flags).returncode == 0  # and once there is room it goes on
