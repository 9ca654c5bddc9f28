"""Tasks: what a call on a study asks for, as plain data that a worker process can be sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.execution import run_under
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.passes import plans_kept_in
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.study import compute
from saliency_lab.study.cache.index import ResultIndex
from saliency_lab.study.cache.manifest import audit_label
from saliency_lab.study.cache.results import Content, Failure, Kind, Place, Result
from saliency_lab.study.cache.store import Store, read_intact
from saliency_lab.study.keys import (
    attack_dependencies,
    audit_result,
    make_result,
    maps_result,
    method_dependencies,
    metric_dependencies,
)
from saliency_lab.study.requests import Request, StudyStep, attack_to_audit
from saliency_lab.study.sample import Member, StudySample

Network: TypeAlias = tuple[str, int]
"""Model and training seed of a network."""


@dataclass(frozen=True, eq=False)
class StudyTask:
    """Results of one network that are computed together.

    Either the maps of one method, or scores of several methods' maps by metrics that share their passes, or
    one attack, or one audit.
    """

    results: Mapping[Place, Result]
    requests: Mapping[str, Request]
    """By label: one method, attack or audit, or several metrics."""
    seed: int
    """Seed of every random draw."""
    lock: str
    """The name that keeps other processes from the same work."""
    maps: Mapping[str, tuple[Result, Request]] = field(default_factory=dict)
    """The maps to score, by the label of their method, and how they are computed."""
    sources: tuple[Network, ...] = ()
    """Other networks of the study, from which an audit transfers attacks."""

    @property
    def kind(self) -> Kind:
        """The kind of the results."""
        return next(iter(self.results)).kind

    @property
    def network(self) -> Network:
        """Model and training seed of the network."""
        place = next(iter(self.results))
        return place.model, place.seed

    def only(self, places: Sequence[Place]) -> StudyTask:
        """Return a task with these of the results."""
        return replace(self, results={place: self.results[place] for place in places})


@dataclass(frozen=True, eq=False)
class TaskInputs:
    """What the keys of all results depend on: the images, the networks and the seed."""

    sample: StudySample
    images: str
    """Fingerprint of images and labels."""
    networks: Mapping[Member, str]
    """The fingerprint of each network."""
    seed: int


def attribution_tasks(inputs: TaskInputs, requests: Sequence[Request]) -> list[StudyTask]:
    """Return one task per method and network."""
    tasks = []
    for request in requests:
        depends = method_dependencies(request)
        for member, model in inputs.networks.items():
            result = maps_result(model, member.module, inputs.images, depends, inputs.seed)
            place = Place("maps", request.label, "", member.model, member.seed)
            tasks.append(StudyTask({place: result}, {request.label: request}, inputs.seed, result.key))
    return tasks


def _with_layer_names(request: Request, networks: Iterable[Member]) -> Request:
    """Return the request of a method in which layers that were given as modules are given by their names.

    Two layers may look the same, so that a hash of the module would not distinguish them.
    """
    names = {
        module: name
        for member in networks
        if member.module is not None
        for name, module in member.module.named_modules()
        if name
    }

    def named(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return names.get(value, value)
        if isinstance(value, Mapping):
            return {key: named(each) for key, each in value.items()}
        return value

    return replace(request, settings=named(request.settings))


def scoring_tasks(
    inputs: TaskInputs, requests: Sequence[Request], methods: Mapping[str, Request]
) -> list[StudyTask]:
    """Return one task per network and group of metrics that share passes, for the maps of all methods."""
    of_method = {label: method_dependencies(request) for label, request in methods.items()}
    maps = {
        member: {
            label: (maps_result(model, member.module, inputs.images, depends, inputs.seed), methods[label])
            for label, depends in of_method.items()
        }
        for member, model in inputs.networks.items()
    }
    groups: dict[str, dict[str, Request]] = {}
    for request in requests:
        shared = METRICS.find(request.what).shares or request.label
        groups.setdefault(shared, {})[request.label] = request
    tasks = []
    for shared, group in groups.items():
        of_metric = {label: metric_dependencies(request, inputs.sample) for label, request in group.items()}
        for member, model in inputs.networks.items():
            results = {
                Place("scores", method, metric, member.model, member.seed): make_result(
                    "scores",
                    model,
                    inputs.images,
                    depends,
                    inputs.seed,
                    maps=scored.key,
                    **_scored_for(asked),
                )
                for metric, depends in of_metric.items()
                for method, (scored, asked) in maps[member].items()
            }
            lock = fingerprint("scores", model, shared)
            tasks.append(StudyTask(results, group, inputs.seed, lock, maps[member]))
    return tasks


def _scored_for(maps: Request) -> dict[str, str]:
    """Say which class maps are scored for, where 0.1.0 took the label: contrasts with another first class."""
    target = maps.settings.get("target")
    another = isinstance(target, tuple) and not (isinstance(target[0], str) and target[0] == "label")
    return {"scored for": "the first class of the contrast"} if another else {}


def attack_tasks(inputs: TaskInputs, request: Request, index: ResultIndex) -> list[StudyTask]:
    """Return one task per network, at the radii asked for and those that are recorded for this attack."""
    depends = attack_dependencies(request)
    radii = set(request.eps)
    for member, model in inputs.networks.items():
        key = index.key("attack", request.label, member)
        if key in index.contents:
            recorded = index.contents[key].info["eps"]
            if make_result("attack", model, inputs.images, depends, inputs.seed, eps=recorded).key == key:
                radii.update(recorded)
    request = replace(request, eps=tuple(sorted(radii)))
    tasks = []
    for member, model in inputs.networks.items():
        result = make_result("attack", model, inputs.images, depends, inputs.seed, eps=list(request.eps))
        place = Place("attack", request.label, "", member.model, member.seed)
        tasks.append(StudyTask({place: result}, {request.label: request}, inputs.seed, result.key))
    return tasks


def audit_tasks(inputs: TaskInputs, request: Request, attacks: Mapping[str, Request]) -> list[StudyTask]:
    """Return one task per ε and network; without settings, the audit is of the attack with its label."""
    request = attack_to_audit(request, attacks)
    images = inputs.sample.first(request.images).images
    depends = attack_dependencies(request)
    tasks = []
    for eps in request.eps:
        each = replace(request, label=audit_label(request.label, eps), eps=(eps,))
        for member, model in inputs.networks.items():
            others = _transfer_sources(member, inputs.networks)
            named = {str(other): inputs.networks[other] for other in others}
            result = audit_result(model, images, depends, eps, request.budget, named, inputs.seed)
            place = Place("audit", each.label, "", member.model, member.seed)
            sources = tuple((other.model, other.seed) for other in others)
            tasks.append(
                StudyTask({place: result}, {each.label: each}, inputs.seed, result.key, sources=sources)
            )
    return tasks


def _transfer_sources(member: Member, networks: Iterable[Member]) -> list[Member]:
    """Return the first other network of each model, of the member's own as well."""
    first: dict[str, Member] = {}
    for other in networks:
        if other is not member:
            first.setdefault(other.model, other)
    return list(first.values())


