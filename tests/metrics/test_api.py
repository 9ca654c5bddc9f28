"""What every metric promises, whatever it measures."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError, UnknownNameError
from saliency_lab._common.hashing import fingerprint
from saliency_lab.metrics import api as evaluation
from saliency_lab.metrics import evaluate_detailed, evaluate_many
from saliency_lab.metrics.catalogue import METRICS
from saliency_lab.metrics.probe import Probe
from saliency_lab.metrics.sizes import settings_at_size

INFORMATION = {"sic", "aic"}
"""Metrics that are undefined where the blurred image is as good as the image."""

CASES = [(name, engine) for name in METRICS for engine in METRICS[name].engines]
ALONE = [(name, engine) for name, engine in CASES if not METRICS[name].whole]
PASSES = [name for name in METRICS if METRICS[name].maps is None and name != "irof"]


def test_every_metric_is_explained_in_the_documents():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []


def test_table_names_every_metric_and_what_it_means():
    table = sl.list_metrics()
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == list(METRICS)
    assert set(table["better"]) <= {"higher", "lower", "neither"}
    assert (table["reference"].str.len() > 5).all()
    assert (
        table.loc["insertion", "settings"]
        == "steps=28, baseline='blur', absolute=False, output='probability', order='most_relevant_first'"
    )
    assert table.loc["focus", "settings"].split(", ")[0] == "masks"  # must be given


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), ALONE)
def test_score_does_not_move_with_batch_mates_or_their_order(scene, small, name, engine):
    """In float64, so that nothing but the metric can make a difference."""
    model, x, y, maps = scene
    model, x = model.double(), x.double()

    def score(rows):
        return sl.evaluate(model, x[rows], y[rows], maps[rows], name, engine=engine, **small(name, x[rows]))

    together = score(torch.arange(6))
    assert together.dtype == np.float64
    assert together.shape == (6,)
    assert np.isfinite(together).all() or name in INFORMATION
    np.testing.assert_allclose(score(torch.arange(5, -1, -1))[::-1], together, rtol=1e-8, atol=1e-9)
    alone = [score(torch.tensor([i]))[0] for i in range(6)]
    np.testing.assert_allclose(alone, together, rtol=1e-8, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), CASES)
def test_nothing_of_the_caller_s_is_changed_and_nothing_printed(scene, small, name, engine, capsys):
    model, x, y, maps = scene
    model.train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = x.clone(), y.clone(), maps.clone()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    sl.evaluate(model, x, y, maps, name, engine=engine, **small(name, x))
    assert not capsys.readouterr().out
    for old, new in zip(before, (x, y, maps), strict=True):
        assert torch.equal(old, new)
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), ALONE)
def test_a_bad_map_costs_only_its_own_score(scene, small, name, engine):
    model, x, y, maps = scene
    clean = sl.evaluate(model, x, y, maps, name, engine=engine, **small(name, x))
    spoilt = maps.clone()
    spoilt[1] = 0
    spoilt[2, 0, 3, 3] = float("nan")
    spoilt[4, 0, 0, 0] = float("-inf")
    scores = evaluate_detailed(model, x, y, spoilt, name, engine=engine, **small(name, x))
    zero = METRICS[name].needs != "finite"
    bad = np.array([False, zero, True, False, True, False])
    assert (np.isnan(scores.values) == bad | np.isnan(clean)).all()
    good = [0, 3, 5]
    np.testing.assert_allclose(scores.values[good], clean[good], rtol=1e-12)
    expected = {"the map holds NaN or infinities": 2} | ({"the map is zero everywhere": 1} if zero else {})
    assert expected.items() <= scores.undefined.items()
    assert [reason is not None for reason in scores.reasons] == (bad | np.isnan(clean)).tolist()


def test_the_mean_curve_is_that_of_the_maps_that_can_be_scored(scene):
    model, x, y, maps = scene
    clean = evaluate_detailed(model, x, y, maps, "pixel_flipping", steps=6).curve.values
    spoilt = maps.clone()
    spoilt[2] = 0
    curve = evaluate_detailed(model, x, y, spoilt, "pixel_flipping", steps=6).curve.values
    assert np.isnan(curve[2]).all()
    np.testing.assert_array_equal(np.delete(curve, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("name", ["pixel_flipping", "irof", "faithfulness_correlation"])
def test_more_samples_than_a_block_holds(scene, small, name):
    model, x, y, maps = scene
    many = torch.arange(150) % 6  # a block is 128
    scores = evaluate_detailed(model, x[many], y[many], maps[many], name, **small(name, x))
    few = sl.evaluate(model, x, y, maps, name, **small(name, x))
    np.testing.assert_allclose(scores.values, few[many], atol=1e-6)
    assert scores.curve is None or len(scores.curve.values) == 150


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), CASES)
def test_a_map_that_is_negative_everywhere_is_scored(scene, small, name, engine):
    model, x, y, maps = scene
    scores = sl.evaluate(model, x, y, -maps.abs(), name, engine=engine, **small(name, x))
    positive_only = {"attribution_localisation", "focus", "energy_pointing_game"}
    positive_only |= {"average_drop", "increase_in_confidence", "adcc"}
    if METRICS[name].whole or name in INFORMATION:
        assert ((scores >= 0) | np.isnan(scores)).all()  # NaN where no other map is alike
    else:
        assert (np.isnan(scores) == (name in positive_only)).all()


@pytest.mark.long
def test_many_gives_exactly_what_single_calls_give(scene, small):
    model, x, y, maps = scene
    methods = {"first": maps, "second": maps.flip(3)}
    metrics = {name: small(name, x) for name in METRICS}
    many = evaluate_many(model, x, y, methods, metrics, seed=3)
    for method, given in methods.items():
        assert list(many[method]) == list(METRICS)
        for name in METRICS:
            alone = evaluate_detailed(model, x, y, given, name, seed=3, **metrics[name])
            np.testing.assert_array_equal(many[method][name].values, alone.values)
            assert many[method][name].settings == alone.settings


class _Counting(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        return self.model(x)


@pytest.mark.parametrize(
    "name",
    [
        "faithfulness_correlation",
        "sensitivity_n",
        "infidelity",
        "non_sensitivity",
        "consistency",
        "sufficiency",
    ],
)
def test_methods_share_the_passes_that_do_not_depend_on_them(scene, small, name):
    model, x, y, maps = scene
    counting = _Counting(model)
    for _ in range(2):  # the first call also checks, once per model, that images do not depend on their batch
        counting.images = 0
        sl.evaluate(counting, x, y, maps, name, **small(name, x))
    one = counting.images
    counting.images = 0
    methods = {str(k): maps.roll(k, 3) for k in range(4)}
    evaluate_many(counting, x, y, methods, {name: small(name, x)})
    assert counting.images == one


def test_the_change_of_the_representation_is_computed_once_for_all_methods(scene):
    model, x, y, _ = scene
    counting = _Counting(model)
    methods = {name: sl.attribute(counting, x, y, name) for name in ("saliency", "input_x_gradient")}
    passes = {}
    for name in ("max_sensitivity", "relative_representation_stability"):  # the first needs maps alone
        for many in (1, 2):
            counting.images = 0
            evaluate_many(counting, x, y, dict([*methods.items()][:many]), {name: {"samples": 3}})
            passes[name, many] = counting.images
    of_maps = passes["max_sensitivity", 2] - passes["max_sensitivity", 1]
    name = "relative_representation_stability"
    assert passes[name, 2] - passes[name, 1] == of_maps


class _Standardised(nn.Module):
    """Divides by the image's own spread, which a constant image has not."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixel_flipping", {}),
        ("masked_input_accuracy", {}),
        ("masked_input_accuracy_lowest", {}),
        ("monotonicity", {}),
        ("non_sensitivity", {"patch_size": 12}),
    ],
)
def test_an_answer_that_is_not_a_number_is_no_wrong_answer(scene, name, settings):
    model, x, y, maps = scene
    found = evaluate_detailed(_Standardised(model), x, y, maps, name, **settings)
    assert np.isnan(found.values).all()
    assert found.undefined == {"the model's output is not a number": len(x)}


