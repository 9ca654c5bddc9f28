"""The calls a model makes (relu, conv2d, add, …), seen and replaced while it runs.

A rule is attached to the call and not to a module. So a ReLU that is a module, a function, in place, or one
module used twice is treated alike, no hook is registered, and no copy of the model is needed. What cannot be
seen are calls inside TorchScript (`check_visible`) and inside a custom autograd function (`check_functions`),
which a function compiled by `torch.compile` is, too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode, resolve_name

from saliency_lab._common.errors import InputError
from saliency_lab._common.threads import in_this_thread

Call = Callable[..., Any]


def calls(*names: str) -> frozenset[Call]:
    """Return what goes by these names in torch, torch.nn.functional and Tensor, in place or not."""
    places = (torch, F, Tensor)
    spelt = [spelling for name in names for spelling in (name, f"{name}_")]
    return frozenset(getattr(place, name) for place in places for name in spelt if hasattr(place, name))


RELU = calls("relu")
MAX_POOL = calls("max_pool2d", "adaptive_max_pool2d")
ELEMENTWISE = calls(
    *("elu", "celu", "selu", "gelu", "silu", "mish", "leaky_relu", "prelu", "rrelu", "threshold", "softplus"),
    *("sigmoid", "logsigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "relu6", "softsign"),
    *("softshrink", "hardshrink", "tanhshrink", "clamp", "clamp_min", "clamp_max", "clip"),
    *("maximum", "minimum", "exp", "expm1", "log", "log1p", "abs", "sqrt", "rsqrt", "square", "pow"),
    *("__pow__", "__rpow__", "reciprocal", "__rtruediv__", "sin", "cos", "erf", "atan", "arctan"),
)
"""Nonlinear functions of each value of the first argument, where the others do not depend on the image."""
DIVISIONS = calls("div", "divide", "true_divide")
PRODUCTS = calls("mul", "multiply", "__rmul__") | DIVISIONS
CONTRACTIONS = calls(
    *("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "einsum", "tensordot", "addmm", "baddbmm")
)
AVERAGE_POOL = calls("avg_pool2d", "adaptive_avg_pool2d", "mean")
SHAPES = calls(
    *("flatten", "unflatten", "ravel", "reshape", "view", "reshape_as", "view_as", "permute", "transpose"),
    *(
        "swapaxes",
        "movedim",
        "t",
        "contiguous",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "broadcast_to",
    ),
    *("cat", "concat", "concatenate", "stack", "chunk", "split", "unbind", "__getitem__", "select", "narrow"),
    *("pad", "flip", "roll", "pixel_shuffle", "pixel_unshuffle", "clone", "detach", "requires_grad"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"),
    *("feature_alpha_dropout", "to", "float", "double", "type_as"),
) | {Tensor.T.__get__, Tensor.mT.__get__}  # type: ignore[attr-defined]
"""They move values and change none (in eval mode)."""


OUTPUTS_ONLY = (
    "use a method that needs only the outputs and their gradients, such as 'saliency' or "
    "'integrated_gradients'"
)


def check_visible(model: nn.Module, method: str, otherwise: str | None = OUTPUTS_ONLY) -> None:
    """Refuse a model of which a part was scripted, traced or compiled: what happens inside cannot be seen.

    Every method that needs more than the model's outputs and their gradients uses this check. `otherwise`
    is what else to do than to pass the module itself.

    Raises
    ------
    InputError
        Names the part.
    """
    if hidden := hidden_part(model):
        raise InputError(
            f"{method} must see the modules and calls inside the model, but {hidden[0]} was {hidden[1]}, "
            f"which hides them; pass the module it was made from{f', or {otherwise}' if otherwise else ''}"
        )


def hidden_part(model: nn.Module) -> tuple[str, str] | None:
    """Return the first part that was scripted, traced or compiled, and which of these, or None."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.TracedModule | torch.jit.TopLevelTracedModule):
            return name or "the model", "traced"
        if isinstance(module, torch.jit.ScriptModule):
            return name or "the model", "scripted"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return name or "the model", "compiled"
    return None


