"""Claims: questions about two models that a study's intervals answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.settings import Epsilon, Settings
from saliency_lab.comparison.measures import ROBUST, SHARES, Measure

if TYPE_CHECKING:
    from saliency_lab.comparison.comparison import Comparison


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
            and (not self.method or not measure.method or measure.method in self.method)
            and (not measure.eps > 0 or not self.eps or any(abs(measure.eps - e) < 1e-9 for e in self.eps))
        )

    def check(
        self,
        models: Sequence[str],
        metrics: Sequence[str],
        methods: Sequence[str],
        attacks: Mapping[str, Sequence[float]],
    ) -> None:
        """Refuse models, metrics, methods, attacks (by name, with their ε) and ε that the study has not."""
        said = f"in the claim '{self.question}':"
        maps = [name for name in self.metric if name not in SHARES]
        for name in (*self.model, *self.over):
            if name not in models:
                raise unknown_name(f"model {said}", name, models)
        for name in self.metric:
            if name not in metrics:
                raise unknown_name(f"metric {said}", name, metrics)
        known = [*(methods if maps else ()), *(attacks if {*SHARES} & {*self.metric} else ())]
        for name in self.method:
            if name not in known:
                raise unknown_name(f"method {said}", name, known)
        if ROBUST in self.metric and self.method and not {*self.method} & {*attacks}:
            raise InputError(f"the claim '{self.question}' asks for robust_accuracy; name the attack too")
        if maps and self.method and not {*self.method} & {*methods}:
            raise InputError(f"the claim '{self.question}' asks for {maps[0]}; name a method of maps too")
        radii = sorted({eps for held in attacks.values() for eps in held if eps > 0})
        for eps in self.eps:
            if not any(abs(eps - each) < 1e-9 for each in radii):
                there = ", ".join(map(format_epsilon, radii)) or "none"
                raise InputError(f"ε = {format_epsilon(eps)} {said} is not attacked at; there are: {there}")


class Purpose(Settings):
    """What a study asks, and how it is answered."""

    title: str = ""
    about: str = ""
    """What the study asks, for the head of its page."""
    claims: list[Claim] = Field(default_factory=list)
    baseline: str | None = None
    """The model that the others are compared with; the first by default."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals."""


COLUMNS = [
    *("metric", "method", "eps", "model", "over", "mean", "mean_over"),
    *("difference", "difference_low", "difference_high", "verdict"),
]


