"""The meta-evaluation: a metric that ought to be believed is, and one that ought not to be is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.metrics import meta_evaluate
from saliency_lab.metrics.meta import _order


@pytest.fixture(scope="module")
def table(digits_sample, trained):
    x, y = digits_sample
    maps = {name: sl.attribute(trained, x, y, method=name) for name in ("saliency", "input_x_gradient")}
    metrics = {"sensitivity_n": {"runs": 15}, "masked_input_accuracy": {}, "sparseness": {}}
    return meta_evaluate(trained, x, y, maps, metrics, draws=1)


def test_criteria_are_shares_and_their_means(table):
    assert list(table.index) == ["sensitivity_n", "masked_input_accuracy", "sparseness"]
    assert ((table >= 0) & (table <= 1)).all().all()
    for part in ("map", "model"):
        criteria = [column for column in table.columns if column.startswith(f"{part}, ")]
        assert len(criteria) == 4
        np.testing.assert_allclose(table[part], table[criteria].mean(axis=1))


def test_shuffling_the_pixels_is_noticed_by_faithfulness_and_not_by_sparseness(table):
    """Sparseness does not look at where the values are."""
    assert table.loc["sparseness", "map, disruptive, same"] == 0
    assert table.loc["sparseness", "map, disruptive, order"] < 0.6
    assert table.loc["sensitivity_n", "map, disruptive, order"] > 0.8
    assert table.loc["sensitivity_n", "map"] > table.loc["sparseness", "map"]


def test_the_class_is_taken_from_the_maps_as_in_evaluate(digits_sample, trained):
    x, _ = digits_sample
    names = ("saliency", "input_x_gradient")
    maps = {name: sl.attribute(trained, x, None, name, target="prediction") for name in names}
    metrics = {"masked_input_accuracy": {}}
    classes = maps["saliency"].classes
    expected = meta_evaluate(trained, x, classes, maps, metrics, draws=1)
    for given in (x, (x, (classes + 1) % 10)):
        pd.testing.assert_frame_equal(meta_evaluate(trained, given, None, maps, metrics, draws=1), expected)


def test_one_method_cannot_be_ranked(digits_sample, trained):
    x, y = digits_sample
    with pytest.raises(InputError, match="two or more"):
        meta_evaluate(trained, x, y, {"one": sl.attribute(trained, x, y)}, {"sparseness": {}})


def test_maps_need_to_be_attributions(digits_sample, trained):
    x, y = digits_sample
    maps = {name: sl.attribute(trained, x, y, name).values for name in ("saliency", "input_x_gradient")}
    with pytest.raises(InputError, match="the maps of 'saliency' must be Attributions"):
        meta_evaluate(trained, x, y, maps, {"sparseness": {}})


def test_a_metric_that_makes_maps_again_is_refused_by_name(digits_sample, trained):
    x, y = digits_sample
    maps = {name: sl.attribute(trained, x, y, name) for name in ("saliency", "input_x_gradient")}
    for name in ("max_sensitivity", "mprt", "input_invariance"):
        with pytest.raises(InputError, match=f"metric '{name}' makes maps again.*leave it out"):
            meta_evaluate(trained, x, y, maps, {"sparseness": {}, name: {}})


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1),
        ([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], 1 / 3),
        ([np.nan, 1.0, 2.0], [np.nan, 2.0, 1.0], 0),  # the two that have scores are swapped
        ([0.0, 1.0, 2.0], [np.nan, 1.0, 2.0], 1),  # and here they keep their order
        ([0.0, 1.0, 2.0], [np.nan, 2.0, 1.0], 0),
        ([3.0, np.nan, 2.0], [3.0, 1.0, 2.0], 1),
    ],
)
def test_order_is_of_the_methods_that_have_scores(before, after, share):
    first, second = (np.array(scores)[None, :, None] for scores in (before, after))
    np.testing.assert_allclose(_order(first, second, minor=True), [share])


def test_under_inference_mode_it_is_the_same(digits_sample, trained):
    x, y = (each[:20] for each in digits_sample)
    maps = {name: sl.attribute(trained, x, y, name) for name in ("saliency", "input_x_gradient")}
    expected = meta_evaluate(trained, x, y, maps, {"selectivity": {}}, draws=1)
    with torch.inference_mode():
        found = meta_evaluate(trained, x.clone(), y.clone(), maps, {"selectivity": {}}, draws=1)
    pd.testing.assert_frame_equal(found, expected)
