"""Estimates with confidence intervals, paired tests and corrections for many of them.

The scores of one model are an array (S, N): S training seeds, N images, NaN where a score is undefined.
`docs/statistics.md` derives what is computed here and reports how it behaves in simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar

from saliency_lab._common.proportions import wilson

FEWEST_DIFFERENT = 3
"""Fewest values that must differ from a repeated most frequent one for their mean to have an interval."""

ROUNDING = 1e-6
"""What differs by less than this share of the largest score is equal but for rounding.

Scores are computed in float32, in which a sum of a thousand numbers has an error of up to about this share.
"""

_SMALLEST_TAIL = 1e-15
"""Tail probabilities below this are reported as this; p-values that small are all the same."""


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


Distances = Callable[[float], tuple[float, float]]
"""How far the confidence limits lie below and above an estimate, given the probability beyond each."""


@dataclass(frozen=True, eq=False)
class MeanEstimate:
    """A mean, or a difference of means, with its confidence limits at every level.

    The interval and both tests are read off the same limits, so that they never contradict each other.

    Attributes
    ----------
    mean : float
        The estimate; NaN where nothing is defined.
    centre : float
        Where the limits start from; the mean itself, or a value shrunk towards 0.
    distances : callable or None
        Distances of the lower and the upper limit from `centre`, given the probability in each tail; None
        where there is no interval.
    bounds : tuple of float
        Smallest and largest possible value, where the interval is cut off.
    """

    mean: float
    centre: float = np.nan
    distances: Distances | None = None
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def limits(self, tail: float) -> tuple[float, float]:
        """Return the lower and the upper limit, each with the probability `tail` beyond it."""
        if self.distances is None:
            return np.nan, np.nan
        below, above = self.distances(tail)
        return self.centre - below, self.centre + above

    def interval(self, level: float = 0.95) -> Interval:
        """Return the two-sided confidence interval; its ends are NaN where there is none."""
        low, high = self.limits((1 - level) / 2)
        if math.isnan(low + high) and not (math.isinf(low) or math.isinf(high)):
            return Interval(self.mean, np.nan, np.nan)
        low, high = min(self.mean, low), max(self.mean, high)
        return Interval(self.mean, float(max(low, self.bounds[0])), float(min(high, self.bounds[1])))

    def p_value(self) -> float:
        """Return the two-sided p-value of the hypothesis that the mean is 0; NaN where there is no interval.

        It is 1 − level of the narrowest interval that reaches 0: p < 0.05 exactly where the interval at
        95 % excludes 0.
        """
        if self.distances is None:
            return np.nan
        return min(1.0, 2 * min(self._tail_above(0.0), self._tail_below(0.0)))

    def p_equivalence(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (TOST) that the mean lies within ±margin.

        Below α exactly where the interval at 1 − 2α lies within the margin (Schuirmann, Journal of
        Pharmacokinetics and Biopharmaceutics 1987).
        """
        return max(self._tail_above(margin), self._tail_below(-margin))

    def _tail_above(self, value: float) -> float:
        """Probability in the tail whose upper limit is `value`; 1 where the estimate lies above it."""
        return self._tail(lambda tail: value - self.limits(tail)[1])

    def _tail_below(self, value: float) -> float:
        """Probability in the tail whose lower limit is `value`; 1 where the estimate lies below it."""
        return self._tail(lambda tail: self.limits(tail)[0] - value)

    def _tail(self, clearance: Callable[[float], float]) -> float:
        """Solve for the tail probability at which a limit reaches a value; `clearance` grows with it."""
        if self.distances is None:
            return np.nan
        if clearance(0.5) <= 0:
            return 1.0
        if clearance(_SMALLEST_TAIL) > 0:
            return _SMALLEST_TAIL
        root = optimize.brentq(lambda x: clearance(math.exp(x)), math.log(_SMALLEST_TAIL), math.log(0.5))
        return math.exp(float(root))


