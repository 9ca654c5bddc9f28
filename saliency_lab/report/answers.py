"""The study's questions, each with its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saliency_lab._common.errors import InputError
from saliency_lab.report.numbers import Estimate, count, estimate
from saliency_lab.report.tables import SHARES, Cell, Column, Table
from saliency_lab.study import Comparison
from saliency_lab.study.claims import Answer, Claim, in_words, judge, measure_in_words


@dataclass(frozen=True)
class Answered:
    """A question, what came out for each pair of models, and the differences behind it."""

    question: str
    answers: Sequence[Answer] = ()
    table: Table | None = None
    problem: str = ""
    """Why there is no answer."""


def answered(claims: Sequence[Claim], comparison: Comparison) -> list[Answered]:
    """Answer every question by the intervals of a comparison."""
    found = []
    for number, claim in enumerate(claims, start=1):
        try:
            answers = judge(claim, comparison)
        except InputError as error:  # a model that could not be trained, a metric that failed
            found.append(Answered(claim.question, problem=str(error)))
            continue
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
        columns = [
            Column("models", filtered=True),
            Column("by", filtered=True),
            Column("verdict", filtered=True),
            *(Column(which, "number") for which in ("first", "second", "difference")),
        ]
        caption = f"{claim.question} {count(len(rows), 'difference')} on the same images."
        table = Table(f"question-{number}", caption, columns, rows)
        found.append(Answered(claim.question, in_words(answers), table))
    return found
