"""A finished run of one of the three scripts, loaded: its script as a module, arguments, agent,
data."""

import importlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from results.common.records import ROOT


@dataclass
class Run:
    """What a study needs of a run."""

    folder: Path
    script: ModuleType
    args: object  # the script's Args
    agent: object  # its newest checkpoint
    step: int  # updates that the agent has had
    record: dict  # run.json


def fail(sentence: str):
    """Bad input: one sentence, exit code 2."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def script_of(name: str) -> ModuleType:
    """A script of the top folder as a module."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name.removesuffix(".py"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def sizes(script: ModuleType, env_id: str):
    """Number of observations and of actions of a task."""
    env = script.make_env(script.TASKS[env_id])
    obs = script.flatten_obs(env.reset(seed=0)[0])
    act_dim = env.action_space.shape[0]
    env.close()
    return len(obs), act_dim


def load_run(folder: Path, device: str = "cpu", **changes: object) -> Run:
    """A run with its newest checkpoint; `changes` of its arguments hold for the agent too."""
    record = read_json(folder / "run.json")
    script = script_of(record["script"])
    args = script.parse_args(["--evaluate", str(folder)])
    args = replace(args, **changes)
    obs_dim, act_dim = sizes(script, args.env_id)
    agent = script.Agent(obs_dim, act_dim, args, device)
    state = script.load_checkpoint(folder, agent)
    if state is None:
        fail(f"{folder} has no checkpoint")
    return Run(folder, script, args, agent, state["progress"]["step"], record)


def evaluate_with(act, script: ModuleType, agent, envs, args, reference) -> list[dict]:
    """The script's evaluation, in which `act` chooses the actions."""
    own = script.act
    script.act = act
    try:
        return script.evaluate(agent, envs, args, reference, args.eval_episodes)
    finally:
        script.act = own


def load_data(run: Run, device: str = "cpu"):
    """The transitions that a run learned from, and what its script says of them."""
    return run.script.load_dataset(run.args, device)
