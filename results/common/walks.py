"""Episodes of a run, with every observation kept: how its policy moves, not only what it scores."""

import sys
from dataclasses import replace

import numpy as np

from results.common.records import ROOT
from results.common.runs import Run

sys.path.append(str(ROOT / "results" / "datasets"))  # as the tools there find each other
from draw_paths import Recorder


def watch(run: Run, episodes: int, **changes: object):
    """Results and observations `[length + 1, S]` of episodes of an evaluation.

    `changes` are of the arguments of the evaluation.
    """
    args = replace(run.args, eval_episodes=episodes, **changes)
    reference = run.record["dataset"]["reference"]
    envs = Recorder(run.script.vector_env(args))
    results = run.script.evaluate(run.agent, envs, args, reference, episodes)
    envs.close()
    paths = [np.array(observations) for observations in envs.episodes[:episodes]]
    return results, paths
