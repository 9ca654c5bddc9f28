"""Values from model to model as slopes: a line a method."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import SCREEN_WIDTH, figure, looks, styled
from saliency_lab.plotting.tradeoff import ARROWS, Estimate


@styled
def slopes(
    lines: Mapping[str, Mapping[str, Estimate]],
    *,
    ylabel: str = "",
    better: str = "neither",
    percent: bool = False,
    note: str | None = None,
) -> Figure:
    """Draw each line's estimates, with intervals, over the models side by side.

    Parameters
    ----------
    lines : mapping of line (such as a method) to mapping of model to (value, low, high)
    ylabel : str
    better : "higher", "lower" or "neither"
        Which way is better; said at the axis.
    percent : bool
        Write the axis in percent.
    note : str, optional
        Above the panel on the right.

    Raises
    ------
    InputError
        If there is nothing to draw.
    """
    models = list(dict.fromkeys(model for line in lines.values() for model in line))
    if not models:
        raise InputError("lines must hold at least one estimate")
    look = looks(list(lines))
    fig = figure(min(SCREEN_WIDTH, 2.6 + 1.2 * len(models)), 4.2)
    ax = fig.subplots()
    for i, (name, line) in enumerate(lines.items()):
        shift = 0.12 * (i - (len(lines) - 1) / 2) / max(1, len(lines) - 1)  # intervals side by side
        at = [models.index(model) + shift for model in line]
        values, low, high = zip(*line.values(), strict=True)
        below = [value - end for value, end in zip(values, low, strict=True)]
        above = [end - value for value, end in zip(values, high, strict=True)]
        ax.errorbar(
            at, values, yerr=[below, above], fmt=f"{look[name].marker}-", color=look[name].colour,
            elinewidth=1.2, label=name.replace("_", " "),
        )  # fmt: skip
    ax.set_xticks(range(len(models)), models)
    ax.margins(x=0.08)
    ax.grid(axis="y")
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_ylabel(f"{ylabel}   {ARROWS[better]}".rstrip())
    if note:
        ax.set_title(note, loc="right", fontsize=8, color="#606060")
    fig.legend(loc="outside right upper")
    return fig
