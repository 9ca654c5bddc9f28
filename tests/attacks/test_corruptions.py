"""Corruptions: their definitions, their severities, and their place next to attacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.attacks.corruptions import CORRUPTIONS, _filter, corrupt
from saliency_lab.study import Study


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A part of scikit-image's astronaut, (1, 3, 32, 32)."""
    from skimage.data import astronaut

    return torch.from_numpy(astronaut()[0:256:8, 100:356:8].copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_in_range_and_reproducible(name, photo) -> None:
    images = torch.cat([photo, photo.flip(3)])
    for severity in (1, 5):
        moved = corrupt(images, name, severity, seed=1)
        assert moved.shape == images.shape and moved.dtype == images.dtype
        assert moved.min() >= 0 and moved.max() <= 1 and not torch.equal(moved, images)
        assert torch.equal(corrupt(images[1:], name, severity, seed=1), moved[1:])


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "gaussian_blur", "contrast", "fog", "jpeg_compression", "snow"]
)
def test_a_higher_severity_moves_an_image_further(name, photo) -> None:
    sizes = [(corrupt(photo, name, severity) - photo).norm().item() for severity in range(1, 6)]
    assert sizes == sorted(sizes)


def test_closed_forms() -> None:
    grey = torch.full((1, 1, 40, 40), 0.4)
    assert torch.allclose(corrupt(grey, "brightness", 3), grey + 0.15)
    assert torch.allclose(corrupt(grey, "contrast", 5), grey)
    assert torch.allclose(corrupt(grey, "gaussian_blur", 5), grey, atol=1e-6)
    half = torch.cat([torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)], 3)
    assert torch.allclose(corrupt(half, "contrast", 5), 0.5 + 0.15 * (half - 0.5))
    noise = corrupt(torch.full((1, 1, 60, 60), 0.5), "gaussian_noise", 2) - 0.5
    assert noise.std().item() == pytest.approx(0.06, rel=0.05)
    impulse = corrupt(torch.full((1, 1, 60, 60), 0.5), "impulse_noise", 5)
    assert (impulse != 0.5).double().mean().item() == pytest.approx(0.07, rel=0.25)
    for name in ("snow", "frost"):  # brighter everywhere, by the published weights
        dark = corrupt(torch.zeros(1, 3, 48, 48), name, 2)
        assert dark.amin() >= (0.05 if name == "snow" else 0.3 * 0.2) and dark.std() > 0.01
    large = torch.full((1, 1, 70, 70), 0.5)
    assert (corrupt(large, "gaussian_noise", 2) - 0.5).std().item() == pytest.approx(0.12, rel=0.05)


def test_a_corruption_is_an_attack_by_name(photo) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    x = torch.cat([photo, photo.flip(3), photo.flip(2)])
    with torch.no_grad():
        y = net(x).argmax(1)
    found = sl.attack(net, x, y, "fog", eps=3)
    assert torch.equal(found.adversarial, corrupt(x, "fog", 3)) and found.eps == 3
    with torch.no_grad():
        right = [(net(corrupt(x, "fog", s)).argmax(1) == y).double().mean().item() for s in (1, 5)]
    curve = sl.robustness_curve(net, x, y, "fog", eps=(0, 1, 5))
    assert curve.accuracy == [1.0, *right]
    study = Study({"net": net}, (x, y)).attack("fog", eps=[1, 5])
    table = study.robustness.groupby("eps")["robust"].mean()
    assert np.allclose(table.loc[[1.0, 5.0]], right)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("fogg", 1, "did you mean 'fog'"),
        ("fog", 6, "severity must be a whole number from 1 to 5"),
        ("fog", 0, "severity must be a whole number from 1 to 5"),
        ("saturate", 1, "three channels"),
    ],
)
def test_bad_input_is_refused(name, severity, message) -> None:
    with pytest.raises(sl.SaliencyLabError, match=message):
        corrupt(torch.rand(1, 1, 8, 8), name, severity)


def test_a_severity_between_two_is_refused(trained, batch) -> None:
    with pytest.raises(sl.SaliencyLabError, match="severity, 1 to 5"):
        sl.attack(trained, *batch, "fog", eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match="an audit covers attacks in linf and l2"):
        sl.audit(trained, *batch, eps=3, method="fog")


def test_a_robustbench_entry(trained, batch) -> None:
    found = sl.attack(trained, *batch, "fgsm", eps="8/255")
    entry = sl.attacks.robustbench_entry(found, dataset="cifar10", name="Test")
    assert entry["eps"] == "8/255" and entry["threat_model"] == "Linf" and entry["name"] == "Test"
    assert float(entry["clean_acc"]) == pytest.approx(100 * found.clean_accuracy, abs=0.005)
    assert float(entry["reported"]) == pytest.approx(100 * found.robust_accuracy, abs=0.005)
    assert "autoattack_acc" not in entry


def test_a_robustbench_model_is_asked_of_its_package(monkeypatch) -> None:
    import sys
    import types

    with pytest.raises(sl.SaliencyLabError, match="DATASET/THREAT/MODEL"):
        sl.load_model("robustbench/Carmon2019Unlabeled")
    package = types.ModuleType("robustbench.utils")
    package.load_model = lambda model_name, dataset, threat_model: nn.Linear(2, len(model_name)).train()
    monkeypatch.setitem(sys.modules, "robustbench", types.ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", package)
    net = sl.load_model("robustbench/cifar10/Linf/Abc")
    assert net.out_features == 3 and not net.training


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_images_of_three_pixels_are_the_smallest(name: str) -> None:
    for size in ((3, 4), (3, 3), (3, 70)):
        assert corrupt(torch.rand(1, 3, *size), name, 5).isfinite().all()
    with pytest.raises(InputError, match="at least 3×3 pixels, not 2×5"):
        corrupt(torch.rand(1, 3, 2, 5), name, 5)


@pytest.mark.parametrize("size", [(3, 3), (3, 70), (4, 9), (28, 28)])
@pytest.mark.parametrize("radius", [1, 8, 14, 20])
def test_a_kernel_may_be_larger_than_the_image(size, radius) -> None:
    draws = np.random.default_rng(0)
    image, kernel = draws.random((*size, 2)), draws.random((2 * radius + 1, 2 * radius + 1))
    down, across = (_mirrored(side, radius) for side in size)
    around = image[down][:, across]
    windows = np.lib.stride_tricks.sliding_window_view(around, kernel.shape, axis=(0, 1))
    expected = (windows * (kernel / kernel.sum())[::-1, ::-1]).sum((3, 4))
    assert np.abs(_filter(image, kernel) - expected).max() < 1e-12


def _mirrored(side: int, radius: int) -> np.ndarray:
    """Pixels from −radius to side + radius; an image goes on beyond its edge as in a mirror."""
    place = np.arange(-radius, side + radius) % (2 * side)
    return np.where(place < side, place, 2 * side - 1 - place)


def test_large_images_have_the_strengths_of_imagenet_c() -> None:
    """Hendrycks & Dietterich give them for images of 224 pixels."""
    factors = CORRUPTIONS["zoom_blur"][2][-1]
    assert len(factors) == 11 and round(float(factors[-1]), 2) == 1.3
    mildest, *_, strongest = CORRUPTIONS["elastic_transform"][2]
    np.testing.assert_allclose(np.multiply(mildest, 224), (488, 170.8, 24.4))
    np.testing.assert_allclose(np.multiply(strongest, 224), (29.28, 2.44, 4.88))
