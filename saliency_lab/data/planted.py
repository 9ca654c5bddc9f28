"""Images whose label depends on small planted patterns, and networks that read nothing else.

Background pixels are below 1/2. A cell of 8×8 pixels that holds a pattern has half of its pixels above 1/2.
The networks read how far a pixel is above 1/2, saturating at 0.7, so the gradient, zero where a pixel is
saturated, is not the true map. Which pixels bring about a logit is known in three variants:

- `planted`: one pattern. The logits are additive in the pixels.
- `planted_redundant`: the pattern twice, with equal pixels, of which the network reads the stronger copy.
  Either copy alone is enough, so removing one changes nothing.
- `planted_xor`: two patterns, each of one of two kinds; the label is whether their kinds differ. Neither says
  anything without the other: the logits are products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saliency_lab._common.seeding import generator
from saliency_lab.data.located import LocatedSplit

SIZE, CELL, CLASSES = 24, 8, 4
ACROSS = SIZE // CELL
GAIN = 8.0
"""Largest logit of `XorPlantedNet`."""


def _patterns() -> Tensor:
    """Weights (K, 8, 8): positive where a class's pattern is bright, negative elsewhere."""
    source = generator(0, "planted patterns")
    weights = torch.zeros(CLASSES, CELL * CELL)
    for row in weights:
        row[torch.randperm(CELL * CELL, generator=source)] = torch.cat(
            [torch.linspace(0.05, 0.35, CELL * CELL // 2), torch.full((CELL * CELL // 2,), -0.05)]
        )
    return weights.reshape(CLASSES, CELL, CELL)


def _kinds() -> Tensor:
    """Weights (8, 8) of the two kinds of XOR's patterns: positive for one, negative for the other."""
    weights = _patterns()[0].flatten()
    ranks = weights.argsort().argsort().double() % (CELL * CELL // 2)
    shares = 0.05 + 0.3 * ranks / (CELL * CELL // 2 - 1)
    return (shares * weights.sign() / shares.sum() * 2).float().reshape(CELL, CELL)


def brightness(x: Tensor) -> Tensor:
    """Return how far pixels are above 1/2, in units of 0.2, between 0 and 1."""
    return ((x - 0.5) / 0.2).clamp(0, 1)


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


class RedundantPlantedNet(PlantedNet):
    """f_k(x) = the largest over cells of pattern k · brightness(x): logits (N, 4)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 4)."""
        return self.match(self.brightness((x - 0.5) / 0.2)).amax((2, 3))


class XorPlantedNet(nn.Module):
    """f_0(x) = c · Σ over pairs of cells of u·v, and f_1 = −f_0: logits (N, 2).

    u and v, in [−1, 1], are pattern · brightness of two cells: positive for one kind, negative for the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.brightness = nn.Hardtanh(0.0, 1.0)
        self.kind = nn.Conv2d(1, 1, CELL, stride=CELL, bias=False)
        with torch.no_grad():
            self.kind.weight.copy_(_kinds()[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2)."""
        kinds = self.kind(self.brightness((x - 0.5) / 0.2)).flatten(1)
        pairs = (kinds.sum(1).square() - kinds.square().sum(1)) / 2
        return GAIN * torch.stack([pairs, -pairs], 1)


def _tiled(cell: Tensor) -> Tensor:
    """Repeat cells (..., 8, 8) over the image, (..., 24, 24)."""
    return cell.repeat(*[1] * (cell.ndim - 2), ACROSS, ACROSS)


def true_map(x: Tensor, y: Tensor) -> Tensor:
    """Return what each pixel of `x` (N, 1, 24, 24) adds to the logit of `y` in `PlantedNet`.

    >>> split = read_planted()[1]
    >>> x, y = split.sample(5)
    >>> total = true_map(x, y).sum((1, 2, 3))
    >>> bool(torch.allclose(total, PlantedNet()(x).gather(1, y[:, None])[:, 0], atol=1e-5))
    True
    """
    return _tiled(_patterns().to(x)[y])[:, None] * brightness(x)


def redundant_map(x: Tensor, y: Tensor) -> Tensor:
    """Return what each pixel of `x` contributes to the logit of `y` in `RedundantPlantedNet`.

    Both copies share the logit equally, as Shapley values of the two do.
    """
    return true_map(x, y) / 2


def xor_map(x: Tensor, y: Tensor) -> Tensor:
    """Return what each pixel of `x` contributes to the logit of `y` in `XorPlantedNet`.

    A product of two cells is shared equally between them, as Shapley values of the two do, and within a cell
    by what each pixel adds to it.
    """
    parts = _tiled(_kinds().to(x)) * brightness(x)  # sum to the kind of each cell
    kinds = nn.functional.avg_pool2d(parts, CELL, divisor_override=1)
    others = (kinds.sum((2, 3), keepdim=True) - kinds).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    sign = 1 - 2 * y.to(x).view(-1, 1, 1, 1)
    return GAIN / 2 * sign * parts * others


@dataclass(frozen=True)
class Planted:
    """A variant: the network that reads the patterns, and the true map of its logits."""

    net: Callable[[], nn.Module]
    true_map: Callable[[Tensor, Tensor], Tensor]


PLANTED = {
    "planted": Planted(PlantedNet, true_map),
    "planted_redundant": Planted(RedundantPlantedNet, redundant_map),
    "planted_xor": Planted(XorPlantedNet, xor_map),
}
"""The variants by the name of their data set."""


def read_planted(variant: str = "planted") -> tuple[LocatedSplit, LocatedSplit, tuple[str, ...]]:
    """Make 2,000 training and 500 test images by a fixed seed; the masks hold the patterns' bright pixels."""
    make = {"planted": _planted, "planted_redundant": _redundant, "planted_xor": _xor}[variant]
    names = ("same kind", "different kinds") if variant == "planted_xor" else None
    return make(2000, "train"), make(500, "test"), names or tuple(f"pattern {k}" for k in range(CLASSES))


def _planted(count: int, part: str) -> LocatedSplit:
    source = generator(0, "planted", part)
    images = 0.45 * torch.rand(count, 1, SIZE, SIZE, generator=source)
    labels = torch.arange(count) % CLASSES
    cell = torch.randint(ACROSS * ACROSS, (count,), generator=source)
    bright = _tiled(_patterns() > 0)[labels][:, None] & _whole_cells(cell[:, None])
    images = torch.where(bright, 0.55 + 0.45 * torch.rand(images.shape, generator=source), images)
    return LocatedSplit(images, labels, bright)


def _redundant(count: int, part: str) -> LocatedSplit:
    source = generator(0, "planted_redundant", part)
    labels = torch.arange(count) % CLASSES
    cells = _two_cells(count, source)
    bright = _tiled(_patterns() > 0)[labels][:, None] & _whole_cells(cells)
    light = 0.55 + 0.45 * torch.rand(count, 1, CELL, CELL, generator=source)  # the same in both copies
    images = torch.where(bright, _tiled(light), 0.45 * torch.rand(bright.shape, generator=source))
    return LocatedSplit(images, labels, bright)


def _xor(count: int, part: str) -> LocatedSplit:
    source = generator(0, "planted_xor", part)
    cells = _two_cells(count, source)
    kinds = torch.randint(2, (count, 2), generator=source)
    positive = _tiled(_kinds() > 0)
    bright = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.bool)
    for cell, kind in zip(cells.T, kinds.T, strict=True):
        bright |= _whole_cells(cell[:, None]) & (positive == (kind == 0).view(-1, 1, 1, 1))
    light = 0.55 + 0.45 * torch.rand(bright.shape, generator=source)
    images = torch.where(bright, light, 0.45 * torch.rand(bright.shape, generator=source))
    return LocatedSplit(images, (kinds[:, 0] != kinds[:, 1]).long(), bright)


def _two_cells(count: int, source: torch.Generator) -> Tensor:
    """Draw two different cells (count, 2) for each image."""
    return torch.rand(count, ACROSS * ACROSS, generator=source).argsort(dim=1)[:, :2]


def _whole_cells(cells: Tensor) -> Tensor:
    """Return where the pixels of the cells (N, M) are, bool (N, 1, 24, 24)."""
    here = nn.functional.one_hot(cells, ACROSS * ACROSS).amax(1).bool().reshape(-1, 1, ACROSS, ACROSS)
    return here.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