class _Overflows(nn.Module):
    """A model whose logits are infinite for the first image."""

    def __init__(self, model: nn.Module, first: torch.Tensor) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        here = (x == self.first).flatten(1).all(1)[:, None]
        return self.model(x).masked_fill(here, torch.inf)


def test_an_infinite_score_is_undefined_with_its_reason(scene):
    """Completeness would be infinite, and so would any mean over the images."""
    model, x, y, maps = scene
    found = evaluate_detailed(_Overflows(model, x[0]), x, y, maps, "completeness", output="logit")
    assert np.isnan(found.values[0]) and np.isfinite(found.values[1:]).all()
    assert found.undefined == {"the score is infinite, as the logits of the model may be": 1}
    own = evaluate_detailed(model, x, y, maps, lambda model, x, y, maps: 1 / torch.arange(len(x)))
    assert own.values[0] != own.values[0] and list(own.undefined) == list(found.undefined)


class _NoNumber(nn.Module):
    """Answers with NaN, or with logits beyond float32."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * self.factor


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "engine"),
    [(name, engine) for name, engine in CASES if name in PASSES and METRICS[name].family == "faithfulness"],
)
def test_no_engine_scores_answers_that_are_not_numbers(scene, small, name, engine, factor):
    model, x, y, maps = scene
    found = evaluate_detailed(_NoNumber(model, factor), x, y, maps, name, engine=engine, **small(name, x))
    assert np.isnan(found.values).all()
    assert not any("Quantus cannot" in reason for reason in found.reasons)


def test_metrics_share_the_passes_on_the_same_images(scene):
    model, x, y, maps = scene
    counting = _Counting(model)
    sl.evaluate(
        counting, x, y, maps, "pixel_flipping", steps=12
    )  # the first look at a model takes a pass more
    counting.images = 0
    sl.evaluate(counting, x, y, maps, "pixel_flipping", steps=12)
    one = counting.images
    counting.images = 0
    same = {
        "pixel_flipping": {"steps": 12},
        "deletion": {"steps": 12},
        "masked_input_accuracy": {"steps": 12},
    }
    evaluate_many(counting, x, y, {"map": maps}, same)
    assert counting.images == one


@pytest.mark.parametrize("name", PASSES)
def test_declared_forwards_are_the_forwards(scene, small, name):
    model, x, y, maps = scene
    counting = _Counting(model)
    settings = settings_at_size(METRICS[name].settings(**small(name, x)), 12, 12)
    declared = METRICS[name].forwards(settings, 144)
    sl.evaluate(counting, x, y, maps, name, **small(name, x))
    checks = 4 if declared else 0  # the number of classes; logits or probabilities
    assert 6 * declared <= counting.images <= 6 * declared + checks


def test_seed_changes_draws_and_only_draws(scene):
    model, x, y, maps = scene
    settings = {"runs": 10, "subset_size": 30}
    first, again, other = (
        sl.evaluate(model, x, y, maps, "faithfulness_correlation", seed=seed, **settings)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_a_single_channel_map_holds_the_pixel_s_total():
    source = torch.Generator().manual_seed(0)
    x, maps = torch.rand(2, 3, 8, 8, generator=source), torch.randn(2, 3, 8, 8, generator=source)
    y = torch.tensor([0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    for name in ("pixel_flipping", "faithfulness_correlation"):
        settings = {"steps": 8} if name == "pixel_flipping" else {"runs": 8, "subset_size": 20}
        full = sl.evaluate(model, x, y, maps, name, **settings)
        single = sl.evaluate(model, x, y, maps.double().sum(1, keepdim=True), name, **settings)
        np.testing.assert_allclose(single, full, atol=1e-12)


def test_model_that_flattens_with_view_is_scored():
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.head = nn.Linear(72, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).view(len(x), -1))

    x = torch.rand(2, 3, 8, 8)
    scores = sl.evaluate(
        Viewing(), x, torch.tensor([0, 1]), torch.randn(2, 3, 8, 8), "pixel_flipping", steps=4
    )
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("width", [8, 256])
def test_a_model_that_begins_in_place_does_not_change_the_images(width):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, width, 3)
            self.head = nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x.sub_(0.5)).amax((2, 3)))

    x = torch.rand(2, 1, 8, 8)
    before = x.clone()
    sl.evaluate(InPlace(), x, torch.tensor([0, 1]), torch.randn(2, 1, 8, 8), "pixel_flipping", steps=4)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("width", "plain"), [(8, False), (256, True)])
def test_images_come_in_the_memory_order_that_suits_the_network(width, plain):
    orders = []

    class Watching(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            orders.append(x.is_contiguous())
            return super().forward(x)

    model = Watching(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
    x = torch.rand(2, 3, 8, 8)
    for _ in range(2):  # the first look at a model takes a pass more
        orders.clear()
        sl.evaluate(model, x, torch.tensor([0, 1]), torch.randn(2, 3, 8, 8), "pixel_flipping", steps=4)
    assert set(orders[1:]) == {plain}  # the first pass is the check of the model


class TestBadInput:
    x = torch.rand(2, 1, 8, 8)
    y = torch.tensor([0, 1])
    maps = torch.randn(2, 1, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def test_unknown_metric(self):
        with pytest.raises(UnknownNameError, match=r'no metric .AOPC. here; write "region_perturbation"'):
            sl.evaluate(self.model, self.x, self.y, self.maps, "AOPC")
        with pytest.raises(UnknownNameError, match="did you mean 'pixel_flipping'"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "pixelflipping")

    def test_unknown_setting(self):
        with pytest.raises(UnknownNameError, match=r"metric 'pixel_flipping'.*did you mean 'steps'"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "pixel_flipping", stepps=3)

    def test_setting_out_of_range(self):
        with pytest.raises(InputError, match="'steps'"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "pixel_flipping", steps=0)

    def test_a_list_will_do_for_several_values(self):
        given = {"fractions": [0.2, 0.5], "runs": 3}
        found = evaluate_detailed(self.model, self.x, self.y, self.maps, "sensitivity_n", **given)
        assert found.settings["fractions"] == (0.2, 0.5)
        with pytest.raises(InputError, match=r"'fractions.1': .*less than 1"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "sensitivity_n", fractions=[0.2, 2.0])

    def test_unknown_engine(self):
        with pytest.raises(InputError, match=r"engine 'slow'.*fast, quantus"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "pixel_flipping", engine="slow")

    def test_steps_that_do_not_divide(self):
        with pytest.raises(InputError, match="steps=8, or engine='fast'"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "pixel_flipping", engine="quantus", steps=7)

    def test_subset_as_large_as_the_image(self):
        with pytest.raises(InputError, match="fewer than all of the 64 pixels, not 224"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "faithfulness_correlation", subset_size=224)

    def test_wrong_shape_of_maps(self):
        with pytest.raises(InputError, match=r"\(2, 1, 8, 8\).*\(2, 1, 8, 7\)"):
            sl.evaluate(self.model, self.x, self.y, self.maps[..., :7], "sparseness")

    def test_maps_of_another_type(self):
        with pytest.raises(InputError, match="not list"):
            sl.evaluate(self.model, self.x, self.y, [1.0], "sparseness")

    def test_integer_images(self):
        with pytest.raises(InputError, match="floating point"):
            sl.evaluate(self.model, (self.x * 255).byte(), self.y, self.maps, "sparseness")

    def test_label_out_of_range(self):
        with pytest.raises(InputError, match=r"in 0 … 2, but label 1 is 7"):
            sl.evaluate(self.model, self.x, torch.tensor([0, 7]), self.maps, "pixel_flipping")

    def test_model_of_probabilities_is_refused(self):
        model = nn.Sequential(self.model, nn.Softmax(1))
        with pytest.raises(InputError, match="returns probabilities, not logits"):
            sl.evaluate(model, self.x, self.y, self.maps, "pixel_flipping", steps=4)
        scores = sl.evaluate(model, self.x, self.y, self.maps, "pixel_flipping", steps=4, output="logit")
        plain = sl.evaluate(self.model, self.x, self.y, self.maps, "pixel_flipping", steps=4)
        np.testing.assert_allclose(scores, plain, atol=1e-6)

    def test_large_images(self):
        source = torch.Generator().manual_seed(0)
        x = torch.rand(1, 3, 7, 7, generator=source).repeat_interleave(32, 2).repeat_interleave(32, 3)
        maps = torch.randn(1, 3, 224, 224, generator=source)
        model = nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(), nn.Linear(392, 3))
        settings = {
            "pixel_flipping": {"steps": 4},
            "faithfulness_correlation": {"runs": 4},
            "road": {"percentages": (50.0,)},
            "irof": {"segments": 40},
            "infidelity": {"patch_sizes": (56,)},
            "sparseness": {},
        }
        found = evaluate_many(model, x, torch.tensor([1]), {"map": maps}, settings)["map"]
        assert all(np.isfinite(scores.values).all() for scores in found.values())

    def test_masks_of_another_length(self):
        with pytest.raises(InputError, match="'masks' must hold one entry per sample, 2"):
            sl.evaluate(self.model, self.x, self.y, self.maps, "auc", masks=torch.ones(3, 1, 8, 8))

    def test_no_methods(self):
        with pytest.raises(InputError, match="at least one"):
            evaluate_many(self.model, self.x, self.y, {}, ["sparseness"])

    def test_model_of_feature_maps(self):
        with pytest.raises(InputError, match=r"must return logits \(N, K\)"):
            sl.evaluate(nn.Conv2d(1, 2, 3), self.x, self.y, self.maps, "pixel_flipping", steps=4)

    def test_state_is_put_back_after_an_error(self):
        class Failing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(64, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch.rand(3)
                raise ValueError("broken")

        model, state = Failing().train(), torch.get_rng_state()
        with pytest.raises(ValueError, match="broken"):
            sl.evaluate(model, self.x, self.y, self.maps, "pixel_flipping", steps=4)
        assert model.training
        assert model.head.weight.requires_grad
        assert torch.equal(torch.get_rng_state(), state)


def test_metrics_with_different_attacked_images_do_not_share_maps(scene):
    model, x, y, _ = scene
    maps = {"saliency": sl.attribute(model, x, y, "saliency")}
    near, far = (x * 0.95).clamp(0, 1), (1 - x)
    wanted = {"attack_ssim": {"attacked": near}, "attack_rank_correlation": {"attacked": far}}
    found = evaluate_many(model, x, y, maps, wanted)["saliency"]
    for name, settings in wanted.items():
        alone = sl.evaluate(model, x, y, maps["saliency"], name, **settings)
        np.testing.assert_array_equal(found[name].values, alone)


def test_a_bad_map_does_not_widen_sufficiency_s_threshold():
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    x, y = torch.rand(6, 1, 6, 6, generator=source), torch.zeros(6, dtype=torch.int64)
    maps = torch.rand(1, 1, 6, 6, generator=source) + 0.05 * torch.rand(6, 1, 6, 6, generator=source)
    alone = sl.evaluate(model, x[:5], y[:5], maps[:5], "sufficiency")
    maps[5] = 0
    np.testing.assert_array_equal(sl.evaluate(model, x, y, maps, "sufficiency")[:5], alone)


def test_maps_of_a_custom_function_are_recomputed_by_it_also_under_the_name_of_another(scene, tmp_path):
    model, x, y, _ = scene

    def saliency(model, x, classes):  # the name of a built-in, of which these maps have nothing
        return x.clone()

    maps = sl.attribute(model, x, y, saliency)
    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "mprt"), 1.0, atol=1e-6)
    read = sl.Attributions.load(maps.save(tmp_path / "maps.safetensors"))
    with pytest.raises(InputError, match=r"made by your own 'saliency'.*explain=f"):
        sl.evaluate(model, x, y, read, "mprt")
    explain = {"explain": lambda model, x, classes: x}
    np.testing.assert_allclose(sl.evaluate(model, x, y, read, "mprt", **explain), 1.0, atol=1e-6)


def test_images_of_other_channels_and_maps_of_text_are_named(scene):
    model, x, y, _ = scene
    other = torch.rand(6, 4 - x.shape[1], 12, 12)
    with pytest.raises(InputError, match=rf"does not take images of shape \({other.shape[1]}, 12, 12\)"):
        sl.evaluate(model, other, y, other, "deletion", steps=4)
    with pytest.raises(InputError, match="must be real numbers, not <U1"):
        sl.evaluate(model, x, y, np.full(tuple(x.shape), "a"), "sparseness")


def _all_touched(self, baseline):
    return torch.ones(len(self.x), self.pixels, dtype=torch.bool)


@pytest.mark.parametrize(
    "name",
    [
        "pixel_flipping",
        "insertion",
        "masked_input_accuracy",
        "selectivity",
        "irof",
        "monotonicity",
        "faithfulness_estimate",
        "infidelity",
        "non_sensitivity",
    ],
)
def test_removals_that_change_nothing_are_not_asked(scene, small, name, monkeypatch):
    """The scores are those of asking every time, with fewer passes."""
    model, x, y, maps = scene
    counting = _Counting(model.double())
    x = x.double()
    x[:, :, :7] = 0
    x[0, :, :, 3:] = 0
    settings = {**small(name, x), "baseline": "black"}
    evaluate_detailed(counting, x, y, maps, name, **settings)  # the first look at a model takes a pass more
    counting.images = 0
    found = evaluate_detailed(counting, x, y, maps, name, **settings)
    asked, counting.images = counting.images, 0
    monkeypatch.setattr(Probe, "touched", _all_touched)
    every = evaluate_detailed(counting, x, y, maps, name, **settings)
    assert asked < counting.images
    np.testing.assert_allclose(found.values, every.values, rtol=1e-12, atol=1e-12)
    if found.curve is not None:
        np.testing.assert_allclose(found.curve.values, every.curve.values, rtol=1e-12, atol=1e-12)


class _Cast(nn.Module):
    """A model of another type as one of float32, its parameters hidden."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.held, self.type = [model], next(model.parameters()).dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.held[0](x.to(self.type))


