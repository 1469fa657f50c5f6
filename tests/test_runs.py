"""Whole runs: training, stopping, resuming and scoring through the real command line."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, episode, hopper_episodes, load_script, run_script, write_dataset

TINY = (
    "--num-critics",
    2,
    "--hidden-dim",
    16,
    "--batch-size",
    16,
    "--num-candidates",
    3,
    "--log-every",
    50,
)
CLOCKS = ("charts/sps", "charts/seconds")


def rows(path):
    with open(path) as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def weights(run_dir):
    newest = max(run_dir.glob("checkpoint_*.pt"))
    state = torch.load(newest, map_location="cpu", weights_only=True)
    return {**state["agent"], "generator": state["generator"]}


def same_run(a, b):
    assert rows(a / "metrics.csv") == rows(b / "metrics.csv")
    assert rows(a / "evaluations.csv") == rows(b / "evaluations.csv")
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    scores = [json.loads((x / "summary.json").read_text()) for x in (a, b)]
    assert scores[0] == scores[1]


def adroit_set(folder):
    rng = np.random.default_rng(0)
    made = [
        episode(
            rng.normal(size=(31, 45)).astype(np.float32),
            rng.uniform(-1, 1, (30, 24)),
            rng.normal(size=30),
            "truncation",
        )
    ]
    return write_dataset(folder, made)


@pytest.mark.parametrize("script, flags", [
    ("edq_mujoco", ("--env-id", "hopper-medium-v2")),
    ("edq_adroit", ("--env-id", "pen-human", "--preset", "edq-paper", "--num-diffusion-steps", 4)),
    ("edq_antmaze", ("--max-q-backup", "--lr-decay", "--exp-name", "tiny")),
])  # fmt: skip
def test_each_script_trains_and_scores_itself(script, flags, tmp_path):
    folder = {
        "edq_mujoco": lambda: write_dataset(tmp_path / "set", hopper_episodes()),
        "edq_adroit": lambda: adroit_set(tmp_path / "set"),
        "edq_antmaze": lambda: ROOT / "results" / "datasets" / "pointmaze-umaze-embedded",
    }[script]()
    run = tmp_path / "run"
    more = (
        "--gradient-steps",
        200,
        "--eval-every",
        100,
        "--eval-episodes",
        3,
        "--run-dir",
        run,
        "--dataset-id",
        folder,
    )
    out = run_script(script, *flags, *TINY, *more)
    assert out.returncode == 0, out.stderr
    assert (
        "last" in out.stdout
        and "best" in out.stdout
        and "offline" in out.stdout
        and "gradient_steps=200" in out.stdout
    )
    record = json.loads((run / "run.json").read_text())
    assert record["script"] == f"{script}.py" and record["args"]["gradient_steps"] == 200
    assert len(record["dataset"]["hash"]) == 16 and record["versions"]["torch"].startswith("2.")
    metrics, evaluations = rows(run / "metrics.csv"), rows(run / "evaluations.csv")
    assert [int(r["step"]) for r in metrics] == [50, 100, 150, 200]
    assert [(int(r["step"]), int(r["episode"])) for r in evaluations] == [
        (s, e) for s in (100, 200) for e in range(3)
    ]
    assert all(math.isfinite(float(v)) for r in metrics for v in r.values())
    assert [p.name for p in sorted(run.glob("checkpoint_*.pt"))] == [
        "checkpoint_0000000100.pt",
        "checkpoint_0000000200.pt",
    ]
    summary = json.loads((run / "summary.json").read_text())
    last = [float(r["score"]) for r in evaluations if r["step"] == "200"]
    assert summary["last"]["score"] == pytest.approx(np.mean(last))
    assert summary["best"]["score"] == max(
        summary["last"]["score"], np.mean([float(r["score"]) for r in evaluations[:3]])
    )
    if script == "edq_antmaze":
        decay = [0.5 * (1 + math.cos(math.pi * (s - 1) / 200)) for s in (50, 200)]
        assert [float(metrics[i]["charts/actor_lr"]) for i in (0, 3)] == pytest.approx(
            [3e-4 * d for d in decay]
        )


RESUMABLE = (
    *TINY, "--env-id", "hopper-medium", "--gradient-steps", 900, "--eval-every", 300, "--eval-episodes", 2,
    "--normalize-obs", "--entropy-estimator", "chain", "--ent-coef", "auto", "--seed", 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, its dataset, and the flags of both."""
    home = tmp_path_factory.mktemp("whole")
    folder = write_dataset(home / "set", hopper_episodes())
    flags = (*RESUMABLE, "--dataset-id", folder)
    out = run_script("edq_mujoco", *flags, "--run-dir", home / "run")
    assert out.returncode == 0, out.stderr
    return home / "run", flags


