"""What a study asks for, what each request depends on, and how it is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from saliency_lab._common.checks import parse_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import device_of
from saliency_lab._common.provenance import versions
from saliency_lab._common.settings import parse_settings
from saliency_lab.attacks.curve import robustness_curve
from saliency_lab.attacks.methods import method_of
from saliency_lab.attribution import Attributions, attribute
from saliency_lab.attribution.catalogue import METHODS
from saliency_lab.metrics.catalogue import METRICS, Metric
from saliency_lab.metrics.evaluation import Scores, evaluate_many
from saliency_lab.metrics.own import own_metric
from saliency_lab.study.cells import Cell, Content, canonical, matters

Requests: TypeAlias = "str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | Mapping[str, Any]"
"""A name, several, or label → settings; a label that is not a name says which by `method` or `metric`."""


@dataclass(frozen=True)
class Request:
    """A method, metric or attack with its settings, under the label it has in the tables."""

    label: str
    what: str | Callable[..., Any]
    settings: Mapping[str, Any]

    @property
    def identity(self) -> Any:
        """The name, or the content of the user's own function."""
        return self.what if isinstance(self.what, str) else canonical(self.what)


def read_requests(given: Requests, kind: str) -> list[Request]:
    """Read what the user asked for; `kind` is "method" or "metric".

    >>> read_requests({"wide": {"method": "smoothgrad", "stdev": 0.3}}, "method")
    [Request(label='wide', what='smoothgrad', settings={'stdev': 0.3})]
    """
    if isinstance(given, str) or callable(given):
        given = [given]
    if not isinstance(given, Mapping | Sequence):
        raise InputError(f"{kind}s must be a name, a function, several, or label → settings, not {given!r}")
    if not isinstance(given, Mapping):
        by_label = {_label(each): each for each in given}
        for each in given:
            if by_label[_label(each)] is not each and by_label[_label(each)] != each:
                raise InputError(
                    f"two different {kind}s are called '{_label(each)}'; tell them apart by a label each, "
                    f"such as {{'first': f, 'second': g}}"
                )
        given = {label: {kind: each} for label, each in by_label.items()}
    if not given:
        raise InputError(f"name at least one {kind}; list_{kind}s() says which there are")
    requests = []
    for label, value in given.items():
        if not (isinstance(value, str | Mapping) or callable(value)):
            raise InputError(f"{kind} '{label}' must map to its settings, such as {{}}, not {value!r}")
        settings = {kind: value} if isinstance(value, str) or callable(value) else dict(value)
        requests.append(Request(label, settings.pop(kind, label), settings))
    return requests


def read_attacks(given: Mapping[str, Mapping[str, Any]]) -> list[Request]:
    """Read label → settings of `Study.attack`, `eps` among them.

    >>> read_attacks({"weak": {"attack": "pgd", "eps": 0.1, "steps": 2}})
    [Request(label='weak', what='pgd', settings={'eps': 0.1, 'steps': 2})]
    """
    requests = []
    for label, each in given.items():
        if not isinstance(each, Mapping) or "eps" not in each:
            raise InputError(f"attack '{label}' needs its radii, such as eps = [0.1, 0.2]")
        settings = dict(each)
        requests.append(Request(label, settings.pop("attack", label), settings))
    return requests


def _label(what: Any) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)


# --- what cells depend on -----------------------------------------------------------------------


def maps_cell(model: str, images: str, request: Request, seed: int) -> Cell:
    """Return the cell of one method's maps; raise InputError for an unknown method or setting."""
    settings = full_settings(request)
    return Cell(
        "maps",
        {
            "model": model,
            "images": images,
            "method": request.identity,
            "settings": canonical(settings),
            "seed": seed,
            "versions": matters("maps"),
        },
    )


def full_settings(request: Request) -> dict[str, Any]:
    """Settings of a method, defaults too; a user's own function has those given."""
    if not isinstance(request.what, str):
        return dict(request.settings)
    of = f"method '{request.what}'"
    return dict(parse_settings(METHODS[request.what].settings, request.settings, of=of))


def scores_cell(model: str, images: str, maps: str, request: Request, seed: int) -> Cell:
    """Return the cell of one metric's scores of one set of maps, given by its key."""
    settings = dict(request.settings)
    metric = describe_metric(request)
    engine = settings.pop("engine", metric.engines[0])
    parsed = parse_settings(metric.settings, settings, of=f"metric '{metric.name}'")
    return Cell(
        "scores",
        {
            "model": model,
            "images": images,
            "maps": maps,
            "metric": request.identity,
            "engine": engine,
            "settings": canonical(parsed),
            "seed": seed,
            "versions": matters("scores"),
        },
    )


