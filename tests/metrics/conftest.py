"""Tiny images, a network that every metric can question, and maps without ties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


def tiny_net(channels: int, size: int = 12, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        half = (size - 2) // 2
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * half * half, 5),
        )
        with torch.no_grad():
            net[-1].weight.mul_(4.0)  # answers that vary
    return net.eval()


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def scene(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, six images of 12×12, labels, and signed maps."""
    channels = request.param
    source = torch.Generator().manual_seed(channels)
    x = torch.rand(6, channels, 12, 12, generator=source)
    y = torch.randint(0, 5, (6,), generator=source)
    maps = torch.randn(6, channels, 12, 12, generator=source)
    return tiny_net(channels), x, y, maps
