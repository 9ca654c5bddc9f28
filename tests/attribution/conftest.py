from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


def make_net(channels: int = 1, size: int = 12, classes: int = 5, seed: int = 0) -> nn.Sequential:
    """A small convolutional network with everything the shipped architectures have."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(6 * (size // 2 - 2) ** 2, classes),
        )
        norm = net[1]
        assert (
            isinstance(norm, nn.BatchNorm2d)
            and norm.running_mean is not None
            and norm.running_var is not None
        )
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


def make_batch(count: int = 6, channels: int = 1, size: int = 12, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(count, channels, size, size, generator=source)
    return x, torch.randint(0, 5, (count,), generator=source)


@pytest.fixture
def net() -> nn.Sequential:
    return make_net()


@pytest.fixture
def rgb_net() -> nn.Sequential:
    return make_net(channels=3)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return make_batch()


@pytest.fixture
def rgb_batch() -> tuple[Tensor, Tensor]:
    return make_batch(channels=3)
