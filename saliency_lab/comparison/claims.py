"""Claims: questions about two models that a study answers with tests of differences."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from saliency_lab._common.checks import format_epsilon, same_epsilon
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.settings import Epsilon, Settings
from saliency_lab._common.text import words
from saliency_lab.comparison import statistics
from saliency_lab.comparison.format import one_line, p_equation, write_difference
from saliency_lab.comparison.measures import ROBUST, SHARES, Measure
from saliency_lab.metrics.catalogue import METRICS

if TYPE_CHECKING:
    from saliency_lab.comparison.comparison import Comparison


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


Names = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


def _is_among(
    measure: Measure, metrics: Sequence[str], methods: Sequence[str], radii: Sequence[float]
) -> bool:
    """Whether a measure has one of the metrics, and one of the methods and ε if there are any of these."""
    return (
        measure.metric in metrics
        and (not methods or not measure.method or measure.method in methods)
        and (not radii or not measure.eps > 0 or any(same_epsilon(measure.eps, eps) for eps in radii))
    )


class Endpoint(Settings):
    """The primary endpoint of a claim: the one difference that decides it, declared before the study runs.

    It is tested at 1 − level of the study, without a correction. With a `margin`, equivalence is a possible
    answer too: two one-sided tests at the same level.
    """

    model: str
    over: str
    """The model that it is compared with."""
    metric: str
    """A metric, "accuracy" or "robust_accuracy"."""
    method: str = ""
    """Of the maps, or the attack; may be left out where the study has a single one."""
    eps: Epsilon | None = None
    """Of "robust_accuracy"; may be left out where the attack has a single ε."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Differences up to this are of no importance, in units of the metric: 0.02 is two points of accuracy."""

    @model_validator(mode="after")
    def _check_margin(self) -> Self:
        if self.margin is None:
            return self
        if self.metric in SHARES and self.margin >= 1:
            raise ValueError(
                f"margin = {self.margin:g} is a share of the images, below 1; {self.margin:g} points of "
                f"accuracy are {self.margin / 100:g}"
            )
        low, high = METRICS[self.metric].bounds if self.metric in METRICS else (-math.inf, math.inf)
        if self.margin >= high - low:
            raise ValueError(
                f"margin = {self.margin:g} is the whole range of {self.metric} ({low:g} to {high:g}) or "
                "more, so that all values would be equivalent"
            )
        return self

    def is_measured_by(self, measure: Measure) -> bool:
        """Whether this measure may be the endpoint's."""
        methods = [self.method] if self.method else []
        return _is_among(measure, [self.metric], methods, [] if self.eps is None else [self.eps])


