"""Checks on the arrays that figures are drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from saliency_lab._common.errors import InputError

_TOLERANCE = 1e-3
"""How far a picture may leave [0, 1]: less than one step of an 8-bit image."""


def as_array(values: Any) -> np.ndarray:
    """Return a tensor, an array or the values of an `Attributions` as float64."""
    if not hasattr(values, "detach"):
        values = getattr(values, "values", values)  # the tensor of an Attributions
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values  # unknown to NumPy
        values = values.numpy()
    return np.asarray(values, dtype=np.float64)


def check_batch(name: str, values: Any) -> np.ndarray:
    """Return a batch (N, C, H, W) as float64.

    Raises
    ------
    InputError
        If it has another shape, or its channels come last.
    """
    array = as_array(values)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{name} must have the shape (N, C, H, W), not {array.shape}")
    if array.shape[3] <= 4 < array.shape[1]:
        raise InputError(
            f"{name} must have the shape (N, C, H, W), but the channels of {array.shape} seem to come last; "
            "use x.permute(0, 3, 1, 2) (NumPy: x.transpose(0, 3, 1, 2))"
        )
    return array


def check_pictures(name: str, images: Any) -> np.ndarray:
    """Return images (N, C, H, W) in [0, 1] as float64.

    Raises
    ------
    InputError
        If they have another shape, leave [0, 1] or contain NaN.
    """
    array = check_batch(name, images)
    low, high = float(array.min()), float(array.max())
    if np.isnan(low):
        raise InputError(f"{name} contain NaN")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        fix = "divide 8-bit images by 255" if low >= 0 and high <= 255 else "undo the normalisation first"
        raise InputError(f"{name} must lie in [0, 1], but span [{low:.4g}, {high:.4g}]; {fix}")
    return array.clip(0, 1)


def check_same_size(name: str, maps: np.ndarray, images: np.ndarray) -> None:
    """Refuse maps (N, …, H, W) that do not belong to images (N, C, H, W).

    Raises
    ------
    InputError
        If their numbers or their heights and widths differ.
    """
    if len(maps) != len(images):
        raise InputError(f"there are {len(images)} images, and {len(maps)} maps in {name}")
    if maps.shape[-2:] != images.shape[-2:]:
        sizes = (" × ".join(map(str, each.shape[-2:])) for each in (maps, images))
        raise InputError(
            "{} have {} pixels and the images {}; maps must have the size of their images".format(
                name, *sizes
            )
        )


def as_pictures(images: np.ndarray) -> np.ndarray:
    """Return images as matplotlib draws them: (N, H, W, 3), or (N, H, W) for any other number of channels."""
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(1)
