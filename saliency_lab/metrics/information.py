"""SIC and AIC: what does the model answer as the map's pixels put information back into a blurred image?

Kapishnikov et al., "XRAI: Better Attributions Through Regions", ICCV 2019. The information in an image is the
size of its file, losslessly compressed. Both axes are scaled so that the blurred image is at 0 and the whole
one at 1.
"""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from scipy.interpolate import LinearNDInterpolator
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.seeding import sample_uniform
from saliency_lab._common.settings import Settings
from saliency_lab.metrics.catalogue import Curve, Metric, MetricInput, MetricOutput, register
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Probe, ProbePredictions

POINTS = 101
"""Positions on the axis of information at which the curve is given."""


class InformationCurve(Settings):
    """`thresholds` are the shares of the pixels that are put back into a blurred image, highest scores first.

    In the blurred image a random share `seen` of all pixels is known. An image for which the output is below
    `minimum` has no score.
    """

    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75),
        min_length=1,
        strict=False,
    )
    seen: float = Field(0.01, ge=0, lt=1)
    minimum: float = Field(0.8, ge=0, le=1)
    absolute: bool = False


def fill_between(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Interpolate the pixels of an 8-bit image (H, W, C) linearly between those that are `known` (H, W).

    The corners are always known, so that every pixel lies between some.
    """
    known = known.copy()
    known[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    if known.all():
        return image
    points = np.argwhere(known)
    blend = LinearNDInterpolator(points, image[known].astype(np.float64), fill_value=np.nan)
    out = image.copy()
    values = blend(np.argwhere(~known))
    mean = image.mean((0, 1))
    out[~known] = np.round(np.where(np.isnan(values), mean, values)).astype(np.uint8)
    return out


def file_size(image: np.ndarray) -> int:
    """Return the size in bytes of an 8-bit image (H, W, C) as a lossless WebP file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
        buffer, format="webp", lossless=True, quality=100
    )
    return buffer.tell()


def _check(probe: Probe) -> None:
    channels, height, width = probe.x.shape[1:]
    if channels not in (1, 3) or min(height, width) < 2:
        raise InputError(
            "SIC and AIC measure information by the size of a file, so images need 1 or 3 channels and "
            f"at least 2×2 pixels, not the shape {(channels, height, width)}"
        )


