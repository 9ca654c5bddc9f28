"""What an objective is: settings, and a function from a step to named loss terms."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from saliency_lab._common.errors import InputError
from saliency_lab._common.registry import Extension, Registry
from saliency_lab._common.settings import Settings
from saliency_lab.training.step import Step


class Objective(Settings):
    """Base of all objectives: fields are keys under `[objective]`; the loss is the sum of the terms."""

    name: ClassVar[str]
    """What a recipe calls it; a class that sets none goes by its module and name."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Name a class that does not name itself."""
        if "name" not in cls.__dict__:
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def terms(self, step: Step) -> dict[str, Tensor]:
        """Scalar terms, already weighted, whose sum is minimised."""


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
    """Make an objective known to recipes by its `name`."""
    OBJECTIVES.add(cls.name, cls)
    return cls