@pytest.mark.long
@pytest.mark.parametrize("name", PASSES)
def test_a_model_in_float64_is_given_images_of_its_type(scene, small, name):
    model, x, y, maps = scene
    model = model.double()
    found = sl.evaluate(model, x, y, maps, name, **small(name, x))
    np.testing.assert_array_equal(found, sl.evaluate(_Cast(model), x, y, maps, name, **small(name, x)))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_half_precision_is_scored_in_float32(scene, small, name, dtype):
    model, x, y, maps = scene
    half = model.to(dtype)
    found = sl.evaluate(half, x, y, maps, name, **small(name, x))
    assert next(half.parameters()).dtype == dtype
    np.testing.assert_array_equal(found, sl.evaluate(half.float(), x, y, maps, name, **small(name, x)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["max_sensitivity", "relative_representation_stability", "mprt", "random_logit"]
)
def test_maps_of_a_model_of_another_type_are_recomputed(scene, name, dtype):
    model, x, y, _ = scene
    settings = {"samples": 2} if METRICS[name].family == "robustness" else {}
    typed = model.to(dtype)

    def gradient(_, x, classes):
        assert x.dtype == (torch.float32 if dtype is torch.bfloat16 else dtype)
        x = x.clone().requires_grad_(True)
        return torch.autograd.grad(_(x).gather(1, classes[:, None]).sum(), x)[0].float()

    maps = sl.attribute(typed, x, y, "saliency")
    found = sl.evaluate(typed, x, y, maps, name, **settings)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found, sl.evaluate(typed, x, y, maps.values, name, explain=gradient, **settings), rtol=1e-6
    )
    blurred = sl.attribute(typed, x, y, "integrated_gradients", baseline="blur")
    assert np.isfinite(sl.evaluate(typed, x, y, blurred, name, **settings)).all()


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), CASES)
def test_images_in_double_for_a_model_in_single_are_scored(scene, small, name, engine):
    model, x, y, maps = scene
    single = sl.evaluate(model, x, y, maps, name, engine=engine, **small(name, x))
    double = sl.evaluate(model, x.double(), y, maps, name, engine=engine, **small(name, x.double()))
    np.testing.assert_allclose(double, single, rtol=2e-3, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_under_no_grad_and_inference_mode_are_those_outside(scene, small, mode):
    model, x, y, _ = scene

    def own(model, x, y, maps):
        x = x.requires_grad_(True)
        return torch.autograd.grad(model(x).square().sum(), x)[0].flatten(1).sum(1)

    maps = sl.attribute(model, x, y, "smoothgrad", n=3)
    metrics = {name: small(name, x) for name in METRICS}
    outside = evaluate_many(model, x, y, {"map": maps}, metrics)["map"]
    own_outside = sl.evaluate(model, x, y, maps, own)
    with mode():
        x, y = x.clone(), y.clone()
        maps = sl.attribute(model, x, y, "smoothgrad", n=3)
        inside = evaluate_many(model, x, y, {"map": maps}, {name: small(name, x) for name in METRICS})["map"]
        own_inside = sl.evaluate(model, x, y, maps, own)
    for name in METRICS:
        np.testing.assert_array_equal(inside[name].values, outside[name].values, err_msg=name)
    np.testing.assert_array_equal(own_inside, own_outside)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in METRICS
        if METRICS[name].needs == "ranking" and "absolute" in METRICS[name].settings.model_fields
    ],
)
def test_a_map_whose_pixels_have_no_order_is_not_scored_by_reading_order(scene, small, name):
    """Magnitudes that are all alike; on RGB, channels whose sum is the same at every pixel."""
    model, x, y, _ = scene
    signs = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    settings = small(name, x)
    found = evaluate_detailed(model, x, y, signs, name, **settings, absolute=True)
    assert np.isnan(found.values).all()
    assert set(found.reasons) == {"the map's magnitude is constant, so it ranks no pixel"}
    if x.shape[1] == 3:
        cancelling = torch.cat([signs[:, :1], -signs[:, :1], 0 * signs[:, :1]], 1)
        found = evaluate_detailed(model, x, y, cancelling, name, **settings | {"absolute": False})
        assert set(found.reasons) == {"the map is constant, so it ranks no pixel"}