class Claim(Settings):
    """A question: is each of `model` better than each of `over` by these measures?

    Differences other than the primary endpoint are secondary: their p-values are corrected together, over all
    claims of the study.
    """

    question: str
    model: Names
    over: Names
    metric: Names
    """Metrics, "accuracy" or "robust_accuracy"."""
    method: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    """Of the maps, or attacks; all unless some are named."""
    eps: Annotated[list[Epsilon], BeforeValidator(_listed)] = Field(default_factory=list)
    """Of "robust_accuracy"; all unless some are named."""
    primary: Endpoint | None = None
    """The one difference that decides the claim."""

    def asks_about(self, measure: Measure) -> bool:
        """Whether this measure is among those asked for."""
        return _is_among(measure, self.metric, self.method, self.eps)

    def check(
        self,
        models: Sequence[str],
        metrics: Sequence[str],
        methods: Sequence[str],
        attacks: Mapping[str, Sequence[float]],
    ) -> None:
        """Refuse models, metrics, methods, attacks and ε that the study does not have.

        Parameters
        ----------
        models, metrics, methods : sequence of str
            Names that the study declares.
        attacks : mapping of str to sequence of float
            Its attacks by name, each with its ε.

        Raises
        ------
        InputError
            If a name or ε is unknown, or the primary endpoint could be one of several measures.
        """
        place = f"in the claim '{self.question}':"
        maps = [name for name in self.metric if name not in SHARES]
        for name in (*self.model, *self.over):
            if name not in models:
                raise unknown_name(f"model {place}", name, models)
        for name in self.metric:
            if name not in metrics:
                raise unknown_name(f"metric {place}", name, metrics)
        known = [*(methods if maps else ()), *(attacks if {*SHARES} & {*self.metric} else ())]
        for name in self.method:
            if name not in known:
                raise unknown_name(f"method {place}", name, known)
        if ROBUST in self.metric and self.method and not {*self.method} & {*attacks}:
            raise InputError(f"the claim '{self.question}' asks for robust_accuracy; name the attack too")
        if maps and self.method and not {*self.method} & {*methods}:
            raise InputError(f"the claim '{self.question}' asks for {maps[0]}; name a method of maps too")
        radii = sorted({eps for declared in attacks.values() for eps in declared if eps > 0})
        for eps in self.eps:
            if not any(same_epsilon(eps, each) for each in radii):
                there = ", ".join(map(format_epsilon, radii)) or "none"
                raise InputError(f"ε = {format_epsilon(eps)} {place} is not attacked at; there are: {there}")
        if self.primary is not None:
            self._check_primary(self.primary, models, metrics, methods, attacks)

    def _check_primary(
        self,
        endpoint: Endpoint,
        models: Sequence[str],
        metrics: Sequence[str],
        methods: Sequence[str],
        attacks: Mapping[str, Sequence[float]],
    ) -> None:
        """Refuse a primary endpoint that the study does not have, or that could be one of several."""
        place = f"the primary endpoint of the claim '{self.question}'"
        Claim(
            question=self.question,
            model=[endpoint.model],
            over=[endpoint.over],
            metric=[endpoint.metric],
            method=[endpoint.method] if endpoint.method else [],
            eps=[] if endpoint.eps is None else [endpoint.eps],
        ).check(models, metrics, methods, attacks)
        if endpoint.model == endpoint.over:
            raise InputError(f"{place} compares '{endpoint.model}' with itself")
        if endpoint.metric not in SHARES and not endpoint.method and len(methods) > 1:
            raise InputError(f"{place} must name a method: {', '.join(methods)}")
        if endpoint.metric == ROBUST:
            if not endpoint.method and len(attacks) > 1:
                raise InputError(f"{place} must name an attack: {', '.join(attacks)}")
            radii = [eps for eps in attacks[endpoint.method or next(iter(attacks))] if eps > 0]
            if endpoint.eps is None and len(radii) > 1:
                raise InputError(f"{place} must name one ε: {', '.join(map(format_epsilon, radii))}")
            if endpoint.eps is not None and not any(same_epsilon(endpoint.eps, eps) for eps in radii):
                raise InputError(
                    f"{place} names ε = {format_epsilon(endpoint.eps)}, at which {endpoint.method} is not run"
                )


class Purpose(Settings):
    """What a study asks, and how it is answered."""

    title: str = ""
    about: str = ""
    """What the study asks, for the head of its page."""
    claims: list[Claim] = Field(default_factory=list)
    baseline: str | None = None
    """The model that the others are compared with; the first by default."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals; 1 − level is the level of the tests."""


COLUMNS = [
    *("endpoint", "metric", "method", "eps", "model", "over", "mean", "mean_over"),
    *("difference", "difference_low", "difference_high", "p", "p_corrected", "margin", "p_equivalence"),
    "verdict",
]

PRIMARY, SECONDARY = "primary", "secondary"

NOT_DIFFERENT = "not significantly different"


def _differences(claim: Claim, comparison: Comparison) -> pd.DataFrame:
    """Estimate every difference that a claim asks about, without corrections and verdicts."""
    rows = []
    end = claim.primary
    if end is not None:
        measures = [m for m in comparison.measures if end.is_measured_by(m)]
        measures = [m for m in measures if {end.model, end.over} <= m.values.keys()]
        if len(measures) > 1:
            names = ", ".join(m.label for m in measures)
            raise InputError(f"the primary endpoint of '{claim.question}' may be any of {names}; name one")
        rows += [_row(PRIMARY, m, end.model, end.over, comparison.level, end.margin) for m in measures]
    decided = {(row["metric"], row["method"], row["eps"], row["model"], row["over"]) for row in rows}
    for measure in comparison.measures:
        if not claim.asks_about(measure):
            continue
        for model in claim.model:
            for over in claim.over:
                place = measure.metric, measure.method, measure.eps, model, over
                if model == over or not {model, over} <= measure.values.keys() or place in decided:
                    continue
                rows.append(_row(SECONDARY, measure, model, over, comparison.level, None))
    if not rows:
        raise InputError(f"nothing that was measured answers the claim '{claim.question}'")
    return pd.DataFrame(rows, columns=[*COLUMNS, "better"])


