"""Settings that depend on the size of the image: a number of pixels, or a fraction of the image."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import BeforeValidator

from saliency_lab._common.settings import Settings


def parse_size(value: Any) -> int | float | str:
    """Return a number of pixels (an int from 1), or a fraction of the image in (0, 1] such as 0.25 or "1/7".

    >>> parse_size(4), parse_size("1/7")
    (4, '1/7')

    Raises
    ------
    ValueError
        If it is neither.
    """
    problem = ValueError(
        f'must be a number of pixels, or a fraction of the image such as "1/7", not {value!r}'
    )
    try:
        size = Fraction(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise problem from None
    pixels = isinstance(value, int) and not isinstance(value, bool) and size >= 1
    if not (pixels or (isinstance(value, float | str) and 0 < size <= 1)):
        raise problem
    return value


Size = Annotated[int | float | str, BeforeValidator(parse_size)]
"""A number of pixels, or a fraction of the image: of its shorter side for a length, of H·W for a count."""


def pixels_of(size: int | float | str, whole: int) -> int:
    """Return a `Size` in pixels, where `whole` is what a fraction is of; at least one.

    >>> pixels_of("1/7", 28), pixels_of("1/7", 224), pixels_of(4, 224)
    (4, 32, 4)
    """
    return size if isinstance(size, int) else max(1, round(Fraction(size) * whole))


class SizedSettings(Settings):
    """Settings some of which may be fractions of the image."""

    @abstractmethod
    def at_size(self, height: int, width: int) -> Self:
        """Return the settings in pixels for images of this size."""


def settings_at_size(settings: Any, height: int, width: int) -> Any:
    """Return settings in pixels for images of this size; others than `SizedSettings` are as they are.

    What is computed, recorded and part of a key is in pixels, so a fraction and the number of pixels that it
    stands for are the same request.
    """
    return settings.at_size(height, width) if isinstance(settings, SizedSettings) else settings
