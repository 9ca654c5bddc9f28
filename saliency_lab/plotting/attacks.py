"""Figures of attacks: how one changes an image, and the checks of an audit."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.arrays import as_pictures, check_batch, check_pictures, check_same_size
from saliency_lab.plotting.maps import caption
from saliency_lab.plotting.panels import Caption, panels
from saliency_lab.plotting.style import ALERT, DIVERGING, PALETTE, SCREEN_WIDTH, figure, styled, wrap

MARKS = {
    "pass": ("✓", PALETTE[2]),
    "warn": ("!", PALETTE[4]),
    "fail": ("✗", ALERT),
    "skipped": ("–", PALETTE[7]),
}
"""An audit's verdicts as marks, each with its colour."""


@styled
def attack_path(
    images: Any,
    adversarial: Any,
    *,
    labels: Sequence[object],
    before: Sequence[object],
    after: Sequence[object],
    maps: tuple[Any, Any] | None = None,
    magnify: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draw one row per example: image, perturbation, adversarial image, and the maps before and after.

    Parameters
    ----------
    images, adversarial : array (N, C, H, W) in [0, 1]
    labels, before, after : sequence of N
        The true class, and the classes predicted for each image and its adversarial one: names, or
        `saliency_lab.plotting.maps.Prediction` with a probability.
    maps : pair of arrays (N, C, H, W), optional
        Signed maps of the images and of the adversarial ones; channels are summed, and the two maps of a
        row share one scale.
    magnify : float, optional
        Factor of the perturbation, drawn around mid-grey (values beyond the image range are clipped); by
        default such that the largest reaches black or white.
    title : str, optional
        Above the figure.

    Raises
    ------
    InputError
        If the arrays do not fit each other.
    """
    first, second = check_pictures("images", images), check_pictures("adversarial", adversarial)
    if second.shape != first.shape:
        raise InputError(f"images have the shape {first.shape} and adversarial {second.shape}")
    count = len(first)
    for what, names in {"labels": labels, "before": before, "after": after}.items():
        if len(names) != count:
            raise InputError(f"{what} has {len(names)} entries for {count} images")
    pair = [check_batch("maps", each).sum(1) for each in maps or ()]
    for each in pair:
        check_same_size("maps", each, first)
    if magnify is None:
        magnify = 0.5 / (float(np.abs(second - first).max()) or 0.5)
    headings = ["image", f"perturbation ×{magnify:.3g}", "adversarial"]
    headings += ["map before", "map after"] if pair else []
    middle = (0.5 + magnify * (second - first)).clip(0, 1)
    laid = panels(
        [headings],
        (first.shape[2], first.shape[3]),
        cell=1.5,
        labels=[wrap(str(label), 18) for label in labels],
        captions=[
            [_caption(before[row], labels[row]), None, _caption(after[row], labels[row])]
            for row in range(count)
        ],
        title=title,
        bars=0,
    )
    drawn = [as_pictures(each) for each in (first, middle, second)]
    for row, axes in enumerate(laid.axes):
        for ax, pictures in zip(axes, drawn, strict=False):
            ax.imshow(pictures[row], cmap="gray", vmin=0, vmax=1)
        limit = max((float(np.nanmax(np.abs(each[row]))) for each in pair), default=0.0) or 1.0
        for ax, each in zip(axes[3:], pair, strict=True):
            ax.imshow(each[row], cmap=DIVERGING, vmin=-limit, vmax=limit)
    return laid.figure


@styled
def audit_table(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw an audit's checks as a table: a mark, the check, its evidence.

    Parameters
    ----------
    table : DataFrame indexed by check, with the columns verdict and evidence
        An `Audit`'s `.table()`.
    title : str, optional
        Such as the verdict and the numbers it is about.

    Raises
    ------
    InputError
        If a column is missing or a verdict is unknown.
    """
    missing = {"verdict", "evidence"} - set(table.columns)
    if missing or table.empty:
        raise InputError(
            f"the table lacks {', '.join(sorted(missing)) or 'rows'}; an Audit's .table() has them"
        )
    unknown = set(table["verdict"]) - set(MARKS)
    if unknown:
        raise InputError(f"unknown verdict '{unknown.pop()}'; known: {', '.join(MARKS)}")
    texts = [textwrap.wrap(str(text), 96) for text in table["evidence"]]
    line, gap = 0.19, 0.11
    height = sum(line * len(text) + gap for text in texts) + gap
    fig = figure(SCREEN_WIDTH, height + (0.45 if title else 0.1))
    ax = fig.subplots()
    ax.set_axis_off()
    ax.set(xlim=(0, SCREEN_WIDTH), ylim=(height, 0))
    top = gap
    for check, verdict, text in zip(table.index, table["verdict"], texts, strict=True):
        mark, colour = MARKS[verdict]
        ax.text(0.12, top, mark, color=colour, fontsize=12, fontweight="bold", ha="center", va="top")
        ax.text(0.35, top, str(check), fontweight="bold", va="top")
        ax.text(2.25, top, "\n".join(text), va="top", fontsize=9, color="#404040", linespacing=1.3)
        top += line * len(text) + gap
        ax.axhline(top - gap / 2, color="#E5E5E5", linewidth=0.6)
    if title:
        ax.set_title(title, loc="left", fontsize=11)
    return fig


def _caption(prediction: object, label: object) -> Caption:
    judged = caption(prediction, label)
    return Caption(f"predicted {prediction}", judged is not None and judged.wrong)
