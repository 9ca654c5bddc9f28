"""What a map explains: the logit of a class, one class per sample, or the difference of two logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from saliency_lab._common.checks import are_probabilities, check_labels, check_logits
from saliency_lab._common.errors import InputError
from saliency_lab._common.passes import predict_many

ClassSpec: TypeAlias = Literal["label", "prediction"] | int | Tensor
TargetSpec: TypeAlias = ClassSpec | tuple[ClassSpec, ClassSpec]
"""`"label"`, `"prediction"`, a class, a tensor (N,) of classes; a pair: the first logit minus the second."""


@dataclass(frozen=True, eq=False)
class Target:
    """The classes of n samples, those they are set against (None: plain logits), and the highest of all.

    `probabilities` are those of the classes, float32 (n,), where finding the classes took the predictions.
    """

    classes: Tensor
    against: Tensor | None
    highest: int
    probabilities: Tensor | None = None

    def pick(self, logits: Tensor) -> Tensor:
        """Score (n,) of each row of `logits` (n, K): one logit, or the difference of two.

        Raises
        ------
        InputError
            If `logits` has another shape, or no such class.
        """
        check_logits(logits, len(self.classes))
        if self.highest >= logits.shape[1]:
            raise InputError(f"the model has the classes 0 … {logits.shape[1] - 1}, not {self.highest}")
        score = logits.gather(1, self.classes[:, None])[:, 0]
        if self.against is not None:
            score = score - logits.gather(1, self.against[:, None])[:, 0]
        return score

    def repeat(self, times: int) -> Target:
        """Return the same samples `times` over: all of them, then all of them again."""
        against = None if self.against is None else self.against.repeat(times)
        return replace(self, classes=self.classes.repeat(times), against=against)

    def rows(self, start: int, stop: int, device: torch.device) -> Target:
        """Return samples start … stop − 1, on a device."""
        against = None if self.against is None else self.against[start:stop].to(device)
        return replace(self, classes=self.classes[start:stop].to(device), against=against)


def resolve_target(model: nn.Module, x: Tensor, y: Tensor | None, spec: TargetSpec) -> Target:
    """Turn the setting `target` into one class (or two) per sample, on the CPU.

    Raises
    ------
    InputError
        If a label is needed and missing, or is no class index. Whether the model has the class is
        known at its first pass (`Target.pick`).
    """
    pair = spec if isinstance(spec, tuple) else (spec,)
    if len(pair) not in (1, 2):
        raise InputError(f"target: a contrast is a pair (class, against), not {len(pair)} entries")
    chosen: list[Tensor] = []
    probabilities: list[Tensor | None] = []
    for each in pair:
        if isinstance(each, str) and each == "prediction":
            logits = predict_many(model, x)
            chosen.append(logits.argmax(1))
            shares = logits if are_probabilities(logits) else logits.softmax(1)
            probabilities.append(shares.amax(1))
        else:
            chosen.append(_classes(each, x, y))
            probabilities.append(None)
    highest = max(int(each.max()) for each in chosen)
    return Target(chosen[0], chosen[1] if len(chosen) == 2 else None, highest, probabilities[0])


def target_of_rows(spec: TargetSpec, rows: Tensor) -> TargetSpec:
    """Return the setting `target` for the images at `rows`: a tensor (N,) is cut to these.

    >>> target_of_rows((torch.tensor([3, 4, 5]), "label"), torch.tensor([2]))
    (tensor([5]), 'label')
    """

    def cut(each: ClassSpec) -> ClassSpec:
        return each[rows] if isinstance(each, Tensor) and each.ndim == 1 else each

    return (cut(spec[0]), cut(spec[1])) if isinstance(spec, tuple) else cut(spec)


def describe_target(spec: TargetSpec) -> str:
    """Return one line for reprs and files.

    >>> describe_target(("label", 3))
    'label − class 3'
    """
    if isinstance(spec, tuple):
        return " − ".join(describe_target(each) for each in spec)
    if isinstance(spec, Tensor):
        return "given classes"
    return f"class {spec}" if isinstance(spec, int | np.integer) else str(spec)


def _classes(spec: ClassSpec, x: Tensor, y: Tensor | None) -> Tensor:
    if isinstance(spec, Tensor):
        return check_labels(spec, len(x)).cpu().clone()
    if isinstance(spec, int | np.integer) and not isinstance(spec, bool):
        if spec < 0:
            raise InputError(f"target: a class is 0 or more, not {spec}")
        return torch.full((len(x),), int(spec), dtype=torch.int64)
    if isinstance(spec, str) and spec == "label":
        if y is None:
            raise InputError(
                'target="label" needs y, one label per image; or use target="prediction" or a class'
            )
        return check_labels(y, len(x)).cpu().clone()  # the caller's may be an inference tensor
    raise InputError(
        f'target must be "label", "prediction", a class, a tensor (N,) of classes or a pair of these, '
        f"not {spec!r}"
    )