def start(flags, run, wait_for):
    """Start a run and return it once a file like `wait_for` is there."""
    command = [sys.executable, str(ROOT / "edq_mujoco.py"), *map(str, flags), "--run-dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while not list(run.glob(wait_for)):
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("wait_for", ["checkpoint_0000000300.pt", "checkpoint_0000000000.pt"])
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, wait_for):
    """SIGKILL some time after a checkpoint; the resumed run repeats what came after it, bit for bit."""
    run, flags = whole
    process = start(flags, tmp_path / "run", wait_for)
    time.sleep(0.4)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "summary.json").exists(), "it was too fast to be killed"
    out = run_script("edq_mujoco", "--resume", tmp_path / "run")
    assert out.returncode == 0, out.stderr
    same_run(run, tmp_path / "run")


def test_terminated_run_saves_itself(whole, tmp_path):
    run, flags = whole
    process = start(flags, tmp_path / "run", "checkpoint_0000000300.pt")
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM and "--resume" in text
    assert run_script("edq_mujoco", "--resume", tmp_path / "run").returncode == 0
    same_run(run, tmp_path / "run")


def test_longer_resume(whole, tmp_path, mujoco):
    run, _flags = whole
    subprocess.run(["cp", "-r", run, tmp_path / "run"], check=True)
    before = rows(run / "metrics.csv")
    mujoco.main(*mujoco.parse_args(["--resume", str(tmp_path / "run"), "--gradient-steps", "1000"]))
    after = rows(tmp_path / "run" / "metrics.csv")
    assert after[: len(before)] == before and int(after[-1]["step"]) == 1000
    again, _ = mujoco.parse_args(["--resume", str(tmp_path / "run")])
    assert again.gradient_steps == 1000


