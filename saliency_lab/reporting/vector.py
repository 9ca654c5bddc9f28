"""A matplotlib figure as SVG for a page, with no ids or styles that reach beyond it."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from saliency_lab.plotting.style import PALETTE, Look

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

_INK = {
    **dict.fromkeys(("#000000", "#202020", "#404040"), "var(--ink)"),
    **dict.fromkeys(("#606060", "#808080"), "var(--muted)"),
    **dict.fromkeys(("#bfbfbf", "#d9d9d9", "#e5e5e5"), "var(--line)"),
    "#ffffff": "var(--paper)",
}
_COLOURS = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(PALETTE)} | _INK
"""Colours of the figures → variables of the page's style sheet, each with a light and a dark value."""


_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML forbids, such as the escapes of a terminal's colours in a name."""


class Drawing:
    """SVG fragments that share one set of style rules; the page allows only its own style sheet."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._count = 0

    def draw(self, figure: Figure, title: str, *, recolour: bool = True) -> str:
        """Return a figure as an `<svg>` element with a title; `recolour=False` keeps its own colours.

        The same figures in the same order give the same text.
        """
        self._count += 1
        root = _read(figure)
        prefix = f"figure{self._count}-"
        used = {each for element in root.iter() for each in _references(element)}
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in {f"{{{SVG}}}metadata", f"{{{SVG}}}style"}:
                    parent.remove(child)
        for element in root.iter():
            self._tidy(element, prefix, used, recolour)
        width, height = (float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height"))
        root.attrib.pop("version", None)
        name = ElementTree.Element(f"{{{SVG}}}title")
        name.text = title
        root.insert(0, name)
        root.attrib |= {
            "class": "chart" if recolour else "chart paper",
            "role": "img",
            "aria-label": title,
            "width": f"{width * 4 / 3:.0f}",
            "height": f"{height * 4 / 3:.0f}",
        }
        return ElementTree.tostring(root, encoding="unicode")

    @property
    def rules(self) -> str:
        """The style rules of all figures drawn so far."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    def _tidy(self, element: ElementTree.Element, prefix: str, used: set[str], recolour: bool) -> None:
        style = element.attrib.pop("style", "")
        if style:
            style = re.sub(r"font: ([\d.]+px)[^;]*", r"font: \1 var(--sans)", style)
            style = re.sub(r"font: (bold|\d+) ([\d.]+px)[^;]*", r"font: \1 \2 var(--sans)", style)
            if recolour:
                style = re.sub(r"#[0-9a-f]{6}\b", lambda hit: _COLOURS.get(hit[0], hit[0]), style)
            element.set("class", self._classes.setdefault(style, f"s{len(self._classes)}"))
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", prefix + str(name))
        for key, value in element.attrib.items():
            if key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif value.startswith("url(#"):
                element.set(key, f"url(#{prefix}{value[5:]}")


@dataclass(frozen=True)
class Marker:
    """The colour and the marker of a model, as the figures draw them, for the page's tables."""

    look: Look

    @property
    def colour(self) -> int:
        """The position of the colour in the palette."""
        return self.look.number

    @property
    def path(self) -> str:
        """The outline of the marker, in a square of one unit around 0."""
        style = MarkerStyle(self.look.marker)
        path = style.get_path().transformed(style.get_transform())
        letters = {
            path.MOVETO: "M",
            path.LINETO: "L",
            path.CURVE3: "Q",
            path.CURVE4: "C",
            path.CLOSEPOLY: "Z",
        }
        parts = []
        for points, code in path.iter_segments(simplify=False, curves=True):
            numbers = (
                [] if code == path.CLOSEPOLY else [f"{x:.3f} {-y:.3f}" for x, y in points.reshape(-1, 2)]
            )
            parts.append(letters[code] + " ".join(numbers))
        return "".join(parts)


def _read(figure: Figure) -> ElementTree.Element:
    buffer = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "saliency_lab"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.fromstring(_NO_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue()))


def _references(element: ElementTree.Element) -> list[str]:
    """Names of the elements that this one points to."""
    values = element.attrib.items()
    links = [value[1:] for key, value in values if key.endswith("href") and value.startswith("#")]
    return links + [value[5:-1] for _, value in values if value.startswith("url(#")]
