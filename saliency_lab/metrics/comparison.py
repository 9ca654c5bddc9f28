"""Metrics that compare a sample with the others of the call: do like maps go with like predictions?"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.settings import Settings
from saliency_lab.metrics.catalogue import Case, Metric, Outcome, register
from saliency_lab.metrics.maps import descending_ranks, pixel_scores
from saliency_lab.metrics.probe import Probe


class Consistency(Settings):
    """Maps are alike if their `top` highest pixels are the same, in any order."""

    top: int = Field(5, ge=1)
    absolute: bool = True


class Sufficiency(Settings):
    """Maps are alike if their distance is at most `threshold` times the largest between two maps."""

    threshold: float = Field(0.6, ge=0, le=1)
    absolute: bool = True


def _predicted(probe: Probe) -> Tensor:
    """The class (N,) predicted for each image."""
    return torch.cat([probe.logits(chunk).argmax(1) for chunk in probe.x.split(probe.chunk)]).cpu()


def _agreement(case: Case, alike: Tensor) -> Outcome:
    """Share (N,) of the maps alike to a sample's own (N, N, bool) whose predictions are the same too."""
    predicted = _predicted(case.probe)
    usable = case.maps.flatten(1).any(1).cpu()
    alike = alike.cpu() & usable & usable[:, None] & ~torch.eye(len(alike), dtype=torch.bool)
    same = predicted[:, None] == predicted
    count = alike.sum(1)
    return Outcome(((alike & same).sum(1) / count.double().where(count > 0, torch.nan)).numpy())


def _consistency(case: Case) -> Outcome:
    ranks = descending_ranks(pixel_scores(case.maps, absolute=case.settings.absolute))
    top = np.packbits((ranks < case.settings.top).cpu().numpy(), axis=1)
    kinds = torch.as_tensor(np.unique(top, axis=0, return_inverse=True)[1]).flatten()
    return _agreement(case, kinds[:, None] == kinds)


def _sufficiency(case: Case) -> Outcome:
    scores = pixel_scores(case.maps, absolute=case.settings.absolute)
    unit = scores / scores.norm(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    exact = "donot_use_mm_for_euclid_dist"  # by products, equal maps would be some 1e-8 apart
    distance = torch.cdist(unit, unit, compute_mode=exact)
    usable = case.maps.flatten(1).any(1)  # one that cannot be scored must not widen the threshold
    largest = distance.where(usable & usable[:, None], 0.0).max()
    return _agreement(case, distance <= case.settings.threshold * largest)


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
