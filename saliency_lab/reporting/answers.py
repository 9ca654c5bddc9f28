"""The differences behind the answer to a question, as a table."""

from __future__ import annotations

from saliency_lab.comparison.claims import Answered, measure_in_words
from saliency_lab.comparison.format import count, p_value, write_difference, write_value
from saliency_lab.comparison.measures import SHARES
from saliency_lab.reporting.tables import Cell, Column, Table

HEAD = [
    Column("models", filtered=True),
    Column("measure", filtered=True),
    Column("verdict", filtered=True),
    Column("mean", "number", help="of the first of the two models"),
    Column("mean of the other", "number"),
    Column("difference", "number", help="mean and interval, on the same images"),
    Column("p", "number", help="of the difference"),
    Column("p corrected", "number", help="by Holm over all secondary differences of the study"),
]


def differences(asked: Answered, number: int) -> Table:
    """Return the table of the question with this number on the page."""
    rows = []
    for row in asked.differences.to_dict("records"):
        share = row["metric"] in SHARES
        text, interval = write_difference(row, share=share)
        rows.append(
            [
                Cell(f"{row['model']} − {row['over']}"),
                Cell(measure_in_words(row)),
                Cell(row["verdict"]),
                *(Cell(write_value(row[key], share=share), row[key]) for key in ("mean", "mean_over")),
                Cell(text, row["difference"], interval),
                *(Cell(p_value(row[key]), row[key]) for key in ("p", "p_corrected")),
            ]
        )
    caption = f"{asked.question} {count(len(rows), 'difference')} on the same images."
    return Table(f"question-{number}", caption, HEAD, rows, head=1)
