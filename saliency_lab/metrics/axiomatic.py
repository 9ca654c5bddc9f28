"""Axiomatic metrics: does the map have the right sum and zeros, and is it invariant to a shift?"""

from __future__ import annotations

import copy
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.settings import Settings
from saliency_lab.metrics.catalogue import NOT_A_NUMBER, MapsMade, Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.explainer import Explaining
from saliency_lab.metrics.faithfulness import ONE_PATCH, without_units
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Baseline, Output
from saliency_lab.metrics.removal import cuts, patch_count, patches, removal, unit_sums
from saliency_lab.metrics.sizes import Size, SizedSettings, pixels_of


class Completeness(Settings):
    """The map should sum to f(x) − f(baseline); maps explain logits, so logits are read."""

    baseline: Baseline = "black"
    output: Output = "logit"


class NonSensitivity(SizedSettings):
    """Square patches are removed one at a time; changes below `eps`, and shares of the largest sum, are none.

    `patch_size` is a patch's side in pixels, or as a fraction of the image's shorter side. Logits are read:
    where the softmax saturates, a probability hides that the network looks at a patch.
    """

    patch_size: Size = "1/7"
    eps: float = Field(1e-5, ge=0)
    baseline: Baseline = "black"
    output: Output = "logit"

    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels."""
        return self.model_copy(update={"patch_size": pixels_of(self.patch_size, min(height, width))})


class Shift(Explaining):
    """The input is shifted by `shift`, beyond [0, 1], and the network undoes it."""

    shift: float = Field(0.5, gt=0)


def _completeness(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    everything = torch.zeros(len(probe), probe.pixels, dtype=torch.int32, device=probe.device)
    answers = removal(probe, everything, cuts(1, 1), settings.baseline).read(settings.output)
    gap = case.maps.flatten(1).sum(1) - (answers[:, 0] - answers[:, 1])
    return MetricOutput(gap.abs().cpu().numpy())


def _non_sensitivity(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    units = patches(probe.x.shape, settings.patch_size).to(probe.home)
    answers = without_units(probe, units, settings.baseline).read(settings.output)
    changes = (answers - probe.clean.read(settings.output)).abs()
    shares = unit_sums(pixel_scores(case.maps, absolute=True), units)
    ignored = shares <= settings.eps * shares.amax(1, keepdim=True)
    wrong = ((changes < settings.eps) ^ ignored).double().where(~changes.isnan(), torch.nan)
    return MetricOutput(wrong.mean(1).cpu().numpy())


class Shifted(nn.Module):
    """f(x' − shift): the output of f for x, given x' = x + shift.

    Its parts are those of f under their own names, by which settings of a method may name a layer.
    """

    _shifted: nn.Module

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.shift = shift
        parts = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
        # a shallow copy has a mode of its own, which other threads that use f do not see
        self.__dict__.update({"_shifted": copy.copy(model), **{part: getattr(model, part) for part in parts}})

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        self._shifted.training = self.training  # the mode of its parts, which are those of this, is set here
        logits: Tensor = self._shifted(x - self.shift)
        return logits


def _input_invariance(case: MetricInput) -> MetricOutput:
    shift = case.settings.shift
    network = Shifted(case.probe.model, shift)
    maps = case.explainer(network, case.probe.images + shift, case.settings.explain)
    given, shifted = case.maps.cpu().flatten(1), maps.flatten(1)
    lengths = given.norm(dim=1) * shifted.norm(dim=1)
    # torch's own cosine similarity has a floor of 1e-8 for the lengths
    cosine = (given * shifted).sum(1) / lengths.where(lengths > 0, torch.nan)
    return MetricOutput(cosine.clamp(-1, 1).numpy())


register(
    Metric(
        name="completeness",
        family="axiomatic",
        better="lower",
        range="[0, inf)",
        reference="Sundararajan et al., ICML 2017",
        settings=Completeness,
        forwards=lambda s, pixels: 2,
        needs="finite",
        undefined=NOT_A_NUMBER,
        fast=_completeness,
        same_for_all_maps=True,
    )
)
register(
    Metric(
        name="non_sensitivity",
        family="axiomatic",
        better="lower",
        range="[0, 1]",
        reference="Nguyen and Rodríguez Martínez, arXiv:2007.07584, 2020",
        shares=ONE_PATCH,
        settings=NonSensitivity,
        forwards=lambda s, pixels: patch_count(pixels, s.patch_size) + 1,
        needs="nonzero",
        undefined=NOT_A_NUMBER,
        fast=_non_sensitivity,
        same_for_all_maps=True,
    )
)
register(
    Metric(
        name="input_invariance",
        family="axiomatic",
        better="higher",
        range="[-1, 1]",
        reference="Kindermans et al., Explainable AI 2019",
        settings=Shift,
        forwards=lambda s, pixels: 0,
        needs="nonzero",
        undefined="the map of the shifted image is not finite",
        fast=_input_invariance,
        revision=1,  # the shifted image was scaled into [0, 1], so that noise of a method weighed more on it
        maps=lambda s: MapsMade(1),
    )
)
