"""Hashes of content: of tensors, settings, functions and networks; equal ones give equal results."""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
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
from saliency_lab._common.own_code import is_installed, is_known, used_globals


def fingerprint(*parts: Any) -> str:
    """Hash of values: tensors by dtype, shape and content, the rest by their canonical JSON; 32 hex digits.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            tensor = part.detach().cpu().contiguous()
            digest.update(f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Hash of what a model computes: its printed form, its parameters and buffers, and its own code.

    Modules of classes that are not torch's, torchvision's or saliency_lab's count by their code and their
    public attributes; those that start with an underscore do not, nor do tensors and containers that a method
    other than `__init__` puts there, such as the activations of the last run. What `torch.compile` returns
    counts as the network that it was made from.

    Raises
    ------
    InputError
        If such an attribute is of a kind whose content cannot be told, or the network's state is not all
        tensors, as that of networks quantised by `torch.ao`.
    """
    return _model_fingerprint(model, _Seen())


def canonical(value: Any) -> Any:
    """Reduce settings to what JSON can hold, with tensors, arrays and functions by their content.

    A function counts by its source text, its defaults, the values it closes over and the globals it uses,
    another callable by its class and its attributes. See `used_globals` for those that count; functions and
    classes of installed libraries count by their name.

    >>> canonical({"sigma": np.float32(0.5), "sizes": (1, 2), "baseline": torch.zeros(2)})
    {'sigma': 0.5, 'sizes': [1, 2], 'baseline': 'tensor ...'}

    Raises
    ------
    InputError
        If it holds something of a kind whose content cannot be told.
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
    return f"{'function' if callable(value) else 'object'} {fingerprint(_held(value, _Seen()))}"


# --- what a model does, besides its parameters --------------------------------------------------


class _Seen:
    """What is being described, by id, and the objects that were, by id, with their number."""

    def __init__(self) -> None:
        self.path: set[int] = set()
        self.told: dict[int, tuple[int, object]] = {}

    def tell(self, value: object) -> None:
        self.told.setdefault(id(value), (len(self.told), value))  # kept alive, so that no other gets its id


def _model_fingerprint(model: nn.Module, seen: _Seen) -> str:
    if _is_compiled(model):
        model = model._orig_mod  # type: ignore[assignment]
    seen.tell(model)
    state: dict[str, Tensor] = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.is_quantized:
            raise InputError(
                f"the state of the network ({type(model).__name__}) holds, as '{name}', a "
                f"{type(value).__name__} that is no plain tensor, as networks quantised by torch.ao do, so "
                "results cannot be kept apart by it; pass the network it was made from"
            )
    more = _besides(model, state, seen)
    values = (tensor.float() for tensor in state.values())
    return fingerprint(repr(model), list(state), *values, *([more] if more else []))


def _is_compiled(module: nn.Module) -> bool:
    """Whether this is what `torch.compile` returns; its class takes a second to import."""
    return _name(type(module)) == "torch._dynamo.eval_frame.OptimizedModule"


def _besides(model: nn.Module, state: Mapping[str, Tensor], seen: _Seen) -> dict[str, Any]:
    """What print, names and float32 values do not show; empty for networks of known parts in float32."""
    classes: dict[str, Any] = {}
    modules = {}
    for path, module in model.named_modules():
        kind = type(module)
        if not is_known(kind) and _name(kind) not in classes:
            classes[_name(kind)] = _class(kind, seen)
        held = _module_attributes(module, seen)
        if held or not is_known(kind):
            modules[path] = [_name(kind), held]
    told = {
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
        "classes": classes,
        "modules": modules,
    }
    return {what: found for what, found in told.items() if found}


def _class(kind: type, seen: _Seen) -> Any:
    """Describe a class of modules by its code, or one of a library whose code resists that by its version."""
    path = set(seen.path)
    try:
        return _held(kind, seen)
    except InputError:
        library = kind.__module__.partition(".")[0]
        if not is_installed(library):
            raise
        seen.path = path  # what the attempt left there
        return [_name(kind), str(getattr(sys.modules[library], "__version__", ""))]


def _module_attributes(module: nn.Module, seen: _Seen) -> dict[str, Any]:
    """Attributes that say what a module does and that its printed form may not show."""
    kind = type(module)
    silent = kind.__module__.startswith("torch.nn.") and kind.extra_repr is nn.Module.extra_repr
    told = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in ("training", "card"):
            continue
        if is_known(kind) and not silent and (name != "forward" or _is_compiled(module)):
            continue
        if not isinstance(value, str | int | float) and name in _assigned_later(kind):
            continue
        try:
            told[name] = _held(value, seen)
        except InputError as error:
            raise InputError(
                f"the attribute '{name}' of the network's {kind.__qualname__}: {error}; if results do not "
                f"depend on it, call it '_{name}'"
            ) from None
    return told


def _assigned_later(kind: type) -> set[str]:
    """Names of attributes that methods other than `__init__` assign."""
    return {
        step.argval
        for base in kind.__mro__
        if not is_known(base)
        for name, function in vars(base).items()
        if inspect.isfunction(function) and name != "__init__"
        for step in dis.get_instructions(function)
        if step.opname == "STORE_ATTR"
    }


# --- what a function or another object does -----------------------------------------------------


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _held(value: Any, seen: _Seen) -> Any:
    """Anything that a function or an object holds, as JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, Tensor | np.generic) or (isinstance(value, np.ndarray) and value.dtype != object):
        return canonical(value)
    if inspect.isclass(value) and is_known(value):
        return _name(value)
    if id(value) in seen.path:  # a function that closes over itself
        return "itself"
    if id(value) in seen.told:  # a module that knows its parent
        return f"object {seen.told[id(value)][0]}"
    if isinstance(value, _CONTAINERS) or inspect.isroutine(value):
        seen.path.add(id(value))
    else:
        seen.tell(value)
    described = _described(value, seen)
    seen.path.discard(id(value))
    return described