class Rule(TorchFunctionMode):
    """While active, calls that the model makes go through `call`; a subclass says what becomes of them.

    However the model spells a call, `input` and `other` come first in `args`, and `inplace` is in `kwargs`.
    """

    def __torch_function__(self, func: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, *_spelt_alike(func, tuple(args), dict(kwargs or {})))

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what the model asked for."""
        return func(*args, **kwargs)


def out_of_place(func: Call) -> Call:
    """Return the same function without the trailing underscore."""
    name = func.__name__
    if not name.endswith("_") or name.endswith("__"):
        return func
    return next(getattr(place, name[:-1]) for place in (torch, F, Tensor) if hasattr(place, name[:-1]))


def is_in_place(func: Call, kwargs: dict[str, Any]) -> bool:
    """Return whether a call of an elementwise function changes its argument."""
    name = getattr(func, "__name__", "")
    return bool(kwargs.get("inplace", False)) or (name.endswith("_") and not name.endswith("__"))


def deliver(result: Tensor, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Hand over the replacement's result, by changing the argument if that is what was asked for."""
    return args[0].copy_(result) if is_in_place(func, kwargs) else result


def _spelt_alike(
    func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `args` and `kwargs` as a rule reads them."""
    for place, name in enumerate(("input", "other")):
        if len(args) == place and name in kwargs and "condition" not in kwargs:  # torch.where begins with it
            args = (*args, kwargs.pop(name))
    place = _place_of_inplace(func)
    if 0 < place < len(args):
        args, kwargs["inplace"] = args[:place] + args[place + 1 :], args[place]
    return args, kwargs


@cache
def _place_of_inplace(func: Call) -> int:
    """Return where a function of torch.nn.functional takes `inplace`, its last argument; 0 if it does not."""
    if getattr(func, "__module__", None) != F.__name__:
        return 0
    names = list(inspect.signature(func).parameters)
    return names.index("inplace") if "inplace" in names else 0


def softmax_dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the dimension of a softmax or log Σ exp; torch's implicit one if the arguments name none."""
    dim = kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else None
    if dim is None:
        return 0 if args[0].ndim in (0, 1, 3) else 1
    return dim


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        yield from tensors_in([*value.values()])


def depending(*parts: Any) -> list[Tensor]:
    """Return the tensors in nested arguments that depend on the image: those that take a gradient."""
    return [tensor for tensor in tensors_in(parts) if tensor.requires_grad]


class Traced(NamedTuple):
    """A call, and the name and module of the innermost `forward` that makes it."""

    name: str
    module: nn.Module
    func: Call


_SHAPE_ALONE = calls(
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"),
)
_LIKE_ANOTHER = calls("to", "type_as", "expand_as", "view_as", "reshape_as")
_ASSIGNMENT = calls("__setitem__")


class Ungraded:
    """Follows what depends on the image without a gradient, such as a mask `x > 0` or what was detached."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}  # by id

    def changes(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        """Note what a call returned; say whether it has a gradient, and depends on what has none as well."""
        if func in _SHAPE_ALONE:
            return False
        given = args[:1] if func in _LIKE_ANOTHER else (args, kwargs)
        ungraded = any(id(each) in self.kept for each in tensors_in(given))
        results = list(tensors_in(args[:1] if func in _ASSIGNMENT else output))
        if ungraded or depending(given):
            self.kept |= {id(each): each for each in results if not each.requires_grad}
        return ungraded and bool(depending(results))


def uses_batch_statistics(func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call normalises by the mean and variance of its input, and not by constants."""
    if func is torch.batch_norm:
        mean, training = args[3], args[5]
    elif func is F.batch_norm:
        mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
        training = args[5] if len(args) > 5 else kwargs.get("training", False)
    else:
        return False
    return mean is None or bool(training)


Question = Callable[[Call, tuple[Any, ...], dict[str, Any], list[Tensor]], bool]
"""Asked of a function, its arguments, and those tensors among them that depend on the image."""


class _Recorder(Rule):
    """Notes which module makes which call, where the result depends on the image and the answer is yes."""

    def __init__(self, model: nn.Module, question: Question) -> None:
        super().__init__()
        self.question = question
        self.running: list[tuple[str, nn.Module]] = [("", model)]
        self.seen: list[Traced] = []

    def call(self, func: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        noted = self.question(func, args, kwargs, depending(args, kwargs))
        output = func(*args, **kwargs)
        if noted and depending(output):
            self.seen.append(Traced(*self.running[-1], func))
        return output


@contextmanager
def track_modules(model: nn.Module, running: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep names and modules whose `forward` is running in `running`, the innermost one last."""

    def enter(name: str, module: nn.Module, _: tuple[Any, ...]) -> None:
        running.append((name, module))

    def leave(*_: Any) -> None:
        running.pop()

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            entered = in_this_thread(functools.partial(enter, name))
            hooks.enter_context(module.register_forward_pre_hook(entered))
            hooks.enter_context(module.register_forward_hook(in_this_thread(leave), always_call=True))
        yield


def describe_module(running: list[tuple[str, nn.Module]]) -> str:
    """Name and class of the innermost running module, for messages."""
    name, module = running[-1] if running else ("", None)
    return "" if module is None else f"{name or 'the model'} ({type(module).__name__})"


def trace(model: nn.Module, image: Tensor, question: Question) -> list[Traced]:
    """Return the calls in a pass on `image` (1, C, H, W) that `question` accepts, in their order."""
    recorder = _Recorder(model, question)
    with track_modules(model, recorder.running), torch.enable_grad():
        point = image.detach().clone().requires_grad_(True) * 1.0  # no leaf: a model may change it in place
        with recorder:
            model(point)
    return recorder.seen


def check_functions(outputs: Tensor, model: nn.Module, image: Tensor, method: str) -> None:
    """Refuse a model that calls a custom autograd function, of which torch knows the derivative alone.

    `outputs` are those of a run; `image` (1, C, H, W) is run again to find the module that makes the call.

    Raises
    ------
    InputError
        Names the function, and the module.
    """
    hidden = _custom_functions(outputs)
    if not hidden:
        return
    running: list[tuple[str, nn.Module]] = []
    found: dict[Any, str] = {}

    def leave(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = _custom_functions(inputs, kwargs)
        for node, name in _custom_functions(output).items():  # the innermost module returns first
            if node not in before:
                found.setdefault(node, f"{describe_module(running)} calls {name}")

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(in_this_thread(leave), with_kwargs=True))
        with torch.enable_grad(), track_modules(model, running):
            model(image.detach().clone().requires_grad_(True) * 1.0)
    named = found or {node: f"{type(model).__name__} calls {name}" for node, name in hidden.items()}
    clauses = list(dict.fromkeys(named.values()))
    more = f" and {len(clauses) - 3} more" if len(clauses) > 3 else ""
    hooks_alone = all("BackwardHookFunction" in name for name in hidden.values())
    advice = "Remove the model's backward hooks" if hooks_alone else "Write it with torch's own functions"
    raise InputError(
        f"{method} must see the calls inside the model, and a custom autograd function hides them: "
        f"{'; '.join(clauses[:3])}{more}. {advice}, or {OUTPUTS_ONLY}"
    )


def _custom_functions(*outputs: Any) -> dict[Any, str]:
    """Return the names of custom autograd functions in the graph of tensors, without this package's own."""
    waiting = [each.grad_fn for each in tensors_in(outputs)]
    seen, found = set(), {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            function = type(node)._forward_cls
            if not function.__module__.startswith("saliency_lab."):
                found[node] = function.__name__
        elif "CppNode" in node.name():  # a custom function that an extension has in C++
            found[node] = node.name()
    return found


def refuse(method: str, why: str, culprits: list[Traced], instead: str) -> NoReturn:
    """Raise the error that names the first modules a method cannot treat."""
    clauses = list(
        dict.fromkeys(f"{describe_module([each[:2]])} calls {_spelt(each.func)}" for each in culprits)
    )
    more = f" and {len(clauses) - 3} more" if len(clauses) > 3 else ""
    listed = f": {'; '.join(clauses[:3])}{more}" if clauses else ""
    raise InputError(f"{method} {why}{listed}. {instead}")


def _spelt(func: Call) -> str:
    name = resolve_name(func) or getattr(func, "__name__", repr(func))
    return name.replace("torch.nn.functional", "F").removeprefix("torch.")
