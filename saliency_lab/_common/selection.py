"""Several methods or metrics in one argument: names, objects, or label → settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from saliency_lab._common.errors import InputError, UnknownNameError
from saliency_lab._common.registry import Registry, name_of

Selection: TypeAlias = "str | Callable[..., Any] | Iterable[str | Callable[..., Any]] | Mapping[str, Any]"
"""A name, a function, several of these, or label → settings, which name the `method` or `metric` unless the
label does."""


def read_selection(given: Selection, registry: Registry[Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the selected methods or metrics of a registry and their settings as given, by label.

    >>> from saliency_lab.attribution.catalogue import METHODS
    >>> read_selection(["saliency", "mine:blurred"], METHODS)
    {'saliency': ('saliency', {}), 'blurred': ('mine:blurred', {})}
    >>> read_selection({"wide": {"method": "smoothgrad", "stdev": 0.3}}, METHODS)
    {'wide': ('smoothgrad', {'stdev': 0.3})}

    Raises
    ------
    InputError
        If nothing is selected, two have one label, or a label names nothing and its settings do not either.
    """
    kind = registry.noun
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
        check_label(label, f"a {kind}")
        what = settings.pop(kind) if kind in settings else named_by(label, registry)
        if not (isinstance(what, str) or callable(what)):
            raise InputError(f"{kind} '{label}' must map to its settings, such as {{}}, not {what!r}")
        selected[label] = what, settings
    return selected


def named_by(label: str, registry: Registry[Any]) -> str:
    """Return a label whose settings do not say what it stands for, if it is itself a name of the registry.

    >>> from saliency_lab.attribution.catalogue import METHODS
    >>> named_by("wide", METHODS)
    Traceback (most recent call last):
    ...
    saliency_lab...UnknownNameError: unknown method 'wide'; ... if it is a label, add method = "NAME"

    Raises
    ------
    UnknownNameError
        If the registry has no such name.
    """
    try:
        registry.custom(label)
    except UnknownNameError as error:
        raise UnknownNameError(f'{error}; if it is a label, add {registry.noun} = "NAME"') from None
    return label


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
