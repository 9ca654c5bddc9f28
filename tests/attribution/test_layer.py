"""Grad-CAM, guided Grad-CAM, layer conductance against Captum; attention rollout against its definition."""

from __future__ import annotations

import captum.attr as ca
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute


@pytest.mark.parametrize(("layer", "relu"), [(None, True), ("4", False), ("2", True)])
def test_grad_cam_is_captums(rgb_net, rgb_batch, layer, relu):
    x, y = rgb_batch
    module = rgb_net[5] if layer is None else rgb_net.get_submodule(layer)
    coarse = ca.LayerGradCam(rgb_net, module).attribute(x.clone(), target=y, relu_attributions=relu)
    expected = ca.LayerAttribution.interpolate(coarse, (12, 12), "bilinear").expand_as(x)
    maps = attribute(rgb_net, x, y, "grad_cam", layer=layer, relu=relu).values
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-5)


def test_guided_grad_cam_is_captums(net, batch):
    x, y = batch
    expected = ca.GuidedGradCam(net, net[5]).attribute(x.clone(), target=y, interpolate_mode="nearest")
    maps = attribute(net, x, y, "guided_grad_cam", interpolation="nearest").values
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-5)


def test_layer_conductance_is_captums(net, batch):
    x, y = batch
    units = ca.LayerConductance(net, net[5]).attribute(
        x, x.flip(0), target=y, n_steps=10, method="riemann_trapezoid"
    )
    expected = ca.LayerAttribution.interpolate(units.sum(1, keepdim=True), (12, 12), "nearest")
    maps = attribute(net, x, y, "layer_conductance", steps=10, baseline=x.flip(0), interpolation="nearest")
    torch.testing.assert_close(maps.values, expected.detach().float(), rtol=0, atol=1e-5)


def test_a_layer_in_front_of_an_in_place_relu(batch):
    x, y = batch
    head = [nn.Flatten(), nn.Linear(200, 5)]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), *head)
    in_place = nn.Sequential(plain[0], nn.ReLU(inplace=True), *head)
    torch.testing.assert_close(
        attribute(in_place, x, y, "grad_cam").values, attribute(plain, x, y, "grad_cam").values
    )


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv1", "unknown layer 'conv1'"),
        ("6", "feature map"),
        ("8", "feature map"),
    ],
)
def test_unsuitable_layers_are_named(net, batch, layer, message):
    with pytest.raises(InputError, match=message):
        attribute(net, *batch, "grad_cam", layer=layer)


def test_a_layer_used_twice_is_named(batch):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(self.conv(x)).flatten(1))

    with pytest.raises(InputError, match=r"'conv' \(Conv2d\) runs 2 times"):
        attribute(Twice(), *batch, "grad_cam", layer="conv")
    with pytest.raises(InputError, match="no module of Twice returns a map"):
        attribute(Twice(), *batch, "grad_cam")


