"""Re-initialise the layers of a network one after the other, and verify that its outputs change."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from saliency_lab._common.calls import check_visible
from saliency_lab._common.copying import copy_model
from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import check_signature, device_of, dtype_of, undisturbed
from saliency_lab._common.seeding import preserved_rng
from saliency_lab._common.threads import in_this_thread
from saliency_lab._common.warn import warn

_POWER_ITERATIONS = 30  # after which the spectral norm of new weights is known to a few percent or better


def check_randomisable(model: nn.Module) -> None:
    """Refuse a model that was scripted, traced or compiled in part, or that needs more than images.

    Raises
    ------
    InputError
        Names the part, or the arguments.
    """
    check_visible(model, "randomising a model", otherwise=None)
    check_signature(model)


def is_layer(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own, be they reparametrised."""
    if isinstance(module, parametrize.ParametrizationList):
        return False  # belongs to the module whose weights it computes
    return parametrize.is_parametrized(module) or any(True for _ in module.parameters(recurse=False))


def modules_in_order(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """Return the modules that take part in the forward pass, in the order in which they run first."""
    executed: list[nn.Module] = []
    note = in_this_thread(lambda module, _: executed.append(module))
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(note))
        outputs_of(model, image)
    return list(dict.fromkeys(executed))


def layers_from_output(model: nn.Module, image: Tensor) -> list[tuple[str, list[tuple[str, nn.Module]]]]:
    """Return layers with parameters, last executed first: a name, and a layer with its normalisation.

    Raises
    ------
    InputError
        If no module with parameters takes part in the forward pass.
    """
    names = {
        module: name for name, module in model.named_modules() if "parametrizations" not in name.split(".")
    }
    executed = [module for module in modules_in_order(model, image) if module in names]
    layers: list[tuple[str, list[tuple[str, nn.Module]]]] = []
    for module in executed:
        children = (child for child in module.children() if child in names and child not in executed)
        for each in (module, *children):
            if not is_layer(each):
                continue
            weights = list(each.parameters(recurse=False))
            plain = not parametrize.is_parametrized(each)
            if bool(layers) and plain and all(parameter.ndim < 2 for parameter in weights):
                layers[-1][1].append((names[each], each))
            else:
                layers.append((names[each] or type(each).__name__, [(names[each], each)]))
    if not layers:
        raise InputError(f"{type(model).__name__} has no layer with parameters to randomise")
    return layers[::-1]


def outputs_of(model: nn.Module, image: Tensor) -> object:
    """Return what the model returns for one image."""
    with undisturbed(model), torch.no_grad():
        return model(image[:1].detach().to(device_of(model), dtype_of(model), copy=True))


