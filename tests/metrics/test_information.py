"""SIC and AIC against the definition, written out with scipy's griddata for one image and channel at a time.

They were also compared with the package of their authors (saliency 0.2.1), and agree to 3e-5.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import griddata
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.metrics import evaluate_detailed
from saliency_lab.metrics.information import InformationCurve, _seen, fill_between, shown_counts
from saliency_lab.metrics.probe import Probe

THRESHOLDS = (0.02, 0.1, 0.3, 0.6)


class Grey(nn.Module):
    """A network for grey images, given the mean of three channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.mean(1, keepdim=True))


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def smooth(request, digits_sample, trained):
    """Digits of 8 bits, in grey or in colour, a network that knows them, and maps without ties."""
    x, y = digits_sample
    source = torch.Generator().manual_seed(request.param)
    if request.param == 3:
        x = (x + 0.2 * torch.rand(len(x), 3, 28, 28, generator=source) - 0.1).clamp(0, 1)
    x = (x * 255).round() / 255
    maps = torch.rand(len(x), 1, 28, 28, generator=source) + x.sum(1, keepdim=True)
    return (Grey(trained) if request.param == 3 else trained), x, y, maps


def blurred(image, known):
    """An image (H, W, C) of 0 … 255 known at some pixels and at the corners."""
    known = known.copy()
    known[::27, ::27] = True  # the corners of 28×28
    out = image.astype(float)
    for channel in range(image.shape[2]):
        out[..., channel][~known] = griddata(
            np.argwhere(known), image[..., channel][known], np.argwhere(~known), method="linear"
        )
    return np.round(out).astype(np.uint8)


def size_of(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
        file, format="webp", lossless=True, quality=100
    )
    return len(file.getvalue())


@pytest.mark.long
@pytest.mark.parametrize("name", ["sic", "aic"])
def test_against_the_definition(smooth, name):
    model, x, y, maps = smooth
    found = evaluate_detailed(model, x, y, maps, name, thresholds=THRESHOLDS, minimum=0.3)
    seen = _seen(Probe(model, x, y, seed=0), 0.01)
    assert seen.sum((1, 2)).tolist() == [7] * 8

    def answer(image, label):
        with torch.no_grad():
            out = model(torch.as_tensor(image).permute(2, 0, 1)[None].float() / 255)[0]
        return out.softmax(0)[label].item() if name == "sic" else float(out.argmax() == label)

    defined = 0
    for i in range(8):
        image = (x[i] * 255).round().byte().permute(1, 2, 0).numpy()
        low, high = blurred(image, seen[i]), image
        p_low, p_high, s_low, s_high = answer(low, y[i]), answer(high, y[i]), size_of(low), size_of(high)
        if p_high < 0.3 or p_low >= p_high or s_low >= s_high:
            assert np.isnan(found.values[i]) and found.reasons[i] is not None
            continue
        points, best = [(0.0, 0.0)], 0.0
        for threshold in THRESHOLDS:
            score = maps[i, 0].numpy()
            shown = blurred(image, seen[i] | (score >= np.quantile(score, 1 - threshold)))
            best = max(best, np.clip((answer(shown, y[i]) - p_low) / (p_high - p_low), 0, 1))
            points.append((np.clip((size_of(shown) - s_low) / (s_high - s_low), 0, 1), best))
        points = sorted([*points, (1.0, 1.0)])
        at = np.linspace(0, 1, 101)
        expected = np.trapezoid(np.interp(at, *zip(*points, strict=True)), at)
        assert found.values[i] == pytest.approx(expected, abs=2e-4)
        defined += 1
    assert defined >= 3
    assert found.curve.values.shape == (8, 101)


def test_both_share_their_passes_and_the_true_order_beats_its_reverse(smooth, monkeypatch):
    model, x, y, _ = smooth
    forward, images = type(model).forward, []
    monkeypatch.setattr(type(model), "forward", lambda self, x: images.append(len(x)) or forward(self, x))
    gradient_times_input = sl.attribute(model, x, y, "input_x_gradient")
    images.clear()
    settings = {"thresholds": THRESHOLDS, "minimum": 0.0}
    sl.evaluate_many(model, x, y, {"map": gradient_times_input}, {"sic": settings, "aic": settings})
    assert 8 * 6 < sum(images) <= 8 * 6 + 4  # a few to check what the model returns
    best, worst = (
        np.nanmean(sl.evaluate(model, x, y, sign * gradient_times_input.values, "sic", **settings))
        for sign in (1, -1)
    )
    assert best > worst


def test_pixels_between_known_ones_are_interpolated_linearly():
    rows, columns = np.meshgrid(np.arange(6), np.arange(8), indexing="ij")
    plane = (10 * rows + 20 * columns).astype(np.uint8)[..., None]
    known = np.zeros((6, 8), dtype=bool)
    np.testing.assert_array_equal(fill_between(plane, known), plane)  # the corners say it all
    np.testing.assert_array_equal(fill_between(plane[:2, :2], known[:2, :2]), plane[:2, :2])


def test_counts_are_those_of_the_quantile():
    scores = np.random.default_rng(0).permutation(784)
    for threshold in InformationCurve().thresholds:
        (count,) = shown_counts(784, (threshold,))
        assert count == (scores >= np.quantile(scores, 1 - threshold)).sum()


def test_images_without_a_file_format_are_refused():
    x, y = torch.rand(2, 2, 8, 8), torch.tensor([0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 2))
    with pytest.raises(
        InputError, match=r"1 or 3 channels and at least 2×2 pixels, not the shape \(2, 8, 8\)"
    ):
        sl.evaluate(model, x, y, torch.rand(2, 2, 8, 8), "sic")
