"""What Quantus 0.6 gets wrong, compared with our value; when a fault is repaired, its test fails."""

from __future__ import annotations

import numpy as np
import pytest
import quantus
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.seeding import preserved_rng


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


def test_monotonicity_restores_no_pixel_so_it_is_always_true(world):
    model, x, y, maps = world
    metric = quantus.Monotonicity(features_in_step=12, **QUIET)
    assert all(call(metric, model, x, y, maps))
    assert all(call(metric, model, x, y, -maps))
    assert not sl.evaluate(model, x, y, maps, "monotonicity", steps=12).any()


def test_sensitivity_n_correlates_over_samples_of_the_first_batch(world):
    model, x, y, maps = world
    scores = call(quantus.SensitivityN(features_in_step=12, **QUIET), model, x, y, maps)
    assert len(scores) != len(x)  # one value a step
    assert sl.evaluate(model, x, y, maps, "sensitivity_n", runs=5).shape == (4,)


def test_infidelity_perturbs_what_is_perturbed_already(world):
    """For the exact map of a linear model each perturbation alone has no error; so has their pile. A map that
    is wrong in one patch is wrong in every later term of the pile."""
    model, x, y, _ = world
    weight = model[1].weight.detach()[y].reshape(x.shape)
    wrong = weight * 1.0
    wrong[:, :, :4, :4] += 1.0  # the first patch visited
    metric = quantus.Infidelity(perturb_patch_sizes=[4], n_perturb_samples=1, **QUIET)
    theirs = metric(
        model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=wrong.numpy(), softmax=False,
        channel_first=True, device="cpu",
    )  # fmt: skip
    error = x[:, 0, :4, :4].double().sum((1, 2)) ** 2
    np.testing.assert_allclose(theirs, error, rtol=1e-3)  # all nine terms
    ours = sl.evaluate(model, x, y, wrong * 1.0, "infidelity", patch_sizes=(4,))
    np.testing.assert_allclose(ours, error / 9, rtol=1e-3)  # one of nine


def test_infidelity_crashes_unless_the_patch_divides_the_image(world):
    metric = quantus.Infidelity(perturb_patch_sizes=[5], n_perturb_samples=1, **QUIET)
    with pytest.raises(ValueError, match="reshape"):
        call(metric, *world)
    assert np.isfinite(sl.evaluate(*world, "infidelity", patch_sizes=(5,))).all()


def test_road_keeps_the_first_batch_only(world):
    model, x, y, maps = world
    metric = quantus.ROAD(percentages=[50], **QUIET)
    every = call(metric, model, x, y, maps, batch_size=2)
    right = quantus.ROAD(percentages=[50], **QUIET)
    first = call(right, model, x[:2], y[:2], maps[:2], batch_size=2)
    assert every == first


@pytest.mark.parametrize(
    "metric", [quantus.ROAD(percentages=[50], **QUIET), quantus.IROF(**QUIET)], ids=["road", "irof"]
)
def test_rgb_crashes(metric):
    source = torch.Generator().manual_seed(0)
    x, maps = torch.rand(2, 3, 16, 16, generator=source), torch.randn(2, 3, 16, 16, generator=source)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).eval()
    y = torch.tensor([0, 1])
    with pytest.raises((IndexError, AssertionError, AttributeError, ValueError)):
        call(metric, model, x, y, maps)
    name = type(metric).__name__.lower()
    assert np.isfinite(sl.evaluate(model, x, y, maps, name)).all()


def test_monotonicity_correlation_crashes_on_a_prediction_near_zero(world):
    model, x, y, maps = world
    with torch.no_grad():
        model[1].bias[0] = -60.0
    metric = quantus.MonotonicityCorrelation(nr_samples=2, features_in_step=12, **QUIET)
    with pytest.raises(ValueError, match="cannot assign"):
        call(metric, model, x, y, maps)
    for engine in ("fast", "quantus"):
        scores = sl.evaluate(
            model, x, y, maps, "monotonicity_correlation", engine=engine, steps=12, samples=2
        )
        assert np.isfinite(scores).all()


def test_pointing_game_calls_an_empty_mask_a_hit(world):
    model, x, y, maps = world
    masks = torch.zeros(4, 1, 12, 12)
    masks[0] = 1
    hits = call(quantus.PointingGame(**QUIET), model, x, y, maps, s_batch=masks.numpy())
    assert all(hits)
    ours = sl.evaluate(model, x, y, maps, "pointing_game", masks=masks)
    assert ours[0] == 1
    assert np.isnan(ours[1:]).all()


def test_mean_baseline_is_recomputed_from_the_perturbed_image():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 1.0
    maps = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    model, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval(), torch.tensor([0])
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
    metric = quantus.PixelFlipping(features_in_step=1, perturb_baseline="mean", normalise=False, **QUIET)
    theirs = metric(
        model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy(), softmax=False,
        channel_first=True, device="cpu",
    )  # fmt: skip
    assert theirs[0][-1] < 0.5  # 1/4 into one pixel, then the mean of what that left, …
    ours = sl.evaluate_detailed(
        model, x, y, maps, "pixel_flipping", steps=4, baseline="mean", output="logit", engine="quantus"
    )
    np.testing.assert_allclose(ours.curve.values[0], [1, 0.25, 0.5, 0.75, 1.0], atol=1e-6)


def test_black_and_white_are_the_image_s_extremes():
    from quantus.helpers.utils import get_baseline_dict

    image = np.linspace(0.2, 0.7, 12, dtype=np.float32).reshape(1, 3, 4)
    fill = get_baseline_dict(image, return_shape=(1,))
    assert (fill["black"], fill["white"]) == (image.min(), image.max())


def test_continuity_shifts_past_the_edge(world):
    metric = quantus.Continuity(nr_steps=5, **QUIET)
    with pytest.raises(IndexError):
        call(metric, *world, explain_func=lambda model, inputs, targets, **_: inputs)


def test_a_sampled_explanation_is_drawn_anew_for_every_neighbour(world):
    """So sensitivity has a floor that no radius gets below: the noise of two estimates."""
    _, x, y, _ = world
    with preserved_rng(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 5)).eval()
        settings = {"method": "GradientShap", "n_samples": 4}
        maps = quantus.explain(model, x.numpy(), y.numpy(), **settings)
        metric = quantus.MaxSensitivity(
            nr_samples=3,
            lower_bound=1e-6,
            normalise=False,
            abs=False,
            return_nan_when_prediction_changes=False,
            **QUIET,
        )
        theirs = call(metric, model, x, y, maps, explain_func=quantus.explain, explain_func_kwargs=settings)
    assert np.mean(theirs) > 1e-3
    ours = sl.attribute(model, x, y, "gradient_shap", n=4, baselines=torch.zeros_like(x[:1]))
    assert (sl.evaluate(model, x, y, ours, "max_sensitivity", samples=3, radius=1e-6) < 1e-4).all()
