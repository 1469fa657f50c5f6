"""Intervals and standard errors over seeds and episodes."""

import math

import numpy as np
from scipy import stats


def standard_error(values: np.ndarray) -> float:
    spread = values.std(ddof=1)
    return float(spread / math.sqrt(len(values)))


def mean_se(values: np.ndarray, digits: int = 1) -> str:
    """Mean and standard error over seeds, as text; of a single seed its value."""
    mean = f"{values.mean():.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {standard_error(values):.{digits}f}"


def interval(values: np.ndarray):
    """Mean and half the width of its 95 % interval (Student's t)."""
    mean = values.mean()
    quantile = stats.t.ppf(0.975, len(values) - 1)
    half = quantile * standard_error(values)
    return float(mean), float(half)


def bootstrap(values: np.ndarray, resamples: int = 10_000):
    """95 % bootstrap interval of a mean over seeds."""
    n = len(values)
    rng = np.random.default_rng(0)
    index = rng.integers(n, size=(resamples, n))
    means = values[index].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def success_interval(percent: float, episodes: int):
    """Clopper and Pearson's exact 95 % interval of a success rate, in %."""
    arrived = round(percent * episodes / 100)
    found = stats.binomtest(arrived, episodes).proportion_ci()
    return 100 * found.low, 100 * found.high
