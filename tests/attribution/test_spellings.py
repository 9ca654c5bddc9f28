"""One network in several spellings: LRP and FullGrad do not depend on how a layer is written."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d
from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, EpsilonPlusFlat

from saliency_lab.attribution import attribute
from saliency_lab.attribution.lrp import Preset

DRAWS = torch.Generator().manual_seed(0)
X, Y = torch.rand(3, 2, 9, 9, generator=DRAWS, dtype=torch.float64), torch.tensor([0, 2, 1])
PRESETS = get_args(Preset)


class Spelt(nn.Module):
    """Two convolutions with batch normalisation, their sum, and a linear layer; `parts` replaces calls."""

    def __init__(self, **parts) -> None:
        super().__init__()
        self.parts = {"merge": lambda a, b: a + b} | parts
        shapes = {"first": (4, 2, 3, 3), "second": (4, 2, 3, 3), "weight": (3, 4 * 49), "offset": (3,)}
        shapes |= dict.fromkeys(("mean", "variance", "scale", "shift", "bias"), (4,))
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=DRAWS, dtype=torch.float64)
            value = 0.5 + value.square() if name == "variance" else value
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def conv(self, x: Tensor, kernel: Tensor) -> Tensor:
        if "conv" in self.parts:
            return self.parts["conv"](x, kernel, self.bias)
        return F.conv2d(x, kernel, self.bias)

    def norm(self, x: Tensor) -> Tensor:
        if "norm" in self.parts:
            return self.parts["norm"](self, x)
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.parts.get("late"):
            first, second = self.conv(x, self.first), self.conv(x, self.second)
            return self.norm(first), self.norm(second)
        return self.norm(self.conv(x, self.first)), self.norm(self.conv(x, self.second))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.branches(x)
        hidden = self.parts["merge"](F.relu(a), F.relu(b)).flatten(1)
        if "linear" in self.parts:
            return self.parts["linear"](hidden, self.weight, self.offset)
        return F.linear(hidden, self.weight, self.offset)


def spelt(**parts) -> Spelt:
    DRAWS.manual_seed(0)
    return Spelt(**parts).eval()


def frozen(net: Spelt, x: Tensor) -> Tensor:
    """As torchvision's FrozenBatchNorm2d."""
    scale = net.scale * (net.variance + 1e-5).rsqrt()
    return x * scale[None, :, None, None] + (net.shift - net.mean * scale)[None, :, None, None]


def centred(net: Spelt, x: Tensor) -> Tensor:
    """As a normalisation by hand, in place."""
    x = x.clone()
    x -= net.mean[:, None, None]
    x /= (net.variance + 1e-5).sqrt()[:, None, None]
    return torch.add(net.shift[:, None, None], x.mul_(net.scale[:, None, None]))


def twice(a: Tensor, b: Tensor) -> Tensor:
    """A sum whose second operand is used in place afterwards."""
    total = a + b
    b.mul_(0.0)
    return total + b