def test_one_changed_byte_is_damage_and_the_one_before_serves(whole, tmp_path, mujoco, capsys):
    run, _flags = whole
    subprocess.run(["cp", "-r", run, tmp_path / "run"], check=True)
    newest = max((tmp_path / "run").glob("checkpoint_*.pt"))
    content = bytearray(newest.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 1
        newest.write_bytes(content)
        content[place] ^= 1
        args, saved_flags = mujoco.parse_args(["--evaluate", str(tmp_path / "run")])
        mujoco.main(args, saved_flags)
        out = capsys.readouterr()
        assert "damaged" in out.err and "update 600" in out.out
    newest.write_bytes(content[:1000])
    mujoco.main(*mujoco.parse_args(["--resume", str(tmp_path / "run")]))
    same_run(run, tmp_path / "run")


def test_scoring_again_gives_the_same_numbers(whole, mujoco, capsys):
    run, _flags = whole
    texts = []
    for eval_envs in ("20", "1"):
        mujoco.main(*mujoco.parse_args(["--evaluate", str(run), "--eval-envs", eval_envs]))
        lines = capsys.readouterr().out.splitlines(keepends=True)
        texts.append(
            "".join(x for x in lines if not x.startswith("evaluation: "))
        )  # how many at a time, how long
    last = json.loads((run / "summary.json").read_text())["last"]
    assert texts[0] == texts[1] and f"score {last['score']:.6g}" in texts[0]
    mujoco.main(
        *mujoco.parse_args(["--evaluate", str(run), "--seed", "77", "--action-selection", "argmax"])
    )
    assert capsys.readouterr().out.splitlines()[-1] != texts[0].splitlines()[-1]


def test_target_entropy_is_read_off_the_clone(whole):
    """A warm-up of 5 %: alpha unmoved until then, the target set after it and kept."""
    run, _ = whole
    state = torch.load(max(run.glob("*.pt")), weights_only=True)
    assert state["at"]["warmup"] == 45 and float(state["agent"]["target_entropy"]) <= math.log(2)
    assert float(state["agent"]["target_entropy"]) != 0
    assert float(rows(run / "metrics.csv")[0]["policy/alpha"]) == pytest.approx(0.01, rel=1e-4)


def test_diffusion_bc_has_no_critic(hopper_set, tmp_path, mujoco):
    flags = [
        "--env-id",
        "hopper-medium",
        "--preset",
        "diffusion-bc",
        "--dataset-id",
        str(hopper_set),
        "--run-dir",
    ]
    flags += [
        str(tmp_path / "run"),
        "--gradient-steps",
        "20",
        "--eval-episodes",
        "1",
        "--hidden-dim",
        "16",
    ]
    mujoco.main(*mujoco.parse_args(flags))
    assert not any(k.startswith(("q.", "target_q.")) for k in weights(tmp_path / "run"))


def test_nan_stops_the_run_and_names_the_last_good_checkpoint(hopper_set, tmp_path):
    flags = (
        *TINY,
        "--env-id",
        "hopper-medium",
        "--dataset-id",
        hopper_set,
        "--gradient-steps",
        400,
        "--eval-every",
        100,
    )
    run = tmp_path / "run"
    out = run_script(
        "edq_mujoco", *flags, "--eval-episodes", 1, "--critic-lr", 1e9, "--run-dir", run
    )
    assert out.returncode == 1
    assert "not finite from update" in out.stderr and "checkpoint_0000000000.pt" in out.stderr
    assert [p.name for p in run.glob("checkpoint_*.pt")] == ["checkpoint_0000000000.pt"]


def test_warning_when_q_leaves_what_rewards_allow(hopper_set, tmp_path, mujoco, capsys):
    flags = [
        *map(str, TINY),
        "--env-id",
        "hopper-medium",
        "--dataset-id",
        str(hopper_set),
        "--eval-episodes",
        "1",
    ]
    flags += [
        "--gradient-steps",
        "200",
        "--gamma",
        "0.0",
        "--critic-lr",
        "0.3",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    mujoco.main(*mujoco.parse_args(flags))
    out = capsys.readouterr().out
    assert out.count("warning: |Q|") == 1 and "from update" in out


def test_tracking_works_offline(hopper_set, tmp_path):
    flags = (
        "--env-id",
        "hopper-medium",
        "--dataset-id",
        hopper_set,
        "--gradient-steps",
        60,
        "--eval-episodes",
        1,
    )
    run = tmp_path / "run"
    env = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    out = run_script(
        "edq_mujoco", *TINY, *flags, "--track", "--run-dir", run, env=env, cwd=tmp_path
    )
    assert out.returncode == 0, out.stderr
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_video(whole, tmp_path):
    run, _ = whole
    probe = "import gymnasium as g; e = g.make('Hopper-v5', render_mode='rgb_array'); e.reset(); e.render()"
    env = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    if subprocess.run(
        [sys.executable, "-c", probe], env={**os.environ, **env}, capture_output=True
    ).returncode:
        pytest.skip("no off-screen rendering on this machine (Debian: libegl1 or libosmesa6)")
    subprocess.run(["cp", "-r", run, tmp_path / "run"], check=True)
    out = run_script("edq_mujoco", "--evaluate", tmp_path / "run", "--capture-video", env=env)
    assert out.returncode == 0, out.stderr
    films = list((tmp_path / "run" / "videos").glob("*.mp4"))
    assert len(films) == 2 and all(f.stat().st_size > 1000 for f in films)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_run_and_resume(hopper_set, tmp_path, mujoco):
    flags = [
        *map(str, TINY),
        "--env-id",
        "hopper-medium",
        "--dataset-id",
        str(hopper_set),
        "--eval-episodes",
        "1",
    ]
    mujoco.main(
        *mujoco.parse_args(
            [*flags, "--gradient-steps", "100", "--device", "cuda", "--run-dir", str(tmp_path)]
        )
    )
    mujoco.main(
        *mujoco.parse_args(
            ["--resume", str(tmp_path), "--gradient-steps", "150", "--device", "cpu"]
        )
    )


def test_edq_beats_cloning_and_chance(tmp_path):
    """A walker that goes to one of four corners in turn and stays; EDQ has learnt to go straight to the goal's.

    Counted are arrivals within 120 steps, 40 episodes (seen: EDQ 0.70, cloning 0.22, which arrives late, chance 0); the
    standard error of a difference is 0.1.
    """
    antmaze = load_script("edq_antmaze")
    task, rng = antmaze.TASKS["pointmaze-open"], np.random.default_rng(0)
    kwargs = {**task.env_kwargs, "continuing_task": True, "max_episode_steps": 150}
    env = antmaze.gym.make(task.env, disable_env_checker=True, **kwargs)
    corners = [
        env.unwrapped.maze.cell_rowcol_to_xy(np.array(c)) for c in ((1, 1), (1, 5), (3, 1), (3, 5))
    ]
    episodes = []
    for i in range(60):
        obs, actions, rewards = [env.reset(seed=i)[0]], [], []
        for _ in range(150):
            away = corners[i % 4] - obs[-1]["achieved_goal"]
            actions.append(
                np.clip(3 * away - obs[-1]["observation"][2:] + 0.3 * rng.normal(size=2), -1, 1)
            )
            o, reward, *_ = env.step(actions[-1])
            obs.append(o)
            rewards.append(reward)
        stacked = {k: np.array([o[k] for o in obs], np.float32) for k in obs[0]}
        episodes.append(episode(stacked, np.array(actions), np.array(rewards), "truncation"))
    cells = kwargs["maze_map"]
    folder = write_dataset(
        tmp_path / "set", episodes, {"id": task.env, "kwargs": {"maze_map": cells}}
    )
    flags = [
        "--env-id",
        "pointmaze-open",
        "--dataset-id",
        str(folder),
        "--hidden-dim",
        "64",
        "--num-critics",
        "4",
    ]
    flags += [
        "--gradient-steps",
        "6000",
        "--eval-every",
        "6000",
        "--eval-episodes",
        "40",
        "--log-every",
        "1000",
    ]
    flags += ["--gamma", "0.97", "--tau", "0.02"]  # values have to travel fast in a short run
    scores = {}
    for preset in ("edq", "diffusion-bc"):
        run = tmp_path / preset
        antmaze.main(*antmaze.parse_args([*flags, "--preset", preset, "--run-dir", str(run)]))
        scores[preset] = np.mean(
            [float(r["steps_to_goal"]) <= 120 for r in rows(run / "evaluations.csv")]
        )
    chance = []
    env = antmaze.make_env(task)
    for i in range(20):
        env.reset(seed=i)
        env.action_space.seed(i)
        reward, steps = 0.0, 0
        while not reward and steps < 120:
            reward, steps = env.step(env.action_space.sample())[1], steps + 1
        chance.append(reward > 0)
    assert (
        scores["edq"] >= 0.5
        and scores["edq"] >= max(scores["diffusion-bc"], np.mean(chance)) + 0.25
    ), scores
