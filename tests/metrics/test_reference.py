"""Values against closed forms (a linear model) and float64 references written out here."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import quantus
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.segmentation import slic
from torch import nn

import saliency_lab as sl
from saliency_lab._common.copying import copy_model
from saliency_lab._common.ranks import descending_ranks
from saliency_lab._common.seeding import derive_seed, preserved_rng
from saliency_lab.attribution.reinitialisation import randomise
from saliency_lab.metrics import evaluate_detailed, randomisation
from saliency_lab.metrics.curves import segmentation
from saliency_lab.metrics.faithfulness import random_fills
from saliency_lab.metrics.probe import Probe
from saliency_lab.metrics.randomisation import histogram_entropy, randomised
from saliency_lab.metrics.removal import cuts, patches
from saliency_lab.metrics.road import interpolate
from saliency_lab.metrics.robustness import neighbours
from tests.metrics.conftest import gradient


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def linear(request):
    """f(x) = Wx, and the map w_y ⊙ x, of which every removal from black takes exactly its share."""
    source = torch.Generator().manual_seed(request.param)
    x = torch.rand(4, request.param, 12, 12, generator=source, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, x[0].numel(), generator=source))
    maps = model[1].weight.detach()[y].reshape(x.shape) * x
    return model, x, y, maps


@pytest.mark.parametrize(
    ("name", "chosen", "want"),
    [
        ("faithfulness_correlation", {"runs": 8, "subset_size": 30}, 1.0),
        ("faithfulness_estimate", {"steps": 9}, 1.0),
        ("sensitivity_n", {"fractions": (0.1, 0.5), "runs": 8}, 1.0),
        ("completeness", {}, 0.0),
    ],
)
def test_exact_map_of_a_linear_model_is_perfect(linear, name, chosen, want):
    scores = sl.evaluate(*linear, name, output="logit", **chosen)
    np.testing.assert_allclose(scores, want, atol=1e-9)
    worse = sl.evaluate(*linear[:3], linear[3].flip(2, 3), name, output="logit", **chosen)
    if name != "completeness":  # the sum is the same
        assert (np.abs(worse - want) > 1e-3).all()


def test_infidelity_of_the_gradient_of_a_linear_model_is_zero(linear):
    """The perturbation is multiplied with the map, so the exact map is the weights themselves."""
    model, x, y, _ = linear
    weights = model[1].weight.detach()[y].reshape(x.shape)
    scores = sl.evaluate(model, x, y, weights, "infidelity", patch_sizes=(4, 5))
    np.testing.assert_allclose(scores, 0, atol=1e-9)
    assert (sl.evaluate(model, x, y, weights.flip(3), "infidelity", patch_sizes=(4, 5)) > 1e-3).all()


def test_curves_of_a_linear_model_are_cumulative_sums(linear):
    model, x, y, maps = linear
    pixels = maps.sum(1).flatten(1).numpy()
    units = patches(x.shape, 4).numpy()
    per_patch = np.stack([[row[units == u].sum() for u in range(9)] for row in pixels])
    down, down_patches = -np.sort(-pixels, axis=1), -np.sort(-per_patch, axis=1)
    total = pixels.sum(1, keepdims=True)

    def left(parts):
        return total - np.concatenate([np.zeros((4, 1)), np.cumsum(parts, axis=1)], axis=1)

    def area(curve):
        return np.trapezoid(curve, axis=1) / (curve.shape[1] - 1)

    def score(name, **chosen):
        return sl.evaluate(model, x, y, maps, name, output="logit", **chosen)

    np.testing.assert_allclose(score("deletion", steps=144), area(left(down)), atol=1e-9)
    np.testing.assert_allclose(
        score("insertion", steps=144, baseline="black"), area(total - left(down)), atol=1e-9
    )
    np.testing.assert_allclose(score("selectivity", patch_size=4), area(left(down_patches)), atol=1e-9)
    np.testing.assert_allclose(
        score("region_perturbation", patch_size=4), (total - left(down_patches)).mean(1), atol=1e-9
    )
    first = score("region_perturbation", patch_size=4, regions=2)
    np.testing.assert_allclose(first, (total - left(down_patches))[:, :3].mean(1), atol=1e-9)


def test_patches_that_do_not_divide_the_image_are_cut_at_its_edges():
    grid = patches(torch.Size([5, 7]), 3).reshape(5, 7)
    assert grid.unique().tolist() == list(range(6))
    assert grid[:, 0].tolist() == [
        0,
        0,
        0,
        3,
        3,
    ]  # 5 = 3 + 2: half of the missing pixel on each side, rounded
    assert grid[0].tolist() == [0, 0, 1, 1, 1, 2, 2]  # 7 = 2 + 3 + 2


def test_monotonicity_tells_rising_from_falling():
    x = torch.full((2, 1, 3, 3), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False))
    with torch.no_grad():
        model[1].weight[0] = torch.arange(1.0, 10.0)
        model[1].weight[1] = -torch.arange(1.0, 10.0)
    maps = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3).expand(2, -1, -1, -1)
    y = torch.tensor([0, 1])
    assert sl.evaluate(model, x, y, maps, "monotonicity", steps=9, output="logit").tolist() == [1.0, 0.0]


def test_segments_are_of_the_image():
    """SLIC's usual compactness, meant for Lab colours, cuts every grey image into the same grid."""
    wide, tall = torch.full((2, 1, 16, 16), 0.1)
    wide[:, 6:] = tall[:, :, 11:] = 0.9
    found = segmentation(Probe(nn.Flatten(), torch.stack([wide, tall]), torch.tensor([0, 0]), seed=0), 16)
    for image, units in zip((wide, tall), found, strict=True):
        bright = image.flatten() > 0.5
        assert not set(units[bright].tolist()) & set(units[~bright].tolist())
        assert sorted(set(units.tolist())) == list(range(int(units.max()) + 1))
    assert not torch.equal(*found)


