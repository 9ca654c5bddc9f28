"""The data of the explorer in the page: images, maps, predictions, scores and attacks, ready for JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.passes import Predictions, predict_classes
from saliency_lab.explorer.panels import NoMaps, PanelSource, StudyAttack
from saliency_lab.plotting.painting import CLIP, blend_of, colours
from saliency_lab.plotting.panels import is_photograph
from saliency_lab.reporting.bundle import as_bytes, as_jpeg, average, pack, quantise, scale_of
from saliency_lab.study import Study

BUDGET = 12_000_000
"""Characters of packed images and maps; tables and figures come on top."""

FACTORS = (1, 2, 4)
"""Maps of photographs are averaged over blocks of so many pixels a side if the page would be too large."""


Planes = dict[tuple[str, str], np.ndarray]
"""Maps (N, H, W), summed over channels, by model and method."""


@dataclass(frozen=True)
class ExplorerData:
    """What the explorer in the page shows.

    `data` becomes JSON. Maps are averaged over blocks of `factor` × `factor` pixels. `missing` lists the maps
    that could not be read, and why.
    """

    data: dict[str, Any]
    shown: int
    factor: int
    missing: list[tuple[str, str, str]]


@dataclass(frozen=True)
class AttackedImages:
    """The first images as an attack changes them: images (N, C, H, W) and predictions by model, and maps."""

    attack: StudyAttack
    images: dict[str, Tensor]
    predictions: dict[str, Predictions]
    planes: Planes


def explorer(
    study: Study, better: Mapping[str, str], images: int, attacked: StudyAttack | None = None
) -> ExplorerData | None:
    """Collect the first images with the maps of each model's first seed; None if there are no maps.

    There are `images` at most, and fewer where the page would be too large. With `attacked`, also the images
    as this attack changes them, with the maps and predictions for these.
    """
    shown = min(images, len(study.x))
    planes, missing = _read(study, shown)
    if not planes:
        return None
    changed = None
    if attacked is not None:
        changed, failed = _attack(study, attacked, list(planes), shown)
        missing += failed
    signs = _signs(planes, {} if changed is None else changed.planes)
    factors = FACTORS if is_photograph(study.x.shape) else FACTORS[:1]
    for factor in factors:
        averaged, averaged_changed = (
            {key: average(values, factor) for key, values in group.items()}
            for group in (planes, {} if changed is None else changed.planes)
        )
        packed = _pack(study, averaged, changed, averaged_changed, signs, shown)
        if _size(packed) <= BUDGET:
            break
    while _size(packed) > BUDGET and shown > 1:
        shown = max(1, min(shown - 1, int(shown * BUDGET / _size(packed))))
        packed = _pack(study, averaged, changed, averaged_changed, signs, shown)
    models = study.models
    methods = list(dict.fromkeys(method for _, method in planes))
    first = {member.model: member.seed for member in reversed(study.members)}
    data = {
        **packed,
        "shape": list(study.x.shape[1:]),
        "mapShape": list(next(iter(averaged.values())).shape[1:]),
        "total": len(study.x),
        "classes": study.labels[:shown],
        "names": sorted(
            set(study.labels[:shown]), key=lambda name: (len(name) if name.isdigit() else 99, name)
        ),
        "models": models,
        "methods": methods,
        "clip": CLIP,
        "blend": round(100 * blend_of(None, study.x.shape)),
        "limits": _limits(averaged, signs, methods, shown),
        "predictions": [_predictions(study, study.read_predictions(model), shown) for model in models],
        "metrics": _scores(study.scores, first, models, methods, better, shown),
        "attacks": _attacks(study.robustness, first, models, shown),
        "colours": {"signed": _lookup(True), "magnitude": _lookup(False)},
    }
    return ExplorerData(data, shown, factor, missing)


def _read(study: Study, shown: int) -> tuple[Planes, list[tuple[str, str, str]]]:
    """Read maps (N, H, W) by (model, method), summed over channels, and list what could not be read."""
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


def _attack(
    study: Study, attacked: StudyAttack, wanted: Sequence[tuple[str, str]], shown: int
) -> tuple[AttackedImages, list[tuple[str, str, str]]]:
    """Attack the first images on each model, and explain them by each method that the model has maps of."""
    source, rows = PanelSource(study), range(shown)
    images, predictions, planes, missing = {}, {}, {}, []
    for model in dict.fromkeys(model for model, _ in wanted):
        member = next(each for each in study.members if each.model == model)
        images[model] = source.images(member, rows, attacked)
        predictions[model] = predict_classes(member.net, images[model])
        for method in (method for each, method in wanted if each == model):
            panel = source.read(member, method, rows, attacked)
            if isinstance(panel, NoMaps):
                missing.append((model, f"{method} of the attacked images", panel.message))
            else:
                planes[model, method] = panel.maps.sum(1).numpy()
    return AttackedImages(attacked, images, predictions, planes), missing


def _pack(
    study: Study,
    planes: Planes,
    changed: AttackedImages | None,
    changed_planes: Planes,
    signs: Mapping[str, bool],
    shown: int,
) -> dict[str, Any]:
    packed = {"images": _pack_images(study.x[:shown]), "maps": _pack_maps(planes, signs, shown)}
    if changed is None:
        return {**packed, "attacked": None}
    models = study.models
    attacked = {
        "name": str(changed.attack),
        "attack": changed.attack.label,
        "eps": changed.attack.eps,
        "images": [
            _pack_images(changed.images[model][:shown]) if model in changed.images else None
            for model in models
        ],
        "maps": _pack_maps(changed_planes, signs, shown),
        "predictions": [_predictions(study, changed.predictions.get(model), shown) for model in models],
    }
    return {**packed, "attacked": attacked}


def _pack_images(x: Tensor) -> dict[str, Any]:
    pixels = as_bytes(x.numpy())
    return (
        {"files": [as_jpeg(each) for each in pixels]} if is_photograph(x.shape) else {"pixels": pack(pixels)}
    )


def _pack_maps(planes: Planes, signs: Mapping[str, bool], shown: int) -> list[dict[str, Any]]:
    maps = []
    for (model, method), values in planes.items():
        levels, scale = quantise(values[:shown])
        low, high = scale_of(values[:shown], signs[method])
        maps.append(
            {
                "model": model,
                "method": method,
                "signed": signs[method],
                "levels": pack(levels),
                "scale": _rounded(scale),
                "low": _rounded(low),
                "high": _rounded(high),
            }
        )
    return maps


def _signs(*groups: Planes) -> dict[str, bool]:
    """Whether the maps of each method have a sign: some value of some model is negative."""
    signs: dict[str, bool] = {}
    for (_, method), values in (item for planes in groups for item in planes.items()):
        signs[method] = signs.get(method, False) or bool((values < 0).any())
    return signs


def _size(packed: Mapping[str, Any]) -> int:
    """Count the characters of all images and maps."""
    groups = [packed, packed["attacked"]] if packed["attacked"] else [packed]
    size = 0
    for group in groups:
        images = group["images"] if isinstance(group["images"], list) else [group["images"]]
        for each in filter(None, images):
            size += sum(map(len, each["files"])) if "files" in each else len(each["pixels"])
        size += sum(len(each["levels"]) for each in group["maps"])
    return size


def _limits(planes: Planes, signs: Mapping[str, bool], methods: Sequence[str], shown: int) -> dict[str, Any]:
    """Return the ends of shared colour scales: over all maps with a sign, all without, and each method's."""

    def over(chosen: list[np.ndarray], signed: bool) -> list[float]:
        if not chosen:
            return [-1.0 if signed else 0.0, 1.0]
        low, high = scale_of(np.concatenate(chosen).reshape(1, -1, chosen[0].shape[-1]), signed)
        return [float(low[0]), float(high[0])]

    by_method = {
        method: [values[:shown] for (_, each), values in planes.items() if each == method]
        for method in methods
    }
    grouped = {
        kind: over([v for m in methods if signs[m] == signed for v in by_method[m]], signed)
        for kind, signed in (("signed", True), ("magnitude", False))
    }
    return {**grouped, "methods": [over(chosen, signs[method]) for method, chosen in by_method.items()]}


