"""What Quantus 0.6 gets wrong, beside our value; when a fault is repaired, its test fails."""

from __future__ import annotations

import numpy as np
import pytest
import quantus
import torch
from torch import nn

import saliency_lab as sl


@pytest.fixture
def world() -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(4)
    x = torch.rand(4, 1, 12, 12, generator=source)
    x[:, 0, 0, 0] = 0
    maps = torch.randn(4, 1, 12, 12, generator=source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 5)).eval()
    return model, x, torch.tensor([0, 1, 2, 3]), maps


def call(metric, model, x, y, maps, **more):
    return metric(
        model=model,
        x_batch=x.numpy(),
        y_batch=y.numpy(),
        a_batch=maps.numpy() if torch.is_tensor(maps) else maps,
        softmax=True,
        channel_first=True,
        device="cpu",
        **more,
    )


QUIET = {"disable_warnings": True, "display_progressbar": False, "return_aggregate": False}


def test_area_under_the_curve_calls_what_numpy_no_longer_has(world):
    metric = quantus.PixelFlipping(features_in_step=12, return_auc_per_sample=True, **QUIET)
    if hasattr(np, "trapz"):
        pytest.skip("this NumPy still has trapz")
    with pytest.raises(AttributeError, match="trapz"):
        call(metric, *world)
    assert np.isfinite(sl.evaluate(*world, "pixel_flipping", engine="quantus", steps=12)).all()


def test_normalisation_spans_the_batch(world):
    """Effective complexity counts values above a threshold, so another map's scale changes the count."""
    model, x, y, maps = world
    louder = maps.clone()
    louder[0] *= 1e6
    metric = quantus.EffectiveComplexity(eps=1e-3, abs=True, normalise=True, **QUIET)
    assert call(metric, model, x, y, maps)[1] != call(metric, model, x, y, louder)[1]


def test_one_zero_map_spoils_or_stops(world):
    model, x, y, _ = world
    with pytest.raises(AssertionError, match="equal to zero"):
        call(quantus.Sparseness(**QUIET), model, x[:1], y[:1], torch.zeros(1, 1, 12, 12))
    assert np.isnan(sl.evaluate(model, x[:1], y[:1], torch.zeros(1, 1, 12, 12), "sparseness"))


def test_a_batch_of_negative_maps_is_refused(world):
    model, x, y, maps = world
    with pytest.raises(AssertionError, match="less than zero"):
        call(quantus.PixelFlipping(features_in_step=12, **QUIET), model, x, y, -maps.abs())
    assert np.isfinite(
        sl.evaluate(model, x, y, -maps.abs(), "pixel_flipping", engine="quantus", steps=12)
    ).all()


def test_sparseness_writes_into_the_caller_s_array(world):
    model, x, y, maps = world
    values = maps.abs().numpy()
    before = values.copy()
    call(quantus.Sparseness(abs=False, normalise=False, **QUIET), model, x, y, values)
    assert (values != before).any()


def test_faithfulness_correlation_moves_with_the_batch_size(world):
    metric = quantus.FaithfulnessCorrelation(nr_runs=10, subset_size=40, **QUIET)
    scores = []
    for batch_size in (4, 2):
        np.random.seed(0)  # noqa: NPY002 - Quantus draws from the global generator
        scores.append(call(metric, *world, batch_size=batch_size))
    assert not np.allclose(*scores)


def test_pixels_of_an_rgb_image_are_visited_three_times():
    x, maps = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    y = torch.tensor([0])
    curve = call(quantus.PixelFlipping(features_in_step=1, **QUIET), model, x, y, maps)
    assert len(curve[0]) == 48  # 16 pixels
    ours = sl.evaluate_detailed(model, x, y, maps, "pixel_flipping", steps=16)
    assert ours.curve.values.shape == (1, 17)
