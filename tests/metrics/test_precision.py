"""Scores do not depend on the precision of the images, nor on how near 1 a probability is."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import TensorBlocks, fingerprint
from saliency_lab.metrics.catalogue import METRICS


class Confident(nn.Module):
    """A network that is as sure of class 0 as `lead` says."""

    def __init__(self, lead: float = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 4)
        self.lead = torch.tensor([lead, 0, 0, 0])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(2 * self.first(x.flatten(1)))) + self.lead.to(x)


def sample(count: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(count).long()


@pytest.mark.parametrize(
    "name", ["faithfulness_correlation", "sensitivity_n", "monotonicity_correlation", "pixel_flipping"]
)
@pytest.mark.parametrize("engine", ["fast", "quantus"])
def test_a_confident_network_scores_as_in_float64(name, engine):
    if engine not in sl.list_metrics().loc[name, "engines"]:
        pytest.skip("one engine")
    model = Confident(17).eval()
    x, y = sample()
    exact = copy.deepcopy(model).double()
    chance = exact(x.double()).softmax(1).gather(1, y[:, None])
    assert chance.median() > 1 - 1e-6
    maps = sl.attribute(model, x, y, "saliency").values
    steps = {"steps": 32} if "steps" in METRICS[name].settings.model_fields else {}
    found = sl.evaluate(model, x, y, maps, name, engine=engine, **steps)
    wanted = sl.evaluate(exact, x.double(), y, maps.double(), name, engine=engine, **steps)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize(
    "name",
    [
        "avg_sensitivity",
        "local_lipschitz_estimate",
        "relative_output_stability",
        "pixel_flipping",
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_half_precision_score_as_the_same_in_float32(name, dtype):
    model, (x, y) = Confident().eval(), sample(3)
    half = x.to(dtype)
    maps = sl.attribute(model, half.float(), y, "saliency")
    settings = {} if name == "pixel_flipping" else {"samples": 4}
    found, wanted = (sl.evaluate(model, images, y, maps, name, **settings) for images in (half, half.float()))
    np.testing.assert_array_equal(found, wanted)


class Autocast(nn.Module):
    """A network that switches to bfloat16 by itself."""

    def __init__(self, on: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.out = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)
        self.on = on

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.on):
            return self.out(self.conv(x).relu().mean((2, 3)))


def test_a_forward_under_autocast_is_warned_about_once():
    model, (x, y) = Autocast().eval(), sample(3)
    with pytest.warns(UserWarning, match="the forward of Autocast computes in bfloat16"):
        maps = sl.attribute(model, x, y, "occlusion", window=4, stride=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sl.evaluate(model, x, y, maps, "pixel_flipping")
        sl.attribute(Autocast(on=False).eval(), x, y, "saliency")
        sl.attribute(Confident().eval().bfloat16(), x, y, "saliency")


def test_a_method_that_cannot_run_under_autocast_says_so():
    x, y = sample(2)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="its forward converts to another type"):
        sl.attribute(Autocast().eval(), x, y, "lrp")


class Centred(nn.Module):
    """A network that replaces a buffer in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 6, 3), nn.Linear(6, 4)
        self.register_buffer("centre", torch.zeros(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * x.mean((0, 2, 3), keepdim=True)[0].detach()
        return self.out(self.conv(x - self.centre).relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore:Centred returns other logits")
def test_a_replaced_buffer_of_half_precision_stays_of_half_precision():
    model, (x, y) = Centred().bfloat16().eval(), sample(3)
    before = model(x.bfloat16())
    sl.attribute(model, x, y, "saliency")
    assert model.centre.dtype == torch.bfloat16
    assert model(x.bfloat16()).dtype == before.dtype


@pytest.mark.parametrize("baseline", ["black", "white", "mean", "blur"])
def test_a_map_of_ones_leaves_the_image_as_it_is(baseline):
    model, (x, y) = Confident().eval(), sample()
    scores = sl.evaluate(model, x, y, torch.ones_like(x), "increase_in_confidence", baseline=baseline)
    np.testing.assert_array_equal(scores, 0)
    scores = sl.evaluate(model, x, y, torch.ones_like(x), "average_drop", baseline=baseline)
    np.testing.assert_array_equal(scores, 0)


class Additive(nn.Module):
    """A sum over pixels, which may be below 0."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        weight = torch.rand(64, generator=torch.Generator().manual_seed(3))
        self.weight, self.offset = nn.Parameter(torch.stack([weight, -weight])), offset

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.offset


@pytest.mark.parametrize("engine", ["fast", "quantus"])
def test_irof_has_no_score_where_the_logit_is_negative(engine):
    x, y = sample(3)
    for offset, defined in ((0.0, True), (-40.0, False)):
        model = Additive(offset)
        truth = (model.weight[0].reshape(1, 1, 8, 8) * x).detach()
        settings = {"segments": 6, "output": "logit", "engine": engine}
        right, wrong = (sl.evaluate_detailed(model, x, y, m, "irof", **settings) for m in (truth, -truth))
        assert np.isnan(right.values).all() != defined
        assert not defined or (right.values > wrong.values).all()
        assert defined or "not a positive number" in next(iter(right.undefined))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_older_maps_of_half_images_are_still_of_these_images(dtype):
    """0.1.0 recorded the fingerprint of the images in their own precision."""
    model, (x, y) = Confident().eval(), sample(3)
    half = x.to(dtype)
    maps = sl.attribute(model, half, y, "saliency")
    older = {**maps.provenance, "images": fingerprint(TensorBlocks.of(half, dtype))}
    sl.evaluate(model, half, y, replace(maps, provenance=older), "sparseness")
    with pytest.raises(InputError, match="other images than x"):
        sl.evaluate(model, half.flip(0), y, replace(maps, provenance=older), "sparseness")


def test_a_model_that_reads_strides_is_given_the_plain_order() -> None:
    """In another memory layout it would see other patches, without an error."""

    class Strided(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.first, self.last = torch.nn.Linear(48, 8), torch.nn.Linear(8, 4)

        def forward(self, x):
            n, c, h, w = x.shape
            patches = x.as_strided((n, c, h // 4, w // 4, 4, 4), (c * h * w, h * w, 4 * w, 4, w, 1))
            tokens = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
            return self.last(torch.relu(3 * self.first(tokens)).mean((1, 2)))

    model = Strided().eval()
    x, y = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    maps = sl.attribute(model, x, y, "saliency")
    curve = sl.evaluate_detailed(model, x, y, maps, "deletion", steps=4).curve
    expected = model(x).softmax(1)[range(3), y].detach()
    torch.testing.assert_close(torch.as_tensor(curve.values[:, 0]).float(), expected)
