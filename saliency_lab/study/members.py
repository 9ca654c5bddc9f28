"""Members: the trained networks of a study, by model and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from saliency_lab._common.errors import InputError
from saliency_lab._common.inference import check_ready


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network of a study: the model it belongs to, and its training seed and recipe."""

    model: str
    seed: int
    recipe: str
    module: nn.Module | None

    @property
    def net(self) -> nn.Module:
        """The network itself."""
        if self.module is None:
            raise InputError(
                f"this study holds results of {self} without its network (it was loaded, or merge took them "
                "over), so nothing more can be computed; build it again with every network: Study(models, "
                "sample, store=…) reads what is finished"
            )
        return self.module

    def __str__(self) -> str:
        return f"{self.model} (seed {self.seed})"


def read_members(models: Mapping[str, nn.Module | Sequence[nn.Module]]) -> list[Member]:
    """Return every network under its model's name, in the order given; seeds come from the cards."""
    if not isinstance(models, Mapping) or not models:
        raise InputError("models must map names to modules, such as {'standard': model}, with one at least")
    members = []
    for name, given in models.items():
        if not isinstance(name, str):
            raise InputError(f"a model's name must be text, such as '{name}', not {name!r}")
        several = list(given) if isinstance(given, Iterable) else []
        modules = [given] if isinstance(given, nn.Module) else several
        if not modules or not all(isinstance(module, nn.Module) for module in modules):
            raise InputError(f"model '{name}' must be an nn.Module or a sequence of them, not {given!r}")
        for module in modules:
            check_ready(module)
        cards = [getattr(module, "card", None) for module in modules]
        seeds: list[Any] = [getattr(card, "seed", None) for card in cards]
        if None in seeds or len(set(seeds)) < len(seeds):
            seeds = list(range(len(modules)))
        for seed, card, module in zip(seeds, cards, modules, strict=True):
            recipe = (getattr(card, "recipe", None) or {}).get("name") or ""
            members.append(Member(name, seed, str(recipe), module))
    return members
