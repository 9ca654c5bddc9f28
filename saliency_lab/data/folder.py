"""Images in folders, or in a zip file, decoded once into a cached array."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import torch

from saliency_lab._common.errors import DataNotFoundError, InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.limits import check_image_bytes
from saliency_lab._common.pictures import (
    damaged,
    describe_skipped,
    file_status,
    is_image_name,
    read_file,
    visible_entries,
)
from saliency_lab._common.warn import warn
from saliency_lab.data.decoding import read_decoded
from saliency_lab.data.images import MappedSplit, Split

LAYOUT = "train/CLASS/*.jpg and test/CLASS/*.jpg (or .png, .bmp, .webp …)"
_PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
"""Folders of a root, and the split that each one is."""
_DECODING = 2
"""Version of the decoding; 2 applies the EXIF orientation. Arrays cached by another version are not read."""

IN_MEMORY = 10**9
"""Bytes of decoded images that are read into memory; if they are more, they stay in their file."""

Listing = dict[str, tuple[int, ...]]
"""Path within the root ("train/CLASS/NAME") → what changes when the file does."""


def read_image_folder(
    root: Path, image_size: int | tuple[int, int] | None = None
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    """Read train/CLASS/* and test/CLASS/* from a folder or a .zip file; decode it on the first call only.

    Return the training, validation and test split and the class names. The validation split is None unless
    there is val/CLASS/* (or valid/, or validation/). A zip file may hold one folder that holds all this.
    Images are grey if all of them are, else RGB, turned as their EXIF orientation says; 16-bit grey is scaled
    to 8 bits. The decoded uint8 arrays are kept in a file (see `read_decoded`), under a hash of the listing,
    and mapped into memory.

    Raises
    ------
    DataNotFoundError
        If the root is missing or has another layout, or an image is damaged.
    InputError
        If a class is empty in one part, sizes differ and there is no `image_size`, `image_size` is not a
        size, an image has pixels of 32 bits, or a file is not a regular file or takes too much memory
        (`SALIENCY_LAB_MAX_GB`).

    Warns
    -----
    UserWarning
        If files or folders are skipped: how many, and the first ones by name.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(side, Integral) and not isinstance(side, bool) and side >= 1 for side in size)
    ):
        raise InputError(f"image_size must be one positive number or (height, width), not {image_size!r}")
    if root.is_dir():
        listing, skipped = _list_folder(root)
        parts = _load(root, listing, lambda name: read_file(root / name, _label(root, name)), size)
        _warn_of_skipped(root, skipped)
        return parts
    if not root.exists():
        raise DataNotFoundError(
            f"an image folder was looked for at '{root}', which does not exist. Give the folder, or the "
            f".zip file, that holds {LAYOUT}, with root=… or the environment variable SALIENCY_LAB_DATA."
        )
    if not root.is_file():
        raise InputError(
            f"'{root}' is neither a folder nor a regular file; name the folder or .zip file that "
            f"holds {LAYOUT}"
        )
    try:
        with zipfile.ZipFile(root) as archive:
            listing, skipped, top = _list_zip(archive)
            parts = _load(root, listing, lambda name: _read_member(archive, top + name, root), size)
            _warn_of_skipped(root, skipped)
            return parts
    except zipfile.BadZipFile as error:
        raise DataNotFoundError(
            f"'{root}' is damaged or is no zip file ({error}); fetch it again, or name a folder"
        ) from error


def _label(root: Path, name: str) -> str:
    return f"the image '{name}' of '{root}'"


def _list_folder(root: Path) -> tuple[Listing, list[str]]:
    """The images of the parts, and the names of what is skipped."""
    listing: Listing = {}
    skipped = []
    for entry in visible_entries(root):
        if entry.name not in _PARTS and entry.is_dir():
            skipped.append(f"{entry.name}/")
    for part in _PARTS:
        for folder in visible_entries(root / part) if (root / part).is_dir() else ():
            if not folder.is_dir():
                skipped.append(f"{part}/{folder.name}")
                continue
            before = len(listing)
            for entry in visible_entries(folder):
                name = f"{part}/{folder.name}/{entry.name}"
                if entry.is_dir():
                    skipped.append(f"{name}/")
                elif is_image_name(entry.name):
                    info = file_status(entry, _label(root, name))
                    listing[name] = info.st_size, info.st_mtime_ns, info.st_ctime_ns
                else:
                    skipped.append(name)
            if len(listing) == before:
                raise InputError(
                    f"class '{folder.name}' is empty: no images in '{folder}'; add some or delete it"
                )
    return listing, skipped


def _list_zip(archive: zipfile.ZipFile) -> tuple[Listing, list[str], str]:
    """The images of the parts, the names of what is skipped, and the one folder that holds everything."""
    here = "./" if all(info.filename.startswith("./") for info in archive.infolist()) else ""
    members = {
        info.filename.removeprefix(here): info
        for info in archive.infolist()
        if not any(part.startswith((".", "__MACOSX")) for part in info.filename.removeprefix(here).split("/"))
    }
    tops = {name.partition("/")[0] for name in members}
    top = f"{tops.pop()}/" if len(tops) == 1 and not tops & _PARTS.keys() else ""
    listing: Listing = {}
    skipped: dict[str, None] = {}  # a set in the order of the archive
    for filename, info in members.items():
        name = filename.removeprefix(top)
        match name.split("/"):
            case [part, _, file] if part in _PARTS and is_image_name(file):
                listing[name] = info.file_size, info.CRC
            case [part, label, folder, *_] if part in _PARTS and folder and not info.is_dir():
                deeper = name.count("/") > 2
                skipped[f"{part}/{label}/{folder}{'/' if deeper else ''}"] = None
            case [part, *_] if not info.is_dir():
                skipped[name if part in _PARTS else f"{part}/" if "/" in name else name] = None
    return listing, list(skipped), here + top


def _read_member(archive: zipfile.ZipFile, name: str, root: Path) -> bytes:
    label = _label(root, name)
    check_image_bytes(archive.getinfo(name).file_size, label)
    try:
        return archive.read(name)
    except Exception as error:  # zipfile and the decompressors raise whatever they met
        raise damaged(label, error) from error


def _warn_of_skipped(root: Path, skipped: list[str]) -> None:
    if skipped:
        warn(
            f"{describe_skipped(root, skipped)}; images are read from train/CLASS/, val/CLASS/ and "
            "test/CLASS/ only, not from folders inside these",
        )


def _load(
    root: Path, listing: Listing, read: Callable[[str], bytes], size: tuple[int, int] | None
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    listing = dict(sorted(listing.items(), key=lambda each: each[0].split("/")))  # the same on any system
    folders = {name.split("/")[0] for name in listing}
    validation = sorted(folder for folder in folders if _PARTS[folder] == "val")
    if len(validation) > 1:
        both = " and ".join(f"{folder}/" for folder in validation)
        raise InputError(f"'{root}' holds {both}, which are both the validation split; keep one of them")
    names: dict[str, list[str]] = {"train": [], "test": [], "val": []}
    for name in listing:
        names[_PARTS[name.split("/")[0]]].append(name)
    if not names["val"]:
        del names["val"]
    classes_of = {part: {name.split("/")[1] for name in names[part]} for part in names}
    if not classes_of["train"] or not classes_of["test"]:
        missing = "train" if not classes_of["train"] else "test"
        raise DataNotFoundError(
            f"'{root}' holds no images under {missing}/CLASS/; it must hold {LAYOUT}{_hint(root)}"
        )
    classes = sorted({label for labels in classes_of.values() for label in labels})
    for label in classes:
        for part in classes_of:
            if label not in classes_of[part]:
                where = validation[0] if part == "val" else part
                raise InputError(
                    f"class '{label}' of '{root}' has no images in {where}/; add some or delete the class"
                )
    images = read_decoded(root, names, read, size, fingerprint(list(listing.items()), size, _DECODING))
    mapped = sum(each.numel() for each in images.values()) > IN_MEMORY
    numbers = {label: number for number, label in enumerate(classes)}
    splits: dict[str, Split] = {}
    for part in names:
        labels = torch.tensor([numbers[name.split("/")[1]] for name in names[part]])
        if mapped:
            splits[part] = MappedSplit(images[part], labels, torch.arange(len(labels)))
        else:
            splits[part] = Split(images[part].clone(), labels)
    return splits["train"], splits.get("val"), splits["test"], tuple(classes)


def _hint(root: Path) -> str:
    """Name a folder inside the root that has the layout."""
    inside = [path.parent for path in sorted(root.glob("*/train"))] if root.is_dir() else []
    return f"; there is one of this layout in '{inside[0]}'" if inside else ""
