"""The attack on the map keeps the prediction, stays in the ball, and moves the map more than chance does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.attacks import attack_map
from saliency_lab.attacks.saliency import smoothed


def gradient_map(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    score = model(point)[torch.arange(len(x)), classes].sum()
    return torch.autograd.grad(score, point)[0]


def top_pixels(gradient: Tensor, k: float) -> list[set[int]]:
    size = gradient.abs().sum(1).flatten(1)
    count = max(1, round(k * size.shape[1]))
    return [set(sorted(range(len(row)), key=lambda i: (-row[i].item(), i))[:count]) for row in size]


def centre(gradient: Tensor) -> Tensor:
    size = gradient.abs().sum(1)
    rows, columns = torch.meshgrid(torch.arange(size.shape[1]), torch.arange(size.shape[2]), indexing="ij")
    places = torch.stack([rows, columns], -1).to(size)
    return (size[..., None] * places).sum((1, 2)) / size.sum((1, 2))[:, None]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("goal", ["top_k", "mass_centre"])
def test_against_the_definitions_and_a_random_control(trained, batch, goal, norm) -> None:
    x = batch[0][:12]
    eps = 0.08 if norm == "linf" else 1.5
    found = attack_map(trained, x, goal, eps=eps, norm=norm, steps=15, k=0.2)
    with torch.no_grad():
        classes = trained(x).argmax(1)
        assert torch.equal(trained(found.adversarial).argmax(1), classes)
    assert torch.equal(found.predictions, classes)
    delta = (found.adversarial - x).flatten(1)
    length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (length <= eps + 1e-5).all() and torch.allclose(length, found.distance)
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1

    before, after = gradient_map(trained, x, classes), gradient_map(trained, found.adversarial, classes)
    assert torch.allclose(found.maps_before, before, atol=1e-6)
    assert torch.allclose(found.maps_after, after, atol=1e-6)
    pairs = zip(top_pixels(before, 0.2), top_pixels(after, 0.2), strict=True)
    shares = torch.tensor([len(a & b) / len(a) for a, b in pairs], dtype=torch.float64)
    assert torch.allclose(found.overlap, shares)
    assert torch.allclose(found.shift, (centre(after) - centre(before)).norm(dim=1), atol=1e-4)

    chance = sl.attack(trained, x, classes, "random_direction", eps=eps, norm=norm, draws=1).adversarial
    moved = gradient_map(trained, chance, classes)
    if goal == "top_k":
        by_chance = [
            len(a & b) / len(a) for a, b in zip(top_pixels(before, 0.2), top_pixels(moved, 0.2), strict=True)
        ]
        assert found.overlap.mean() < sum(by_chance) / len(by_chance) - 0.03
    else:
        assert found.shift.mean() > 1.5 * (centre(moved) - centre(before)).norm(dim=1).mean()


def test_conventions(trained, batch) -> None:
    x = batch[0][:4]
    model = copy.deepcopy(trained).train()
    before, names = torch.get_rng_state(), [type(module) for module in model.modules()]
    found = attack_map(model, x, eps=0.05, steps=3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == names
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    alone = attack_map(model, x[2:3], eps=0.05, steps=3, seed=5)
    assert torch.allclose(alone.adversarial, found.adversarial[2:3], atol=1e-5)
    other = attack_map(model, x, eps=0.05, steps=3, seed=6)
    assert not torch.equal(other.adversarial, found.adversarial)
    assert list(found.table()) == ["prediction", "overlap", "shift", "distance"]
    assert json.loads(json.dumps(found.to_dict()))["overlap"] == pytest.approx(found.overlap.mean().item())
    still = attack_map(model, x, eps=0)
    assert torch.equal(still.adversarial, x) and (still.overlap == 1).all() and (still.shift == 0).all()


class Activated(nn.Module):
    """Two linear maps, the activation between them called as it was given."""

    def __init__(self, activation: Callable[[Tensor], Tensor], size: int = 784) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.activation = nn.Linear(size, 8), nn.Linear(8, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.activation(self.a(x.flatten(1))))


def in_place(z: Tensor) -> Tensor:
    z.relu_()
    return z


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function in place": lambda z: F.relu(input=z, inplace=True),
    "by place": lambda z: F.relu(z, True),
    "torch": torch.relu,
    "torch in place": torch.relu_,
    "method": lambda z: z.relu(),
    "method in place": in_place,
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_every_way_to_call_a_relu_is_smoothed(relu) -> None:
    """Value, gradient and the gradient's gradient are those of the network written with softplus."""
    x = torch.rand(5, 1, 3, 3)
    found = []
    for forward in (smoothed(Activated(relu, 9), 5.0), Activated(nn.Softplus(5.0), 9)):
        point = x.clone().requires_grad_()
        values = forward(point)
        slope = torch.autograd.grad(values[:, 0].sum(), point, create_graph=True)[0]
        found.append((values, slope, torch.autograd.grad(slope.square().sum(), point)[0]))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert found[0][2].any()