def mean_estimate(scores: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> MeanEstimate:
    """Estimate the mean of scores (S, N) over seeds and images; undefined scores are left out.

    The interval is cut off at `bounds`, the smallest and the largest possible score.

    One seed: Student's interval over the images, corrected for skewness. Several seeds: the seeds' and the
    images' parts are added in quadrature; see `_with_seeds`. Where nothing varies but by rounding, neither
    over images nor over seeds, there is no interval.

    >>> scores = np.arange(12.0).reshape(3, 4)
    >>> [round(end, 2) for end in mean_estimate(scores).interval(0.95)]
    [5.5, -4.65, 15.65]
    """
    return _estimate([scores], bounds)


def difference_estimate(a: np.ndarray, b: np.ndarray) -> MeanEstimate:
    """Estimate the mean of a − b on the same images; `a` is (S, N) and `b` is (S', N).

    Images are paired, training seeds are not.
    """
    return _estimate([a, b], (-np.inf, np.inf))


def _estimate(groups: Sequence[np.ndarray], bounds: tuple[float, float]) -> MeanEstimate:
    by_image = _signed_sum([over_seeds(group) for group in groups])
    used = ~np.isnan(by_image)
    if not used.any():
        return MeanEstimate(np.nan)
    values = by_image[used]
    groups = [group[:, used] for group in groups]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float(values.mean())
        size = max(float(largest_magnitude(group)) for group in groups)
        constant = len(values) > 1 and is_constant(values, size)
        images = _no_distances if constant else _image_distances(values)
        spread = _seed_spread(groups, over_seeds)
        if images is None or spread is None:
            return MeanEstimate(mean)
        error, freedom = spread
        if constant and math.hypot(*error) <= ROUNDING * size:
            return MeanEstimate(mean)
        share = _interaction_share(groups, float(values.var(ddof=1)) / len(values))

    def seeds(tail: float) -> tuple[float, float]:
        half = _student(freedom, tail) * math.hypot(*error)
        return half, half

    return MeanEstimate(mean, mean, _with_seeds(images, seeds, share), bounds)


def share_estimate(right: np.ndarray) -> MeanEstimate:
    """Estimate the share of right predictions (S, N); undefined ones (NaN) are left out.

    One seed: Wilson's interval over the images. Several: the seeds' part is Student's interval on the
    arcsine scale, on which accuracies near 0 and 1 are nearly symmetric, added to Wilson's in quadrature.
    """
    right = right.astype(float)
    by_image = over_seeds(right)
    used = ~np.isnan(by_image)
    if not used.any():
        return MeanEstimate(np.nan)
    by_image, right = by_image[used], right[:, used]
    share, n = float(by_image.mean()), len(by_image)

    def images(tail: float) -> tuple[float, float]:
        low, high = wilson(share * n, n, 1 - 2 * tail) if tail < 0.5 else (share, share)
        return max(share - low, 0.0), max(high - share, 0.0)

    spread = _seed_spread([right], _arcsine_means)
    if spread is None:
        return MeanEstimate(share)
    (error,), freedom = spread

    def seeds(tail: float) -> tuple[float, float]:
        return _arcsine_distances(share, _student(freedom, tail) * error)

    variance = float(by_image.var(ddof=1)) / n if n > 1 else 0.0
    part = _with_seeds(images, seeds, _interaction_share([right], variance))
    return MeanEstimate(share, share, part, (0.0, 1.0))


def share_difference_estimate(a: np.ndarray, b: np.ndarray) -> MeanEstimate:
    """Estimate the difference of two shares of right predictions, a − b on the same images.

    Images for which either is undefined (NaN) are left out.

    One seed each: the interval of Bonett & Price (Journal of Educational and Behavioral Statistics 2012),
    which is Wald's with two images added, of which each model alone has one right. Several seeds: each
    model's interval over its seeds on the arcsine scale is combined with the other's and with that over the
    images by the method of variance estimates recovery (Zou & Donner, Statistics in Medicine 2008).
    """
    groups = [a.astype(float), b.astype(float)]
    by_image = _signed_sum([over_seeds(group) for group in groups])
    used = ~np.isnan(by_image)
    if not used.any():
        return MeanEstimate(np.nan)
    by_image, groups = by_image[used], [group[:, used] for group in groups]
    pairs = np.append(by_image, [1.0, -1.0])
    of_images = float(pairs.std()) / len(pairs) ** 0.5
    shares = [float(over_seeds(group).mean()) for group in groups]
    linear, arcsine = _seed_spread(groups, over_seeds), _seed_spread(groups, _arcsine_means)
    mean = float(by_image.mean())
    if linear is None or arcsine is None:
        return MeanEstimate(mean)
    freedom, errors = linear[1], arcsine[0]

    def images(tail: float) -> tuple[float, float]:
        half = -float(special.ndtri(tail)) * of_images
        return half, half

    def seeds(tail: float) -> tuple[float, float]:
        q = _student(freedom, tail)
        (below_a, above_a), (below_b, above_b) = (
            _arcsine_distances(share, q * error) for share, error in zip(shares, errors, strict=True)
        )
        return math.hypot(below_a, above_b), math.hypot(above_a, below_b)

    variance = float(by_image.var(ddof=1)) / len(by_image) if len(by_image) > 1 else 0.0
    part = _with_seeds(images, seeds, _interaction_share(groups, variance))
    return MeanEstimate(mean, float(pairs.mean()), part, (-1.0, 1.0))


def _with_seeds(images: Distances, seeds: Distances, share: float) -> Distances:
    """Add the distances due to the seeds to those due to the images.

    The variance of a mean over crossed seeds and images is that of the seeds' means plus that of the
    images' means less that of their interaction, which both contain (Cameron, Gelbach & Miller, Journal of
    Business & Economic Statistics 2011; Owen, Annals of Applied Statistics 2007). Each part keeps its own
    quantile. `share` is the interaction's share of the images' part; the seeds' part counts as no less.
    """

    def distances(tail: float) -> tuple[float, float]:
        (below, above), (seed_below, seed_above) = images(tail), seeds(tail)
        return (
            math.sqrt(below**2 + max(seed_below**2 - share * below**2, 0.0)),
            math.sqrt(above**2 + max(seed_above**2 - share * above**2, 0.0)),
        )

    return distances


def _no_distances(tail: float) -> tuple[float, float]:
    return 0.0, 0.0


def _image_distances(values: np.ndarray) -> Distances | None:
    """Student's limits of the mean of values (N,), corrected for skewness; None where there are none.

    The t statistic is transformed by Hall's cubic, which removes its skewness (Journal of the Royal
    Statistical Society B 54, 1992). One value has no interval; nor have values of which too few differ from
    the most frequent one, such as zero-inflated scores of a few images: no interval from these covers.
    """
    n = len(values)
    counts = np.unique(values, return_counts=True)[1]
    repeated = counts.max()
    if n < 2 or (repeated > 1 and n - repeated < FEWEST_DIFFERENT):
        return None
    away = values - values.mean()
    size = float(values.std())
    if not (size > 0 and math.isfinite(size)):
        return None
    error = size / math.sqrt(n - 1)
    slope = float(((away / size) ** 3).mean()) / math.sqrt(n)

    def inverse(t: float) -> float:
        if abs(slope) < 1e-8:
            return t
        return 3 / slope * (math.cbrt(1 + slope * (t - slope / 6)) - 1)

    def distances(tail: float) -> tuple[float, float]:
        quantile = _student(n - 1, tail)
        return max(error * inverse(quantile), 0.0), max(-error * inverse(-quantile), 0.0)

    return distances


def lost_seeds(means: np.ndarray) -> bool:
    """Say whether fewer than two of several training seeds have a mean, as where the others collapsed.

    What is left is then about one network, and says nothing about the recipe.

    >>> lost_seeds(np.array([0.5, np.nan])), lost_seeds(np.array([0.5])), lost_seeds(np.array([0.5, 0.6]))
    (True, False, False)
    """
    return int((~np.isnan(means)).sum()) < 2 <= len(means)


_FEWEST_EFFECTIVE = 1.5
"""Effective seeds below which the mean is that of one network, and has no interval over seeds."""


def _seed_spread(
    groups: Sequence[np.ndarray], means_of: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[float], float] | None:
    """Return the standard error of each model's mean over its seeds, and Welch's degrees of freedom.

    `groups` are scores (S, N), and `means_of` returns each seed's mean from their transpose. The degrees of
    freedom are at most those of seeds that vary equally. Otherwise, where one model has few seeds that happen
    to be alike, they would be those of the other model's many seeds.

    A mean over images of means over seeds weighs a seed by the images for which it is defined, so the seeds
    count as 1 / Σ w² seeds, where w are the weights (`_effective_seeds`). A single seed is taken to vary like
    the seeds of the other model; where all models have a single one, the errors are 0. None where a model
    lost seeds (`lost_seeds`), or so many of their scores that one seed decides.
    """
    by_seed = [means_of(group.T) for group in groups]
    defined = [means[~np.isnan(means)] for means in by_seed]
    counts = [_effective_seeds(group) for group in groups]
    many = [len(means) > 1 for means in defined]
    if any(map(lost_seeds, by_seed)) or any(
        count < _FEWEST_EFFECTIVE for count, several in zip(counts, many, strict=True) if several
    ):
        return None
    if not any(many):
        return [0.0] * len(by_seed), np.inf
    variances = [
        float(means.var(ddof=1)) if several else np.nan for means, several in zip(defined, many, strict=True)
    ]
    known = [variance for variance, several in zip(variances, many, strict=True) if several]
    errors = [
        math.sqrt((variance if several else known[0]) / count)
        for variance, several, count in zip(variances, many, counts, strict=True)
    ]
    effective = [count for count, several in zip(counts, many, strict=True) if several]
    parts = errors if all(many) else [math.hypot(*errors)]
    spread = sum(error**4 / (count - 1) for error, count in zip(parts, effective, strict=True))
    freedom = sum(error**2 for error in parts) ** 2 / spread if spread > 0 else np.inf
    equal = sum(1 / n for n in effective) ** 2 / sum(1 / (n**2 * (n - 1)) for n in effective)
    return errors, min(freedom, equal)


def _arcsine_means(scores: np.ndarray) -> np.ndarray:
    """Return `over_seeds` on the arcsine scale."""
    means: np.ndarray = np.arcsin(np.sqrt(over_seeds(scores)))
    return means


def _effective_seeds(group: np.ndarray) -> float:
    """Return how many seeds of equal weight the seeds of scores (S, N) count as.

    >>> whole, half = np.ones((2, 4)), np.array([[1, 1, 1, 1], [1, 1, np.nan, np.nan]])
    >>> _effective_seeds(whole), _effective_seeds(half)
    (2.0, 1.6)
    """
    defined = ~np.isnan(group)
    if defined.all(1)[defined.any(1)].all():
        return float(defined.any(1).sum())
    counts = defined.sum(0)
    weights = (defined[:, counts > 0] / counts[counts > 0]).mean(1)
    return float(1 / (weights**2).sum())


def _interaction_share(groups: Sequence[np.ndarray], of_images: float) -> float:
    """Return the interaction's share of the variance that the images give the mean, in [0, 1]."""
    interaction = 0.0
    for group in groups:
        defined = ~np.isnan(group)
        seeds, images = int(defined.any(axis=1).sum()), group.shape[1]
        freedom = int(defined.sum()) - seeds - images + 1
        if seeds < 2 or freedom < 1:
            continue
        by_seed, by_image = over_seeds(group.T), over_seeds(group)
        rest = group - by_seed[:, None] - by_image + float(by_image.mean())
        interaction += float(np.nansum(rest**2)) / freedom / int(defined.sum())
    return min(interaction / of_images, 1.0) if of_images > 0 else 0.0


def _arcsine_distances(share: float, half: float) -> tuple[float, float]:
    """Return the distances from a share to the ends of an interval of half-width `half` on the arcsine scale.

    >>> [round(distance, 3) for distance in _arcsine_distances(0.9, 0.1)]
    [0.068, 0.052]
    """
    angle = math.asin(math.sqrt(share))
    low = math.sin(max(angle - half, 0.0)) ** 2
    high = math.sin(min(angle + half, math.pi / 2)) ** 2
    return max(share - low, 0.0), max(high - share, 0.0)


def _student(freedom: float, tail: float) -> float:
    """Upper quantile of Student's distribution; the normal one for infinite degrees of freedom."""
    return -float(special.ndtri(tail) if math.isinf(freedom) else special.stdtrit(freedom, tail))


def seeds_disagree(by_seed: np.ndarray, floor: float) -> bool:
    """Say whether seeds fall into two kinds, such as trained and collapsed networks.

    Between two neighbours of the sorted means must lie a gap of at least `floor`, larger than rounding, and
    of five times the wider range on its two sides (three times with five seeds or more). No interval of the
    mean can be right then.

    >>> bool(seeds_disagree(np.array([0.98, 0.10, 0.97]), 0.2))
    True
    >>> bool(seeds_disagree(np.array([0.24, 0.36, 0.62]), 0.2))
    False
    """
    means = np.sort(by_seed[np.isfinite(by_seed)])
    if len(means) < 2:
        return False
    split = int(np.diff(means).argmax())
    gap = means[split + 1] - means[split]
    within = max(means[split] - means[0], means[-1] - means[split + 1])
    rounding = ROUNDING * largest_magnitude(means)
    return bool(gap > rounding and gap >= floor - rounding and gap >= (5 if len(means) < 5 else 3) * within)


class PairedTest(NamedTuple):
    """A paired test of two models on the same images: the images used, the p-value, the effect size."""

    n: int
    p: float
    effect: float


def rank_test(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Test scores (S, N) on the same images with Wilcoxon's signed-rank test, two-sided.

    It tests whether differences are symmetric about 0, not whether their mean is 0, and it averages scores
    over the seeds first, so it is about these networks alone. Images undefined in either are left out. The
    effect size is the matched-pairs rank-biserial correlation, (R₊ − R₋) / (R₊ + R₋) in ranks of |a − b|:
    1 where `a` is always above, −1 where it is always below (Kerby, Comprehensive Psychology 2014).

    >>> rank_test(np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.0, 0.0, 0.0, 5.0]]))
    PairedTest(n=4, p=0.375, effect=0.7)
    """
    used = _signed_levels(over_seeds(a), over_seeds(b))
    moved = used[used != 0]
    if not len(moved):
        return PairedTest(len(used), 1.0 if len(used) else np.nan, 0.0 if len(used) else np.nan)
    ranks = stats.rankdata(np.abs(moved))
    effect = float(np.sum(ranks * np.sign(moved)) / ranks.sum())
    return PairedTest(len(used), float(stats.wilcoxon(moved).pvalue), effect)


def _signed_levels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Replace each a − b by its sign times the place of |a − b| among them, from 1 up; undefined ones go.

    It is 0 where a and b differ by rounding alone. Magnitudes share a place where only the rounding of means
    in float64 separates them: 2/3 − 1/3 and 1 − 2/3 are a tie, which floats would break. `ROUNDING` would be
    too coarse for this, because the magnitudes of many images lie that close to each other by chance.

    >>> _signed_levels(np.array([1.0, 2 / 3, 0.0]), np.array([2 / 3, 1.0, 1.0])).tolist()
    [1.0, -1.0, -2.0]
    """
    defined = ~np.isnan(a - b)
    pairs = np.stack([a[defined], b[defined]])
    of_a, of_b = places(pairs)
    sizes = np.where(of_a == of_b, 0.0, np.abs(pairs[0] - pairs[1]))
    order = sizes.argsort()
    rising, levels = sizes[order], np.empty(len(sizes))
    levels[order] = (rising > np.append(0.0, rising)[:-1] + 1e-13 * largest_magnitude(pairs)).cumsum()
    return (of_a - of_b) * levels


