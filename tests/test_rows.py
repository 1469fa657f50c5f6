"""The three files as files, the hyperparameters of every family, and how flags change them."""

import re
import tomllib

import pytest
from conftest import ROOT, SCRIPTS, run_script

BLOCK = re.compile(r"# --- shared: (?P<name>[\w ]+) ---\n(?P<text>.*?)# --- end shared ---\n", re.S)
PRESETS = ("edq", "edq-entropy", "edq-paper", "diffusion-ql", "diffusion-bc")


def blocks(script: str) -> dict[str, str]:
    text = (ROOT / f"{script}.py").read_text()
    return {match["name"]: match["text"] for match in BLOCK.finditer(text)}


def test_shared_blocks_are_the_same_text():
    first = blocks(SCRIPTS[0])
    assert {"imports", "arguments", "main"} <= first.keys()
    for script in SCRIPTS[1:]:
        assert blocks(script) == first


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stand_alone_and_state_the_pinned_requirements(script):
    text = (ROOT / f"{script}.py").read_text()
    assert not re.search(r"^\s*(from|import) (edq_|results|tests)", text, re.M)
    block = re.search(r"^# /// script\n((?:#.*\n)*?)# ///$", text, re.M)[1]
    metadata = tomllib.loads("".join(line.removeprefix("#") for line in block.splitlines(True)))
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line.split("#")[0].strip() for line in lines]
    assert sorted(metadata["dependencies"]) == sorted(pin for pin in pins if pin)
    assert all("==" in pin for pin in metadata["dependencies"])


