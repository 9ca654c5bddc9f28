"""Images whose label depends on a small planted patch, and a network that reads nothing else.

Background pixels are below 1/2. One cell of 8×8 pixels holds the pattern of the label's class: half of its
pixels are above 1/2. `PlantedNet` reads how far a pixel is above 1/2, saturating at 0.7, and sums that with
the weights of each class's pattern. Its logits are exactly additive in the pixels, so the true map is known;
and the gradient, zero where a pixel is saturated, is not it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saliency_lab._common.seeding import generator
from saliency_lab.data.located import LocatedSplit

SIZE, CELL, CLASSES = 24, 8, 4


def _patterns() -> Tensor:
    """Weights (K, 8, 8): positive where a class's pattern is bright, negative elsewhere."""
    source = generator(0, "planted patterns")
    weights = torch.zeros(CLASSES, CELL * CELL)
    for row in weights:
        row[torch.randperm(CELL * CELL, generator=source)] = torch.cat(
            [torch.linspace(0.05, 0.35, CELL * CELL // 2), torch.full((CELL * CELL // 2,), -0.05)]
        )
    return weights.reshape(CLASSES, CELL, CELL)


class PlantedNet(nn.Module):
    """f_k(x) = Σ over cells of pattern k · brightness(x): logits (N, 4) of images (N, 1, 24, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Hardtanh(0.0, 1.0)
        self.match = nn.Conv2d(1, CLASSES, CELL, stride=CELL, bias=False)
        with torch.no_grad():
            self.match.weight.copy_(_patterns()[:, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return self.match(self.brightness((x - 0.5) / 0.2)).sum((2, 3))


def true_map(x: Tensor, y: Tensor) -> Tensor:
    """What each pixel of `x` (N, 1, 24, 24) adds to the logit of `y` in `PlantedNet`, and removal takes away.

    >>> split = read_planted()[1]
    >>> x, y = split.sample(5)
    >>> total = true_map(x, y).sum((1, 2, 3))
    >>> bool(torch.allclose(total, PlantedNet()(x).gather(1, y[:, None])[:, 0], atol=1e-5))
    True
    """
    weights = _patterns().to(x)[y].repeat(1, SIZE // CELL, SIZE // CELL)[:, None]
    return weights * ((x - 0.5) / 0.2).clamp(0, 1)


def read_planted() -> tuple[LocatedSplit, LocatedSplit, tuple[str, ...]]:
    """2,000 training and 500 test images by a fixed seed; the masks hold the pattern's bright pixels."""
    return _planted(2000, "train"), _planted(500, "test"), tuple(f"pattern {k}" for k in range(CLASSES))


def _planted(count: int, part: str) -> LocatedSplit:
    source = generator(0, "planted", part)
    images = 0.45 * torch.rand(count, 1, SIZE, SIZE, generator=source)
    labels = torch.arange(count) % CLASSES
    across = SIZE // CELL
    cell = torch.randint(across * across, (count,), generator=source)
    here = torch.nn.functional.one_hot(cell, across * across).reshape(count, 1, across, across).bool()
    here = here.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    bright = (_patterns() > 0)[labels].repeat(1, across, across)[:, None] & here
    images = torch.where(bright, 0.55 + 0.45 * torch.rand(images.shape, generator=source), images)
    return LocatedSplit(images, labels, bright)
