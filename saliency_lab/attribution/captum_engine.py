"""Captum's own classes and objects as methods, and as a second engine for the methods that Captum has."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import captum.attr as ca
import torch
from captum.attr._utils.attribution import Attribution, InternalAttribution
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from pydantic import create_model
from torch import Tensor, nn
from torch.overrides import resolve_name

from saliency_lab._common.calls import (
    SHAPES,
    calls,
    check_visible,
    describe_module,
    trace,
)
from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import Extension
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.settings import Settings
from saliency_lab._common.threads import in_this_thread
from saliency_lab.attribution.baseline import resolve_baseline
from saliency_lab.attribution.batch import Batch
from saliency_lab.attribution.catalogue import CAPTUM, DESCRIBERS, Explained, Method, PerImage
from saliency_lab.attribution.layer import (
    Interpolation,
    LayerSpec,
    enlarge,
    find_layer,
    layer_name,
    read_layer,
)
from saliency_lab.attribution.perturbation import kernel_shap_of, lime_of, window_and_stride
from saliency_lab.attribution.segments import find_segments

_GIVEN = {"inputs", "target", "additional_forward_args"}
"""Arguments of Captum's `attribute` that are filled in here."""
_FIXED = {"return_convergence_delta", "return_input_shape", "show_progress", "verbose", "device_ids"}
"""Arguments of Captum that would change what it returns, or what it prints."""
_RANDOM = (
    ca.GradientShap,
    ca.LayerGradientShap,
    ca.NeuronGradientShap,
    ca.Lime,
    ca.ShapleyValueSampling,
    ca.NoiseTunnel,
)
_BATCH_NORM = calls("batch_norm")
_ACROSS_IMAGES = (ca.FeaturePermutation, ca.LayerFeaturePermutation)
_BATCH_OF_BASELINES = (
    ca.GradientShap,
    ca.LayerGradientShap,
    ca.NeuronGradientShap,
    ca.DeepLiftShap,
    ca.LayerDeepLiftShap,
    ca.NeuronDeepLiftShap,
)


class _Contrast(nn.Module):
    """The difference of two logits, as a module for Captum."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, classes: Tensor, against: Tensor) -> Tensor:
        logits = self.model(x)
        picked = logits.gather(1, torch.stack([classes, against], 1))
        return picked[:, 0] - picked[:, 1]


def _explained(model: nn.Module) -> nn.Module:
    """Return the user's model, in which layers have the names that the user knows."""
    return model.model if isinstance(model, _Contrast) else model


def captum_method(extension: Extension) -> Method | None:
    """Describe a class or an object of Captum as a method; return None for anything else.

    Its settings are the arguments of the constructor (of a class) and of `attribute`. The argument `method`
    of Captum's path methods is called `quadrature`. Maps with the shape of a layer are summed over
    channels and enlarged to the images; the setting `note`, which is filled in, says so.
    """
    item = extension.item
    kind: Any = item if isinstance(item, type) else type(item)
    if not issubclass(kind, Attribution | ca.NoiseTunnel):
        return None
    if issubclass(kind, _ACROSS_IMAGES):
        raise InputError(
            f"{kind.__name__} permutes features among the images of a batch, so that a map depends on the "
            "other images; use captum.attr.FeatureAblation"
        )
    construct = _arguments(kind.__init__) if isinstance(item, type) else {}
    attribute = _arguments(kind.attribute)
    layered = issubclass(kind, InternalAttribution | ca.GuidedGradCam) and isinstance(item, type)
    fields: dict[str, Any] = {
        ("quadrature" if name == "method" else name): (Any, default)
        for name, default in (construct | attribute).items()
    }
    for name in {"baselines", "feature_mask"} & fields.keys():
        if name != "baselines" or not issubclass(kind, _BATCH_OF_BASELINES):
            fields[name] = (Annotated[Any, PerImage(4)], fields[name][1])
    of_layer = layered and "neuron_selector" not in attribute and kind is not ca.GuidedGradCam
    if layered:
        fields["layer"] = (LayerSpec, None)
    fields["note"] = (str | None, None)
    settings = create_model(extension.name, __base__=Settings, **fields)

    def resolve(model: nn.Module, image: Tensor, given: Any) -> Any:
        check_visible(model, extension.name)
        if not layered:
            return given
        resolved = {"layer": layer_name(model, given.layer, image)}
        if of_layer:
            resolved["note"] = "summed over channels and enlarged bilinearly from the layer to the images"
        return given.model_copy(update=resolved)

    def run(batch: Batch, given: Any) -> Explained:
        keywords = {name: getattr(given, name) for name in given.model_fields_set if name != "note"}
        if "quadrature" in keywords:
            keywords["method"] = keywords.pop("quadrature")
        built = partial(_build, item, {name: keywords[name] for name in construct if name in keywords})
        options = {name: value for name, value in keywords.items() if name in attribute}
        return _run(extension.name, kind, built, batch, options, given.layer if of_layer else None), None

    doc = (kind.__doc__ or "").strip().partition("\n")[0]
    return Method(extension.name, "captum", run, settings, "", doc, resolve if layered else None, item)


