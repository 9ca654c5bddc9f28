"""Checking every stored file: of a study's store, of training runs, and of decoded images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import InputError
from saliency_lab.data.decoding import CACHE, read_cache
from saliency_lab.models.checkpoint import CARD, WEIGHTS, check_checkpoint
from saliency_lab.study.cache.check import Problems, check_store
from saliency_lab.study.cache.manifest import MANIFEST
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.training.run import LOG, RECIPE, check_run


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
    root = check_path(folder, "folder")
    if not root.is_dir():
        raise InputError(
            f"there is no folder '{root}'; name a study's store, or the folder of a training run"
        )
    stores = {path.parent for name in (MANIFEST, "cells") for path in root.rglob(name)}
    problems = [*_training_runs(root), *_caches(root)]
    for store in sorted(folder for folder in stores if folder.name != "locks"):
        problems += check_store(FolderStore(store))
    rows = [(kind, path.relative_to(root).as_posix(), problem) for kind, path, problem in problems]
    return pd.DataFrame(rows, columns=["kind", "file", "problem"])


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
