"""What a study compares, and on what: its trained networks, its images and their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saliency_lab._common import samples
from saliency_lab._common.checks import check_images, check_labels, check_masks
from saliency_lab._common.errors import InputError
from saliency_lab._common.hashing import fingerprint
from saliency_lab._common.inference import check_ready


@dataclass(frozen=True, eq=False)
class StudySample:
    """Images `x` (N, C, H, W), labels `y` (N,) and, where the evidence is known, `masks` (N, 1, H, W)."""

    x: Tensor
    y: Tensor
    masks: Tensor | None = None
    hashes: tuple[str, str] | None = None
    """`images` and `fingerprint` of a sample whose images were left out; `x` has a shape, and no values."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are given, by name."""
        given = {"x": self.x, "y": self.y, "masks": self.masks}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    @property
    def images(self) -> str:
        """Hash of images and labels, on which every result of a study depends."""
        return fingerprint(self.x, self.y) if self.hashes is None else self.hashes[0]

    @property
    def fingerprint(self) -> str:
        """Hash of images, labels and masks."""
        return fingerprint(*self.tensors.values()) if self.hashes is None else self.hashes[1]

    @property
    def located(self) -> bool:
        """Whether there are masks, also where they were left out with the images."""
        return self.masks is not None if self.hashes is None else self.hashes[0] != self.hashes[1]

    def without_images(self) -> StudySample:
        """Return the labels alone, with the images' shape and hashes."""
        shape_only = torch.empty(self.x.shape, device="meta")
        return StudySample(shape_only, self.y, hashes=(self.images, self.fingerprint))

    def first(self, count: int) -> StudySample:
        """Return the first `count` images with their labels and masks."""
        masks = None if self.masks is None else self.masks[:count]
        return StudySample(self.x[:count], self.y[:count], masks)


def read_sample(given: samples.Images | StudySample) -> StudySample:
    """Check the images, labels and masks that a user passed to `Study`."""
    if isinstance(given, StudySample):
        return given
    x, y, masks = samples.read_sample(given)
    if y is None:
        raise InputError(
            "sample must be images and labels, as data.test.sample(256) returns them: (x, y); or images, "
            "labels and masks, as data.test.located(256) returns them; or a DataLoader or data set of these"
        )
    check_images(x)
    masks = None if masks is None else check_masks(masks, x)
    return StudySample(x.detach(), check_labels(y, len(x)), masks)


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network of a study: its model's name, its training seed, its recipe and the module."""

    model: str
    seed: int
    recipe: str
    module: nn.Module | None

    @property
    def net(self) -> nn.Module:
        """The network itself; an error if the study has its results alone."""
        if self.module is None:
            raise InputError(
                f"this study has results of {self} without its network (the study was loaded, or they were "
                "merged into it), so nothing more can be computed; build it again with every network: "
                "Study(models, sample, store=…) reads what is finished"
            )
        return self.module

    def __str__(self) -> str:
        return f"{self.model} (seed {self.seed})"


def read_members(models: Mapping[str, nn.Module | Sequence[nn.Module]]) -> list[Member]:
    """Return every network under its model's name; training seeds come from the cards, if they differ."""
    if not isinstance(models, Mapping) or not models:
        raise InputError(
            "models must map names to modules, such as {'standard': model}, with at least one entry"
        )
    members = []
    for name, given in models.items():
        if not isinstance(name, str) or not name:
            raise InputError(
                f"a model's name must be text, such as '{str(name) or 'standard'}', not {name!r}"
            )
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
