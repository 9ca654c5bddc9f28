"""How concentrated is the map? No forward pass is needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import Case, Metric, Outcome, register
from saliency_lab.metrics.maps import pixel_scores


class NoSettings(Settings):
    """The metric has none."""


def gini(values: Tensor) -> Tensor:
    """Gini index (N,) of rows (N, K) of non-negative values: 0 if all are equal, 1 − 1/K for a single one.

    >>> gini(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]]))
    tensor([0.0000, 0.7500])
    """
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, dtype=values.dtype, device=values.device) - count - 1
    return (weights * values.sort(dim=1).values).sum(1) / (count * values.sum(1))


def _sparseness(case: Case) -> Outcome:
    return Outcome(gini(pixel_scores(case.maps, absolute=True)).cpu().numpy())


def _unit_maximum(case: Case) -> Tensor:
    """Magnitudes a pixel (N, H·W), each map's largest 1."""
    scores = pixel_scores(case.maps, absolute=True)
    return scores / scores.amax(1, keepdim=True)


def _quantus(name: str, case: Case, **settings: object) -> Outcome:
    space = quantus.MaskSpace(case.probe, "black", "logit")
    return Outcome(
        np.asarray(quantus.evaluate_batch(name, space, _unit_maximum(case), **settings), np.float64)
    )


register(
    Metric(
        name="sparseness",
        family="complexity",
        better="higher",
        range="[0, 1]",
        reference="Chalasani et al., ICML 2020",
        settings=NoSettings,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="the map's sum overflows",
        fast=_sparseness,
        quantus=lambda case: _quantus("Sparseness", case, abs=True),
    )
)
