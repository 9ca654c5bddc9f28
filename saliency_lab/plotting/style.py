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

import functools
import io
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saliency_lab._common.errors import InputError
from saliency_lab._common.files import atomic_path

P = ParamSpec("P")
R = TypeVar("R")

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#404040", "#999999")
"""Categorical colours told apart with any colour vision: those of Okabe & Ito, but no yellow on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
"""A marker beside each colour, so that a figure survives a black-and-white printer.

Eleven to eight colours: no pair of them comes twice among 88 names.
"""

DIVERGING = "RdBu_r"
"""Signed values: white is zero, red raises the class, blue lowers it; the limits are ±the same number."""

SEQUENTIAL = "viridis"
"""Values with a zero and no sign."""

SCREEN_WIDTH = 10.0
"""Inches: a figure that fills a notebook's cell or a slide."""

PRINT_WIDTH = 6.75
"""Inches: the two columns of a conference paper."""

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
_WRITE_RC: Any = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "saliency_lab",
}


class LabFigure(Figure):
    """A matplotlib Figure that shows itself in Jupyter although pyplot does not know it."""

    def savefig(self, *given: Any, **named: Any) -> None:
        """Write the figure; the constrained layout needs a few passes until long labels fit."""
        for _ in range(3):
            self.draw_without_rendering()
        super().savefig(*given, **named)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a plotting function: inside, the project's rcParams hold; on return the caller's do."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()  # a caller's dark style must not leak into half of the figure
            mpl.rcParams.update(_RC)
            return function(*args, **kwargs)

    return wrapper


def figure(width: float = SCREEN_WIDTH, height: float = 4.0) -> Figure:
    """Make an empty figure, in inches, whose layout keeps labels, titles and colour bars uncropped."""
    fig = LabFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a name, in order; the palette repeats after eight.

    >>> colours(["standard", "sgt"])
    {'standard': '#0072B2', 'sgt': '#D55E00'}
    """
    return dict(zip(names, cycle(PALETTE), strict=False))


def markers(names: Sequence[str]) -> dict[str, str]:
    """One marker a name, in order; they repeat after eleven."""
    return dict(zip(names, cycle(MARKERS), strict=False))


def strokes(names: Sequence[str]) -> dict[str, str]:
    """One line style a name, in order: the eight after the first eight are dashed, the next dotted.

    >>> list(strokes("abcdefghi").values())[7:]
    ['-', '--']
    """
    styles = ("-", "--", ":")
    return {name: styles[i // len(PALETTE) % len(styles)] for i, name in enumerate(names)}


def save(fig: Figure, path: str | Path) -> Path:
    """Write a figure by its suffix: PNG at 200 dpi, PDF or SVG with text that stays text.

    The file replaces an older one only when complete; a figure drawn again the same way gives the same bytes.

    Raises
    ------
    InputError
        If the suffix is another one, or the folder cannot be written.
    """
    path = Path(path)
    stamps: dict[str, dict[str, Any]] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Producer": None},
        ".svg": {"Date": None},
    }
    suffix = path.suffix.lower()
    if suffix not in stamps:
        raise InputError(f"a figure is written as .png, .pdf or .svg, not '{path.name}'")
    with mpl.rc_context(_WRITE_RC), atomic_path(path) as beside:
        fig.savefig(beside, format=suffix[1:], dpi=200, metadata=stamps[suffix])
    return path
