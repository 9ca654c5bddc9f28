from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError, InputError
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


def _without_digest(text: str) -> dict[str, Any]:
    """Read a card as a user edits it, and as earlier versions wrote it."""
    return {key: value for key, value in json.loads(text).items() if key != "digest"}


def test_a_card_cut_in_half_or_of_another_form_is_named(saved: tuple[Path, nn.Module]) -> None:
    path = saved[0] / "model.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"model.json' is damaged"):
        sl.load_model(saved[0])
    path.write_text(text.replace("10", "11"))
    with pytest.raises(CheckpointError, match=r"does not match its digest; if you edited it, remove the key"):
        sl.load_model(saved[0])
    path.write_text(json.dumps(_without_digest(text) | {"num_classes": "ten"}))
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
    path.write_text(json.dumps(_without_digest(path.read_text()) | change))
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


def _own(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, classes))


@pytest.mark.parametrize("file", ["saved", "saved/model.safetensors", "saved.pth"])
@pytest.mark.parametrize("std", [0.2, (0.2, 0.3, 0.4)])
def test_the_module_inside_a_wrapped_model_comes_back_wrapped(file: str, std: Any, tmp_path: Path) -> None:
    model = sl.wrap(_own(), mean=0.5, std=std, classes=("cat", "dog"), size=8)
    sl.save_model(model, tmp_path / "saved")
    torch.save(model.state_dict(), tmp_path / "saved.pth")
    x = torch.rand(2, 3, 8, 8)
    for own in (_own(), sl.Normalised(_own(), 0.5, std)):
        loaded = sl.load_model(tmp_path / file, model=own)
        assert torch.equal(loaded(x), model(x))
        assert loaded.card.classes == (None if file == "saved.pth" else ("cat", "dog"))
        assert not own.training


def test_a_module_that_does_not_fit_a_wrapped_model_is_left_as_it_was(tmp_path: Path) -> None:
    sl.save_model(sl.wrap(_own(), mean=0.5, std=0.2), tmp_path / "saved")
    own = _own(classes=3)
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(
        CheckpointError, match=r"another architecture than Sequential: size mismatch for net\."
    ):
        sl.load_model(tmp_path / "saved", model=own)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())
    torch.save(sl.Normalised(_own()).state_dict() | {"std": torch.zeros(1)}, tmp_path / "zero.pth")
    with pytest.raises(CheckpointError, match=r"zero\.pth' holds a mean and a std that cannot .*above 0"):
        sl.load_model(tmp_path / "zero.pth", model=own)


def test_what_does_not_fit_is_named_by_three_names_of_each_kind(tmp_path: Path) -> None:
    sl.save_model(_own(), tmp_path / "saved")
    with pytest.raises(CheckpointError) as caught:
        sl.load_model(tmp_path / "saved", model=nn.Linear(2, 2))
    assert str(caught.value).partition("Linear: ")[2] == (
        'Missing key(s) in state_dict: "bias", "weight". Unexpected key(s) in state_dict: "0.bias", '
        '"0.weight", "3.bias", … (4 in all). Load it into a module of the architecture it was saved from.'
    )
    wider = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 5))
    with pytest.raises(
        CheckpointError, match=r"size mismatch for 0\.weight.*for 3\.weight.*; … \(4 in all\)\."
    ):
        sl.load_model(tmp_path / "saved", model=wider)

    class Refusing(nn.Linear):
        """Complains in its own words."""

        def load_state_dict(self, state: Any, *given: Any, **named: Any) -> Any:
            if "0.weight" in state:
                raise RuntimeError("not these")
            return super().load_state_dict(state, *given, **named)

    with pytest.raises(CheckpointError, match=r"another architecture than Refusing: not these\. Load it"):
        sl.load_model(tmp_path / "saved", model=Refusing(2, 2))