def describe_metric(request: Request) -> Metric:
    """Return what is known of a metric, by name or the user's own."""
    return METRICS[request.what] if isinstance(request.what, str) else own_metric(request.what)


def attack_cell(model: str, images: str, request: Request, eps: Sequence[float], seed: int) -> Cell:
    """Return the cell of one attack over a range of ε."""
    attack: Any = request.what
    settings = parse_settings(method_of(attack).settings, request.settings, of=f"attack '{request.label}'")
    return Cell(
        "attack",
        {
            "model": model,
            "images": images,
            "attack": request.identity,
            "eps": list(eps),
            "settings": canonical(settings),
            "seed": seed,
            "versions": matters("attack"),
        },
    )


def read_eps(eps: float | str | Sequence[float | str]) -> tuple[float, ...]:
    """Ascending radii, with 0 (the clean images) always among them.

    >>> read_eps("8/255") == (0.0, 8 / 255)
    True
    """
    given = [eps] if isinstance(eps, str | int | float) else list(eps)
    if not given:
        raise InputError("eps must hold at least one radius, such as 0.1 or [0.1, 0.2]")
    return tuple(sorted({0.0, *(parse_epsilon(value) for value in given)}))


# --- computing them -----------------------------------------------------------------------------


def compute_maps(model: nn.Module, x: Tensor, y: Tensor, request: Request, seed: int) -> Content:
    """Attribute; the content of a "maps" cell."""
    maps = attribute(model, x, y, request.what, seed=seed, **request.settings)
    tensors = {"values": maps.values, "classes": maps.classes}
    if maps.total is not None:
        tensors["total"] = maps.total
    info = {
        "method": maps.method,
        "settings": canonical(maps.settings),
        "target": maps.target,
        "seed": maps.seed,
        "seconds": maps.seconds,
        "provenance": canonical(maps.provenance),
    }
    return Content(tensors, info)


@dataclass(frozen=True)
class Made:
    """Maps, and how they were made: metrics that explain again need it."""

    content: Content
    request: Request
    seed: int

    def attributions(self) -> Attributions:
        """Return the maps, with their settings as objects rather than as text."""
        return replace(as_attributions(self.content), settings=full_settings(self.request))

    def explain(self, model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        """Make maps of other images or another network the same way."""
        made = attribute(model, x, classes, self.request.what, seed=self.seed, **self.request.settings)
        return made.values


def as_attributions(content: Content) -> Attributions:
    """Return the maps that a "maps" cell holds."""
    tensors, info = content.tensors, content.info
    return Attributions(
        values=tensors["values"], classes=tensors["classes"], total=tensors.get("total"), **info
    )


def compute_scores(
    model: nn.Module, x: Tensor, y: Tensor, maps: Mapping[str, Made], request: Request, seed: int
) -> dict[str, Content]:
    """Score the maps of several methods by one metric, with shared passes; contents of "scores" cells."""
    settings = dict(request.settings)
    engine = settings.pop("engine", None)
    explains = "explain" in describe_metric(request).settings.model_fields and "explain" not in settings
    own = {label: made for label, made in maps.items() if explains and callable(made.request.what)}
    groups = [(settings | {"explain": made.explain}, [label]) for label, made in own.items()]
    groups.append((settings, [label for label in maps if label not in own]))
    found: dict[str, dict[str, Scores]] = {}
    for chosen, labels in groups:
        if labels:
            given = {label: maps[label].attributions() for label in labels}
            metric: Any = {request.what: chosen}
            found |= evaluate_many(model, x, y, given, metric, seed=seed, engine=engine)
    contents = {}
    for method, by_metric in found.items():
        (scores,) = by_metric.values()
        tensors = {"values": torch.from_numpy(scores.values)}
        if scores.curve is not None:
            tensors |= {
                "curve": torch.from_numpy(scores.curve.values).contiguous(),
                "at": torch.as_tensor(scores.curve.at).contiguous(),
            }
        info = {
            "undefined": scores.undefined,
            "engine": scores.engine,
            "seconds": scores.seconds,
            "provenance": _provenance(model),
        }
        contents[method] = Content(tensors, info)
    return contents


def compute_attack(
    model: nn.Module, x: Tensor, y: Tensor, request: Request, eps: Sequence[float], seed: int
) -> Content:
    """Attack at every ε; the content of an "attack" cell: `robust` (ε, sample)."""
    started = time.perf_counter()
    attack: Any = request.what
    curve = robustness_curve(model, x, y, list(eps), attack, seed=seed, **request.settings)
    info = {
        "eps": list(eps),
        "norm": curve.norm,
        "seconds": time.perf_counter() - started,
        "provenance": _provenance(model),
    }
    return Content({"robust": curve.robust}, info)


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {"device": str(device_of(model)), "versions": versions()}
