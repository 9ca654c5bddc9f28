"""A square table of correlations as a heat map."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab._common.text import words
from saliency_lab.plotting.style import DIVERGING, INK, figure, styled


@styled
def correlations(table: pd.DataFrame, *, label: str = "rank correlation") -> Figure:
    """Draw correlations in [−1, 1] with their numbers; undefined ones are grey.

    Parameters
    ----------
    table : DataFrame
        Square, with the same names along both sides.
    label : str
        Label of the colour bar.

    Raises
    ------
    InputError
        If the table is empty or not square.
    """
    if table.empty or list(table.index) != list(table.columns):
        raise InputError("a correlation table must be square, with the same names along both sides")
    size = len(table)
    values = table.to_numpy(float)
    side = 0.55 * size + 1.6
    fig = figure(side + 1.2, side)
    ax = fig.subplots()
    ax.set_facecolor("#E6E6E6")
    image = ax.imshow(np.ma.masked_invalid(values), cmap=DIVERGING, vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
        ax.text(
            column, row, text, ha="center", va="center", fontsize=8,
            color="white" if abs(value) > 0.6 else INK,
        )  # fmt: skip
    names = [words(str(name)) for name in table.index]
    ax.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(size), names)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    lines = "\n".join(textwrap.wrap(label, max(12, int(4.5 * size))))  # no longer than the bar
    fig.colorbar(image, ax=ax, shrink=0.7, label=lines, ticks=[-1, 0, 1])
    return fig
