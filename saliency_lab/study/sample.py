"""The images that a study looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.errors import InputError
from saliency_lab._common.provenance import fingerprint


@dataclass(frozen=True, eq=False)
class Sample:
    """Images `x` (N, C, H, W), labels `y` (N,) and, if known, where the evidence is: `masks` (N, 1, H, W)."""

    x: Tensor
    y: Tensor
    masks: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What there is, by name."""
        given = {"x": self.x, "y": self.y, "masks": self.masks}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    @property
    def fingerprint(self) -> str:
        """Hash of everything in it."""
        return fingerprint(*self.tensors.values())

    def first(self, count: int) -> Sample:
        """Return the first `count` images."""
        return replace(self, **{name: tensor[:count] for name, tensor in self.tensors.items()})


def read_sample(given: Sample | Sequence[Tensor]) -> Sample:
    """Return the images, labels and, if there are any, masks that a user gave.

    Raises
    ------
    InputError
        If they are not what they should be.
    """
    if isinstance(given, Sample):
        return given
    if isinstance(given, Tensor) or len(given) not in (2, 3):
        raise InputError(
            "sample must be images and labels, as data.test.sample(256) returns them: (x, y); or images, "
            "labels and masks, as data.test.located(256) returns them"
        )
    x, y, *masks = given
    check_images(x)
    if masks and tuple(masks[0].shape) != (len(x), 1, *x.shape[2:]):
        raise InputError(
            f"masks must be {(len(x), 1, *x.shape[2:])}, true where the evidence for the label is, not "
            f" {tuple(masks[0].shape)}"
        )
    return Sample(x, check_labels(y, len(x)), *masks)
