from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

import saliency_lab as sl
from saliency_lab.plotting.style import MARKERS, PALETTE, looks
from saliency_lab.plotting.tradeoff import NAMED, tradeoff


def _points(count: int) -> dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    return {f"model {i}": ((i, i - 0.1, i + 0.1), (0.5, 0.4, 0.6)) for i in range(count)}


def test_every_point_is_named_once_next_to_it_or_in_a_legend_if_they_are_many() -> None:
    for count in (NAMED, NAMED + 1):
        (ax,) = tradeoff(_points(count)).axes
        placed = [text.get_text() for text in ax.texts]
        listed = [text.get_text() for legend in ax.figure.legends for text in legend.get_texts()]
        assert placed + listed == list(_points(count))
        assert bool(listed) == (count > NAMED)


def test_no_two_of_many_names_share_colour_and_marker() -> None:
    names = [str(i) for i in range(len(PALETTE) * len(MARKERS))]
    found = looks(names)
    assert list(found) == names
    assert len({(look.colour, look.marker) for look in found.values()}) == len(names)


def test_ten_models_have_ten_colours_and_markers_that_differ_also_for_colour_blind_readers() -> None:
    found = looks([str(i) for i in range(10)]).values()
    assert len({look.colour for look in found}) == len({look.marker for look in found}) == 10
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Machado et al. (2009): what a reader without the green or without the red cone sees
    deuteranopia = [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]]
    protanopia = [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    for vision, least in ((np.eye(3), 20), (deuteranopia, 5), (protanopia, 5)):
        seen = (linear @ np.transpose(vision)).clip(0, 1)
        lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
        pairs = itertools.combinations(lab, 2)
        assert min(float(deltaE_ciede2000(a, b)) for a, b in pairs) > least


def test_a_new_objective_needs_no_entry_in_a_list_of_colours() -> None:
    assert looks(["asgt", "mine"]) == dict(zip(("asgt", "mine"), looks(["a", "b"]).values(), strict=True))


@pytest.mark.parametrize(
    ("attacked", "scored"),
    [((0, 1), (1, 2)), ((2, 0, 1), (0, 2)), ((0, 1), (1, 0)), ((0, 1), (2, 3)), ((5,), (5,))],
)
def test_a_small_mark_is_one_trained_network(attacked: tuple[int, ...], scored: tuple[int, ...]) -> None:
    draws = np.random.default_rng(0)
    rows, predictions = [], []
    for model, image in itertools.product(("a", "b"), range(30)):
        rows += [
            {
                "model": model, "seed": seed, "metric": "sparseness", "method": "saliency", "sample": image,
                "score": 0.3 + 0.02 * seed + 0.3 * draws.random(),
            }
            for seed in scored
        ]  # fmt: skip
        predictions += [
            {
                "model": model, "seed": seed, "attack": "pgd", "eps": eps, "sample": image,
                "robust": draws.random() < 0.8 - eps,
            }
            for seed in attacked
            for eps in (0.0, 0.1)
        ]  # fmt: skip
    scores, robustness = pd.DataFrame(rows), pd.DataFrame(predictions)
    (ax,) = sl.Comparison(scores, robustness, baseline="a").plot.tradeoff().axes
    drawn = [line.get_xydata() for line in ax.lines if line.get_alpha() is not None]
    x = robustness[robustness["eps"] > 0].groupby(["model", "seed"])["robust"].mean()
    y = scores.groupby(["model", "seed"])["score"].mean()
    both = sorted({*attacked} & {*scored}) if len(attacked) > 1 else []
    assert len(drawn) == (2 if both else 0)
    for model, marks in zip(("a", "b"), drawn, strict=False):
        np.testing.assert_allclose(marks, [(x[model, seed], y[model, seed]) for seed in both])
