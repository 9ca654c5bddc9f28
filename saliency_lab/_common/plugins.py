"""Import a user's object that is named as `module:attribute`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from saliency_lab._common.errors import InputError


def import_library(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises
    ------
    InputError
        If it is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"this needs '{module}', which cannot be imported ({error}); install it with "
            f"pip install 'saliency-lab[{extra}]'"
        ) from error


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
