"""Compile the forward pass of a model, with its weights frozen, by torch's inductor."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch import Tensor, nn

_FIXED_SECONDS, _SECONDS_PER_LAYER = 15.0, 0.5
"""What compilation took on one core: 32 s for a ResNet-50, which has 54 layers."""

_RECOMPILE_LIMIT = 64  # copies of one class of model that are compiled in one process
_TRAINED_LIMIT = 1024  # the same for training, which compiles several graphs per model


@contextmanager
def compiled_in_place(*models: nn.Module) -> Iterator[None]:
    """Compile the calls of modules inside, for any mode; their weights may change and take gradients.

    A graph is compiled for each shape of the input, each mode, and each set of parameters that take
    gradients. The backward pass of a graph computes every gradient that could be asked for. Random draws are
    those of the module as it is.

    A pass is never run as it is because too much was compiled before: batch normalisation in such a pass
    would save its running statistics for the backward pass, and a compiled pass after it changes them.

    Raises
    ------
    CompileError
        If there is no compiler, a module cannot be compiled, or a gradient is differentiated inside.
    """
    device = next((parameter.device for parameter in models[0].parameters()), torch.device("cpu"))
    if device.type == "cpu" and compiler() is None:
        raise CompileError("there is no C++ compiler here (g++ or clang++)")
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import InductorError

    with ExitStack() as stack:
        stack.enter_context(
            dynamo.patch(
                recompile_limit=_TRAINED_LIMIT,
                accumulated_recompile_limit=_TRAINED_LIMIT,
                fail_on_recompile_limit_hit=True,
            )
        )
        stack.enter_context(functorch.patch(donated_buffer=False))  # a graph may be used again
        stack.enter_context(inductor.patch(fallback_random=True))
        for model in models:
            model.compile(dynamic=False)
        try:
            yield
        except FailOnRecompileLimitHit as error:
            raise CompileError(
                "too many networks of this class were compiled in this process; start another one"
            ) from error
        except (TorchDynamoException, InductorError) as error:
            reason = f"{error}".strip().partition("\n")[0][:200]
            raise CompileError(f"the model cannot be compiled ({reason})") from error
        except RuntimeError as error:
            for known, reason in _REFUSALS.items():
                if known in f"{error}":
                    raise CompileError(reason) from error
            raise
        finally:
            for model in models:
                model._compiled_call_impl = None


def is_compiled(model: nn.Module) -> bool:
    """Whether the calls of a module are compiled, as inside `compiled_in_place`."""
    return model._compiled_call_impl is not None


_REFUSALS = {
    "double backward": "a gradient cannot be differentiated in a compiled model",
    "modified by an inplace operation": "a backward pass after several forward passes in training mode, as "
    "this objective makes it, fails for this model where it is compiled",
}
"""What torch says of passes that only work uncompiled, and why."""


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run modules as they are inside that `compiled_in_place` compiled."""
    before = [(module, module._compiled_call_impl) for module in model.modules()]
    for module, _ in before:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in before:
            module._compiled_call_impl = call


class CompileError(Exception):
    """A model could not be compiled; the message says why."""


@cache
def compiler() -> str | None:
    """Return the C++ compiler that inductor would use, or None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def compile_seconds(model: nn.Module) -> float:
    """Estimate the seconds that compilation takes, from above."""
    layers = sum(isinstance(each, nn.Linear | nn.modules.conv._ConvNd) for each in model.modules())
    return _FIXED_SECONDS + _SECONDS_PER_LAYER * layers


def compiled(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Compile the forward pass for images of exactly this shape and memory layout, without a graph.

    Parameters
    ----------
    model : nn.Module
        In eval mode; its weights must not change afterwards.
    images : Tensor
        An example.

    Returns
    -------
    callable
        Returns what the model returns for such images.

    Raises
    ------
    CompileError
        If there is no compiler, or it fails.
    """
    if images.device.type == "cpu" and compiler() is None:
        raise CompileError("there is no C++ compiler here (g++ or clang++)")
    try:
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(inductor.patch(freezing=True))
            stack.enter_context(dynamo.patch(recompile_limit=_RECOMPILE_LIMIT))
            stack.enter_context(torch.no_grad())
            run: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False)
            run(images)
    except Exception as error:  # each stage of the compiler has its own errors
        reason = f"{error}".strip().partition("\n")[0][:200]
        raise CompileError(f"{type(error).__name__}: {reason}") from error

    def call(x: Tensor) -> Tensor:
        with torch.no_grad(), dynamo.patch(recompile_limit=_RECOMPILE_LIMIT):
            return run(x)

    return call
