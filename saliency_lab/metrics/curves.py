"""Metrics that integrate a curve of the model's answers over what is removed."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.ranks import descending_ranks
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.segments import superpixels
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import (
    MORF,
    NOT_A_NUMBER,
    Curve,
    Metric,
    MetricInput,
    MetricOutput,
    Order,
    added_later,
    register,
)
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Baseline, Output, Probe
from saliency_lab.metrics.removal import area, cuts, outcome, patch_count, patches, removal, unit_sums
from saliency_lab.metrics.sizes import Size, SizedSettings, pixels_of

PIXELS_IN_TURN = "the highest pixels removed in turn"
PATCHES_IN_TURN = "the highest patches removed in turn"


class PixelSteps(Settings):
    """Pixels are removed (or shown) in `steps` equal parts."""

    steps: int = Field(28, ge=1)
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


class PixelCurve(PixelSteps):
    """Pixels are removed (or shown) in `steps` equal parts, the most or the least relevant first."""

    order: Order = Field(MORF, json_schema_extra=added_later(MORF))


class Insertion(PixelCurve):
    """The image is rebuilt from its blur."""

    baseline: Baseline = "blur"


class MaskedAccuracyLowest(Settings):
    """Pixels are removed in `steps` equal parts, the lowest scores first."""

    steps: int = Field(28, ge=1)
    baseline: Baseline = "black"
    absolute: bool = False


class MaskedAccuracy(MaskedAccuracyLowest):
    """Pixels are removed in `steps` equal parts, the most or the least relevant first."""

    order: Order = Field(MORF, json_schema_extra=added_later(MORF))


class PatchCurve(SizedSettings):
    """Square patches are removed one by one, those of the highest or of the lowest sums first.

    `patch_size` is a patch's side in pixels, or as a fraction of the image's shorter side.
    """

    patch_size: Size = "1/7"
    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"
    order: Order = Field(MORF, json_schema_extra=added_later(MORF))

    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels."""
        return self.model_copy(update={"patch_size": pixels_of(self.patch_size, min(height, width))})


class RegionPerturbation(PatchCurve):
    """The first `regions` patches are removed."""

    regions: int = Field(100, ge=1)


class Segments(Settings):
    """About `segments` superpixels (SLIC) are removed one by one, the most or the least relevant first."""

    segments: int = Field(100, ge=2)
    baseline: Baseline = "mean"
    absolute: bool = False
    output: Output = "probability"
    order: Order = Field(MORF, json_schema_extra=added_later(MORF))


def _pixel_order(case: MetricInput, *, ascending: bool = False) -> tuple[Tensor, Tensor]:
    """Ranks (N, H·W) and cuts (K,) of a curve over pixels."""
    scores = pixel_scores(case.maps, absolute=case.settings.absolute)
    ranks = descending_ranks(-scores) if ascending else order_ranks(scores, case.settings)
    return ranks, cuts(case.probe.pixels, case.settings.steps).to(case.probe.home)


def order_ranks(scores: Tensor, settings: Any) -> Tensor:
    """Rank (N, K) the units in the order of removal; ties keep their order."""
    return descending_ranks(scores if settings.order == MORF else -scores)


def _deletion(case: MetricInput) -> MetricOutput:
    ranks, cut = _pixel_order(case)
    curve = removal(case.probe, ranks, cut, case.settings.baseline).read(case.settings.output)
    at = cut.double() / case.probe.pixels
    return outcome(area(curve, at), curve, at)


def _insertion(case: MetricInput) -> MetricOutput:
    ranks, cut = _pixel_order(case)
    curve = removal(case.probe, ranks, cut, case.settings.baseline, insert=True).read(case.settings.output)
    at = cut.double() / case.probe.pixels
    return outcome(area(curve, at), curve, at)


def _masked_accuracy(case: MetricInput, *, lowest: bool) -> MetricOutput:
    ranks, cut = _pixel_order(case, ascending=lowest)
    curve = removal(case.probe, ranks, cut, case.settings.baseline).right
    at = cut.double() / case.probe.pixels
    return outcome(area(curve, at), curve, at)


def _pixel_flipping_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    after = quantus.evaluate_batch(
        "PixelFlipping",
        quantus.MaskSpace(probe, settings.baseline, settings.output),
        quantus.in_order(order_ranks(pixel_scores(case.maps, absolute=settings.absolute), settings)),
        features_in_step=quantus.equal_steps(probe.pixels, settings.steps),
        perturb_baseline=0.0,
        return_auc_per_sample=False,
    )
    return _from_start(case, after)


