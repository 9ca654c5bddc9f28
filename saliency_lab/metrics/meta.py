"""Which metric to believe: does it resist what should not matter and react to what should?

Hedström et al., "The Meta-Evaluation Problem in Explainable AI", TMLR 2023 (MetaQuantus); here the map and
the model are perturbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from saliency_lab._common.arguments import check_count, check_instance, check_mapping
from saliency_lab._common.checks import check_images, check_seed
from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import check_module, gradients_recorded
from saliency_lab._common.samples import Images, read_labelled
from saliency_lab._common.seeding import generator, sample_normal, sample_seeds, sample_uniform
from saliency_lab._common.selection import read_selection
from saliency_lab.attribution import Attributions
from saliency_lab.metrics.api import evaluate_many, explained_classes
from saliency_lab.metrics.catalogue import METRICS, Better, Metric
from saliency_lab.metrics.explainer import Explainer
from saliency_lab.metrics.maps import take_maps

if TYPE_CHECKING:
    import pandas as pd

MINOR_NOISE = 0.01
"""Standard deviation of what is added to a map, in units of the map's root mean square."""

MINOR_WEIGHTS, DISRUPTIVE_WEIGHTS = 0.001, 2.0
"""Standard deviation of the factor (mean 1) that each weight is multiplied with."""


