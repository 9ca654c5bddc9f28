"""Images and labels in memory: a split, a sample of one, and a data set of three splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from saliency_lab._common.arguments import check_fraction, check_instance, check_text, shown
from saliency_lab._common.checks import check_dense, check_seed
from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab._common.html import facts, side_by_side, strip
from saliency_lab._common.mapped import empty_tensor
from saliency_lab._common.samples import as_label, distinct_classes, read_items, read_sample
from saliency_lab._common.seeding import derive_seed
from saliency_lab._common.text import number_of

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class LabelledImages(NamedTuple):
    """Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,); unpacks as `x, y`."""

    x: Tensor
    y: Tensor

    def _repr_html_(self) -> str:
        shown = self.x[:_SHOWN]
        return facts("sample", {"images": f"{len(self.x)} × {tuple(self.x.shape[1:])}"}) + strip(
            shown, f"the first {number_of(len(shown), 'image')}"
        )


def check_indices(indices: object, count: int) -> Tensor:
    """Return `indices` as int64 (N,) if they are positions among `count` images, or a mask of them.

    Raises
    ------
    InputError
        If they are not.
    """
    problem = InputError(f"indices must be positions from 0 to {count - 1}, not {shown(indices)}")
    try:
        positions = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise problem from None
    if positions.dtype == torch.bool and positions.shape == (count,):
        positions = positions.nonzero()[:, 0]
    if positions.numel() == 0:
        return positions.reshape(-1).long()
    whole = not (positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool)
    if not whole or positions.ndim > 1 or not bool(((positions >= -count) & (positions < count)).all()):
        raise problem
    return positions.long()


def stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """Return a random order of the indices in which every prefix holds the classes in their shares.

    The first n of it are therefore a stratified sample, and contain the first m < n. Of K classes, one
    that makes up the share p of the labels is within (1 + K·p) / 2 of n·p: within 1 where all are of a size.
    """
    draws = np.random.default_rng(derive_seed(seed, purpose))
    classes = labels.numpy()
    shuffled = draws.permutation(len(classes))
    position = np.empty(len(classes))
    for label in np.unique(classes):
        members = shuffled[classes[shuffled] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(position[shuffled], kind="stable")])


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set, in memory; also a map-style torch `Dataset` of (image, label).

    Parameters
    ----------
    images : Tensor
        uint8 (N, C, H, W), or float32 in [0, 1].
    labels : Tensor
        int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("images", self.images), ("labels", self.labels)):
            check_instance(tensor, Tensor, name, "a torch tensor")
            check_dense(tensor, name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> LabelledImages:
        """Image float32 (C, H, W) in [0, 1] and its label."""
        return self.batch(index)

    def __repr__(self) -> str:
        return f"Split({number_of(len(self), 'image')} {tuple(self.images.shape[1:])})"

    def batch(self, indices: Tensor | Sequence[int] | slice | int) -> LabelledImages:
        """Return copies of some of the images and labels.

        Parameters
        ----------
        indices : Tensor, sequence of int, slice or int
            Positions in the split.

        Returns
        -------
        LabelledImages
            Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,); unpacks as `x, y`.

        Raises
        ------
        InputError
            If a position lies outside the split.
        """
        if not isinstance(indices, int | slice):  # an iterator over the split ends by an IndexError
            indices = check_indices(indices, len(self))
        labels = self.labels[indices].clone()
        if isinstance(indices, int) or len(labels) <= _BLOCK:
            return LabelledImages(_unit_range(self._stored(indices)), labels)
        positions = torch.arange(len(self))[indices]
        x = empty_tensor((len(labels), *self.images.shape[1:]), _unit_range(self.images[:0]).dtype)
        for rows, part in zip(positions.split(_BLOCK), x.split(_BLOCK), strict=True):
            part.copy_(_unit_range(self._stored(rows)))
        return LabelledImages(x, labels)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the images as they are stored, uint8 or float32 (n, C, H, W), some at a time and in order."""
        for start in range(0, len(self), _BLOCK):
            yield self._stored(slice(start, start + _BLOCK))

    def _stored(self, indices: Tensor | slice | int) -> Tensor:
        """Images as they are stored, a view where that is possible."""
        return self.images[indices]

    def all(self) -> LabelledImages:
        """Return every image and label, in order.

        Returns
        -------
        LabelledImages
            Images float32 (N, C, H, W) in [0, 1] and labels int64 (N,); unpacks as `x, y`.
        """
        return self.batch(slice(None))

    def sample(self, n: int, seed: int = 0) -> LabelledImages:
        """Draw `n` images without replacement, stratified by class; a larger n contains a smaller one.

        Parameters
        ----------
        n : int
            How many images, from 1 to the number of images in the split.
        seed : int
            Chooses the images.

        Returns
        -------
        LabelledImages
            Images float32 (n, C, H, W) in [0, 1] and labels int64 (n,); unpacks as `x, y`.

        Raises
        ------
        InputError
            If n < 1 or the split holds fewer than n images.
        """
        return self.batch(self.draw(n, seed))

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """Draw the indices of the images that `sample(n, seed)` returns.

        Parameters
        ----------
        n : int
            How many images, from 1 to the number of images in the split.
        seed : int
            Chooses the images.

        Returns
        -------
        Tensor
            int64 (n,).

        Raises
        ------
        InputError
            If n < 1 or the split holds fewer than n images.
        """
        check_seed(seed)
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= len(self):
            raise InputError(
                f"n must be a whole number in 1 … {len(self)}, the number of images in this split, not {n!r}"
            )
        return stratified_order(self.labels, seed, "sample")[:n]

    def select(self, indices: Tensor) -> Split:
        """Return the split of some of the images.

        Parameters
        ----------
        indices : Tensor
            Positions in this split.

        Returns
        -------
        Split
            The images and labels at these positions, in this order.

        Raises
        ------
        InputError
            If a position lies outside the split.
        """
        indices = check_indices(indices, len(self))
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False, repr=False)
class MappedSplit(Split):
    """A split of images in a file that is mapped into memory: only images that are asked for are read.

    `images` are all images of the file, and `rows`, int64 (N,), those that belong to the split, in order.
    `select` therefore copies no image.
    """

    rows: Tensor

    def _stored(self, indices: Tensor | slice | int) -> Tensor:
        return self.images[self.rows[indices]]

    def select(self, indices: Tensor) -> MappedSplit:
        """Return the split of some of the images."""
        indices = check_indices(indices, len(self))
        return MappedSplit(self.images, self.labels[indices], self.rows[indices])


