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
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.rectifier import guided_gradient
from saliency_lab.attribution.task import Task
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


def activations_and_gradients(task: Task, points: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's output at k·n inputs (k·n, D, h, w), the score's gradient there, and the scores (k·n,).

    Tokens (k·n, T, D) of a transformer are put back on their square grid, without the class token.

    Raises
    ------
    InputError
        If the layer is not passed exactly once, or its output is no feature map.
    """
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        caught.append(output)
        return output.clone()  # so that an in-place operation behind the layer leaves what was caught alone

    handle = layer.register_forward_hook(catch)
    try:
        with torch.enable_grad():
            scores = task.at(points).score(points.detach().requires_grad_(True))
            total = scores.sum()
    finally:
        handle.remove()
    if len(caught) != 1 or not isinstance(caught[0], Tensor):
        raise InputError(
            f"the layer {type(layer).__name__} is used {len(caught)} times in one forward pass, or returns "
            "no tensor; name another by layer=..."
        )
    if not scores.requires_grad or caught[0].grad_fn is None:
        raise InputError(f"the score does not depend on the layer {type(layer).__name__}; name another")
    (gradient,) = torch.autograd.grad(total, caught[0])
    return _as_map(caught[0].detach()), _as_map(gradient), scores.detach()


def _as_map(tokens: Tensor) -> Tensor:
    if tokens.ndim == 4:
        return tokens
    side = math.isqrt(tokens.shape[1]) if tokens.ndim == 3 else 0
    if tokens.ndim != 3 or tokens.shape[1] - side * side not in (0, 1):
        raise InputError(
            f"the layer's output has the shape {tuple(tokens.shape)}, but a feature map (N, D, h, w) is "
            "needed, or tokens (N, T, D) on a square grid; name another layer by layer=..."
        )
    grid = tokens[:, tokens.shape[1] - side * side :].transpose(1, 2)
    return grid.reshape(len(tokens), -1, side, side)


def enlarge(coarse: Tensor, x: Tensor, interpolation: Interpolation) -> Tensor:
    """A map (n, 1, h, w) at the images' size, the same in every channel."""
    aligned = {} if interpolation == "nearest" else {"align_corners": False}
    return F.interpolate(coarse, size=x.shape[2:], mode=interpolation, **aligned).expand_as(x).clone()


def cam(task: Task, settings: LayerSettings) -> Tensor:
    """Grad-CAM's map (n, 1, h, w) at the layer's own size."""
    layer = find_layer(task.model, settings.layer)
    activations, gradients, _ = activations_and_gradients(task, task.x, layer)
    coarse = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
    return coarse.relu() if settings.relu else coarse


@method(
    "grad_cam",
    family="layer",
    passes="1 forward, 1 backward to the layer",
    reference="Selvaraju et al., ICCV 2017",
    settings=LayerSettings,
)
def grad_cam(task: Task, settings: LayerSettings) -> Explained:
    """Channels of a layer weighted by their mean gradient and summed; the same value in every channel."""
    return enlarge(cam(task, settings), task.x, settings.interpolation), None


@method(
    "guided_grad_cam",
    family="layer",
    passes="2 forward, 2 backward",
    reference="Selvaraju et al., ICCV 2017",
    settings=LayerSettings,
)
def guided_grad_cam(task: Task, settings: LayerSettings) -> Explained:
    """Guided back-propagation times Grad-CAM."""
    return guided_gradient(task) * enlarge(cam(task, settings), task.x, settings.interpolation), None


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
def layer_conductance(task: Task, settings: ConductanceSettings) -> Explained:
    """Σₖ ∂f/∂a(xₖ) · (a(xₖ₊₁) − a(xₖ)) for a layer's units a, summed over its channels, then enlarged."""
    layer, base = find_layer(task.model, settings.layer), resolve_baseline(settings.baseline, task)
    previous, slope, coarse = (torch.empty(0) for _ in range(3))
    for step in range(settings.steps + 1):
        point = base + step / settings.steps * (task.x - base)
        activations, gradients, _ = activations_and_gradients(task, point, layer)
        if step == 0:
            coarse = torch.zeros_like(activations[:, :1])
        else:
            coarse += (slope * (activations - previous)).sum(1, keepdim=True)
        previous, slope = activations, gradients
    return enlarge(coarse, task.x, settings.interpolation), None
