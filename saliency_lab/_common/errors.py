"""The errors that users see: each names the argument, what is wrong with it, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SaliencyLabError(Exception):
    """Signal a problem that this package detected; base class of all its errors.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> try:
    ...     sl.load_dataset("digit")
    ... except sl.SaliencyLabError as error:
    ...     print(error)
    unknown data set 'digit'; did you mean 'digits'?
    """


class InputError(SaliencyLabError, ValueError):
    """An argument has the wrong shape, type, range or value."""


class UnknownNameError(InputError):
    """There is no such name; the message suggests the nearest one."""


class DataNotFoundError(SaliencyLabError, FileNotFoundError):
    """A data set's files are missing or damaged."""


class CheckpointError(SaliencyLabError):
    """A checkpoint is missing, damaged, or of another architecture."""


class RecipeError(InputError):
    """A recipe has an unknown key, a wrong type or a value out of range."""


class TrainingError(SaliencyLabError):
    """Training cannot continue, or its result is unusable (NaN, a constant prediction)."""


_LISTED = 60  # names in an error; a registry has a list_…() of its own


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a misspelt name, or for something that is no name.

    >>> str(unknown_name("metric", "pixelflipping", ["pixel_flipping", "sparseness"]))
    "unknown metric 'pixelflipping'; did you mean 'pixel_flipping'?"
    """
    names = sorted(map(str, known))
    if not isinstance(name, str):
        listed = ", ".join(names[:_LISTED])
        return UnknownNameError(f"{kind.rstrip(':')} must be a name, not {name!r:.80}; known: {listed}")
    near = [each for each in names if each.endswith(f"/{name}")]  # "mnist/at" for "at"
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {' or '.join(repr(each) for each in near)}?"
    elif names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        hint = f"known: {', '.join(names[:_LISTED])}{more}"
    else:
        hint = "there is none"
    return UnknownNameError(f"unknown {kind} '{name}'; {hint}")
