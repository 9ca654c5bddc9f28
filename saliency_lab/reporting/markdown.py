"""The page of a declared study: what was run, its claims answered, tables and figures, as Markdown."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.files import atomic_path, distinct_stems, writable_folder
from saliency_lab._common.provenance import versions
from saliency_lab.attacks.checklist import BUDGETS
from saliency_lab.comparison.claims import answer, by_chance, measure_in_words
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.format import one_line, write_difference, write_value
from saliency_lab.comparison.measures import ACCURACY, ROBUST, SHARES, Measure
from saliency_lab.comparison.tables import estimate_text, leading, mark_in_markdown, pipe_table
from saliency_lab.experiment.run import Run
from saliency_lab.models import card_of
from saliency_lab.plotting.style import save
from saliency_lab.training.recipe import dotted
from saliency_lab.training.run import LOG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saliency_lab.experiment.schema import Declaration
    from saliency_lab.study.study import Study

MAPS_SHOWN = 5


def write_page(
    declared: Declaration,
    runs: Sequence[Run],
    study: Study,
    comparison: Comparison,
    folder: str | Path,
    *,
    name: str,
    command: str,
) -> Path:
    """Write `NAME.md` and its figures (`NAME-*.svg`, `NAME-*.png`) into `folder`; return the page.

    Every number on it is of this study; `command` is what it says how to repeat it.
    """
    folder = writable_folder(folder)
    figures = _figures(study, comparison)
    lines = [f"# {declared.title or name}", "", *_paragraphs(declared.about)]
    lines += [*_repeat(declared, study, command), *_claims(declared, comparison)]
    lines += [*_accuracy(study, comparison), *_scores(comparison)]
    if figures:
        lines += ["## Figures", ""]
    stems = distinct_stems({figure: re.sub(r"[^0-9A-Za-z_.-]+", "-", figure) for figure in figures})
    for stem, (caption, figure, kind) in figures.items():
        file = f"{name}-{stems[stem]}.{kind}"
        save(figure, folder / file)
        lines += [f"![{caption}]({file})", "", f"*{caption}.*", ""]
    lines += [*_runs(runs, study), *_given(declared, study), *_failures(study), *_provenance(declared, study)]
    page = folder / f"{name}.md"
    with atomic_path(page) as beside:
        beside.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()] + [""] if text.strip() else []


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


def _claims(declared: Declaration, comparison: Comparison) -> list[str]:
    if not declared.claims:
        return []
    questions = answer(declared.claims, comparison)
    lines = ["## Questions and answers", ""]
    for number, asked in enumerate(questions, start=1):
        lines += [f"### {number}. {asked.question}", ""]
        if asked.problem:
            lines += [f"No answer: {asked.problem}.", ""]
            continue
        for each in asked.answers:
            said = "; ".join(f"**{verdict}** by {measures}" for verdict, measures in each.verdicts.items())
            lines.append(f"- {each.model} against {each.over}: {said}.")
        if asked.missing:
            lines.append(f"- Not measured: {', '.join(asked.missing)}.")
        lines.append("")
        rows = []
        for (model, over), held in asked.differences.groupby(["model", "over"], sort=False):
            for row in held.to_dict("records"):
                share = row["metric"] in SHARES
                difference = one_line(write_difference(row, share=share))
                means = [_number(row[key], share) for key in ("mean", "mean_over")]
                rows.append([f"{model} − {over}", measure_in_words(row), row["verdict"], *means, difference])
        head = ["models", "measure", "verdict", "mean", "mean of the other", "difference"]
        folded = "<summary>Each difference, with its interval</summary>"
        lines += ["<details>", folded, "", *pipe_table(head, rows), "", "</details>", ""]
    lines += [by_chance(questions, comparison.level), ""]
    return lines


def _number(value: float | None, share: bool) -> str:
    return "" if value is None else one_line((write_value(value, share=share), ""))


def _accuracy(study: Study, comparison: Comparison) -> list[str]:
    measures = [measure for measure in comparison.measures if measure.share]
    if not measures:
        return []
    head = ["model", *("unattacked" if m.metric == ACCURACY else m.label for m in measures)]
    lines = [
        "## Accuracy",
        "",
        *pipe_table(head, _by_model(comparison, measures)),
        "",
        f"{leading(comparison.summary, 'column', 'Bold', 'italic')}.",
        "",
    ]
    if len(comparison.audits):
        lines += _audits(study, comparison)
    return lines


_NEXT_TO_NOTHING = 0.05


def _audits(study: Study, comparison: Comparison) -> list[str]:
    facts = ["attack", "eps", "n", "model", "seed", "robust_accuracy", "worst_case", "verdict"]
    whole = comparison.audits[facts].drop_duplicates()
    rows: list[list[str]] = []
    for (attack, eps, n, model), held in whole.groupby(["attack", "eps", "n", "model"], sort=False):
        counts = held["verdict"].value_counts()
        verdicts = ", ".join(f"{count} × {verdict}" for verdict, count in counts.items())
        means = [_number(held[key].mean(), share=True) for key in ("robust_accuracy", "worst_case")]
        rows.append([str(model), f"{attack}, ε = {eps:.4g}", str(n), *means, verdicts])
    head = ["model", "attack", "images", "attack reports", "worst case of all attacks", "verdict by seed"]
    lines = ["### May these be believed? The audit", "", *pipe_table(head, rows), ""]
    audits = (
        study.store.describe("audit", key) for place, key in study.cells.items() if place.kind == "audit"
    )
    budgets = {described[0].depends["budget"] for described in audits if described is not None}
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
    skipped = comparison.audits[comparison.audits["check_verdict"] == "skipped"]
    notes += [
        f"Not checked: {check} ({evidence})."
        for check, evidence in skipped[["check", "evidence"]].drop_duplicates().itertuples(index=False)
    ]
    if (whole["robust_accuracy"] <= _NEXT_TO_NOTHING).any():
        notes.append("Where the attack leaves next to nothing, there is next to nothing to doubt.")
    lines += [" ".join(notes), ""]
    doubted = comparison.audits[(comparison.audits["verdict"] != "believe")]
    doubted = doubted[doubted["check_verdict"].isin(("warn", "fail"))]
    for row in doubted.to_dict("records"):
        lines.append(
            f"- {row['model']}, seed {row['seed']}, ε = {row['eps']:.4g}: {row['check']} "
            f"({row['check_verdict']}): {row['evidence']}"
        )
    return [*lines, ""] if len(doubted) else lines


def _scores(comparison: Comparison) -> list[str]:
    lines: list[str] = []
    held: dict[str, list[Measure]] = {}
    for measure in comparison.measures:
        if not measure.share:
            held.setdefault(measure.metric, []).append(measure)
    if held:
        lines += ["## Scores of the maps", ""]
    for metric, measures in held.items():
        better = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}
        lines += [f"### {metric.replace('_', ' ')}{better[measures[0].better]}", ""]
        head = ["model", *(measure.method.replace("_", " ") for measure in measures)]
        lines += [*pipe_table(head, _by_model(comparison, measures)), ""]
    return lines


def _by_model(comparison: Comparison, measures: Sequence[Measure]) -> list[list[str]]:
    """A row a model; the best of a column is bold, what is not told from it italic."""
    facts = comparison.table().set_index(["metric", "method", "eps", "model"])
    rows = []
    for model in comparison.models:
        row = [model]
        for measure in measures:
            same = facts.xs((measure.metric, measure.method), level=("metric", "method"))
            same = same[(same.index.get_level_values("model") == model)]
            if measure.metric == ROBUST:
                same = same[np.isclose(same.index.get_level_values("eps"), measure.eps)]
            if same.empty:
                row.append("")
                continue
            fact = same.iloc[0].to_dict()
            row.append(mark_in_markdown(estimate_text(fact, measure.share), fact["rank"]))
        rows.append(row)
    return rows


def _figures(study: Study, comparison: Comparison) -> dict[str, tuple[str, Figure, str]]:
    """Caption, figure and format by the end of the file's name; one that has no values is left out."""
    found: dict[str, tuple[str, Figure, str]] = {}
    for stem, (caption, draw, kind) in _drawings(study, comparison).items():
        with contextlib.suppress(SaliencyLabError):  # what failed is listed as such
            found[stem] = caption, draw(), kind
    return found