def test_a_radius_of_zero_is_refused(scene):
    with pytest.raises(InputError, match=r"'radius'.*greater than 0"):
        sl.evaluate(*scene, "max_sensitivity", radius=0)


def test_a_mask_that_covers_the_image_is_the_reason_why_auc_is_undefined(scene):
    model, x, y, maps = scene
    for mask in (torch.ones, torch.zeros):
        found = evaluate_detailed(model, x, y, maps, "auc", masks=mask(len(x), 1, 12, 12))
        assert set(found.reasons) == {"the mask is empty, or covers the image"}


def test_equal_maps_are_at_no_distance_however_many_there_are():
    """Distances by products would put equal maps some 1e-8 apart from 26 samples on."""
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    x, y = torch.rand(40, 1, 6, 6, generator=source), torch.zeros(40, dtype=torch.int64)
    maps = torch.rand(4, 1, 6, 6, generator=source).repeat(10, 1, 1, 1)
    found = sl.evaluate(model, x, y, maps, "sufficiency", threshold=0.0)
    classes = model(x).argmax(1).reshape(10, 4)
    same = (classes[:, None] == classes[None]).double().sum(1) - 1  # of the nine others with the same map
    np.testing.assert_allclose(found, (same / 9).flatten().numpy())


def test_maps_of_other_images_are_refused(scene, tmp_path):
    model, x, y, _ = scene
    y = y[:1].expand(len(x))  # so that the classes give nothing away
    maps = sl.attribute(model, x, y)
    scores = sl.evaluate(model, x, y, maps, "pixel_flipping")
    read = sl.Attributions.load(maps.save(tmp_path / "maps.safetensors"))
    shuffled = x.flip(0)
    for given in (maps, maps.reduce(), read):
        with pytest.raises(InputError, match=r"'saliency' are of other images than x.* pass .*maps\.values"):
            sl.evaluate(model, shuffled, y, given, "pixel_flipping")
    with pytest.raises(InputError, match="other images"):
        sl.evaluate_many(model, x, y, {"a": maps, "b": sl.attribute(model, shuffled, y)}, ["sparseness"])
    assert not np.array_equal(sl.evaluate(model, shuffled, y, maps.values, "pixel_flipping"), scores)
    assert np.array_equal(sl.evaluate(model, x.clone(), y, read, "pixel_flipping"), scores)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_maps_know_their_images_in_whatever_precision_they_were_made(scene, dtype):
    model, x, y, _ = scene
    x = x.to(dtype).float()  # what bfloat16 can hold
    scores = sl.evaluate(model, x, y, sl.attribute(model, x, y), "sparseness")
    maps = sl.attribute(copy.deepcopy(model).to(dtype), x.to(dtype), y)
    for images in (x, x.to(dtype)):
        found = sl.evaluate(model.to(images.dtype), images, y, maps, "sparseness")
        np.testing.assert_allclose(found, scores, atol=2e-2 if dtype is torch.bfloat16 else 1e-6)
    with pytest.raises(InputError, match="other images"):
        sl.evaluate(model, images.flip(0), y, maps, "sparseness")


