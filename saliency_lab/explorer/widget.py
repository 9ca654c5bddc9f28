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
from saliency_lab.explorer.panels import NoMaps, Panel, PanelSource, StudyAttack
from saliency_lab.explorer.samples import Samples
from saliency_lab.plotting.maps import Prediction, caption, distinct_numbers
from saliency_lab.plotting.painting import CLIP, Layer, Tiles, as_pixels, blend_of, tiles
from saliency_lab.plotting.panels import is_photograph

if TYPE_CHECKING:
    from saliency_lab.study import Study
    from saliency_lab.study.sample import Member

FIRST = 4
"""Images that are shown until others are picked."""

LARGEST = 80
"""Maps in a picture; of more, those of the first images are shown."""

ANY = ""
"""The value of a dropdown where nothing is asked for: ipywidgets takes None for "nothing is selected"."""


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
    attack : Dropdown
        Show the images as an attack of the study changes them, with the maps and predictions for these.
    blend, smooth, size : FloatSlider; scale : Dropdown
        How far the image shows through a weak map; the standard deviation of a Gaussian filter over the maps,
        in pixels; the width of a tile; one colour scale for all maps, or one for each.
    status, problems, picture : HTML
        What is listed and shown; what could not be; the maps.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._panels = PanelSource(study)
        self._samples = Samples(study)
        measures = study.compare().measures if self._samples.metrics else []
        self._better = {measure.metric: measure.better for measure in measures}
        self._labels = study.labels

        members = [(_title(study, member), member) for member in study.members]
        stored = self._panels.stored
        methods = [(name if name in stored else f"{name} (computed)", name) for name in self._panels.methods]
        attacks = [StudyAttack(*each) for each in self._samples.attacks] if self._panels.live else []
        outcomes = [(str(outcome), outcome) for outcome in self._samples.outcomes]
        metrics = [(f"{name} {ARROWS[self._better[name]]}".strip(), name) for name in self._samples.metrics]
        classes = [
            (self._study.class_name(label), label) for label in np.unique(self._samples.labels).tolist()
        ]
        self.category = _dropdown("class", [("all", ANY), *classes])
        self.outcome = _dropdown("prediction", [("any", ANY), *outcomes])
        self.metric = _dropdown("sort by", [("the study's order", ANY), *metrics])
        self.order = _dropdown("order", [("best first", True), ("worst first", False)])
        self.images = _list("images", [], rows=8)
        self.models = _list("models", members, rows=min(6, max(2, len(members))))
        self.methods = _list("methods", methods, rows=8)
        self.attack = _dropdown("attacked by", [("nothing", ANY), *((str(each), each) for each in attacks)])
        photograph = is_photograph(study.x.shape)
        self.blend = _slider("blend", blend_of(None, study.x.shape), 0.0, 1.0, 0.05)
        self.smooth = _slider("smooth", 0.0, 0.0, max(2.0, study.x.shape[-1] / 28), 0.5)
        self.size = _slider("size", 12.0 if photograph else 7.5, 4.0, 32.0, 0.5)
        self.scale = _dropdown("scale", [("each its own", "panel"), ("one for all", "shared")])
        self.status, self.problems, self.picture = (widgets.HTML() for _ in range(3))

        self.models.value = tuple(member for _, member in members[:FIRST])
        self.methods.value = tuple(name for name in self._panels.methods[: max(1, min(len(stored), 2))])
        for control in (self.category, self.outcome, self.metric, self.order, self.models, self.methods):
            control.observe(self._relist, "value")
        for control in (self.images, self.attack, self.blend, self.smooth, self.size, self.scale):
            control.observe(self._draw, "value")
        chosen = [self.category, self.outcome, self.metric, self.order]
        shown = [self.images, self.models, self.methods, *([self.attack] if attacks else [])]
        looks = [self.blend, self.smooth, self.size, self.scale]
        left = widgets.VBox(
            [*chosen, *shown, *looks], layout=widgets.Layout(flex="1 1 16em", max_width="24em", min_width="0")
        )
        right = widgets.VBox(
            [self.status, self.problems, self.picture],
            layout=widgets.Layout(flex="4 1 20em", min_width="0", overflow="auto", padding="0 0 0 0.5em"),
        )
        wrapped = widgets.Layout(flex_flow="row wrap", width="100%", min_width="0")
        super().__init__([widgets.Box([left, right], layout=wrapped)])
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
        """Draw the chosen maps, and state the reason where there is none."""
        columns = [(member, method) for member in self.models.value for method in self.methods.value]
        rows = self.images.value[: max(1, LARGEST // max(1, len(columns)))]
        self.status.value = "computing …"
        attacked = None if self.attack.value == ANY else self.attack.value
        panels: dict[str, tuple[Member, Panel]] = {}
        problems: dict[NoMaps, list[str]] = {}
        for member, method in columns if rows else ():
            column = self._column(member, method)
            panel = self._panels.read(member, method, rows, attacked)
            if isinstance(panel, NoMaps):
                problems.setdefault(panel, []).append(column)
            else:
                panels[column] = member, panel
        self.problems.value = "".join(page.problem(columns, problem) for problem, columns in problems.items())
        self.picture.value = self._page(rows, panels, attacked) if panels else ""
        self.status.value = escape(self._summary(len(rows)))

    def _page(
        self, rows: Sequence[int], panels: Mapping[str, tuple[Member, Panel]], attacked: StudyAttack | None
    ) -> str:
        """Return a table with one row per image: the image, as attacked on each model, and the maps."""
        size = self.size.value
        shown = {"image": self._study.x[list(rows)]}
        if attacked is not None:
            members = dict.fromkeys(member for member, _ in panels.values())
            shown |= {
                f"{_title(self._study, member)}: attacked": self._panels.images(member, rows, attacked)
                for member in members
            }
        images = {name: as_pixels(x) for name, x in shown.items()}
        drawn: dict[str, np.ndarray] = {}
        layers: list[Layer] = []
        maps = {column: panel.maps for column, (_, panel) in panels.items()}
        if attacked is None:
            painted = self._tiles(shown["image"], maps)
            drawn, layers = painted.maps, list(painted.layers.columns.values())
        else:
            for member in members:
                own = {column: maps[column] for column, (each, _) in panels.items() if each is member}
                painted = self._tiles(self._panels.images(member, rows, attacked), own)
                drawn |= painted.maps
                layers += painted.layers.columns.values()
        titles = {row: title for title, row in self.images.options}
        table = []
        for place, row in enumerate(rows):
            entries = [page.tile(each[place], f"{name} {row}", size) for name, each in images.items()]
            for column, (_, panel) in panels.items():
                below = self._prediction(panel, place, row)
                entries.append(page.tile(drawn[column][place], f"{column}, image {row}", size, below))
            table.append((titles[row], entries))
        return page.table([*images, *drawn], table, size) + self._legends(layers)

    def _tiles(self, images: Tensor, maps: Mapping[str, Tensor]) -> Tiles:
        return tiles(images, maps, scale=self.scale.value, blend=self.blend.value, smooth=self.smooth.value)

    def _prediction(self, panel: Panel, place: int, row: int) -> str:
        """Write the predicted class with its probability, and whether it is right."""
        if panel.predictions is None:
            return ""
        name = self._study.class_name(panel.predictions.classes[place])
        written = caption(
            Prediction(name, panel.predictions.probabilities[place]),
            self._study.class_name(self._samples.labels[row]),
        )
        return "" if written is None else written.text

    def _legends(self, layers: Sequence[Layer]) -> str:
        shared = self.scale.value == "shared"
        of = "attribution" if shared else f"attribution as a share of the map's {CLIP:g}th percentile"
        if self.smooth.value:
            of += f", smoothed with σ = {self.smooth.value:g} pixels"
        legends = []
        for signed in (True, False):
            group = [layer for layer in layers if layer.signed == signed]
            if group:
                low, high = (
                    min(float(each.low.min()) for each in group),
                    max(float(each.high.max()) for each in group),
                )
                ends = (
                    distinct_numbers([low, high])
                    if shared
                    else ("−1" if signed else "lowest", "1" if signed else "highest")
                )
                note = of if signed else f"{of} (maps without negative values)"
                legends.append(page.legend(ends[0], ends[1], note, signed))
        return "".join(legends)

    def _column(self, member: Member, method: str) -> str:
        """Return the title of a column: the model, where there are several, and the method."""
        parts = [_title(self._study, member)] if len(self._study.members) > 1 else []
        return " / ".join([*parts, method])

    def _summary(self, shown: int) -> str:
        listed, chosen = len(self.images.options), len(self.images.value)
        message = f"{listed} of {len(self._study.x)} images are listed, {shown} shown."
        if shown < chosen:
            message += (
                f" A picture holds {LARGEST} maps: the first {shown} of the {chosen} images you picked."
            )
        if not (listed and self.models.value and self.methods.value):
            message += (
                " Nothing to show: pick a model, a method, and a class and outcome that some image has."
            )
        if self.metric.value != ANY and self._better[self.metric.value] == "neither":
            message += f" Neither side of '{self.metric.value}' is better: the highest counts as best."
        if not self._panels.live:
            message += (
                " This study was loaded without its models, so only its stored maps can be shown; "
                "sl.Study(models, sample, store=…) can compute others."
            )
        return message


_WIDE = widgets.Layout(width="auto", min_width="0")  # as wide as the column, less the widget's own margin


def _dropdown(description: str, options: list[tuple[str, Any]]) -> widgets.Dropdown:
    return widgets.Dropdown(description=description, options=options, layout=_WIDE)


def _slider(description: str, value: float, low: float, high: float, step: float) -> widgets.FloatSlider:
    return widgets.FloatSlider(
        value=value,
        min=low,
        max=high,
        step=step,
        continuous_update=False,
        description=description,
        layout=_WIDE,
    )


def _list(description: str, options: list[tuple[str, Any]], rows: int) -> widgets.SelectMultiple:
    return widgets.SelectMultiple(description=description, options=options, rows=rows, layout=_WIDE)


def _title(study: Study, member: Member) -> str:
    seeds = sum(other.model == member.model for other in study.members)
    return str(member) if seeds > 1 else member.model
