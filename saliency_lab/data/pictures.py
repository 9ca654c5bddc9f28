"""Pictures, as PIL opens them, brought to eight bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saliency_lab._common.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_grey(picture: Image) -> bool:
    """Whether a picture holds one channel of grey, of 1, 8 or 16 bits."""
    return picture.mode in ("1", "L") or picture.mode.startswith("I;16")


def eight_bit(picture: Image, label: str) -> Image:
    """Return a picture as 8-bit grey (mode L) or RGB: palettes are looked up, transparency is dropped.

    Raises
    ------
    InputError
        If its mode tells no range of values, or no colours; the message begins with `label`.
    """
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError(
            f"{label} has pixels of 32 bits (mode {picture.mode}), which do not say what is white; "
            "save it with 8 or 16 bits, or hand in arrays in [0, 1] (ImageData.from_datasets)"
        )
    try:
        return picture.convert("L" if is_grey(picture) else "RGB")
    except ValueError as error:  # no such conversion
        raise InputError(f"{label} is of mode {picture.mode} ({error}); save it as grey or RGB") from error
