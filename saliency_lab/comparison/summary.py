"""The summary of a comparison: what its tables and figures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from saliency_lab._common.arguments import check_choice
from saliency_lab._common.checks import format_epsilon, parse_epsilon, same_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import derive_seed
from saliency_lab.comparison import aggregate, statistics
from saliency_lab.comparison.measures import ROBUST, SHARES, Measure
from saliency_lab.comparison.ranking import Ranking, agreement, rank

if TYPE_CHECKING:
    from saliency_lab._common.passes import Predictions
    from saliency_lab.attribution import Attributions


class Pictures(Protocol):
    """Where a comparison finds images and maps to draw; a `Study` is one."""

    @property
    def x(self) -> Tensor:
        """The images, (N, C, H, W)."""

    @property
    def labels(self) -> list[str]:
        """Names of the images' classes, or their numbers."""

    def read_maps(self, model: str, method: str, seed: int | None = None) -> Attributions:
        """Maps of one model by one method."""

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""

    def read_predictions(self, model: str, seed: int | None = None) -> Predictions | None:
        """Predicted classes of one model and their probabilities, or None."""

    def read_curves(self, model: str, method: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Curves (seeds, images, K) behind one model's scores and their positions (K,), or None."""


@dataclass(frozen=True, eq=False)
class Summary:
    """The models, what was measured on them, and how each differs from the baseline.

    The tables and figures of a comparison are made from this alone.

    Attributes
    ----------
    models : list of str
        Names of the models, in the order given.
    measures : list of Measure
        Accuracies first, then each metric by method.
    baseline : str
        The model that the others are tested against.
    level : float
        Level of the intervals; 1 − level is the level of the tests.
    seed : int
        Seed of the stratified bootstrap of `Comparison.aggregate`.
    pictures : Pictures or None
        Where the images and maps are read, for figures that show them.
    """

    models: list[str]
    measures: list[Measure]
    baseline: str
    level: float
    seed: int
    pictures: Pictures | None = None

    def measure(self, metric: str, method: str | None = None, eps: float | str | None = None) -> Measure:
        """Return one measure: by default of the first method, and of the largest ε."""
        known = list(dict.fromkeys(m.metric for m in self.measures))
        check_choice(metric, known, "metric of this comparison")
        matching = [m for m in self.measures if m.metric == metric]
        labels = list(dict.fromkeys(m.method for m in matching))
        if method is not None:
            check_choice(method, labels, f"method for {metric}")
        matching = [m for m in matching if m.method == (labels[0] if method is None else method)]
        radius = None if eps is None else parse_epsilon(eps)
        if metric != ROBUST:
            return matching[-1]
        if radius is None:
            return max(matching, key=lambda m: m.eps)
        near = [m for m in matching if same_epsilon(m.eps, radius)]
        if not near:
            raise InputError(
                f"no attack at ε = {format_epsilon(radius)}; "
                f"there are: {', '.join(format_epsilon(m.eps) for m in matching)}"
            )
        return near[0]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per measure and model; see `Comparison.table`."""
        rows = []
        for measure in self.measures:
            intervals = {m: measure.interval(m, self.level) for m in measure.values}
            means = {m: interval.mean for m, interval in intervals.items()}
            leaders = measure.leaders(means, 1 - self.level)
            for model, interval in intervals.items():
                undefined = int(np.isnan(measure.values[model].astype(float)).sum())
                row = {
                    "metric": measure.metric,
                    "method": measure.method,
                    "eps": measure.eps,
                    "model": model,
                    "seeds": len(measure.values[model]),
                    "n": measure.values[model].size - undefined,
                    "undefined": undefined,
                    **interval._asdict(),
                    "seed_means": measure.seed_means(model),
                    "seeds_disagree": measure.seeds_disagree(model),
                    "identical": False,
                }
                if model != self.baseline and self.baseline in measure.values:
                    difference = measure.difference(model, self.baseline, self.level)
                    ranks = measure.rank_test(model, self.baseline)
                    row |= {
                        "difference": difference.mean,
                        "difference_low": difference.low,
                        "difference_high": difference.high,
                        "p": measure.p_value(model, self.baseline),
                        "effect": difference.mean if measure.share else ranks.effect,
                        "p_rank": ranks.p,
                        "identical": measure.identical(model, self.baseline),
                    }
                rows.append(row | {"rank": leaders.get(model, "")})
        table = pd.DataFrame(rows).reindex(columns=_COLUMNS)
        shares = table["metric"].isin(SHARES)
        for family in (shares, ~shares):
            table.loc[family, "p_holm"] = statistics.holm(table.loc[family, "p"].to_numpy(float))
        apart = (table["difference_low"] > 0) | (table["difference_high"] < 0)
        table["differs"] = apart & (table["p_holm"] < 1 - self.level)
        return table

    def seed_scores(self, metric: str, method: str | None = None) -> dict[str, np.ndarray]:
        """Return each model's scores (seeds, tasks): a metric by method, or an accuracy by attack and ε.

        Raises
        ------
        InputError
            If a model has fewer than five seeds, or an undefined score.
        """
        self.measure(metric, method)  # refuses an unknown one
        measures = [m for m in self.measures if m.metric == metric and method in (None, m.method)]
        scores = {}
        for model in self.models:
            if all(model in m.values for m in measures):
                means = [m.seed_means(model) for m in measures]
                counts = {m.label or m.metric: len(m.values[model]) for m in measures}
                if len(set(counts.values())) > 1:
                    listed = ", ".join(f"{label}: {count}" for label, count in counts.items())
                    raise InputError(
                        f"'{model}' has {metric} for different numbers of training seeds ({listed}), so it "
                        "cannot be aggregated; see study.failures, or name one method"
                    )
                scores[model] = np.array(means).T
        for model, values in scores.items():
            if len(values) < aggregate.FEWEST_SEEDS:
                raise InputError(
                    f"aggregates need {aggregate.FEWEST_SEEDS} training seeds or more, and '{model}' has "
                    f"{len(values)}; use the intervals of table()"
                )
            if np.isnan(values).any():
                raise InputError(f"a seed of '{model}' has no {metric}, so it cannot be aggregated")
        if self.baseline not in scores:
            raise InputError(f"the baseline '{self.baseline}' has no {metric}")
        return scores

    def aggregate(self, metric: str, method: str | None = None) -> pd.DataFrame:
        """Aggregate a metric over training seeds; see `Comparison.aggregate`."""
        scores = self.seed_scores(metric, method)
        sign = -1.0 if self.measure(metric, method).better == "lower" else 1.0
        baseline = sign * scores[self.baseline]
        rows = {}
        for model, values in scores.items():
            key = derive_seed(self.seed, "aggregate", metric, model)
            estimate = aggregate.stratified_bootstrap(
                aggregate.interquartile_mean, [values], level=self.level, seed=key
            )
            row = {"seeds": len(values), "tasks": values.shape[1], "iqm": estimate.mean}
            row |= {"low": estimate.low, "high": estimate.high}
            if model != self.baseline:
                better = aggregate.stratified_bootstrap(
                    aggregate.probability_of_improvement,
                    [sign * values, baseline],
                    level=self.level,
                    seed=key,
                )
                row |= {"improvement": better.mean, "improvement_low": better.low}
                row |= {"improvement_high": better.high}
            rows[model] = row
        return pd.DataFrame(rows.values(), index=pd.Index(rows, name="model"))

    def ranking(self, metric: str, model: str | None = None) -> Ranking:
        """Rank the methods by a metric within each image, for one model (the baseline): Friedman and Nemenyi.

        Scores are averaged over the seeds first.

        Raises
        ------
        InputError
            If the metric has no direction, or there are fewer than three methods.
        """
        model = (
            self.baseline if model is None else check_choice(model, self.models, "model of this comparison")
        )
        self.measure(metric)  # names an unknown one
        matching = [m for m in self.measures if m.metric == metric and model in m.values and not m.share]
        if not matching:
            raise InputError(f"there are no maps of '{model}' scored by '{metric}'")
        if matching[0].better == "neither":
            raise InputError(f"neither high nor low values of '{metric}' are better, so it ranks nothing")
        values = {m.method: statistics.over_seeds(m.values[model]) for m in matching}
        return rank(values, higher=matching[0].better == "higher", alpha=1 - self.level)

    def agreement(self) -> pd.DataFrame:
        """Do the metrics agree about which method is better? See `ranking.agreement`.

        Metrics of which neither high nor low values are better are left out.

        Raises
        ------
        InputError
            If there are fewer than three methods or two metrics.
        """
        directed = [m for m in self.measures if not m.share and m.better != "neither"]
        if len({m.metric for m in directed}) < 2:
            raise InputError("agreement needs two metrics of which high or low values are better")
        scores: list[dict[str, dict[str, np.ndarray]]] = []
        for model in self.models:
            by_metric: dict[str, dict[str, np.ndarray]] = {}
            for m in directed:
                if model not in m.values:  # its maps or scores failed
                    continue
                sign = 1.0 if m.better == "higher" else -1.0
                by_metric.setdefault(m.metric, {})[m.method] = sign * statistics.over_seeds(m.values[model])
            if by_metric:
                scores.append(by_metric)
        return agreement(scores)


_COLUMNS = [
    *("metric", "method", "eps", "model", "seeds", "n", "undefined", "mean", "low", "high"),
    *("seed_means", "seeds_disagree"),
    *("difference", "difference_low", "difference_high", "identical", "p", "p_holm", "differs"),
    *("effect", "p_rank", "rank"),
]
