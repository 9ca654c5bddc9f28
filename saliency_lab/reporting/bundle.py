"""Images and maps as compact text: 8 bits a value, deflated, in base64."""

from __future__ import annotations

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np

from saliency_lab.plotting.painting import CLIP

STEPS = 127
"""Levels of a map on either side of zero."""

UNDEFINED = -128
"""What a map's NaN becomes."""


class Quantised(NamedTuple):
    """Maps in 8 bits: `levels` (N, H, W) int8 times `scale` (N,) over `STEPS` is the map.

    A decoded value is off by half a level at most: `scale` / (2 · STEPS). `clip` (N,) is where the
    colour scale of a map ends.
    """

    levels: np.ndarray
    scale: np.ndarray
    clip: np.ndarray


def quantise(maps: np.ndarray) -> Quantised:
    """Quantise maps (N, H, W), each by its own largest magnitude; what is not finite is `UNDEFINED`."""
    maps = maps.astype(np.float64)
    known = np.isfinite(maps)
    magnitudes = np.where(known, np.abs(maps), 0.0)
    scale = magnitudes.max(axis=(1, 2))
    scale[scale == 0] = 1.0
    levels = np.rint(np.where(known, maps, 0.0) / scale[:, None, None] * STEPS)
    return Quantised(np.where(known, levels, UNDEFINED).astype(np.int8), scale, clip_of(magnitudes))


def clip_of(magnitudes: np.ndarray) -> np.ndarray:
    """End of the colour scale of each of (N, H, W) magnitudes: a percentile, or the largest if that is 0."""
    rows = magnitudes.reshape(len(magnitudes), -1)
    clip, largest = np.percentile(rows, CLIP, axis=1), rows.max(axis=1)
    clip = np.where(clip > 0, clip, largest)
    return np.where(clip > 0, clip, 1.0)


def pictures(images: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as 8 bits: (N, H, W, 3) for three channels, else their mean (N, H, W)."""
    shown = images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(axis=1)
    return np.rint(255 * shown).astype(np.uint8)


def pack(values: np.ndarray) -> str:
    """Deflate the bytes of an array; text in base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode("ascii")


def unpack(text: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Undo `pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).reshape(shape)
