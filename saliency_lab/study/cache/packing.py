"""A copy of a store that is small enough to publish: no images, maps, curves or networks."""

from __future__ import annotations

from dataclasses import replace

from saliency_lab.study.cache.index import load_index
from saliency_lab.study.cache.store import FolderStore, read_intact

_LEFT_OUT = ("curve", "at")
"""Tensors of scores that only figures need."""


def copy_without_images(store: FolderStore, target: FolderStore) -> None:
    """Copy what the tables of a stored study are made of: scores, attacks, audits, labels and `study.json`.

    The copy can be read as any store. Its results have the keys and facts of the original.

    Raises
    ------
    InputError
        If there is no intact study in `store`.
    """
    index = load_index(store.folder)
    kept = {place: key for place, key in index.results.items() if place.kind != "maps"}
    for place, key in kept.items():
        described, content = store.describe(place.kind, key), read_intact(store, place.kind, key)
        if described is None or content is None:
            continue
        tensors = {name: tensor for name, tensor in content.tensors.items() if name not in _LEFT_OUT}
        target.write(described[0], replace(content, tensors=tensors))
    packed = replace(index, sample=index.sample.without_images(), results=kept, store=target)
    packed.write_manifest(exclusive=True)