DESCRIBERS.append(captum_method)


def _arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the settings among the arguments of a function of Captum, with their defaults."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    skipped = _GIVEN | _FIXED | {"forward_func", "model"}
    return {
        each.name: ... if each.default is each.empty else each.default
        for each in named
        if each.name not in skipped
    }


def _build(item: Any, arguments: dict[str, Any], model: nn.Module) -> Any:
    """Return Captum's object for the model: the given one, or one of the given class."""
    if not isinstance(item, type):
        inner = getattr(item, "attribution_method", item)
        if getattr(inner, "forward_func", getattr(inner, "model", None)) is not _explained(model):
            raise InputError(
                f"the object of {type(inner).__name__} was made for another model than the one that is "
                "explained; pass the class, and the arguments of its constructor as settings"
            )
        if isinstance(model, _Contrast):
            raise InputError(
                f"an object of {type(inner).__name__} explains one class, not a contrast; pass the class, "
                "and the arguments of its constructor as settings"
            )
        return item
    arguments = dict(arguments)
    if isinstance(arguments.get("layer"), str):
        arguments["layer"] = find_layer(_explained(model), arguments["layer"])
    if item is ca.NoiseTunnel:
        base = arguments["attribution_method"]
        return ca.NoiseTunnel(base(model) if isinstance(base, type) else base)
    return item(model, **arguments)


