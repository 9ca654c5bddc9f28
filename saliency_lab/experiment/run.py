"""Running a declared study: train what is missing, compute what is missing, compare."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import nn

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import (
    CheckpointError,
    InputError,
    SaliencyLabError,
    TrainingError,
    unknown_name,
)
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.inference import named_device
from saliency_lab._common.progress import no_progress, progress
from saliency_lab._common.warn import warn
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.data import ImageData
from saliency_lab.data.images import Split, stratified_order
from saliency_lab.data.located import LocatedSplit
from saliency_lab.experiment.retraining import Retrained, retrain, retraining_plans, retraining_store
from saliency_lab.experiment.schema import Declaration
from saliency_lab.models import ModelCard, build_model, card_of, load_model, read_card
from saliency_lab.models.card import check_data
from saliency_lab.models.catalogue import ARCHITECTURES, is_custom, own_module
from saliency_lab.models.checkpoint import CARD, check_checkpoint, zoo_names
from saliency_lab.models.pretrained import is_pretrained_name, split_weights
from saliency_lab.retraining.api import RoarPlan, missing_networks
from saliency_lab.study.cache.results import Failure
from saliency_lab.study.cache.store import FolderStore, MemoryStore
from saliency_lab.study.planning import PLAN_COLUMNS, plan_networks
from saliency_lab.study.processes import LocalProcesses
from saliency_lab.study.running import ExecutorError, completed
from saliency_lab.study.sample import Member, StudySample, read_members, read_sample
from saliency_lab.study.study import Study
from saliency_lab.study.workers import WORKER_LOCK
from saliency_lab.training import Recipe, load_recipe, train
from saliency_lab.training.api import fabric_device, load_data, named_module, run_folder
from saliency_lab.training.run import RECIPE, check_run, read_identity

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """What one machine computes of a declared study; nothing given means the whole study."""

    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    """Training seeds; models that the study loads are always whole."""

    def check(self, declared: Declaration) -> None:
        """Raise InputError for a model or seed that the study does not declare, and for an empty part."""
        known = [*declared.recipes, *declared.models]
        for model in self.models:
            if model not in known:
                raise unknown_name("model of the study:", model, known)
        seeds = {seed for model, own in declared.trained_seeds.items() if self.has(model) for seed in own}
        declares = ", ".join(map(str, sorted(seeds))) or "none"
        for seed in self.seeds:
            if seed not in seeds:
                raise InputError(f"no network is trained with seed {seed} here; declared seeds: {declares}")

    def has(self, model: str, seed: int | None = None) -> bool:
        """Return whether a model, or its network with a seed, belongs to this part."""
        return (not self.models or model in self.models) and (
            seed is None or not self.seeds or seed in self.seeds
        )


WHOLE = Part()


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


def run_declared(
    declared: Declaration,
    store: str | Path,
    *,
    executor: Executor | None = None,
    device: str = "auto",
    trust: bool = False,
    part: Part = WHOLE,
) -> tuple[Study, Comparison, list[Run]]:
    """Train what is missing, compute what is missing, and compare; everything is stored in `store`.

    A training run that fails is a failure of the study, which continues without that network; so is a
    damaged checkpoint in [models], and what a lost executor did not finish. Networks are trained and run on
    `device`; "auto" is a GPU of CUDA if there is one, otherwise the CPU. An executor's workers decide that
    for what they train, and compute results on the CPU unless a device is named. Code that the files of
    recipes and the cards of models name is imported with `trust` only.

    Raises
    ------
    SaliencyLabError
        For a mistake in the declaration, before anything is trained; or if no model could be trained.
    """
    part.check(declared)
    there = named_device("cpu" if executor is not None and device == "auto" else device)
    store = Path(store).resolve()  # a worker may have another working folder
    data = load_declared_data(declared)
    sample = _draw_sample(declared, data)
    all_runs = training_runs(declared, data, store, trust=trust)
    runs = [run for run in all_runs if part.has(run.model, run.seed)]
    requests = declared.requests(sample)
    _retraining(declared, data, runs)
    finished, damaged = _finished_models(declared, data, there, part, trust=trust)
    trained: dict[str, list[nn.Module]] = {}
    failures: dict[tuple[str, int], Failure] = {}
    outcomes = _train_all(runs, data, declared, executor, device)
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, Failure):
            failures[run.model, run.seed] = outcome
        else:
            trained.setdefault(run.model, []).append(outcome.to(there))
    models = trained | finished
    if not models:
        first = next(iter((failures | damaged).values()))
        raise SaliencyLabError(f"no model of this study could be trained or loaded: {first.error}")
    study = Study(models, sample, store=store, seed=declared.seed, executor=executor)
    study._index.of_file, study._index.origins = True, _origins(declared, all_runs)
    for (model, seed), failure in failures.items():
        study.note_failure(model, seed, "training", failure)
    for (model, seed), failure in damaged.items():
        study.note_failure(model, seed, "loading", failure)
    baseline = declared.baseline if declared.baseline in study.models else None
    if declared.baseline is not None and baseline is None and part.has(declared.baseline):
        warn(f"the baseline '{declared.baseline}' could not be trained or loaded")
    study.purpose = declared.purpose.model_copy(update={"baseline": baseline})
    try:
        study.compute(requests)
    except ExecutorError as error:
        if study.scores.empty and study.robustness.empty:
            raise
        warn(str(error))
        for place, failure in error.failures.items():
            study.note_failure(place.model, place.seed, place.what, failure)
    else:
        study.write_manifest(exclusive=part == WHOLE)
    return study, study.compare(), runs


def _origins(declared: Declaration, runs: Sequence[Run]) -> dict[tuple[str, int | None], str]:
    """Return where each network that is declared comes from: its training run, or what the file names."""
    given = {
        (model, None): sources if isinstance(sources, str) else ", ".join(sources)
        for model, sources in declared.models.items()
    }
    return given | {(run.model, run.seed): run.folder.name for run in runs}


def retrain_declared(
    declared: Declaration,
    study: Study,
    store: str | Path,
    *,
    device: str = "auto",
    trust: bool = False,
    part: Part = WHOLE,
) -> Retrained:
    """Carry out the tables [roar] and [kar] of a declared study; return the results by table and model.

    The networks that are explained are those of the study. Results are stored in the folder `roar` of the
    store. A recipe whose training fails is left out, with a warning, and is a failure of `study`.
    """
    store = Path(store).resolve()
    data = load_declared_data(declared)
    runs = training_runs(declared, data, store, part, trust=trust)
    return retrain(_retraining(declared, data, runs), study, store, device)


def _retraining(
    declared: Declaration, data: ImageData, runs: Sequence[Run]
) -> dict[tuple[str, str], RoarPlan]:
    """Return what the tables [roar] and [kar] ask for, of the models that these runs train."""
    recipes: dict[str, tuple[Recipe, list[int]]] = {}
    for run in runs:
        recipes.setdefault(run.model, (run.recipe, []))[1].append(run.seed)
    skipped = [name for name in declared.recipes if name not in recipes]
    return retraining_plans(declared, data, recipes, skipped)


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
    sample = _draw_sample(declared, data)
    runs = training_runs(declared, data, Path(store), part, trust=trust)
    requests = declared.requests(sample)
    retraining = _retraining(declared, data, runs)
    trained = [_load_trained(run, data, there) for run in runs]
    networks: dict[Member, str] = {}
    for run, net in zip(runs, trained, strict=True):
        weights = f"untrained {run.folder.name}" if net is None else model_fingerprint(net)
        networks[Member(run.model, run.seed, run.recipe.name, net)] = weights
    finished, _ = _finished_models(declared, data, there, part, trust=trust)
    networks |= {each: model_fingerprint(each.net) for each in (read_members(finished) if finished else [])}
    if not networks:
        raise SaliencyLabError("every checkpoint of this study is damaged, as the warnings say")
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [net for run, net in zip(runs, trained, strict=True) if run.model == model]
        row: dict[str, Any] = {"step": "train", "what": model, "results": len(own)}
        row["missing"] = sum(net is None for net in own)
        if row["missing"]:
            recipe = next(run.recipe for run in runs if run.model == model)
            row["seconds"] = row["missing"] * _training_seconds(recipe, data, device)
        rows.append(row)
    last = []
    for (table, model), plan in retraining.items():
        row = {"step": table, "what": model, "results": len(plan.networks())}
        row["missing"] = missing_networks(plan, retraining_store(Path(store)))
        if row["missing"]:
            row["seconds"] = row["missing"] * _training_seconds(plan.recipe, data, device)
        last.append(row)
    known = next((member.module for member in networks if member.module is not None), None)
    timed = _untrained(runs[0], data, there) if known is None else known
    where = FolderStore(store) if Path(store).is_dir() else MemoryStore()  # a plan creates nothing
    steps = plan_networks(networks, sample, declared.seed, where, requests, timed)
    return pd.concat([pd.DataFrame(rows), steps, pd.DataFrame(last)], ignore_index=True)[PLAN_COLUMNS]


def load_declared_data(declared: Declaration) -> ImageData:
    """Load the data set of a declared study."""
    root = declared.data.root
    folder = None if root is None else str(declared.folder / check_path(root, "data.root"))
    return load_data(declared.data.model_copy(update={"root": folder}))


def _draw_sample(declared: Declaration, data: ImageData) -> StudySample:
    """Draw the images that a declaration asks for, with their masks where the data set has some."""
    split: Split = getattr(data, declared.data.split)
    wanted = declared.data.images
    if wanted > len(split):
        raise InputError(
            f"the study asks for data.images = {wanted:,}, and the {declared.data.split} split of "
            f"'{declared.data.name}' has {len(split):,}"
        )
    draw = split.located if isinstance(split, LocatedSplit) else split.sample
    return read_sample(draw(wanted, declared.seed))


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


def _train_all(
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


def _load_trained(run: Run, data: ImageData, device: torch.device) -> nn.Module | None:
    """Load the network of a finished run; None if it has to be trained."""
    if not run.finished or _damage(run):
        return None
    return load_model(run.folder, device, model=named_module(run.recipe, data, run.seed))


def _untrained(run: Run, data: ImageData, device: torch.device) -> nn.Module:
    """Build the network of a run for timing; a small one in place of a custom architecture."""
    name = "small_cnn" if is_custom(run.recipe.model.name) else run.recipe.model.name
    classes = len(data.classes)
    return build_model(name, num_classes=classes, input_shape=data.input_shape, seed=0).to(device)


def _is_own(source: str) -> bool:
    """Return whether a model's source is registered, or `module:attribute`, and not a folder."""
    return ":" in source or source in ARCHITECTURES.extensions()


