"""Where tokens and positions lie on the image: networks with one function, written with another order."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([0, 3])
CAMS = ["grad_cam", "hires_cam", "eigen_cam", "layer_cam", "score_cam", "ablation_cam", "layer_conductance"]
ATTENTION = ["attention_rollout", "attention_relevance"]


class Fused(nn.Module):
    """A block with torch's attention; `options` are those of the call."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.options = nn.LayerNorm(width), nn.LayerNorm(width), options
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attend(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.attention(tokens, tokens, tokens, **self.options)[0]
        return mixed

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ByHand(Fused):
    """The same attention and normalisation by hand; the mean over the heads is kept, as for a picture."""

    def attend(self, tokens: Tensor) -> Tensor:
        tokens = tokens - tokens.mean(-1, keepdim=True) + tokens.mean(-1, keepdim=True)
        projected = F.linear(tokens, self.attention.in_proj_weight, self.attention.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1)
        self.picture = weights.mean(1)
        return self.attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


class Vision(nn.Module):
    """A vision transformer whose tokens run row by row, or column by column.

    Its patches come from a convolution, or from a reshape and a linear layer. The function is the same.
    """

    def __init__(
        self,
        *,
        by_columns: bool = False,
        reshaped: bool = False,
        patch: tuple[int, int] = (8, 8),
        block: type[Fused] = Fused,
        **options: Any,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_columns, self.reshaped, self.patch = by_columns, reshaped, patch
        self.grid = 32 // patch[0], 32 // patch[1]
        self.patches = nn.Conv2d(3, 16, patch, patch)
        self.places = nn.Parameter(torch.randn(1, *self.grid, 16) * 0.3)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(*[block(16, **options) for _ in range(3)])
        self.tokens, self.norm, self.head = nn.Identity(), nn.LayerNorm(16), nn.Linear(16, 5)
        self.eval()

    def embedded(self, x: Tensor) -> Tensor:
        if not self.reshaped:
            return self.patches(x).permute(0, 2, 3, 1)
        cut = x.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0])).permute(0, 2, 4, 1, 3, 5)
        return F.linear(cut.flatten(3), self.patches.weight.flatten(1), self.patches.bias)

    def start(self, x: Tensor) -> Tensor:
        tokens = self.embedded(x) + self.places
        tokens = (tokens.transpose(1, 2) if self.by_columns else tokens).flatten(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tokens(self.blocks(self.start(x))))[:, 0])


def test_the_networks_here_are_one_function():
    expected = Vision()(IMAGES)
    for options in ({"by_columns": True}, {"reshaped": True}, {"block": ByHand}, {"need_weights": False}):
        torch.testing.assert_close(Vision(**options)(IMAGES), expected)
    torch.testing.assert_close(Vision(patch=(8, 2))(IMAGES), Vision(patch=(8, 2), reshaped=True)(IMAGES))


@pytest.mark.parametrize("block", [Fused, ByHand])
@pytest.mark.parametrize(("method", "layer"), [(each, None) for each in CAMS] + [("grad_cam", "blocks.1")])
def test_a_deep_layer_whose_tokens_run_by_columns_is_refused(method, layer, block):
    given = {"method": method, "layer": layer}
    assert attribute(Vision(block=block), IMAGES, CLASSES, **given).values.isfinite().all()
    with pytest.raises(InputError, match=r"the positions of the layer '.*' are not in the order of the im"):
        attribute(Vision(block=block, by_columns=True), IMAGES, CLASSES, **given)


@pytest.mark.parametrize("layer", ["blocks.2.norm2", "blocks.2.mlp.0", "blocks.0.norm1"])
def test_layers_inside_of_a_block_are_followed_too(layer):
    attribute(Vision(), IMAGES, CLASSES, "grad_cam", layer=layer)
    with pytest.raises(InputError, match="not in the order of the image's rows"):
        attribute(Vision(by_columns=True), IMAGES, CLASSES, "grad_cam", layer=layer)


