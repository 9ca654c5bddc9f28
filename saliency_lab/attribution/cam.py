"""Class activation maps: methods that weight the channels of one layer, and layer conductance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from saliency_lab._common.calls import (
    Call,
    Rule,
    calls,
    check_functions,
    check_visible,
    deliver,
    depending,
    out_of_place,
)
from saliency_lab._common.inference import float64_device
from saliency_lab._common.settings import Settings
from saliency_lab._common.threads import in_this_thread
from saliency_lab.attribution.baseline import Baseline, resolve_baseline
from saliency_lab.attribution.batch import Batch, slope
from saliency_lab.attribution.catalogue import Explained, method
from saliency_lab.attribution.layer import (
    Interpolation,
    LayerSpec,
    enlarge,
    find_layer,
    layer_name,
    read_layer,
)
from saliency_lab.attribution.lrp import ADDITION, linear_call
from saliency_lab.attribution.rectifier import guided_gradient

_EPS = 1e-8  # keeps a division by the range of a constant map finite


class LayerSettings(Settings):
    """`layer`: a module of the network or its name, such as "net.layer4"; chosen from the execution if None.

    The coarse map is enlarged by `interpolation`; with `relu`, only what raises the score is kept.
    """

    layer: LayerSpec = None
    relu: bool = True
    interpolation: Interpolation = "bilinear"


def choose_layer(model: nn.Module, image: Tensor, settings: Any) -> Any:
    """Return the settings with the name of the layer, chosen from the execution if none was given."""
    return settings.model_copy(update={"layer": layer_name(model, settings.layer, image)})


layer_method = partial(method, family="layer", settings=LayerSettings, resolve=choose_layer)
ONE_PASS = "1 forward, 1 backward to the layer"


def _finish(coarse: Tensor, batch: Batch, settings: LayerSettings) -> Explained:
    """Rectify a coarse map (n, 1, h, w) if asked for, and enlarge it."""
    coarse = coarse.relu() if settings.relu else coarse
    return enlarge(coarse, batch.x, settings.interpolation), None


def _read(batch: Batch, settings: LayerSettings) -> tuple[Tensor, Tensor]:
    """Return the layer's activations (n, D, h, w) and the gradient of the score with respect to them."""
    values = read_layer(batch, batch.x, settings.layer)
    return values.maps, values.gradients()


def _weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """Return the sum (n, 1, h, w) over channels of activations, each times its weight or weights."""
    return (weights * activations).sum(1, keepdim=True)


def _grad_cam(batch: Batch, settings: LayerSettings) -> Tensor:
    activations, gradients = _read(batch, settings)
    return _weighted(gradients.mean((2, 3), keepdim=True), activations)


@layer_method("grad_cam", passes=ONE_PASS, reference="Selvaraju et al., ICCV 2017")
def grad_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each channel by the mean of its gradient, and sum; all channels of the map are the same."""
    return _finish(_grad_cam(batch, settings), batch, settings)


@layer_method("guided_grad_cam", passes="2 forward, 2 backward", reference="Selvaraju et al., ICCV 2017")
def guided_grad_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Multiply guided back-propagation by Grad-CAM."""
    return guided_gradient(batch) * _finish(_grad_cam(batch, settings), batch, settings)[0], None