class ChangeCheck:
    """Verifies, layer by layer, that re-initialising changed what a model returns for an image.

    Examples
    --------
    >>> net, image = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(1, 1, 2, 2)
    >>> check = ChangeCheck(net, image)
    >>> randomise(net[1], seed=0)
    >>> check.update(net, "1", [net[1]])
    >>> check.finish()
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.image, self.name = image, type(model).__name__
        self.start = self.last = outputs_of(model, image)
        self.layers: list[str] = []
        self.unchanged: list[str] = []

    def update(
        self, model: nn.Module, layer: str, modules: Sequence[nn.Module], *, cumulative: bool = True
    ) -> None:
        """Compare the outputs now with those before `layer`, the `modules`, was re-initialised.

        Raises
        ------
        InputError
            If the outputs are not finite any more.
        """
        before, self.last = self.last if cumulative else self.start, outputs_of(model, self.image)
        weights = [weight for module in modules for weight in module.parameters()]
        constant = all((weight == weight.flatten()[0]).all() for weight in weights)  # as when it was fresh
        if constant or not (isinstance(before, Tensor) and isinstance(self.last, Tensor)):
            return
        self.layers.append(layer)
        if before.isfinite().all() and not self.last.isfinite().all():
            raise InputError(
                f"after '{layer}' was re-initialised, {self.name} returns values that are not finite; give "
                "its module a method reset_parameters() that draws its parameters anew"
            )
        if torch.equal(before, self.last):
            self.unchanged.append(layer)

    def finish(self) -> None:
        """Warn about layers that had no effect.

        Raises
        ------
        InputError
            If none had.
        """
        if not self.unchanged:
            return
        names = ", ".join(self.unchanged[:5]) + (", …" if len(self.unchanged) > 5 else "")
        if self.unchanged == self.layers:
            raise InputError(
                f"re-initialising the layers of {self.name} ({names}) does not change what it returns: it "
                "computes its weights from others at each pass, or ignores them; remove that, or give the "
                "modules a method reset_parameters() that draws what the weights are computed from"
            )
        warn(
            f"re-initialising {names} did not change what {self.name} returns: the layers do not run, their "
            "outputs are multiplied by zero, or their weights are computed from others at each pass",
        )


def randomise(module: nn.Module, seed: int) -> None:
    """Draw a module's own parameters anew: by its own initialisation, else with their mean and spread.

    Weights that a reparametrisation computes (weight or spectral normalisation, …; as parametrisations or by
    the older hooks) are drawn as those of the module without it. A parameter of one value throughout, as
    the scale of a fresh normalisation, stays what it is.
    """
    with preserved_rng(seed, exclusive=True), torch.no_grad():
        hooks = list(_hooks(module))
        if not hooks and not parametrize.is_parametrized(module):
            _draw(module)
            return
        plain = _without_reparametrisation(module)
        _draw(plain)
        for name, value in [*plain.named_parameters(recurse=False), *plain.named_buffers(recurse=False)]:
            hook = next((each for each in hooks if each.name == name), None)
            if hook is not None:
                _assign_to_hook(module, hook, value)
            elif parametrize.is_parametrized(module, name):
                _assign_to_parametrisation(module, name, value)
            else:
                getattr(module, name).copy_(value)


def _draw(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset) and _needs_nothing(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        for part in _real_parts(parameter):
            spread = float(part.std()) if part.numel() > 1 else float(part.abs())
            part.normal_(float(part.mean()), spread)


def _needs_nothing(function: Callable[..., Any]) -> bool:
    """Return whether a function can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _real_parts(parameter: Tensor) -> tuple[Tensor, ...]:
    """Return what is drawn of a parameter: itself, its two parts if it is complex, nothing if it counts."""
    if parameter.is_complex():
        return torch.view_as_real(parameter).unbind(-1)
    return (parameter,) if parameter.is_floating_point() else ()


def _hooks(module: nn.Module) -> Iterator[WeightNorm | SpectralNorm]:
    """Return the older hooks that compute a weight before each forward pass."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm):
            yield hook


def _without_reparametrisation(module: nn.Module) -> nn.Module:
    """Return a copy of the module with ordinary parameters in place of those that are computed."""
    plain = copy_model(module)
    for hook in list(_hooks(plain)):
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(plain, hook.name)
    if parametrize.is_parametrized(plain):  # torch's own removal would change the class that the original has
        values = {name: getattr(plain, name).clone() for name in _parametrisations(plain)}
        del plain.parametrizations
        plain.__class__ = parametrize.type_before_parametrizations(module)
        for name, value in values.items():
            plain.register_parameter(name, nn.Parameter(value))
    return plain


def _parametrisations(module: nn.Module) -> nn.ModuleDict:
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return lists


def _assign_to_hook(module: nn.Module, hook: WeightNorm | SpectralNorm, value: Tensor) -> None:
    if isinstance(hook, WeightNorm):
        getattr(module, f"{hook.name}_v").copy_(value)
        getattr(module, f"{hook.name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(module, hook.name, hook.compute_weight(module))
        return
    getattr(module, f"{hook.name}_orig").copy_(value)
    for _ in range(_POWER_ITERATIONS):
        weight = hook.compute_weight(module, do_power_iteration=True)
    setattr(module, hook.name, weight)


def _assign_to_parametrisation(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a computed weight; where it cannot be set, draw what it is computed from."""
    originals = _parametrisations(module)[name]
    try:
        setattr(module, name, value.detach())
    except (NotImplementedError, RuntimeError):  # the parametrisation has no inverse
        for parameter in originals.parameters(recurse=False):
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    if any(isinstance(each, _SpectralNorm) for each in originals.children()):
        originals.train()  # it estimates the norm of new weights in train mode only
        for _ in range(_POWER_ITERATIONS):
            getattr(module, name)
        originals.train(module.training)