def make_tasks(step: StudyStep, inputs: TaskInputs, index: ResultIndex) -> list[StudyTask]:
    """Return the tasks of one call; record what it asks for in the index, as later calls build on it.

    Raises
    ------
    InputError
        If there are no maps to score.
    """
    if step.verb == "attribute":
        requests = [_with_layer_names(request, inputs.networks) for request in step.requests]
        index.methods |= {request.label: request for request in requests}
        return attribution_tasks(inputs, requests)
    by_label = {request.label: request for request in step.requests}
    if step.verb == "score":
        if not index.methods:
            raise InputError("there are no maps to score yet; call study.attribute([...]) first")
        index.better |= {label: request.job().better for label, request in by_label.items()}
        return scoring_tasks(inputs, step.requests, index.methods)
    (request,) = step.requests
    if step.verb == "audit":
        return audit_tasks(inputs, request, index.attacks)
    tasks = attack_tasks(inputs, request, index)
    index.attacks |= by_label
    return tasks


# --- carrying a task out ------------------------------------------------------------------------------


def perform(
    task: StudyTask, networks: Mapping[Network, nn.Module], sample: StudySample, store: Store
) -> dict[Place, Failure]:
    """Compute and store the results of a task; return what failed.

    `networks` holds that of the task and its sources.
    If several results fail together, they are computed again in smaller parts, so that only the faulty one is
    lost. Errors of the store are raised.
    """
    if not task.results:
        return {}
    chosen = next(iter(task.requests.values())).execution  # requests of one call have the same
    try:
        with run_under(chosen), plans_kept_in(store.plans):
            contents = _compute(task, networks, sample, store)
    except Exception as error:
        failure = Failure.of(error)
    else:
        for place, content in contents.items():
            store.write(task.results[place], content)
        return {}
    places = list(task.results)
    if len(places) == 1:
        return {places[0]: failure}
    metrics = list(dict.fromkeys(place.metric for place in places))
    parts = [[place for place in places if place.metric == metric] for metric in metrics]
    if len(metrics) == 1:
        parts = [[place] for place in places]
    failures: dict[Place, Failure] = {}
    for part in parts:
        failures |= perform(task.only(part), networks, sample, store)
    return failures


def _compute(
    task: StudyTask, networks: Mapping[Network, nn.Module], sample: StudySample, store: Store
) -> Mapping[Place, Content]:
    net = networks[task.network]
    if task.kind == "scores":
        return _compute_scores(task, net, sample, store)
    (place,) = task.results
    request = task.requests[place.label]
    if task.kind == "maps":
        return {place: compute.compute_maps(net, sample, request, task.seed)}
    if task.kind == "attack":
        return {place: compute.compute_attack(net, sample, request, task.seed)}
    sources = {f"{model} (seed {seed})": networks[model, seed] for model, seed in task.sources}
    return {place: compute.compute_audit(net, sample, request, sources, task.seed)}


def _compute_scores(
    task: StudyTask, net: nn.Module, sample: StudySample, store: Store
) -> dict[Place, Content]:
    wanted = dict.fromkeys(place.label for place in task.results)
    maps = {method: _stored_maps(task, method, net, sample, store) for method in wanted}
    methods_of: dict[str, tuple[str, ...]] = {}
    for place in task.results:
        methods_of[place.metric] = (*methods_of.get(place.metric, ()), place.label)
    together: dict[tuple[str, ...], list[str]] = {}  # metrics that lack the scores of the same methods
    for metric, methods in methods_of.items():
        together.setdefault(methods, []).append(metric)
    contents: dict[Place, Content] = {}
    for methods, metrics in together.items():
        chosen = {method: maps[method] for method in methods}
        requests = [task.requests[metric] for metric in metrics]
        scores = compute.compute_scores(net, sample, chosen, requests, task.seed)
        for (metric, method), content in scores.items():
            contents[Place("scores", method, metric, *task.network)] = content
    return contents


def _stored_maps(
    task: StudyTask, method: str, net: nn.Module, sample: StudySample, store: Store
) -> compute.StoredMaps:
    """Read the maps of a method, or compute them again where they are missing or damaged."""
    result, request = task.maps[method]
    content = read_intact(store, result.kind, result.key)
    if content is None:
        content = compute.compute_maps(net, sample, request, task.seed)
        store.write(result, content)
    return compute.StoredMaps(content, request)
