"""Attribution maps beside and over their images."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.style import ALERT, DIVERGING, SEQUENTIAL, bare, figure, styled, wrap

Scale = Literal["shared", "row", "panel"]

CLIP = 99.5
"""A colour scale ends at this percentile of the magnitudes, unless another is asked for."""


@styled
def grid(
    images: Any,
    maps: Mapping[str, Any],
    *,
    labels: Sequence[object] | None = None,
    predictions: Mapping[str, Sequence[object]] | None = None,
    title: str | None = None,
    scale: Scale = "shared",
    signed: bool = True,
    blend: float = 0.0,
    clip: float = CLIP,
    cell: float = 1.15,
) -> Figure:
    """Maps in a grid: a row an image, a column a model or a method, the image itself first.

    Parameters
    ----------
    images : array (N, C, H, W) in [0, 1], or None
        Without it the first column is left out.
    maps : mapping of column title to array (N, C, H, W)
        Tensors, arrays or `Attributions`. The channels are summed (`signed`), or their magnitudes are.
    labels : sequence of N, optional
        The rows' names, such as the true class.
    predictions : mapping of column title to sequence of N, optional
        What each column's model predicts; where it is not the row's label, it is said below the panel.
    title : str, optional
    scale : {"shared", "row", "panel"}
        One colour scale for the figure, for each row, or for each panel.
    signed : bool
        A diverging scale centred at zero, or a sequential one of magnitudes.
    blend : float in [0, 1]
        How far the grey image shows through where the map is weak; 0 is the map alone. The strongest values
        always keep the colours of the scale.
    clip : float in (0, 100]
        The scale ends at this percentile of the magnitudes; values beyond it take the end's colour.
    cell : float
        Inches a panel.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    columns = {name: _plane(name, values, signed) for name, values in maps.items()}
    count = _count_rows(images, columns, labels, predictions)
    pictures = None if images is None else _pictures(images)
    limits = _limits(np.stack([*columns.values()]), scale, clip)
    names = [*([] if pictures is None else ["image"]), *columns]
    titles = [wrap(name) for name in names]
    width = max(cell, 0.085 * max(len(line) for name in titles for line in name.split("\n")))
    tall, wide = next(iter(columns.values())).shape[1:]
    below = max(
        (_taken_for(each, width).count("\n") for row in (predictions or {}).values() for each in row),
        default=0,
    )
    height = width * tall / wide + (0.22 + 0.14 * below if predictions else 0.06)
    left = 0.08 * max((len(str(label)) for label in labels), default=0) if labels is not None else 0.0
    across = left + len(names) * (width + 0.06) + 1.1
    lines = _lines(title, across)
    head = 0.25 + 0.2 * max(name.count("\n") for name in titles) + (0.13 + 0.22 * len(lines) if lines else 0)
    fig = figure(across, max(count * height + head, 1.9))
    axes = fig.subplots(count, len(names), squeeze=False)
    first = 0 if pictures is None else 1
    for row in range(count):
        if pictures is not None:
            axes[row, 0].imshow(pictures[row], cmap="gray", vmin=0, vmax=1)
        for column, (name, planes) in enumerate(columns.items()):
            ax = axes[row, column + first]
            picture = None if pictures is None or not blend else pictures[row]
            _draw(ax, planes[row], picture, limits[column, row], signed, blend)
            if predictions is not None and name in predictions:
                _mark(ax, predictions[name][row], None if labels is None else labels[row], width)
        if labels is not None:
            axes[row, 0].set_ylabel(str(labels[row]), rotation=0, ha="right", va="center", labelpad=6)
    for ax, name in zip(axes[0], titles, strict=True):
        ax.set_title(name, fontsize=10)
    for ax in axes.flat:
        bare(ax)
    if lines:
        fig.suptitle("\n".join(lines))
    _bar(fig, list(axes.flat), float(limits.max()), scale, signed, clip=clip)
    return fig


