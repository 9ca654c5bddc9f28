"""What a result depends on, of which its key is the hash.

What a request contributes is computed once per call, because tensors and functions are hashed for it; what a
network contributes is added for each result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from saliency_lab._common.baseline import baseline_revision
from saliency_lab._common.fingerprints import canonical
from saliency_lab._common.inference import HALF, dtype_of
from saliency_lab._common.provenance import versions
from saliency_lab.attacks.corruptions import CORRUPTIONS
from saliency_lab.attribution.catalogue import METHODS, key_settings
from saliency_lab.metrics.catalogue import stored_settings
from saliency_lab.study.cache.results import Kind, Result, cache_versions
from saliency_lab.study.requests import Request
from saliency_lab.study.sample import StudySample

Dependencies: TypeAlias = dict[str, Any]
"""What a request contributes: the name of what is asked for, or the hash of a function; its settings."""


def method_dependencies(request: Request) -> Dependencies:
    """Return what maps depend on: the method, its settings, and the target unless it is the label."""
    method = METHODS.find(request.what)
    counted = key_settings(method.settings, request.method_call.keywords)
    depends = {"method": _identity(request), "settings": canonical(counted)}
    if request.compact_maps:
        depends["stored as"] = "float8"
    return depends | _revision(request, request.settings) | _precision(request)


def metric_dependencies(request: Request, sample: StudySample) -> Dependencies:
    """Return what scores depend on: the metric, its engine and settings, and masks where it needs them."""
    job = request.job(sample.masks)
    stored = stored_settings(job.settings, *sample.x.shape[2:])
    depends = {"metric": _identity(request), "engine": job.engine, "settings": canonical(stored)}
    if job.metric.revision:
        depends["definition"] = job.metric.revision
    return depends | _revision(request, dict(job.settings)) | _precision(request)


_NEUTRAL = {"samples": 1, "quantised": False}
"""Attack settings that change nothing at these values; keys from before they existed stay valid."""

_REVISED = {
    "square": ("linf",),
    "autoattack": ("linf", "l1"),
    "ead": ("l1", "l2", "linf"),
    "zoom_blur": ("linf",),
    "elastic_transform": ("linf",),
}
"""Norms in which an attack changed: Square's schedule in L∞, AutoAttack's restarts in L1, the box of EAD. The
strengths of two corruptions changed, which have no norm."""


def attack_dependencies(request: Request) -> Dependencies:
    """Return what an attack or an audit depends on: the attack and its settings."""
    given = canonical(request.settings)
    settings = {k: v for k, v in given.items() if not (k in _NEUTRAL and v == _NEUTRAL[k])}
    depends = {"attack": _identity(request), "settings": settings}
    if isinstance(request.what, str) and given.get("norm", "linf") in _REVISED.get(request.what, ()):
        depends["revision"] = 2
    if isinstance(request.what, str) and request.what in CORRUPTIONS:
        depends["scikit-image"] = versions()["scikit-image"]
    return depends


def make_result(kind: Kind, model: str, images: str, request: Dependencies, seed: int, **more: Any) -> Result:
    """Return a result of a network on images, given by their fingerprints.

    `more` is what only some kinds depend on: `maps` (the key of what is scored), `eps` of an attack.
    """
    depends = {"model": model, "images": images, **request, **more, "seed": seed}
    return Result(kind, {**depends, "versions": cache_versions(kind)})


def maps_result(model: str, net: nn.Module | None, images: str, request: Dependencies, seed: int) -> Result:
    """Return the result of attributing a network; 0.1.0 computed one of half precision in its precision."""
    half = net is not None and dtype_of(net) in HALF
    return make_result("maps", model, images, request, seed, **({"computed in": "float32"} if half else {}))


def audit_result(
    model: str,
    images: str,
    request: Dependencies,
    eps: float,
    budget: str,
    sources: Mapping[str, str],
    seed: int,
) -> Result:
    """Return the result of an audit of one attack at one ε.

    `sources` are the names and fingerprints of the networks that points are transferred from.
    """
    more = {"eps": [eps], "budget": budget, "checklist": 2} | ({"sources": dict(sources)} if sources else {})
    return make_result("audit", model, images, request, seed, **more)


def _identity(request: Request) -> Any:
    """Return the registered name of what is asked for, or the hash of the user's function."""
    return request.what if isinstance(request.what, str) else canonical(request.what)


def _precision(request: Request) -> dict[str, Any]:
    """Return the precision of the passes if it is not the model's; faster passes in that change no key."""
    return {} if request.execution.dtype is None else {"dtype": request.execution.dtype}


def _revision(request: Request, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what distinguishes results of a definition that has changed; nothing if it never did."""
    if not isinstance(request.what, str):
        return {}
    revision = baseline_revision(settings)
    if request.what in METHODS:
        revision = max(revision, METHODS[request.what].revision(settings))
    return {"revision": revision} if revision else {}
