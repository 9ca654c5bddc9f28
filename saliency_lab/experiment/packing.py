"""Packed results: everything that a page is made of, in one small file, without images and networks."""

from __future__ import annotations

import json
import lzma
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.files import atomic_path, output_file
from saliency_lab.experiment.schema import Declaration
from saliency_lab.experiment.trainings import Run, declared_trainings, is_of
from saliency_lab.models.checkpoint import CARD
from saliency_lab.study.cache.index import load_index
from saliency_lab.study.cache.store import FolderStore, read_intact
from saliency_lab.study.keys import method_dependencies
from saliency_lab.study.study import Study
from saliency_lab.training.recipe import dotted
from saliency_lab.training.run import LOG, RECIPE

_FILES = (RECIPE, CARD, LOG)
"""Files of a training run that a page is made of."""
_LEFT_OUT = ("curve", "at")
"""Tensors of scores that only figures need."""
_MOST_BYTES = 2**30
"""More than this is not unpacked."""
_DECLARED = "sample.json"
"""What results depend on and do not show: the images, the methods and the given networks, as declared."""


def pack_results(declared: Declaration, study: Study, runs: Sequence[Run], path: str | Path) -> Path:
    """Write the results of a declared study into one file, `.tar.xz`, from which its page can be redrawn.

    The file holds scores, attacked predictions, audits, labels, and the cards and logs of the networks; it
    holds no images, maps, curves or weights.

    Parameters
    ----------
    declared : Declaration
        The study that the results are of.
    study : Study
        Its results, in a store.
    runs : sequence of Run
        Its training runs.
    path : path
        The file to write, which ends with .tar.xz.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If the study is in memory, or the file cannot be written.
    """
    path = output_file(path, ".tar.xz")
    if not isinstance(study.store, FolderStore):
        raise InputError("this study is in memory; study.save('runs/first') gives it a folder to pack")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _copy_without_images(study, study.store, FolderStore(folder))
        (folder / _DECLARED).write_text(json.dumps(_declared(declared)), encoding="utf-8")
        for run in runs:
            own = folder / "models" / run.model / str(run.seed)
            own.mkdir(parents=True)
            for name in _FILES:
                if (run.folder / name).exists():
                    shutil.copyfile(run.folder / name, own / name)
        shutil.rmtree(folder / "locks", ignore_errors=True)
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        with atomic_path(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
            for file in files:
                entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
                entry.size = file.stat().st_size
                with file.open("rb") as content:
                    archive.addfile(entry, content)
    return path


def _declared(declared: Declaration) -> dict[str, Any]:
    """Return what decides which images a study has, every draw, how maps are made, and of which networks."""
    methods = {each.label: method_dependencies(each) for each in declared.method_requests()}
    images = declared.data.model_dump(mode="json", exclude={"root"})
    return {**images, "seed": declared.seed, "models": declared.models, "methods": methods}


def _copy_without_images(study: Study, store: FolderStore, target: FolderStore) -> None:
    """Copy what the tables of a study are made of: scores, attacks, audits, labels and `study.json`.

    The copy can be read as any store. Its results have the keys and facts of the original. What other
    processes list in the same store is left out.
    """
    index = study._index
    kept = {place: key for place, key in index.results.items() if place.kind != "maps"}
    for place, key in kept.items():
        described, content = store.describe(place.kind, key), read_intact(store, place.kind, key)
        if described is None or content is None:
            continue
        tensors = {name: tensor for name, tensor in content.tensors.items() if name not in _LEFT_OUT}
        target.write(described[0], replace(content, tensors=tensors))
    packed = replace(index, sample=index.sample.without_images(), results=kept, store=target)
    packed.write_manifest(exclusive=True)


def unpack_results(
    declared: Declaration, paths: Sequence[str | Path], folder: Path, *, trust: bool = False
) -> tuple[Study, list[Run]]:
    """Read packed results into an empty folder; return the study, without networks, and their runs.

    Several files are parts of one study, such as those of several machines, which are joined.

    Parameters
    ----------
    declared : Declaration
        The study that the results are of.
    paths : sequence of paths
        The files that `pack_results` wrote.
    folder : Path
        Where to unpack them.
    trust : bool
        Whether code that the recipes of the study name as `module:attribute` may be imported.

    Raises
    ------
    InputError
        If a file is missing, damaged or not such a file, or if its results are those of another study, of
        other images, of recipes that have changed since, or of other networks than another file has for the
        same recipe and seed.
    """
    first, *others = paths
    _unpack(declared, first, folder, trust=trust)
    index = load_index(folder)
    for path in others:
        with TemporaryDirectory() as scratch:
            _unpack(declared, path, Path(scratch), trust=trust)
            part = load_index(scratch)
            if (part.images, part.seed) != (index.images, index.seed):
                raise InputError(f"'{path}' has results of other images than '{first}', or of another seed")
            for model, seed in index.manifest().differing(part.manifest()):
                raise InputError(
                    f"'{model}' (seed {seed}) is another network in '{path}' than in the files before it; "
                    "networks that are trained on different machines differ, so compute each on one of them"
                )
            index.merge(scratch)
            if Path(scratch, "models").exists():
                shutil.copytree(Path(scratch, "models"), folder / "models", dirs_exist_ok=True)
    there = {(member.model, member.seed) for member in index.members}
    runs = [
        Run(model, recipe, seed, folder / "models" / model / str(seed), changes)
        for model, recipe, seed, changes in declared_trainings(declared, trust=trust)
        if (model, seed) in there
    ]
    order = {(run.model, run.seed): position for position, run in enumerate(runs)}
    index.members.sort(key=lambda member: order.get((member.model, member.seed), len(order)))
    index.results = dict(
        sorted(index.results.items(), key=lambda each: order.get((each[0].model, each[0].seed), len(order)))
    )
    baseline = declared.baseline if declared.baseline in index.models else None
    index.purpose = declared.purpose.model_copy(update={"baseline": baseline})
    index.write_manifest(exclusive=True)
    return Study.load(folder), runs


def _unpack(declared: Declaration, path: str | Path, folder: Path, *, trust: bool) -> None:
    """Read one file of packed results into an empty folder, and check that they are of the declared study."""
    try:
        with tarfile.open(path, "r:xz") as archive:
            entries = archive.getmembers()
            if sum(entry.size for entry in entries) > _MOST_BYTES or not all(map(_is_plain, entries)):
                raise InputError(f"'{path}' is no file of packed results")
            archive.extractall(folder, entries, filter="data")
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the packed results '{path}' cannot be read: {reason}") from error
    try:
        index = load_index(folder)
    except SaliencyLabError as error:
        raise InputError(f"'{path}' is no file of packed results: it has no readable study.json") from error
    for model, recipe, seed, _ in declared_trainings(declared, trust=trust):
        own = folder / "models" / model / str(seed)
        if (own / RECIPE).exists() and not is_of(recipe, seed, own):
            raise InputError(
                f"'{path}' has a network of '{model}' (seed {seed}) that was trained by another recipe than "
                "the study declares; the recipe or the study's file has changed since it was packed"
            )
    packed, wanted = _read_declared(folder, path), json.loads(json.dumps(_declared(declared)))
    for part in (each for each in wanted if each in packed):  # earlier versions packed less
        theirs, ours = dotted({part: packed[part]}), dotted({part: wanted[part]})
        for name in {**ours, **theirs}:
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"'{path}' has results with {name} = {theirs.get(name)!r}, and the study declares "
                    f"{name} = {ours.get(name)!r}"
                )
    for member in index.members:
        if member.seed not in declared.trained_seeds.get(member.model, [member.seed]):
            raise InputError(
                f"'{path}' has a network of '{member.model}' with seed {member.seed}, which the study does "
                "not declare"
            )
    known = {*declared.recipes, *declared.models}
    same = index.seed == declared.seed and index.purpose.claims == declared.claims
    if not same or not set(index.models) <= known:
        raise InputError(f"'{path}' has the results of another study, or of this one before its file changed")


def _read_declared(folder: Path, path: str | Path) -> dict[str, Any]:
    """Read what an unpacked file says of its declaration; nothing if it is of an earlier version."""
    if not (folder / _DECLARED).exists():
        return {}
    try:
        packed = json.loads((folder / _DECLARED).read_text(encoding="utf-8"))
    except ValueError:
        packed = None
    if not isinstance(packed, dict):
        raise InputError(f"'{path}' is no file of packed results: its {_DECLARED} is not readable")
    return packed


def _is_plain(entry: tarfile.TarInfo) -> bool:
    """Return whether an entry is an ordinary file below the folder that it is unpacked into."""
    name = PurePosixPath(entry.name)
    return entry.isfile() and not name.is_absolute() and ".." not in name.parts