@styled
def gallery(
    image: Any,
    maps: Mapping[str, Any],
    *,
    columns: int = 6,
    title: str | None = None,
    signed: bool = True,
    blend: float = 0.0,
    clip: float = CLIP,
    cell: float = 1.25,
) -> Figure:
    """One image and its maps by many methods, in rows of `columns`, each panel on its own scale.

    Parameters
    ----------
    image : array (C, H, W) in [0, 1]
    maps : mapping of panel title to array (C, H, W), or (1, C, H, W) such as one sample's `Attributions`
    columns : int
        Panels a row, ≥ 1.
    title, signed, blend, clip, cell
        As in `grid`.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    if columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    planes = {}
    for name, values in maps.items():
        array = _array(values)
        planes[name] = _plane(name, array if array.ndim == 4 else array[None], signed)
    picture = _array(image)
    if picture.ndim != 3:
        raise InputError(f"the image must have the shape (C, H, W), not {picture.shape}")
    if any(len(plane) != 1 for plane in planes.values()):
        raise InputError("a gallery shows one image; index the maps, or use grid")
    _count_rows(picture[None], planes, None, None)
    drawn = _pictures(picture[None])[0]
    titles = [wrap(name) for name in ("image", *planes)]
    across = min(columns, len(titles))
    down = -(-len(titles) // across)
    lines = 1 + max(name.count("\n") for name in titles)
    width = max(cell, 0.085 * max(len(line) for name in titles for line in name.split("\n")))
    tall, wide = picture.shape[1:]
    height = width * tall / wide + 0.12 + 0.17 * lines
    total = across * (width + 0.08) + 1.0
    above = _lines(title, total)
    fig = figure(total, max(down * height + (0.13 + 0.22 * len(above) if above else 0), 1.9))
    axes = list(fig.subplots(down, across, squeeze=False).flat)
    for ax in axes[len(titles) :]:
        ax.remove()
    axes = axes[: len(titles)]
    axes[0].imshow(drawn, cmap="gray", vmin=0, vmax=1)
    for ax, plane in zip(axes[1:], planes.values(), strict=True):
        limit = float(_limits(plane[None], "panel", clip).max())
        _draw(ax, plane[0], drawn if blend else None, limit, signed, blend)
    for ax, name in zip(axes, titles, strict=True):
        ax.set_title(name, fontsize=10)
        bare(ax)
    if above:
        fig.suptitle("\n".join(above))
    _bar(fig, axes, 1.0, "panel", signed, clip=clip)
    return fig


@styled
def overlay(
    values: Any,
    image: Any = None,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    signed: bool = True,
    blend: float = 0.7,
    clip: float = CLIP,
) -> Figure:
    """One map (C, H, W), over its image (C, H, W) if that is given, in an Axes of yours or a new figure.

    Parameters as in `grid`.

    Raises
    ------
    InputError
        If the arrays do not fit each other.
    """
    plane = _plane("values", _array(values)[None], signed)
    picture = None if image is None else _pictures(_array(image)[None])[0]
    if picture is not None and picture.shape[:2] != plane.shape[1:]:
        raise InputError(f"the image is {picture.shape[:2]} pixels and the map {plane.shape[1:]}")
    limit = float(_limits(plane[None], "shared", clip).max())
    fig = figure(3.6, 3.0) if ax is None else ax.get_figure(root=True)
    if fig is None:
        raise InputError("the Axes is in no figure")
    ax = fig.subplots() if ax is None else ax
    _draw(ax, plane[0], picture, limit, signed, blend if picture is not None else 0.0)
    bare(ax)
    if title:
        ax.set_title("\n".join(_lines(title, 3.0)))
    _bar(fig, [ax], limit, "shared", signed, clip=clip)
    return fig


class Tiles(NamedTuple):
    """Pixels of images and maps, uint8 (N, H, W, 3), and where each map's scale ends, (N,)."""

    images: np.ndarray
    maps: dict[str, np.ndarray]
    limits: dict[str, np.ndarray]


def tiles(
    images: Any,
    maps: Mapping[str, Any],
    *,
    scale: Scale = "shared",
    signed: bool = True,
    blend: float = 0.0,
    clip: float = CLIP,
) -> Tiles:
    """The panels of `grid` as pixels, for a page that lays them out itself. Parameters as there.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    columns = {name: _plane(name, values, signed) for name, values in maps.items()}
    _count_rows(images, columns, None, None)
    pictures = _pictures(images)
    limits = _limits(np.stack([*columns.values()]), scale, clip)
    painted = {
        name: _bytes(
            np.stack(
                [
                    _painted(plane, picture if blend else None, limit, signed, blend)
                    for plane, picture, limit in zip(planes, pictures, row, strict=True)
                ]
            )
        )
        for (name, planes), row in zip(columns.items(), limits, strict=True)
    }
    grey = pictures if pictures.ndim == 4 else pictures[..., None].repeat(3, axis=-1)
    return Tiles(_bytes(grey), painted, dict(zip(columns, limits, strict=True)))


def scale_bar() -> np.ndarray:
    """The colours of a signed map's scale from its lowest to its highest value, uint8 (1, 101, 3)."""
    return _bytes(_colours(signed=True)(np.linspace(0, 1, 101))[None, :, :3])


def _bytes(colours: np.ndarray) -> np.ndarray:
    return (255 * colours).round().astype(np.uint8)


def _array(values: Any) -> np.ndarray:
    if not hasattr(values, "detach"):
        values = getattr(values, "values", values)  # Attributions hold their tensor there
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _plane(name: str, values: Any, signed: bool) -> np.ndarray:
    """One value a pixel, (N, H, W)."""
    array = _array(values)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"maps '{name}' must have the shape (N, C, H, W), not {array.shape}")
    return array.sum(1) if signed else np.abs(array).sum(1)


def _pictures(images: Any) -> np.ndarray:
    """Images as matplotlib draws them: (N, H, W, 3), or (N, H, W) for any other number of channels."""
    array = _array(images)
    if array.ndim != 4:
        raise InputError(f"images must have the shape (N, C, H, W), not {array.shape}")
    return array.transpose(0, 2, 3, 1).clip(0, 1) if array.shape[1] == 3 else array.mean(1)


