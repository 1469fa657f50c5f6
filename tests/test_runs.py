"""Whole runs: training, stopping, resuming, scoring again."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from itertools import count
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    EMBEDDED,
    ROOT,
    command,
    hopper_episodes,
    load_script,
    pen_episodes,
    refuse,
    rows,
    run_here,
    run_script,
    write_dataset,
)

TINY = ("--num-critics", 2, "--hidden-dim", 16, "--batch-size", 16, "--num-candidates", 3)
TINY = (*TINY, "--log-every", 50, "--eval-episodes", 2)
SHORT = ("--gradient-steps", 60, "--no-compile", "--env-id", "hopper-medium")
FLAGS = (*TINY, "--env-id", "hopper-medium", "--seed", 3, "--no-compile", "--normalize-obs")
FLAGS = (*FLAGS, "--gradient-steps", 300, "--eval-every", 100)
FLAGS = (*FLAGS, "--entropy-estimator", "chain", "--action-clip")
FLAGS = (*FLAGS, "--ent-coef", "auto", "--target-entropy", 0.3)


def checkpoint(run, name="checkpoint.pt") -> dict:
    return torch.load(run / name, map_location="cpu", weights_only=True)


def assert_equal(a, b):
    """Nested dicts and lists of tensors and numbers, to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def assert_same_run(a, b):
    """All but clocks."""
    assert rows(a / "metrics.csv") == rows(b / "metrics.csv")
    assert rows(a / "evaluations.csv") == rows(b / "evaluations.csv")
    left, right = checkpoint(a), checkpoint(b)
    for state in (left, right):
        state["progress"].pop("seconds")
        state["progress"].pop("csv_sizes")  # of which clocks are a part
    assert_equal(left, right)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    for summary in summaries:
        summary["data"].pop("id")
    assert summaries[0] == summaries[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "set", hopper_episodes())


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """An uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    out = run_script("edq_mujoco", *FLAGS, "--dataset-id", dataset, "--run-dir", run)
    assert out.returncode == 0, out.stderr
    return run


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it, to resume or to damage."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def interrupted(dataset, tmp_path_factory):
    """The same run, interrupted after update 250, when 200 has a checkpoint."""
    mujoco = load_script("edq_mujoco")
    run = tmp_path_factory.mktemp("interrupted") / "run"
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log_row = mujoco.log_row

    def log_row_and_interrupt(run, *since):
        log_row(run, *since)
        if run.step == 250:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(mujoco, "log_row", log_row_and_interrupt)
        run_here(mujoco, *FLAGS, "--dataset-id", dataset, "--run-dir", run)
    assert stop.value.code == 130
    mujoco.signals.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return run


@pytest.fixture
def stopped(interrupted, tmp_path):
    """A copy of it, which no process holds."""
    shutil.copytree(interrupted, tmp_path / "run")
    return tmp_path / "run"


def drive(folder, patch: str, *flags, **options):
    """Run edq_mujoco.py in a session of its own, after some lines of Python that change it."""
    code = "import os, signal, sys\nimport edq_mujoco as edq\n" + patch
    code += "\nedq.main(edq.parse_args(sys.argv[1:]))\n"
    with open(folder / "log.txt", "w") as log:
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, flags)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            start_new_session=True,
            timeout=600,
        ).returncode


# --- one tiny run of each script ---
def check_run(run, steps):
    record = json.loads((run / "run.json").read_text())
    assert len(record["dataset"]["hash"]) == 16 and record["versions"]["torch"].startswith("2.")
    metrics = rows(run / "metrics.csv")
    assert [int(row["step"]) for row in metrics] == list(range(50, steps + 1, 50))
    assert all(math.isfinite(float(value)) for row in metrics for value in row.values())
    evaluations = rows(run / "evaluations.csv")
    expected = [(s, e) for s in range(100, steps + 1, 100) for e in range(2)]
    assert [(int(row["step"]), int(row["episode"])) for row in evaluations] == expected
    scores = [float(row["score"]) for row in evaluations]
    last, before = np.mean(scores[-2:]), np.mean(scores[-4:-2])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last"]["score"] == pytest.approx(last)
    assert summary["best"]["score"] >= max(last, before) - 1e-6
    assert summary["offline"]["step"] in range(100, steps + 1, 100)
    names = {path.name for path in run.iterdir()}
    assert names == {"run.json", "metrics.csv", "evaluations.csv", "summary.json"} | {
        "checkpoint.pt",
        "checkpoint_previous.pt",
    }
    assert checkpoint(run)["progress"]["step"] == steps
    assert checkpoint(run, "checkpoint_previous.pt")["progress"]["step"] == steps - 100


def test_a_locomotion_run(whole):
    check_run(whole, 300)
    args = json.loads((whole / "run.json").read_text())["args"]
    assert (args["gradient_steps"], args["ent_coef"], args["seed"]) == (300, "auto", 3)


def test_a_maze_run(tmp_path):
    """On the embedded data, which are the default; ten next actions for each target."""
    flags = ("--max-q-backup", "--gradient-steps", 200, "--eval-every", 100, "--no-compile")
    out = run_script("edq_antmaze", *TINY, *flags, "--run-dir", tmp_path / "run")
    assert out.returncode == 0, out.stderr
    check_run(tmp_path / "run", 200)
    for word in ("last", "best", "offline", "gradient_steps=200", "the mean of its episodes"):
        assert word in out.stdout
    assert EMBEDDED.name in out.stdout


def test_a_hand_run_where_there_is_no_git_and_no_compiler_and_with_home_folders(tmp_path):
    spec = {"id": "AdroitHandPen-v1"}
    write_dataset(tmp_path / "minari/D4RL/pen/human-v2", pen_episodes(), spec)
    places = {"HOME": str(tmp_path), "MINARI_DATASETS_PATH": "~/minari", "PATH": "/nowhere"}
    places["CXX"] = "g++"
    flags = ("--env-id", "pen-human", "--preset", "edq-paper", "--num-diffusion-steps", 3)
    flags = (*flags, "--gradient-steps", 200, "--eval-every", 100, "--run-dir=~/run")
    out = run_script("edq_adroit", *TINY, *flags, env=places, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "without a C++ compiler" in out.stdout
    check_run(tmp_path / "run", 200)


def test_learning(edq):
    """A choice between two actions, of which the data's states say which is rewarded.

    Seen over seeds and threads after 500 updates: 0.77 to 0.82 chosen right, also by a single
    candidate of the policy; in the data, and before the first update, it is 0.5.
    """
    values = {"num_critics": 4, "hidden_dim": 32, "batch_size": 64, "lcb_coef": 1.0}
    values |= {"diffusion_loss": "noise", "eta": 1.0, "actor_lr": 1e-3, "critic_lr": 1e-3}
    args = edq.replace(edq.Args(), action_clip=True, **values)
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    obs = torch.randn(2000, 2, generator=g)
    action = 1.4 * torch.randint(2, (2000, 1), generator=g) - 0.7
    reward = (action[:, 0] * obs[:, 0] > 0).float()
    data = edq.Transitions(obs, action, reward, obs, torch.ones(2000))
    agent = edq.Agent(2, 1, args)
    step = edq.make_step(agent, data, args, g, 0)
    losses = []
    for _ in range(5):
        agent.metric_sum.zero_()
        for _ in range(100):
            step()
        losses.append(dict(zip(edq.METRICS, (agent.metric_sum / 100).tolist())))
    for name in ("losses/critic", "losses/diffusion"):
        assert losses[-1][name] < 0.7 * losses[0][name]
    noise = torch.randn(5, 500, 10, 1, generator=g)
    u = torch.rand(500, generator=g)
    for candidates in (1, 10):
        chosen = edq.act(agent, obs[:500], noise[:, :, :candidates], u, args)
        right = (chosen[:, 0] * obs[:500, 0] > 0).float().mean()
        assert float(right) > 0.65


def test_diffusion_bc_has_no_critic(mujoco, dataset, tmp_path):
    flags = (*TINY, *SHORT, "--dataset-id", dataset, "--run-dir", tmp_path / "run")
    run_here(mujoco, *flags, "--preset", "diffusion-bc", "--num-candidates", 1)
    state = checkpoint(tmp_path / "run")
    assert not any(name.startswith(("q.", "target_q.")) for name in state["agent"])
    assert state["optimisers"].keys() == {"actor"}


# --- stopping and going on ---
def test_killed_and_resumed_equals_uninterrupted(mujoco, whole, dataset, tmp_path):
    """SIGKILL after update 250: what was printed is there, and 201 to 250 are done again."""
    patch = """
