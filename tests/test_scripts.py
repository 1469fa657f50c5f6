"""The three files as files: shared blocks, pins, tables, help."""

import difflib
import re
import tomllib
from dataclasses import replace

import pytest
from conftest import ROOT, SCRIPTS, run_script

BLOCK = re.compile(r" *# --- shared: (?P<name>[^\n]*?) ---\n.*?# --- end shared ---\n", re.S)


def blocks(script: str) -> dict[str, str]:
    text = (ROOT / f"{script}.py").read_text()
    return {m["name"]: m[0] for m in BLOCK.finditer(text)}


def test_shared_blocks_are_the_same_text():
    first = blocks(SCRIPTS[0])
    assert len(first) == 2 and sum(len(text.splitlines()) for text in first.values()) > 600
    for script in SCRIPTS[1:]:
        for name, text in blocks(script).items():
            diff = "\n".join(difflib.unified_diff(first[name].splitlines(), text.splitlines(), SCRIPTS[0], script))
            assert not diff, diff
        assert blocks(script).keys() == first.keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_size_and_independence(script):
    text = (ROOT / f"{script}.py").read_text()
    most = {"edq_mujoco": 955, "edq_adroit": 965, "edq_antmaze": 985}[script]
    assert len(text.splitlines()) <= most and max(map(len, text.splitlines())) <= 120
    assert not re.search(r"^\s*(from|import) edq_", text, re.M)
    assert "pickle" not in text.replace("unpickled", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_inline_metadata_equals_requirements(script):
    text = (ROOT / f"{script}.py").read_text()
    block = re.search(r"^# /// script\n((?:#.*\n)*?)# ///$", text, re.M)[1]
    metadata = tomllib.loads(
        "".join(line[2:] if line.startswith("# ") else line[1:] for line in block.splitlines(True))
    )
    assert metadata["requires-python"] == ">=3.11"
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert sorted(metadata["dependencies"]) == sorted(line for line in lines if line)
    assert all("==" in line for line in metadata["dependencies"])


def test_every_task_of_the_paper_is_there(mujoco, antmaze, adroit):
    data = ("medium", "medium-replay", "medium-expert", "expert", "simple")
    assert set(mujoco.TASKS) == {f"{r}-{d}" for r in ("halfcheetah", "hopper", "walker2d") for d in data}
    mazes = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    assert {f"antmaze-{m}" for m in mazes} < set(antmaze.TASKS)
    assert {f"pointmaze-{m}" for m in ("umaze", "medium", "large", "open", "rare", "umaze-embedded")} < set(
        antmaze.TASKS
    )
    hands = {f"{h}-{d}" for h in ("pen", "door", "hammer", "relocate") for d in ("human", "cloned", "expert")}
    assert set(adroit.TASKS) == hands | {f"kitchen-{d}" for d in ("complete", "partial", "mixed")}


@pytest.mark.parametrize("preset", ["edq", "edq-entropy", "edq-paper", "diffusion-ql", "diffusion-bc"])
def test_every_row_resolves_in_every_preset(edq, preset):
    for env_id, task in edq.TASKS.items():
        args, _ = edq.parse_args(["--env-id", env_id, "--preset", preset])
        assert args.env_id == env_id and args.preset == preset and task.like in edq.TASKS
        if preset == "diffusion-bc":
            assert args.eta == 0 and args.num_candidates == 1 and edq.Agent(5, 2, args).q is None
        if preset == "edq-entropy":  # the bound speaks of a policy whose predicted actions are clamped
            assert args.entropy_estimator == "chain" and args.action_clip and args.ent_coef > 0
            edq_row, _ = edq.parse_args(["--env-id", env_id])
            own = dict(entropy_estimator="released", ent_coef=0.01, preset="edq", action_clip=edq_row.action_clip)
            assert replace(args, **own) == edq_row
        if preset == "diffusion-ql":
            assert (args.num_critics, args.target, args.pessimism, args.policy_action) == (2, "min", "min", "chain")
            assert args.schedule == "ddpm" and args.action_clip and args.entropy_estimator == "none"


def test_rows_are_the_authors(mujoco, antmaze, adroit):
    def row(module, env_id, *flags):
        a, _ = module.parse_args(["--env-id", env_id, *flags])
        return (
            a.actor_lr,
            a.eta,
            a.max_q_backup,
            a.reward,
            a.gradient_steps,
            a.grad_clip,
            a.diffusion_loss,
            a.action_clip,
        )

    walker = row(mujoco, "walker2d-medium-replay-v2")
    assert walker == (3e-4, 1.0, False, "raw", 2_000_000, 4.0, "likelihood_released", False)
    for name, max_q in (("umaze", False), ("umaze-diverse", True), ("large-play", True)):
        expected = (3e-4, 2.0, max_q, "antmaze", 1_000_000, 4.0, "noise", True)
        assert row(antmaze, f"antmaze-{name}-v0") == expected
    assert row(adroit, "pen-human-v1") == (3e-5, 0.1, False, "standardize", 1_000_000, 8.0, "noise", True)
    kitchen = row(adroit, "kitchen-mixed-v0")
    assert kitchen == (3e-4, 0.005, False, "raw", 1_000_000, 10.0, "likelihood_released", False)
    for module, env_id in ((mujoco, "hopper-medium"), (antmaze, "antmaze-large-play"), (adroit, "pen-human")):
        a, _ = module.parse_args(["--env-id", env_id])
        assert (a.num_diffusion_steps, a.num_critics, a.lcb_coef, a.ent_coef) == (5, 64, 4.0, 0.01)
        assert (a.gamma, a.tau, a.batch_size, a.critic_lr, a.ema_decay) == (0.99, 0.005, 256, 3e-4, 0.995)
        assert (a.num_candidates, a.action_selection, a.entropy_estimator) == (50, "softmax", "released")


def test_precedence_default_row_preset_flag(antmaze, adroit):
    flags = ["--env-id", "antmaze-large-play"]
    assert antmaze.parse_args([*flags, "--preset", "diffusion-ql"])[0].eta == 4.5
    assert antmaze.parse_args([*flags, "--preset", "diffusion-ql", "--eta", "7"])[0].eta == 7
    assert antmaze.parse_args(["--eta=7", "--env_id=antmaze-large-play", "--preset=diffusion-ql"])[0].grad_clip == 10
    assert antmaze.parse_args(["--env-id", "antmaze-medium-play", "--preset", "diffusion-ql"])[0].actor_lr == 1e-3
    paper, _ = adroit.parse_args(["--env-id", "kitchen-partial", "--preset", "edq-paper"])
    assert (paper.num_diffusion_steps, paper.entropy_estimator, paper.ent_coef) == (10, "chain", "auto")
    assert paper.action_clip and paper.eta == 0.005  # the chain bound speaks of the policy in the box


def test_paper_preset_changes_only_adroit_and_kitchen(mujoco, antmaze):
    for module in (mujoco, antmaze):
        for env_id in module.TASKS:
            plain, paper = (module.parse_args(["--env-id", env_id, "--preset", p])[0] for p in ("edq", "edq-paper"))
            assert module.replace(paper, preset="edq") == plain


@pytest.mark.parametrize("script, flags", [
    ("edq_mujoco", ()), ("edq_adroit", ("--preset", "diffusion-ql")),
    ("edq_antmaze", ("--env-id", "antmaze-large-play")),
])  # fmt: skip
def test_help(script, flags):
    """Every flag, with the value that the task's row and the preset give it."""
    out = run_script(script, *flags, "--help", env={"COLUMNS": "200"})
    assert out.returncode == 0
    clip = {"edq_mujoco": "4.0", "edq_adroit": "7", "edq_antmaze": "4.0"}[script]
    assert re.search(rf"--grad-clip FLOAT .*default: {clip}", out.stdout)
    assert ("(default: 1000000)" if script != "edq_mujoco" else "(default: 2000000)") in out.stdout
    for flag in ("--env-id", "--num-critics", "--entropy-estimator", "--resume", "--capture-video"):
        assert flag in out.stdout
