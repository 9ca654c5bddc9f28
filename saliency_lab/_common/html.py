"""The HTML of results in Jupyter: tables and small images, without colours of their own."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_LEFT = 'style="text-align:left;vertical-align:top"'
_SIDE = 64
"""A thumbnail's height on the page, in CSS pixels."""

_DENSITY = 2
"""Pixels per CSS pixel, for screens of high density; larger images are reduced to this."""


def facts(title: str, rows: Mapping[str, str]) -> str:
    """Return a table with a name and its value in each row; everything is escaped.

    >>> facts("a < b", {"size": "3 & 4"}).count("&")
    2
    """
    body = "".join(
        f"<tr><th {_LEFT}>{escape(name)}</th><td {_LEFT}>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{caption(title)}{body}</table>"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a head; everything is escaped."""
    top = "".join(f"<th {_LEFT}>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td {_LEFT}>{escape(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table>{caption(title)}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def caption(text: str) -> str:
    """Return what a table is called, above it on the left; escaped."""
    return f'<caption style="text-align:left">{escape(text)}</caption>'


def picture(pixels: np.ndarray, alt: str, style: str = "", *, lossy: bool = False) -> str:
    """Return pixels, uint8 (H, W, 3 or 4), as an image that carries its data; enlarged, they stay squares.

    With `lossy`, it is a WebP file, which keeps photographs small, and the browser smooths it.
    """
    from PIL import Image

    buffer = io.BytesIO()
    form = "webp" if lossy else "png"
    Image.fromarray(pixels).save(buffer, format=form, quality=85)
    data = b64encode(buffer.getvalue()).decode()
    rendering = "auto" if lossy else "pixelated"
    return (
        f'<img alt="{escape(alt)}" src="data:image/{form};base64,{data}" '
        f'style="max-width:100%;image-rendering:{rendering};{style}"/>'
    )


def shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """Return images, uint8 (N, H, W, 3), no higher or wider than `side` pixels."""
    from PIL import Image

    height, width = images.shape[1:3]
    factor = side / max(height, width)
    if factor >= 1:
        return images
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in images])


def strip(images: Tensor | np.ndarray, alt: str) -> str:
    """Return images (N, C, H, W) in [0, 1] in one row of thumbnails; C is 3, or is averaged to grey."""
    array = np.asarray(images, dtype=np.float64).clip(0, 1)
    array = array if array.shape[1] == 3 else array.mean(1, keepdims=True).repeat(3, axis=1)
    drawn = shrunk((255 * array).round().astype(np.uint8).transpose(0, 2, 3, 1), _DENSITY * _SIDE)
    gap = max(1, drawn.shape[1] // 20)
    opaque = np.pad(drawn, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    spaced = np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0)))  # nothing, and that transparent
    return picture(
        np.concatenate(list(spaced), axis=1)[:, :-gap],
        alt,
        f"height:{_SIDE}px;object-fit:contain;object-position:left",
        lossy=drawn.shape[1] > _SIDE,
    )


def side_by_side(parts: Iterable[tuple[str, str]]) -> str:
    """Return small pictures (HTML) with a line of text (escaped) below each, as many per row as fit."""
    figures = "".join(
        f'<figure style="margin:0"><div>{image}</div><figcaption>{escape(text)}</figcaption></figure>'
        for image, text in parts
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:0.5em 1em">{figures}</div>'
