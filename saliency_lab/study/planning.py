"""What a study would compute: the tasks whose results are not in the store, and how long they take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab.attribution import attribute
from saliency_lab.study.cache.index import ResultIndex
from saliency_lab.study.cache.store import MemoryStore, Store
from saliency_lab.study.requests import GridRequests, Request, StudyStep, Verb
from saliency_lab.study.sample import Member, StudySample
from saliency_lab.study.tasks import StudyTask, TaskInputs, make_tasks, perform

_MEASURED = 16
"""Images that attribution and scoring are timed on."""
_ATTACKED = (8, 32)
"""Images that attacks and audits are timed on: the first image costs much, and each further one little."""

PLAN_COLUMNS = ["step", "what", "results", "missing", "seconds"]


def make_plan(requests: GridRequests, inputs: TaskInputs, index: ResultIndex, net: nn.Module) -> pd.DataFrame:
    """List what is asked for with the number of results, how many are missing, and the time these take."""
    index = index.snapshot()
    clock = _Clock(net, index.sample, index.seed)
    rows = []
    for step in requests.steps():
        for request in step.requests:
            if step.verb == "score" and not index.methods:
                continue
            tasks = make_tasks(StudyStep(step.verb, [request]), inputs, index)
            total = sum(len(task.results) for task in tasks)
            missing = sum(len(index.missing(task.results)) for task in tasks)
            row: dict[str, Any] = {"step": step.verb, "what": request.label, "results": total}
            row["missing"] = missing
            if missing:
                sources = len(tasks[0].sources)
                seconds = clock.seconds(step.verb, request, index, sources)
                row["seconds"] = seconds * missing / total * len(index.members)
            rows.append(row)
    return pd.DataFrame(rows, columns=PLAN_COLUMNS)


def plan_networks(
    networks: Mapping[Member, str],
    sample: StudySample,
    seed: int,
    store: Store,
    requests: GridRequests,
    net: nn.Module,
) -> pd.DataFrame:
    """Plan a study of networks of which some are not trained; their fingerprint is any other text."""
    weights = {(member.model, member.seed): each for member, each in networks.items()}
    index = ResultIndex(sample, sample.images, seed, list(networks), store, weights)
    index.read_stored_attacks()
    return make_plan(requests, TaskInputs(sample, index.images, networks, seed), index, net)


class _Clock:
    """Measures how long one network takes for a request on all images of the study."""

    def __init__(self, net: nn.Module, sample: StudySample, seed: int) -> None:
        self.net, self.sample, self.seed = net, sample, seed
        self.few = sample.first(_MEASURED)
        self.store = MemoryStore()
        self.warm = False

    def seconds(self, verb: Verb, request: Request, index: ResultIndex, sources: int) -> float:
        """Return the seconds of a request for one network; an audit has `sources` other networks."""
        if not self.warm:  # the first passes start a GPU
            with contextlib.suppress(SaliencyLabError):  # a network may have no gradient
                attribute(self.net, self.few.x, self.few.y)
            self.warm = True
        if verb in ("attack", "audit"):
            return self._strongest(verb, request, index, request.images or len(self.sample.x), sources)
        if verb == "score":
            for method in index.methods.values():
                for task in self._tasks("attribute", method, index, self.few):
                    if not self.store.has("maps", task.lock):
                        self._time([task], self.net, self.few)
        tasks = self._tasks(verb, request, index, self.few)
        return len(self.sample.x) / len(self.few.x) * self._time(tasks, self.net, self.few)

    def _strongest(
        self, verb: Verb, request: Request, index: ResultIndex, images: int, sources: int
    ) -> float:
        """Return the seconds of attacks or audits of images that all withstand them."""
        sizes = sorted({min(size, images) for size in _ATTACKED})
        taken = []
        for size in sizes:
            sample = StudySample(self.sample.x[:size], torch.zeros_like(self.sample.y[:size]))
            tasks = self._tasks(verb, request, index, sample, sources)
            taken.append(self._time(tasks, _Withstands(self.net), sample))
        each_more = (taken[-1] - taken[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
        return taken[-1] + max(each_more, 0.0) * (images - sizes[-1])

    def _tasks(
        self, verb: Verb, request: Request, index: ResultIndex, sample: StudySample, sources: int = 0
    ) -> list[StudyTask]:
        """Return the tasks of a request for a few images and one network, which is each source as well."""
        members = [Member(str(number), 0, "", self.net) for number in range(1 + sources)]
        networks = {member: member.model for member in members}
        few = ResultIndex(sample, "", self.seed, members, self.store, {}, attacks=index.attacks)
        rows = torch.arange(len(sample.y))
        few.methods = {label: each.of_rows(rows) for label, each in index.methods.items()}
        step = StudyStep(verb, [request.of_rows(rows) if verb == "attribute" else self._cut(request, rows)])
        tasks = make_tasks(step, TaskInputs(sample, "", networks, self.seed), few)
        return [task for task in tasks if task.network == (members[0].model, 0)]

    def _cut(self, request: Request, rows: Tensor) -> Request:
        """Return a metric, attack or audit for these images; settings may have one entry per image."""
        count = len(self.sample.y)
        settings = {
            name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
            for name, value in request.settings.items()
        }
        return replace(request, settings=settings, images=len(rows))

    def _time(self, tasks: Sequence[StudyTask], net: nn.Module, sample: StudySample) -> float:
        """Return the seconds of carrying the tasks out; raise the first error if all results of one fail."""
        started = time.perf_counter()
        for task in tasks:
            networks = dict.fromkeys((task.network, *task.sources), net)
            failures = list(perform(task, networks, sample, self.store).values())
            if failures and len(failures) == len(task.results):
                raise failures[0].exception or SaliencyLabError(failures[0].error)
        return time.perf_counter() - started


class _Withstands(nn.Module):
    """A network whose prediction, class 0, no attack changes, so that an attack on it does all its work."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of `net`, the first replaced by log Σ exp(z) + 1, which is above all of them.

        The probability of class 0 stays below 1, so that the loss has a gradient for attacks to follow.
        """
        logits = self.net(x)
        return torch.cat([logits.logsumexp(1, keepdim=True) + 1, logits[:, 1:]], 1)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the network, for a custom attack that looks into it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)
