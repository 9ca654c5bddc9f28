"""Names of methods, metrics, attacks, objectives, data sets and models, and the one way to add to them."""

from __future__ import annotations

import inspect
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from types import NoneType
from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, create_model

from saliency_lab._common.arguments import check_callable, check_choice, shown
from saliency_lab._common.errors import InputError, UnknownNameError, unknown_name
from saliency_lab._common.plugins import import_object
from saliency_lab._common.settings import Settings
from saliency_lab._common.warn import warn

Kind = Literal["method", "metric", "attack", "objective", "dataset", "model"]
"""What can be registered."""

KINDS: tuple[str, ...] = typing.get_args(Kind)

ENTRY_POINTS = "saliency_lab.extensions"
"""The entry-point group by which an installed package contributes: each entry names a module to import."""

T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True)
class Extension:
    """A user's object together with what its registration says about it.

    Attributes
    ----------
    kind : str
        One of "method", "metric", "attack", "objective", "dataset" and "model".
    name : str
        The name under which results are listed.
    item : object
        The object itself.
    settings : type of Settings, optional
        Validates its keyword settings; by default they are read from its signature.
    better : {"higher", "lower", "neither"}
        Which values of a metric are better.
    """

    kind: Kind
    name: str
    item: Any
    settings: type[Settings] | None = None
    better: Literal["higher", "lower", "neither"] = "neither"


_registered: dict[str, dict[str, Extension]] = {kind: {} for kind in KINDS}
_built_in: dict[str, Registry[Any]] = {}


def register(
    kind: Kind,
    name: str | None = None,
    *,
    settings: type[Settings] | None = None,
    better: Literal["higher", "lower", "neither"] | None = None,
) -> Callable[[F], F]:
    """Register a method, metric, attack, objective, data set or model of your own under a name.

    The name is then accepted wherever a built-in name is: in Python, on the command line and in the file of a
    study. An installed package registers its objects through the entry-point group
    "saliency_lab.extensions", each entry of which names a module that is imported when a name is looked up.

    Parameters
    ----------
    kind : {"method", "metric", "attack", "objective", "dataset", "model"}
        What the object is, and with it how it is called:

        - method: `f(model, x, classes, **settings)` returns maps of the shape of `x`, (N, C, H, W).
        - metric: `f(model, x, y, maps, **settings)` returns one number per sample, (N,); or a Quantus metric.
        - attack: `f(model, x, y, eps, **settings)` returns points of the shape of `x` in the ε-ball.
        - objective: a subclass of `saliency_lab.training.Objective`.
        - dataset: an `ImageData`, or a function that returns one.
        - model: a module, or a function that returns one; it may take `num_classes` and `input_shape`.
    name : str, optional
        By default the object's own name (`__name__`).
    settings : type of Settings, optional
        Validates the keyword settings of a method, metric or attack. By default the settings are the
        parameters of the function that follow the positional ones above, with their annotations and defaults.
    better : {"higher", "lower", "neither"}, optional
        Which values of a metric are better; tables mark the best model only if this is given.

    Returns
    -------
    callable
        A decorator that returns its argument unchanged.

    Raises
    ------
    InputError
        If the kind is unknown, the name is taken, or an argument does not apply to this kind.

    Examples
    --------
    >>> import torch, saliency_lab as sl
    >>> @sl.register("metric", better="higher")
    ... def top(model, x, y, maps, power: float = 1.0):
    ...     return maps.abs().amax((1, 2, 3)) ** power
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x, y = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    >>> sl.evaluate(net, x, y, torch.ones_like(x), "top", power=2.0).tolist()
    [1.0, 1.0, 1.0]
    >>> sl.evaluate(net, x, y, torch.ones_like(x), top, powr=2.0)
    Traceback (most recent call last):
    ...
    saliency_lab...UnknownNameError: unknown setting of metric 'top': 'powr'; did you mean 'power'?
    """
    check_choice(kind, KINDS, "kind")
    if name is not None and (not isinstance(name, str) or not name.strip() or ":" in name):
        raise InputError(f"name must be text without a colon, not {name!r}")
    if better is not None and (kind != "metric" or better not in ("higher", "lower", "neither")):
        raise InputError(f'better is "higher", "lower" or "neither", and for metrics only; not {better!r}')
    if settings is not None and (kind not in ("method", "metric", "attack") or not _is_model(settings)):
        raise InputError(
            "settings must be a subclass of saliency_lab.Settings, for a method, a metric or an attack"
        )

    def decorate(item: F) -> F:
        _check_item(item, kind)
        label = name or name_of(item)
        if kind == "objective":  # a recipe is written with the name by which its objective is found again
            item.name = label  # type: ignore[attr-defined]
        extension = Extension(kind, label, item, settings, better or "neither")
        taken = _registered[kind].get(label)
        again = taken is not None and _defined_in(taken.item) == _defined_in(item)  # its module is reloaded
        if (taken is not None and not again) or (kind in _built_in and label in _built_in[kind].built_in):
            raise InputError(f"{kind} '{label}' is registered already; choose another name")
        _registered[kind][label] = extension
        return item

    return decorate


