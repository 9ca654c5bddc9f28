"""Networks that attacks look at in place of the model itself.

`Expected` averages a random model over several draws. `Borrowed` returns the model's own logits with the
gradient of another network: backward pass differentiable approximation (BPDA). The others provide that
gradient where the model's own does not describe it: `StraightThrough` runs the model with its
non-differentiable operations replaced, `FiniteDifferences` measures the gradient by forward passes, and
`Smoothed` averages it over a neighbourhood. `Watched` is the model itself, and notices whether it has a
gradient.

Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saliency_lab._common.inference import run_without_graph
from saliency_lab._common.seeding import generator
from saliency_lab._common.threads import in_this_thread


class Expected(nn.Module):
    """A random model averaged over draws: expectation over transformation (EOT).

    Returns log(1/S · Σₛ pₛ), the logarithm of the mean probabilities over `samples` passes, so that the
    predicted class has the highest mean probability, and the gradient is that of the expectation.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model, self.samples = model, samples

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        passes = torch.stack([self.model(x).log_softmax(1) for _ in range(self.samples)])
        return passes.logsumexp(0) - math.log(self.samples)


class Watched(nn.Module):
    """A model, and whether the gradients asked of it were missing or 0 everywhere.

    `blind` is True once the model was run for a gradient, until a gradient with an element other than 0
    passes. An attack that needed no gradient, since its start was enough, leaves it True as well.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.blind = self._seen = False

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        if torch.is_grad_enabled() and x.requires_grad and not self._seen:
            self.blind = True
            x = x.view_as(x)  # the gradient that comes through the model alone
            x.register_hook(self._look)
        logits: Tensor = self.model(x)
        return logits.to(x.dtype)  # a model may return another type than it is given

    def _look(self, gradient: Tensor) -> None:
        if not self._seen and bool((gradient.abs() > 0).any()):
            self._seen, self.blind = True, False


class OnGrid(nn.Module):
    """A model that sees every pixel rounded to a multiple of 1/255, with a straight-through gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        logits: Tensor = self.model(x + ((x * 255).round() / 255 - x).detach())
        return logits


class _ValueAndGradient(torch.autograd.Function):
    """The values of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class Borrowed(nn.Module):
    """The logits of `model` with the gradient of `source`, so that every iterate is judged on `model`."""

    def __init__(self, model: nn.Module, source: nn.Module) -> None:
        super().__init__()
        self.model, self.source = model, source

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        value = run_without_graph(self.model, x.detach())
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        logits: Tensor = _ValueAndGradient.apply(value, self.source(x).to(value.dtype))
        return logits


class Smoothed(nn.Module):
    """The mean logits over `samples` Gaussian draws around the image, the same draws for every image."""

    def __init__(self, model: nn.Module, sigma: float, samples: int) -> None:
        super().__init__()
        self.model, self.sigma, self.samples = model, sigma, samples
        self._source = generator(0, "smoothed gradient")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        draws = torch.randn(self.samples, *x.shape[1:], generator=self._source).to(x)
        points = ((x + self.sigma * draw).clamp(0, 1) for draw in draws)
        return torch.stack([self.model(point) for point in points]).mean(0)


class _Measured(torch.autograd.Function):
    """Logits whose backward pass measures the gradient along random directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, owner: FiniteDifferences) -> Tensor:
        ctx.save_for_backward(x)
        ctx.owner = owner
        return run_without_graph(owner.model, x.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.owner.measure(*ctx.saved_tensors, gradient), None


class FiniteDifferences(nn.Module):
    """A model whose gradient is estimated by simultaneous perturbation (SPSA), from its outputs alone.

    A backward pass costs two forward passes along each of `directions` random sign patterns of length
    `spacing` per pixel, which are the same for every image of the batch.
    Uesato et al., "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks", ICML 2018.
    """

    def __init__(self, model: nn.Module, directions: int, spacing: float, seed: int = 0) -> None:
        super().__init__()
        self.model, self.directions, self.spacing = model, directions, spacing
        self._source = generator(seed, "finite differences")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        logits: Tensor = _Measured.apply(x, self)
        return logits

    def measure(self, x: Tensor, weights: Tensor) -> Tensor:
        """Estimate the gradient (N, C, H, W) of Σ weights · logits at `x`."""
        slope = torch.zeros_like(x)
        for _ in range(self.directions):
            signs = torch.randint(0, 2, x.shape[1:], generator=self._source).to(x) * 2 - 1
            ahead = run_without_graph(self.model, (x + self.spacing * signs).clamp(0, 1))
            behind = run_without_graph(self.model, (x - self.spacing * signs).clamp(0, 1))
            rise = ((ahead - behind) * weights).sum(1).nan_to_num(0, 0, 0)
            slope += (rise / (2 * self.spacing * self.directions)).reshape(-1, 1, 1, 1) * signs
        return slope


class StraightThrough(nn.Module):
    """A model whose backward pass treats what cannot be differentiated as the identity.

    Rounding, casts to integers and detached tensors pass gradients through, comparisons become a sigmoid,
    `torch.no_grad`, gradient hooks and custom backward passes are ignored, and an image that reaches an inner
    module without a graph (after a detour through NumPy, say) counts as the image itself. The values are the
    model's own. With `identity`, so does the first image-shaped input of an inner network that returns the
    logits: whatever stands before that network is ignored in the backward pass.
    """

    def __init__(self, model: nn.Module, *, identity: bool = False) -> None:
        super().__init__()
        self.model, self.identity = model, identity
        self.inner: list[nn.Module] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return run_without_graph(self.model, x)
        if self.inner is None:
            self.inner = inner_networks(self.model, x.detach()[:1]) if self.identity else []
        try:
            with (
                _entering(self.model, x, self.inner),
                _without_backward_hooks(self.model),
                _replaced_functions(),
                _Differentiable(),
            ):
                logits: Tensor = self.model(x)
        # the replacement does not fit this model
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            with _entering(self.model, x, self.inner):
                logits = self.model(x)
        return logits if logits.requires_grad else logits + x.flatten(1)[:, :0].sum(1, keepdim=True)


def inner_networks(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """Submodules that turn an image of the size of `x` into as many outputs as the model has classes."""
    networks: list[nn.Module] = []
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, given: tuple[Any, ...], output: object) -> None:
        image = given[0] if given else None
        if module is model or not (isinstance(image, Tensor) and isinstance(output, Tensor)):
            return
        if image.shape[1:] == x.shape[1:] and output.ndim == 2:
            shapes[module] = output.shape[1:]

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(in_this_thread(note)))
        logits = run_without_graph(model, x)
    for module in model.modules():  # outer modules come first
        inside = any(module in set(outer.modules()) for outer in networks)
        if shapes.get(module) == logits.shape[1:] and not inside:
            networks.append(module)
    return networks


