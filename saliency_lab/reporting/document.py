"""The content of a report: sentences, tables and figures, decided once for every writer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd

from saliency_lab._common.text import number_of
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.claims import Answered, answer, describe_tests, measure_in_words
from saliency_lab.comparison.content import Column, Entry, Table
from saliency_lab.comparison.format import (
    SPACE,
    count_each,
    listing,
    p_value,
    write_compared,
    write_difference,
)
from saliency_lab.comparison.measures import SHARES
from saliency_lab.reporting import cards, tables
from saliency_lab.reporting.audits import Audited, AuditSummary, overview, read_audits, summarise_audits
from saliency_lab.reporting.cards import Card, CardCurve
from saliency_lab.reporting.figures import FigureSpec, list_figures
from saliency_lab.reporting.provenance import Missing, Provenance, provenance
from saliency_lab.study import Study

NAMED = 4
"""Models that the title names."""


@dataclass(frozen=True)
class Question:
    """A question of the study, its answer, and the differences behind it."""

    number: int
    asked: Answered
    differences: Table


@dataclass(frozen=True)
class Document:
    """The content of a report on a study.

    Without a comparison (`comparison` is None), nothing was scored or attacked, and its parts are empty.
    """

    title: str
    about: str
    lede: str
    models: list[str]
    """All models; the position of a model decides its colour and marker."""
    questions: list[Question]
    audits: list[Audited]
    overview: Table
    audit_summary: AuditSummary
    provenance: Provenance
    comparison: Comparison | None = None
    level: str = ""
    alpha: str = ""
    tests: str = ""
    cards: list[Card] = field(default_factory=list)
    curve: CardCurve | None = None
    cautions: list[str] = field(default_factory=list)
    at_chance: str = ""
    """Names the networks that answer no better than naming one class for all images would."""
    glance: Table | None = None
    accuracies: Table | None = None
    scores: Table | None = None
    by_model: list[Table] = field(default_factory=list)
    figures: list[FigureSpec] = field(default_factory=list)


def read_document(
    study: Study, comparison: Comparison | None, *, title: str = "", unread: Missing | None = None
) -> Document:
    """Decide what a report on a study says.

    Parameters
    ----------
    study : Study
    comparison : Comparison or None
        None where nothing was scored or attacked.
    title : str
        The title where the study's purpose has none; by default its models.
    unread : list of (model, method, reason), optional
        Maps that could not be read.
    """
    compared = comparison.models if comparison is not None else []
    models = [*compared, *(model for model in study.models if model not in compared)]
    audits = read_audits(study.audits, models)
    questions = answer(study.purpose.claims, comparison)
    document = Document(
        title=study.purpose.title or title or _title(study.models),
        about=study.purpose.about,
        lede=_lede(study),
        models=models,
        questions=[
            Question(number, asked, _differences(asked, number))
            for number, asked in enumerate(questions, start=1)
        ],
        audits=audits,
        overview=overview(audits),
        audit_summary=summarise_audits(study, audits),
        provenance=provenance(study, models, unread or []),
    )
    if comparison is None:
        return document
    facts = comparison.table()
    facts["better"] = facts["metric"].map({m.metric: m.better for m in comparison.measures})
    glance = tables.glance(comparison.summary)
    accuracies, scores = tables.accuracies(comparison, facts), tables.scores(comparison, facts)
    return replace(
        document,
        comparison=comparison,
        level=f"{100 * comparison.level:g}{SPACE}%",
        alpha=f"{1 - comparison.level:.2g}",
        tests=describe_tests(questions, comparison.level),
        cards=cards.make_cards(comparison, facts, audits),
        curve=cards.make_curve(comparison, facts),
        cautions=_cautions(glance, facts, audits),
        at_chance=cards.name_networks_at_chance(study.robustness, study.y.tolist()),
        glance=glance,
        accuracies=accuracies if accuracies.rows else None,
        scores=scores if scores.rows else None,
        by_model=tables.by_model(comparison, facts),
        figures=list_figures(comparison),
    )


def _title(models: list[str]) -> str:
    several = len(models) > NAMED + 1
    return listing([*models[:NAMED], f"{len(models) - NAMED} more"]) if several else listing(models)


def _lede(study: Study) -> str:
    labels: dict[str, dict[str, None]] = {}
    for place in study.results:
        labels.setdefault(place.kind, {})[place.metric or place.label] = None
    seeds = [sum(each.model == name for each in study.members) for name in study.models]
    nouns = {"maps": "attribution method", "scores": "metric", "attack": "attack"}
    parts = [
        number_of(len(study.models), "model")
        + (f" of {count_each(seeds, 'training seed')}" if max(seeds) > 1 else ""),
        *(number_of(len(labels[kind]), noun) for kind, noun in nouns.items() if kind in labels),
    ]
    images = f"{number_of(len(study.x), 'image')} of {number_of(len(set(study.labels)), 'class')}"
    return f"{listing(parts)}, on the same {images}."


def _cautions(glance: Table, facts: pd.DataFrame, audits: list[Audited]) -> list[str]:
    cautions = [" ".join(glance.notes), cards.count_undefined(facts)]
    if not audits and (facts["eps"] > 0).any():
        cautions.append(
            "No audit was run, so the accuracies under attack are what the attack reports, "
            "and may be too high."
        )
    return [each for each in cautions if each]


DIFFERENCES = [
    Column("models", filtered=True),
    Column("measure", filtered=True),
    Column("verdict", filtered=True),
    Column("mean", "number", help="of the first of the two models"),
    Column("mean of the other", "number"),
    Column("difference", "number", help="mean and interval, on the same images"),
    Column("p", "number", help="of this difference"),
    Column("p corrected", "number", help="by Holm over all secondary differences of the study"),
]


def _differences(asked: Answered, number: int) -> Table:
    """Return the differences behind the answer to a question."""
    rows = []
    for row in asked.differences.to_dict("records"):
        share = row["metric"] in SHARES
        text, interval = write_difference(row, share=share)
        rows.append(
            [
                Entry(f"{row['model']} − {row['over']}"),
                Entry(measure_in_words(row)),
                Entry(row["verdict"]),
                *(Entry(write_compared(row, key, share=share), row[key]) for key in ("mean", "mean_over")),
                Entry(text, row["difference"], interval),
                *(Entry(p_value(row[key]), row[key]) for key in ("p", "p_corrected")),
            ]
        )
    caption = f"{asked.question} {number_of(len(rows), 'difference')} on the same images."
    return Table(f"question-{number}", caption, DIFFERENCES, rows)
