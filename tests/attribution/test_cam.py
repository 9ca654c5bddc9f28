"""CAM methods against pytorch-grad-cam, and the default layer on networks that we did not build."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import pytorch_grad_cam as reference
import timm
import torch
import transformers
from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.reshape_transforms import vit_reshape_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import saliency_lab as sl
from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

SIZE = 32


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and running statistics of a useful size; timm starts with scales of 1e-6 and zero biases."""
    source = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        shape, size = parameter.shape, 1.0 if parameter.ndim < 2 else (2 / parameter[0].numel()) ** 0.5
        values = torch.randn(shape, generator=source) * size
        parameter.data = 1 + 0.1 * values if name.endswith("norm.weight") or ".norm" in name else values
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=source) / 3)
        if name.endswith("running_var"):
            buffer.copy_(1 + torch.rand(buffer.shape, generator=source))
    return model.eval()


def small_resnet() -> nn.Module:
    block = timm.models.resnet.BasicBlock
    return randomised(timm.models.ResNet(block, (1, 1, 1, 1), channels=(8, 8, 8, 12), num_classes=5))


def small_convnext() -> nn.Module:
    return randomised(
        timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 12, 12), patch_size=2, num_classes=5)
    )


def small_vit(**settings) -> nn.Module:
    given = {"img_size": SIZE, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2} | settings
    return randomised(timm.models.VisionTransformer(num_classes=5, **given))


def small_swin() -> nn.Module:
    sizes = {"img_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 6}
    model = timm.models.SwinTransformer(depths=(1, 2), num_heads=(1, 2), num_classes=5, **sizes)
    return randomised(model)


def channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


NETWORKS = {
    "resnet": (small_resnet, "layer2", None),
    "convnext": (small_convnext, "stages.1.blocks.0.mlp", channels_first),
    "vit": (small_vit, "blocks.1.norm1", lambda tokens: vit_reshape_transform(tokens, 4, 4)),
    "swin": (small_swin, "layers.1.blocks.1.norm1", channels_first),
}
METHODS = {
    "grad_cam": reference.GradCAM,
    "grad_cam_plus_plus": reference.GradCAMPlusPlus,
    "layer_cam": reference.LayerCAM,
    "hires_cam": reference.HiResCAM,
    "xgrad_cam": reference.XGradCAM,
    "score_cam": reference.ScoreCAM,
    "ablation_cam": reference.AblationCAM,
    "eigen_cam": reference.EigenCAM,
}


def images(count: int = 3, size: int = SIZE) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def scaled(maps: Tensor) -> np.ndarray:
    """Each map from 0 to 1, as pytorch-grad-cam scales its own."""
    rows = maps[:, 0].numpy()
    rows = rows - rows.min((1, 2), keepdims=True)
    return rows / (rows.max((1, 2), keepdims=True) + 1e-7)


class _Zero(AblationLayer):
    """Sets channels to zero, as the paper does; pytorch-grad-cam's own sets them to −1e7."""

    def __call__(self, x: Tensor) -> Tensor:
        for row, channel in enumerate(self.indices[: len(self.activations)]):
            self.activations[row, channel] = 0
        return self.activations


class _ZeroLast(AblationLayerVit):
    def __call__(self, x: Tensor) -> Tensor:
        for row, channel in enumerate(self.indices[: len(self.activations)]):
            self.activations[row, ..., channel] = 0
        return self.activations


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_methods_are_those_of_pytorch_grad_cam(name, network, monkeypatch):
    build, layer, reshape = NETWORKS[network]
    model, x, y = build(), images(), torch.tensor([0, 1, 2])
    # pytorch-grad-cam adds 1e-7 to what it divides a map by, 1e-6 to a denominator of Grad-CAM++,
    model.get_classifier().weight.data *= 3000 if name == "grad_cam_plus_plus" else 30
    model.get_classifier().bias.data += 600  # and divides the weights of Ablation-CAM by the score
    peer = copy.deepcopy(model)
    settings = {}
    if name == "ablation_cam":
        settings["ablation_layer"] = _Zero() if reshape is None else _ZeroLast()
    if name == "score_cam":  # its masks have aligned corners, the maps of either library have not
        bilinear = lambda size: nn.Upsample(size, mode="bilinear", align_corners=False)  # noqa: E731
        monkeypatch.setattr(nn, "UpsamplingBilinear2d", bilinear)
    cam = METHODS[name](peer, [peer.get_submodule(layer)], reshape_transform=reshape, **settings)
    expected = cam(x, [ClassifierOutputTarget(int(each)) for each in y])
    maps = attribute(model, x, y, name, layer=layer)
    found = scaled(maps.values)
    if name == "eigen_cam":  # the sign of a principal component is arbitrary
        coarse = attribute(model, x, y, name, layer=layer, relu=False, interpolation="nearest").values
        turned = (-coarse[:, :1, 4::8, 4::8]).relu()
        turned = scaled(nn.functional.interpolate(turned, size=x.shape[2:], mode="bilinear"))
        same = np.abs(found - expected).max((1, 2)) < np.abs(turned - expected).max((1, 2))
        found = np.where(same[:, None, None], found, turned)
    assert np.ptp(expected, axis=(1, 2)).max() > 0.5  # pytorch-grad-cam found more than zeros
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert maps.settings["layer"] == layer


@pytest.mark.parametrize("network", NETWORKS)
def test_full_grad_is_that_of_pytorch_grad_cam(network):
    build, _, _ = NETWORKS[network]
    if network == "resnet":
        model = randomised(models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5))
    else:
        model = build()
    x, y = images(), torch.tensor([0, 1, 2])
    peer = copy.deepcopy(model)
    expected = reference.FullGrad(peer, [])(x, [ClassifierOutputTarget(int(each)) for each in y])
    np.testing.assert_allclose(scaled(attribute(model, x, y, "full_grad").values), expected, atol=2e-4)