_BLOCK = 512  # images that are read at a time


def _unit_range(images: Tensor) -> Tensor:
    """Return a copy of stored images; those of 8 bits as float32 in [0, 1]."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.clone()


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set: training, validation and test images, and the names of the classes.

    Parameters
    ----------
    name : str
        Name of the data set, for messages and reports.
    train, val, test : Split
        Of one image size. The validation split is cut from the training part unless the data have one; the
        test part is never touched. Data to look at only, not to train on, have no images in train and val.
    classes : tuple of str
        Label k is the class `classes[k]`. Where several have one name, each gets its number, as in
        `ModelCard`.

    Raises
    ------
    InputError
        If images or labels have the wrong type, shape or range, or a class has no training images.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> data = sl.load_dataset("digits")
    >>> data.input_shape
    (1, 28, 28)
    >>> x, y = data.test.sample(16, seed=0)
    >>> x.shape
    torch.Size([16, 1, 28, 28])
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_text(self.name, "name")
        for part, split in self._splits().items():
            check_instance(split, Split, part, "a saliency_lab.data.Split of images and labels")
        if isinstance(self.classes, str) or not isinstance(self.classes, Sequence) or not self.classes:
            raise InputError(
                f"classes must be the names of the classes, such as ('cat', 'dog'), not {shown(self.classes)}"
            )
        for each in self.classes:
            check_text(each, "classes, each of them,")
        object.__setattr__(self, "classes", distinct_classes(self.classes))
        untrained = len(self.train) == 0 and len(self.val) == 0
        splits = {"test": self.test} if untrained else self._splits()
        for part, split in splits.items():
            _check_split(f"data set '{self.name}', {part} split", split, len(self.classes))
            if not untrained and split.images.shape[1:] != self.train.images.shape[1:]:
                raise InputError(
                    f"data set '{self.name}': the {part} images have the shape "
                    f"{tuple(split.images.shape[1:])}, the training images {self.input_shape}"
                )
        counts = torch.bincount(self.train.labels, minlength=len(self.classes))
        if not untrained and (counts == 0).any():
            empty = self.classes[int((counts == 0).nonzero()[0])]
            raise InputError(
                f"data set '{self.name}': class '{empty}' has no training images; "
                "add some or leave the class out"
            )

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any] | DataLoader[Any],
        test: Dataset[Any] | DataLoader[Any],
        val: Dataset[Any] | DataLoader[Any] | None = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "custom",
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> ImageData:
        """Read torch or Hugging Face data sets of (image, label), or loaders of them, into memory once.

        Random transforms are frozen at their first draw.

        Parameters
        ----------
        train, test : Dataset or DataLoader
            Pairs of an image and a label. An image is a tensor or array, (C, H, W) or (H, W), uint8 or
            floating point in [0, 1], or a PIL image, which becomes 8-bit grey or RGB; all have one size. A
            label is a whole number.
        val : Dataset or DataLoader, optional
            The validation images; by default `val_fraction` of the training images.
        classes : sequence of str, optional
            Names of the classes; by default the labels as text.
        name : str
            Name of the data set.
        val_fraction : float
            Share of the training images that becomes the validation split, above 0 and below 1.
        seed : int
            Chooses the validation images.

        Returns
        -------
        ImageData
            The three splits, in memory.

        Raises
        ------
        InputError
            If the items are no such pairs, or the data set is not valid.

        Examples
        --------
        >>> from torch.utils.data import TensorDataset
        >>> pairs = TensorDataset(torch.rand(40, 1, 8, 8), torch.arange(40) % 2)
        >>> ImageData.from_datasets(pairs, pairs, name="noise")
        ImageData('noise', train 36, val 4, test 40 images (1, 8, 8), 2 classes)
        """
        check_text(name, "name")
        check_fraction(val_fraction, "val_fraction", 0.1)
        check_seed(seed)
        train_split = _read(train, f"{name}, train")
        test_split = _read(test, f"{name}, test")
        if classes is not None and (isinstance(classes, str | Mapping) or not isinstance(classes, Iterable)):
            raise InputError(f"classes must be names, such as ('cat', 'dog'), not {shown(classes)}")
        if classes is None:
            classes = [str(label) for label in range(int(train_split.labels.max()) + 1)]
        if val is None:
            return split_off_validation(name, train_split, test_split, classes, val_fraction, seed)
        return cls(name, train_split, _read(val, f"{name}, val"), test_split, tuple(classes))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every image, label and class name of the three splits."""
        parts: list[Any] = []
        for split in self._splits().values():
            shape = (len(split), *split.images.shape[1:])
            parts += [TensorBlocks(split.images.dtype, shape, split.blocks()), split.labels]
        return fingerprint(list(self.classes), *parts)

    def _splits(self) -> dict[str, Split]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(split)}" for part, split in self._splits().items())
        classes = number_of(len(self.classes), "class")
        return f"ImageData('{self.name}', {sizes} images {self.input_shape}, {classes})"

    def _repr_html_(self) -> str:
        channels, height, width = self.input_shape
        sizes = {part: number_of(len(split), "image") for part, split in self._splits().items()}
        more = len(self.classes) - _SHOWN_CLASSES
        rows = sizes | {
            "image": f"{channels} × {height} × {width}",
            "classes": f"{len(self.classes)}, of which the first {_SHOWN_CLASSES} are shown"
            if more > 0
            else str(len(self.classes)),
        }
        if len(self.train) == 0:
            few = self.test.batch(slice(_SHOWN)).x
            return facts(f"data set {self.name}", rows) + strip(few, f"the first {len(few)} test images")
        parts = []
        for label, name in enumerate(self.classes[:_SHOWN_CLASSES]):
            members = (self.train.labels == label).nonzero()[:, 0]
            examples = strip(self.train.batch(members[:3]).x, f"training images of class {name}")
            parts.append(
                (examples, f"{name}: {len(members)} train, {int((self.test.labels == label).sum())} test")
            )
        return facts(f"data set {self.name}", rows) + side_by_side(parts)