def _run(
    name: str,
    kind: Any,
    build: Callable[[nn.Module], Any],
    batch: Batch,
    options: dict[str, Any],
    layer: Any,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Compute Captum's maps, image by image where it draws at random or we cannot know.

    Those of a `layer` are enlarged by `interpolation`.
    """
    known = kind.__module__.startswith("captum.") and not issubclass(kind, _RANDOM)
    rows = [slice(0, len(batch.x))] if known else [slice(i, i + 1) for i in range(len(batch.x))]
    seeds = batch.seeds("captum")
    maps = []
    for span in rows:
        part = batch if known else batch.only(span.start)
        with torch.enable_grad(), preserved_rng(seeds[span.start], exclusive=True):
            maps.append(_attribute(name, kind, build, part, options))
    values = torch.cat(maps).detach()
    if layer is None:
        if values.shape == batch.x.shape:
            return values.to(batch.x)
        raise InputError(
            f"{name} returned a tensor of shape {tuple(values.shape)}, which is not that of the images, "
            f"{tuple(batch.x.shape)}"
        )
    read = read_layer(batch, batch.x, layer)
    if values.shape == read.output.shape:
        coarse = read.arrangement.to_map(values).sum(1, keepdim=True)
    elif values.shape == (len(values), 1, *read.maps.shape[2:]):
        coarse = values
    else:
        raise InputError(
            f"{name} returned a tensor of shape {tuple(values.shape)}, which is not that of the output of "
            f"the layer '{layer}', {tuple(read.output.shape)}"
        )
    return enlarge(coarse, batch.x, interpolation)


def _attribute(
    name: str, kind: Any, build: Callable[[nn.Module], Any], batch: Batch, options: dict[str, Any]
) -> Tensor:
    target: Any = batch.target.classes
    model, more = batch.model, {}
    if batch.target.against is not None:
        if issubclass(kind, ca.LRP):  # it needs a rule for every operation, and has none for a difference
            raise InputError(f"Captum's {name} explains one class, not a contrast; use the method 'lrp'")
        model = _Contrast(model)
        more, target = {"additional_forward_args": (batch.target.classes, batch.target.against)}, None
    accepted = inspect.signature(kind.attribute).parameters
    if "target" in accepted or kind is ca.NoiseTunnel:
        more["target"] = target
    options = {key: _for_batch(key, value, kind, batch) for key, value in options.items()}
    points = batch.x.detach().clone().requires_grad_(True)
    try:
        maps = build(model).attribute(points, **options, **more)
    except InputError:
        raise
    except (AssertionError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        message = f"{error}".strip().partition("\n")[0]
        raise InputError(f"Captum's {name} failed: {message or type(error).__name__}") from error
    maps = maps[0] if isinstance(maps, tuple) and len(maps) == 1 else maps
    if not isinstance(maps, Tensor):
        raise InputError(f"Captum's {name} returned a {type(maps).__name__}, not one tensor of maps")
    return maps


def _for_batch(key: str, value: Any, kind: Any, batch: Batch) -> Any:
    """Return an option for the images of the batch: named baselines, and one entry per image where given."""
    if key == "baselines" and not issubclass(kind, _BATCH_OF_BASELINES) and isinstance(value, str | Tensor):
        return resolve_baseline(value, batch)
    if isinstance(value, Tensor) and key == "feature_mask":
        mask = value[(None,) * (batch.x.ndim - value.ndim)]  # (H, W) and (C, H, W) are those of every image
        return (mask if len(mask) == 1 else mask[batch.index.to(mask.device)]).to(batch.x.device)
    return value.to(batch.x.device) if isinstance(value, Tensor) else value


# --- the second engine ----------------------------------------------------------------------------


def _plain(kind: Any, **options: Any) -> Callable[[Batch, Any], Tensor]:
    return lambda batch, settings: _run(kind.__name__, kind, kind, batch, options, None)


def _path(batch: Batch, settings: Any) -> Tensor:
    rules = {"gauss_legendre": "gausslegendre"}
    rule = rules.get(settings.quadrature, f"riemann_{settings.quadrature}")
    options = {"baselines": settings.baseline, "n_steps": settings.steps, "method": rule}
    return _run("IntegratedGradients", ca.IntegratedGradients, ca.IntegratedGradients, batch, options, None)


def _gradient_shap(batch: Batch, settings: Any) -> Tensor:
    options = {"baselines": settings.baselines, "n_samples": settings.n, "stdevs": settings.stdev}
    return _run("GradientShap", ca.GradientShap, ca.GradientShap, batch, options, None)


def _deep_lift(batch: Batch, settings: Any) -> Tensor:
    return _run("DeepLift", ca.DeepLift, ca.DeepLift, batch, {"baselines": settings.baseline}, None)


def _deep_lift_shap(batch: Batch, settings: Any) -> Tensor:
    options = {"baselines": settings.baselines}
    return _run("DeepLiftShap", ca.DeepLiftShap, ca.DeepLiftShap, batch, options, None)


def _layer_grad_cam(batch: Batch, settings: Any) -> Tensor:
    read = read_layer(batch, batch.x, settings.layer)
    if read.arrangement.tokens or read.arrangement.channels_last or read.arrangement.flat:
        raise InputError(
            "Captum's LayerGradCam takes maps (N, D, h, w), and the output of the layer "
            f"'{settings.layer}' is arranged in another way; name another layer, or use engine='fast'"
        )
    with torch.enable_grad():
        cam = ca.LayerGradCam(batch.model, find_layer(batch.model, settings.layer))
        coarse = _call(cam, batch, relu_attributions=settings.relu)
    return enlarge(coarse, batch.x, settings.interpolation)


def _call(explainer: Any, batch: Batch, **options: Any) -> Tensor:
    """Call Captum's object for the classes of the batch."""
    if batch.target.against is not None:
        raise InputError(
            f"engine='captum' explains one class with {type(explainer).__name__}, not a contrast"
        )
    points = batch.x.detach().clone().requires_grad_(True)
    maps: Tensor = explainer.attribute(points, target=batch.target.classes, **options)
    return maps.detach()


def _guided_grad_cam(batch: Batch, settings: Any) -> Tensor:
    guided = _run("GuidedBackprop", ca.GuidedBackprop, ca.GuidedBackprop, batch, {}, None)
    return guided * _layer_grad_cam(batch, settings)


def _conductance(batch: Batch, settings: Any) -> Tensor:
    options = {
        "baselines": settings.baseline,
        "n_steps": settings.steps,
        "method": "riemann_trapezoid",
    }

    def build(model: nn.Module) -> Any:
        return ca.LayerConductance(model, find_layer(_explained(model), settings.layer))

    name, kind = "LayerConductance", ca.LayerConductance
    return _run(name, kind, build, batch, options, settings.layer, settings.interpolation)


def _occlusion(batch: Batch, settings: Any) -> Tensor:
    window, stride = window_and_stride(settings, batch.x)
    channels = batch.x.shape[1]
    options = {
        "baselines": settings.baseline,
        "sliding_window_shapes": (channels, window, window),
        "strides": (channels, stride, stride),
    }
    return _run("Occlusion", ca.Occlusion, ca.Occlusion, batch, options, None)


def _by_segments(kind: Any, n: bool) -> Callable[[Batch, Any], Tensor]:
    def compute(batch: Batch, settings: Any) -> Tensor:
        segments = find_segments(settings.segments, batch)[:, None].expand_as(batch.x).contiguous()
        maps = []
        for row in range(len(batch.x)):  # the number of superpixels differs from image to image
            options = {"baselines": resolve_baseline(settings.baseline, batch.only(row))}
            options["feature_mask"] = segments[row : row + 1]
            if n:
                options["n_samples"] = settings.n
            build = _SURROGATES[kind](settings) if kind in _SURROGATES else kind
            maps.append(_run(kind.__name__, kind, build, batch.only(row), options, None))
        return torch.cat(maps)

    return compute


_SURROGATES: dict[Any, Callable[[Any], Callable[..., Any]]] = {
    ca.Lime: lime_of,
    ca.KernelShap: kernel_shap_of,
}


def _noise(statistic: str) -> Callable[[Batch, Any], Tensor]:
    def compute(batch: Batch, settings: Any) -> Tensor:
        kinds = {"saliency": ca.Saliency, "input_x_gradient": ca.InputXGradient}
        kinds |= {"guided_backprop": ca.GuidedBackprop, "deconvolution": ca.Deconvolution}
        if settings.base not in kinds:
            raise InputError(
                f"engine='captum' has noise tunnels over {', '.join(kinds)}, not over '{settings.base}'"
            )
        options = {"nt_type": statistic, "nt_samples": settings.n, "stdevs": settings.stdev}
        if settings.base == "saliency":
            options["abs"] = False

        def build(model: nn.Module) -> Any:
            return ca.NoiseTunnel(kinds[settings.base](model))

        return _run("NoiseTunnel", ca.NoiseTunnel, build, batch, options, None)

    return compute


# --- layer-wise relevance propagation ----------------------------------------------------------------

_RELAYED = nn.Flatten | nn.Unflatten | nn.Identity
"""Modules that move values, for which Captum has no rule of its own; its ε rule moves relevance back."""
_NEXT_TO_NOTHING = 1e-30
_LRP_LAYERS = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_LRP_MODULES = (*_LRP_LAYERS, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU, nn.Tanh, nn.Dropout)


def _lrp(batch: Batch, settings: Any) -> Tensor:
    """Compute Captum's LRP, where its rules are those of `settings` on this network."""
    if settings.rules:
        raise InputError("engine='captum' has the presets of lrp, not rules by module; use engine='fast'")
    if settings.preset not in _LRP_RULES:
        raise InputError(
            f"Captum's LRP does not have the rules of preset='{settings.preset}'; engine='captum' is for "
            f"{', '.join(_LRP_RULES)}"
        )
    convolution, linear = (make(settings) for make in _LRP_RULES[settings.preset])
    convolution.STABILITY_FACTOR = linear.STABILITY_FACTOR = settings.epsilon
    model = copy_model(batch.model)
    _check_lrp_modules(model, batch.x[:1])
    _check_lrp_rules(model, batch.x, settings, convolution, linear)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = copy(convolution)
        elif isinstance(module, nn.Linear):
            module.rule = copy(linear)
        elif isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            module.rule = EpsilonRule(settings.epsilon)
        elif isinstance(module, nn.MaxPool2d | _RELAYED):  # they divide by what they multiply with
            module.rule = EpsilonRule(_NEXT_TO_NOTHING)
    with torch.enable_grad():
        return _call(ca.LRP(model), replace(batch, model=model))


def _positive(settings: Any) -> Any:
    return Alpha1_Beta0_Rule(set_bias_to_zero=settings.preset == "excitation_backprop")


_LRP_RULES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "epsilon": (lambda s: EpsilonRule(s.epsilon), lambda s: EpsilonRule(s.epsilon)),
    "gamma": (lambda s: GammaRule(s.gamma), lambda s: EpsilonRule(s.epsilon)),
    "epsilon_plus": (_positive, lambda s: EpsilonRule(s.epsilon)),
    "alpha1_beta0": (_positive, _positive),
    "excitation_backprop": (_positive, _positive),
}
"""Captum's rules for convolutions and for linear layers, by preset."""


