"""Curves of the model's answer as units (pixels, patches, segments) are removed in the map's order."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.provenance import fingerprint
from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import Case, Curve, Metric, Outcome, register
from saliency_lab.metrics.maps import descending_ranks, pixel_scores
from saliency_lab.metrics.probe import Answers, Baseline, Output, Probe


class Flipping(Settings):
    """Pixels are flipped in `steps` equal parts, the highest scores first."""

    steps: int = Field(28, ge=1)
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


def cuts(pixels: int, steps: int) -> Tensor:
    """How many units are gone after each of `steps` equal parts, from 0 to all, int32 (steps + 1,).

    >>> cuts(10, 4)
    tensor([ 0,  2,  5,  8, 10], dtype=torch.int32)
    """
    return torch.linspace(0, pixels, min(steps, pixels) + 1, dtype=torch.float64).round().to(torch.int32)


def removal(probe: Probe, ranks: Tensor, cut: Tensor, baseline: Baseline, *, insert: bool = False) -> Answers:
    """Answers (N, K) with the pixels of rank below cut k replaced by the baseline.

    `ranks` (N, H·W) and `cut` (K,), or (N, K) for one a sample, are int32. With `insert`, the pixels of rank
    at or above it are replaced instead: the image is rebuilt from the baseline.
    """
    cut = cut.to(probe.device).expand(len(probe), -1)
    key = ("removal", fingerprint(ranks, cut), baseline, insert)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = ranks[i] < cut[i, j, None]
        if insert:
            gone = ~gone
        return torch.where(gone.view(len(i), 1, *probe.x.shape[2:]), probe.fill(baseline)[i], probe.x[i])

    return probe.remember(key, lambda: probe.ask(cut.shape[1], build))


def area(values: Tensor, at: Tensor) -> Tensor:
    """Trapezoid area (N,) under curves (N, K) over `at` (K,) or (N, K), divided by the range of `at`."""
    at = at.expand_as(values)
    return torch.trapezoid(values, at, dim=1) / (at[:, -1] - at[:, 0])


def outcome(values: Tensor, curve: Tensor, at: Tensor) -> Outcome:
    """Pack scores (N,) and the curve behind them."""
    return Outcome(values.cpu().numpy(), Curve(curve.cpu().numpy(), at.cpu().numpy()))


def _flipping_curve(case: Case) -> tuple[Tensor, Tensor]:
    """The answer (N, K) and the fraction flipped (K,)."""
    probe, settings = case.probe, case.settings
    ranks = descending_ranks(pixel_scores(case.maps, absolute=settings.absolute))
    cut = cuts(probe.pixels, settings.steps).to(probe.device)
    answers = removal(probe, ranks, cut, settings.baseline)
    return answers.read(settings.output), cut.double() / probe.pixels


def _pixel_flipping(case: Case) -> Outcome:
    curve, at = _flipping_curve(case)
    return outcome(area(curve, at), curve, at)


def _pixel_flipping_quantus(case: Case) -> Outcome:
    probe, settings = case.probe, case.settings
    per_step = quantus.equal_steps(probe.pixels, settings.steps)
    after = quantus.evaluate_batch(
        "PixelFlipping",
        quantus.MaskSpace(probe, settings.baseline, settings.output),
        descending_ranks(pixel_scores(case.maps, absolute=settings.absolute)).neg(),
        features_in_step=per_step,
        perturb_baseline=0.0,
        return_auc_per_sample=False,
    )
    curve = torch.cat([probe.clean.read(settings.output).cpu(), torch.as_tensor(np.asarray(after))], 1)
    at = torch.linspace(0, 1, curve.shape[1], dtype=torch.float64)
    return outcome(area(curve, at), curve, at)


register(
    Metric(
        name="pixel_flipping",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Bach et al., PLoS ONE 2015",
        settings=Flipping,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="varying",
        undefined="the model's answer is not a number",
        fast=_pixel_flipping,
        quantus=_pixel_flipping_quantus,
    )
)
