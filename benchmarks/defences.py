"""Networks whose robustness is known: broken defences around a trained network, and honest networks.

`BROKEN` maps a name to a function that puts a defence around a network. None of them makes the network much
more robust; each makes gradient attacks fail. The adaptive attack against all of them is the same: gradients
of the undefended network, points judged on the defended one. `HONEST` maps a name to a function that builds
an honest network from the networks that come along and the training data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lab as sl


class Defence(nn.Module):
    """A network behind a defence."""

    def __init__(self, inner: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.inner = inner
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


class _Backward(torch.autograd.Function):
    """The identity with another backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(gradient), None


def _mask(shape: torch.Size, share: float) -> Tensor:
    """1 for a fixed random share of the pixels."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share).float()


class ChangedGradient(Defence):
    """A custom backward pass at the input."""

    change: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(_Backward.apply(x, self.change))
        return logits


class ChangedLogitGradient(Defence):
    """A custom backward pass at the logits."""

    change: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = _Backward.apply(self.inner(x), self.change)
        return logits


class HookedGradient(Defence):
    """A tensor hook that zeroes the gradient of most pixels."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * _mask(gradient.shape[1:], 0.2))
        logits: Tensor = self.inner(x)
        return logits


class MaskedOffTheData(Defence):
    """The gradient is right where pixels are multiples of 1/255, and mostly zero elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        off = ((x * 255 - (x * 255).round()).abs().flatten(1).amax(1) > 1e-3).reshape(-1, 1, 1, 1)
        keep = _mask(x.shape[1:], 0.2).expand_as(x)
        logits: Tensor = self.inner(torch.where(off, x * keep + (x * (1 - keep)).detach(), x))
        return logits


class MaskedWhenSure(Defence):
    """The gradient of confident images points the wrong way."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            top = self.inner(x).topk(2, 1).values
        sure = (top[:, 0] - top[:, 1] > 1).reshape(-1, 1, 1, 1)
        logits: Tensor = self.inner(torch.where(sure, _Backward.apply(x, torch.neg), x))
        return logits


class QuantisedInput(Defence):
    """The input is rounded to a few levels."""

    levels: int = 8

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * (self.levels - 1)).round() / (self.levels - 1))
        return logits


class ShatteredInput(Defence):
    """The input is rounded, and a tiny oscillation supplies a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = ((x * 7).round() / 7).detach()
        wave = torch.sin(1e4 * x)
        logits: Tensor = self.inner(rounded + 1e-3 * (wave - wave.detach()))
        return logits


class SteepSteps(Defence):
    """Soft rounding whose slope is almost zero nearly everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * 7
        below = scaled.floor()
        logits: Tensor = self.inner((below + torch.sigmoid(60 * (scaled - below - 0.5))) / 7)
        return logits


class Jpeg(Defence):
    """Quantised coefficients of the discrete cosine transform of 7×7 blocks."""

    def forward(self, x: Tensor) -> Tensor:
        n = 7
        k = torch.arange(n, dtype=x.dtype)
        basis = torch.cos(torch.pi / n * (k[None] + 0.5) * k[:, None]) * (2 / n) ** 0.5
        basis[0] /= 2**0.5
        blocks = x.unfold(2, n, n).unfold(3, n, n)
        coefficients = basis @ blocks @ basis.T
        blocks = basis.T @ ((coefficients * 6).round() / 6) @ basis
        logits: Tensor = self.inner(blocks.transpose(3, 4).reshape(x.shape))
        return logits


class Thermometer(Defence):
    """A pixel becomes the number of thresholds below it."""

    def forward(self, x: Tensor) -> Tensor:
        thresholds = torch.arange(1, 11, dtype=x.dtype) / 11
        code = (x[..., None] > thresholds).to(x.dtype)
        logits: Tensor = self.inner(code.mean(-1))
        return logits


class RandomResizing(Defence):
    """The image is shrunk by a random factor and padded at a random place."""

    def forward(self, x: Tensor) -> Tensor:
        size = int(torch.randint(24, 29, ()))
        left, top = (int(torch.randint(0, 29 - size, ())) for _ in range(2))
        small = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        logits: Tensor = self.inner(F.pad(small, (left, 28 - size - left, top, 28 - size - top)))
        return logits


