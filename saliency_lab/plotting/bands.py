"""Curves with bands, one per model, such as the output as pixels are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import CHART_WIDTH, chart, head, legend, looks, percent_ticks, shade, styled

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Positions (K,), means, lower and upper ends."""


@styled
def bands(
    curves: Mapping[str, Band],
    *,
    seeds: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    percent: tuple[bool, bool] = (False, False),
    title: str | None = None,
    note: str | None = None,
    width: float = CHART_WIDTH,
    among: Sequence[str] | None = None,
) -> Figure:
    """Draw means as lines and their intervals as bands.

    Parameters
    ----------
    curves : mapping of name to (positions, means, low, high), each (K,)
    seeds : mapping of name to sequence of (positions, values), optional
        One thin line per training seed, where a model has no common mean.
    xlabel, ylabel : str
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
        If there is nothing to draw.
    """
    seeds = seeds or {}
    if not curves and not seeds:
        raise InputError("curves must hold at least one model's")
    for name, parts in curves.items():
        shapes = {np.shape(part) for part in parts}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise InputError(f"positions, means and both ends of '{name}' must have one shape (K,): {shapes}")
    fig, ax = chart(width, max(0.57 * width, 2.2))
    look = looks(list(among or [*curves, *seeds]))
    for i, (name, (at, mean, low, high)) in enumerate(curves.items()):
        ax.fill_between(at, low, high, color=look[name].colour, alpha=shade(len(curves)), linewidth=0)
        apart = max(1, len(at) // 6)  # marks of neighbouring lines stand at different places
        ax.plot(
            at, mean, look[name].stroke, marker=look[name].marker, markevery=(i % apart, apart),
            color=look[name].colour, clip_on=False,
        )  # fmt: skip
    for name, lines in seeds.items():
        for at, values in lines:
            ax.plot(at, values, look[name].stroke, color=look[name].colour, linewidth=0.9, label="_seeds")
    ax.grid(True)
    ax.margins(x=0)
    places = [at for at, *_ in curves.values()] + [at for lines in seeds.values() for at, _ in lines]
    if all((np.mod(at, 1) == 0).all() for at in places):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, in_percent in zip((ax.xaxis, ax.yaxis), percent, strict=True):
        if in_percent:
            percent_ticks(axis)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    head(ax, title, note)
    legend(fig, {name: look[name] for name in [*curves, *seeds]})
    return fig
