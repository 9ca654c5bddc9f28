"""M(x, s, k): replace the k·H·W pixels with the lowest saliency, all channels of a pixel together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from saliency_lab._common.inference import float64_device

Ranking = Literal["signed", "absolute", "random"]
Fill = Literal["uniform", "mean", "zero"]


def pixel_saliency(saliency: Tensor, ranking: Literal["signed", "absolute"]) -> Tensor:
    """Reduce a saliency (N, C, H, W) to one score per pixel, (N, H, W).

    `signed` is the channel mean of s; `absolute` is the channel mean of |s|.
    """
    return (saliency if ranking == "signed" else saliency.abs()).mean(dim=1)


def lowest(scores: Tensor, fraction: float | Tensor) -> Tensor:
    """Mark the ⌊fraction·H·W⌋ lowest scores of each sample; of tied pixels the earlier ones are marked.

    Parameters
    ----------
    scores : (N, H, W)
    fraction : a share in [0, 1], or one per sample (N,)

    Returns
    -------
    bool (N, H, W), equal to the first entries of a stable argsort.
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
    left = count - below.sum(dim=1, keepdim=True)
    return (below | (equal & (equal.cumsum(dim=1) <= left))).view_as(scores)


def whole(fraction: Tensor, pixels: int) -> Tensor:
    """Return ⌊fraction·pixels⌋ as int64, despite products such as 0.3·10 = 2.999…"""
    precise = fraction.to(float64_device(fraction.device)).double()
    return (precise * pixels + 1e-6).floor().long().clamp(0, pixels).to(fraction.device)


def masked(x: Tensor, chosen: Tensor, fill: Fill, noise: Tensor | None = None) -> Tensor:
    """Replace the chosen pixels (N, H, W) of `x` (N, C, H, W), all channels together.

    `uniform` fills with values between the sample's minimum and maximum of each channel, made from `noise`,
    which is uniform on [0, 1) and has the shape of `x`. `mean` fills with the sample's mean of each channel,
    `zero` with 0.
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
