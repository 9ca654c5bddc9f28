"""The attack on the map keeps the prediction, stays in the ball, and moves the map more than chance does."""

from __future__ import annotations

import copy
import json

import pytest
import torch
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


def test_the_smooth_copy_is_close_and_differentiable_twice(trained, batch) -> None:
    x = batch[0][:4]
    twin = smoothed(trained, 1000.0)
    assert not any(isinstance(module, nn.ReLU) for module in twin.modules())
    assert any(isinstance(module, nn.ReLU) for module in trained.modules())
    with torch.no_grad():
        assert torch.allclose(twin(x), trained(x), atol=0.02)


def test_bad_input(trained, batch) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(784, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flatten(1)).relu())

    x = batch[0][:2]
    for change, message in (
        ({"goal": "top"}, "unknown goal 'top'"),
        ({"eps": -1}, "≥ 0"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"k": 1.5}, "'k'"),
    ):
        with pytest.raises(sl.SaliencyLabError, match=message):
            attack_map(trained, x, **{"eps": 0.1, **change})
    with pytest.raises(sl.SaliencyLabError, match=r"only nn\.ReLU modules can be smoothed"):
        attack_map(Functional(), x, eps=0.1)
    with pytest.raises(sl.SaliencyLabError, match="holds NaN"):
        attack_map(trained, x * torch.nan, eps=0.1)


def test_a_relu_under_two_names_is_smoothed_under_both() -> None:
    relu = nn.ReLU()
    twin = smoothed(nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu), beta=5.0)
    assert [isinstance(twin[i], nn.Softplus) for i in (1, 3)] == [True, True]