def test_eigen_cam_grows_with_the_activations():
    """One channel, large in one corner: its first component is the channel itself, with a positive sign."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.Identity(), nn.Flatten(), nn.Linear(32, 2)
    ).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-3.0, 0.5]).reshape(2, 1, 1, 1))
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 1] = 1.0
    found = attribute(model, x, target=0, method="eigen_cam", layer="0", relu=False).values
    assert found.argmax() == 1 and found.max() > 0


# --- the default layer ------------------------------------------------------------------------------

RECOMMENDED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # the layers of pytorch-grad-cam's README; a name of torchvision's, else of timm's
    "resnet18": (models.resnet18, "layer4.1"),
    "resnet50": (models.resnet50, "layer4.2"),
    "vgg11_bn": (models.vgg11_bn, "features.28"),
    "densenet121": (models.densenet121, "features.norm5"),
    "mnasnet0_5": (models.mnasnet0_5, "layers.16"),
    "mobilenet_v2": (models.mobilenet_v2, "features.18"),
    "mobilenet_v3_small": (models.mobilenet_v3_small, "features.12"),
    "efficientnet_b0": (models.efficientnet_b0, "features.8"),
    "convnext_tiny": (models.convnext_tiny, "features.7"),
    "swin_t": (models.swin_t, "features.7.1.norm1"),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "blocks.11.norm1"),
    "timm deit": (lambda: timm.create_model("deit_tiny_patch16_224", img_size=64), "blocks.11.norm1"),
    "timm deit, distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64),
        "blocks.11.norm1",
    ),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4),
        "layers.3.blocks.1.norm1",
    ),
    "timm resnet18": (lambda: timm.create_model("resnet18"), "layer4.1"),
    "timm efficientnet": (lambda: timm.create_model("efficientnet_b0"), "bn2"),
    "timm convnext": (lambda: timm.create_model("convnext_atto"), "stages.3"),
}


def correlation(one: Tensor, other: Tensor) -> Tensor:
    rows = [
        each.flatten(1).double() - each.flatten(1).double().mean(1, keepdim=True) for each in (one, other)
    ]
    return (rows[0] * rows[1]).sum(1) / (rows[0].norm(dim=1) * rows[1].norm(dim=1))


@pytest.mark.long
@pytest.mark.parametrize("name", RECOMMENDED)
def test_the_default_layer_gives_the_map_of_the_recommended_one(name):
    build, recommended = RECOMMENDED[name]
    torch.manual_seed(0)
    model, x = build().eval(), images(2, 64)
    found = attribute(model, x, target=1, method="grad_cam", relu=False)
    expected = attribute(model, x, target=1, method="grad_cam", relu=False, layer=recommended)
    assert expected.values.flatten(1).std(1).min() > 0
    assert correlation(found.values, expected.values).min() > 0.95
    assert dict(model.named_modules())[found.settings["layer"]]


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "swin_t", "timm vit"])
def test_a_wrapper_changes_nothing(name):
    torch.manual_seed(0)
    model, x = RECOMMENDED[name][0]().eval(), images(1, 64)
    plain = attribute(model, x, target=1, method="grad_cam")
    for wrapper, prefix in ((nn.Sequential(model), "0."), (nn.DataParallel(model), "module.")):
        wrapped = attribute(wrapper, x, target=1, method="grad_cam")
        torch.testing.assert_close(wrapped.values, plain.values, rtol=0, atol=0)
        assert wrapped.settings["layer"] == prefix + plain.settings["layer"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: models.googlenet(init_weights=False), "inception5b"),
        (lambda: models.inception_v3(init_weights=False), "Mixed_7c"),
        (lambda: randomised(timm.create_model("mixer_s32_224", num_classes=5)), "norm"),
        (lambda: timm.create_model("mobilevit_xxs", num_classes=5), "final_conv"),
        (lambda: timm.create_model("xcit_nano_12_p16_224", num_classes=5), "blocks.11.norm1"),
        (models.squeezenet1_1, "classifier.2"),
    ],
)
def test_default_layers_of_other_networks(build, layer):
    """GoogLeNet's auxiliary heads do not run; MobileViT ends in convolutions; SqueezeNet in class maps."""
    torch.manual_seed(0)
    size = 224 if layer == "norm" else 128
    maps = attribute(build().eval(), images(1, size), target=1, method="grad_cam", relu=False)
    assert maps.settings["layer"] == layer and maps.values.std() > 0


