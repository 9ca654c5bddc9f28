"""A small smooth network in float64, so that rounding does not blur what the tests compare."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import saliency_lab as sl
from saliency_lab.attacks.ascent import projected_ascent, random_start
from saliency_lab.data import ImageData


@dataclass
class Case:
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture
def case() -> Case:
    """An untrained network on 8×8 images, and the labels it gives itself but for the last two."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )
    model = model.double().eval()
    x = torch.rand(7, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[5].bias -= model(x).mean(0)  # so that it sees several classes, by small margins
        y = model(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 5
    return Case(model, x, y)


@pytest.fixture(scope="session")
def hardened(digits: ImageData) -> nn.Module:
    """A small_cnn trained on PGD points of radius 0.1 (Madry), with a ramp of ε; treat as read-only."""
    model = sl.build_model("small_cnn", seed=0).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    source = torch.Generator().manual_seed(0)
    for epoch in range(10):
        eps = 0.1 * min(1, (epoch + 1) / 3)
        for rows in torch.randperm(len(digits.train), generator=source).split(64):
            x, y = digits.train.batch(rows)

            def slope(point: Tensor, y: Tensor = y) -> Tensor:
                point = point.detach().requires_grad_()
                return torch.autograd.grad(nn.functional.cross_entropy(model(point), y), point)[0]

            start = random_start(x, eps, "linf", torch.rand(x.shape, generator=source))
            x = projected_ascent(x, slope, start=start, eps=eps, step_size=eps / 2, steps=4).detach()
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
    model.zero_grad()
    return model.eval()


@pytest.fixture(scope="session")
def batch(digits: ImageData) -> tuple[Tensor, Tensor]:
    """64 test digits."""
    return digits.test.sample(64, seed=0)
