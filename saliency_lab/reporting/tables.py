"""The tables of a report: the text of each entry, and the value that it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import words
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.content import (
    Column,
    Entry,
    Legend,
    Table,
    Whisker,
    estimate_entry,
    explain_unusual,
    summary_table,
)
from saliency_lab.comparison.format import (
    ARROWS,
    SPACE,
    number,
    p_value,
    write_difference,
    write_mean,
)
from saliency_lab.comparison.measures import ROBUST, SHARES, Measure
from saliency_lab.comparison.summary import Summary

MEANING = {"higher": "higher is better", "lower": "lower is better", "neither": "neither is better"}


def glance(summary: Summary) -> Table:
    """Return the table of a comparison, with its names in words."""
    table = summary_table(summary)
    rows = [
        [replace(row[0], text=words(row[0].text), more=words(row[0].more) or "no attack"), *row[1:]]
        for row in table.rows
    ]
    return replace(table, rows=rows)


def accuracies(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """Return one row per attack, ε and model."""
    rows = facts[facts["metric"].isin(SHARES)]
    first = [Column("attack", filtered=True), Column("ε", "number", filtered=True)]
    heads = [
        [Entry(row["method"] or "none"), Entry(format_epsilon(row["eps"]), row["eps"])]
        for row in rows.to_dict("records")
    ]
    caption = "Accuracy by attack and ε." + _tests(comparison)
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
    caption = "Scores by metric and method." + _tests(comparison)
    return _measured("scores", caption, "score", comparison, rows, first, heads)


def _tests(comparison: Comparison) -> str:
    """Say what the p-values of a table are of; nothing where there is one model."""
    if len(comparison.models) < 2:
        return ""
    return f" p: paired test against {comparison.baseline} on the same images, Holm over the table."


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
    legend = Legend("measure", comparison.level) if many else None
    return Table(name, caption, columns, rows, differs=differs, legend=legend)


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


def _directed(metric: str, better: str) -> str:
    return f"{words(metric)}{SPACE}{ARROWS[better]}".strip()


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
                entries.append(estimate_entry(record, measure.share))
            rows.append(entries)
        better = (
            ""
            if name == "accuracy"
            else {"neither": ""}.get(measures[0].better, f" ({MEANING[measures[0].better]})")
        )
        legend = Legend("column", comparison.level) if len(comparison.models) > 1 else None
        own = facts[facts["metric"].isin({measure.metric for measure in measures})]
        notes = explain_unusual(own)
        caption = words(name) + better
        tables.append(Table(f"by-model-{name}", caption, columns, rows, legend=legend, notes=notes))
    return tables


def _column(measure: Measure) -> str:
    if measure.metric == ROBUST:
        return measure.label
    return "unattacked" if measure.share else words(measure.method)
