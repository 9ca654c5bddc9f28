"""The part of a declared study that one machine computes."""

from __future__ import annotations

from typing import NamedTuple

from saliency_lab._common.errors import InputError, unknown_name
from saliency_lab.experiment.schema import Declaration


class Part(NamedTuple):
    """What one machine computes of a declared study; nothing given means the whole study."""

    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    """Training seeds; models that the study loads are always whole."""

    def check(self, declared: Declaration) -> None:
        """Raise InputError for a model or seed that the study does not declare, and for an empty part."""
        known = [*declared.recipes, *declared.models]
        for model in self.models:
            if model not in known:
                raise unknown_name("model of the study:", model, known)
        seeds = {seed for model, own in declared.trained_seeds.items() if self.has(model) for seed in own}
        declares = ", ".join(map(str, sorted(seeds))) or "none"
        for seed in self.seeds:
            if seed not in seeds:
                raise InputError(f"no network is trained with seed {seed} here; declared seeds: {declares}")

    def has(self, model: str, seed: int | None = None) -> bool:
        """Return whether a model, or its network with a seed, belongs to this part."""
        return (not self.models or model in self.models) and (
            seed is None or not self.seeds or seed in self.seeds
        )


WHOLE = Part()