def _drawings(study: Study, comparison: Comparison) -> dict[str, tuple[str, Callable[[], Figure], str]]:
    found: dict[str, tuple[str, Callable[[], Figure], str]] = {}
    plot = comparison.plot
    if len(comparison.robustness):
        for attack in dict.fromkeys(comparison.robustness["attack"]):
            caption = f"Accuracy under {attack} against ε, with intervals"
            found[f"robustness-{attack}"] = caption, partial(plot.robustness, attack), "svg"
    metrics = list(dict.fromkeys(measure.metric for measure in comparison.measures if not measure.share))
    attacked = [measure for measure in comparison.measures if measure.metric == ROBUST]
    if metrics and attacked:
        radii = {measure.eps for measure in attacked if measure.method == attacked[0].method}
        eps = max(radii & {*comparison.audits.get("eps", ())} or radii)
        name = metrics[0].replace("_", " ").capitalize()
        caption = f"{name} against accuracy under attack at ε = {eps:.4g}"
        found["tradeoff"] = caption, partial(plot.tradeoff, ROBUST, metrics[0], eps=eps), "svg"
    for metric in metrics:
        name = "AUC" if metric == "auc" else metric.replace("_", " ").capitalize()
        caption = f"{name} by method, with intervals"
        found[metric] = caption, partial(plot.dots, metric), "svg"
    for measure in comparison.measures:
        if measure.metric == "masked_input_accuracy" and "masking" not in found:
            caption = "Accuracy as the pixels that a map calls important are removed"
            found["masking"] = caption, partial(plot.curves, measure.metric, method=measure.method), "svg"
    methods = list(dict.fromkeys(comparison.scores["method"])) if len(comparison.scores) else []
    for method in methods[:1]:
        caption = f"Maps by {method.replace('_', ' ')}: first images, first seed of each model"
        draw = partial(plot.maps, n=min(MAPS_SHOWN, len(study.x)), method=method)
        found["maps"] = caption, draw, "png"
    return found