class Transformer(nn.Module):
    """A vision transformer of two blocks on 3×3 patches of 4×4 pixels, by torch's own modules."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches = nn.Conv2d(1, 8, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.functional = functional
        self.cam_layer = "norm"

    def mix(self, block: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
        if not self.functional:
            return block(tokens, tokens, tokens, need_weights=False)[0]
        query, key, value = (tokens @ block.in_proj_weight.T + block.in_proj_bias).chunk(3, -1)
        heads = [each.unflatten(-1, (2, 4)).transpose(1, 2) for each in (query, key, value)]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return block.out_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = tokens + self.mix(block, tokens)
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 32), (13, 14)])
def test_rollout_is_the_product_of_the_attention(functional, height, width):
    x, y = torch.rand(4, 1, height, width, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    rows, columns = height // 4, width // 4
    model = Transformer(functional).eval()
    with torch.no_grad():
        tokens = model.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([model.token.expand(len(x), -1, -1), tokens], 1)
        eye = flow = torch.eye(1 + rows * columns)
        for block in model.blocks:
            mixed, weights = block(tokens, tokens, tokens)
            flow = (0.5 * eye + 0.5 * weights) @ flow
            tokens = tokens + mixed
    coarse = flow[:, 0, 1:].reshape(-1, 1, rows, columns)
    expected = nn.functional.interpolate(coarse, (height, width))
    maps = attribute(model, x, y, "attention_rollout", interpolation="nearest").values
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)
    assert torch.isfinite(attribute(model, x, y, "grad_cam").values).all()


class Patches(nn.Module):
    """Patches of 4×4 pixels that are mixed as tokens (N, T, D), after others, or as a map (N, h, w, D)."""

    def __init__(self, tokens: bool, more: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches, self.head = nn.Conv2d(1, 6, 4, 4), nn.Linear(6, 5)
        self.last, self.tokens, self.more = nn.Identity(), tokens, more

    def forward(self, x: Tensor) -> Tensor:
        found = self.patches(x).permute(0, 2, 3, 1)
        if self.tokens:
            found = nn.functional.pad(found.flatten(1, 2), (0, 0, self.more, 0))
        found = self.last(found)
        return self.head(found.sin().flatten(1, -2).mean(1))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 32), (32, 8), (13, 30)])
def test_patches_lie_where_they_come_from(tokens, height, width):
    model, y = Patches(tokens).eval(), torch.arange(4)
    x = torch.rand(4, 1, height, width, generator=torch.Generator().manual_seed(1))
    coarse = ca.LayerGradCam(model, model.patches).attribute(x, target=y)
    expected = ca.LayerAttribution.interpolate(coarse, (height, width), "nearest").detach()
    found = attribute(model, x, y, "grad_cam", layer="last", relu=False, interpolation="nearest").values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    at = {"steps": 3, "interpolation": "nearest"}
    torch.testing.assert_close(
        attribute(model, x, y, "layer_conductance", layer="last", **at).values,
        attribute(model, x, y, "layer_conductance", layer="patches", **at).values,
        rtol=0,
        atol=1e-6,
    )


def test_a_swin_transformers_maps_have_their_channels_last():
    from torchvision.models import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 8, [2, 2], [1, 2], [4, 4], num_classes=5).eval()
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    coarse = ca.LayerGradCam(model, model.permute).attribute(x, target=y, relu_attributions=True)
    expected = ca.LayerAttribution.interpolate(coarse, (32, 32), "bilinear").expand_as(x).detach()
    found = attribute(model, x, y, "grad_cam", layer="norm").values
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_channels_that_outnumber_a_strided_layers_columns_stay_first():
    """(N, 28, 26, 7) of images 28×28: read as (N, h, w, D), its first two would make a grid as well."""
    torch.manual_seed(0)
    strided = nn.Conv2d(1, 28, 3, stride=(1, 4))
    model = nn.Sequential(strided, nn.Tanh(), nn.Flatten(), nn.Linear(28 * 26 * 7, 5)).eval()
    x, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    for name in ("0", "1"):
        coarse = ca.LayerGradCam(model, model.get_submodule(name)).attribute(
            x, target=y, relu_attributions=True
        )
        expected = ca.LayerAttribution.interpolate(coarse, (28, 28), "bilinear").detach()
        found = attribute(model, x, y, "grad_cam", layer=name).values
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.max()))


def test_tokens_that_are_no_grid_of_the_images_are_refused():
    """4×6 patches and two more tokens: 1 + 5×5, but not of a square image."""
    x = torch.rand(1, 1, 16, 24)
    assert attribute(Patches(True, 1), x, target=0, method="grad_cam", layer="last").values.isfinite().all()
    with pytest.raises(InputError, match=r"shape \(1, 26, 6\).* on a grid .* of images \(16, 24\)"):
        attribute(Patches(True, 2), x, target=0, method="grad_cam", layer="last")


def test_a_layer_that_returns_no_tensor_is_named(batch):
    with pytest.raises(InputError, match=r"\(MultiheadAttention\) returns a tuple, not a tensor"):
        attribute(Transformer(False).eval(), *batch, "grad_cam", layer="blocks.0")


class Ungraded(torch.autograd.Function):
    """A linear layer that tells no gradient, as torch's quantised ones."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.set_materialize_grads(False)
        return x @ weight

    @staticmethod
    def backward(ctx, *gradients):
        return None, None


