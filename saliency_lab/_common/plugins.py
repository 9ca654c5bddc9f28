"""A user's own object from text: `module:attribute`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from saliency_lab._common.errors import InputError


def import_object(spec: str) -> Any:
    """Import `module:attribute`; the current folder is searched too, as `python -m` does.

    Raises
    ------
    InputError
        If the text has another form, the module cannot be imported or it has no such attribute.

    Examples
    --------
    >>> import_object("math:pi")
    3.141592653589793
    """
    module_name, _, attribute = spec.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"'{spec}' names no object; write module:attribute, such as my:Net, not a path")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import '{module_name}' of '{spec}': {error}; run in the module's folder, or put that on "
            "PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"the module '{module_name}' has no '{attribute}'; write module:attribute")
    return getattr(module, attribute)


def made(found: Callable[[], Any], spec: str) -> Any:
    """Call what `spec` named: a function or a class.

    Raises
    ------
    InputError
        If it is neither, or needs arguments.
    """
    if not callable(found):
        raise InputError(f"'{spec}' is neither a function nor a class, but {type(found).__name__}")
    try:
        inspect.signature(found).bind()
    except ValueError:  # one that does not tell its arguments
        pass
    except TypeError as error:
        raise InputError(
            f"'{spec}' cannot be called without arguments ({error}); name a function that gives them"
        ) from None
    return found()


def import_module(spec: str) -> nn.Module:
    """Import a user's own network, or call the function or class of that name that makes one.

    Raises
    ------
    InputError
        If it cannot be imported or made, or is no torch module.
    """
    found = import_object(spec)
    net = found if isinstance(found, nn.Module) else made(found, spec)
    if not isinstance(net, nn.Module):
        raise InputError(f"model '{spec}' is not a torch module, but {type(net).__name__}")
    return net
