"""What is compared: one measure of every model on the same images, and what it says about the models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from saliency_lab._common.checks import format_epsilon
from saliency_lab.comparison import statistics
from saliency_lab.comparison.statistics import Interval, MeanEstimate, PairedTest
from saliency_lab.metrics.catalogue import Better

ACCURACY, ROBUST = SHARES = "accuracy", "robust_accuracy"
"""Measures that are shares of the images; the others score maps."""

SHARES_DISAGREE = 0.2
"""Gap between the accuracies of training seeds from which they may be of two kinds."""

TWO_SHARES_DISAGREE = 0.5
"""The same where there are two seeds, and so no range of others that the gap could be compared with."""

SCORES_DISAGREE = 2.0
"""The same for scores of maps, in standard deviations over the images."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Something measured on the same images for every model: values (seeds, images) by model."""

    metric: str
    method: str
    eps: float
    better: Better
    values: Mapping[str, np.ndarray]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    """Smallest and largest possible value, where an interval of the mean is cut off."""
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The training seeds of the rows of `values`, by model, where they are known."""
    absent: Mapping[str, int] = field(default_factory=dict)
    """How many other training seeds a model has, of which there are no values, such as failed ones."""
    _estimates: dict[tuple[str, ...], MeanEstimate] = field(default_factory=dict, init=False, repr=False)
    """By model, or by the two models of a difference: tables, ties and claims ask for the same."""

    @property
    def share(self) -> bool:
        """Whether the values say right or wrong for each image, so that the mean is an accuracy."""
        return self.metric in SHARES

    @property
    def label(self) -> str:
        """The method, or the attack and its ε."""
        return f"{self.method}, ε = {format_epsilon(self.eps)}" if self.metric == ROBUST else self.method

    def estimate(self, model: str) -> MeanEstimate:
        """Estimate the mean of a model.

        It is unknown where the model's seeds disagree, and has no interval where it lost its other seeds.
        """
        if (model,) not in self._estimates:
            unknown = self.seeds_disagree(model)
            estimate = MeanEstimate(np.nan) if unknown else self.estimate_mean(self.values[model])
            self._estimates[model,] = MeanEstimate(estimate.mean) if self.lost_seeds(model) else estimate
        return self._estimates[model,]

    def estimate_mean(self, values: np.ndarray) -> MeanEstimate:
        """Estimate the mean of values (S, N) of this measure."""
        if self._right_or_wrong(values):
            return statistics.share_estimate(values)
        low, high = self.bounds
        if (values < low).any() or (values > high).any():  # settings that change the usual range
            low, high = -np.inf, np.inf
        return statistics.mean_estimate(values, (low, high))

    def estimate_difference(self, model: str, other: str) -> MeanEstimate:
        """Estimate the mean of `model` less `other` on the same images.

        It is unknown where the seeds of either disagree. It has no interval where the two are identical, or
        one of them lost its other seeds.
        """
        if (model, other) not in self._estimates:
            estimate = self._estimate_difference(model, other)
            lost = self.lost_seeds(model) or self.lost_seeds(other)
            self._estimates[model, other] = MeanEstimate(estimate.mean) if lost else estimate
        return self._estimates[model, other]

    def _estimate_difference(self, model: str, other: str) -> MeanEstimate:
        a, b = self.values[model], self.values[other]
        if self.seeds_disagree(model) or self.seeds_disagree(other):
            return MeanEstimate(np.nan)
        if self.identical(model, other):
            return MeanEstimate(0.0)
        if self._right_or_wrong(a) and self._right_or_wrong(b):
            return statistics.share_difference_estimate(a, b)
        return statistics.difference_estimate(a.astype(float), b.astype(float))

    def interval(self, model: str, level: float) -> Interval:
        """Mean of a model and its interval."""
        return self.estimate(model).interval(level)

    def difference(self, model: str, other: str, level: float) -> Interval:
        """Mean of `model` less `other` on the same images, and its interval."""
        return self.estimate_difference(model, other).interval(level)

    def p_value(self, model: str, other: str) -> float:
        """Return the p-value of the hypothesis that the mean of `model` less `other` is 0.

        It belongs to the difference that `difference` estimates, over training seeds where there are several;
        for one seed of right and wrong predictions it is that of McNemar's exact test.
        """
        a, b = self.values[model], self.values[other]
        estimate = self.estimate_difference(model, other)
        shares = self._right_or_wrong(a) and self._right_or_wrong(b)
        if estimate.distances is not None and len(a) == len(b) == 1 and shares:
            return statistics.mcnemar_test(a, b).p
        return estimate.p_value()

    def rank_test(self, model: str, other: str) -> PairedTest:
        """Test with Wilcoxon's signed ranks whether these networks differ in distribution, not in mean."""
        return statistics.rank_test(self.values[model].astype(float), self.values[other].astype(float))

    def seed_means(self, model: str) -> tuple[float, ...]:
        """Mean over the images of each training seed; NaN for seeds without values, which come last."""
        means = statistics.over_seeds(self.values[model].astype(float).T)
        return (*map(float, means), *[float("nan")] * self.absent.get(model, 0))

    def seeds_disagree(self, model: str) -> bool:
        """Whether the training seeds of a model seem to be of two kinds, so that their mean describes none.

        Scores of one image, and scores that vary over images by rounding alone, say nothing about it: a
        difference of seeds is measured by the spread over images. Nor do two seeds: they are always two.
        Their accuracies are an exception where they lie far apart, as where one network collapsed.
        """
        values = self.values[model].astype(float)
        means = np.array(self.seed_means(model))
        two = int(np.isfinite(means).sum()) == 2
        floor = TWO_SHARES_DISAGREE if two else SHARES_DISAGREE
        if not (self.share or self._right_or_wrong(values)):
            if two:
                return False
            rows = [row for row in (row[~np.isnan(row)] for row in values) if len(row) > 1]
            size = float(statistics.largest_magnitude(values))
            with np.errstate(invalid="ignore"):  # infinite scores have no spread
                if all(statistics.is_constant(row, size) for row in rows):
                    return False
                floor = SCORES_DISAGREE * math.sqrt(np.mean([np.var(row) for row in rows]))
        return statistics.seeds_disagree(means, floor)

    def lost_seeds(self, model: str) -> bool:
        """Whether fewer than two of a model's several training seeds have scores."""
        return statistics.lost_seeds(np.array(self.seed_means(model)))

    def _right_or_wrong(self, values: np.ndarray) -> bool:
        """Whether the defined values are 0 or 1 for right or wrong, not scores that are 0 for all images."""
        defined = values[~np.isnan(values)]
        differ = bool((defined != defined[:1]).any())
        return is_binary(defined) and (self.share or self.bounds == (0.0, 1.0) or differ)

    def identical(self, model: str, other: str) -> bool:
        """Whether every network of both models has the same scores, as with maps that ignore the model.

        Scores that differ by rounding alone are the same.
        """
        if self.share:
            return False
        places = statistics.places(np.concatenate([self.values[model], self.values[other]]))
        same = (places == places[0]) | np.isnan(places).all(axis=0)
        return bool(same.all()) and not bool(np.isnan(places).all())

    def leaders(self, means: Mapping[str, float], alpha: float) -> dict[str, str]:
        """Say which model is "best", and which are a "tie": not significantly worse than it.

        A tie is decided by the paired test at `alpha`, corrected by Holm over the models. Where scores are
        undefined, a model may be ahead of the best on the images that both have: it is a tie too. A model
        with scores of one seed of several is neither, nor is one that could not be tested, unless its scores
        are identical to those of the best. If no model could be tested, there is no best.
        """
        known = {
            model: mean for model, mean in means.items() if not np.isnan(mean) and not self.lost_seeds(model)
        }
        if self.better == "neither" or len(set(known.values())) < 2:
            return {}
        sign = 1.0 if self.better == "higher" else -1.0
        best = max(known, key=lambda model: sign * known[model])
        others = [model for model in known if model != best]
        p = statistics.holm([self.p_value(model, best) for model in others])
        if np.isnan(p).all():
            return {}
        tied = [
            model
            for model, value in zip(others, p, strict=True)
            if self.identical(model, best)
            or value >= alpha
            or (value < alpha and sign * self.estimate_difference(model, best).mean >= 0)
        ]
        return {best: "best"} | dict.fromkeys(tied, "tie")


def is_binary(values: np.ndarray) -> bool:
    """Return whether all values are 0 or 1."""
    return values.dtype == bool or bool(((values == 0) | (values == 1)).all())
