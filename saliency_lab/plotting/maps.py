"""Attribution maps next to and over their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.arrays import as_array, as_pictures, check_pictures, check_same_size
from saliency_lab.plotting.painting import (
    CLIP,
    Layers,
    Scale,
    blend_of,
    check_maps,
    colours,
    layers,
    paint,
)
from saliency_lab.plotting.panels import Caption, heading_lines, panels
from saliency_lab.plotting.style import bare, figure, styled, wrap

IMAGE = "image"
"""The title of the images' own column or panel."""


class Prediction(NamedTuple):
    """A predicted class and its probability, for the `predictions` of `grid`.

    Where the probability is not a number, as in a network that diverged, no class is predicted.
    """

    name: str
    probability: float

    @property
    def defined(self) -> bool:
        """Whether a class is predicted at all."""
        return math.isfinite(self.probability)

    def __str__(self) -> str:
        return f"{self.name}, {100 * self.probability:.0f} %" if self.defined else "undefined"


@styled
def grid(
    images: Any,
    maps: Mapping[str, Any],
    *,
    labels: Sequence[object] | None = None,
    predictions: Mapping[str, Sequence[object]] | None = None,
    title: str | None = None,
    scale: Scale | None = None,
    signed: bool | None = None,
    blend: float | None = None,
    smooth: float = 0.0,
    clip: float = CLIP,
    cell: float | None = None,
) -> Figure:
    """Draw maps in a grid: one row per image, one column per model or method, the image itself first.

    Parameters
    ----------
    images : array (N, C, H, W) in [0, 1], or None
        Without it the first column is left out.
    maps : mapping of column title to array (N, C, H, W)
        Tensors, arrays or `Attributions`, of the size of the images.
    labels : sequence of N, optional
        The rows' names, such as the true class.
    predictions : mapping of column title to sequence of N, optional
        The class that each column's model predicts, written below the panel: a `Prediction` always, a bare
        name where it is not the row's label. "image" names the column of the images.
    title : str, optional
    scale : {"shared", "row", "panel"}, optional
        One colour scale for the figure, for each row, or for each panel. By default one per panel where the
        columns are maps of different methods or differ in size by more than a factor of 10, and otherwise
        one for the figure.
    signed : bool, optional
        True sums the channels, with a diverging scale centred at zero; False sums their magnitudes, with a
        sequential scale. By default the channels are summed, and a column without negative values, such as
        RISE's, has a sequential scale.
    blend : float in [0, 1], optional
        How far the grey image shows through where the map is weak; 0 is the map alone, and the default up to
        64 × 64 pixels, 0.7 the default above. The strongest values always keep the colours of the scale.
    smooth : float
        Standard deviation of a Gaussian filter over each map, in pixels; the title mentions it.
    clip : float in (0, 100]
        The scale ends at this percentile of the magnitudes; values beyond it take the end's colour.
    cell : float, optional
        Width of a panel in inches.

    Returns
    -------
    Figure
        A matplotlib figure, which Jupyter displays and `saliency_lab.plotting.style.save` writes.

    Raises
    ------
    InputError
        If there is nothing to draw, the arrays do not fit each other, or the images leave [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> images, maps = np.full((2, 3, 8, 8), 0.5), np.linspace(-1, 1, 384).reshape(2, 3, 8, 8)
    >>> figure = grid(images, {"saliency": maps}, labels=["cat", "dog"])
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['image', 'saliency']
    """
    shown = layers(maps, scale=scale, signed=signed, smooth=smooth, clip=clip)
    pictures = None if images is None else check_pictures("images", images)
    count, tall, wide = next(iter(shown.columns.values())).planes.shape
    if pictures is not None:
        for name, layer in shown.columns.items():
            check_same_size(f"maps '{name}'", layer.planes, pictures)
    names = [*([] if pictures is None else [IMAGE]), *shown.columns]
    _check_rows(count, names, labels, predictions)
    blend = blend_of(blend, (tall, wide))
    drawn = None if pictures is None else as_pictures(pictures)
    laid = panels(
        [names],
        (tall, wide),
        cell=cell,
        labels=[wrap(str(label), 18) for label in labels] if labels is not None else [""] * count,
        captions=None if predictions is None else _captions(count, names, labels, predictions),
        title=_title(title, smooth),
        bars=len({layer.signed for layer in shown.columns.values()}),
    )
    for row, axes in enumerate(laid.axes):
        if drawn is not None:
            axes[0].imshow(drawn[row], cmap="gray", vmin=0, vmax=1)
        for ax, layer in zip(axes[len(names) - len(shown.columns) :], shown.columns.values(), strict=True):
            ax.imshow(paint(layer, row, None if drawn is None else drawn[row], blend))
    _bars(laid.figure, laid.bars, shown, clip)
    return laid.figure


