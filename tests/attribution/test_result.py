"""The result: reduction, normalisation, comparison, files."""

from __future__ import annotations

from dataclasses import replace

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.attribution import Attributions, attribute


@pytest.fixture
def maps(rgb_net, rgb_batch) -> Attributions:
    x, y = rgb_batch
    return attribute(rgb_net, x, y, "integrated_gradients", steps=4, baseline=x[0].flip(-1), seed=7)


@pytest.mark.parametrize(
    ("channels", "sign", "expected"),
    [
        ("sum", "signed", lambda v: v.sum(1, keepdims=True)),
        ("mean", "absolute", lambda v: np.abs(v).mean(1, keepdims=True)),
        ("max", "absolute", lambda v: np.abs(v).max(1, keepdims=True)),
        ("sum", "positive", lambda v: np.maximum(v, 0).sum(1, keepdims=True)),
        ("l2", "signed", lambda v: np.sqrt((v**2).sum(1, keepdims=True))),
    ],
)
def test_reduce(maps, channels, sign, expected):
    reduced = maps.reduce(channels, sign)
    np.testing.assert_allclose(reduced.numpy(), expected(maps.numpy()), rtol=1e-5, atol=1e-8)
    assert reduced.processing == (f"reduce({channels}, {sign})",) and maps.processing == ()


def test_reduce_max_keeps_the_sign():
    values = torch.tensor([1.0, -3.0, 2.0]).reshape(1, 3, 1, 1)
    maps = Attributions(values, "own", {}, "label", 0.0, 0, torch.zeros(1, dtype=torch.int64))
    assert maps.reduce("max").values.item() == -3.0


