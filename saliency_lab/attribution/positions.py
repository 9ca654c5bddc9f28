"""Whether the positions of a layer's output, or the tokens of an attention, lie over the image row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saliency_lab._common.calls import (
    CONTRACTIONS,
    ELEMENTWISE,
    RELU,
    Call,
    calls,
    deliver,
    depending,
    tensors_in,
)
from saliency_lab.attribution.fused_attention import FUSED
from saliency_lab.models.cam_layer import Execution

_LINEAR = calls("linear")
_ALONE = RELU | ELEMENTWISE | calls("layer_norm", "group_norm", "instance_norm", "rms_norm")
_MOST_MISSED = 0.25  # a network may crop or pad images; another order misses half of some mark


def reached(outputs: Tensor, at: Tensor, start: Tensor) -> Tensor:
    """Return which entries of `at` the entries of `outputs` depend on in which `start` is NaN.

    NaN · 0 is NaN, so this is dependence by the structure of the network, whatever its weights are.
    """
    with torch.autograd.set_detect_anomaly(False):  # which refuses NaN
        (gradient,) = torch.autograd.grad(outputs, at, start, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at, dtype=torch.bool) if gradient is None else gradient.isnan()


def marks(grid: tuple[int, int]) -> Iterator[Tensor]:
    """Yield sets of positions, bool (rows, columns), that no two positions share all of.

    They are the rows, and the columns, whose number has a certain binary digit.

    >>> [mark.int().tolist() for mark in marks((2, 2))]
    [[[0, 0], [1, 1]], [[0, 1], [0, 1]]]
    """
    rows, columns = grid
    for numbers in (torch.arange(rows)[:, None], torch.arange(columns)[None]):
        for digit in range(int(numbers.max()).bit_length()):
            yield ((numbers >> digit) % 2 == 1).expand(rows, columns)


def lies_elsewhere(pixels: Tensor, mark: Tensor) -> bool:
    """Return whether the marked positions depend on `pixels` (H, W), and these are others than their own."""
    covered = (
        F.adaptive_max_pool2d(pixels[None].to(torch.float32), tuple(mark.shape))[0].bool().to(mark.device)
    )
    missed = int((mark & ~covered).sum())
    return bool(pixels.any()) and missed > _MOST_MISSED * int(mark.sum())


class Positions(Execution):
    """Runs a network so that a position can be followed past what mixes positions.

    A product of activations, such as attention, and a linear layer over positions return a constant here,
    so that only what leads around them is followed; of fused attention, the queries are followed as well.
    Functions of one value and normalisations pass on dependence at each value, also where a derivative is 0.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__(images)
        self.constant: dict[int, Tensor] = {}  # by id: what depends on the image, and is taken as constant

    def compute(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the call returns, with another path back to the image."""
        inputs = depending(args, kwargs)
        if func in FUSED and inputs:
            output = func(*args, **kwargs)
            mixed, *weights = output if isinstance(output, tuple) else (output,)
            query = args[0] if args else kwargs["query"]
            followed = mixed.detach() + 0 * query.sum(-1, keepdim=True)
            self._keep(weights)
            return (followed, *weights) if weights else followed
        if func in _ALONE and len(inputs) == 1 and inputs[0] is args[0]:
            path = 0 * args[0].clone().nan_to_num(0, 0, 0)  # it may be changed in place
            value = func(args[0].detach().clone(), *args[1:], **kwargs)
            return deliver(value.detach() + path, func, args, kwargs)
        constant = [each for each in tensors_in([args, kwargs]) if id(each) in self.constant]
        output = func(*args, **kwargs)
        if self._is_across(func, args) or (func in CONTRACTIONS and len(inputs) + len(constant) > 1):
            output = output.detach()
            self._keep(output)
        elif constant:
            self._keep([each for each in tensors_in(output) if not each.requires_grad])
        return output

    def _is_across(self, func: Call, args: tuple[Any, ...]) -> bool:
        """Return whether a linear layer works along another dimension than that of the channels."""
        return func in _LINEAR and self.channel_dim(args[0]) not in (None, args[0].ndim - 1)

    def _keep(self, tensors: object) -> None:
        self.constant |= {id(each): each for each in tensors_in(tensors)}
