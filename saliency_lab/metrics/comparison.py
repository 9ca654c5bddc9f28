"""Metrics that compare samples with each other: do samples with similar maps have the same prediction?"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.ranks import descending_ranks
from saliency_lab._common.settings import Settings
from saliency_lab.metrics.catalogue import Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.maps import pixel_scores


class Consistency(Settings):
    """Maps are alike if their `top` highest pixels are the same, in any order."""

    top: int = Field(5, ge=1)
    absolute: bool = True


class Sufficiency(Settings):
    """Maps are alike if their distance is at most `threshold` times the largest between two maps."""

    threshold: float = Field(0.6, ge=0, le=1)
    absolute: bool = True


def _usable(case: MetricInput) -> Tensor:
    """Return whether each map (N,) can be scored."""
    return case.maps.flatten(1).any(1).cpu()


def _share(both: Tensor, alike: Tensor) -> MetricOutput:
    """Return the share (N,) of the maps similar to a sample's whose predictions are the same too."""
    return MetricOutput((both / alike.double().where(alike > 0, torch.nan)).numpy())


def _consistency(case: MetricInput) -> MetricOutput:
    ranks = descending_ranks(pixel_scores(case.maps, absolute=case.settings.absolute))
    top = np.packbits((ranks < case.settings.top).cpu().numpy(), axis=1)
    kinds = torch.as_tensor(np.unique(top, axis=0, return_inverse=True)[1]).flatten()
    usable, predicted = _usable(case), case.probe.predicted

    def others(groups: Tensor) -> Tensor:
        """Return how many other usable maps are in the group of each."""
        counts = groups[usable].bincount(minlength=int(groups.max()) + 1)
        return (counts[groups] - 1).where(usable, 0)

    return _share(others(kinds * (predicted.max() + 1) + predicted), others(kinds))


def _sufficiency(case: MetricInput) -> MetricOutput:
    scores = pixel_scores(case.maps, absolute=case.settings.absolute)
    unit = scores / scores.norm(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    exact = "donot_use_mm_for_euclid_dist"  # by products, equal maps would be some 1e-8 apart
    distance = torch.cdist(unit, unit, compute_mode=exact)
    distance, usable, predicted = distance.cpu(), _usable(case), case.probe.predicted
    pairs = usable & usable[:, None]
    largest = distance.where(pairs, 0.0).max()  # a map that cannot be scored must not widen the threshold
    alike = (distance <= case.settings.threshold * largest) & pairs & ~torch.eye(len(pairs), dtype=torch.bool)
    return _share((alike & (predicted[:, None] == predicted)).sum(1), alike.sum(1))


for _name, _settings, _score, _family, _reference in (
    ("consistency", Consistency, _consistency, "robustness", "Dasgupta et al., ICML 2022"),
    ("sufficiency", Sufficiency, _sufficiency, "faithfulness", "Dasgupta et al., ICML 2022"),
):
    register(
        Metric(
            name=_name,
            family=_family,  # type: ignore[arg-type]
            better="higher",
            range="[0, 1]",
            reference=_reference,
            settings=_settings,
            forwards=lambda s, pixels: 1,
            needs="ranking",
            undefined="no other map of the call is like this one",
            fast=_score,
            whole=True,
        )
    )