log_row = edq.log_row
def log_row_and_die(run, *since):
    log_row(run, *since)
    if run.step == 250:
        os.kill(os.getpid(), signal.SIGKILL)
edq.log_row = log_row_and_die
"""
    run = tmp_path / "run"
    code = drive(tmp_path, patch, *FLAGS, "--dataset-id", dataset, "--run-dir", run)
    assert code == -signal.SIGKILL
    assert "update 250 " in (tmp_path / "log.txt").read_text()  # a log file does not lag behind
    assert len(rows(run / "metrics.csv")) == 5 and not (run / "summary.json").exists()
    run_here(mujoco, "--resume", run)
    assert_same_run(whole, run)


def sessions() -> set[str]:
    """Session numbers of all processes."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        found.add(fields[3])
    return found


def test_terminated_with_its_group_during_an_evaluation(whole, dataset, tmp_path):
    """As batch schedulers do it, with environments in processes of their own."""
    patch = """
import multiprocessing
multiprocessing.set_start_method("forkserver")  # a fork would inherit how signals are heeded
act = edq.act
def act_and_stop(*args):
    if len(calls) == 3:
        os.killpg(os.getpgrp(), signal.SIGTERM)
    calls.append(0)
    return act(*args)
calls = []
edq.act = act_and_stop
print("session", os.getpid(), flush=True)
"""
    run = tmp_path / "run"
    flags = (*FLAGS, "--eval-workers", "--dataset-id", dataset, "--run-dir", run)
    assert drive(tmp_path, patch, *flags) == 128 + signal.SIGTERM
    text = (tmp_path / "log.txt").read_text()
    assert f"--resume {run}" in text and "Traceback" not in text
    session = re.search(r"session (\d+)", text)[1]
    deadline = time.time() + 60  # the server of forks ends a moment after its parent
    while session in sessions():
        assert time.time() < deadline
        time.sleep(0.1)
    assert checkpoint(run)["progress"]["step"] == 100
    assert run_script("edq_mujoco", "--resume", run).returncode == 0
    assert_same_run(whole, run)


