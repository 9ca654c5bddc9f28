"""Tables as data: what they contain is decided here, and every writer writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import number_of
from saliency_lab.comparison.format import ARROWS, count_each, listing, one_line, write_mean
from saliency_lab.comparison.statistics import lost_seeds
from saliency_lab.comparison.summary import Summary


class Whisker(NamedTuple):
    """An interval and its mean on the scale of its row's measure, each in [0, 1]."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Entry:
    """One entry of a table: `text`, and `more` in a smaller type; rows are sorted by `value`.

    `model` is the position of the model whose marker stands before the text. `badge` is "best" or "tie" in a
    table with a legend, or a verdict.
    """

    text: str
    value: float | str | None = None
    more: str = ""
    model: int | None = None
    badge: str = ""
    whisker: Whisker | None = None

    @property
    def line(self) -> str:
        """The whole entry on one line."""
        return one_line((self.text, self.more))


@dataclass(frozen=True)
class Column:
    """A column: `filtered` gives it a filter, and `help` explains its title.

    `more` is the title of what its entries have as `more`, for a writer that gives this a column of its own.
    """

    title: str
    kind: Literal["text", "number", "code"] = "text"
    filtered: bool = False
    help: str = ""
    model: int | None = None
    """The position of the model that the column is about."""
    more: str = ""


@dataclass(frozen=True)
class Legend:
    """What the marks of a table mean: the best of each row, column or measure, its ties, and †."""

    line: Literal["row", "column", "measure"]
    level: float
    baseline: str = ""
    """The model that † is about; empty in a table without †."""

    def explain(self, best: str, tie: str) -> str:
        """Explain the marks, whose looks `best` and `tie` name."""
        alpha = f"{1 - self.level:.2g}"
        text = (
            f"{best}: the best of its {self.line}; {tie}: not significantly different from it (paired test "
            f"of the mean at {alpha}, corrected by Holm over the {self.line})."
        )
        if self.baseline:
            text += (
                f" †: significantly different from '{self.baseline}' (paired test of the mean at {alpha}, "
                "corrected by Holm over all accuracies, and over all scores)."
            )
        return text


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
    legend: Legend | None = None
    notes: Sequence[str] = ()
    """Sentences below the table."""

    def options(self, column: int) -> list[str]:
        """Return the texts of a column, each once."""
        return list(dict.fromkeys(row[column].text for row in self.rows))


def summary_table(summary: Summary) -> Table:
    """Return a comparison at a glance: one row per measure, and one column per model."""
    records = iter(summary.table.to_dict("records"))  # in the order of the measures, and of their models
    rows = []
    for measure in summary.measures:
        entries = dict.fromkeys(summary.models, Entry("", -math.inf))
        for model in measure.values:
            record = next(records)
            entries[model] = estimate_entry(record, measure.share, mark="†" if record["differs"] else "")
        metric = f"{measure.metric} {ARROWS[measure.better]}".strip()
        rows.append([Entry(metric, more=measure.label), *entries.values()])
    columns = [
        Column("metric", filtered=True, more="method"),
        *(Column(model, "number", model=position) for position, model in enumerate(summary.models)),
    ]
    several = len(summary.models) > 1
    return Table(
        "glance",
        _caption(summary),
        columns,
        rows,
        legend=Legend("row", summary.level, summary.baseline) if several else None,
        notes=explain_entries(summary.table),
    )


def estimate_entry(row: Mapping[Any, Any], share: bool, mark: str = "") -> Entry:
    """Return a mean with its interval, and the number of undefined values that are left out.

    >>> estimate_entry({"mean": 0.51234, "low": 0.50111, "high": 0.52999, "undefined": 2}, share=False).line
    '0.512 [0.501, 0.530] 2 NaN'
    >>> estimate_entry({"mean": 0.9, "low": 0.85, "high": 0.9312, "undefined": 0}, share=True, mark="†").line
    '90.0 %† [85.0, 93.1]'
    """
    mean = float(row["mean"])
    text, interval = write_mean(row, share=share)
    undefined = f"{int(row['undefined'])} NaN" if row["undefined"] and not math.isnan(mean) else ""
    more = " ".join(filter(None, [interval, undefined]))
    value = -math.inf if math.isnan(mean) else mean
    return Entry(text + mark, value, more, badge=row.get("rank", ""))


