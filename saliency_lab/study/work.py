"""What the cells of a request depend on, and how they are computed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from saliency_lab._common.baseline import baseline_revision
from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import canonical, fingerprint
from saliency_lab._common.inference import device_of
from saliency_lab._common.provenance import versions
from saliency_lab._common.registry import given_settings
from saliency_lab._common.settings import parse_settings
from saliency_lab.attacks.ascent import check_radius
from saliency_lab.attacks.checklist import audit
from saliency_lab.attacks.curve import robustness_curve
from saliency_lab.attacks.methods import METHODS as ATTACKS
from saliency_lab.attribution import Attributions, attribute
from saliency_lab.attribution.catalogue import METHODS, key_settings
from saliency_lab.metrics.api import Job, Scores, make_job, run_jobs
from saliency_lab.metrics.catalogue import METRICS, Better, Metric, stored_settings
from saliency_lab.study.cache.results import Cell, Content, matters
from saliency_lab.study.requests import Request
from saliency_lab.study.sample import Sample

# --- what cells depend on -----------------------------------------------------------------------


Asked: TypeAlias = Mapping[str, Any]
"""What a request adds to what its cells depend on: the name or content of what is asked for, its settings.

Tensors and functions are hashed for it, so it is made once a request, not once a cell.
"""


def _identity(request: Request) -> Any:
    """The name of what is asked for, or the content of the user's own function."""
    return request.what if isinstance(request.what, str) else canonical(request.what)


def method_asked(request: Request) -> Asked:
    """What maps depend on; raise InputError for an unknown method or setting."""
    settings = full_settings(request)
    target = request.settings.get("target", "label")
    if not (isinstance(target, str) and target == "label"):
        settings["target"] = target
    counted = key_settings(METHODS.find(request.what).settings, settings)
    return {"method": _identity(request), "settings": canonical(counted)} | _revision(request, settings)


