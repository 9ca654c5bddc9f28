"""Pretrained networks of four families, and custom ones; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import MobileNet_V3_Small_Weights

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError, InputError, UnknownNameError
from saliency_lab.models.weights import read_state

SMALL = "mobilenet_v3_small"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def _normalised(x: torch.Tensor, card: sl.ModelCard) -> torch.Tensor:
    return (x - torch.tensor(card.mean)[:, None, None]) / torch.tensor(card.std)[:, None, None]


def _vit(classes: int = 3) -> transformers.ViTForImageClassification:
    names = {k: f"kind {k}" for k in range(classes)}
    config = transformers.ViTConfig(image_size=32, patch_size=8, id2label=names, **VIT)
    return transformers.ViTForImageClassification(config).eval()


def _vit_processor() -> transformers.ViTImageProcessor:
    return transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4), resample=2
    )


@pytest.fixture(scope="module")
def hub_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch's hub would hold: random weights under the name of the published file."""
    folder = tmp_path_factory.mktemp("hub") / "checkpoints"
    folder.mkdir()
    net = torchvision.models.get_model(SMALL, weights=None)
    path = folder / Path(MobileNet_V3_Small_Weights.DEFAULT.url).name
    torch.save(net.state_dict(), path)
    return path


def _at_hub(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's hub find the file of random weights, and leave out the check of its hash."""
    monkeypatch.setenv("TORCH_HOME", str(path.parents[1]))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(path.parents[1]))


def test_torchvisions_default_weights_come_with_their_preprocessing(
    hub_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at_hub(hub_file, monkeypatch)
    model = sl.load_model(f"torchvision/{SMALL}", weights="DEFAULT")
    card, entry = model.card, MobileNet_V3_Small_Weights.DEFAULT
    assert card.classes == tuple(entry.meta["categories"])
    assert (card.input_shape, card.resize, card.weights) == ((3, 224, 224), 256, entry.name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    ours = sl.load_images(picture, model=model).x
    theirs = entry.transforms()(picture)[None]
    torch.testing.assert_close(_normalised(ours, card), theirs, atol=1e-5, rtol=1e-5)
    net = torchvision.models.get_model(SMALL, weights=None)
    net.load_state_dict(torch.load(hub_file))
    torch.testing.assert_close(model(ours), net.eval()(theirs))
    assert not model.training


@pytest.mark.parametrize(
    ("name", "classes"), [(SMALL, 5), ("densenet121", 1000), ("googlenet", 4)], ids=lambda value: str(value)
)
def test_a_local_state_dict_of_torchvision_says_how_many_classes(
    name: str, classes: int, tmp_path: Path
) -> None:
    more = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, num_classes=classes, **more)
    state = net.state_dict()
    if name == "densenet121":  # as the published files name them
        state = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): state[key] for key in state}
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "mine.pth"
    )
    model = sl.load_model(f"torchvision/{name}", weights=tmp_path / "mine.pth")
    assert model.card.num_classes == classes
    assert (model.card.classes is None) == (classes != 1000)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(x), net.eval()(_normalised(x, model.card)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_that_normalises_again_is_saved_and_loaded_as_it_is(name: str, tmp_path: Path) -> None:
    more = {"init_weights": False, "transform_input": True}
    net = torchvision.models.get_model(name, weights=None, num_classes=4, **more).eval()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    model = sl.load_model(f"torchvision/{name}", weights=tmp_path / "mine.pth")
    x = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    torch.testing.assert_close(model(x), net((x - mean) / std), atol=1e-4, rtol=1e-4)
    sl.save_model(model, tmp_path / "saved")
    again = sl.load_model(tmp_path / "saved")
    assert again.card.architecture == f"torchvision/{name}" and again.card.weights == model.card.weights
    assert torch.equal(again(x), model(x))


def test_a_network_whose_weights_have_changed_is_not_said_to_have_those_of_the_file(tmp_path: Path) -> None:
    net = torchvision.models.get_model(SMALL, weights=None, num_classes=3)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    for model in (
        sl.load_model(f"torchvision/{SMALL}", weights=tmp_path / "mine.pth"),
        sl.load_model(tmp_path / "mine.pth", model=net),
    ):
        kept = sl.save_model(model, tmp_path / "kept")
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)
        changed = sl.save_model(model, tmp_path / "changed")
        assert kept.weights and Path(kept.weights).name == "mine.pth" and changed.weights is None


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "module.net."]
)
def test_names_of_wrappers_are_removed_unless_they_are_the_networks_own(prefix: str, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x.flatten(1))

    net = Own()
    torch.save({f"{prefix}{key}": value for key, value in net.state_dict().items()}, tmp_path / "own.pth")
    loaded = sl.load_model(tmp_path / "own.pth", model=Own())
    assert torch.equal(loaded.module.weight, net.module.weight)


