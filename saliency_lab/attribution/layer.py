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
    """Refuse a layer of tokens that are ordered in another way than row by row.

    Two tokens are followed back to the image (1, C, H, W): each must depend on pixels at its own position.
    """
    execution = Execution(image)
    caught: list[tuple[object, Arrangement | None]] = []
    point = image.detach().clone().requires_grad_(True)
    note = in_this_thread(lambda *given: caught.append((given[-1], execution.arrangement(given[-1], 1))))
    with find_layer(model, name).register_forward_hook(note), torch.enable_grad(), execution:
        model(point * 1.0)
    output, arrangement = caught[0] if len(caught) == 1 else (None, None)
    if not isinstance(output, Tensor) or not output.requires_grad:
        return  # the method itself refuses it
    if arrangement is None or not arrangement.tokens:
        return  # it has rows of its own
    rows, columns = arrangement.grid
    height, width = image.shape[2:]
    for row, column in ((rows // 3, columns // 4), (rows * 3 // 4, columns * 2 // 3)):
        start = torch.zeros_like(output)
        arrangement.to_map(start)[:, :, row, column] = torch.nan
        pixels = reached(output, point, start)[0].any(0)
        own = pixels[
            row * height // rows : -(-(row + 1) * height // rows),
            column * width // columns : -(-(column + 1) * width // columns),
        ]
        if pixels.any() and not own.any():
            raise InputError(
                f"the tokens of the layer '{name}' are not in the order of the image's rows, so no map can "
                "be made of them; name another layer by layer=..."
            )


def reached(outputs: Tensor, at: Tensor, start: Tensor) -> Tensor:
    """Return which entries of `at` the entries of `outputs` depend on in which `start` is NaN.

    NaN · 0 is NaN, so this is dependence by the structure of the network, whatever its weights are.
    """
    with torch.autograd.set_detect_anomaly(False):  # which refuses NaN
        (gradient,) = torch.autograd.grad(outputs, at, start, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at, dtype=torch.bool) if gradient is None else gradient.isnan()


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
