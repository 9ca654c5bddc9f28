"""Fold batch normalisation into the convolution or linear layer before it, in a copy of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from saliency_lab._common.calls import Call, Rule, calls, tensors_in
from saliency_lab._common.copying import copy_model, named_tensors
from saliency_lab._common.inference import float64_device

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


def fold_batch_norm(model: nn.Module, image: Tensor, run: Callable[[nn.Module, Tensor], object]) -> int:
    """Fold the batch normalisations of a model in eval mode into the layers before them, in place.

    Which layer comes before a normalisation is read from one pass: `run(model, image)`. A pair is folded if
    each of the two ran once, the normalisation received exactly what the layer returned and nothing else
    reads it, and no other module has the layer's weights. Nothing is folded if the pass looks at values, as
    to take one branch or another, because other images could take other ones. The caller must compare the
    outputs with those of the original all the same: compiled code hides its calls.

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
    return len(_fold_pairs(model, image, run))


def _fold_pairs(
    model: nn.Module, image: Tensor, run: Callable[[nn.Module, Tensor], object]
) -> list[tuple[str, str]]:
    """Fold, and return the names of the layers and of their normalisations."""
    pairs = _pairs(model, image, run)
    names = {module: name for name, module in model.named_modules(remove_duplicate=False)}
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(False))
    folded = []
    for layer, norm in pairs:
        if any(owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
            continue
        weight, bias = _folded(layer, norm)
        layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, _rest(norm))
        folded.append((names[layer], names[norm]))
    return folded


class FoldedCopy:
    """A copy of a model in eval mode, with folded batch normalisation, that follows the model's weights.

    `make` returns it, or None if nothing can be folded or the copy would compute something else.
    """

    def __init__(self, model: nn.Module, net: nn.Module, pairs: list[tuple[str, str]]) -> None:
        self._model, self._net = model, net
        modules = dict(model.named_modules(remove_duplicate=False))
        self._layers: list[tuple[Any, Any, Any]] = [
            (net.get_submodule(layer), modules[layer], modules[norm]) for layer, norm in pairs
        ]
        folded = {f"{layer}.{part}" for layer, _ in pairs for part in ("weight", "bias")}
        sources = named_tensors(model)
        self._others = [
            (each, sources[name]) for name, each in named_tensors(net).items() if name not in folded
        ]
        self._versions: list[int] = []

    @classmethod
    def make(
        cls, model: nn.Module, images: Tensor, run: Callable[[nn.Module, Tensor], Tensor]
    ) -> FoldedCopy | None:
        """Copy and fold a model, and verify the copy on a few images (n, C, H, W) by `run(model, images)`.

        The statistics of a new network are 0 and 1, for which a wrong fold would not be seen. So a copy with
        random ones is folded first, in float64, and must compute what it computes unfolded.
        """
        device = float64_device(images.device)
        exact = images.to(device).double()
        try:
            trial = _randomise_norms(copy_for_evaluation(model).to(device).double())
            before = _versions(trial)
            expected = run(trial, exact.clone())
            if _versions(trial) != before:
                return None  # it changes itself in eval mode
            if not _fold_pairs(trial, exact[:1].clone(), run):
                return None
            if not torch.allclose(run(trial, exact.clone()), expected, rtol=1e-6, atol=1e-9):
                return None
            net = copy_for_evaluation(model)
            return cls(model, net, _fold_pairs(net, images[:1].clone(), run))
        except Exception:  # whatever a model raises in a copy, it is used as it is
            return None

    def follow(self) -> nn.Module:
        """Compute the copy's weights from those that the model has now, if they changed; return the copy."""
        versions = _versions(self._model)
        if versions != self._versions:
            with torch.no_grad():
                for target, layer, norm in self._layers:
                    weight, bias = _folded(layer, norm)
                    target.weight.copy_(weight)
                    target.bias.copy_(bias)
                for mine, source in self._others:
                    mine.copy_(source)
            self._versions = versions
        return self._net


def _versions(model: nn.Module) -> list[int]:
    """How often each parameter and buffer was changed in place."""
    return [each._version for each in named_tensors(model).values()]


def _randomise_norms(model: nn.Module) -> nn.Module:
    """Give batch normalisations random statistics and weights, in place."""
    source = torch.Generator().manual_seed(0)
    for module in model.modules():
        if is_frozen_norm(module):
            for name, low in (("running_mean", -0.5), ("running_var", 0.5), ("weight", 0.5), ("bias", -0.5)):
                part = getattr(module, name, None)
                if part is not None:
                    draws = torch.rand(part.shape, generator=source, dtype=torch.float64)
                    part.detach().copy_(low + draws)
    return model


def copy_for_evaluation(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose parameters take no gradient."""
    return copy_model(model).eval().requires_grad_(False)


def _pairs(
    model: nn.Module, image: Tensor, run: Callable[[nn.Module, Tensor], object]
) -> list[tuple[nn.Module, nn.Module]]:
    """A layer and the normalisation of its output, which nothing else reads, where both ran once."""
    reads = _Reads()
    produced: dict[int, tuple[nn.Module, Tensor, int]] = {}  # holds the tensors, so that no id comes twice
    ran: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(layer: nn.Module, given: Any, output: object) -> None:
        ran[layer] += 1
        if isinstance(output, Tensor):
            produced[id(output)] = layer, output, output._version
            reads.count[id(output)] = 0  # those of an earlier tensor that had this id

    def before(norm: nn.Module, given: tuple[Any, ...]) -> None:
        ran[norm] += 1
        producer = produced.get(id(given[0])) if given else None
        if producer is not None and producer[1]._version == producer[2]:
            pairs.append((producer[0], norm))

    with ExitStack() as hooks, reads:
        for module in model.modules():
            if type(module) in _FOLDABLE:
                hooks.enter_context(module.register_forward_hook(after))
            elif is_frozen_norm(module):
                hooks.enter_context(module.register_forward_pre_hook(before))
        run(model, image)
    if reads.values:
        return []
    layers = Counter(layer for layer, _ in pairs)
    used = {layer: reads.count[key] for key, (layer, _, _) in produced.items()}
    return [(a, b) for a, b in pairs if ran[a] == ran[b] == layers[a] == used[a] == 1]


class _Reads(Rule):
    """Counts the calls that take each tensor, and notes whether values leave the tensors, as for a branch."""

    _VALUES = calls(
        *("__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__", "item", "tolist"),
        *("numpy", "equal", "allclose", "is_nonzero"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.values = False

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.values = self.values or func in self._VALUES
        output = func(*args, **kwargs)
        if isinstance(output, Tensor | list | tuple):
            self.count.update(id(each) for each in tensors_in((args, kwargs)))
        return output


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether a module normalises by statistics that do not depend on the batch (in eval mode)."""
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None and module.running_var is not None
    buffers = dict(module.named_buffers(recurse=False))
    return type(module).__name__ == "FrozenBatchNorm2d" and {"running_mean", "running_var"} <= buffers.keys()


def _folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """W′ = γ/√(σ² + ε) · W and b′ = γ/√(σ² + ε) · (b − μ) + β, computed in float64 where there is one."""
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
    return weight.to(kept), ((bias - mean) * scale + beta).to(kept)


def _rest(norm: nn.Module) -> nn.Module:
    """What a normalisation does besides normalising: timm's also hold an activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return nn.Sequential(*modules) if modules else nn.Identity()
