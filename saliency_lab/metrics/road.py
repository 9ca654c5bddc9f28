"""ROAD: removed pixels become a noisy linear interpolation of what is left, so no mask shows its shape."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.ranks import descending_ranks
from saliency_lab._common.seeding import sample_normal
from saliency_lab._common.settings import Settings
from saliency_lab.metrics import quantus_engine as quantus
from saliency_lab.metrics.catalogue import (
    MORF,
    NOT_A_NUMBER,
    Metric,
    MetricInput,
    MetricOutput,
    Order,
    added_later,
    register,
)
from saliency_lab.metrics.curves import order_ranks
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.metrics.probe import Probe, ProbePredictions
from saliency_lab.metrics.removal import outcome

TOLERANCE = 1e-3
"""Length of the residual, 12 times in units of the image range, at which an image counts as solved."""

CHECK_EVERY = 4
LIMIT = 2000


class Road(Settings):
    """The top `percentages` of the pixels are removed; `noise` is in units of the image range."""

    percentages: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(
        (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0), min_length=1, strict=False
    )
    noise: float = Field(0.01, ge=0)
    absolute: bool = False
    order: Order = Field(MORF, json_schema_extra=added_later(MORF))


class RoadCombined(Settings):
    """The most and the least relevant `percentages` of the pixels are removed, in two curves."""

    percentages: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(
        (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0), min_length=1, strict=False
    )
    noise: float = Field(0.01, ge=0)
    absolute: bool = False
    output: Literal["accuracy", "probability", "logit"] = "accuracy"


def _laid(images: Tensor) -> Tensor:
    """Lay images (R, H, W) out as rows: a zero after each line, and a line of zeros at the end."""
    return torch.nn.functional.pad(images, (0, 1, 0, 1)).flatten(1)


class _Around:
    """Weighted sums of each pixel's neighbours, for rows as `_laid` lays them.

    In one flat tensor of such rows a pixel's eight neighbours are at the same eight distances everywhere, so
    the sums are four additions of shifted tensors.
    """

    def __init__(self, rows: Tensor, width: int) -> None:
        line = width + 1
        margin = line + 1
        whole = rows.new_zeros(rows.numel() + 2 * margin)
        self.rows = whole[margin:-margin].view(rows.shape).copy_(rows)
        """What is summed; write here."""
        self._left, self._centre, self._right = whole[:-2], whole[1:-1], whole[2:]
        self._across = torch.empty_like(self._centre)
        self._above, self._below = self._across[: -2 * line], self._across[2 * line :]
        self._middle = self._across[line:-line]
        self._sum = torch.empty_like(self._middle)

    def sum(self) -> Tensor:
        """Return the sum over the 3×3 windows, weighted 4 in the centre, 2 at the sides and 1 at the corners.

        What lies beyond the edge is zero. The sums are valid until the next call.
        """
        torch.add(self._left, self._right, out=self._across).add_(self._centre, alpha=2)
        torch.add(self._above, self._below, out=self._sum).add_(self._middle, alpha=2)
        return self._sum.view(self.rows.shape)


def interpolate(images: Tensor, gone: Tensor) -> Tensor:
    """Replace the pixels `gone` (R, H, W) of `images` (R, H, W) by the weighted mean of their neighbours.

    The neighbours may be gone themselves, so this is one symmetric positive definite system per image; all
    are solved at once by conjugate gradients, each until its own residual is below `TOLERANCE`. At least one
    pixel of each image stays.

    >>> images = torch.tensor([[[0.0, 9.0, 1.0]]])
    >>> interpolate(images, images == 9)
    tensor([[[0.0000, 0.5000, 1.0000]]])
    """
    height, width = images.shape[1:]
    tiny = torch.finfo(images.dtype).tiny
    window = _Around(_laid(torch.ones_like(images[:1])), width).sum()
    left = ~gone
    mean = (images * left).sum((1, 2)) / left.sum((1, 2))
    solution = _laid(torch.where(gone, mean[:, None, None], images))
    out = solution.clone()
    taken = _laid(gone.to(images.dtype)).neg_()  # −1 where a pixel is sought, else 0
    residual = (window * solution).sub_(_Around(solution, width).sum()).mul_(taken)
    direction = _Around(residual, width)
    square = residual.square().sum(1, keepdim=True)
    still = torch.arange(len(images), device=images.device)
    for step in range(LIMIT):
        if step % CHECK_EVERY == 0:
            going = square[:, 0] > TOLERANCE**2
            if not going.all():
                out[still[~going]] = solution[~going]
                if not going.any():
                    break
                keep = going.nonzero()[:, 0]
                still, solution, residual, taken, square, rows = (
                    kept.index_select(0, keep)
                    for kept in (still, solution, residual, taken, square, direction.rows)
                )
                direction = _Around(rows, width)
        image = direction.sum().mul_(taken).addcmul_(window, direction.rows)
        length = square / (direction.rows * image).sum(1, keepdim=True).clamp_min_(tiny)
        solution.addcmul_(length, direction.rows)
        residual.addcmul_(length, image, value=-1)
        before, square = square, residual.square().sum(1, keepdim=True)
        torch.addcmul(residual, direction.rows, square / before.clamp_min_(tiny), out=direction.rows)
    else:
        out[still] = solution
    return out.unflatten(1, (height + 1, width + 1))[:, :height, :width]


def removed_counts(pixels: int, percentages: tuple[float, ...]) -> Tensor:
    """Return how many pixels each percentage is, rounded down but at least one stays, int32 (K,)."""
    return torch.tensor([min(int(pixels * p / 100), pixels - 1) for p in percentages], dtype=torch.int32)


def imputation_noise(probe: Probe, noise: float) -> Tensor:
    """Return Gaussian noise (N, C, H, W), keyed by (seed, image)."""
    return probe.remember(
        ("imputation noise", noise),
        lambda: noise * sample_normal(probe.seeds("imputation noise"), probe.x.shape[1:]).to(probe.x),
    )


def imputed(probe: Probe, ranks: Tensor, counts: Tensor, noise: float) -> ProbePredictions:
    """Return predictions (N, K) with the pixels of rank below count k imputed."""
    draws, ranks = imputation_noise(probe, noise), ranks.to(probe.device)

    def build(i: Tensor, j: Tensor) -> Tensor:
        gone = (ranks[i] < counts[j, None]).view(len(i), 1, *probe.x.shape[2:]).expand(-1, *probe.x.shape[1:])
        filled = interpolate(probe.x[i].flatten(0, 1), gone.flatten(0, 1)).view(gone.shape)
        return torch.where(gone, filled + draws[i], filled)

    key = ("imputed", fingerprint(ranks, counts), noise)
    return probe.remember(key, lambda: probe.ask(len(counts), build))


def _order(case: MetricInput) -> tuple[Tensor, Tensor]:
    """Ranks (N, H·W) and how many pixels are removed (K,)."""
    ranks = order_ranks(pixel_scores(case.maps, absolute=case.settings.absolute), case.settings)
    counts = removed_counts(case.probe.pixels, case.settings.percentages)
    return ranks, counts.to(case.probe.device)


def _curve_output(case: MetricInput, right: Tensor) -> MetricOutput:
    at = torch.tensor(case.settings.percentages, dtype=torch.float64) / 100
    return outcome(right.mean(1), right, at)


def _road(case: MetricInput) -> MetricOutput:
    return _curve_output(case, imputed(case.probe, *_order(case), case.settings.noise).right)


def _road_combined(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    scores = pixel_scores(case.maps, absolute=settings.absolute)
    counts = removed_counts(probe.pixels, settings.percentages).to(probe.device)
    curves = []
    for values in (-scores, scores):  # the least relevant first, then the most relevant
        answers = imputed(probe, descending_ranks(values), counts, settings.noise)
        curves.append(answers.right if settings.output == "accuracy" else answers.read(settings.output))
    half = (curves[0] - curves[1]) / 2
    return _curve_output(case, half)


def _road_quantus(case: MetricInput) -> MetricOutput:
    probe, settings = case.probe, case.settings
    ranks, _ = _order(case)
    space = quantus.ImputedSpace(probe, imputation_noise(probe, settings.noise))
    (correct,) = quantus.evaluate_batch(
        "ROAD",
        space,
        quantus.in_order(ranks),
        state={"a_size": probe.pixels},
        percentages=list(settings.percentages),
        noise=0.0,
        perturb_func=space.impute,
    )
    right = np.where(np.stack(space.undefined, axis=1), np.nan, np.asarray(correct, dtype=np.float64))
    return _curve_output(case, torch.as_tensor(right))


register(
    Metric(
        name="road",
        family="faithfulness",
        better="lower",
        range="[0, 1]",
        reference="Rong et al., ICML 2022",
        settings=Road,
        forwards=lambda s, pixels: len(s.percentages),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_road,
        quantus=_road_quantus,
    )
)
register(
    Metric(
        name="road_combined",
        family="faithfulness",
        better="higher",
        range="[-0.5, 0.5]",
        reference="Rong et al., ICML 2022; Gildenblat and contributors, pytorch-grad-cam, 2021",
        settings=RoadCombined,
        forwards=lambda s, pixels: 2 * len(s.percentages),
        needs="ranking",
        undefined=NOT_A_NUMBER,
        fast=_road_combined,
    )
)
