"""Checking every stored file: of a study's store, of training runs, and of decoded images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from saliency_lab._common.errors import InputError
from saliency_lab._common.files import TABLE_DIGESTS, file_digest, read_checked_json
from saliency_lab.data.folder import CACHE, read_cache
from saliency_lab.models.checkpoint import CARD, WEIGHTS, check_checkpoint
from saliency_lab.study.cache.manifest import MANIFEST, Manifest, read_manifest
from saliency_lab.study.cache.store import DamagedFileError, FolderStore, read_result, read_weights
from saliency_lab.training.run import LOG, RECIPE, check_run

Problems = Iterator[tuple[str, Path, str]]


def verify(folder: str | Path) -> pd.DataFrame:
    """Check every file in a folder against its digest: a study's store, training runs, data caches.

    Files are only read. A study that runs again recomputes what is damaged or missing.

    Parameters
    ----------
    folder : path
        A store of `Study`, the output folder of `train`, the folder of an image data set with its cache of
        decoded images, or any folder that contains these.

    Returns
    -------
    DataFrame
        One row per damaged or missing file: its `kind`, the `file`, relative to `folder`, and the `problem`.
        Files that earlier versions wrote without a digest are listed too, as they cannot be checked.

    Raises
    ------
    InputError
        If there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as empty:
    ...     len(verify(empty))
    0
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder '{root}'; name a study's store, or the folder of a training run")
    checks = (_manifests, _results, _samples, _weights, _tables, _training_runs, _caches)
    rows = [
        {"kind": kind, "file": path.relative_to(root).as_posix(), "problem": problem}
        for check in checks
        for kind, path, problem in check(root)
    ]
    return pd.DataFrame(rows, columns=["kind", "file", "problem"])


def _read_manifests(root: Path) -> Iterator[tuple[FolderStore, Manifest]]:
    for path in sorted(root.rglob(MANIFEST)):
        try:
            yield FolderStore(path.parent), read_manifest(path.parent)
        except (OSError, ValueError):
            continue


def _manifests(root: Path) -> Problems:
    for path in sorted(root.rglob(MANIFEST)):
        try:
            read_manifest(path.parent)
        except (OSError, ValueError) as error:
            yield "manifest", path, f"the list of results '{path}' is damaged ({error})"
    for path in sorted(root.rglob("samples")):
        if (path.parent / "cells").is_dir() and not (path.parent / MANIFEST).exists():
            yield "manifest", path.parent / MANIFEST, "the list of results is missing"


def _results(root: Path) -> Problems:
    for path in sorted(root.rglob("cells/*/*/[!.]*.safetensors")):
        try:
            read_result(path)
        except DamagedFileError as error:
            yield path.parent.parent.name, path, str(error)
    for store, manifest in _read_manifests(root):
        for place, key in manifest.places.items():
            path = store.path(place.kind, key)
            if key not in manifest.missing and not path.exists():
                yield place.kind, path, f"the result '{path}' is missing: {place.what} of '{place.model}'"


def _samples(root: Path) -> Problems:
    expected = {
        store.sample_path(manifest.sample or manifest.images) for store, manifest in _read_manifests(root)
    }
    for path in sorted({*root.rglob("samples/[!.]*.safetensors"), *expected}):
        if FolderStore(path.parent.parent).read_sample(path.stem) is None:
            problem = "damaged" if path.exists() else "missing"
            yield "sample", path, f"the images '{path}' are {problem}"


def _weights(root: Path) -> Problems:
    expected = {
        store.weights_path(name) for store, manifest in _read_manifests(root) for name in manifest.weights
    }
    for path in sorted({*root.rglob("weights/[!.]*.safetensors"), *expected}):
        try:
            read_weights(path)
        except DamagedFileError as error:
            yield "weights", path, str(error)


def _tables(root: Path) -> Problems:
    for folder in sorted({path.parent for path in root.rglob("tables/*.*") if path.suffix in (".csv", ".parquet")}):
        listed = folder / TABLE_DIGESTS
        try:
            digests = read_checked_json(listed, ())
        except (OSError, ValueError) as error:
            yield "table", listed, f"the digests of the tables cannot be read ({error}); write the tables again"
            continue
        for name, digest in digests.items():
            path = folder / name
            if not path.exists():
                yield "table", path, f"the table '{path}' is missing"
            elif file_digest(path) != digest:
                yield "table", path, f"the table '{path}' does not match its digest; write it again"


def _training_runs(root: Path) -> Problems:
    checkpoints = {path.parent for name in (CARD, WEIGHTS) for path in root.rglob(name)}
    for folder in sorted(checkpoints):
        for path, problem in check_checkpoint(folder).items():
            yield "checkpoint", path, problem
    runs = {path.parent for path in root.rglob(RECIPE)}
    runs |= {path.parent for path in root.rglob(LOG) if path.parent in checkpoints}
    for folder in sorted(runs):
        for path, problem in check_run(folder).items():
            yield "training run", path, problem


def _caches(root: Path) -> Problems:
    for path in sorted(root.rglob(f"{CACHE}/[!.]*.safetensors")):
        try:
            read_cache(path)
        except ValueError as error:
            yield "image cache", path, str(error)