def _eight_bit(probe: Probe) -> np.ndarray:
    """Return images (N, H, W, C), uint8."""
    return (probe.images.double() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _seen(probe: Probe, share: float) -> np.ndarray:
    """Return pixels (N, H, W) that are known in the blurred image, keyed by (seed, image)."""
    count = int(share * probe.pixels)
    draws = sample_uniform(probe.seeds("seen pixels"), (probe.pixels,))
    known = torch.zeros(len(probe), probe.pixels, dtype=torch.bool)
    known.scatter_(1, draws.argsort(dim=1)[:, :count], True)
    return known.view(len(probe), *probe.x.shape[2:]).numpy()


def shown_counts(pixels: int, thresholds: tuple[float, ...]) -> list[int]:
    """Return how many pixels are at or above the quantile 1 − t of their scores, for each t; without ties.

    >>> shown_counts(101, (0.05, 0.5))
    [6, 51]
    """
    return [pixels - int(np.ceil(round((pixels - 1) * (1 - t), 9))) for t in thresholds]


def _ask(probe: Probe, images: np.ndarray) -> ProbePredictions:
    """Return predictions (N, K) on 8-bit images (N, K, H, W, C)."""
    variants = torch.as_tensor(images).permute(0, 1, 4, 2, 3)

    def build(i: Tensor, j: Tensor) -> Tensor:
        return (variants[i.cpu(), j.cpu()].double() / 255).to(probe.x)

    return probe.ask(images.shape[1], build)


def _ends(probe: Probe, share: float) -> tuple[np.ndarray, ProbePredictions]:
    """Return file sizes (N, 2) of the blurred and the whole image, and the predictions on them."""

    def compute() -> tuple[np.ndarray, ProbePredictions]:
        whole = _eight_bit(probe)
        blurred = np.stack([fill_between(*pair) for pair in zip(whole, _seen(probe, share), strict=True)])
        images = np.stack([blurred, whole], 1)
        return np.array([[file_size(each) for each in pair] for pair in images], float), _ask(probe, images)

    return probe.remember(("information ends", share), compute)


def _shown(case: MetricInput) -> tuple[np.ndarray, ProbePredictions]:
    """Return file sizes (N, K) of the images with the map's top pixels shown, and the predictions on them."""
    probe, settings = case.probe, case.settings
    key = ("information", fingerprint(case.maps), settings.thresholds, settings.seen, settings.absolute)
    return probe.remember(key, lambda: _compute_shown(case))


def _compute_shown(case: MetricInput) -> tuple[np.ndarray, ProbePredictions]:
    probe, settings = case.probe, case.settings
    order = pixel_scores(case.maps, absolute=settings.absolute).argsort(dim=1, descending=True, stable=True)
    counts = shown_counts(probe.pixels, tuple(sorted(settings.thresholds)))
    images = []
    for image, seen, row in zip(
        _eight_bit(probe), _seen(probe, settings.seen), order.cpu().numpy(), strict=True
    ):
        variants = []
        for count in counts:
            known = seen.copy()
            known.flat[row[:count]] = True
            variants.append(fill_between(image, known))
        images.append(variants)
    stack = np.array(images)
    return np.array([[file_size(each) for each in row] for row in stack], float), _ask(probe, stack)


def _information_curve(case: MetricInput, *, accuracy: bool) -> MetricOutput:
    _check(case.probe)
    end_sizes, end_answers = _ends(case.probe, case.settings.seen)
    sizes, answers = _shown(case)

    def read(predictions: ProbePredictions) -> np.ndarray:
        return (predictions.right if accuracy else predictions.probability).cpu().numpy()

    curves, failures = [], []
    at = np.linspace(0, 1, POINTS)
    for size, answer, ends, reached in zip(sizes, read(answers), end_sizes, read(end_answers), strict=True):
        failure = _why_undefined(ends, reached, case.settings.minimum)
        failures.append(failure)
        if failure:
            curves.append(np.full(POINTS, np.nan))
            continue
        share = ((size - ends[0]) / (ends[1] - ends[0])).clip(0, 1)
        height = np.maximum.accumulate(((answer - reached[0]) / (reached[1] - reached[0])).clip(0, 1))
        order = share.argsort(kind="stable")
        x, y = np.r_[0.0, share[order], 1.0], np.r_[0.0, height[order], 1.0]
        curves.append(np.interp(at, x, y))
    curve = np.stack(curves)
    return MetricOutput(np.trapezoid(curve, at, axis=1), Curve(curve, at), failures)


def _why_undefined(sizes: np.ndarray, answers: np.ndarray, minimum: float) -> str | None:
    if not answers[1] >= minimum:
        return f"the model's output for the image is below minimum={minimum}, or not a number"
    if not answers[0] < answers[1]:
        return "the model's output for the blurred image is not below that for the image"
    if not sizes[0] < sizes[1]:
        return "the blurred image does not hold less information than the image"
    return None


for _name, _accuracy in (("sic", False), ("aic", True)):
    register(
        Metric(
            name=_name,
            family="faithfulness",
            better="higher",
            range="[0, 1]",
            reference="Kapishnikov et al. (XRAI), ICCV 2019",
            settings=InformationCurve,
            forwards=lambda s, pixels: len(s.thresholds) + 2,
            needs="ranking",
            undefined="the output for the image is below `minimum` or not a number, or that for the blurred "
            "image is not below it, or the blurred image does not hold less information",
            fast=lambda case, accuracy=_accuracy: _information_curve(case, accuracy=accuracy),  # type: ignore[misc]
            shares="images with the map's top pixels shown",
        )
    )
