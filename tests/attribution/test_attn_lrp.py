"""AttnLRP against the gradient of a network in which divisors and half of each product are constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute


def halved(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """product(a, b), with half of its gradient."""
    whole = product(a, b)
    return whole.detach() + (whole - whole.detach()) / 2


def through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) = x · (function(x) / x), with a constant quotient."""
    return x * (function(x) / x).detach()


class Vision(nn.Module):
    """A vision transformer; with `reference`, input × gradient is AttnLRP's relevance in the limit ε → 0."""

    def __init__(self, *, reference: bool, fused: bool = False, norm: str = "layer") -> None:
        super().__init__()
        self.reference, self.fused, self.norm = reference, fused, norm
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.scale, self.shift = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 5)
        self.double().eval()

    def normalise(self, x: Tensor) -> Tensor:
        if not self.reference:
            if self.norm == "layer":
                return F.layer_norm(x, (12,), self.scale, self.shift)
            if self.norm == "group":
                return F.group_norm(x.transpose(1, 2), 3, self.scale, self.shift).transpose(1, 2)
            return F.rms_norm(x, (12,), self.scale) if self.norm == "rms" else F.normalize(x, dim=-1)
        if self.norm == "layer":
            centred = x - x.mean(-1, keepdim=True)
            deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt().detach()
            return centred / deviation * self.scale + self.shift
        if self.norm == "group":
            groups = x.unflatten(-1, (3, 4))
            centred = groups - groups.mean((1, 3), keepdim=True)
            whole = centred / (centred.square().mean((1, 3), keepdim=True) + 1e-5).sqrt().detach()
            return whole.flatten(2) * self.scale + self.shift
        if self.norm == "rms":
            eps = torch.finfo(x.dtype).eps
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt().detach() * self.scale
        return x / x.norm(dim=-1, keepdim=True).detach()

    def attention(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        product = (lambda a, b: halved(torch.matmul, a, b)) if self.reference else torch.matmul
        weights = (product(query, key.transpose(-2, -1)) * 6**-0.5).softmax(-1)
        return self.out(product(weights, value).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        tokens = tokens + self.attention(self.normalise(tokens))
        hidden = self.up(self.normalise(tokens))
        hidden = through(F.gelu, hidden) if self.reference else F.gelu(hidden)
        tokens = tokens + self.down(hidden)
        return self.head(self.normalise(tokens)[:, 0])


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", ["layer", "group", "rms", "unit"])
def test_it_is_the_gradient_of_the_network_with_constant_divisors(fused, norm):
    model = Vision(reference=False, fused=fused, norm=norm)
    reference = Vision(reference=True, norm=norm)
    torch.testing.assert_close(model(IMAGES), reference(IMAGES))
    maps = attribute(model, IMAGES, CLASSES, "attn_lrp", epsilon=1e-12)
    expected = attribute(reference, IMAGES, CLASSES, "input_x_gradient")
    assert maps.values.abs().max() > 1e-4
    torch.testing.assert_close(maps.values, expected.values, rtol=1e-4, atol=1e-9)


class Combined(nn.Module):
    """Two convolutions, a function of both, and a linear head; without biases."""

    def __init__(self, combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (nn.Conv2d(3, 4, 1, bias=False) for _ in range(2))
        self.head, self.combine = nn.Linear(256, 5, bias=False), combine
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.combine(self.left(x), self.right(x)).reshape(len(x), -1))


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a * b,
        lambda a, b: torch.einsum("ncij,ncjk->ncik", a, b),
        lambda a, b: a @ b,
        lambda a, b: torch.bmm(a.flatten(0, 1), b.flatten(0, 1)),
        lambda a, b: a * b.mean((2, 3), keepdim=True),
        lambda a, b: F.layer_norm(a * a, (8,)) * b,
        lambda a, b: F.group_norm(a, 2) + F.normalize(b) * a,
    ],
)
def test_products_and_normalisations_without_biases_conserve_the_score(combine):
    model = Combined(combine)
    maps = attribute(model, IMAGES, CLASSES, "attn_lrp", epsilon=1e-12)
    scores = model(IMAGES).gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(maps.values.double().flatten(1).sum(1), scores, rtol=1e-4, atol=1e-5)


def test_the_softmax_gives_each_score_its_first_order_effect():
    """f(x) = Σ v·softmax(x): the relevance of x is x·s·(v − Σ s·v)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Softmax(-1), nn.Linear(192, 5, bias=False)).double()
    maps = attribute(model, IMAGES, CLASSES, "attn_lrp", epsilon=1e-12).values.double().flatten(1)
    weights, chosen = IMAGES.flatten(1).softmax(1), model[2].weight.detach()[CLASSES]
    mean = (weights * chosen).sum(1, keepdim=True)
    torch.testing.assert_close(maps, IMAGES.flatten(1) * weights * (chosen - mean), rtol=1e-4, atol=1e-9)


def test_on_a_network_of_convolutions_it_is_lrp():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()
    x = IMAGES.float()
    gamma = {"preset": "gamma", "gamma": 0.1, "rules": {"5": "gamma"}}
    pairs = [({}, {"preset": "epsilon"}), ({"gamma": 0.1}, gamma)]
    for ours, theirs in pairs:
        found = attribute(model, x, CLASSES, "attn_lrp", **ours)
        torch.testing.assert_close(found.values, attribute(model, x, CLASSES, "lrp", **theirs).values)


def test_what_it_has_no_rule_for_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GLU(1), nn.Flatten(), nn.Linear(128, 5)).eval()
    with pytest.raises(InputError, match=r"attn_lrp .* 1 \(GLU\) calls F.glu. Use 'integrated_gr"):
        attribute(model, IMAGES.float(), CLASSES, "attn_lrp")


def test_lrp_points_transformers_to_it():
    with pytest.raises(InputError, match="Use 'attn_lrp' or 'integrated_gradients'"):
        attribute(Vision(reference=False), IMAGES, CLASSES, "lrp")


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsqrt": lambda t: t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6),
    "power": lambda t: (t.square().mean(-1, keepdim=True) + 1e-6) ** -0.5 * t,
    "reciprocal": lambda t: t * (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt().reciprocal(),
    "one over": lambda t: t * (1 / ((t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() + 0.0)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalisation_is_one_however_it_is_written(name):
    class Normalised(nn.Module):
        def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patches, self.mixed, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
            return self.head(F.gelu(self.mixed(tokens)).mean(1))

    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer, written = (
        attribute(Normalised(norm).double(), x, None, "attn_lrp", target=1, epsilon=1e-9).values
        for norm in (lambda t: F.rms_norm(t, (8,), eps=1e-6), NORMS[name])
    )
    torch.testing.assert_close(written, layer, rtol=1e-6, atol=1e-6)