def places(values: np.ndarray) -> np.ndarray:
    """Return the place of each value of an image among them, from 1 up, for values (K, N); NaN stays NaN.

    Neighbours that differ by rounding alone share a place: by at most `ROUNDING` times the largest finite
    magnitude of the image, or of a typical image (the median) if that is larger, because a score near 0 may
    be what is left of larger numbers.

    >>> places(np.array([[0.2, 3.0], [0.1, np.nan], [0.2 + 1e-9, 2.0]])).tolist()
    [[2.0, 2.0], [1.0, nan], [2.0, 1.0]]
    """
    order = values.argsort(axis=0)  # NaN sorts last
    rising = np.take_along_axis(values, order, axis=0)
    size = largest_magnitude(values, axis=0)
    typical = np.median(size) if len(size) else 0.0
    with np.errstate(invalid="ignore"):  # equal infinite values share a place
        steps = np.diff(rising, axis=0, prepend=rising[:1]) > ROUNDING * np.maximum(size, typical)
    found = np.empty(values.shape)
    np.put_along_axis(found, order, 1.0 + steps.cumsum(axis=0), axis=0)
    return np.where(np.isnan(values), np.nan, found)


def is_constant(values: np.ndarray, size: float) -> bool:
    """Return whether values differ by rounding alone, if the scores behind them are as large as `size`.

    >>> is_constant(np.array([0.1, 0.1 + 1e-9]), 1.0), is_constant(np.array([0.1, 0.1 + 1e-5]), 1.0)
    (True, False)
    """
    return bool(np.ptp(values) <= ROUNDING * size)


