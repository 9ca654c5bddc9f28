"""One forward for saliency and loss, up to the first layer whose mode matters, against two forwards."""

import copy

import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab.training import OBJECTIVES, AttackSpec, Step
from saliency_lab.training.layout import use_channels_last
from saliency_lab.training.trunk import parts, run, trunk_and_head

RGB = (3, 8, 8)


def two_passes(self, x, target):
    """What `Step.logits_and_saliency` means, written without sharing anything."""
    modes = [(module, module.training) for module in self.net.modules()]
    self.net.eval()
    point = x.detach().requires_grad_()
    z = self.net(point)
    classes = z.argmax(1) if target is None else target
    (saliency,) = torch.autograd.grad(z.gather(1, classes[:, None]).sum(), point)
    for module, mode in modes:
        module.training = mode
    return self.logits(x), saliency


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.out = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.out(nn.functional.dropout(self.features(x).flatten(1), 0.5, self.training))


class Backwards(nn.Sequential):
    """A Sequential by inheritance only."""

    def forward(self, x):
        return super().forward(x.flip(3))


class InPlace(nn.Module):
    def forward(self, x):
        x += 0.5
        return x


def normed():
    # a hook, which reads the mode: a train pass takes a step of its power iteration
    return nn.Sequential(
        nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10)
    )


def convolutions(*end, kind=nn.Sequential):
    return kind(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), *end)


def hooked():
    net = convolutions(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 10))
    net.register_forward_hook(lambda module, inputs, z: 2 * z)
    return net


NETS = {
    "sgt_cnn": lambda: sl.build_model("sgt_cnn", input_shape=RGB, mean=0.4, std=0.2),
    "small_cnn": lambda: sl.build_model("small_cnn", input_shape=RGB, mean=0.4, std=0.2),
    "resnet8": lambda: sl.build_model("resnet8", input_shape=RGB, mean=0.4, std=0.2),
    "dropout in the middle": lambda: convolutions(nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 10)),
    "dropout first": lambda: nn.Sequential(nn.Dropout(0.2), nn.Flatten(), nn.Linear(192, 10)),
    "dropout of nothing": lambda: convolutions(nn.Dropout(0.0), nn.Flatten(), nn.Linear(36, 10)),
    "nested": lambda: nn.Sequential(
        convolutions(), nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), nn.Linear(36, 10)
    ),
    "in place behind dropout": lambda: convolutions(
        nn.Dropout(0.5), nn.Hardtanh(0.1, 0.2, inplace=True), nn.Flatten(), nn.Linear(36, 10)
    ),
    "functional dropout": FunctionalDropout,
    "sequential by inheritance": lambda: convolutions(
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 10), kind=Backwards
    ),
    "hook on the whole": hooked,
    "own layer in place": lambda: convolutions(InPlace(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 10)),
    "hook on a layer": normed,
    "hook on a layer, no dropout": lambda: nn.Sequential(
        *(each for i, each in enumerate(normed()) if i != 2)
    ),
}


def batch(seed=0, n=6):
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(n, *RGB, generator=draws), torch.randint(0, 10, (n,), generator=draws)


def trained(net, objective, settings, precision=torch.float32, steps=3):
    """Loss terms, gradients and the state after a few steps of SGD."""
    net = copy.deepcopy(net).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    seen = []
    for seed in range(steps):
        x, y = batch(seed)
        step = Step(net=net, x=x, y=y, attack=AttackSpec(eps=0.1, steps=2), eps=0.1, progress=0.5, seed=seed)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            terms = OBJECTIVES[objective](**settings).terms(step)
        optimiser.zero_grad()
        sum(terms.values()).backward(inputs=list(net.parameters()))
        seen += [*terms.values(), *(parameter.grad.clone() for parameter in net.parameters())]
        optimiser.step()
    return seen + list(net.state_dict().values())


OBJECTIVES_WITH_SALIENCY = [("sgt", {}), ("asgt", {}), ("asgt", {"reference": "adversarial"})]


