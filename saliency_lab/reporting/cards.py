"""The summary of each model: one sentence, and a small curve of its accuracy under attack."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import number_of, words
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.claims import NOT_DIFFERENT, better_or_worse
from saliency_lab.comparison.format import listing, radius, write_difference, write_mean
from saliency_lab.comparison.measures import ACCURACY, ROBUST, SHARES
from saliency_lab.reporting.audits import Audited


@dataclass(frozen=True)
class CardCurve:
    """Accuracy against ε: the points of every model as (x, y) in [0, 1], and what the curve shows."""

    points: dict[str, list[tuple[float, float]]]
    caption: str


@dataclass(frozen=True)
class Card:
    """The summary of one model."""

    model: str
    index: int
    baseline: bool
    sentence: str
    audits: list[Audited]


def make_cards(comparison: Comparison, facts: pd.DataFrame, audits: Sequence[Audited]) -> list[Card]:
    """Summarise each model in one sentence."""
    cards = []
    for index, model in enumerate(comparison.models):
        rows = facts[facts["model"] == model].to_dict("records")
        parts = [*_accuracies(rows, comparison), *_scores(rows)]
        sentence = "; ".join(parts)
        cards.append(
            Card(
                model=model,
                index=index,
                baseline=model == comparison.baseline,
                sentence=f"{sentence[:1].upper()}{sentence[1:]}." if parts else "Nothing was measured.",
                audits=[audit for audit in audits if audit.model == model],
            )
        )
    return cards


def _accuracies(rows: Sequence[Mapping[Any, Any]], comparison: Comparison) -> list[str]:
    """Say the accuracy, and that under each attack at its largest ε, compared with the baseline."""
    largest: dict[str, Mapping[Any, Any]] = {}
    for row in rows:
        if row["metric"] in SHARES and row["eps"] >= largest.get(row["method"], row)["eps"]:
            largest[row["method"]] = row
    parts = []
    for attack, row in largest.items():
        value, by_seed = write_mean(row, share=True)
        under = f"under {attack} at {radius(row['eps'])}" if attack else ""
        if row["seeds_disagree"]:
            parts.append(f"{under or 'accuracy'}: the seeds disagree ({by_seed})")
            continue
        where = f"{value} {under}" if attack else f"accuracy {value}"
        parts.append(where + _against(row, comparison.baseline))
    return parts


def _against(row: Mapping[Any, Any], baseline: str) -> str:
    if math.isnan(row["p_holm"]):
        return ""
    if not row["differs"]:
        return f", {NOT_DIFFERENT} from {baseline}"
    word = "higher" if row["difference"] > 0 else "lower"
    return f", {word} than {baseline} by {write_difference(row, share=True)[0].lstrip('+−')}"


def _scores(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Count the map scores by how they compare with the baseline's."""
    counts = {"better": 0, "worse": 0, "different": 0, NOT_DIFFERENT: 0}
    for row in rows:
        if row["metric"] not in SHARES and not math.isnan(row["p_holm"]):
            counts[_word(row)] += 1
    total = sum(counts.values())
    if not total:
        return []
    counted = [f"{'all' if number == total else number} {word}" for word, number in counts.items() if number]
    return [f"of {number_of(total, 'map score')}, {listing(counted)}"]


def _word(row: Mapping[Any, Any]) -> str:
    if not row["differs"]:
        return NOT_DIFFERENT
    if row["better"] == "neither":
        return "different"
    return better_or_worse(row)


def make_curve(comparison: Comparison, facts: pd.DataFrame) -> CardCurve | None:
    """Return the accuracy of every model under the attack with the most radii, or None without an attack."""
    attacked = facts[facts["metric"] == ROBUST]
    if attacked.empty:
        return None
    radii = attacked.groupby("method", sort=False)["eps"].nunique()
    attack = radii.idxmax()
    rows = pd.concat([facts[facts["metric"] == ACCURACY], attacked[attacked["method"] == attack]])
    end = rows["eps"].max()
    points = {}
    for model in comparison.models:
        own = rows[rows["model"] == model].sort_values("eps")
        own = own[own["mean"].notna()]
        if len(own) > 1:
            points[model] = [(row["eps"] / end, row["mean"]) for row in own.to_dict("records")]
    return CardCurve(points, f"Accuracy under {attack}, ε from 0 to {format_epsilon(end)}")


def count_undefined(facts: pd.DataFrame) -> str:
    """Say how many map scores are undefined and left out."""
    rows = facts[~facts["metric"].isin(SHARES)]
    if not len(rows):
        return ""
    lost, total = int(rows["undefined"].sum()), int((rows["undefined"] + rows["n"]).sum())
    if not lost:
        return f"All {total:,} map scores are defined."
    by_metric = rows.groupby("metric", sort=False)["undefined"].sum()
    where = [f"{words(str(metric))} ({int(number):,})" for metric, number in by_metric.items() if number]
    return (
        f"{lost:,} of {total:,} map scores ({lost / total:.1%}) are undefined and left out: {listing(where)}."
    )


def name_networks_at_chance(robustness: pd.DataFrame, labels: Sequence[int]) -> str:
    """Name the networks that answer no better than naming one class for all images would.

    A network that collapsed to one class is among them. Nothing is said where all images have one class.
    """
    common = max(Counter(labels).values()) / len(labels)
    unattacked = robustness[robustness["eps"] == 0].drop_duplicates(["model", "seed", "sample"])
    accuracies = unattacked.groupby(["model", "seed"], sort=False, as_index=False)["robust"].mean()
    low = [f"{row.model} (seed {row.seed})" for row in accuracies.itertuples() if row.robust <= common < 1]
    if not low:
        return ""
    verb = "classifies" if len(low) == 1 else "classify"
    return (
        f"{listing(low)} {verb} no more images correctly than naming the most frequent class for all would "
        f"({common:.1%}). The results of such networks count as those of the others."
    )
