"""The study: models × methods × metrics and attacks on the same images, where nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from saliency_lab._common.arguments import check_flag, check_instance, check_path, check_text
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError
from saliency_lab._common.execution import CompileMode, ExecutionSettings, make_execution
from saliency_lab._common.files import writable_folder
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.samples import Images
from saliency_lab._common.selection import Selection
from saliency_lab._common.warn import warn
from saliency_lab.attacks.checklist import BudgetName
from saliency_lab.study.cache.index import ResultIndex, load_index
from saliency_lab.study.cache.results import Failure, Place
from saliency_lab.study.cache.store import FolderStore, MemoryStore
from saliency_lab.study.planning import make_plan
from saliency_lab.study.reading import StudyResults
from saliency_lab.study.requests import (
    GridRequests,
    read_attack,
    read_audit,
    read_grid,
    read_methods,
    read_metrics,
)
from saliency_lab.study.running import run_tasks
from saliency_lab.study.sample import Member, StudySample, read_members, read_sample
from saliency_lab.study.tasks import StudyTask, TaskInputs, make_tasks


class Study(StudyResults):
    """Compare models on the same images; store every result, and compute only what is missing.

    Parameters
    ----------
    models : mapping of name to nn.Module, or to a sequence of them
        The models to compare. Several modules under one name are one model trained with several seeds.
    sample : (Tensor, Tensor) or (Tensor, Tensor, Tensor)
        Images (N, C, H, W) in [0, 1] and labels (N,), or a DataLoader or data set of these. Where the
        evidence is known, also masks (N, 1, H, W), as `located(n)` of a split returns them, for metrics of
        localisation.
    store : path, optional
        A folder in which each result is stored under a hash of what it depends on (weights, images, settings,
        versions). The same script, run again, reads the results that are finished. Several processes may
        share a store. Without one, results are kept in memory.
    seed : int
        Seed of every random draw in methods, metrics, attacks and bootstrap.
    executor : concurrent.futures.Executor, optional
        Computes the missing results in other processes or on other machines, such as Dask's
        `client.get_executor()`. Results are the same. Workers read images and weights from the store, which
        all of them must be able to reach.
    compile : "auto", True or False, optional
        How passes run, as for `sl.execution`; by default as its innermost block says when a method of the
        study is called. What was measured is stored with the study and used again.
    dtype : "bfloat16" or torch.bfloat16, optional
        As for `sl.execution`. Results under another dtype are stored separately.
    compact_maps : bool
        Store maps with one byte per value, a quarter of the usual size, rounded to three bits of mantissa.
        Their scores change a little, and are stored separately.

    Raises
    ------
    InputError
        If there are no models, if the images or labels have the wrong type, shape or range, or if there is an
        executor and no store.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> study = Study({"plain": net}, (torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])))
    >>> study.attribute("saliency").score("sparseness")
    Study(1 model, 4 images (1, 4, 4); methods: saliency; metrics: sparseness)
    >>> study.scores.columns.tolist()
    ['model', 'recipe', 'seed', 'method', 'metric', 'sample', 'score']
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module | Sequence[nn.Module]],
        sample: Images | StudySample,
        *,
        store: str | Path | None = None,
        seed: int = 0,
        executor: Executor | None = None,
        compile: CompileMode | None = None,
        dtype: str | torch.dtype | None = None,
        compact_maps: bool = False,
    ) -> None:
        self._index, self.executor = _new_index(sample, models, seed, store, executor), executor
        self._execution = _own_execution(compile, dtype)
        self._compact_maps = check_flag(compact_maps, "compact_maps")

    def attribute(self, methods: Selection) -> Study:
        """Attribute every model by these methods; only what is missing is computed.

        Parameters
        ----------
        methods : str, callable, sequence of these, or mapping of str to settings
            A name of `list_methods()`, a function `(model, x, classes, **settings)` that returns maps, a
            sequence of these, or label → settings. A label that is not a name needs the method among its
            settings: `{"smooth": {"method": "smoothgrad", "stdev": 0.3}}`. The setting `target` is that of
            `sl.attribute`; maps are scored for the class that they explain. Other settings under a label that
            is used already replace its maps, and their scores are removed.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            For an unknown method or setting, before anything is computed.
        """
        return self.compute(GridRequests(methods=read_methods(methods)))

    def score(self, metrics: Selection) -> Study:
        """Score all maps by these metrics; only what is missing is computed.

        Parameters
        ----------
        metrics : str, callable, sequence of these, or mapping of str to settings
            A name of `list_metrics()`, a sequence of names, or label → settings, as for `attribute`.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            For an unknown metric or setting, for a metric that needs masks if the study has none, or if there
            are no maps yet.
        """
        return self.compute(GridRequests(metrics=read_metrics(metrics, self.sample)))

    def attack(
        self,
        attack: str | Callable[..., Any] = "pgd",
        *,
        eps: float | str | Sequence[float | str],
        label: str | None = None,
        **settings: Any,
    ) -> Study:
        """Attack every model at each ε (and at 0); only what is missing is computed.

        An image that is broken at one ε counts as broken at every larger one, as in `robustness_curve`. Calls
        with the same label and settings add their ε, as if they had been given in one call; name all in one
        call where you can, as each call computes all of them again. Other settings replace the earlier ones.

        Parameters
        ----------
        attack : str or callable
            A name of `list_attacks()`, or a function as `sl.attack` takes it.
        eps : float, str, or sequence of these
            One radius or several, in image units; text such as "8/255" is accepted.
        label : str, optional
            The name in the tables, for one attack with two settings. By default the name of the attack, with
            "_l2" if that is its norm.
        **settings
            Settings of the attack.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            For an unknown attack or setting, or a radius out of range.
        """
        return self.compute(GridRequests(attacks=[read_attack(attack, eps, label, settings)]))

    def audit(
        self,
        attack: str | Callable[..., Any] = "pgd",
        *,
        eps: float | str | Sequence[float | str],
        label: str | None = None,
        images: int | None = None,
        budget: BudgetName = "quick",
        **settings: Any,
    ) -> Study:
        """Audit for every model whether the result of this attack can be trusted; see `sl.audit`.

        Attacks are also transferred from one network of every model of this study, of another seed for the
        audited model itself, so an audit is repeated when such a network is added or changed.

        Parameters
        ----------
        attack, eps, label : as for `Study.attack`
            Every ε is audited separately.
        images : int, optional
            Audit only the first images, because audits take long; all by default.
        budget : {"quick", "full"}
            Budget of the reference attacks, as for `sl.audit`.
        **settings
            Settings of the attack. Without any, the attack with this label is audited with the settings that
            it had in this study, or in an earlier run on the same images and store.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            As `attack`; also if no ε is above 0, or for a wrong number of images.
        """
        request = read_audit(attack, eps, self.sample, label, images, budget, settings)
        return self.compute(GridRequests(audits=[request]))

    def compute(self, requests: GridRequests) -> Study:
        """Compute what is missing of requests that are already validated, such as those of a study's file.

        Parameters
        ----------
        requests : GridRequests
            Methods, metrics, attacks and audits, in the order in which the calls above are made.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        SaliencyLabError
            If all results of a step failed.
        """
        requests = check_instance(requests, GridRequests, "requests", "GridRequests")
        for step in requests.with_settings(self._execution, self._compact_maps).steps():
            inputs, index = _task_inputs(self._index), self._index.snapshot()
            tasks = make_tasks(step, inputs, index)
            if step.verb == "score":
                _refuse_changed_maps(tasks, self._index)
            before, self._index = self._index, index
            try:
                run_tasks(tasks, inputs, index, executor=self.executor, verb=step.verb)
            except Exception:  # all results failed
                self._index = before
                raise
            finally:
                self._index.write_manifest()
        return self

    def plan(
        self,
        methods: Selection = (),
        metrics: Selection = (),
        attacks: Mapping[str, Mapping[str, Any]] | None = None,
        audits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> pd.DataFrame:
        """List what these calls would compute, without computing it.

        Parameters
        ----------
        methods, metrics : str, callable, sequence of these, or mapping of str to settings
            As for `attribute` and `score`.
        attacks, audits : mapping of str to settings, optional
            Label → settings of `attack` and `audit`, with `eps` among them, and `attack` where the label is
            not the name of one.

        Returns
        -------
        DataFrame
            One row per step: how many `results` it has, how many are `missing`, and the `seconds` that these
            take here, measured on a few images and the first model; attacks as if they broke no image.

        Raises
        ------
        InputError
            For an unknown name or setting.
        """
        grid = read_grid(self.sample, methods, metrics, attacks, audits)
        requests = grid.with_settings(self._execution, self._compact_maps)
        return make_plan(requests, _task_inputs(self._index), self._index, self.members[0].net)

    def note_failure(self, model: str, seed: int, what: str, failure: Failure) -> None:
        """Record a failure outside of this study, such as one of training.

        Parameters
        ----------
        model, seed : str, int
            The model's name and training seed.
        what : str
            What failed, such as "training".
        failure : Failure
            The error and its traceback.

        Raises
        ------
        InputError
            If an argument has the wrong type.
        """
        check_text(model, "model")
        check_text(what, "what")
        check_instance(failure, Failure, "failure", "a Failure, as Failure.of(error) makes it")
        self._index.failures[model, check_seed(seed), what] = failure

    @classmethod
    def load(cls, store: str | Path) -> Study:
        """Read a study back from its store without its networks: tables, maps, comparison and figures.

        Parameters
        ----------
        store : path
            The folder that was given as `Study(..., store=…)`.

        Returns
        -------
        Study
            With all results that are intact.

        Raises
        ------
        InputError
            If there is no study, or its images are missing or damaged.
        """
        study = cls.__new__(cls)
        study._index, study.executor = load_index(store), None
        study._execution, study._compact_maps = None, False
        return study

    def save(self, folder: str | Path) -> Study:
        """Copy everything into another store, and continue there.

        Parameters
        ----------
        folder : path
            The other store; it is created if there is none.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            If the folder cannot be written.
        """
        self._index.move_to(FolderStore(writable_folder(check_path(folder, "folder"))))
        return self

    def merge(self, store: str | Path) -> Study:
        """Copy the intact results of another store, such as another machine's; warnings name damaged ones.

        If that store has a study of the same images and seed, its models, methods, metrics and attacks appear
        in the tables of this study. Where both have a label with different settings, those of this study
        stay. The other's models come without networks: to compute more, build a study of all of them on this
        store.

        Parameters
        ----------
        store : path
            The folder of the other store.

        Returns
        -------
        Study
            This study.

        Raises
        ------
        InputError
            If there is no store, or a model and seed of this study is another network there.
        """
        self._index.merge(store)
        return self

    def gc(self) -> int:
        """Delete every result in the store that is not one of this study.

        Returns
        -------
        int
            Bytes freed.

        Raises
        ------
        InputError
            If the study is in memory or has no results, or another study's list in the store is damaged.
        """
        return self._index.collect_garbage()

    def write_manifest(self, *, exclusive: bool = False) -> None:
        """Write the list of results in the store, `study.json`.

        Parameters
        ----------
        exclusive : bool
            List the results of this study alone. By default, those that others listed for the same images
            stay. Results stay in the store either way; `gc` deletes them.

        Raises
        ------
        InputError
            If `exclusive` is not True or False.
        """
        self._index.write_manifest(exclusive=check_flag(exclusive, "exclusive"))


def _new_index(
    sample: Images | StudySample,
    models: Mapping[str, nn.Module | Sequence[nn.Module]],
    seed: int,
    store: str | Path | None,
    executor: Executor | None,
) -> ResultIndex:
    """Check what a study is built from; return its index, without results, but with the store's attacks."""
    images, members, seed = read_sample(sample), read_members(models), check_seed(seed)
    folder = None if store is None else check_path(store, "store")
    if executor is not None:
        check_instance(executor, Executor, "executor", "a concurrent.futures.Executor")
        if folder is None:
            raise InputError(
                "an executor's workers meet in the store: Study(..., store='runs/first', executor=…)"
            )
    weights = {(each.model, each.seed): model_fingerprint(each.net) for each in members}
    _warn_of_copies(members, weights)
    where = MemoryStore() if folder is None else FolderStore(writable_folder(folder))
    index = ResultIndex(images, images.images, seed, members, where, weights)
    listed = where.read_manifest() if isinstance(where, FolderStore) else None
    if listed is not None and listed.results and (listed.images, listed.seed) != (index.images, seed):
        warn(
            f"'{folder}' lists the results of a study of other images, or of another seed. Its list will be "
            "replaced, and its results stay in the store until gc; name another store to keep both lists"
        )
    index.read_stored_attacks()
    return index


def _own_execution(compile: CompileMode | None, dtype: str | torch.dtype | None) -> ExecutionSettings | None:
    """Return how the passes of a study run; None if the innermost `execution` says it."""
    if compile is None and dtype is None:
        return None
    return make_execution("auto" if compile is None else compile, dtype)


def _task_inputs(index: ResultIndex) -> TaskInputs:
    """Return what all keys depend on now: the weights of a network may have changed since the last call."""
    if index.sample.images != index.images:
        raise InputError("the images of this study changed since it was built; build another")
    networks = {member: model_fingerprint(member.net) for member in index.members}
    return TaskInputs(index.sample, index.images, networks, index.seed)


def _warn_of_copies(members: Sequence[Member], weights: Mapping[tuple[str, int], str]) -> None:
    first: dict[str, Member] = {}
    for member in members:
        twin = first.setdefault(weights[member.model, member.seed], member)
        if twin is not member:
            warn(
                f"{member} and {twin} are the same network, so their results are the same too; give each "
                "model its own network",
            )


def _refuse_changed_maps(tasks: Sequence[StudyTask], index: ResultIndex) -> None:
    """Refuse to score maps that were made of other weights, or by a function that has changed since."""
    for task in tasks:
        for label, (result, _) in task.maps.items():
            if index.results.get(Place("maps", label, "", *task.network)) != result.key:
                model, seed = task.network
                raise InputError(
                    f"the weights of {model} (seed {seed}), its attributes or hooks, or what '{label}' uses "
                    "changed since study.attribute; call it again (an attribute that every run changes, such "
                    "as a counter, needs a name that starts with an underscore)"
                )