@pytest.mark.parametrize("method", ["grad_cam", *ATTENTION])
def test_patches_of_a_reshape_are_mapped_where_they_are_square_and_refused_where_they_are_not(method):
    expected, found = (
        attribute(Vision(reshaped=each), IMAGES, CLASSES, method).values for each in (False, True)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    attribute(Vision(patch=(8, 2)), IMAGES, CLASSES, method)
    with pytest.raises(InputError, match="order of the image's rows"):
        attribute(Vision(patch=(8, 2), reshaped=True), IMAGES, CLASSES, method)


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize("block", [Fused, ByHand])
def test_attention_over_tokens_that_run_by_columns_is_refused(method, block):
    with pytest.raises(InputError, match=r"the 4×4 patches have another order; use 'integrated_gradients'"):
        attribute(Vision(by_columns=True, block=block), IMAGES, CLASSES, method)


class Turned(Vision):
    """Its patches, 3×3 without a class token, are turned between two blocks."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedded(x)[:, :3, :3].flatten(1, 2)
        tokens = self.blocks[0](tokens).unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)
        return self.head(self.norm(self.blocks[1:](tokens)).mean(1))


@pytest.mark.parametrize("method", ["grad_cam", *ATTENTION])
def test_patches_that_are_turned_between_blocks_are_refused(method):
    with pytest.raises(InputError, match=r"tokens are mixed or moved|order of the image's rows"):
        attribute(Turned(), IMAGES[..., :24, :24], CLASSES, method)


class Plain(nn.Module):
    """A convolutional network whose maps are turned, joined to rows, or taken as they are."""

    def __init__(self, lay: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.start = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.lay, self.last, self.head = lay, nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.lay(self.start(x))).flatten(2).mean(2))


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam"])
@pytest.mark.parametrize("flat", [False, True])
def test_maps_of_columns_are_refused_too(method, flat):
    def lay(maps: Tensor, turned: bool) -> Tensor:
        maps = maps.transpose(2, 3) if turned else maps
        return maps.flatten(2) if flat else maps

    attribute(Plain(lambda maps: lay(maps, False)), IMAGES, CLASSES, method, layer="last")
    with pytest.raises(InputError, match="not in the order of the image's rows"):
        attribute(Plain(lambda maps: lay(maps, True)), IMAGES, CLASSES, method, layer="last")


class Cropping(nn.Module):
    """Looks at the middle of the image, of which dark regions switch most units off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 2, 3, padding=3), nn.Conv2d(2, 2, 3)
        self.head = nn.Linear(2, 5)
        nn.init.constant_(self.first.bias, -0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x[..., 2:-2, 2:-2]).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_network_that_crops_pads_and_has_dead_units_is_not_refused(layer):
    images = IMAGES.clone()
    images[..., 16:] = 0
    maps = attribute(Cropping(), images, CLASSES, "grad_cam", layer=layer, relu=False)
    assert maps.values.isfinite().all()


# --- attention ------------------------------------------------------------------------------------

CALLED = [
    {},
    {"need_weights": True},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"block": ByHand},
]


@pytest.mark.parametrize("method", ATTENTION)
def test_weights_that_attention_returns_and_nobody_uses_change_nothing(method):
    maps = [attribute(Vision(**options), IMAGES, CLASSES, method).values for options in CALLED]
    assert maps[0].std() > 0
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ATTENTION)
@pytest.mark.parametrize(("patch", "grid"), [((8, 8), (8, 8)), ((16, 4), (4, 16)), ((4, 16), (16, 4))])
def test_patches_of_a_convolution_keep_their_grid(method, patch, grid):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 64), patch_size=patch, depth=2, num_classes=5
    )
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    values = attribute(model.eval(), x, CLASSES[:1], method, interpolation="nearest").values[0, 0]
    changes = [int((values.diff(dim=dim) != 0).any(1 - dim).sum()) for dim in (0, 1)]
    assert changes == [count - 1 for count in grid]


@pytest.mark.parametrize("patch", [(8, 8), (8, 2), (2, 8)])
def test_rollout_of_any_patches_is_the_product_of_the_weights(patch):
    model = Vision(patch=patch)
    tokens, flow = model.start(IMAGES), torch.eye(model.grid[0] * model.grid[1] + 1)
    for block in model.blocks:
        normed = block.norm1(tokens)
        flow = (torch.eye(len(flow[0])) + block.attention(normed, normed, normed)[1]) / 2 @ flow
        tokens = block(tokens)
    expected = flow[:, 0, 1:].reshape(-1, 1, *model.grid).detach()
    expected = expected.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3).expand_as(IMAGES)
    found = attribute(model, IMAGES, CLASSES, "attention_rollout", interpolation="nearest").values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