def _finished_models(
    declared: Declaration, data: ImageData, device: torch.device, part: Part = WHOLE, *, trust: bool
) -> tuple[dict[str, list[nn.Module]], dict[tuple[str, int], Failure]]:
    """Load the networks of [models] that belong to the part; return them, and failures of damaged ones.

    A failure is listed under the seed on the card or, if that is damaged, under the checkpoint's position.
    """
    models: dict[str, list[nn.Module]] = {}
    damaged: dict[tuple[str, int], Failure] = {}
    for name, sources in declared.models.items():
        if not part.has(name):
            continue
        listed = [sources] if isinstance(sources, str) else sources
        if len(set(listed)) < len(listed):
            raise InputError(f"model '{name}' lists a checkpoint twice; each must be another seed")
        if not listed:
            raise InputError(f"model '{name}' lists no checkpoint; name one, or leave the model out")
        for position, source in enumerate(listed):
            path, weights = _found(declared.folder, source)
            if _is_own(source) and not path.exists():
                own = own_module(source, len(data.classes), data.input_shape, declared.seed)
                models.setdefault(name, []).append(own.to(device))
                continue
            try:
                net = load_model(path.as_posix(), device, weights=weights, trust=trust)
                check_data(card_of(net), name, data.name, data.input_shape, data.classes)
                models.setdefault(name, []).append(net)
            except CheckpointError as error:
                if not path.exists() or not check_checkpoint(path):
                    raise  # a mistake in the study, not damage
                warn(f"{name}: {error}; the study continues without it")
                seed = position
                with contextlib.suppress(CheckpointError):
                    known = read_card(path).seed
                    seed = position if known is None else known
                damaged[name, seed] = Failure.of(error)
    return {name: networks for name, networks in models.items() if networks}, damaged


def _found(folder: Path, source: str) -> tuple[Path, str | Path | None]:
    """Return the folder of a network, relative to the study's file, or its name; and the weights it gets."""
    path = folder / check_path(source)
    if path.exists():
        return path, None
    name, weights = split_weights(source)
    if weights is not None and (folder / weights).is_file():
        return Path(name), folder / weights
    return Path(name) if name in zoo_names() or is_pretrained_name(name) else path, weights


_TIMED_STEPS = (2, 8)
_IMAGES_PER_SECOND = 5_000.0
"""No network that is worth training sees more images per second on a CPU core."""


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
