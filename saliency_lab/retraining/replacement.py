"""Data sets whose most or least important pixels are replaced by the mean of their channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.ranks import descending_ranks
from saliency_lab.attribution.api import run_call
from saliency_lab.data import ImageData
from saliency_lab.data.images import Split
from saliency_lab.metrics.catalogue import MORF, Order
from saliency_lab.metrics.maps import pixel_scores
from saliency_lab.study.requests import Request

PARTS = ("train", "val", "test")
_IMAGES = 1024
"""How many images are attributed at a time, so that memory does not grow with the data set."""


def pixel_ranks(
    net: nn.Module, data: ImageData, request: Request, *, order: Order, absolute: bool, seed: int
) -> dict[str, Tensor]:
    """Rank the pixels of every image by its map, int32 (N, H·W) per split; rank 0 is replaced first.

    Ties keep the order of the pixels.

    Raises
    ------
    SaliencyLabError
        If a map is not finite.
    """
    return {
        part: torch.cat(
            [
                _ranks(net, split.batch(rows), request, order=order, absolute=absolute, seed=seed)
                for rows in torch.arange(len(split)).split(_IMAGES)
            ]
        )
        for part in PARTS
        if len(split := getattr(data, part))
    }


def _ranks(
    net: nn.Module,
    images: tuple[Tensor, Tensor],
    request: Request,
    *,
    order: Order,
    absolute: bool,
    seed: int,
) -> Tensor:
    maps = run_call(net, *images, request.method_call, seed)
    scores = pixel_scores(maps.values, absolute=absolute)
    if broken := int((~scores.isfinite()).any(1).sum()):
        raise SaliencyLabError(
            f"method '{request.label}': {broken} of {len(scores)} maps are not finite, so they rank no pixels"
        )
    return descending_ranks(scores if order == MORF else -scores)


def channel_means(data: ImageData) -> Tensor:
    """Return the mean of each channel over the training images, (C, 1, 1), of their type."""
    total = torch.zeros(data.input_shape[0], dtype=torch.float64)
    for block in data.train.blocks():
        total += block.double().sum((0, 2, 3))
    height, width = data.input_shape[1:]
    means = total / (len(data.train) * height * width)
    if not block.is_floating_point():
        means = means.round()
    return means.to(block.dtype).view(-1, 1, 1)


def replace_pixels(data: ImageData, ranks: Mapping[str, Tensor], fraction: float, fill: Tensor) -> ImageData:
    """Return the data with the first `fraction` of the pixels of each image, by rank, replaced by `fill`.

    A pixel is replaced in all of its channels.
    """
    height, width = data.input_shape[1:]
    count = round(fraction * height * width)
    splits: dict[str, Any] = {}
    for part, order in ranks.items():
        split: Split = getattr(data, part)
        gone = (order < count).view(-1, 1, height, width)
        images = empty_tensor((len(split), *data.input_shape), split.images.dtype)
        start = 0
        for block in split.blocks():
            rows = slice(start, start := start + len(block))
            images[rows] = torch.where(gone[rows], fill.to(block.dtype), block)
        splits[part] = Split(images, split.labels)
    return replace(data, **splits)
