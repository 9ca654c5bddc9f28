"""What does the model answer when it sees only what the map marks? Metrics of the CAM literature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from saliency_lab._common.ranks import pearson
from saliency_lab._common.settings import Settings
from saliency_lab.metrics.catalogue import MapsMade, Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.explainer import Explaining
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Baseline, Output

UNDEFINED = "the map has no positive score, or the model's output for the image is not a positive number"


class MaskSettings(Settings):
    """The image is blended with the baseline, by pixel scores that are divided by the largest.

    Negative scores count as zero, or with `absolute` as their magnitudes.
    """

    baseline: Baseline = "black"
    absolute: bool = False
    output: Output = "probability"


class MaskingExplained(MaskSettings, Explaining):
    """The image is blended with the baseline, by pixel scores that are divided by the largest.

    Negative scores count as zero, or with `absolute` as their magnitudes. The blended image is explained
    again.
    """


def unit_masks(case: MetricInput, maps: Tensor) -> Tensor:
    """Scale pixel scores (N, H·W) to [0, 1], negative ones being 0; NaN if none is positive."""
    scores = pixel_scores(maps, absolute=case.settings.absolute).clamp_min(0)
    largest = scores.amax(1, keepdim=True)
    return scores / largest.where(largest > 0, torch.nan)


def masked_images(case: MetricInput) -> Tensor:
    """Blend the images (N, C, H, W), on the model's device, with the baseline by the map."""
    probe = case.probe
    mask = unit_masks(case, case.maps).nan_to_num(0).view(len(probe), 1, *probe.x.shape[2:]).to(probe.x)
    fill = probe.fill(case.settings.baseline)
    return torch.lerp(fill, probe.x, mask)  # exactly the image where the mask is 1


def _answers(case: MetricInput) -> tuple[Tensor, Tensor]:
    """Return outputs (N,) for the image and what the map leaves of it; NaN if the map marks nothing."""
    probe, settings = case.probe, case.settings
    images = masked_images(case)
    before = probe.clean.read(settings.output)[:, 0]
    after = probe.ask(1, lambda i, j: images[i]).read(settings.output)[:, 0]
    marks = (pixel_scores(case.maps, absolute=settings.absolute) > 0).any(1)
    return before.cpu(), after.cpu().where(marks.cpu(), torch.nan)


def _drop(case: MetricInput) -> Tensor:
    before, after = _answers(case)
    return (before - after).clamp_min(0) / before.where(before > 0, torch.nan)


def _average_drop(case: MetricInput) -> MetricOutput:
    return MetricOutput(_drop(case).numpy())


def _increase(case: MetricInput) -> MetricOutput:
    before, after = _answers(case)
    return MetricOutput((after > before).double().where(~(before + after).isnan(), torch.nan).numpy())


def _adcc(case: MetricInput) -> MetricOutput:
    masks = unit_masks(case, case.maps).cpu()
    maps = case.explainer(case.probe.model, masked_images(case).cpu().clamp(0, 1), case.settings.explain)
    coherency = (1 + pearson(masks, unit_masks(case, maps))) / 2
    parts = torch.stack([coherency, 1 - masks.mean(1), 1 - _drop(case)])
    return MetricOutput((3 / (1 / parts).sum(0)).numpy())  # harmonic mean: 0 if one is 0


def _register(
    name: str,
    better: str,
    reference: str,
    score: Callable[[MetricInput], MetricOutput],
    undefined: str = UNDEFINED,
    *,
    range_: str = "[0, 1]",
    again: bool = False,
    revision: int = 0,
) -> None:
    register(
        Metric(
            name=name,
            family="faithfulness",
            better=better,  # type: ignore[arg-type]
            range=range_,
            reference=reference,
            settings=MaskingExplained if again else MaskSettings,
            forwards=lambda s, pixels: 2,
            needs="nonzero",
            undefined=undefined,
            fast=score,
            maps=(lambda s: MapsMade(1)) if again else None,
            revision=revision,
        )
    )


_register("average_drop", "lower", "Chattopadhay et al. (Grad-CAM++), WACV 2018", _average_drop)
_register(
    "increase_in_confidence",
    "higher",
    "Chattopadhay et al. (Grad-CAM++), WACV 2018",
    _increase,
    range_="{0, 1}",
    revision=1,  # rounding could count as an increase
)
_register(
    "adcc",
    "higher",
    "Poppi et al., CVPR Workshops 2021",
    _adcc,
    f"{UNDEFINED}; or the map of the masked image is constant or has no positive score",
    again=True,
)
