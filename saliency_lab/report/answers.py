"""The study's questions, each with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from saliency_lab._common.errors import InputError
from saliency_lab.report.numbers import Estimate, count, estimate
from saliency_lab.report.tables import SHARES, Cell, Column, Table
from saliency_lab.study import Comparison
from saliency_lab.study.claims import COLUMNS, Answer, Claim, in_words, judge, measure_in_words


@dataclass(frozen=True)
class Answered:
    """A question, what came out for each pair of models, and the differences behind it."""

    question: str
    answers: pd.DataFrame
    """As `judge` returns them; empty where there is a `problem`."""
    words: Sequence[Answer] = ()
    table: Table | None = None
    problem: str = ""
    """Why there is no answer."""


def answered(claims: Sequence[Claim], comparison: Comparison | None) -> list[Answered]:
    """Answer every question by the intervals of a comparison."""
    found = []
    for number, claim in enumerate(claims, start=1):
        try:
            if comparison is None:
                raise InputError("nothing was scored or attacked")
            answers = judge(claim, comparison)
        except InputError as error:  # a model that could not be trained, a metric that failed
            found.append(Answered(claim.question, pd.DataFrame(columns=COLUMNS), problem=str(error)))
            continue
        caption = f"{claim.question} {count(len(answers), 'difference')} on the same images."
        table = Table(f"question-{number}", caption, HEAD, _rows(answers), head=1)
        found.append(Answered(claim.question, answers, in_words(answers), table))
    return found


HEAD = [
    Column("models", filtered=True),
    Column("measure", filtered=True),
    Column("verdict", filtered=True),
    Column("mean", "number", help="of the first of the two models"),
    Column("mean of the other", "number"),
    Column("difference", "number", help="mean and interval, on the same images"),
]


def _rows(answers: pd.DataFrame) -> list[list[Cell]]:
    rows = []
    for row in answers.to_dict("records"):
        share = row["metric"] in SHARES
        ends = Estimate(row["difference"], row["difference_low"], row["difference_high"])
        text, interval = estimate(ends, share=share, signed=True)
        means = [Estimate(row[key], row[key], row[key]) for key in ("mean", "mean_over")]
        rows.append(
            [
                Cell(f"{row['model']} − {row['over']}"),
                Cell(measure_in_words(row)),
                Cell(row["verdict"]),
                *(Cell(estimate(mean, share=share)[0], mean.mean) for mean in means),
                Cell(text, ends.mean, interval),
            ]
        )
    return rows
