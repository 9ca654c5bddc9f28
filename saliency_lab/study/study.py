"""The study: models × methods × metrics and attacks on the same images, nothing computed twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor, nn

from saliency_lab._common.checks import check_seed
from saliency_lab._common.errors import InputError, SaliencyLabError, unknown_name
from saliency_lab._common.files import writable_folder, write_table
from saliency_lab._common.fingerprints import fingerprint, model_fingerprint
from saliency_lab._common.html import facts, strip
from saliency_lab.attribution import Attributions
from saliency_lab.comparison.claims import Answered, Purpose, answer
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.metrics.catalogue import Better
from saliency_lab.models import card_of
from saliency_lab.study import work
from saliency_lab.study.cache.index import Held
from saliency_lab.study.cache.manifest import MANIFEST, Entry, Manifest, Place, audit_label, audited
from saliency_lab.study.cache.results import Cell, Content, Kind
from saliency_lab.study.cache.store import FolderStore, MemoryStore, Store, existing_folder
from saliency_lab.study.members import Member, read_members
from saliency_lab.study.requests import Request, Requests, read_attack, read_eps, read_requests
from saliency_lab.study.running import Runner
from saliency_lab.study.sample import Sample, read_sample
from saliency_lab.study.schema import AUDITS, ROBUSTNESS, SCORES, tidy
from saliency_lab.study.tasks import Failure, Task, read_intact
from saliency_lab.study.work import Asked

_SHOWN = 8  # images, in Jupyter


class Study:
    """Models compared on the same images; every result is kept, and only what is missing is computed.

    Parameters
    ----------
    models : mapping of name to nn.Module, or to a sequence of them
        What is compared. Several modules under one name are one model trained with several seeds.
    sample : (Tensor, Tensor) or (Tensor, Tensor, Tensor)
        Images (N, C, H, W) in [0, 1] and labels (N,); third, where the evidence is known, masks (N, 1, H, W),
        as `located(n)` of a split returns them: metrics of localisation use these.
    store : path, optional
        A folder in which each result is kept under a hash of what it depends on (weights, images,
        settings, versions that matter). Run the same script again and finished results are read. Several
        processes may share it. Without one, results are kept in memory.
    seed : int
        Of every random draw in methods, metrics, attacks and bootstrap.
    executor : concurrent.futures.Executor, optional
        Runs the missing cells, in other processes or on other machines (Dask's `client.get_executor()`);
        results are the same. Workers read images and weights from the store, which they must all see.

    Attributes
    ----------
    purpose : Purpose
        Title, text and claims, which its report shows and answers, and what `compare` takes by default.

    Raises
    ------
    InputError
        If there are no models, or the images or labels are not what they should be, or there is an
        executor and no store.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> study = Study({"plain": net}, (torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])))
    >>> study.attribute("saliency").score("sparseness")
    Study(1 model, 4 images (1, 4, 4); methods: saliency; metrics: sparseness)
    >>> study.scores.columns.tolist()
    ['model', 'recipe', 'seed', 'method', 'metric', 'sample', 'score']
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module | Sequence[nn.Module]],
        sample: Sequence[Tensor] | Sample,
        *,
        store: str | Path | None = None,
        seed: int = 0,
        executor: Executor | None = None,
    ) -> None:
        self.sample = read_sample(sample)
        self.members = read_members(models)
        self.seed = check_seed(seed)
        self.store: Store = MemoryStore() if store is None else FolderStore(writable_folder(store))
        if executor is not None and store is None:
            raise InputError(
                "an executor's workers meet in the store: Study(..., store='runs/first', executor=…)"
            )
        self._images = self.sample.images
        self._held = Held({(each.model, each.seed): model_fingerprint(each.net) for each in self.members})
        self._held.attacks |= self._attacks_kept()
        self._warn_of_copies()
        self.purpose = Purpose()
        self._runner = Runner(self.sample)
        self.executor = executor

    @property
    def x(self) -> Tensor:
        """The images, (N, C, H, W)."""
        return self.sample.x

    @property
    def y(self) -> Tensor:
        """Their labels, (N,)."""
        return self.sample.y

    @property
    def models(self) -> list[str]:
        """Names of the models compared, in the order given."""
        return list(dict.fromkeys(member.model for member in self.members))

    @property
    def labels(self) -> list[str]:
        """The images' classes by name, where a model's card tells the names; their numbers otherwise."""
        names = self.classes
        return [names[label] if names else str(label) for label in self.y.tolist()]

    @property
    def classes(self) -> Sequence[str]:
        """Names of all classes, where a model's card or the store tells them; empty otherwise."""
        cards = [card_of(member.module) for member in self.members if member.module is not None]
        return next((card.classes for card in cards if card is not None and card.classes), self._held.classes)

    # --- the three verbs ------------------------------------------------------------------------

    def attribute(self, methods: Requests) -> Study:
        """Attribute every model by these methods; only what is missing is computed.

        Parameters
        ----------
        methods
            A name of `list_methods()`, a function `(model, x, classes, **settings)` that returns maps, a
            sequence of these, or label → settings. A label that is no name says which method it means:
            `{"smooth": {"method": "smoothgrad", "stdev": 0.3}}`. `target` among the settings is that of
            `sl.attribute`; maps are scored for the class they explain.

        Under a label that is held already, other settings replace the maps, and their scores go.

        Raises
        ------
        InputError
            For an unknown method or setting, before anything is computed.
        """
        tasks = []
        prints = self._prints()
        wanted = read_requests(methods, "method")
        for request in wanted:
            asked = work.method_asked(request)
            for member, model in prints.items():
                cell = work.maps_cell(model, self._images, asked, self.seed)
                requests, cells = {request.label: request}, {(request.label, ""): cell}
                tasks.append((member, Task(requests, self.seed, cell.key, cells)))
        self._run(tasks, prints, "attribute", {request.label: request for request in wanted})
        return self

    def score(self, metrics: Requests) -> Study:
        """Score all maps by these metrics; only what is missing is computed.

        Parameters
        ----------
        metrics
            A name of `list_metrics()`, a sequence of names, or label → settings, as for `attribute`.

        Raises
        ------
        InputError
            For an unknown metric or setting, one that needs masks where the study has none, or if there
            are no maps yet.
        """
        prints = self._prints()
        if not self._held.methods:
            raise InputError("there are no maps to score yet; call study.attribute([...]) first")
        maps: dict[Member, dict[str, tuple[Cell, Request]]] = {member: {} for member in prints}
        for label, request in self._held.methods.items():
            asked = work.method_asked(request)
            for member, model in prints.items():
                cell = work.maps_cell(model, self._images, asked, self.seed)
                if cell.key != self._held.key("maps", label, member):
                    raise InputError(
                        f"the weights of {member}, its attributes, or what '{label}' uses changed since "
                        "study.attribute; call it again (what each run changes, such as a counter, needs a "
                        "name that starts with an underscore)"
                    )
                maps[member][label] = cell, request
        tasks = []
        better: dict[str, Better] = {}
        for shared, requests in _sharing(read_requests(metrics, "metric")).items():
            asked_of = {label: work.metric_asked(request, self.sample) for label, request in requests.items()}
            for label, request in requests.items():
                better[label] = work.better_scores(request)
            for member, model in prints.items():
                cells = {}
                for metric, asked in asked_of.items():
                    for method, (scored, _) in maps[member].items():
                        key = scored.key
                        cells[metric, method] = work.scores_cell(model, self._images, key, asked, self.seed)
                lock = fingerprint("scores", model, shared)
                tasks.append((member, Task(requests, self.seed, lock, cells, maps[member])))
        self._run(tasks, prints, "score", better=better)
        return self

    def attack(
        self,
        attack: str | Callable[..., Any] = "pgd",
        *,
        eps: float | str | Sequence[float | str],
        label: str | None = None,
        **settings: Any,
    ) -> Study:
        """Attack every model at each ε (and at 0); only what is missing is computed.

        A sample broken at a smaller ε counts as broken at the larger ones, as in `robustness_curve`. Under a
        label that is held already, the same settings add their ε to those held, as if asked for together
        (name them in one call where you can: each call computes all again), and other settings replace them.

        Parameters
        ----------
        attack
            A name of `list_attacks()`, or a function as `sl.attack` takes it.
        eps
            One radius or several, in image units; text such as "8/255" is accepted.
        label
            Its name in the tables, where one attack is wanted with two settings; by default its own, and
            "_l2" where its norm is that.
        settings
            The attack's own.
        """
        request = read_attack(attack, label, settings)
        tasks = []
        prints = self._prints()
        radii = read_eps(eps)
        asked = work.attack_asked(request, radii)
        radii = self._united(request.label, asked, radii, prints)
        for member, model in prints.items():
            cell = work.attack_cell(model, self._images, asked, radii, self.seed)
            requests, cells = {request.label: request}, {(request.label, ""): cell}
            tasks.append((member, Task(requests, self.seed, cell.key, cells, eps=radii)))
        self._run(tasks, prints, "attack", attacks={request.label: request})
        return self

    def audit(
        self,
        attack: str | Callable[..., Any] = "pgd",
        *,
        eps: float | str | Sequence[float | str],
        images: int | None = None,
        budget: Literal["quick", "full"] = "quick",
        label: str | None = None,
        **settings: Any,
    ) -> Study:
        """Say of every model whether what this attack reports can be believed; see `sl.audit`.

        Transfer from other models is skipped here: a verdict is about one network alone.

        Parameters
        ----------
        attack, eps, label, settings
            As for `attack`; every ε is an audit of its own. Without settings, the attack under this label is
            audited with the settings it had in this study, or in an earlier run on the same images and store.
        images
            Only the first so many, as audits take long; all by default.
        budget
            Of the reference attacks, as for `sl.audit`.
        """
        attacked = self._held.attack_audited(read_attack(attack, label, settings))
        count = len(self.x) if images is None else images
        if not isinstance(count, int | np.integer) or not 1 <= count <= len(self.x):
            raise InputError(
                f"audit of {attacked.label}: images must be a whole number in 1 … {len(self.x)}, "
                f"the number of this study's, not {images!r}"
            )
        seen = self.sample.first(count).images
        prints = self._prints()
        tasks = []
        radii = [radius for radius in read_eps(eps) if radius > 0]
        if not radii:
            raise InputError("an audit needs eps > 0")
        asked = work.attack_asked(attacked, radii)
        for radius in radii:
            request = replace(attacked, label=audit_label(attacked.label, radius))
            for member, model in prints.items():
                cell = work.audit_cell(model, seen, asked, radius, budget, self.seed)
                requests, cells = {request.label: request}, {(request.label, ""): cell}
                job = Task(requests, self.seed, cell.key, cells, eps=[radius], images=count, budget=budget)
                tasks.append((member, job))
        self._run(tasks, prints, "audit")
        return self

    def plan(
        self,
        methods: Requests = (),
        metrics: Requests = (),
        attacks: Mapping[str, Mapping[str, Any]] | None = None,
        audits: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> pd.DataFrame:
        """Say what the verbs would compute, without computing it.

        Parameters
        ----------
        methods, metrics
            As for `attribute` and `score`.
        attacks
            Label → settings of `attack`, `eps` among them; `attack` says which, where the label is no name.
        audits
            As `attacks`, of `audit`.

        Returns
        -------
        DataFrame
            One row a (step, what): `cells`, how many of them are `missing`, and the `seconds` these will take
            on this machine, measured on a few of the images and the first model; attacks and audits as if no
            image gave way.
        """
        from saliency_lab.study.planning import plan

        return plan(self, methods, metrics, attacks or {}, audits or {})

    # --- what came out --------------------------------------------------------------------------

    @property
    def maps(self) -> Mapping[str, Mapping[str, Attributions]]:
        """`maps[model][method]`, of the first seed, read when asked for."""
        first = {member.model: member for member in reversed(self.members)}
        return {model: _LazyMaps(self, first[model]) for model in self.models}

    def read_maps(self, model: str, method: str, seed: int | None = None) -> Attributions:
        """Maps of one model (of its first seed, or of `seed`) by one method."""
        if method not in self._held.labels("maps"):
            raise unknown_name("method of this study:", method, self._held.labels("maps"))
        members = [m for m in self.members if m.model == model and seed in (None, m.seed)]
        if not members:
            raise unknown_name(
                "model of this study:", model if seed is None else f"{model} {seed}", self.models
            )
        return work.as_attributions(self._maps_content(members[0], method))

    def read_curves(self, model: str, method: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Curves (seeds, images, K) behind one model's scores, and their positions (K,).

        None for metrics without curves, and for those whose positions differ between images.

        Raises
        ------
        UnknownNameError
            If this study has no such model, method or metric.
        """
        methods, metrics = self._held.labels("scores"), self._held.metrics
        for kind, name, known in (
            ("model", model, self.models),
            ("method", method, methods),
            ("metric", metric, metrics),
        ):
            if name not in known:
                raise unknown_name(f"{kind} of this study:", name, known)
        keys = [
            key
            for place, key in self._held.cells.items()
            if place[:4] == ("scores", method, metric, model) and key in self._runner.loaded
        ]
        found = [read_intact(self.store, "scores", key) for key in keys]
        curves = [each.tensors for each in found if each is not None and "curve" in each.tensors]
        if not keys or len(curves) < len(keys) or any(tensors["at"].ndim > 1 for tensors in curves):
            return None
        return np.stack([tensors["curve"].numpy() for tensors in curves]), curves[0]["at"].numpy()

    @property
    def scores(self) -> pd.DataFrame:
        """One row a (model, recipe, seed, method, metric, sample): the score, NaN where undefined."""
        parts = []
        for place, member, content in self._contents("scores"):
            keys = {"method": place.label, "metric": place.metric}
            parts.append((member, keys, {"score": content.tensors["values"].numpy()}))
        return tidy(parts, SCORES)

    @property
    def robustness(self) -> pd.DataFrame:
        """One row a (model, recipe, seed, attack, ε, sample): still right at this ε; ε = 0 is unattacked."""
        parts = []
        for place, member, content in self._contents("attack"):
            for eps, robust in zip(content.info["eps"], content.tensors["robust"], strict=True):
                parts.append((member, {"attack": place.label, "eps": eps}, {"robust": robust.numpy()}))
        return tidy(parts, ROBUSTNESS)

    @property
    def audits(self) -> pd.DataFrame:
        """One row a (model, recipe, seed, attack, ε, check), beside the verdict on the whole.

        Columns: `n` images; `robust_accuracy` that the attack reports, `worst_case` over all attacks that the
        audit ran; `verdict` and `reason` of the audit; `check`, `check_verdict` and `evidence` of one item.
        """
        rows = []
        for place, member, content in self._contents("audit"):
            facts = content.info
            whole = [facts[key] for key in ("n", "robust_accuracy", "worst_case", "verdict", "reason")]
            of = [member.model, member.recipe, member.seed, audited(place.label), facts["eps"], *whole]
            rows += [[*of, item["check"], item["verdict"], item["evidence"]] for item in facts["checks"]]
        return pd.DataFrame(rows, columns=AUDITS)

    @property
    def failures(self) -> pd.DataFrame:
        """Cells that raised: one row each, with error and traceback. The next run tries them again."""
        rows = [
            {
                "model": model,
                "seed": seed,
                "what": what,
                "error": failure.error,
                "traceback": failure.traceback,
            }
            for (model, seed, what), failure in self._runner.failures.items()
        ]
        return pd.DataFrame(rows, columns=["model", "seed", "what", "error", "traceback"])

    def note_failure(self, model: str, seed: int, what: str, failure: Failure) -> None:
        """Record something that failed before this study began, such as a training run."""
        self._runner.failures[model, seed, what] = failure

    def compare(self, baseline: str | None = None, *, level: float | None = None) -> Comparison:
        """Compare the models with `baseline` on the same images.

        Both are by default what `purpose` says: the first model, and 0.95.

        Raises
        ------
        InputError
            If there is no such model, or nothing has been scored or attacked yet; or if something was done
            to one model with other settings than to another (in another process, or before a merge).
        """
        self._refuse_unlike_settings()
        return Comparison(
            self.scores,
            self.robustness,
            baseline=baseline or self.purpose.baseline or self.models[0],
            level=self.purpose.level if level is None else level,
            seed=self.seed,
            better=self._held.better,
            audits=self.audits,
            pictures=self,
        )

    def answers(self) -> list[Answered]:
        """Answer the questions of `purpose`, by the intervals of `compare()`; each prints itself in words."""
        measured = len(self.scores) or len(self.robustness)
        return answer(self.purpose.claims, self.compare() if measured else None)

    def _refuse_unlike_settings(self) -> None:
        first: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
        for place, key in self._held.cells.items():
            described = self.store.describe(place.kind, key) if place.kind != "audit" else None
            if described is None:
                continue
            cell, _ = described
            own = {name: cell.depends[name] for name in _SETTINGS if name in cell.depends}
            own |= own.pop("settings", None) or {}
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

    @property
    def cells(self) -> Mapping[Place, str]:
        """Every cell asked for: where it stands in the grid → the key that its content is kept under."""
        return dict(self._held.cells)

    def report(
        self, path: str | Path, *, baseline: str | None = None, level: float | None = None, images: int = 64
    ) -> Path:
        """Write one self-contained HTML page: verdicts, tables, figures, maps to explore, audits, provenance.

        See `saliency_lab.report`.

        Parameters
        ----------
        path
            The file; an older one is replaced when the new one is complete.
        baseline, level
            As for `compare`.
        images
            How many images the page holds at most, the first ones.

        Raises
        ------
        InputError
            If nothing has been attributed, scored, attacked or audited yet, or as `compare`.
        """
        from saliency_lab.reporting import report

        return report(self, path, baseline=baseline, level=level, images=images)

    def write_tables(self, folder: str | Path | None = None) -> list[Path]:
        """Write scores, robustness and audits as Parquet and CSV into `folder`; return the Parquet files.

        By default into `tables` of the store.

        Raises
        ------
        InputError
            If something was run on two models with unlike settings, which the tables do not show.
        """
        folder = self._folder().folder / "tables" if folder is None else Path(folder)
        self._refuse_unlike_settings()
        tables = {"scores": self.scores, "robustness": self.robustness, "audits": self.audits}
        written = []
        for name, table in tables.items():
            if len(table):
                write_table(folder / name, table)
                written.append(folder / f"{name}.parquet")
        return written

    # --- the store ------------------------------------------------------------------------------

    @classmethod
    def load(cls, store: str | Path) -> Study:
        """Read a study back from its store, without its models: its tables, maps, comparison and figures.

        Raises
        ------
        InputError
            If there is no study, or its images are missing or damaged.
        """
        folder = FolderStore(existing_folder(store))
        manifest = folder.read_manifest()
        sample = folder.read_sample(manifest.sample or manifest.images) if manifest else None
        if manifest is None or sample is None:
            what = "its images are missing or damaged" if manifest else "it has no readable study.json"
            raise InputError(
                f"no study can be loaded from '{store}': {what}; run the study again with this store"
            )
        study = cls({"": nn.Identity()}, sample, seed=manifest.seed)
        study.store, study.members, study._held = folder, [], Held({})
        study._adopt(manifest)
        return study

    def save(self, folder: str | Path) -> Study:
        """Write everything into `folder`, another store, and go on there."""
        target = FolderStore(writable_folder(folder))
        held = set(self._held.cells.values())
        for cell, content in self.store.cells():
            if cell.key in held and not target.has(cell.kind, cell.key):
                target.write(cell, content)
        self.store = target
        self._write_manifest()
        return self

    def merge(self, store: str | Path) -> Study:
        """Take over the intact cells of another store, such as another machine's; damaged ones are named.

        If that store holds a study of the same images and seed, its models, methods, metrics and attacks
        appear in this study's tables. Where both hold maps or an attack under one label with different
        settings, this study's stay. Its models come without their networks: to compute more, build a study
        of all of them on this store.

        Raises
        ------
        InputError
            If there is no store, or a model and seed of this study is another network there.
        """
        other = FolderStore(existing_folder(store))
        manifest = other.read_manifest()
        if manifest is not None and (manifest.images, manifest.seed) != (self._images, self.seed):
            warnings.warn(
                f"'{store}' holds a study of other images, or of another seed: its cells are taken over, and "
                "nothing of it appears in the tables of this study",
                stacklevel=2,
            )
            manifest = None
        differ = self._manifest().differing(manifest) if manifest is not None else []
        if differ:
            model, seed = differ[0]
            raise InputError(
                f"'{model}' (seed {seed}) is one network in this study and another in '{store}'; give one of "
                f"them another name and run its study again, such as Study({{'{model} (other)': …}}, …)"
            )
        for cell, content in other.cells():
            if not self.store.has(cell.kind, cell.key):
                self.store.write(cell, content)
        if manifest is not None:
            self._adopt(manifest)
        self._write_manifest()
        return self

    def verify(self) -> pd.DataFrame:
        """Check every file of the store; one row a damaged cell, which the next run computes again."""
        return self._folder().verify()

    def gc(self) -> int:
        """Delete every cell of the store that this study does not hold; return the bytes freed."""
        folder = self._folder()
        if not self._held.cells:
            raise InputError("this study holds nothing yet, so everything would go; run its verbs first")
        freed = folder.collect(set(self._held.cells.values()))
        self._write_manifest(alone=True)
        return freed

    def _folder(self) -> FolderStore:
        if not isinstance(self.store, FolderStore):
            raise InputError("this study is kept in memory; study.save('runs/first') gives it a folder")
        return self.store

    def _manifest(self) -> Manifest:
        return Manifest(
            images=self._images,
            sample="" if self.sample.masks is None else self.sample.fingerprint,
            seed=self.seed,
            members=[
                Entry(each.model, each.seed, each.recipe, self._held.weights.get((each.model, each.seed), ""))
                for each in self.members
            ],
            cells=[(*place, key) for place, key in self._held.cells.items()],
            better=self._held.better,
            classes=list(self.classes),
            purpose=self.purpose,
        )

    def list_alone(self) -> None:
        """Let the store's `study.json` list what this study holds, and nothing of others of its images.

        Cells stay in the store; `gc` deletes those of others.
        """
        self._write_manifest(alone=True)

    def _write_manifest(self, *, alone: bool = False) -> None:
        """Add this study to `study.json`; what other processes put there about the same images stays."""
        if not isinstance(self.store, FolderStore):
            return
        self.store.write_sample(self.sample)
        with self.store.lock(MANIFEST, wait=True):
            old = self.store.read_manifest()
            manifest = self._manifest()
            if not alone:
                manifest = manifest.joined(old)
            elif old is not None and manifest.purpose == Purpose():
                manifest = manifest.model_copy(update={"purpose": old.purpose})
            if manifest != old:
                self.store.write_manifest(manifest)

    def _adopt(self, manifest: Manifest) -> None:
        """Take over what a manifest holds and this study does not."""
        joined = self._manifest().joined(manifest)
        for each in joined.members[len(self.members) :]:
            self.members.append(Member(each.model, each.seed, each.recipe, None))
        self._held.weights = {(each.model, each.seed): each.weights for each in joined.members}
        self._held.better, self._held.classes = joined.better, joined.classes
        self._held.cells = joined.places
        self.purpose = joined.purpose
        for at, key in self._held.cells.items():
            if at.kind != "maps" and key not in self._runner.loaded:
                self._runner.load(self.store, at.kind, key)

    def __repr__(self) -> str:
        count, seeds = len(self.models), len(self.members)
        models = f"{count} model{'s' if count > 1 else ''}" + (f" ({seeds} seeds)" if seeds > count else "")
        parts = {
            "methods": self._held.labels("maps"),
            "metrics": self._held.metrics,
            "attacks": self._held.labels("attack"),
            "audits": self._held.labels("audit"),
        }
        held = "".join(f"; {what}: {', '.join(names)}" for what, names in parts.items() if names)
        failed = f"; {len(self._runner.failures)} failed" if self._runner.failures else ""
        return f"Study({models}, {len(self.x)} images {tuple(self.x.shape[1:])}{held}{failed})"

    def _repr_html_(self) -> str:
        seeds = {name: sum(member.model == name for member in self.members) for name in self.models}
        audited = self.audits.drop_duplicates(["model", "seed", "attack", "eps"]).itertuples()
        audits = [f"{row.model}, {row.attack} at ε = {row.eps:.4g}: {row.verdict}" for row in audited]
        rows = {
            "models": ", ".join(f"{name} ({n} seeds)" if n > 1 else name for name, n in seeds.items()),
            "images": f"{len(self.x)} × {tuple(self.x.shape[1:])}",
        }
        more = {
            "methods": ", ".join(self._held.labels("maps")),
            "metrics": ", ".join(self._held.metrics),
            "attacks": ", ".join(self._held.labels("attack")),
            "audits": "; ".join(audits),
            "failed": f"{len(self.failures)} cells; study.failures says why" if len(self.failures) else "",
        }
        shown = self.x[:_SHOWN]
        rows |= {what: text for what, text in more.items() if text}
        return facts("study", rows) + strip(shown, f"the first {len(shown)} images")

    # --- running --------------------------------------------------------------------------------

    def _prints(self) -> dict[Member, str]:
        if self.sample.images != self._images:
            raise InputError("the images of this study changed since it was built; build another")
        return {member: model_fingerprint(member.net) for member in self.members}

    def _warn_of_copies(self) -> None:
        first: dict[str, Member] = {}
        for member in self.members:
            twin = first.setdefault(self._held.weights[member.model, member.seed], member)
            if twin is not member:
                warnings.warn(
                    f"{member} and {twin} are the same network, so their results are too; give each its own",
                    stacklevel=3,
                )

    def _attacks_kept(self) -> dict[str, Request]:
        """Attacks of these images that earlier runs left in the store, by label, as they were asked for."""
        manifest = self.store.read_manifest() if isinstance(self.store, FolderStore) else None
        if manifest is None or manifest.images != self._images:
            return {}
        kept = {}
        for at, key in manifest.places.items():
            described = self.store.describe("attack", key) if at.kind == "attack" else None
            request = None if described is None else work.attack_of(at.label, described[0])
            if request is not None:
                kept[at.label] = request
        return kept

    def _united(
        self, label: str, asked: Asked, radii: Sequence[float], prints: Mapping[Member, str]
    ) -> tuple[float, ...]:
        """Radii, with those at which this attack with these settings is held already."""
        united = set(radii)
        for member, model in prints.items():
            key = self._held.key("attack", label, member)
            if key is not None and key in self._runner.loaded:
                held = self._runner.loaded[key].info["eps"]
                if work.attack_cell(model, self._images, asked, held, self.seed).key == key:
                    united.update(held)
        return tuple(sorted(united))

    def _maps_content(self, member: Member, label: str) -> Content:
        """Read a "maps" cell; a damaged one is named and computed again."""
        key = self._held.key("maps", label, member)
        if key is None:
            raise SaliencyLabError(f"there are no maps by '{label}' of {member}; call study.attribute")
        content = read_intact(self.store, "maps", key)
        if content is None:
            failure = self._runner.failures.get((member.model, member.seed, label))
            if failure is not None:
                raise SaliencyLabError(f"there are no maps by '{label}' of {member}: {failure.error}")
            request = self._held.methods.get(label)
            weights = model_fingerprint(member.net)
            asked = None if request is None else work.method_asked(request)
            cell = None if asked is None else work.maps_cell(weights, self._images, asked, self.seed)
            if request is None or cell is None or cell.key != key:
                raise SaliencyLabError(
                    f"the maps by '{label}' of {member} are gone, and were made by other settings or weights "
                    "than are known here; call study.attribute with that method again"
                )
            content = work.compute_maps(member.net, self.sample, request, self.seed)
            self.store.write(cell, content)
        return content

    def _run(
        self,
        tasks: Sequence[tuple[Member, Task]],
        prints: Mapping[Member, str],
        verb: str,
        methods: Mapping[str, Request] | None = None,
        better: Mapping[str, Better] | None = None,
        attacks: Mapping[str, Request] | None = None,
    ) -> None:
        """Hold these tasks' cells, compute what is missing of them, and write down what the study holds now.

        Where nothing at all could be computed, it holds what it held before.
        """
        before, failures = self._held.copy(), dict(self._runner.failures)
        self._held.methods |= methods or {}
        self._held.better |= better or {}
        self._held.attacks |= attacks or {}
        placed = {task.place(name, each): cell for each, task in tasks for name, cell in task.cells.items()}
        for at in self._held.place(placed, prints):
            self._runner.forget(at)
        try:
            self._compute(tasks, prints, verb)
        except Exception:
            self._held, self._runner.failures = before, failures
            raise
        finally:
            self._write_manifest()

    def _compute(self, tasks: Sequence[tuple[Member, Task]], prints: Mapping[Member, str], verb: str) -> None:
        self._runner.run(tasks, prints, store=self.store, executor=self.executor, verb=verb)

    def _contents(self, kind: Kind) -> Iterator[tuple[Place, Member, Content]]:
        members = {(member.model, member.seed): member for member in self.members}
        for place, key in self._held.cells.items():
            if place.kind == kind and key in self._runner.loaded:
                yield place, members[place.model, place.seed], self._runner.loaded[key]


class _LazyMaps(Mapping[str, Attributions]):
    """Maps of one member by method, read when asked for."""

    def __init__(self, study: Study, member: Member) -> None:
        self._study, self._member = study, member

    def __getitem__(self, method: str) -> Attributions:
        if method not in self:
            raise KeyError(str(unknown_name("method of this study:", method, list(self))))
        return self._study.read_maps(self._member.model, method, self._member.seed)

    def __contains__(self, method: object) -> bool:
        return method in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._study._held.labels("maps"))

    def __len__(self) -> int:
        return len(self._study._held.labels("maps"))


_SETTINGS = ("method", "metric", "attack", "engine", "settings")
"""What a cell depends on besides the network, the images, ε and the versions."""


def _sharing(requests: Sequence[Request]) -> dict[str, dict[str, Request]]:
    """Group metrics that ask the model the same, by what they ask; the rest are alone."""
    groups: dict[str, dict[str, Request]] = {}
    for request in requests:
        shares = work.describe_metric(request).shares or request.label
        groups.setdefault(shares, {})[request.label] = request
    return groups
