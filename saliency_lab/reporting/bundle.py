"""Images and maps as compact text: 8 bits per value, compressed, in base64."""

from __future__ import annotations

import base64
import io
import zlib
from typing import NamedTuple

import numpy as np

from saliency_lab.plotting.painting import CLIP, Layer, limits

QUALITY = 90
"""Quality of the JPEG files of photographs."""

STEPS = 127
"""Levels of a map on either side of zero."""

UNDEFINED = -128
"""What a map's NaN becomes."""


class Quantised(NamedTuple):
    """Maps in 8 bits: `levels` (N, H, W) int8 times `scale` (N,) over `STEPS` is the map.

    A decoded value is off by half a level at most: `scale` / (2 · STEPS).
    """

    levels: np.ndarray
    scale: np.ndarray


def quantise(maps: np.ndarray) -> Quantised:
    """Quantise maps (N, H, W), each by its own largest magnitude; what is not finite is `UNDEFINED`."""
    maps = maps.astype(np.float64)
    known = np.isfinite(maps)
    magnitudes = np.where(known, np.abs(maps), 0.0)
    scale = magnitudes.max(axis=(1, 2))
    scale[scale == 0] = 1.0
    levels = np.rint(np.where(known, maps, 0.0) / scale[:, None, None] * STEPS)
    return Quantised(np.where(known, levels, UNDEFINED).astype(np.int8), scale)


def scale_of(maps: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the colour scale of each of (N, H, W) maps, (N,) each."""
    column = Layer(maps, signed, *limits(maps[None], (2, 3), CLIP, signed))
    return column.low[0], column.high[0]


def average(maps: np.ndarray, factor: int) -> np.ndarray:
    """Return maps (N, H, W) averaged over blocks of factor × factor pixels; the last ones may be smaller.

    >>> average(np.arange(6.0).reshape(1, 2, 3), 2).tolist()
    [[[2.0, 3.5]]]
    """
    if factor == 1:
        return maps
    rows, columns = (np.arange(0, side, factor) for side in maps.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(maps, rows, axis=1), columns, axis=2)
    sizes = np.outer(
        *(np.diff([*at, side]) for at, side in zip((rows, columns), maps.shape[1:], strict=True))
    )
    return np.asarray(sums / sizes)


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as 8 bits: (N, H, W, 3) for three channels, else their mean (N, H, W)."""
    shown = images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(axis=1)
    return np.rint(255 * shown).astype(np.uint8)


def as_jpeg(image: np.ndarray) -> str:
    """Compress one image, uint8 (H, W) or (H, W, 3), as a JPEG file in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def pack(values: np.ndarray) -> str:
    """Deflate the bytes of an array; text in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode("ascii")
