"""The Markdown writer: the page of a declared study, with its figures in files next to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.files import atomic_path, distinct_stems, writable_folder
from saliency_lab._common.provenance import versions
from saliency_lab._common.text import markdown_text, number_of
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.content import Table
from saliency_lab.comparison.writers import markdown_lines
from saliency_lab.experiment.retraining import Retrained
from saliency_lab.experiment.trainings import Run
from saliency_lab.plotting.style import save
from saliency_lab.reporting.document import Document, read_document
from saliency_lab.reporting.figures import FigureSpec
from saliency_lab.reporting.networks import (
    Section,
    TrainedNetworks,
    given_networks,
    retrained_networks,
    settings_in_words,
    trained_networks,
)
from saliency_lab.reporting.provenance import method_settings

if TYPE_CHECKING:
    from saliency_lab.experiment.schema import Declaration
    from saliency_lab.study.study import Study


def write_page(
    declared: Declaration,
    runs: Sequence[Run],
    study: Study,
    comparison: Comparison,
    folder: str | Path,
    *,
    name: str,
    command: str,
    retrained: Retrained | None = None,
) -> Path:
    """Write `NAME.md` and its figures (`NAME-*.svg`, `NAME-*.png`) into `folder`; return the page.

    Every number on it is of this study; `command` is the command that the page gives for repeating it, and
    `retrained` are the results of its tables [roar] and [kar]. Figures that only the earlier page of this
    name shows are deleted.
    """
    folder = writable_folder(folder)
    document = read_document(study, comparison, title=name)
    lines = [f"# {markdown_text(document.title)}", "", *_paragraphs(document.about)]
    lines += [*_repeat(declared, study, command), *_questions(document)]
    lines += [*_accuracy(document), *_audits(document), *_scores(document)]
    figures = _figures(document.figures, folder, name)
    lines += ["## Figures", "", *figures] if figures else []
    lines += _retrained(retrained_networks(retrained or {}, declared.level), folder, name)
    lines += _trained(trained_networks(runs, document.models), folder, name)
    lines += [*_section(given_networks(declared, study)), *_missing(document)]
    lines += _provenance(document, declared, study)
    page = folder / f"{name}.md"
    earlier = _shown(page, name)
    with atomic_path(page) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    for file in earlier - _shown(page, name):
        (folder / file).unlink(missing_ok=True)
    return page


def _shown(page: Path, name: str) -> set[str]:
    """Return the names of the files of the figures that a page shows; none if there is no such page."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return set()
    return set(re.findall(rf"(?m)^!\[.*\]\(({re.escape(name)}-[\w.-]+\.(?:svg|png))\)$", text))


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()] + [""] if text.strip() else []


def _repeat(declared: Declaration, study: Study, command: str) -> list[str]:
    networks, models = len(study.members), number_of(len(study.models), "model")
    split = {"test": "test", "val": "validation"}[declared.data.split]
    if networks > len(study.models):
        models += f", {networks} networks"
    lacking = _lacking(declared, study)
    over = "over training seeds and images, or over images alone where a model has one seed"
    return [
        f"{models}, on {len(study.x)} {split} images of `{declared.data.name}`, stratified by class. "
        f"Intervals are at {100 * declared.level:g} %, {over}.",
        "",
        *([lacking, ""] if lacking else []),
        "Written by:",
        "",
        f"    {command}",
        "",
    ]


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _lacking(declared: Declaration, study: Study) -> str:
    """Say which networks the study declares and has no results of; nothing if there are none."""
    have = {(member.model, member.seed) for member in study.members}
    trained = declared.trained_seeds
    lacking = {
        model: [seed for seed in seeds if (model, seed) not in have] for model, seeds in trained.items()
    }
    models = [
        model if seeds == trained[model] else f"{model} ({_seeds(seeds)})"
        for model, seeds in lacking.items()
        if seeds
    ]
    models += [model for model in declared.models if model not in study.models]
    if not models:
        return ""
    named = markdown_text(", ".join(models))
    return (
        f"**This page is incomplete.** There are no results here of {named}, which the study also declares. "
        "Corrections for several comparisons cover those on this page."
    )


def _questions(document: Document) -> list[str]:
    if not document.questions:
        return []
    lines = ["## Questions and answers", ""]
    for question in document.questions:
        asked = question.asked
        lines += [f"### {question.number}. {markdown_text(asked.question)}", ""]
        if asked.problem:
            lacking = f" Not measured: {markdown_text(', '.join(asked.missing))}." if asked.missing else ""
            lines += [f"No answer: {markdown_text(asked.problem)}.{lacking}", ""]
            continue
        if asked.primary:
            lines.append(f"- Primary endpoint: {markdown_text(asked.primary)}.")
        for each in asked.answers:
            verdicts = "; ".join(
                f"**{verdict}** by {measures}" for verdict, measures in each.verdicts.items()
            )
            lines.append(f"- {markdown_text(f'{each.model} against {each.over}: {verdicts}')}.")
        if asked.missing:
            lines.append(f"- Not measured: {markdown_text(', '.join(asked.missing))}.")
        folded = "<summary>Each difference, with its interval</summary>"
        lines += ["", "<details>", folded, "", *markdown_lines(question.differences), "", "</details>", ""]
    lines += [document.tests, ""]
    return lines


