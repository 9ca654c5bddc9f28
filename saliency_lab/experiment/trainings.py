"""The training runs of a declared study: which there are, and carrying them out."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import nn

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import CheckpointError, InputError, SaliencyLabError, TrainingError
from saliency_lab._common.progress import progress
from saliency_lab._common.warn import warn
from saliency_lab.data import ImageData
from saliency_lab.experiment.images import load_declared_data
from saliency_lab.experiment.part import WHOLE, Part
from saliency_lab.experiment.schema import Declaration
from saliency_lab.models import ModelCard, load_model, read_card
from saliency_lab.models.checkpoint import CARD, check_checkpoint
from saliency_lab.study.cache.results import Failure
from saliency_lab.study.processes import LocalProcesses
from saliency_lab.study.running import completed
from saliency_lab.study.workers import WORKER_LOCK
from saliency_lab.training import Recipe, load_recipe, train
from saliency_lab.training.api import fabric_device, named_module, run_folder
from saliency_lab.training.run import RECIPE, check_run, read_identity

logger = logging.getLogger(__name__)

_IMAGES_PER_SECOND = 5_000.0
"""No network that is worth training sees more images per second on a CPU core."""


class Run(NamedTuple):
    """One training run of a declared study: the model it belongs to, its recipe and seed, its folder."""

    model: str
    recipe: Recipe
    seed: int
    folder: Path
    changes: dict[str, Any]
    """What this model changes in its recipe, in addition to what the study changes in all recipes."""

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the trained network exists."""
        return (self.folder / CARD).exists()

    @property
    def card(self) -> ModelCard | None:
        """The card of the trained network; None if the training failed."""
        return read_card(self.folder) if self.finished else None


def training_runs(
    declared: Declaration, data: ImageData, store: Path, part: Part = WHOLE, *, trust: bool = False
) -> list[Run]:
    """Every training run of a part of a study; its folder is named by the content of what decides it."""
    runs = []
    for model, recipe, seed, changes in declared_trainings(declared, trust=trust):
        if part.has(model, seed):
            folder = run_folder(store / "models", recipe, data, seed)
            runs.append(Run(model, recipe, seed, folder, changes))
    return runs


def declared_trainings(
    declared: Declaration, *, trust: bool = False
) -> Iterator[tuple[str, Recipe, int, dict[str, Any]]]:
    """Yield model, recipe, training seed and the model's own changes of each training run of a declaration.

    Raises
    ------
    InputError
        If a recipe is for other data than the study's, or its data are changed by an override.
    """
    for model, trained in declared.recipes.items():
        name = trained.recipe
        source = declared.folder / check_path(name) if name.endswith(".toml") else name
        overrides = declared.overrides | trained.overrides
        for key in ("image_size", "val_fraction", "root"):
            if f"data.{key}" in overrides:
                raise InputError(f"'data.{key}' is the study's: set it in the table [data], not in overrides")
            if key != "root":
                overrides[f"data.{key}"] = getattr(declared.data, key)
        recipe = load_recipe(source, overrides, trust=trust)
        if declared.data.name not in (recipe.data.name, "image_folder"):  # which may hold any
            raise InputError(
                f"recipe '{recipe.name}' is for the data set '{recipe.data.name}', and the study's is "
                f"'{declared.data.name}'; name a recipe for it, or set overrides = "
                f'{{ "data.name" = "{declared.data.name}" }}'
            )
        for seed in declared.trained_seeds[model]:
            yield model, recipe, seed, trained.overrides


