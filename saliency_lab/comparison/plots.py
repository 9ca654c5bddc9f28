"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saliency_lab._common.arguments import (
    check_choice,
    check_choices,
    check_count,
    check_flag,
    check_number,
    check_text,
)
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import derive_seed
from saliency_lab._common.text import words
from saliency_lab.comparison import aggregate, statistics
from saliency_lab.comparison.format import p_equation
from saliency_lab.comparison.measures import ACCURACY, ROBUST, is_binary
from saliency_lab.comparison.summary import Pictures, Summary
from saliency_lab.plotting import bands, curves, dots, heatmap, maps, ranks, slopes, tradeoff
from saliency_lab.plotting.style import CHART_WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saliency_lab.comparison.measures import Measure


def maps_of(
    pictures: Pictures, models: Sequence[str], method: str, n: int, *, normalise: bool = True
) -> Figure:
    """Draw maps of the first `n` images by one method, one column per model, summed over channels.

    Below each map stands the class that its model predicts, with its probability.
    """
    columns = {model: pictures.read_maps(model, method)[:n].reduce() for model in models}
    title = words(method)
    if normalise:
        columns = {model: each.normalise("max") for model, each in columns.items()}
        title += ", each map divided by its largest magnitude"
    predictions = {}
    for model in models:
        predicted = pictures.read_predictions(model)
        if predicted is not None:
            predictions[model] = [
                maps.Prediction(pictures.class_name(label), share)
                for label, share in zip(predicted.classes[:n], predicted.probabilities[:n], strict=True)
            ]
    return maps.grid(
        pictures.x[:n], columns, labels=pictures.labels[:n], predictions=predictions or None, title=title
    )


_OPEN_MARKS = "open marks: single seeds"