def _row(
    endpoint: str, measure: Measure, model: str, over: str, level: float, margin: float | None
) -> dict[str, Any]:
    """Estimate one difference; `verdict` says why there is none where the test does not decide it."""
    estimate = measure.estimate_difference(model, over)
    interval = estimate.interval(level)
    reason = ""
    if measure.seeds_disagree(model) or measure.seeds_disagree(over):
        reason = "seeds disagree"
    elif measure.identical(model, over):
        reason = "identical"
    elif math.isnan(measure.p_value(model, over)):
        reason = "undefined"
    return {
        "endpoint": endpoint,
        "metric": measure.metric,
        "method": measure.method,
        "eps": measure.eps,
        "model": model,
        "over": over,
        "mean": measure.estimate(model).mean,
        "mean_over": measure.estimate(over).mean,
        "difference": interval.mean,
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p": measure.p_value(model, over),
        "margin": np.nan if margin is None else margin,
        "p_equivalence": np.nan if margin is None else estimate.p_equivalence(margin),
        "verdict": reason,
        "better": measure.better,
    }


def _decide(tables: Sequence[pd.DataFrame], alpha: float) -> list[pd.DataFrame]:
    """Correct the secondary p-values of several claims together, and state each verdict.

    A primary endpoint that another claim asks about again, either way round, stays uncorrected.
    """
    rows = [row for table in tables for row in table.to_dict("records")]
    primary = {_place(row): row["p"] for row in rows if row["endpoint"] == PRIMARY}
    family = {_place(row): row["p"] for row in rows if _place(row) not in primary}
    corrected = dict(zip(family, statistics.holm(list(family.values())), strict=True)) | primary
    decided = []
    for table in tables:
        rows = table.to_dict("records")
        for row in rows:
            row["p_corrected"] = float(corrected[_place(row)])
            row["verdict"] = row["verdict"] or _verdict(row, alpha)
        decided.append(pd.DataFrame(rows, columns=COLUMNS))
    return decided


def _place(row: Mapping[Any, Any]) -> Hashable:
    """Identify a difference, whichever way round it is asked for."""
    eps = 0.0 if math.isnan(row["eps"]) else row["eps"]
    return row["metric"], row["method"], eps, frozenset((row["model"], row["over"]))


def _verdict(row: Mapping[Any, Any], alpha: float) -> str:
    """State what the tests of one difference say.

    >>> row = {"difference": 0.2, "difference_low": 0.1, "difference_high": 0.3, "better": "lower"}
    >>> row |= {"p_corrected": 0.01, "p_equivalence": np.nan}
    >>> _verdict(row, 0.05), _verdict(row | {"p_corrected": 0.3}, 0.05)
    ('worse', 'not significantly different')
    >>> _verdict(row | {"difference_low": -0.01}, 0.05)
    'not significantly different'
    >>> _verdict(row | {"p_equivalence": 0.01}, 0.05), _verdict(row | {"better": "neither"}, 0.05)
    ('equivalent', 'higher')
    """
    if row["p_equivalence"] < alpha:
        return "equivalent"
    # McNemar's test and the interval of shares may contradict each other in single cases
    if not row["p_corrected"] < alpha or row["difference_low"] <= 0 <= row["difference_high"]:
        return NOT_DIFFERENT
    if row["better"] == "neither":
        return "higher" if row["difference"] > 0 else "lower"
    return better_or_worse(row)


def better_or_worse(row: Mapping[Any, Any]) -> str:
    """State which side of 0 a difference is on, for a measure that has a better side."""
    return "better" if (row["difference"] > 0) == (row["better"] == "higher") else "worse"


