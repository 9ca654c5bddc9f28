"""The items of the checklist that look at the model alone: batches, outputs and repeated passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saliency_lab._common.checks import are_probabilities
from saliency_lab._common.inference import (
    any_differ,
    chunk_rows,
    depends_on_batch,
    device_of,
    predict,
    run_without_graph,
)
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.attacks.verdict import Check


def check_batch_independence(model: nn.Module, x: Tensor, logits: Tensor) -> Check:
    """Check that an image's logits do not change with the rest of its batch."""
    if len(x) < 2:
        return Check("batch independence", "skipped", "one image has no batch to depend on", {}, "model")
    if depends_on_batch(model, x, logits):
        evidence = "an image alone has other logits than in a batch, so attacks on batches mean nothing"
        return Check("batch independence", "fail", evidence, {"depends": 1.0}, "model")
    return Check(
        "batch independence", "pass", "an image alone has the same logits", {"depends": 0.0}, "model"
    )


def check_outputs(logits: Tensor, y: Tensor) -> Check:
    """Check that the outputs are logits, and that the accuracy fits images in [0, 1]."""
    accuracy = (logits.argmax(1) == y).double().mean().item()
    chance = 1 / logits.shape[1]
    if are_probabilities(logits):
        evidence = (
            "the outputs are probabilities, not logits: the cross-entropy takes a second softmax of them"
        )
        return Check("units and outputs", "fail", evidence, {"accuracy": accuracy}, "model")
    if accuracy <= min(2 * chance, (1 + chance) / 2):
        evidence = (
            f"clean accuracy is {accuracy:.1%}, near chance ({chance:.1%}): does the model expect normalised "
            "images? saliency_lab.Normalised(model, mean, std) wraps one that does"
        )
        return Check("units and outputs", "warn", evidence, {"accuracy": accuracy})
    evidence = f"images in [0, 1], logits, clean accuracy {accuracy:.1%}"
    return Check("units and outputs", "pass", evidence, {"accuracy": accuracy})


def check_determinism(model: nn.Module, x: Tensor) -> Check:
    """Check that repeated passes give the same logits, in eval mode and in the mode the model arrived in."""

    def spread(mode: Callable[[], Tensor]) -> float:
        passes = []
        for seed in (1, 2, 3):
            with preserved_rng(seed):
                passes.append(mode().argmax(1))
        return (torch.stack(passes) != passes[0]).any(0).double().mean().item()

    def logits_differ(mode: Callable[[], Tensor]) -> bool:
        return any_differ(mode, lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5))

    few = x.detach()[: chunk_rows(x.shape, device_of(model))]
    few = few.repeat(2, 1, 1, 1) if len(few) == 1 else few  # in train mode batch norm needs two
    in_eval = lambda: predict(model, few)  # noqa: E731
    as_given = lambda: _predict_as_given(model, few)  # noqa: E731
    if not isinstance(returned := as_given(), Tensor):
        evidence = (
            f"the model was in train mode and returns {type(returned).__name__} there, not logits; it is "
            "attacked in eval mode, so call model.eval() if that is the model you mean"
        )
        return Check("determinism", "warn", evidence, {"disagree": 0.0, "random": 0.0}, "model")
    inside = "; the model differentiates inside its forward pass" if _differentiates(model, few[:1]) else ""
    numbers = {"disagree": 0.0, "random": 0.0, "differentiates": float(bool(inside))}
    if logits_differ(in_eval):
        numbers |= {"disagree": spread(in_eval), "random": 1.0}
        evidence = (
            f"the model is random in eval mode: three passes disagree on {numbers['disagree']:.1%} of the "
            f"images; attack the mean of its draws with samples=20{inside}"
        )
        return Check("determinism", "fail", evidence, numbers, "model")
    if logits_differ(as_given):
        numbers["disagree"] = spread(as_given)
        active = ", ".join(
            name for name, module in model.named_modules() if module.training and _is_random(module)
        )
        evidence = (
            f"the model was in train mode and is random there ({active or 'an unknown module'}): "
            f"three passes disagree on {numbers['disagree']:.1%} of the images; it is attacked in eval mode, "
            f"so call model.eval() if that is the model you mean{inside}"
        )
        return Check("determinism", "warn", evidence, numbers, "model")
    return Check("determinism", "pass", f"repeated passes give the same logits{inside}", numbers, "model")


class _Differentiations(TorchFunctionMode):
    """Counts the gradients that are asked for inside."""

    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += getattr(func, "__name__", "") in ("grad", "backward")
        return func(*args, **(kwargs or {}))


def _differentiates(model: nn.Module, x: Tensor) -> bool:
    """Whether the model's forward pass itself asks for a gradient."""
    with _Differentiations() as mode:
        predict(model, x)
    return mode.count > 0


def _is_random(module: nn.Module) -> bool:
    return "dropout" in type(module).__name__.lower() or "stochasticdepth" in type(module).__name__.lower()


def _predict_as_given(model: nn.Module, x: Tensor) -> Any:
    """Outputs in the model's own mode; buffers, such as BatchNorm's statistics, are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        logits = run_without_graph(model, x.to(device_of(model)))
        return logits.float().cpu() if isinstance(logits, Tensor) else logits
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