class RandomNoise(Defence):
    """Gaussian noise on the input at every pass."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.2 * torch.randn_like(x))
        return logits


class HashedNoise(Defence):
    """Noise that is a fixed, chaotic function of the image: the same image gives the same logits."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            phase = (x.flatten(1) @ torch.linspace(1e3, 3e4, x[0].numel(), dtype=x.dtype)).reshape(
                -1, 1, 1, 1
            )
            grid = torch.linspace(1, 97, x[0].numel()).reshape(1, *x.shape[1:])
            noise = 0.3 * torch.sin(phase * grid)
        logits: Tensor = self.inner(x + noise)
        return logits


class WinnersTakeAll(Defence):
    """Only the largest tenth of the values after a first layer survive."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        fine = flat + 0.02 * torch.sin(400 * flat.roll(1, 1)) * flat
        kept = fine >= fine.topk(flat.shape[1] // 5, 1).values[:, -1:]
        logits: Tensor = self.inner((fine * kept).reshape(x.shape))
        return logits


class NoGraph(Defence):
    """The network is computed without a graph."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


class NumpyDetour(Defence):
    """A smoothing step that leaves torch."""

    def forward(self, x: Tensor) -> Tensor:
        array = (x.detach().numpy() * 16).round() / 16
        logits: Tensor = self.inner(torch.from_numpy(array))
        return logits


class RoundedLogits(Defence):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * self.inner(x)).round() / 2


class SaturatedLogits(Defence):
    """Logits behind a steep tanh: float32 runs out of digits."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return torch.tanh(8 * (logits - logits.mean(1, keepdim=True)))


class Ensemble(Defence):
    """The mean of the network and of a copy behind a rounded input."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x) + 3 * self.inner((x * 15).round() / 15)
        return logits


class AntiAdversary(Defence):
    """The image is first moved towards its own predicted class (Alfarra et al., AAAI 2022)."""

    def forward(self, x: Tensor) -> Tensor:
        moved = x.detach()
        with torch.enable_grad():
            guess = self.inner(moved).argmax(1)
            for _ in range(3):
                moved = moved.requires_grad_()
                loss = F.cross_entropy(self.inner(moved), guess, reduction="sum")
                moved = (moved - 0.05 * torch.autograd.grad(loss, moved)[0].sign()).detach()
        logits: Tensor = self.inner(x + (moved - x).detach())
        return logits


class DifferentiatesPlainly(Defence):
    """As `AntiAdversary`, and relies on gradients being recorded by the caller."""

    def forward(self, x: Tensor) -> Tensor:
        point = x.detach().clone().requires_grad_()
        logits = self.inner(point)
        slope = torch.autograd.grad(logits.amax(1).sum(), point)[0]
        moved = (x.detach() + 0.1 * slope.sign()).clamp(0, 1)
        result: Tensor = self.inner(moved)
        return result


class BatchMean(Defence):
    """The mean image of the batch is subtracted in part."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x - 0.5 * (x - x.mean(0, keepdim=True))).clamp(0, 1))
        return logits


class NanOffTheData(Defence):
    """NaN where a pixel is no multiple of 1/255."""

    def forward(self, x: Tensor) -> Tensor:
        off = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1) > 1e-2
        logits: Tensor = self.inner(x).masked_fill(off[:, None], torch.nan)
        return logits


class Abstains(Defence):
    """Returns the logits of a smoothed image where it detects that the image was changed."""

    def forward(self, x: Tensor) -> Tensor:
        levels = x * 255
        off = ((levels - levels.round()).abs().flatten(1).amax(1) > 1e-2)[:, None]
        with torch.no_grad():
            safe = self.inner((x > 0.5).to(x.dtype))
        return torch.where(off, safe, self.inner(x))


class GradientModeSwitch(Defence):
    """Answers differently when gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.roll(3, 3) if x.requires_grad else x)
        return logits


