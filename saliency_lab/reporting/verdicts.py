"""The verdicts in plain sentences: what differs from the baseline, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from saliency_lab.comparison import Comparison
from saliency_lab.comparison.format import SPACE, count, listing, radius, short, write_difference, write_mean
from saliency_lab.comparison.measures import SHARES
from saliency_lab.comparison.tables import explain_cells
from saliency_lab.reporting.audits import Audited
from saliency_lab.reporting.tables import MEANING, hue, words

AT_ONCE = 6
"""Map scores up to which a model's sentences are all shown; more are folded."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one model: `accuracy` and `scores` are sentences, `tally` sums the scores up."""

    model: str
    index: int
    baseline: bool
    accuracy: list[str]
    tally: str
    scores: list[str]
    audits: list[Audited]

    @property
    def folded(self) -> bool:
        """Whether the sentences about scores are behind a fold."""
        return len(self.scores) > AT_ONCE


def verdicts(comparison: Comparison, facts: pd.DataFrame, audits: Sequence[Audited]) -> list[Verdict]:
    """Say of every model what differs from the baseline."""
    found = []
    for model in comparison.models:
        rows = facts[facts["model"] == model].to_dict("records")
        shares = [row for row in rows if row["metric"] in SHARES]
        others = [row for row in rows if row["metric"] not in SHARES]
        baseline = model == comparison.baseline
        tally, about = ("", []) if baseline else _scores(others, comparison)
        found.append(
            Verdict(
                model=model,
                index=hue(comparison.models, model),
                baseline=baseline,
                accuracy=_accuracies(shares, comparison, baseline),
                tally=tally,
                scores=about,
                audits=[audit for audit in audits if audit.model == model],
            )
        )
    return found


def _accuracies(rows: Sequence[Mapping[Any, Any]], comparison: Comparison, baseline: bool) -> list[str]:
    sentences = []
    by_attack: dict[str, list[Mapping[Any, Any]]] = {}
    for row in rows:
        by_attack.setdefault(row["method"], []).append(row)
    for attack, found in by_attack.items():
        values = [
            f"{' '.join(_written(row))}" + (f" at {radius(row['eps'])}" if attack else "") for row in found
        ]
        said = "" if baseline else _against(found, comparison)
        if attack and said:
            sentences.append(f"Under {attack}: {said}. That is {listing(values)}.")
        else:
            start = f"Under {attack}" if attack else "Accuracy"
            sentences.append(f"{start}: {listing(values)}" + (f"; {said}." if said else "."))
    return sentences


def _against(rows: Sequence[Mapping[Any, Any]], comparison: Comparison) -> str:
    """Sum up the differences of accuracies from the baseline, one clause a direction."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if math.isnan(row["p_holm"]):
            continue
        if row["differs"]:
            word = "higher" if row["difference"] > 0 else "lower"
            place = f" at {radius(row['eps'])}" if row["method"] else ""
            groups.setdefault(word, []).append(f"{' '.join(_difference(row))}{place}")
        else:
            groups.setdefault("alike", []).append(short(row["eps"]) if row["method"] else "")
    clauses = []
    for word, places in groups.items():
        if word == "alike":
            where = f" at ε{SPACE}={SPACE}{listing(places)}" if any(places) else ""
            clauses.append(f"not significantly different from {comparison.baseline}{where}")
        else:
            clauses.append(f"{word} than {comparison.baseline} by {listing(places)}")
    return "; ".join(clauses)


def _scores(rows: Sequence[Mapping[Any, Any]], comparison: Comparison) -> tuple[str, list[str]]:
    """Count a model's map scores by how they compare with the baseline, and say each that differs."""
    counts = {"better": 0, "worse": 0, "different": 0, "not significantly different": 0}
    sentences = []
    for row in rows:
        if math.isnan(row["p_holm"]):
            continue
        word = _word(row)
        counts[word] += 1
        if word != "not significantly different":
            value, interval = _written(row)
            sentences.append(
                f"{words(row['metric'])} of {words(row['method'])}: {word}, {value} {interval}, "
                f"{' '.join(_difference(row))} against {comparison.baseline} ({MEANING[row['better']]})."
            )
    total = sum(counts.values())
    if not total:
        return "", []
    parts = [f"{word} on {'all' if number == total else number}" for word, number in counts.items() if number]
    return f"Of {count(total, 'map score')}, against {comparison.baseline}: {listing(parts)}.", sentences


def _word(row: Mapping[Any, Any]) -> str:
    if not row["differs"]:
        return "not significantly different"
    if row["better"] == "neither":
        return "different"
    return "better" if (row["difference"] > 0) == (row["better"] == "higher") else "worse"


def _written(row: Mapping[Any, Any]) -> tuple[str, str]:
    return write_mean(row, share=row["metric"] in SHARES)


def _difference(row: Mapping[Any, Any]) -> tuple[str, str]:
    return write_difference(row, share=row["metric"] in SHARES)


def undefined(facts: pd.DataFrame) -> str:
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


def caution(facts: pd.DataFrame) -> str:
    """Say what the intervals and tests are about."""
    if not len(facts):
        return ""
    return " ".join(explain_cells(facts))
