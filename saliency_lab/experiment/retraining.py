"""ROAR and KAR of the recipes of a declared study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from saliency_lab._common.errors import CheckpointError, InputError, TrainingError, unknown_name
from saliency_lab._common.warn import warn
from saliency_lab.data import ImageData
from saliency_lab.experiment.schema import Declaration
from saliency_lab.experiment.trainings import Run
from saliency_lab.metrics.catalogue import LERF, MORF
from saliency_lab.retraining.api import STORE, RoarPlan, make_plan, run_plan
from saliency_lab.retraining.result import RoarResult
from saliency_lab.study.cache.results import Failure
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.study.study import Study
from saliency_lab.training import Recipe

ORDERS = {"roar": MORF, "kar": LERF}
"""The tables of a study file, and which pixels each replaces first."""

Retrained = dict[tuple[str, str], RoarResult]
"""Results by table and model."""


def retraining_plans(
    declared: Declaration, data: ImageData, runs: Sequence[Run]
) -> dict[tuple[str, str], RoarPlan]:
    """Return what the tables [roar] and [kar] ask for, by table and model; nothing is trained.

    The models are those that `runs` train.

    Raises
    ------
    InputError
        If a table names no method, an unknown model or method, or a wrong setting.
    """
    recipes: dict[str, tuple[Recipe, list[int]]] = {}
    for run in runs:
        recipes.setdefault(run.model, (run.recipe, []))[1].append(run.seed)
    elsewhere = declared.recipes.keys() - recipes.keys()  # they belong to another part of the study
    plans = {}
    for table, order in ORDERS.items():
        spec = getattr(declared, table)
        if spec is None:
            continue
        methods = spec.methods or declared.methods
        if not methods:
            raise InputError(f'[{table}] needs methods, such as methods = ["saliency"]; the study has none')
        for model in spec.recipes or recipes:
            if model in elsewhere:
                continue
            if model not in recipes:
                raise unknown_name(f"recipe in [{table}]:", model, recipes)
            recipe, seeds = recipes[model]
            plans[table, model] = make_plan(
                recipe,
                data,
                methods,
                fractions=spec.fractions,
                order=order,
                absolute=spec.absolute,
                seeds=seeds,
            )
    return plans


def retrain(plans: Mapping[tuple[str, str], RoarPlan], study: Study, store: Path, device: str) -> Retrained:
    """Train what is missing; a recipe whose training fails is left out, which `study` notes."""
    results: Retrained = {}
    for (table, model), plan in plans.items():
        try:
            results[table, model] = run_plan(plan, store, retraining_store(store), device)
        except (TrainingError, CheckpointError) as error:
            warn(f"[{table}] of {model} is left out: {error}")
            study.note_failure(model, plan.seeds[0], table, Failure.of(error))
    return results


def retraining_store(store: Path) -> FolderStore:
    """Return where the results are stored, given the store of the study."""
    return FolderStore(store / STORE)


def tabulate(results: Retrained, level: float) -> pd.DataFrame:
    """Return the summaries of all results: one row per procedure, model and method."""
    tables = []
    for (_, model), result in results.items():
        summary = result.summary(level).reset_index()
        summary.insert(0, "procedure", result.name)
        summary.insert(1, "model", model)
        tables.append(summary)
    return pd.concat(tables, ignore_index=True)
