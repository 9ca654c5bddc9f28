"""The figure of a sanity check: similarity to the trained model's maps as layers are randomised."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from scipy import special

from saliency_lab._common.errors import InputError
from saliency_lab._common.text import words
from saliency_lab.plotting.style import figure, legend, looks, styled

_TITLES = {
    "rank_correlation": "rank correlation\nwith the trained model's map",
    "absolute_rank_correlation": "rank correlation of magnitudes\nwith the trained model's map",
    "ssim": "SSIM of magnitudes\nwith the trained model's map",
}


@styled
def cascade(table: pd.DataFrame, measure: str = "rank_correlation") -> Figure:
    """Draw one line per method over the randomised layers: mean over samples with Student's 95 % interval.

    One sample has no interval. `table` has the columns `method`, `step`, `layer` and the measure, one row per
    sample.

    Raises
    ------
    InputError
        If the measure is no column of the table.
    """
    if measure not in _TITLES or measure not in table:
        raise InputError(f"measure must be one of {', '.join(_TITLES)}, not {measure!r}")
    layers = table.drop_duplicates("step").sort_values("step")
    longest = max(len(layer) for layer in layers.layer)
    fig = figure(max(5.5, 0.45 * len(layers) + 3.2), 3.4 + 0.05 * longest)
    ax = fig.subplots()
    methods = list(table.method.unique())
    look = looks(methods)
    for method in methods:
        groups = table[table.method == method].groupby("step")[measure]
        mean, error = groups.mean(), groups.sem() * special.stdtrit(groups.count() - 1, 0.975)
        ax.fill_between(
            mean.index, mean - error, mean + error, color=look[method].colour, alpha=0.2, linewidth=0
        )
        ax.plot(
            mean.index,
            mean,
            look[method].stroke,
            color=look[method].colour,
            marker=look[method].marker,
        )
    ax.axhline(0, color="#404040", linewidth=0.8, linestyle=":")
    ax.set_ylim(min(-0.05, *ax.get_ylim()), 1.05)
    ax.set_xticks(layers.step, layers.layer, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlabel("randomised from the output down to")
    ax.set_ylabel(_TITLES[measure])
    ax.grid(axis="y")
    legend(fig, {words(name): each for name, each in look.items()})
    return fig
