"""Images and labels in whatever form a user has them: tensors, a pair, a data set or a loader.

Every public function that takes images reads them with `read_sample`, so that all of them accept the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saliency_lab._common.errors import InputError
from saliency_lab._common.limits import check_memory
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.pictures import eight_bit
from saliency_lab._common.seeding import preserved_rng

_IMAGE_KEYS = ("image", "img", "images", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label", "target", "class")


Images: TypeAlias = Any
"""What public functions take as images: see `read_sample`."""


class RawSample(NamedTuple):
    """Images, labels and masks as they were given, before any check; None for what is missing."""

    x: Any
    y: Any = None
    masks: Any = None


def read_sample(x: Any, y: Any = None) -> RawSample:
    """Return the images, labels and masks of what a user passed in place of images.

    Parameters
    ----------
    x
        A tensor of images; a pair (images, labels) or a triple with masks; an object with the attributes `x`
        and `y`, such as `load_images` and `Split.sample` return; or a `DataLoader`, a torch data set or a
        Hugging Face data set, which are read into memory once. Anything else is returned as it is, for
        `check_images` to refuse.
    y
        Labels that replace those found in `x`.

    Raises
    ------
    InputError
        If a data set's items are not images with at most one label, or its images take too much memory.

    Notes
    -----
    Global random generators are the same on return, so a loader that shuffles gives the same order each time,
    unless it has a generator of its own.
    """
    if isinstance(x, Tensor):
        sample = RawSample(x)
    elif hasattr(x, "x") and hasattr(x, "y"):
        sample = RawSample(x.x, x.y, getattr(x, "masks", None))
    elif isinstance(x, tuple | list) and len(x) in (2, 3) and _is_batch(x[0]):
        sample = RawSample(*x)
    elif isinstance(x, DataLoader):
        sample = _read_loader(x)
    elif _is_dataset(x):
        images, labels, masks = read_items(x, f"the {type(x).__name__}")
        batches = [image[None] for image in images]
        images.clear()
        sample = RawSample(
            join_images(batches),
            None if labels is None else torch.tensor(labels, dtype=torch.int64),
            None if masks is None else torch.stack(masks),
        )
    else:
        sample = RawSample(x)
    return sample if y is None else sample._replace(y=y)


def read_labelled(x: Images, y: Tensor | None = None) -> tuple[Any, Any]:
    """Return the images and labels of `read_sample`, where labels are needed.

    Raises
    ------
    InputError
        As `read_sample`; also if there are no labels.
    """
    images, labels, _ = read_sample(x, y)
    if labels is None:
        raise InputError("labels are needed: pass y=…, one class per image, or images with labels")
    return images, labels


def read_items(dataset: Any, label: str) -> tuple[list[Tensor], list[int] | None, list[Tensor] | None]:
    """Return the images (C, H, W), labels and masks of a data set, item by item; None for what it lacks.

    Raises
    ------
    InputError
        If an item is not an image with at most one label and mask, images differ in size, there are no items,
        or the images take too much memory; the message begins with `label`.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    masks: list[Tensor] = []
    count = len(dataset) if hasattr(dataset, "__len__") else None
    with preserved_rng():
        for index, item in enumerate(_items(dataset)):
            image, target, mask = _parts(item, f"{label}: item {index}")
            images.append(as_image(image, f"{label}: image {index}"))
            if target is not None or labels:
                labels.append(as_label(target, f"{label}: the label of item {index}"))
            if mask is not None:
                masks.append(torch.as_tensor(mask))
            first = images[0]
            if images[-1].shape != first.shape:
                raise InputError(
                    f"{label}: image {index} has the shape {tuple(images[-1].shape)}, image 0 "
                    f"{tuple(first.shape)}; bring them to one size and number of channels, with a transform "
                    "of the data set or with saliency_lab.load_images"
                )
            rows = index + 1 if count is None else count
            check_memory((rows, *first.shape), first.element_size(), f"{label}: {rows:,} images")
    if not images:
        raise InputError(f"{label}: the data set is empty")
    for what, given in (("a label", labels), ("a mask", masks)):
        if given and len(given) < len(images):
            raise InputError(f"{label}: only {len(given)} of {len(images)} items have {what}")
    return images, labels or None, masks or None