def test_interrupted_and_resumed_equals_uninterrupted(mujoco, whole, stopped):
    assert checkpoint(stopped)["progress"]["step"] == 251
    run_here(mujoco, "--resume", stopped)
    assert_same_run(whole, stopped)


def test_a_simulator_that_dies(dataset, tmp_path):
    patch = """
import multiprocessing
act = edq.act
def act_and_kill(*args):
    for child in multiprocessing.active_children()[:1]:
        child.kill()
        child.join()
    return act(*args)
edq.act = act_and_kill
"""
    run = tmp_path / "run"
    flags = (*FLAGS, "--eval-workers", "--dataset-id", dataset, "--run-dir", run)
    assert drive(tmp_path, patch, *flags) == 1
    text = (tmp_path / "log.txt").read_text()
    assert "error: a simulator has died" in text and f"--resume {run} goes on" in text
    assert checkpoint(run)["progress"]["step"] == 100


def test_nan_stops_the_run_and_leaves_a_good_checkpoint(mujoco, dataset, tmp_path, monkeypatch):
    update = mujoco.update

    def spoilt(agent, batch, noise, args, step):
        if step == 120:
            batch = batch._replace(reward=batch.reward * math.nan)
        update(agent, batch, noise, args, step)

    monkeypatch.setattr(mujoco, "update", spoilt)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        run_here(mujoco, *FLAGS, "--dataset-id", dataset, "--run-dir", run)
    assert "is not finite, between updates 100 and 150" in stop.value.code  # exit code 1
    state = checkpoint(run)
    assert state["progress"]["step"] == 100
    assert all(bool(value.isfinite().all()) for value in state["agent"].values())
    assert [int(row["step"]) for row in rows(run / "metrics.csv")] == [50, 100]


