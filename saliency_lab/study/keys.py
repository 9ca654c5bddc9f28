"""What a result depends on, of which its key is the hash.

What a request contributes is computed once per call, because tensors and functions are hashed for it; what a
network contributes is added for each result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from saliency_lab._common.baseline import baseline_revision
from saliency_lab._common.fingerprints import canonical
from saliency_lab._common.inference import HALF, dtype_of
from saliency_lab.attribution.catalogue import METHODS, key_settings
from saliency_lab.metrics.catalogue import stored_settings
from saliency_lab.study.cache.results import Result, cache_versions
from saliency_lab.study.requests import Request
from saliency_lab.study.sample import StudySample

Dependencies: TypeAlias = Mapping[str, Any]
"""What a request contributes: the name of what is asked for, or the hash of a function; its settings."""


def method_dependencies(request: Request) -> Dependencies:
    """Return what maps depend on: the method, its settings, and the target unless it is the label."""
    method = METHODS.find(request.what)
    counted = key_settings(method.settings, request.method_call.keywords)
    depends = {"method": _identity(request), "settings": canonical(counted)}
    if request.execution.compact_maps:
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

_REVISED_IN_LINF = ("square", "autoattack")
"""Attacks whose results changed in L∞, when Square's schedule was scaled to its number of queries."""


def attack_dependencies(request: Request) -> Dependencies:
    """Return what an attack or an audit depends on: the attack and its settings."""
    given = canonical(request.settings)
    settings = {k: v for k, v in given.items() if not (k in _NEUTRAL and v == _NEUTRAL[k])}
    depends = {"attack": _identity(request), "settings": settings}
    if request.what in _REVISED_IN_LINF and given.get("norm", "linf") == "linf":
        depends["revision"] = 2
    return depends


def precision_dependencies(net: nn.Module | None) -> Dependencies:
    """Return what distinguishes maps of a half-precision network, which 0.1.0 computed in its precision."""
    return {"computed in": "float32"} if net is not None and dtype_of(net) in HALF else {}


def maps_result(model: str, images: str, request: Dependencies, seed: int) -> Result:
    """Return the result of attributing a model by one method."""
    depends = {"model": model, "images": images, **request, "seed": seed}
    return Result("maps", {**depends, "versions": cache_versions("maps")})


def scores_result(model: str, images: str, maps: str, request: Dependencies, seed: int) -> Result:
    """Return the result of scoring one set of maps, given by its key, by one metric."""
    depends = {"model": model, "images": images, "maps": maps, **request, "seed": seed}
    return Result("scores", {**depends, "versions": cache_versions("scores")})


def attack_result(model: str, images: str, request: Dependencies, eps: Sequence[float], seed: int) -> Result:
    """Return the result of one attack at several ε."""
    depends = {"model": model, "images": images, **request, "eps": list(eps), "seed": seed}
    return Result("attack", {**depends, "versions": cache_versions("attack")})


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
    depends = {"model": model, "images": images, **request, "eps": [eps], "seed": seed}
    if sources:
        depends["sources"] = dict(sources)
    versions = cache_versions("audit")
    return Result("audit", {**depends, "versions": versions, "budget": budget, "checklist": 2})


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
