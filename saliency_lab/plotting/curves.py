"""Accuracy against the strength of an attack, many models in one panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import (
    CHART_WIDTH,
    INK,
    NARROW,
    chart,
    head,
    legend,
    looks,
    percent_ticks,
    settle,
    shade,
    styled,
)

_TICKS = 8
"""The largest number of radii that are all named at the axis."""

_GAP = 0.055
"""Share of the panel's height that a line's name takes."""


class HasTable(Protocol):
    """A curve that can be read as a table, such as a RobustnessCurve."""

    def table(self) -> pd.DataFrame:
        """Return one row per point of the curve."""
        ...


@styled
def robustness(
    curves: Mapping[str, HasTable | pd.DataFrame],
    *,
    seeds: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    along: str = "eps",
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str = "accuracy under attack",
    note: str | None = None,
    width: float = CHART_WIDTH,
    among: Sequence[str] | None = None,
) -> Figure:
    """Draw robust accuracy against ε: one line per model, with a band for its interval.

    Lines are named at their ends, in a legend where that would be crowded.

    Parameters
    ----------
    curves : mapping of str to RobustnessCurve or DataFrame
        Tables with the columns `along`, accuracy, low, high (shares in [0, 1]), and perhaps n.
    seeds : mapping of str to sequence of (place, accuracy), optional
        One small mark per training seed, where a model has no common mean.
    along : str
        The column on the horizontal axis, such as "eps", "steps" or "fraction".
    title, note : str, optional
        Above the panel; the note, in small letters, explains the bands.
    xlabel : str, optional
        In place of the axis label of `along`.
    ylabel : str
        Label of the vertical axis.
    width : float
        Inches.
    among : sequence of str, optional
        All names of the study, of which these are a part, so that each keeps its colour and marker.

    Raises
    ------
    InputError
        If `curves` is empty or a table lacks a column.
    """
    if not curves:
        raise InputError("curves must hold at least one model's table")
    tables = {name: _table(name, curve, along) for name, curve in curves.items()}
    fig, ax = chart(width, max(0.6 * width, 2.2))
    look = looks(list(among or tables))
    for name, table in tables.items():
        at = table[along].to_numpy(float)
        ax.fill_between(
            at, table["low"], table["high"], color=look[name].colour, alpha=shade(len(tables)), linewidth=0
        )
        ax.plot(
            at, table["accuracy"], look[name].stroke, marker=look[name].marker, color=look[name].colour,
            label=name, clip_on=False,
        )  # fmt: skip
    for name, marks in (seeds or {}).items():
        places, accuracies = zip(*marks, strict=True)
        ax.plot(
            places, accuracies, look[name].marker, color=look[name].colour, fillstyle="none", markersize=4,
            linestyle="", label="_seeds", clip_on=False,
        )  # fmt: skip
    right = max(table[along].max() for table in tables.values())
    left = min(table[along].min() for table in tables.values())
    ax.set_xlim(left, right if right > left else left + 1)
    if along == "steps":
        ax.set_xscale("symlog", linthresh=1)
    measured = sorted({float(place) for table in tables.values() for place in table[along]})
    ax.set_ylim(0, 1)
    percent_ticks(ax.yaxis)
    ax.grid(axis="y")
    names = {"eps": "perturbation size ε (image range 0 to 1)", "steps": "steps of the attack"}
    ax.set(xlabel=xlabel or names.get(along, along), ylabel=ylabel)
    counts = {int(table["n"].iloc[0]) for table in tables.values() if "n" in table}
    head(ax, title, note or (f"{counts.pop()} images" if len(counts) == 1 else None))
    ends = {name: float(table["accuracy"].iloc[-1]) for name, table in tables.items()}
    unknown = any(math.isnan(end) for end in ends.values())
    heights = sorted(ends.values())
    if width < NARROW or unknown or any(high - low < _GAP for low, high in pairwise(heights)):
        legend(fig, {name: look[name] for name in tables})
    else:
        for name, height in ends.items():
            ax.annotate(
                f"{name}, {height:.0%}", (1, height), (10, 0), color=INK, va="center",
                xycoords=("axes fraction", "data"), textcoords="offset points", annotation_clip=False,
            )  # fmt: skip
    if along == "steps" or len(measured) <= _TICKS:
        _name_ticks(fig, ax, {place: _tick(place, along) for place in measured})
    return fig


def _name_ticks(fig: Figure, ax: Axes, names: dict[float, str]) -> None:
    """Put ticks at these places, and name the first, the last, and those between that have room for it."""
    ax.set_xticks(list(names), list(names.values()))
    ax.minorticks_off()
    settle(fig)
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    space = 0.5 * boxes[0].height
    named, end = [], -math.inf
    for name, box in zip(names.values(), boxes, strict=True):
        free = box.x0 > end and (box is boxes[-1] or box.x1 + space < boxes[-1].x0)
        named.append(name if free else "")
        end = box.x1 + space if free else end
    ax.set_xticks(list(names), named)


def _tick(place: float, along: str) -> str:
    return format_epsilon(place) if along == "eps" else f"{place:.3g}"


def _table(name: str, curve: HasTable | pd.DataFrame, along: str) -> pd.DataFrame:
    table = curve if isinstance(curve, pd.DataFrame) else curve.table()
    missing = [column for column in (along, "accuracy", "low", "high") if column not in table]
    if missing or table.empty:
        problem = f"lacks the column(s) {', '.join(missing)}" if missing else "is empty"
        raise InputError(f"the table of '{name}' {problem}; a RobustnessCurve's .table() has what is needed")
    return table.sort_values(along)
