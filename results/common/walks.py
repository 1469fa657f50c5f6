"""Episodes of a run's policy, with every observation kept: how it moves, not only what it
scores."""

from dataclasses import replace

import numpy as np

from results.common.runs import Run


class Watched:
    """A vector of environments that keeps what it shows, group of episodes by group."""

    def __init__(self, envs):
        self.envs = envs
        self.num_envs = envs.num_envs
        self.single_action_space = envs.single_action_space
        self.groups: list[list[np.ndarray]] = []  # observations [n, S], from each reset on

    def reset(self, **how):
        obs, info = self.envs.reset(**how)
        self.groups.append([obs.copy()])
        return obs, info

    def step(self, action):
        found = self.envs.step(action)
        self.groups[-1].append(found[0].copy())
        return found

    def path(self, episode: int, length: int) -> np.ndarray:
        """Observations `[length + 1, S]` of one episode."""
        group = self.groups[episode // self.num_envs]
        i = episode % self.num_envs
        return np.stack([obs[i] for obs in group[: length + 1]])


def watch(run: Run, episodes: int, **changes: object) -> tuple[list[dict], list[np.ndarray]]:
    """Results and paths of episodes, as an evaluation with these changes of arguments has them."""
    args = replace(run.args, eval_episodes=episodes, **changes)
    reference = run.record["dataset"]["reference"]
    envs = Watched(run.script.vector_env(args))
    results = run.script.evaluate(run.agent, envs, args, reference, episodes)
    envs.envs.close()
    paths = [envs.path(i, result["length"]) for i, result in enumerate(results)]
    return results, paths