def _from_start(case: MetricInput, after: object) -> MetricOutput:
    """Put the clean answer before Quantus's curve, and integrate over the fraction removed."""
    start = case.probe.clean.read(case.settings.output).cpu()
    curve = torch.cat([start, torch.as_tensor(np.asarray(after, dtype=np.float64))], 1)
    at = torch.linspace(0, 1, curve.shape[1], dtype=torch.float64)
    return outcome(area(curve, at), curve, at)


def _monotonicity(case: MetricInput) -> MetricOutput:
    ranks, cut = _pixel_order(case, ascending=True)
    curve = removal(case.probe, ranks, cut, case.settings.baseline, insert=True).read(case.settings.output)
    rising = (curve.diff(dim=1) >= 0).all(1).double()
    return outcome(rising.where(~curve.isnan().any(1), torch.nan), curve, cut.double() / case.probe.pixels)


def _patch_ranks(case: MetricInput) -> tuple[Tensor, Tensor]:
    """Rank (N, U) of each patch in the order of removal, and the patch (H·W,) of each pixel."""
    units = patches(case.probe.x.shape, case.settings.patch_size).to(case.probe.home)
    sums = unit_sums(pixel_scores(case.maps, absolute=case.settings.absolute), units)
    return order_ranks(sums, case.settings), units


