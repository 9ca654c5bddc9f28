"""Values with their intervals as dots: one row per group, one colour per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab._common.text import words
from saliency_lab.plotting.style import (
    CHART_WIDTH,
    NARROW,
    axis_label,
    chart,
    head,
    legend,
    looks,
    percent_ticks,
    styled,
    wrap,
)
from saliency_lab.plotting.tradeoff import Estimate


@styled
def dots(
    groups: Mapping[str, Mapping[str, Estimate]],
    *,
    seeds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    xlabel: str = "",
    better: str = "neither",
    percent: bool = False,
    title: str | None = None,
    note: str | None = None,
    width: float = CHART_WIDTH,
    among: Sequence[str] | None = None,
) -> Figure:
    """Draw estimates as dots with intervals, grouped, with the models in the same order in each group.

    Parameters
    ----------
    groups : mapping of group to mapping of model to (value, low, high)
        A value that is NaN is not drawn.
    seeds : mapping of group to mapping of model to values, optional
        One small mark per training seed, for models that have no common mean.
    xlabel : str
    better : "higher", "lower" or "neither"
        Which way is better; written at the axis.
    percent : bool
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
    models = list(dict.fromkeys(model for group in groups.values() for model in group))
    if not models:
        raise InputError("groups must hold at least one estimate")
    look = looks(list(among or models))
    spread = 0.7 / len(models)
    fig, ax = chart(width, 1.3 + len(groups) * (0.25 + 0.2 * len(models)))
    for row, (name, group) in enumerate(groups.items()):
        for i, model in enumerate(models):
            if model in group:
                value, low, high = group[model]
                height = row + (i - (len(models) - 1) / 2) * spread
                ax.errorbar(
                    value, height, xerr=[[value - low], [high - value]], fmt=look[model].marker,
                    color=look[model].colour, elinewidth=1.4,
                )  # fmt: skip
        for model, values in (seeds or {}).get(name, {}).items():
            height = row + (models.index(model) - (len(models) - 1) / 2) * spread
            heights = [height] * len(values)
            ax.plot(
                values, heights, look[model].marker, color=look[model].colour, fillstyle="none", markersize=4,
                linestyle="", label="_seeds",
            )  # fmt: skip
        if row:
            ax.axhline(row - 0.5, color="#D9D9D9", linewidth=0.6)
    ax.set_yticks(range(len(groups)), [wrap(words(name), 12 if width < NARROW else 20) for name in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    if percent:
        percent_ticks(ax.xaxis)
    ax.set_xlabel(axis_label(xlabel, better))
    head(ax, title, note)
    legend(fig, {model: look[model] for model in models}, lines=False)
    return fig
