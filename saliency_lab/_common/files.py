"""Files that are never half written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import InputError
from saliency_lab._common.text import spreadsheet_text

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` on success and is removed on an error.

    `durable=False` does not wait for the disk: the file survives this process's death but perhaps not the
    machine's, which is enough for files that are checked on reading and can be computed again.

    Raises
    ------
    InputError
        If the folder cannot be created or written to.
    """
    path = Path(path)
    writable_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("r+b") as file:  # Windows flushes only what it may write
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(folder: str | Path) -> Path:
    """Create `folder` and its parents, and check that files can be written there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the folder '{folder}' ({error.strerror}); name another output folder "
            "or change its permissions"
        ) from error
    return folder


def output_file(path: str | PathLike[str], *endings: str, name: str = "path") -> Path:
    """Return the path of a file that is to be written, after checking its ending and its folder.

    A command that computes for hours asks this first, and what is called `.pdf` is never something else.

    Raises
    ------
    InputError
        If it has another ending, is a folder, or its folder cannot be written to.
    """
    file = check_path(path, name)
    if file.is_dir():
        raise InputError(f"{name} must be a file, such as '{file / f'results{endings[0]}'}', not a folder")
    if not file.name.lower().endswith(endings):
        raise InputError(
            f"{name} must end with {' or '.join(endings)}, which is what is written, not '{file.name}'"
        )
    writable_folder(file.parent)
    return file


def left_behind(folder: Path, pattern: str) -> Iterator[Path]:
    """Find the half-written files that killed processes left.

    A file that was written within the last hour may still be in use by another process. One whose time stamp
    lies in the future was written under another clock; a few minutes are allowed for clocks that differ.
    """
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # finished in the meantime
            if not -300 < time.time() - path.lstat().st_mtime < 3600:
                yield path


LONGEST_STEM = 120
"""The most bytes of a name that a file's name keeps; file systems allow 255 in all."""


def distinct_stems(wanted: Mapping[str, str]) -> dict[str, str]:
    """Shorten file names and add a hash where two would be equal, ignoring case as macOS and Windows do.

    >>> distinct_stems({"m_1": "m_1", "m 1": "m_1", "M 1": "M_1"})
    {'m_1': 'm_1', 'm 1': 'm_1-...', 'M 1': 'M_1-...'}
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name, stem in wanted.items():
        short = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
        if short != stem or short.casefold() in taken:
            short += f"-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
        taken.add(short.casefold())
        stems[name] = short
    return stems


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(_as_text(value), encoding="utf-8")


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_checked_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest of its content under the key "digest", atomically.

    A file that has this content already is left as it is.
    """
    checked = {**value, "digest": _digest(value)}
    with suppress(OSError, ValueError):
        if Path(path).read_text(encoding="utf-8") == _as_text(checked):
            return
    write_json(path, checked)


def read_checked_json(path: str | Path, known: Collection[str]) -> dict[str, Any]:
    """Read what `write_checked_json` wrote, and check it against its digest.

    A file without a digest was written by an earlier version. It is accepted if it has no key but those in
    `known`: an unknown key may be the key "digest" itself, damaged.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not what was written.
    """
    text = Path(path).read_bytes().decode("utf-8")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if "digest" not in value:
        if unknown := sorted(value.keys() - set(known)):
            raise ValueError(f"it has no digest, and an unknown key '{unknown[0]}'")
        return value
    rendered = _as_text(value)
    digest = value.pop("digest")
    if digest != _digest(value) or text.replace("\r\n", "\n") != rendered:
        raise ValueError('its content does not match its digest; if you edited it, remove the key "digest"')
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


TABLE_DIGESTS = "digests.json"


def write_table(stem: str | Path, table: pd.DataFrame) -> None:
    """Write `stem`.parquet and `stem`.csv, atomically, and their digests into `digests.json`.

    Text that a spreadsheet would take for a formula gets an apostrophe in the CSV file.
    """
    stem = Path(stem)
    safe = table.map(lambda value: spreadsheet_text(value) if isinstance(value, str) else value)
    digests = {}
    for suffix, write in ((".parquet", table.to_parquet), (".csv", safe.to_csv)):
        path = stem.with_name(stem.name + suffix)
        with atomic_path(path) as temporary:
            write(temporary, index=False)
            digests[path.name] = file_digest(temporary)
    listed = stem.with_name(TABLE_DIGESTS)
    write_checked_json(listed, _known_digests(listed) | digests)


def remove_table(stem: str | Path) -> None:
    """Delete the files that `write_table` wrote for `stem`, and their digests; other files stay."""
    stem = Path(stem)
    listed = stem.with_name(TABLE_DIGESTS)
    digests = _known_digests(listed)
    known = [name for name in digests if Path(name).stem == stem.name]
    for name in known:
        stem.with_name(name).unlink(missing_ok=True)
        del digests[name]
    if known:
        write_checked_json(listed, digests)


def _known_digests(listed: Path) -> dict[str, Any]:
    """Read the digests of the tables in a folder; none where their file is missing or damaged."""
    try:
        return read_checked_json(listed, ())
    except (OSError, ValueError):
        return {}


def file_digest(path: Path) -> str:
    """Return the digest of a whole file: 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_tables(folder: Path) -> dict[Path, str]:
    """Check what `write_table` wrote into a folder; return what is wrong with which file."""
    listed = folder / TABLE_DIGESTS
    if not any(path.suffix in (".csv", ".parquet", ".json") for path in folder.glob("[!.]*")):
        return {}
    try:
        digests = read_checked_json(listed, ())
    except (OSError, ValueError) as error:
        return {listed: f"the digests of the tables cannot be read ({error}); write the tables again"}
    problems = {}
    for name, digest in digests.items():
        path = folder / name
        if not path.exists():
            problems[path] = f"the table '{path}' is missing"
        elif file_digest(path) != digest:
            problems[path] = f"the table '{path}' does not match its digest; write it again"
    return problems
