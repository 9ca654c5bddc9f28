"""Structural similarity of small maps."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from saliency_lab.attribution.similarity import _one_window, ssim


def maps(height, width, seed):
    return torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (2, 7), (3, 2)])
def test_maps_with_a_side_of_one_or_two_pixels_have_a_similarity(height, width):
    a, b = maps(height, width, 0), maps(height, width, 1)
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])
    assert (ssim(a, b).abs() <= 1).all()
    assert torch.allclose(ssim(a, b), ssim(b, a))
    assert torch.isnan(ssim(a, 0 * b)).all()


def test_one_window_is_that_of_scikit_image():
    a, b = (maps(3, 3, seed)[0, 0].double().numpy() for seed in (0, 1))
    for span in (1.0, 2.0):
        assert _one_window(a, b, span) == pytest.approx(
            structural_similarity(a, b, data_range=span, win_size=3)
        )


@pytest.mark.parametrize("sign", [1, 2, 3])
def test_magnitudes_range_over_half_of_what_signed_values_do(sign):
    """1: both maps are magnitudes; 2 and 3: one of them has a sign."""
    a, b = maps(9, 8, 0).double(), maps(9, 8, 1).double()
    a, b = (a if sign == 2 else a.abs()), (b if sign == 3 else b.abs())
    expected = [
        structural_similarity(
            x / np.abs(x).max(), y / np.abs(y).max(), data_range=1.0 if sign == 1 else 2.0, channel_axis=0
        )
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected)


def test_larger_maps_are_compared_by_scikit_image():
    a, b = maps(9, 8, 0).double(), maps(9, 8, 1).double()
    expected = [
        structural_similarity(
            x / np.abs(x).max(), y / np.abs(y).max(), data_range=2.0, channel_axis=0, win_size=7
        )
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(expected)