@pytest.mark.parametrize(
    "name",
    ["saliency", "guided_backprop", "deconvolution", "guided_grad_cam", "grad_cam", "layer_conductance"],
)
def test_a_model_that_tells_no_gradient_is_refused(name, net, batch):
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return Ungraded.apply(self.net(x), torch.eye(5))

    with pytest.raises(InputError, match=r"logits of Quantised have no gradient at the image.*'occlusion'"):
        attribute(Quantised(), *batch, name)


@pytest.mark.parametrize("name", ["grad_cam", "eigen_cam", "attention_rollout", "lrp"])
def test_a_model_under_no_grad_is_refused_for_that(name, net, batch):
    class Evaluated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    with pytest.raises(InputError, match=r"logits of Evaluated have no gradient at the image.*'occlusion'"):
        attribute(Evaluated(), *batch, name)


def bypassing(model: nn.Module, x: Tensor, layer: str) -> float:
    """Return the share of the input gradient that is left where the layer's output passes none back."""
    weights = torch.randn(model(x).shape, generator=torch.Generator().manual_seed(1))
    shares = []
    for cut in (True, False):
        point = x.clone().requires_grad_()
        handle = model.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, cut=cut: output.detach() if cut else output
        )
        logits = model(point)
        handle.remove()
        (slope,) = (
            torch.autograd.grad((weights * logits).sum(), point, allow_unused=True)
            if logits.requires_grad
            else (None,)
        )
        shares.append(0.0 if slope is None else slope.norm().item())
    return shares[0] / shares[1]


class Gate(nn.Module):
    """Weighs positions by attention of one channel, in a branch that runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        )
        self.gate, self.head = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Sigmoid()), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        return self.head((maps * self.gate(maps)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (Gate, 16),
        (lambda: torchvision.models.regnet_y_400mf(weights=None), 32),
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), 32),
        (lambda: torchvision.models.inception_v3(weights=None, init_weights=False), 96),
        (lambda: torchvision.models.resnet18(weights=None), 32),
        (lambda: torchvision.models.densenet121(weights=None), 64),
        (lambda: torchvision.models.swin_v2_t(weights=None), 64),
        (lambda: timm.create_model("efficientformerv2_s0"), 224),
    ],
)
def test_no_evidence_goes_around_the_default_layer(build, size):
    torch.manual_seed(0)
    model, x = build().eval(), torch.rand(1, 3, size, size)
    layer = attribute(model, x, None, "grad_cam", target=0).settings["layer"]
    assert bypassing(model, x, layer) < 1e-6


def test_a_network_without_such_a_layer_is_warned_about():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([each(x).relu().mean((2, 3)) for each in (self.fine, self.coarse)], 1))

    x = torch.rand(1, 3, 12, 12)
    with pytest.warns(UserWarning, match="maps of its layer 'coarse' show a part of the evidence"):
        attribute(Branches(), x, None, "grad_cam", target=0)


class Joined(nn.Module):
    """A vision transformer whose extra tokens are joined in one step or in two."""

    def __init__(self, steps: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = steps
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.others = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 2, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        token, others = (each.expand(len(x), -1, -1) for each in (self.token, self.others))
        if self.steps == "ends":
            tokens = torch.cat([torch.cat([token, tokens], 1) * 1.0, others], 1)
        elif self.steps == "front":
            tokens = torch.cat([token, torch.cat([others, tokens], 1) * 1.0], 1)
        else:
            front = self.steps == "front at once"
            tokens = torch.cat([token, others, tokens] if front else [token, tokens, others], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


@pytest.mark.parametrize(("steps", "once"), [("ends", "ends at once"), ("front", "front at once")])
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "eigen_cam"])
def test_tokens_that_are_joined_in_two_steps_are_left_out(steps, once, name):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    two, one = (attribute(Joined(each).eval(), x, None, name, target=1) for each in (steps, once))
    assert two.settings["layer"] == one.settings["layer"] == "blocks.1.norm1"
    torch.testing.assert_close(two.values, one.values)
