"""Checks of images, labels, masks, logits, seeds and ε; each error says what was expected and given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.text import number_of


def check_images(x: Tensor) -> Tensor:
    """Return `x` if it is a float batch (N, C, H, W) in [0, 1], N ≥ 1; float64 is kept.

    Raises
    ------
    InputError
        If it is not a tensor, has another shape, is an integer image, holds NaN, or leaves [0, 1]; or if
        torch creates tensors on another device than the CPU by default.
    """
    default = torch.get_default_device()
    if default.type != "cpu":
        raise InputError(
            f"torch makes tensors on '{default}' by default (torch.set_default_device), and this package its "
            f"own on the CPU; leave the default alone and move the model: model.to('{default}')"
        )
    if not isinstance(x, Tensor):
        raise InputError(f"images must be a torch tensor, not {type(x).__name__}; {_batch_of(x)}")
    check_dense(x, "images")
    if x.ndim != 4 or 0 in x.shape:
        raise InputError(
            f"images must have the shape (N, C, H, W) with N ≥ 1, not {tuple(x.shape)}; "
            "for one image use x[None]"
        )
    if not x.is_floating_point():
        raise InputError(
            f"images must be floating point in [0, 1], not {x.dtype}; for 8-bit images use x.float() / 255"
        )
    low, high = (value.item() for value in torch.aminmax(x.detach()))
    if not (low >= 0.0 and high <= 1.0):  # a comparison with NaN is false
        bad = ~((x >= 0) & (x <= 1)).flatten(1).all(1)
        first = int(bad.nonzero()[0])
        if torch.isnan(x[first]).any():
            raise InputError(f"image {first} holds NaN ({int(bad.sum())} bad of {len(x)}); clean the input")
        raise InputError(
            f"images must lie in [0, 1], but image {first} spans "
            f"[{x[first].min():.4g}, {x[first].max():.4g}]; scale them to [0, 1] and let the model "
            "normalise inside (saliency_lab.wrap makes such a model of one that does not)"
        )
    return x


def check_dense(tensor: Tensor, name: str) -> None:
    """Refuse a tensor without data (of the device "meta"), a sparse or nested one, and a quantised one.

    Raises
    ------
    InputError
        Says what to do; the message begins with `name`.
    """
    if tensor.is_meta:
        raise InputError(f"{name} are a tensor of the device 'meta', which has no data; make it on the CPU")
    if tensor.is_quantized:
        raise InputError(f"{name} are a quantised tensor, {tensor.dtype}; use .dequantize()")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise InputError(f"{name} must be a dense tensor, not {tensor.layout}; use .to_dense()")


def _batch_of(x: object) -> str:
    """Return how to make a tensor of images from what was given."""
    items = list(x[:1]) if isinstance(x, tuple | list) else [x]
    if any(isinstance(each, str | PathLike) or hasattr(each, "getbands") for each in items):
        return "read files and PIL images with saliency_lab.load_images"
    if isinstance(x, Mapping):
        return "choose one part of it, such as data['test']"
    if isinstance(x, tuple | list) and any(isinstance(each, Tensor) for each in x):
        return "unpack images and labels: x, y = batch (torch.stack makes one tensor of a list of images)"
    return "use torch.as_tensor"


def check_logits(output: object, count: int) -> Tensor:
    """Return a model's `output` if it is logits (count, K) of K ≥ 2 classes, one row per image.

    Every entry point that runs a model uses this check. The message shows the wrapper that would do.

    Raises
    ------
    InputError
        If it is no tensor, or one of another shape.
    """
    if isinstance(output, Tensor):
        if output.ndim == 2 and len(output) == count and output.shape[1] > 1:
            return output
        raise InputError(_wrong_output(tuple(output.shape), count))
    parts = [".logits"] if hasattr(output, "logits") else []
    if not parts and isinstance(output, Mapping):
        parts = [f'["{key}"]' for key, value in output.items() if isinstance(value, Tensor)]
    raise InputError(
        f"the model must return logits (N, K), one row per image, but it returned {type(output).__name__}; "
        f"wrap it in a module whose forward returns model(x){parts[0] if parts else '[0]'}, or wherever its "
        "logits are (saliency_lab.wrap does this for image classifiers of transformers)"
    )


def _wrong_output(shape: tuple[int, ...], count: int) -> str:
    """Say why an output of this shape for `count` images is no logits, and how to wrap the model."""
    shown = str(shape)
    if shape[:1] == (count,):
        shown = f"({', '.join(['N', *map(str, shape[1:])])}{',' if len(shape) == 1 else ''})"
    must = "the model must return logits (N, K) of two classes or more, one row per image, but it returned"
    if shape in ((count,), (count, 1)):
        return (
            f"{must} one number per image, {shown}; for a binary classifier use sl.BinaryLogits(model), "
            "which returns the logits of both classes"
        )
    if len(shape) == 4 and shape[0] == count:
        return (
            f"{must} a map per image, {shown}, as for segmentation; wrap it in a module whose forward "
            "returns one number per class, such as model(x).mean((2, 3)), or the mean over a region"
        )
    return f"{must} {shown} for {number_of(count, 'image')}"


def check_default_dtype(what: str) -> None:
    """Refuse to do `what` where new tensors are not of float32 unless that is asked for.

    Raises
    ------
    InputError
        If `torch.set_default_dtype` has set another type.
    """
    if (default := torch.get_default_dtype()) != torch.float32:
        raise InputError(
            f"torch's default type is {default}, and {what} need float32; call "
            "torch.set_default_dtype(torch.float32)"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Return whether outputs (N, K) are probabilities: every row lies in [0, 1] and sums to 1.

    >>> are_probabilities(torch.tensor([[0.25, 0.75]])), are_probabilities(torch.tensor([[0.25, 0.5]]))
    (True, False)
    """
    outputs = outputs.detach().cpu().double()
    return bool((outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-4).all())