class HighFrequency(Defence):
    """A fast oscillation of the logits, whose slope hides that of the network."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        weights = torch.randn(x[0].numel(), logits.shape[1], generator=torch.Generator().manual_seed(0))
        return logits + 0.5 * torch.sin(200 * (x.flatten(1) @ weights))


class OscillatingInput(Defence):
    """A fast oscillation of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.02 * torch.sin(300 * x))
        return logits


class CountsCalls(Defence):
    """Every other pass sees a blurred image."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        seen = F.avg_pool2d(x, 3, 1, 1) if self.calls % 2 else x
        logits: Tensor = self.inner(seen)
        return logits


class Shifted(Defence):
    """The gradient of the row above: pixels of the gradient are shuffled by a backward hook of a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.entry = nn.Identity()
        self.entry.register_full_backward_hook(lambda module, given, got: (given[0].roll(5, 2),))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.entry(x))
        return logits


class Loud(Defence):
    """Logits times a hundred: the cross-entropy saturates."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.inner(x)


class RandomActivation(Defence):
    """A pixel survives with a chance that grows with its value (Dhillon et al., ICLR 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand_like(x) < 0.6 + 0.4 * x.detach()
        logits: Tensor = self.inner(x * kept / (0.6 + 0.4 * x.detach()))
        return logits


class _KeepLargest(nn.Module):
    """k-winners-take-all in place of a ReLU (Xiao et al., ICLR 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 5), 1).values[:, -1]
        return x * (x >= least.reshape(-1, *[1] * (x.ndim - 1)))


class LargestActivations(Defence):
    """Every ReLU lets only the largest fifth of the values pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(copy.deepcopy(inner))
        for module in list(self.inner.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(module, name, _KeepLargest())


class LargeOffset(Defence):
    """A constant so large that float32 rounds the logits to whole numbers; the gradient is right."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1e7


class DetachedBranch(Defence):
    """Nearly all of the logits carry no gradient; a random linear map supplies one."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x).detach()
        weights = torch.randn(x[0].numel(), logits.shape[1], generator=torch.Generator().manual_seed(0))
        return logits + 1e-3 * x.flatten(1) @ weights


class HiddenRandomness(Defence):
    """Noise from a generator of its own, which no seed of torch reaches."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.source = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.from_numpy(self.source.normal(0, 0.2, x.shape)).to(x)
        logits: Tensor = self.inner(x + noise)
        return logits


class SquashedLogits(Defence):
    """A steep sigmoid of every logit."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(20 * self.inner(x))


class ScaledByTheImage(Defence):
    """Logits fade where the image has fine structure, and the loss rises fastest along that."""

    def forward(self, x: Tensor) -> Tensor:
        rough = (x - F.avg_pool2d(x, 3, 1, 1)).abs().flatten(1).mean(1, keepdim=True)
        return self.inner(x) * torch.exp(-60 * rough)


class FadesOffTheData(Defence):
    """Logits shrink towards zero where pixels are no multiples of 1/255."""

    def forward(self, x: Tensor) -> Tensor:
        levels = x * 255
        off = (levels - levels.round()).abs().flatten(1).mean(1, keepdim=True)
        return self.inner(x) * torch.exp(-400 * off)


class Vote(Defence):
    """Shifted copies of the image vote for their class."""

    def forward(self, x: Tensor) -> Tensor:
        shifts = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)]
        with torch.no_grad():
            votes = [F.one_hot(self.inner(x.roll(by, (2, 3))).argmax(1), 10) for by in shifts]
        tie: Tensor = 1e-3 * self.inner(x).detach().softmax(1)
        return torch.stack(votes).sum(0).to(x) + tie


class Dithered(Defence):
    """The input is rounded to eight levels after random noise of one level."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(((x * 7 + torch.rand_like(x) - 0.5).round() / 7).clamp(0, 1))
        return logits


class Bytes(Defence):
    """The input passes through eight-bit integers."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 255).round().byte().to(x.dtype) / 255)
        return logits


class Median(Defence):
    """A median of 3×3 pixels of the rounded image."""

    def forward(self, x: Tensor) -> Tensor:
        windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        logits: Tensor = self.inner((windows.median(4).values * 15).round() / 15)
        return logits