def test_what_is_no_module_to_load_into_and_no_tensor_to_save_is_refused(tmp_path: Path) -> None:
    sl.save_model(_Tied(), tmp_path / "own")
    with pytest.raises(InputError, match=r"the model must be a torch\.nn\.Module, not function"):
        sl.save_model(lambda x: x, tmp_path / "function")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not the class _Tied; make one first"):
        sl.load_model(tmp_path / "own", model=_Tied)

    class Packed(nn.Linear):
        """Keeps a type in its state, as a quantised layer does."""

        def get_extra_state(self) -> torch.dtype:
            return torch.qint8

    with pytest.raises(InputError, match=r"'0\._extra_state', which is no tensor but a dtype"):
        sl.save_model(nn.Sequential(Packed(2, 2)), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = sl.build_model("small_cnn").train()
    card = model.card
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sl.save_model(model, tmp_path)
    assert model.training
    assert model.card is card
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def _trained_elsewhere(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


@pytest.mark.parametrize("name", ["resnet8", "torchvision/resnet18"])
def test_a_built_model_trained_by_hand_needs_no_card(name: str, tmp_path: Path) -> None:
    model = sl.build_model(name, num_classes=7, input_shape=(3, 32, 32), mean=0.2, std=0.7, seed=3)
    card = sl.save_model(_trained_elsewhere(model), tmp_path)
    assert (card.architecture, card.num_classes, card.input_shape) == (name, 7, (3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(sl.load_model(tmp_path)(x), model(x))


def test_a_card_tells_of_its_own_weights_and_no_others(tmp_path: Path) -> None:
    model = sl.load_model("digits/at")
    again = sl.save_model(model, tmp_path)
    assert (again.sha256, again.recipe, again.metrics) == (
        model.card.sha256,
        model.card.recipe,
        model.card.metrics,
    )
    card = sl.save_model(_trained_elsewhere(model), tmp_path)
    assert (card.recipe, card.seed, card.data, card.metrics, card.classes) == (None, None, None, {}, None)
    assert card.mean == pytest.approx(model.card.mean)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(sl.load_model(tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("layer", "replacement"), [("net.classifier.fc2", nn.Linear(100, 4)), ("net.features.relu1", nn.GELU())]
)
def test_a_model_with_a_layer_replaced_is_ones_own(
    layer: str, replacement: nn.Module, tmp_path: Path
) -> None:
    model = sl.load_model("digits/at")
    model.set_submodule(layer, replacement)
    card = sl.save_model(model, tmp_path)
    assert (card.architecture, card.num_classes, card.recipe, card.metrics) == ("custom", None, None, {})
    with pytest.raises(CheckpointError, match="pass that module"):
        sl.load_model(tmp_path)
    x = torch.rand(2, 1, 28, 28)
    own = copy.deepcopy(model)
    assert torch.equal(sl.load_model(tmp_path, model=_trained_elsewhere(own))(x), model(x))


def test_a_refused_load_leaves_the_module_as_it_was() -> None:
    own = sl.build_model("small_cnn", num_classes=7, seed=4).train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    card = own.card
    with pytest.raises(CheckpointError, match="another architecture"):
        sl.load_model("digits/at", model=own)
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())
    assert own.training
    assert own.card is card


def test_a_model_comes_back_in_the_precision_it_was_saved_in(tmp_path: Path) -> None:
    model = _trained_elsewhere(sl.build_model("resnet8", input_shape=(3, 16, 16)).double())
    sl.save_model(model, tmp_path)
    loaded = sl.load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(loaded(x), model(x))
    single = sl.load_model(tmp_path, model=sl.build_model("resnet8", input_shape=(3, 16, 16)))
    assert {tensor.dtype for tensor in single.parameters()} == {torch.float32}


def test_a_name_or_folder_that_was_meant_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"did you mean load_model\('torchvision/resnet50', weights"):
        sl.load_model("resnet50")
    with pytest.raises(CheckpointError, match="did you mean 'digits/at'"):
        sl.load_model("digits/att")
    sl.save_model(sl.build_model("small_cnn", num_classes=2, input_shape=(1, 8, 8)), tmp_path / "seed-0")
    with pytest.raises(CheckpointError, match=r"there is one in '.*seed-0'"):
        sl.load_model(tmp_path)
