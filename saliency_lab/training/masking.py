"""M(x, s, k): the k·H·W pixels that rank lowest by saliency, replaced, all channels of a pixel together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saliency_lab._common.inference import float64_device

Ranking = Literal["signed", "absolute", "random"]
Fill = Literal["uniform", "mean", "zero"]


def pixel_scores(saliency: Tensor, ranking: Literal["signed", "absolute"]) -> Tensor:
    """Reduce a saliency (N, C, H, W) to one score a pixel, (N, H, W).

    `signed` is the channel mean of s; `absolute` is the channel mean of |s|.
    """
    return (saliency if ranking == "signed" else saliency.abs()).mean(dim=1)


def lowest(scores: Tensor, fraction: float | Tensor) -> Tensor:
    """Mark exactly ⌊fraction·H·W⌋ lowest scores of each sample; ties go to the earlier pixel.

    Parameters
    ----------
    scores : (N, H, W)
    fraction : one share in [0, 1], or one a sample (N,)

    Returns
    -------
    bool (N, H, W), the same as the first entries of a stable argsort.
    """
    flat = scores.flatten(1)
    pixels = flat.shape[1]
    if isinstance(fraction, Tensor):
        ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        return (ranks < whole(fraction, pixels).unsqueeze(1)).view_as(scores)
    count = int(whole(torch.tensor(fraction, dtype=torch.float64), pixels))
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count, dim=1, keepdim=True).values
    below, equal = flat < threshold, flat == threshold
    room = count - below.sum(dim=1, keepdim=True)
    return (below | (equal & (equal.cumsum(dim=1) <= room))).view_as(scores)


def whole(fraction: Tensor, pixels: int) -> Tensor:
    """⌊fraction·pixels⌋ as int64, immune to products such as 0.3·10 = 2.999…"""
    precise = fraction.to(float64_device(fraction.device)).double()
    return (precise * pixels + 1e-6).floor().long().clamp(0, pixels).to(fraction.device)


def masked(x: Tensor, chosen: Tensor, fill: Fill, noise: Tensor | None = None) -> Tensor:
    """Replace the chosen pixels (N, H, W) of `x` (N, C, H, W), all channels together.

    `uniform` draws between the sample's minimum and maximum of each channel, from `noise`, uniform
    on [0, 1) of the shape of `x`; `mean` is the sample's mean of each channel; `zero` is 0.
    """
    if fill == "uniform":
        assert noise is not None
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        value = low + (high - low) * noise
    elif fill == "mean":
        value = x.mean((2, 3), keepdim=True)
    else:
        value = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(chosen.unsqueeze(1), value, x)
