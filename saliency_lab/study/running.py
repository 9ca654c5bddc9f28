"""Running a study's tasks: what is missing is computed here or by an executor, what fails is written down."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import replace

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.progress import progress
from saliency_lab.study.cache.manifest import Place
from saliency_lab.study.cache.results import Content, Kind
from saliency_lab.study.cache.store import Busy, FolderStore, Store
from saliency_lab.study.members import Member
from saliency_lab.study.sample import Sample
from saliency_lab.study.tasks import Failure, Name, Task, hand_over, perform_remotely, read_intact


class Runner:
    """What computes a study's cells, and knows what is finished and what failed.

    Parameters
    ----------
    sample : Sample
        The study's images.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.loaded: dict[str, Content] = {}
        """Contents by key; of maps none and of scores no curves, which are large and read when needed."""
        self.failures: dict[tuple[str, int, str], Failure] = {}
        """By model, seed and what it was."""

    def forget(self, at: Place) -> None:
        """Drop the failure of a cell, which is finished or no longer held."""
        self.failures.pop(_key(at), None)

    def load(self, store: Store, kind: Kind, key: str) -> bool:
        """Have a cell's content at hand; return whether the store holds it intact."""
        if not store.has(kind, key):  # `gc` deletes, and `save` leaves behind, what no study holds
            self.loaded.pop(key, None)
        elif key not in self.loaded:
            content = read_intact(store, kind, key)
            if content is not None:
                # as copies: what was read keeps its file mapped, and a process has 65,530 mappings
                whole = content.tensors.items()
                small = {name: each.clone() for name, each in whole if name not in ("curve", "at")}
                self.loaded[key] = replace(content, tensors=small)
        return key in self.loaded

    def _missing(self, store: Store, member: Member, task: Task) -> list[Name]:
        """Return the names of a task's cells that are not intact yet; keep the others' scores at hand."""
        missing = []
        for name, cell in task.cells.items():
            if cell.kind == "maps":  # large: read when needed
                found = store.has(cell.kind, cell.key)
            else:
                found = self.load(store, cell.kind, cell.key)
            if found:
                self.forget(task.place(name, member))
            else:
                missing.append(name)
        return missing

    def run(
        self,
        tasks: Sequence[tuple[Member, Task]],
        prints: Mapping[Member, str],
        *,
        store: Store,
        executor: Executor | None,
        verb: str,
    ) -> None:
        """Compute what is missing, here or by the executor; write down what failed, and say so."""
        problems: list[Failure] = []
        finished = 0  # now, or in an earlier run
        todo = []
        for member, task in tasks:
            missing = self._missing(store, member, task)
            finished += len(task.cells) - len(missing)
            hopeless = {
                name: failure
                for name in missing
                if task.kind == "scores"
                and (failure := self.failures.get((member.model, member.seed, name[1])))
            }
            for name, failure in hopeless.items():
                self.failures[_key(task.place(name, member))] = failure
                problems.append(failure)
            cells = {name: task.cells[name] for name in missing if name not in hopeless}
            if cells:
                todo.append((member, replace(task, cells=cells)))
        with progress(label=verb, total=len(todo)) as bar:
            for member, task, failed in self._perform(todo, prints, store, executor):
                for name, failure in failed.items():
                    self.failures[_key(task.place(name, member))] = failure
                problems += failed.values()
                finished += len(task.cells) - len(failed)
                self._missing(store, member, task)
                bar.update()
        if problems and not finished:
            raise problems[0].exception or SaliencyLabError(problems[0].error)
        if problems:
            warnings.warn(
                f"{len(problems)} of {len(problems) + finished} cells failed and the rest went on; "
                f"study.failures says why (the first: {problems[0].error})",
                stacklevel=4,
            )

    def _perform(
        self,
        todo: Sequence[tuple[Member, Task]],
        prints: Mapping[Member, str],
        store: Store,
        executor: Executor | None,
    ) -> Iterator[tuple[Member, Task, dict[Name, Failure]]]:
        if executor is None:
            return self._perform_here(store, todo)
        if not isinstance(store, FolderStore):
            raise TypeError("an executor's workers need a store that is a folder")
        return self._perform_elsewhere(store, todo, prints, executor)

    def _perform_here(
        self, store: Store, todo: Sequence[tuple[Member, Task]]
    ) -> Iterator[tuple[Member, Task, dict[Name, Failure]]]:
        """One after the other; what other processes are at work on is waited for at the end."""
        for wait in (False, True):
            busy = []
            for member, task in todo:
                try:
                    with store.lock(task.lock, wait=wait):
                        names = self._missing(store, member, task)
                        failed = task.perform(member.net, self.sample, store, names)
                except Busy:
                    busy.append((member, task))
                    continue
                yield member, task, failed
            todo = busy

    def _perform_elsewhere(
        self,
        store: FolderStore,
        todo: Sequence[tuple[Member, Task]],
        prints: Mapping[Member, str],
        executor: Executor,
    ) -> Iterator[tuple[Member, Task, dict[Name, Failure]]]:
        """By the executor's workers; what a dead worker had in hand is a failure."""
        store.write_sample(self.sample)
        name = self.sample.fingerprint
        inputs = {
            member: hand_over(store, name, prints[member], member.net)
            for member in dict.fromkeys(member for member, _ in todo)
        }
        futures: dict[Future[dict[Name, Failure]], tuple[Member, Task]] = {}
        try:
            for member, task in todo:
                try:
                    futures[executor.submit(perform_remotely, inputs[member], task)] = member, task
                except BrokenExecutor as error:
                    yield member, task, _worker_died(task, error)
            for future in as_completed(futures):
                member, task = futures[future]
                problem = future.exception()
                yield member, task, future.result() if problem is None else _worker_died(task, problem)
        finally:
            for future in futures:
                future.cancel()


def _worker_died(task: Task, error: BaseException) -> dict[Name, Failure]:
    """Return the failure of a whole task: its worker died, or it could not be sent there."""
    reason = SaliencyLabError(
        f"the executor did not finish '{', '.join(task.requests)}' ({type(error).__name__}: {error}); "
        "what was finished is in the store, so run the same again"
    )
    reason.__cause__ = error
    return dict.fromkeys(task.cells, Failure.of(reason))


def _key(at: Place) -> tuple[str, int, str]:
    """Return what a failure of a cell is recorded under."""
    return at.model, at.seed, at.what
