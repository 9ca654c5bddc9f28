"""Where the results of a study are stored: a folder of files that describe themselves, or memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, MutableMapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.files import atomic_path, left_behind
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.passes import PassPlan
from saliency_lab._common.tensor_files import read_tensors, write_tensors
from saliency_lab._common.warn import warn
from saliency_lab.study.cache.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from saliency_lab.study.cache.plans import PlanFolder
from saliency_lab.study.cache.results import Content, Kind, Result
from saliency_lab.study.sample import StudySample


class DamagedFileError(SaliencyLabError):
    """A file of a store is not what was written."""


class LockedError(Exception):
    """Another process has locked this name."""


class MemoryStore:
    """Results in memory, which end with the process."""

    def __init__(self) -> None:
        self._results: dict[str, tuple[Result, Content]] = {}
        self.plans: MutableMapping[str, PassPlan] = {}

    def has(self, kind: Kind, key: str) -> bool:
        """Say whether the result was written."""
        return key in self._results

    def read(self, kind: Kind, key: str) -> Content | None:
        """Return the content, or None if the result was never written."""
        return self._results[key][1] if key in self._results else None

    def describe(self, kind: Kind, key: str) -> tuple[Result, Mapping[str, Any]] | None:
        """Return a result and the facts of its content, from its header; None if that cannot be read."""
        if key not in self._results:
            return None
        result, content = self._results[key]
        return result, content.info

    def write(self, result: Result, content: Content) -> None:
        """Store the content."""
        self._results[result.key] = result, content

    def results(self) -> Iterator[tuple[Result, Content]]:
        """Yield every result."""
        yield from self._results.values()

    def lock(self, name: str, *, wait: bool) -> AbstractContextManager[None]:
        """Do nothing: no other process can reach this memory."""
        return nullcontext()


class FolderStore:
    """Results as files, `cells/KIND/ab/abcd….safetensors`, each written to a temporary file and renamed.

    The header of a file contains what the result depends on (the hash of that is the name of the file) and a
    digest of everything in the file, so that a file can be checked without knowledge of the study. Locks are
    advisory file locks of the operating system, which end with their process.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.plans: MutableMapping[str, PassPlan] = PlanFolder(self.folder)

    def path(self, kind: Kind, key: str) -> Path:
        """Return the file of a result."""
        return self.folder / "cells" / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: Kind, key: str) -> bool:
        """Say whether the file of the result exists, without reading it."""
        return self.path(kind, key).exists()

    def read(self, kind: Kind, key: str) -> Content | None:
        """Return the content, or None if there is no file."""
        path = self.path(kind, key)
        return read_result(path)[1] if path.exists() else None

    def describe(self, kind: Kind, key: str) -> tuple[Result, Mapping[str, Any]] | None:
        """Return a result and the facts of its content, from its header; None if that cannot be read."""
        try:
            with safe_open(self.path(kind, key), framework="pt") as file:
                header = file.metadata()
            result, info = Result(**json.loads(header["cell"])), json.loads(header["info"])
            return (result, info) if result.key == key else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
            return None

    def write(self, result: Result, content: Content) -> None:
        """Write the file of the result, atomically."""
        header = {
            "cell": json.dumps({"kind": result.kind, "depends": dict(result.depends)}),
            "info": json.dumps(dict(content.info)),
            "digest": _digest(result, content),
        }
        with (
            self._explain_errors(),
            atomic_path(self.path(result.kind, result.key), durable=False) as temporary,
        ):
            write_tensors(temporary, content.tensors, header)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
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

    def results(self) -> Iterator[tuple[Result, Content]]:
        """Yield every intact result; a warning names each damaged one."""
        for path in self.files():
            try:
                yield read_result(path)
            except DamagedFileError as error:
                warn(f"{error}; it is left out")

    @contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[None]:
        """Lock `name` against other processes; raise `LockedError` if it is locked and `wait` is false."""
        # 256 files, however many results; the manifest has its own, so that it never waits for a result
        path = self.folder / "locks" / (name if name == MANIFEST else fingerprint(name)[:2])
        lock = FileLock(path, timeout=-1 if wait else 0)
        with self._explain_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                raise LockedError from None
        try:
            yield
        finally:
            lock.release()

    def files(self) -> list[Path]:
        """Return the files of all results, in a fixed order."""
        every = (self.folder / "cells").glob("*/*/*.safetensors")
        return sorted(path for path in every if not path.name.startswith("."))

    def collect(self, keep: Set[str]) -> int:
        """Delete results whose key is not in `keep`, and half-written files; return the bytes freed."""
        doomed = [path for path in self.files() if path.stem not in keep]
        for pattern in (f".{MANIFEST}.*", "tables/.*", "*/.*.safetensors", "cells/*/*/.*.safetensors"):
            doomed += left_behind(self.folder, pattern)
        freed = 0
        for path in doomed:
            with self._explain_errors(), suppress(FileNotFoundError):  # another process was quicker
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    # --- the manifest, the images, and the weights that workers read --------------------------------

    def read_manifest(self) -> Manifest | None:
        """Return the manifest, or None if there is none or it is damaged."""
        try:
            return read_manifest(self.folder)
        except (OSError, ValueError):
            return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Write `study.json`, atomically; a damaged one is kept under another name."""
        with self._explain_errors():
            self._set_damaged_manifest_aside()
            write_manifest(self.folder, manifest)

    def damaged_manifests(self) -> list[Path]:
        """Return the damaged manifests that were kept under another name."""
        return sorted(self.folder.glob("study.damaged-*.json"))

    def _set_damaged_manifest_aside(self) -> None:
        path = self.folder / MANIFEST
        if not path.exists() or self.read_manifest() is not None:
            return
        aside = self.folder / f"study.damaged-{len(self.damaged_manifests()) + 1}.json"
        path.rename(aside)
        warn(
            f"'{path}' is damaged, so the results of other runs in this store are no longer listed; it was "
            f"renamed to '{aside.name}'. Run those studies again: they read their results, which are intact",
        )

    def read_sample(self, name: str) -> StudySample | None:
        """Return the images with this fingerprint, or None if they are missing or damaged."""
        try:
            tensors, header = read_tensors(self.sample_path(name))
            if "shape" in header:
                return _packed_sample(name, tensors, header)
            sample = StudySample(tensors["x"], tensors["y"], tensors.get("masks"))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError):
            return None
        return sample if sample.fingerprint == name else None

    def write_sample(self, sample: StudySample) -> None:
        """Store images under their fingerprint; damaged ones are replaced."""
        name = sample.fingerprint
        if self.read_sample(name) is not None:
            return
        tensors, header = dict(sample.tensors), None
        if sample.hashes is not None:
            shape = json.dumps(list(tensors.pop("x").shape))
            header = {"shape": shape, "images": sample.images}
            header["digest"] = fingerprint(name, header, tensors["y"])
        self._write(self.sample_path(name), tensors, header)

    def sample_path(self, name: str) -> Path:
        """Return the file of the images with this fingerprint."""
        return self.folder / "samples" / f"{name}.safetensors"

    def write_weights(self, model: str, tensors: Mapping[str, Tensor]) -> None:
        """Store parameters and buffers under the model's fingerprint, for workers; replace damaged ones."""
        path = self.weights_path(model)
        try:
            read_weights(path)
        except DamagedFileError as error:
            if path.exists():
                warn(f"{error}; it is written again")
            self._write(path, tensors, {"digest": _weights_digest(model, tensors)})

    def weights_path(self, model: str) -> Path:
        """Return the file of the weights of a model with this fingerprint."""
        return self.folder / "weights" / f"{model}.safetensors"

    def _write(self, path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
        with self._explain_errors(), atomic_path(path) as temporary:
            write_tensors(temporary, tensors, header or {})


Store: TypeAlias = MemoryStore | FolderStore


def existing_folder(path: str | Path) -> Path:
    """Return the path of a store that is to be read, which must be a folder."""
    path = check_path(path, "store")
    if not path.is_dir():
        raise InputError(
            f"there is no store at '{path}'; name the folder that was given as Study(..., store=…)"
        )
    return path


def _packed_sample(name: str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> StudySample | None:
    """Read a sample whose images were left out; None if it is damaged."""
    known = {key: header[key] for key in ("shape", "images")}
    if header["digest"] != fingerprint(name, known, tensors["y"]):
        return None
    shape_only = torch.empty(json.loads(known["shape"]), device="meta")
    return StudySample(shape_only, tensors["y"], hashes=(known["images"], name))


def read_intact(store: Store, kind: Kind, key: str) -> Content | None:
    """Return the content of a result, or None where none is intact; a warning names a damaged one."""
    try:
        return store.read(kind, key)
    except DamagedFileError as error:
        warn(f"{error}; a run on this store computes it again")
        return None


def read_result(path: Path) -> tuple[Result, Content]:
    """Read a result's file and check it against its name and digest; raise DamagedFileError otherwise."""
    try:
        tensors, header = read_tensors(path)
        result = Result(**json.loads(header["cell"]))
        content = Content(tensors, json.loads(header["info"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"the result '{path}' is damaged ({type(error).__name__}: {error})") from error
    if _digest(result, content) != header.get("digest"):
        raise DamagedFileError(f"the result '{path}' is damaged: its content does not match its digest")
    if result.key != path.stem or result.kind != path.parent.parent.name:
        raise DamagedFileError(f"the result '{path}' is not under its own name, {result.kind}/{result.key}")
    return result, content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights and check them against their name and digest; raise DamagedFileError otherwise."""
    try:
        tensors, header = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"the weights '{path}' are missing or damaged ({error})") from error
    if "digest" not in header:
        raise DamagedFileError(f"the weights '{path}' were written by an earlier version, without a digest")
    if header["digest"] != _weights_digest(path.stem, tensors):
        raise DamagedFileError(f"the weights '{path}' are damaged: they do not match their digest")
    return tensors


def _digest(result: Result, content: Content) -> str:
    names = sorted(content.tensors)
    return fingerprint(result.key, dict(content.info), names, *(content.tensors[name] for name in names))


def _weights_digest(model: str, tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    return fingerprint(model, names, *(tensors[name] for name in names))