SPELLINGS = {
    "frozen norm": {"norm": frozen},
    "norm by hand": {"norm": centred},
    "norms late": {"late": True},
    "clone before norm": {"norm": lambda net, x: Spelt.norm(spelt(), x.clone())},
    "bias by hand": {"conv": lambda x, w, b: F.conv2d(x, w) + b[:, None, None]},
    "bias subtracted": {"conv": lambda x, w, b: F.conv2d(x, w).sub_(-b[:, None, None])},
    "transposed kernel": {"conv": lambda x, w, b: -(-b[:, None, None] - F.conv2d(x, w))},
    "matmul": {"linear": lambda x, w, b: x @ w.T + b},
    "addmm": {"linear": lambda x, w, b: torch.addmm(b, x, w.T)},
    "addmm, halved": {"linear": lambda x, w, b: torch.addmm(b, x, w.T / 2, beta=1, alpha=2)},
    "einsum": {"linear": lambda x, w, b: torch.einsum("ni,ki->nk", x, w) + b},
    "einsum of a list": {"linear": lambda x, w, b: torch.einsum("ki,ni->nk", [w, x]) + b},
    "tensordot": {"linear": lambda x, w, b: torch.tensordot(x, w, dims=([1], [1])) + b},
    "weights first": {"linear": lambda x, w, b: (w @ x.T + b[:, None]).T},
    "baddbmm": {"linear": lambda x, w, b: torch.baddbmm(b[None, None], x[None], w.T[None])[0]},
    "operand in place": {"merge": twice},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_lrp_does_not_depend_on_the_spelling(spelling: str) -> None:
    plain, other = spelt(), spelt(**SPELLINGS[spelling])
    torch.testing.assert_close(plain(X), other(X))
    calls = [("lrp", {"preset": preset}) for preset in PRESETS]
    for method, settings in [*calls, ("attn_lrp", {}), ("attn_lrp", {"gamma": 0.5})]:
        expected, found = (attribute(net, X, Y, method, **settings).values for net in (plain, other))
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_full_grad_counts_the_biases_of_a_frozen_normalisation() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        usual = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)
        for module in usual.modules():
            if isinstance(module, nn.BatchNorm2d):
                for part in (module.running_mean, module.weight.data, module.bias.data):
                    part.normal_()
                module.running_var.uniform_(0.5, 2)
        other = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3, norm_layer=FrozenBatchNorm2d)
    other.load_state_dict(usual.state_dict(), strict=False)
    x = torch.rand(2, 3, 32, 32, generator=DRAWS)
    usual, other = usual.eval(), other.eval()
    torch.testing.assert_close(usual(x), other(x), rtol=1e-4, atol=1e-4)
    expected, found = (attribute(net, x, Y[:2], "full_grad").values for net in (usual, other))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("preset", "composite"),
    [
        ("epsilon_plus", EpsilonPlus),
        ("epsilon_plus_flat", EpsilonPlusFlat),
        ("epsilon_alpha2_beta1", EpsilonAlpha2Beta1),
    ],
)
def test_a_transposed_convolution_is_a_convolution(preset: str, composite, groups: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=groups)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), up, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 225, 3))
    net = net.double().eval()
    points = X.clone().requires_grad_(True)
    with composite().context(copy.deepcopy(net)) as changed:
        logits = changed(points)
        start = torch.zeros_like(logits).scatter_(1, Y[:, None], logits.gather(1, Y[:, None]))
        (expected,) = torch.autograd.grad(logits, points, start.detach())
    found = attribute(net, X, Y, "lrp", preset=preset).values
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))

    norm = nn.BatchNorm2d(6, eps=0.0).double().eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for part in (norm.running_mean, norm.weight.data, norm.bias.data):
            part.normal_()
        norm.running_var.uniform_(0.5, 2)
    merged = copy.deepcopy(net)
    scale = norm.weight.data * norm.running_var.rsqrt()
    per_input = scale.reshape(groups, -1).repeat_interleave(4 // groups, 0)
    merged[2].weight.data *= per_input[:, :, None, None]
    merged[2].bias.data = merged[2].bias.data * scale + norm.bias.data - norm.running_mean * scale
    followed = nn.Sequential(*net[:3], norm, *net[3:]).eval()
    torch.testing.assert_close(merged(X), followed(X))
    expected, found = (attribute(each, X, Y, "lrp", preset=preset).values for each in (merged, followed))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


ROOTS = {
    "rsqrt in place": lambda v: v.add(1e-6).rsqrt_(),
    "power in place": lambda v: v.add(1e-6).pow_(-0.5),
    "reciprocal in place": lambda v: v.add(1e-6).sqrt().reciprocal_(),
    "root of a reciprocal": lambda v: (1 / v.add(1e-6)).sqrt(),
    "power of a tensor": lambda v: v.add(1e-6) ** torch.tensor(-0.5),
}


@pytest.mark.parametrize("root", ROOTS)
def test_attn_lrp_takes_what_a_normalisation_divides_by_as_constant(root: str) -> None:
    class Tokens(nn.Module):
        def __init__(self, inverse_root) -> None:
            super().__init__()
            DRAWS.manual_seed(0)
            self.inverse_root = inverse_root
            self.first = nn.Parameter(torch.randn(9, 6, generator=DRAWS).double())
            self.last = nn.Parameter(torch.randn(6, 3, generator=DRAWS).double())

        def forward(self, x: Tensor) -> Tensor:
            t = x[:, 0] @ self.first
            t = t * self.inverse_root(t.square().mean(-1, keepdim=True))
            return t.mean(1) @ self.last

    usual, other = Tokens(lambda v: torch.rsqrt(v + 1e-6)), Tokens(ROOTS[root])
    torch.testing.assert_close(usual(X), other(X))
    expected, found = (attribute(net, X, Y, "attn_lrp").values for net in (usual, other))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_minus_an_activation_has_a_bias() -> None:
    """The ε rule on a linear network: each pixel's relevance is its value times its weight."""

    class Inverted(nn.Module):
        def __init__(self, change) -> None:
            super().__init__()
            DRAWS.manual_seed(0)
            self.change = change
            self.first = nn.Parameter(torch.randn(5, 162, generator=DRAWS).double())
            self.last = nn.Parameter(torch.randn(3, 5, generator=DRAWS).double())

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.change(F.linear(x.flatten(1), self.first))
            return F.linear(hidden, self.last) if hidden.ndim == 2 else F.linear(hidden.sum(1), self.last)

    for change in (
        lambda h: 1 - h,
        lambda h: F.relu(1 - h) - F.relu(h - 1),
        lambda h: 0.5 * torch.ones(2, 1) - h[:, None] / 2,
    ):
        for method, settings in (("lrp", {"preset": "epsilon"}), ("attn_lrp", {})):
            net = Inverted(change).eval()
            found = attribute(net, X, Y, method, **settings).values
            expected = X * -(net.last @ net.first)[Y].reshape(X.shape)
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
