"""Accuracy against the strength of an attack, many models in one panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import SCREEN_WIDTH, Look, figure, looks, shade, styled


class HasTable(Protocol):
    """A curve that can be read as a table, such as a RobustnessCurve."""

    def table(self) -> pd.DataFrame:
        """One row a point of the curve."""
        ...


@styled
def robustness(
    curves: Mapping[str, HasTable | pd.DataFrame],
    *,
    along: str = "eps",
    title: str | None = None,
    xlabel: str | None = None,
    level: float = 0.95,
) -> Figure:
    """Draw robust accuracy against ε: a line and its interval's band a model, named at the line's end.

    Parameters
    ----------
    curves : mapping of str to RobustnessCurve or DataFrame
        Tables with the columns `along`, accuracy, low, high (shares in [0, 1]); `n` is shown if it is there.
    along : str
        The column on the horizontal axis: "eps", or "steps".
    title : str, optional
        Above the panel, on the left.
    xlabel : str, optional
        In place of the axis label of `along`.
    level : float
        Of the tables' intervals, as the figure says it.

    Raises
    ------
    InputError
        If `curves` is empty or a table lacks a column.
    """
    if not curves:
        raise InputError("curves must hold at least one model's table")
    tables = {name: _table(name, curve, along) for name, curve in curves.items()}
    fig = figure(0.7 * SCREEN_WIDTH, 4.2)
    ax = fig.subplots()
    look = looks(list(tables))
    for name, table in tables.items():
        at = table[along].to_numpy(float)
        ax.fill_between(
            at, table["low"], table["high"], color=look[name].colour, alpha=shade(len(tables)), linewidth=0
        )
        ax.plot(
            at, table["accuracy"], look[name].stroke, marker=look[name].marker, color=look[name].colour,
            label=name, clip_on=False,
        )  # fmt: skip
    right = max(table[along].max() for table in tables.values())
    left = min(table[along].min() for table in tables.values())
    ax.set_xlim(left, right if right > left else left + 1)
    if along == "steps":
        ax.set_xscale("symlog", linthresh=1)
        ticks = sorted({step for table in tables.values() for step in table[along]})
        ax.set_xticks(ticks, [f"{step:g}" for step in ticks])
        ax.minorticks_off()
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.grid(axis="y")
    names = {"eps": "perturbation size ε (image range 0 to 1)", "steps": "steps of the attack"}
    ax.set(xlabel=xlabel or names.get(along, along), ylabel="accuracy under attack")
    if title:
        ax.set_title(title, loc="left")
    ends = {name: float(table["accuracy"].iloc[-1]) for name, table in tables.items()}
    if len({each.colour for each in look.values()}) < len(look):
        fig.legend(loc="outside right upper", handlelength=3.5)  # a colour alone no longer tells a line
    else:
        _name_lines(ax, ends, look)
    counts = {int(table["n"].iloc[0]) for table in tables.values() if "n" in table}
    if len(counts) == 1:
        note = f"n = {counts.pop()} images; bands: {100 * level:g} % intervals"
        ax.text(1, 1.015, note, transform=ax.transAxes, ha="right", va="bottom", fontsize=8, color="#606060")
    return fig


def _table(name: str, curve: HasTable | pd.DataFrame, along: str) -> pd.DataFrame:
    table = curve if isinstance(curve, pd.DataFrame) else curve.table()
    missing = [column for column in (along, "accuracy", "low", "high") if column not in table]
    if missing or table.empty:
        problem = f"lacks the column(s) {', '.join(missing)}" if missing else "is empty"
        raise InputError(f"the table of '{name}' {problem}; a RobustnessCurve's .table() has what is needed")
    return table.sort_values(along)


def _name_lines(ax: Axes, ends: Mapping[str, float], look: Mapping[str, Look], gap: float = 0.055) -> None:
    """Write each line's name beside its last point, pushed apart so that no two overlap."""
    names = sorted(ends, key=lambda name: ends[name])
    heights = np.array([ends[name] for name in names])
    places = heights.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places -= max(0.0, places[-1] - 1.0)
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - gap)
    for name, height, place in zip(names, heights, places, strict=True):
        text = f"{name}  {height:.0%}"
        ax.annotate(
            text, (1, height), (10, (place - height) * ax.bbox.height * 72 / ax.figure.dpi),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            color=look[name].colour, va="center", ha="left", annotation_clip=False,
        )  # fmt: skip
