"""Grad-CAM, guided Grad-CAM, layer conductance against Captum; attention rollout against its definition."""

from __future__ import annotations

import captum.attr as ca
import pytest
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute


@pytest.mark.parametrize(("layer", "relu"), [(None, True), ("4", False), ("2", True)])
def test_grad_cam_is_captums(rgb_net, rgb_batch, layer, relu):
    x, y = rgb_batch
    module = rgb_net[4] if layer is None else rgb_net.get_submodule(layer)
    coarse = ca.LayerGradCam(rgb_net, module).attribute(x.clone(), target=y, relu_attributions=relu)
    expected = ca.LayerAttribution.interpolate(coarse, (12, 12), "bilinear").expand_as(x)
    maps = attribute(rgb_net, x, y, "grad_cam", layer=layer, relu=relu).values
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-5)


def test_guided_grad_cam_is_captums(net, batch):
    x, y = batch
    expected = ca.GuidedGradCam(net, net[4]).attribute(x.clone(), target=y, interpolate_mode="nearest")
    maps = attribute(net, x, y, "guided_grad_cam", interpolation="nearest").values
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-5)


def test_layer_conductance_is_captums(net, batch):
    x, y = batch
    units = ca.LayerConductance(net, net[4]).attribute(
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

    with pytest.raises(InputError, match="Conv2d is used 2 times"):
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
def test_rollout_is_the_product_of_the_attention(batch, functional):
    x, y = batch
    model = Transformer(functional).eval()
    with torch.no_grad():
        tokens = model.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([model.token.expand(len(x), -1, -1), tokens], 1)
        flow = torch.eye(10)
        for block in model.blocks:
            mixed, weights = block(tokens, tokens, tokens)
            flow = (0.5 * torch.eye(10) + 0.5 * weights) @ flow
            tokens = tokens + mixed
    expected = flow[:, 0, 1:].reshape(-1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    maps = attribute(model, x, y, "attention_rollout", interpolation="nearest").values
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)
    assert torch.isfinite(attribute(model, x, y, "grad_cam").values).all()


def test_rollout_names_a_model_without_attention(net, batch):
    with pytest.raises(InputError, match="Sequential no self-attention was seen"):
        attribute(net, *batch, "attention_rollout")
