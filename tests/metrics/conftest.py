"""Tiny images, a network that every metric can question, maps without ties, and small settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Scene = tuple[nn.Module, Tensor, Tensor, Tensor]


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


def gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        out = model(x).gather(1, classes[:, None]).sum()
        return torch.autograd.grad(out, x)[0]


@pytest.fixture(params=[1, 3], ids=["grey", "rgb"])
def scene(request: pytest.FixtureRequest) -> Scene:
    """A model, six images of 12×12, labels, and signed maps."""
    channels = request.param
    source = torch.Generator().manual_seed(channels)
    x = torch.rand(6, channels, 12, 12, generator=source)
    y = torch.randint(0, 5, (6,), generator=source)
    maps = torch.randn(6, channels, 12, 12, generator=source)
    return tiny_net(channels), x, y, maps


@pytest.fixture(scope="session")
def small() -> Callable[[str, Tensor], dict[str, Any]]:
    """Settings of a metric that make it cheap, and what it needs besides the maps, for images `x`."""

    def settings(name: str, x: Tensor) -> dict[str, Any]:
        masks = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
        masks[:, :, 2:8, 3:9] = True
        localisation = {
            "pointing_game", "attribution_localisation", "top_k_intersection", "relevance_mass_accuracy",
            "relevance_rank_accuracy", "auc", "focus", "energy_pointing_game",
        }  # fmt: skip
        if name in localisation:
            return {"masks": masks}
        if name.startswith("attack_"):
            return {"attacked": (x * 0.9 + 0.05).clamp(0, 1), "explain": gradient}
        neighbours = {"samples": 3, "explain": gradient}
        return {
            "faithfulness_correlation": {"runs": 10, "subset_size": 30},
            "faithfulness_estimate": {"steps": 12},
            "sensitivity_n": {"fractions": (0.2, 0.6), "runs": 6},
            "monotonicity_correlation": {"steps": 12, "samples": 3},
            "infidelity": {"patch_sizes": (4, 5)},
            "pixel_flipping": {"steps": 12},
            "deletion": {"steps": 12},
            "insertion": {"steps": 12},
            "masked_input_accuracy": {"steps": 12},
            "masked_input_accuracy_lowest": {"steps": 12},
            "monotonicity": {"steps": 12},
            "irof": {"segments": 40},
            "road": {"percentages": (20.0, 50.0, 80.0)},
            "road_combined": {"percentages": (20.0, 50.0, 80.0)},
            "adcc": {"explain": gradient},
            "sic": {"thresholds": (0.1, 0.5), "minimum": 0.0},
            "aic": {"thresholds": (0.1, 0.5), "minimum": 0.0},
            "max_sensitivity": neighbours,
            "avg_sensitivity": neighbours,
            "local_lipschitz_estimate": neighbours,
            "relative_input_stability": neighbours,
            "relative_output_stability": neighbours,
            "relative_representation_stability": neighbours,
            "continuity": {"max_shift": 2, "explain": gradient},
            "mprt": {"explain": gradient},
            "smooth_mprt": {"samples": 2, "explain": gradient},
            "efficient_mprt": {"explain": gradient},
            "random_logit": {"explain": gradient},
            "input_invariance": {"explain": gradient},
        }.get(name, {})

    return settings
