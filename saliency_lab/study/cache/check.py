"""Checking every file of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saliency_lab._common.files import check_tables
from saliency_lab.study.cache.manifest import MANIFEST, read_manifest
from saliency_lab.study.cache.store import DamagedFileError, FolderStore, read_result, read_weights

Problems = Iterator[tuple[str, Path, str]]
"""Kind of a file, its path, and what is wrong with it."""


def check_store(store: FolderStore) -> Problems:
    """Check the files of a store, and that those are there which its manifest lists."""
    samples, weights = set[Path](), set[Path]()
    path = store.folder / MANIFEST
    try:
        manifest = read_manifest(store.folder)
    except (OSError, ValueError) as error:
        if path.exists() or any(each.parent.parent.name != "retraining" for each in store.files()):
            yield "manifest", path, f"the list of results '{path}' is missing or damaged ({error})"
    else:
        samples.add(store.sample_path(manifest.sample or manifest.images))
        weights |= {store.weights_path(name) for name in manifest.weights}
        for place, key in manifest.places.items():
            path = store.path(place.kind, key)
            if key not in manifest.missing and not path.exists():
                yield place.kind, path, f"the result '{path}' is missing: {place.what} of '{place.model}'"
    for path in store.files():
        try:
            read_result(path)
        except DamagedFileError as error:
            yield path.parent.parent.name, path, str(error)
    for path in sorted(samples.union((store.folder / "samples").glob("[!.]*.safetensors"))):
        if store.read_sample(path.stem) is None:
            yield "sample", path, f"the images '{path}' are {'damaged' if path.exists() else 'missing'}"
    for path in sorted(weights.union((store.folder / "weights").glob("[!.]*.safetensors"))):
        try:
            read_weights(path)
        except DamagedFileError as error:
            yield "weights", path, str(error)
    yield from (("table", path, problem) for path, problem in check_tables(store.folder / "tables").items())