@pytest.mark.long
@pytest.mark.parametrize(("objective", "settings"), OBJECTIVES_WITH_SALIENCY)
@pytest.mark.parametrize("kind", NETS)
def test_sharing_changes_no_bit_of_losses_gradients_and_weights(kind, objective, settings, monkeypatch):
    torch.manual_seed(0)
    net = NETS[kind]()
    shared = trained(net, objective, settings)
    monkeypatch.setattr(Step, "logits_and_saliency", two_passes)
    separate = trained(net, objective, settings)
    assert len(shared) == len(separate)
    assert all(torch.equal(a, b) for a, b in zip(shared, separate, strict=True))


def test_sharing_changes_no_bit_under_autocast(monkeypatch):
    net = NETS["sgt_cnn"]()
    shared = trained(net, "asgt", {}, torch.bfloat16)
    monkeypatch.setattr(Step, "logits_and_saliency", two_passes)
    assert all(map(torch.equal, shared, trained(net, "asgt", {}, torch.bfloat16)))


@pytest.mark.parametrize("name", [name for name in sl.list_models().index if "/" not in name])
def test_the_parts_of_our_networks_are_the_networks(name):
    net = sl.build_model(name, input_shape=(3, 16, 16), mean=[0.4, 0.5, 0.6], std=0.2)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trunk, head = trunk_and_head(net)
    assert torch.equal(run(head, run(trunk, x)), net(x))


@pytest.mark.parametrize(
    ("kind", "calls"),
    {
        "sgt_cnn": 1,
        "small_cnn": 1,
        "nested": 1,
        "dropout in the middle": 1,
        "dropout of nothing": 1,
        "in place behind dropout": 2,
        "functional dropout": 2,
        "sequential by inheritance": 2,
        "hook on the whole": 2,
        "own layer in place": 2,
        "hook on a layer": 2,
    }.items(),
)
def test_the_first_convolution_runs_once_where_it_can(kind, calls, monkeypatch):
    net = NETS[kind]().train()
    first = next(layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    seen = []
    convolve = first.forward
    monkeypatch.setattr(first, "forward", lambda x: seen.append(None) or convolve(x))
    x, y = batch()
    step = Step(net=net, x=x, y=y, attack=AttackSpec(), eps=0.1, progress=0.5, seed=0)
    step.logits_and_saliency(x, y)
    assert len(seen) == calls


def test_layers_that_draw_in_both_modes_are_in_no_trunk():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.FractionalMaxPool2d(2, output_size=2), nn.Flatten())
    trunk, head = trunk_and_head(net)
    assert [*trunk, *head] == parts(net) == list(net)
    assert trunk == [net[0]]


def test_modes_are_put_back_after_an_error_in_the_head():
    net = convolutions(nn.Dropout(0.5), nn.Flatten(), nn.Linear(7, 10)).train()
    net[3].eval()
    x, y = batch()
    step = Step(net=net, x=x, y=y, attack=AttackSpec(), eps=0.1, progress=0.5, seed=0)
    with pytest.raises(RuntimeError, match="shapes"):
        step.logits_and_saliency(x, y)
    assert net.training
    assert not net[3].training
    assert not x.requires_grad


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, stride=1)])
def test_max_pooling_passes_its_gradient_on_in_channels_last_and_no_value_changes(pool):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten())
    x = torch.rand(5, *RGB).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(net).to(memory_format=torch.channels_last)
    use_channels_last(net)
    received = []
    net[1].register_full_backward_hook(lambda module, inputs, outputs: received.append(outputs[0]))
    for each in (net, plain):
        each(x).square().sum().backward()
    assert received[0].is_contiguous(memory_format=torch.channels_last) and not received[0].is_contiguous()
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_channels_last_does_not_prevent_that_a_network_is_cut():
    net = sl.build_model("sgt_cnn", input_shape=RGB).train()
    before = [len(chain) for chain in trunk_and_head(net)]
    use_channels_last(net)
    assert [len(chain) for chain in trunk_and_head(net)] == before and before[0] > 4