def _check_lrp_modules(model: nn.Module, image: Tensor) -> None:
    """Refuse networks of which Captum's hooks do not see every operation, or give it another rule."""
    traced = trace(model, image, lambda func, args, kwargs, inputs: bool(inputs))
    for name, module, func in traced:
        if not isinstance(module, _LRP_MODULES) and func not in SHAPES:
            where = describe_module([(name, module)])
            reason = (
                "has a rule of its own for batch normalisation, which is merged with the layer before it here"
                if func in _BATCH_NORM
                else f"does not see or has no rule for {resolve_name(func)}, which is called in {where}"
            )
            raise InputError(f"Captum's LRP {reason}; use engine='fast'")
    names = [name for name, module, _ in traced if isinstance(module, _LRP_LAYERS)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(
            f"Captum's LRP takes each layer once, and '{twice[0]}' runs again; use engine='fast'"
        )


def _check_lrp_rules(model: nn.Module, x: Tensor, settings: Any, convolution: Any, linear: Any) -> None:
    """Refuse layers for which Captum's γ and α1β0 rules are others than those here."""
    signed: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if bool((inputs[0] < 0).any()):
            signed.append(name)

    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not isinstance(convolution if isinstance(module, nn.Conv2d) else linear, EpsilonRule)
    }
    with ExitStack() as hooks, torch.no_grad():
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(in_this_thread(partial(look, name))))
        model(x.clone())
    if signed:
        raise InputError(
            f"Captum's rules of preset='{settings.preset}' are for layers with non-negative inputs, and "
            f"'{signed[0]}' has negative ones; use engine='fast'"
        )
    for name, module in layers.items():
        if settings.preset != "excitation_backprop" and module.bias is not None and bool(module.bias.any()):
            raise InputError(
                f"Captum's rules of preset='{settings.preset}' keep biases as they are, and here they are "
                f"treated as weights, so that maps differ ('{name}' has a bias); use engine='fast'"
            )