@gradients_recorded()
def meta_evaluate(
    model: nn.Module,
    x: Images,
    y: Tensor | None,
    attributions: Mapping[str, Attributions],
    metrics: Any,
    *,
    draws: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Score metrics by what perturbations of the maps, and of the model, do to them.

    A minor perturbation should leave a metric's scores as they are (`same`: p of Wilcoxon's signed-rank test
    on the paired scores) and the order of the methods too (`order`: share of ranks kept). A disruptive one
    should change the scores (`same` is 1 − p) and make them worse (`order`: share of scores that are worse).
    Maps are disrupted by shuffling their pixels; the model by its weights, and its maps are made again.

    Parameters
    ----------
    model : nn.Module
        Takes images and returns logits.
    x, y
        As for `evaluate`.
    attributions : mapping
        Two methods or more → what `attribute` returned for them.
    metrics : str, callable, sequence of these, or mapping
        As for `evaluate_many`. A metric for which neither higher nor lower is better cannot be judged, nor
        one that makes maps again.
    draws : int
        Perturbations of each kind, of which the mean is taken.
    seed : int
        Seed of the perturbations and of the metrics.

    Returns
    -------
    DataFrame
        One row per metric; columns `map` and `model`, the mean of the four criteria of each, in [0, 1], and
        the criteria themselves.

    Raises
    ------
    InputError
        If there are fewer than two methods, or a metric cannot be judged.
    """
    import pandas as pd

    attributions = check_mapping(attributions, "attributions", '{"saliency": maps, "smoothgrad": other_maps}')
    for method, maps in attributions.items():
        check_instance(
            maps, Attributions, f"the maps of '{method}'", "Attributions, as attribute returns them"
        )
    check_count(draws, "draws", most=10_000)
    check_seed(seed)
    check_module(model)
    x, y = read_labelled(x, explained_classes(attributions.values()) if y is None else y)
    check_images(x)
    if len(attributions) < 2:
        raise InputError("meta_evaluate ranks methods, so attributions must hold the maps of two or more")
    requests = {
        label: (METRICS.find(metric), settings)
        for label, (metric, settings) in read_selection(metrics, METRICS).items()
    }
    for label, (metric, _) in requests.items():
        if metric.better == "neither":
            raise InputError(f"metric '{label}' has no better side, so it cannot be judged")
        if metric.maps is not None:
            raise InputError(
                f"metric '{label}' makes maps again and compares them with those given, so perturbing only "
                "the given ones does not test it; leave it out"
            )
    signs = {label: 1 if _better(*request) == "higher" else -1 for label, request in requests.items()}
    clean = _scores(model, x, y, attributions, metrics, signs, seed)
    columns: dict[str, list[np.ndarray]] = {}
    for draw in range(draws):
        worlds = {
            "map, minor": (model, {m: _noisy(a, x, seed, draw) for m, a in attributions.items()}),
            "map, disruptive": (model, {m: _shuffled(a, x, seed, draw) for m, a in attributions.items()}),
            "model, minor": _other_model(model, x, attributions, MINOR_WEIGHTS, seed, draw),
            "model, disruptive": _other_model(model, x, attributions, DISRUPTIVE_WEIGHTS, seed, draw),
        }
        for world, (network, maps) in worlds.items():
            disturbed = _scores(network, x, y, maps, metrics, signs, seed)
            minor = world.endswith("minor")
            columns.setdefault(f"{world}, same", []).append(_same(clean, disturbed, minor=minor))
            columns.setdefault(f"{world}, order", []).append(_order(clean, disturbed, minor=minor))
    table = pd.DataFrame({key: np.mean(rows, axis=0) for key, rows in columns.items()}, index=list(requests))
    for part in ("model", "map"):
        table.insert(0, part, table.filter(like=f"{part}, ").mean(axis=1))
    return table.rename_axis("metric")


def _better(metric: Metric, settings: Mapping[str, Any]) -> Better:
    return metric.direction(metric.settings.model_construct(**settings))


def _scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    maps: Mapping[str, Any],
    metrics: Any,
    signs: Mapping[str, int],
    seed: int,
) -> np.ndarray:
    """Scores (metrics, methods, N), the higher the better."""
    evaluated = evaluate_many(model, x, y, maps, metrics, seed=seed)
    return np.array(
        [[sign * evaluated[method][label].values for method in maps] for label, sign in signs.items()]
    )


def _same(before: np.ndarray, after: np.ndarray, *, minor: bool) -> np.ndarray:
    """P of the signed-rank test, mean over methods, one per metric; 1 − p for a disruptive perturbation."""
    p = np.array([[_p(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)])
    return p.mean(1) if minor else 1 - p.mean(1)


def _p(before: np.ndarray, after: np.ndarray) -> float:
    change = after - before
    change = change[np.isfinite(change)]
    return float(wilcoxon(change).pvalue) if np.any(change) else 1.0


def _order(before: np.ndarray, after: np.ndarray, *, minor: bool) -> np.ndarray:
    """Return the share of (method, sample) whose rank stays, or whose score worsens; one per metric.

    Methods are ranked among those that have a score both before and after.
    """
    known = np.isfinite(before) & np.isfinite(after)
    if minor:
        hits = _ranks(before, known) == _ranks(after, known)
    else:
        hits = after < before
    return (hits & known).sum((1, 2)) / known.sum((1, 2)).clip(1)


def _ranks(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rank of each method (metrics, methods, N) from the lowest score up; those not `known` come last."""
    order = np.where(known, scores, np.nan).argsort(axis=1, kind="stable")
    return order.argsort(axis=1, kind="stable")


def _noisy(attributions: Attributions, x: Tensor, seed: int, draw: int) -> Tensor:
    maps = take_maps(attributions, x)
    noise = sample_normal(sample_seeds(x, seed, f"meta noise {draw}"), tuple(maps.shape[1:])).double()
    return maps + MINOR_NOISE * maps.square().mean((1, 2, 3), keepdim=True).sqrt() * noise


def _shuffled(attributions: Attributions, x: Tensor, seed: int, draw: int) -> Tensor:
    maps = take_maps(attributions, x).flatten(2)
    keys = sample_uniform(sample_seeds(x, seed, f"meta shuffle {draw}"), (maps.shape[2],))
    order = keys.argsort(dim=1)[:, None].expand_as(maps)
    return maps.gather(2, order).reshape(x.shape)


def _other_model(
    model: nn.Module, x: Tensor, attributions: Mapping[str, Attributions], spread: float, seed: int, draw: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the network with each weight multiplied by a normal factor, and its maps."""
    network = copy_model(model)
    source = generator(seed, "meta weights", spread, draw)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1 + spread * torch.randn(weight.shape, generator=source).to(weight))
    maps = {}
    for method, given in attributions.items():
        maps[method] = Explainer(given, x, given.classes, seed)(network, x)
    return network, maps
