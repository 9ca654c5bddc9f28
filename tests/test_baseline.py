"""Baselines by name: the definition of each, and that methods and metrics use the same one."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import nn

import saliency_lab as sl
from saliency_lab._common.baseline import BaselineName, baseline_revision, named_baseline

NAMES = get_args(BaselineName)


def baseline(name, x):
    return named_baseline(name, x, lambda purpose: list(range(len(x))))


def test_constants_and_means():
    x = torch.rand(3, 2, 5, 6)
    assert not baseline("zero", x).any() and not baseline("black", x).any()
    assert (baseline("white", x) == 1).all()
    torch.testing.assert_close(baseline("mean", x)[1, 1, 2, 3], x[1, 1].mean())
    assert all(baseline(name, x).shape == x.shape for name in NAMES)


@pytest.mark.parametrize(("size", "radius"), [(28, 5), (56, 10), (9, 1)])
def test_blur_is_a_truncated_gaussian_in_proportion_to_the_image(size, radius):
    x = torch.rand(2, 1, size, size, dtype=torch.float64)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / radius) ** 2)
    expected = x.numpy()
    for axis in (2, 3):
        expected = correlate1d(expected, weights / weights.sum(), axis=axis, mode="mirror")
    np.testing.assert_allclose(baseline("blur", x).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 9), (4, 100)])
def test_blur_of_narrow_images(shape):
    x = torch.rand(2, 1, *shape)
    blurred = baseline("blur", x)
    assert blurred.shape == x.shape and blurred.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_type_is_kept(name, dtype):
    x = torch.rand(2, 3, 12, 12).to(dtype)
    assert baseline(name, x).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_methods_and_metrics_use_the_same_baseline(name):
    """On a linear network integrated gradients is complete for its own baseline, whatever the metric's is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 3)).eval()
    x, y = torch.rand(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    maps = sl.attribute(net, x, y, "integrated_gradients", baseline=name, steps=2)
    scores = sl.evaluate(net, x, y, maps, metric="completeness", baseline=name)
    np.testing.assert_allclose(scores, 0, atol=1e-5)
    other = sl.evaluate(
        net, x, y, maps, metric="completeness", baseline="white" if name != "white" else "zero"
    )
    assert np.abs(other).min() > 1e-3


def test_only_redefined_baselines_change_the_key_of_stored_results():
    assert baseline_revision({"baseline": "zero", "steps": 3}) == baseline_revision({}) == 0
    assert baseline_revision({"baseline": torch.zeros(1, 2, 2)}) == 0
    assert baseline_revision({"baseline": "blur"}) == 1
    assert baseline_revision({"base": "occlusion", "base_settings": {"baseline": "uniform"}}) == 1
