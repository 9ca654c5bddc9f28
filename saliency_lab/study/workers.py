"""Carrying a task out in another process, which reads its inputs from the store and writes results there."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from saliency_lab._common.copying import copy_model, named_tensors
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import device_of, named_device
from saliency_lab._common.progress import show_progress
from saliency_lab.study.cache.results import Failure, Place
from saliency_lab.study.cache.store import DamagedFileError, FolderStore, read_intact, read_weights
from saliency_lab.study.sample import StudySample
from saliency_lab.study.tasks import Network, StudyTask, perform

WORKER_LOCK = threading.Lock()
"""Allows one task at a time per process: libraries draw from global random generators."""


@dataclass(frozen=True, eq=False)
class WorkerInputs:
    """Where a worker finds what a task needs; the network comes without its weights."""

    folder: str
    sample: str
    weights: str
    skeleton: nn.Module
    device: str


def hand_over(store: FolderStore, sample: str, weights: str, net: nn.Module) -> WorkerInputs:
    """Write the weights of a network into the store; return what a worker needs to assemble the network."""
    store.write_weights(weights, named_tensors(net))
    skeleton = copy_model(net).to("meta")
    return WorkerInputs(str(store.folder.resolve()), sample, weights, skeleton, str(device_of(net)))


def perform_in_worker(inputs: Mapping[Network, WorkerInputs], task: StudyTask) -> dict[Place, Failure]:
    """Carry a task out, unless another process has finished it; return what failed.

    Some executors return the places as plain tuples.
    """
    with WORKER_LOCK:
        if multiprocessing.parent_process() is not None:
            show_progress(False)
        where = next(iter(inputs.values()))
        store = FolderStore(where.folder)
        sample = _read_sample(where.folder, where.sample)
        networks = {network: assemble(store, each) for network, each in inputs.items()}
        with store.lock(task.lock, wait=True):
            lacking = [
                place
                for place, result in task.results.items()
                if read_intact(store, result.kind, result.key) is None
            ]
            failures = perform(task.only(lacking), networks, sample, store)
    return {place: replace(failure, exception=None) for place, failure in failures.items()}


@functools.lru_cache(maxsize=1)
def _read_sample(folder: str, name: str) -> StudySample:
    sample = FolderStore(folder).read_sample(name)
    if sample is None:
        raise InputError(f"the images of this study are missing or damaged in '{folder}'")
    return sample


def assemble(store: FolderStore, inputs: WorkerInputs) -> nn.Module:
    """Build the network from its skeleton and the weights in the store, which are checked."""
    net = copy.deepcopy(inputs.skeleton).to_empty(device=named_device(inputs.device))
    try:
        weights = read_weights(store.weights_path(inputs.weights))
        with torch.no_grad():
            for name, tensor in named_tensors(net).items():  # two in a skeleton where modules share one
                tensor.copy_(weights[name])
    except (DamagedFileError, KeyError) as error:
        raise InputError(f"{error}; run the same again, which writes them anew") from error
    return net
