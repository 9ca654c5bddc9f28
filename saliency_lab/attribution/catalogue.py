"""The methods by name: what each is, its settings, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.own_code import check_user_function
from saliency_lab._common.registry import Extension, Registry, given_settings, settings_of
from saliency_lab._common.settings import Settings, list_settings
from saliency_lab.attribution.batch import Batch

Explained: TypeAlias = tuple[Tensor, Tensor | None]
"""Maps (n, C, H, W), and the scores (n,) they ought to sum to (None where the method promises no sum)."""


Resolve: TypeAlias = Callable[[nn.Module, Tensor, Any], Any]
"""`resolve(model, image, settings)` returns the settings with those that depend on the model filled in."""


@dataclass(frozen=True)
class Method:
    """An attribution method.

    `run(batch, settings)` returns `Explained`; `passes` says in words what an image costs. `resolve`, if any,
    is called once before, with one image (1, C, H, W) of the call, and what it returns is recorded.
    """

    name: str
    family: str
    run: Callable[[Batch, Any], Explained]
    settings: type[Settings]
    passes: str
    reference: str
    resolve: Resolve | None = None
    function: Callable[..., Tensor] | None = None
    """The user's own function; None for a built-in method."""

    def revision(self, settings: Mapping[str, Any]) -> int:
        """Return the number of the definition that maps with these settings have, 0 until it changes.

        Stored maps of an earlier revision are computed again.
        """
        by_captum = settings.get("engine") == "captum"
        own = max(_REVISIONS.get(self.name, 0), _BY_CAPTUM.get(self.name, 0) if by_captum else 0)
        base = settings.get("base")
        return max(own, METHODS[base].revision(settings["base_settings"])) if isinstance(base, str) else own


_REVISIONS = {
    # what changes the output of a layer in place in front of a batch normalisation is not skipped any more
    **dict.fromkeys(("lrp", "attn_lrp"), 1),
    # 1: another default layer; 2: channels are followed from call to call, and tokens may come before images
    **dict.fromkeys(("grad_cam", "layer_cam", "hires_cam"), 2),
    # a ReLU that is called clamp, threshold or maximum is one
    **dict.fromkeys(("guided_backprop", "deconvolution"), 1),
    "guided_grad_cam": 3,
    # the patches lie on the grid of the network's convolution, also where they are no squares
    **dict.fromkeys(("attention_rollout", "attention_relevance"), 1),
    "grad_cam_plus_plus": 3,  # a constant of 1e-6 in the denominator outweighed small gradients
    **dict.fromkeys(("xgrad_cam", "eigen_cam", "score_cam", "ablation_cam", "layer_conductance"), 2),
}

_BY_CAPTUM = {"lime": 1, "kernel_shap": 1, "layer_conductance": 3}
"""The same for the second engine, which ignored the kernel and the interpolation."""


DESCRIBERS: list[Callable[[Extension], Method | None]] = []
"""Functions that describe an object that is no plain function, such as a class of Captum, or return None."""

CAPTUM: dict[str, Callable[[Batch, Any], Tensor]] = {}
"""The methods that Captum has, too: a function (batch, settings) for each, which returns Captum's maps."""


def custom_method(extension: Extension) -> Method:
    """Describe a user's function `f(model, x, classes, **settings)` as a method.

    Raises
    ------
    InputError
        If it cannot be called, or takes other arguments.
    """
    function, name = extension.item, extension.name
    for describe in DESCRIBERS:
        if (described := describe(extension)) is not None:
            return described
    if not callable(function):
        raise InputError(f"method must be a name or a function, not {type(function).__name__}")
    check_user_function(function, "method", "model, x, classes")

    def run(batch: Batch, settings: Any) -> Explained:
        if batch.target.against is not None:
            raise InputError(f"method '{name}' is a function that gets one class per sample, not a contrast")
        with torch.enable_grad():
            maps = function(batch.model, batch.x, batch.target.classes, **given_settings(settings))
        if not isinstance(maps, Tensor) or maps.shape != batch.x.shape:
            got = f"{type(maps).__name__}"
            if isinstance(maps, Tensor):
                got = f"{tuple(maps.shape)} for {len(batch.x)}"
            shape = ", ".join(["N", *map(str, batch.x.shape[1:])])
            raise InputError(f"method '{name}' must return maps ({shape}) for N images, not {got}")
        return maps.detach(), None

    first = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
    return Method(name, "custom", run, settings_of(extension, 3), "", first, function=function)


