"""What a layer returns, its gradient, and its map at the size of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency_lab._common.calls import check_visible
from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.threads import in_this_thread
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.positions import Positions, lies_elsewhere, marks, reached
from saliency_lab.models.cam_layer import Arrangement, Execution, default_layer

Interpolation = Literal["bilinear", "nearest"]

LayerSpec: TypeAlias = str | nn.Module | None
"""A module of the network or its name, such as "net.layer4"; None lets the execution decide."""


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module of that name."""
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layer", name, filter(None, modules))  # the model itself has no name
    return modules[name]


def layer_name(model: nn.Module, layer: LayerSpec, image: Tensor) -> str:
    """Return the name of the layer that was asked for, or of the default one.

    Raises
    ------
    InputError
        If it is no module of the model, or its tokens are not in the order of the image's rows.
    """
    check_visible(model, "a method of one layer")
    name = _named(model, layer, image)
    known = _IN_ROWS.setdefault(model, set())
    if (name, image.shape[1:]) not in known:
        _check_rows(model, name, image)
        known.add((name, image.shape[1:]))
    return name


def _named(model: nn.Module, layer: LayerSpec, image: Tensor) -> str:
    if layer is None:
        return default_layer(model, image)
    if isinstance(layer, str):
        find_layer(model, layer)
        return layer
    for name, module in model.named_modules():
        if module is layer:
            return name
    raise InputError(
        f"layer={type(layer).__name__}(…) is no module of {type(model).__name__}; give one of its modules, "
        "such as model.layer4, or its name"
    )


_IN_ROWS: WeakKeyDictionary[nn.Module, set[tuple[str, torch.Size]]] = WeakKeyDictionary()
"""Layers that were checked, and the shape of the images."""


def _check_rows(model: nn.Module, name: str, image: Tensor) -> None:
    """Refuse a layer whose positions are ordered in another way than row by row.

    Sets of positions are followed back to the image (1, C, H, W), and must depend on the pixels there. Where
    attention mixed positions before, they are followed around it; where nothing leads around, through it.
    """
    for execution in (Positions(image), Execution(image)):
        output, arrangement, point = _output(model, name, image, execution)
        if not isinstance(output, Tensor) or arrangement is None:
            return  # the method itself refuses it
        if not output.requires_grad:
            continue
        followed = False
        for mark in marks(arrangement.grid):
            start = torch.zeros_like(output)
            arrangement.to_map(start).masked_fill_(mark.to(start.device), torch.nan)
            pixels = reached(output, point, start)[0].any(0)
            followed = followed or bool(pixels.any())
            if lies_elsewhere(pixels, mark):
                raise InputError(
                    f"the positions of the layer '{name}' are not in the order of the image's rows, so no "
                    "map can be made of them; name another layer by layer=..."
                )
        if followed:
            return


def _output(
    model: nn.Module, name: str, image: Tensor, execution: Execution
) -> tuple[object, Arrangement | None, Tensor]:
    """Return what a layer returns for an image, its arrangement, and the image with a gradient.

    The output is None if the layer does not run exactly once.
    """
    caught: list[tuple[object, Arrangement | None]] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...], output: object) -> Tensor | None:
        caught.append((output, execution.arrangement(output, 1)))
        return output.clone() if isinstance(output, Tensor) else None  # what follows may change it in place

    point = image.detach().clone().requires_grad_(True)
    hook = find_layer(model, name).register_forward_hook(in_this_thread(catch))
    with hook, torch.enable_grad(), execution:
        model(point * 1.0)
    return (*(caught[0] if len(caught) == 1 else (None, None)), point)


@dataclass(frozen=True)
class LayerValues:
    """The output of a layer in one pass over n points, its arrangement, and the scores (n,) there."""

    name: str
    output: Tensor
    arrangement: Arrangement
    scores: Tensor
    _graph: tuple[Tensor, Tensor]
    _batch: Batch

    @property
    def maps(self) -> Tensor:
        """The output as maps (n, D, h, w)."""
        return self.arrangement.to_map(self.output)

    def gradients(self) -> Tensor:
        """Return the gradient of each score with respect to the maps, (n, D, h, w).

        Raises
        ------
        InputError
            If there is none.
        """
        output, scores = self._graph
        gradient = None
        if scores.requires_grad and output.requires_grad:
            (gradient,) = torch.autograd.grad(scores, output, torch.ones_like(scores), allow_unused=True)
        if gradient is None:
            self._batch.gradient(self._batch.x)  # refuses a model whose logits have no gradient at all
            raise InputError(
                f"the score does not depend on the layer '{self.name}'; name another by layer=..."
            )
        return self.arrangement.to_map(gradient)


def read_layer(batch: Batch, points: Tensor, layer: LayerSpec) -> LayerValues:
    """Run the model on k·n points (as in `Batch.at`), and return what the layer, given by its name, returns.

    Raises
    ------
    InputError
        If the layer does not run exactly once, or its output has no positions.
    """
    name = str(layer)
    module = find_layer(batch.model, name)
    execution = Execution(points)
    caught: list[tuple[object, Arrangement | None]] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...], output: object) -> Tensor | None:
        caught.append((output, execution.arrangement(output, len(points))))
        # a copy, so that an in-place operation that follows leaves what was caught alone
        return output.clone() if isinstance(output, Tensor) else None

    with module.register_forward_hook(in_this_thread(catch)), torch.enable_grad(), execution:
        scores = batch.at(points).score(points.detach().requires_grad_(True))
    title = f"the layer '{name}' ({type(module).__name__})"
    if len(caught) != 1:
        raise InputError(f"{title} runs {len(caught)} times in one forward pass; name another by layer=...")
    output, arrangement = caught[0]
    if not isinstance(output, Tensor):
        raise InputError(
            f"{title} returns a {type(output).__name__}, not a tensor; name another by layer=..."
        )
    if arrangement is None:
        raise InputError(
            f"{title} returns a tensor of shape {tuple(output.shape)}, but a feature map (N, D, h, w) is "
            "needed, or tokens (N, T, D) or (T, N, D) on a grid of the proportions of images "
            f"{tuple(points.shape[2:])}; name another layer by layer=..."
        )
    if output.ndim == 3 and len(output) == output.shape[1] > 1:  # as many images as tokens: which are first?
        arrangement = read_layer(batch.only(0), points[:1], name).arrangement
    return LayerValues(name, output.detach(), arrangement, scores.detach(), (output, scores), batch)


def enlarge(coarse: Tensor, x: Tensor, interpolation: Interpolation) -> Tensor:
    """Return a map (n, 1, h, w) at the size of the images, the same in every channel."""
    aligned = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(coarse, size=x.shape[2:], mode=interpolation, **aligned).expand_as(x).clone()
