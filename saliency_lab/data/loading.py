"""Photographs from files, PIL images and arrays, brought to the size that a model takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.arguments import check_path, shown
from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.cores import map_in_order, usable_cores
from saliency_lab._common.errors import DataNotFoundError, InputError, unknown_name
from saliency_lab._common.html import facts, strip
from saliency_lab._common.limits import check_memory
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.pictures import (
    describe_skipped,
    eight_bit,
    is_image_name,
    open_picture,
    read_file,
    resize_and_crop,
    visible_entries,
)
from saliency_lab._common.progress import progress
from saliency_lab._common.text import number_of
from saliency_lab._common.warn import warn

_NAMED = 3  # files in the printed form
_SHOWN = 8  # images in Jupyter
_THREADS = 8  # that decode files, each of which may take as much memory as a large photograph


@dataclass(frozen=True, eq=False, repr=False)
class ImageBatch:
    """Images ready for a model, with the names of their files; unpacks as `x, y`.

    It is accepted wherever images are: `sl.attribute(model, batch)`, `maps.show(batch)`.

    Parameters
    ----------
    x : Tensor
        float32 (N, C, H, W) in [0, 1].
    y : Tensor or None
        Labels, int64 (N,), if they were given.
    names : tuple of str
        The files' names, or "image 0", "image 1", … for what was not a file.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> batch = sl.load_images(torch.rand(2, 3, 8, 8))
    >>> batch.names
    ('image 0', 'image 1')
    >>> batch[0].x.shape
    torch.Size([1, 3, 8, 8])
    """

    x: Tensor
    y: Tensor | None
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_images(self.x)
        if self.y is not None:
            check_labels(self.y, len(self.x))

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.x, self.y))

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> ImageBatch:
        """Return the batch of some of the images; an int gives a batch of one.

        Raises
        ------
        IndexError
            If there is no such image.
        """
        chosen = torch.from_numpy(np.atleast_1d(np.arange(len(self))[rows]))
        return replace(
            self,
            x=self.x[chosen],
            y=None if self.y is None else self.y[chosen],
            names=tuple(self.names[row] for row in chosen.tolist()),
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.x.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        more = f" and {len(self) - _NAMED} more" if len(self) > _NAMED else ""
        labelled = "no labels" if self.y is None else "labels"
        return (
            f"ImageBatch({number_of(len(self), 'image')} {tuple(self.x.shape[1:])}, {labelled}: "
            f"{', '.join(self.names[:_NAMED])}{more})"
        )

    def _repr_html_(self) -> str:
        rows = {"images": f"{len(self)} × {tuple(self.x.shape[1:])}", "names": ", ".join(self.names[:_SHOWN])}
        few = self.x[:_SHOWN]
        return facts("images", rows) + strip(few, f"the first {number_of(len(few), 'image')}")


def load_images(
    source: Any,
    *,
    model: Any = None,
    size: int | tuple[int, int] | None = None,
    labels: Sequence[int | str] | Tensor | None = None,
) -> ImageBatch:
    """Load photographs for a model: a folder, files, PIL images or arrays, with or without labels.

    Parameters
    ----------
    source : path, PIL image, array, Tensor, or a sequence of these
        A folder is read without the folders inside it, in the order of the files' names. Arrays are (H, W),
        (H, W, C) or (C, H, W), or a stack of them, 8 or 16 bits or floating point in [0, 1].
    model : nn.Module, optional
        One with a card, as `load_model` and `wrap` return: the images are resized and cropped as the card
        says, and become grey if the model takes one channel.
    size : int or (height, width), optional
        Instead of the card's size: each image is resized until it just covers this size, and its centre is
        cut out.
    labels : sequence of int or str, or Tensor, optional
        One per image: numbers of classes, or names of the model's classes.

    Returns
    -------
    ImageBatch
        Images float32 (N, C, H, W) in [0, 1], RGB unless the model takes one channel.

    Raises
    ------
    DataNotFoundError
        If there is no such file or folder, a folder has no images, or an image is damaged.
    InputError
        If something is not an image, sizes differ and neither `model` nor `size` is given, a label is not a
        class, or a file is not a regular file or takes too much memory (`SALIENCY_LAB_MAX_GB`).

    Warns
    -----
    UserWarning
        If a folder holds other files or folders, which are skipped.

    Notes
    -----
    Files are decoded on all cores. Images are turned as their EXIF orientation says. Palettes are looked up,
    CMYK becomes RGB, 16-bit images are scaled to 8 bits, and transparency is dropped.

    Examples
    --------
    >>> load_images(np.zeros((300, 400, 3), np.uint8), size=224)
    ImageBatch(1 image (3, 224, 224), no labels: image 0)
    """
    card = _card(model)
    wanted = _check_size(size)
    resize, interpolation, mode = None, "bilinear", "RGB"
    if card is not None:
        channels, *sides = card.input_shape
        mode = "L" if channels == 1 else "RGB"
        if wanted is None:
            wanted, resize, interpolation = (sides[0], sides[1]), card.resize, card.interpolation
    given = _list(source)
    if not given:
        raise InputError("there are no images to load; give a folder, files, PIL images or arrays")
    names, described = [], []
    for index, item in enumerate(given):
        is_file = isinstance(item, Path)
        names.append(item.name if is_file else f"image {index}")
        described.append(f"the image '{item}'" if is_file else names[-1])

    def read_one(index: int) -> Tensor:
        image = _read(given[index], described[index], mode)
        if wanted is not None:
            check_memory((len(given), 3, *wanted), 4, f"{len(given):,} images")
            image = resize_and_crop(image, wanted, resize, interpolation)
        return _unit_range(image)

    x = torch.empty(0)
    only_files = all(isinstance(item, Path) for item in given)  # others may be one object several times
    threads = min(_THREADS, usable_cores()) if only_files else 1
    decoded = map_in_order(read_one, range(len(given)), threads=threads, ahead=threads)
    with progress(label="loading images", total=len(given)) as bar:
        for index, pixels in enumerate(decoded):
            if index == 0:
                check_memory((len(given), *pixels.shape), 4, f"{len(given):,} images")
                x = empty_tensor((len(given), *pixels.shape))
            if pixels.shape != x.shape[1:]:
                shape, first = tuple(pixels.shape), tuple(x.shape[1:])
                raise InputError(
                    f"{described[index]} has the shape {shape}, the first one {first}; pass model=… or "
                    "size=… to bring them to one size"
                )
            x[index] = pixels
            bar.update()
    return ImageBatch(x, _labels(labels, len(x), card), tuple(names))


def _card(model: Any) -> Any:
    """The model's card, or None without a model."""
    if model is None:
        return None
    card = getattr(model, "card", None)
    if getattr(card, "input_shape", None) is None:
        raise InputError(
            f"the {type(model).__name__} has no card that states the size of its images; pass size=…, or "
            "give it a card with saliency_lab.wrap(model, size=…)"
        )
    return card