def _patch_curve(case: MetricInput, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the answer (N, K) and the number of patches removed (K,)."""
    probe, settings = case.probe, case.settings
    ranks, units = _patch_ranks(case)
    count = ranks.shape[1] if limit is None else min(limit, ranks.shape[1])
    cut = torch.arange(count + 1, dtype=torch.int32, device=probe.home)
    answers = removal(probe, ranks[:, units], cut, settings.baseline)
    return answers.read(settings.output), cut.double()


def _selectivity(case: MetricInput) -> MetricOutput:
    curve, gone = _patch_curve(case)
    at = gone / gone[-1]
    return outcome(area(curve, at), curve, at)


def _selectivity_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    after = quantus.evaluate_batch(
        "Selectivity",
        quantus.MaskSpace(probe, settings.baseline, settings.output),
        quantus.in_order(*_patch_ranks(case)),
        patch_size=settings.patch_size,
        perturb_baseline=0.0,
    )
    return _from_start(case, after)


def _region_perturbation(case: MetricInput) -> MetricOutput:
    curve, gone = _patch_curve(case, case.settings.regions)
    drops = curve[:, :1] - curve
    return outcome(drops.mean(1), drops, gone)


def _region_perturbation_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    after = quantus.evaluate_batch(
        "RegionPerturbation",
        quantus.MaskSpace(probe, settings.baseline, settings.output),
        quantus.in_order(*_patch_ranks(case)),
        patch_size=settings.patch_size,
        order="morf",
        regions_evaluation=settings.regions,
        perturb_baseline=0.0,
    )
    drops = np.pad(np.asarray(after, dtype=np.float64), ((0, 0), (1, 0)))
    return MetricOutput(drops.mean(1), Curve(drops, np.arange(drops.shape[1], dtype=np.float64)))


def segmentation(probe: Probe, segments: int) -> Tensor:
    """Return the superpixel of each pixel, int64 (N, H·W), as attribution methods make them."""

    def segment() -> Tensor:
        rows = [superpixels(image, segments) for image in probe.images.double().cpu().numpy()]
        return torch.as_tensor(np.stack(rows)).flatten(1).long().to(probe.home)

    return probe.remember(("slic", segments), segment)


def _segment_ranks(case: MetricInput) -> tuple[Tensor, Tensor]:
    """Rank (N, H·W) of each pixel's segment in the order of removal; how many segments (N, 1)."""
    units = segmentation(case.probe, case.settings.segments)
    scores = pixel_scores(case.maps, absolute=case.settings.absolute)
    sizes = unit_sums(torch.ones_like(scores), units)
    means = unit_sums(scores, units) / sizes
    last = -torch.inf if case.settings.order == MORF else torch.inf  # samples differ in how many they have
    ranks = order_ranks(means.where(sizes > 0, last), case.settings)
    return ranks.gather(1, units), (sizes > 0).sum(1, keepdim=True)


def _irof(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    ranks, count = _segment_ranks(case)
    cut = torch.arange(int(count.max()) + 1, device=probe.home).minimum(count)
    answers = removal(probe, ranks, cut.int(), settings.baseline).read(settings.output)
    return _irof_output(case, answers / answers[:, :1], cut, count)


def _irof_output(case: MetricInput, curve: Tensor, cut: Tensor, count: Tensor) -> MetricOutput:
    """Return 1 − the area; a share of a negative output would grow as the output falls."""
    at = cut.double() / count
    over = 1 - torch.trapezoid(curve, at, dim=1)
    positive = case.probe.clean.read(case.settings.output)[:, 0].to(over.device) > 0
    return outcome(over.where((count[:, 0] > 1) & positive, torch.nan), curve, at)


def _irof_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    ranks, count = _segment_ranks(case)
    units = segmentation(probe, settings.segments)
    segments = iter(units.reshape(len(probe), *probe.x.shape[2:]).cpu().numpy())
    curves: list[np.ndarray] = []

    def keep_curve(values: np.ndarray, **_: object) -> np.ndarray:
        curves.append(np.asarray(values))
        return np.zeros(len(values))

    with quantus.replaced_in_quantus(
        get_superpixel_segments=lambda **_: next(segments), calculate_auc=keep_curve
    ):
        quantus.evaluate_batch(
            "IROF",
            quantus.MaskSpace(probe, settings.baseline, settings.output),
            quantus.in_order(ranks),
            segmentation_method="slic",
            perturb_baseline=0.0,
        )
    after = torch.as_tensor(curves[0])
    curve = torch.cat([torch.ones(len(after), 1, dtype=torch.float64), after.double()], 1)
    cut = torch.arange(curve.shape[1]).minimum(count.cpu())
    return _irof_output(case, curve, cut, count.cpu())


register(
    Metric(
        name="pixel_flipping",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Bach et al., PLoS ONE 2015",
        shares=PIXELS_IN_TURN,
        settings=PixelCurve,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_deletion,
        quantus=_pixel_flipping_quantus,
    )
)
register(
    Metric(
        name="deletion",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Petsiuk et al., BMVC 2018",
        shares=PIXELS_IN_TURN,
        settings=PixelCurve,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_deletion,
    )
)
register(
    Metric(
        name="insertion",
        family="faithfulness",
        better="higher",
        range="[0, 1]",
        reference="Petsiuk et al., BMVC 2018",
        settings=Insertion,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_insertion,
    )
)
register(
    Metric(
        name="masked_input_accuracy",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Ismail et al., NeurIPS 2021",
        shares=PIXELS_IN_TURN,
        settings=MaskedAccuracy,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=lambda case: _masked_accuracy(case, lowest=False),
    )
)
register(
    Metric(
        name="masked_input_accuracy_lowest",
        family="faithfulness",
        better="higher",
        range="[0, 1]",
        reference="Ismail et al., NeurIPS 2021",
        settings=MaskedAccuracyLowest,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=lambda case: _masked_accuracy(case, lowest=True),
    )
)
register(
    Metric(
        name="selectivity",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Montavon et al., Digital Signal Processing 2018",
        shares=PATCHES_IN_TURN,
        settings=PatchCurve,
        forwards=lambda s, pixels: patch_count(pixels, s.patch_size) + 1,
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_selectivity,
        quantus=_selectivity_quantus,
    )
)
register(
    Metric(
        name="region_perturbation",
        family="faithfulness",
        better="higher",
        range="[-1, 1]",
        reference="Samek et al., TNNLS 2017",
        shares=PATCHES_IN_TURN,
        settings=RegionPerturbation,
        forwards=lambda s, pixels: min(s.regions, patch_count(pixels, s.patch_size)) + 1,
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_region_perturbation,
        quantus=_region_perturbation_quantus,
    )
)
register(
    Metric(
        name="irof",
        family="faithfulness",
        better="higher",
        range="(-inf, 1]",
        reference="Rieger and Hansen, arXiv:2003.08747, 2020",
        settings=Segments,
        forwards=lambda s, pixels: s.segments + 1,
        needs="ranking",
        undefined="the image has a single segment, or the model's output for it is not a positive number",
        fast=_irof,
        quantus=_irof_quantus,
        serial=("quantus",),
    )
)
register(
    Metric(
        name="monotonicity",
        family="faithfulness",
        better="higher",
        range="{0, 1}",
        reference="Arya et al., arXiv:1909.03012, 2019",
        settings=PixelSteps,
        forwards=lambda s, pixels: len(cuts(pixels, s.steps)),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_monotonicity,
        revision=1,  # probabilities were rounded to float32, which decided small drops
    )
)
