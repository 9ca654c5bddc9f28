"""Running a declared study: train what is missing, compute what is missing, compare."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from torch import nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.inference import named_device
from saliency_lab._common.warn import warn
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.experiment.given import finished_models
from saliency_lab.experiment.images import draw_sample, load_declared_data
from saliency_lab.experiment.part import WHOLE, Part
from saliency_lab.experiment.retraining import Retrained, retrain, retraining_plans
from saliency_lab.experiment.schema import Declaration
from saliency_lab.experiment.trainings import Run, train_all, training_runs
from saliency_lab.study.cache.results import Failure
from saliency_lab.study.running import ExecutorError
from saliency_lab.study.study import Study


class Outcome(NamedTuple):
    """What came out of a declared study."""

    study: Study
    comparison: Comparison
    runs: list[Run]
    """The training runs of the part that was computed, also those that failed."""
    retrained: Retrained
    """The results of the tables [roar] and [kar]."""


def run_declared(
    declared: Declaration,
    store: str | Path,
    *,
    executor: Executor | None = None,
    device: str = "auto",
    trust: bool = False,
    part: Part = WHOLE,
) -> Outcome:
    """Train what is missing, compute what is missing, and compare; everything is stored in `store`.

    ROAR and KAR come last, with the study's networks; their results are in the folder `roar` of the store. A
    recipe that cannot be trained for them is left out, with a warning, and is a failure of the study.

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
    sample = draw_sample(declared, data)
    all_runs = training_runs(declared, data, store, trust=trust)
    runs = [run for run in all_runs if part.has(run.model, run.seed)]
    requests = declared.requests(sample)
    retraining = retraining_plans(declared, data, runs)
    finished, damaged = finished_models(declared, data, there, part, trust=trust)
    trained: dict[str, list[nn.Module]] = {}
    failures: dict[tuple[str, int], Failure] = {}
    outcomes = train_all(runs, data, declared, executor, device)
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
    return Outcome(study, study.compare(), runs, retrain(retraining, study, store, device))


def _origins(declared: Declaration, runs: Sequence[Run]) -> dict[tuple[str, int | None], str]:
    """Return where each network that is declared comes from: its training run, or what the file names."""
    given = {
        (model, None): sources if isinstance(sources, str) else ", ".join(sources)
        for model, sources in declared.models.items()
    }
    return given | {(run.model, run.seed): run.folder.name for run in runs}
