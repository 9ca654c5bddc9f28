"""LRP against zennit, an independent implementation, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock
from zennit import composites
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZPlus
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from saliency_lab import Normalised
from saliency_lab._common.errors import InputError
from saliency_lab.attribution import attribute

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES = torch.tensor([3, 1])


def activated(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 8, 3), activation()),
        *(nn.AvgPool2d(2), nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), activation()),
        *(nn.Flatten(), nn.Linear(588, 20), nn.BatchNorm1d(20), activation(), nn.Linear(20, 5)),
    )


def small_vgg() -> nn.Module:
    model = models.vgg11_bn(num_classes=5)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(2048, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 5))
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "vgg11_bn": (small_vgg, VGGCanonizer),
    "resnet10": (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), ResNetCanonizer),
    "resnet18": (lambda: models.resnet18(num_classes=5), ResNetCanonizer),
    "resnet50": (lambda: models.resnet50(num_classes=5), ResNetCanonizer),
    "elu": (lambda: activated(nn.ELU), SequentialMergeBatchNorm),
    "silu": (lambda: activated(nn.SiLU), SequentialMergeBatchNorm),
}


def build(name: str) -> nn.Module:
    """The network with random weights and random statistics in its batch normalisation.

    Its ε is 0, because zennit's merged batch normalisation keeps dividing by √(1 + ε).
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name][0]().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 0.0
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def zennits(name: str, model: nn.Module, x: Tensor, composite: Callable[..., Any]) -> Tensor:
    """Its map of the images, from the relevance of the target's logit."""
    with composite(canonizers=[NETWORKS[name][1]()]).context(copy.deepcopy(model)) as changed:
        points = x.clone().requires_grad_(True)
        logits = changed(points)
        start = torch.zeros_like(logits).scatter_(1, CLASSES[:, None], logits.gather(1, CLASSES[:, None]))
        (relevance,) = torch.autograd.grad(logits, points, start.detach())
    return relevance


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal, but for the rounding of maps to float32."""
    scale = expected.abs().max()
    assert scale > 1e-8
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=1e-5)


COMPOSITES: dict[str, Callable[..., Any]] = {
    "gamma": lambda **options: composites.LayerMapComposite(
        [*composites.layer_map_base(), (composites.Convolution, Gamma(0.25)), (nn.Linear, Epsilon(1e-06))],
        **options,
    ),
    "epsilon_plus": composites.EpsilonPlus,
    "epsilon_plus_flat": composites.EpsilonPlusFlat,
    "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1,
    "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat,
    "epsilon_gamma_box": lambda **options: composites.EpsilonGammaBox(
        low=torch.zeros(1, 3, 1, 1).double(), high=torch.ones(1, 3, 1, 1).double(), **options
    ),
    "excitation_backprop": lambda **options: composites.LayerMapComposite(
        [*composites.layer_map_base(), (composites.Linear, ZPlus(zero_params="bias"))], **options
    ),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vgg11_bn", "resnet18", "resnet50")]


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet10", "elu", "silu", *SLOW])
@pytest.mark.parametrize("preset", COMPOSITES)
def test_presets_are_zennits_composites(name, preset):
    model = build(name)
    found = attribute(model, IMAGES, CLASSES, "lrp", preset=preset).values
    assert_same(found, zennits(name, model, IMAGES, COMPOSITES[preset]))


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet10", "elu"])
@pytest.mark.parametrize("preset", ["gamma", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
def test_behind_a_normalisation_they_are_zennits_at_the_normalised_image(name, preset):
    model = build(name)
    mean, std = (torch.tensor(each).double().view(1, 3, 1, 1) for each in (MEAN, STD))
    composite = COMPOSITES[preset]
    if preset == "epsilon_gamma_box":
        box = {"low": (0 - mean) / std, "high": (1 - mean) / std}
        composite = lambda **options: composites.EpsilonGammaBox(**box, **options)  # noqa: E731
    found = attribute(Normalised(model, MEAN, STD).double(), IMAGES, CLASSES, "lrp", preset=preset).values
    assert_same(found, zennits(name, model, (IMAGES - mean) / std, composite))


def test_rules_by_name_are_zennits():
    model = build("resnet10")
    rules = {"layer1": "alpha2_beta1", "layer1.0.conv2": "gamma", "fc": "gamma", "conv1": "w_square"}
    rules |= {"layer2": "flat", "layer3.0": "alpha1_beta0"}
    expected = {"epsilon": Epsilon(1e-6), "gamma": Gamma(0.1), "flat": Flat(), "w_square": WSquare()}
    expected |= {"alpha1_beta0": ZPlus(), "alpha2_beta1": AlphaBeta(2, 1)}

    class Named(composites.LayerMapComposite):
        def __init__(self, **options: Any) -> None:
            super().__init__(composites.layer_map_base(), **options)

        def mapping(self, ctx: dict, name: str, module: nn.Module) -> Any:
            if not isinstance(module, nn.Conv2d | nn.Linear):
                return super().mapping(ctx, name, module)
            fitting = [each for each in rules if f"{name}.".startswith(f"{each}.")]
            return expected[rules[max(fitting, key=len)] if fitting else "epsilon"]

    found = attribute(model, IMAGES, CLASSES, "lrp", preset="epsilon", rules=rules, gamma=0.1).values
    assert_same(found, zennits("resnet10", model, IMAGES, Named))


def test_the_box_rule_by_name_is_that_of_the_composite():
    model = build("elu")
    named = attribute(model, IMAGES, CLASSES, "lrp", preset="gamma", rules={"0": "box"})
    whole = attribute(model, IMAGES, CLASSES, "lrp", preset="epsilon_gamma_box")
    assert torch.equal(named.values, whole.values)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"layer9": "flat"}, "unknown layer 'layer9'"),
        ({"2": "flat"}, r"a rule is given for '2' \(ELU\), in which no convolution or linear layer runs"),
        ({"3": "box"}, r"'box' is for the first layer, whose input is bounded, not for 3 \(Conv2d\)"),
        ({"0": "zplus"}, "'rules.0'.*'alpha1_beta0'"),
    ],
)
def test_rules_that_do_not_fit_are_named(rules, message):
    with pytest.raises(InputError, match=message):
        attribute(build("elu"), IMAGES, CLASSES, "lrp", rules=rules)


def test_the_box_rule_refuses_a_first_layer_whose_input_has_no_bounds():
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 2, 3), nn.Linear(1800, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(4 * x * (1 - x.detach())).flatten(1))  # 0 on black and on white

    with pytest.raises(InputError, match=r"gets values outside of it; use 'epsilon_plus_flat'"):
        attribute(Squares().double(), IMAGES, CLASSES, "lrp", preset="epsilon_gamma_box")


@pytest.mark.parametrize("preset", ["gamma", "epsilon_gamma_box", "epsilon", "epsilon_plus"])
def test_relevance_of_a_residual_network_behind_a_normalisation_stays_near_the_score(preset):
    """Without the generalised γ rule the sums are 10 to 100 times the score."""
    model = build("resnet10").float()
    maps = attribute(Normalised(model, MEAN, STD), IMAGES.float(), CLASSES, "lrp", preset=preset)
    assert maps.values.flatten(1).sum(1).abs().max() < 10 * maps.total.abs().max()
