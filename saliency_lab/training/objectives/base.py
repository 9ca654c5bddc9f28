"""The base class of objectives: settings, and a function from a training step to named loss terms."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import Extension, Registry
from saliency_lab._common.settings import Settings
from saliency_lab.training.step import Step


class Objective(Settings):
    """Base class of objectives. Fields are keys under `[objective]`; the loss is the sum of the terms."""

    name: ClassVar[str]
    """The name in recipes; by default module and class name."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Give a class without a name its default name."""
        if "name" not in cls.__dict__:
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def terms(self, step: Step) -> dict[str, Tensor]:
        """Return the weighted scalar terms by name; their sum is minimised."""


def custom_objective(extension: Extension) -> type[Objective]:
    """Check that a user's object is a subclass of `Objective`.

    Raises
    ------
    InputError
        If it is something else.
    """
    item = extension.item
    if not (isinstance(item, type) and issubclass(item, Objective)):
        raise InputError(
            f"objective '{extension.name}' must be a subclass of saliency_lab.training.Objective, "
            f"not {item!r}"
        )
    return item


OBJECTIVES: Registry[type[Objective]] = Registry("objective", "objective", custom_objective)


def register(cls: type[Objective]) -> type[Objective]:
    """Add a built-in objective under its `name`."""
    OBJECTIVES.add(cls.name, cls)
    return cls
