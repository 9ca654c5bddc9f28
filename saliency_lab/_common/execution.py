"""What the user allows for faster passes: a context manager, and the settings that it sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from saliency_lab._common.errors import InputError

if TYPE_CHECKING:
    import torch

CompileMode = bool | Literal["auto"]
"""Whether passes may run in a faster form than the model's own."""

_DTYPES = {"none": None, "float32": None, "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class ExecutionSettings:
    """How passes that only evaluate a model may run: the arguments of `execution`, checked."""

    compile: CompileMode = "auto"
    dtype: Literal["bfloat16"] | None = None


_current: ContextVar[ExecutionSettings | None] = ContextVar("execution", default=None)


def current_execution() -> ExecutionSettings:
    """Return what the innermost `execution` block allows; without one, its defaults."""
    return _current.get() or ExecutionSettings()


def make_execution(compile: Any = "auto", dtype: Any = None) -> ExecutionSettings:
    """Check the arguments of `execution`.

    >>> make_execution("auto", "bfloat16").dtype
    'bfloat16'

    Raises
    ------
    InputError
        If an argument has another value than those listed at `execution`.
    """
    if not (isinstance(compile, bool) or compile == "auto"):
        raise InputError(f'compile must be "auto", True or False, not {compile!r}')
    name = f"{dtype}".removeprefix("torch.").lower()
    if name not in _DTYPES:
        raise InputError(f'dtype must be "bfloat16", or None for the precision of the model, not {dtype!r}')
    return ExecutionSettings(compile, "bfloat16" if _DTYPES[name] else None)


@contextmanager
def execution(
    *, compile: CompileMode = "auto", dtype: str | torch.dtype | None = None
) -> Iterator[ExecutionSettings]:
    """Set how passes run, for every call inside.

    These are the passes of perturbation metrics, of `occlusion`, RISE, LIME, SHAP and similar methods, of
    predictions and attacks, and the passes back to the image of methods such as `integrated_gradients`. A
    copy of the model is used, in which batch normalisation is folded into the layers before it; the model
    itself is unchanged. A copy is used only if its logits and gradients for the first images equal the
    model's own to 1e-5, and the model runs as it is otherwise. Passes with a gradient are never compiled, and
    never in bfloat16.

    Parameters
    ----------
    compile : "auto", True or False
        "auto" measures on the first images of long work which form, memory layout and number of images per
        pass are fastest, and compiles the copy where the work that is left is long enough to pay for it.
        True does so for work of any length, and always tries to compile. False runs the model as it is, with
        fixed numbers of images per pass, so that results are repeatable to the last bit.
    dtype : "bfloat16" or torch.bfloat16, optional
        Run forward passes of metrics and perturbation methods in bfloat16, where scores change by up to some
        hundredths. Predictions and attacks stay in the model's precision. Results of a study under another
        dtype are stored separately.

    Yields
    ------
    ExecutionSettings
        The settings.

    Raises
    ------
    InputError
        If an argument has another value.

    Examples
    --------
    >>> import torch
    >>> import saliency_lab as sl
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> with sl.execution(compile=False):
    ...     maps = sl.attribute(net, torch.rand(2, 1, 4, 4), method="occlusion", target=0)
    """
    chosen = make_execution(compile, dtype)
    with run_under(chosen):
        yield chosen


@contextmanager
def run_under(chosen: ExecutionSettings) -> Iterator[None]:
    """Set checked settings inside, as `execution` does."""
    token = _current.set(chosen)
    try:
        yield
    finally:
        _current.reset(token)