@styled
def gallery(
    image: Any,
    maps: Mapping[str, Any],
    *,
    columns: int = 6,
    title: str | None = None,
    signed: bool | None = None,
    blend: float | None = None,
    smooth: float = 0.0,
    clip: float = CLIP,
    cell: float | None = None,
) -> Figure:
    """Draw one image and its maps by many methods, in rows of `columns`, each panel on its own scale.

    Parameters
    ----------
    image : array (C, H, W) in [0, 1]
    maps : mapping of panel title to array (C, H, W), or (1, C, H, W) such as one sample's `Attributions`
    columns : int
        Panels per row, ≥ 1.
    title, signed, blend, smooth, clip, cell
        As in `grid`.

    Returns
    -------
    Figure
        A matplotlib figure.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    if columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    picture = as_array(image)
    if picture.ndim != 3:
        raise InputError(f"the image must have the shape (C, H, W), not {picture.shape}")
    pictures = check_pictures("the image's pixels", picture[None])
    check_maps(maps)
    batches = {
        name: values if as_array(values).ndim == 4 else as_array(values)[None]
        for name, values in maps.items()
    }
    shown = layers(batches, scale="panel", signed=signed, smooth=smooth, clip=clip)
    for name, layer in shown.columns.items():
        if len(layer.planes) != 1:
            raise InputError("a gallery shows one image; index the maps, or use grid")
        check_same_size(f"maps '{name}'", layer.planes, pictures)
    drawn = as_pictures(pictures)[0]
    blend = blend_of(blend, picture.shape)
    names = [IMAGE, *shown.columns]
    across = min(columns, len(names))
    laid = panels(
        [names[start : start + across] for start in range(0, len(names), across)],
        (picture.shape[1], picture.shape[2]),
        cell=cell,
        title=_title(title, smooth),
        bars=len({layer.signed for layer in shown.columns.values()}),
    )
    first, *others = [ax for row in laid.axes for ax in row]
    first.imshow(drawn, cmap="gray", vmin=0, vmax=1)
    for ax, layer in zip(others, shown.columns.values(), strict=True):
        ax.imshow(paint(layer, 0, drawn, blend))
    _bars(laid.figure, laid.bars, shown, clip)
    return laid.figure


@styled
def steps(maps: Mapping[str, Any], titles: Sequence[str]) -> Figure:
    """Draw maps that change step by step: one row per method, one column per step, one scale per panel.

    Parameters
    ----------
    maps : mapping of row title to array (S, C, H, W)
        The maps of the S steps. A row without negative values has a sequential scale.
    titles : sequence of S str
        The names of the steps.

    Returns
    -------
    Figure
        A matplotlib figure.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    shown = layers(maps, scale="panel")
    count, tall, wide = next(iter(shown.columns.values())).planes.shape
    if len(titles) != count:
        raise InputError(f"titles names {len(titles)} steps, and there are maps of {count}")
    laid = panels(
        [titles],
        (tall, wide),
        labels=[wrap(name, 18) for name in shown.columns],
        bars=len({layer.signed for layer in shown.columns.values()}),
    )
    for row, layer in zip(laid.axes, shown.columns.values(), strict=True):
        for step, ax in enumerate(row):
            ax.imshow(paint(layer, step, None, 0.0))
    _bars(laid.figure, laid.bars, shown, CLIP)
    return laid.figure


@styled
def overlay(
    values: Any,
    image: Any = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    signed: bool | None = None,
    blend: float = 0.7,
    smooth: float = 0.0,
    clip: float = CLIP,
) -> Figure:
    """Draw one map (C, H, W), over its image (C, H, W) if that is given, in an Axes of yours or a new figure.

    The map comes first, and then the image. Both of one sample, (1, C, H, W), are accepted too. Other
    parameters are as in `grid`.

    Raises
    ------
    InputError
        If the arrays do not fit each other, or the second is the map.
    """
    shown = layers({"values": _one(values)}, signed=signed, smooth=smooth, clip=clip)
    layer = shown.columns["values"]
    picture = None
    if image is not None:
        pictures = _picture_of_overlay(values, image)
        check_same_size("the map", layer.planes, pictures)
        picture = as_pictures(pictures)[0]
    blend = blend_of(blend, layer.planes.shape)
    fig = figure(3.6, 3.0) if ax is None else ax.get_figure(root=True)
    if fig is None:
        raise InputError("the Axes is in no figure")
    ax = fig.subplots() if ax is None else ax
    ax.imshow(paint(layer, 0, picture, blend))
    bare(ax)
    if full := _title(title, smooth):
        ax.set_title("\n".join(heading_lines(full, 3.0)))
    _bar(fig, shown, layer.signed, clip, ax=ax)
    return fig


