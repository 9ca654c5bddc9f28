"""The page of an explorer: a table of small pictures, their scale, and what could not be shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from saliency_lab._common.html import picture, shrunk
from saliency_lab.plotting.painting import scale_bar

if TYPE_CHECKING:
    import numpy as np

    from saliency_lab.explorer.panels import Problem

_TILE, _PIXELS = "7.5em", 160
"""A panel's width on the page, and the pixels it has at most."""

_PAD, _LINE = "padding:0.15em 0.3em", "line-height:1.4"
_ROW = f"{_PAD};font-weight:normal;text-align:right;white-space:nowrap"


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table: the names of the columns, and a row's title and its cells (HTML)."""
    top = "".join(
        f'<th scope="col" style="{_PAD};max-width:{_TILE};vertical-align:bottom">{_breakable(name)}</th>'
        for name in head
    )
    body = "".join(
        f'<tr><th scope="row" style="{_ROW}">{escape(title)}</th>{"".join(cells)}</tr>'
        for title, cells in rows
    )
    return f"<table style='{_LINE}'><thead><tr><td></td>{top}</tr></thead><tbody>{body}</tbody></table>"


def cell(pixels: np.ndarray, alt: str, below: str = "") -> str:
    """Return a cell: pixels, uint8 (H, W, 3), and a line that says what is wrong."""
    image = picture(shrunk(pixels[None], _PIXELS)[0], alt, f"width:{_TILE};max-width:none;display:block")
    note = f'<div style="text-align:center">✗ {escape(below)}</div>' if below else ""
    return f'<td style="{_PAD};vertical-align:top">{image}{note}</td>'


def legend(end: str, of: str) -> str:
    """Return the scale of the maps, from −`end` to `end`, and what it is of."""
    bar = picture(scale_bar(), "blue to white to red", "width:12em;height:0.9em;vertical-align:middle")
    return f"<div>−{end} {bar} {end} {of}</div>"


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def problem(columns: Sequence[str], found: Problem) -> str:
    """Say why some columns are not shown."""
    detail = f"<details><summary>traceback</summary><pre>{escape(found.detail)}</pre></details>"
    return (
        f'<div role="alert" style="{_LINE}"><b>{escape(", ".join(columns))}</b>: {escape(found.message)}'
        f"{detail if found.detail else ''}</div>"
    )
