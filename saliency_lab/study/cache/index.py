"""The result index of a study: which result belongs at which place, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

from saliency_lab._common.errors import InputError
from saliency_lab._common.warn import warn
from saliency_lab.comparison.claims import Purpose
from saliency_lab.metrics.catalogue import METRICS, Better
from saliency_lab.models import card_of
from saliency_lab.study.cache.manifest import MANIFEST, Manifest, ManifestFailure, ManifestMember
from saliency_lab.study.cache.results import Content, Failure, Kind, Place, Result
from saliency_lab.study.cache.store import FolderStore, Store, existing_folder, read_intact
from saliency_lab.study.requests import Request, stored_request
from saliency_lab.study.sample import Member, StudySample


@dataclass
class ResultIndex:
    """Keys of a study's results by place, and the small contents that its tables are made of.

    The contents of all results are in `store`.
    """

    sample: StudySample
    images: str
    """Fingerprint of images and labels."""
    seed: int
    members: list[Member]
    store: Store
    weights: dict[tuple[str, int], str]
    """Fingerprints of the networks by model and seed; empty where an earlier version did not store them."""
    results: dict[Place, str] = field(default_factory=dict)
    """The key of the result at each place."""
    methods: dict[str, Request] = field(default_factory=dict)
    attacks: dict[str, Request] = field(default_factory=dict)
    better: dict[str, Better] = field(default_factory=dict)
    """The direction of each metric."""
    stored_classes: Sequence[str] = ()
    """Names of the classes according to the store."""
    purpose: Purpose = field(default_factory=Purpose)
    failures: dict[tuple[str, int, str], Failure] = field(default_factory=dict)
    """By model, seed and what failed."""
    origins: dict[tuple[str, int | None], str] = field(default_factory=dict)
    """Where networks that a study's file declares come from, by model and training seed; the seed is None
    where it is not known before the networks are loaded."""
    of_file: bool = False
    """Whether `origins` are all that a study's file declares, so that other networks are none of it."""
    contents: dict[str, Content] = field(default_factory=dict)
    """By key, except maps and the curves of scores: these are large, and read when needed."""
    intact_maps: set[str] = field(default_factory=set)
    """Keys of maps whose files were checked."""

    def snapshot(self) -> ResultIndex:
        """Return an index that does not change with this one."""
        changing = ("members", "weights", "results", "methods", "attacks", "better", "failures")
        return replace(self, **{name: copy(getattr(self, name)) for name in changing})

    def labels(self, kind: Kind) -> list[str]:
        """Return the labels of the results of a kind, each once."""
        return list(dict.fromkeys(place.label for place in self.results if place.kind == kind))

    @property
    def metrics(self) -> list[str]:
        """The labels of the metrics, each once."""
        return list(dict.fromkeys(place.metric for place in self.results if place.metric))

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest possible score of each metric, by its label.

        They are read from what the stored scores depend on; infinite for metrics of users.
        """
        found: dict[str, tuple[float, float]] = {}
        for place, key in self.results.items():
            if place.kind != "scores" or place.metric in found:
                continue
            described = self.store.describe(place.kind, key)
            if described is not None:
                name = described[0].depends["metric"]
                known = isinstance(name, str) and name in METRICS.built_in
                found[place.metric] = METRICS[name].bounds if known else (-math.inf, math.inf)
        return found

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order given."""
        return list(dict.fromkeys(member.model for member in self.members))

    def seeds(self) -> dict[str, list[int]]:
        """Return the training seeds of each model, also of networks that could not be trained or loaded."""
        networks = [(member.model, member.seed) for member in self.members]
        networks += [(model, seed) for model, seed, _ in self.failures if model in self.models]
        found: dict[str, list[int]] = {}
        for model, seed in dict.fromkeys(networks):
            found.setdefault(model, []).append(seed)
        return found

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, from a model's card or from the store; empty if neither has them."""
        cards = [card_of(member.module) for member in self.members if member.module is not None]
        named = (card.classes for card in cards if card is not None and card.classes)
        return next(named, self.stored_classes)

    def key(self, kind: Kind, label: str, member: Member) -> str | None:
        """Return the key of a member's maps, attack or audit with a label, or None."""
        return self.results.get(Place(kind, label, "", member.model, member.seed))

    def of_kind(self, kind: Kind) -> Iterator[tuple[Place, Member, Content]]:
        """Yield the finished results of a kind, except maps."""
        members = {(member.model, member.seed): member for member in self.members}
        for place, key in self.results.items():
            if place.kind == kind and key in self.contents:
                yield place, members[place.model, place.seed], self.contents[key]

    # --- what is recorded, and what is missing ------------------------------------------------------

    def record(self, results: Mapping[Place, Result], fingerprints: Mapping[Member, str]) -> None:
        """Record results of these networks at their places.

        Results of a network whose weights changed, and scores of maps that are replaced, are removed.
        """
        outdated: list[Place] = []
        for member, model in fingerprints.items():
            network = member.model, member.seed
            if self.weights[network] != model:
                outdated += [place for place in self.results if (place.model, place.seed) == network]
                self.weights[network] = model
        for place, result in results.items():
            if place.kind == "maps" and self.results.get(place, result.key) != result.key:
                outdated += [each for each in self.results if each.kind == "scores" and each.maps == place]
        for place in dict.fromkeys(outdated):
            del self.results[place]
            self.forget_failure(place)
        self.results |= {place: result.key for place, result in results.items()}

    def missing(self, results: Mapping[Place, Result]) -> list[Place]:
        """Return the places whose results are not intact in the store; load the contents of the others."""
        return [place for place, result in results.items() if not self.load(place, result.key)]

    def load(self, place: Place, key: str) -> bool:
        """Load the content at a place, if it is small; return whether the store has it intact."""
        if not self.store.has(place.kind, key):  # deleted by `collect_garbage`, or left behind by `save`
            self.contents.pop(key, None)
            self.intact_maps.discard(key)
        elif key not in self.contents and key not in self.intact_maps:
            content = read_intact(self.store, place.kind, key)
            if content is not None and place.kind == "maps":
                self.intact_maps.add(key)
            elif content is not None:
                # as copies: a tensor that was read keeps its file mapped, and a process has 65,530 mappings
                small = {
                    name: tensor.clone()
                    for name, tensor in content.tensors.items()
                    if name not in ("curve", "at")
                }
                self.contents[key] = replace(content, tensors=small)
        if key in self.contents or key in self.intact_maps:
            self.forget_failure(place)
            return True
        return False

    def fail(self, place: Place, failure: Failure) -> None:
        """Record why the result at a place could not be computed."""
        self.failures[place.model, place.seed, place.what] = failure

    def forget_failure(self, place: Place) -> None:
        """Drop the failure at a place, which is finished or no longer recorded."""
        self.failures.pop((place.model, place.seed, place.what), None)

    # --- the store ----------------------------------------------------------------------------------

    def read_stored_attacks(self) -> None:
        """Record the attacks on these images that earlier runs left in the store, as they were requested."""
        manifest = self.store.read_manifest() if isinstance(self.store, FolderStore) else None
        if manifest is None or manifest.images != self.images:
            return
        for place, key in manifest.places.items():
            described = self.store.describe("attack", key) if place.kind == "attack" else None
            if described is not None:
                request = stored_request(place.label, described[0].depends)
                if request is not None:
                    self.attacks[place.label] = request

    def origin(self, model: str, seed: int) -> str:
        """Return where a network comes from according to a study's file; empty if that is not known."""
        return self.origins.get((model, seed)) or self.origins.get((model, None), "")

    def manifest(self) -> Manifest:
        """Describe this study for `study.json`."""
        places = {(place.model, place.seed, place.what) for place in self.results}
        return Manifest(
            images=self.images,
            sample=self.sample.fingerprint if self.sample.located else "",
            seed=self.seed,
            members=[
                ManifestMember(
                    each.model,
                    each.seed,
                    each.recipe,
                    self.weights.get((each.model, each.seed), ""),
                    self.origin(each.model, each.seed),
                )
                for each in self.members
            ],
            failed=[
                ManifestFailure(*of, failure.error)
                for of, failure in self.failures.items()
                if of not in places
            ],
            cells=[(*place, key) for place, key in self.results.items()],
            better=self.better,
            classes=list(self.classes),
            purpose=self.purpose,
        )

    def write_manifest(self, *, exclusive: bool = False) -> None:
        """Write `study.json`.

        Parameters
        ----------
        exclusive
            List the results of this study alone. By default those that other processes listed for the same
            images stay, except those of networks that could not be trained or loaded now, or that a study's
            file declares with another origin now.
        """
        store = self.store
        if not isinstance(store, FolderStore):
            return
        store.write_sample(self.sample)
        with store.lock(MANIFEST, wait=True):
            old = store.read_manifest()
            manifest = self.manifest()
            if not exclusive:
                manifest = manifest.joined(old and old.without(self._outdated(old, manifest)))
            elif old is not None and manifest.purpose == Purpose():
                manifest = manifest.model_copy(update={"purpose": old.purpose})
            absent = {key for place, key in manifest.places.items() if not store.has(place.kind, key)}
            weights = {each.weights for each in manifest.members if store.weights_path(each.weights).exists()}
            if old is not None:  # results and weights that disappeared stay listed, for `verify`
                absent -= set(old.places.values()) - set(old.missing)
                weights |= set() if exclusive else set(old.weights)
            files = {"missing": sorted(absent), "weights": sorted(weights)}
            store.write_manifest(manifest.model_copy(update=files))

    def _outdated(self, old: Manifest, new: Manifest) -> set[tuple[str, int]]:
        """Return model and seed of the networks of an old manifest that the study's file declares otherwise
        now, and of those that failed now."""
        outdated = {each[:2] for each in new.failed} - {each[:2] for each in new.members}
        for each in old.members if self.of_file else ():
            if each.origin and each.origin != self.origin(each.model, each.seed):
                outdated.add(each[:2])
        return outdated

    def adopt(self, manifest: Manifest) -> None:
        """Take over the results that a manifest lists and this study does not have."""
        mine = self.manifest()
        joined = mine.joined(manifest)
        for each in joined.members[len(self.members) :]:
            self.members.append(Member(each.model, each.seed, each.recipe, None))
        self.weights = {(each.model, each.seed): each.weights for each in joined.members}
        self.origins |= {(each.model, each.seed): each.origin for each in joined.members if each.origin}
        for failed in mine.failed:
            if failed not in joined.failed:  # the other study has this network
                del self.failures[failed[:3]]
        for failed in joined.failed:
            self.failures.setdefault(failed[:3], Failure(failed.error, ""))
        self.better, self.stored_classes, self.purpose = joined.better, joined.classes, joined.purpose
        self.results = joined.places
        for place, key in self.results.items():
            if place.kind != "maps":
                self.load(place, key)

    def merge(self, folder: str | Path) -> None:
        """Copy the intact results of another store, and list those of the same images and seed here."""
        other = FolderStore(existing_folder(folder))
        manifest = other.read_manifest()
        if manifest is not None and (manifest.images, manifest.seed) != (self.images, self.seed):
            warn(
                f"'{folder}' contains a study of other images, or of another seed: its results are copied, "
                "and nothing of it appears in the tables of this study",
            )
            manifest = None
        differ = self.manifest().differing(manifest) if manifest is not None else []
        if differ:
            model, seed = differ[0]
            raise InputError(
                f"'{model}' (seed {seed}) is one network in this study and another in '{folder}'; give one "
                f"of them another name and run its study again, such as Study({{'{model} (other)': …}}, …)"
            )
        for result, content in other.results():
            if not self.store.has(result.kind, result.key):
                self.store.write(result, content)
        if manifest is not None:
            self.adopt(manifest)
        self.write_manifest()

    def move_to(self, store: FolderStore) -> None:
        """Copy every recorded result into another store, and continue there."""
        recorded = set(self.results.values())
        for result, content in self.store.results():
            if result.key in recorded and not store.has(result.kind, result.key):
                store.write(result, content)
        self.store = store
        self.write_manifest()

    def collect_garbage(self) -> int:
        """Delete every result in the store that is not recorded here; return the bytes freed."""
        folder = self.folder()
        if not self.results:
            raise InputError("this study has no results yet, so all would be deleted; compute some first")
        damaged = folder.damaged_manifests()
        if damaged:
            raise InputError(
                f"'{damaged[0]}' is a damaged study.json, whose results would be deleted; run those studies "
                "again, or delete that file, before gc"
            )
        freed = folder.collect(set(self.results.values()))
        self.write_manifest(exclusive=True)
        return freed

    def folder(self) -> FolderStore:
        """Return the store, which must be a folder."""
        if not isinstance(self.store, FolderStore):
            raise InputError("this study is in memory; study.save('runs/first') gives it a folder")
        return self.store