def test_segments_of_colour_images_are_scikit_images():
    coarse = torch.rand(3, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = nn.functional.interpolate(coarse, (20, 20), mode="bilinear")
    found = segmentation(Probe(nn.Flatten(), x, torch.tensor([0, 0, 0]), seed=0), 30)
    for image, units in zip(x, found, strict=True):
        want = slic(image.permute(1, 2, 0).numpy(), n_segments=30, start_label=0)
        np.testing.assert_array_equal(units.view(20, 20), want)


def test_masked_input_accuracy_counts_right_answers(scene):
    model, x, _, maps = scene
    with torch.no_grad():
        y = model(x).argmax(1)
    scores = evaluate_detailed(model, x, y, maps, "masked_input_accuracy", steps=6)
    order = (-maps.double().sum(1).flatten(1)).argsort(dim=1, stable=True)
    right = []
    for gone in range(0, 145, 24):
        image = x.clone().flatten(2)
        for i in range(6):
            image[i, :, order[i, :gone]] = 0
        with torch.no_grad():
            right.append((model(image.reshape(x.shape)).argmax(1) == y).double().numpy())
    curve = np.stack(right, 1)
    np.testing.assert_array_equal(scores.curve.values, curve)
    np.testing.assert_allclose(scores.values, np.trapezoid(curve, axis=1) / 6, atol=1e-12)
    np.testing.assert_allclose(
        sl.evaluate(model, x, y, -maps, "masked_input_accuracy_lowest", steps=6), scores.values, atol=1e-12
    )


def test_monotonicity_correlation_against_its_definition(scene):
    model, x, y, maps = scene
    from scipy.stats import spearmanr

    got = sl.evaluate(model, x, y, maps, "monotonicity_correlation", steps=8, samples=2, seed=2)
    fills = random_fills(Probe(model, x, y, seed=2), 2)
    for i in range(len(x)):
        scores = maps[i].double().abs().sum(0).flatten()
        order = (-scores).argsort(stable=True)
        sums, changes = [], []
        with torch.no_grad():
            full = model(x[i : i + 1]).softmax(1)[0, y[i]].double()
            for group in order.split(18):
                squares = []
                for fill in fills[i]:
                    image = x[i].flatten(1).clone()
                    image[:, group] = fill.flatten(1)[:, group]
                    answer = model(image.reshape(1, *x[i].shape)).softmax(1)[0, y[i]].double()
                    squares.append((answer - full) ** 2)
                sums.append(scores[group].sum())
                changes.append(torch.stack(squares).mean())
        assert got[i] == pytest.approx(spearmanr(sums, changes)[0], abs=1e-6)


def test_complexities_of_known_maps():
    x, y = torch.rand(3, 1, 4, 4), torch.tensor([0, 0, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    maps = torch.zeros(3, 1, 4, 4)
    maps[0] = 1  # even
    maps[1, 0, 0, 0] = -5  # one pixel
    maps[2, 0, 0, :2] = torch.tensor([3.0, -1.0])
    score = {name: sl.evaluate(model, x, y, maps, name) for name in ("sparseness", "complexity")}
    np.testing.assert_allclose(score["sparseness"], [0, 15 / 16, (15 * 3 + 13) / (16 * 4)], atol=1e-12)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    np.testing.assert_allclose(score["complexity"], [math.log(16), 0, entropy], atol=1e-12)
    assert sl.evaluate(model, x, y, maps, "effective_complexity").tolist() == [16, 1, 2]
    assert sl.evaluate(model, x, y, maps, "effective_complexity", eps=0.5).tolist() == [16, 1, 1]


class TestInterpolation:
    def test_against_a_dense_solve(self):
        """x_i is the weighted mean of its neighbours in the image: 1/6 beside, 1/12 across."""
        source = torch.Generator().manual_seed(0)
        image = torch.rand(7, 6, generator=source, dtype=torch.float64)
        gone = torch.rand(7, 6, generator=source) < 0.7
        matrix, right = np.eye(42), image.flatten().numpy().copy()
        for r, c in itertools.product(range(7), range(6)):
            if not gone[r, c]:
                continue
            row, total = np.zeros(42), 0.0
            for dr, dc in itertools.product((-1, 0, 1), repeat=2):
                if (dr or dc) and 0 <= r + dr < 7 and 0 <= c + dc < 6:
                    weight = 1 / 12 if dr and dc else 1 / 6
                    row[(r + dr) * 6 + c + dc] = -weight
                    total += weight
            row[r * 6 + c] = total
            matrix[r * 6 + c], right[r * 6 + c] = row, 0
        want = np.linalg.solve(matrix, right).reshape(7, 6)
        np.testing.assert_allclose(interpolate(image[None], gone[None])[0], want, atol=1e-3)

    def test_against_quantus(self):
        from quantus.functions.perturb_func import noisy_linear_imputation

        source = torch.Generator().manual_seed(1)
        images = torch.rand(5, 28, 28, generator=source)
        for share in (0.1, 0.5, 0.9, 0.98):
            gone = torch.rand(5, 28, 28, generator=source) < share
            want = [
                noisy_linear_imputation(
                    image[None].double().numpy(), mask.flatten().nonzero()[:, 0].numpy(), noise=0.0
                )[0]
                for image, mask in zip(images, gone, strict=True)
            ]
            np.testing.assert_allclose(interpolate(images, gone), np.stack(want), atol=2e-3)

    def test_a_large_hole(self):
        """All but one corner gone: the only solution is that corner's value everywhere."""
        images = torch.rand(1, 28, 28)
        gone = torch.ones(1, 28, 28, dtype=torch.bool)
        gone[0, 0, 0] = False
        np.testing.assert_allclose(interpolate(images, gone), images[0, 0, 0].item(), atol=2e-3)

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
    def test_values_stay_between_those_that_were_kept(self, seed, share):
        source = torch.Generator().manual_seed(seed)
        images, gone = torch.rand(2, 9, 11, generator=source), torch.rand(2, 9, 11, generator=source) < share
        gone[:, 4, 5] = False
        filled = interpolate(images, gone)
        assert torch.equal(filled[~gone], images[~gone])
        for image, mask, result in zip(images, gone, filled, strict=True):
            low, high = image[~mask].aminmax()
            assert ((result >= low - 2e-3) & (result <= high + 2e-3)).all()

    def test_rows_do_not_depend_on_each_other(self):
        images, gone = torch.rand(6, 12, 12), torch.rand(6, 12, 12) < 0.8
        together = interpolate(images, gone)
        alone = torch.cat([interpolate(images[i : i + 1], gone[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=8, max_size=8), min_size=1, max_size=4))
def test_ranks_are_a_stable_order_from_the_highest(rows):
    ranks = descending_ranks(torch.tensor(rows, dtype=torch.float64))
    for values, found in zip(rows, ranks.tolist(), strict=True):
        want = sorted(range(8), key=lambda k: (-values[k], k))
        assert [want.index(k) for k in range(8)] == found


@settings(max_examples=30, deadline=None)
@given(units=st.integers(1, 500), steps=st.integers(1, 60))
def test_cuts_run_from_none_to_all_in_equal_parts(units, steps):
    cut = cuts(units, steps)
    parts = cut.diff()
    assert (cut[0], cut[-1]) == (0, units)
    assert len(parts) == min(steps, units)
    assert parts.max() - parts.min() <= 1


def test_sensitivity_and_lipschitz_against_their_definitions(scene):
    model, x, y, maps = scene
    chosen = {"samples": 4, "radius": "8/255", "explain": gradient}
    points = neighbours(Probe(model, x, y, seed=0), 4, 8 / 255).double()
    assert ((points - x[:, None].double()).abs() <= 8 / 255 + 1e-6).all()
    assert ((points >= 0) & (points <= 1)).all()
    own = maps.double()
    others = torch.stack([gradient(model, points[:, s].float(), y).double() for s in range(4)], 1)
    change = (own[:, None] - others).flatten(2).norm(dim=2)
    ratio = change / own.flatten(1).norm(dim=1)[:, None]
    steps = (x[:, None].double() - points).flatten(2).norm(dim=2)
    for name, want in {
        "max_sensitivity": ratio.amax(1),
        "avg_sensitivity": ratio.mean(1),
        "local_lipschitz_estimate": (change / steps).amax(1),
    }.items():
        np.testing.assert_allclose(sl.evaluate(model, x, y, maps, name, **chosen), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "metric", "output"),
    [
        ("relative_input_stability", quantus.RelativeInputStability, "logit"),
        ("relative_output_stability", quantus.RelativeOutputStability, "logit"),
        ("relative_output_stability", quantus.RelativeOutputStability, "probability"),
    ],
)
def test_relative_stability_is_quantus_s_where_no_prediction_changes(scene, name, metric, output):
    model, x, y, maps = scene
    points = neighbours(Probe(model, x, y, seed=0), 3, 0.001)
    draws = iter(points.transpose(0, 1).flatten(2).numpy())
    theirs = metric(
        nr_samples=3, return_nan_when_prediction_changes=False, disable_warnings=True, return_aggregate=False,
        perturb_func=lambda arr, **_: next(draws),
    )(
        model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=maps.numpy(), channel_first=True,
        softmax=output == "probability", device="cpu",
        explain_func=lambda model, inputs, targets, **_: gradient(
            model, torch.as_tensor(inputs), torch.as_tensor(targets)
        ).numpy(),
    )  # fmt: skip
    ours = sl.evaluate(model, x, y, maps, name, samples=3, radius=0.001, explain=gradient, output=output)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3)  # float32 changes of a thousandth


def test_attack_metrics_compare_the_two_maps(scene):
    model, x, y, _ = scene
    maps = gradient(model, x, y)
    given = {"attacked": x, "explain": gradient}
    for name in ("attack_rank_correlation", "attack_ssim", "attack_top_k"):
        np.testing.assert_allclose(sl.evaluate(model, x, y, maps, name, **given), 1.0, atol=1e-6)
    np.testing.assert_allclose(
        sl.evaluate(model, x, y, -maps, "attack_rank_correlation", **given), -1.0, atol=1e-6
    )


def test_randomisation_destroys_what_was_learned_and_leaves_the_model(scene):
    model, x, y, _ = scene
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = [copy.deepcopy(each.state_dict()) for each in randomised(model, "independent", 0, x[:1])]
    assert len(states) == 2
    for changed, state in zip(("4.", "0."), states[::-1], strict=True):
        for key, value in state.items():
            assert torch.equal(value, before[key]) != key.startswith(changed)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    maps = gradient(model, x, y)

    def constant(model, x, classes):
        return gradient(scene[0], x, classes)  # a method that does not look at the network it is given

    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "mprt", explain=constant), 1.0, atol=1e-6)
    assert (sl.evaluate(model, x, y, maps, "mprt", explain=gradient) < 0.9).all()


