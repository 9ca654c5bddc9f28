"""Both engines agree on maps with ties, which occlusion, kernel SHAP and input × gradient produce."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import saliency_lab as sl
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.metrics.catalogue import METRICS

BOTH = [name for name in METRICS if len(METRICS[name].engines) == 2]
NEIGHBOURS = {"max_sensitivity", "avg_sensitivity", "local_lipschitz_estimate"}


@st.composite
def tied_maps(draw):
    """Maps of few values, with blocks of equal ones, and images with a black border."""
    seed, levels = draw(st.integers(0, 10**6)), draw(st.integers(1, 3))
    block, channels, scale = (draw(st.sampled_from(each)) for each in ([1, 3, 6], [1, 3], [1.0, 0.1]))
    source = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-levels, levels + 1, (3, channels, 12 // block, 12 // block), generator=source)
    maps = scale * coarse.float().repeat_interleave(block, 2).repeat_interleave(block, 3)
    x = torch.rand(3, channels, 12, 12, generator=source)
    x[:, :, : draw(st.integers(0, 6))] = 0
    masks = torch.zeros(3, 1, 12, 12, dtype=torch.bool)
    top, left = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    masks[:, :, top : top + 4, left : left + 4] = True
    return x, maps, masks


@pytest.fixture(scope="module")
def models():
    nets = {}
    with preserved_rng(0):
        for channels in (1, 3):
            nets[channels] = nn.Sequential(
                nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 5)
            ).eval()
    return nets


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in BOTH if name not in NEIGHBOURS])
@settings(max_examples=15, deadline=None)
@given(drawn=tied_maps())
def test_engines_agree_on_tied_maps(models, small, name, drawn):
    x, maps, masks = drawn
    chosen = small(name, x)
    if "masks" in chosen:
        chosen["masks"] = masks
    y = torch.tensor([0, 2, 4])
    fast, slow = (
        sl.evaluate(models[x.shape[1]], x, y, maps, name, engine=engine, **chosen)
        for engine in ("fast", "quantus")
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("method", ["occlusion", "input_x_gradient"])
@pytest.mark.parametrize("name", [name for name in BOTH if name not in NEIGHBOURS])
def test_engines_agree_on_the_maps_of_methods_that_tie(digits_sample, trained, small, method, name):
    x, y = digits_sample
    maps = sl.attribute(trained, x, y, method)
    tied = (maps.values.flatten(1).sort(dim=1).values.diff(dim=1) == 0).float().mean()
    assert tied > 0.05
    chosen = {"steps": 28} if "steps" in METRICS[name].settings.model_fields else small(name, x)
    fast, slow = (
        sl.evaluate(trained, x, y, maps, name, engine=engine, **chosen) for engine in ("fast", "quantus")
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_patches_that_do_not_divide_the_image_are_those_of_quantus(scene, size):
    model, x, y, maps = scene
    for name in ("selectivity", "region_perturbation"):
        fast, slow = (
            sl.evaluate(model, x, y, maps.sign(), name, engine=engine, patch_size=size)
            for engine in ("fast", "quantus")
        )
        np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)


def test_the_pointing_game_looks_at_the_first_of_equal_maxima():
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    maps = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2).expand(2, -1, -1, -1)
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, 0, 0, 1] = masks[1, 0, 1, 0] = 1
    for engine in ("fast", "quantus"):
        assert sl.evaluate(model, x, y, maps, "pointing_game", engine=engine, masks=masks).tolist() == [1, 0]