def _check_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in sides)
    if len(sides) == 2 and whole and min(sides) >= 1:
        return int(sides[0]), int(sides[1])
    raise InputError(f"size must be one positive number or (height, width), not {size!r}")


def _list(source: Any) -> list[Any]:
    """The single images that a source holds."""
    if isinstance(source, str | os.PathLike):
        path = check_path(source, "source")
        if not path.exists() and not path.is_symlink():
            raise DataNotFoundError(f"there is no file or folder '{path}' to load images from")
        return _list_folder(path) if path.is_dir() else [path]
    if isinstance(source, np.ndarray | Tensor):
        return list(source) if source.ndim == 4 else [source]
    if hasattr(source, "getbands") or not isinstance(source, Iterable):
        return [source]
    return [check_path(item, "source") if isinstance(item, str | os.PathLike) else item for item in source]


def _list_folder(folder: Path) -> list[Path]:
    entries = visible_entries(folder)
    images = [path for path in entries if is_image_name(path.name) and not path.is_dir()]
    skipped = [path for path in entries if path not in images]
    if not images:
        folders = [path for path in skipped if path.is_dir()]
        instead = f"; name one of the folders inside, such as '{folders[0]}'" if folders else ""
        raise DataNotFoundError(f"the folder '{folder}' holds no images{instead}")
    if skipped:
        names = [f"{path.name}/" if path.is_dir() else path.name for path in skipped]
        warn(describe_skipped(folder, names))
    return images