def refuse_probabilities(outputs: Tensor, instead: str) -> None:
    """Refuse outputs (N, K) that are probabilities already, where a second softmax would flatten them.

    Raises
    ------
    InputError
        Says what to do; `instead` names what works on probabilities.
    """
    if are_probabilities(outputs):
        raise InputError(
            "the model returns probabilities, not logits: its outputs lie in [0, 1] and sum to 1; "
            f"remove its last softmax, or {instead}"
        )


def check_seed(seed: int) -> int:
    """Return `seed` as an int if it is a whole number from 0.

    Raises
    ------
    InputError
        If it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer from 0 to 2⁶³ − 1, not {seed!r}")
    return int(seed)


def check_labels(y: Tensor, count: int, num_classes: int | None = None) -> Tensor:
    """Return `y` as int64 (N,) if it holds one class index per image.

    Raises
    ------
    InputError
        If its length is not `count`, it is not integral, or a label is outside 0 … num_classes − 1.
    """
    if not isinstance(y, Tensor):
        if isinstance(y, str):
            raise InputError(
                f"labels must be a torch tensor, not the text {y!r}; name a method by keyword, method={y!r}, "
                "and a metric by metric=…"
            )
        raise InputError(f"labels must be a torch tensor, not {type(y).__name__}; use torch.as_tensor")
    check_dense(y, "labels")
    if y.ndim == 2 and len(y) == count:
        raise InputError(
            f"labels must be one class per image, ({count},), not {tuple(y.shape)}; for one-hot labels use "
            "y.argmax(1); for several labels per image explain one at a time, label k by "
            "sl.BinaryLogits(model, output=k) with y[:, k].long()"
        )
    if y.ndim != 1 or len(y) != count:
        raise InputError(f"labels must have the shape ({count},), one per image, not {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise InputError(f"labels must be integers, not {y.dtype}; use y.long()")
    y = y.long()
    bad = y < 0 if num_classes is None else (y < 0) | (y >= num_classes)
    if bad.any():
        first = int(bad.nonzero()[0])
        bound = "≥ 0" if num_classes is None else f"in 0 … {num_classes - 1}"
        raise InputError(f"labels must be {bound}, but label {first} is {int(y[first])}")
    return y


def parse_epsilon(value: float | str, *, name: str = "eps") -> float:
    """Return ε in units of the image range [0, 1]; text such as "8/255" is accepted.

    >>> parse_epsilon("8/255") == 8 / 255
    True
    >>> parse_epsilon(-0.1)
    Traceback (most recent call last):
    ...
    saliency_lab._common.errors.InputError: eps must be a finite number ≥ 0 such as 0.1 or "8/255", not -0.1
    """
    problem = InputError(f'{name} must be a finite number ≥ 0 such as 0.1 or "8/255", not {value!r}')
    if isinstance(value, bool | bytes) or getattr(value, "ndim", 0) != 0:
        raise problem
    try:
        if isinstance(value, str):
            above, _, below = value.partition("/")
            number = float(above) / float(below or 1)
        else:
            number = float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise problem from None
    if not 0 <= number < float("inf"):
        raise problem
    return number


def same_epsilon(one: float, other: float) -> bool:
    """Whether two ε are the same radius, of which one may have been written with six digits.

    >>> same_epsilon(0.0313725, 8 / 255), same_epsilon(0.0314, 8 / 255)
    (True, False)
    """
    return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-9)


def format_epsilon(eps: float) -> str:
    """Write ε as a user would: a short decimal, or else a fraction of 255 levels.

    >>> format_epsilon(0.1), format_epsilon(8 / 255), format_epsilon(1 / 3), format_epsilon(0.123456)
    ('0.1', '8/255', '1/3', '0.1235')
    """
    short = f"{eps:.4g}"
    if math.isclose(float(short), eps, rel_tol=1e-7):
        return short
    for below in (*range(3, 10), 255):
        above = round(eps * below)
        if above and math.isclose(above / below, eps, rel_tol=1e-6):
            return f"{above}/{below}"
    return short


def parse_radii(eps: float | str | Iterable[float | str]) -> list[float]:
    """Return one ε or several as distinct radii in ascending order.

    >>> parse_radii([0.2, 0, "51/255"]), parse_radii(0.1)
    ([0.0, 0.2], [0.1])
    """
    if isinstance(eps, bytes | Mapping):
        raise InputError(f'eps must be one radius or several, such as 0.1 or ["8/255", 0.1], not {eps!r}')
    given: list[Any] = list(eps) if holds_several(eps) else [eps]
    radii = sorted({parse_epsilon(value) for value in given})
    if not radii:
        raise InputError("eps must hold at least one radius, such as 0.1 or [0.1, 0.2]")
    return radii


def holds_several(eps: object) -> TypeGuard[Iterable[float | str]]:
    """Return whether this is a sequence of radii, not a single one (text, a number or a 0-d tensor).

    >>> holds_several([0.1]), holds_several("8/255"), holds_several(torch.tensor(0.1))
    (True, False, False)
    """
    return isinstance(eps, Iterable) and not isinstance(eps, str) and getattr(eps, "ndim", 1) > 0


def check_masks(masks: Tensor, x: Tensor) -> Tensor:
    """Return a boolean copy of the masks (N, 1, H, W) of images (N, C, H, W)."""
    shape = (len(x), 1, *x.shape[2:])
    if isinstance(masks, Tensor):
        check_dense(masks, "masks")
    if not isinstance(masks, Tensor) or tuple(masks.shape) != shape:
        actual = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise InputError(
            f"masks must be a Tensor {shape}, true where the evidence for the label is, not {actual}"
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise InputError("masks must hold 0 and 1 (or False and True) only")
    return masks != 0  # a copy, because the caller's tensor may change
