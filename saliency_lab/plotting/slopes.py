"""Values from model to model as slopes: one line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab._common.text import words
from saliency_lab.plotting.style import (
    NARROW,
    SCREEN_WIDTH,
    axis_label,
    chart,
    head,
    legend,
    looks,
    percent_ticks,
    styled,
)
from saliency_lab.plotting.tradeoff import Estimate


@styled
def slopes(
    lines: Mapping[str, Mapping[str, Estimate]],
    *,
    seeds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    ylabel: str = "",
    better: str = "neither",
    percent: bool = False,
    note: str | None = None,
    width: float | None = None,
) -> Figure:
    """Draw each line's estimates, with intervals, over the models side by side.

    Parameters
    ----------
    lines : mapping of line (such as a method) to mapping of model to (value, low, high)
        A value that is NaN is not drawn.
    seeds : mapping of line to mapping of model to values, optional
        One small mark per training seed, for models that have no common mean.
    ylabel : str
    better : "higher", "lower" or "neither"
        Which way is better; written at the axis.
    percent : bool
        Write the axis in percent.
    note : str, optional
        Above the panel.
    width : float, optional
        Inches; by default as much as the models' names need.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    models = list(dict.fromkeys(model for line in lines.values() for model in line))
    if not models:
        raise InputError("lines must hold at least one estimate")
    look = looks(list(lines))
    width = min(SCREEN_WIDTH, 2.6 + 1.2 * len(models)) if width is None else width
    fig, ax = chart(width, max(min(4.2, 0.6 * width), 2.4))
    for i, (name, line) in enumerate(lines.items()):
        shift = 0.12 * (i - (len(lines) - 1) / 2) / max(1, len(lines) - 1)  # intervals side by side
        at = [models.index(model) + shift for model in line]
        values, low, high = zip(*line.values(), strict=True)
        below = [value - end for value, end in zip(values, low, strict=True)]
        above = [end - value for value, end in zip(values, high, strict=True)]
        ax.errorbar(
            at, values, yerr=[below, above], fmt=f"{look[name].marker}{look[name].stroke}",
            color=look[name].colour, elinewidth=1.2,
        )  # fmt: skip
        for model, by_seed in (seeds or {}).get(name, {}).items():
            place = [models.index(model) + shift] * len(by_seed)
            ax.plot(
                place, by_seed, look[name].marker, color=look[name].colour, fillstyle="none", markersize=4,
                linestyle="", label="_seeds",
            )  # fmt: skip
    longest = (width if width < NARROW else width - 2.6) / (0.085 * len(models))
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(models)), models, **(turned if max(map(len, models)) > longest else {}))
    ax.margins(x=0.08)
    ax.grid(axis="y")
    if percent:
        percent_ticks(ax.yaxis)
    ax.set_ylabel(axis_label(ylabel, better))
    head(ax, None, note)
    legend(fig, {words(name): each for name, each in look.items()})
    return fig
