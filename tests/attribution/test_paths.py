"""Guided IG, Blur IG and XRAI: closed forms on linear networks, completeness, and the straight line."""

from __future__ import annotations

import captum.attr as ca
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.morphology import dilation, disk
from skimage.segmentation import felzenszwalb
from torch import Tensor, nn

from saliency_lab.attribution import attribute
from saliency_lab.attribution.paths import grow_regions, regions


def linear() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 3)).eval()


def smooth() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1])


def weights(model: nn.Sequential) -> Tensor:
    return model[1].weight[Y].reshape(X.shape).detach()


@pytest.mark.parametrize("distance", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_guided_ig_of_a_linear_network(distance, baseline):
    base = torch.zeros_like(X) if baseline == "zero" else X.mean((2, 3), keepdim=True)
    maps = attribute(linear(), X, Y, "guided_ig", steps=7, distance=distance, baseline=baseline)
    torch.testing.assert_close(maps.values, weights(linear()) * (X - base), rtol=1e-4, atol=1e-6)


def test_guided_ig_on_the_straight_line_is_integrated_gradients():
    expected = ca.IntegratedGradients(smooth()).attribute(X, target=Y, n_steps=9, method="riemann_left")
    found = attribute(smooth(), X, Y, "guided_ig", steps=9, distance=0.0).values
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("distance", [0.02, 0.3, 1.0])
def test_guided_ig_is_complete(distance):
    errors = [
        attribute(smooth(), X, Y, "guided_ig", steps=steps, distance=distance).delta.abs().max()
        for steps in (20, 400)
    ]
    assert errors[1] < 0.01 and errors[1] < errors[0] / 4


def test_guided_ig_moves_values_with_small_gradients_first():
    """f = 10 x₁ x₂ + x₂: at the black baseline x₁ has no gradient, so it moves before x₂ does."""

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            one, other = x.flatten(1).T
            return torch.stack([10 * one * other + other, torch.zeros_like(one)], 1)

    x = torch.tensor([[[[1.0, 0.5]]]])
    free = attribute(Product(), x, target=0, method="guided_ig", steps=400, distance=1.0, fraction=0.4)
    straight = attribute(Product(), x, target=0, method="integrated_gradients").values
    assert float(free.values[0, 0, 0, 0]) < float(straight[0, 0, 0, 0]) / 4  # x₁ moves while x₂ is small
    assert abs(float(free.delta)) < 0.05


def test_blur_ig_of_a_linear_network():
    blurred = torch.from_numpy(gaussian_filter(X.double().numpy(), (0, 0, 2.0, 2.0), mode="constant"))
    maps = attribute(linear(), X, Y, "blur_ig", steps=5, sigma=2.0)
    torch.testing.assert_close(maps.values, weights(linear()) * (X - blurred.float()), rtol=1e-4, atol=1e-6)
    assert maps.delta.abs().max() < 1e-5


def test_blur_ig_is_complete_to_second_order():
    errors = [attribute(smooth(), X, Y, "blur_ig", steps=n).delta.abs().max() for n in (10, 100)]
    assert errors[1] < 1e-3 and errors[1] < errors[0] / 20


def test_regions_join_by_their_mean_attribution():
    """By hand: {0, 1} first (mean 3), then the new pixels 2, 3 of {1, 2, 3} (mean 1); 4 is left."""
    values = np.array([[4.0, 2.0, 2.0, 0.0, -1.0]])
    masks = [np.array([[0, 1, 1, 1, 0]]), np.array([[1, 1, 0, 0, 0]]), np.array([[0, 0, 0, 1, 0]])]
    joined = grow_regions(values, [np.flatnonzero(mask) for mask in masks], 1)
    np.testing.assert_array_equal(joined, [[3.0, 3.0, 1.0, 1.0, -1.0]])
    np.testing.assert_array_equal(grow_regions(values, [], 1), np.full((1, 5), 1.4))


def test_regions_are_felzenszwalbs_segments_grown_by_a_border():
    image = np.random.default_rng(0).random((3, 61, 90)).astype(np.float32)  # a border of 2 pixels
    found = regions(image, [50.0, 200.0])
    expected = []
    for scale in (50.0, 200.0):
        pixels = image.transpose(1, 2, 0)
        least = round(150 * 61 * 90 / 299**2)
        labels = felzenszwalb(pixels, scale=scale, sigma=0.8, min_size=least, channel_axis=-1)
        expected += [
            np.flatnonzero(dilation(np.pad(labels == label, 9), disk(2))[9:-9, 9:-9])
            for label in range(labels.max() + 1)
        ]
    assert len(found) == len(expected) > 10
    for region, grown in zip(found, expected, strict=True):
        np.testing.assert_array_equal(region, grown)


def test_xrai_finds_the_square_that_the_network_reads():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2, bias=False)).eval()
    weight = torch.zeros(2, 3, 48, 48)
    weight[0, :, 8:20, 24:40] = 1.0
    model[1].weight.data = weight.reshape(2, -1)
    x = torch.full((1, 3, 48, 48), 0.2)
    x[:, :, 8:20, 24:40] = 0.9
    assert len(regions(x[0].numpy(), [50.0])) > 1
    maps = attribute(model, x, target=0, method="xrai", steps=2).values
    assert maps.shape == x.shape and torch.equal(maps[:, 0], maps[:, 2])
    inside = maps[0, 0, 8:20, 24:40]
    outside = maps[0, 0].clone()
    outside[6:22, 22:42] = -1.0  # but for the border by which regions are grown
    assert inside.min() > outside.max()


@pytest.mark.parametrize("name", ["guided_ig", "blur_ig", "xrai"])
def test_a_sample_does_not_depend_on_its_batch(name):
    together = attribute(smooth(), X, Y, name, steps=4).values
    alone = torch.cat(
        [attribute(smooth(), X[i : i + 1], Y[i : i + 1], name, steps=4).values for i in range(3)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