class ComparisonPlots:
    """Figures of a comparison; each method returns a matplotlib Figure.

    `width` is in inches; a figure narrower than 5, such as for one column, has its legend below the panel.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def maps(
        self,
        n: int = 6,
        *,
        method: str | None = None,
        models: Sequence[str] | None = None,
        normalise: bool = True,
    ) -> Figure:
        """Draw maps of the first images: one row per image, one column per model, one colour scale.

        Parameters
        ----------
        n : int
            How many images.
        method : str, optional
            Method of the maps; by default the first that was scored.
        models : sequence of str, optional
            The models; by default all.
        normalise : bool
            Divide each map by its largest magnitude first, because models differ in the size of their
            gradients.

        Raises
        ------
        InputError
            If there is no such method or model, or the comparison was made from tables alone.
        """
        check_count(n, "n")
        check_flag(normalise, "normalise")
        summary = self._summary
        if models is not None:
            check_choices(models, "models", summary.models)
        pictures = summary.pictures
        if pictures is None:
            raise InputError("this comparison was made from tables and has no maps; use study.compare()")
        scored = list(dict.fromkeys(m.method for m in summary.measures if not m.share))
        if method is not None:
            check_text(method, "method")
        method = method or next(iter(scored), None)
        if method is None:
            raise InputError(
                "nothing has been attributed and scored yet; call study.attribute and study.score"
            )
        return maps_of(pictures, models or summary.models, method, n, normalise=normalise)

    def robustness(self, attack: str | None = None, *, width: float = CHART_WIDTH) -> Figure:
        """Draw accuracy against ε, one line and band per attacked model.

        Parameters
        ----------
        attack : str, optional
            Name of the attack; by default the first.
        width : float
            Width of the figure in inches.

        Raises
        ------
        InputError
            If nothing has been attacked, or not by this attack.
        """
        check_number(width, "width", low=1, high=100)
        summary = self._summary
        attacks = list(dict.fromkeys(m.method for m in summary.measures if m.metric == ROBUST))
        if not attacks:
            raise InputError("nothing has been attacked yet; call study.attack('pgd', eps=[0.1, 0.2])")
        attack = attacks[0] if attack is None else check_choice(attack, attacks, "attack of this study")
        table = summary.table
        clean = table[table["metric"] == ACCURACY]
        attacked = table[(table["metric"] == ROBUST) & (table["method"] == attack)]
        rows = pd.concat([clean, attacked]).rename(columns={"mean": "accuracy"})
        columns = ["eps", "accuracy", "low", "high"]
        there = [name for name in summary.models if name in {*attacked["model"]}]  # some may have failed
        lines = {model: rows[rows["model"] == model][columns] for model in there}
        seeds = {
            model: [
                (row["eps"], mean)
                for row in rows[(rows["model"] == model) & rows["seeds_disagree"]].to_dict("records")
                for mean in row["seed_means"]
            ]
            for model in there
        }
        seeds = {model: marks for model, marks in seeds.items() if marks}
        return curves.robustness(
            lines,
            seeds=seeds,
            title=words(attack),
            note=self._note(_OPEN_MARKS if seeds else ""),
            width=width,
            among=summary.models,
        )

    def tradeoff(
        self,
        x: str = ROBUST,
        y: str = "sparseness",
        *,
        method: str | None = None,
        attack: str | None = None,
        eps: float | str | None = None,
        width: float = CHART_WIDTH,
    ) -> Figure:
        """Draw one measure against another: one point per model with both intervals, seeds as small marks.

        A mark is one trained network, so seeds that have one of the two measures alone have none.
        Models for which one of the two is undefined are left out.

        Parameters
        ----------
        x, y : str
            "accuracy", "robust_accuracy" or a metric.
        method : str, optional
            Method of the maps; by default the first.
        attack, eps : str, float or str, optional
            Attack and ε of "robust_accuracy"; by default the first attack and its largest ε.
        width : float
            Width of the figure in inches.

        Raises
        ------
        InputError
            If there is no such measure, method, attack or ε.
        """
        check_number(width, "width", low=1, high=100)
        summary = self._summary
        for axis, name in (("x", x), ("y", y)):
            check_choice(name, list(dict.fromkeys(m.metric for m in summary.measures)), axis)
        if attack is not None:
            check_text(attack, "attack")
        of = {ROBUST: (attack, eps), ACCURACY: (None, None)}
        measures = [summary.measure(name, *of.get(name, (method, None))) for name in (x, y)]
        models = [model for model in summary.models if all(model in m.values for m in measures)]
        points, marks = {}, {}
        for model in models:
            across, up = (m.interval(model, summary.level) for m in measures)
            xs, ys = (dict(zip(m.seeds[model], m.seed_means(model), strict=True)) for m in measures)
            both = [seed for seed in xs if seed in ys and not np.isnan([xs[seed], ys[seed]]).any()]
            if both and max(len(xs), len(ys)) > 1:
                marks[model] = ([xs[seed] for seed in both], [ys[seed] for seed in both])
            if not np.isnan([across.mean, up.mean]).any():  # undefined for every image, or seeds disagree
                points[model] = (across, up)
        return tradeoff.tradeoff(
            points,
            marks=marks,
            xlabel=_axis(measures[0]),
            ylabel=_axis(measures[1]),
            better=(measures[0].better, measures[1].better),
            percent=(measures[0].share, measures[1].share),
            note=self._note("small marks: single seeds" if marks else ""),
            width=width,
            among=self._summary.models,
        )

    def dots(self, metric: str, *, width: float = CHART_WIDTH) -> Figure:
        """Draw one measure of every model, by method (by ε for "robust_accuracy"): dots with intervals.

        Parameters
        ----------
        metric : str
            "accuracy", "robust_accuracy" or a metric.
        width : float
            Width of the figure in inches.

        Raises
        ------
        InputError
            If there is no such metric.
        """
        check_number(width, "width", low=1, high=100)
        measure = self._summary.measure(metric)
        seeds = self._disagreeing(metric)
        return dots.dots(
            self._estimates(metric),
            seeds=seeds,
            xlabel=words(metric),
            better=measure.better,
            percent=measure.share,
            note=self._note(_OPEN_MARKS if any(seeds.values()) else ""),
            width=width,
            among=self._summary.models,
        )

    def slopes(self, metric: str, *, width: float | None = None) -> Figure:
        """Draw one measure from model to model: one line per method (per ε for "robust_accuracy").

        Parameters
        ----------
        metric : str
            "accuracy", "robust_accuracy" or a metric.
        width : float, optional
            Width of the figure in inches; by default it grows with the number of models.

        Raises
        ------
        InputError
            If there is no such metric.
        """
        if width is not None:
            check_number(width, "width", low=1, high=100)
        measure = self._summary.measure(metric)
        seeds = self._disagreeing(metric)
        return slopes.slopes(
            self._estimates(metric),
            seeds=seeds,
            ylabel=words(metric),
            better=measure.better,
            percent=measure.share,
            note=self._note(_OPEN_MARKS if any(seeds.values()) else ""),
            width=width,
        )

    def curves(self, metric: str, *, method: str | None = None, width: float = CHART_WIDTH) -> Figure:
        """Draw the curves behind a metric such as "pixel_flipping": the mean over images, one band per model.

        Parameters
        ----------
        metric : str
            A metric that keeps curves.
        method : str, optional
            Method of the maps; by default the first.
        width : float
            Width of the figure in inches.

        Raises
        ------
        InputError
            If the metric keeps no curves, or the comparison was made from tables alone.
        """
        check_number(width, "width", low=1, high=100)
        summary = self._summary
        measure = summary.measure(metric, method)
        if summary.pictures is None:
            raise InputError("this comparison was made from tables and has no curves; use study.compare()")
        drawn: dict[str, bands.Band] = {}
        seeds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        share = right_or_wrong = True
        for model in measure.values:
            curves = None if measure.share else summary.pictures.read_curves(model, measure.method, metric)
            if curves is None:
                raise InputError(f"'{metric}' has no curve that could be averaged over images")
            values, at = curves
            right_or_wrong &= is_binary(values[~np.isnan(values)])
            share &= bool(at.max() <= 1)
            if measure.seeds_disagree(model):
                seeds[model] = [(at, pd.DataFrame(own).mean().to_numpy()) for own in values]
                continue
            steps = [values[:, :, k] for k in range(len(at))]
            ends = [measure.estimate_mean(step).interval(summary.level) for step in steps]
            drawn[model] = (at, *np.array(ends).T)
        note = self._note()
        return bands.bands(
            drawn,
            seeds=seeds,
            xlabel="share of the pixels replaced" if share else "step",
            ylabel=words(metric),
            percent=(share, right_or_wrong),
            title=words(measure.method),
            note=f"{note}; thin lines: single seeds, where seeds disagree" if seeds else note,
            width=width,
            among=self._summary.models,
        )

    def profile(self, metric: str, *, method: str | None = None, width: float = CHART_WIDTH) -> Figure:
        """Draw the performance profile: the share of training seeds whose score lies above each threshold.

        The bands are stratified bootstrap intervals at each threshold; see `Comparison.aggregate`.

        Parameters
        ----------
        metric : str
            "accuracy", "robust_accuracy" or a metric.
        method : str, optional
            Method of the maps, or attack; by default all.
        width : float
            Width of the figure in inches.

        Raises
        ------
        InputError
            If a model has fewer than five training seeds.
        """
        check_number(width, "width", low=1, high=100)
        summary = self._summary
        scores = summary.seed_scores(metric, method)
        ends = [float(edge(values)) for values in scores.values() for edge in (np.min, np.max)]
        thresholds = np.linspace(min(ends), max(ends), 101)
        drawn = {}
        for model, values in scores.items():
            key = derive_seed(summary.seed, "profile", metric, model)
            drawn[model] = (
                thresholds,
                *aggregate.profile_band(values, thresholds, level=summary.level, seed=key),
            )
        measure = summary.measure(metric, method)
        return bands.bands(
            drawn,
            xlabel=f"{metric.replace('_', ' ')} above which a seed counts",
            ylabel="share of training seeds",
            percent=(measure.share, True),
            note=self._note(),
            width=width,
            among=summary.models,
        )

    def ranking(self, metric: str, model: str | None = None) -> Figure:
        """Draw the critical-difference diagram of the methods by a metric; see `Comparison.ranking`.

        Parameters
        ----------
        metric : str
            The metric.
        model : str, optional
            The model whose maps are scored; by default the baseline.

        Raises
        ------
        InputError
            If the metric has no better side, or the model has no maps that are scored by it.
        """
        ranking = self._summary.ranking(metric, model)
        return ranks.critical_difference(
            {words(str(name)): float(value) for name, value in ranking.ranks.items()},
            ranking.critical_difference,
            title=f"{metric.replace('_', ' ')}, {model or self._summary.baseline}",
            note=f"{ranking.n} images; Friedman {p_equation(ranking.p)}; Nemenyi at {ranking.alpha:.2g}",
        )

    def agreement(self) -> Figure:
        """Draw the agreement between metrics about the methods as a heat map; see `Comparison.agreement`."""
        return heatmap.correlations(
            self._summary.agreement(), label="mean rank correlation over the methods of an image"
        )

    def _estimates(self, metric: str) -> dict[str, dict[str, statistics.Interval]]:
        summary = self._summary
        return {
            m.label or metric: {model: m.interval(model, summary.level) for model in m.values}
            for m in summary.measures
            if m.metric == metric
        }

    def _disagreeing(self, metric: str) -> dict[str, dict[str, tuple[float, ...]]]:
        """Means by seed of models whose seeds disagree, by method and model."""
        return {
            m.label or metric: {model: m.seed_means(model) for model in m.values if m.seeds_disagree(model)}
            for m in self._summary.measures
            if m.metric == metric
        }

    def _note(self, marks: str = "") -> str:
        """Return the counts of images and seeds, the level, and what the marks of a figure are."""
        shapes = {values.shape for m in self._summary.measures for values in m.values.values()}
        parts = [f"{100 * self._summary.level:g} % intervals", *([marks] if marks else [])]
        if len(shapes) == 1:  # otherwise models differ in how many seeds they have
            seeds, images = shapes.pop()
            parts.insert(0, f"{images} images{f' × {seeds} seeds' if seeds > 1 else ''}")
        return "; ".join(parts)


def _axis(measure: Measure) -> str:
    name = words(measure.metric)
    return f"{name} ({measure.label.replace('_', ' ')})" if measure.label else name
