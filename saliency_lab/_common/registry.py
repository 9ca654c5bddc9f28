"""A name → object table with helpful misses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from saliency_lab._common.errors import InputError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of thing, in the order they were registered.

    >>> colours = Registry("colour")
    >>> colours.add("red", 1)
    >>> colours["red"]
    1
    >>> colours["rde"]
    Traceback (most recent call last):
    ...
    saliency_lab._common.errors.UnknownNameError: unknown colour 'rde'; did you mean 'red'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> None:
        """Register `item`; a name is registered once."""
        if name in self._items:
            raise InputError(f"{self.kind} '{name}' is registered already; choose another name")
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except (KeyError, TypeError):
            raise unknown_name(self.kind, str(name), self._items) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