class PlainAttention(nn.Module):
    """Attention of a head, with the class token last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.act = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, -1)
        return tokens + self.act((query @ key.transpose(1, 2)).softmax(-1) @ value)


class HandWritten(nn.Module):
    """A transformer by hand, whose class tokens stand behind the patches."""

    def __init__(self, more: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, more, 8))
        self.blocks = nn.Sequential(*[PlainAttention(8) for _ in range(3)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens, self.token.expand(len(x), -1, -1)], dim=-2)
        return self.head(self.blocks(tokens)[:, -1])


@pytest.mark.parametrize("more", [1, 5])
def test_tokens_without_a_position_are_found_from_the_execution(more):
    torch.manual_seed(0)
    model, x = HandWritten(more).eval(), images(2, 32)
    maps = attribute(model, x, target=1, method="grad_cam", relu=False, interpolation="nearest")
    assert maps.settings["layer"] == "blocks.2.norm"
    tokens = model.patches(x).flatten(2).transpose(1, 2)
    tokens = model.blocks[:2](torch.cat([tokens, model.token.expand(len(x), -1, -1)], 1))
    normed = model.blocks[2].norm(tokens).detach().requires_grad_(True)
    query, key, value = model.blocks[2].qkv(normed).chunk(3, -1)
    mixed = tokens + model.blocks[2].act((query @ key.transpose(1, 2)).softmax(-1) @ value)
    (gradient,) = torch.autograd.grad(model.head(mixed[:, -1])[:, 1].sum(), normed)
    expected = (gradient[:, :16].mean(1, keepdim=True) * normed[:, :16]).sum(2).reshape(2, 1, 4, 4)
    expected = expected.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
    torch.testing.assert_close(maps.values, expected.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tokens", [{"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}])
def test_registers_and_a_missing_class_token(tokens):
    model, x = small_vit(**tokens), images()
    before = model.num_prefix_tokens

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, before:].transpose(1, 2).unflatten(2, (4, 4))

    peer = copy.deepcopy(model)
    cam = reference.GradCAM(peer, [peer.blocks[1].norm1], reshape_transform=reshape)
    expected = cam(x, [ClassifierOutputTarget(1)] * 3)
    found = attribute(model, x, target=1, method="grad_cam")
    assert found.settings["layer"] == "blocks.1.norm1"
    np.testing.assert_allclose(scaled(found.values), expected, atol=2e-4)


def test_the_layer_may_be_a_module_and_is_recorded_by_its_name():
    model, x = small_resnet(), images(1)
    maps = attribute(model, x, target=0, method="layer_cam", layer=model.layer2)
    assert maps.settings["layer"] == "layer2"
    with pytest.raises(InputError, match=r"layer=Conv2d.* is no module of ResNet"):
        attribute(model, x, target=0, method="layer_cam", layer=nn.Conv2d(3, 3, 1))


def test_the_layer_of_a_base_method_is_recorded():
    maps = attribute(small_vit(), images(1), target=0, method="smoothgrad", base="grad_cam", n=2)
    assert maps.settings["base_settings"]["layer"] == "blocks.1.norm1"


def test_a_declared_layer_is_found_through_wrappers():
    model = small_resnet()
    model.cam_layer = "layer2"
    for wrapper in (model, nn.Sequential(model), nn.DataParallel(nn.Sequential(model))):
        maps = attribute(wrapper, images(1), target=0, method="grad_cam")
        assert maps.settings["layer"].endswith("layer2")


@pytest.mark.long
@pytest.mark.parametrize("name", [*METHODS, "full_grad", "guided_grad_cam", "layer_conductance"])
def test_batches_do_not_matter(name):
    model, x = small_resnet(), images(4)
    settings = {"steps": 3} if name == "layer_conductance" else {}
    together = attribute(model, x, target=1, method=name, **settings).values
    alone = torch.cat([attribute(model, row[None], target=1, method=name, **settings).values for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "eigen_cam", "layer_conductance"])
@pytest.mark.parametrize("channels", [9, 16])
def test_maps_whose_rows_are_joined_are_those_of_the_same_network(method: str, channels: int) -> None:
    """(N, channels, positions) is no list of tokens, also where the number of channels is a square."""
    torch.manual_seed(0)
    body = [
        nn.Conv2d(3, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    ]
    head = nn.Linear(channels, 5)
    plain = nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    joined = nn.Sequential(*body, nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), head)
    x = torch.rand(2, 3, 20, 16)
    ours, theirs = (attribute(net, x, method=method, target=1) for net in (joined, plain))
    assert (ours.settings["layer"], theirs.settings["layer"]) == ("4", "3")
    torch.testing.assert_close(ours.values, theirs.values)


def test_a_norm_behind_the_last_attention_is_no_layer_if_the_head_reads_the_class_token() -> None:
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, stride=8)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)  # norm_first is False
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            patches = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.encoder(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))[:, 0])

    torch.manual_seed(0)
    maps = attribute(PostNorm(), torch.rand(2, 3, 32, 32), method="hires_cam", target=1)
    assert maps.settings["layer"] == "encoder.layers.0"
    assert maps.values.flatten(1).any(1).all()


def test_registers_between_the_class_token_and_the_patches_have_no_position() -> None:
    """transformers takes the tokens apart behind the position embeddings, and puts registers between."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    net = transformers.Dinov2WithRegistersForImageClassification(
        transformers.Dinov2WithRegistersConfig(num_labels=3, **sizes)
    )
    model = sl.wrap(net, mean=0.5, std=0.5, size=32)
    assert model.card.cam_layer == "net.net.dinov2_with_registers.encoder.layer.1.norm1"
    x = torch.rand(1, 3, 32, 32)
    layer = net.dinov2_with_registers.encoder.layer[1].norm1
    caught: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: caught.append(output))
    score = model(x.requires_grad_())[0, 1]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, caught[0])
    patches, slopes = (each[0, 5:].detach().T.unflatten(1, (4, 4)) for each in (caught[0], gradient))
    expected = (slopes.mean((1, 2), keepdim=True) * patches).sum(0).relu()
    expected = nn.functional.interpolate(expected[None, None], (32, 32), mode="bilinear")
    maps = attribute(model, x.detach(), method="grad_cam", target=1).values
    torch.testing.assert_close(maps, expected.expand_as(maps), rtol=1e-4, atol=1e-7)


