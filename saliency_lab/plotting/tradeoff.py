"""One measure against another, one point per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import (
    CHART_WIDTH,
    INK,
    NARROW,
    axis_label,
    chart,
    head,
    legend,
    looks,
    percent_ticks,
    styled,
)

Estimate = tuple[float, float, float]
"""A value and the ends of its interval."""

NAMED = 6
"""The largest number of points that are named in the panel; more names would cover one another."""

_ROOM = 0.02
"""Space beyond 0 and 100 % for the marks at the ends."""


@styled
def tradeoff(
    points: Mapping[str, tuple[Estimate, Estimate]],
    *,
    marks: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    better: tuple[str, str] = ("neither", "neither"),
    percent: tuple[bool, bool] = (False, False),
    title: str | None = None,
    note: str | None = None,
    width: float = CHART_WIDTH,
    among: Sequence[str] | None = None,
) -> Figure:
    """Draw one point per model with its interval in both directions, and name it there or in a legend.

    Parameters
    ----------
    points : mapping of name to a pair of (value, low, high)
        Along the horizontal and the vertical axis.
    marks : mapping of name to a pair of sequences, optional
        Small marks behind the points, such as one per training seed; a name without a point has these alone.
    xlabel, ylabel : str
    better : pair of "higher", "lower" or "neither"
        Which way is better along x and along y; written at the axes.
    percent : pair of bool
        Write the axis in percent.
    title, note : str, optional
        Above the panel.
    width : float
        Inches.
    among : sequence of str, optional
        All names of the study, of which these are a part, so that each keeps its colour and marker.

    Raises
    ------
    InputError
        If there is nothing to draw, or `points` contains a value that is not finite.
    """
    at = {name: np.array(pair, dtype=float) for name, pair in points.items()}
    if not at and not marks:
        raise InputError("points must hold at least one model")
    for name, pair in at.items():
        if pair.shape != (2, 3) or not np.isfinite(pair[:, 0]).all():
            raise InputError(
                f"the point of '{name}' must be two finite triples (value, low, high): {pair.tolist()}"
            )
    fig, ax = chart(width, max(0.65 * width, 2.4))
    look = looks(list(among or dict.fromkeys([*at, *(marks or {})])))
    for name, (xs, ys) in (marks or {}).items():
        ax.plot(xs, ys, look[name].marker, color=look[name].colour, markersize=4, alpha=0.45, zorder=2)
    for name, ((x, x_low, x_high), (y, y_low, y_high)) in at.items():
        ax.errorbar(
            x,
            y,
            xerr=[[x - x_low], [x_high - x]],
            yerr=[[y - y_low], [y_high - y]],
            fmt=look[name].marker,
            color=look[name].colour,
            markersize=5 if width < NARROW else 8,
            elinewidth=1.4,
            zorder=3,
        )
    ax.margins(0.16, 0.14)
    ax.grid(True)
    if percent[0]:
        percent_ticks(ax.xaxis)
        ax.set_xlim(max(ax.get_xlim()[0], -_ROOM), min(ax.get_xlim()[1], 1 + _ROOM))
    if percent[1]:
        percent_ticks(ax.yaxis)
        ax.set_ylim(max(ax.get_ylim()[0], -_ROOM), min(ax.get_ylim()[1], 1 + _ROOM))
    ax.set(
        xlabel=axis_label(xlabel, better[0]),
        ylabel=axis_label(ylabel, better[1]),
    )
    head(ax, title, note)
    names = list(dict.fromkeys([*at, *(marks or {})]))
    if len(names) > NAMED or width < NARROW or len(names) > len(at):
        legend(fig, {name: look[name] for name in look if name in names}, lines=False)
    else:
        _name_points(ax, {name: pair[:, 0] for name, pair in at.items()})
    return fig


def _name_points(ax: Axes, at: Mapping[str, np.ndarray]) -> None:
    """Write each name in the corner of its cross that is farthest from the other points and names."""
    ax.figure.canvas.draw()  # fixes the transform from data to pixels
    pixels = {name: ax.transData.transform(point) for name, point in at.items()}
    taken = dict(pixels)
    for name, here in pixels.items():
        width = 8.0 * len(name)
        best, best_space, best_middle = (1, 1), -np.inf, here
        for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            middle = here + np.array([dx * (10 + width / 2), dy * 14.0])
            others = [place for other, place in taken.items() if other != name]
            space = min((float(np.hypot(*((middle - place) / (2, 1)))) for place in others), default=1e3)
            if not ax.bbox.contains(here[0] + dx * (10 + width), middle[1]):
                space -= 1e4
            if space > best_space:
                best, best_space, best_middle = (dx, dy), space, middle
        taken[f"{name}'s name"] = best_middle
        dx, dy = best
        ax.annotate(
            name,
            (float(at[name][0]), float(at[name][1])),
            (7 * dx, 5 * dy),
            textcoords="offset points",
            color=INK,
            ha="left" if dx > 0 else "right",
            va="bottom" if dy > 0 else "top",
        )
