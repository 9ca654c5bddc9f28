"""Several methods or metrics in one argument: names, objects, or label → settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import name_of

Selection: TypeAlias = "str | Callable[..., Any] | Iterable[str | Callable[..., Any]] | Mapping[str, Any]"
"""A name, a function, several of these, or label → settings, which name the `method` or `metric` unless the
label does."""


def read_selection(
    given: Selection, kind: Literal["method", "metric"]
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return what is meant and its settings as given, by label.

    >>> read_selection(["saliency", "mine:blurred"], "method")
    {'saliency': ('saliency', {}), 'blurred': ('mine:blurred', {})}
    >>> read_selection({"wide": {"method": "smoothgrad", "stdev": 0.3}}, "method")
    {'wide': ('smoothgrad', {'stdev': 0.3})}

    Raises
    ------
    InputError
        If nothing is selected, or two have one label.
    """
    if isinstance(given, str) or callable(given):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{kind}s must be a name, a function, several, or label → settings, not {given!r}")
    by_label: dict[str, Any] = {}
    if isinstance(given, Mapping):
        by_label = {
            label: each if isinstance(each, Mapping) else {kind: each} for label, each in given.items()
        }
    else:
        for each in given:
            label = default_label(each)
            if label in by_label:
                other = by_label[label][kind]
                raise InputError(
                    f"{kind} '{label}' is given twice; give each a label of its own, such as "
                    f"{{'first': {{'{kind}': '{label}', …}}, 'second': {{'{kind}': '{label}', …}}}}"
                    if other is each or other == each
                    else f"two different {kind}s are called '{label}'; give each a label of its own, such as "
                    "{'first': f, 'second': g}"
                )
            by_label[label] = {kind: each}
    if not by_label:
        raise InputError(f"name at least one {kind}; list_{kind}s() shows which there are")
    selected = {}
    for label, value in by_label.items():
        settings = dict(value)
        what = settings.pop(kind, check_label(label, f"a {kind}"))
        if not (isinstance(what, str) or callable(what)):
            raise InputError(f"{kind} '{label}' must map to its settings, such as {{}}, not {what!r}")
        selected[label] = what, settings
    return selected


def check_label(label: Any, what: str) -> str:
    """Return the label of a method, metric or attack if it is text."""
    if not isinstance(label, str) or not label:
        raise InputError(
            f"the label of {what} must be text, such as '{str(label) or 'first'}', not {label!r}"
        )
    return label


def default_label(what: Any) -> str:
    """Return the label of a name, without its module, or of an object."""
    return what.rpartition(":")[2] if isinstance(what, str) else name_of(what)
