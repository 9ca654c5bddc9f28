"""Curves with bands, one a model, such as the output as pixels are removed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import SCREEN_WIDTH, figure, looks, shade, styled

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Positions (K,), means, lower and upper ends."""


@styled
def bands(
    curves: Mapping[str, Band],
    *,
    xlabel: str = "",
    ylabel: str = "",
    share: bool = False,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """Draw means as lines and their intervals as bands, named in a legend in their order of height.

    Parameters
    ----------
    curves : mapping of name to (positions, means, low, high), each (K,)
    xlabel, ylabel : str
    share : bool
        The positions are shares; write them in percent.
    title, note : str, optional
        Above the panel, on the left and on the right.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    if not curves:
        raise InputError("curves must hold at least one model's")
    fig = figure(0.7 * SCREEN_WIDTH, 4.0)
    ax = fig.subplots()
    look = looks(list(curves))
    lines = {}
    for name, (at, mean, low, high) in curves.items():
        ax.fill_between(at, low, high, color=look[name].colour, alpha=shade(len(curves)), linewidth=0)
        (lines[name],) = ax.plot(at, mean, color=look[name].colour, linestyle=look[name].stroke)
    ax.grid(True)
    ax.margins(x=0)
    if share:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if title:
        ax.set_title(title, loc="left")
    if note:
        ax.set_title(note, loc="right", fontsize=8, color="#606060")
    order = sorted(curves, key=lambda name: float(np.mean(curves[name][1])), reverse=True)
    fig.legend([lines[name] for name in order], order, loc="outside right upper")
    return fig
