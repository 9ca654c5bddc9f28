"""What is compared: the values of one thing measured on the same images, and what they tell of the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.seeding import derive_seed
from saliency_lab.comparison import statistics
from saliency_lab.comparison.statistics import Interval, PairedTest
from saliency_lab.metrics.catalogue import Better

ACCURACY, ROBUST = SHARES = "accuracy", "robust_accuracy"
"""Measures that are shares of the images; the others score maps."""


@dataclass(frozen=True, eq=False)
class Measure:
    """Something measured on the same images for every model: values (seeds, images) by model."""

    metric: str
    method: str
    eps: float
    better: Better
    values: Mapping[str, np.ndarray]
    bounds: tuple[float, float] = (-np.inf, np.inf)
    """The ends of what the metric can be, which an interval of the mean does not pass."""
    _found: dict[tuple[str, str | None, float, int], Interval] = field(
        default_factory=dict, init=False, repr=False
    )
    """By model, the other of a difference, level and seed: tables, ties and claims ask for the same."""

    @property
    def share(self) -> bool:
        """Whether the values are right or wrong, and the mean a share."""
        return self.metric in SHARES

    @property
    def label(self) -> str:
        """The method, or the attack and its ε."""
        return f"{self.method}, ε = {format_epsilon(self.eps)}" if self.metric == ROBUST else self.method

    def interval(self, model: str, level: float, seed: int) -> Interval:
        """Mean and its interval."""
        asked = model, None, level, seed
        if asked not in self._found:
            self._found[asked] = self._interval(model, level, seed)
        return self._found[asked]

    def _interval(self, model: str, level: float, seed: int) -> Interval:
        values = self.values[model]
        if self.share:
            return statistics.proportion_interval(values, level=level)
        key = derive_seed(seed, "bootstrap", self.metric, self.label, model)
        return self.within_bounds(statistics.mean_interval(values, level=level, seed=key), values)

    def within_bounds(self, found: Interval, values: np.ndarray) -> Interval:
        """Cut an interval of the mean of `values` off at the ends of what the metric can be."""
        low, high = self.bounds
        if (values < low).any() or (values > high).any():  # of settings that the usual range is not of
            return found
        return Interval(found.mean, max(found.low, low), min(found.high, high))

    def difference(self, model: str, other: str, level: float, seed: int) -> Interval:
        """Mean of `model` less `other` on the same images, and its interval.

        The draws of a bootstrap are of the pair, so the other way round it is the same with its sign changed.
        """
        first, second = sorted((model, other))
        asked = first, second, level, seed
        if asked not in self._found:
            self._found[asked] = self._difference(first, second, level, seed)
        found = self._found[asked]
        return found if model == first else Interval(0 - found.mean, 0 - found.high, 0 - found.low)

    def _difference(self, model: str, other: str, level: float, seed: int) -> Interval:
        a, b = self.values[model], self.values[other]
        if self.share:
            return statistics.share_difference_interval(a, b, level=level)
        key = derive_seed(seed, "paired", self.metric, self.label, model, other)
        return statistics.difference_interval(a, b, level=level, seed=key)

    def test(self, model: str, other: str) -> PairedTest:
        """Paired test of `model` against `other` on the same images."""
        test = statistics.compare_proportions if self.share else statistics.compare_scores
        return test(self.values[model], self.values[other])

    def leaders(self, means: Mapping[str, float], alpha: float, seed: int) -> dict[str, str]:
        """Say which model is "best", and which are a "tie": not told to be worse.

        That is by the paired test at `alpha` (Holm), or as the interval of the difference holds 0. Where
        scores are undefined, a model may be ahead of the best on the images of both: it is a tie too.
        """
        known = {model: mean for model, mean in means.items() if not np.isnan(mean)}
        if self.better == "neither" or len(set(known.values())) < 2:
            return {}
        choose = max if self.better == "higher" else min
        best = choose(known, key=lambda model: known[model])
        others = [model for model in known if model != best]
        p = statistics.holm([self.test(model, best).p for model in others])
        tied = []
        for model, value in zip(others, p, strict=True):
            if not value < alpha or not self._worse(model, best, 1 - alpha, seed):
                tied.append(model)
        return {best: "best"} | dict.fromkeys(tied, "tie")

    def _worse(self, model: str, best: str, level: float, seed: int) -> bool:
        """Whether the interval of the difference leaves 0 out, on the side that is not better."""
        difference = self.difference(model, best, level, seed)
        return difference.high < 0 if self.better == "higher" else difference.low > 0
