"""The figures of a report: one list, which every writer draws from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.text import words
from saliency_lab.comparison import Comparison
from saliency_lab.comparison.measures import ROBUST, SHARES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST_METHODS = 3
"""Methods that a ranking needs."""

MAPS_SHOWN = 5
"""Images in the figure of maps."""


@dataclass(frozen=True)
class FigureSpec:
    """A figure that can be drawn: its section, the end of its file's name, and its caption.

    `kind` is the format of its file. A figure with `recolour` takes the colours of the page's theme.
    """

    section: Literal["accuracy", "scores", "methods", "maps", "training", "retraining"]
    stem: str
    caption: str
    draw: Callable[[], Figure]
    kind: Literal["svg", "png"] = "svg"
    recolour: bool = True


def list_figures(comparison: Comparison) -> list[FigureSpec]:
    """List all figures that the comparison has the values for."""
    return [*_accuracy(comparison), *_scores(comparison), *_methods(comparison), *_maps(comparison)]


def _accuracy(comparison: Comparison) -> Iterator[FigureSpec]:
    plot = comparison.plot
    attacked = [measure for measure in comparison.measures if measure.metric == ROBUST]
    for attack in dict.fromkeys(measure.method for measure in attacked):
        caption = f"Accuracy under {attack} against ε, with intervals"
        yield FigureSpec("accuracy", f"robustness-{attack}", caption, partial(plot.robustness, attack))
    scored = [measure for measure in comparison.measures if not measure.share]
    metric = next((m.metric for m in scored if m.better != "neither"), scored[0].metric if scored else None)
    if metric is not None and attacked:
        radii = {measure.eps for measure in attacked if measure.method == attacked[0].method}
        eps = max(radii & {*comparison.audits.get("eps", ())} or radii)
        caption = f"{_name(metric)} against accuracy under attack at ε = {format_epsilon(eps)}"
        draw = partial(plot.tradeoff, ROBUST, metric, eps=eps)
        yield FigureSpec("accuracy", "tradeoff", caption, draw)


def _scores(comparison: Comparison) -> Iterator[FigureSpec]:
    plot = comparison.plot
    for metric in _metrics(comparison):
        caption = f"{_name(metric)} by method, with intervals"
        yield FigureSpec("scores", metric, caption, partial(plot.dots, metric))
        if _has_curves(comparison, metric):
            method = comparison.measure(metric).method
            caption = f"The curves behind {words(metric)} of {words(method)}, mean over the images"
            if metric == "masked_input_accuracy":
                caption = "Accuracy as the pixels that a map calls important are removed"
            stem = "masking" if metric == "masked_input_accuracy" else f"curves-{metric}"
            yield FigureSpec("scores", stem, caption, partial(plot.curves, metric))


def _methods(comparison: Comparison) -> Iterator[FigureSpec]:
    plot = comparison.plot
    for metric in _metrics(comparison):
        rows = [m for m in comparison.measures if m.metric == metric and comparison.baseline in m.values]
        if len(rows) >= FEWEST_METHODS and rows[0].better != "neither":
            caption = f"Methods ranked by {words(metric)} within each image, for {comparison.baseline}"
            yield FigureSpec("methods", f"ranking-{metric}", caption, partial(plot.ranking, metric))
    directed = [m for m in comparison.measures if not m.share and m.better != "neither"]
    pairs = {(m.metric, m.method) for m in directed}
    metrics, methods = ({pair[i] for pair in pairs} for i in (0, 1))
    complete = all(set(m.values) == set(comparison.models) for m in directed)
    if (
        len(metrics) > 1
        and len(methods) >= FEWEST_METHODS
        and len(pairs) == len(metrics) * len(methods)
        and complete
    ):
        caption = "Do the metrics agree about which method is better?"
        yield FigureSpec("methods", "agreement", caption, plot.agreement, recolour=False)


def _maps(comparison: Comparison) -> Iterator[FigureSpec]:
    method = next((m.method for m in comparison.measures if not m.share), None)
    if method is not None and comparison.pictures is not None:
        caption = f"Maps by {words(method)}: first images, first seed of each model"
        count = min(MAPS_SHOWN, len(comparison.pictures.x))
        draw = partial(comparison.plot.maps, n=count, method=method)
        yield FigureSpec("maps", "maps", caption, draw, kind="png", recolour=False)


def _name(metric: str) -> str:
    return "AUC" if metric == "auc" else words(metric).capitalize()


def _metrics(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(m.metric for m in comparison.measures if m.metric not in SHARES))


def _has_curves(comparison: Comparison, metric: str) -> bool:
    measure = comparison.measure(metric)
    pictures = comparison.pictures
    return pictures is not None and all(
        pictures.read_curves(model, measure.method, metric) is not None for model in measure.values
    )
