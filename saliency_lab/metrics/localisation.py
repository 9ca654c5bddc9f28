"""Does the map lie where the evidence is known to be? `masks` (N, 1, H, W) is true there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from saliency_lab._common.checks import check_masks
from saliency_lab._common.ranks import descending_ranks, largest_count, mean_ranks
from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import Metric, MetricInput, MetricOutput, added_later, register
from saliency_lab.metrics.maps import pixel_scores


class Masks(Settings):
    """`masks` (N, 1, H, W), bool or 0 and 1; `absolute` ranks pixels by magnitude."""

    masks: Tensor
    absolute: bool = False


class MagnitudeMasks(Masks):
    """Magnitudes by default, so that the score lies between 0 and 1."""

    absolute: bool = True


class PositiveMasks(Settings):
    """`masks` (N, 1, H, W), bool or 0 and 1; only positive values count."""

    masks: Tensor


class Pointing(Masks):
    """A highest pixel within `tolerance` pixels of the mask is a hit, too; Zhang et al. allow 15."""

    tolerance: float = Field(0, ge=0, json_schema_extra=added_later(0))


class TopK(Masks):
    """The top fraction `k` of the pixels counts."""

    k: float = Field(0.1, gt=0, le=1)


def _inside(case: MetricInput) -> Tensor:
    """Return the masks as bool (N, H·W).

    Raises
    ------
    InputError
        If they have another shape or hold anything but 0 and 1.
    """
    return check_masks(case.settings.masks, case.probe.x).flatten(1).to(case.maps.device)


def _scores(case: MetricInput) -> Tensor:
    return pixel_scores(case.maps, absolute=case.settings.absolute)


def _pointing_game(case: MetricInput) -> Tensor:
    highest = descending_ranks(_scores(case)) == 0
    return (highest & _within_reach(case)).any(1).double()


def _within_reach(case: MetricInput) -> Tensor:
    """Return pixels (N, H·W) at a distance of at most `tolerance` from the mask."""
    inside = _inside(case)
    if case.settings.tolerance == 0:
        return inside
    rows = []
    for mask in inside.cpu().numpy().reshape(len(inside), *case.probe.x.shape[2:]):
        reached = distance_transform_edt(~mask) <= case.settings.tolerance if mask.any() else mask
        rows.append(torch.as_tensor(reached).flatten())
    return torch.stack(rows).to(inside.device)


def _in_order(case: MetricInput) -> Tensor:
    return quantus.in_order(descending_ranks(_scores(case)))


def _share(values: Tensor, inside: Tensor) -> Tensor:
    return (values * inside).sum(1) / values.sum(1)


def _mass(case: MetricInput) -> Tensor:
    return _share(_scores(case), _inside(case))


def _positive_mass(case: MetricInput) -> Tensor:
    return _share(pixel_scores(case.maps, absolute=False).clamp_min(0), _inside(case))


def _positive_mass_quantus(case: MetricInput) -> Tensor:
    """Give Quantus positive values, each map's largest 1: it adds 1e-9 to their sum."""
    positive = pixel_scores(case.maps, absolute=False).clamp_min(0)
    largest = positive.amax(1, keepdim=True)
    unit = positive / largest.where(largest > 0, 1.0)
    settings: dict[str, Any] = {"weighted": False, "max_size": 1.0, "positive_attributions": True}
    return _quantus("AttributionLocalisation", case, unit, abs=True, **settings)


def _hits(case: MetricInput, counts: Tensor) -> Tensor:
    """Return the share (N,) of the `counts` (N,) highest pixels that lie inside."""
    top = descending_ranks(_scores(case)) < counts[:, None]
    return (top & _inside(case)).sum(1) / counts


def _rank_accuracy(case: MetricInput) -> Tensor:
    return _hits(case, _inside(case).sum(1).double())


def _top_k(case: MetricInput) -> Tensor:
    count = largest_count(case.probe.pixels, case.settings.k)
    return _hits(case, case.maps.new_full((len(case.probe),), count))


def _auc(case: MetricInput) -> Tensor:
    """Return the probability that a pixel inside outranks one outside, ties half (Mann and Whitney)."""
    inside = _inside(case)
    ranks = mean_ranks(_scores(case)).to(inside.device)
    hits = inside.sum(1).double()
    misses = inside.shape[1] - hits
    return ((ranks * inside).sum(1) - hits * (hits + 1) / 2) / (hits * misses)


def _quantus(
    name: str, case: MetricInput, scores: Tensor, *, inside: Tensor | None = None, **settings: Any
) -> Tensor:
    space = quantus.MaskSpace(case.probe, "black", "logit")
    masks = (_inside(case) if inside is None else inside).cpu().numpy().reshape(space.x.shape)
    scored = quantus.evaluate_batch(name, space, scores, masks=masks, **settings)
    return torch.as_tensor(np.asarray(scored, dtype=np.float64))


def _register(
    name: str,
    reference: str,
    settings: type[Settings],
    score: Callable[[MetricInput], Tensor],
    in_quantus: Callable[[MetricInput], Tensor] | None = None,
    *,
    undefined: str = "the mask is empty, or the map has no value to share",
) -> None:
    """Register a metric of `masks`; no score for an empty mask, or a map without a value to share."""

    def scored(case: MetricInput, run: Callable[[MetricInput], Tensor]) -> MetricOutput:
        defined = _inside(case).any(1)
        if settings is PositiveMasks:
            defined &= (pixel_scores(case.maps, absolute=False) > 0).any(1)
        return MetricOutput(run(case).cpu().where(defined.cpu(), torch.nan).numpy())

    register(
        Metric(
            name=name,
            family="localisation",
            better="higher",
            range="[0, 1]",
            reference=reference,
            settings=settings,
            forwards=lambda s, pixels: 0,
            needs="ranking",
            undefined=undefined,
            fast=lambda case: scored(case, score),
            quantus=(lambda case: scored(case, in_quantus)) if in_quantus else None,
        )
    )


_register(
    "pointing_game",
    "Zhang et al., IJCV 2018",
    Pointing,
    _pointing_game,
    lambda case: _quantus("PointingGame", case, _in_order(case), inside=_within_reach(case), weighted=False),
)
for _name, _reference in (
    ("attribution_localisation", "Kohlbrenner et al., IJCNN 2020"),
    ("energy_pointing_game", "Wang et al. (Score-CAM), CVPR Workshops 2020"),
):
    _register(_name, _reference, PositiveMasks, _positive_mass, _positive_mass_quantus)
_register(
    "top_k_intersection",
    "Theiner et al., WACV 2022",
    TopK,
    _top_k,
    lambda case: _quantus(
        "TopKIntersection",
        case,
        _in_order(case),
        k=largest_count(case.probe.pixels, case.settings.k),
        concept_influence=False,
    ),
)
_register(
    "relevance_mass_accuracy",
    "Arras et al., Information Fusion 2022",
    MagnitudeMasks,
    _mass,
    lambda case: _quantus("RelevanceMassAccuracy", case, _scores(case)),
)
_register(
    "relevance_rank_accuracy",
    "Arras et al., Information Fusion 2022",
    Masks,
    _rank_accuracy,
    lambda case: _quantus("RelevanceRankAccuracy", case, _in_order(case)),
)
_register(
    "auc",
    "Fawcett, Pattern Recognition Letters 2006",
    Masks,
    _auc,
    lambda case: _quantus("AUC", case, _scores(case)),
    undefined="the mask is empty, or covers the image",
)
_register("focus", "Arias-Duart et al., FUZZ-IEEE 2022", PositiveMasks, _positive_mass)
