"""The figures of the page, from `Comparison.plot`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from saliency_lab.comparison import Comparison
from saliency_lab.comparison.measures import ROBUST, SHARES
from saliency_lab.reporting.tables import words
from saliency_lab.reporting.vector import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_METHODS = 3
"""Methods that a ranking needs."""


@dataclass(frozen=True)
class Picture:
    """A figure with its caption: the `<svg>`, or why it could not be drawn."""

    caption: str
    svg: str
    problem: str = ""


@dataclass(frozen=True)
class Figures:
    """The page's figures by section."""

    accuracy: list[Picture]
    scores: list[Picture]
    methods: list[Picture]


def figures(comparison: Comparison, drawing: Drawing) -> Figures:
    """Draw all figures that the comparison has the values for."""

    def drawn(wanted: Iterator[tuple[str, Callable[[], Figure]]], *, recolour: bool = True) -> list[Picture]:
        return [_picture(drawing, caption, make, recolour) for caption, make in wanted]

    methods = drawn(_rankings(comparison))
    return Figures(
        accuracy=drawn(_accuracy(comparison)),
        scores=drawn(_scores(comparison)),
        methods=methods + drawn(_agreement(comparison), recolour=False),
    )


def _picture(drawing: Drawing, caption: str, make: Callable[[], Figure], recolour: bool) -> Picture:
    try:
        return Picture(caption, drawing.draw(make(), caption, recolour=recolour))
    except ValueError as error:  # such as a measure that is undefined for every image
        return Picture(caption, "", str(error))


def _accuracy(comparison: Comparison) -> Iterator[tuple[str, Callable[[], Figure]]]:
    plot = comparison.plot
    for attack in dict.fromkeys(comparison.robustness["attack"]):
        yield f"Accuracy against ε under {attack}", partial(plot.robustness, attack)
    metric = next((m.metric for m in comparison.measures if not m.share and m.better != "neither"), None)
    if metric is not None and any(m.metric == ROBUST for m in comparison.measures):
        caption = f"{words(metric).capitalize()} against robust accuracy, a point a model"
        yield caption, partial(plot.tradeoff, ROBUST, metric)


def _scores(comparison: Comparison) -> Iterator[tuple[str, Callable[[], Figure]]]:
    plot = comparison.plot
    for metric in _metrics(comparison):
        yield (
            f"{words(metric).capitalize()} of every model, by method",
            partial(plot.dots, metric),
        )
        if _has_curves(comparison, metric):
            method = comparison.measure(metric).method
            caption = f"The curves behind {words(metric)} of {words(method)}, mean over the images"
            yield caption, partial(plot.curves, metric)


def _rankings(comparison: Comparison) -> Iterator[tuple[str, Callable[[], Figure]]]:
    plot = comparison.plot
    for metric in _metrics(comparison):
        rows = [m for m in comparison.measures if m.metric == metric and comparison.baseline in m.values]
        if len(rows) >= FEWEST_METHODS and rows[0].better != "neither":
            caption = f"Methods ranked by {words(metric)} within each image, for {comparison.baseline}"
            yield caption, partial(plot.ranking, metric)


def _agreement(comparison: Comparison) -> Iterator[tuple[str, Callable[[], Figure]]]:
    directed = [m for m in comparison.measures if not m.share and m.better != "neither"]
    cells = {(m.metric, m.method) for m in directed}
    metrics, methods = ({cell[i] for cell in cells} for i in (0, 1))
    complete = all(set(m.values) == set(comparison.models) for m in directed)
    if (
        len(metrics) > 1
        and len(methods) >= FEWEST_METHODS
        and len(cells) == len(metrics) * len(methods)
        and complete
    ):
        yield "Do the metrics agree about which method is better?", comparison.plot.agreement


def _metrics(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(m.metric for m in comparison.measures if m.metric not in SHARES))


def _has_curves(comparison: Comparison, metric: str) -> bool:
    measure = comparison.measure(metric)
    found = comparison.pictures
    return found is not None and all(
        found.read_curves(model, measure.method, metric) is not None for model in measure.values
    )
