"""Pictures of attacks: what one did to an image, and what an audit found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import ALERT, DIVERGING, PALETTE, SCREEN_WIDTH, bare, figure, styled

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
    """Draw a row an example: the image, its perturbation, the adversarial image, the maps before and after.

    Parameters
    ----------
    images, adversarial : array (N, C, H, W) in [0, 1]
    labels, before, after : sequence of N
        The true class, and the classes predicted for each image and its adversarial one.
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
    first, second = _array("images", images), _array("adversarial", adversarial)
    pair = [] if maps is None else [_array("maps", each).sum(1) for each in maps]
    count = len(first)
    if second.shape != first.shape or any(len(row) != count for row in (labels, before, after, *pair)):
        raise InputError("images, adversarial, labels, before, after and maps must have one row an example")
    if magnify is None:
        magnify = 0.5 / (float(np.abs(second - first).max()) or 0.5)
    headings = ["image", f"perturbation ×{magnify:.3g}", "adversarial"]
    headings += ["map before", "map after"] if pair else []
    height, width = first.shape[2:]
    fig = figure(1.5 * len(headings) + 0.9, 1.5 * count * height / width + 0.55 + (0.3 if title else 0))
    axes = fig.subplots(count, len(headings), squeeze=False)
    middle = (0.5 + magnify * (second - first)).clip(0, 1)
    for row in range(count):
        for ax, picture in zip(axes[row], (first[row], middle[row], second[row]), strict=False):
            ax.imshow(_picture(picture), cmap="gray", vmin=0, vmax=1)
        _say(axes[row, 0], before[row], labels[row])
        _say(axes[row, 2], after[row], labels[row])
        limit = max((float(np.abs(each[row]).max()) for each in pair), default=0.0) or 1.0
        for ax, each in zip(axes[row, 3:], pair, strict=True):
            ax.imshow(each[row], cmap=DIVERGING, vmin=-limit, vmax=limit)
        axes[row, 0].set_ylabel(str(labels[row]), rotation=0, ha="right", va="center", labelpad=8)
    for ax, heading in zip(axes[0], headings, strict=True):
        ax.set_title(heading, fontsize=10)
    for ax in axes.flat:
        bare(ax)
    if title:
        fig.suptitle(title)
    return fig


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


def _array(name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{name} must have the shape (N, C, H, W), not {array.shape}")
    return array


def _picture(image: np.ndarray) -> np.ndarray:
    """(H, W, 3), or (H, W) for any other number of channels."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)


def _say(ax: Axes, prediction: object, label: object) -> None:
    wrong = str(prediction) != str(label)
    ax.set_xlabel(f"predicted {prediction}", fontsize=9, color=ALERT if wrong else "#404040", labelpad=2)
