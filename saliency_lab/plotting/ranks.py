"""The critical-difference diagram: mean ranks, and bars over those that do not differ significantly."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import PALETTE, SCREEN_WIDTH, figure, styled

_GAP = 6.0
"""Points between a line and its label."""


@styled
def critical_difference(
    ranks: Mapping[str, float], critical: float, *, title: str | None = None, note: str | None = None
) -> Figure:
    """Draw mean ranks on a line, 1 (the best) at the left; bars join those less than `critical` apart.

    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.

    Parameters
    ----------
    ranks : mapping of name to mean rank
    critical : float
        The critical difference, in ranks.
    title, note : str, optional
        Above and below the diagram.

    Raises
    ------
    InputError
        If there are fewer than two names.
    """
    if len(ranks) < 2:
        raise InputError("a critical-difference diagram needs two names or more")
    order = sorted(ranks, key=lambda name: ranks[name])
    groups = _groups([ranks[name] for name in order], critical)
    levels = _levels(groups)
    half = (len(order) + 1) // 2
    step, top = 0.32, 0.45
    low = -0.22 * max(levels, default=-1) - 0.37
    longest = max(len(name) for name in order)
    fig = figure(0.8 * SCREEN_WIDTH + 0.17 * max(0, longest - 20), 1.1 + top + step * half - low * 0.9)
    ax = fig.subplots()
    ends = (1.0, float(len(order)))
    ax.hlines(0, *ends, color="#404040", linewidth=1)
    for tick in range(1, len(order) + 1):
        ax.vlines(tick, 0, 0.08, color="#404040", linewidth=1)
        ax.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=9)
    margin = 0.04 * (ends[1] - ends[0])
    for i, name in enumerate(order):
        left = i < half
        row = i if left else len(order) - 1 - i
        depth = low - step * (row + 1)
        side = ends[0] - margin if left else ends[1] + margin
        ax.plot([ranks[name], ranks[name], side], [0, depth, depth], color="#808080", linewidth=0.9)
        ax.plot(ranks[name], 0, "o", color=PALETTE[0], markersize=6, zorder=3)
        text = f"{name} {ranks[name]:.2f}" if left else f"{ranks[name]:.2f} {name}"
        _write(ax, text, (side, depth), ha="right" if left else "left")
    for level, (first, last) in zip(levels, groups, strict=True):
        height = -0.15 - 0.22 * level
        ax.hlines(
            height, ranks[order[first]] - margin / 3, ranks[order[last]] + margin / 3,
            color=PALETTE[1], linewidth=4, capstyle="round",
        )  # fmt: skip
    ax.plot(
        [ends[0], ends[0] + critical], [top, top], color=PALETTE[1], linewidth=1.5, marker="|", markersize=9
    )
    _write(ax, f"critical difference {critical:.2f}", (ends[0] + critical, top), fontsize=9)
    if title:
        ax.set_title(title, loc="left")
    bottom = low - step * (half + 0.65)
    if note:
        ax.text(ends[0], bottom, note, ha="left", va="top", fontsize=8, color="#606060")
    ax.set_ylim(bottom - 0.1, top + 0.2)
    ax.axis("off")
    return fig


def _write(ax: Axes, text: str, at: tuple[float, float], *, ha: str = "left", fontsize: float = 10) -> None:
    """Write next to the end of a line; the gap is an offset, as an SVG drops spaces at the ends of a text."""
    gap = _GAP if ha == "left" else -_GAP
    ax.annotate(text, at, (gap, 0), textcoords="offset points", ha=ha, va="center", fontsize=fontsize)


def _groups(ranks: list[float], critical: float) -> list[tuple[int, int]]:
    """Return the longest runs of ascending ranks that span no more than `critical`.

    >>> _groups([1.0, 1.5, 2.0, 3.5], 0.6)
    [(0, 1), (1, 2)]
    """
    runs: list[tuple[int, int]] = []
    for first, value in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - value <= critical)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def _levels(groups: list[tuple[int, int]]) -> list[int]:
    """Return rows for the bars, so that no two in one row touch.

    >>> _levels([(0, 2), (1, 3), (4, 5)])
    [0, 1, 0]
    """
    ends: list[int] = []
    levels = []
    for first, last in groups:
        level = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[level : level + 1] = [last]
        levels.append(level)
    return levels