def test_damaged_checkpoints(mujoco, whole, copied, capsys):
    """A changed byte in the newest: the one before serves. Both damaged: one sentence."""
    path = copied / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        weights = content.index(archive.read(largest))
    for place in (0, weights + 10):
        content[place] ^= 1
        path.write_bytes(content)
        content[place] ^= 1
        run_here(mujoco, "--evaluate", copied)
        out = capsys.readouterr().out
        assert f"warning: {path} is damaged" in out and "update 200: " in out
    path.write_bytes(content[:1000])
    run_here(mujoco, "--resume", copied)
    assert_same_run(whole, copied)
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        (copied / name).write_bytes(b"x" * 100)
    assert "has no whole checkpoint" in refuse(mujoco, capsys, "--evaluate", copied)


class Payload:
    """What an unpickled checkpoint would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_no_code_in_a_checkpoint_is_run(mujoco, copied, capsys, tmp_path):
    torch.save({"agent": Payload(tmp_path / "ran")}, copied / "checkpoint.pt")
    for flag in ("--evaluate", "--resume"):
        again = tmp_path / flag
        shutil.copytree(copied, again)
        assert "is no checkpoint of this run" in refuse(mujoco, capsys, flag, again)
    assert not (tmp_path / "ran").exists()


def test_scoring_again_repeats_the_last_evaluation_and_writes_nothing(mujoco, copied, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in [copied, *copied.iterdir()]}
    run_here(mujoco, "--evaluate", copied)
    text = capsys.readouterr().out
    last = json.loads((copied / "summary.json").read_text())["last"]
    for name in ("score", "return", "length"):
        assert f"{name} {last[name]:.5g}" in text
    run_here(mujoco, "--evaluate", copied, "--seed", 77, "--eval-episodes", 3)
    assert capsys.readouterr().out.splitlines()[-1] != text.splitlines()[-1]
    after = {path.name: path.stat().st_mtime_ns for path in [copied, *copied.iterdir()]}
    assert before == after


def test_longer_resume(mujoco, whole, copied, capsys):
    run_here(mujoco, "--resume", copied, "--gradient-steps", 350)
    before = rows(whole / "metrics.csv")
    after = rows(copied / "metrics.csv")
    assert after[:-1] == before and after[-1]["step"] == "350"
    assert mujoco.parse_args(["--resume", str(copied)]).gradient_steps == 350
    text = refuse(mujoco, capsys, "--resume", copied, "--gradient-steps", 300)
    assert "--gradient-steps of this run is 350" in text


def test_resume_after_the_data_have_moved(mujoco, whole, stopped, dataset, tmp_path, capsys):
    path = stopped / "run.json"
    record = json.loads(path.read_text())
    record["args"]["dataset_id"] = str(tmp_path / "gone")
    path.write_text(json.dumps(record))
    text = refuse(mujoco, capsys, "--resume", stopped)
    assert "not on this machine" in text
    other = write_dataset(tmp_path / "other", hopper_episodes(seed=5))
    copy = shutil.copytree(stopped, tmp_path / "copy")
    text = refuse(mujoco, capsys, "--resume", copy, "--dataset-id", other)
    assert "was made on other data" in text
    moved = shutil.copytree(dataset, tmp_path / "moved")
    run_here(mujoco, "--resume", stopped, "--dataset-id", moved)
    assert_same_run(whole, stopped)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(mujoco, whole, copied):
    for path in copied.iterdir():
        if path.name not in ("run.json", "metrics.csv"):
            path.unlink()
    run_here(mujoco, "--resume", copied)
    assert_same_run(whole, copied)


# --- files of others, and disks ---
def test_a_new_run_needs_a_folder_of_its_own(mujoco, dataset, whole, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "metrics.csv").write_text("mine\n")
    (theirs / "checkpoint.pt").write_text("mine\n")
    flags = (*TINY, *SHORT, "--dataset-id", dataset, "--run-dir")
    assert "is not empty" in refuse(mujoco, capsys, *flags, theirs)
    assert {path.read_text() for path in theirs.iterdir()} == {"mine\n"}
    assert len(list(theirs.iterdir())) == 2
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert "holds a run; --resume continues it" in refuse(mujoco, capsys, *flags, whole)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_files_of_others_survive_a_resume(mujoco, whole, stopped):
    names = ("other.csv", "checkpoint_9999999999.pt", "checkpoint_0000000001.pt", "lock", "a.tmp")
    for name in names:
        (stopped / name).write_text(f"{name}\n")
    run_here(mujoco, "--resume", stopped)
    assert all((stopped / name).read_text() == f"{name}\n" for name in names)
    assert_same_run(whole, stopped)


def test_csv_files_longer_or_shorter_than_the_checkpoint(mujoco, whole, stopped, capsys):
    with open(stopped / "metrics.csv", "a") as file:
        file.write("275,half a r")
    path = stopped / "evaluations.csv"
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[:-1]))
    run_here(mujoco, "--resume", stopped)
    assert f"warning: {path} has lost rows" in capsys.readouterr().out
    assert rows(stopped / "metrics.csv") == rows(whole / "metrics.csv")
    left = rows(path)
    kept = rows(whole / "evaluations.csv")
    assert left == kept[:3] + kept[4:] and "\0" not in path.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_at_a_row_of_a_csv_file(mujoco, whole, stopped, capsys):
    os.remove(stopped / "metrics.csv")
    os.symlink("/dev/full", stopped / "metrics.csv")
    before = (stopped / "checkpoint.pt").read_bytes()
    text = refuse(mujoco, capsys, "--resume", stopped)
    assert "cannot write" in text and "metrics.csv" in text and "No space left" in text
    assert (stopped / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_at_a_checkpoint(mujoco, stopped, capsys, monkeypatch):
    before = {path.name: path.read_bytes() for path in stopped.glob("*.pt")}

    def half(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # how torch says it

    monkeypatch.setattr(mujoco.torch, "save", half)
    text = refuse(mujoco, capsys, "--resume", stopped)
    assert "cannot write" in text and "still there" in text
    assert {path.name: path.read_bytes() for path in stopped.glob("*.pt")} == before
    assert not list(stopped.glob("*.tmp"))


def test_two_processes_cannot_write_one_folder(mujoco, interrupted, capsys):
    text = refuse(mujoco, capsys, "--resume", interrupted)  # which this process still holds
    assert "another run is writing" in text


def test_two_runs_started_in_one_second_get_two_folders(mujoco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mujoco.time, "strftime", lambda form: "20240101-000000")
    pids = count(1000)
    monkeypatch.setattr(mujoco.os, "getpid", lambda: next(pids))
    args = mujoco.Args()
    folders = [mujoco.open_run_dir(args) for _ in range(2)]
    folders.append(mujoco.open_run_dir(mujoco.replace(args, preset="diffusion-ql")))
    assert len(set(folders)) == 3 and "diffusion-ql" in folders[2].name


# --- what a run says ---
def test_a_reader_that_goes_does_not_end_the_run(dataset, tmp_path):
    flags = (*TINY, *SHORT, "--dataset-id", dataset, "--run-dir", tmp_path / "run")
    process = subprocess.Popen(command("edq_mujoco", *flags), stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=600) == 0
    assert (tmp_path / "run/summary.json").exists()


def test_updates_that_take_no_time(mujoco, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(mujoco.time, "time", lambda: 0.0)
    run_here(mujoco, *TINY, *SHORT, "--dataset-id", dataset, "--run-dir", tmp_path / "run")
    assert (tmp_path / "run/summary.json").exists()


def test_tracking(mujoco, dataset, tmp_path, monkeypatch, capsys):
    """Runs of the same name have ids of their own, kept by a resume; no login is one sentence."""
    asked, sent = [], []
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **options: asked.append(options)
    wandb.log = lambda row, step: sent.append((step, row))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    flags = (*TINY, *SHORT, "--track", "--dataset-id", dataset, "--run-dir")
    for folder in ("a", "b"):
        run_here(mujoco, *flags, tmp_path / folder / "run")
    again = shutil.copytree(tmp_path / "b/run", tmp_path / "c/run")
    run_here(mujoco, "--resume", again, "--gradient-steps", 120)
    ids = [options["id"] for options in asked]
    assert ids[0] != ids[1] == ids[2] and {options["name"] for options in asked} == {"run"}
    names = {name for _, row in sent for name in row}
    assert {"losses/critic", "eval/score"} <= names and {step for step, _ in sent} >= {50, 60, 120}

    def no_login(**options):
        raise ValueError("api_key not configured")

    wandb.init = no_login
    assert "WANDB_MODE=offline" in refuse(mujoco, capsys, *flags, tmp_path / "d")


# --- films ---
class Painted(gym.Wrapper):
    """Frames without a GPU or a screen."""

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def painted(adroit, monkeypatch):
    make_env = adroit.make_env

    def make(task, render_mode=None):
        env = make_env(task, render_mode)
        return Painted(env) if render_mode else env

    monkeypatch.setattr(adroit, "make_env", make)
    return adroit


def pen_run(tmp_path):
    folder = write_dataset(tmp_path / "pen", pen_episodes(), {"id": "AdroitHandPen-v1"})
    flags = ("--env-id", "pen-human", "--gradient-steps", 4, "--no-compile", "--capture-video")
    return (*TINY, *flags, "--dataset-id", folder, "--run-dir", tmp_path / "run")


def test_three_films_of_three_episodes_after_the_scores(painted, tmp_path, monkeypatch):
    """Of hands, whose episodes all end together."""
    film = painted.film

    def film_after_the_scores(agent, args, reference, run_dir):
        assert (run_dir / "summary.json").exists()
        film(agent, args, reference, run_dir)

    monkeypatch.setattr(painted, "film", film_after_the_scores)
    run_here(painted, *pen_run(tmp_path))
    films = sorted((tmp_path / "run/videos").glob("*.mp4"))
    assert [path.name[0] for path in films] == ["0", "1", "2"]
    assert all(path.stat().st_size > 1000 for path in films)


def test_ctrl_c_while_filming(painted, tmp_path, monkeypatch):
    step = Painted.step

    def step_and_stop(self, action):
        if not painted.signals:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, action)

    monkeypatch.setattr(Painted, "step", step_and_stop)
    with pytest.raises(SystemExit) as stop:
        run_here(painted, *pen_run(tmp_path))
    assert stop.value.code == 130
    assert (tmp_path / "run/summary.json").exists()


def test_a_missing_gl_is_told_before_the_training(dataset, tmp_path):
    flags = (*TINY, *SHORT, "--dataset-id", dataset, "--run-dir", tmp_path / "run")
    out = run_script("edq_mujoco", *flags, "--capture-video", env={"MUJOCO_GL": "bogus"})
    assert out.returncode == 2
    assert "error: --capture-video cannot render here" in out.stderr
    assert "Traceback" not in out.stderr and not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_run_and_resume(dataset, tmp_path):
    mujoco = load_script("edq_mujoco")
    flags = (*TINY, *SHORT, "--dataset-id", dataset, "--run-dir", tmp_path / "run")
    run_here(mujoco, *flags, "--device", "cuda", "--compile")
    again = shutil.copytree(tmp_path / "run", tmp_path / "again")
    run_here(mujoco, "--resume", again, "--gradient-steps", 120, "--device", "cpu")
