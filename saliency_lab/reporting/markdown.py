"""The Markdown writer: the page of a declared study, with its figures in files next to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.files import atomic_path, distinct_stems, writable_folder
from saliency_lab._common.provenance import versions
from saliency_lab._common.text import markdown_text
from saliency_lab.attacks.checklist import BUDGETS
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.format import one_line, p_value, radius, write_value
from saliency_lab.comparison.tables import leading, mark_in_markdown, pipe_table
from saliency_lab.experiment.retraining import Retrained, tabulate
from saliency_lab.experiment.run import Run
from saliency_lab.models import card_of
from saliency_lab.plotting.bands import bands
from saliency_lab.plotting.style import save
from saliency_lab.reporting.audits import Audited
from saliency_lab.reporting.document import Document, read_document
from saliency_lab.reporting.provenance import machines
from saliency_lab.reporting.tables import Table
from saliency_lab.training.recipe import dotted
from saliency_lab.training.run import LOG

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
    `retrained` are the results of its tables [roar] and [kar].
    """
    folder = writable_folder(folder)
    document = read_document(study, comparison, title=name)
    lines = [f"# {markdown_text(document.title)}", "", *_paragraphs(document.about)]
    lines += [*_repeat(declared, study, command), *_questions(document)]
    lines += [*_accuracy(document), *_audits(document, study), *_scores(document)]
    lines += _figures(document, folder, name)
    lines += _retrained(retrained or {}, declared.level, folder, name)
    lines += [*_runs(runs), *_learning(runs, document.models, folder, name)]
    lines += [*_given(declared, study), *_missing(document)]
    lines += _provenance(document, declared, study)
    page = folder / f"{name}.md"
    with atomic_path(page) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()] + [""] if text.strip() else []


def _table(table: Table, marked: bool = False) -> list[str]:
    """Write a table; the best of a marked one are bold, and those that do not differ from them italic."""
    lines = table.lines()
    if marked:
        lines = [
            [mark_in_markdown(text, entry.badge) for text, entry in zip(line, row, strict=True)]
            for line, row in zip(lines, table.rows, strict=True)
        ]
    return pipe_table([column.title for column in table.columns], lines)


def _repeat(declared: Declaration, study: Study, command: str) -> list[str]:
    networks, models = len(study.members), f"{len(study.models)} models"
    split = {"test": "test", "val": "validation"}[declared.data.split]
    if networks > len(study.models):
        models += f", {networks} networks"
    over = "over training seeds and images, or over images alone where a model has one seed"
    return [
        f"{models}, on {len(study.x)} {split} images of `{declared.data.name}`, stratified by class. "
        f"Intervals are at {100 * declared.level:g} %, {over}.",
        "",
        "Written by:",
        "",
        f"    {command}",
        "",
    ]


def _questions(document: Document) -> list[str]:
    if not document.questions:
        return []
    lines = ["## Questions and answers", ""]
    for question in document.questions:
        asked = question.asked
        lines += [f"### {question.number}. {markdown_text(asked.question)}", ""]
        if asked.problem:
            lines += [f"No answer: {markdown_text(asked.problem)}.", ""]
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
        lines += ["", "<details>", folded, "", *_table(question.differences), "", "</details>", ""]
    lines += [document.tests, ""]
    return lines


def _accuracy(document: Document) -> list[str]:
    if document.comparison is None or document.accuracies is None:
        return []
    note = leading(document.comparison.summary, "column", "Bold", "italic")
    return ["## Accuracy", "", *_table(document.by_model[0], marked=True), "", f"{note}.", ""]


_NEXT_TO_NOTHING = 0.05


def _audits(document: Document, study: Study) -> list[str]:
    if not document.audits:
        return []
    groups: dict[tuple[str, float, int, str], list[Audited]] = {}
    for audit in document.audits:
        groups.setdefault((audit.attack, audit.eps, audit.n, audit.model), []).append(audit)
    rows = []
    for (attack, eps, n, model), own in groups.items():
        counts = pd.Series([audit.verdict for audit in own]).value_counts()
        verdicts = ", ".join(f"{number} × {verdict}" for verdict, number in counts.items())
        means = [
            _percent(sum(getattr(audit, key) for audit in own) / len(own))
            for key in ("robust_accuracy", "worst_case")
        ]
        rows.append([model, one_line((f"{attack}, {radius(eps)}", "")), str(n), *means, verdicts])
    head = ["model", "attack", "images", "attack reports", "worst case of all attacks", "verdict by seed"]
    lines = ["### May these be believed? The audit", "", *pipe_table(head, rows), ""]
    budgets = _budgets(study)
    strength = "; ".join(
        f"{BUDGETS[each].queries:,} queries, {BUDGETS[each].steps} steps and {BUDGETS[each].targets} targets"
        for each in BUDGETS
        if each in budgets
    )
    notes = [
        "All attacks: FGSM with and without a random start, the attack in question with more steps and other "
        "starts, noise, PGD on rescaled logits and on the margin, Square, APGD-CE, targeted APGD and FAB "
        f"(the last four with {strength})."
    ]
    checks = [(audit, check) for audit in document.audits for check in audit.results]
    skipped = dict.fromkeys((c.check, c.evidence) for _, c in checks if c.verdict == "skipped")
    notes += [f"Not checked: {check} ({evidence})." for check, evidence in skipped]
    if any(audit.robust_accuracy <= _NEXT_TO_NOTHING for audit in document.audits):
        notes.append("Where the attack leaves next to nothing, there is next to nothing to doubt.")
    lines += [markdown_text(" ".join(notes)), ""]
    doubts = [
        f"- {audit.model}, seed {audit.seed}, {one_line((radius(audit.eps), ''))}: {check.check} "
        f"({check.verdict}): {check.evidence}"
        for audit, check in checks
        if audit.verdict != "believe" and check.verdict in {"warn", "fail"}
    ]
    return [*lines, *map(markdown_text, doubts), *([""] if doubts else [])]


