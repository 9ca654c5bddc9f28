"""Find out which code is the user's, whether it takes the right arguments, and which globals it uses."""

from __future__ import annotations

import argparse
import dis
import functools
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError

_KNOWN = {"builtins", "saliency_lab", "torch", "torchvision"}
"""Their versions count in keys, or are another's matching pair."""

_LIBRARIES = {"site-packages", "dist-packages"}

_DATA = (
    *(str, int, float, complex, bytes, list, tuple, dict, set, frozenset, range, type(None), Path),
    *(types.SimpleNamespace, argparse.Namespace),
    *(Tensor, np.ndarray, np.generic, torch.dtype, nn.Module),
)


def is_known(kind: Any) -> bool:
    """Return whether a class or a function is part of Python, torch, torchvision or this package."""
    return kind.__module__.partition(".")[0] in _KNOWN


@functools.cache
def is_installed(module: str) -> bool:
    """Return whether a module comes with Python or an installed library, rather than from the user.

    >>> [is_installed(name) for name in ("torch.nn", "numpy", "json", "__main__")]
    [True, True, True, False]
    """
    top = module.partition(".")[0]
    if top == "__main__":
        return False
    if top in _KNOWN or top in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and not _LIBRARIES.isdisjoint(Path(file).parts)


def check_user_function(function: Callable[..., Any], kind: str, arguments: str) -> str:
    """Return the name of a user's function that takes these positional arguments; its settings follow them.

    >>> check_user_function(lambda model, x, y, maps: maps.mean((1, 2, 3)), "metric", "model, x, y, maps")
    '<lambda>'

    Raises
    ------
    InputError
        If it takes others.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        called = inspect.signature(function)
    except ValueError:  # written in C, it has none to look at
        return name
    try:
        called.bind_partial(*arguments.split(", "))
    except TypeError as error:
        raise InputError(f"{kind} '{name}' is called as ({arguments}, **settings): {error}") from None
    return name


def used_globals(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the globals, by name, on which the result of a user's function may depend.

    These are functions and classes; and, if the name has no leading underscore, plain values, tensors,
    networks and objects of the user's classes. A module of the user's counts with those of its attributes
    that the function uses. Objects of a library, such as a logger or a random generator, do not count, and
    neither do names that the function assigns or imports itself.
    """
    if is_installed(function.__module__ or ""):
        return {}
    names, attributes = _names_in(function.__code__)
    used: dict[str, Any] = {}

    def look(name: str, value: Any, within: tuple[Any, ...] = ()) -> None:
        if not inspect.ismodule(value):
            if _counts(name.rpartition(".")[2], value):
                used[name] = value
        elif not is_installed(value.__name__) and value not in within:
            for each in sorted(attributes & vars(value).keys()):
                look(f"{name}.{each}", vars(value)[each], (*within, value))

    for name in sorted(names & function.__globals__.keys()):
        look(name, function.__globals__[name])
    return used


def _names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Return the globals that are read and not assigned, and the attributes, also in nested functions."""
    steps = list(dis.get_instructions(code))
    names = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
    names -= {step.argval for step in steps if step.opname == "STORE_GLOBAL"}
    attributes = set(code.co_names)
    for inside in code.co_consts:
        if isinstance(inside, types.CodeType):
            more = _names_in(inside)
            names |= more[0]
            attributes |= more[1]
    return names, attributes


def _counts(name: str, value: object) -> bool:
    if isinstance(value, functools.partial) or (callable(value) and hasattr(value, "__name__")):
        return True
    return not name.startswith("_") and (isinstance(value, _DATA) or not is_installed(type(value).__module__))