def test_maps_of_some_of_the_images_are_scored_on_those(scene):
    model, x, y, _ = scene
    maps = sl.attribute(model, x, y)
    scores = sl.evaluate(model, x, y, maps, "pixel_flipping")
    for rows in (slice(2, 5), [4, 0], torch.arange(6).flip(0)):
        some = sl.evaluate(model, x[rows], y[rows], maps[rows], "pixel_flipping")
        np.testing.assert_allclose(some, scores[rows], atol=1e-6)


def test_images_are_hashed_once_a_call_and_not_for_plain_maps(scene, monkeypatch):
    model, x, y, values = scene
    maps = {name: sl.attribute(model, x, y, name) for name in ("saliency", "input_x_gradient")}
    hashed = []
    monkeypatch.setattr(evaluation, "fingerprint", lambda value: hashed.append(value) or fingerprint(value))
    evaluate_many(model, x, y, maps, ["sparseness", "complexity"])
    assert len(hashed) == 1
    sl.evaluate(model, x, y, values, "sparseness")
    assert len(hashed) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("metric", ["mprt", "smooth_mprt", "efficient_mprt"])
def test_a_traced_network_cannot_be_randomised(scene, metric):
    model, x, y, _ = scene
    maps = sl.attribute(model, x, y)
    with pytest.raises(InputError, match="the model was traced, which hides them; pass the module"):
        sl.evaluate(torch.jit.trace(model, x), x, y, maps, metric)