class NearestCode(Defence):
    """Every 2×2 patch is replaced by the nearest of a few codes."""

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)).round()
        codes = torch.cat([codes, torch.linspace(0, 1, 9)[:, None].expand(9, 4)])
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        coded = codes[torch.cdist(patches, codes.expand(len(x), -1, -1)).argmin(2)]
        logits: Tensor = self.inner(F.fold(coded.transpose(1, 2), x.shape[2:], 2, stride=2))
        return logits


class ColdSoftmax(Defence):
    """Log-probabilities at a very low temperature, cut off at -50."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) / 0.02).log_softmax(1).clamp_min(-50)


def _zero(share: float) -> Callable[[nn.Module], nn.Module]:
    return lambda net: ChangedGradient(net, change=lambda g: g * _mask(g.shape[1:], share))


def _shuffled(gradient: Tensor) -> Tensor:
    order = torch.randperm(gradient[0].numel(), generator=torch.Generator().manual_seed(0))
    return gradient.flatten(1)[:, order].reshape(gradient.shape)


BROKEN: dict[str, Callable[[nn.Module], nn.Module]] = {
    "zero half of the gradient": _zero(0.5),
    "zero 70 % of the gradient": _zero(0.3),
    "zero the border of the gradient": lambda net: ChangedGradient(
        net, change=lambda g: F.pad(g[..., 10:-10, 10:-10], (10, 10, 10, 10))
    ),
    "rotated gradient": lambda net: ChangedGradient(net, change=lambda g: g.rot90(1, (2, 3))),
    "negated gradient": lambda net: ChangedGradient(net, change=torch.neg),
    "half negated gradient": lambda net: ChangedGradient(
        net, change=lambda g: g * (2 * _mask(g.shape[1:], 0.5) - 1)
    ),
    "shuffled gradient": lambda net: ChangedGradient(net, change=_shuffled),
    "shuffled logit gradient": lambda net: ChangedLogitGradient(net, change=lambda g: g.roll(1, 1)),
    "hooked gradient": HookedGradient,
    "module hook": Shifted,
    "masked off the data": MaskedOffTheData,
    "masked when sure": MaskedWhenSure,
    "quantised input": lambda net: QuantisedInput(net, levels=8),
    "shattered input": ShatteredInput,
    "steep steps": SteepSteps,
    "JPEG": Jpeg,
    "thermometer": Thermometer,
    "random resizing": RandomResizing,
    "random noise": RandomNoise,
    "hashed noise": HashedNoise,
    "winners take all": WinnersTakeAll,
    "no graph": NoGraph,
    "NumPy detour": NumpyDetour,
    "rounded logits": RoundedLogits,
    "saturated logits": SaturatedLogits,
    "ensemble": Ensemble,
    "anti-adversary": AntiAdversary,
    "differentiates plainly": DifferentiatesPlainly,
    "batch mean": BatchMean,
    "NaN off the data": NanOffTheData,
    "abstains": Abstains,
    "gradient mode switch": GradientModeSwitch,
    "high frequency": HighFrequency,
    "oscillating input": OscillatingInput,
    "counts calls": CountsCalls,
    "loud logits": Loud,
    "noisy gradient": lambda net: ChangedGradient(
        net, change=lambda g: g + 20 * g.std() * torch.randn_like(g)
    ),
    "random signs of the gradient": lambda net: ChangedGradient(
        net, change=lambda g: g * (2 * torch.rand_like(g).round() - 1)
    ),
    "largest gradients only": lambda net: ChangedGradient(
        net,
        change=lambda g: g * (g.abs() >= g.abs().flatten(1).topk(20, 1).values[:, -1].reshape(-1, 1, 1, 1)),
    ),
    "clipped gradient": lambda net: ChangedGradient(net, change=lambda g: (g * 1e30).clamp(0, 1)),
    "random activations": RandomActivation,
    "largest activations": LargestActivations,
    "detached branch": DetachedBranch,
    "hidden randomness": HiddenRandomness,
    "squashed logits": SquashedLogits,
    "scaled by the image": ScaledByTheImage,
    "fades off the data": FadesOffTheData,
    "vote": Vote,
    "dithered": Dithered,
    "bytes": Bytes,
    "median": Median,
    "nearest code": NearestCode,
    "cold softmax": ColdSoftmax,
}


def fit(
    net: nn.Module, data: Any, *, seed: int = 0, epochs: int = 4, eps: float = 0.0, loss: str = "ce",
    images: int = 6000, rate: float = 2e-3,
) -> nn.Module:  # fmt: skip
    """Train a network by a plain loop, on FGSM points from a random start if `eps` > 0."""
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    objective = nn.MultiMarginLoss() if loss == "hinge" else nn.CrossEntropyLoss()
    for _ in range(epochs):
        for rows in torch.randperm(min(images, len(data.train)), generator=order).split(64):
            x, y = data.train.batch(rows)
            if eps:
                point = (
                    (x + eps * (2 * torch.rand(x.shape, generator=order) - 1)).clamp(0, 1).requires_grad_()
                )
                slope = torch.autograd.grad(objective(net(point), y), point)[0]
                x = (x + (point.detach() - x + eps * slope.sign()).clamp(-eps, eps)).clamp(0, 1)
            optimiser.zero_grad()
            objective(net(x), y).backward()
            optimiser.step()
    net.zero_grad()
    return net.eval()


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _convolutional(
    activation: Callable[[], nn.Module], *, norm: bool = False, pool: str = "max"
) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        middle = [nn.BatchNorm2d(b)] if norm else []
        return [nn.Conv2d(a, b, 3, padding=1), *middle, activation(),
                nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)]  # fmt: skip

    return nn.Sequential(*block(1, 12), *block(12, 24), nn.Flatten(), nn.Linear(24 * 49, 10))


class Patches(nn.Module):
    """A small transformer on 7×7 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 7, 7)
        self.place = nn.Parameter(torch.randn(1, 16, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, activation="gelu")
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.body(tokens).mean(1))
        return logits