class Answer(NamedTuple):
    """What came out for two models: each verdict with the measures that say so."""

    model: str
    over: str
    verdicts: dict[str, str]

    def __str__(self) -> str:
        clauses = "; ".join(f"{verdict} by {measures}" for verdict, measures in self.verdicts.items())
        return f"{self.model} against {self.over}: {clauses}"


@dataclass(frozen=True, repr=False)
class Answered:
    """A question and what came out; `str` says it in words."""

    question: str
    differences: pd.DataFrame
    """One row per difference, the primary endpoint first; empty where there is a `problem`.

    `difference` is model − over on the same images with its interval. `p` belongs to the same difference;
    `p_corrected` is `p` itself for a primary endpoint, and corrected by Holm over all secondary differences.
    `p_equivalence` is that of two one-sided tests within `margin`. `verdict` is

    * "equivalent" where p_equivalence is below 1 − level, whether or not the difference excludes 0;
    * "better" or "worse" where p_corrected is below 1 − level ("higher" or "lower" for a metric of which
      neither high nor low values are better), and "not significantly different" where it is not;
    * "seeds disagree" where the training seeds of one model seem to be of two kinds;
    * "identical" where both models have the same scores by construction;
    * "undefined" where the difference has no interval.
    """
    problem: str = ""
    """Why there is no answer."""
    missing: Sequence[str] = ()
    """What the question names and nothing was measured of."""

    @property
    def primary(self) -> str:
        """The primary endpoint in words, with interval and p-values; empty where there is none."""
        rows = self.differences[self.differences["endpoint"] == PRIMARY].to_dict("records")
        return _primary_in_words(rows[0]) if rows else ""

    @property
    def answers(self) -> list[Answer]:
        """One answer per pair of models: by which secondary measures which way."""
        listed = []
        secondary = self.differences[self.differences["endpoint"] == SECONDARY]
        for (model, over), rows in secondary.groupby(["model", "over"], sort=False):
            verdicts = sorted(rows["verdict"].unique(), key=_ORDER.index)
            measures = {verdict: _measures(rows[rows["verdict"] == verdict]) for verdict in verdicts}
            listed.append(Answer(str(model), str(over), measures))
        return listed

    def __repr__(self) -> str:
        lines = [f"no answer: {self.problem}"] if self.problem else [*map(str, self.answers)]
        if self.primary:
            lines = [f"primary endpoint: {self.primary}", *(f"secondary: {line}" for line in lines)]
        if self.missing:
            lines.append(f"not measured: {', '.join(self.missing)}")
        return "\n".join([self.question, *(f"  {line}" for line in lines)])


def _primary_in_words(row: Mapping[Any, Any]) -> str:
    share = row["metric"] in SHARES
    about = f"{row['model']} against {row['over']}, {measure_in_words(row)}"
    if math.isnan(row["p"]):
        return f"{about}: {row['verdict']}"
    facts = [f"difference {one_line(write_difference(row, share=share))}", p_equation(row["p"])]
    verdict = row["verdict"]
    if not math.isnan(row["margin"]):
        margin = f"{100 * row['margin']:g} points" if share else f"{row['margin']:g}"
        facts.append(f"equivalence within ±{margin}: {p_equation(row['p_equivalence'])}")
        verdict += f" within ±{margin}" if verdict == "equivalent" else ""
    return f"{about}: {verdict} ({', '.join(facts)})"


def answer(claims: Sequence[Claim], comparison: Comparison | None) -> list[Answered]:
    """Answer every question; secondary differences are corrected over all of them together."""
    tables: list[pd.DataFrame] = []
    problems: dict[int, str] = {}
    for number, claim in enumerate(claims):
        try:
            if comparison is None:
                raise InputError("nothing was scored or attacked")
            tables.append(_differences(claim, comparison))
        except InputError as error:  # a model that could not be trained, a metric that failed
            problems[number] = str(error)
    decided = iter(_decide(tables, 1 - comparison.level) if comparison is not None else [])
    answered = []
    for number, claim in enumerate(claims):
        if number in problems:
            empty = pd.DataFrame(columns=COLUMNS)
            answered.append(Answered(claim.question, empty, problems[number], _absent(claim, comparison)))
        else:
            rows = next(decided)
            answered.append(Answered(claim.question, rows, missing=_missing(claim, rows)))
    return answered