def test_a_model_that_mixes_modules_and_functions_is_smoothed_throughout(trained, batch) -> None:
    """The map attack sees the same network, however its ReLUs are written."""

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    mixed = copy.deepcopy(trained)
    mixed.net.features.relu1 = Functional()
    assert any(isinstance(module, nn.ReLU) for module in mixed.modules())
    x = batch[0][:4]
    ours, plain = (attack_map(model, x, eps=0.05, steps=3) for model in (mixed, trained))
    assert torch.equal(ours.adversarial, plain.adversarial)


def test_the_smooth_model_is_close(trained, batch) -> None:
    x = batch[0][:4]
    with torch.no_grad():
        assert torch.allclose(smoothed(trained, 1000.0)(x), trained(x), atol=0.02)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_callers_mode_without_gradients_changes_nothing(trained, batch, context) -> None:
    x = batch[0][:4]
    plain = attack_map(trained, x, eps=0.05, steps=3)
    with context():
        inside = attack_map(trained, x.clone(), eps=0.05, steps=3)
        assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside.adversarial, plain.adversarial)
    assert torch.equal(inside.maps_after, plain.maps_after)


def test_bad_input(trained, batch) -> None:
    x = batch[0][:2]
    for change, message in (
        ({"goal": "top"}, "unknown goal: 'top'; did you mean 'top_k'"),
        ({"eps": -1}, "≥ 0"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"k": 1.5}, "'k'"),
    ):
        with pytest.raises(sl.SaliencyLabError, match=message):
            attack_map(trained, x, **{"eps": 0.1, **change})
    with pytest.raises(sl.SaliencyLabError, match="no other piecewise linear layer"):
        attack_map(Activated(nn.LeakyReLU()), x, eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match="holds NaN"):
        attack_map(trained, x * torch.nan, eps=0.1)


def test_a_map_without_a_gradient_is_refused_before_all_images_are_predicted() -> None:
    model, seen = Activated(nn.ReLU6()), []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    x = torch.rand(400, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with pytest.raises(sl.SaliencyLabError, match="no other piecewise linear layer"):
        attack_map(model, x, eps=0.1)
    assert sum(seen) < 40


def test_a_relu_under_two_names_is_smoothed_under_both() -> None:
    torch.manual_seed(0)
    a, b, relu, soft = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU(), nn.Softplus(5.0)
    x = torch.randn(2, 3)
    assert torch.equal(
        smoothed(nn.Sequential(a, relu, b, relu), beta=5.0)(x), nn.Sequential(a, soft, b, soft)(x)
    )


class Attention(nn.Module):
    """One head over sixteen patches, by torch's own function or written out."""

    def __init__(self, *, written_out: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.out = nn.Conv2d(1, 12, 2, 2), nn.Linear(4, 5)
        self.written_out = written_out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.patches(x).flatten(2).transpose(1, 2).contiguous().chunk(3, dim=2)
        if self.written_out:
            mixed = (q @ k.transpose(1, 2) / 2).softmax(2) @ v  # the square root of 4 features
        else:
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(mixed.square().mean(1))


def test_attention_is_attacked_as_when_it_is_written_out() -> None:
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, expected = (
        attack_map(Attention(written_out=way).double(), x, eps=0.1, steps=3) for way in (False, True)
    )
    assert (found.distance > 0).any()
    torch.testing.assert_close(found.adversarial, expected.adversarial)
    torch.testing.assert_close(found.maps_after, expected.maps_after)


def test_an_operation_that_cannot_be_differentiated_twice_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Hardsigmoid(), nn.Linear(4, 3), nn.Softplus())
    with pytest.raises(
        sl.SaliencyLabError, match=r"differentiate that of 'hardsigmoid'.*relu6\(x \+ 3\) / 6"
    ):
        attack_map(model, torch.rand(2, 1, 4, 4), eps=0.1, steps=2)
    z = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(F.relu6(z + 3) / 6, F.hardsigmoid(z))  # what the message says will do


def test_a_step_costs_one_pass_of_the_model_and_one_of_the_smooth_one(trained, batch) -> None:
    asked = []
    handle = trained.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    x, passes = batch[0][:4], []
    try:
        for steps in (1, 3):
            attack_map(trained, x, "top_k", eps=0.08, steps=steps)
            passes.append(sum(asked))
            asked.clear()
    finally:
        handle.remove()
    assert passes[1] - passes[0] == 2 * 2 * len(x)


@pytest.mark.parametrize("goal", ["top_k", "mass_centre"])
def test_a_point_without_a_gradient_is_no_changed_map(goal: str) -> None:
    """The logit is flat for half of the starts: the map is 0 there, and its centre of mass is undefined."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 36) / 36)

        def forward(self, x: Tensor) -> Tensor:
            score = 1 + self.relu(x.flatten(1) @ self.weight - 0.5)
            return torch.stack([score, torch.zeros_like(score)], 1)

    net, x = Flat(), 0.501 + 1e-4 * torch.rand(8, 1, 6, 6)
    found = attack_map(net, x, goal, eps=0.2, steps=1)
    gradient = gradient_map(net, found.adversarial, torch.zeros(8, dtype=torch.long))
    assert gradient.flatten(1).any(1).all()
