"""The look of every figure: colours, font sizes, sizes on the page, and how a figure is written.

Figures are made with matplotlib's objects, never through pyplot, so nothing global is touched. A plotting
function is decorated with `styled`, makes its figure with `figure`, and returns it:

>>> @styled
... def curve(values):
...     fig = figure(SCREEN_WIDTH / 2, 2.5)
...     ax = fig.subplots()
...     ax.plot(values, color=PALETTE[0])
...     ax.set(xlabel="step", ylabel="loss")
...     return fig
>>> curve([3, 2, 1]).get_size_inches().tolist()
[5.0, 2.5]
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter

from saliency_lab._common.arguments import check_path
from saliency_lab._common.errors import InputError
from saliency_lab._common.files import atomic_path

P = ParamSpec("P")
R = TypeVar("R")

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#404040", "#999999"),
    *("#882255", "#999933", "#332288", "#7A4B2A"),
)
"""Twelve categorical colours: those of Okabe & Ito without yellow, which is lost on white, and four more."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
"""A marker for each colour, so that a figure survives a black-and-white printer and colour blindness."""

_STROKES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")

DIVERGING = "RdBu_r"
"""Signed values: white is zero, red raises the class, blue lowers it; the limits are ±the same number."""

SEQUENTIAL = "viridis"
"""Values with a zero and no sign."""

SCREEN_WIDTH = 10.0
"""Inches: a figure that fills a notebook's cell or a slide."""

CHART_WIDTH = 7.0
"""Inches: a chart, its legend at the right; a little more than both columns of a conference paper."""

NARROW = 5.0
"""Inches: a narrower chart, such as for one column, has its legend below the panel and smaller letters."""

INK = "#202020"
"""Text on white."""

ALERT = "#B2182B"
"""Text that marks something wrong, such as a misprediction."""

_RC: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#404040",
    "axes.grid": False,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "regular",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.parse_math": False,  # a dollar in a user's name is a dollar
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
_NARROW_RC: Any = {
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "font.size": 8,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
_WRITE_RC: Any = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "saliency_lab",
}


