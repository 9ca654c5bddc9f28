"""Settings of metrics in a study: labels, directions, and the keys of stored scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import preserved_rng


@pytest.fixture
def study():
    with preserved_rng(0):
        models = {name: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)) for name in ("one", "two")}
        x = torch.rand(6, 1, 6, 6)
    return sl.Study(models, (x, torch.tensor([0, 1, 2, 0, 1, 2]))).attribute("saliency")


def test_one_metric_in_both_orders_has_both_directions(study):
    curve = {"metric": "pixel_flipping", "steps": 6}
    study.score({"most": curve, "least": {**curve, "order": "least_relevant_first"}})
    comparison = study.compare(baseline="one")
    better = {measure.metric: measure.better for measure in comparison.measures}
    assert better["most"] == "lower" and better["least"] == "higher"
    scores = study.scores.pivot_table(index=["model", "sample"], columns="metric", values="score")
    assert not scores["most"].equals(scores["least"])


@pytest.mark.parametrize("metrics", [["sparseness", "sparseness"], ["deletion", "sparseness", "deletion"]])
def test_a_metric_given_twice_is_refused(study, metrics):
    with pytest.raises(InputError, match="is given twice; give each a label of its own"):
        study.score(metrics)


def test_a_fraction_and_its_pixels_are_one_request(study):
    study.score({"fraction": {"metric": "selectivity", "patch_size": "1/3"}})
    study.score({"pixels": {"metric": "selectivity", "patch_size": 2}})
    scores = study.scores.pivot_table(index=["model", "sample"], columns="metric", values="score")
    assert scores["fraction"].equals(scores["pixels"].rename("fraction"))
