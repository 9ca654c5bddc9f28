"""Models against a baseline: one row per model and measure, with interval, paired test and effect size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from saliency_lab._common.arguments import (
    check_choice,
    check_fraction,
    check_instance,
    check_mapping,
    check_text,
    shown,
)
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError
from saliency_lab.comparison import writers
from saliency_lab.comparison.content import Table, audit_notes, summary_table
from saliency_lab.comparison.measures import ACCURACY, ROBUST, Measure
from saliency_lab.comparison.ranking import Ranking
from saliency_lab.comparison.summary import Pictures, Summary
from saliency_lab.metrics.catalogue import METRICS, Better

if TYPE_CHECKING:
    from saliency_lab.comparison.plots import ComparisonPlots

Values = tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]
"""Values (seeds, images) and the training seeds of their rows, both by model."""


class Comparison:
    """Every model against a baseline on the same images.

    Made by `Study.compare`, or from tables of the same columns.

    * Map scores: mean and difference from the baseline with Student's interval, corrected for skewness, and
      the test of the mean difference that belongs to it. The effect size is the matched-pairs rank-biserial
      correlation.
    * Accuracy, attacked or not: Wilson's interval, Bonett and Price's interval of the difference, McNemar's
      exact test. The effect size is the difference.
    * Several training seeds per model: intervals and tests are over seeds and images, so that they are about
      the recipe. Where a model's seeds seem to be of two kinds, such as one that collapsed, each seed's value
      replaces the mean and its interval.

    p-values are corrected by Holm, as two families: all map scores, and all accuracies. docs/statistics.md
    explains every choice and reports how the methods behave in simulations.

    Parameters
    ----------
    scores, robustness : DataFrame
        As `Study.scores` and `Study.robustness`; one may be empty. Names that became numbers when a
        table was read from a file are converted to text.
    baseline : str
        The model that the others are tested against.
    level : float
        Level of the intervals; 1 − level is the level of the tests.
    seed : int
        Seed of the bootstrap of `aggregate`.
    better : mapping, optional
        Label of a metric → "higher", "lower" or "neither"; by default as `list_metrics()` says of a metric
        with this name.
    bounds : mapping, optional
        Label of a metric → its smallest and its largest possible value; by default as for `better`. Scores of
        0 and 1 between the bounds (0, 1) are tested as right and wrong predictions are.
    audits : DataFrame, optional
        As `Study.audits`: verdicts on the accuracies under attack, printed below the table.
    seeds : mapping of str to sequence of int, optional
        The training seeds of each model, also those of which a table has no rows, such as failed ones. A
        model of several seeds of which fewer than two have values gets no interval and no test. By default
        each model has the seeds of the rows.
    pictures : Pictures, optional
        Where the figures read images and maps from, such as a `Study`.

    Examples
    --------
    Two networks and one seed each, scored on the same eight images:

    >>> import numpy as np
    >>> import pandas as pd
    >>> from saliency_lab import Comparison
    >>> scores = pd.DataFrame(
    ...     {
    ...         "model": ["standard"] * 8 + ["at"] * 8,
    ...         "seed": 0,
    ...         "metric": "sparseness",
    ...         "method": "saliency",
    ...         "sample": [*range(8), *range(8)],
    ...         "score": np.random.default_rng(0).random(16),
    ...     }
    ... )
    >>> comparison = Comparison(scores, pd.DataFrame(columns=["model"]), baseline="standard")
    >>> comparison.table()[["model", "n", "differs"]]
          model  n  differs
    0  standard  8    False
    1        at  8    False
    """

    def __init__(
        self,
        scores: pd.DataFrame,
        robustness: pd.DataFrame,
        *,
        baseline: str,
        level: float = 0.95,
        seed: int = 0,
        better: Mapping[str, Better] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
        audits: pd.DataFrame | None = None,
        seeds: Mapping[str, Sequence[int]] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        for name, table in (("scores", scores), ("robustness", robustness), ("audits", audits)):
            if table is not None or name != "audits":
                check_instance(table, pd.DataFrame, name, "a pandas.DataFrame, as study.scores is")
        if not len(scores) and not len(robustness):
            raise InputError("there is nothing to compare yet; call study.score or study.attack first")
        _check_columns(scores, "scores", ["metric", "method", "model", "seed", "sample"], "score")
        _check_columns(robustness, "robustness", ["attack", "eps", "model", "seed", "sample"], "robust")
        check_fraction(level, "level")
        check_seed(seed)
        self._better = {} if better is None else _check_better(better)
        self._bounds = {} if bounds is None else _check_bounds(bounds)
        self.scores, self.robustness = _with_names(scores), _with_names(robustness)
        self.audits = pd.DataFrame() if audits is None else _with_names(audits)
        named = [table["model"] for table in (self.scores, self.robustness) if len(table)]
        self.models: list[str] = list(dict.fromkeys(pd.concat(named)))
        self.baseline = check_choice(_name(baseline), self.models, "baseline")
        self.level, self.seed = level, seed
        self._seeds = {} if seeds is None else _check_seeds(seeds)
        self.pictures = pictures

    @cached_property
    def measures(self) -> list[Measure]:
        """What is compared: accuracies first, then each metric by method."""
        judged = _arrays(self.robustness, ["attack", "eps"], "robust")
        clean, seeds = self._unattacked()
        measured = []
        if clean:
            measured.append(
                Measure(ACCURACY, "", 0.0, "higher", clean, seeds=seeds, absent=self._absent(seeds))
            )
        for (attack, eps), (values, seeds) in judged.items():
            if eps > 0:
                absent = self._absent(seeds)
                measured.append(
                    Measure(ROBUST, attack, float(eps), "higher", values, seeds=seeds, absent=absent)
                )
        for (metric, method), (values, seeds) in _arrays(self.scores, ["metric", "method"], "score").items():
            known = METRICS[metric].bounds if metric in METRICS else (-np.inf, np.inf)
            bounds = self._bounds.get(metric, known)
            better = self._direction(metric)
            absent = self._absent(seeds)
            measured.append(Measure(metric, method, np.nan, better, values, bounds, seeds, absent))
        return measured

    def _absent(self, seeds: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return how many training seeds of each model have no values, given those that have."""
        return {model: len({*self._seeds.get(model, ())} - {*own}) for model, own in seeds.items()}

    def _unattacked(self) -> Values:
        """Return the predictions without an attack, which every attack that did not fail has recorded."""
        if not len(self.robustness):
            return {}, {}
        at_zero = self.robustness[self.robustness["eps"] == 0]
        once = at_zero.drop_duplicates(["model", "seed", "sample"], keep="last")
        clean, seeds = _arrays(once, [], "robust").get((), ({}, {}))
        return {model: clean[model] for model in self.models if model in clean}, seeds

    @cached_property
    def summary(self) -> Summary:
        """What the tables and figures of this comparison are made from."""
        return Summary(self.models, self.measures, self.baseline, self.level, self.seed, self.pictures)

    def _direction(self, metric: str) -> Better:
        return self._better.get(metric) or (METRICS[metric].better if metric in METRICS else "neither")

    def measure(self, metric: str, method: str | None = None, eps: float | str | None = None) -> Measure:
        """Return one measure: the values of every model on the same images.

        Parameters
        ----------
        metric : str
            A metric, "accuracy" or "robust_accuracy".
        method : str, optional
            Method of the maps, or the attack; the first by default.
        eps : float or str, optional
            Radius of the attack in image units, such as "8/255"; the largest by default.

        Returns
        -------
        Measure
            With `values`, an array (seeds, images) by model, and `estimate(model)`.

        Raises
        ------
        InputError
            If nothing of this metric, method and ε was measured.
        """
        return self.summary.measure(metric, method, eps)

    def table(self) -> pd.DataFrame:
        """Return one row per metric, method, ε and model.

        Returns
        -------
        DataFrame
            * `seeds`; `n` values used and `undefined` left out, over all seeds
            * `mean`, `low`, `high`: the mean and its interval; NaN where `seeds_disagree`
            * `seed_means`: each training seed's mean; `seeds_disagree`: whether they seem to be of two kinds
            * against the baseline, `difference` with `difference_low` and `difference_high`; `p` that this
              difference is 0; `p_holm`, corrected over all map scores or over all accuracies; `differs`,
              where p_holm is below 1 − level and the interval excludes 0; `effect`; `p_rank`, an uncorrected
              Wilcoxon signed-rank test of these networks' scores, which does not test the mean;
              `identical`, where the scores are the same by construction and nothing is tested
            * `rank`: "best", or "tie" where the model is not significantly different from the best
        """
        return self.summary.table.copy()

    def aggregate(self, metric: str, method: str | None = None) -> pd.DataFrame:
        """Aggregate a metric over training seeds with statistics that an outlying seed moves little.

        The scores of a model are its seeds' means over the images, by method (or by attack and ε). Needs five
        training seeds of every model; see the page on statistics for the definitions (Agarwal et al.,
        NeurIPS 2021).

        Parameters
        ----------
        metric : str
            A metric, "accuracy" or "robust_accuracy".
        method : str, optional
            Methods of the maps, or attacks; all by default.

        Returns
        -------
        DataFrame
            One row per model: `seeds`, `tasks`, the interquartile mean `iqm` with its stratified bootstrap
            interval `low` and `high`, and the probability of `improvement` over the baseline with
            `improvement_low` and `improvement_high`: that a random seed of the model is better than a random
            seed of the baseline.

        Raises
        ------
        InputError
            If a model has fewer than five seeds, or an undefined score.
        """
        return self.summary.aggregate(metric, method)

    def ranking(self, metric: str, model: str | None = None) -> Ranking:
        """Rank the methods by a metric within each image: Friedman's test and Nemenyi's comparisons.

        Scores are averaged over the seeds first.

        Parameters
        ----------
        metric : str
            A metric of which higher or lower values are better.
        model : str, optional
            The model that was explained; the baseline by default.

        Returns
        -------
        Ranking
            Mean ranks, Friedman's p-value, the critical difference and Nemenyi's p-values.

        Raises
        ------
        InputError
            If the metric has no direction, or there are fewer than three methods.
        """
        return self.summary.ranking(metric, model)

    def agreement(self) -> pd.DataFrame:
        """Measure whether the metrics agree about which method is better.

        Metrics of which neither high nor low values are better are left out.

        Returns
        -------
        DataFrame
            Metric × metric: Spearman's correlation of the ranks that two metrics give the methods of an
            image, in [−1, 1], averaged over images and models; NaN where there is none.

        Raises
        ------
        InputError
            If there are fewer than three methods or two metrics.
        """
        return self.summary.agreement()

    @property
    def plot(self) -> ComparisonPlots:
        """Figures: maps, robustness, tradeoff, dots, slopes, curves, profile, ranking, agreement."""
        from saliency_lab.comparison.plots import ComparisonPlots

        return ComparisonPlots(self.summary)

    @property
    def content(self) -> Table:
        """The table that every format writes: one row per measure, one column per model, notes on audits."""
        table = summary_table(self.summary)
        return replace(table, notes=[*table.notes, *audit_notes(self.audits)])

    def __str__(self) -> str:
        return writers.as_text(self.content)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Return the summary as an HTML table.

        Returns
        -------
        str
            A table with one row per measure and one column per model.
        """
        return writers.as_html(self.content)

    def to_markdown(self) -> str:
        """Return the summary as a Markdown table.

        Returns
        -------
        str
            A table with one row per measure and one column per model.
        """
        return writers.as_markdown(self.content)

    def to_latex(self, *, label: str = "tab:comparison") -> str:
        r"""Return the summary as a LaTeX table, which needs the package booktabs.

        Parameters
        ----------
        label : str
            The table's `\label`.

        Returns
        -------
        str
            A `table` environment with one row per measure and one column per model; or several of them, each
            with some of the models, labelled LABEL, LABEL-2, ….

        Raises
        ------
        InputError
            If the label is no text.
        """
        return writers.as_latex(self.content, check_text(label, "label"))


def _check_better(given: Mapping[str, Better]) -> dict[str, Better]:
    """Refuse directions of metrics that there are not."""
    better = check_mapping(given, "better", '{"my_metric": "higher"}')
    for label, direction in better.items():
        check_choice(direction, get_args(Better), f"direction of '{label}' in better")
    return better


def _check_seeds(seeds: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Return the training seeds of each model, checked."""
    example = '{"at": [0, 1, 2]}'
    for model, own in check_mapping(seeds, "seeds", example).items():
        if not isinstance(own, Sequence) or isinstance(own, str):
            raise InputError(f"seeds of '{model}' must be whole numbers, such as {example}, not {shown(own)}")
    return {model: [check_seed(seed) for seed in own] for model, own in seeds.items()}


