"""Tasks: cells that are computed together, here or by a worker that reads its inputs from the store."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import device_of, named_device
from saliency_lab._common.progress import show_progress
from saliency_lab.study import work
from saliency_lab.study.cache.manifest import Place
from saliency_lab.study.cache.results import Cell, Content, Kind
from saliency_lab.study.cache.store import DamagedCellError, FolderStore, Store
from saliency_lab.study.members import Member
from saliency_lab.study.requests import Request
from saliency_lab.study.sample import Sample


@dataclass(frozen=True, eq=False)
class Failure:
    """Why a cell has no content; the exception itself is kept only in the process that raised it."""

    error: str
    traceback: str
    exception: BaseException | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception, and free what its frames hold: images, activations, a GPU's memory."""
        text = "".join(traceback.format_exception(error))
        traceback.clear_frames(error.__traceback__)
        return cls(f"{type(error).__name__}: {error}", text, error)


Name = tuple[str, str]
"""A cell of a task: label of a method, attack or audit and "", or of a metric and the method it scores."""


@dataclass(frozen=True, eq=False)
class Task:
    """Cells of one model that are computed together, by name.

    Either one method's maps, or scores of several methods' maps by metrics that share their passes, or one
    attack, or one audit of the first `images` images. `maps` says what a score task scores, by label: the
    cell and how it is made. `lock` keeps other processes off.
    """

    requests: Mapping[str, Request]
    seed: int
    lock: str
    cells: Mapping[Name, Cell]
    maps: Mapping[str, tuple[Cell, Request]] = field(default_factory=dict)
    eps: Sequence[float] = ()
    images: int = 0
    budget: Literal["quick", "full"] = "quick"

    @property
    def kind(self) -> Kind:
        """Kind of its cells."""
        return next(iter(self.cells.values())).kind

    def place(self, name: Name, member: Member) -> Place:
        """Where the cell of this name stands in the grid, for one member."""
        label, method = name
        of = (method, label) if method else (label, "")
        return Place(self.kind, *of, member.model, member.seed)

    def perform(
        self, net: nn.Module, sample: Sample, store: Store, names: Sequence[Name]
    ) -> dict[Name, Failure]:
        """Compute and keep the cells of these names; return what failed. Other errors are the store's."""
        if not names:
            return {}
        try:
            contents = self._compute(net, sample, store, names)
        except Exception as error:
            failure = Failure.of(error)
        else:
            for name, content in contents.items():
                store.write(self.cells[name], content)
            return {}
        if len(names) == 1:
            return {names[0]: failure}
        labels = list(dict.fromkeys(label for label, _ in names))
        parts = [[name] for name in names]  # so that only the bad one is lost
        if len(labels) > 1:
            parts = [[name for name in names if name[0] == label] for label in labels]
        problems: dict[Name, Failure] = {}
        for part in parts:
            problems |= self.perform(net, sample, store, part)
        return problems

    def _compute(
        self, net: nn.Module, sample: Sample, store: Store, names: Sequence[Name]
    ) -> Mapping[Name, Content]:
        if self.kind != "scores":
            (name,) = names
            request = self.requests[name[0]]
            if self.kind == "maps":
                return {name: work.compute_maps(net, sample, request, self.seed)}
            if self.kind == "attack":
                return {name: work.compute_attack(net, sample, request, self.eps, self.seed)}
            few = sample.first(self.images)
            return {name: work.compute_audit(net, few, request, self.eps[0], self.budget, self.seed)}
        wanted = dict.fromkeys(method for _, method in names)
        made = {method: self._made(method, net, sample, store) for method in wanted}
        together: dict[tuple[str, ...], list[str]] = {}  # metrics that lack the same methods
        for label in dict.fromkeys(label for label, _ in names):
            together.setdefault(tuple(m for each, m in names if each == label), []).append(label)
        contents: dict[Name, Content] = {}
        for methods, labels in together.items():
            maps = {method: made[method] for method in methods}
            requests = [self.requests[label] for label in labels]
            contents |= work.compute_scores(net, sample, maps, requests, self.seed)
        return contents

    def _made(self, method: str, net: nn.Module, sample: Sample, store: Store) -> work.Made:
        """Maps of a method, from the store, or computed again where the store's are damaged."""
        cell, request = self.maps[method]
        content = read_intact(store, cell.kind, cell.key)
        if content is None:
            content = work.compute_maps(net, sample, request, self.seed)
            store.write(cell, content)
        return work.Made(content, request)


def read_intact(store: Store, kind: Kind, key: str) -> Content | None:
    """Return the content of a cell, None where it has to be computed; a damaged one is named."""
    try:
        return store.read(kind, key)
    except DamagedCellError as error:
        warnings.warn(f"{error}; it is computed again", stacklevel=2)
        return None


# --- in a worker --------------------------------------------------------------------------------

ALONE = threading.Lock()
"""Held by whatever works in a worker: libraries draw from global generators, so one at a time a process."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Where a worker finds what a task needs; the network comes without its weights."""

    folder: str
    sample: str
    weights: str
    skeleton: nn.Module
    device: str


def hand_over(store: FolderStore, sample: str, weights: str, net: nn.Module) -> Inputs:
    """Put a network's weights into the store, and return what a worker needs to assemble it."""
    store.write_weights(weights, _tensors(net))
    skeleton = copy_model(net).to("meta")
    return Inputs(str(store.folder.resolve()), sample, weights, skeleton, str(device_of(net)))


def perform_remotely(inputs: Inputs, task: Task) -> dict[Name, Failure]:
    """Do a task in another process: inputs come from the store and results go there."""
    with ALONE:
        if multiprocessing.parent_process() is not None:
            show_progress(False)
        store = FolderStore(inputs.folder)
        sample = _sample(inputs.folder, inputs.sample)
        net = _assemble(store, inputs)
        with store.lock(task.lock, wait=True):
            names = [
                name for name, cell in task.cells.items() if read_intact(store, cell.kind, cell.key) is None
            ]
            problems = task.perform(net, sample, store, names)
    return {name: replace(problem, exception=None) for name, problem in problems.items()}


@functools.lru_cache(maxsize=1)
def _sample(folder: str, sample: str) -> Sample:
    found = FolderStore(folder).read_sample(sample)
    if found is None:
        raise InputError(f"the images of this study are missing or damaged in '{folder}'")
    return found


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, also the buffers that a state_dict leaves out."""
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _assemble(store: FolderStore, inputs: Inputs) -> nn.Module:
    net = copy.deepcopy(inputs.skeleton).to_empty(device=named_device(inputs.device))
    try:
        weights = store.read_weights(inputs.weights)
        with torch.no_grad():
            for name, tensor in _tensors(net).items():
                tensor.copy_(weights[name])
    except (OSError, SafetensorError, KeyError) as error:
        path = Path(inputs.folder) / "weights" / f"{inputs.weights}.safetensors"
        raise InputError(
            f"the weights '{path}' are missing or damaged; delete that file and run again"
        ) from error
    return net
