"""Image files and PIL images: reading them safely, and bringing them to eight bits and to one size."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from saliency_lab._common.errors import DataNotFoundError, InputError
from saliency_lab._common.limits import check_image_bytes, image_limit

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""How the names of files that are read as images end, in lower case."""

_NAMED = 3  # skipped entries that a message names

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
}


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name; hidden files, such as those macOS writes, are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def visible_entries(folder: Path) -> list[Path]:
    """Return what a folder contains, by name, without hidden entries.

    Raises
    ------
    DataNotFoundError
        If the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataNotFoundError(
            f"the folder '{folder}' cannot be read ({error.strerror}); change its permissions"
        ) from error


def describe_skipped(folder: Path, names: Sequence[str]) -> str:
    """Say how many entries of a folder were skipped, and name the first ones.

    >>> describe_skipped(Path("pets"), ["notes.txt", "old/"])
    "2 entries of 'pets' were skipped: 'notes.txt', 'old/'"
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    entries = "1 entry" if len(names) == 1 else f"{len(names)} entries"
    verb = "was" if len(names) == 1 else "were"
    return f"{entries} of '{folder}' {verb} skipped: {', '.join(map(repr, names[:_NAMED]))}{more}"


def file_status(path: str | Path, label: str) -> os.stat_result:
    """Return the status of a regular file of a size that may be read; links are followed.

    Raises
    ------
    DataNotFoundError
        If there is no such file, or a link leads nowhere.
    InputError
        If it is a folder, a device, a pipe or a socket, or larger than `image_limit()`.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataNotFoundError(f"{label} cannot be read ({reason}); replace or delete it") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise InputError(f"{label} is {kind}, not a regular file; replace or delete it")
    check_image_bytes(status.st_size, label)
    return status


def read_file(path: str | Path, label: str) -> bytes:
    """Return the content of a regular file that passes `file_status`.

    Raises
    ------
    DataNotFoundError, InputError
        As `file_status`; also if the file holds more bytes than its status says.
    """
    file_status(path, label)
    try:
        with Path(path).open("rb") as file:
            content = file.read(image_limit() + 1)
    except OSError as error:
        raise DataNotFoundError(
            f"{label} cannot be read ({error.strerror}); change its permissions"
        ) from error
    check_image_bytes(len(content), label)
    return content


def open_picture(content: bytes, label: str) -> Image:
    """Return the image that a file's content holds; its pixels are decoded when first used.

    Raises
    ------
    DataNotFoundError
        If Pillow cannot read it; the message begins with `label`.
    InputError
        If it would take more memory than `image_limit()` once decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise damaged(label, "Pillow does not recognise its format") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{label} has too many pixels ({error}); if you trust the file, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever they met
        raise damaged(label, error) from error
    check_image_bytes(picture.width * picture.height * len(picture.getbands()), f"{label}, decoded,")
    return picture


def damaged(label: str, reason: object) -> DataNotFoundError:
    """Return the error for a file whose content cannot be decoded."""
    text = " ".join(str(reason).split()) or type(reason).__name__
    return DataNotFoundError(f"{label} is damaged ({text}); replace or delete it")


def is_grey(picture: Image) -> bool:
    """Whether a picture holds one channel of grey, of 1, 8 or 16 bits."""
    return picture.mode in ("1", "L") or has_16_bits(picture)


def has_16_bits(picture: Image) -> bool:
    """Whether a picture holds grey of 0 to 65535, which Pillow gives 32 bits where it read a PGM file."""
    return picture.mode.startswith("I;16") or (picture.format == "PPM" and picture.mode == "I")


def eight_bit(picture: Image, label: str, mode: Literal["L", "RGB"] | None = None) -> Image:
    """Return a picture as 8-bit grey (mode L) or RGB, turned as its EXIF orientation says.

    Palettes are looked up, CMYK becomes RGB, 16-bit grey is scaled, and transparency is dropped. Without
    `mode`, grey stays grey and everything else becomes RGB.

    Raises
    ------
    DataNotFoundError
        If its pixels cannot be decoded; the message begins with `label`.
    InputError
        If its mode has no defined range of values, or no colours; the message begins with `label`.
    """
    from PIL import Image, ImageOps

    try:
        picture.load()
    except Exception as error:  # Pillow's decoders raise whatever they met
        raise damaged(label, error) from error
    sixteen_bits = has_16_bits(picture)
    with contextlib.suppress(Exception):  # EXIF data that cannot be parsed contain no orientation
        picture = ImageOps.exif_transpose(picture)
    if sixteen_bits:
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise InputError(
            f"{label} has pixels of 32 bits (mode {picture.mode}), which do not say what is white; "
            "save it with 8 or 16 bits, or pass an array in [0, 1]"
        )
    wanted = mode or ("L" if is_grey(picture) else "RGB")
    try:
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return picture.convert(wanted)
    except ValueError as error:  # no such conversion
        raise InputError(f"{label} is of mode {picture.mode} ({error}); save it as grey or RGB") from error


Resizable = TypeVar("Resizable", "Image", "Tensor")


def resize_and_crop(
    picture: Resizable,
    size: tuple[int, int],
    resize: int | tuple[int, int] | None = None,
    interpolation: str = "bilinear",
) -> Resizable:
    """Resize a PIL image, or a tensor (C, H, W), and cut its centre to `size` (height, width).

    `resize` is the length of the shorter side before the crop, or a height and width to stretch to. Without
    it the picture becomes just large enough to cover `size`. All of it is antialiased, as torchvision's
    presets, timm and transformers do.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transform

    mode = InterpolationMode(interpolation)
    if resize is None:
        height, width = transform.get_image_size(picture)[::-1]
        scale = max(size[0] / height, size[1] / width)
        resize = (max(size[0], int(height * scale)), max(size[1], int(width * scale)))
    to: Any = list(resize) if isinstance(resize, tuple) else resize
    resized: Any = transform.resize(picture, to, interpolation=mode, antialias=True)
    return transform.center_crop(resized, list(size))