def load_index(store: str | Path) -> ResultIndex:
    """Read the index of a stored study, without its networks; raise InputError if there is no intact one."""
    folder = FolderStore(existing_folder(store))
    manifest = folder.read_manifest()
    sample = folder.read_sample(manifest.sample or manifest.images) if manifest else None
    if manifest is None or sample is None:
        what = "its images are missing or damaged" if manifest else "it has no readable study.json"
        raise InputError(
            f"no study can be loaded from '{store}': {what}; run the study again with this store"
        )
    index = ResultIndex(sample, manifest.images, manifest.seed, [], folder, {})
    index.adopt(manifest)
    return index


_COMPARED = (
    *("method", "metric", "attack", "engine", "revision", "definition", "dtype", "stored as"),
    *("budget", "checklist"),
)
"""What two models must have in common, besides the settings, to be compared. The networks that an audit
transfers points from differ from model to model."""


def refuse_different_settings(results: Iterable[tuple[Place, str]], store: Store) -> None:
    """Refuse to compare models of which one was treated with other settings than another."""
    first: dict[tuple[str, str, str], tuple[str, dict[str, object]]] = {}
    for place, key in results:
        described = store.describe(place.kind, key)
        if described is None:
            continue
        depends = described[0].depends
        own = {name: depends[name] for name in _COMPARED if name in depends}
        own |= depends.get("settings") or {}
        if place.kind == "audit":
            own["images"] = described[1].get("n")
        other, theirs = first.setdefault((place.kind, place.label, place.metric), (place.model, own))
        differing = [name for name in own | theirs if own.get(name) != theirs.get(name)]
        if differing:
            what = f"'{place.metric}' of '{place.label}'" if place.metric else f"'{place.label}'"
            name = differing[0]
            raise InputError(
                f"{what} was run on '{other}' with {name} = {theirs.get(name)!r} and on '{place.model}' "
                f"with {name} = {own.get(name)!r}, which cannot be compared; run it on both with the "
                "same settings, or under another label on one of them"
            )
