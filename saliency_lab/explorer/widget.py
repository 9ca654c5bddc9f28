"""The explorer: controls on the left, the maps on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np
from torch import Tensor

from saliency_lab.comparison.format import ARROWS
from saliency_lab.explorer import page
from saliency_lab.explorer.panels import Panels, Problem
from saliency_lab.explorer.samples import Samples
from saliency_lab.plotting.painting import CLIP, tiles

if TYPE_CHECKING:
    from saliency_lab.study import Study
    from saliency_lab.study.members import Member

FIRST = 4
"""Images that are shown until others are picked."""

LARGEST = 80
"""Panels a picture; of more images than that, the first are shown."""

ANY = ""
"""What a dropdown holds where nothing is asked for: ipywidgets takes None for "nothing is selected"."""


class Explorer(widgets.VBox):
    """A study's images and maps, with controls; see `saliency_lab.explore`.

    Attributes
    ----------
    category, outcome : Dropdown
        Which images are listed: of a class; with what an attack did to the chosen models' predictions.
    metric, order : Dropdown
        Sort the list by the mean score of the chosen models and methods; images without one come last.
    images, models, methods : SelectMultiple
        What is shown.
    blend : FloatSlider; scale : Dropdown
        How far the image shows through a weak map; one colour scale for all maps, or one for each.
    status, problems, picture : HTML
        What is listed and shown; what could not be; the maps.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._panels = Panels(study)
        self._samples = Samples(study)
        measures = study.compare().measures if self._samples.metrics else []
        self._better = {measure.metric: measure.better for measure in measures}
        self._labels = study.labels

        members = [(_title(study, member), member) for member in study.members]
        held = self._panels.held
        methods = [(name if name in held else f"{name} (computed)", name) for name in self._panels.methods]
        outcomes = [(str(outcome), outcome) for outcome in self._samples.outcomes]
        metrics = [(f"{name} {ARROWS[self._better[name]]}".strip(), name) for name in self._samples.metrics]
        classes = [(self._name(label), label) for label in np.unique(self._samples.labels).tolist()]
        self.category = _dropdown("class", [("all", ANY), *classes])
        self.outcome = _dropdown("prediction", [("any", ANY), *outcomes])
        self.metric = _dropdown("sort by", [("the study's order", ANY), *metrics])
        self.order = _dropdown("order", [("best first", True), ("worst first", False)])
        self.images = _list("images", [], rows=8)
        self.models = _list("models", members, rows=min(6, max(2, len(members))))
        self.methods = _list("methods", methods, rows=8)
        self.blend = widgets.FloatSlider(
            value=0.0, min=0.0, max=1.0, step=0.05, continuous_update=False, description="blend", layout=_WIDE
        )
        self.scale = _dropdown("scale", [("each its own", "panel"), ("one for all", "shared")])
        self.status, self.problems, self.picture = (widgets.HTML() for _ in range(3))

        self.models.value = tuple(member for _, member in members[:FIRST])
        self.methods.value = tuple(name for name in self._panels.methods[: max(1, min(len(held), 2))])
        for control in (self.category, self.outcome, self.metric, self.order, self.models, self.methods):
            control.observe(self._relist, "value")
        for control in (self.images, self.blend, self.scale):
            control.observe(self._draw, "value")
        chosen = [self.category, self.outcome, self.metric, self.order]
        shown = [self.images, self.models, self.methods, self.blend, self.scale]
        left = widgets.VBox([*chosen, *shown], layout=widgets.Layout(flex="0 0 auto"))
        right = widgets.VBox(
            [self.status, self.problems, self.picture],
            layout=widgets.Layout(flex="1 1 24em", min_width="0", overflow="auto"),
        )
        super().__init__([widgets.Box([left, right], layout=widgets.Layout(flex_flow="row wrap"))])
        self._relist()

    def _relist(self, _: Any = None) -> None:
        """List the images that fit, in their order, and draw; the choice stays if the list does."""
        label, outcome = (None if each.value == ANY else each.value for each in (self.category, self.outcome))
        rows = self._samples.select(label, outcome, self.models.value)
        scores = None
        if self.metric.value != ANY:
            scores = self._samples.scores(self.metric.value, self.models.value, self.methods.value)[rows]
            low_first = (self._better[self.metric.value] == "lower") == self.order.value
            order = np.argsort(scores if low_first else -scores, kind="stable")  # NaN goes last
            rows, scores = rows[order], scores[order]
        self.order.disabled = self.metric.value == ANY
        options = []
        for place, row in enumerate(rows.tolist()):
            score = "" if scores is None else f" · {scores[place]:.3g}"
            options.append((f"{self._labels[row]} · image {row}{score.replace('nan', 'no score')}", row))
        before = self.images.options, self.images.value
        self.images.unobserve(self._draw, "value")
        self.images.options = options
        kept = tuple(options) == before[0]
        self.images.value = before[1] if kept else tuple(row for _, row in options[:FIRST])
        self.images.observe(self._draw, "value")
        self._draw()

    def _draw(self, _: Any = None) -> None:
        """Draw the chosen maps; what cannot be had is said in its place."""
        columns = [(member, method) for member in self.models.value for method in self.methods.value]
        rows = self.images.value[: max(1, LARGEST // max(1, len(columns)))]
        self.status.value = "computing …"
        maps: dict[str, Tensor] = {}
        classes: dict[str, list[int]] = {}
        problems: dict[Problem, list[str]] = {}
        for member, method in columns if rows else ():
            column = self._column(member, method)
            found = self._panels.read(member, method, rows)
            if isinstance(found, Problem):
                problems.setdefault(found, []).append(column)
                continue
            maps[column] = found.maps
            if found.classes is not None:
                classes[column] = found.classes
        self.problems.value = "".join(page.problem(columns, problem) for problem, columns in problems.items())
        self.picture.value = self._page(rows, maps, classes) if maps else ""
        self.status.value = escape(self._summary(len(rows)))

    def _page(self, rows: Sequence[int], maps: Mapping[str, Tensor], classes: Mapping[str, list[int]]) -> str:
        """A table: a row an image, a column a model and method."""
        drawn = tiles(self._study.x[list(rows)], maps, scale=self.scale.value, blend=self.blend.value)
        titles = {row: title for title, row in self.images.options}
        table = []
        for place, row in enumerate(rows):
            cells = [page.cell(drawn.images[place], f"image {row}")]
            for column in maps:
                wrong = column in classes and classes[column][place] != self._samples.labels[row]
                taken = f"taken for {self._name(classes[column][place])}" if wrong else ""
                cells.append(page.cell(drawn.maps[column][place], f"{column}, image {row}", taken))
            table.append((titles[row], cells))
        shared = self.scale.value == "shared"
        layers = drawn.layers.columns.values()
        end = f"{max(float(layer.high.max()) for layer in layers):.2g}" if shared else "1"
        of = "attribution" if shared else f"attribution, of the map's own {CLIP:g}th percentile"
        return page.table(["image", *maps], table) + page.legend(end, of)

    def _column(self, member: Member, method: str) -> str:
        """The title of a column: what tells it from the others."""
        parts = [_title(self._study, member)] if len(self._study.members) > 1 else []
        return " / ".join([*parts, method])

    def _summary(self, shown: int) -> str:
        listed, chosen = len(self.images.options), len(self.images.value)
        said = f"{listed} of {len(self._study.x)} images are listed, {shown} shown."
        if shown < chosen:
            said += f" A picture holds {LARGEST} maps: the first {shown} of the {chosen} images you picked."
        if not (listed and self.models.value and self.methods.value):
            said += " Nothing to show: pick a model, a method, and a class and outcome that some image has."
        if self.metric.value != ANY and self._better[self.metric.value] == "neither":
            said += f" Neither side of '{self.metric.value}' is better: the highest counts as best."
        if not self._panels.live:
            said += (
                " This study was loaded without its models, so only the maps it holds can be shown; "
                "sl.Study(models, sample, store=…) can compute others."
            )
        return said

    def _name(self, label: int) -> str:
        names = self._study.classes
        return names[label] if label < len(names) else str(label)


_WIDE = widgets.Layout(width="22em")


def _dropdown(description: str, options: list[tuple[str, Any]]) -> widgets.Dropdown:
    return widgets.Dropdown(description=description, options=options, layout=_WIDE)


def _list(description: str, options: list[tuple[str, Any]], rows: int) -> widgets.SelectMultiple:
    return widgets.SelectMultiple(description=description, options=options, rows=rows, layout=_WIDE)


def _title(study: Study, member: Member) -> str:
    seeds = sum(other.model == member.model for other in study.members)
    return str(member) if seeds > 1 else member.model