def test_the_state_dict_of_lightning_is_loaded_by_the_name_of_the_network(tmp_path: Path) -> None:
    net = torchvision.models.get_model(SMALL, weights=None, num_classes=3).eval()
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1}}, path)
    model = sl.load_model(f"torchvision/{SMALL}", weights=path)
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(x), net(_normalised(x, model.card)))
    torch.save(state | {"loss.weight": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "loss\.weight", "model\.'):
        sl.load_model(f"torchvision/{SMALL}", weights=path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_local_state_dict_of_timm(suffix: str, tmp_path: Path) -> None:
    net = timm.create_model("resnet10t", num_classes=7).eval()
    path = tmp_path / f"mine.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save(net.state_dict(), path)
    model = sl.load_model("timm/resnet10t", weights=str(path))
    assert (model.card.num_classes, model.card.input_shape, model.card.interpolation) == (
        7,
        (3, 176, 176),
        "bicubic",
    )
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model(x), net(_normalised(x, model.card)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (250, 200, 3), np.uint8))
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)(
        picture
    )
    ours = sl.load_images([picture], model=model).x[0]
    torch.testing.assert_close(_normalised(ours, model.card), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (64, 640)])
def test_images_that_are_no_squares_are_cut_out_as_timm_does(size: tuple[int, int]) -> None:
    net = timm.create_model("resnet10t", pretrained_cfg_overlay={"input_size": (3, 96, 64), "crop_pct": 1.0})
    model = sl.wrap(net)
    config = timm.data.resolve_model_data_config(net)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    expected = timm.data.create_transform(**config, is_training=False)(photo)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    x = sl.load_images([photo], model=model).x[0]
    assert x.shape == (3, 96, 64) and x.flatten(1).std(1).min() > 0
    torch.testing.assert_close(x, expected * std + mean, rtol=0, atol=1e-5)


def test_padding_that_a_card_cannot_describe_is_said() -> None:
    net = timm.create_model("resnet10t", pretrained_cfg_overlay={"crop_mode": "border"})
    with pytest.warns(UserWarning, match=r"pads photographs for ResNet .*crop_mode='border'"):
        sl.wrap(net)


def test_timms_default_weights_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def created(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        assert (name, pretrained) == ("resnet10t", True)
        return create(name, **more)

    monkeypatch.setattr(timm, "create_model", created)
    model = sl.load_model("timm/resnet10t", weights="DEFAULT")
    assert model.card.classes[285] == "Egyptian cat"
    assert model.card.weights == "c3_in1k"


def test_names_of_classes_that_repeat_are_told_apart_wherever_they_come_from(tmp_path: Path) -> None:
    names, distinct = ("crane", "dog", "crane"), ("crane (0)", "dog", "crane (2)")
    net = _vit()
    net.config.id2label = dict(enumerate(names))
    net.save_pretrained(tmp_path / "hub")
    _vit_processor().save_pretrained(tmp_path / "hub")
    own = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    models = [
        sl.load_model(f"hf/{tmp_path / 'hub'}", weights="DEFAULT"),
        sl.wrap(net, processor=_vit_processor()),
        sl.wrap(own, classes=names, size=8),
    ]
    for model in models:
        assert model.card.classes == distinct
        assert model.card.model_copy(update={"seed": 3}).classes == distinct
    wrapped = models[-1]
    sl.save_model(wrapped, tmp_path / "saved")
    assert sl.load_model(tmp_path / "saved", model=sl.wrap(own)).card.classes == distinct
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    assert sl.load_images([picture] * 2, model=wrapped, labels=["crane (2)", "dog"]).y.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"several classes are called 'crane'; .* crane \(0\), crane \(2\)"):
        sl.load_images(picture, model=wrapped, labels=["crane"])