def _predictions(study: Study, predictions: Predictions | None, shown: int) -> dict[str, Any] | None:
    """Return the class that a model predicts for each image, by name, and its probability.

    The probability is None where it is not a number, so that no class is predicted.
    """
    if predictions is None:
        return None
    return {
        "classes": [study.class_name(label) for label in predictions.classes[:shown]],
        "probabilities": [
            round(p, 4) if math.isfinite(p) else None for p in predictions.probabilities[:shown]
        ],
    }


def _scores(
    scores: pd.DataFrame,
    first: Mapping[str, int],
    models: Sequence[str],
    methods: Sequence[str],
    better: Mapping[str, str],
    shown: int,
) -> list[dict[str, Any]]:
    """Return one entry per metric: `values[model][method]` is a list of N, or None."""
    by_metric: dict[str, list[list[list[float | None] | None]]] = {}
    key: Any
    for key, rows in scores.groupby(["metric", "method", "model", "seed"], sort=False):
        metric, method, model, seed = key
        if seed == first[model] and method in methods:
            grid = by_metric.setdefault(metric, [[None for _ in methods] for _ in models])
            values = rows.sort_values("sample")["score"].to_numpy(float)[:shown]
            grid[models.index(model)][methods.index(method)] = _rounded(values)
    return [
        {"name": name, "better": better.get(name, "neither"), "values": grid}
        for name, grid in by_metric.items()
    ]


def _attacks(
    robustness: pd.DataFrame, first: Mapping[str, int], models: Sequence[str], shown: int
) -> list[dict[str, Any]]:
    """Return one entry per attack and ε: `robust[model]` is a text of N zeros and ones, or None."""
    by_attack: dict[tuple[str, float], list[str | None]] = {}
    key: Any
    for key, rows in robustness.groupby(["attack", "eps", "model", "seed"], sort=False):
        attack, eps, model, seed = key
        if seed == first[model]:
            robust = rows.sort_values("sample")["robust"].to_numpy(bool)[:shown]
            by_model = by_attack.setdefault((attack, float(eps)), [None for _ in models])
            by_model[models.index(model)] = "".join("01"[int(each)] for each in robust)
    return [
        {"attack": attack, "eps": eps, "written": format_epsilon(eps), "robust": by_model}
        for (attack, eps), by_model in sorted(by_attack.items())
    ]


def _lookup(signed: bool) -> str:
    """Return a colour scale as 256 × (r, g, b) bytes in base64."""
    scale = colours(signed)(np.arange(256))[:, :3]
    return base64.b64encode(np.rint(255 * scale).astype(np.uint8).tobytes()).decode("ascii")


def _rounded(values: np.ndarray) -> list[float | None]:
    """Return six digits of each value, None where it is not finite."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