def _budgets(study: Study) -> set[str]:
    audits = (
        study.store.describe("audit", key) for place, key in study.results.items() if place.kind == "audit"
    )
    return {described[0].depends["budget"] for described in audits if described is not None}


def _percent(value: float | None) -> str:
    return "" if value is None else one_line((write_value(value, share=True), ""))


def _scores(document: Document) -> list[str]:
    scored = document.by_model[1:] if document.accuracies is not None else document.by_model
    lines: list[str] = []
    for table in scored:
        lines += [f"### {markdown_text(table.caption)}", "", *_table(table, marked=True), ""]
    return ["## Scores of the maps", "", *lines] if lines else []


def _figures(document: Document, folder: Path, name: str) -> list[str]:
    """Write the figures next to the page; one that has no values is left out."""
    lines: list[str] = []
    specs = {spec.stem: spec for spec in document.figures}
    stems = distinct_stems({stem: re.sub(r"[^0-9A-Za-z_.-]+", "-", stem) for stem in specs})
    for stem, spec in specs.items():
        try:
            figure = spec.draw()
        except SaliencyLabError:  # what failed is listed as such
            continue
        file = f"{name}-{stems[stem]}.{spec.kind}"
        save(figure, folder / file)
        caption = markdown_text(spec.caption).replace("[", "(").replace("]", ")")
        lines += [f"![{caption}]({file})", "", f"*{caption.rstrip('.')}.*", ""]
    return ["## Figures", "", *lines] if lines else []


def _retrained(results: Retrained, level: float, folder: Path, name: str) -> list[str]:
    """Write the section about ROAR and KAR, with a figure for each model."""
    if not results:
        return []
    head = ["procedure", "model", "method", "area", "difference from random", "p"]
    rows = []
    row: Any
    for row in tabulate(results, level).itertuples():
        area = f"{row.area:.3f} ({row.low:.3f} … {row.high:.3f})"
        gap = f"{row.difference:+.3f} ({row.difference_low:+.3f} … {row.difference_high:+.3f})"
        control = math.isnan(row.difference)
        tail = ["", ""] if control else [gap, p_value(row.p)]
        rows.append([row.procedure, row.model, row.method, area, *tail])
    stems = distinct_stems(
        {f"{table}-{model}": re.sub(r"[^0-9A-Za-z_.-]+", "-", f"{table}-{model}") for table, model in results}
    )
    pictures = []
    for (table, model), result in results.items():
        file = f"{name}-{stems[f'{table}-{model}']}.svg"
        save(result.plot(title=f"{result.name}, {model}"), folder / file)
        pictures += [f"![{result.name} of {markdown_text(model)}]({file})", ""]
    note = (
        "The recipes were trained again, from new weights, on images whose most (ROAR) or least (KAR) "
        "important pixels were replaced by the mean of their channel (Hooker et al., NeurIPS 2019). The area "
        "is that under the accuracy on test images that were changed in the same way, over the fraction of "
        "the pixels that was replaced. A method is better than `random` if its area is smaller (ROAR) or "
        f"larger (KAR). Intervals are at {100 * level:g} %."
    )
    return ["## Retraining", "", note, "", *pipe_table(head, rows), "", *pictures]


