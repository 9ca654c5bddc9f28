"""What a declared study would still train and compute, and how long that takes."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from saliency_lab._common.errors import SaliencyLabError, TrainingError
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.inference import named_device
from saliency_lab._common.progress import no_progress
from saliency_lab.data import ImageData
from saliency_lab.data.images import stratified_order
from saliency_lab.experiment.given import finished_models
from saliency_lab.experiment.images import draw_sample, load_declared_data
from saliency_lab.experiment.part import WHOLE, Part
from saliency_lab.experiment.retraining import retraining_plans, retraining_store
from saliency_lab.experiment.schema import Declaration
from saliency_lab.experiment.trainings import Run, load_trained, training_runs
from saliency_lab.models import build_model
from saliency_lab.models.catalogue import is_custom
from saliency_lab.retraining.api import missing_networks
from saliency_lab.study.cache.store import FolderStore, MemoryStore
from saliency_lab.study.planning import PLAN_COLUMNS, plan_networks
from saliency_lab.study.sample import Member, read_members
from saliency_lab.training import Recipe, load_recipe, train
from saliency_lab.training.api import fabric_device

_TIMED_STEPS = (2, 8)


def plan_declared(
    declared: Declaration,
    store: str | Path,
    *,
    device: str = "auto",
    trust: bool = False,
    part: Part = WHOLE,
) -> pd.DataFrame:
    """List what there is to do, without doing it: see `Study.plan`; models that are to be trained come first.

    Times are measured on `device`, as in `run_declared`; that of a training run on its first steps.
    """
    part.check(declared)
    there = named_device(device)
    data = load_declared_data(declared)
    sample = draw_sample(declared, data)
    runs = training_runs(declared, data, Path(store), part, trust=trust)
    requests = declared.requests(sample)
    retraining = retraining_plans(declared, data, runs)
    trained = [load_trained(run, data, there) for run in runs]
    networks: dict[Member, str] = {}
    for run, net in zip(runs, trained, strict=True):
        weights = f"untrained {run.folder.name}" if net is None else model_fingerprint(net)
        networks[Member(run.model, run.seed, run.recipe.name, net)] = weights
    finished, _ = finished_models(declared, data, there, part, trust=trust)
    networks |= {each: model_fingerprint(each.net) for each in (read_members(finished) if finished else [])}
    if not networks:
        raise SaliencyLabError("every checkpoint of this study is damaged, as the warnings say")
    recipes = {run.model: run.recipe for run in runs}

    @cache
    def seconds(model: str) -> float:
        return _training_seconds(recipes[model], data, device)

    def row(step: str, model: str, results: int, missing: int) -> dict[str, Any]:
        planned = {"step": step, "what": model, "results": results, "missing": missing}
        return planned | ({"seconds": missing * seconds(model)} if missing else {})

    first = []
    for model in recipes:
        own = [net for run, net in zip(runs, trained, strict=True) if run.model == model]
        first.append(row("train", model, len(own), sum(net is None for net in own)))
    last = [
        row(table, model, len(plan.networks()), missing_networks(plan, retraining_store(Path(store))))
        for (table, model), plan in retraining.items()
    ]
    known = next((member.module for member in networks if member.module is not None), None)
    timed = _untrained(runs[0], data, there) if known is None else known
    where = FolderStore(store) if Path(store).is_dir() else MemoryStore()  # a plan creates nothing
    steps = plan_networks(networks, sample, declared.seed, where, requests, timed)
    return pd.concat([pd.DataFrame(first), steps, pd.DataFrame(last)], ignore_index=True)[PLAN_COLUMNS]


def _untrained(run: Run, data: ImageData, device: torch.device) -> nn.Module:
    """Build the network of a run for timing; a small one in place of a custom architecture."""
    name = "small_cnn" if is_custom(run.recipe.model.name) else run.recipe.model.name
    classes = len(data.classes)
    return build_model(name, num_classes=classes, input_shape=data.input_shape, seed=0).to(device)


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
            with no_progress(), contextlib.suppress(TrainingError), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="recipe '")  # so few steps may end at a constant
                train(short, replace(data, train=few), seed=0, **fabric_device(device))
            taken.append(time.perf_counter() - started)
            steps.append(len(few) // recipe.training.batch_size)
    finally:
        logging.disable(disabled)
    _, short_time, long_time = taken  # the first run warms up
    step = (long_time - short_time) / max(steps[-1] - steps[0], 1)
    if step <= 0:  # the machine was busy with other work in the shorter one
        step = long_time / max(steps[-1], 1)
    return step * recipe.training.epochs * (len(data.train) // recipe.training.batch_size)