def test_scores_are_themselves_and_one_metric_needs_no_list(scene):
    model, x, y, maps = scene
    (found,) = sl.evaluate_many(model, x, y, {"map": maps}, "sparseness")["map"].values()
    other = evaluate_detailed(model, x, y, maps, "sparseness")
    np.testing.assert_array_equal(found.values, other.values)
    assert found == found and found != other and len({found, other}) == 2
    curves = evaluate_detailed(model, x, y, torch.zeros_like(maps), "pixel_flipping")
    assert repr(found).startswith("Scores(sparseness: samples 6, mean ")
    assert (
        "undefined 6 (" in repr(curves)
        and len(repr(curves)) < 300
        and repr(curves.curve).startswith("Curve(6")
    )


NOT_INVARIANT = {"infidelity", "completeness", "local_lipschitz_estimate"}
"""Metrics that compare the map with changes of the logits or of the image, so that its unit matters."""


@pytest.mark.long
@pytest.mark.parametrize(("name", "engine"), CASES)
@pytest.mark.parametrize("factor", [10.0, 2.0**-40])
def test_the_scale_of_the_map_does_not_matter(scene, small, name, engine, factor):
    """Also where the map has zeros, and for the maps that are made again."""
    model, x, y, _ = scene
    x = x.clone()
    x[:, :, :4] = 0
    settings = small(name, x)

    def times_input(scale):
        def explain(model, x, classes):
            with torch.enable_grad():
                x = x.detach().clone().requires_grad_(True)
                slope = torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), x)[0]
            return (scale * x * slope).detach()

        return explain

    scores = []
    for scale in (1.0, factor):
        again = {"explain": times_input(scale)} if "explain" in settings else {}
        maps = times_input(scale)(model, x, y)
        assert (maps == 0).float().mean() > 0.3
        scores.append(sl.evaluate(model, x, y, maps, name, engine=engine, **settings | again))
    if name in NOT_INVARIANT:
        assert not np.allclose(*scores, rtol=0.1)
    else:
        np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-6)
        defined = np.isfinite(scores[0]).any()
        assert defined or METRICS[name].whole or name in INFORMATION  # no other map is alike


