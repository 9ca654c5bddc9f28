"""Images in folders, or in a zip file, decoded once into a cached array."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saliency_lab._common.errors import DataNotFoundError, InputError, SaliencyLabError
from saliency_lab._common.files import atomic_path, left_behind
from saliency_lab._common.fingerprints import fingerprint
from saliency_lab._common.progress import progress
from saliency_lab.data.images import Split
from saliency_lab.data.pictures import eight_bit, is_grey

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
LAYOUT = "train/CLASS/*.jpg and test/CLASS/*.jpg (or .png, .bmp, .webp …)"
_PARTS = ("train", "test", "val")

Listing = dict[str, tuple[int, int]]
"""Path within the root ("train/CLASS/NAME") → what changes when the file does."""


def read_image_folder(
    root: Path, image_size: int | tuple[int, int] | None = None
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    """Read train/CLASS/* and test/CLASS/* from a folder or a .zip file; decoded on the first call only.

    The second of train, val and test is None unless there is val/CLASS/* too.
    Grey if every image is, else RGB; 16-bit grey is scaled to 8 bits. The decoded uint8 arrays are kept
    in `.saliency_lab` beside `root` (in the user's cache folder if that place cannot be written), keyed
    by the listing; those of an earlier listing are deleted. What begins with a dot is passed over.

    Raises
    ------
    DataNotFoundError
        If the root is missing, is not laid out so, or an image is damaged.
    InputError
        If a class is empty in one part, sizes differ and no `image_size` is given, `image_size` is none, or
        an image has pixels of 32 bits.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(side, Integral) and side >= 1 for side in size)
    ):
        raise InputError(f"image_size must be one positive number or (height, width), not {image_size!r}")
    if root.is_dir():
        return _load(root, _list_folder(root), lambda name: (root / name).read_bytes(), size)
    if not root.is_file():
        raise DataNotFoundError(
            f"an image folder was looked for at '{root}', which does not exist. Give the folder, or the "
            f".zip file, that holds {LAYOUT}, with root=… or the environment variable SALIENCY_LAB_DATA."
        )
    try:
        with zipfile.ZipFile(root) as archive:
            return _load(root, _list_zip(archive), archive.read, size)
    except zipfile.BadZipFile as error:
        raise DataNotFoundError(
            f"'{root}' is damaged or is no zip file ({error}); fetch it again, or name a folder"
        ) from error


def _list_folder(root: Path) -> Listing:
    listing: Listing = {}
    for part in _PARTS:
        for folder in sorted(path for path in (root / part).glob("[!.]*") if path.is_dir()):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_image(entry.name):
                        info = entry.stat()
                        listing[f"{part}/{folder.name}/{entry.name}"] = info.st_size, info.st_mtime_ns
            if not any(name.startswith(f"{part}/{folder.name}/") for name in reversed(listing)):
                raise InputError(
                    f"class '{folder.name}' is empty: no images in '{folder}'; add some or delete it"
                )
    return listing


def _list_zip(archive: zipfile.ZipFile) -> Listing:
    listing: Listing = {}
    for info in archive.infolist():
        match info.filename.split("/"):
            case [part, label, name] if part in _PARTS and not label.startswith(".") and _is_image(name):
                listing[info.filename] = info.file_size, info.CRC
    return listing


def _is_image(name: str) -> bool:
    """Whether a file is an image by its name; hidden ones, such as macOS writes beside images, are none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _load(
    root: Path, listing: Listing, read: Callable[[str], bytes], size: tuple[int, int] | None
) -> tuple[Split, Split | None, Split, tuple[str, ...]]:
    listing = dict(sorted(listing.items(), key=lambda each: each[0].split("/")))  # the same on any system
    names = {part: [name for name in listing if name.startswith(f"{part}/")] for part in _PARTS}
    if not names["val"]:
        del names["val"]
    found = {part: {name.split("/")[1] for name in names[part]} for part in names}
    if not found["train"] or not found["test"]:
        missing = "train" if not found["train"] else "test"
        raise DataNotFoundError(f"'{root}' holds no images under {missing}/CLASS/; it must hold {LAYOUT}")
    classes = sorted({label for labels in found.values() for label in labels})
    for label in classes:
        for part in found:
            if label not in found[part]:
                raise InputError(
                    f"class '{label}' of '{root}' has no images in {part}/; add some or delete the class"
                )
    images = _cached(root, names, read, size, fingerprint(list(listing.items()), size))
    splits = {
        part: Split(images[part], torch.tensor([classes.index(name.split("/")[1]) for name in names[part]]))
        for part in names
    }
    return splits["train"], splits.get("val"), splits["test"], tuple(classes)


def _cached(
    root: Path,
    names: dict[str, list[str]],
    read: Callable[[str], bytes],
    size: tuple[int, int] | None,
    key: str,
) -> dict[str, Tensor]:
    folder = _cache_folder(root.resolve())
    name = f"{root.resolve().name}-{'as_is' if size is None else f'{size[0]}x{size[1]}'}-"
    path = folder / f"{name}{key}.safetensors"
    if path.exists():
        try:
            return read_cache(path)
        except ValueError as error:
            warnings.warn(f"{error}; the images are decoded again", stacklevel=2)
    images = _decode(root, names, read, size)
    try:
        with atomic_path(path) as beside:
            save_file(images, beside, {"digest": _cache_digest(path, images)})
    except (InputError, OSError, SafetensorError) as error:
        warnings.warn(
            f"the decoded images of '{root}' could not be kept in '{folder}', and are decoded each time; "
            f"the variable XDG_CACHE_HOME names another cache folder ({error})",
            stacklevel=2,
        )
        return images
    kept = glob.escape(name) + "[0-9a-f]" * len(key) + ".safetensors"
    for older in (*folder.glob(kept), *left_behind(folder, f".{kept}.*")):
        if older != path:
            with contextlib.suppress(OSError):  # another process reads it, or was quicker
                older.unlink()
    return images


CACHE = ".saliency_lab"


def read_cache(path: Path) -> dict[str, Tensor]:
    """Read decoded images, and check them against the name and the digest of their file.

    Raises
    ------
    ValueError
        If the file cannot be read, or is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            images = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the decoded images '{path}' are damaged ({error})") from error
    if "digest" not in header:
        raise ValueError(f"the decoded images '{path}' were written by an earlier version, without a digest")
    if header["digest"] != _cache_digest(path, images):
        raise ValueError(f"the decoded images '{path}' are damaged: they do not match their digest")
    return images


def _cache_digest(path: Path, images: dict[str, Tensor]) -> str:
    parts = sorted(images)
    return fingerprint(path.stem, parts, *(images[part] for part in parts))


def _cache_folder(root: Path) -> Path:
    """`.saliency_lab` beside `root` if that place may be written, else a folder in the user's cache."""
    beside = root.parent
    writable = beside.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    if writable and os.access(beside, os.W_OK):
        return beside / CACHE
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home: that nothing could be kept here is told
        return beside / CACHE
    return cache / "saliency_lab" / fingerprint(str(beside))[:12]


def _decode(
    root: Path, names: dict[str, list[str]], read: Callable[[str], bytes], size: tuple[int, int] | None
) -> dict[str, Tensor]:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    def opened(name: str) -> Image.Image:
        try:
            return Image.open(io.BytesIO(read(name)))
        except Exception as error:  # zipfile and Pillow raise whatever they met
            raise damaged(name, error) from error

    def damaged(name: str, error: Exception) -> DataNotFoundError:
        return DataNotFoundError(f"the image '{name}' of '{root}' is damaged ({error}); replace or delete it")

    every = [name for part in names.values() for name in part]
    mode = "L" if all(is_grey(opened(name)) for name in every) else "RGB"  # stops at the first colour
    decoded: dict[str, Tensor] = {}
    shape: tuple[int, ...] | None = None
    with progress(label=f"decoding {root.name}", total=len(every)) as bar:
        for part in names:
            for row, name in enumerate(names[part]):
                try:
                    image = eight_bit(opened(name), f"the image '{name}' of '{root}'").convert(mode)
                except SaliencyLabError:
                    raise
                except Exception as error:
                    raise damaged(name, error) from error
                if size is not None:
                    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                tensor = pil_to_tensor(image)
                shape = shape or tuple(tensor.shape)
                if tuple(tensor.shape) != shape:
                    raise InputError(
                        f"the image '{name}' of '{root}' is {image.height}×{image.width}, the first one "
                        f"{shape[1]}×{shape[2]}; resize them, or pass image_size=(height, width)"
                    )
                if part not in decoded:
                    decoded[part] = torch.empty(len(names[part]), *shape, dtype=torch.uint8)
                decoded[part][row] = tensor
                bar.update()
    return decoded
