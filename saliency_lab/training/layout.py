"""Training in channels_last: keep gradients in that memory layout where another one is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def use_channels_last(net: nn.Module) -> None:
    """Convert a network to channels_last, and the gradients that its max-pooling layers receive.

    A layer that flattens returns a contiguous gradient, for which the backward pass of max-pooling takes
    nearly three times as long. No value changes.
    """
    net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(convert_gradient)


def convert_gradient(module: nn.Module, inputs: Any, output: Tensor) -> None:
    """Convert the gradient of an output in channels_last to that layout; a forward hook."""
    if torch.compiler.is_compiling() or not isinstance(output, Tensor):
        return
    if output.requires_grad and not output.is_contiguous():
        output.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
