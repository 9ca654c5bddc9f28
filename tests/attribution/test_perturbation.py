"""Occlusion, superpixel methods and RISE against Captum and their definitions."""

from __future__ import annotations

import warnings

import captum.attr as ca
import numpy as np
import pytest
import torch
from skimage.segmentation import slic
from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.seeding import preserved_rng, sample_seeds
from saliency_lab.attribution import attribute
from saliency_lab.attribution.segments import superpixels

QUARTERS = (torch.arange(12)[:, None] // 6 * 2 + torch.arange(12) // 6).long()


@pytest.mark.parametrize(("window", "stride"), [(3, 3), (4, 2), (5, 4), (12, 12)])
def test_occlusion_is_captums(rgb_net, rgb_batch, window, stride):
    x, y = rgb_batch
    expected = ca.Occlusion(rgb_net).attribute(
        x, (3, window, window), (3, stride, stride), baselines=x.flip(0), target=y
    )
    maps = attribute(rgb_net, x, y, "occlusion", window=window, stride=stride, baseline=x.flip(0))
    torch.testing.assert_close(maps.values, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "segments", [QUARTERS, torch.stack([QUARTERS + 7] * 5 + [torch.zeros_like(QUARTERS)])]
)
def test_feature_ablation_is_captums(rgb_net, rgb_batch, segments):
    x, y = rgb_batch
    mask = segments[:, None].expand_as(x) if segments.ndim == 3 else segments
    expected = torch.cat(
        [
            ca.FeatureAblation(rgb_net).attribute(
                x[k : k + 1], target=int(y[k]), feature_mask=mask[k : k + 1] if segments.ndim == 3 else mask
            )
            for k in range(len(x))
        ]
    )
    maps = attribute(rgb_net, x, y, "feature_ablation", segments=segments)
    torch.testing.assert_close(maps.values, expected, rtol=0, atol=1e-5)


def test_shapley_sampling_converges_to_captums_exact_values(net, batch):
    x, y = batch
    exact = ca.ShapleyValues(net).attribute(x, target=y, feature_mask=QUARTERS)
    errors = [
        (attribute(net, x, y, "shapley_value_sampling", segments=QUARTERS, n=n).values - exact).abs().max()
        for n in (2, 400)
    ]
    assert errors[1] < 0.1 * exact.abs().max() and errors[1] < errors[0]


def test_shapley_values_of_one_order_sum_to_the_difference(net, batch):
    x, y = batch
    values = attribute(net, x, y, "shapley_value_sampling", segments=9, n=1).values
    with torch.no_grad():
        rows = torch.arange(len(x))
        gap = (net(x) - net(torch.zeros_like(x)))[rows, y]
    for image, value, expected in zip(x, values, gap, strict=True):
        found = superpixels(image.numpy(), 9)
        total = sum(value[0][torch.from_numpy(found == k)][0] for k in range(found.max() + 1))
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "explainer"), [("kernel_shap", ca.KernelShap), ("lime", ca.Lime)])
def test_surrogates_are_captums_with_the_samples_own_seed(net, batch, name, explainer):
    x, y = batch
    maps = attribute(net, x, y, name, segments=QUARTERS, n=40, seed=2).values
    for row, seed in enumerate(sample_seeds(x, 2, "coalitions")):
        with preserved_rng(seed):
            expected = explainer(net).attribute(
                x[row : row + 1], target=int(y[row]), feature_mask=QUARTERS, n_samples=40
            )
        torch.testing.assert_close(maps[row : row + 1], expected, rtol=0, atol=1e-5)


