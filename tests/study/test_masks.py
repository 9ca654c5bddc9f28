"""A study that knows where the evidence is hands the masks to the metrics that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import quantus
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.models import ModelCard, build_model, save_model
from saliency_lab.study import Study
from saliency_lab.study.cache.store import FolderStore

MakeNet = Callable[[int], nn.Module]
TinySample = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def located(tiny_sample: TinySample) -> tuple[torch.Tensor, ...]:
    masks = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    return (*tiny_sample, masks)


def test_localisation_is_scored_as_by_evaluate(located: tuple[torch.Tensor, ...], make_net: MakeNet) -> None:
    net = make_net(0)
    study = Study({"plain": net}, located).attribute("saliency").score(["pointing_game", "sparseness"])
    x, y, masks = located
    maps = study.maps["plain"]["saliency"]
    expected = sl.evaluate(net, x, y, maps, metric="pointing_game", masks=masks)
    found = study.scores.query("metric == 'pointing_game'")["score"].to_numpy()
    np.testing.assert_array_equal(found, expected)
    assert 0 < found.mean() < 1


def test_other_masks_are_other_results(
    located: tuple[torch.Tensor, ...], make_net: MakeNet, tmp_path: Path
) -> None:
    x, y, masks = located
    scores = []
    for given in (masks, ~masks):
        study = Study({"plain": make_net(0)}, (x, y, given), store=tmp_path)
        scores.append(study.attribute("saliency").score("pointing_game").scores["score"].to_numpy())
    np.testing.assert_array_equal(scores[0], 1 - scores[1])
    assert len(list((tmp_path / "samples").iterdir())) == 2


@pytest.mark.long
def test_workers_read_the_masks_and_a_load_keeps_them(
    located: tuple[torch.Tensor, ...], make_net: MakeNet, tmp_path: Path
) -> None:
    here = Study({"plain": make_net(0)}, located).attribute("saliency").score("focus")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = Study({"plain": make_net(0)}, located, store=tmp_path, executor=pool)
        there.attribute("saliency").score("focus")
    assert there.scores.equals(here.scores)
    loaded = Study.load(tmp_path)
    assert loaded.scores.equals(here.scores)
    assert loaded.sample.masks is not None and torch.equal(loaded.sample.masks, located[2])


def test_a_damaged_mask_is_noticed(
    located: tuple[torch.Tensor, ...], make_net: MakeNet, tmp_path: Path
) -> None:
    study = Study({"plain": make_net(0)}, located, store=tmp_path).attribute("saliency")
    store = FolderStore(tmp_path)
    (file,) = (tmp_path / "samples").iterdir()
    bytes_ = bytearray(file.read_bytes())
    at = bytes(bytes_).rindex(located[2].numpy().tobytes())
    bytes_[at] ^= 1
    file.write_bytes(bytes(bytes_))
    assert store.read_sample(study.sample.fingerprint) is None


def test_errors_say_what_would_do(
    located: tuple[torch.Tensor, ...], tiny_sample: TinySample, make_net: MakeNet
) -> None:
    study = Study({"plain": make_net(0)}, tiny_sample).attribute("saliency")
    with pytest.raises(InputError, match=r"'pointing_game' needs masks .*located\(256\)"):
        study.score(["sparseness", "pointing_game"])
    assert study.scores.empty
    with pytest.raises(InputError, match=r"masks must be a Tensor \(12, 1, 6, 6\)"):
        Study({"plain": make_net(0)}, (*tiny_sample, located[2][:, 0]))


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.full((12, 1, 6, 6), 0.5), "masks must hold 0 and 1"),
        (torch.full((12, 1, 6, 6), torch.nan), "masks must hold 0 and 1"),
    ],
)
def test_bad_masks_are_refused(bad: object, message: str, tiny_sample: TinySample, make_net: MakeNet) -> None:
    with pytest.raises(InputError, match=message):
        Study({"plain": make_net(0)}, (*tiny_sample, bad))  # type: ignore[arg-type]


def test_masks_matter_to_localisation_alone(
    located: tuple[torch.Tensor, ...], make_net: MakeNet, tmp_path: Path
) -> None:
    x, y, masks = located
    metrics = ["sparseness", "focus"]
    kinds = {"none": (x, y), "bool": located, "float": (x, y, masks.float()), "other": (x, y, ~masks)}
    keys = {}
    for kind, sample in kinds.items():
        study = Study({"plain": make_net(0)}, sample, store=tmp_path / kind).attribute("saliency")
        study.score(metrics if len(sample) == 3 else metrics[:1]).attack("fgsm", eps=0.1)
        keys[kind] = {(*place[:3],): key for place, key in study.results.items()}
    focus = ("scores", "saliency", "focus")
    assert keys["bool"] == keys["float"]
    assert {place for place in keys["bool"] if keys["bool"][place] != keys["other"][place]} == {focus}
    assert keys["none"].items() == keys["bool"].items() - {(focus, keys["bool"][focus])}
    without = Study({"plain": make_net(0)}, (x, y)).merge(tmp_path / "bool")
    assert set(without.scores["metric"]) == {*metrics}


def test_images_and_masks_that_change_under_a_study_are_noticed(
    located: tuple[torch.Tensor, ...], make_net: MakeNet
) -> None:
    x, y, masks = (each.clone() for each in located)
    study = Study({"plain": make_net(0)}, (x, y, masks)).attribute("saliency")
    first = study.score("focus").scores
    masks[:] = ~masks
    again = Study({"plain": make_net(0)}, located).attribute("saliency").score("focus").scores
    assert first.equals(again)
    x += 0.01
    with pytest.raises(InputError, match="the images of this study changed"):
        study.attack("fgsm", eps=0.1)


def test_a_quantus_object_of_localisation_gets_them_too(
    located: tuple[torch.Tensor, ...], tiny_sample: TinySample, make_net: MakeNet
) -> None:
    pointing = quantus.PointingGame(disable_warnings=True)
    study = Study({"plain": make_net(0)}, located).attribute("saliency")
    scores = study.score({"theirs": pointing, "ours": "pointing_game"}).scores
    theirs, ours = (scores.query(f"metric == '{name}'")["score"].to_numpy() for name in ("theirs", "ours"))
    np.testing.assert_array_equal(theirs, ours)
    with pytest.raises(InputError, match="needs masks"):
        Study({"plain": make_net(0)}, tiny_sample).attribute("saliency").score({"theirs": pointing})


def test_masks_given_as_a_setting_still_do(
    located: tuple[torch.Tensor, ...], tiny_sample: TinySample, make_net: MakeNet
) -> None:
    own = Study({"plain": make_net(0)}, tiny_sample).attribute("saliency")
    own.score({"pointing_game": {"masks": located[2]}})
    handed = Study({"plain": make_net(0)}, located).attribute("saliency").score("pointing_game")
    assert own.scores.equals(handed.scores)


def test_a_declared_study_of_located_data_has_masks(tmp_path: Path) -> None:
    card = ModelCard(architecture="small_cnn", num_classes=4, input_shape=(1, 24, 24))
    net = build_model("small_cnn", num_classes=4, input_shape=(1, 24, 24), seed=0)
    save_model(net, tmp_path / "net", card)
    path = tmp_path / "where.toml"
    path.write_text(
        'models = { net = "net" }\nmethods = ["saliency"]\nmetrics = ["auc"]\n'
        'data = { name = "planted", images = 8 }\n'
    )
    study, *_ = run_declared(read_declaration(path), tmp_path / "store")
    sample = sl.load_dataset("planted").test.located(8)  # type: ignore[attr-defined]
    maps = sl.attribute(net.eval(), sample.x, sample.y, "saliency")
    expected = sl.evaluate(net, sample.x, sample.y, maps, metric="auc", masks=sample.masks)
    np.testing.assert_array_equal(study.scores["score"].to_numpy(), expected)
