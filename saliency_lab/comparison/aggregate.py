"""Aggregate statistics over training seeds, robust to outlying ones.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021, whose
library is rliable. A model's scores are an array (S, T): S training seeds, T tasks, such as the strengths
of an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats

from saliency_lab.comparison.statistics import Interval

FEWEST_SEEDS = 5
"""Fewest training seeds for which a bootstrap over seeds is of use."""

RESAMPLES = 2000


def interquartile_mean(scores: np.ndarray) -> float:
    """Return the mean of the middle half of all scores (S, T).

    A quarter of the scores, rounded down, is left out at each end.

    >>> interquartile_mean(np.array([[0.0], [5.0], [6.0], [7.0], [100.0]]))
    6.0
    """
    return float(stats.trim_mean(scores, 0.25, axis=None))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """Return the probability that a random seed of `a` has a higher score than one of `b`; ties count half.

    It is the Mann–Whitney statistic divided by its maximum, averaged over the tasks. Both arrays are
    (seeds, tasks); the numbers of seeds may differ.

    >>> probability_of_improvement(np.array([[2.0], [3.0]]), np.array([[1.0], [2.0]]))
    0.875
    """
    higher = np.sign(a[:, None] - b[None])
    return float((higher.mean() + 1) / 2)


def performance_profile(scores: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the share of all scores (S, T) above each threshold.

    >>> performance_profile(np.array([[0.2], [0.6], [0.9]]), [0.5, 0.6]).round(2).tolist()
    [0.67, 0.33]
    """
    return (scores[..., None] > np.asarray(thresholds)).mean(axis=(0, 1))


def stratified_bootstrap(
    statistic: Callable[..., float],
    groups: Sequence[np.ndarray],
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Return a statistic of one or more models' scores (S, T) with its percentile interval.

    Seeds are drawn with replacement within each model and each task (the strata), so that every resample has
    as many scores of each task as the original. With fewer than ten seeds such intervals are too narrow.

    Parameters
    ----------
    statistic : callable
        Takes one array per model and returns a number.
    groups : sequence of arrays (S, T)
        The numbers of seeds may differ between models.
    level : float
        Confidence level, between 0 and 1.
    seed : int
        Seed of the resampling.
    resamples : int
        Number of resamples.

    Examples
    --------
    >>> scores = np.arange(20.0).reshape(10, 2)
    >>> mean, low, high = stratified_bootstrap(interquartile_mean, [scores])
    >>> low < mean < high
    True
    """
    values = [statistic(*drawn) for drawn in _resample(groups, seed, resamples)]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(statistic(*groups), float(low), float(high))


def profile_band(
    scores: np.ndarray, thresholds: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the performance profile of scores (S, T) and the ends of its pointwise bootstrap interval."""
    values = [performance_profile(drawn, thresholds) for (drawn,) in _resample([scores], seed, RESAMPLES)]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return performance_profile(scores, thresholds), low, high


def _resample(groups: Sequence[np.ndarray], seed: int, resamples: int) -> Iterator[list[np.ndarray]]:
    """Draw seeds with replacement within each model and task."""
    draws = np.random.default_rng(seed)
    for _ in range(resamples):
        yield [
            np.take_along_axis(group, draws.integers(0, len(group), group.shape), axis=0) for group in groups
        ]