def _accuracy(document: Document) -> list[str]:
    if document.accuracies is None:
        return []
    table = document.by_model[0]
    lines = ["## Accuracy", "", *markdown_lines(table), "", *_explained(table, legend=True)]
    return [*lines, markdown_text(document.at_chance), ""] if document.at_chance else lines


def _audits(document: Document) -> list[str]:
    if not document.audits:
        return []
    summary = document.audit_summary
    lines = ["### May these be believed? The audit", "", *markdown_lines(summary.table), ""]
    lines += [markdown_text(" ".join(summary.notes)), ""]
    lines += [f"- {markdown_text(doubt)}" for doubt in summary.doubts]
    return [*lines, ""] if summary.doubts else lines


def _scores(document: Document) -> list[str]:
    scored = document.by_model[1:] if document.accuracies is not None else document.by_model
    lines: list[str] = []
    for table in scored:
        legend = table is document.by_model[0]  # the first table of a page explains the marks of all
        lines += [f"### {markdown_text(table.caption)}", "", *markdown_lines(table), ""]
        lines += _explained(table, legend=legend)
    return ["## Scores of the maps", "", *lines] if lines else []


def _explained(table: Table, *, legend: bool) -> list[str]:
    """Return a paragraph on the marks of a table and its unusual entries, if there is anything to say."""
    marks = [table.legend.explain("Bold", "italic")] if legend and table.legend is not None else []
    text = markdown_text(" ".join([*marks, *table.notes]))
    return [text, ""] if text else []


def _figures(specs: Sequence[FigureSpec], folder: Path, name: str) -> list[str]:
    """Write figures next to the page, and return their lines; one that has no values is left out."""
    lines: list[str] = []
    stems = distinct_stems({spec.stem: re.sub(r"[^0-9A-Za-z_.-]+", "-", spec.stem) for spec in specs})
    for spec in specs:
        try:
            figure = spec.draw()
        except SaliencyLabError:  # what failed is listed as such
            continue
        file = f"{name}-{stems[spec.stem]}.{spec.kind}"
        save(figure, folder / file)
        caption = markdown_text(spec.caption).replace("[", "(").replace("]", ")")
        ended = caption if caption.endswith("?") else f"{caption.rstrip('.')}."
        lines += [f"![{caption}]({file})", "", f"*{ended}*", ""]
    return lines


def _retrained(section: Section | None, folder: Path, name: str) -> list[str]:
    if section is None:
        return []
    lines = ["## Retraining", "", *section.notes, "", *markdown_lines(section.table), ""]
    return [*lines, *_figures(section.figures, folder, name)]


def _trained(networks: TrainedNetworks | None, folder: Path, name: str) -> list[str]:
    if networks is None:
        return []
    lines = _section(networks.table)
    for note in networks.notes:
        lines += [note, ""]
    lines += ["<details>", "<summary>Every setting of the recipes</summary>", ""]
    lines += [f"All of them: {networks.shared}.", ""]
    if networks.settings.rows:
        lines += [*markdown_lines(networks.settings), ""]
    return [*lines, "</details>", "", *_figures(networks.figures, folder, name)]


def _section(table: Table) -> list[str]:
    """Write a table under its caption as a heading; nothing for one without rows."""
    return [f"## {table.caption}", "", *markdown_lines(table), ""] if table.rows else []


def _missing(document: Document) -> list[str]:
    problems = document.provenance.problems
    return ["## What is missing", "", *markdown_lines(problems), ""] if problems.rows else []


def _provenance(document: Document, declared: Declaration, study: Study) -> list[str]:
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    settings = document.provenance.settings
    packed = not any(place.kind == "maps" for place in study.results)
    if packed:  # by the declared methods, which was checked
        methods = method_settings(declared.method_requests())
        settings = replace(settings, rows=[*methods, *settings.rows])
    lines = ["## Settings", "", *markdown_lines(settings), ""]
    if declared.overrides:
        lines.append(f"- overrides of the recipes: {settings_in_words(declared.overrides)}")
    lines += [
        f"- seed of the images and of every draw: {declared.seed}",
        f"- images and labels: `{study.sample.fingerprint[:12]}`, the beginning of their hash",
        f"- versions: {used}",
        f"- processor and threads: {document.provenance.machines}",
        "- another processor or number of threads can change the last digits of a result, and networks that "
        "are trained there have other weights; such differences are of the size of those between seeds",
        "",
    ]
    return lines