def _check_item(item: object, kind: Kind) -> None:
    """Refuse what cannot be used as this kind of object; its own package checks the rest when it is used."""
    if kind in ("method", "metric", "attack"):
        check_callable(item, f"a {kind}", "a function")
    elif kind == "objective":
        check_callable(item, "an objective", "a subclass of saliency_lab.training.Objective")
    elif not callable(item) and isinstance(
        item, str | bytes | int | float | complex | list | tuple | Mapping | NoneType
    ):
        raise InputError(
            f"a {kind} must be an object of that kind or a function that makes one, not {shown(item)}"
        )


def name_of(item: object) -> str:
    """Return the name of a function or class, or of an object's class."""
    return getattr(item, "__name__", type(item).__name__)


def settings_of(extension: Extension, positional: int) -> type[Settings]:
    """Return the settings model of an extension, by default made from its function's signature.

    Parameters
    ----------
    extension : Extension
        A function or callable object.
    positional : int
        How many parameters come first that are no settings.

    Examples
    --------
    >>> def blurred(model, x, classes, sigma: float = 2.0): ...
    >>> settings_of(Extension("method", "blurred", blurred), 3)(sigma=1.0)
    blurred(sigma=1.0)
    """
    if extension.settings is not None:
        return extension.settings
    try:
        parameters = list(inspect.signature(extension.item).parameters.values())
    except (TypeError, ValueError):  # a callable written in C does not tell its parameters
        return create_model(extension.name, __base__=_AnySettings)
    try:
        hints = typing.get_type_hints(extension.item, include_extras=True)
    except Exception:  # an annotation that cannot be evaluated here checks nothing
        hints = {}
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        positional = min(positional, next(i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL))
    fields: dict[str, Any] = {}
    for each in parameters[positional:]:
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        default = ... if each.default is each.empty else each.default
        fields[each.name] = (hints.get(each.name, Any), default)
    free = any(each.kind is each.VAR_KEYWORD for each in parameters)
    with warnings.catch_warnings(action="ignore"):  # a setting may be called `json` or `copy`
        return create_model(extension.name, __base__=_AnySettings if free else Settings, **fields)


class _AnySettings(Settings):
    """Settings of a function that takes any keyword."""

    model_config = ConfigDict(extra="allow")


def given_settings(parsed: Settings) -> dict[str, Any]:
    """Return the settings that were given, without defaults, as they are passed to a function.

    >>> class Steps(Settings):
    ...     steps: int = 28
    ...     size: float = 1.0
    >>> given_settings(Steps(steps=3))
    {'steps': 3}
    """
    return {name: getattr(parsed, name) for name in parsed.model_fields_set}


