"""Claims: questions about two models that a study's intervals answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.settings import Epsilon, Settings

if TYPE_CHECKING:
    from saliency_lab.study.comparison import Comparison, Measure


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


class Claim(Settings):
    """A question: is each of `model` better than each of `over` by these measures?"""

    question: str
    model: Names
    over: Names
    metric: Names
    """Metrics, "accuracy" or "robust_accuracy"."""
    method: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    """Of the maps, or attacks; all unless some are named."""
    eps: Annotated[list[Epsilon], BeforeValidator(_listed)] = Field(default_factory=list)
    """Of "robust_accuracy"; all unless some are named."""

    def asks_about(self, measure: Measure) -> bool:
        """Whether this measure is among those asked for."""
        return (
            measure.metric in self.metric
            and (not self.method or measure.method in self.method)
            and (not measure.eps > 0 or not self.eps or any(abs(measure.eps - e) < 1e-9 for e in self.eps))
        )

    def check(self, models: Sequence[str], metrics: Sequence[str]) -> None:
        """Refuse models and metrics that the study has not."""
        for name in (*self.model, *self.over):
            if name not in models:
                raise unknown_name(f"model in the claim '{self.question}':", name, models)
        for name in self.metric:
            if name not in metrics:
                raise unknown_name(f"metric in the claim '{self.question}':", name, metrics)


COLUMNS = [
    *("metric", "method", "eps", "model", "over", "mean", "mean_over"),
    *("difference", "difference_low", "difference_high", "verdict"),
]


def judge(claim: Claim, comparison: Comparison) -> pd.DataFrame:
    """Answer a claim: one row a (measure, model, other model).

    `difference` is model − over on the same images with its interval (over seeds and images, where there are
    several seeds). `verdict` is "better" or "worse" where that interval leaves 0 out, "not told apart" where
    it does not; "higher" or "lower" for a metric that has no good direction. The intervals are not corrected
    for their number.

    Raises
    ------
    InputError
        If the study measured nothing of the kind.
    """
    rows = []
    for measure in comparison.measures:
        if not claim.asks_about(measure):
            continue
        for model in claim.model:
            for over in claim.over:
                if model == over or not {model, over} <= measure.values.keys():
                    continue
                found = measure.difference(model, over, comparison.level, comparison.seed)
                means = [
                    measure.interval(each, comparison.level, comparison.seed).mean for each in (model, over)
                ]
                of = [measure.metric, measure.method, measure.eps, model, over]
                rows.append([*of, *means, *found, _verdict(found.low, found.high, measure.better)])
    if not rows:
        raise InputError(f"nothing that was measured answers the claim '{claim.question}'")
    return pd.DataFrame(rows, columns=COLUMNS)


def _verdict(low: float, high: float, better: str) -> str:
    """Say on which side of 0 the interval lies.

    >>> _verdict(0.1, 0.3, "lower"), _verdict(-0.1, 0.3, "higher"), _verdict(-0.2, -0.1, "neither")
    ('worse', 'not told apart', 'lower')
    """
    if not (low > 0 or high < 0):
        return "not told apart"
    if better == "neither":
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (better == "higher") else "worse"


def in_words(answers: pd.DataFrame) -> list[str]:
    """One sentence a pair of models: in how many of the measures which way."""
    sentences = []
    for (model, over), rows in answers.groupby(["model", "over"], sort=False):
        parts = []
        for verdict, told in rows.groupby("verdict", sort=False):
            which = ", ".join(_measure(row) for row in told.to_dict("records"))
            parts.append(f"**{verdict}** by {which}")
        sentences.append(f"{model} against {over}: {'; '.join(parts)}.")
    return sentences


def _measure(row: dict[Any, Any]) -> str:
    name = str(row["metric"]).replace("_", " ")
    if row["eps"] > 0:
        return f"{name} ({row['method']}, ε = {row['eps']:.4g})"
    return f"{name} ({str(row['method']).replace('_', ' ')})" if row["method"] else name
