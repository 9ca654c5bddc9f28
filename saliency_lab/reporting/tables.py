"""The tables of a report: the text of each entry, and the value that it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.format import (
    ARROWS,
    SPACE,
    number,
    one_line,
    p_value,
    radius,
    write_difference,
    write_mean,
)
from saliency_lab.comparison.measures import ROBUST, SHARES, Measure
from saliency_lab.comparison.tables import estimate_text

MEANING = {"higher": "higher is better", "lower": "lower is better", "neither": "neither is better"}


class Whisker(NamedTuple):
    """An interval and its mean on the scale of its row's measure, each in [0, 1]."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Entry:
    """One entry of a table: `text`, and `more` in a smaller type; rows are sorted by `value`.

    `model` is the position of the model whose marker stands before the text.
    """

    text: str
    value: float | str | None = None
    more: str = ""
    model: int | None = None
    badge: str = ""
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Column:
    """A column: `filtered` gives it a filter, and `help` explains its title."""

    title: str
    kind: Literal["text", "number", "code"] = "text"
    filtered: bool = False
    help: str = ""
    model: int | None = None
    """The position of the model that the column is about."""


@dataclass(frozen=True)
class Table:
    """A table with a caption; the entry at `head` names its row.

    `differs` states for each row whether it differs from the baseline, where that is a filter.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    head: int = 0
    differs: Sequence[bool] | None = None

    def options(self, column: int) -> list[str]:
        """Return the texts of a column, each once."""
        return list(dict.fromkeys(row[column].text for row in self.rows))

    def lines(self) -> list[list[str]]:
        """Return the texts of all rows, each entry on one line."""
        return [[one_line((entry.text, entry.more)) for entry in row] for row in self.rows]


def glance(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """Return one row per measure and one column per model."""
    several = (facts["seeds"] > 1).any()
    columns = [
        Column("measure", filtered=True),
        *(Column(m, "number", model=i) for i, m in enumerate(comparison.models)),
    ]
    rows = []
    key: Any
    for key, group in facts.groupby(["metric", "method", "eps"], sort=False, dropna=False):
        metric, method, eps = key
        by_model = {row["model"]: row for row in group.to_dict("records")}
        entries = [Entry(_directed(metric, group["better"].iloc[0]), more=_label(metric, method, eps))]
        for model in comparison.models:
            if model not in by_model:
                entries.append(Entry("", -math.inf))
                continue
            row = by_model[model]
            text, interval = write_mean(row, share=metric in SHARES)
            mark = "†" if row["differs"] else ""
            badge = row["rank"]
            entries.append(Entry(text + mark, _sortable(row["mean"]), interval, badge=badge))
        rows.append(entries)
    over = "seeds and images" if several else "images"
    caption = (
        f"Means and {_percent(comparison.level)} intervals over {over}. Bold: the best of its row; "
        "italic: not significantly different from it. †: significantly different from "
        f"{comparison.baseline} (see above)."
    )
    return Table("glance", caption, columns, rows)


def accuracies(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """Return one row per attack, ε and model."""
    rows = facts[facts["metric"].isin(SHARES)]
    first = [Column("attack", filtered=True), Column("ε", "number", filtered=True)]
    heads = [
        [Entry(row["method"] or "none"), Entry(format_epsilon(row["eps"]), row["eps"])]
        for row in rows.to_dict("records")
    ]
    caption = "Accuracy by attack and ε. " + _legend(comparison)
    return _measured("accuracies", caption, "accuracy", comparison, rows, first, heads)


def scores(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """Return one row per metric, method and model."""
    rows = facts[~facts["metric"].isin(SHARES)]
    first = [
        Column("metric", filtered=True, help="↑ higher is better, ↓ lower is better"),
        Column("method", filtered=True),
    ]
    heads = [
        [Entry(_directed(row["metric"], row["better"])), Entry(words(row["method"]))]
        for row in rows.to_dict("records")
    ]
    caption = "Scores by metric and method. " + _legend(comparison)
    return _measured("scores", caption, "score", comparison, rows, first, heads)


def _legend(comparison: Comparison) -> str:
    legend = "Bold: the best of its measure; italic: not significantly different from it."
    if len(comparison.models) > 1:
        legend += f" p: paired test against {comparison.baseline} on the same images, Holm over the table."
    return legend


def _measured(
    name: str,
    caption: str,
    value: str,
    comparison: Comparison,
    facts: pd.DataFrame,
    first: Sequence[Column],
    heads: Sequence[Sequence[Entry]],
) -> Table:
    undefined = bool((facts["undefined"] > 0).any())
    many = len(comparison.models) > 1
    shares = name == "accuracies"
    against = [
        Column(f"difference from {comparison.baseline}", "number", help="mean, on the same images"),
        Column("p", "number", help="paired test, Holm over the table"),
        *([] if shares else [Column("effect", "number", help="matched-pairs rank-biserial correlation")]),
    ]
    columns = [
        Column("model", filtered=True),
        *first,
        Column(value, "number", help=f"mean and {_percent(comparison.level)} interval"),
        Column("interval", help="all rows of a metric on one scale"),
        *(against if many else []),
        Column("n", "number", help="values used"),
        *([Column("undefined", "number", help="values left out")] if undefined else []),
    ]
    spans = _spans(facts)
    rows = []
    for head, row in zip(heads, facts.to_dict("records"), strict=True):
        text, interval = write_mean(row, share=shares)
        low, high = spans[row["metric"]]
        entries = [
            model_entry(comparison.models, row["model"]),
            *head,
            Entry(text, _sortable(row["mean"]), interval, badge=row["rank"]),
            Entry("", _sortable(row["mean"]), whisker=_whisker(row, low, high)),
        ]
        if many:
            entries += _against(row, shares, row["model"] == comparison.baseline)
        entries.append(Entry(f"{row['n']:,}", row["n"]))
        if undefined:
            entries.append(Entry(f"{row['undefined']:,}", row["undefined"]))
        rows.append(entries)
    differs = facts["differs"].tolist() if many else None
    return Table(name, caption, columns, rows, differs=differs)


def _against(row: Mapping[Any, Any], share: bool, baseline: bool) -> list[Entry]:
    if baseline or math.isnan(row["difference"]):
        first = Entry("baseline", 0.0) if baseline else Entry("", -math.inf)
        return [first, Entry("", math.inf), *([] if share else [Entry("", 0.0)])]
    text, interval = write_difference(row, share=share)
    entries = [
        Entry(text, row["difference"], interval),
        Entry(p_value(row["p_holm"]), _sortable(row["p_holm"], math.inf)),
    ]
    if not share:
        effect = row["effect"]
        entries.append(Entry("" if math.isnan(effect) else number(effect, 2, signed=True), _sortable(effect)))
    return entries


def _spans(facts: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return the ends of the scale of each metric's whiskers; shares have one from 0 to 1."""
    spans: dict[str, tuple[float, float]] = dict.fromkeys(SHARES, (0.0, 1.0))
    for metric, rows in facts.groupby("metric", sort=False):
        if metric not in SHARES:
            ends = rows[["mean", "low", "high"]].to_numpy(float)
            ends = ends[~pd.isna(ends)]
            low, high = (ends.min(), ends.max()) if len(ends) else (0.0, 1.0)
            spans[str(metric)] = (float(low), float(high))
    return spans