def _names(claim: Claim) -> list[str]:
    """Names of models, metrics and methods in a claim."""
    end = claim.primary
    primary = [] if end is None else [end.model, end.over, end.metric, *([end.method] if end.method else [])]
    return list(dict.fromkeys([*claim.model, *claim.over, *claim.metric, *claim.method, *primary]))


def _absent(claim: Claim, comparison: Comparison | None) -> list[str]:
    """Return the names in a claim that nothing in the study has."""
    measures = [] if comparison is None else comparison.measures
    there = {model for measure in measures for model in measure.values}
    there |= {name for measure in measures for name in (measure.metric, measure.method)}
    return [name for name in _names(claim) if name not in there] if there else []


def _missing(claim: Claim, rows: pd.DataFrame) -> list[str]:
    """Names and ε of a claim that no row is about: misspelt, or failed."""
    there = {*rows["model"], *rows["over"], *rows["metric"], *rows["method"]}
    known = rows["eps"].to_numpy(float)
    radii = [eps for eps in claim.eps if not any(same_epsilon(each, eps) for each in known)]
    missing = [
        *(n for n in _names(claim) if n not in there),
        *(f"ε = {format_epsilon(eps)}" for eps in radii),
    ]
    if claim.primary is not None and not (rows["endpoint"] == PRIMARY).any():
        missing.append("the primary endpoint")
    return missing


def describe_tests(questions: Sequence[Answered], level: float) -> str:
    """Say how the verdicts of these answers were reached, and over how many tests they were corrected.

    The difference of two models is counted once, whichever way round and however often it is asked for.
    """
    tested = [
        row
        for question in questions
        for row in question.differences.to_dict("records")
        if not math.isnan(row["p"])
    ]
    if not tested:
        return ""
    alpha = f"{100 * (1 - level):.2g} %"
    primary = [row for row in tested if row["endpoint"] == PRIMARY]
    secondary = {_place(row) for row in tested} - {_place(row) for row in primary}
    sentences = []
    if primary:
        sentences.append(
            f"Each primary endpoint is tested on its own at {alpha}, which is valid if it was declared "
            "before any result was seen."
        )
    if secondary:
        which = "all others are secondary" if primary else "no primary endpoint was declared"
        sentences.append(
            f"Differences tested together: {len(secondary)} ({which}). Better and worse: p, corrected by "
            f"Holm over these, is below {alpha}."
        )
    sentences.append(
        f"Intervals are at {100 * level:g} % and not corrected. Not significantly different does not mean "
        "equal, which the test of equivalence alone can show."
    )
    return " ".join(sentences)


_ORDER = [
    *("better", "higher", "worse", "lower", "equivalent", NOT_DIFFERENT),
    *("seeds disagree", "identical", "undefined"),
]


def _measures(rows: pd.DataFrame) -> str:
    """Metrics, each with its methods, or with its attacks and their ε.

    >>> _measures(pd.DataFrame({"metric": "robust_accuracy", "method": "pgd", "eps": [0.1, 0.2]}))
    'robust accuracy (pgd, ε = 0.1, 0.2)'
    """
    names = []
    for metric, group in rows.groupby("metric", sort=False):
        within = []
        for method, members in group.groupby("method", sort=False):
            radii = [format_epsilon(eps) for eps in members["eps"] if eps > 0]
            name = words(str(method))
            within.append(f"{name}, ε = {', '.join(radii)}" if radii else name)
        text = words(str(metric))
        names.append(f"{text} ({'; '.join(within)})" if any(within) else text)
    return ", ".join(names)


def measure_in_words(row: Mapping[Hashable, Any]) -> str:
    """Name the measure of one row.

    >>> measure_in_words({"metric": "robust_accuracy", "method": "pgd", "eps": 0.2})
    'robust accuracy (pgd, ε = 0.2)'
    """
    return _measures(pd.DataFrame([row]))