def _picture_of_overlay(values: Any, image: Any) -> np.ndarray:
    """Return the image (1, C, H, W) of a map; say which comes first if they may be swapped.

    Raises
    ------
    InputError
        If `image` is none.
    """
    order = "overlay takes the map first and then the image"
    if hasattr(image, "method"):
        raise InputError(f"{order}, and the second of these is an {type(image).__name__}; swap them")
    try:
        return check_pictures("the image's pixels", _one(image))
    except InputError as error:
        first = as_array(values)
        if first.size and first.min() >= 0 and first.max() <= 1 and as_array(image).min() < 0:
            raise InputError(f"{error}; or swap the two, if the first is the image: {order}") from None
        raise


def _one(given: Any) -> np.ndarray:
    """Return the map or image of one sample, (1, C, H, W)."""
    array = as_array(given)
    return array if array.ndim == 4 and len(array) == 1 else array[None]


def _title(title: str | None, smooth: float) -> str | None:
    """Add to a title that the maps were smoothed."""
    smoothed = f"maps smoothed, σ = {smooth:g} pixels" if smooth else None
    return ", ".join(filter(None, [title, smoothed])) or None


def _check_rows(
    count: int,
    names: Sequence[str],
    labels: Sequence[object] | None,
    predictions: Mapping[str, Sequence[object]] | None,
) -> None:
    given = {"labels": labels, **{f"predictions['{name}']": row for name, row in (predictions or {}).items()}}
    for what, row in given.items():
        if row is not None and len(row) != count:
            raise InputError(f"{what} has {len(row)} entries for {count} rows")
    if unknown := set(predictions or {}) - set(names):
        raise InputError(f"predictions name columns that are not drawn: {', '.join(sorted(unknown))}")


def _captions(
    count: int,
    names: Sequence[str],
    labels: Sequence[object] | None,
    predictions: Mapping[str, Sequence[object]],
) -> list[list[Caption | None]]:
    return [
        [
            caption(predictions[name][row], None if labels is None else labels[row])
            if name in predictions
            else None
            for name in names
        ]
        for row in range(count)
    ]


def caption(prediction: object, label: object | None) -> Caption | None:
    """Say which class is predicted, and whether it is the `label`; a bare name that is right needs no words.

    A prediction that is undefined is neither right nor wrong.

    >>> caption(Prediction("cat", 0.41), "cat").text, caption(Prediction("dog", 0.87), "cat").text
    ('✓ cat, 41 %', '✗ dog, 87 %')
    >>> caption("dog", "cat").text, caption("cat", "cat")
    ('✗ dog', None)
    >>> caption(Prediction("cat", float("nan")), "cat")
    Caption(text='undefined', wrong=False)
    """
    name = prediction.name if isinstance(prediction, Prediction) else str(prediction)
    wrong = label is not None and name != str(label)
    if isinstance(prediction, Prediction):
        if not prediction.defined:
            return Caption(str(prediction))
    elif not wrong:
        return None
    mark = "" if label is None else "✗ " if wrong else "✓ "
    return Caption(f"{mark}{prediction}", wrong)


def distinct_numbers(values: Sequence[float]) -> list[str]:
    """Write the values of a scale with the digits that distinguish its ends, and two at least.

    >>> distinct_numbers([-0.0312, 0.0, 0.0312]), distinct_numbers([0.5, 0.50291])
    (['−0.031', '0', '0.031'], ['0.5', '0.5029'])
    """
    largest, span = max(map(abs, values)), max(values) - min(values)
    digits = 2 + max(0, math.floor(math.log10(largest / span)))
    return [f"{value:.{digits}g}".replace("-", "−") for value in values]


def _bars(fig: Figure, places: Sequence[Axes], shown: Layers, clip: float) -> None:
    signs = sorted({layer.signed for layer in shown.columns.values()}, reverse=True)
    for place, signed in zip(places, signs, strict=True):
        _bar(fig, shown, signed, clip, place=place)


def _bar(
    fig: Figure,
    shown: Layers,
    signed: bool,
    clip: float,
    *,
    place: Axes | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the colour bar of the columns with a sign, or of those without."""
    columns = [layer for layer in shown.columns.values() if layer.signed == signed]
    relative = shown.scale != "shared"
    low, high = float(columns[0].low[0]), float(columns[0].high[0])
    low, high = (-1.0 if signed else 0.0, 1.0) if relative else (low, high)
    extend = ("both" if signed else "max" if not low or relative else "both") if clip < 100 else "neither"
    bar = fig.colorbar(ScalarMappable(Normalize(low, high), colours(signed)), cax=place, ax=ax, extend=extend)
    bar.set_ticks([low, 0, high] if signed else [low, high])
    if relative and not signed:
        texts = ["lowest", "highest" if clip == 100 else f"percentile\n{clip:g}"]
    else:
        texts = distinct_numbers(bar.get_ticks().tolist())
    bar.ax.set_yticklabels(texts)
    label = "signed attribution" if signed else "attribution"
    if relative:
        label += f" per {shown.scale}"
        if signed:
            label += "\n1 = " + ("largest magnitude" if clip == 100 else f"percentile {clip:g}")
    bar.set_label(label)
    bar.ax.spines["outline"].set_visible(False)