def _read(item: Any, label: str, mode: Any) -> Any:
    """One image: a PIL image of the mode, or a floating point tensor (C, H, W) with its channels."""
    from PIL import Image

    if isinstance(item, Path):
        return eight_bit(open_picture(read_file(item, label), label), label, mode)
    if hasattr(item, "getbands"):
        return eight_bit(item, label, mode)
    if isinstance(item, Tensor):
        array = (item.float() if item.dtype == torch.bfloat16 else item).detach().cpu().numpy()
    else:
        try:
            array = np.asarray(item)
        except (TypeError, ValueError):
            array = np.array(None)
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    pixels = _channels_last(array, first=isinstance(item, Tensor))
    if pixels is None or not (pixels.dtype in (np.uint8, np.uint16) or pixels.dtype.kind == "f"):
        kind = f"{array.dtype} {array.shape}" if array.ndim else type(item).__name__
        raise InputError(
            f"{label} must be a file's path, a PIL image, or an array (H, W), (H, W, C) or (C, H, W) of 8 or "
            f"16 bits or floating point, or a stack (N, H, W, C) or (N, C, H, W) of them, not {kind}"
        )
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    if pixels.dtype == np.uint8:
        bands = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        return eight_bit(Image.fromarray(np.ascontiguousarray(bands)), label, mode)
    values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError(
            f"{label}: floating point values must lie in [0, 1]; divide by 255 if they are 0 … 255"
        )
    values = values[:3] if len(values) == 4 else values  # without the transparency
    if mode == "L":
        grey = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # as PIL, ITU-R BT.601
        return (values * grey).sum(0, keepdim=True) if len(values) == 3 else values
    return values.expand(3, -1, -1).clone() if len(values) == 1 else values


def _channels_last(array: np.ndarray, *, first: bool) -> np.ndarray | None:
    """An array as (H, W, C) with 1, 3 or 4 channels; `first` decides where both ends could be channels."""
    if array.ndim == 2 and 0 not in array.shape:
        return array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        return None
    leading, trailing = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if leading and (first or not trailing):
        return array.transpose(1, 2, 0)
    return array if trailing else None


def _unit_range(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image.clamp(0, 1)  # an antialiased cubic overshoots
    from torchvision.transforms.functional import pil_to_tensor

    tensor: Tensor = pil_to_tensor(image)
    return tensor.float() / 255


def _labels(labels: Any, count: int, card: Any) -> Tensor | None:
    if labels is None:
        return None
    classes = tuple(getattr(card, "classes", None) or ())
    if not isinstance(labels, Tensor):
        if isinstance(labels, str | bytes | Mapping) or not isinstance(labels, Iterable):
            raise InputError(f"labels must be one number or name of a class per image, not {shown(labels)}")
        numbers = []
        for label in labels:
            if isinstance(label, str):
                if not classes:
                    raise InputError(
                        "labels are names; pass a model=… whose card has class names, or numbers"
                    )
                alike = [name for name in classes if name.startswith(f"{label} (")]
                if label not in classes and len(alike) > 1:
                    raise InputError(f"several classes are called '{label}'; say which: {', '.join(alike)}")
                if label not in classes:
                    raise unknown_name("class", label, classes)
                numbers.append(classes.index(label))
            else:
                numbers.append(label)
        try:
            labels = torch.as_tensor(numbers)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"labels must be whole numbers or names of classes, not {numbers!r}") from None
    return check_labels(labels, count, getattr(card, "num_classes", None))