def judge(claim: Claim, comparison: Comparison) -> pd.DataFrame:
    """Answer a claim: one row a (measure, model, other model).

    `difference` is model − over on the same images with its interval (over seeds and images, where there are
    several seeds). `verdict` is "better" or "worse" where that interval leaves 0 out, "not told apart" where
    it does not; "higher" or "lower" for a metric that has no good direction; "undefined" where there is no
    interval. The intervals are not corrected for their number.

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
    if np.isnan([low, high]).any():
        return "undefined"
    if not (low > 0 or high < 0):
        return "not told apart"
    if better == "neither":
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == (better == "higher") else "worse"


class Answer(NamedTuple):
    """What came out for two models: each verdict with the measures that say so."""

    model: str
    over: str
    verdicts: dict[str, str]

    def __str__(self) -> str:
        said = "; ".join(f"{verdict} by {measures}" for verdict, measures in self.verdicts.items())
        return f"{self.model} against {self.over}: {said}"


@dataclass(frozen=True, repr=False)
class Answered:
    """A question and what came out; `str` says it in words."""

    question: str
    differences: pd.DataFrame
    """As `judge` returns them; empty where there is a `problem`."""
    problem: str = ""
    """Why there is no answer."""
    missing: Sequence[str] = ()
    """What the question names and nothing was measured of."""

    @property
    def answers(self) -> list[Answer]:
        """One answer a pair of models: by which measures which way."""
        found = []
        for (model, over), rows in self.differences.groupby(["model", "over"], sort=False):
            verdicts = sorted(rows["verdict"].unique(), key=_ORDER.index)
            said = {verdict: _measures(rows[rows["verdict"] == verdict]) for verdict in verdicts}
            found.append(Answer(str(model), str(over), said))
        return found

    def __repr__(self) -> str:
        said = [f"no answer: {self.problem}"] if self.problem else [*map(str, self.answers)]
        if self.missing:
            said.append(f"not measured: {', '.join(self.missing)}")
        return "\n".join([self.question, *(f"  {line}" for line in said)])


def answer(claims: Sequence[Claim], comparison: Comparison | None) -> list[Answered]:
    """Answer every question; of nothing that was measured, none has an answer."""
    found = []
    for claim in claims:
        try:
            if comparison is None:
                raise InputError("nothing was scored or attacked")
            rows = judge(claim, comparison)
            found.append(Answered(claim.question, rows, missing=_missing(claim, rows)))
        except InputError as error:  # a model that could not be trained, a metric that failed
            found.append(
                Answered(
                    claim.question, pd.DataFrame(columns=COLUMNS), str(error), _absent(claim, comparison)
                )
            )
    return found


def _absent(claim: Claim, comparison: Comparison | None) -> list[str]:
    """Names of a claim that nothing of the study goes by."""
    measures = [] if comparison is None else comparison.measures
    there = {model for measure in measures for model in measure.values}
    there |= {name for measure in measures for name in (measure.metric, measure.method)}
    names = [*claim.model, *claim.over, *claim.metric, *claim.method]
    return list(dict.fromkeys(name for name in names if name not in there)) if there else []


def _missing(claim: Claim, rows: pd.DataFrame) -> list[str]:
    """Names and ε of a claim that no row is about: misspelt, or failed."""
    there = {*rows["model"], *rows["over"], *rows["metric"], *rows["method"]}
    names = [*claim.model, *claim.over, *claim.metric, *claim.method]
    radii = [eps for eps in claim.eps if not np.isclose(rows["eps"].to_numpy(float), eps).any()]
    return [
        *dict.fromkeys(n for n in names if n not in there),
        *(f"ε = {format_epsilon(eps)}" for eps in radii),
    ]


def by_chance(questions: Sequence[Answered], level: float) -> str:
    """Say how the verdicts of these answers were reached, and how many of them chance alone would bring.

    The difference of two models is counted once, whichever way round and however often it is asked for.
    """
    of = ["metric", "method", "eps", "model", "over"]
    told = {
        (*row[:3], frozenset(row[3:]))
        for question in questions
        for row in question.differences.query("verdict != 'undefined'")[of].fillna(0).itertuples(index=False)
    }
    if not told:
        return ""
    expected = len(told) * (1 - level)
    return (
        "Better and worse: the interval of the paired difference leaves 0 out; not told apart: it does not. "
        f"Intervals: {len(told)}, each at {100 * level:g} % and not corrected for their number; were there "
        f"no differences at all, about {expected:.{0 if expected >= 1 else 1}f} would leave 0 out by chance."
    )


_ORDER = ["better", "higher", "worse", "lower", "not told apart", "undefined"]


def _measures(rows: pd.DataFrame) -> str:
    """Metrics, each with its methods, or with its attacks and their ε.

    >>> _measures(pd.DataFrame({"metric": "robust_accuracy", "method": "pgd", "eps": [0.1, 0.2]}))
    'robust accuracy (pgd, ε = 0.1, 0.2)'
    """
    named = []
    for metric, held in rows.groupby("metric", sort=False):
        within = []
        for method, own in held.groupby("method", sort=False):
            radii = [format_epsilon(eps) for eps in own["eps"] if eps > 0]
            name = str(method).replace("_", " ")
            within.append(f"{name}, ε = {', '.join(radii)}" if radii else name)
        text = str(metric).replace("_", " ")
        named.append(f"{text} ({'; '.join(within)})" if any(within) else text)
    return ", ".join(named)


def measure_in_words(row: Mapping[Hashable, Any]) -> str:
    """Name the measure of one row.

    >>> measure_in_words({"metric": "robust_accuracy", "method": "pgd", "eps": 0.2})
    'robust accuracy (pgd, ε = 0.2)'
    """
    return _measures(pd.DataFrame([row]))