def test_mprt_is_quantus_s_on_the_same_networks(scene):
    model, x, y, _ = scene
    maps = gradient(model, x, y).abs()
    ours = sl.evaluate(model, x, y, maps, "mprt", explain=gradient)
    rows = []
    for network in randomised(model, "top_down", 0, x[:1]):
        other = gradient(network, x, y).abs()
        rows.append(
            quantus.functions.similarity_func.correlation_spearman(
                maps.flatten(1).numpy(), other.flatten(1).numpy(), batched=True
            )
        )
    np.testing.assert_allclose(ours, np.mean(rows, axis=0), atol=1e-9)


def test_efficient_mprt_is_the_relative_rise_of_entropy(scene):
    model, x, y, _ = scene
    maps = gradient(model, x, y)
    *_, network = randomised(model, "top_down", 0, x[:1])
    other = gradient(network, x, y)
    want = []
    for a, b in zip(maps, other, strict=True):
        first, second = (
            quantus.functions.complexity_func.discrete_entropy(m.double().numpy(), m.numpy()) for m in (a, b)
        )
        want.append((second - first) / first)
    np.testing.assert_allclose(
        sl.evaluate(model, x, y, maps, "efficient_mprt", explain=gradient), want, rtol=1e-9
    )


def test_the_fully_randomised_network_is_made_once_per_call(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(130, 1, 4, 4), torch.arange(130) % 3  # two blocks
    maps = {"one": gradient(model, x, y), "other": gradient(model, x, y) * x}
    metrics = {"efficient_mprt": {"explain": gradient}}
    apart = [
        sl.evaluate(
            model, x[i : i + 1], y[i : i + 1], maps["one"][i : i + 1], "efficient_mprt", explain=gradient
        )
        for i in (0, 129)
    ]
    copies = []
    copy = randomisation.copy_model
    monkeypatch.setattr(randomisation, "copy_model", lambda net: copies.append(net) or copy(net))
    scores = sl.evaluate_many(model, x, y, maps, metrics)
    assert len(copies) == 1
    np.testing.assert_allclose(scores["one"]["efficient_mprt"].values[[0, 129]], np.concatenate(apart))


@pytest.mark.parametrize("bad", [0.0, 1.0, math.nan, math.inf])
def test_efficient_mprt_of_a_randomised_map_without_a_histogram_is_undefined(scene, bad):
    """And of the others it is what it is without the bad one."""
    model, x, y, _ = scene
    maps = gradient(model, x, y)

    def partly(network, x, classes):
        other = gradient(network, x, classes)
        other[0] = bad
        return other

    found = evaluate_detailed(model, x, y, maps, "efficient_mprt", explain=partly)
    sound = sl.evaluate(model, x, y, maps, "efficient_mprt", explain=gradient)
    assert found.reasons[0] is not None and "constant, zero or not finite" in found.reasons[0]
    np.testing.assert_array_equal(found.values[1:], sound[1:])
    assert np.isnan(histogram_entropy(torch.full((1, 1, 4, 4), bad), 10)).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_attack_metrics_rank_pixels(scene, absolute):
    """All channels of a pixel together, as every metric that ranks does."""
    model, x, y, _ = scene
    maps, attacked = gradient(model, x, y), (x * 0.8 + 0.1).flip(3)
    other = gradient(model, attacked, y)
    a, b = ((m.abs() if absolute else m).double().sum(1).flatten(1).numpy() for m in (maps, other))
    given = {"attacked": attacked, "explain": gradient, "absolute": absolute}
    found = sl.evaluate(model, x, y, maps, "attack_rank_correlation", **given)
    np.testing.assert_allclose(found, [spearmanr(*pair).statistic for pair in zip(a, b, strict=True)])
    found = sl.evaluate(model, x, y, maps, "attack_top_k", k=0.1, **given)
    top = [[set(np.argsort(-row, kind="stable")[:14]) for row in rows] for rows in (a, b)]
    np.testing.assert_allclose(found, [len(p & q) / 14 for p, q in zip(*top, strict=True)])


class _Tokens(nn.Module):
    """A class token and an attention, neither of which has `reset_parameters`."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x[:, 0]], 1)
        return self.head(self.attention(tokens, tokens, tokens)[0][:, 0])


def test_every_parameter_is_randomised_also_of_attention_and_class_tokens():
    model, image = _Tokens(), torch.rand(1, 1, 4, 6)
    *_, last = randomised(model, "top_down", 0, image)
    before = dict(model.named_parameters())
    layers = len(list(randomised(model, "independent", 0, image)))
    assert layers == 4  # the token, the attention, its output, the head
    for name, parameter in last.named_parameters():
        assert not torch.equal(parameter, before[name]) or name.endswith("bias"), name


def test_layers_of_a_convolutional_network_are_drawn_by_their_own_initialisation():
    """By name and seed, with the network's own order: the draws are those of `reset_parameters` alone."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.ReLU(), nn.Linear(4, 2))
    networks = list(randomised(model, "bottom_up", 7, torch.rand(1, 1, 6, 6)))
    assert len(networks) == 3
    expected = copy.deepcopy(model)
    for name in ("0", "1", "3"):
        with preserved_rng(derive_seed(7, "randomised", name)):
            expected.get_submodule(name).reset_parameters()
    for key, value in expected.state_dict().items():
        assert torch.equal(networks[-1].state_dict()[key], value)


@pytest.mark.parametrize("order", ["top_down", "independent"])
def test_a_model_is_verified_to_change_once_for_the_same_weights(order):
    model, seen = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    image = torch.rand(1, 1, 4, 4)
    first = [copy.deepcopy(each.state_dict()) for each in randomised(model, order, 0, image)]
    passes = len(seen)
    assert passes == 4  # the order of the layers, the model itself and two layers
    again = [copy.deepcopy(each.state_dict()) for each in randomised(model, order, 0, image)]
    assert len(seen) == passes + 1
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with torch.no_grad():
        model[0].weight.mul_(2)
    list(randomised(model, order, 0, image))
    assert len(seen) == 2 * passes + 1


def test_a_layer_with_normalised_weights_is_restored_before_the_next():
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(3, 4)), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))
    )
    x, expected = torch.rand(2, 3), []
    for name in ("0", "1"):
        other = copy_model(model)
        randomise(other.get_submodule(name), derive_seed(0, "randomised", name))
        expected.append(other(x))
    found = [network(x) for network in randomised(model, "independent", 0, x)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_random_logit_asks_for_another_class(scene):
    model, x, y, maps = scene
    asked = []

    def explain(model, x, classes):
        asked.append(classes)
        return maps[: len(x)]  # one image is explained first, to compare its map with the one given

    sl.evaluate(model, x, y, maps, "random_logit", explain=explain)
    assert (asked[-1] != y).all()
    assert ((asked[-1] >= 0) & (asked[-1] < 5)).all()


class TestLocalisation:
    """A 2×3 map and mask small enough to score by hand."""

    x, y = torch.rand(1, 1, 2, 3), torch.tensor([0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    maps = torch.tensor([[[[4.0, -1.0, 1.0], [2.0, 0.0, -2.0]]]])
    masks = torch.tensor([[[[True, True, False], [False, False, False]]]])

    @pytest.mark.parametrize(
        ("name", "chosen", "want"),
        [
            ("pointing_game", {}, 1.0),
            ("attribution_localisation", {}, 4 / 7),
            ("focus", {}, 4 / 7),
            ("relevance_mass_accuracy", {}, 5 / 10),
            ("relevance_mass_accuracy", {"absolute": False}, 3 / 4),
            ("relevance_rank_accuracy", {}, 1 / 2),
            ("top_k_intersection", {"k": 0.5}, 1 / 3),
            ("auc", {}, 5 / 8),  # 4 beats four outside; −1 beats one
        ],
    )
    def test_by_hand(self, name, chosen, want):
        score = sl.evaluate(self.model, self.x, self.y, self.maps, name, masks=self.masks, **chosen)
        assert score[0] == pytest.approx(want)

    def test_an_empty_mask_has_no_score(self):
        for name in ("pointing_game", "auc", "relevance_rank_accuracy", "top_k_intersection", "focus"):
            empty = torch.zeros_like(self.masks)
            scores = evaluate_detailed(self.model, self.x, self.y, self.maps, name, masks=empty)
            assert np.isnan(scores.values[0])
            assert "mask is empty" in scores.reasons[0]


def test_completeness_is_the_gap(scene):
    model, x, y, maps = scene
    with torch.no_grad():
        gap = maps.flatten(1).sum(1) - (model(x) - model(torch.zeros_like(x))).gather(1, y[:, None])[:, 0]
    np.testing.assert_allclose(sl.evaluate(model, x, y, maps, "completeness"), gap.abs(), rtol=1e-4)


def test_non_sensitivity_counts_patches_where_map_and_model_disagree():
    x, y = torch.rand(1, 1, 4, 4) + 0.01, torch.tensor([0])
    x = x.clamp(0, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        weight = torch.zeros(2, 4, 4)
        weight[0, :2] = 3.0  # the upper two patches matter
        model[1].weight.copy_(weight.flatten(1))
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, :2, :2] = 1  # the map sees the first of them
    maps[0, 0, 2:, 2:] = 1  # and one that does not matter
    assert sl.evaluate(model, x, y, maps, "non_sensitivity", patch_size=2)[0] == 2 / 4


def test_input_invariance_of_the_gradient_and_not_of_gradient_times_input(scene):
    model, x, y, _ = scene
    maps = gradient(model, x, y)
    np.testing.assert_allclose(
        sl.evaluate(model, x, y, maps, "input_invariance", explain=gradient), 1, atol=1e-4
    )

    def times_input(model, x, classes):
        return x * gradient(model, x, classes)

    scores = sl.evaluate(model, x, y, x * maps, "input_invariance", explain=times_input)
    assert (scores < 0.999).all()


class TestComparison:
    x = torch.rand(4, 1, 3, 3)
    y = torch.tensor([0, 0, 0, 0])
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))

    def maps(self):
        maps = torch.zeros(4, 1, 3, 3)
        maps[:3, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0])  # three alike
        maps[3, 0, 2, 2] = 1.0
        return maps

    @pytest.mark.parametrize(
        ("name", "chosen"), [("consistency", {"top": 1}), ("sufficiency", {"threshold": 0.1})]
    )
    def test_share_of_like_maps_with_the_same_prediction(self, name, chosen):
        with torch.no_grad():
            predicted = self.model(self.x).argmax(1)
        want = [((predicted[:3] == predicted[i]).sum() - 1).item() / 2 for i in range(3)]
        scores = evaluate_detailed(self.model, self.x, self.y, self.maps(), name, **chosen)
        np.testing.assert_allclose(scores.values[:3], want)
        assert np.isnan(scores.values[3])
        assert scores.undefined == {"no other map of the call is like this one": 1}

    def test_consistency_is_the_count_over_pairs(self):
        source = torch.Generator().manual_seed(0)
        x = torch.rand(60, 1, 3, 3, generator=source)
        maps = nn.functional.one_hot(torch.randint(0, 7, (60,), generator=source), 9).float()
        maps[:5] = 0  # of no use, whatever they are like
        maps[5] = torch.eye(9)[8]  # like no other
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
        with torch.no_grad():
            model[1].weight.copy_(torch.eye(9)[:2] * torch.tensor([[0.0], [1.0]]))
            model[1].bias.copy_(torch.tensor([0.5, 0.0]))
        predicted = (x[:, 0, 0, 1] > 0.5).long()
        want = []
        for i in range(60):
            others = [j for j in range(5, 60) if j != i and i >= 5 and maps[j].equal(maps[i])]
            same = [predicted[j] == predicted[i] for j in others]
            want.append(np.mean(same) if same else np.nan)
        y = torch.zeros(60, dtype=torch.long)
        found = sl.evaluate(model, x, y, maps.view(60, 1, 3, 3), "consistency", top=1)
        np.testing.assert_array_equal(found, want)
        assert len(set(predicted.tolist())) == 2 and np.isnan(found).sum() == 6