def largest_magnitude(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the largest finite magnitude of all values, or along an axis; 0 where there is none.

    >>> float(largest_magnitude(np.array([1.0, -2.0, np.inf, np.nan])))
    2.0
    """
    sizes = np.abs(values)
    return np.max(sizes, axis=axis, initial=0.0, where=np.isfinite(sizes))


def mcnemar_test(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Test right predictions (1, N) on the same images with McNemar's exact test.

    Images for which either is undefined (NaN) are left out. The effect is the difference of the shares.
    """
    defined = ~(np.isnan(a[0]) | np.isnan(b[0]))
    one, other = a[0, defined] == 1, b[0, defined] == 1
    counts = [[int((first & second).sum()) for second in (other, ~other)] for first in (one, ~one)]
    p = float(mcnemar(counts, exact=True).pvalue)
    return PairedTest(len(one), p, float(one.mean() - other.mean()))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Correct p-values as one family by Holm (Scandinavian Journal of Statistics 1979); NaN stays NaN.

    As statsmodels' `multipletests`, which runs a garbage collection at every call (0.2 s in a notebook).

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, dtype=float)
    corrected = np.full_like(p, np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def over_seeds(scores: np.ndarray) -> np.ndarray:
    """Return the mean over the seeds (N,), NaN where no seed is defined."""
    defined = ~np.isnan(scores)
    total, count = np.where(defined, scores, 0.0).sum(0), defined.sum(0)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _signed_sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the only array, or the first less the second."""
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]