def _runs(runs: Sequence[Run], study: Study) -> list[str]:
    if not runs:
        return []
    weights = {(member.model, member.seed): card_of(member.net) for member in study.members}
    rows = []
    for run in runs:
        card = weights.get((run.model, run.seed))
        epochs = run.recipe.training.epochs
        changed = ", ".join(f"{key} = {value}" for key, value in run.changes.items())
        recipe = f"{run.recipe.name} ({changed})" if changed else run.recipe.name
        row = [run.model, recipe, run.recipe.model.name, str(run.seed), str(epochs)]
        if card is None:
            rows.append([*row, "failed", "", "", ""])
            continue
        log = pd.read_csv(run.folder / LOG)
        shares = [_number(card.metrics[key], share=True) for key in ("val_clean", "val_robust")]
        rows.append([*row, *shares, f"{log['seconds'].median():.0f}", f"`{card.sha256[:12]}`"])
    head = ["model", "recipe", "network", "seed", "epochs", "clean", "PGD", "s/epoch", "weights"]
    note = (
        "Clean and PGD are accuracies on validation images, PGD at the recipe's own ε. Seconds depend on "
        "what else the machine did. `weights` begins their SHA-256."
    )
    return ["## What was trained", "", *pipe_table(head, rows), "", note, "", *_recipes(runs)]


def _recipes(runs: Sequence[Run]) -> list[str]:
    """Every setting of the recipes, folded away: those that all share, then each one's own."""
    idle = {"name", "description", "seed"}
    held = {
        run.model: {key: value for key, value in dotted(run.recipe.portable()).items() if key not in idle}
        for run in runs
    }
    keys = list(dict.fromkeys(key for settings in held.values() for key in settings))
    first = next(iter(held.values()))
    shared = [key for key in keys if all(key in own and own[key] == first.get(key) for own in held.values())]
    rows = [
        [model, _in_words({key: value for key, value in own.items() if key not in shared})]
        for model, own in held.items()
    ]
    lines = ["<details>", "<summary>Every setting of the recipes</summary>", ""]
    lines += [f"All of them: {_in_words({key: first[key] for key in shared})}.", ""]
    if any(own for _, own in rows):
        lines += [*pipe_table(["model", "settings of its own"], rows), ""]
    return [*lines, "</details>", ""]


def _given(declared: Declaration, study: Study) -> list[str]:
    """The networks that the study found trained."""
    rows = []
    for name, sources in declared.models.items():
        listed = [sources] if isinstance(sources, str) else sources
        members = [member for member in study.members if member.model == name]
        for source, member in zip(listed, members, strict=True):
            card = card_of(member.net)
            kind = type(member.net).__name__ if card is None else card.architecture
            weights = "" if card is None else f"`{card.sha256[:12]}`"
            rows.append([name, source, kind, str(member.seed), weights])
    if not rows:
        return []
    return ["## What was given", "", *pipe_table(["model", "source", "network", "seed", "weights"], rows), ""]


def _failures(study: Study) -> list[str]:
    if study.failures.empty:
        return []
    rows = [
        [row["model"], str(row["seed"]), row["what"], " ".join(str(row["error"]).split())]
        for row in study.failures.to_dict("records")
    ]
    return ["## What failed", "", *pipe_table(["model", "seed", "what", "error"], rows), ""]


def _provenance(declared: Declaration, study: Study) -> list[str]:
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = ["## Settings", "", *pipe_table(["", "name", "settings"], _settings(study)), ""]
    if declared.overrides:
        lines.append(f"- overrides of the recipes: {_in_words(declared.overrides)}")
    lines += [
        f"- seed of the images and of every draw: {declared.seed}",
        f"- images and labels: `{study.sample.fingerprint[:12]}`, the beginning of their hash",
        f"- versions: {used}",
        "",
    ]
    return lines


def _settings(study: Study) -> list[list[str]]:
    """A row a method, metric, attack and audit: its settings, defaults too, as its cells have them."""
    names = {"maps": "method", "scores": "metric", "attack": "attack", "audit": "audit"}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for place, key in study.cells.items():
        what = names[place.kind], place.metric or place.label
        described = study.store.describe(place.kind, key)
        if described is None:
            continue
        cell, _ = described
        found[what] = dict(cell.depends["settings"])
        if place.kind == "attack":
            found[what] = {"eps": cell.depends["eps"], **found[what]}
        if place.kind == "audit":
            found[what]["budget"] = cell.depends["budget"]
    return [[*what, _in_words(settings)] for what, settings in found.items()]


def _in_words(settings: Mapping[str, Any]) -> str:
    """Settings on one line.

    >>> _in_words({"steps": 40, "eps": [0.1, 0.2]})
    'steps = 40, eps = [0.1, 0.2]'
    """
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
