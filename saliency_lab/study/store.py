"""Where finished cells are kept: a folder of self-describing files, or memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.files import atomic_path, writable_folder, write_json
from saliency_lab._common.provenance import fingerprint
from saliency_lab.study.cells import Cell, Content, Kind

KINDS: tuple[Kind, ...] = ("maps", "scores", "attack")


class DamagedCellError(SaliencyLabError):
    """A cell's file is not what was written."""


class Busy(Exception):
    """Another process is at work on this."""


class Store(Protocol):
    """What a study needs of the place its cells are kept in."""

    def has(self, cell: Cell) -> bool:
        """Whether the cell was written, without reading it."""

    def read(self, cell: Cell) -> Content | None:
        """Return its content, None if it was never written; raise `DamagedCellError` if it is damaged."""

    def write(self, cell: Cell, content: Content) -> None:
        """Keep the content; an older one is replaced."""

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[None]:
        """Hold `name` against other processes; raise `Busy` if it is held and `wait` is false."""


class MemoryStore:
    """Cells in memory; gone with the process."""

    def __init__(self) -> None:
        self._cells: dict[str, Content] = {}

    def has(self, cell: Cell) -> bool:
        """Whether the cell was written."""
        return cell.key in self._cells

    def read(self, cell: Cell) -> Content | None:
        """Return its content, None if it was never written."""
        return self._cells.get(cell.key)

    def write(self, cell: Cell, content: Content) -> None:
        """Keep the content."""
        self._cells[cell.key] = content

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[None]:
        """Nothing else can reach this memory."""
        return nullcontext()


class FolderStore:
    """Cells as files: `cells/KIND/ab/abcd….safetensors`, each written beside and renamed.

    A file's header holds what the cell depends on (its name is the hash of that) and a digest of
    everything in it, so that a file can be checked without knowing the study. Locks are advisory
    file locks of the operating system, freed when their process ends, however it ends.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = writable_folder(folder)

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell."""
        return self.folder / "cells" / cell.kind / cell.key[:2] / f"{cell.key}.safetensors"

    def has(self, cell: Cell) -> bool:
        """Whether the cell's file is there, without reading it."""
        return self.path(cell).exists()

    def read(self, cell: Cell) -> Content | None:
        """Return its content, None if there is no file; raise `DamagedCellError` if the file is damaged."""
        path = self.path(cell)
        return read_file(path)[1] if path.exists() else None

    def write(self, cell: Cell, content: Content) -> None:
        """Write the cell's file, atomically."""
        header = {
            "cell": json.dumps({"kind": cell.kind, "depends": dict(cell.depends)}),
            "info": json.dumps(dict(content.info)),
            "digest": _digest(cell, content),
        }
        data = serialise({name: tensor.contiguous() for name, tensor in content.tensors.items()}, header)
        try:
            with atomic_path(self.path(cell)) as beside:
                beside.write_bytes(data)
        except OSError as error:
            raise SaliencyLabError(
                f"a finished cell could not be written to '{self.folder}' ({os.strerror(error.errno or 0)}); "
                "what was finished before is safe. Make room, then run the same again: it goes on from there."
            ) from error

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[None]:
        """Hold `name` against other processes; raise `Busy` if it is held and `wait` is false."""
        path = self.folder / "locks" / fingerprint(name)[:2]  # 256 files, however many cells
        path.parent.mkdir(exist_ok=True)
        try:
            with FileLock(path, timeout=-1 if wait else 0):
                yield
        except Timeout:
            raise Busy from None

    def files(self) -> Iterator[Path]:
        """Every cell's file, in a fixed order."""
        for kind in KINDS:
            yield from sorted((self.folder / "cells" / kind).glob("*/*.safetensors"))

    def read_manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote; empty if nothing or damaged."""
        try:
            return dict(json.loads((self.folder / "study.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write `study.json`, atomically."""
        write_json(self.folder / "study.json", manifest)


def read_file(path: Path) -> tuple[Cell, Content]:
    """Read a cell's file, and check it against its name and its digest.

    Raises
    ------
    DamagedCellError
        If it is cut short, changed, or not under its own name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cell = Cell(**json.loads(header["cell"]))
        content = Content(tensors, json.loads(header["info"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedCellError(f"the cell '{path}' is damaged ({type(error).__name__}: {error})") from error
    if _digest(cell, content) != header.get("digest"):
        raise DamagedCellError(f"the cell '{path}' is damaged: its content does not match its digest")
    if cell.key != path.stem or cell.kind != path.parent.parent.name:
        raise DamagedCellError(f"the cell '{path}' is not under its own name, {cell.kind}/{cell.key}")
    return cell, content


def _digest(cell: Cell, content: Content) -> str:
    names = sorted(content.tensors)
    return fingerprint(cell.key, dict(content.info), names, *(content.tensors[name] for name in names))
