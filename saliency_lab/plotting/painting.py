"""How maps become colours: one value per pixel, a scale, and the image that shows through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap
from scipy.ndimage import gaussian_filter

from saliency_lab._common.errors import InputError
from saliency_lab.plotting.arrays import as_pictures, check_batch, check_pictures, check_same_size
from saliency_lab.plotting.panels import is_photograph
from saliency_lab.plotting.style import DIVERGING, SEQUENTIAL

Scale = Literal["shared", "row", "panel"]

CLIP = 99.5
"""A colour scale ends at this percentile of the magnitudes, unless another is asked for."""

BLEND = 0.7
"""How far a photograph shows through where its map is weak, unless another share is asked for."""

_INCOMPARABLE = 10.0
"""Columns whose scales differ by more than this factor do not share one."""

_OFFSET = 0.1
"""The scale of values without a sign begins at 0 if the lowest are below this share of the highest."""

_UNDEFINED = "#BFBFBF"


@dataclass(frozen=True)
class Layer:
    """The maps of one column: planes (N, H, W), and the ends of each one's colour scale, (N,)."""

    planes: np.ndarray
    signed: bool
    low: np.ndarray
    high: np.ndarray


class Layers(NamedTuple):
    """The maps of a figure by column, and the scale that was chosen for them."""

    columns: dict[str, Layer]
    scale: Scale


def layers(
    maps: Mapping[str, Any],
    *,
    scale: Scale | None = None,
    signed: bool | None = None,
    smooth: float = 0.0,
    clip: float = CLIP,
) -> Layers:
    """Reduce maps (N, C, H, W) to one value per pixel, and choose their colour scales.

    Parameters
    ----------
    maps : mapping of column to tensor, array or `Attributions`
    scale : {"shared", "row", "panel"}, optional
        One colour scale for all, for each row, or for each panel. By default one per panel if the columns are
        maps of different methods or differ in size by more than a factor of 10, and otherwise one for all.
    signed : bool, optional
        True sums the channels and centres the scale at zero; False sums their magnitudes. By default the
        channels are summed, and a column without negative values has a scale without a sign.
    smooth : float
        Standard deviation of a Gaussian filter over each map, in pixels; 0 leaves the maps as they are.
    clip : float in (0, 100]
        A scale ends at this percentile of the magnitudes.

    Raises
    ------
    InputError
        If there is no map, or the arrays do not fit each other, or a setting is out of range.
    """
    check_maps(maps)
    if not 0 < clip <= 100:
        raise InputError(f"clip is a percentile in (0, 100], not {clip}")
    if not 0 <= smooth < np.inf:
        raise InputError(f"smooth is a standard deviation in pixels, 0 or more, not {smooth}")
    over: dict[str, tuple[int, ...]] = {"shared": (0, 1, 2, 3), "row": (0, 2, 3), "panel": (2, 3)}
    if scale is not None and scale not in over:
        raise InputError(f"scale must be one of {', '.join(over)}, not {scale!r}")
    planes = {name: _plane(name, values, signed, smooth) for name, values in maps.items()}
    first = next(iter(planes.values())).shape
    for name, each in planes.items():
        if each.shape != first:
            raise InputError(f"maps '{name}' cover {each.shape}, the first column {first}")
    signs = _signs(maps, planes, signed)
    chosen = scale or _comparable(maps, planes, clip)
    columns: dict[str, Layer] = {}
    for sign in (True, False):
        group = {name: each for name, each in planes.items() if signs[name] == sign}
        if group:
            low, high = limits(np.stack([*group.values()]), over[chosen], clip, sign)
            for i, (name, each) in enumerate(group.items()):
                columns[name] = Layer(each, sign, low[i], high[i])
    return Layers({name: columns[name] for name in planes}, chosen)


def check_maps(maps: object) -> None:
    """Check that `maps` names at least one column.

    Raises
    ------
    InputError
        If it does not.
    """
    if not isinstance(maps, Mapping):
        raise InputError(
            f"maps must be a mapping, such as {{'saliency': maps}}, not {type(maps).__name__}; the images "
            "are an argument of their own, in front of it"
        )
    if not maps:
        raise InputError("there is no map to draw; give at least one column")


def _plane(name: str, values: Any, signed: bool | None, smooth: float) -> np.ndarray:
    """Return one value per pixel, (N, H, W)."""
    array = check_batch(f"maps '{name}'", values)
    plane = np.abs(array).sum(1) if signed is False else array.sum(1)
    return gaussian_filter(plane, (0, smooth, smooth)) if smooth else plane


def _signs(maps: Mapping[str, Any], planes: Mapping[str, np.ndarray], signed: bool | None) -> dict[str, bool]:
    """Return whether each column has a sign; columns of one method have it together."""
    if signed is not None:
        return dict.fromkeys(planes, signed)
    methods = {name: getattr(values, "method", name) for name, values in maps.items()}
    negative = {name: bool((plane < 0).any()) or not (plane > 0).any() for name, plane in planes.items()}
    return {
        name: any(negative[other] for other in planes if methods[other] == methods[name]) for name in planes
    }


