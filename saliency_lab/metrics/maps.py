"""The maps that are scored: what is accepted, what is usable, and a pixel's share of a map."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.checks import check_dense
from saliency_lab._common.errors import InputError

Needs = Literal["finite", "nonzero", "varying", "ranking"]
"""What a metric needs of a map to be defined: `varying` values, or pixels that its scores put in an order.

Each includes the one before.
"""


def check_maps(attributions: Any, x: Tensor, *, of: str = "attributions") -> Tensor:
    """Return signed maps (N, C, H, W) or (N, 1, H, W) from `Attributions`, a tensor or an array.

    Raises
    ------
    InputError
        If they are no real numbers or their shape is neither that of `x` nor (N, 1, H, W).
    """
    values = attributions
    if not isinstance(values, Tensor | np.ndarray):
        values = getattr(attributions, "values", None)
    if not isinstance(values, Tensor | np.ndarray):
        raise InputError(
            f"{of} must be Attributions, a tensor or an array of the images' shape, "
            f"not {type(attributions).__name__}"
        )
    if isinstance(values, Tensor):
        check_dense(values, of)
    try:
        maps = torch.as_tensor(values).detach().cpu()
    except TypeError:
        raise InputError(f"{of} must be real numbers, not {values.dtype}") from None
    if maps.is_complex():
        raise InputError(f"{of} must be real numbers, not {maps.dtype}")
    shapes = dict.fromkeys([tuple(x.shape), (len(x), 1, *x.shape[2:])])  # all channels, or one for them
    if tuple(maps.shape) not in shapes:
        raise InputError(
            f"{of} must have the images' shape {' or '.join(map(str, shapes))}, not {tuple(maps.shape)}"
        )
    return maps


def take_maps(attributions: Any, x: Tensor, *, of: str = "attributions") -> Tensor:
    """Return what `check_maps` accepts as signed maps (N, C, H, W), float64, on the CPU.

    A map of one channel for an image of several holds a pixel's total: it is shared equally between
    the channels, so that the sum over the channels is that total again.
    """
    maps = check_maps(attributions, x, of=of).to(torch.float64)
    if maps.shape[1] != x.shape[1]:
        maps = (maps / x.shape[1]).expand(x.shape)
    return maps


def unusable(maps: Tensor, needs: Needs, *, absolute: bool = False) -> list[str | None]:
    """Return why each map (N, C, H, W), or its magnitudes, cannot be scored; None where it can."""
    flat = maps.flatten(1)
    finite = torch.isfinite(flat).all(1).tolist()
    nonzero = flat.any(1).tolist()
    what = "the map's magnitude" if absolute else "the map"
    read = pixel_scores(maps, absolute=absolute) if needs == "ranking" else flat.abs() if absolute else flat
    varies = (read != read[:, :1]).any(1).tolist()
    reasons: list[str | None] = []
    for is_finite, is_nonzero, is_varying in zip(finite, nonzero, varies, strict=True):
        if not is_finite:
            reasons.append("the map holds NaN or infinities")
        elif needs != "finite" and not is_nonzero:
            reasons.append("the map is zero everywhere")
        elif needs in ("varying", "ranking") and not is_varying:
            reasons.append(f"{what} is constant, so it ranks no pixel")
        else:
            reasons.append(None)
    return reasons


def pixel_scores(maps: Tensor, *, absolute: bool) -> Tensor:
    """Return a pixel's share (N, H·W): the sum over its channels of the values, or of their magnitudes."""
    return (maps.abs() if absolute else maps).sum(1).flatten(1)