class Registry(Generic[T]):
    """The built-in objects of one kind by name, in the order in which they were added.

    >>> colours = Registry("colour")
    >>> colours.add("red", 1)
    >>> colours["red"]
    1
    >>> colours["rde"]
    Traceback (most recent call last):
    ...
    saliency_lab._common.errors.UnknownNameError: unknown colour 'rde'; did you mean 'red'?

    Parameters
    ----------
    noun : str
        What messages call one of them.
    kind : str, optional
        The kind of object that users can register in addition.
    adapt : callable, optional
        Turns a user's `Extension` into what the registry holds.
    elsewhere : mapping of str to str, optional
        Names in other libraries, in small letters and digits alone, and what to write here.
    """

    def __init__(
        self,
        noun: str,
        kind: Kind | None = None,
        adapt: Callable[[Extension], T] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.noun = noun
        self.kind = kind
        self.adapt = adapt
        self.elsewhere = elsewhere or {}
        self.built_in: dict[str, T] = {}
        if kind is not None:
            _built_in[kind] = self

    def add(self, name: str, item: T) -> None:
        """Add a built-in object; a name is added once."""
        if name in self.built_in or name in self.extensions():
            raise InputError(f"{self.noun} '{name}' is registered already; choose another name")
        self.built_in[name] = item

    def extensions(self) -> dict[str, Extension]:
        """Return what users registered so far, by name."""
        return _registered[self.kind] if self.kind is not None else {}

    def find(self, given: Any) -> T:
        """Return what a name, a `module:attribute` or a plain object stands for.

        Raises
        ------
        InputError
            If there is no such name, it cannot be imported, or the object is not of this kind.
        """
        if isinstance(given, str):
            return self[given]
        assert self.adapt is not None
        return self.adapt(self.extension_of(given))

    def custom(self, given: Any) -> Any:
        """Return the user's object that a name or `module:attribute` means; a built-in name stays text."""
        if not isinstance(given, str) or given in self.built_in:
            return given
        return self._extension(given).item

    def extension_of(self, item: Any) -> Extension:
        """Return the registration of an object, or one that says no more than its name."""
        load_entry_points()
        for extension in self.extensions().values():
            if extension.item is item:
                return extension
        assert self.kind is not None
        return Extension(self.kind, name_of(item), item)

    def _extension(self, name: str) -> Extension:
        load_entry_points()
        if name in self.extensions():
            return self.extensions()[name]
        if self.kind is not None and ":" in name:
            extension = self.extension_of(import_object(name))
            registered = self.extensions().get(extension.name) is extension
            return extension if registered else replace(extension, name=name.rpartition(":")[2])
        plain = re.sub(r"[^a-z0-9+]", "", name.lower())
        if plain in self.elsewhere:
            raise UnknownNameError(f"there is no {self.noun} '{name}' here; write {self.elsewhere[plain]}")
        for known in self:
            if plain and plain == re.sub(r"[^a-z0-9+]", "", known.lower()):
                raise UnknownNameError(f"unknown {self.noun} '{name}'; did you mean '{known}'?")
        raise unknown_name(self.noun, name, self)

    def __getitem__(self, name: str) -> T:
        if isinstance(name, str) and name in self.built_in:
            return self.built_in[name]
        extension = self._extension(name if isinstance(name, str) else str(name))
        assert self.adapt is not None
        return self.adapt(extension)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self.extensions()

    def __iter__(self) -> Iterator[str]:
        load_entry_points()
        return iter([*self.built_in, *self.extensions()])

    def __len__(self) -> int:
        return len(list(iter(self)))


@cache
def load_entry_points() -> None:
    """Import the modules that installed packages name in the entry-point group; warn of those that fail."""
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            warn(
                f"the extension '{entry.name}' ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}",
            )


def _is_model(settings: object) -> bool:
    return isinstance(settings, type) and issubclass(settings, Settings)


def _defined_in(item: object) -> tuple[str, str]:
    """Return where an object is defined, by which a module that is imported again replaces its own."""
    return getattr(item, "__module__", ""), getattr(item, "__qualname__", repr(item))