class TestLabels:
    """One metric with several settings, each under a label of its own."""

    def test_one_metric_with_several_settings(self, scene):
        model, x, y, maps = scene
        metrics = {
            "pixel_flipping": {"steps": 6},
            "finer": {"metric": "pixel_flipping", "steps": 12},
            "mean": {"metric": "pixel_flipping", "baseline": "mean"},
            "plain": "sparseness",
        }
        found = evaluate_many(model, x, y, {"map": maps}, metrics)["map"]
        assert list(found) == list(metrics)
        for label, given in metrics.items():
            settings = dict(given) if isinstance(given, dict) else {"metric": given}
            name = settings.pop("metric", label)
            expected = sl.evaluate(model, x, y, maps, name, **settings)
            np.testing.assert_array_equal(found[label].values, expected)
            assert found[label].metric == name

    @pytest.mark.parametrize(
        "metrics",
        [
            ["pixel_flipping", "pixel_flipping"],
            [lambda model, x, y, maps: maps.sum((1, 2, 3)), lambda model, x, y, maps: maps.amax((1, 2, 3))],
            ["sparseness", "deletion", "sparseness"],
        ],
        ids=["twice", "functions", "among others"],
    )
    def test_two_under_one_label_are_refused(self, scene, metrics):
        model, x, y, maps = scene
        with pytest.raises(
            InputError,
            match=r"(is given twice|two different metrics are called).*; give each a label of its own",
        ):
            evaluate_many(model, x, y, {"map": maps}, metrics)

    def test_functions_are_labelled_by_their_name(self, scene):
        model, x, y, maps = scene

        def peak(model, x, y, maps, scale: float = 1.0):
            return scale * maps.flatten(1).amax(1)

        metrics = {"peak": {"metric": peak}, "twice": {"metric": peak, "scale": 2.0}}
        found = evaluate_many(model, x, y, {"map": maps}, metrics)["map"]
        np.testing.assert_allclose(found["twice"].values, 2 * found["peak"].values)
        assert list(evaluate_many(model, x, y, {"map": maps}, [peak])["map"]) == ["peak"]

    def test_no_metric_is_refused(self, scene):
        model, x, y, maps = scene
        with pytest.raises(InputError, match="at least one metric"):
            evaluate_many(model, x, y, {"map": maps}, [])


def test_maps_of_a_contrast_are_scored_for_its_first_class() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    x = torch.rand(4, 1, 4, 4)
    maps = sl.attribute(net, x, target=(1, 2))
    with pytest.raises(
        InputError, match=r"another class than y for 4 of 4 samples; pass y=maps.classes\[:, 0\]"
    ):
        sl.evaluate(net, x, torch.full((4,), 3), maps, "pixel_flipping", steps=4)
    ours = sl.evaluate(net, x, maps.classes[:, 0], maps, "pixel_flipping", steps=4)
    study = sl.Study({"net": net}, (x, torch.full((4,), 3))).attribute(
        {"contrast": {"method": "saliency", "target": (1, 2)}}
    )
    study.score({"flip": {"metric": "pixel_flipping", "steps": 4}})
    np.testing.assert_array_equal(study.scores["score"], ours)