_CONTAINERS = (Mapping, list, tuple, set, frozenset, BaseModel, functools.partial)


def _described(value: Any, seen: _Seen) -> Any:
    """What something is, as far as it can be seen: its code, and what it holds."""
    if isinstance(value, Mapping):
        return {str(name): _held(each, seen) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_held(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return [_held(each, seen) for each in _ordered(value)]
    if isinstance(value, BaseModel):
        return {name: _held(getattr(value, name), seen) for name in type(value).model_fields}
    if isinstance(value, nn.Module):
        return f"model {_model_fingerprint(value, seen)}"
    if isinstance(value, functools.partial):
        return ["partial", *(_held(each, seen) for each in (value.func, value.args, value.keywords))]
    if inspect.ismethod(value):
        return [_held(value.__func__, seen), _held(value.__self__, seen)]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        used = {name: _global(name, each, seen) for name, each in used_globals(value).items()}
        return [
            _text(value),
            *(_held(each, seen) for each in (cells, value.__defaults__, value.__kwdefaults__)),
            *([used] if used else []),
        ]
    if inspect.isclass(value):
        bases = [base for base in value.__mro__ if not is_known(base)]
        for base in bases:
            seen.tell(base)
        return [_name(value), *({name: _held(each, seen) for name, each in _defined(base)} for base in bases)]
    if inspect.isbuiltin(value):
        owner = value.__self__
        of_an_object = not (owner is None or inspect.ismodule(owner) or inspect.isclass(owner))
        return [_text(value), _held(owner, seen)] if of_an_object else _text(value)
    if inspect.ismodule(value):
        return f"module {value.__name__}"
    if inspect.isfunction(wrapped := getattr(value, "__wrapped__", None)):  # as by functools.lru_cache
        return _held(wrapped, seen)
    return [_held(type(value), seen), _held(_content(value), seen)]


def _global(name: str, value: Any, seen: _Seen) -> Any:
    """What a global is; of what an installed library holds, where it is found there."""
    home, own = getattr(value, "__module__", None) or "", getattr(value, "__name__", "")
    if own and is_installed(home) and getattr(sys.modules.get(home), own, None) is value:
        return f"{home}.{own}"
    try:
        held = _held(value, seen)
    except InputError as error:
        raise InputError(
            f"the global '{name}': {error}; if results do not depend on it, begin its name with an underscore"
        ) from None
    if inspect.isfunction(value):
        seen.tell(value)  # helpers that many functions use are told once
    return held


def _defined(kind: type) -> Iterator[tuple[str, Any]]:
    """What the body of a class defines, with functions out of their wrappers."""
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
    """What an object holds: what it would be pickled as, or else its attributes."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception:
        if attributes := getattr(value, "__dict__", None):
            return attributes
        if isinstance(owner := getattr(value, "__objclass__", None), type):  # a method written in C
            return f"{_name(owner)}.{getattr(value, '__name__', '')}"
        raise InputError(
            f"the content of a {_name(type(value))} cannot be told, so results that depend on it cannot be "
            "kept apart; let it hold numbers, text, tensors and functions"
        ) from None
    if isinstance(reduced, str):
        return reduced
    make, arguments, state, *items = (*reduced, None, None, None)[:5]
    made = [arguments[1:]] if make is copyreg.__newobj__ else [make, arguments]  # type: ignore[attr-defined]
    return [*made, state, *(list(each) for each in items if each is not None)]


def _ordered(values: Iterable[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda each: json.dumps(_held(each, _Seen()), sort_keys=True))


_EMPTY = types.CellType()


def _text(value: Callable[..., Any]) -> str:
    """Qualified name and source text, and the code where that text may hold more than this function."""
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
    """The instructions of a function that has no text, with those of functions inside."""
    constants = [each for each in code.co_consts if isinstance(each, int | float | str)]
    inside = [_code(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    others = [
        _held(each, _Seen())
        for each in code.co_consts
        if isinstance(each, tuple | frozenset | bytes | complex)
    ]
    return f" {code.co_code.hex()} {code.co_names} {constants}" + (
        f" {inside} {others}" if inside or others else ""
    )