CAPTUM |= {
    "saliency": _plain(ca.Saliency, abs=False),
    "input_x_gradient": _plain(ca.InputXGradient),
    "integrated_gradients": _path,
    "gradient_shap": _gradient_shap,
    "smoothgrad": _noise("smoothgrad"),
    "smoothgrad_sq": _noise("smoothgrad_sq"),
    "vargrad": _noise("vargrad"),
    "guided_backprop": _plain(ca.GuidedBackprop),
    "deconvolution": _plain(ca.Deconvolution),
    "deep_lift": _deep_lift,
    "deep_lift_shap": _deep_lift_shap,
    "lrp": _lrp,
    "grad_cam": _layer_grad_cam,
    "guided_grad_cam": _guided_grad_cam,
    "layer_conductance": _conductance,
    "occlusion": _occlusion,
    "feature_ablation": _by_segments(ca.FeatureAblation, n=False),
    "shapley_values": _by_segments(ca.ShapleyValues, n=False),
    "shapley_value_sampling": _by_segments(ca.ShapleyValueSampling, n=True),
    "kernel_shap": _by_segments(ca.KernelShap, n=True),
    "lime": _by_segments(ca.Lime, n=True),
}


def by_captum(method: Method) -> Callable[[Batch, Any], Explained]:
    """Return the function that computes a method's maps by Captum.

    Raises
    ------
    InputError
        If Captum has no such method.
    """
    if method.name not in CAPTUM or method.function is not None:
        raise InputError(
            f"Captum does not have the method '{method.name}'; engine='captum' is for {', '.join(CAPTUM)}"
        )
    compute = CAPTUM[method.name]
    return lambda batch, settings: (compute(batch, settings), None)
