"""2×2 mosaics in which one quadrant alone holds the evidence for the label.

The first half of the classes are targets, the rest distractors. One quadrant shows a target and the other
three show distractors, so that a network that tells the target's class must look into its quadrant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saliency_lab._common.arguments import check_instance
from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import generator
from saliency_lab.data.images import ImageData, Split
from saliency_lab.data.located import LocatedSplit


def make_mosaics(data: ImageData, *, seed: int = 0) -> ImageData:
    """Mosaics of any data set of at least four classes: images twice as high and wide, with masks.

    Each image of a target class becomes the target of one mosaic, in a quadrant drawn by `seed`; its
    distractors are drawn from the same split.

    Raises
    ------
    InputError
        If there are fewer than four classes, or a split holds no distractor.

    Examples
    --------
    >>> from saliency_lab.data import load_dataset
    >>> mosaics = make_mosaics(load_dataset("digits"))
    >>> mosaics.input_shape, mosaics.classes
    ((1, 56, 56), ('0', '1', '2', '3', '4'))
    """
    check_instance(data, ImageData, "data", "a saliency_lab.ImageData, as load_dataset returns it")
    check_seed(seed)
    targets = len(data.classes) // 2
    if targets < 2:
        raise InputError(f"mosaics need at least four classes, and '{data.name}' has {len(data.classes)}")
    parts = {"train": data.train, "val": data.val, "test": data.test}
    splits = {part: _mosaics(split, targets, seed, part) for part, split in parts.items()}
    return ImageData(f"mosaic of {data.name}", classes=data.classes[:targets], **splits)


def read_mosaics(
    train: Split, test: Split, classes: tuple[str, ...]
) -> tuple[LocatedSplit, LocatedSplit, tuple[str, ...]]:
    """Mosaics of a data set's images, by a fixed seed: training part, test part, classes."""
    targets = len(classes) // 2
    return _mosaics(train, targets, 0, "train"), _mosaics(test, targets, 0, "test"), classes[:targets]


def _mosaics(split: Split, targets: int, seed: int, part: str) -> LocatedSplit:
    source = generator(seed, "mosaic", part)
    of_target = (split.labels < targets).nonzero()[:, 0]
    others = (split.labels >= targets).nonzero()[:, 0]
    if not len(others):
        raise InputError(f"mosaics: the {part} split holds no image of a class that is not a target")
    count = len(of_target)
    drawn = others[torch.randint(len(others), (count, 4), generator=source)]
    quadrant = torch.randint(4, (count,), generator=source)
    drawn[torch.arange(count), quadrant] = of_target
    tiles = split.images[drawn]  # (N, 4, C, H, W)
    images = torch.cat(
        [torch.cat([tiles[:, 0], tiles[:, 1]], 3), torch.cat([tiles[:, 2], tiles[:, 3]], 3)], 2
    )
    height, width = images.shape[2:]
    return LocatedSplit(images, split.labels[of_target], quadrant_masks(quadrant, (height, width)))


def quadrant_masks(quadrant: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks, bool (N, 1, H, W), of quadrants 0 … 3 (upper left, upper right, lower left, lower right)."""
    rows = torch.arange(size[0])[:, None] >= size[0] // 2
    columns = torch.arange(size[1])[None] >= size[1] // 2
    return ((2 * rows + columns.long()) == quadrant[:, None, None])[:, None]
