"""The runner: it computes the results of tasks that are missing, here or by an executor."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

from torch import nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.progress import announce, progress
from saliency_lab._common.warn import warn
from saliency_lab.metrics.cost import LONG, duration
from saliency_lab.study.cache.index import ResultIndex
from saliency_lab.study.cache.results import Failure, Place
from saliency_lab.study.cache.store import FolderStore, LockedError
from saliency_lab.study.processes import LocalProcesses
from saliency_lab.study.tasks import Network, StudyTask, TaskInputs, perform
from saliency_lab.study.workers import WorkerInputs, hand_over, perform_in_worker

Failures = dict[Place, Failure]


class ExecutorError(SaliencyLabError):
    """An executor did not finish a task: its workers died, its scheduler is lost, or it was closed."""

    exit_code = 1  # of the command line: what was finished is in the store
    failures: Mapping[Place, Failure] = {}


def run_tasks(
    tasks: Sequence[StudyTask],
    inputs: TaskInputs,
    index: ResultIndex,
    *,
    executor: Executor | None,
    verb: str,
) -> None:
    """Record the tasks' results in the index, compute those that are missing, and record what failed."""
    index.record({place: each for task in tasks for place, each in task.results.items()}, inputs.networks)
    inherited: Failures = {}
    failures: Failures = {}
    todo = []
    for task in tasks:
        missing = index.missing(task.results)
        without_maps = {place: failure for place in missing if (failure := _failure_of_maps(place, index))}
        inherited |= without_maps
        if len(missing) > len(without_maps):
            todo.append(task.only([place for place in missing if place not in without_maps]))
    started = time.perf_counter()
    with progress(label=verb, total=len(todo)) as bar:
        for done, (task, failed) in enumerate(_perform_all(todo, inputs, index, executor), 1):
            for place, result in task.results.items():
                if place not in failed:
                    index.load(place, result.key)
            failures |= failed
            bar.update()
            if done == 1:
                _announce_long_work(verb, time.perf_counter() - started, len(todo) - 1)
    failures |= inherited  # the first one is this call's own, if there is one
    for place, failure in failures.items():
        index.fail(place, failure)
    total = sum(len(task.results) for task in tasks)
    if failures and len(failures) == total:
        first = next(iter(failures.values()))
        if isinstance(first.exception, ExecutorError):
            first.exception.failures = failures
        raise first.exception or SaliencyLabError(first.error)
    if failures:
        first = next(iter(failures.values()))
        warn(
            f"{len(failures)} of {total} results failed and the others are finished; study.failures says why "
            f"(the first: {first.error})",
        )


def _announce_long_work(verb: str, first: float, left: int) -> None:
    """Show about how long the tasks that are left take, if that is more than a minute."""
    if first * left > LONG:
        announce(
            f"study, {verb}: {left} tasks are left, which take {duration(first * left)} if each takes as "
            f"long as the first ({duration(first)}); the plan of the study estimates every step"
        )


def _failure_of_maps(place: Place, index: ResultIndex) -> Failure | None:
    """Return why the maps failed that the scores at a place are of."""
    return index.failures.get((place.model, place.seed, place.label)) if place.kind == "scores" else None


def _perform_all(
    tasks: Sequence[StudyTask], inputs: TaskInputs, index: ResultIndex, executor: Executor | None
) -> Iterator[tuple[StudyTask, Failures]]:
    networks = {(member.model, member.seed): member.net for member in inputs.networks}
    if executor is None:
        return _perform_here(tasks, inputs, index, networks)
    if isinstance(executor, LocalProcesses):
        return _perform_where_it_pays(executor, tasks, inputs, index, networks)
    return _perform_by(executor, tasks, inputs, index.folder(), networks)


def _perform_where_it_pays(
    processes: LocalProcesses,
    tasks: Sequence[StudyTask],
    inputs: TaskInputs,
    index: ResultIndex,
    networks: Mapping[Network, nn.Module],
) -> Iterator[tuple[StudyTask, Failures]]:
    """Carry tasks out here until those that are left would take long enough for other processes."""
    left = list(tasks)
    if not processes.pays(0.0):
        began = time.perf_counter()
        for done, (task, failed) in enumerate(_perform_here(tasks, inputs, index, networks), 1):
            yield task, failed
            left.remove(task)
            if len(left) > 1 and processes.pays(len(left) * (time.perf_counter() - began) / done):
                break
    if left:
        yield from _perform_by(processes, left, inputs, index.folder(), networks)


def _perform_here(
    tasks: Sequence[StudyTask],
    inputs: TaskInputs,
    index: ResultIndex,
    networks: Mapping[Network, nn.Module],
) -> Iterator[tuple[StudyTask, Failures]]:
    """Carry the tasks out one after the other; those that other processes work on come last."""
    for blocking in (False, True):
        locked = []
        for task in tasks:
            try:
                with index.store.lock(task.lock, wait=blocking):
                    lacking = index.missing(task.results)  # another process may have finished some
                    failed = perform(task.only(lacking), networks, inputs.sample, index.store)
            except LockedError:
                locked.append(task)
                continue
            yield task, failed
        tasks = locked


def _perform_by(
    executor: Executor,
    tasks: Sequence[StudyTask],
    inputs: TaskInputs,
    store: FolderStore,
    networks: Mapping[Network, nn.Module],
) -> Iterator[tuple[StudyTask, Failures]]:
    """Carry the tasks out by an executor's workers; what it does not finish has failed."""
    store.write_sample(inputs.sample)
    sample = inputs.sample.fingerprint
    fingerprints = {(member.model, member.seed): model for member, model in inputs.networks.items()}
    handed_over: dict[Network, WorkerInputs] = {}
    futures: dict[Future[Failures], StudyTask] = {}
    try:
        for task in tasks:
            needed = (task.network, *task.sources)
            for network in needed:
                if network not in handed_over:
                    handed_over[network] = hand_over(store, sample, fingerprints[network], networks[network])
            try:
                inputs_of_task = {network: handed_over[network] for network in needed}
                futures[executor.submit(perform_in_worker, inputs_of_task, task)] = task
            except Exception as error:  # each kind of executor has its own
                yield task, _not_finished(task, error)
        for future in completed(set(futures)):
            task = futures[future]
            try:
                failed = {Place(*place): failure for place, failure in future.result().items()}
            except Exception as error:
                failed = _not_finished(task, error)
            yield task, failed
    finally:
        for future in futures:
            future.cancel()


def completed(futures: set[Future[Any]]) -> Iterator[Future[Any]]:
    """Yield futures as they complete, also those that are cancelled by somebody who does not say so.

    `concurrent.futures.as_completed` waits for these forever.
    """
    while futures:
        done, _ = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        done |= {future for future in futures if future.cancelled()}
        yield from done
        futures = futures - done


def _not_finished(task: StudyTask, error: BaseException) -> Failures:
    """Return the failure of a whole task that an executor did not finish."""
    reason = ExecutorError(
        f"the executor did not finish '{', '.join(task.requests)}' ({type(error).__name__}: {error}); "
        "what was finished is in the store, so run the same again"
    )
    reason.__cause__ = error
    return dict.fromkeys(task.results, Failure.of(reason))
