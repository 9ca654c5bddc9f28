"""Normalisation as a layer, and the layer that CAM methods look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.inference import check_module

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


class Normalised(nn.Module):
    """A model of images in [0, 1] from a `net` that expects (x − mean) / std, channel by channel.

    Parameters
    ----------
    net : nn.Module
        Takes normalised images and returns logits.
    mean, std : float or sequence of float
        One value, or one a channel, in units of [0, 1]; std > 0.

    Raises
    ------
    InputError
        If `net` is no torch module (whose weights a function that calls one would hide), or a value is out of
        range.

    Examples
    --------
    >>> model = Normalised(nn.Flatten(), mean=0.5, std=0.25)
    >>> model(torch.tensor([[[[0.5, 1.0]]]]))
    tensor([[0., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        check_module(net, "net")
        self.register_buffer("mean", _by_channel("mean", mean))
        self.register_buffer("std", _by_channel("std", std))
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise InputError(f"mean must be finite and std finite and above 0, not mean={mean}, std={std}")
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.net(self.normalise(x))

    def normalise(self, x: Tensor) -> Tensor:
        """(x − mean) / std, channel by channel, of images (N, C, H, W)."""
        return (x - self.mean) / self.std

    @property
    def cam_layer(self) -> nn.Module:
        """The layer that CAM methods look at: the one `net` declares or its last convolution."""
        return cam_layer(self.net)


def _by_channel(name: str, values: float | Sequence[float]) -> Tensor:
    """One value or one a channel, as (1, 1, 1) or (C, 1, 1)."""
    try:
        return torch.as_tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a number, or one a channel, not {values!r}") from None


def cam_layer(model: nn.Module) -> nn.Module:
    """Return the layer that CAM methods look at: the model's own `cam_layer`, else its last convolution.

    A model declares it by an attribute or property `cam_layer`: the module, or its name, such as
    "features.3" (assign the name rather than the module, which torch would register a second time).

    Raises
    ------
    InputError
        If the declared name does not exist, or none is declared and there is no `nn.Conv2d`.
    """
    declared = getattr(model, "cam_layer", None)
    if isinstance(declared, str):
        layers = dict(model.named_modules())
        if declared not in layers:
            raise unknown_name(f"layer of {type(model).__name__} (its cam_layer):", declared, layers)
        return layers[declared]
    if isinstance(declared, nn.Module):
        return declared
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions:
        raise InputError(
            f"{type(model).__name__} has no convolution for CAM methods to look at; set model.cam_layer "
            "to the name of the layer they should use, or choose a method that needs none, such as 'saliency'"
        )
    return convolutions[-1]