class Scaled(Defence):
    """Logits times a constant."""

    scale: float

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


class Clamped(Defence):
    """The input is clamped to [0, 1], as many models do."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x.clamp(0, 1))
        return logits


class Averaged(Defence):
    """The mean of the logits of several networks."""

    others: list[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in (self.inner, *self.others)]).mean(0)


class LogProbabilities(Defence):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).log_softmax(1)


class Blurred(Defence):
    """A differentiable blur before the network."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(F.avg_pool2d(x, 3, 1, 1))
        return logits


class Residual(nn.Module):
    """A residual network without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + 0.5 * block(x).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Mixer(nn.Module):
    """Linear maps over patches and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 32, 7, 7)
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens(x)
            x = x + channels(x.transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(x.mean(2))
        return logits


class Rows(nn.Module):
    """A recurrent network that reads the image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(28, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.squeeze(1))[0][:, -1])
        return logits


class Prototypes(nn.Module):
    """Minus the squared distance of an embedding to one prototype per class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 16))
        self.centres = nn.Parameter(torch.randn(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.embed(x), self.centres).square()


class Standardised(Defence):
    """Every image is brought to mean 0 and standard deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        logits: Tensor = self.inner((x - mean) / (spread + 1e-3))
        return logits


class FixedNoise(Defence):
    """The mean of the log-probabilities over eight draws of noise that never change."""

    def forward(self, x: Tensor) -> Tensor:
        draws = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(0))
        return torch.stack([self.inner(x + 0.1 * draw).log_softmax(1) for draw in draws]).mean(0)


class Bfloat16(Defence):
    """The network computes in bfloat16, and images and logits are float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inner(x)
        return logits.float()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(2 * x)


def quantised_weights(net: nn.Module, levels: int) -> nn.Module:
    """Return a copy whose weights have a few levels per layer."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for weight in net.parameters():
            unit = weight.abs().max().clamp_min(1e-8) / levels
            weight.copy_((weight / unit).round() * unit)
    return net


def distilled(net: nn.Module, teacher: nn.Module, data: Any, temperature: float) -> nn.Module:
    """Train a network on the probabilities of another one at a temperature (Papernot et al., S&P 2016)."""
    order = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(4):
        for rows in torch.randperm(min(6000, len(data.train)), generator=order).split(64):
            x, _ = data.train.batch(rows)
            with torch.no_grad():
                wanted = (teacher(x) / temperature).softmax(1)
            optimiser.zero_grad()
            F.cross_entropy(net(x) / temperature, wanted).backward()
            optimiser.step()
    net.zero_grad()
    return net.eval()


def honest_networks(data: Any, zoo: Mapping[str, nn.Module]) -> dict[str, Callable[[], nn.Module]]:
    """Honest networks by name, each built when it is asked for; `zoo` holds trained ones."""

    def trained(make: Callable[[], nn.Module], **settings: Any) -> Callable[[], nn.Module]:
        return lambda: fit(_seeded(0, make), data, **settings)

    def linear() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def perceptron(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 10)
        )

    nets = list(zoo.values())
    return {
        **{name: (lambda net=net: net) for name, net in zoo.items()},
        "linear": trained(linear),
        "linear, hinge": trained(linear, loss="hinge"),
        "perceptron, ReLU": trained(perceptron(nn.ReLU)),
        "perceptron, tanh": trained(perceptron(nn.Tanh)),
        "perceptron, sigmoid": trained(perceptron(nn.Sigmoid), rate=5e-3),
        "perceptron, adversarial": trained(perceptron(nn.ReLU), eps=0.1),
        "convolutional, ReLU": trained(lambda: _convolutional(nn.ReLU)),
        "convolutional, hinge": trained(lambda: _convolutional(nn.ReLU), loss="hinge"),
        "convolutional, ReLU6": trained(lambda: _convolutional(nn.ReLU6)),
        "convolutional, hardswish": trained(lambda: _convolutional(nn.Hardswish)),
        "convolutional, GELU": trained(lambda: _convolutional(nn.GELU)),
        "convolutional, batch norm": trained(lambda: _convolutional(nn.ReLU, norm=True)),
        "convolutional, mean pooling": trained(lambda: _convolutional(nn.ELU, pool="mean")),
        "convolutional, adversarial": trained(lambda: _convolutional(nn.ReLU), eps=0.1, epochs=6),
        "adversarial, smooth": trained(lambda: _convolutional(nn.Softplus), eps=0.1, epochs=6),
        "transformer": trained(Patches, epochs=8),
        "residual, no normalisation": trained(Residual, epochs=8),
        "mixer": trained(Mixer, epochs=6),
        "recurrent": trained(Rows, epochs=8),
        "prototypes": trained(Prototypes),
        "perceptron, sine": trained(perceptron(Sine), rate=5e-4),
        "convolutional, layer scale": trained(lambda: _convolutional(nn.LeakyReLU), rate=1e-3, epochs=2),
        "tiny margin, adversarial": trained(perceptron(nn.ReLU), eps=0.2, epochs=2),
        "weights of seven levels": lambda: quantised_weights(nets[1], 3).eval(),
        "distilled": lambda: distilled(
            _seeded(0, lambda: _convolutional(nn.ReLU)), nets[0], data, temperature=20.0
        ),
        "standardised images": lambda: fit(
            Standardised(_seeded(0, lambda: _convolutional(nn.ReLU))), data, epochs=3
        ),
        "fixed noise": lambda: FixedNoise(nets[1]).eval(),
        "bfloat16 inside": lambda: Bfloat16(nets[1]).eval(),
        "large offset": lambda: LargeOffset(nets[0]).eval(),
        "scaled down": lambda: Scaled(nets[0], scale=0.01).eval(),
        "scaled up": lambda: Scaled(nets[1], scale=10.0).eval(),
        "clamped": lambda: Clamped(nets[1]).eval(),
        "normalised": lambda: nn.Sequential(
            sl.Normalised(Blurred(copy.deepcopy(nets[0])), [0.0], [1.0])
        ).eval(),
        "ensemble of honest networks": lambda: Averaged(nets[0], others=nets[1:]).eval(),
        "log-probabilities": lambda: LogProbabilities(nets[1]).eval(),
        "smoothed": lambda: Blurred(nets[1]).eval(),
    }
