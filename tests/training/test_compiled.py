"""A compiled training step has the losses and gradients of the step as it is, and is repeatable."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import saliency_lab as sl
from saliency_lab._common.compiling import compiled_in_place, compiler
from saliency_lab._common.folding import FoldedCopy
from saliency_lab._common.inference import run_without_graph
from saliency_lab.training import OBJECTIVES, AttackSpec, Step

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

SETTINGS = {
    "standard": ("standard", {}),
    "sgt": ("sgt", {}),
    "sgt_random": ("sgt", {"ranking": "random"}),
    "sgt_adaptive": ("sgt", {"fraction_schedule": "adaptive", "same_dropout": False}),
    "at": ("at", {"clean_weight": 1.0}),
    "fast_at": ("fast_at", {}),
    "asgt": ("asgt", {}),
    "asgt_adversarial": ("asgt", {"reference": "adversarial"}),
    "asgt_random": ("asgt", {"ranking": "random"}),
    "asgt_reuse": ("asgt", {"saliency": "reuse"}),
    "trades": ("trades", {}),
    "mart": ("mart", {}),
    "noise": ("noise", {}),
}


def chain():
    """Batch normalisation behind layers that could be shared by the saliency and the loss, and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


class Breaks(nn.Module):
    """Looks at its values in a loop, so that it is compiled in parts; a normalisation stays in eval mode."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(2)
        )
        self.last = nn.Linear(6, 10)

    def train(self, mode=True):
        super().train(mode)
        self.first[1].eval()
        return self

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
            if float(x.detach().abs().max()) > 1e9:
                x = x * 0
        return self.last(x.mean((2, 3)))


def terms_and_gradient(net, folded, name, x, y):
    objective, settings = SETTINGS[name]
    step = Step(
        net=net, x=x, y=y, attack=AttackSpec(eps=8 / 255, steps=2), eps=8 / 255, progress=0.5, seed=7,
        folded=folded,
    )  # fmt: skip
    terms = OBJECTIVES[objective](**settings).terms(step)
    for parameter in net.parameters():
        parameter.grad = None
    sum(terms.values()).backward(inputs=list(net.parameters()))
    gradients = [each.grad.flatten() for each in net.parameters() if each.grad is not None]
    return {term: value.item() for term, value in terms.items()}, torch.cat(gradients)


def compare(net, shape, names, *, channels_last=False, branches=False):
    """In float64, where rounding decides neither the sign of a gradient nor that of a ReLU's input."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, *shape, generator=draws, dtype=torch.float64), torch.arange(6)
    net = net.double().train()
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    net(x)  # statistics that are not 0 and 1
    twin = copy.deepcopy(net)
    folded = FoldedCopy.make(twin, x[:2], run_without_graph)
    assert (folded is not None) == (
        not branches and any(isinstance(each, nn.BatchNorm2d) for each in net.modules())
    )
    with compiled_in_place(twin, *([] if folded is None else [folded.follow()])):
        for name in names:
            twin.load_state_dict(net.state_dict())
            terms, gradient = terms_and_gradient(net, None, name, x, y)
            compiled_terms, compiled_gradient = terms_and_gradient(twin, folded, name, x, y)
            assert compiled_terms == pytest.approx(terms, rel=1e-9, abs=1e-12), name
            assert (gradient - compiled_gradient).norm() <= 1e-9 * gradient.norm(), name
            for buffer, other in zip(net.buffers(), twin.buffers(), strict=True):
                torch.testing.assert_close(buffer, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_chain_of_layers_with_batch_normalisation_and_dropout():
    compare(chain(), (3, 12, 12), SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "lenet5", "sgt_cnn", "resnet8"])
def test_every_objective(name):
    compare(sl.build_model(name, input_shape=(3, 32, 32), seed=0), (3, 32, 32), SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_large_networks(name):
    compare(sl.build_model(name, input_shape=(3, 32, 32), seed=0), (3, 32, 32), ["sgt", "asgt"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgt_cnn", "resnet8"])
def test_in_channels_last(name):
    compare(sl.build_model(name, input_shape=(3, 32, 32), seed=0), (3, 32, 32), ["asgt"], channels_last=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        Breaks,
        lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10),
        lambda: timm.create_model("test_vit", num_classes=10, img_size=64),
        lambda: timm.create_model("test_efficientnet", num_classes=10),
    ],
    ids=["with breaks", "torchvision resnet", "timm vit", "timm efficientnet"],
)
def test_on_foreign_networks(make):
    torch.manual_seed(0)
    compare(make(), (3, 64, 64), ["asgt"], branches=make is Breaks)
