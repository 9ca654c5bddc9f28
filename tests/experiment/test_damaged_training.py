"""Training runs, their checkpoints and decoded images are checked like any other result."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError, SaliencyLabError
from saliency_lab.data.decoding import CACHE
from saliency_lab.experiment.planning import plan_declared
from saliency_lab.experiment.run import run_declared
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.training.run import RunFolder

TOML = """
recipes = ["digits/standard"]
methods = ["saliency"]
metrics = ["sparseness"]
overrides = { "training.epochs" = 1, "validation.images" = 16, "validation.steps" = 1 }
data = { name = "digits", images = 6 }
"""
FILES = ["model.json", "model.safetensors", "recipe.json"]
DAMAGE = ["bit", "cut", "empty", "gone", "another"]


def _damage(path: Path, how: str, draws: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "bit":
        content[draws.integers(len(content))] ^= 1 << draws.integers(8)
        path.write_bytes(content)
    else:
        other = b'{"architecture": "small_cnn"}'
        path.write_bytes({"cut": bytes(content[: len(content) // 2]), "empty": b"", "another": other}[how])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("declared")
    (folder / "study.toml").write_text(TOML)
    run_declared(read_declaration(folder / "study.toml"), folder / "store")
    return folder


@pytest.mark.long
@pytest.mark.parametrize("how", ["bit", *(pytest.param(how, marks=pytest.mark.slow) for how in DAMAGE[1:])])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_training_run_is_named_and_trained_again(
    finished: Path, tmp_path: Path, name: str, how: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished / "store", store)
    declared = read_declaration(finished / "study.toml")
    (weights,) = (finished / "store/models").glob("*/model.safetensors")
    (path,) = (store / "models").glob(f"*/{name}")
    _damage(path, how, np.random.default_rng([FILES.index(name), DAMAGE.index(how)]))
    assert path.relative_to(store).as_posix() in sl.verify(store)["file"].tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study, *_ = run_declared(declared, store)
    if how != "gone":
        messages = [str(each.message) for each in caught]
        assert any(name in each and "is trained again" in each for each in messages)
    assert study.failures.empty and sl.verify(store).empty
    assert (path.parent / weights.name).read_bytes() == weights.read_bytes()
    pd.testing.assert_frame_equal(study.scores, sl.Study.load(finished / "store").scores)


def test_the_recipe_of_another_run_is_noticed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "store")
    declared = read_declaration(finished / "study.toml")
    other = RunFolder(tmp_path / "other", {"recipe": {"name": "other"}, "data": "x", "architecture": "y"})
    (path,) = (tmp_path / "store/models").glob("*/recipe.json")
    shutil.copy(other.path / "recipe.json", path)
    with pytest.warns(UserWarning, match=r"recipe\.json' is that of another run; .* is trained again"):
        study, *_ = run_declared(declared, tmp_path / "store")
    assert study.failures.empty


def test_a_plan_counts_a_damaged_checkpoint_as_missing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "store")
    (weights,) = (tmp_path / "store/models").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    plan = plan_declared(read_declaration(finished / "study.toml"), tmp_path / "store")
    assert plan["missing"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_study_continues_without_a_damaged_checkpoint(tmp_path: Path, name: str, how: str) -> None:
    for seed in range(3):
        net = sl.build_model("small_cnn", seed=seed)
        sl.save_model(net, tmp_path / f"net-{seed}", net.card.model_copy(update={"seed": seed}))
    path = tmp_path / "study.toml"
    path.write_text(
        'models = { whole = "net-0", mixed = ["net-1", "net-2"], lost = "net-3" }\n' + TOML.partition("\n")[2]
    )
    path.write_text(path.read_text().replace('recipes = ["digits/standard"]\n', ""))
    shutil.copytree(tmp_path / "net-2", tmp_path / "net-3")
    draws = np.random.default_rng(0)
    for folder in ("net-2", "net-3"):
        _damage(tmp_path / folder / name, how, draws)
    declared = read_declaration(path)
    with pytest.warns(UserWarning, match=r"mixed: .*net-2.*; the study continues without it"):
        study, comparison, *_ = run_declared(declared, tmp_path / "store")
    assert study.models == comparison.models == ["whole", "mixed"]
    assert study.failures["model"].tolist() == ["mixed", "lost"]
    assert study.failures["what"].tolist() == ["loading", "loading"]
    assert study.failures["error"].str.contains(name).all()
    with pytest.warns(UserWarning, match="the study continues without it"):
        assert plan_declared(declared, tmp_path / "store")["missing"].sum() == 0
    for folder in ("net-0", "net-1"):
        _damage(tmp_path / folder / name, how, draws)
    with pytest.raises(SaliencyLabError, match="trained or loaded"), pytest.warns(UserWarning):
        run_declared(declared, tmp_path / "other")
    with pytest.raises(SaliencyLabError, match="every checkpoint"), pytest.warns(UserWarning):
        plan_declared(declared, tmp_path / "other")
    shutil.rmtree(tmp_path / "net-0")  # a folder that is not there is a mistake in the study
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        run_declared(declared, tmp_path / "other")


def test_a_damaged_state_is_not_resumed_from(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"recipe": {}, "data": "x", "architecture": "y"})
    state = {"net": {"weight": torch.arange(300.0)}, "epoch": 3}
    run.save_state(state)
    restored = run.load_state()
    assert restored is not None and torch.equal(restored["net"]["weight"], state["net"]["weight"])  # type: ignore[index]
    intact = (tmp_path / "state.pt").read_bytes()
    assert sl.verify(tmp_path).empty
    draws = np.random.default_rng(0)
    for how in ["bit"] * 20 + ["cut", "empty", "another"]:
        (tmp_path / "state.pt").write_bytes(intact)
        _damage(tmp_path / "state.pt", how, draws)
        with pytest.raises(CheckpointError, match=r"state\.pt' is damaged .* delete it to train"):
            run.load_state()
        assert sl.verify(tmp_path)["file"].tolist() == ["state.pt"]


def test_a_damaged_cache_of_decoded_images_is_not_used(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for number in range(3):
                pixels = draws.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / label / f"{number}.png")
    before = sl.load_dataset("image_folder", tmp_path / "images").fingerprint
    (path,) = (tmp_path / CACHE).glob("*.safetensors")
    intact = path.read_bytes()
    assert sl.verify(tmp_path).empty
    for how in ["bit"] * 10 + ["cut", "empty", "another"]:
        path.write_bytes(intact)
        _damage(path, how, draws)
        assert sl.verify(tmp_path)["file"].tolist() == [f"{CACHE}/{path.name}"]
        with pytest.warns(UserWarning, match="the decoded images .* decoded again"):
            assert sl.load_dataset("image_folder", tmp_path / "images").fingerprint == before
        assert sl.verify(tmp_path).empty
