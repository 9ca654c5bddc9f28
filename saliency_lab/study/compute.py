"""How the content of each kind of result is computed: by the public entry points of the package."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.fingerprints import canonical
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.inference import check_classifier, device_of
from saliency_lab._common.passes import predict_classes
from saliency_lab._common.provenance import machine, versions
from saliency_lab.attacks.api import is_source
from saliency_lab.attacks.checklist import run_audit
from saliency_lab.attacks.curve import curve_at
from saliency_lab.attribution import Attributions
from saliency_lab.attribution.api import run_call
from saliency_lab.attribution.packing import PackedMaps
from saliency_lab.metrics.api import Scores, run_jobs
from saliency_lab.study.cache.results import Content
from saliency_lab.study.requests import Request
from saliency_lab.study.sample import StudySample


@dataclass(frozen=True, eq=False)
class StoredMaps:
    """The content of a "maps" result, and the request it belongs to, which some metrics repeat."""

    content: Content
    request: Request

    def attributions(self) -> Attributions:
        """Return the maps with their settings as objects; a store has these as text.

        The provenance is empty: the key ensures that the maps are of these images, so that a metric need not
        hash them.
        """
        function = None if isinstance(self.request.what, str) else self.request.what
        settings = self.request.method_call.recorded
        maps = as_attributions(self.content, packed=True)
        return replace(maps, settings=settings, function=function, provenance={})

    def classes(self) -> Tensor:
        """Return the class that each map is scored for: the one it explains, of a contrast the first."""
        classes = self.content.tensors["classes"]
        return classes if classes.ndim == 1 else classes[:, 0]


def as_attributions(content: Content, *, packed: bool = False) -> Attributions:
    """Return the maps in the content of a "maps" result.

    With `packed`, the values of maps that are stored with one byte each are a `PackedMaps`, which `run_jobs`
    unpacks block by block.
    """
    tensors = content.tensors
    values: Any = tensors["values"]
    if _SCALES in tensors:
        values = PackedMaps(values, tensors[_SCALES])
        values = values if packed else values[:]
    return Attributions(values=values, classes=tensors["classes"], total=tensors.get("total"), **content.info)


_SCALES = "scales"


def compute_maps(model: nn.Module, sample: StudySample, request: Request, seed: int) -> Content:
    """Attribute every image; return the content of a "maps" result, with what the model predicts."""
    maps = run_call(model, sample.x, sample.y, request.method_call, seed)
    predicted = predict_classes(model, sample.x)
    tensors = {
        "values": maps.values,
        "classes": maps.classes,
        "predicted": torch.tensor(predicted.classes),
        "probabilities": torch.tensor(predicted.probabilities),
    }
    if maps.total is not None:
        tensors["total"] = maps.total
    if request.compact_maps:
        packed = PackedMaps.of(maps.values)
        tensors |= {"values": packed.codes, _SCALES: packed.scales}
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


def compute_scores(
    model: nn.Module,
    sample: StudySample,
    maps: Mapping[str, StoredMaps],
    requests: Sequence[Request],
    seed: int,
) -> dict[tuple[str, str], Content]:
    """Score the maps of several methods by several metrics that share passes; by metric and method."""
    contents = {}
    by_classes: dict[str, list[str]] = {}
    for label, stored in maps.items():
        by_classes.setdefault(fingerprint(stored.classes()), []).append(label)
    for labels in by_classes.values():
        classes = maps[labels[0]].classes()
        attributions = {label: maps[label].attributions() for label in labels}
        jobs = [request.job(sample.masks) for request in requests]
        for method, scores in run_jobs(model, sample.x, classes, attributions, jobs, seed).items():
            for request, each in zip(requests, scores, strict=True):
                contents[request.label, method] = _scores_content(each, model)
    return contents


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
        "provenance": {**_provenance(model), **canonical(dict(scores.provenance))},
    }
    return Content(tensors, info)


def compute_attack(model: nn.Module, sample: StudySample, request: Request, seed: int) -> Content:
    """Attack at every ε; return the content of an "attack" result: `robust` (ε, sample)."""
    started = time.perf_counter()
    eps = list(request.eps)
    curve = curve_at(model, sample.x, sample.y, *request.attack, eps, seed)
    info = {
        "eps": eps,
        "norm": curve.norm,
        "seconds": time.perf_counter() - started,
        "provenance": _provenance(model),
    }
    return Content({"robust": curve.robust}, info)


def compute_audit(
    model: nn.Module, sample: StudySample, request: Request, sources: Mapping[str, nn.Module], seed: int
) -> Content:
    """Audit an attack at its ε; return the content of an "audit" result: `robust` against every attack.

    Points are transferred from those of the `sources` that return as many classes as the model.
    """
    (eps,) = request.eps
    few = sample.first(request.images)
    classes = check_classifier(model, few.x).shape[1]
    surrogates = {name: net for name, net in sources.items() if is_source(net, few.x, classes)}
    outcome = run_audit(
        model,
        few.x,
        few.y,
        *request.attack,
        eps=eps,
        surrogates=surrogates,
        budget=request.budget,
        seed=seed,
    )
    info = {**canonical(outcome.to_dict()), "provenance": _provenance(model)}
    return Content({"robust": outcome.robust}, info)


def _provenance(model: nn.Module) -> dict[str, Any]:
    return {"device": str(device_of(model)), **machine(), "versions": versions()}
