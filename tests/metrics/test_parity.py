"""Both engines against each other, against Quantus called directly, and against float64 references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import quantus
import torch

import saliency_lab as sl
from saliency_lab._common.ranks import pearson, spearman
from saliency_lab.metrics import evaluate_detailed
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.faithfulness import random_subsets
from saliency_lab.metrics.probe import Probe

BOTH = [name for name in METRICS if len(METRICS[name].engines) == 2]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("seed", [0, 1])
def test_engines_agree(scene, small, name, seed):
    model, x, y, maps = scene
    fast, slow = (
        sl.evaluate(model, x, y, maps, name, engine=engine, seed=seed, **small(name, x))
        for engine in ("fast", "quantus")
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5)


def probabilities(model, x):
    with torch.no_grad():
        return model.double()(x.double()).softmax(1)


@pytest.mark.parametrize("engine", ["fast", "quantus"])
@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_pixel_flipping_is_the_area_under_the_curve_of_the_definition(scene, engine, baseline):
    model, x, y, maps = scene
    got = sl.evaluate(model, x, y, maps, "pixel_flipping", engine=engine, steps=9, baseline=baseline)
    for i in range(len(x)):
        order = sorted(range(144), key=lambda k: -maps[i].double().sum(0).flatten()[k].item())
        fill = (
            x[i].double().mean((1, 2)) if baseline == "mean" else torch.zeros(x.shape[1], dtype=torch.float64)
        )
        image = x[i].double().flatten(1).clone()
        curve = [probabilities(model, x[i : i + 1])[0, y[i]].item()]
        for step in range(9):
            image[:, order[16 * step : 16 * (step + 1)]] = fill[:, None]
            curve.append(probabilities(model, image.reshape(1, *x[i].shape))[0, y[i]].item())
        want = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / 9
        model.float()
        assert got[i] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("engine", ["fast", "quantus"])
def test_faithfulness_correlation_is_pearson_s_r_over_the_drawn_subsets(scene, engine):
    model, x, y, maps = scene
    got = sl.evaluate(
        model, x, y, maps, "faithfulness_correlation", engine=engine, runs=10, subset_size=50, seed=5
    )
    subsets = random_subsets(Probe(model, x, y, seed=5), 10, 50)
    for i in range(len(x)):
        sums, drops = [], []
        full = probabilities(model, x[i : i + 1])[0, y[i]].item()
        for subset in subsets[i]:
            assert len(set(subset.tolist())) == 50
            image = x[i].double().flatten(1).clone()
            image[:, subset] = 0
            sums.append(maps[i].double().sum(0).flatten()[subset].sum().item())
            drops.append(full - probabilities(model, image.reshape(1, *x[i].shape))[0, y[i]].item())
        model.float()
        assert got[i] == pytest.approx(np.corrcoef(sums, drops)[0, 1], abs=1e-5)


@pytest.mark.parametrize("engine", ["fast", "quantus"])
def test_sparseness_is_the_gini_index(scene, engine):
    model, x, y, maps = scene
    got = sl.evaluate(model, x, y, maps, "sparseness", engine=engine)
    for i in range(len(x)):
        values = maps[i].double().abs().sum(0).flatten().numpy()
        pairs = np.abs(values[:, None] - values[None]).mean() / (2 * values.mean())
        assert got[i] == pytest.approx(pairs, abs=1e-5)


def test_engine_gives_what_quantus_gives_where_quantus_is_right():
    """Grey images with a black pixel: Quantus's 'black', the image's minimum, is then 0 as ours is."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.rand(4, 1, 12, 12, generator=source), torch.tensor([0, 1, 2, 3])
    x[:, 0, 0, 0] = 0
    maps = torch.randn(4, 1, 12, 12, generator=source)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
    metric = quantus.PixelFlipping(
        features_in_step=12, normalise=False, perturb_baseline="black", disable_warnings=True
    )
    curves = metric(
        model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy(), softmax=True,
        channel_first=True, device="cpu", s_batch=None, explain_func=None, explain_func_kwargs=None,
        model_predict_kwargs=None,
    )  # fmt: skip
    got = evaluate_detailed(model, x, y, maps, "pixel_flipping", steps=12)
    np.testing.assert_allclose(got.curve.values[:, 1:], curves, atol=1e-6)


def test_correlations_against_scipy():
    from scipy import stats

    a, b = torch.randn(5, 30, dtype=torch.float64), torch.randint(0, 4, (5, 30)).double()
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        want = [theirs(u.numpy(), v.numpy())[0] for u, v in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours(a, b).numpy(), want, atol=1e-12)