_SHAP = '"gradient_shap", "deep_lift_shap", "kernel_shap" or "shapley_value_sampling"'
_ELSEWHERE = {
    "gradient": '"saliency"',
    "gradients": '"saliency"',
    "vanillagradient": '"saliency"',
    "vanilla": '"saliency"',
    "gradientxinput": '"input_x_gradient"',
    "gradientinput": '"input_x_gradient"',
    "ixg": '"input_x_gradient"',
    "ig": '"integrated_gradients"',
    "sg": '"smoothgrad"',
    "noisetunnel": '"smoothgrad", "smoothgrad_sq" or "vargrad", with base="saliency" or another method',
    "expectedgradients": '"gradient_shap"',
    "shap": _SHAP,
    "shapley": _SHAP,
    "deepshap": '"deep_lift_shap"',
    "gradcam++": '"grad_cam_plus_plus"',
    "gradcampp": '"grad_cam_plus_plus"',
    "cam": '"grad_cam", which is the same in networks that end in average pooling and one linear layer',
    "excitationbackprop": '"lrp" with preset="excitation_backprop"',
    "epsilonplus": '"lrp" with preset="epsilon_plus"',
    "epsilonplusflat": '"lrp" with preset="epsilon_plus_flat"',
    "epsilongammabox": '"lrp" with preset="epsilon_gamma_box"',
    "epsilonalpha2beta1": '"lrp" with preset="epsilon_alpha2_beta1"',
    "rollout": '"attention_rollout"',
    "attention": '"attention_relevance" or "attention_rollout"',
    "chefer": '"attention_relevance"',
    "conductance": '"layer_conductance"',
    "ablation": '"feature_ablation"',
    "sobel": '"edges"',
}
"""Names in Captum, pytorch-grad-cam, zennit and the papers, and what to write here."""

METHODS: Registry[Method] = Registry("method", "method", custom_method, _ELSEWHERE)


@dataclass(frozen=True)
class PerImage:
    """Marks a setting that, as a tensor of `ndim` dimensions with several entries, has one per image."""

    ndim: int

    def holds(self, value: object) -> bool:
        """Return whether `value` is such a tensor."""
        return isinstance(value, Tensor) and value.ndim == self.ndim and len(value) > 1


@dataclass(frozen=True)
class Added:
    """Marks a setting that a method got later: its default is left out of the keys of stored maps."""


def key_settings(model: type[Settings], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that count for the key of stored maps, which must not change without the maps."""
    kept = dict(settings)
    for name, field in model.model_fields.items():
        added = any(isinstance(mark, Added) for mark in field.metadata)
        if added and name in kept and type(kept[name]) is type(field.default) and kept[name] == field.default:
            del kept[name]
    return kept


def settings_of_rows(method: Method, settings: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Return a method's settings for the images at `rows`: tensors with one entry per image are cut."""
    fields = method.settings.model_fields
    cut = dict(settings)
    for key, value in settings.items():
        marks = fields[key].metadata if key in fields else []
        if any(isinstance(mark, PerImage) and mark.holds(value) for mark in marks):
            cut[key] = value[rows]
    if isinstance(settings.get("base_settings"), Mapping):
        base = METHODS.find(settings["base"])
        cut["base_settings"] = settings_of_rows(base, settings["base_settings"], rows)
    return cut


def method(
    name: str,
    *,
    family: str,
    passes: str,
    reference: str,
    settings: type[Settings] = Settings,
    resolve: Resolve | None = None,
) -> Callable[[Callable[[Batch, Any], Explained]], Callable[[Batch, Any], Explained]]:
    """Register the decorated function as the method `name`."""

    def decorate(run: Callable[[Batch, Any], Explained]) -> Callable[[Batch, Any], Explained]:
        METHODS.add(name, Method(name, family, run, settings, passes, reference, resolve))
        return run

    return decorate


def list_methods() -> pd.DataFrame:
    """List the attribution methods.

    Returns
    -------
    DataFrame
        One row per method, indexed by name: `family`, `settings` with their defaults, `passes` through the
        model per image, `engines`, and `reference`.

    Examples
    --------
    >>> import saliency_lab as sl
    >>> sl.list_methods().loc["saliency", "engines"]
    'fast, captum'
    """
    rows = [
        {
            "name": each.name,
            "family": each.family,
            "settings": list_settings(each.settings),
            "passes": each.passes,
            "engines": "fast, captum" if each.name in CAPTUM else "fast",
            "reference": each.reference,
        }
        for each in (METHODS[name] for name in METHODS)
    ]
    return pd.DataFrame(rows).set_index("name")
