"""The page of an explorer: a table of small images, their scale, and what could not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from saliency_lab._common.html import picture, shrunk
from saliency_lab.plotting.painting import scale_bar
from saliency_lab.plotting.panels import is_photograph

if TYPE_CHECKING:
    import numpy as np

    from saliency_lab.explorer.panels import NoMaps

PIXELS_PER_EM = 32
"""Pixels of a tile per em of its width: two for each one of the page, for screens of high density."""

_NO_WIDER = "contain:inline-size"
"""Keeps an element as wide as the notebook's column, whatever its content."""

_PAD, _LINE = "padding:0.15em 0.3em", "line-height:1.4"
_ROW = f"{_PAD};font-weight:normal;text-align:right;min-width:5em;max-width:9em;overflow-wrap:anywhere"


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], size: float) -> str:
    """Return a table: the names of the columns, and the title and the entries (HTML) of each row.

    The table scrolls sideways where the notebook's column is narrow.
    """
    top = "".join(
        f'<th scope="col" style="{_PAD};max-width:{size}em;vertical-align:bottom">{_breakable(name)}</th>'
        for name in head
    )
    titles = [escape(title).replace(" · ", "<br>") for title, _ in rows]
    body = "".join(
        f'<tr><th scope="row" style="{_ROW}">{title}</th>{"".join(entries)}</tr>'
        for title, (_, entries) in zip(titles, rows, strict=True)
    )
    table = f"<table style='{_LINE}'><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="overflow-x:auto;{_NO_WIDER}">{table}</div>'


def tile(pixels: np.ndarray, alt: str, size: float, below: str = "") -> str:
    """Return an entry of the table: pixels, uint8 (H, W, 3), `size` em wide, and a line of text below."""
    rendering = "auto" if is_photograph(pixels.shape[:2]) else "pixelated"
    style = f"width:{size}em;max-width:none;display:block;image-rendering:{rendering}"
    image = picture(shrunk(pixels[None], round(PIXELS_PER_EM * size))[0], alt, style)
    note = f'<div style="text-align:center;max-width:{size}em">{escape(below)}</div>' if below else ""
    return f'<td style="{_PAD};vertical-align:top">{image}{note}</td>'


def legend(low: str, high: str, of: str, signed: bool) -> str:
    """Return a colour scale, its ends, and what it is of."""
    alt = "blue to white to red" if signed else "dark blue to green to yellow"
    bar = picture(scale_bar(signed), alt, "width:12em;max-width:40%;height:0.9em;vertical-align:middle")
    return f"<div style='{_NO_WIDER}'>{escape(low)} {bar} {escape(high)} {escape(of)}</div>"


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def problem(columns: Sequence[str], missing: NoMaps) -> str:
    """State why some columns are not shown."""
    detail = f"<details><summary>traceback</summary><pre>{escape(missing.detail)}</pre></details>"
    return (
        f'<div role="alert" style="{_LINE}"><b>{escape(", ".join(columns))}</b>: {escape(missing.message)}'
        f"{detail if missing.detail else ''}</div>"
    )
