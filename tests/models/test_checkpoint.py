from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError
from saliency_lab.models import ModelCard

CARD = ModelCard(
    architecture="lenet5",
    num_classes=10,
    input_shape=(1, 28, 28),
    classes=tuple("0123456789"),
    recipe={"objective": {"name": "standard"}},
    seed=3,
    data="0123abcd",
    metrics={"accuracy": 0.5},
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = sl.build_model("lenet5", mean=0.2, std=0.7, seed=3)
    sl.save_model(model, tmp_path / "run", CARD)
    return tmp_path / "run", model


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_what_is_loaded_is_what_was_saved(saved: tuple[Path, nn.Module], file: str) -> None:
    folder, model = saved
    loaded = sl.load_model(folder / file)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training
    card = loaded.card
    assert (card.recipe, card.seed, card.data, card.metrics) == (
        CARD.recipe,
        3,
        "0123abcd",
        {"accuracy": 0.5},
    )
    assert card.mean == pytest.approx((0.2,))
    assert card.std == pytest.approx((0.7,))
    assert card.versions["torch"] == torch.__version__.split("+")[0]


def test_only_two_files_and_nothing_pickled(saved: tuple[Path, nn.Module]) -> None:
    folder, model = saved
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    for path in folder.iterdir():
        with pytest.raises(Exception):  # noqa: B017 - whatever pickle raises
            pickle.loads(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(model.state_dict())


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_weights_cut_short_are_noticed(saved: tuple[Path, nn.Module], keep: float) -> None:
    path = saved[0] / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors'.*cut short or changed.*again"):
        sl.load_model(saved[0])
    (saved[0] / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged"):
        sl.load_model(saved[0], model=sl.build_model("lenet5"))


def test_one_changed_bit_is_noticed(saved: tuple[Path, nn.Module]) -> None:
    path = saved[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cut short or changed"):
        sl.load_model(saved[0])


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: tuple[Path, nn.Module], name: str) -> None:
    (saved[0] / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        sl.load_model(saved[0])


def test_a_card_cut_in_half_or_of_another_form_is_named(saved: tuple[Path, nn.Module]) -> None:
    path = saved[0] / "model.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"model.json' is damaged"):
        sl.load_model(saved[0])
    path.write_text(json.dumps(json.loads(text) | {"num_classes": "ten"}))
    with pytest.raises(CheckpointError, match=r"model.json' is damaged \('num_classes'"):
        sl.load_model(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "small_cnn"}, "another architecture than 'small_cnn'"),
        ({"num_classes": 7}, "another architecture than 'lenet5'.*size mismatch"),
        ({"architecture": "lenet6"}, "did you mean 'lenet5'"),
    ],
)
def test_another_architecture_is_named(saved: tuple[Path, nn.Module], change: dict, message: str) -> None:
    path = saved[0] / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        sl.load_model(saved[0])


class _Tied(nn.Module):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.cam_layer = self.conv
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def test_a_users_own_module_with_shared_weights(tmp_path: Path) -> None:
    model = _Tied()
    card = sl.save_model(model, tmp_path / "own")
    assert card.architecture == "custom"
    with pytest.raises(CheckpointError, match=r"pass that module: load_model\(…, model=my_module\)"):
        sl.load_model(tmp_path / "own")
    x = torch.rand(2, 1, 8, 8)
    loaded = sl.load_model(tmp_path / "own", model=_Tied())
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(CheckpointError, match="another architecture than Linear"):
        sl.load_model(tmp_path / "own", model=nn.Linear(2, 2))


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = sl.build_model("small_cnn").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sl.save_model(model, tmp_path)
    assert model.training
    assert not hasattr(model, "card")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