def train_all(
    runs: Sequence[Run], data: ImageData, declared: Declaration, executor: Executor | None, device: str
) -> list[nn.Module | Failure]:
    """Return the network of each run, or why its training failed.

    Networks that other processes train in this store come last: they are read when they are finished, or
    trained here if the other process ended without finishing them.
    """
    left = [run for run in runs if not run.finished]
    if executor is not None and (
        not isinstance(executor, LocalProcesses)
        or (len(left) > 1 and executor.pays(_least_seconds(left, data)))
    ):
        _train_by(executor, left, data, declared, device)
    outcomes: dict[int, nn.Module | Failure] = {}
    for wait in (False, True):
        for index, run in enumerate(runs):
            if index in outcomes:
                continue
            try:
                outcomes[index] = _train(run, data, device, wait=wait)
            except Timeout:
                logger.info(
                    "%s (seed %d): another process is training it, so it comes last", run.model, run.seed
                )
            except (TrainingError, CheckpointError) as error:
                warn(f"{run.model} (seed {run.seed}) could not be trained: {error}")
                outcomes[index] = Failure.of(error)
    return [outcomes[index] for index in range(len(runs))]


def _least_seconds(runs: Sequence[Run], data: ImageData) -> float:
    """Estimate how long the trainings take at least, without measuring it."""
    return sum(run.recipe.training.epochs for run in runs) * len(data.train) / _IMAGES_PER_SECOND


def _train_by(
    executor: Executor, runs: Sequence[Run], data: ImageData, declared: Declaration, device: str
) -> None:
    """Train networks by an executor's workers, and wait; what they do not finish is trained here later."""
    jobs: list[Future[None]] = []
    try:
        for run in {run.folder: run for run in runs}.values():
            jobs.append(executor.submit(_train_in_worker, run, data.fingerprint, declared, device))
        with progress(label="train", total=len(jobs)) as bar:
            for job in completed(set(jobs)):
                error = job.exception()
                if error is not None and not isinstance(error, SaliencyLabError):
                    raise error
                bar.update()
    except Exception as error:  # each kind of executor has its own
        warn(
            f"the executor did not finish the training ({type(error).__name__}: {error}); what is missing is "
            "trained in this process",
        )
    finally:
        for job in jobs:
            job.cancel()


def _train_in_worker(run: Run, data: str, declared: Declaration, device: str) -> None:
    """Train one network in a worker, which reads the data itself; leave it to a process that trains it."""
    with WORKER_LOCK, contextlib.suppress(Timeout):
        read = load_declared_data(declared)
        if read.fingerprint != data:
            raise InputError(f"a worker found other files of '{declared.data.name}'; all must see the same")
        _train(run, read, device, wait=False)


def _train(run: Run, data: ImageData, device: str, *, wait: bool) -> nn.Module:
    """Train one network, or read it where it is finished.

    A damaged run is trained again, because that gives the same network.

    Raises
    ------
    Timeout
        Unless `wait`, if another process is training the network; with `wait`, this waits for its end.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(run.folder.with_name(f"{run.folder.name}.lock"), timeout=-1 if wait else 0):
        if run.changes and not run.finished:
            changes = ", ".join(f"{key} = {value}" for key, value in run.changes.items())
            logger.info("model '%s' is %s with %s:", run.model, run.recipe.name, changes)
        problems = _damage(run)
        if problems:
            warn(f"{'; '.join(problems)}; {run.model} (seed {run.seed}) is trained again")
            shutil.rmtree(run.folder)
        return train(run.recipe, data, seed=run.seed, out=run.folder, **fabric_device(device))


def load_trained(run: Run, data: ImageData, device: torch.device) -> nn.Module | None:
    """Load the network of a finished run; None if it has to be trained."""
    if not run.finished or _damage(run):
        return None
    return load_model(run.folder, device, model=named_module(run.recipe, data, run.seed))


def _damage(run: Run) -> list[str]:
    """Say which files of a training run are damaged."""
    recipe = run.folder / RECIPE
    problems = check_run(run.folder) if recipe.exists() else {}
    if recipe.exists() and recipe not in problems and not is_of(run.recipe, run.seed, run.folder):
        problems[recipe] = f"'{recipe}' is that of another run"
    if run.finished:
        problems |= check_checkpoint(run.folder)
    return list(problems.values())


def is_of(recipe: Recipe, seed: int, folder: Path) -> bool:
    """Return whether the training run in a folder is that of a recipe and seed."""
    expected = json.loads(json.dumps(load_recipe(recipe, {"seed": seed}).portable()))
    return bool(read_identity(folder)["recipe"] == expected)
