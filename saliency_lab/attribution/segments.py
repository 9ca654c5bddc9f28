"""Superpixels: the features of the methods that switch parts of an image on and off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

import numpy as np
import torch
from pydantic import AfterValidator
from skimage.segmentation import slic
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import PerImage


def _valid(value: object) -> object:
    if isinstance(value, Tensor):
        if value.ndim not in (2, 3) or value.is_floating_point() or value.is_complex():
            raise ValueError("segments are integers (H, W), or (N, H, W) with one per image")
    elif not callable(value) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            "segments is a number of superpixels ≥ 1, a tensor of integers (H, W) or (N, H, W), or a "
            "function that returns such a segmentation of an image"
        )
    return value


Segments: TypeAlias = Annotated[
    int | Tensor | Callable[[np.ndarray], np.ndarray], AfterValidator(_valid), PerImage(ndim=3)
]
"""About how many superpixels SLIC makes of each image; or the superpixels: integers (H, W) or (N, H, W).

Or a function, such as one of skimage.segmentation, from an image (H, W, C) in [0, 1], (H, W) if it has one
channel, to integers (H, W).
"""


def find_segments(spec: int | Tensor | Callable[[np.ndarray], np.ndarray], batch: Batch) -> Tensor:
    """Return superpixels of each image, int64 (n, H, W) on its device, numbered 0 … K − 1 without gaps.

    SLIC (Achanta et al., PAMI 2012), see `superpixels`; each image alone, so its own pixels decide.
    """
    if isinstance(spec, Tensor):
        each = spec if spec.ndim == 3 else spec[None]
        if each.shape[1:] != batch.x.shape[2:]:
            raise InputError(f"segments {tuple(spec.shape)} do not fit images {tuple(batch.x.shape[2:])}")
        if len(each) > 1 and int(batch.index.max()) >= len(each):
            raise InputError(f"segments are given for {len(each)} images; give one, or one per image")
        chosen = each.expand(len(batch.x), -1, -1) if len(each) == 1 else each[batch.index]
        rows = [_numbered(row) for row in chosen.cpu().numpy()]
    elif callable(spec):
        rows = [_segmented(image, spec) for image in batch.x.float().cpu().numpy()]
    else:
        rows = [superpixels(image, spec) for image in batch.x.float().cpu().numpy()]
    return torch.from_numpy(np.stack(rows).astype(np.int64)).to(batch.x.device)


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Number labels (H, W) from 0 without gaps."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def _segmented(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Segment an image (C, H, W) by a user's function."""
    labels = np.asarray(function(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
    if labels.shape != image.shape[1:] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"the function given as segments must return integers {image.shape[1:]}, not {labels.dtype} "
            f"{labels.shape}"
        )
    return _numbered(labels)


_STIFFER = (1, 3, 10, 30, 100)  # times the usual compactness; at the last the superpixels are a grid


def superpixels(image: np.ndarray, count: int) -> np.ndarray:
    """Return about `count` superpixels of an image (C, H, W): integers (H, W), 0 … K − 1 without gaps.

    SLIC as in scikit-image: three channels as RGB, others by their mean. Where noise lets it find fewer than
    half of them, its compactness is raised, up to a hundredfold, until there are as many.
    """
    colour = image.shape[0] == 3
    pixels, compactness = (image.transpose(1, 2, 0), 10.0) if colour else (image.mean(0), 0.1)
    for times in _STIFFER:
        segments = slic(
            pixels,
            n_segments=count,
            compactness=times * compactness,
            channel_axis=-1 if colour else None,
            start_label=0,
        )
        labels = _numbered(segments)
        if 2 * (labels.max() + 1) >= count:
            break
    return labels
