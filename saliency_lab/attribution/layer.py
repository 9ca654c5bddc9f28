"""Methods that look at one layer: Grad-CAM, guided Grad-CAM, layer conductance."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab._common.settings import Settings
from saliency_lab.attribution.baseline import Baseline, resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.rectifier import guided_gradient
from saliency_lab.models import cam_layer

Interpolation = Literal["bilinear", "nearest"]


class LayerSettings(Settings):
    """`layer`: a module's name, such as "net.layer4" (default: what `saliency_lab.models.cam_layer` says).

    The coarse map is enlarged by `interpolation`; with `relu` only what raises the score is kept.
    """

    layer: str | None = None
    relu: bool = True
    interpolation: Interpolation = "bilinear"


def find_layer(model: nn.Module, name: str | None) -> nn.Module:
    """The module of that name, or the layer CAM methods look at by default."""
    if name is None:
        return cam_layer(model)
    modules = dict(model.named_modules())
    if name not in modules:
        raise unknown_name("layer", name, filter(None, modules))  # the model itself has no name
    return modules[name]


def activations_and_gradients(batch: Batch, points: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's output at k·n inputs (k·n, D, h, w), and the score's gradient there.

    Tokens (k·n, T, D) of a transformer are put back on their grid, without the class token, and the channels
    of a map (k·n, h, w, D) in front.

    Raises
    ------
    InputError
        If the layer is not passed exactly once, its output is no feature map, or the score has no gradient
        there.
    """
    caught: list[object] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> Tensor | None:
        caught.append(output)
        # a copy, so that an in-place operation behind the layer leaves what was caught alone
        return output.clone() if isinstance(output, Tensor) else None

    handle = layer.register_forward_hook(catch)
    try:
        with torch.enable_grad():
            scores = batch.at(points).score(points.detach().requires_grad_(True))
            total = scores.sum()
    finally:
        handle.remove()
    output = caught[0] if len(caught) == 1 else None
    if not isinstance(output, Tensor):
        times = f"is used {len(caught)} times in one forward pass"
        does = times if len(caught) != 1 else f"returns a {type(output).__name__}, not a tensor"
        raise InputError(f"the layer {type(layer).__name__} {does}; name another by layer=...")
    gradient = None
    if scores.requires_grad and output.requires_grad:
        (gradient,) = torch.autograd.grad(total, output, allow_unused=True)
    if gradient is None:
        batch.gradient(points)  # refuses a model whose logits have no gradient at all
        raise InputError(f"the score does not depend on the layer {type(layer).__name__}; name another")
    features, slope = (_as_map(each, batch.model, points) for each in (output.detach(), gradient))
    return features, slope


def _as_map(output: Tensor, model: nn.Module, x: Tensor) -> Tensor:
    """A layer's output for the images `x`, or the gradient there, as a feature map (N, D, h, w)."""
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if _channels_last(output, model, x) else output
    count = output.shape[1] if output.ndim == 3 else 0
    grid = patch_grid(count, x) or patch_grid(count - 1, x)
    if grid is None:
        raise InputError(
            f"the layer's output has the shape {tuple(output.shape)}, but a feature map (N, D, h, w) is "
            f"needed, or tokens (N, T, D) on a grid of the proportions of images {tuple(x.shape[2:])}; name "
            "another layer by layer=..."
        )
    patches = output[:, count - math.prod(grid) :]  # without the class token, which comes first
    return patches.transpose(1, 2).unflatten(2, grid)


def _channels_last(output: Tensor, model: nn.Module, x: Tensor) -> bool:
    """Whether a layer's output is (N, h, w, D): some layer of the model works along D, and the grid fits."""
    first, second, third = output.shape[1:]
    along = {
        part.in_features if isinstance(part, nn.Linear) else part.normalized_shape[-1]
        for part in model.modules()
        if isinstance(part, nn.Linear | nn.LayerNorm | nn.RMSNorm)
    }
    return third in along and _may_cover(first, second, x) and not _may_cover(second, third, x)


def _may_cover(rows: int, columns: int, x: Tensor) -> bool:
    """Whether strides, rounded either way, can take the images' height and width to `rows` and `columns`."""
    height, width = x.shape[2:]
    return (rows - 1) * width < (columns + 1) * height and (columns - 1) * height < (rows + 1) * width


def patch_grid(count: int, x: Tensor) -> tuple[int, int] | None:
    """Rows and columns of `count` patches over images (n, C, H, W), or None if no grid has as many.

    Of the images' proportions H : W; or those that square patches leave which do not fit the images evenly.
    """
    height, width = x.shape[2:]
    common = math.gcd(height, width)
    even = [(height // common * k, width // common * k) for k in range(1, common + 1)]
    cut = [(height // side, width // side) for side in range(1, min(height, width) + 1)]
    return next((grid for grid in even + cut if math.prod(grid) == count), None)


def enlarge(coarse: Tensor, x: Tensor, interpolation: Interpolation) -> Tensor:
    """A map (n, 1, h, w) at the images' size, the same in every channel."""
    aligned = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(coarse, size=x.shape[2:], mode=interpolation, **aligned).expand_as(x).clone()


def cam(batch: Batch, settings: LayerSettings) -> Tensor:
    """Grad-CAM's map (n, 1, h, w) at the layer's own size."""
    layer = find_layer(batch.model, settings.layer)
    activations, gradients = activations_and_gradients(batch, batch.x, layer)
    coarse = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
    return coarse.relu() if settings.relu else coarse


@method(
    "grad_cam",
    family="layer",
    passes="1 forward, 1 backward to the layer",
    reference="Selvaraju et al., ICCV 2017",
    settings=LayerSettings,
)
def grad_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Channels of a layer weighted by their mean gradient and summed; the same value in every channel."""
    return enlarge(cam(batch, settings), batch.x, settings.interpolation), None


@method(
    "guided_grad_cam",
    family="layer",
    passes="2 forward, 2 backward",
    reference="Selvaraju et al., ICCV 2017",
    settings=LayerSettings,
)
def guided_grad_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Guided back-propagation times Grad-CAM."""
    return guided_gradient(batch) * enlarge(cam(batch, settings), batch.x, settings.interpolation), None


class ConductanceSettings(Settings):
    """As for `grad_cam`, with `steps` on the line from the `baseline` to the image."""

    layer: str | None = None
    steps: int = Field(20, ge=2)
    baseline: Baseline = "zero"
    interpolation: Interpolation = "bilinear"


@method(
    "layer_conductance",
    family="layer",
    passes="(steps + 1) × (1 forward, 1 backward to the layer)",
    reference="Dhamdhere et al., ICLR 2019; Shrikumar et al., arXiv:1807.09946",
    settings=ConductanceSettings,
)
def layer_conductance(batch: Batch, settings: ConductanceSettings) -> Explained:
    """Σₖ ∂f/∂a(xₖ) · (a(xₖ₊₁) − a(xₖ)) for a layer's units a, summed over its channels, then enlarged."""
    layer, base = find_layer(batch.model, settings.layer), resolve_baseline(settings.baseline, batch)
    previous, slope, coarse = (torch.empty(0) for _ in range(3))
    for step in range(settings.steps + 1):
        point = base + step / settings.steps * (batch.x - base)
        activations, gradients = activations_and_gradients(batch, point, layer)
        if step == 0:
            coarse = torch.zeros_like(activations[:, :1])
        else:
            coarse += (slope * (activations - previous)).sum(1, keepdim=True)
        previous, slope = activations, gradients
    return enlarge(coarse, batch.x, settings.interpolation), None
