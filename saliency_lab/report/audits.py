"""What the study's audits said, one record an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from saliency_lab.report.numbers import radius
from saliency_lab.report.tables import Cell, Column, Table

MARKS = {"pass": "✓", "warn": "!", "fail": "✗", "skipped": "–"}
_KEYS = ["model", "seed", "attack", "eps", "n", "robust_accuracy", "worst_case", "verdict", "reason"]


@dataclass(frozen=True)
class Audited:
    """One audit of one network: its verdict, and its checks as a table."""

    model: str
    seed: int
    attack: str
    eps: float
    n: int
    robust_accuracy: float
    worst_case: float
    verdict: str
    reason: str
    checks: Table

    @property
    def sentence(self) -> str:
        """The verdict, and the worst case beside what the attack reports."""
        return (
            f"{self.attack} at {radius(self.eps)} reports {100 * self.robust_accuracy:.1f} % robust; "
            f"the worst case over all attacks is {100 * self.worst_case:.1f} %, on {self.n:,} images."
        )


def read_audits(audits: pd.DataFrame) -> list[Audited]:
    """Read `Study.audits`: a row a check, beside its audit's verdict."""
    found = []
    key: Any
    for position, (key, rows) in enumerate(audits.groupby(_KEYS, sort=False, dropna=False)):
        facts = dict(zip(_KEYS, key, strict=True))
        checks = [
            [
                Cell(row["check"]),
                Cell(
                    f"{MARKS.get(row['check_verdict'], '')} {row['check_verdict']}",
                    badge=row["check_verdict"],
                ),
                Cell(row["evidence"]),
            ]
            for row in rows.to_dict("records")
        ]
        caption = (
            f"Checks of {facts['attack']} at {radius(facts['eps'])} on {facts['model']}, seed {facts['seed']}"
        )
        columns = [Column("check"), Column("verdict"), Column("evidence")]
        found.append(Audited(**facts, checks=Table(f"audit-{position}", caption, columns, checks)))
    return found