@contextmanager
def _entering(model: nn.Module, x: Tensor, inner: list[nn.Module]) -> Iterator[None]:
    """Connect to `x` what enters a module: images without a graph, and every image that enters `inner`."""

    def connect(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
            return None
        image = given[0]
        if image.ndim != 4 or image.shape[:2] != x.shape[:2]:
            return None
        if image.requires_grad and module not in inner:
            return None
        around = x if image.shape == x.shape else F.interpolate(x, image.shape[2:], mode="bilinear")
        return (image.detach() + around - around.detach(), *given[1:])

    with ExitStack() as hooks:
        for module in model.modules():
            if module is not model and not isinstance(module, torch.jit.ScriptModule):  # which takes no hook
                hooks.enter_context(module.register_forward_pre_hook(in_this_thread(connect)))
        yield


_ROUNDING = frozenset(
    {"round", "floor", "ceil", "trunc", "fix", "sign", "round_", "floor_", "ceil_", "trunc_"}
)
_CASTS = frozenset({"int", "long", "byte", "short", "char"})
_DETACHING = frozenset({"detach", "detach_", "clone_detached"})
_COMPARING = {"gt": 1, "ge": 1, "__gt__": 1, "__ge__": 1, "lt": -1, "le": -1, "__lt__": -1, "__le__": -1}
_TO_FLOAT = frozenset({"float", "double", "to", "type_as", "type", "half"})
_SHARPNESS = 10.0


class _NoHandle:
    """What `register_hook` returns where the hook is not registered."""

    def remove(self) -> None:
        """Do nothing."""


class _Differentiable(TorchFunctionMode):
    """Replaces operations without a useful gradient while the values stay the same."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name == "_set_grad_enabled":
            return func(True)
        if not isinstance(first, Tensor):
            return func(*args, **kwargs)
        if name == "register_hook":
            return _NoHandle()
        if name in _DETACHING or (name == "__get__" and func is Tensor.data.__get__):  # type: ignore[attr-defined]
            return first
        if name in _COMPARING and first.requires_grad and len(args) == 2:
            result = func(*args, **kwargs)
            soft = torch.sigmoid(_COMPARING[name] * _SHARPNESS * (first - args[1]))
            result._soft = soft
            return result
        if name in _TO_FLOAT and first.dtype == torch.bool and hasattr(first, "_soft"):
            hard, soft = func(*args, **kwargs), first._soft
            return hard + (soft - soft.detach()).to(hard) if hard.is_floating_point() else hard
        if not (first.requires_grad and first.is_floating_point()):
            return func(*args, **kwargs)
        if name in _ROUNDING:
            result = getattr(torch.Tensor, name.rstrip("_"))(first.detach(), *args[1:], **kwargs)
            return first + (result - first).detach()
        if name in _CASTS:
            return first + (first.trunc() - first).detach()
        return func(*args, **kwargs)


@contextmanager
def _without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Take backward hooks off every module for the time being."""
    names = ("_backward_hooks", "_backward_pre_hooks")
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in names]
    try:
        for module, name, hooks in kept:
            setattr(module, name, type(hooks)())
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


class _Context:
    """Stands in for the context of an autograd function."""

    needs_input_grad: tuple[bool, ...] = (True,) * 32

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Do nothing."""

    mark_non_differentiable = mark_dirty = set_materialize_grads = save_for_forward = save_for_backward


_threads: set[int] = set()
_lock = threading.Lock()
_own_apply = torch.autograd.Function.__dict__["apply"]


def _apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """Run the forward pass alone in the threads that ask for it, and the function as it is in others."""
    if threading.get_ident() not in _threads or issubclass(cls, _ValueAndGradient | _Measured):
        return _own_apply.__get__(None, cls)(*args, **kwargs)
    if cls.setup_context is not torch.autograd.Function.setup_context:
        return cls.forward(*args, **kwargs)
    return cls.forward(_Context(), *args, **kwargs)


@contextmanager
def _replaced_functions() -> Iterator[None]:
    """Let torch differentiate the forward pass of custom autograd functions, in this thread."""
    with _lock:
        _threads.add(threading.get_ident())
        torch.autograd.Function.apply = classmethod(_apply)
    try:
        yield
    finally:
        with _lock:
            _threads.discard(threading.get_ident())
            if not _threads:
                torch.autograd.Function.apply = _own_apply