def _runs(runs: Sequence[Run]) -> list[str]:
    if not runs:
        return []
    rows = []
    for run in runs:
        card = run.card
        epochs = run.recipe.training.epochs
        changed = ", ".join(f"{key} = {value}" for key, value in run.changes.items())
        recipe = f"{run.recipe.name} ({changed})" if changed else run.recipe.name
        row = [run.model, recipe, run.recipe.model.name, str(run.seed), str(epochs)]
        if card is None:
            rows.append([*row, "failed", "", "", ""])
            continue
        log = pd.read_csv(run.folder / LOG)
        shares = [_percent(card.metrics[key]) for key in ("val_clean", "val_robust")]
        rows.append([*row, *shares, f"{log['seconds'].median():.0f}", f"`{card.sha256[:12]}`"])
    head = ["model", "recipe", "network", "seed", "epochs", "clean", "PGD", "s/epoch", "weights"]
    note = (
        "Clean and PGD are accuracies on validation images, PGD at the recipe's own ε. Seconds depend on "
        "what else the machine did. `weights` begins their SHA-256."
    )
    return ["## What was trained", "", *pipe_table(head, rows), "", note, "", *_recipes(runs)]


def _learning(runs: Sequence[Run], models: Sequence[str], folder: Path, name: str) -> list[str]:
    """Draw the validation accuracies of each epoch; nothing for trainings of one epoch."""
    logs: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        if run.finished and (run.folder / LOG).exists():
            logs.setdefault(run.model, []).append(pd.read_csv(run.folder / LOG))
    lines: list[str] = []
    for column, what in (("val_clean", "unattacked"), ("val_robust", "under PGD at the recipe's ε")):
        drawn = {}
        for model, own in logs.items():
            epochs = min(len(log) for log in own)
            values = np.array([log[column][:epochs] for log in own])
            if epochs > 1:
                at = own[0]["epoch"][:epochs].to_numpy(float)
                drawn[model] = (at, values.mean(0), values.min(0), values.max(0))
        if drawn:
            file = f"{name}-learning-{column.removeprefix('val_')}.svg"
            note = "bands: all training seeds" if any(len(own) > 1 for own in logs.values()) else None
            figure = bands(
                drawn,
                xlabel="epoch",
                ylabel=f"accuracy {what}",
                percent=(False, True),
                note=note,
                among=models,
            )
            save(figure, folder / file)
            caption = f"Accuracy on validation images after each epoch, {what}"
            lines += [f"![{caption}]({file})", "", f"*{caption}.*", ""]
    return lines


def _recipes(runs: Sequence[Run]) -> list[str]:
    """Write every setting of the recipes, folded away: those that all share, then those of each."""
    idle = {"name", "description", "seed"}
    settings = {
        run.model: {key: value for key, value in dotted(run.recipe.portable()).items() if key not in idle}
        for run in runs
    }
    keys = list(dict.fromkeys(key for own in settings.values() for key in own))
    first = next(iter(settings.values()))
    shared = [
        key for key in keys if all(key in own and own[key] == first.get(key) for own in settings.values())
    ]
    rows = [
        [model, _in_words({key: value for key, value in own.items() if key not in shared})]
        for model, own in settings.items()
    ]
    lines = ["<details>", "<summary>Every setting of the recipes</summary>", ""]
    lines += [f"All of them: {_in_words({key: first[key] for key in shared})}.", ""]
    if any(own for _, own in rows):
        lines += [*pipe_table(["model", "settings of its own"], rows), ""]
    return [*lines, "</details>", ""]


def _given(declared: Declaration, study: Study) -> list[str]:
    """List the networks that were given to the study as trained."""
    rows = []
    for name, sources in declared.models.items():
        listed = [sources] if isinstance(sources, str) else sources
        members = [member for member in study.members if member.model == name]
        for source, member in zip(listed, members, strict=True):
            card = None if member.module is None else card_of(member.module)
            kind = card.architecture if card is not None else _class_name(member.module)
            weights = "" if card is None else f"`{card.sha256[:12]}`"
            rows.append([name, source, kind, str(member.seed), weights])
    if not rows:
        return []
    return ["## What was given", "", *pipe_table(["model", "source", "network", "seed", "weights"], rows), ""]


def _class_name(module: nn.Module | None) -> str:
    return "" if module is None else type(module).__name__


def _missing(document: Document) -> list[str]:
    problems = document.provenance.problems
    return ["## What is missing", "", *_table(problems), ""] if problems.rows else []


def _provenance(document: Document, declared: Declaration, study: Study) -> list[str]:
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = ["## Settings", "", *_table(document.provenance.settings), ""]
    if declared.overrides:
        lines.append(f"- overrides of the recipes: {_in_words(declared.overrides)}")
    lines += [
        f"- seed of the images and of every draw: {declared.seed}",
        f"- images and labels: `{study.sample.fingerprint[:12]}`, the beginning of their hash",
        f"- versions: {used}",
        f"- processor and threads: {machines(study)}",
        "- another processor or number of threads can change the last digits of a result, and networks that "
        "are trained there have other weights; such differences are of the size of those between seeds",
        "",
    ]
    return lines


def _in_words(settings: Mapping[str, Any]) -> str:
    """Write settings on one line.

    >>> _in_words({"steps": 40, "eps": [0.1, 0.2]})
    'steps = 40, eps = [0.1, 0.2]'
    """
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