def test_lime_tells_when_nothing_is_left_of_a_map(net, batch):
    x, y = batch
    settings = {"segments": QUARTERS, "n": 40}
    with pytest.warns(
        UserWarning, match=r"at alpha=100 the lasso's penalty leaves a map.*lower alpha"
    ) as caught:
        maps = attribute(net, x, y, "lime", alpha=100.0, **settings).values
    assert len(caught) == 1 and (maps == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert attribute(net, x, y, "lime", alpha=1e-4, **settings).values.flatten(1).any(1).all()


def test_kernel_shap_estimates_the_exact_values_on_four_superpixels(net, batch):
    x, y = batch[0][:2], batch[1][:2]
    exact = ca.ShapleyValues(net).attribute(x, target=y, feature_mask=QUARTERS)
    maps = attribute(net, x, y, "kernel_shap", segments=QUARTERS, n=800).values
    torch.testing.assert_close(maps, exact, rtol=0, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["kernel_shap", "lime", "shapley_value_sampling", "feature_ablation"])
def test_a_flat_image_is_one_superpixel(net, name):
    x = torch.full((1, 1, 12, 12), 0.5)
    maps = attribute(net, x, torch.tensor([1]), name, segments=torch.zeros(12, 12, dtype=torch.int64))
    with torch.no_grad():
        gap = (net(x) - net(torch.zeros_like(x)))[0, 1]
    torch.testing.assert_close(maps.values, gap.expand_as(x), rtol=0, atol=1e-6)


def test_rise_is_its_formula(net, batch):
    """One cell a mask: on or off as a whole, so the map is the mean probability over masks that are on."""
    x, y = batch
    maps = attribute(net, x, y, "rise", n=200, cells=1, probability=0.5, seed=1).values
    with torch.no_grad():
        chance = net(x).softmax(1).gather(1, y[:, None])[:, 0]
    ratio = maps.amax((1, 2, 3)) / chance
    torch.testing.assert_close(maps, maps[:, :, :1, :1].expand_as(maps))
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    assert 0.8 < ratio[0] < 1.2


def test_rise_finds_the_only_pixels_that_count():
    weight = torch.zeros(2, 1, 28, 28)
    weight[1, 0, 4:10, 18:24] = 0.2
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2, bias=False))
    model[1].weight.data = weight.flatten(1)
    x = torch.full((2, 1, 28, 28), 0.3)
    maps = attribute(model, x, method="rise", target=1, n=600).values
    inside = weight[1].bool()
    assert inside.flatten()[maps[0].flatten().argmax()]
    assert maps[0][inside].mean() > maps[0][~inside].mean() + 2 * maps[0][~inside].std()
    assert torch.equal(maps[0], maps[1])


def test_superpixels_follow_the_image():
    image = np.zeros((3, 20, 20), dtype=np.float32)
    image[:, :, 10:] = 1
    found = superpixels(image, 8)
    assert not set(found[:, :10].ravel()) & set(found[:, 10:].ravel())
    assert set(found.ravel()) == set(range(found.max() + 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_has_superpixels_too(channels):
    image = np.random.default_rng(0).random((channels, 32, 32), dtype=np.float32)
    colour = {"channel_axis": -1, "compactness": 10.0} if channels == 3 else {"compactness": 0.1}
    plain = slic(image.transpose(1, 2, 0).squeeze(), 50, start_label=0, **{"channel_axis": None, **colour})
    assert len(np.unique(plain)) < 25
    found = superpixels(image, 50)
    assert 25 <= found.max() + 1 <= 50 and set(found.ravel()) == set(range(found.max() + 1))


def test_superpixels_that_are_enough_are_slics():
    rows, columns = np.mgrid[:24, :24] / 24
    image = np.stack([rows, columns, rows * columns]).astype(np.float32)
    plain = slic(image.transpose(1, 2, 0), 30, compactness=10.0, start_label=0)
    assert len(np.unique(plain)) >= 15
    assert np.array_equal(superpixels(image, 30), np.unique(plain, return_inverse=True)[1].reshape(24, 24))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (0, "'segments'"),
        (torch.zeros(12, 12), "segments are integers"),
        (torch.zeros(5, 5, dtype=torch.int64), "do not fit images"),
        (torch.zeros(2, 12, 12, dtype=torch.int64), "given for 2 images"),
    ],
)
def test_bad_segments_are_named(net, batch, segments, message):
    with pytest.raises(InputError, match=message):
        attribute(net, *batch, "feature_ablation", segments=segments)


def test_windows_that_leave_pixels_out_are_refused_as_captum_refuses_them(net, batch):
    x, y = batch
    with pytest.raises(AssertionError):
        ca.Occlusion(net).attribute(x, (1, 2, 2), strides=(1, 7, 7), target=y)
    with pytest.raises(InputError, match=r"stride of 7 with a window of 2 leaves pixels.*at most 2"):
        attribute(net, x, y, "occlusion", window=2, stride=7)
    with pytest.raises(InputError, match="stride of 2 with a window of 1"):
        attribute(net, x, y, "occlusion", stride=2)
    assert attribute(net, x, y, "occlusion", window=2, stride=2).values.abs().amin() > 0


