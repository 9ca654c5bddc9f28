"""Files that are never half written."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def left_behind(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield half-written files that killed processes left; younger files may still be in use."""
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # finished since
            if path.stat().st_mtime < time.time() - 3600:
                yield path


LONGEST_STEM = 120
"""The most bytes of a name that a file's name keeps; file systems allow 255 in all."""


def distinct_stems(wanted: Mapping[str, str]) -> dict[str, str]:
    """Shorten file names and add a hash where two would be equal, ignoring case as macOS and Windows do.

    >>> distinct_stems({"m_1": "m_1", "m 1": "m_1", "M 1": "M_1"})
    {'m_1': 'm_1', 'm 1': 'm_1-...', 'M 1': 'M_1-...'}
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name, stem in wanted.items():
        short = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
        if short != stem or short.casefold() in taken:
            short += f"-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
        taken.add(short.casefold())
        found[name] = short
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(stem: str | Path, table: pd.DataFrame) -> None:
    """Write `stem`.parquet and `stem`.csv, atomically.

    Text that a spreadsheet would take for a formula gets an apostrophe in the CSV file.
    """
    stem = Path(stem)
    with atomic_path(stem.with_name(stem.name + ".parquet")) as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_path(stem.with_name(stem.name + ".csv")) as temporary:
        table.map(lambda value: spreadsheet_text(value) if isinstance(value, str) else value).to_csv(
            temporary, index=False
        )
