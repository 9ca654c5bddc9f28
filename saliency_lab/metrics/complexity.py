"""How concentrated is the map? A pixel counts by the magnitudes of its channels; no forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.maps import pixel_scores


class Threshold(Settings):
    """A pixel counts if its magnitude exceeds `eps` times the map's largest."""

    eps: float = Field(1e-5, ge=0, lt=1)


def gini(values: Tensor) -> Tensor:
    """Return the Gini index (N,) of non-negative rows (N, K): 0 if all are equal, 1 − 1/K for a single one.

    >>> gini(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]))
    tensor([0.0000, 0.7500])
    """
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, dtype=values.dtype, device=values.device) - count - 1
    return (weights * values.sort(dim=1).values).sum(1) / (count * values.sum(1))


def _unit_maximum(case: MetricInput) -> Tensor:
    """Return magnitudes (N, H·W), each map's largest 1."""
    scores = pixel_scores(case.maps, absolute=True)
    return scores / scores.amax(1, keepdim=True)


def _sparseness(case: MetricInput) -> MetricOutput:
    return MetricOutput(gini(pixel_scores(case.maps, absolute=True)).cpu().numpy())


def _complexity(case: MetricInput) -> MetricOutput:
    scores = pixel_scores(case.maps, absolute=True)
    shares = scores / scores.sum(1, keepdim=True)
    return MetricOutput(torch.special.entr(shares).sum(1).cpu().numpy())


def _effective_complexity(case: MetricInput) -> MetricOutput:
    return MetricOutput((_unit_maximum(case) > case.settings.eps).sum(1).double().cpu().numpy())


def _quantus(name: str, case: MetricInput, **settings: Any) -> MetricOutput:
    space = quantus.MaskSpace(case.probe, "black", "logit")
    scores = quantus.evaluate_batch(name, space, _unit_maximum(case), abs=True, **settings)
    return MetricOutput(np.asarray(scores, np.float64))


register(
    Metric(
        name="sparseness",
        family="complexity",
        better="higher",
        range="[0, 1]",
        reference="Chalasani et al., ICML 2020",
        settings=Settings,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="the map's sum overflows",
        fast=_sparseness,
        quantus=lambda case: _quantus("Sparseness", case),
    )
)
register(
    Metric(
        name="complexity",
        family="complexity",
        better="lower",
        range="[0, ln(H·W)]",
        reference="Bhatt et al., IJCAI 2020",
        settings=Settings,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="the map's sum overflows",
        fast=_complexity,
        quantus=lambda case: _quantus("Complexity", case),
    )
)
register(
    Metric(
        name="effective_complexity",
        family="complexity",
        better="lower",
        range="[1, H·W]",
        reference="Nguyen and Rodríguez Martínez, arXiv:2007.07584, 2020",
        settings=Threshold,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="the map's sum overflows",
        fast=_effective_complexity,
        quantus=lambda case: _quantus("EffectiveComplexity", case, eps=case.settings.eps),
    )
)
