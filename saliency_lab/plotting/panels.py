"""Grids of picture panels at fixed places, so that many panels need no layout engine."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from saliency_lab.plotting.style import ALERT, INK, bare, figure, text_width, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL, LARGE = 1.15, 2.0
"""Width of a panel in inches: of an image of at most 64 pixels a side, and of a photograph."""

PHOTOGRAPH = 64
"""Images with a longer side than this are drawn larger, and their maps as overlays."""

_GAP = 0.06
_LINE = 0.17
_TITLE = 10.0
_BELOW = 8.0
_BAR = 1.15


@dataclass(frozen=True)
class Caption:
    """A line below a panel; one that is `wrong` is drawn in the colour of an alert."""

    text: str
    wrong: bool = False


@dataclass(frozen=True)
class Panels:
    """A figure with its panels, `axes[row][column]`, and places for colour bars at its right."""

    figure: Figure
    axes: list[list[Axes]]
    bars: list[Axes]


def is_photograph(shape: Sequence[int]) -> bool:
    """Return whether an image (…, H, W) is larger than 64 pixels."""
    return max(shape[-2:]) > PHOTOGRAPH


def panels(
    titles: Sequence[Sequence[str]],
    size: tuple[int, int],
    *,
    cell: float | None = None,
    labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[Caption | None]] | None = None,
    title: str | None = None,
    bars: int = 1,
) -> Panels:
    """Make the panels of images with `size` (height, width) in pixels.

    Parameters
    ----------
    titles : sequence of rows of texts
        One text per panel, above it; one row of titles alone names the columns. Rows may be shorter.
    size : (int, int)
        Height and width of the images, in pixels.
    cell : float, optional
        Width of a panel in inches, at least; by default larger for photographs.
    labels : sequence of str, optional
        The names of the rows, at their left.
    captions : rows of captions, optional
        One per panel, below it.
    title : str, optional
        Above the figure.
    bars : int
        The number of colour bars.
    """
    rows = len(titles) if labels is None and captions is None else len(labels or captions or ())
    least = cell or (LARGE if is_photograph(size) else SMALL)
    wrapped = [[wrap(text, max(14, int(least / 0.08))) for text in row] for row in titles]
    named = [*wrapped, *([[]] * (rows - len(wrapped)))]
    lines = [text for row in wrapped for name in row for text in name.split("\n")]
    width = max(
        least,
        max((text_width(line, _TITLE) for line in lines), default=0.0) + 0.04,
    )
    height = width * size[0] / size[1]
    below = [[_wrapped(each, width) for each in row] for row in captions or [[]] * rows]
    columns = max(len(row) for row in titles)
    left = 0.08 + max(
        (text_width(line, _TITLE) for each in labels or () for line in each.split("\n")), default=0.0
    )
    left += 0.08 if labels else 0.0
    right = _BAR * bars + 0.1
    across = left + columns * (width + _GAP) + right
    heading = heading_lines(title, across)
    above = 0.06 + (0.22 * len(heading) + 0.1 if heading else 0.0)
    heads = [0.1 + _LINE * max((t.count("\n") + 1 for t in row), default=0) if row else 0.0 for row in named]
    feet = [
        _GAP + (0.05 + 0.14 * max((len(t) for t, _ in row), default=0) if any(t for t, _ in row) else 0.0)
        for row in below
    ]
    total = max(
        above + sum(heads) + rows * height + sum(feet) + 0.08, above + heads[0] + 2.05 if bars else 0.0
    )
    fig = figure(across, total, layout=None)
    axes: list[list[Axes]] = []
    top = total - above
    for row in range(rows):
        count = len(named[row]) or columns
        top -= heads[row]
        line = []
        for column in range(count):
            x = left + column * (width + _GAP)
            ax = fig.add_axes((x / across, (top - height) / total, width / across, height / total))
            bare(ax)
            if named[row]:
                ax.set_title(named[row][column], fontsize=_TITLE)
            if below[row] and column < len(below[row]):
                text, wrong = below[row][column]
                ax.set_xlabel("\n".join(text), fontsize=_BELOW, color=ALERT if wrong else INK, labelpad=2)
            line.append(ax)
        if labels is not None:
            line[0].set_ylabel(labels[row], rotation=0, ha="right", va="center", labelpad=6, fontsize=_TITLE)
        axes.append(line)
        top -= height + feet[row]
    if heading:
        fig.suptitle("\n".join(heading), y=1 - 0.06 / total, va="top")
    places = []
    body = total - above - heads[0] - 0.08
    length = min(body, 3.2)
    for bar in range(bars):
        x = left + columns * (width + _GAP) + 0.1 + bar * _BAR
        middle = (total - above - heads[0] + 0.08) / 2
        place = (x / across, (middle - length / 2) / total, 0.12 / across, length / total)
        places.append(fig.add_axes(place, label="<colorbar>"))
    return Panels(fig, axes, places)


def heading_lines(title: str | None, width: float) -> list[str]:
    """Break a title into lines that fit into so many inches."""
    return textwrap.wrap(title or "", max(12, int(width / 0.105)))


def _wrapped(caption: Caption | None, width: float) -> tuple[list[str], bool]:
    if caption is None:
        return [], False
    return textwrap.wrap(caption.text, max(9, int(width / 0.063))), caption.wrong