@pytest.mark.parametrize(
    "names",
    [["a", "a (0)", "a"], ["a (0)", "a", "a"], ["a", "a", "a (0)", "a (0) (0)"], [""] * 3, ["a", "b"]],
)
def test_no_two_classes_of_a_card_have_one_name(names: list[str]) -> None:
    found = sl.ModelCard(classes=names).classes
    assert len(set(found)) == len(names)
    assert all(one == other or one.startswith(f"{other} (") for one, other in zip(found, names, strict=True))
    assert sl.ModelCard(classes=found).classes == found


def test_a_folder_of_transformers_and_its_processor(tmp_path: Path) -> None:
    net, processor = _vit(), _vit_processor()
    net.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = sl.load_model(f"hf/{tmp_path}", weights="DEFAULT")
    card = model.card
    assert card.classes == ("kind 0", "kind 1", "kind 2")
    assert (card.input_shape, card.resize, card.interpolation) == ((3, 32, 32), (32, 32), "bilinear")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    ours = sl.load_images(picture, model=model).x
    torch.testing.assert_close(_normalised(ours, card), theirs, atol=2e-2, rtol=0)  # 8 bits in between
    torch.testing.assert_close(model(ours), net(_normalised(ours, card)).logits)
    torch.save(_vit(5).state_dict(), tmp_path / "mine.pt")
    assert sl.load_model(f"hf/{tmp_path}", weights=tmp_path / "mine.pt").card.num_classes == 5


def test_a_classifier_of_transformers_is_wrapped_and_explained() -> None:
    net = _vit()
    model = sl.wrap(net, processor=_vit_processor())
    x = torch.rand(2, 3, 32, 32)
    maps = sl.attribute(model, x, method="saliency", target="prediction")
    assert maps.class_names == tuple(model.card.classes[k] for k in model(x).argmax(1))
    torch.testing.assert_close(maps.probabilities, model(x).softmax(1).amax(1).detach())
    study = sl.Study({"vit": model}, (x, torch.tensor([0, 1]))).attribute("saliency")
    assert study.classes == model.card.classes
    with pytest.raises(InputError, match=r"expects normalised images; pass processor="):
        sl.wrap(net)
    with pytest.raises(InputError, match=r"saliency_lab\.wrap does this"):
        sl.attribute(net, x, target="prediction")
    convolutional = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    )
    assert sl.wrap(convolutional, mean=0.5, std=0.5, size=32).eval()(x).shape == (2, 4)


