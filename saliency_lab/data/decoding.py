"""Decode image files on all cores into one file on disk, from which images are mapped into memory."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor

from saliency_lab._common.cores import map_in_order, usable_cores
from saliency_lab._common.errors import InputError, SaliencyLabError
from saliency_lab._common.files import left_behind, writable_folder
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.limits import check_memory
from saliency_lab._common.pictures import eight_bit, is_grey, open_picture
from saliency_lab._common.progress import progress
from saliency_lab._common.tensor_files import read_tensors, tensors_header
from saliency_lab._common.warn import warn

CACHE = ".saliency_lab"
"""The folder of decoded images, next to the folder or zip file that they are of."""

_AHEAD = 64 << 20  # bytes of images that are decoded before they are written
_TOGETHER = 8  # images that a thread decodes at a time, if they are small
_BLOCK = 256  # images between two flushes to disk; an interrupted call repeats these and those ahead

Names = dict[str, list[str]]
"""The parts ("train", "test", "val") and the names of their images."""


class Decoder:
    """Decodes images of one root to arrays of one shape, uint8 (C, H, W).

    Parameters
    ----------
    root : path
        The folder or zip file, for messages.
    names : mapping
        Part → names of its images.
    read : callable
        Returns the content of an image's file; called from several threads.
    size : (int, int) or None
        Height and width that images are resized to. Without it, all must have that of the first one.

    Raises
    ------
    DataNotFoundError
        If the first image is damaged, or any of those read to see whether all are grey.
    InputError
        If all images together take more memory than is allowed.
    """

    def __init__(
        self, root: Path, names: Names, read: Callable[[str], bytes], size: tuple[int, int] | None
    ) -> None:
        self.root, self.read, self.size = root, read, size
        every = [name for part in names.values() for name in part]
        label = f"{len(every):,} images of '{root}'"
        self.grey = all(is_grey(open_picture(read(name), self.label(name))) for name in every)
        if size is not None:
            check_memory((len(every), 1 if self.grey else 3, *size), 1, label)
        self.shape: tuple[int, int, int] | None = None
        self.shape = self(every[0]).shape
        check_memory((len(every), *self.shape), 1, label)

    def label(self, name: str) -> str:
        """What messages call an image."""
        return f"the image '{name}' of '{self.root}'"

    def __call__(self, name: str) -> np.ndarray:
        """Return the pixels of an image, uint8 (C, H, W), as a view.

        Raises
        ------
        DataNotFoundError
            If the file is damaged.
        InputError
            If it has another size than the first one, or no range of values.
        """
        from PIL import Image

        label = self.label(name)
        image = eight_bit(open_picture(self.read(name), label), label, "L" if self.grey else "RGB")
        if self.size is not None:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if self.shape is not None and pixels.shape != self.shape:
            raise InputError(
                f"{label} is {image.height}×{image.width}, the first one {self.shape[1]}×{self.shape[2]}; "
                "resize them, or pass image_size=(height, width)"
            )
        return pixels


class _CannotKeepError(Exception):
    """The decoded images cannot be written; the message says why."""


def read_decoded(
    root: Path, names: Names, read: Callable[[str], bytes], size: tuple[int, int] | None, key: str
) -> dict[str, Tensor]:
    """Return the images of each part, uint8 (N, C, H, W), which the first call decodes and later ones map.

    They are kept in `.saliency_lab` next to `root` (in the user's cache folder if that place cannot be
    written) under `key`; those of an earlier key are deleted. Images are decoded on all cores, and a call
    that was interrupted is continued by the next one. Of a mapped file, only what is being used needs memory.

    Raises
    ------
    DataNotFoundError, InputError
        As `Decoder`.

    Warns
    -----
    UserWarning
        If the cache is damaged, or cannot be written, so that images are decoded into memory each time.
    """
    folder = _cache_folder(root.resolve())
    stem = f"{root.resolve().name}-{'as_is' if size is None else f'{size[0]}x{size[1]}'}-"
    path = folder / f"{stem}{key}.safetensors"
    cached = _read_if_sound(path)
    if cached is not None:
        return cached
    decode = Decoder(root, names, read, size)
    try:
        with _locked(path):
            if not path.exists():  # another process may have been quicker
                _decode_to_file(path, names, decode)
            cached = read_cache(path)
    except (_CannotKeepError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        warn(
            f"the decoded images of '{root}' could not be kept in '{folder}', and are decoded each time; "
            f"the variable XDG_CACHE_HOME names another cache folder ({error})",
        )
        return _decode_to_memory(names, decode)
    alike = glob.escape(stem) + "[0-9a-f]" * len(key) + ".safetensors"
    for older in (*folder.glob(alike), *left_behind(folder, f".{alike}.*")):
        if older != path:
            with contextlib.suppress(OSError):  # another process reads it, or was quicker
                older.unlink()
    return cached


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time write a file; the lock of a killed process ends with it."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        writable_folder(path.parent)
        acquired = FileLock(lock).acquire()
    except (InputError, OSError) as error:
        raise _CannotKeepError(str(error)) from error
    with acquired:
        yield
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)


def _chunks(names: Names, first: int, last: int | None, size: int) -> Iterator[list[str]]:
    """Yield the names from the position `first` to `last`, at most `size` at a time and of one part each."""
    begin = 0
    for part in sorted(names):
        own = names[part][max(0, first - begin) : None if last is None else max(0, last - begin)]
        begin += len(names[part])
        for start in range(0, len(own), size):
            yield own[start : start + size]


def _decode_all(names: Names, decode: Decoder, done: int = 0) -> Iterator[np.ndarray]:
    """Yield the pixels of the images after the first `done`, in order, uint8 (n, C, H, W) of one part each.

    There is one thread per core. The threads go on with the next images while the caller writes, up to as
    many as take `_AHEAD` bytes.
    """
    assert decode.shape is not None
    shape, size, cores = decode.shape, prod(decode.shape), usable_cores()
    together = max(1, min(_TOGETHER, _AHEAD // (8 * cores * size)))
    chunks = _chunks(names, done, None, together)

    def decode_chunk(some: list[str]) -> np.ndarray:
        pixels = np.empty((len(some), *shape), np.uint8)
        for row, name in zip(pixels, some, strict=True):
            row[...] = decode(name)
        return pixels

    total = sum(map(len, names.values()))
    ahead = max(2 * cores, _AHEAD // (together * size))
    with progress(label=f"decoding {decode.root.name}", total=total) as bar:
        bar.update(done)
        for pixels in map_in_order(decode_chunk, chunks, threads=cores, ahead=ahead):
            yield pixels
            bar.update(len(pixels))


def _decode_to_memory(names: Names, decode: Decoder) -> dict[str, Tensor]:
    assert decode.shape is not None
    decoded = map(torch.from_numpy, _decode_all(names, decode))
    images = {}
    for part in sorted(names):
        images[part] = torch.empty(len(names[part]), *decode.shape, dtype=torch.uint8)
        begin = 0
        for pixels in _of_one_part(decoded, len(names[part])):
            images[part][begin : begin + len(pixels)] = pixels
            begin += len(pixels)
    return images


def _of_one_part(blocks: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """Yield the next blocks, which hold `count` images together."""
    while count:
        block = next(blocks)
        count -= len(block)
        yield block


def _decode_to_file(path: Path, names: Names, decode: Decoder) -> None:
    """Write a safetensors file image by image, or continue the one that was interrupted."""
    assert decode.shape is not None
    parts = sorted(names)
    shapes = {part: (torch.uint8, (len(names[part]), *decode.shape)) for part in parts}
    header, size = tensors_header(shapes, {"digest": "0" * 32}), prod(decode.shape)
    partial = path.with_name(f".{path.name}.partial")
    with _translate_disk_errors(), partial.open("a+b") as file:
        done = max(0, (file.seek(0, os.SEEK_END) - len(header)) // size)
        done = done // _BLOCK * _BLOCK  # what was flushed
        file.seek(0)
        if file.read(len(header)) != header:
            done = 0
        file.truncate(len(header) + done * size if done else 0)
        if not done:
            file.write(header)
        file.seek(len(header))
        blocks = _written(file, names, decode, done)
        hashed = (TensorBlocks(*shapes[part], _of_one_part(blocks, len(names[part]))) for part in parts)
        digest = fingerprint(path.stem, parts, *hashed)
        _flush(file)
    with _translate_disk_errors():
        with partial.open("r+b") as file:
            file.write(tensors_header(shapes, {"digest": digest}))
            _flush(file)
        partial.replace(path)


def _written(file: BinaryIO, names: Names, decode: Decoder, done: int) -> Iterator[Tensor]:
    """Yield the `done` images that follow in the file; then decode, append and yield the others."""
    assert decode.shape is not None
    for chunk in _chunks(names, 0, done, _TOGETHER):
        stored = np.empty((len(chunk), *decode.shape), np.uint8)
        if file.readinto(stored.data) < stored.nbytes:  # type: ignore[attr-defined]
            raise _CannotKeepError(f"'{file.name}' became shorter while it was read")
        yield torch.from_numpy(stored)
    written = done
    for pixels in _decode_all(names, decode, done):
        file.write(pixels.data)
        before, written = written, written + len(pixels)
        if written // _BLOCK > before // _BLOCK:
            _flush(file)
        yield torch.from_numpy(pixels)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _translate_disk_errors() -> Iterator[None]:
    try:
        yield
    except SaliencyLabError:  # of an image; some are an OSError too
        raise
    except (OSError, SafetensorError) as error:
        raise _CannotKeepError(str(error)) from error


def _read_if_sound(path: Path) -> dict[str, Tensor] | None:
    """Read decoded images; a warning says so if they are damaged, and they are deleted."""
    if not path.exists():
        return None
    try:
        return read_cache(path)
    except ValueError as error:
        warn(f"{error}; the images are decoded again")
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def read_cache(path: Path) -> dict[str, Tensor]:
    """Map decoded images into memory, and check them against the name and the digest of their file.

    Raises
    ------
    ValueError
        If the file cannot be read, or is not what was written.
    """
    images, digest = _map(path)
    if digest is None:
        raise ValueError(f"the decoded images '{path}' were written by an earlier version, without a digest")
    parts = sorted(images)
    if digest != fingerprint(path.stem, parts, *(images[part] for part in parts)):
        raise ValueError(f"the decoded images '{path}' are damaged: they do not match their digest")
    return images


def _map(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Map decoded images into memory; return them and the digest in their file."""
    try:
        images, header = read_tensors(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the decoded images '{path}' are damaged ({error})") from error
    return images, header.get("digest")


def _cache_folder(root: Path) -> Path:
    """`.saliency_lab` next to `root` if that place may be written, else a folder in the user's cache."""
    parent = root.parent
    writable = parent.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    if writable and os.access(parent, os.W_OK):
        return parent / CACHE
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home; if nothing can be written here, a warning says so
        return parent / CACHE
    return cache / "saliency_lab" / fingerprint(str(parent))[:12]
