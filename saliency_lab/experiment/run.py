"""Carrying out a declared study: train what is missing, compute what is missing, compare."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn

from saliency_lab._common.errors import InputError, SaliencyLabError, TrainingError
from saliency_lab._common.fingerprints import fingerprint
from saliency_lab._common.inference import named_device
from saliency_lab._common.progress import no_progress
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.data import ImageData
from saliency_lab.data.images import Split, stratified_order
from saliency_lab.data.located import LocatedSplit
from saliency_lab.experiment.checkpoints import load_checkpoint
from saliency_lab.experiment.schema import Declaration
from saliency_lab.models import build_model
from saliency_lab.models.catalogue import ARCHITECTURES, is_custom
from saliency_lab.models.checkpoint import CARD, zoo_names
from saliency_lab.study.planning import Scout
from saliency_lab.study.requests import read_attacks
from saliency_lab.study.study import Study
from saliency_lab.study.tasks import ALONE, Failure
from saliency_lab.training import Recipe, load_recipe, train
from saliency_lab.training.api import load_data

logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """One training run of a declared study: the model it belongs to, its recipe and seed, its folder."""

    model: str
    recipe: Recipe
    seed: int
    folder: Path
    changes: dict[str, Any]
    """What this model changes in its recipe, beside what the study changes in all."""

    @property
    def finished(self) -> bool:
        """Whether the trained network is there."""
        return (self.folder / CARD).exists()


def run_declared(
    declared: Declaration,
    store: str | Path,
    *,
    executor: Executor | None = None,
    device: str = "auto",
) -> tuple[Study, Comparison, list[Run]]:
    """Train what is missing, compute what is missing, compare; everything is kept in `store`.

    A run that fails in training is a failure of the study, and the rest goes on without that network.
    Networks are trained and run on `device`; "auto" is a GPU of CUDA where there is one, else the CPU. An
    executor's workers decide that for what they train, and run on the CPU unless a device is named.
    """
    there = named_device("cpu" if executor is not None and device == "auto" else device)
    store = Path(store).resolve()  # a worker may have another working folder
    data = _load_data(declared)
    sample = _sample(declared, data)
    runs = training_runs(declared, data.fingerprint, store)
    declared.check()
    with warnings.catch_warnings(action="ignore"):  # the study of the trained networks warns of the same
        models = _stand_ins(runs, data, there) | _finished_models(declared, data, there)
        stand_ins = Study(models, sample, seed=declared.seed)
    _verbs(Scout(stand_ins), declared)  # a mistake in the file is told before anything is trained
    trained: dict[str, list[nn.Module]] = {}
    failures: dict[tuple[str, int], Failure] = {}
    for run, outcome in _train_all(runs, data, declared, executor, device):
        if isinstance(outcome, Failure):
            failures[run.model, run.seed] = outcome
        else:
            trained.setdefault(run.model, []).append(outcome.to(there))
    models = trained | _finished_models(declared, data, there)
    if not models:
        raise SaliencyLabError(
            f"no model of this study could be trained: {next(iter(failures.values())).error}"
        )
    study = Study(models, sample, store=store, seed=declared.seed, executor=executor)
    for (model, seed), failure in failures.items():
        study.note_failure(model, seed, "training", failure)
    baseline = declared.baseline if declared.baseline in study.models else None
    if baseline != declared.baseline:
        warnings.warn(f"the baseline '{declared.baseline}' could not be trained", stacklevel=2)
    study.purpose = declared.purpose.model_copy(update={"baseline": baseline})
    _verbs(study, declared)
    study.list_alone()
    return study, study.compare(), runs


def plan_declared(declared: Declaration, store: str | Path, *, device: str = "auto") -> pd.DataFrame:
    """What there is to do, without doing it: see `Study.plan`; models that are to be trained come first.

    Times are measured on `device`, as in `run_declared`; that of a training run on its first steps.
    """
    there = named_device(device)
    data = _load_data(declared)
    runs = training_runs(declared, data.fingerprint, Path(store))
    declared.check()
    models = _stand_ins(runs, data, there) | _finished_models(declared, data, there)
    existing = store if Path(store).is_dir() else None  # looking creates nothing
    study = Study(models, _sample(declared, data), store=existing, seed=declared.seed)
    _verbs(Scout(study), declared)
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        missing = [run for run in own if not run.finished]
        row: dict[str, Any] = {"step": "train", "what": model, "cells": len(own), "missing": len(missing)}
        if missing:
            row["seconds"] = len(missing) * _training_seconds(missing[0].recipe, data, device)
        rows.append(row)
    steps = study.plan(declared.methods, declared.metrics, declared.attacks, declared.audits)
    return pd.concat([pd.DataFrame(rows), steps], ignore_index=True)[list(steps.columns)]


def _load_data(declared: Declaration) -> ImageData:
    """Load the data set of a declaration."""
    root = declared.data.root
    beside = None if root is None else str(declared.folder / root)
    return load_data(declared.data.model_copy(update={"root": beside}))


def _sample(declared: Declaration, data: ImageData) -> Sequence[Tensor]:
    """The images that a declaration asks for, with their masks where the data set has some."""
    split: Split = getattr(data, declared.data.split)
    draw = split.located if isinstance(split, LocatedSplit) else split.sample
    return draw(declared.data.images, declared.seed)


def training_runs(declared: Declaration, data: str, store: Path) -> list[Run]:
    """Every training run of a declaration; its folder is named by the content of what decides it."""
    runs = []
    for model, trained in declared.recipes.items():
        name = trained.recipe
        source = declared.folder / name if name.endswith(".toml") else name
        overrides = declared.overrides | trained.overrides
        for key in ("image_size", "val_fraction", "root"):
            if f"data.{key}" in overrides:
                raise InputError(f"'data.{key}' is the study's: set it in the table [data], not in overrides")
            if key != "root":
                overrides[f"data.{key}"] = getattr(declared.data, key)
        recipe = load_recipe(source, overrides)
        if declared.data.name not in (recipe.data.name, "image_folder"):  # which may hold any
            raise InputError(
                f"recipe '{recipe.name}' is for the data set '{recipe.data.name}', and the study's is "
                f"'{declared.data.name}'; name a recipe for it, or set overrides = "
                f'{{ "data.name" = "{declared.data.name}" }}'
            )
        for seed in declared.seeds if trained.seeds is None else trained.seeds:
            key = fingerprint({**recipe.portable(), "seed": seed}, data)
            folder = store / "models" / f"{recipe.name.replace('/', '-')}-seed-{seed}-{key[:12]}"
            runs.append(Run(model, recipe, seed, folder, trained.overrides))
    return runs


def _verbs(study: Study, declared: Declaration) -> None:
    if declared.methods:
        study.attribute(declared.methods)
    if declared.metrics:
        study.score(declared.metrics)
    for attack in read_attacks(declared.attacks):
        study.attack(attack.what, label=attack.label, **attack.settings)
    for audit in read_attacks(declared.audits):
        study.audit(audit.what, label=audit.label, **audit.settings)


def _train_all(
    runs: Sequence[Run], data: ImageData, declared: Declaration, executor: Executor | None, device: str
) -> Iterator[tuple[Run, nn.Module | Failure]]:
    if executor is not None:
        missing = {run.folder: run for run in runs if not run.finished}.values()
        jobs = [executor.submit(_train_remotely, run, data.fingerprint, declared, device) for run in missing]
        try:
            for job in jobs:
                job.exception()  # waits; what failed is tried here again, where its error can be told
        finally:
            for job in jobs:
                job.cancel()
    for run in runs:
        try:
            yield run, _train(run, data, device)
        except TrainingError as error:
            warnings.warn(f"{run.model} (seed {run.seed}) could not be trained: {error}", stacklevel=3)
            yield run, Failure.of(error)


def _train_remotely(run: Run, data: str, declared: Declaration, device: str) -> None:
    """Train one network in a worker, which reads the data itself."""
    with ALONE:
        found = _load_data(declared)
        if found.fingerprint != data:
            raise InputError(f"a worker found other files of '{declared.data.name}'; all must see the same")
        _train(run, found, device)


def _train(run: Run, data: ImageData, device: str) -> nn.Module:
    """Train one network, or read it where it is finished; another process that is at it is waited for."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.changes and not run.finished:
        changes = ", ".join(f"{key} = {value}" for key, value in run.changes.items())
        logger.info("model '%s' is %s with %s:", run.model, run.recipe.name, changes)
    with FileLock(run.folder.with_name(f"{run.folder.name}.lock")):
        return train(run.recipe, data, seed=run.seed, out=run.folder, **_accelerator(device))