def test_wrap_normalises_and_writes_the_card() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = sl.wrap(
        net.train(), mean=(0.1, 0.2, 0.3), std=0.5, classes=["cat", "dog"], size=(16, 8), cam_layer="1"
    )
    assert not model.training
    assert (model.card.input_shape, model.card.num_classes, model.card.cam_layer) == ((3, 16, 8), 2, "net.1")
    x = torch.rand(2, 3, 16, 8)
    torch.testing.assert_close(model(x), net((x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5))
    assert sl.attribute(model, x, method="grad_cam", target=0).settings["layer"] == "net.1"
    assert sl.attribute(model, x, target=1).class_names == ("dog", "dog")
    assert sl.wrap(timm.create_model("resnet10t")).card.mean == pytest.approx((0.485, 0.456, 0.406))
    assert sl.wrap(net, size=16).card.num_classes == 2
    grey = sl.wrap(nn.Sequential(nn.Conv2d(1, 4, 3), *net[1:]), mean=0.5, size=16).card
    assert (grey.input_shape, grey.cam_layer) == ((1, 16, 16), "net.1")
    single = nn.Sequential(*net[:4], nn.Linear(4, 1))
    for given, message in (
        ({"module": single, "classes": ["no", "yes"], "size": 16}, r"sl\.wrap\(sl\.BinaryLogits"),
        ({"classes": ["cat", "dog", "ant"], "size": 16}, "names 3 classes, but Sequential returns 2 logits"),
        ({"module": lambda x: x}, "module must be a torch.nn.Module"),
        ({"module": model}, "normalises inside already"),
        ({"cam_layer": "9"}, "unknown cam_layer of Sequential"),
        ({"size": "large"}, "size must be a whole number from 1"),
        ({"classes": [1, 2]}, "classes, each of them, must be text"),
        ({"std": 0}, "std finite and above 0"),
    ):
        with pytest.raises(InputError, match=message):
            sl.wrap(**({"module": net} | given))


@pytest.mark.parametrize("family", ["torchvision", "timm", "hf", "deit", "imagenet"])
def test_the_card_holds_the_layer_that_grad_cam_uses(family: str, tmp_path: Path) -> None:
    if family == "imagenet":
        model = sl.load_model("imagenet/efficientnet_lite0")
    elif family == "hf":
        model = sl.wrap(_vit(), processor=_vit_processor())
    elif family == "deit":  # two tokens of it have no position
        config = transformers.DeiTConfig(image_size=32, patch_size=8, num_labels=3, **VIT)
        model = sl.wrap(transformers.DeiTForImageClassification(config), mean=0.5, std=0.5)
    else:
        name = {"torchvision": "squeezenet1_1", "timm": "vit_tiny_patch16_224"}[family]
        make = torchvision.models.get_model if family == "torchvision" else timm.create_model
        torch.save(make(name, num_classes=3).state_dict(), tmp_path / "mine.pth")
        model = sl.load_model(f"{family}/{name}", weights=tmp_path / "mine.pth")
    x = torch.rand(1, *model.card.input_shape)
    assert model.card.cam_layer == sl.attribute(model, x, method="grad_cam", target=0).settings["layer"]
    assert not any(parameter.grad is not None for parameter in model.parameters())
    if family == "timm":  # not the patch embedding, which is the only convolution
        assert model.card.cam_layer == "net.blocks.11.norm1"
    if family == "deit":
        assert model.card.cam_layer.endswith("1.layernorm_before")


def test_a_network_without_positions_has_no_layer_on_its_card() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    assert sl.wrap(net, size=2).card.cam_layer is None
    assert sl.wrap(torch.jit.trace(net, torch.rand(1, 3, 2, 2)), size=2).card.cam_layer is None


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("this code must not run",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_has_a_cam_layer_and_keeps_its_weights(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).to(dtype)
    weights = [each.data_ptr() for each in net.parameters()]
    model = sl.wrap(net, mean=0.5, std=0.25, size=16)
    assert (model.card.cam_layer, model.card.num_classes) == ("net.0", 2)
    assert [each.data_ptr() for each in net.parameters()] == weights
    assert {each.dtype for each in net.parameters()} == {dtype}
    maps = sl.attribute(model, torch.rand(1, 3, 16, 16), method="grad_cam", target=0)
    assert maps.settings["layer"] == model.card.cam_layer
    assert model(torch.rand(1, 3, 16, 16, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", [f"torchvision/{SMALL}", "timm/resnet10t"])
def test_a_pickle_that_runs_code_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"conv1.weight": _Evil()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth' holds more than tensors.*state_dict"):
        sl.load_model(name, weights=path)
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError, match=r"evil\.pth'"):
        sl.load_model(name, weights=path)
    assert "must not run" not in capsys.readouterr().out


def test_a_poisoned_file_at_torchs_hub_runs_no_code(
    hub_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"conv1.weight": _Evil()}, folder / hub_file.name)
    _at_hub(folder / hub_file.name, monkeypatch)
    with pytest.raises(CheckpointError, match="hold more than tensors"):
        sl.load_model(f"torchvision/{SMALL}", weights="DEFAULT")
    assert "must not run" not in capsys.readouterr().out


def test_a_file_that_torch_did_not_save_is_not_said_to_run_code(
    hub_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / hub_file.name
    _at_hub(path, monkeypatch)
    for content in (b"<!DOCTYPE html><title>404</title>", b"\x17" + bytes(range(256)), b"c", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"is damaged or no file of torch\.save; fetch it again"):
            read_state(path)
        with pytest.raises(CheckpointError, match=r"could not be loaded .*; fetch https://.* copy it to '"):
            sl.load_model(f"torchvision/{SMALL}", weights="DEFAULT")


def _no_network(*given: Any, **named: Any) -> Any:
    raise URLError("Name or service not known")


def test_a_failed_download_says_which_file_belongs_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
    url = MobileNet_V3_Small_Weights.DEFAULT.url
    with pytest.raises(CheckpointError, match="Name or service not known") as caught:
        sl.load_model(f"torchvision/{SMALL}", weights="DEFAULT")
    assert f"fetch {url} elsewhere and copy it to '{tmp_path / 'checkpoints' / Path(url).name}'" in str(
        caught.value
    )
    monkeypatch.setattr(timm, "create_model", _no_network)
    with pytest.raises(CheckpointError, match=r"fetch https://.*model\.safetensors elsewhere and pass"):
        sl.load_model("timm/resnet10t", weights="DEFAULT")
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", _no_network)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json, model\.safetensors\) into"):
        sl.load_model("hf/somebody/vit", weights="DEFAULT")


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        (f"torchvision/{SMALL}", None, InputError, 'weights="DEFAULT" for the pretrained ones'),
        (f"torchvision/{SMALL}", "IMAGENET", InputError, "neither one of DEFAULT, IMAGENET1K_V1 nor a file"),
        ("torchvision/mobilenet_v3_smal", "DEFAULT", UnknownNameError, f"did you mean '{SMALL}'"),
        ("timm/resnet10tt", "DEFAULT", UnknownNameError, "did you mean 'resnet10t'"),
        ("timm/resnet10t", "IMAGENET1K_V1", InputError, "neither one of DEFAULT nor a file"),
        ("imagenet/efficientnet_lite1", None, UnknownNameError, "did you mean 'imagenet/efficientnet_lite0'"),
        ("imagenet/efficientnet_lite0", "DEFAULT", InputError, "comes with its weights"),
        (f"torchvision/{SMALL}", "nowhere.pth", CheckpointError, "there is no file 'nowhere.pth'"),
        ("digits/at", "DEFAULT", InputError, "weights goes with a pretrained network"),
        (nn.Linear(2, 2), None, InputError, r"make a model of your Linear with saliency_lab\.wrap"),
    ],
)
def test_wrong_names_and_weights_are_named(
    name: Any, weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sl.load_model(name, weights=weights)


def test_files_that_hold_no_state_dict_of_the_network_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="does not hold a state dict"):
        read_state(path)
    path.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"w\.pth'"):
        read_state(path)
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(tmp_path / "w.safetensors")
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(
        CheckpointError, match=f"architecture than 'torchvision/{SMALL}'.*in all.*Name the net"
    ):
        sl.load_model(f"torchvision/{SMALL}", weights=path)