def _check_bounds(given: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Refuse bounds of metrics that are not two numbers in rising order."""
    bounds = check_mapping(given, "bounds", '{"my_metric": (0, 1)}')
    for label, ends in bounds.items():
        pair = isinstance(ends, tuple | list) and len(ends) == 2
        if not (pair and all(isinstance(end, int | float) for end in ends) and ends[0] < ends[1]):
            raise InputError(
                f"bounds of '{label}' must be its smallest and its largest value, such as (0, 1), not "
                f"{shown(ends)}"
            )
    return {label: (float(low), float(high)) for label, (low, high) in bounds.items()}


def _with_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy in which all names are text; reading a file may have turned some into numbers."""
    named = [column for column in ("model", "metric", "method", "attack") if column in table]
    return table.assign(
        **{
            column: table[column].map({name: _name(name) for name in table[column].unique()})
            for column in named
        }
    )


def _name(given: Any) -> Any:
    """Return a name that was read as a number as text; 1.0 is the name 1 next to names such as 0.1."""
    return str(given).removesuffix(".0") if isinstance(given, int | float | np.number) else given


def _check_columns(table: pd.DataFrame, name: str, keys: list[str], values: str) -> None:
    """Refuse a table that lacks a column, that names no model or image in a row, or whose values are wrong.

    Scores may be undefined (NaN), but every attacked image is right or wrong.
    """
    if not len(table):
        return
    for column in (*keys, values):
        if column not in table:
            raise InputError(f"{name} has no column '{column}'; it needs {', '.join([*keys, values])}")
    for column in keys:
        if table[column].isna().any():
            raise InputError(f"{name} has rows without '{column}'; fill them in or leave these rows out")
    if values == "robust":
        wrong = ~table[values].isin([False, True])
        if wrong.any():
            found = table.loc[wrong, values].iloc[0]
            raise InputError(
                f"robust must be True or False in every row of {name}, not {found!r}; leave out models that "
                "were not attacked"
            )
    elif not pd.api.types.is_numeric_dtype(table[values]):
        raise InputError(f"score must be a number in every row of {name}, or NaN where it is undefined")


def _arrays(table: pd.DataFrame, keys: list[str], column: str) -> dict[Any, Values]:
    """Return values by key and model, seeds in rising order, images in one order for all."""
    if not len(table):
        return {}
    samples, position = np.unique(table["sample"].to_numpy(), return_inverse=True)
    values = table[column].to_numpy()
    values = values.astype(bool if column == "robust" else float)
    rows: dict[Any, dict[str, dict[int, np.ndarray]]] = {}
    group: Any
    for group, at in table.groupby([*keys, "model", "seed"], sort=False).indices.items():
        *key, model, seed = group
        there = len(np.unique(position[at]))
        named = f"model '{model}' (seed {seed})"
        where = f"{column} for {', '.join(map(str, key))}" if key else column
        if len(at) != there:
            raise InputError(f"{named} has more than one row of {where} for the same image; keep one of each")
        if there != len(samples):
            raise InputError(
                f"{named} has {there} of {len(samples)} images of {where}; all models must be measured on "
                "the same images"
            )
        row = np.empty(len(samples), values.dtype)
        row[position[at]] = values[at]
        rows.setdefault(tuple(key), {}).setdefault(model, {})[seed] = row
    return {
        key: (
            {model: np.stack([of[seed] for seed in sorted(of)]) for model, of in models.items()},
            {model: tuple(sorted(of)) for model, of in models.items()},
        )
        for key, models in rows.items()
    }
