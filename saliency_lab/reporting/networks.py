"""The networks of a declared study: which were trained and how, which were given, and retraining."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from saliency_lab.comparison.content import Column, Entry, Table
from saliency_lab.comparison.format import one_line, p_value, write_difference, write_mean, write_value
from saliency_lab.comparison.measures import SHARES_DISAGREE
from saliency_lab.comparison.statistics import seeds_disagree
from saliency_lab.experiment.retraining import Retrained, tabulate
from saliency_lab.experiment.trainings import Run
from saliency_lab.models import card_of
from saliency_lab.plotting.bands import Band, bands
from saliency_lab.reporting.figures import FigureSpec
from saliency_lab.training.health import predicts_one_class
from saliency_lab.training.recipe import dotted
from saliency_lab.training.run import LOG

if TYPE_CHECKING:
    from saliency_lab.experiment.schema import Declaration
    from saliency_lab.study.study import Study


@dataclass(frozen=True)
class Section:
    """A section about networks: sentences, a table and figures."""

    table: Table
    notes: list[str]
    figures: list[FigureSpec]


@dataclass(frozen=True)
class TrainedNetworks(Section):
    """The networks that were trained; `shared` are the settings that all recipes have in common."""

    shared: str
    settings: Table


def trained_networks(runs: Sequence[Run], models: Sequence[str]) -> TrainedNetworks | None:
    """Describe the training runs; `models` are all models of the study. None if there are no runs."""
    if not runs:
        return None
    rows = []
    collapsed = []
    logs: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        changed = settings_in_words(run.changes)
        recipe = f"{run.recipe.name} ({changed})" if changed else run.recipe.name
        row = [run.model, recipe, run.recipe.model.name, str(run.seed), str(run.recipe.training.epochs)]
        card = run.card
        if card is None:
            rows.append([*row, "failed", "", "", ""])
            continue
        seconds = ""
        if (run.folder / LOG).exists():  # otherwise the run's network is all that is left of it
            log = pd.read_csv(run.folder / LOG)
            logs.setdefault(run.model, []).append(log)
            seconds = f"{log['seconds'].median():.0f}"
            kept = log[np.isclose(log["val_clean"], card.metrics["val_clean"] or 0.0)]  # by `training.select`
            epoch = (kept if len(kept) else log).iloc[-1]
            if predicts_one_class(epoch["val_constant_share"], epoch["val_clean"]):
                collapsed.append(f"{run.model} (seed {run.seed})")
        accuracies = [card.metrics[key] for key in ("val_clean", "val_robust")]
        shares = ["" if each is None else write_value(each, share=True) for each in accuracies]
        rows.append([*row, *shares, seconds, f"`{card.sha256[:12]}`"])
    notes = [
        "Clean and PGD are accuracies on validation images, PGD at the recipe's own ε. Seconds depend on "
        "what else the machine did. `weights` begins their SHA-256."
    ]
    if collapsed:
        notes.append(
            "Collapsed, so that at the end one class is predicted for nearly all validation images: "
            f"{', '.join(collapsed)}. The results of these networks count as those of the others."
        )
    head = ["model", "recipe", "network", "seed", "epochs", "clean", "PGD", "s/epoch", "weights"]
    shared, settings = _settings(runs)
    table = _table("trained", "What was trained", head, rows)
    return TrainedNetworks(table, notes, _learning_curves(logs, models), shared, settings)


def _settings(runs: Sequence[Run]) -> tuple[str, Table]:
    """Return the settings that the recipes of all models share, and those of each model alone."""
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
        [model, settings_in_words({key: value for key, value in own.items() if key not in shared})]
        for model, own in settings.items()
    ]
    rows = rows if any(own for _, own in rows) else []
    table = _table("recipes", "Settings of each model", ["model", "settings of its own"], rows)
    return settings_in_words({key: first[key] for key in shared}), table


def _learning_curves(logs: Mapping[str, Sequence[pd.DataFrame]], models: Sequence[str]) -> list[FigureSpec]:
    """Return figures of the validation accuracies after each epoch; none for trainings of one epoch."""
    figures = []
    for column, what in (("val_clean", "unattacked"), ("val_robust", "under PGD at the recipe's ε")):
        drawn: dict[str, Band] = {}
        seeds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for model, own in logs.items():
            epochs = min(len(log) for log in own)
            values = np.array([log[column][:epochs] for log in own])
            at = own[0]["epoch"][:epochs].to_numpy(float)
            if epochs > 1 and seeds_disagree(values[:, -1], SHARES_DISAGREE):
                seeds[model] = [(at, each) for each in values]
            elif epochs > 1:
                drawn[model] = (at, values.mean(0), values.min(0), values.max(0))
        if not drawn and not seeds:
            continue
        note = "bands: all training seeds" if any(len(own) > 1 for own in logs.values()) else None
        if seeds:
            note = f"{note}; thin lines: single seeds, where seeds disagree"
        draw = partial(
            bands,
            drawn,
            seeds=seeds,
            xlabel="epoch",
            ylabel=f"accuracy {what}",
            percent=(False, True),
            note=note,
            among=models,
        )
        caption = f"Accuracy on validation images after each epoch, {what}"
        figures.append(FigureSpec("training", f"learning-{column.removeprefix('val_')}", caption, draw))
    return figures


def given_networks(declared: Declaration, study: Study) -> Table:
    """List the networks that were given to the study as trained."""
    rows = []
    for name, sources in declared.models.items():
        listed = [sources] if isinstance(sources, str) else sources
        members = [member for member in study.members if member.model == name]
        if len(members) < len(listed):  # some were damaged, or belong to another part of the study
            listed = [f"one of {', '.join(listed)}"] * len(members)
        for source, member in zip(listed, members, strict=True):
            card = None if member.module is None else card_of(member.module)
            kind = card.architecture if card is not None else _class_name(member.module)
            weights = "" if card is None else f"`{card.sha256[:12]}`"
            rows.append([name, source, kind, str(member.seed), weights])
    return _table("given", "What was given", ["model", "source", "network", "seed", "weights"], rows)


def _class_name(module: nn.Module | None) -> str:
    return "" if module is None else type(module).__name__


def retrained_networks(results: Retrained, level: float) -> Section | None:
    """Describe ROAR and KAR, with a figure for each model; None if there are no results."""
    if not results:
        return None
    rows = []
    row: Any
    for row in tabulate(results, level).itertuples():
        area = one_line(write_mean({**row._asdict(), "mean": row.area}, share=False))
        gap = one_line(write_difference(row._asdict(), share=False))
        tail = ["", ""] if math.isnan(row.difference) else [gap, p_value(row.p)]
        rows.append([row.procedure, row.model, row.method, area, *tail])
    note = (
        "The recipes were trained again, from new weights, on images whose most (ROAR) or least (KAR) "
        "important pixels were replaced by the mean of their channel (Hooker et al., NeurIPS 2019). The area "
        "is that under the accuracy on test images that were changed in the same way, over the fraction of "
        "the pixels that was replaced. A method is better than `random` if its area is smaller (ROAR) or "
        f"larger (KAR). Intervals are at {100 * level:g} %; p is not corrected for the number of methods."
    )
    figures = []
    for (table, model), result in results.items():
        draw = partial(result.plot, title=f"{result.name}, {model}")
        figures.append(FigureSpec("retraining", f"{table}-{model}", f"{result.name} of {model}", draw))
    head = ["procedure", "model", "method", "area", "difference from random", "p"]
    return Section(_table("retraining", "Retraining", head, rows), [note], figures)


def _table(name: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = [Column(title) for title in head]
    return Table(name, caption, columns, [[Entry(text) for text in row] for row in rows])


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """Write settings on one line.

    >>> settings_in_words({"steps": 40, "eps": [0.1, 0.2]})
    'steps = 40, eps = [0.1, 0.2]'
    """
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