class Encoder(nn.Module):
    """A class token and 16 patches through torch's transformer layers, tokens first or images first."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.randn(8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2)
        if self.batch_first:
            tokens = torch.cat([self.token.expand(len(x), 1, -1), tokens.transpose(1, 2)], 1)
            return self.head(self.norm(self.encoder(tokens))[:, 0])
        tokens = torch.cat([self.token.expand(1, len(x), -1), tokens.permute(2, 0, 1)])
        return self.head(self.norm(self.encoder(tokens))[0])


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "ablation_cam", "layer_conductance"])
@pytest.mark.parametrize("count", [2, 17])
def test_layers_with_tokens_before_images_give_the_maps_of_the_same_network(method: str, count: int) -> None:
    """Also where there are as many images as tokens, so that the shape does not tell which come first."""
    torch.manual_seed(0)
    images_first, tokens_first = Encoder(batch_first=True), Encoder(batch_first=False)
    tokens_first.load_state_dict(images_first.state_dict())
    settings = {"steps": 2} if method == "layer_conductance" else {"relu": False}
    x = torch.rand(count, 3, 32, 32)
    theirs, ours = (
        attribute(net, x, method=method, target=1, **settings) for net in (images_first, tokens_first)
    )
    assert ours.settings["layer"] == theirs.settings["layer"] == "encoder.layers.1.norm1"
    assert theirs.values.flatten(1).any(1).all()
    torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-6)


class Units(nn.Module):
    """Mixes tokens within square units of four, in the order of the units, as Hiera does, or row by row."""

    def __init__(self, *, in_rows: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU())
        self.head, self.in_rows = nn.Linear(8, 5), in_rows

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x)
        if not self.in_rows:
            tokens = tokens.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 1, 2, 4, 3, 5)
        return self.head(self.block(tokens.flatten(2).mT).mean(1))


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "ablation_cam", "layer_conductance"])
@pytest.mark.parametrize("layer", [None, "block", "block.1"])
def test_tokens_in_another_order_than_the_rows_of_the_image_are_refused(method, layer) -> None:
    torch.manual_seed(0)
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 4:8, 20:28] = 1
    assert attribute(Units(in_rows=True), x, method=method, target=1, layer=layer).values.shape == x.shape
    with pytest.raises(InputError, match="not in the order of the image's rows"):
        attribute(Units(in_rows=False), x, method=method, target=1, layer=layer)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("method", ["grad_cam", "attention_rollout"])
def test_a_caller_who_looks_for_anomalies_finds_none(method: str) -> None:
    torch.manual_seed(0)
    net, x = Encoder(batch_first=True), torch.rand(2, 3, 32, 32)
    expected = attribute(net, x, method=method, target=1).values
    with torch.autograd.detect_anomaly():
        assert torch.equal(attribute(net, x, method=method, target=1).values, expected)


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "permute": (lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
    "movedim": (lambda x: x.movedim(1, -1), lambda x: torch.moveaxis(x, -1, 1)),
    "transposed twice": (lambda x: x.transpose(1, 2).swapaxes(2, 3), lambda x: x.mT.transpose(1, 2)),
    "tokens": (lambda x: x.flatten(2).mT, lambda x: x.transpose(1, 2).unflatten(2, (8, 8))),
}


class Mixed(nn.Module):
    """Layers along 8 channels of a map of 8 × 8 positions, which are moved to the end and back."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.before, self.behind = LAYOUTS[layout]
        self.norm, self.mix, self.act = nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.act(self.mix(self.norm(self.before(x)))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_are_followed_through_any_layout_where_sizes_do_not_tell(layout: str) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Mixed(layout))
    model = nn.Sequential(body, nn.Hardtanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    x = torch.rand(2, 3, 32, 32)
    features = body(x).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model[1:](features)[:, 1].sum(), features)
    expected = (features * gradient).sum(1, keepdim=True).detach()
    expected = nn.functional.interpolate(expected, (32, 32), mode="bilinear").expand_as(x)
    for layer in ("0", "0.1"):
        maps = attribute(model, x, method="hires_cam", target=1, layer=layer, relu=False)
        torch.testing.assert_close(maps.values, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_grad_cam_plus_plus_is_its_formula_at_any_size_of_the_gradient(scale):
    model, x, y = small_resnet(), images(), torch.tensor([0, 1, 2])
    model.get_classifier().weight.data *= scale
    maps = sl.attribute(model, x, y, "grad_cam_plus_plus", layer="layer2").values.double()
    caught = []
    handle = model.layer2.register_forward_hook(lambda _, __, output: caught.append(output))
    logits = model(x)
    handle.remove()
    (gradients,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), caught[0])
    a, g = caught[0].detach().double(), gradients.double()
    share = torch.where(g != 0, g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3), 0)
    coarse = ((share * g.relu()).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
    expected = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False).expand_as(maps)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("eigen_cam", {}), ("lime", {"n": 20, "alpha": 1e-6}), ("kernel_shap", {"n": 20})],
)
def test_an_image_whose_scores_are_not_numbers_loses_its_own_map_alone(method, settings):
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            return self.net(x / (x.amin((1, 2, 3), keepdim=True) > 0).float())  # 0 / 0 where a pixel is black

    x, y = images(), torch.tensor([0, 1, 2])
    x[1] = 0
    more = {} if method == "eigen_cam" else {"baseline": "white"}
    with pytest.warns(UserWarning, match="1 of 3 maps are not finite"):
        maps = sl.attribute(Divides().eval(), x, y, method, **settings, **more).values
    assert maps[[0, 2]].isfinite().all() and not maps[1].isfinite().any()


def test_guided_ig_ends_where_the_gradient_is_not_a_number():
    class Standardised(nn.Module):
        """Divides a black image, where the path begins, by its standard deviation."""

        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            return self.net((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))

    with pytest.warns(UserWarning, match="1 of 1 maps are not finite"):
        maps = sl.attribute(Standardised().eval(), images(1), torch.tensor([0]), "guided_ig", steps=3)
    assert maps.values.isnan().any()