@pytest.mark.parametrize("by", ["max", "percentile", "sum", "rank"])
def test_normalise_is_per_sample_and_survives_zeros_and_nan(maps, by):
    values = maps.values.clone()
    values[1], values[2, 0, 0, 0] = 0.0, torch.nan
    scaled = replace(maps, values=values).normalise(by).values
    alone = replace(maps, values=values[3:4], classes=maps.classes[3:4], total=None).normalise(by).values
    assert torch.equal(scaled[3:4], alone)
    assert torch.isfinite(scaled[1]).all() and (by == "rank" or (scaled[1] == 0).all())
    assert torch.isnan(scaled[2]).any() and torch.isfinite(scaled[3]).all()
    good = values[3].double()
    if by == "max":
        expected = good / good.abs().max()
    elif by == "sum":
        expected = good / good.abs().sum()
    elif by == "percentile":
        expected = (good / np.percentile(good.abs().numpy(), 99)).clamp(-1, 1)
    else:
        flat = good.flatten()
        below, ties = (flat[:, None] > flat).sum(1), (flat[:, None] == flat).sum(1)
        expected = ((below + (ties - 1) / 2) / (len(flat) - 1)).view_as(good)
    torch.testing.assert_close(scaled[3].double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_compare_is_scipys_and_scikit_images(maps):
    other = replace(maps, values=maps.values.flip(3))
    table = maps.compare(other, k=0.2)
    a, b = maps.numpy().astype(float), other.numpy().astype(float)
    for row in range(len(maps)):
        assert table.rank_correlation[row] == pytest.approx(spearmanr(a[row].ravel(), b[row].ravel())[0])
        scaled = [each[row] / np.abs(each[row]).max() for each in (a, b)]
        assert table.ssim[row] == pytest.approx(
            structural_similarity(*scaled, data_range=2.0, channel_axis=0)
        )
        top = [set(np.argsort(-each[row].ravel(), kind="stable")[:86]) for each in (a, b)]
        assert table.top_k_overlap[row] == pytest.approx(len(top[0] & top[1]) / 86)
    same = maps.compare(maps)
    assert np.allclose(same, 1.0)


def test_compare_takes_an_array(maps):
    pd.testing.assert_frame_equal(maps.compare(maps.numpy() * 2), maps.compare(maps.values * 2))


def test_compare_is_nan_where_it_is_undefined(maps):
    values = maps.values.clone()
    values[0] = 0.0
    values[1, 0, 0, 0] = torch.nan
    table = maps.compare(values)
    assert table.loc[:1, ["rank_correlation", "ssim"]].isna().all(axis=None)
    assert table.loc[2:].notna().all(axis=None) and np.isnan(table.top_k_overlap[1])


def test_save_and_load(maps, tmp_path):
    path = maps.reduce().save(tmp_path / "deep" / "maps.safetensors")
    back = Attributions.load(path)
    assert torch.equal(back.values, maps.reduce().values) and torch.equal(back.classes, maps.classes)
    assert torch.equal(back.total, maps.total)
    for name in ("method", "target", "seconds", "seed", "provenance"):
        assert getattr(back, name) == getattr(maps, name)
    assert back.settings["steps"] == 4 and set(back.settings) == set(maps.settings)
    assert back.processing == ("reduce(sum, signed)",)
    assert back.settings["baseline"].startswith("tensor (3, 12, 12) ")


def test_settings_make_the_same_maps_again(maps, rgb_net, rgb_batch):
    again = attribute(rgb_net, *rgb_batch, maps.method, seed=maps.seed, **maps.settings)
    assert torch.equal(again.values, maps.values)
    assert "tensor (3, 12, 12)" in repr(maps)


def test_load_names_what_is_wrong(maps, tmp_path):
    path = maps.save(tmp_path / "maps.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot read attributions"):
        Attributions.load(path)
    with pytest.raises(InputError, match="cannot read attributions"):
        Attributions.load(tmp_path / "absent.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not one of attributions"):
        Attributions.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("header", ["no json", "{}", '{"processing": [], "stray": 1}'])
def test_a_header_that_is_not_ours_is_refused(tmp_path, header):
    path = tmp_path / "other.safetensors"
    save_file({"values": torch.zeros(1, 1, 2, 2)}, path, metadata={"attributions": header})
    with pytest.raises(InputError, match="not one of attributions"):
        Attributions.load(path)


def test_sequence_and_array(maps):
    assert len(maps) == 6 and len(list(maps)) == 6
    assert maps[1:3].values.shape == (2, 3, 12, 12) and torch.equal(maps[-1].values[0], maps.values[5])
    assert torch.equal(maps[torch.tensor([4, 0])].total, maps.total[[4, 0]])
    array = np.asarray(maps)
    assert array.dtype == np.float32 and np.array_equal(array, maps.values.numpy())
    for one in (2, np.int64(2), torch.tensor(2), [2], torch.arange(6) == 2):
        assert torch.equal(maps[one].values, maps.values[2:3]) and torch.equal(
            maps[one].total, maps.total[2:3]
        )
    for wrong in (None, True, [[0, 1]]):
        with pytest.raises(InputError, match="takes a number, slice, list or mask of images"):
            maps[wrong]
    own = maps.numpy()
    own[:] = 0
    assert (maps.values != 0).any()
    with pytest.raises(IndexError):
        maps[6]


def test_repr_and_show(maps):
    assert "integrated_gradients" in repr(maps) and "completeness error" in repr(maps)
    assert "<table>" in maps._repr_html_() and "6 × (3, 12, 12)" in maps._repr_html_()
    assert "0 × (3, 12, 12)" in repr(maps[:0]) and "range: none" in repr(maps[:0])
    assert len(maps.show(n=2).axes) == 3
    assert len(maps.show(torch.zeros(6, 3, 12, 12), n=2).axes) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.reduce("median"), "channels must be one of sum, mean, max, l2, not 'median'"),
        (lambda m: m.reduce(sign="abs"), "sign must be one of signed, absolute, positive"),
        (lambda m: m.normalise("l1"), "by must be one of"),
        (lambda m: m.compare(m[:2]), "must share one shape"),
        (lambda m: m.compare(m, k=0), "k must be above 0"),
    ],
)
def test_bad_words_are_named(maps, call, message):
    with pytest.raises(InputError, match=message):
        call(maps)


@pytest.mark.parametrize(
    ("method", "name"), [(captum.attr.IntegratedGradients, "baselines"), ("integrated_gradients", "baseline")]
)
def test_settings_per_image_are_cut_with_the_maps_whatever_the_method(rgb_net, rgb_batch, method, name):
    x, y = rgb_batch
    baselines = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    steps = {"n_steps": 4} if name == "baselines" else {"steps": 4}
    maps = attribute(rgb_net, x, y, method, **{name: baselines}, **steps)
    part = maps[1:]
    assert torch.equal(part.settings[name], baselines[1:])
    whole, own = (
        sl.evaluate(rgb_net, x[rows], y[rows], each, "max_sensitivity", samples=2)
        for rows, each in ((slice(None), maps), (slice(1, None), part))
    )
    np.testing.assert_allclose(own, whole[1:], rtol=1e-5)


def test_masks_per_image_are_cut_and_a_set_of_baselines_is_not(rgb_net, rgb_batch):
    x, y = rgb_batch
    masks = torch.arange(x[:, :1].numel()).reshape(x[:, :1].shape) % 4
    maps = attribute(rgb_net, x, y, captum.attr.FeatureAblation, feature_mask=masks)
    assert torch.equal(maps[[2, 0]].settings["feature_mask"], masks[[2, 0]])
    maps = attribute(rgb_net, x, y, captum.attr.GradientShap, baselines=x, n_samples=2)
    assert torch.equal(maps[1:].settings["baselines"], x)
