"""The calls a model makes (relu, conv2d, add, …), seen and replaced while it runs.

A rule is attached to the call and not to a module. So a ReLU that is a module, a function, in place, or one
module used twice is treated alike, no hook is registered, and no copy of the model is needed. What cannot be
seen are calls inside TorchScript and inside a function compiled by `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from saliency_lab._common.errors import InputError

Call = Callable[..., Any]


def calls(*names: str) -> frozenset[Call]:
    """What goes by these names in torch, torch.nn.functional and Tensor, in place or not."""
    places = (torch, F, Tensor)
    spelt = [spelling for name in names for spelling in (name, f"{name}_")]
    return frozenset(getattr(place, name) for place in places for name in spelt if hasattr(place, name))


RELU = calls("relu")
MAX_POOL = calls("max_pool2d")
ELEMENTWISE = calls(
    *(
        "elu",
        "celu",
        "selu",
        "gelu",
        "silu",
        "mish",
        "leaky_relu",
        "softplus",
        "sigmoid",
        "logsigmoid",
        "tanh",
    ),
    *(
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "relu6",
        "softsign",
        "exp",
        "abs",
        "sqrt",
        "square",
        "pow",
        "clamp",
    ),
)
INTERACTIONS = calls(
    *("mul", "multiply", "div", "true_divide", "matmul", "bmm", "mm", "einsum", "baddbmm", "__matmul__"),
)
MIXING = calls(
    *(
        "softmax",
        "log_softmax",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "local_response_norm",
        "normalize",
    ),
    *("multi_head_attention_forward", "scaled_dot_product_attention"),
)


def check_visible(model: nn.Module, method: str) -> None:
    """Refuse a model of which a part was scripted or compiled: its calls cannot be seen.

    Raises
    ------
    InputError
        Names the part.
    """
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if scripted or compiled:
            kind = "scripted" if scripted else "compiled"
            raise InputError(
                f"{method} must see the calls the model makes, and {name or 'the model'} is {kind}; pass the "
                "module it was made from, or use 'saliency' or 'integrated_gradients'"
            )


class Rule(TorchFunctionMode):
    """While active, calls that the model makes go through `call`; a subclass says what becomes of them."""

    def __torch_function__(self, func: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what the model asked for."""
        return func(*args, **kwargs)


def is_in_place(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of an elementwise function changes its argument."""
    name = getattr(func, "__name__", "")
    return bool(kwargs.get("inplace", False)) or (name.endswith("_") and not name.endswith("__"))


def deliver(result: Tensor, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Hand over the replacement's result, by changing the argument if that is what was asked for."""
    return args[0].copy_(result) if is_in_place(func, args, kwargs) else result


def interacts(func: Call, args: tuple[Any, ...]) -> bool:
    """Whether a call mixes values in a way that no elementwise or linear rule covers.

    It multiplies or divides two tensors that both depend on the image (the only tensors that take a
    gradient), or normalises or attends over several values.
    """
    if func in INTERACTIONS:
        tensors = [each for each in args if isinstance(each, Tensor) and each.requires_grad]
        return len(tensors) > 1
    return func in MIXING and any(isinstance(each, Tensor) and each.requires_grad for each in args)


class _Recorder(Rule):
    """Notes which module makes which call."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, Call, bool]] = []

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append((self.stack[-1] if self.stack else "", func, interacts(func, args)))
        return func(*args, **kwargs)


@contextmanager
def _names_tracked(model: nn.Module, stack: list[str]) -> Iterator[None]:
    handles = []
    try:
        for name, module in model.named_modules():
            text = f"{name or 'the model'} ({type(module).__name__})"
            enter = module.register_forward_pre_hook(lambda *_, text=text: stack.append(text))
            leave = module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True)
            handles += [enter, leave]
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, image: Tensor) -> list[tuple[str, Call, bool]]:
    """Every call of one forward pass on `image` (1, C, H, W): the module, the function, `interacts`."""
    recorder = _Recorder()
    with _names_tracked(model, recorder.stack), torch.enable_grad():
        point = image.detach().clone().requires_grad_(True) * 1.0  # no leaf: a model may change it in place
        with recorder:
            model(point)
    return recorder.seen


def refuse(method: str, why: str, culprits: list[tuple[str, Call]], instead: str) -> NoReturn:
    """Raise the error that names the first modules a method cannot treat."""
    told = list(dict.fromkeys(f"{module} calls {_spelt(func)}" for module, func in culprits))
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    raise InputError(f"{method} {why}: {'; '.join(told[:3])}{more}. {instead}")


def _spelt(func: Call) -> str:
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional", "F").removeprefix("torch.")
