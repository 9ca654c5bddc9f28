"""Fold batch normalisation into the convolution or linear layer before it, in a copy of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saliency_lab._common.copying import copy_model
from saliency_lab._common.inference import float64_device

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


def fold_batch_norm(model: nn.Module, image: Tensor, run: Callable[[nn.Module, Tensor], object]) -> int:
    """Fold the batch normalisations of a model in eval mode into the layers before them, in place.

    Which layer comes before a normalisation is read from one pass: `run(model, image)`. A pair is folded if
    each of the two ran once, the normalisation received exactly what the layer returned, and no other module
    has the layer's weights. What else reads the layer's output is not seen, so the caller must compare the
    outputs with those of the original.

    Parameters
    ----------
    model : nn.Module
        A copy that the caller may change.
    image : Tensor
        Images (n, C, H, W) for the pass.
    run : callable
        Runs the model on images.

    Returns
    -------
    int
        How many normalisations were folded.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    >>> fold_batch_norm(net, torch.rand(1, 1, 4, 4), lambda model, image: model(image))
    1
    >>> net[1]
    Identity()
    """
    pairs = _pairs(model, image, run)
    names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(False))
    folded = 0
    for layer, norm in pairs:
        if any(owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
            continue
        _fold(layer, norm)
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, _rest(norm))
        folded += 1
    return folded


def copy_for_evaluation(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parameters take no gradient."""
    return copy_model(model).eval().requires_grad_(False)


def _pairs(
    model: nn.Module, image: Tensor, run: Callable[[nn.Module, Tensor], object]
) -> list[tuple[nn.Module, nn.Module]]:
    """A layer and the normalisation of its output, where both ran once in the pass."""
    produced: dict[int, tuple[nn.Module, Tensor, int]] = {}  # holds the tensors, so that no id comes twice
    ran: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(layer: nn.Module, given: Any, output: object) -> None:
        ran[layer] += 1
        if isinstance(output, Tensor):
            produced[id(output)] = layer, output, output._version

    def before(norm: nn.Module, given: tuple[Any, ...]) -> None:
        ran[norm] += 1
        producer = produced.get(id(given[0])) if given else None
        if producer is not None and producer[1]._version == producer[2]:
            pairs.append((producer[0], norm))

    handles = []
    for module in model.modules():
        if type(module) in _FOLDABLE:
            handles.append(module.register_forward_hook(after))
        elif is_frozen_norm(module):
            handles.append(module.register_forward_pre_hook(before))
    try:
        run(model, image)
    finally:
        for handle in handles:
            handle.remove()
    layers = Counter(layer for layer, _ in pairs)
    return [(a, b) for a, b in pairs if ran[a] == ran[b] == layers[a] == 1]


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module normalises by statistics that do not depend on the batch (in eval mode)."""
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None and module.running_var is not None
    buffers = dict(module.named_buffers(recurse=False))
    return type(module).__name__ == "FrozenBatchNorm2d" and {"running_mean", "running_var"} <= buffers.keys()


def _fold(layer: Any, norm: Any) -> None:
    """Set W′ = γ/√(σ² + ε) · W and b′ = γ/√(σ² + ε) · (b − μ) + β, computed in float64 where there is one."""
    precise = float64_device(layer.weight.device)
    kept = layer.weight
    weight, mean, var = (
        each.detach().to(precise).double() for each in (kept, norm.running_mean, norm.running_var)
    )
    gamma, beta, bias = (
        empty if each is None else each.detach().to(precise).double()
        for each, empty in ((norm.weight, 1.0), (norm.bias, 0.0), (layer.bias, 0.0))
    )
    scale = gamma * (var + norm.eps).rsqrt()
    if isinstance(layer, _TRANSPOSED):  # the weight is (in, out / groups, …)
        grouped = (
            weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        )  # (out, in / groups, …)
        grouped = grouped * scale.reshape(-1, *[1] * (grouped.ndim - 1))
        weight = grouped.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    else:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    parts = weight, (bias - mean) * scale + beta
    layer.weight, layer.bias = (nn.Parameter(part.to(kept), requires_grad=False) for part in parts)


def _rest(norm: nn.Module) -> nn.Module:
    """What a normalisation does besides normalising: timm's also hold an activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return nn.Sequential(*modules) if modules else nn.Identity()
