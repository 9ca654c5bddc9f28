"""Import a user's object that is named as `module:attribute`, if the name may be trusted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import suppress
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
            f"pip install '.[{extra}]' in the folder of this package's checkout"
        ) from error


class NameFromFile(str):
    """A name of code, `module:attribute`, that stands in a file; importing it would run that code.

    What a user types in a call or on the command line is plain text. So the two stay distinct when a file is
    merged with overrides.

    Attributes
    ----------
    file : Path
        The file.
    """

    __slots__ = ("file",)
    file: Path

    def __new__(cls, text: str, file: Path) -> NameFromFile:
        """Mark `text` as read from `file`."""
        name = super().__new__(cls, text)
        name.file = file
        return name

    def __getnewargs__(self) -> tuple[str, Path]:  # type: ignore[override]
        """Return what copies and pickles are made from."""
        return str(self), self.file


def names_code(text: str) -> bool:
    """Return whether text has the form `module:attribute`.

    >>> names_code("my.nets:Net"), names_code("saliency"), names_code("control: noise")
    (True, False, False)
    """
    module, _, attribute = text.partition(":")
    return attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def mark_names(value: Any, file: Path) -> Any:
    """Return what a file holds with every name of code in it, also in keys, as a `NameFromFile`."""
    if isinstance(value, Mapping):
        return {mark_names(key, file): mark_names(each, file) for key, each in value.items()}
    if isinstance(value, list):
        return [mark_names(each, file) for each in value]
    return NameFromFile(value, file) if isinstance(value, str) and names_code(value) else value


def check_names(value: Any, *, trust: bool, key: str = "") -> Any:
    """Return what files hold as plain text, if they name no code or the user trusts them.

    Parameters
    ----------
    value : Any
        What was read from files, marked by `mark_names`, and what the user typed.
    trust : bool
        Whether code that a file names may be imported.
    key : str
        Where `value` stands, as a dotted key.

    Raises
    ------
    InputError
        Names the file and the key.
    """
    if isinstance(value, Mapping):
        plain = {}
        for name, each in value.items():
            inner = f"{key}.{name}" if key else str(name)
            plain[check_names(name, trust=trust, key=inner)] = check_names(each, trust=trust, key=inner)
        return plain
    if isinstance(value, list):
        return [check_names(each, trust=trust, key=key) for each in value]
    if not isinstance(value, NameFromFile):
        return value
    if not trust:
        raise untrusted(value, key)
    return str(value)


def untrusted(name: NameFromFile, key: str) -> InputError:
    """Build the error for code that a file names and the user has not asked for."""
    return InputError(
        f"'{name.file}' names code to import, {key} = '{name}', and importing it would run it; if you trust "
        "the authors of the code and of the file, add --trust on the command line, or trust=True in Python"
    )


def import_object(spec: str) -> Any:
    """Import `module:attribute`; the current folder is searched too, as `python -m` does.

    Raises
    ------
    InputError
        If the text has another form, the module cannot be imported or it has no such attribute; or if the
        name stands in a file that the user has not declared to trust.

    Examples
    --------
    >>> import_object("math:pi")
    3.141592653589793
    """
    if isinstance(spec, NameFromFile):
        raise untrusted(spec, "name")
    module_name, _, attribute = spec.partition(":")
    if not names_code(spec):
        raise InputError(f"'{spec}' names no object; write module:attribute, such as my:Net, not a path")
    try:
        module = _import_from_here(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import '{module_name}' of '{spec}': {error}; run in the module's folder, or put that on "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise InputError(f"importing '{module_name}' fails: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise InputError(f"the module '{module_name}' has no '{attribute}'; write module:attribute")
    return getattr(module, attribute)


def _import_from_here(module: str) -> Any:
    """Import a module from the current folder, or else from where Python looks.

    Afterwards the folder is searched last, so that a file in it never takes the place of a library that is
    imported later. It stays on the path because the processes of an executor import the module again.
    """
    here = str(Path.cwd())
    known = here in sys.path or "" in sys.path
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    finally:
        with suppress(ValueError):  # the module itself may have removed it
            sys.path.remove(here)
        if not known:
            sys.path.append(here)
