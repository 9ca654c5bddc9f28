"""How much memory images may take, so that a file from a stranger cannot fill it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

from saliency_lab._common.errors import InputError

VARIABLE = "SALIENCY_LAB_MAX_GB"
DEFAULT_GB = 16.0
_IMAGES_PER_LIMIT = 32
"""One image, as a file or decoded, may take this part of the memory that all images together may take."""


def memory_limit() -> int:
    """Return the bytes that the images of one data set may take once decoded.

    The environment variable SALIENCY_LAB_MAX_GB sets them in units of 10⁹ bytes; the default is 16.

    Raises
    ------
    InputError
        If the variable is not a positive number.
    """
    text = os.environ.get(VARIABLE) or str(DEFAULT_GB)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise InputError(f"the environment variable {VARIABLE} must be a positive number, not '{text}'")
    return int(limit * 1e9)


def image_limit() -> int:
    """Return the bytes that one image may take, as a file and decoded: 1/32 of `memory_limit()`."""
    return memory_limit() // _IMAGES_PER_LIMIT


def check_image_bytes(size: int, label: str) -> None:
    """Refuse a file, or a picture, of more bytes than `image_limit()`.

    Raises
    ------
    InputError
        Begins with `label` and names the setting that raises the limit.
    """
    if size > image_limit():
        raise InputError(
            f"{label} takes {size / 1e9:,.2g} GB, more than the {image_limit() / 1e9:.2g} GB allowed for one "
            f"image; if you trust the file, raise the limit with the environment variable {VARIABLE} "
            f"(now {memory_limit() / 1e9:g})"
        )


def check_memory(shape: Sequence[int], bytes_per_value: int, label: str) -> None:
    """Refuse an array of images of more bytes than `memory_limit()`.

    >>> check_memory((2, 3, 224, 224), 1, "two photographs")
    >>> check_memory((2, 3, 10**6, 10**6), 1, "two photographs")
    Traceback (most recent call last):
    ...
    saliency_lab._common.errors.InputError: two photographs need 6,000 GB of memory, more than ...

    Raises
    ------
    InputError
        Begins with `label`, states the memory needed, and names the setting that raises the limit.
    """
    needed = prod(int(side) for side in shape) * bytes_per_value
    if needed > memory_limit():
        raise InputError(
            f"{label} need {needed / 1e9:,.0f} GB of memory, more than the {memory_limit() / 1e9:g} GB "
            "allowed; take fewer or smaller images, or raise the limit with the environment variable "
            f"{VARIABLE}"
        )