def test_a_state_dict_of_torch_save_goes_into_ones_own_module(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    net = nn.Linear(2, 2)
    torch.save({"model": net.state_dict()}, path)
    loaded = sl.load_model(path, model=nn.Linear(2, 2))
    assert torch.equal(loaded.weight, net.weight)
    with pytest.raises(CheckpointError, match=r"pass the module, load_model\(…, model=my_module\)"):
        sl.load_model(path)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install '\.\[pretrained\]'"):
        sl.load_model("imagenet/efficientnet_lite0")


def test_loading_changes_no_generator_and_no_environment(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    import os

    before = torch.get_rng_state(), dict(os.environ)
    sl.load_model("timm/resnet10t", weights=path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert dict(os.environ) == before[1]


def test_the_cat_the_espresso_and_the_rocket_are_recognised() -> None:
    """Real weights on real photographs, without a download."""
    model = sl.load_model("imagenet/efficientnet_lite0")
    data = sl.load_dataset("photos")
    x, y = data.test.all()
    top = dict(zip((data.classes[label] for label in y), model(x).argmax(1).tolist(), strict=True))
    assert (top["Egyptian cat"], top["espresso"], top["missile"]) == (285, 967, 657)
    assert model.card.classes == data.classes
    assert model.card.input_shape == data.input_shape


@pytest.mark.parametrize("family", ["torchvision", "timm", "hf", "deit", "imagenet"])
def test_a_pretrained_network_can_be_saved_and_loaded(family: str, hub_file: Path, tmp_path: Path) -> None:
    if family == "torchvision":
        model = sl.load_model(f"torchvision/{SMALL}", weights=hub_file)
    elif family == "timm":
        torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
        model = sl.load_model("timm/resnet10t", weights=tmp_path / "w.pth")
    elif family == "hf":
        _vit().save_pretrained(tmp_path / "hub")
        _vit_processor().save_pretrained(tmp_path / "hub")
        model = sl.load_model(f"hf/{tmp_path / 'hub'}", weights="DEFAULT")
    else:
        model = sl.load_model("imagenet/efficientnet_lite0")
    sl.save_model(model, tmp_path / "saved")
    into = sl.wrap(_vit(), processor=_vit_processor()) if family == "hf" else None
    loaded = sl.load_model(tmp_path / "saved", model=into)
    assert loaded.card.classes == model.card.classes
    assert (loaded.card.resize, loaded.card.interpolation) == (model.card.resize, model.card.interpolation)
    x = torch.rand(1, *model.card.input_shape)
    assert torch.equal(loaded(x), model(x))


def test_the_card_of_a_built_in_architecture_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise RuntimeError('imported')")
    model = sl.build_model("small_cnn")
    card = model.card.model_copy(update={"recipe": {"model": {"name": "evil_module:net"}}})
    sl.save_model(model, tmp_path / "checkpoint", card)
    assert sl.load_model(tmp_path / "checkpoint").card.architecture == "small_cnn"
    assert sl.load_model(tmp_path / "checkpoint", trust=True).card.architecture == "small_cnn"


def test_load_model_imports_nothing_that_a_card_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise RuntimeError('imported')")
    card = sl.ModelCard(architecture="evil_module:net", num_classes=2, input_shape=(1, 4, 4))
    sl.save_model(nn.Linear(2, 2), tmp_path / "checkpoint", card)
    with pytest.raises(CheckpointError, match=r"model\.json' names code.* architecture = 'evil_module:net'"):
        sl.load_model(tmp_path / "checkpoint")


def test_timm_models_are_built_by_name_with_random_weights() -> None:
    model = sl.build_model("timm/vit_tiny_patch16_224", num_classes=4, input_shape=(3, 32, 32))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(UnknownNameError, match="did you mean 'resnet10t'"):
        sl.build_model("timm/resnet10tt", input_shape=(3, 32, 32))


HALF = {"image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.3, 0.4)}
EDGE = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
PROCESSORS = {
    "normalises twice": lambda: transformers.EfficientNetImageProcessor(
        size={"height": 32, "width": 32}, **HALF
    ),
    "reversed channels": lambda: transformers.MobileViTImageProcessor(**EDGE),
    "reversed and normalised": lambda: transformers.MobileViTImageProcessor(
        **EDGE, do_normalize=True, **HALF
    ),
    "a margin of its own": lambda: transformers.LevitImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    "crops first": lambda: transformers.PerceiverImageProcessor(crop_size=36, size=32),
    "0 to 2": lambda: transformers.ViTImageProcessor(size=32, rescale_factor=1 / 127.5, do_normalize=False),
    "0 to 255": lambda: transformers.ViTImageProcessor(size=32, do_rescale=False, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_taken_as_it_runs(name: str) -> None:
    """The pixels that reach the network are those of the processor, up to the rounding of 8 bits."""
    processor, net = PROCESSORS[name](), _vit()
    rows, columns = np.mgrid[:90, :120]
    picture = np.stack([rows * 2, columns * 2, (rows + columns) % 256], 2).astype(np.uint8)
    theirs = torch.as_tensor(
        np.asarray(processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"])
    )
    model = sl.wrap(net, processor=processor)
    seen: list[torch.Tensor] = []
    handle = net.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    model(sl.load_images([picture], model=model).x)
    handle.remove()
    assert seen[0].shape == theirs.shape
    difference = (seen[0] - theirs).abs()
    extent = theirs.max() - theirs.min()
    assert difference.mean() < 0.01 * extent and difference.max() < 0.1 * extent


def test_the_order_of_channels_holds_for_any_network_behind_the_processor() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _vit()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(pixel_values=x).logits

    processor, inner = PROCESSORS["reversed and normalised"](), Inner().eval()
    x = torch.rand(2, 3, 32, 32)
    expected = sl.wrap(inner.net, processor=processor)(x)
    model = sl.wrap(inner, processor=processor, cam_layer="net")
    torch.testing.assert_close(model(x), expected)
    assert model.get_submodule(model.cam_layer) is inner.net


def test_a_processor_that_no_mean_describes_is_refused() -> None:
    class Squares(transformers.ViTImageProcessor):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            done = super().__call__(*args, **kwargs)
            done["pixel_values"] = done["pixel_values"] ** 2
            return done

    processor = Squares(size=32, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    with pytest.raises(InputError, match="does more to colours than a mean"):
        sl.wrap(_vit(), processor=processor)


def test_a_normalisation_of_bytes_is_refused() -> None:
    bytes_mean, bytes_std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    for build in (sl.wrap, sl.Normalised):
        with pytest.raises(InputError, match=r"units of \[0, 1\].*divide mean and std by 255"):
            build(nn.Flatten(), mean=bytes_mean, std=bytes_std)


def test_wrapping_warns_if_the_network_cannot_be_run() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.warns(
        UserWarning, match="Sequential could not be run on an image of 1×1 pixels with 3 or 1 or 4"
    ):
        sl.wrap(net, size=1)
    with pytest.warns(UserWarning, match="with 2 channels, so its card holds no classes"):
        sl.wrap(net, mean=(0.5, 0.5), std=0.5, size=32)
    four = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert sl.wrap(four, size=32).card.input_shape == (4, 32, 32)


def test_a_transformer_without_names_of_classes_can_be_wrapped() -> None:
    net = _vit()
    net.config.id2label = None
    assert sl.wrap(net, mean=0.5, std=0.5, size=32).card.classes is None


def test_a_network_that_fails_without_a_message_is_named_with_its_error() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    with pytest.warns(UserWarning, match=r"Silent could not be run .*: NotImplementedError"):
        sl.wrap(Silent(), size=8)


def test_parts_that_are_taken_by_keywords_alone_are_followed() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.body(x).flatten(2).transpose(1, 2)
            return self.head(torch.narrow(input=tokens, dim=1, start=0, length=2).mean(1))

    assert sl.wrap(Keywords(), size=32).card.cam_layer == "net.body"
