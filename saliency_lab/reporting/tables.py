"""The page's tables: what a cell says, and the value it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from saliency_lab.comparison import Comparison
from saliency_lab.comparison.format import (
    ARROWS,
    SPACE,
    number,
    p_value,
    radius,
    short,
    write_difference,
    write_mean,
)
from saliency_lab.comparison.measures import ROBUST, SHARES
from saliency_lab.plotting.style import looks

MEANING = {"higher": "higher is better", "lower": "lower is better", "neither": "neither is better"}


class Whisker(NamedTuple):
    """An interval and its mean on the scale of its row's measure, each in [0, 1]."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Cell:
    """What one cell says: `text`, `more` in a smaller type; `value` is what it is sorted by."""

    text: str
    value: float | str | None = None
    more: str = ""
    model: int | None = None
    badge: str = ""
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Column:
    """A column: `filtered` gives it a filter, `help` is said beside its title."""

    title: str
    kind: Literal["text", "number", "code"] = "text"
    filtered: bool = False
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption; the cell at `head` names its row.

    `differs` says of each row whether it differs from the baseline, where that is a filter.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    head: int = 0
    differs: Sequence[bool] | None = None

    def options(self, column: int) -> list[str]:
        """Texts of a column, each once."""
        return list(dict.fromkeys(row[column].text for row in self.rows))


def glance(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """A row a measure, a column a model."""
    several = (facts["seeds"] > 1).any()
    columns = [
        Column("measure", filtered=True),
        Column("method or attack"),
        *(Column(m, "number") for m in comparison.models),
    ]
    rows = []
    key: Any
    for key, group in facts.groupby(["metric", "method", "eps"], sort=False, dropna=False):
        metric, method, eps = key
        by_model = {row["model"]: row for row in group.to_dict("records")}
        cells = [
            Cell(_directed(metric, group["better"].iloc[0])),
            Cell(_label(metric, method, eps)),
        ]
        for model in comparison.models:
            if model not in by_model:
                cells.append(Cell("", -math.inf))
                continue
            row = by_model[model]
            text, interval = write_mean(row, share=metric in SHARES)
            mark = "†" if row["differs"] else ""
            badge = row["rank"]
            cells.append(Cell(text + mark, _sortable(row["mean"]), interval, badge=badge))
        rows.append(cells)
    over = "seeds and images" if several else "images"
    caption = (
        f"Means and {_percent(comparison.level)} intervals over {over}. Bold: the best of its row; "
        f"italic: not significantly different from it. †: significantly different from "
        f"{comparison.baseline} (see above)."
    )
    return Table("glance", caption, columns, rows)


def accuracies(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """A row a (attack, ε, model)."""
    rows = facts[facts["metric"].isin(SHARES)]
    first = [Column("attack", filtered=True), Column("ε", "number", filtered=True)]
    heads = [
        [Cell(row["method"] or "none"), Cell(short(row["eps"]), row["eps"])]
        for row in rows.to_dict("records")
    ]
    caption = "Accuracy by attack and ε. " + _legend(comparison)
    return _measured("accuracies", caption, "accuracy", comparison, rows, first, heads)


def scores(comparison: Comparison, facts: pd.DataFrame) -> Table:
    """A row a (metric, method, model)."""
    rows = facts[~facts["metric"].isin(SHARES)]
    first = [
        Column("metric", filtered=True, help="↑ higher is better, ↓ lower is better"),
        Column("method", filtered=True),
    ]
    heads = [
        [Cell(_directed(row["metric"], row["better"])), Cell(words(row["method"]))]
        for row in rows.to_dict("records")
    ]
    caption = "Scores by metric and method. " + _legend(comparison)
    return _measured("scores", caption, "score", comparison, rows, first, heads)


def _legend(comparison: Comparison) -> str:
    legend = "Bold: the best of its measure; italic: not significantly different from it."
    if len(comparison.models) > 1:
        legend += (
            f" p: paired test of the mean against {comparison.baseline}, corrected by Holm over the table."
        )
    return legend


def _measured(
    name: str,
    caption: str,
    value: str,
    comparison: Comparison,
    facts: pd.DataFrame,
    first: Sequence[Column],
    heads: Sequence[Sequence[Cell]],
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
        *first,
        Column("model", filtered=True),
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
        cells = [
            *head,
            model_cell(comparison.models, row["model"]),
            Cell(text, _sortable(row["mean"]), interval, badge=row["rank"]),
            Cell("", _sortable(row["mean"]), whisker=_whisker(row, low, high)),
        ]
        if many:
            cells += _against(row, shares, row["model"] == comparison.baseline)
        cells.append(Cell(f"{row['n']:,}", row["n"]))
        if undefined:
            cells.append(Cell(f"{row['undefined']:,}", row["undefined"]))
        rows.append(cells)
    differs = facts["differs"].tolist() if many else None
    return Table(name, caption, columns, rows, head=2, differs=differs)


def _against(row: Mapping[Any, Any], share: bool, baseline: bool) -> list[Cell]:
    if baseline or math.isnan(row["difference"]):
        first = Cell("baseline", 0.0) if baseline else Cell("", -math.inf)
        return [first, Cell("", math.inf), *([] if share else [Cell("", 0.0)])]
    text, interval = write_difference(row, share=share)
    cells = [
        Cell(text, row["difference"], interval),
        Cell(p_value(row["p_holm"]), _sortable(row["p_holm"], math.inf)),
    ]
    if not share:
        effect = row["effect"]
        cells.append(Cell("" if math.isnan(effect) else number(effect, 2, signed=True), _sortable(effect)))
    return cells


def _spans(facts: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Ends of the scale of each metric's whiskers; shares have one from 0 to 1."""
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


def model_cell(models: Sequence[str], model: str) -> Cell:
    """A model's name beside its colour."""
    return Cell(model, model=hue(models, model))


def hue(models: Sequence[str], model: str) -> int:
    """The number of a model's colour, the one that the figures draw it in."""
    return looks(models)[model].number


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
