"""What `study.json` says of a store: the images, the networks, where each cell stands, what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field

from saliency_lab._common.files import write_json
from saliency_lab._common.settings import Settings
from saliency_lab.study.cells import Kind
from saliency_lab.study.claims import Purpose

MANIFEST = "study.json"

Better = Literal["higher", "lower", "neither"]


class Place(NamedTuple):
    """Where a cell stands in the grid: `label` is of a method or an attack, `metric` is for scores alone."""

    kind: Kind
    label: str
    metric: str
    model: str
    seed: int


class Manifest(Settings):
    """A study without its content."""

    model_config = ConfigDict(strict=False, extra="ignore")  # JSON has no tuples; others may say more

    images: str
    """Fingerprint of images and labels."""
    sample: str = ""
    """Fingerprint of images, labels and masks; none where there are no masks."""
    seed: int
    members: list[tuple[str, int, str]]
    """Model, training seed, recipe."""
    cells: list[tuple[Kind, str, str, str, int, str]]
    """A `Place` and the cell's key."""
    better: dict[str, Better]
    """By metric."""
    classes: list[str] = Field(default_factory=list)
    """Names, where they are known."""
    purpose: Purpose = Field(default_factory=Purpose)

    @property
    def places(self) -> dict[Place, str]:
        """Where each cell stands → its key."""
        return {Place(*cell[:5]): cell[5] for cell in self.cells}

    def joined(self, other: Manifest | None) -> Manifest:
        """Return this one with what another of the same images and seed holds besides."""
        if other is None or (other.images, other.seed) != (self.images, self.seed):
            return self
        known, places = {(model, seed) for model, seed, _ in self.members}, self.places
        joined: dict[str, Any] = {
            "members": [*self.members, *(each for each in other.members if each[:2] not in known)],
            "cells": [*self.cells, *(cell for cell in other.cells if Place(*cell[:5]) not in places)],
            "better": other.better | self.better,
        }
        if not self.sample:
            joined["sample"] = other.sample
        if not self.classes:
            joined["classes"] = other.classes
        if self.purpose == Purpose():
            joined["purpose"] = other.purpose
        return self.model_copy(update=joined)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a store's manifest, None if there is none, or it is not what was written."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `study.json`, atomically."""
    write_json(folder / MANIFEST, manifest.model_dump())
