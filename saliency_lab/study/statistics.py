"""The statistics of a comparison: intervals, paired tests, effect sizes; scipy and statsmodels do the work.

Scores of one model are an array (S, N): S training seeds, N images, NaN where a score is undefined.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 2000
_BATCH_VALUES = 4_000_000
"""Values resampled at once: 32 MB."""


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """Two models on the same images: images used, mean difference and its interval, p-value, effect size."""

    n: int
    difference: float
    low: float
    high: float
    p: float
    effect: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)


def mean_interval(scores: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of scores (S, N) and a bootstrap interval; undefined scores are left out.

    One seed: BCa over the images (Efron, JASA 1987). Several: see `hierarchical_interval`.
    """
    if len(scores) > 1:
        return hierarchical_interval(scores, level=level, seed=seed)
    values = scores[0][~np.isnan(scores[0])]
    if not len(values):
        return UNKNOWN
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    if len(values) == 1:
        return Interval(mean, np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH_VALUES // len(values)),
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def hierarchical_interval(scores: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of scores (S, N) over seeds and images, and the percentile interval of resampling both.

    Seeds and images are crossed, so a resample draws seeds and, apart from them, images, both with
    replacement (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007).
    """
    if np.isnan(scores).all():
        return UNKNOWN
    draws = np.random.default_rng(seed)
    seeds, images = scores.shape
    defined = ~np.isnan(scores)
    filled = np.where(defined, scores, 0.0)
    times_seed = draws.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES).astype(float)
    means = []
    rows = max(1, _BATCH_VALUES // images)
    for start in range(0, RESAMPLES, rows):
        chosen = times_seed[start : start + rows]
        times_image = draws.multinomial(images, np.full(images, 1 / images), size=len(chosen)).astype(float)
        total = ((chosen @ filled) * times_image).sum(1)
        count = ((chosen @ defined) * times_image).sum(1)
        means.append(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(np.nanmean(scores)), float(low), float(high))


def proportion_interval(right: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Share of right predictions (S, N): the Wilson interval; for several seeds `hierarchical_interval`."""
    if len(right) > 1:
        return hierarchical_interval(right.astype(float), level=level, seed=seed)
    count, n = int(right.sum()), right.shape[1]
    low, high = proportion_confint(count, n, alpha=1 - level, method="wilson")
    return Interval(count / n, max(0.0, float(low)), min(1.0, float(high)))


def paired_scores(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Paired:
    """Compare scores `a` with `b` on the same images: Wilcoxon's signed-rank test, two-sided.

    Scores (S, N) are averaged over the seeds first; images undefined in either are left out. The
    effect size is the matched-pairs rank-biserial correlation, (R₊ − R₋) / (R₊ + R₋) in ranks of |a − b|:
    1 where `a` is always above, −1 where always below (Kerby, Comprehensive Psychology 2014).
    """
    difference = _over_seeds(a) - _over_seeds(b)
    used = difference[~np.isnan(difference)]
    if not len(used):
        return Paired(0, *UNKNOWN, np.nan, np.nan)
    interval = _difference_interval(a, b, difference, level, seed)
    moved = used[used != 0]
    if not len(moved):
        return Paired(len(used), *interval, 1.0, 0.0)
    ranks = stats.rankdata(np.abs(moved))
    effect = float(np.sum(ranks * np.sign(moved)) / ranks.sum())
    return Paired(len(used), *interval, float(stats.wilcoxon(moved).pvalue), effect)


def paired_proportions(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Paired:
    """Compare right predictions `a` with `b` (S, N) on the same images; the effect is the difference.

    One seed each: McNemar's exact test. Several: Wilcoxon's test of the shares over seeds.
    """
    found = paired_scores(a.astype(float), b.astype(float), level=level, seed=seed)
    p = found.p
    if len(a) == len(b) == 1:
        only_a, only_b = int((a[0] & ~b[0]).sum()), int((~a[0] & b[0]).sum())
        both, neither = int((a[0] & b[0]).sum()), int((~a[0] & ~b[0]).sum())
        p = float(mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue) if only_a + only_b else 1.0
    return found._replace(p=p, effect=found.difference)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected by Holm (Scandinavian Journal of Statistics 1979) as one family; NaN stays NaN."""
    p = np.asarray(p, dtype=float)
    corrected = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected


def _over_seeds(scores: np.ndarray) -> np.ndarray:
    """Mean over the seeds (N,), NaN where no seed is defined."""
    defined = ~np.isnan(scores)
    total, count = np.where(defined, scores, 0.0).sum(0), defined.sum(0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _difference_interval(
    a: np.ndarray, b: np.ndarray, difference: np.ndarray, level: float, seed: int
) -> Interval:
    """Interval of the mean difference: images are paired; the seeds of two models are not."""
    if len(a) == len(b) == 1:
        return mean_interval(difference[None], level=level, seed=seed)
    draws = np.random.default_rng(seed)
    images = a.shape[1]
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        at = draws.integers(0, images, images)
        of_a, of_b = (_over_seeds(m[draws.integers(0, len(m), len(m))]) for m in (a, b))
        means[i] = np.nanmean((of_a - of_b)[at])
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Interval(float(np.nanmean(difference)), float(low), float(high))