# The authors' rows, by the beginning of a task's name, the last that fits: actor rate, eta, max-Q,
# reward, updates, gradient clip, diffusion loss, clip of a_0, episodes of an evaluation.
AUTHORS = {
    "": (3e-4, 1.0, False, "raw", 2_000_000, 4.0, "likelihood_released", False, 10),
    "antmaze-": (3e-4, 2.0, True, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "antmaze-umaze": (3e-4, 2.0, False, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "antmaze-umaze-diverse": (3e-4, 2.0, True, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "pointmaze-": (3e-4, 2.0, False, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "pointmaze-medium": (3e-4, 2.0, True, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "pointmaze-large": (3e-4, 2.0, True, "antmaze", 1_000_000, 4.0, "noise", True, 100),
    "pointmaze-rare-embedded": (1e-3, 2.0, False, "antmaze", 7500, 4.0, "noise", True, 20),
    "pen-": (3e-5, 0.1, False, "standardize", 1_000_000, 8.0, "noise", True, 100),
    "door-": (3e-5, 0.1, False, "standardize", 1_000_000, 8.0, "noise", True, 100),
    "hammer-": (3e-5, 0.1, False, "standardize", 1_000_000, 8.0, "noise", True, 100),
    "relocate-": (3e-5, 0.1, False, "standardize", 1_000_000, 8.0, "noise", True, 100),
    "kitchen-": (3e-4, 0.005, False, "raw", 1_000_000, 10.0, "likelihood_released", False, 100),
}


def test_hyperparameters_are_the_authors(edq):
    for env_id in edq.TASKS:
        args = edq.parse_args(["--env-id", env_id])
        row = (
            args.actor_lr,
            args.eta,
            args.max_q_backup,
            args.reward,
            args.gradient_steps,
            args.grad_clip,
            args.diffusion_loss,
            args.action_clip,
            args.eval_episodes,
        )
        name = max((name for name in AUTHORS if env_id.startswith(name)), key=len)
        assert row == AUTHORS[name], env_id
        small = env_id == "pointmaze-rare-embedded"
        assert (args.num_critics, args.hidden_dim) == ((4, 128) if small else (64, 256))
        assert args.tau == (0.02 if small else 0.005)
        assert args.lcb_coef == (1 if small else 4)
        assert (args.num_diffusion_steps, args.schedule) == (5, "cosine")
        assert (args.gamma, args.batch_size, args.critic_lr) == (0.99, 256, 3e-4)
        assert (args.entropy_estimator, args.ent_coef, args.ema_decay) == ("released", 0.01, 0.995)
        assert args.num_candidates == 50
        assert args.action_selection == ("argmax" if small else "softmax")
        assert (args.policy_action, args.pessimism, args.target) == ("one_step", "lcb", "own")


def test_tasks(mujoco, antmaze, adroit):
    data = ("medium", "medium-replay", "medium-expert")
    for robot in ("halfcheetah", "hopper", "walker2d"):
        assert {f"{robot}-{d}" for d in (*data, "expert", "simple")} < mujoco.TASKS.keys()
        assert {f"{robot}-{d}-d4rl" for d in data} < mujoco.TASKS.keys()
    mazes = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play")
    for maze in (*mazes, "large-diverse"):
        assert {f"antmaze-{maze}", f"antmaze-{maze}-d4rl"} < antmaze.TASKS.keys()
    for maze in ("umaze", "medium", "large", "open", "rare", "rare-embedded"):
        assert f"pointmaze-{maze}" in antmaze.TASKS
    for hand in ("pen", "door", "hammer", "relocate"):
        assert {f"{hand}-{d}" for d in ("human", "cloned", "expert")} < adroit.TASKS.keys()
    assert {f"kitchen-{d}" for d in ("complete", "partial", "mixed")} < adroit.TASKS.keys()
    for module in (mujoco, antmaze, adroit):
        families = module.SCRIPTS[f"{module.__name__}.py"]
        assert {env_id.split("-")[0] for env_id in module.TASKS} == set(families)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(edq, preset):
    assert edq.PRESETS.keys() == set(PRESETS)
    for env_id in edq.TASKS:
        args = edq.parse_args(["--env-id", env_id, "--preset", preset])
        plain = edq.parse_args(["--env-id", env_id])
        if preset == "diffusion-bc":
            assert (args.eta, args.num_candidates, args.entropy_estimator) == (0, 1, "none")
            assert args.diffusion_loss == plain.diffusion_loss
            assert edq.Agent(5, 2, args).q is None
        if preset == "diffusion-ql":
            assert (args.num_critics, args.target, args.pessimism) == (2, "min", "min")
            assert (args.policy_action, args.schedule) == ("chain", "ddpm")
            assert (args.diffusion_loss, args.action_clip) == ("noise", True)
            assert args.entropy_estimator == "none"
            assert args.max_q_backup == plain.max_q_backup
        if preset == "edq-entropy":
            entropy = {"entropy_estimator": "chain", "ent_coef": 0.1, "action_clip": True}
            assert args == edq.replace(plain, preset=preset, **entropy)


# Diffusion-QL's own eta and clip (its actor's rate is EDQ's but for one task).
DIFFUSION_QL = {
    "halfcheetah-medium": (1.0, 9.0),
    "halfcheetah-medium-replay": (1.0, 2.0),
    "halfcheetah-medium-expert": (1.0, 7.0),
    "hopper-medium": (1.0, 9.0),
    "hopper-medium-replay": (1.0, 4.0),
    "hopper-medium-expert": (1.0, 5.0),
    "walker2d-medium": (1.0, 1.0),
    "walker2d-medium-replay": (1.0, 4.0),
    "walker2d-medium-expert": (1.0, 5.0),
    "antmaze-umaze": (0.5, 2.0),
    "antmaze-umaze-diverse": (2.0, 3.0),
    "antmaze-medium-play": (2.0, 2.0),
    "antmaze-medium-diverse": (3.0, 1.0),
    "antmaze-large-play": (4.5, 10.0),
    "antmaze-large-diverse": (3.5, 7.0),
    "pen-human": (0.15, 7.0),
    "pen-cloned": (0.1, 8.0),
    "kitchen-complete": (0.005, 9.0),
    "kitchen-partial": (0.005, 10.0),
    "kitchen-mixed": (0.005, 10.0),
}


def test_diffusion_ql_has_its_own_rows(edq):
    for env_id in DIFFUSION_QL.keys() & edq.TASKS.keys():
        args = edq.parse_args(["--env-id", env_id, "--preset", "diffusion-ql"])
        assert (args.eta, args.grad_clip) == DIFFUSION_QL[env_id], env_id
        like = edq.parse_args(["--env-id", env_id]).actor_lr
        assert args.actor_lr == (1e-3 if env_id == "antmaze-medium-play" else like)


def test_the_paper_changes_hand_and_kitchen_alone(edq):
    for env_id in edq.TASKS:
        args = edq.parse_args(["--env-id", env_id, "--preset", "edq-paper"])
        plain = edq.parse_args(["--env-id", env_id])
        if edq.__name__ != "edq_adroit":
            assert args == edq.replace(plain, preset="edq-paper")
            continue
        assert (args.num_diffusion_steps, args.entropy_estimator) == (10, "chain")
        assert args.ent_coef == "auto" and args.target_entropy is not None and args.action_clip
        assert (args.eta, args.grad_clip) == (plain.eta, plain.grad_clip)


def test_precedence_default_task_preset_flag(antmaze):
    task = ["--env-id", "antmaze-large-play"]
    ql = [*task, "--preset", "diffusion-ql"]
    assert antmaze.Args().eta == 1.0
    assert antmaze.parse_args(task).eta == 2.0
    assert antmaze.parse_args(ql).eta == 4.5
    assert antmaze.parse_args([*ql, "--eta", "7"]).eta == 7
    assert antmaze.parse_args(["--eta=7", *ql]).grad_clip == 10  # in any order
    assert antmaze.parse_args([*ql, "--no-max-q-backup"]).max_q_backup is False


def test_help_shows_the_values_of_task_and_preset():
    flags = ("--env-id", "antmaze-large-play", "--preset", "diffusion-ql", "--help")
    out = run_script("edq_antmaze", *flags, env={"COLUMNS": "200"})
    assert out.returncode == 0
    assert re.search(r"--eta FLOAT .*default: 4\.5", out.stdout)
    assert re.search(r"--num-critics INT .*default: 2\)", out.stdout)
    assert re.search(r"--gradient-steps INT .*default: 1000000", out.stdout)
    for flag in ("--env-id", "--resume", "--evaluate", "--capture-video", "--compile"):
        assert flag in out.stdout
