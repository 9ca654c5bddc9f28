"""`study.json`: the images, networks and results of the study that a store belongs to, and its questions."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, field_validator

from saliency_lab._common.files import read_checked_json, write_checked_json
from saliency_lab._common.samples import distinct_classes
from saliency_lab._common.settings import Settings
from saliency_lab.comparison.claims import Purpose
from saliency_lab.metrics.catalogue import Better
from saliency_lab.study.cache.results import Kind, Place

MANIFEST = "study.json"

_AUDIT, _AT = "audit of ", ", ε = "


def audit_label(attack: str, eps: float) -> str:
    """Return the label of an audit at ε of the attack with this label; `audited_attack` reverses it.

    >>> audit_label("pgd", 0.1), audit_label("pgd", 8 / 255)
    ('audit of pgd, ε = 0.1', 'audit of pgd, ε = 0.03137254901960784')
    """
    short = f"{eps:.4g}"
    return f"{_AUDIT}{attack}{_AT}{short if float(short) == eps else eps}"


def audited_attack(label: str) -> str:
    """Return the attack's label, which is a part of the label of its audit.

    >>> audited_attack(audit_label("pgd", 8 / 255))
    'pgd'
    """
    return label.removeprefix(_AUDIT).rpartition(_AT)[0]


def _earlier_place(place: Place) -> Place:
    """Return the place that earlier versions gave to an audit: its label had four digits of ε."""
    audit, _, eps = place.label.rpartition(_AT)
    return place._replace(label=f"{audit}{_AT}{float(eps):.4g}")


class ManifestMember(NamedTuple):
    """A network: its model, training seed and recipe, and the fingerprint on which its results depend."""

    model: str
    seed: int
    recipe: str
    weights: str = ""  # unknown in manifests of earlier versions
    origin: str = ""
    """Where a network of a study's file comes from, such as the folder of its training run."""


class ManifestFailure(NamedTuple):
    """A network that could not be trained or loaded: its model and training seed, what failed, the error."""

    model: str
    seed: int
    what: str
    error: str


class Manifest(Settings):
    """The description of a study without its content."""

    model_config = ConfigDict(strict=False, extra="ignore", validate_by_name=True, validate_by_alias=True)

    images: str
    """Fingerprint of images and labels."""
    sample: str = ""
    """Fingerprint of images, labels and masks; empty if there are no masks."""
    seed: int
    members: list[ManifestMember]
    results: list[tuple[Kind, str, str, str, int, str]] = Field(alias="cells")
    """The `Place` and the key of every result."""
    missing: list[str] = Field(default_factory=list)
    """Keys of results that were not in the store when this was written: they failed, or are unfinished."""
    failed: list[ManifestFailure] = Field(default_factory=list)
    """Networks of a study's file that have no results."""
    weights: list[str] = Field(default_factory=list)
    """Names of the files of weights that workers read."""
    better: dict[str, Better]
    """The direction of each metric."""
    classes: list[str] = Field(default_factory=list)
    """Names of the classes, where they are known."""
    purpose: Purpose = Field(default_factory=Purpose)

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: list[str]) -> list[str]:
        return list(distinct_classes(names))

    @property
    def places(self) -> dict[Place, str]:
        """The key of the result at each place."""
        return {Place(*result[:5]): result[5] for result in self.results}

    def joined(self, other: Manifest | None) -> Manifest:
        """Add the results that another manifest of the same images and seed lists.

        Where the two list different results for one place, those of this manifest stay. Results of a network
        whose weights differ here, and scores of maps that differ here, are left out.
        """
        if other is None or (other.images, other.seed) != (self.images, self.seed):
            return self
        mine, theirs = self.places, other.places
        differ = self.differing(other)
        listed = {each[:2]: each for each in other.members}
        members = [
            each if each[:2] not in listed else _known(each, listed[each[:2]]) for each in self.members
        ]
        renamed = {(_earlier_place(place), key) for place, key in mine.items() if place.kind == "audit"}

        def fits(place: Place) -> bool:
            if place in mine or (place.model, place.seed) in differ or (place, theirs[place]) in renamed:
                return False
            return (
                place.kind != "scores" or place.maps not in mine or mine[place.maps] == theirs.get(place.maps)
            )

        known = {each[:2] for each in members}
        failed = [each for each in self.failed if each[:2] in known or each[:2] not in listed]
        seen = known | {each[:2] for each in self.failed}
        joined: dict[str, Any] = {
            "members": [*members, *(each for each in other.members if each[:2] not in known)],
            "failed": [*failed, *(each for each in other.failed if each[:2] not in seen)],
            "results": [*self.results, *(each for each in other.results if fits(Place(*each[:5])))],
            "better": other.better | self.better,
        }
        if not self.sample:
            joined["sample"] = other.sample
        if not self.classes:
            joined["classes"] = other.classes
        if self.purpose == Purpose():
            joined["purpose"] = other.purpose
        return self.model_copy(update=joined)

    def without(self, networks: Set[tuple[str, int]]) -> Manifest:
        """Leave out the members with these models and training seeds, and their results."""
        members = [each for each in self.members if each[:2] not in networks]
        results = [each for each in self.results if each[3:5] not in networks]
        return self.model_copy(update={"members": members, "results": results})

    def differing(self, other: Manifest) -> list[tuple[str, int]]:
        """Return model and seed of the networks whose weights differ between the two manifests."""
        theirs = {each[:2]: each.weights for each in other.members}
        return [
            each[:2]
            for each in self.members
            if each.weights and theirs.get(each[:2]) and each.weights != theirs[each[:2]]
        ]


def _known(member: ManifestMember, listed: ManifestMember) -> ManifestMember:
    """Add what a manifest lists of a member and is not known of it."""
    member = member._replace(weights=member.weights or listed.weights)
    same = member.weights == listed.weights
    return member._replace(origin=member.origin or listed.origin) if same else member


_FIRST_KEYS = ("images", "sample", "seed", "members", "cells", "better", "classes", "purpose")
"""The keys of manifests before these had a digest."""


def read_manifest(folder: Path) -> Manifest:
    """Read and check a store's manifest; raise OSError or ValueError if it is missing or damaged."""
    return Manifest.model_validate(read_checked_json(folder / MANIFEST, _FIRST_KEYS))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `study.json` with its digest, atomically."""
    write_checked_json(folder / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