def _accelerator(device: str) -> dict[str, Any]:
    """A device in Fabric's terms.

    >>> _accelerator("cuda:1"), _accelerator("auto")
    ({'accelerator': 'cuda', 'devices': '1,'}, {'accelerator': 'auto', 'devices': 1})
    """
    kind, _, index = device.partition(":")
    return {"accelerator": kind, "devices": f"{index}," if index and kind != "cpu" else 1}


def _stand_ins(runs: Sequence[Run], data: ImageData, device: torch.device) -> dict[str, list[nn.Module]]:
    """Every network to be trained: as it is where that is done, otherwise an untrained one of its own."""
    models: dict[str, list[nn.Module]] = {}
    for number, run in enumerate(runs):
        if run.finished:
            net = load_checkpoint(run.folder, device)
        else:
            net = build_model(
                "small_cnn" if is_custom(run.recipe.model.name) else run.recipe.model.name,
                num_classes=len(data.classes),
                input_shape=data.input_shape,
                seed=number,
            ).to(device)
        models.setdefault(run.model, []).append(net)
    return models


def _is_own(source: str) -> bool:
    """Return whether a model's source is registered, or `module:attribute`, and not a folder."""
    return ":" in source or source in ARCHITECTURES.extensions()


def _finished_models(
    declared: Declaration, data: ImageData, device: torch.device
) -> dict[str, list[nn.Module]]:
    models = {}
    for name, sources in declared.models.items():
        listed = [sources] if isinstance(sources, str) else sources
        if len(set(listed)) < len(listed):
            raise InputError(f"model '{name}' lists a checkpoint twice; each must be another seed")
        models[name] = [
            ARCHITECTURES[source](len(data.classes), data.input_shape).to(device)
            if _is_own(source) and not (declared.folder / source).exists()
            else load_checkpoint(_found(declared.folder, source), device)
            for source in listed
        ]
    return models


