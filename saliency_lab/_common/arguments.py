"""One check for each kind of argument; each error names the argument, what it must be and what was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import numpy as np

from saliency_lab._common.errors import InputError, unknown_name

T = TypeVar("T")

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Write a value on one short line, for a message.

    >>> shown("a" * 200)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # an object whose repr fails
        return f"a {type(value).__name__}"


def check_path(path: str | PathLike[str], name: str = "path") -> Path:
    """Return a path, in which `~` means the home folder.

    Raises
    ------
    InputError
        If it is not text or a path, or is empty.
    """
    text = fspath(path) if isinstance(path, PathLike) else path
    if not isinstance(text, str):
        raise InputError(f'{name} must be a path, such as "runs/first", not {shown(path)}')
    if not text or "\0" in text:
        raise InputError(f"{name} must be the path of a file or folder, not {shown(text)}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user, or no home folder
        raise InputError(f"{name} '{text}' cannot be found: {error}") from None


def check_text(value: object, name: str) -> str:
    """Return `value` if it is text and not empty.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be text that is not empty, not {shown(value)}")
    return value


def check_choice(value: object, known: Collection[str], name: str) -> str:
    """Return `value` if it is one of the known names.

    Raises
    ------
    InputError
        If it is not; the message names the nearest one.
    """
    if not isinstance(value, str):
        raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, not {shown(value)}")
    if value not in known:
        raise unknown_name(f"{name}:", value, known)
    return value


def check_choices(values: object, name: str, known: Collection[str]) -> list[str]:
    """Return a sequence of known names as a list.

    Raises
    ------
    InputError
        If it is no sequence, is empty, or holds another name.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a sequence of names, not {shown(values)}")
    given = [check_choice(value, known, f"one of {name}") for value in values]
    if not given or len(set(given)) < len(given):
        raise InputError(f"{name} must be at least one name, none of them twice, not {shown(values)}")
    return given


def check_count(value: object, name: str, *, least: int = 1, most: int | None = None) -> int:
    """Return `value` as an int if it is a whole number of at least `least` and at most `most`.

    Raises
    ------
    InputError
        If it is not.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    count = int(value) if whole else least - 1  # type: ignore[call-overload]
    if count < least or (most is not None and count > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise InputError(f"{name} must be a whole number {span}, not {shown(value)}")
    return count


def check_counts(values: object, name: str, *, least: int = 1, most: int | None = None) -> list[int]:
    """Return one whole number or several as a list; see `check_count`.

    Raises
    ------
    InputError
        If one of them is none, or there is none.
    """
    given = _one_or_several(values, name, "whole number")
    return [check_count(value, name, least=least, most=most) for value in given]


def check_number(value: object, name: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a float if it is a finite number in [low, high].

    Raises
    ------
    InputError
        If it is not.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    bounds = "" if math.isinf(low) and math.isinf(high) else f" in [{low:g}, {high:g}]"
    problem = InputError(f"{name} must be a finite number{bounds}, not {shown(value)}")
    try:
        number = float(value) if real else math.nan  # type: ignore[arg-type]
    except OverflowError:
        raise problem from None
    if not math.isfinite(number) or not low <= number <= high:
        raise problem
    return number


def check_numbers(values: object, name: str) -> list[float]:
    """Return one number or several as a list; see `check_number`.

    Raises
    ------
    InputError
        If one of them is none, or there is none.
    """
    given = _one_or_several(values, name, "number")
    return [check_number(value, name) for value in given]


def _one_or_several(values: object, name: str, kind: str) -> list[Any]:
    """Return one value or several as a list; an error if there is none."""
    given = [values] if _is_scalar(values) else list(_items(values, name))
    if not given:
        raise InputError(f"{name} must hold at least one {kind}")
    return given


def check_fraction(value: object, name: str, example: float = 0.95) -> float:
    """Return `value` as a float if it lies between 0 and 1, both excluded; `example` is one that would do.

    Raises
    ------
    InputError
        If it does not.
    """
    try:
        number = check_number(value, name)
    except InputError:
        number = math.nan
    if not 0 < number < 1:
        raise InputError(f"{name} must be a number between 0 and 1, such as {example}, not {shown(value)}")
    return number


def check_flag(value: object, name: str) -> bool:
    """Return `value` if it is True or False.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def check_mapping(value: object, name: str, example: str) -> dict[str, Any]:
    """Return a copy of `value` as a dictionary if it maps names to something.

    Raises
    ------
    InputError
        If it is no mapping, or a key is not text; shows the example.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be a mapping, such as {example}, not {shown(value)}")
    for key in value:
        if not isinstance(key, str) or not key:
            raise InputError(f"{name} must have names as keys, such as {example}, not {shown(key)}")
    return dict(value)


def check_instance(value: object, kind: type[T] | tuple[type[T], ...], name: str, hint: str) -> T:
    """Return `value` if it is of this class.

    Raises
    ------
    InputError
        If it is not; `hint` says how to get one.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be {hint}, not {shown(value)}")
    return value


def check_callable(value: object, name: str, hint: str) -> Callable[..., Any]:
    """Return `value` if it can be called.

    Raises
    ------
    InputError
        If it cannot; `hint` says what it must be.
    """
    if not callable(value):
        raise InputError(f"{name} must be {hint}, not {shown(value)}")
    return value


def _is_scalar(values: object) -> bool:
    return (
        isinstance(values, str | bytes | Mapping)
        or not hasattr(values, "__iter__")
        or getattr(values, "ndim", 1) == 0
    )


def _items(values: Any, name: str) -> Any:
    if getattr(values, "ndim", 1) != 1:
        raise InputError(f"{name} must be one value or a sequence of them, not {shown(values)}")
    return values.tolist() if hasattr(values, "tolist") else values
