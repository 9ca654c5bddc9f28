"""The trunk of a network: its layers before the first one whose output depends on train or eval mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import takewhile

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from saliency_lab._common.threads import HOOKS
from saliency_lab.models.convnets import ConvNet
from saliency_lab.models.layers import Normalised
from saliency_lab.training.layout import convert_gradient

Part = Callable[[Tensor], Tensor]

_MODAL = (
    _DropoutNd,
    _NormBase,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.RNNBase,
    nn.MultiheadAttention,
)


def mode_matters(net: nn.Module) -> bool:
    """Return whether train and eval mode may give different outputs.

    They do not for layers of `torch.nn` without dropout, batch statistics, randomness or hooks, and for the
    architectures of this package that consist of them. For any other class the answer is True.
    """
    return not all(_mode_free(module) for module in net.modules())


def _mode_free(module: nn.Module) -> bool:
    if not _known(module) or _hooked(module):
        return False
    return not isinstance(module, _MODAL) or (isinstance(module, _DropoutNd) and module.p == 0)


def _known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.", "saliency_lab.models."))


def _hooked(module: nn.Module) -> bool:
    return any(hook is not convert_gradient for name in HOOKS for hook in getattr(module, name).values())


def trunk_and_head(net: nn.Module) -> tuple[list[Part], list[Part]]:
    """Cut `net` in two: `run(head, run(trunk, x))` is `net(x)`, and the trunk is one function in either mode.

    The head is empty if the mode does not matter. The trunk is empty if the first part depends on the mode,
    if `net` cannot be split (see `parts`), or if a layer of the head may work in place and so overwrite the
    output of the trunk: one that is marked so, has hooks, or is of an unknown class.
    """
    chain = parts(net)
    trunk = list(takewhile(lambda part: not (isinstance(part, nn.Module) and mode_matters(part)), chain))
    head = chain[len(trunk) :]
    layers = [layer for part in head if isinstance(part, nn.Module) for layer in part.modules()]
    if any(getattr(layer, "inplace", False) or not _known(layer) or _hooked(layer) for layer in layers):
        return [], chain
    return trunk, head


def run(chain: Sequence[Part], x: Tensor) -> Tensor:
    """Apply the parts of `chain` to `x`, one after another."""
    return reduce(lambda value, part: part(value), chain, x)


def parts(net: nn.Module) -> list[Part]:
    """Return functions whose composition is `net`, or `[net]` if it cannot be split.

    `nn.Sequential`, `Normalised` and the convolutional networks of this package can be split, unless they
    have hooks, which only a call of the whole module runs. Subclasses may have another `forward` and are not
    split.
    """
    if _hooked(net):
        return [net]
    if type(net) is nn.Sequential:
        return [part for child in net for part in parts(child)]
    if type(net) is Normalised:
        return [net.normalise, *parts(net.net)]
    if type(net) is ConvNet:
        return [*parts(net.features), nn.Flatten(), *parts(net.classifier)]
    return [net]