def _comparable(maps: Mapping[str, Any], planes: Mapping[str, np.ndarray], clip: float) -> Scale:
    methods = {getattr(values, "method", None) for values in maps.values()}
    sizes = [_percentile(plane, (0, 1, 2), clip).item() for plane in planes.values()]
    sizes = [size for size in sizes if size > 0]
    differ = len(methods) > 1 or (len(sizes) > 1 and max(sizes) > _INCOMPARABLE * min(sizes))
    return "panel" if differ else "shared"


def _percentile(planes: np.ndarray, axes: tuple[int, ...], clip: float) -> np.ndarray:
    """Return the magnitude at which a scale ends, over these axes; positive unless all values are zero."""
    magnitudes = np.where(np.isfinite(planes), np.abs(planes), 0)
    limits = np.percentile(magnitudes, clip, axis=axes, keepdims=True)
    return np.asarray(np.where(limits > 0, limits, magnitudes.max(axis=axes, keepdims=True)))


def limits(
    planes: np.ndarray, axes: tuple[int, ...], clip: float, signed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of each panel's scale, (columns, N), over these axes of (columns, N, H, W)."""
    high = _percentile(planes, axes, clip)
    high = np.where(high > 0, high, 1.0)
    if signed:
        low = -high
    else:
        finite = np.where(np.isfinite(planes), planes, 0)
        low = np.percentile(finite, 100 - clip, axis=axes, keepdims=True)
        low = np.where((low < _OFFSET * high) | (low >= high), 0.0, low)
    shape = planes.shape[:2]
    return tuple(np.broadcast_to(end[..., 0, 0], shape) for end in (low, high))  # type: ignore[return-value]


def colours(signed: bool) -> Colormap:
    """Return the colours of a scale with a sign, or without."""
    return mpl.colormaps[DIVERGING if signed else SEQUENTIAL].with_extremes(bad=_UNDEFINED)


def blend_of(blend: float | None, shape: Sequence[int]) -> float:
    """Return how far the image shows through: by default not at all, and 0.7 for a photograph.

    Raises
    ------
    InputError
        If `blend` is outside [0, 1].
    """
    if blend is None:
        return BLEND if is_photograph(shape) else 0.0
    if not 0 <= blend <= 1:
        raise InputError(f"blend must lie in [0, 1], not {blend}")
    return blend


def paint(layer: Layer, row: int, picture: np.ndarray | None, blend: float) -> np.ndarray:
    """Return colours (H, W, 3) in [0, 1] of one map, over its picture (H, W) or (H, W, 3)."""
    plane, low, high = layer.planes[row], layer.low[row], layer.high[row]
    place = ((plane - low) / (high - low)).clip(0, 1)
    painted = colours(layer.signed)(np.ma.masked_invalid(place))[..., :3]
    if picture is None or not blend:
        return np.asarray(painted)
    grey = (picture if picture.ndim == 2 else picture.mean(-1))[..., None]
    strength = np.abs(2 * place - 1) if layer.signed else place
    cover = 1 - blend * (1 - np.nan_to_num(strength, nan=1.0)[..., None])
    return np.asarray(cover * painted + (1 - cover) * (0.3 + 0.7 * grey))


class Tiles(NamedTuple):
    """Pixels of images and maps, uint8 (N, H, W, 3), and the layers that the maps were painted from."""

    images: np.ndarray
    maps: dict[str, np.ndarray]
    layers: Layers


def tiles(
    images: Any,
    maps: Mapping[str, Any],
    *,
    scale: Scale | None = None,
    signed: bool | None = None,
    blend: float | None = None,
    smooth: float = 0.0,
    clip: float = CLIP,
) -> Tiles:
    """Paint the panels of `grid` as pixels, for a page that lays them out itself. Parameters as there.

    Raises
    ------
    InputError
        If there is nothing to draw, or the arrays do not fit each other.
    """
    shown = layers(maps, scale=scale, signed=signed, smooth=smooth, clip=clip)
    pictures = check_pictures("images", images)
    for name, layer in shown.columns.items():
        check_same_size(f"maps '{name}'", layer.planes, pictures)
    blend = blend_of(blend, pictures.shape)
    drawn = as_pictures(pictures)
    painted = {
        name: _bytes(np.stack([paint(layer, row, drawn[row], blend) for row in range(len(drawn))]))
        for name, layer in shown.columns.items()
    }
    return Tiles(as_pixels(images), painted, shown)


def as_pixels(images: Any) -> np.ndarray:
    """Return images (N, C, H, W) in [0, 1] as pixels, uint8 (N, H, W, 3)."""
    drawn = as_pictures(check_pictures("images", images))
    return _bytes(drawn if drawn.ndim == 4 else drawn[..., None].repeat(3, axis=-1))


def scale_bar(signed: bool = True) -> np.ndarray:
    """Return the colours of a scale from its lowest to its highest value, uint8 (1, 101, 3)."""
    return _bytes(colours(signed)(np.linspace(0, 1, 101))[None, :, :3])


def _bytes(values: np.ndarray) -> np.ndarray:
    return (255 * values).round().astype(np.uint8)