def _whisker(row: Mapping[Any, Any], low: float, high: float) -> Whisker | None:
    ends = [row["low"], row["mean"], row["high"]]
    if math.isnan(row["mean"]) or not all(map(math.isfinite, (low, high))):
        return None
    ends = [row["mean"] if math.isnan(end) else end for end in ends]
    width = high - low
    return Whisker(*(min(max((end - low) / width, 0.0), 1.0) if width else 0.5 for end in ends))


def model_entry(models: Sequence[str], model: str) -> Entry:
    """Return a model's name, with the marker that it has in the figures."""
    return Entry(model, model=models.index(model))


def words(name: str) -> str:
    """Write a name's underscores as spaces.

    >>> words("pixel_flipping")
    'pixel flipping'
    """
    return name.replace("_", " ")


def _directed(metric: str, better: str) -> str:
    return f"{words(metric)}{SPACE}{ARROWS[better]}".strip()


def _label(metric: str, method: str, eps: float) -> str:
    if metric == ROBUST:
        return f"{method}, {radius(eps)}"
    return words(method) or "no attack"


def _sortable(value: float, missing: float = -math.inf) -> float:
    return missing if math.isnan(value) else float(value)


def _percent(level: float) -> str:
    return f"{100 * level:g}{SPACE}%"


def by_model(comparison: Comparison, facts: pd.DataFrame) -> list[Table]:
    """Return a table for the accuracies and one for each metric: one row per model, one column per measure.

    Entries are marked within their column.
    """
    groups: dict[str, list[Measure]] = {}
    for measure in comparison.measures:
        groups.setdefault("accuracy" if measure.share else measure.metric, []).append(measure)
    records = {
        (row["metric"], row["method"], None if math.isnan(row["eps"]) else row["eps"], row["model"]): row
        for row in facts.to_dict("records")
    }
    tables = []
    for name, measures in groups.items():
        columns = [Column("model"), *(Column(_column(measure), "number") for measure in measures)]
        rows = []
        for model in comparison.models:
            entries = [model_entry(comparison.models, model)]
            for measure in measures:
                eps = None if math.isnan(measure.eps) else measure.eps
                record = records.get((measure.metric, measure.method, eps, model))
                if record is None:
                    entries.append(Entry(""))
                    continue
                text = estimate_text(record, measure.share)
                entries.append(Entry(text, _sortable(record["mean"]), badge=record["rank"]))
            rows.append(entries)
        better = (
            ""
            if name == "accuracy"
            else {"neither": ""}.get(measures[0].better, f" ({MEANING[measures[0].better]})")
        )
        tables.append(Table(f"by-model-{name}", words(name) + better, columns, rows))
    return tables


def _column(measure: Measure) -> str:
    if measure.metric == ROBUST:
        return measure.label
    return "unattacked" if measure.share else words(measure.method)