@layer_method("grad_cam_plus_plus", passes=ONE_PASS, reference="Chattopadhay et al., WACV 2018")
def grad_cam_plus_plus(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each channel by its positive gradients, each with the coefficient g² / (2 g² + g³ Σ A)."""
    activations, gradients = _read(batch, settings)
    bottom = 2 + activations.sum((2, 3), keepdim=True) * gradients  # divided by g², which may underflow
    share = (1 / bottom).where((gradients != 0) & (bottom != 0), 0)
    weights = (share * gradients.relu()).sum((2, 3), keepdim=True)
    return _finish(_weighted(weights, activations), batch, settings)


@layer_method("layer_cam", passes=ONE_PASS, reference="Jiang et al., IEEE TIP 2021")
def layer_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each activation by its own positive gradient, and sum over channels; also for early layers."""
    activations, gradients = _read(batch, settings)
    return _finish(_weighted(gradients.relu(), activations), batch, settings)


@layer_method("hires_cam", passes=ONE_PASS, reference="Draelos & Carin, arXiv:2011.08891, 2020")
def hires_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Multiply each activation by its own gradient, and sum over channels."""
    activations, gradients = _read(batch, settings)
    return _finish(_weighted(gradients, activations), batch, settings)


@layer_method("xgrad_cam", passes=ONE_PASS, reference="Fu et al., BMVC 2020")
def xgrad_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each channel by the mean of its gradient, weighted by its activation."""
    activations, gradients = _read(batch, settings)
    total = activations.sum((2, 3), keepdim=True)
    weights = (gradients * activations / (total + 1e-7)).sum((2, 3), keepdim=True)
    return _finish(_weighted(weights, activations), batch, settings)


@layer_method("eigen_cam", passes="1 forward", reference="Muhammad & Yeasin, IJCNN 2020")
def eigen_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Project the activations at each position on their first principal component, whatever the class.

    The sign of a principal component is arbitrary; here the map grows with the length of the activations.
    """
    maps = read_layer(batch, batch.x, settings.layer).maps
    grid = maps.shape[2:]
    rows = maps.to(float64_device(maps.device), torch.float64).flatten(2).transpose(1, 2)  # (n, positions, D)
    centred = rows - rows.mean(1, keepdim=True)
    # NaN, for which the decomposition fails, comes back by `centred`
    component = torch.linalg.svd(centred.nan_to_num(0, 0, 0), full_matrices=False).Vh[:, 0]
    projection = (centred @ component[:, :, None])[:, :, 0]
    lengths = rows.norm(dim=2)
    along = (projection * (lengths - lengths.mean(1, keepdim=True))).sum(1, keepdim=True)
    coarse = (projection * torch.where(along < 0, -1.0, 1.0)).unflatten(1, grid)[:, None]
    return _finish(coarse.to(batch.x), batch, settings)


@layer_method(
    "score_cam", passes="1 + number of channels forward", reference="Wang et al., CVPR workshops 2020"
)
def score_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each channel by the softmax, over channels, of the score with the image masked by it."""
    maps = read_layer(batch, batch.x, settings.layer).maps
    scores = []
    for group in batch.draws(maps.shape[1], backward=False):
        masks = maps[:, group.start : group.stop]
        masks = F.interpolate(masks, size=batch.x.shape[2:], mode="bilinear", align_corners=False)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        masks = ((masks - low) / (high - low + _EPS)).transpose(0, 1)[:, :, None]
        points = (batch.x * masks).flatten(0, 1)
        scores.append(batch.at(points).score(points).reshape(len(group), -1))
    weights = torch.cat(scores).softmax(0).T[:, :, None, None]
    return _finish(_weighted(weights, maps), batch, settings)


@layer_method(
    "ablation_cam", passes="1 + number of channels forward", reference="Ramaswamy & Desai, WACV 2020"
)
def ablation_cam(batch: Batch, settings: LayerSettings) -> Explained:
    """Weight each channel by the fall of the score as the channel is set to zero.

    The paper divides by the score, which scales the map, and turns it around where the score is negative.
    """
    values = read_layer(batch, batch.x, settings.layer)
    channel_dim, batch_dim = values.arrangement.channel_dim, values.arrangement.batch_dim
    output = values.output.movedim(batch_dim, 0)
    channels = output.shape[channel_dim]
    layer, falls = find_layer(batch.model, values.name), []
    for group in batch.draws(channels, backward=False, fast=False):
        outputs = output.expand(len(group), *output.shape).clone()
        for channel, ablated in zip(group, outputs, strict=True):
            ablated.select(channel_dim, channel).zero_()
        points = batch.x.repeat(len(group), 1, 1, 1)
        replace = in_this_thread(lambda *_, outputs=outputs: outputs.flatten(0, 1).movedim(0, batch_dim))
        with layer.register_forward_hook(replace):
            scores = batch.at(points).score(points)
        falls.append(values.scores - scores.reshape(len(group), -1))
    weights = torch.cat(falls).T[:, :, None, None]
    return _finish(_weighted(weights, values.maps), batch, settings)


class _Biases(Rule):
    """Keeps the output of each call that adds constants to channels, and these constants.

    Such calls are convolutions, batch normalisations and, after the first layer, sums with one value per
    channel, of which a frozen batch normalisation consists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[tuple[Tensor, Tensor]] = []
        self.first = True

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.first = self.first and linear_call(func, args, kwargs) is None
        if func in ADDITION and not self.first and len(depending(args, kwargs)) == 1:
            return self._add(func, args, kwargs)
        output = func(*args, **kwargs)
        bias_of = _BIASES.get(func)
        if bias_of is None or output.ndim != 4 or not output.requires_grad:
            return output
        bias = bias_of(*args, **kwargs)
        if bias is None:
            return output
        self.terms.append((bias, output))
        return output.clone()  # so that an in-place operation that follows leaves the kept output alone

    def _add(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add a constant; keep it if it has one value for each channel of an activation (N, C, H, W)."""
        output = out_of_place(func)(*args, **kwargs)
        constant = next((each for each in args if isinstance(each, Tensor) and not each.requires_grad), None)
        if constant is not None and output.ndim == 4:
            shape = (1, output.shape[1], 1, 1)
            if shape[-constant.ndim :] == constant.shape or constant.shape == shape:
                self.terms.append((constant.flatten(), output))
        return deliver(output.clone(), func, args, kwargs)


def _bias_of_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    return bias


def _bias_of_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return bias
    scale = (running_var + eps).rsqrt() * (1.0 if weight is None else weight)
    return (0.0 if bias is None else bias) - running_mean * scale


def _bias_of_torch_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    return _bias_of_batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


_BIASES: dict[Call, Callable[..., Tensor | None]] = {
    **dict.fromkeys(calls("conv2d"), _bias_of_convolution),
    F.batch_norm: _bias_of_batch_norm,
    torch.batch_norm: _bias_of_torch_batch_norm,
}


class FullGradSettings(Settings):
    """The maps of the biases are enlarged by `interpolation`."""

    interpolation: Interpolation = "bilinear"


@method(
    "full_grad",
    family="layer",
    passes="1 forward, 1 backward",
    reference="Srinivas & Fleuret, NeurIPS 2019",
    settings=FullGradSettings,
)
def full_grad(batch: Batch, settings: FullGradSettings) -> Explained:
    """Sum the sizes of input × gradient and of each bias × its gradient, every channel scaled to [0, 1].

    The biases are those of convolutions and batch normalisations, as in the authors' code; on a transformer
    few remain.
    """
    check_visible(batch.model, "full_grad")
    rule, points = _Biases(), batch.x.detach().requires_grad_(True)
    with torch.enable_grad(), rule:
        score = batch.score(points).sum()
    check_functions(score, batch.model, batch.x[:1], "full_grad")
    outputs = [output for _, output in rule.terms]
    gradients = torch.autograd.grad(score, outputs, retain_graph=True, allow_unused=True) if outputs else ()
    total = _scaled(points.detach() * slope(score, points, batch.model))
    for (bias, _), gradient in zip(rule.terms, gradients, strict=True):
        if gradient is not None:
            total = total + enlarge(
                _scaled(bias[:, None, None] * gradient), batch.x[:, :1], settings.interpolation
            )
    return total.expand_as(batch.x).clone(), None


def _scaled(values: Tensor) -> Tensor:
    """Scale the magnitudes of each channel (n, D, h, w) to [0, 1], and sum over channels: (n, 1, h, w)."""
    sizes = values.abs()
    sizes = sizes - sizes.amin((2, 3), keepdim=True)
    return (sizes / (sizes.amax((2, 3), keepdim=True) + 1e-7)).sum(1, keepdim=True)


class ConductanceSettings(Settings):
    """`layer` and `interpolation` are those of `grad_cam`; `steps` is the number of points.

    They lie on the line from the `baseline` to the image.
    """

    layer: LayerSpec = None
    steps: int = Field(20, ge=2)
    baseline: Baseline = "zero"
    interpolation: Interpolation = "bilinear"


@method(
    "layer_conductance",
    family="layer",
    passes="(steps + 1) × (1 forward, 1 backward to the layer)",
    reference="Dhamdhere et al., ICLR 2019; Shrikumar et al., arXiv:1807.09946",
    settings=ConductanceSettings,
    resolve=choose_layer,
)
def layer_conductance(batch: Batch, settings: ConductanceSettings) -> Explained:
    """Sum ∂f/∂a(xₖ) · (a(xₖ₊₁) − a(xₖ)) over steps k and channels, for a layer's units a, and enlarge it."""
    base = resolve_baseline(settings.baseline, batch)
    previous, slopes, coarse = (torch.empty(0) for _ in range(3))
    for step in range(settings.steps + 1):
        values = read_layer(batch, base + step / settings.steps * (batch.x - base), settings.layer)
        activations, gradients = values.maps, values.gradients()
        if step == 0:
            coarse = torch.zeros_like(activations[:, :1])
        else:
            coarse += (slopes * (activations - previous)).sum(1, keepdim=True)
        previous, slopes = activations, gradients
    return enlarge(coarse, batch.x, settings.interpolation), None