class LabFigure(Figure):
    """A matplotlib Figure that shows itself in Jupyter although pyplot does not know it."""

    def savefig(self, *given: Any, **named: Any) -> None:
        """Write the figure as it looks here, whatever the caller's rcParams say."""
        with _own_style():
            if self.get_layout_engine() is not None:
                settle(self)
            super().savefig(*given, **named)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a picture for screens of high density, and its size on the page."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=_SHARP * _RC["figure.dpi"])
        width, height = (round(side * _RC["figure.dpi"]) for side in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


def settle(fig: Figure) -> None:
    """Lay the figure out, so that the places and sizes of its texts can be measured."""
    for _ in range(3):  # the constrained layout needs a few passes until long labels fit
        fig.draw_without_rendering()


_SHARP = 2
"""Pixels of a screen of high density for each pixel of the page."""


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """Let the project's rcParams hold inside, and the caller's again afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a caller's dark style must not leak into half of the figure
        mpl.rcParams.update(_RC | _WRITE_RC)
        yield


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a plotting function: inside, the project's rcParams hold; on return the caller's do."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _own_style():
            return function(*args, **kwargs)

    return wrapper


def figure(
    width: float = SCREEN_WIDTH, height: float = 4.0, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Make an empty figure, in inches, whose layout keeps labels, titles and colour bars uncropped.

    Without a layout, the caller places the panels.
    """
    fig = LabFigure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(fig)
    return fig


@dataclass(frozen=True)
class Look:
    """How one model or method of several is drawn: its colour, its marker, and its line's style."""

    colour: str
    marker: str
    stroke: Literal["-", "--", ":"]

    @property
    def number(self) -> int:
        """The position of the colour in the palette."""
        return PALETTE.index(self.colour)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return one look per name, by its position: the first twelve differ in colour.

    A model keeps its look in all figures and tables of a study if all the names are given each time. No two
    names share colour and marker up to 132 names.

    >>> looks(["standard", "sgt"])["sgt"]
    Look(colour='#D55E00', marker='s', stroke='-')
    """
    colours, markers, strokes = len(PALETTE), len(MARKERS), len(_STROKES)
    return {
        name: Look(PALETTE[i % colours], MARKERS[i % markers], _STROKES[i // colours % strokes])
        for i, name in enumerate(names)
    }


def chart(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of one panel, in inches; a narrow one has the letters of a paper's column."""
    if width < NARROW:
        mpl.rcParams.update(_NARROW_RC)  # inside `styled`
    fig = figure(width, height)
    return fig, fig.subplots()


def bare(ax: Axes) -> None:
    """Leave a picture's panel without ticks, in a thin frame."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color="#BFBFBF", linewidth=0.6)


def head(ax: Axes, title: str | None, note: str | None) -> None:
    """Write a title above a panel on the left, and a note below it in small letters, in lines that fit."""
    pad = None
    if note:
        size = 0.83 * mpl.rcParams["font.size"]
        fig = ax.get_figure(root=True)
        assert fig is not None
        width = fig.get_figwidth()
        lines = _lines(note, 0.55 * width if width >= NARROW else width - 1, size)
        ax.text(
            0, 1.02, "\n".join(lines), transform=ax.transAxes, va="bottom", fontsize=size, color="#606060"
        )
        pad = 10 + 1.2 * size * len(lines)
    if title:
        ax.set_title(title, loc="left", pad=pad)


def _lines(text: str, width: float, size: float) -> list[str]:
    """Break a text between words into lines of at most `width` inches, in letters of `size` points."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def percent_ticks(axis: Axis) -> None:
    """Label the ticks of an axis of shares in percent, with the digits that distinguish them."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%".replace("-", "−")))


_PANEL = 0.7
"""Share of its height that a narrow figure keeps, at least, above a legend of long names."""


def legend(fig: Figure, look: Mapping[str, Look], *, lines: bool = True) -> None:
    """Draw a legend at the right of the panel, or below it where the figure is narrow.

    The figure becomes wider where the names need more than one column at the right, and higher where they are
    below.
    """
    names = [wrap(name, 24) for name in look]
    handles = [
        Line2D([], [], color=each.colour, marker=each.marker, linestyle=each.stroke if lines else "")
        for each in look.values()
    ]
    length = 3 if lines else 1
    width = fig.get_figwidth()
    if width < NARROW:
        longest = max(len(line) for name in names for line in name.split("\n"))
        columns = max(1, int(width / (0.55 + 0.065 * longest)))
        below = fig.legend(handles, names, handlelength=length, loc="outside lower center", ncols=columns)
        taken, height = below.get_window_extent().height / fig.dpi, fig.get_figheight()
        fig.set_figheight(max(height + 0.17 * -(-len(names) // columns), _PANEL * height + taken))
        return
    narrowest = 0.0
    for columns in range(1, len(names) + 1):
        drawn = fig.legend(handles, names, handlelength=length, loc="outside right upper", ncols=columns)
        box = drawn.get_window_extent()
        narrowest = narrowest or box.width
        if box.height <= 0.98 * fig.bbox.height or columns == len(names):
            fig.set_figwidth(width + (box.width - narrowest) / fig.dpi)
            return
        drawn.remove()


def wrap(name: str, limit: int = 14) -> str:
    r"""Break a long name behind underscores, slashes, spaces, and dots that are not a number's.

    >>> wrap("at, warm-up 0.5"), wrap("saliency_lab.attribution")
    ('at, warm-up\n0.5', 'saliency_lab.\nattribution')
    """
    lines = [""]
    for part in re.sub(r"([_/ ]|\.(?!\d))", "\\1\0", name).split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > limit:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def text_width(text: str, size: float) -> float:
    """Return the width of one line of text in inches, in letters of `size` points."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        font = FontProperties(family=_RC["font.sans-serif"], size=size)
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def axis_label(name: str, better: str) -> str:
    """Return an axis's name and, for "higher" and "lower", which way is better."""
    arrow = {"higher": "better →", "lower": "← better", "neither": ""}[better]
    return f"{name}\N{EM SPACE}{arrow}" if arrow else name  # several plain spaces are one in an SVG


def shade(lines: int) -> float:
    """Return the opacity of each line's band: less, the more of them lie over one another."""
    return min(0.15, 1 / lines)


def save(fig: Figure, path: str | Path) -> Path:
    """Write a figure by its suffix: PNG at 200 dpi, PDF or SVG with text that stays text.

    The file replaces an older one only when complete; a figure drawn again the same way gives the same bytes.

    Raises
    ------
    InputError
        If the suffix is another one, or the folder cannot be written.
    """
    path = check_path(path)
    stamps: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Producer": None},
        ".svg": {"Date": None},
    }
    suffix = path.suffix.lower()
    if suffix not in stamps:
        raise InputError(f"a figure is written as .png, .pdf or .svg, not '{path.name}'")
    with _own_style(), atomic_path(path) as temporary:
        fig.savefig(temporary, format=suffix[1:], dpi=200, metadata=stamps[suffix])
    return path