def test_shapley_values_are_captums_over_all_orders(net, batch):
    x, y = batch
    mask = QUARTERS.expand(x.shape).contiguous()
    expected = ca.ShapleyValues(net).attribute(x, target=y, feature_mask=mask, perturbations_per_eval=4)
    found = attribute(net, x, y, "shapley_values", segments=QUARTERS)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)


def test_shapley_values_add_up_and_do_not_depend_on_the_batch(net, batch):
    x, y = batch
    maps = attribute(net, x, y, "shapley_values", segments=9, baseline="mean").values
    alone = torch.cat(
        [
            attribute(net, x[i : i + 1], y[i : i + 1], "shapley_values", segments=9, baseline="mean").values
            for i in range(len(x))
        ]
    )
    torch.testing.assert_close(maps, alone, rtol=1e-4, atol=1e-6)
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    rise = (net(x) - net(mean)).gather(1, y[:, None])[:, 0]
    for image, one, total in zip(x, maps, rise, strict=True):
        labels = torch.from_numpy(superpixels(image.numpy(), 9))
        values = torch.stack([one[0][labels == k][0] for k in range(int(labels.max()) + 1)])
        torch.testing.assert_close(values.sum(), total.detach(), rtol=1e-4, atol=1e-5)


def test_shapley_values_refuse_many_superpixels(net, batch):
    with pytest.raises(InputError, match=r"2 \^ 16 of them; use segments of at most 12"):
        attribute(net, *batch, "shapley_values", segments=torch.arange(144).reshape(12, 12) % 16)


def test_kernel_shap_with_the_shapley_kernel_given_by_hand(net, batch):
    """Uniform coalitions weighted by the Shapley kernel converge to the exact values, as all are drawn."""
    from math import comb

    def shapley(kept):
        size, count = int(kept.sum()), len(kept)
        return 1e6 if size in (0, count) else (count - 1) / (comb(count, size) * size * (count - size))

    x, y = batch[0][:2], batch[1][:2]
    exact = attribute(net, x, y, "shapley_values", segments=QUARTERS).values
    found = attribute(net, x, y, "kernel_shap", segments=QUARTERS, kernel=shapley, n=2000).values
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1 * float(exact.abs().max()))
    with pytest.raises(InputError, match="the kernel must return a weight"):
        attribute(net, x, y, "kernel_shap", segments=QUARTERS, kernel=lambda kept: -1.0, n=8)


def test_limes_kernels(net, batch):
    x, y = batch[0][:1], batch[1][:1]
    settings = {"segments": QUARTERS, "n": 64, "alpha": 1e-4}
    maps = {
        name: attribute(net, x, y, "lime", kernel=kernel, kernel_width=width, **settings).values
        for name, kernel, width in (
            ("default", "cosine", 1.0),
            ("wide", "cosine", 1e6),
            ("constant", lambda kept: 1.0, 1.0),
            ("euclidean", "euclidean", 1e6),
        )
    }
    torch.testing.assert_close(maps["wide"], maps["constant"])  # an infinite width weights all alike
    torch.testing.assert_close(maps["euclidean"], maps["constant"])
    assert not torch.allclose(maps["default"], maps["constant"], atol=1e-5)


def test_segments_by_a_function(net, batch):
    x, y = batch

    def halves(image):
        assert image.shape == (12, 12)
        return np.where(np.arange(12) < 6, 3, 7)[:, None].repeat(12, 1)

    given = attribute(net, x, y, "feature_ablation", segments=torch.from_numpy(halves(x[0, 0].numpy())))
    found = attribute(net, x, y, "feature_ablation", segments=halves)
    torch.testing.assert_close(found.values, given.values)
    with pytest.raises(InputError, match=r"must return integers \(12, 12\), not float64 \(12, 12\)"):
        attribute(net, x, y, "feature_ablation", segments=lambda image: np.zeros((12, 12)))


def test_new_settings_leave_the_keys_of_stored_maps_alone():
    from saliency_lab.attribution.catalogue import METHODS, key_settings

    stored = {"kernel_shap": {"segments", "baseline", "n"}, "lime": {"segments", "baseline", "n", "alpha"}}
    for name, before in stored.items():
        model = METHODS[name].settings
        assert set(key_settings(model, dict(model()))) == before
        assert "kernel" in key_settings(model, dict(model(kernel=lambda kept: 1.0)))