_SHOWN = 8  # images of a sample, in Jupyter
_SHOWN_CLASSES = 12  # by their pictures, in Jupyter


def split_off_validation(
    name: str, train: Split, test: Split, classes: Sequence[str], val_fraction: float, seed: int
) -> ImageData:
    """Cut a stratified validation split of `val_fraction` from the training images.

    Raises
    ------
    InputError
        If no training image of a class would be left.
    """
    check_fraction(val_fraction, "val_fraction", 0.1)
    count = max(1, round(val_fraction * len(train)))
    order = stratified_order(train.labels, seed, "validation")
    kept, held_out = order[count:].sort().values, order[:count].sort().values
    for label in train.labels[held_out].unique().tolist():
        if 0 <= label < len(classes) and not (train.labels[kept] == label).any():
            number = number_of(int((train.labels == label).sum()), "image")
            raise InputError(
                f"data set '{name}': class '{classes[label]}' has {number} for training, and the validation "
                "split takes all of them; add some, or give validation images of your own"
            )
    return ImageData(name, train.select(kept), train.select(held_out), test, tuple(classes))


def _check_split(label: str, split: Split, num_classes: int) -> None:
    images, labels = split.images, split.labels
    if images.ndim != 4 or 0 in images.shape or images.dtype not in (torch.uint8, torch.float32):
        raise InputError(
            f"{label}: images must be uint8, or float32 in [0, 1], of the shape (N, C, H, W) with N ≥ 1, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    channels, _, width = images.shape[1:]
    if width in (1, 3, 4) and channels not in (1, 3, 4):
        raise InputError(
            f"{label}: images of the shape {tuple(images.shape[1:])} have their channels last, it seems; "
            "put them first: image.transpose(2, 0, 1) of an array, image.permute(2, 0, 1) of a tensor"
        )
    count = len(split.rows) if isinstance(split, MappedSplit) else len(images)
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise InputError(
            f"{label}: labels must be int64 of the shape ({count},), not {labels.dtype} {tuple(labels.shape)}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise InputError(
            f"{label}: labels must be in 0 … {num_classes - 1}, but label {first} is {int(labels[first])}"
        )
    if images.dtype == torch.float32 and not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(f"{label}: floating point images must lie in [0, 1]; scale them, or pass uint8")


def _read(dataset: Dataset[Any] | DataLoader[Any], label: str) -> Split:
    if isinstance(dataset, DataLoader):
        x, given, _ = read_sample(dataset)
        images = x.float()
        numbers = (
            None
            if given is None
            else [as_label(each, f"{label}: the label of item {i}") for i, each in enumerate(given)]
        )
    else:
        pictures, numbers, _ = read_items(dataset, label)
        images = torch.stack(pictures)
    if numbers is None:
        raise InputError(f"{label}: items must be pairs (image, label); these have no labels")
    return Split(images, torch.tensor(numbers))