def _revision(request: Request, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what distinguishes results under a definition that has changed; nothing if it never did."""
    if not isinstance(request.what, str):
        return {}
    revision = baseline_revision(settings)
    if request.what in METHODS:
        revision = max(revision, METHODS[request.what].revision(settings))
    return {"revision": revision} if revision else {}


def maps_cell(model: str, images: str, asked: Asked, seed: int) -> Cell:
    """Return the cell of one method's maps."""
    depends = {"model": model, "images": images, **asked, "seed": seed}
    return Cell("maps", {**depends, "versions": matters("maps")})


def full_settings(request: Request) -> dict[str, Any]:
    """Settings of a method, defaults too, without the target; a user's own function has those given."""
    given = {key: value for key, value in request.settings.items() if key != "target"}
    method = METHODS.find(request.what)
    parsed = parse_settings(method.settings, given, of=f"method '{request.label}'")
    return dict(parsed) if method.function is None else given_settings(parsed)


def metric_asked(request: Request, sample: Sample) -> Asked:
    """What scores depend on; raise InputError for an unknown metric or setting, or for want of masks."""
    settings = dict(request.settings)
    metric = describe_metric(request)
    engine = settings.pop("engine", metric.engines[0])
    if takes_masks(request):
        if sample.masks is None:
            raise InputError(
                f"metric '{request.label}' needs masks of where the evidence is, as the data sets 'mosaic', "
                "'mnist_mosaic' and 'planted' have them; a study in Python takes them as "
                "Study(models, data.test.located(256)), or your own as Study(models, (x, y, masks))"
            )
        settings["masks"] = sample.masks
    parsed = parse_settings(metric.settings, settings, of=f"metric '{metric.name}'")
    height, width = sample.x.shape[2:]
    asked = {
        "metric": _identity(request),
        "engine": engine,
        "settings": canonical(stored_settings(parsed, height, width)),
    }
    if metric.revision:
        asked["definition"] = metric.revision
    return asked | _revision(request, dict(parsed))


def scores_cell(model: str, images: str, maps: str, asked: Asked, seed: int) -> Cell:
    """Return the cell of one metric's scores of one set of maps, given by its key."""
    depends = {"model": model, "images": images, "maps": maps, **asked, "seed": seed}
    return Cell("scores", {**depends, "versions": matters("scores")})


def takes_masks(request: Request) -> bool:
    """Whether the study's masks are to be handed to this metric: it needs some, and was given none."""
    masks = describe_metric(request).settings.model_fields.get("masks")
    return masks is not None and masks.is_required() and "masks" not in request.settings


def describe_metric(request: Request) -> Metric:
    """Return what is known of a metric, by name or the user's own."""
    return METRICS.find(request.what)


_NEUTRAL = {"samples": 1, "quantised": False}
"""Attack settings that change nothing at these values."""

_REVISED = ("square", "autoattack")
"""Attacks whose values changed in L∞, when Square's schedule was scaled to its budget."""


def better_scores(request: Request) -> Better:
    """Return which scores of a metric are better under the settings of the request."""
    metric = describe_metric(request)
    settings = {key: value for key, value in request.settings.items() if key in metric.settings.model_fields}
    return metric.direction(metric.settings.model_construct(**settings))


def attack_asked(request: Request, eps: Sequence[float]) -> Asked:
    """What an attack depends on; raise InputError for an unknown one, its settings, or too large an ε."""
    attack: Any = request.what
    settings = parse_settings(ATTACKS.find(attack).settings, request.settings, of=f"attack '{request.label}'")
    check_radius(max(eps), getattr(settings, "norm", "linf"))
    described = canonical(settings)
    revised = request.what in _REVISED and described.get("norm") == "linf"
    for name, neutral in _NEUTRAL.items():  # keys of results from before these settings existed stay valid
        if described.get(name) == neutral:
            del described[name]
    return {"attack": _identity(request), "settings": described} | ({"revision": 2} if revised else {})


def attack_of(label: str, cell: Cell) -> Request | None:
    """Return what an attack's cell was asked for; None for a user's own function, which no cell holds."""
    what = cell.depends["attack"]
    bundled = isinstance(what, str) and what in ATTACKS
    return Request(label, what, cell.depends["settings"]) if bundled else None


def attack_cell(model: str, images: str, asked: Asked, eps: Sequence[float], seed: int) -> Cell:
    """Return the cell of one attack over a range of ε."""
    return Cell("attack", _attacked(model, images, asked, eps, seed) | {"versions": matters("attack")})


def audit_cell(model: str, images: str, asked: Asked, eps: float, budget: str, seed: int) -> Cell:
    """Return the cell of an audit of one attack at one ε."""
    depends = _attacked(model, images, asked, [eps], seed) | {"versions": matters("audit")}
    return Cell("audit", {**depends, "budget": budget, "revision": 2})


def _attacked(model: str, images: str, asked: Asked, eps: Sequence[float], seed: int) -> dict[str, Any]:
    return {"model": model, "images": images, **asked, "eps": list(eps), "seed": seed}


# --- computing them -----------------------------------------------------------------------------


def compute_maps(model: nn.Module, sample: Sample, request: Request, seed: int) -> Content:
    """Attribute; the content of a "maps" cell."""
    maps = attribute(model, sample.x, sample.y, request.what, seed=seed, **request.settings)
    tensors = {"values": maps.values, "classes": maps.classes}
    if maps.total is not None:
        tensors["total"] = maps.total
    info = {
        "method": maps.method,
        "settings": canonical(maps.settings),
        "target": maps.target,
        "seed": maps.seed,
        "own": maps.own,
        "seconds": maps.seconds,
        "provenance": canonical(maps.provenance),
    }
    return Content(tensors, info)


@dataclass(frozen=True)
class Made:
    """Maps, and how they were made: metrics that explain again need it."""

    content: Content
    request: Request

    def attributions(self) -> Attributions:
        """Return the maps, with their settings as objects rather than as text.

        Of which images they are is not told: the cell's key does, so a metric need not hash them.
        """
        own = None if isinstance(self.request.what, str) else self.request.what
        maps = as_attributions(self.content)
        return replace(maps, settings=full_settings(self.request), function=own, provenance={})


def as_attributions(content: Content) -> Attributions:
    """Return the maps that a "maps" cell holds."""
    tensors, info = content.tensors, content.info
    return Attributions(
        values=tensors["values"], classes=tensors["classes"], total=tensors.get("total"), **info
    )


def compute_scores(
    model: nn.Module,
    sample: Sample,
    maps: Mapping[str, Made],
    requests: Sequence[Request],
    seed: int,
) -> dict[tuple[str, str], Content]:
    """Score the maps of several methods by several metrics, with shared passes; contents of "scores" cells.

    By (metric, method). Maps are scored for the class they explain, a contrast for the label.
    """
    contents = {}
    by_classes: dict[str, list[str]] = {}
    for label, made in maps.items():
        by_classes.setdefault(fingerprint(_classes(made, sample.y)), []).append(label)
    for labels in by_classes.values():
        classes = _classes(maps[labels[0]], sample.y)
        given = {label: maps[label].attributions() for label in labels}
        jobs = [_job(request, sample.masks) for request in requests]
        found = run_jobs(model, sample.x, classes, given, jobs, seed)
        for method, by_metric in found.items():
            for request, scores in zip(requests, by_metric, strict=True):
                contents[request.label, method] = _scores_content(scores, model)
    return contents


def _classes(made: Made, y: Tensor) -> Tensor:
    classes = made.content.tensors["classes"]
    return classes if classes.ndim == 1 else y


def _job(request: Request, masks: Tensor | None) -> Job:
    settings = dict(request.settings)
    engine = settings.pop("engine", None)
    if takes_masks(request):
        settings["masks"] = masks
    return make_job(request.what, settings, engine)


def _scores_content(scores: Scores, model: nn.Module) -> Content:
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
    return Content(tensors, info)


def compute_attack(
    model: nn.Module, sample: Sample, request: Request, eps: Sequence[float], seed: int
) -> Content:
    """Attack at every ε; the content of an "attack" cell: `robust` (ε, sample)."""
    started = time.perf_counter()
    attack: Any = request.what
    curve = robustness_curve(model, sample.x, sample.y, attack, eps=list(eps), seed=seed, **request.settings)
    info = {
        "eps": list(eps),
        "norm": curve.norm,
        "seconds": time.perf_counter() - started,
        "provenance": _provenance(model),
    }
    return Content({"robust": curve.robust}, info)


def compute_audit(
    model: nn.Module,
    sample: Sample,
    request: Request,
    eps: float,
    budget: Literal["quick", "full"],
    seed: int,
) -> Content:
    """Audit; the content of an "audit" cell: `robust` (sample,) against every attack that was run."""
    attack: Any = request.what
    x, y = sample.x, sample.y
    found = audit(model, x, y, eps=eps, method=attack, budget=budget, seed=seed, **request.settings)
    info = {**canonical(found.to_dict()), "provenance": _provenance(model)}
    return Content({"robust": found.robust}, info)


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {"device": str(device_of(model)), "versions": versions()}