def _caption(summary: Summary) -> str:
    images = max(next(iter(measure.values.values())).shape[1] for measure in summary.measures)
    seeds = summary.table["seeds"].astype(int).tolist()
    over = number_of(images, "image") + (f" and {count_each(seeds, 'seed')}" if max(seeds) > 1 else "")
    models = number_of(len(summary.models), "model")
    return f"{models} on {over}: mean [{100 * summary.level:g} % interval]"


def explain_entries(table: pd.DataFrame) -> list[str]:
    """Say what the intervals of `Comparison.table()` are over, and what its unusual entries mean."""
    notes = []
    if table["seeds"].max() > 1:
        notes.append("Intervals and tests are over training seeds and images: they are about the recipe.")
    elif table["seeds"].max() == 1:
        notes.append("One training seed: intervals and tests are about these networks, not about the recipe.")
    notes += explain_unusual(table)
    if table["identical"].any():
        rows = number_of(int(table["identical"].sum()), "row")
        notes.append(
            f"Scores that are identical in both models (in {rows}) are not comparisons: they are not tested "
            "and not counted."
        )
    return notes


def explain_unusual(table: pd.DataFrame) -> list[str]:
    """Say what the entries of `Comparison.table()` mean that are no mean with an interval."""
    notes = []
    if table["seeds_disagree"].any():
        notes.append(
            "Seeds disagree: the training seeds seem to be of two kinds, so that no mean describes them; the "
            "value of each seed is listed."
        )
    alone = table[table["low"].isna() & table["mean"].notna()]
    infinite = np.isinf(alone["mean"])
    without = pd.Series([lost_seeds(np.asarray(means)) for means in alone["seed_means"]], alone.index, bool)
    if (~infinite & ~without).any():
        notes.append("A mean without an interval: too few of its values differ from one another.")
    if (~infinite & without).any():
        notes.append(
            "A mean without an interval: only one of the training seeds has scores, so that it is not about "
            "the recipe, and nothing is tested."
        )
    if infinite.any():
        notes.append("inf: some of the values are infinite, so that their mean has no interval.")
    partial: dict[str, str] = {}
    for model, means in zip(table["model"], table["seed_means"], strict=True):
        there = int((~np.isnan(np.asarray(means))).sum())
        if 0 < there < len(means):
            partial.setdefault(model, f"{model} ({there} of {len(means)})")
    if partial:
        notes.append(f"Not all training seeds have results: {listing([*partial.values()])}.")
    if (table["undefined"] > 0).any():
        notes.append("NaN: the number of values that are undefined and left out.")
    return notes


class AuditedModel(NamedTuple):
    """The audits of one attack at one ε on all training seeds of one model."""

    attack: str
    eps: float
    n: int
    model: str
    robust_accuracy: float
    """What the attack reports, averaged over the seeds."""
    worst_case: float
    """Accuracy under every attack of the audit, averaged over the seeds."""
    verdicts: dict[str, int]
    """How many seeds have each verdict."""


def audits_by_model(audits: pd.DataFrame) -> list[AuditedModel]:
    """Summarise `Study.audits`, which has one row per check, over the training seeds."""
    if not len(audits):
        return []
    whole = audits.drop_duplicates(["attack", "eps", "n", "model", "seed"])
    audited = []
    key: Any
    for key, own in whole.groupby(["attack", "eps", "n", "model"], sort=False):
        reported, worst = (float(own[name].mean()) for name in ("robust_accuracy", "worst_case"))
        verdicts = {str(verdict): int(times) for verdict, times in own["verdict"].value_counts().items()}
        attack, eps, n, model = key
        audited.append(AuditedModel(attack, eps, n, model, reported, worst, verdicts))
    return audited


def audit_notes(audits: pd.DataFrame) -> list[str]:
    """Write one sentence per audit of an attack: each model's verdict and its worst accuracy."""
    models: dict[tuple[str, float, int], list[str]] = {}
    for each in audits_by_model(audits):
        verdicts = ", ".join(f"{times} × {verdict}" for verdict, times in each.verdicts.items())
        if len(each.verdicts) == 1:
            (verdicts,) = each.verdicts
        written = f"{each.model} {verdicts} ({100 * each.worst_case:.1f} %)"
        models.setdefault((each.attack, each.eps, each.n), []).append(written)
    return [
        f"Audit of {attack}, ε = {format_epsilon(eps)}, on {number_of(n, 'image')} "
        f"(worst case over all its attacks): {', '.join(written)}."
        for (attack, eps, n), written in models.items()
    ]
