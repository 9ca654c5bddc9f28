"""What the explorer in the page shows: images, maps, scores and attacks, as values that JSON can hold."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab.plotting.painting import CLIP
from saliency_lab.plotting.style import DIVERGING, SEQUENTIAL
from saliency_lab.reporting.bundle import clip_of, pack, pictures, quantise
from saliency_lab.reporting.tables import hue
from saliency_lab.study import Study

BUDGET = 10_000_000
"""Bytes of packed images and maps; tables and figures come on top."""


@dataclass(frozen=True)
class Explorer:
    """The explorer's data; `missing` says which maps could not be read, and why."""

    data: dict[str, Any]
    shown: int
    missing: list[tuple[str, str, str]]


def explorer(study: Study, better: Mapping[str, str], images: int) -> Explorer | None:
    """Collect the first images with the maps of each model's first seed; None if there are no maps.

    There are `images` at most, and fewer where the page would be too large.
    """
    shown = min(images, len(study.x))
    planes, missing = _read(study, shown)
    if not planes:
        return None
    packed = _pack(study, planes, shown)
    while _size(packed) > BUDGET and shown > 1:
        shown = max(1, min(shown - 1, int(shown * BUDGET / _size(packed))))
        packed = _pack(study, planes, shown)
    models = study.models
    methods = list(dict.fromkeys(method for _, method in planes))
    first = {member.model: member.seed for member in reversed(study.members)}
    data = {
        **packed,
        "shape": list(study.x.shape[1:]),
        "total": len(study.x),
        "classes": study.labels[:shown],
        "names": sorted(
            set(study.labels[:shown]), key=lambda name: (len(name) if name.isdigit() else 99, name)
        ),
        "models": models,
        "hues": [hue(models, model) for model in models],
        "methods": methods,
        "clip": CLIP,
        "limits": _limits(planes, methods, shown),
        "metrics": _scores(study.scores, first, models, methods, better, shown),
        "attacks": _attacks(study.robustness, first, models, shown),
        "colours": {"signed": _lookup(DIVERGING), "magnitude": _lookup(SEQUENTIAL)},
    }
    return Explorer(data, shown, missing)


def _read(study: Study, shown: int) -> tuple[dict[tuple[str, str], np.ndarray], list[tuple[str, str, str]]]:
    """Maps (N, H, W) by (model, method), summed over channels, and what could not be read."""
    planes, missing = {}, []
    for model, by_method in study.maps.items():
        for method in by_method:
            try:
                maps = study.read_maps(model, method)
            except SaliencyLabError as error:
                missing.append((model, method, str(error)))
                continue
            planes[model, method] = maps[:shown].reduce().values[:, 0].numpy()
    return planes, missing


def _pack(study: Study, planes: Mapping[tuple[str, str], np.ndarray], shown: int) -> dict[str, Any]:
    maps = []
    for (model, method), values in planes.items():
        levels, scale, clip = quantise(values[:shown])
        maps.append(
            {
                "model": model,
                "method": method,
                "levels": pack(levels),
                "scale": _rounded(scale),
                "clip": _rounded(clip),
            }
        )
    return {"images": pack(pictures(study.x[:shown].numpy())), "maps": maps}


def _size(packed: Mapping[str, Any]) -> int:
    return len(packed["images"]) + sum(len(each["levels"]) for each in packed["maps"])


def _limits(
    planes: Mapping[tuple[str, str], np.ndarray], methods: Sequence[str], shown: int
) -> dict[str, Any]:
    """Ends of the shared colour scales: over all maps, and over those of each method."""

    def over(chosen: list[np.ndarray]) -> float:
        values = np.stack(chosen)
        return float(clip_of(np.where(np.isfinite(values), np.abs(values), 0.0)[None])[0])

    by_method = {
        method: [values[:shown] for (_, each), values in planes.items() if each == method]
        for method in methods
    }
    return {
        "all": over([values for found in by_method.values() for values in found]),
        "methods": [over(found) for found in by_method.values()],
    }


def _scores(
    scores: pd.DataFrame,
    first: Mapping[str, int],
    models: Sequence[str],
    methods: Sequence[str],
    better: Mapping[str, str],
    shown: int,
) -> list[dict[str, Any]]:
    """One entry a metric: `values[model][method]` is a list of N, or None."""
    found: dict[str, list[list[list[float | None] | None]]] = {}
    key: Any
    for key, rows in scores.groupby(["metric", "method", "model", "seed"], sort=False):
        metric, method, model, seed = key
        if seed == first[model] and method in methods:
            grid = found.setdefault(metric, [[None for _ in methods] for _ in models])
            values = rows.sort_values("sample")["score"].to_numpy(float)[:shown]
            grid[models.index(model)][methods.index(method)] = _rounded(values)
    return [
        {"name": name, "better": better.get(name, "neither"), "values": grid} for name, grid in found.items()
    ]


def _attacks(
    robustness: pd.DataFrame, first: Mapping[str, int], models: Sequence[str], shown: int
) -> list[dict[str, Any]]:
    """One entry an (attack, ε): `robust[model]` is a text of N zeros and ones, or None."""
    found: dict[tuple[str, float], list[str | None]] = {}
    key: Any
    for key, rows in robustness.groupby(["attack", "eps", "model", "seed"], sort=False):
        attack, eps, model, seed = key
        if seed == first[model]:
            robust = rows.sort_values("sample")["robust"].to_numpy(bool)[:shown]
            by_model = found.setdefault((attack, float(eps)), [None for _ in models])
            by_model[models.index(model)] = "".join("01"[int(each)] for each in robust)
    return [
        {"attack": attack, "eps": eps, "robust": by_model}
        for (attack, eps), by_model in sorted(found.items())
    ]


def _lookup(name: str) -> str:
    """A colour map as 256 × (r, g, b) bytes in base64."""
    colours = mpl.colormaps[name](np.arange(256))[:, :3]
    return base64.b64encode(np.rint(255 * colours).astype(np.uint8).tobytes()).decode("ascii")


def _rounded(values: np.ndarray) -> list[float | None]:
    """Six digits of each value, None where it is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