def _found(folder: Path, source: str) -> Path:
    """A checkpoint's folder, beside the study's file if it is there; a name of the zoo is left as it is."""
    beside = folder / source
    return beside if beside.exists() or source not in zoo_names() else Path(source)


_TIMED_STEPS = (2, 8)


def _training_seconds(recipe: Recipe, data: ImageData, device: str) -> float:
    """Seconds that a training run takes on this machine, from the difference between two short ones."""
    short = load_recipe(recipe, {"training.epochs": 1, "validation.images": 10, "validation.steps": 1})
    order = stratified_order(data.train.labels, 0, "plan")
    steps, taken = [], []
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        for wanted in (_TIMED_STEPS[0], *_TIMED_STEPS):
            few = data.train.select(order[: wanted * recipe.training.batch_size])
            started = time.perf_counter()
            with no_progress(), contextlib.suppress(TrainingError):  # so few steps may well end at a constant
                train(short, replace(data, train=few), seed=0, **_accelerator(device))
            taken.append(time.perf_counter() - started)
            steps.append(len(few) // recipe.training.batch_size)
    finally:
        logging.disable(disabled)
    _, short_time, long_time = taken  # the first run warms up
    step = (long_time - short_time) / max(steps[-1] - steps[0], 1)
    if step <= 0:  # the machine was busy with other work in the shorter one
        step = long_time / max(steps[-1], 1)
    return step * recipe.training.epochs * (len(data.train) // recipe.training.batch_size)