def as_unit_range(images: Tensor) -> Tensor:
    """Return 8-bit images as float32 in [0, 1], and others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def join_images(batches: list[Tensor]) -> Tensor:
    """Join batches (n, C, H, W) of one type and shape, those of 8 bits as float32 in [0, 1].

    The list is emptied as they are copied, so that no image is in memory twice if nobody else has it.
    """
    first = as_unit_range(batches[0][:0])
    images = empty_tensor((sum(map(len, batches)), *first.shape[1:]), first.dtype)
    end = len(images)
    while batches:
        batch = batches.pop()
        images[end - len(batch) : end] = as_unit_range(batch.detach())
        end -= len(batch)
    return images


def as_label(target: Any, label: str) -> int:
    """Return one label as an int; [3] and tensor(3) count as 3.

    Raises
    ------
    InputError
        If it is not a whole number; the message begins with `label`.
    """
    try:
        only = target.item() if getattr(target, "ndim", 0) else target  # [3], as MedMNIST has its labels
        number = int(only)
        if number == only:
            return number
    except (TypeError, ValueError, OverflowError, RuntimeError):  # text, nothing, infinity, a vector
        pass
    raise InputError(f"{label} must be a whole number, 0 for the first of the classes, not {target!r}")


def as_image(image: Any, label: str) -> Tensor:
    """Return a PIL image, array or tensor as a tensor (C, H, W), uint8 or floating point.

    Raises
    ------
    InputError
        If it has another shape or type; the message begins with `label`.
    """
    if hasattr(image, "getbands"):  # a PIL image
        from torchvision.transforms.functional import pil_to_tensor

        tensor: Tensor = pil_to_tensor(eight_bit(image, label))
    elif isinstance(image, Tensor):
        tensor = image.detach().cpu()
    else:
        try:
            tensor = torch.from_numpy(np.array(image))
        except (TypeError, ValueError):
            raise InputError(f"{label} must be an image, not {type(image).__name__}") from None
    tensor = tensor[None] if tensor.ndim == 2 else tensor
    if tensor.ndim != 3 or not (tensor.dtype == torch.uint8 or tensor.is_floating_point()):
        raise InputError(
            f"{label} must be uint8 or floating point, (C, H, W) or (H, W), "
            f"not {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def distinct_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes of which no two are the same: those that repeat get the number of their class.

    Predictions are shown, and labels found, by name, so that a name must stand for one class.

    >>> distinct_classes(["crane", "dog", "crane"])
    ('crane (0)', 'dog', 'crane (2)')
    """
    found = tuple(names)
    while len(set(found)) < len(found):  # again where a name such as 'crane (0)' was there before
        counts = Counter(found)
        found = tuple(f"{name} ({k})" if counts[name] > 1 else name for k, name in enumerate(found))
    return found


def _is_batch(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 4


def _is_dataset(x: Any) -> bool:
    """Whether this is a torch data set or one of Hugging Face, map-style or streamed."""
    return isinstance(x, Dataset) or (hasattr(x, "column_names") and not isinstance(x, Mapping))


def _items(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return (dataset[index] for index in range(len(dataset)))
    if isinstance(dataset, Iterable):
        return iter(dataset)
    raise InputError(
        "a data set must have a length and items (image, label), or be iterable, which "
        f"{type(dataset).__name__} is not"
    )


def _parts(item: Any, label: str) -> tuple[Any, Any, Any]:
    """Image, label and mask of one item, or of one batch."""
    if isinstance(item, Mapping):
        return _column(item, label), next((item[key] for key in _LABEL_KEYS if key in item), None), None
    if isinstance(item, tuple | list):
        if 1 <= len(item) <= 3:
            image, target, mask = (*item, None, None)[:3]
            return image, target, mask
        raise InputError(f"{label} is not a pair (image, label), but {len(item)} values")
    return item, None, None


def _column(item: Mapping[str, Any], label: str) -> Any:
    """The image among the named columns of an item."""
    named = [key for key in _IMAGE_KEYS if key in item]
    pictures = named or [key for key, value in item.items() if hasattr(value, "getbands")]
    if len(pictures) == 1:
        return item[pictures[0]]
    problem = "several columns" if pictures else "no column"
    raise InputError(
        f"{label} has {problem} that can be the image among {', '.join(map(str, item))}; keep one column of "
        f"images named {_IMAGE_KEYS[0]!r} (rename_column, select_columns)"
    )


def _read_loader(loader: DataLoader[Any]) -> RawSample:
    """The batches of a loader, put together on the CPU."""
    try:
        count = len(loader)
    except TypeError:  # of an iterable data set without a length
        count = 0
    batches: list[tuple[Any, Any, Any]] = []
    rows = 0
    with preserved_rng():
        for index, batch in enumerate(loader):
            x, y, masks = _parts(batch, f"the loader: batch {index}")
            if not _is_batch(x):
                kind = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise InputError(
                    f"the loader: the images of batch {index} must be a tensor (N, C, H, W), not {kind}"
                )
            batches.append((x, y, masks))
            rows += len(x)
            expected = max(rows, count * len(batches[0][0]) - len(batches[0][0]))  # the last may be smaller
            check_memory((expected, *x.shape[1:]), x.element_size(), f"the loader's {expected:,} images")
    if not batches:
        raise InputError("the loader has no batches; its data set is empty")
    images, *others = map(list, zip(*batches, strict=True))
    y, masks = map(_joined, others)
    batches.clear()
    kinds = {(each.dtype, each.shape[1:], each.layout, each.device.type) for each in images}
    first = images[0]
    if len(kinds) == 1 and first.device.type == "cpu" and first.layout == torch.strided:
        return RawSample(join_images(images), y, masks)
    return RawSample(as_unit_range(_joined(images)), y, masks)


def _joined(parts: list[Any]) -> Any:
    """The batches' tensors as one; None where the batches have none."""
    if all(part is None for part in parts):
        return None
    try:
        return torch.cat([torch.as_tensor(part).cpu() for part in parts])
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the loader's batches do not fit each other: {error}") from None
