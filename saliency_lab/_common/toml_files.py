"""Read TOML files, with the files that they extend."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saliency_lab._common.errors import InputError
from saliency_lab._common.plugins import mark_names

Table = dict[str, Any]


def read_toml(path: Path, noun: str) -> Table:
    """Read a TOML file, which messages call a `noun`; names of code in it are marked (see `check_names`).

    Raises
    ------
    InputError
        If the file cannot be read or is not valid TOML.
    """
    try:
        table: Table = mark_names(tomllib.loads(path.read_text(encoding="utf-8-sig")), path)
        return table
    except OSError as error:
        raise InputError(f"cannot read the {noun} '{path}' ({error.strerror}); name a TOML file") from error
    except RecursionError as error:
        raise InputError(f"the {noun} '{path}' is nested too deeply; write it with fewer levels") from error
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise InputError(f"the {noun} '{path}' is not valid TOML: {error}") from error


def read_extended(
    path: Path,
    noun: str,
    *,
    find: Callable[[Path, str], Sequence[Path]],
    merge: Callable[[Table, Table], Table],
    inherit: Callable[[Path, Table], Table] = lambda path, table: table,
    above: tuple[Path, ...] = (),
) -> Table:
    """Read a TOML file over those that it extends: `extends = "first"` or `extends = ["first", "second"]`.

    Parameters
    ----------
    path : Path
        The file.
    noun : str
        What messages call it.
    find : callable
        Returns the files that a name in `extends` stands for, from the path of the file that extends them.
    merge : callable
        Merges a table over the table below it.
    inherit : callable
        Returns what a file passes on, from its path and its table; by default everything.
    above : tuple of Path
        The files that extend this one.

    Raises
    ------
    InputError
        If a file cannot be read or is not valid TOML, `extends` is not text, or a file extends itself.
    """
    table = read_toml(path, noun)
    path = path.resolve()
    if path in above:
        chain = " → ".join(each.name for each in (*above, path))
        raise InputError(f"the {noun} '{path}' extends itself through {chain}")
    bases = table.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"the {noun} '{path}': 'extends' must be a name or a list of names, not {bases!r}")
    below: Table = {}
    for file in (file for base in bases for file in find(path, base)):
        inherited = read_extended(file, noun, find=find, merge=merge, inherit=inherit, above=(*above, path))
        below = merge(below, inherit(file, inherited))
    return merge(below, table)


def merge_tables(below: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    """Merge a table over another, key by key at all levels.

    >>> merge_tables({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}, "b": 4})
    {'a': {'x': 1, 'y': 3}, 'b': 4}
    """
    merged = dict(below)
    for key, value in table.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = merge_tables(under, value)
        else:
            merged[key] = value
    return merged
