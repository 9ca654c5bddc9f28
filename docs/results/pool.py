"""Pool the answers of all pages to four questions, and draw a forest plot of each.

python docs/results/pool.py

A study whose results are packed next to its page is read from them; of the older pages only the printed
differences and intervals are left.
"""

# ruff: noqa: E501 - the prose of a page

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from reassess import FOLDER, number, read

from saliency_lab.comparison import PooledDifference, pool_differences
from saliency_lab.comparison.format import estimate, one_line, p_equation, p_value
from saliency_lab.comparison.statistics import Interval
from saliency_lab.comparison.writers import pipe_table
from saliency_lab.experiment.packing import unpack_results
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.plotting.style import save

STUDIES = FOLDER.parents[1] / "recipes" / "studies"


@dataclass(frozen=True)
class Question:
    """A difference in accuracy under PGD, and the ε at which each study answers it."""

    model: str
    over: str
    text: str
    eps: dict[str, float]
    left_out: str = ""
    """Which pages of the question are left out, and why."""


ADVERSARIAL = {
    "mnist": 0.2,
    "mnist-lenet5": 0.2,
    "mnist-sgt_cnn": 0.2,
    "mnist-mosaic": 0.1,
    "cifar10": 0.02,
    "decisive": 0.2,
    "decisive-sgt_cnn": 0.2,
    "decisive-mosaic": 0.1,
    "guesmi": 0.2,
    "cifar10-long": 0.02,
}
GUIDED = {
    "mnist-lenet5": 0.1,
    "mnist-sgt_cnn": 0.1,
    "cifar10": 0.01,
    "decisive-sgt": 0.1,
    "ismail": 0.1,
    "guesmi": 0.1,
}
TWICE = " Left out: `mnist`, whose networks of these recipes are seeds of those of `decisive-sgt`."
QUESTIONS = (
    Question("asgt", "at", "Does saliency guidance add robustness to adversarial training?", ADVERSARIAL),
    Question(
        "asgt", "asgt_random", "Does ASGT need the saliency, or do random masks do as well?", ADVERSARIAL
    ),
    Question(
        "sgt", "standard", "Does saliency-guided training add robustness to standard training?", GUIDED, TWICE
    ),
    Question(
        "sgt", "sgt_random", "Does SGT need the saliency, or do random masks do as well?", GUIDED, TWICE
    ),
)


def packed_difference(name: str, question: Question, eps: float) -> tuple[Interval, float] | None:
    """The difference and its p-value in the packed results of a study.

    None if it lacks one of the models, or has one seed of it: its interval is over images alone, and its weight
    would be too large.
    """
    with TemporaryDirectory() as scratch:
        study, _ = unpack_results(
            read_declaration(STUDIES / f"{name}.toml"), [FOLDER / f"{name}.tar.xz"], Path(scratch)
        )
        comparison = study.compare()
        models = [member.model for member in study.members]
        if min(models.count(question.model), models.count(question.over)) < 2:
            return None
        measure = comparison.measure("robust_accuracy", "pgd", eps)
        difference = measure.difference(question.model, question.over, comparison.level)
        return difference, measure.p_value(question.model, question.over)


def printed_difference(name: str, question: Question, eps: float) -> tuple[Interval, float] | None:
    """The same as a page prints it; None if it does not."""
    table = read(FOLDER / f"{name}.md")
    measure = f"robust accuracy (pgd, ε = {eps:g})"
    found = table[
        (table["model"] == question.model) & (table["over"] == question.over) & (table["measure"] == measure)
    ]
    if found.empty:
        return None
    row = found.iloc[0]
    return Interval(*(number(row[key]) / 100 for key in ("difference", "low", "high"))), row["p"]


def pool(question: Question) -> tuple[PooledDifference, list[str]]:
    """Combine the answers of the studies that there are; also return the names of those that are missing."""
    found, missing = {}, []
    for name, eps in question.eps.items():
        if (FOLDER / f"{name}.tar.xz").exists():
            answer = packed_difference(name, question, eps)
        elif (FOLDER / f"{name}.md").exists():
            answer = printed_difference(name, question, eps)
        else:
            answer = None
        if answer is None:
            missing.append(name)
        else:
            found[name] = answer
    pooled = pool_differences({name: interval for name, (interval, _) in found.items()}, share=True)
    pooled.table.loc[list(found), "p"] = [p for _, p in found.values()]
    return pooled, missing


def section(question: Question) -> list[str]:
    """The section of a question; draws its forest plot."""
    pooled, missing = pool(question)
    figure = f"pooled-{question.model}-{question.over}.svg"
    title = f"{question.model} − {question.over}, accuracy under PGD"
    save(pooled.plot(title=title), FOLDER / figure)
    print(f"{title}\n{pooled}\n")
    rows = []
    for name, row in pooled.table.iterrows():
        study = str(name)
        interval = Interval(row["difference"], row["low"], row["high"])
        rows.append(
            [
                f"[{study}]" if study in question.eps else study,
                f"{question.eps[study]:g}" if study in question.eps else "",
                one_line(estimate(interval, share=True, signed=True)),
                "" if pd.isna(row["p"]) else p_value(row["p"]),
            ]
        )
    left = f" Not run so far, or with fewer than two seeds: {', '.join(missing)}." if missing else ""
    return [
        f"## {question.text}",
        "",
        f"`{question.model}` − `{question.over}`, accuracy under PGD:",
        "",
        *pipe_table(["study", "ε", "difference", "p"], rows),
        "",
        f"Heterogeneity: I² = {100 * pooled.heterogeneity:.0f} %, {p_equation(pooled.p_heterogeneity)}."
        f"{question.left_out}{left}",
        "",
        f"![Forest plot of {question.model} − {question.over}]({figure})",
        "",
    ]


def main() -> None:
    """Write the page."""
    lines = [
        "# The answers of all studies together",
        "",
        "Each study asks the same question of other networks, data or settings. Here the differences are combined "
        "([method and assumptions](../statistics.md#pooling-studies)). Intervals are at 95 %; that of the random effects "
        "is Hartung and Knapp's, with a standard error that is never below the ordinary one. p-values are those of "
        "single differences, without a correction for many.",
        "",
        "Written by:",
        "",
        "    python docs/results/pool.py",
        "",
        "Two limits. Studies of one data set attack overlapping test images, so they are not fully independent. And the "
        "studies named `mnist…` and `cifar10` were seen before these questions were chosen; those named `decisive…`, "
        "`guesmi`, `ismail` and `cifar10-long` were declared before their networks were trained.",
        "",
    ]
    for question in QUESTIONS:
        lines += section(question)
    studies = sorted({name for question in QUESTIONS for name in question.eps})
    lines += [f"[{name}]: {name}.md" for name in studies if (FOLDER / f"{name}.md").exists()]
    (FOLDER / "pooled.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
