"""Fingerprints of settings, functions and networks, which change whenever their results may change."""

from __future__ import annotations

import copyreg
import dis
import functools
import inspect
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.own_code import is_installed, is_known, used_globals


def model_fingerprint(model: nn.Module) -> str:
    """Hash what a model computes: its printed form, its parameters and buffers, and its own code.

    A module whose class is not part of torch, torchvision or saliency_lab counts with the code of the class
    and with its public attributes. Attributes whose name starts with an underscore do not count, and neither
    do tensors and containers that a method other than `__init__` assigns, such as the activations of the last
    pass. A forward hook counts with its code and the numbers and texts that it uses, but not with tensors and
    containers, in which hooks keep what they saw. A module that `torch.compile` returned counts as the
    network that was compiled. A `__cache_key__`, see `canonical`, replaces code, attributes and hooks, but
    not parameters and buffers.

    Returns
    -------
    str
        32 hexadecimal digits.

    Raises
    ------
    InputError
        If the content of such an attribute cannot be hashed, or the state holds something that is not a
        tensor, as that of networks quantised by `torch.ao` does.
    """
    return _model_fingerprint(model, _Visited())


def canonical(value: Any) -> Any:
    """Reduce settings to values that JSON can hold; tensors, arrays and functions become hashes of their
    content.

    A function counts with its source text, its defaults, the values that it closes over and the globals that
    it uses (see `used_globals`), another callable with its class and its attributes. Functions and classes of
    installed libraries count with their name.

    Any object, function or class can provide a `__cache_key__` instead: a text, or a method that returns one.
    It must change whenever the results of the object may change.

    >>> canonical({"sigma": np.float32(0.5), "sizes": (1, 2), "baseline": torch.zeros(2)})
    {'sigma': 0.5, 'sizes': [1, 2], 'baseline': 'tensor ...'}
    >>> class Segmenter:
    ...     __cache_key__ = "felzenszwalb, scale 100"
    >>> canonical(Segmenter())
    'key ...Segmenter: felzenszwalb, scale 100'

    Raises
    ------
    InputError
        If the content of an object cannot be hashed.
    """
    if isinstance(value, BaseModel):
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): canonical(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [
            canonical(each) for each in (_ordered(value) if isinstance(value, set | frozenset) else value)
        ]
    if isinstance(value, Tensor):
        return f"tensor {fingerprint(value)}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {fingerprint(torch.from_numpy(np.ascontiguousarray(value)))}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, nn.Module):
        return f"model {model_fingerprint(value)}"
    if value is None or isinstance(value, str | int | float):
        return value
    if key := _cache_key(value):
        return key
    return f"{'function' if callable(value) else 'object'} {fingerprint(_description(value, _Visited()))}"


def _cache_key(value: Any) -> str:
    """Return the name of an object and the key that it provides; empty if it provides none.

    Raises
    ------
    InputError
        If the key is not text.
    """
    key = getattr(value, "__cache_key__", None)
    if key is None:
        return ""
    owner = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    if callable(key) and not inspect.isclass(value):
        key = key()
    if not isinstance(key, str) or not key:
        raise InputError(
            f"the __cache_key__ of {_name(owner)} must be text, or a method that returns text, not {key!r}"
        )
    return f"key {_name(owner)}: {key}"


# --- what a model computes, apart from its parameters -------------------------------------------


class _Visited:
    """The objects that have been described, numbered, and those that are being described.

    Attributes
    ----------
    path : set of int
        Identities of the objects that are being described, to stop at cycles.
    numbers : dict
        Identity → (number, object). The object is kept alive, so that no other one gets its identity.
    """

    def __init__(self) -> None:
        self.path: set[int] = set()
        self.numbers: dict[int, tuple[int, object]] = {}

    def add(self, value: object) -> None:
        self.numbers.setdefault(id(value), (len(self.numbers), value))


def _model_fingerprint(model: nn.Module, visited: _Visited) -> str:
    if _is_compiled(model):
        model = model._orig_mod  # type: ignore[assignment]
    visited.add(model)
    key = _cache_key(model)
    state: dict[str, Tensor] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_quantized:
            raise InputError(
                f"the state of the network ({type(model).__name__}) holds, as '{name}', a "
                f"{type(value).__name__} that is no plain tensor, as networks quantised by torch.ao do, so "
                "results cannot be kept apart by it; pass the network it was made from"
            )
    if key:
        return fingerprint(key, list(state), *state.values())
    more = _more_than_state(model, state, visited)
    values = (tensor.float() for tensor in state.values())
    return fingerprint(repr(model), list(state), *values, *([more] if more else []))


def _is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile` made this module, without importing its class (a second)."""
    return _name(type(module)) == "torch._dynamo.eval_frame.OptimizedModule"


def _more_than_state(model: nn.Module, state: Mapping[str, Tensor], visited: _Visited) -> dict[str, Any]:
    """Describe what the printed form and float32 values do not show; empty for known layers in float32."""
    classes: dict[str, Any] = {}
    modules, hooks = {}, {}
    for path, module in model.named_modules():
        kind = type(module)
        if not is_known(kind) and _name(kind) not in classes:
            classes[_name(kind)] = _class(kind, visited)
        attributes = _module_attributes(module, visited)
        if attributes or not is_known(kind):
            modules[path] = [_name(kind), attributes]
        if described := [_hook(hook) for hook in _hooks(module)]:
            hooks[path] = described
    facts = {
        "dtypes": {
            name: [str(tensor.dtype), fingerprint(tensor)]
            for name, tensor in state.items()
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != torch.float32
        },
        "buffers": {
            name: fingerprint(tensor)
            for name, tensor in model.named_buffers(remove_duplicate=False)
            if name not in state
        },
        "parameters": {  # those that the class leaves out of its state
            name: fingerprint(tensor)
            for name, tensor in model.named_parameters(remove_duplicate=False)
            if name not in state
        },
        "classes": classes,
        "modules": modules,
        "hooks": hooks,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _class(kind: type, visited: _Visited) -> Any:
    """Describe a class of modules by its code, or one of a library whose code resists that by its version."""
    path = set(visited.path)
    try:
        return _description(kind, visited)
    except InputError:
        library = kind.__module__.partition(".")[0]
        if not is_installed(library):
            raise
        visited.path = path  # what the attempt left there
        return [_name(kind), str(getattr(sys.modules[library], "__version__", ""))]


def _module_attributes(module: nn.Module, visited: _Visited) -> dict[str, Any]:
    """Return the attributes on which a module's output may depend and that its printed form may omit."""
    kind = type(module)
    silent = kind.__module__.startswith("torch.nn.") and kind.extra_repr is nn.Module.extra_repr
    unprinted = _unprinted(module) if is_known(kind) and not (silent or _is_compiled(module)) else set()
    attributes = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in ("training", "card"):
            continue
        replaced = name == "forward" and not _is_compiled(module)
        if is_known(kind) and not (silent or replaced or name in unprinted):
            continue
        if not isinstance(value, str | int | float) and name in _assigned_later(kind):
            continue
        try:
            attributes[name] = _description(value, visited)
        except InputError as error:
            raise InputError(
                f"the attribute '{name}' of the network's {kind.__qualname__}: {error}; if results do not "
                f"depend on it, call it '_{name}'"
            ) from None
    return attributes


def _unprinted(module: nn.Module) -> set[str]:
    """Return the settings of a known module that it reads, does not print, and does not have by default.

    `AvgPool2d` does not print `count_include_pad`, for example, and torchvision's `Permute` prints nothing.
    """
    kind, given = type(module), vars(module)
    prints = kind.extra_repr is not nn.Module.extra_repr or kind.__repr__ is not nn.Module.__repr__
    shown = repr(module) if prints else ""
    arguments = inspect.signature(kind.__init__).parameters.values()
    usual = {each.name: each.default for each in arguments}
    read = _read(kind)  # type: ignore[arg-type]
    if isinstance(module, nn.RNN):  # which takes any arguments
        usual["mode"] = "RNN_TANH"
    return {
        name
        for name, default in usual.items()
        if name in given
        and name in read
        and f"{name}=" not in shown
        and not (prints and default is inspect.Parameter.empty)  # printed without its name
        and not _is_default(given[name], default)
    }


@functools.cache
def _read(kind: type) -> set[str]:
    """Return the names of the attributes that the methods of a class read, apart from `__init__`."""
    return {
        step.argval
        for base in kind.__mro__
        if base not in (nn.Module, object)
        for name, function in vars(base).items()
        if inspect.isfunction(function) and name not in ("__init__", "extra_repr")
        for step in dis.get_instructions(function)
        if step.opname == "LOAD_ATTR"
    }


def _is_default(value: object, default: object) -> bool:
    """Return whether a setting is its default, such as 1, or (1, 1) where one number stands for both."""
    values = value if isinstance(value, tuple) and not isinstance(default, tuple) else (value,)
    return all(type(each) is type(default) and each == default for each in values)


def _hooks(module: nn.Module) -> list[Any]:
    """Return the forward hooks of a module that are the user's."""
    registered = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return [hook for hook in registered if not is_known(hook if inspect.isroutine(hook) else type(hook))]


def _hook(hook: Any) -> list[Any]:
    """Describe a forward hook by its code and the numbers and texts that it uses and does not assign."""
    if isinstance(hook, functools.partial):
        return ["partial", _hook(hook.func), _plain([*hook.args, *hook.keywords.values()])]
    if inspect.ismethod(hook):
        return [*_hook(hook.__func__), _attributes_of(hook.__self__)]
    if not inspect.isfunction(hook):
        call = type(hook).__call__
        return [_name(type(hook)), *(_hook(call) if inspect.isfunction(call) else []), _attributes_of(hook)]
    cells = zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True)
    used = used_globals(hook) | {name: cell.cell_contents for name, cell in cells if cell != _EMPTY}
    counted = {step.argval for step in dis.get_instructions(hook) if step.opname in _ASSIGNS}
    kept = [value for name, value in used.items() if name not in counted]
    return [_text(hook), _plain([*kept, *(hook.__defaults__ or ()), *(hook.__kwdefaults__ or {}).values()])]


_ASSIGNS = ("STORE_DEREF", "STORE_GLOBAL")


def _plain(values: Iterable[Any]) -> list[str | int | float | None]:
    return [each for each in values if each is None or isinstance(each, str | int | float)]


def _attributes_of(value: object) -> dict[str, str | int | float | None]:
    """Return the numbers and texts that an object holds, without those that its methods assign."""
    later = _assigned_later(type(value))
    return {
        name: each
        for name, each in getattr(value, "__dict__", {}).items()
        if name not in later and (each is None or isinstance(each, str | int | float))
    }


def _assigned_later(kind: type) -> set[str]:
    """Return the names of the attributes that methods other than `__init__` assign."""
    return {
        step.argval
        for base in kind.__mro__
        if not is_known(base)
        for name, function in vars(base).items()
        if inspect.isfunction(function) and name != "__init__"
        for step in dis.get_instructions(function)
        if step.opname == "STORE_ATTR"
    }


# --- what a function or another object computes -------------------------------------------------


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _description(value: Any, visited: _Visited) -> Any:
    """Describe a value that a function or an object refers to, as JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, Tensor | np.generic) or (isinstance(value, np.ndarray) and value.dtype != object):
        return canonical(value)
    if inspect.isclass(value) and is_known(value):
        return _name(value)
    if not isinstance(value, nn.Module) and (key := _cache_key(value)):
        return key
    if id(value) in visited.path:  # a function that closes over itself
        return "itself"
    if id(value) in visited.numbers:  # a module that knows its parent
        return f"object {visited.numbers[id(value)][0]}"
    if isinstance(value, _CONTAINERS) or inspect.isroutine(value):
        visited.path.add(id(value))
    else:
        visited.add(value)
    described = _describe(value, visited)
    visited.path.discard(id(value))
    return described


_CONTAINERS = (Mapping, list, tuple, set, frozenset, BaseModel, functools.partial)


def _describe(value: Any, visited: _Visited) -> Any:
    """What something is, as far as it can be visited: its code, and what it holds."""
    if isinstance(value, Mapping):
        return {str(name): _description(each, visited) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_description(each, visited) for each in value]
    if isinstance(value, set | frozenset):
        return [_description(each, visited) for each in _ordered(value)]
    if isinstance(value, BaseModel):
        return {name: _description(getattr(value, name), visited) for name in type(value).model_fields}
    if isinstance(value, nn.Module):
        return f"model {_model_fingerprint(value, visited)}"
    if isinstance(value, functools.partial):
        return [
            "partial",
            *(_description(each, visited) for each in (value.func, value.args, value.keywords)),
        ]
    if inspect.ismethod(value):
        return [_description(value.__func__, visited), _description(value.__self__, visited)]
    if inspect.isfunction(value):
        closure = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        used = {name: _global(name, each, visited) for name, each in used_globals(value).items()}
        return [
            _text(value),
            *(_description(each, visited) for each in (closure, value.__defaults__, value.__kwdefaults__)),
            *([used] if used else []),
        ]
    if inspect.isclass(value):
        bases = [base for base in value.__mro__ if not is_known(base)]
        for base in bases:
            visited.add(base)
        return [
            _name(value),
            *({name: _description(each, visited) for name, each in _defined(base)} for base in bases),
        ]
    if inspect.isbuiltin(value):
        owner = value.__self__
        of_an_object = not (owner is None or inspect.ismodule(owner) or inspect.isclass(owner))
        return [_text(value), _description(owner, visited)] if of_an_object else _text(value)
    if inspect.ismodule(value):
        return f"module {value.__name__}"
    if inspect.isfunction(wrapped := getattr(value, "__wrapped__", None)):  # as by functools.lru_cache
        return _description(wrapped, visited)
    return [_description(type(value), visited), _description(_content(value), visited)]


def _global(name: str, value: Any, visited: _Visited) -> Any:
    """Describe a global; one that an installed library defines is described by its place there."""
    home, own = getattr(value, "__module__", None) or "", getattr(value, "__name__", "")
    if own and is_installed(home) and getattr(sys.modules.get(home), own, None) is value:
        return f"{home}.{own}"
    try:
        description = _description(value, visited)
    except InputError as error:
        raise InputError(
            f"the global '{name}': {error}; if results do not depend on it, begin its name with an underscore"
        ) from None
    if inspect.isfunction(value):
        visited.add(value)  # a helper that many functions use is described once
    return description


def _defined(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the names and values that the body of a class defines, with functions unwrapped."""
    for name, value in vars(kind).items():
        if isinstance(value, property):
            yield name, [value.fget, value.fset, value.fdel]
        elif isinstance(value, staticmethod | classmethod):
            yield name, value.__func__
        elif isinstance(value, functools.cached_property):
            yield name, value.func
        elif inspect.isfunction(value) or not (name.startswith("_") or inspect.isdatadescriptor(value)):
            yield name, value


def _content(value: object) -> Any:
    """Return the content of an object: what pickle would store, or else its attributes."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception:
        if attributes := getattr(value, "__dict__", None):
            return attributes
        if isinstance(owner := getattr(value, "__objclass__", None), type):  # a method written in C
            return f"{_name(owner)}.{getattr(value, '__name__', '')}"
        raise InputError(
            f"the content of a {_name(type(value))} cannot be hashed, so results that depend on it cannot be "
            "distinguished; let it hold numbers, text, tensors and functions, or give it a __cache_key__"
        ) from None
    if isinstance(reduced, str):
        return reduced
    make, arguments, state, *items = (*reduced, None, None, None)[:5]
    construction = [arguments[1:]] if make is copyreg.__newobj__ else [make, arguments]  # type: ignore[attr-defined]
    return [*construction, state, *(list(each) for each in items if each is not None)]


def _ordered(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda each: json.dumps(_description(each, _Visited()), sort_keys=True))


_EMPTY = types.CellType()


def _text(value: Callable[..., Any]) -> str:
    """Return the qualified name and source text; the bytecode too where the text may cover more functions."""
    code = getattr(value, "__code__", None)
    try:
        text = inspect.getsource(value if code is None else code)  # of the wrapper, not of what it wraps
    except (OSError, TypeError):
        text = ""
    if code is not None and not text:
        text = _code(code)
    elif code is not None and code.co_name == "<lambda>":
        constants = [each for each in code.co_consts if isinstance(each, int | float | str)]
        text += f" {code.co_code.hex()} {code.co_names} {constants}"
    return f"{value.__module__}.{value.__qualname__} {text}"


def _code(code: types.CodeType) -> str:
    """Return the bytecode of a function without source text, with that of the functions inside it."""
    constants = [each for each in code.co_consts if isinstance(each, int | float | str)]
    inside = [_code(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    others = [
        _description(each, _Visited())
        for each in code.co_consts
        if isinstance(each, tuple | frozenset | bytes | complex)
    ]
    return f" {code.co_code.hex()} {code.co_names} {constants}" + (
        f" {inside} {others}" if inside or others else ""
    )
