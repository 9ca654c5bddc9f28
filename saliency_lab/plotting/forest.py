"""A forest plot: one difference in several studies, and the pooled differences below."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import CHART_WIDTH, INK, chart, head, styled
from saliency_lab.plotting.tradeoff import Estimate


@styled
def forest(
    studies: Mapping[str, Estimate],
    pooled: Mapping[str, Estimate],
    *,
    texts: Mapping[str, str],
    xlabel: str = "",
    percent: bool = False,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """Draw each study's difference with its interval, and each pooled one as a diamond below.

    Parameters
    ----------
    studies, pooled : mapping of name to (value, low, high)
    texts : mapping of name to str
        What stands at the right of each row: its numbers as the table has them.
    xlabel : str
    percent : bool
        Write the axis in percentage points.
    title, note : str, optional
        Above the panel.

    Raises
    ------
    InputError
        If there are no studies.
    """
    if not studies:
        raise InputError("studies must hold at least one difference")
    names = [*studies, *pooled]
    fig, ax = chart(CHART_WIDTH, 1.3 + 0.32 * len(names))
    ax.axvline(0, color="#999999", linewidth=0.8)
    for row, (value, low, high) in enumerate(studies.values()):
        ax.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="s", color=INK, markersize=5)
    for row, (value, low, high) in enumerate(pooled.values(), start=len(studies)):
        ax.fill([low, value, high, value], [row, row - 0.22, row, row + 0.22], color=INK, linewidth=0)
    if pooled:
        ax.axhline(len(studies) - 0.5, color="#D9D9D9", linewidth=0.6)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    scale = 100 if percent else 1
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(lambda value, _: _signed(scale * value))
    if percent:
        xlabel = f"{xlabel}, in points" if xlabel else "points"
    ax.set_xlabel(xlabel)
    for row, name in enumerate(names):
        ax.annotate(
            texts[name],
            (1, row),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    head(ax, title, note)
    return fig


def _signed(value: float) -> str:
    """Write a number in three digits, with a sign and a true minus.

    >>> _signed(-2.5), _signed(0.0)
    ('−2.5', '0')
    """
    text = f"{value:+.3g}"
    return "0" if text in ("+0", "-0") else text.replace("-", "−")
