"""A split that knows where in each image the evidence for its label is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from saliency_lab.data.images import Split, check_indices


class LocatedSample(NamedTuple):
    """Images (N, C, H, W), labels (N,), and masks (N, 1, H, W), true where the evidence is."""

    x: Tensor
    y: Tensor
    masks: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LocatedSplit(Split):
    """A `Split` with `masks`, bool (N, 1, H, W), for localisation metrics."""

    masks: Tensor

    def select(self, indices: Tensor) -> LocatedSplit:
        """Return the split of the images at `indices`."""
        indices = check_indices(indices, len(self))
        return LocatedSplit(self.images[indices], self.labels[indices], self.masks[indices])

    def located(self, n: int, seed: int = 0) -> LocatedSample:
        """Draw the images that `sample(n, seed)` draws, with their masks.

        Raises
        ------
        InputError
            If n < 1 or the split holds fewer than n images.
        """
        rows = self.draw(n, seed)
        return LocatedSample(*self.batch(rows), self.masks[rows].clone())
