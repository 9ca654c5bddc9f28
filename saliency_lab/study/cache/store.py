"""Where finished cells are kept: a folder of self-describing files, or memory."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.files import atomic_path, left_behind
from saliency_lab._common.fingerprints import fingerprint
from saliency_lab.study.cache.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from saliency_lab.study.cache.results import Cell, Content, Kind
from saliency_lab.study.sample import Sample


class DamagedCellError(SaliencyLabError):
    """A cell's file is not what was written."""


class Busy(Exception):
    """Another process is at work on this."""


class Store(Protocol):
    """What a study needs of the place its cells are kept in."""

    def has(self, kind: Kind, key: str) -> bool:
        """Whether the cell was written, without reading it."""

    def read(self, kind: Kind, key: str) -> Content | None:
        """Return its content, None if it was never written; raise `DamagedCellError` if it is damaged."""

    def describe(self, kind: Kind, key: str) -> tuple[Cell, Mapping[str, Any]] | None:
        """Return a cell and the facts of its content, without its tensors; None if it is not there."""

    def write(self, cell: Cell, content: Content) -> None:
        """Keep the content; an older one is replaced."""

    def cells(self) -> Iterator[tuple[Cell, Content]]:
        """Every intact cell."""

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[None]:
        """Hold `name` against other processes; raise `Busy` if it is held and `wait` is false."""


class MemoryStore:
    """Cells in memory; gone with the process."""

    def __init__(self) -> None:
        self._cells: dict[str, tuple[Cell, Content]] = {}

    def has(self, kind: Kind, key: str) -> bool:
        """Whether the cell was written."""
        return key in self._cells

    def read(self, kind: Kind, key: str) -> Content | None:
        """Return its content, None if it was never written."""
        return self._cells[key][1] if key in self._cells else None

    def describe(self, kind: Kind, key: str) -> tuple[Cell, Mapping[str, Any]] | None:
        """Return a cell and the facts of its content."""
        if key not in self._cells:
            return None
        cell, content = self._cells[key]
        return cell, content.info

    def write(self, cell: Cell, content: Content) -> None:
        """Keep the content."""
        self._cells[cell.key] = cell, content

    def cells(self) -> Iterator[tuple[Cell, Content]]:
        """Every cell."""
        yield from self._cells.values()

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
        self.folder = Path(folder)

    def path(self, kind: Kind, key: str) -> Path:
        """Return the file of a cell."""
        return self.folder / "cells" / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: Kind, key: str) -> bool:
        """Whether the cell's file is there, without reading it."""
        return self.path(kind, key).exists()

    def read(self, kind: Kind, key: str) -> Content | None:
        """Return its content, None if there is no file; raise `DamagedCellError` if the file is damaged."""
        path = self.path(kind, key)
        return read_file(path)[1] if path.exists() else None

    def describe(self, kind: Kind, key: str) -> tuple[Cell, Mapping[str, Any]] | None:
        """Return a cell and the facts of its content, from its file's header."""
        try:
            with safe_open(self.path(kind, key), framework="pt") as file:
                header = file.metadata()
                return Cell(**json.loads(header["cell"])), json.loads(header["info"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def write(self, cell: Cell, content: Content) -> None:
        """Write the cell's file, atomically."""
        header = {
            "cell": json.dumps({"kind": cell.kind, "depends": dict(cell.depends)}),
            "info": json.dumps(dict(content.info)),
            "digest": _digest(cell, content),
        }
        data = serialise({name: tensor.contiguous() for name, tensor in content.tensors.items()}, header)
        with self._writing(), atomic_path(self.path(cell.kind, cell.key), durable=False) as beside:
            beside.write_bytes(data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Say what can be done where the disk is full, or the folder may not be written."""
        try:
            yield
        except OSError as error:
            denied = isinstance(error, PermissionError)
            remedy = "Change its permissions, or save the study to another folder" if denied else "Make room"
            reason = os.strerror(error.errno or 0)
            raise SaliencyLabError(
                f"the store '{self.folder}' could not be written to ({reason}); what was finished before is "
                f"safe. {remedy}, then run the same again: it goes on from there."
            ) from error

    def cells(self) -> Iterator[tuple[Cell, Content]]:
        """Every intact cell; damaged ones are named in a warning."""
        for path in self.files():
            try:
                yield read_file(path)
            except DamagedCellError as error:
                warnings.warn(f"{error}; it is left out", stacklevel=2)

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[None]:
        """Hold `name` against other processes; raise `Busy` if it is held and `wait` is false."""
        # 256 files, however many cells; the manifest has its own, so that it never waits for a cell
        path = self.folder / "locks" / (name if name == MANIFEST else fingerprint(name)[:2])
        held = FileLock(path, timeout=-1 if wait else 0)
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.acquire()
            except Timeout:
                raise Busy from None
        try:
            yield
        finally:
            held.release()

    def files(self) -> list[Path]:
        """Every cell's file, in a fixed order."""
        found = (self.folder / "cells").glob("*/*/*.safetensors")
        return sorted(path for path in found if not path.name.startswith("."))

    def verify(self) -> pd.DataFrame:
        """Check every file against its name and its digest: one row a damaged cell, with the problem."""
        rows = []
        for path in self.files():
            try:
                read_file(path)
            except DamagedCellError as error:
                rows.append({"kind": path.parent.parent.name, "key": path.stem, "problem": str(error)})
        return pd.DataFrame(rows, columns=["kind", "key", "problem"])

    def collect(self, keep: Set[str]) -> int:
        """Delete cells whose key is not in `keep` and what killed processes left; return the bytes freed."""
        doomed = [path for path in self.files() if path.stem not in keep]
        for pattern in (f".{MANIFEST}.*", "*/.*.safetensors", "cells/*/*/.*.safetensors"):
            doomed += left_behind(self.folder, pattern)
        freed = 0
        for path in doomed:
            with self._writing(), suppress(FileNotFoundError):  # another process was quicker
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    def read_manifest(self) -> Manifest | None:
        """What `write_manifest` wrote; None if there is none, or it is damaged."""
        return read_manifest(self.folder)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write `study.json`, atomically."""
        with self._writing():
            write_manifest(self.folder, manifest)

    def read_sample(self, sample: str) -> Sample | None:
        """Images by their fingerprint, None if they are not here or damaged."""
        try:
            found = Sample(**load_file(self.folder / "samples" / f"{sample}.safetensors"))
        except (OSError, SafetensorError, TypeError):
            return None
        return found if found.fingerprint == sample else None

    def write_sample(self, sample: Sample) -> None:
        """Keep images under their fingerprint; damaged ones are replaced."""
        name = sample.fingerprint
        if self.read_sample(name) is None:
            self._write(self.folder / "samples" / f"{name}.safetensors", sample.tensors)

    def read_weights(self, model: str) -> dict[str, Tensor]:
        """Parameters and buffers of a model by its fingerprint."""
        return load_file(self.folder / "weights" / f"{model}.safetensors")

    def write_weights(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep parameters and buffers under the model's fingerprint, for workers."""
        path = self.folder / "weights" / f"{model}.safetensors"
        if not path.exists():
            self._write(path, tensors)

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        with self._writing(), atomic_path(path) as beside:
            beside.write_bytes(serialise(copies))


def existing_folder(path: str | Path) -> Path:
    """Return the path of a store that is to be read.

    Raises
    ------
    InputError
        If it is no folder.
    """
    if not Path(path).is_dir():
        raise InputError(
            f"there is no store at '{path}'; name the folder that was given as Study(..., store=…)"
        )
    return Path(path)


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
