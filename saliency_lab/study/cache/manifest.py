"""What `study.json` says of a store: the images, the networks, where each cell stands, what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field

from saliency_lab._common.files import write_json
from saliency_lab._common.settings import Settings
from saliency_lab.comparison.claims import Purpose
from saliency_lab.metrics.catalogue import Better
from saliency_lab.study.cache.results import Kind

MANIFEST = "study.json"


class Place(NamedTuple):
    """Where a cell stands in the grid: `label` is of a method or an attack, `metric` is for scores alone."""

    kind: Kind
    label: str
    metric: str
    model: str
    seed: int

    @property
    def what(self) -> str:
        """What it is of its model: the label, or which metric of it."""
        return f"{self.metric} of {self.label}" if self.metric else self.label


_AUDIT, _AT = "audit of ", ", ε = "


def audit_label(attack: str, eps: float) -> str:
    """Return the label of an audit of the attack under this label; `audited` gives that back.

    >>> audit_label("pgd", 0.1), audit_label("pgd", 8 / 255)
    ('audit of pgd, ε = 0.1', 'audit of pgd, ε = 0.03137254901960784')
    """
    short = f"{eps:.4g}"
    return f"{_AUDIT}{attack}{_AT}{short if float(short) == eps else eps}"


def audited(label: str) -> str:
    """Return the attack's label in the label of an audit.

    >>> audited(audit_label("pgd", 8 / 255))
    'pgd'
    """
    return label.removeprefix(_AUDIT).rpartition(_AT)[0]


def _before(at: Place) -> Place:
    """Where older versions put an audit: its label had ε to four digits."""
    audit, _, eps = at.label.rpartition(_AT)
    return at._replace(label=f"{audit}{_AT}{float(eps):.4g}")


class Entry(NamedTuple):
    """A network: its model, training seed, recipe, and the fingerprint under which its cells are kept."""

    model: str
    seed: int
    recipe: str
    weights: str = ""  # older manifests do not tell


class Manifest(Settings):
    """A study without its content."""

    model_config = ConfigDict(strict=False, extra="ignore")  # JSON has no tuples; others may say more

    images: str
    """Fingerprint of images and labels."""
    sample: str = ""
    """Fingerprint of images, labels and masks; none where there are no masks."""
    seed: int
    members: list[Entry]
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
        """Return this one with what another of the same images and seed holds besides.

        Where the two hold different things in one place, this one's stay: the other's cells of a network
        whose weights differ here, and its scores of maps that are others here, are left out.
        """
        if other is None or (other.images, other.seed) != (self.images, self.seed):
            return self
        places, theirs = self.places, other.places
        differ = self.differing(other)
        weights = {each[:2]: each.weights for each in other.members}
        mine = [each._replace(weights=each.weights or weights.get(each[:2], "")) for each in self.members]

        def fits(at: Place) -> bool:
            if at in places or (at.model, at.seed) in differ or (at, theirs[at]) in renamed:
                return False
            maps = at._replace(kind="maps", metric="")
            return at.kind != "scores" or maps not in places or places[maps] == theirs.get(maps)

        renamed = {(_before(at), key) for at, key in places.items() if at.kind == "audit"}
        known = {each[:2] for each in mine}
        joined: dict[str, Any] = {
            "members": [*mine, *(each for each in other.members if each[:2] not in known)],
            "cells": [*self.cells, *(cell for cell in other.cells if fits(Place(*cell[:5])))],
            "better": other.better | self.better,
        }
        if not self.sample:
            joined["sample"] = other.sample
        if not self.classes:
            joined["classes"] = other.classes
        if self.purpose == Purpose():
            joined["purpose"] = other.purpose
        return self.model_copy(update=joined)

    def differing(self, other: Manifest) -> list[tuple[str, int]]:
        """Model and seed of what is one network here and another there."""
        theirs = {each[:2]: each.weights for each in other.members}
        return [
            each[:2]
            for each in self.members
            if each.weights and theirs.get(each[:2]) and each.weights != theirs[each[:2]]
        ]


def read_manifest(folder: Path) -> Manifest | None:
    """Read a store's manifest, None if there is none, or it is not what was written."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `study.json`, atomically."""
    write_json(folder / MANIFEST, manifest.model_dump())