def _count_rows(
    images: Any,
    columns: Mapping[str, np.ndarray],
    labels: Sequence[object] | None,
    predictions: Mapping[str, Sequence[object]] | None,
) -> int:
    if not columns:
        raise InputError("there is no map to draw; give at least one column")
    shape = next(iter(columns.values())).shape
    for name, planes in columns.items():
        if planes.shape != shape:
            raise InputError(f"maps '{name}' cover {planes.shape}, the first column {shape}")
    if images is not None and _array(images).shape[0] != shape[0]:
        raise InputError(f"there are {len(images)} images and {shape[0]} maps a column")
    given = {"labels": labels, **{f"predictions['{name}']": row for name, row in (predictions or {}).items()}}
    for what, row in given.items():
        if row is not None and len(row) != shape[0]:
            raise InputError(f"{what} has {len(row)} entries for {shape[0]} rows")
    if unknown := set(predictions or {}) - set(columns):
        raise InputError(f"predictions name columns that are not drawn: {', '.join(sorted(unknown))}")
    return shape[0]


def _limits(planes: np.ndarray, scale: Scale, clip: float) -> np.ndarray:
    """Where each panel's scale ends, (columns, N)."""
    if not 0 < clip <= 100:
        raise InputError(f"clip is a percentile in (0, 100], not {clip}")
    over = {"shared": (0, 1, 2, 3), "row": (0, 2, 3), "panel": (2, 3)}
    if scale not in over:
        raise InputError(f"scale must be one of {', '.join(over)}, not {scale!r}")
    magnitudes = np.where(np.isfinite(planes), np.abs(planes), 0)
    limits = np.percentile(magnitudes, clip, axis=over[scale], keepdims=True)
    limits = np.where(limits > 0, limits, magnitudes.max(axis=over[scale], keepdims=True))
    return np.broadcast_to(np.where(limits > 0, limits, 1.0)[..., 0, 0], planes.shape[:2])


def _colours(signed: bool) -> Colormap:
    return mpl.colormaps[DIVERGING if signed else SEQUENTIAL].with_extremes(bad="#BFBFBF")


def _draw(
    ax: Axes, plane: np.ndarray, picture: np.ndarray | None, limit: float, signed: bool, blend: float
) -> None:
    ax.imshow(_painted(plane, picture, limit, signed, blend))


def _painted(
    plane: np.ndarray, picture: np.ndarray | None, limit: float, signed: bool, blend: float
) -> np.ndarray:
    """Colours (H, W, 3) in [0, 1] of one map, over its picture."""
    if not 0 <= blend <= 1:
        raise InputError(f"blend must lie in [0, 1], not {blend}")
    norm = Normalize(-limit if signed else 0, limit)
    painted = _colours(signed)(norm(np.ma.masked_invalid(plane)))[..., :3]
    if picture is not None:
        grey = (picture if picture.ndim == 2 else picture.mean(-1))[..., None]
        strength = np.nan_to_num(np.abs(plane) / limit, nan=1.0).clip(0, 1)[..., None]
        cover = 1 - blend * (1 - strength)
        painted = cover * painted + (1 - cover) * (0.3 + 0.7 * grey)
    return painted


def _lines(title: str | None, width: float) -> list[str]:
    """A title as lines that fit into so many inches."""
    return textwrap.wrap(title or "", max(12, int(width / 0.105)))


def _mark(ax: Axes, prediction: object, label: object, width: float) -> None:
    wrong = label is not None and str(prediction) != str(label)
    ax.set_xlabel(_taken_for(prediction, width) if wrong else " ", fontsize=8, color=ALERT, labelpad=2)


def _taken_for(prediction: object, width: float) -> str:
    return "\n".join(textwrap.wrap(f"taken for {prediction}", max(9, int(width / 0.07))))


def _bar(fig: Figure, axes: list[Axes], limit: float, scale: Scale, signed: bool, *, clip: float) -> None:
    relative = scale != "shared"
    end = 1.0 if relative else limit
    mappable = ScalarMappable(Normalize(-end if signed else 0, end), _colours(signed))
    extend = ("both" if signed else "max") if clip < 100 else "neither"
    width, height = fig.get_size_inches()
    length = 0.9 * min(height, 3.6)
    bar = fig.colorbar(
        mappable,
        ax=axes,
        extend=extend,
        extendfrac=0.08 / length,
        fraction=0.12 / width,
        pad=0.1 / width,
        shrink=min(1.0, length / height),
        aspect=length / 0.13,
    )
    bar.set_ticks([-end, 0, end] if signed else [0, end])
    bar.ax.set_yticklabels([f"{tick:.2g}".replace("-", "−") for tick in bar.get_ticks()])
    label = f"{'signed' if signed else 'absolute'} attribution"
    if scale != "shared":
        label += f"\n1 = the {scale}'s {f'P{clip:g}' if clip < 100 else 'largest'}"  # Pq: the qth percentile
    bar.set_label(label)
    bar.ax.spines["outline"].set_visible(False)
