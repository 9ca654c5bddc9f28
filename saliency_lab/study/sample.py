"""The images that a study looks at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from saliency_lab._common import samples
from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.errors import InputError
from saliency_lab._common.fingerprints import fingerprint


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
    def images(self) -> str:
        """Hash of images and labels: what the cells of a study depend on, but for metrics of localisation."""
        return fingerprint(self.x, self.y)

    @property
    def fingerprint(self) -> str:
        """Hash of everything in it."""
        return fingerprint(*self.tensors.values())

    def first(self, count: int) -> Sample:
        """Return the first `count` images."""
        return replace(self, **{name: tensor[:count] for name, tensor in self.tensors.items()})


def read_sample(given: samples.Images) -> Sample:
    """Return the images, labels and, if there are any, masks that a user gave.

    Raises
    ------
    InputError
        If they are not what they should be.
    """
    if isinstance(given, Sample):
        return given
    x, y, masks = samples.read_sample(given)
    if y is None:
        raise InputError(
            "sample must be images and labels, as data.test.sample(256) returns them: (x, y); or images, "
            "labels and masks, as data.test.located(256) returns them; or a DataLoader or data set of these"
        )
    check_images(x)
    masks = None if masks is None else _checked(masks, x)
    return Sample(x.detach(), check_labels(y, len(x)), masks)


def _checked(masks: Tensor, x: Tensor) -> Tensor:
    """Masks as bool."""
    shape = (len(x), 1, *x.shape[2:])
    if not isinstance(masks, Tensor) or tuple(masks.shape) != shape:
        found = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(
            f"masks must be a Tensor {shape}, true where the evidence for the label is, not {found}"
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise InputError("masks must hold 0 and 1 (or False and True) only")
    return masks != 0  # a copy: the caller's may change
