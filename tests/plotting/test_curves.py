"""The robustness figure says what its tables say."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import saliency_lab as sl
from saliency_lab.plotting.bands import bands
from saliency_lab.plotting.curves import robustness
from saliency_lab.plotting.dots import dots
from saliency_lab.plotting.slopes import slopes
from saliency_lab.plotting.style import MARKERS, PALETTE, looks, settle
from saliency_lab.plotting.tradeoff import tradeoff

NOTE = "500 images × 3 seeds; 95 % intervals"
LONG_NOTE = (
    "500 images × 3 seeds; 95 % intervals; open marks: models without an interval, because their training "
    "seeds disagree"
)


def table(*accuracy: float) -> pd.DataFrame:
    values = np.array(accuracy)
    eps = 0.1 * np.arange(len(values))
    return pd.DataFrame(
        {
            "eps": eps,
            "accuracy": values,
            "low": (values - 0.1).clip(0),
            "high": (values + 0.1).clip(0, 1),
            "n": 50,
        }
    )


def test_lines_bands_and_names() -> None:
    before = dict(mpl.rcParams)
    fig = robustness({"standard": table(0.9, 0.3, 0.0), "at": table(0.85, 0.6, 0.4)})
    ax = fig.axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.9, 0.3, 0.0], [0.85, 0.6, 0.4]]
    assert len(ax.collections) == 2  # a band a model
    texts = [text.get_text() for text in ax.texts]
    assert set(texts) == {"50 images", "standard, 0%", "at, 40%"}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.1", "0.2"]
    assert dict(mpl.rcParams) == before


def test_bad_tables_are_refused() -> None:
    with pytest.raises(sl.SaliencyLabError, match="at least one"):
        robustness({})
    with pytest.raises(sl.SaliencyLabError, match="lacks the column"):
        robustness({"a": table(1.0).drop(columns="low")})


def test_lines_that_end_together_have_a_legend_and_many_differ_by_dashes() -> None:
    together = {name: table(0.9, 0.3, 0.0) for name in ("a", "b")}
    (legend,) = robustness(together).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    apart = {f"model {i}": table(0.9, 0.3, 0.07 * i) for i in range(13)}
    figure = robustness(apart)
    assert not figure.legends
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-"] * 12 + ["--"]


RECIPES = (
    *("standard", "noise", "input_gradient", "sgt", "sgt_absolute", "sgt_adaptive", "sgt_random"),
    *("at", "at_matched", "fast_at", "trades"),
)
CURVE = tuple(np.array(part) for part in ([0.0, 0.5, 1.0], [1.0, 0.4, 0.1], [0.9, 0.3, 0.0], [1.0, 0.5, 0.2]))
INTERVALS = {model: (0.1 * i, 0.1 * i - 0.05, 0.1 * i + 0.05) for i, model in enumerate([*RECIPES, "_mine"])}


@pytest.mark.long
@pytest.mark.parametrize("width", [3.25, 7.0])
@pytest.mark.parametrize("note", [NOTE, LONG_NOTE], ids=["note", "long note"])
@pytest.mark.parametrize("models", [["standard", "at"], list(RECIPES), ["_mine", "at"]])
@pytest.mark.parametrize(
    "draw",
    [
        lambda models, width, note: robustness(
            {m: table(0.9, 0.3, 0.0) for m in models}, title="pgd", note=note, width=width
        ),
        lambda models, width, note: bands(
            dict.fromkeys(models, CURVE), title="saliency", note=note, width=width
        ),
        lambda models, width, note: dots(
            {"integrated_gradients": {m: INTERVALS[m] for m in models}}, note=note, width=width
        ),
        lambda models, width, note: slopes(
            {"saliency": {m: INTERVALS[m] for m in models}}, note=note, width=width
        ),
        lambda models, width, note: tradeoff(
            {m: (INTERVALS[m],) * 2 for m in models}, note=note, width=width
        ),
    ],
    ids=["robustness", "bands", "dots", "slopes", "tradeoff"],
)
def test_a_chart_keeps_its_width_and_no_words_leave_it_or_meet(draw, models, note, width) -> None:
    fig = draw(models, width, note)
    assert fig.get_figwidth() == width
    for _ in range(3):
        fig.draw_without_rendering()
    (ax,) = fig.axes
    assert ax.get_position().width * width > 0.45 * width
    above = [text for text in (*ax.texts, ax.title, ax._left_title) if text.get_text()]
    if fig.legends:
        assert len(fig.legends[0].get_texts()) in (len(models), 1)
    ticks = [
        tick.label1
        for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, sorted(ax.get_ylim())))
        for tick in axis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    words = [text for text in [*above, *ticks] if text.get_text()]
    boxes = [text.get_window_extent() for text in [*words, *fig.legends]]
    for i, box in enumerate(boxes):
        assert box.x0 >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y0 >= -1 and box.y1 <= fig.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i]) or words[i].get_rotation()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.975, 0.992), (0.9912, 0.9937), (-0.02, 0.05)])
def test_ticks_in_percent_are_distinct_and_say_where_they_are(low: float, high: float) -> None:
    at = np.array([1.0, 2.0, 3.0])
    fig = bands({"at": (at, np.linspace(low, high, 3), at * 0 + low, at * 0 + high)}, percent=(False, True))
    fig.draw_without_rendering()
    axis = fig.axes[0].yaxis
    labels = [text.get_text() for text in axis.get_ticklabels()]
    assert len(set(labels)) == len(labels) > 2
    values = [float(label.removesuffix("%").replace("−", "-")) / 100 for label in labels]
    np.testing.assert_allclose(values, axis.get_ticklocs(), atol=1e-9)


def test_a_model_looks_the_same_where_another_is_missing_and_its_legend_shows_how() -> None:
    among = ["mine", "yours", "_theirs"]
    shown = among[1:]

    def names(fig: Figure) -> dict[str, tuple[str, str]]:
        (legend,) = fig.legends
        handles = zip(legend.get_texts(), legend.legend_handles, strict=True)
        return {text.get_text(): (handle.get_color(), handle.get_marker()) for text, handle in handles}

    expected = {name: (look.colour, look.marker) for name, look in looks(among).items() if name in shown}
    curves = {name: table(0.9, 0.3, 0.0) for name in shown}
    points = dict.fromkeys(shown, ((0.5, 0.4, 0.6),) * 2)
    for fig in (
        robustness(curves, among=among),
        bands(dict.fromkeys(shown, CURVE), among=among),
        dots({"saliency": dict.fromkeys(shown, (0.5, 0.4, 0.6))}, among=among),
        tradeoff(points, width=3.25, among=among),
    ):
        assert names(fig) == expected
        assert expected[shown[0]][0] in {
            mpl.colors.to_hex(line.get_color()).upper() for line in fig.axes[0].lines
        }


MANY = [f"model_{i:03d}" + ("_with_a_long_name_and_more" if i % 3 == 0 else "") for i in range(132)]
POINTS = {name: ((0.004 * i, 0.0, 1.0),) * 2 for i, name in enumerate(MANY)}


@pytest.mark.long
@pytest.mark.parametrize("width", [3.25, 7.0])
@pytest.mark.parametrize("count", [21, len(PALETTE) * len(MARKERS)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda names, width: robustness({name: table(0.9, 0.3, 0.0) for name in names}, width=width),
        lambda names, width: dots({"g": dict.fromkeys(names, (0.5, 0.4, 0.6))}, width=width),
        lambda names, width: slopes({name: {"a": (0.5, 0.4, 0.6)} for name in names}, width=width),
        lambda names, width: tradeoff({name: POINTS[name] for name in names}, width=width),
    ],
    ids=["robustness", "dots", "slopes", "tradeoff"],
)
def test_a_legend_shows_every_name_whole_and_leaves_room_for_the_panel(draw, count, width) -> None:
    fig = draw(MANY[:count], width)
    settle(fig)
    (legend,) = fig.legends
    texts = legend.get_texts()
    letters = [re.sub(r"[\s_]", "", text) for text in [*(text.get_text() for text in texts), *MANY[:count]]]
    assert letters[:count] == letters[count:] and len(texts) == count
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    panel = fig.axes[0].get_window_extent()
    assert panel.width > 80 and panel.height > 80
    assert not panel.overlaps(legend.get_window_extent())


RADII = {
    "eighths": [0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255],
    "decades": [0, 0.001, 0.01, 0.1],
    "end": [0, 0.1, 0.29, 0.3],
    "even": [0, 0.1, 0.2, 0.3],
    "alone": [0.1],
}


@pytest.mark.parametrize("width", [3.25, 7.0])
@pytest.mark.parametrize("radii", RADII.values(), ids=list(RADII))
def test_names_of_radii_do_not_meet_and_the_ends_have_theirs(radii: list[float], width: float) -> None:
    curve = table(*np.linspace(0.9, 0.1, len(radii))).assign(eps=radii)
    fig = robustness({"standard": curve, "at": curve}, width=width)
    settle(fig)
    axis = fig.axes[0].xaxis
    assert axis.get_ticklocs().tolist() == radii
    labels = {at: label for at, label in zip(radii, axis.get_ticklabels(), strict=True) if label.get_text()}
    assert [float(Fraction(label.get_text())) for label in labels.values()] == pytest.approx(list(labels))
    assert {radii[0], radii[-1]} <= {*labels} and (len(labels) == len(radii) or radii is not RADII["even"])
    _assert_apart(list(labels.values()))


def _assert_apart(labels: list[Text]) -> None:
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))


def test_names_of_numbers_of_steps_do_not_meet() -> None:
    steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    curve = table(*np.linspace(0.9, 0.1, len(steps))).assign(steps=steps)
    fig = robustness({"standard": curve}, along="steps", width=3.25)
    settle(fig)
    labels = [label for label in fig.axes[0].get_xticklabels() if label.get_text()]
    assert labels[0].get_text() == "1" and labels[-1].get_text() == "1e+03"
    _assert_apart(labels)
