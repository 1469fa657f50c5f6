"""Aggregates over the mazes with their intervals, by rliable (Agarwal et al. 2021).

A bootstrap draws anew within each task from its seeds. With three seeds the intervals are too
narrow: three values drawn anew have two thirds of the unbiased variance, so that what is meant for
95 % holds the true mean in 89 % of the cases at best.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rliable import library, metrics

from results.common.records import column
from results.studies.benchmark.scores import ARMS, mazes

RESAMPLES = 1000
TAUS = np.linspace(0, 100, 51)


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """rliable's probability of improvement without its slow test statistic; x, y `[seed, task]`.

    P(x > y) + P(x = y) / 2, mean over tasks.
    """
    better = (x[:, None] > y).mean()
    equal = (x[:, None] == y).mean()
    return np.array([better + equal / 2])


def mean_and_iqm(scores: np.ndarray) -> np.ndarray:
    mean = metrics.aggregate_mean(scores)
    iqm = metrics.aggregate_iqm(scores)
    return np.array([mean, iqm])


def profile(scores: np.ndarray) -> np.ndarray:
    """Share of runs above each tau."""
    return (scores.reshape(-1, 1) > TAUS).mean(0)


def bootstrapped(scores: dict, function: Callable):
    """(point, low, high) of a function of each entry."""
    before = np.random.get_state()
    np.random.seed(0)  # rliable 1.2.0 draws from numpy's global generator
    points, intervals = library.get_interval_estimates(scores, function, reps=RESAMPLES)
    np.random.set_state(before)
    return {name: (points[name], *intervals[name]) for name in scores}


@functools.cache
def of_scores(key: tuple):
    """The estimates for scores `[seed, task]` of each arm."""
    scores = {arm: np.array(rows) for arm, rows in key}
    pairs = {}
    for x, y in itertools.permutations(scores, 2):
        pairs[f"{x},{y}"] = scores[x], scores[y]
    return {
        "aggregate": bootstrapped(scores, mean_and_iqm),
        "profile": {arm: profile(of_arm) for arm, of_arm in scores.items()},
        "better": bootstrapped(pairs, improvement),
    }


def estimates(records: Path):
    """Of each arm mean and interquartile mean, profile, and P(it beats another)."""
    tasks = mazes(records).values()
    key = []  # hashable, for the cache
    for arm in ARMS:
        by_task = [column(task[arm], "last") for task in tasks]
        by_seed = zip(*by_task)
        key.append((arm, tuple(by_seed)))
    return of_scores(tuple(key))
