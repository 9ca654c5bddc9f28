"""A small smooth network in float64, so that rounding does not blur what the tests compare."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


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
        y = model(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 5
    return Case(model, x, y)
