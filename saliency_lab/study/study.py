"""The study: models × methods × metrics and attacks on the same images, nothing computed twice."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.errors import InputError, SaliencyLabError, unknown_name
from saliency_lab._common.files import write_table
from saliency_lab._common.progress import progress
from saliency_lab._common.provenance import fingerprint, model_fingerprint
from saliency_lab.attribution import Attributions
from saliency_lab.study import work
from saliency_lab.study.cells import Cell, Content
from saliency_lab.study.store import Busy, DamagedCellError, FolderStore, MemoryStore, Store
from saliency_lab.study.work import Request, Requests, read_requests

if TYPE_CHECKING:
    from saliency_lab.study.comparison import Comparison

SCORES = ["model", "recipe", "seed", "method", "metric", "sample", "score"]
ROBUSTNESS = ["model", "recipe", "seed", "attack", "eps", "sample", "robust"]


@dataclass(frozen=True, eq=False)
class Member:
    """One trained network of a study: the model it belongs to, and its training seed and recipe."""

    model: str
    seed: int
    recipe: str
    module: nn.Module

    @property
    def id(self) -> tuple[str, int]:
        """What tells it from the others."""
        return self.model, self.seed

    def __str__(self) -> str:
        return f"{self.model} (seed {self.seed})"


@dataclass(frozen=True, eq=False)
class Unit:
    """Cells that are computed together, by label, and the function that computes some of them."""

    member: Member
    what: str
    lock: str
    cells: Mapping[str, Cell]
    compute: Callable[[Sequence[str]], Mapping[str, Content]]

    def __str__(self) -> str:
        return f"{self.what} of {self.member}"


class Study:
    """Models compared on the same images; every result is kept, and only what is missing is computed.

    Parameters
    ----------
    models : mapping of name to nn.Module, or to a sequence of them
        What is compared. Several modules under one name are one model trained with several seeds.
    sample : (Tensor, Tensor)
        Images (N, C, H, W) in [0, 1] and labels (N,).
    store : path, optional
        A folder in which each result is kept under a hash of what it depends on (weights, images,
        settings, versions that matter). Run the same script again and finished results are read. Several
        processes may share it. Without one, results are kept in memory.
    seed : int
        Of every random draw in methods, metrics, attacks and bootstrap.

    Raises
    ------
    InputError
        If there are no models, or the images or labels are not what they should be.

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
        sample: tuple[Tensor, Tensor],
        *,
        store: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self.x, self.y = sample
        check_images(self.x)
        self.y = check_labels(self.y, len(self.x))
        self.members = _members(models)
        self.seed = seed
        self.store: Store = MemoryStore() if store is None else FolderStore(store)
        self._images = fingerprint(self.x, self.y)
        self._methods: dict[str, dict[tuple[str, int], tuple[Request, Cell]]] = {}
        self._scores: dict[tuple[str, str], dict[tuple[str, int], Cell]] = {}
        self._attacks: dict[str, dict[tuple[str, int], Cell]] = {}
        self._loaded: dict[str, Content] = {}
        self._failures: dict[tuple[str, int, str], BaseException] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models compared, in the order given."""
        return list(dict.fromkeys(member.model for member in self.members))

    # --- the three verbs ------------------------------------------------------------------------

    def attribute(self, methods: Requests) -> Study:
        """Attribute every model by these methods; only what is missing is computed.

        Parameters
        ----------
        methods
            A name of `list_methods()`, a function `(model, x, classes, **settings)` that returns maps, a
            sequence of these, or label → settings. A label that is no name says which method it means:
            `{"smooth": {"method": "smoothgrad", "stdev": 0.3}}`.

        Raises
        ------
        InputError
            For an unknown method or setting, before anything is computed.
        """
        units = []
        prints = self._prints()
        for request in read_requests(methods, "method"):
            cells = {
                member.id: work.maps_cell(prints[member.id], self._images, request, self.seed)
                for member in self.members
            }
            self._methods[request.label] = {at: (request, cell) for at, cell in cells.items()}
            units += [self._maps_unit(member, request, cells[member.id]) for member in self.members]
        self._run(units, "attribute")
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
            For an unknown metric or setting, or if there are no maps yet.
        """
        if not self._methods:
            raise InputError("there are no maps to score yet; call study.attribute([...]) first")
        units = []
        prints = self._prints()
        for request in read_requests(metrics, "metric"):
            for member in self.members:
                maps = {label: cells[member.id][1] for label, cells in self._methods.items()}
                if any(cell.depends["model"] != prints[member.id] for cell in maps.values()):
                    raise InputError(f"the weights of {member} changed since study.attribute; call it again")
                cells = {
                    label: work.scores_cell(prints[member.id], self._images, cell, request, self.seed)
                    for label, cell in maps.items()
                }
                for label, cell in cells.items():
                    self._scores.setdefault((label, request.label), {})[member.id] = cell
                lock = fingerprint("scores", prints[member.id], request.label)
                compute = partial(self._compute_scores, member, request)
                units.append(Unit(member, request.label, lock, cells, compute))
        self._run(units, "score")
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

        A sample broken at a smaller ε counts as broken at the larger ones, as in `robustness_curve`.

        Parameters
        ----------
        attack
            A name of `list_attacks()`, or a function as `sl.attack` takes it.
        eps
            One radius or several, in image units; text such as "8/255" is accepted.
        label
            Its name in the tables, where one attack is wanted with two settings.
        settings
            The attack's own.
        """
        (named,) = read_requests(attack, "attack")
        request = Request(label or named.label, attack, settings)
        radii = work.read_eps(eps)
        units = []
        prints = self._prints()
        for member in self.members:
            cell = work.attack_cell(prints[member.id], self._images, request, radii, self.seed)
            self._attacks.setdefault(request.label, {})[member.id] = cell
            compute = partial(self._compute_attack, member, request, radii)
            units.append(Unit(member, request.label, cell.key, {request.label: cell}, compute))
        self._run(units, "attack")
        return self

    # --- what came out --------------------------------------------------------------------------

    @property
    def maps(self) -> Mapping[str, Mapping[str, Attributions]]:
        """`maps[model][method]`, of the first seed, read when asked for."""
        first = {member.model: member for member in reversed(self.members)}
        return {model: _LazyMaps(self, first[model]) for model in self.models}

    def read_maps(self, model: str, method: str, seed: int | None = None) -> Attributions:
        """Maps of one model (of its first seed, or of `seed`) by one method."""
        if method not in self._methods:
            raise unknown_name("method of this study:", method, self._methods)
        members = [m for m in self.members if m.model == model and seed in (None, m.seed)]
        if not members:
            raise unknown_name(
                "model of this study:", model if seed is None else f"{model} {seed}", self.models
            )
        return work.as_attributions(self._maps_content(members[0], method))

    @property
    def scores(self) -> pd.DataFrame:
        """One row a (model, recipe, seed, method, metric, sample): the score, NaN where undefined."""
        parts = []
        for (method, metric), cells in self._scores.items():
            for member, content in self._contents(cells):
                values = content.tensors["values"].numpy()
                parts.append((member, {"method": method, "metric": metric}, {"score": values}))
        return _table(parts, SCORES)

    @property
    def robustness(self) -> pd.DataFrame:
        """One row a (model, recipe, seed, attack, ε, sample): still right at this ε; ε = 0 is unattacked."""
        parts = []
        for attack, cells in self._attacks.items():
            for member, content in self._contents(cells):
                for eps, robust in zip(content.info["eps"], content.tensors["robust"], strict=True):
                    parts.append((member, {"attack": attack, "eps": eps}, {"robust": robust.numpy()}))
        return _table(parts, ROBUSTNESS)

    @property
    def failures(self) -> pd.DataFrame:
        """Cells that raised: one row each, with error and traceback. The next run tries them again."""
        rows = [
            {
                "model": model,
                "seed": seed,
                "what": what,
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
            }
            for (model, seed, what), error in self._failures.items()
        ]
        return pd.DataFrame(rows, columns=["model", "seed", "what", "error", "traceback"])

    def compare(self, baseline: str | None = None, *, level: float = 0.95) -> Comparison:
        """Compare the models with `baseline` (by default the first) on the same images.

        Raises
        ------
        InputError
            If there is no such model, or nothing has been scored or attacked yet.
        """
        from saliency_lab.study.comparison import Comparison

        return Comparison(
            self.scores,
            self.robustness,
            baseline=self.models[0] if baseline is None else baseline,
            level=level,
            seed=self.seed,
            pictures=self,
        )

    def write_tables(self, folder: str | Path | None = None) -> list[Path]:
        """Write scores and robustness as Parquet and CSV into `folder`; return the Parquet files.

        By default into `tables` of the store.
        """
        if folder is None:
            if not isinstance(self.store, FolderStore):
                raise InputError("this study is kept in memory; name a folder: study.write_tables('tables')")
            folder = self.store.folder / "tables"
        folder = Path(folder)
        tables = {"scores": self.scores, "robustness": self.robustness}
        written = []
        for name, table in tables.items():
            if len(table):
                write_table(folder / name, table)
                written.append(folder / f"{name}.parquet")
        return written

    def __repr__(self) -> str:
        count, seeds = len(self.models), len(self.members)
        models = f"{count} model{'s' if count > 1 else ''}" + (f" ({seeds} seeds)" if seeds > count else "")
        parts = {
            "methods": list(self._methods),
            "metrics": list(dict.fromkeys(metric for _, metric in self._scores)),
            "attacks": list(self._attacks),
        }
        held = "".join(f"; {what}: {', '.join(names)}" for what, names in parts.items() if names)
        failed = f"; {len(self._failures)} failed" if self._failures else ""
        return f"Study({models}, {len(self.x)} images {tuple(self.x.shape[1:])}{held}{failed})"

    # --- running --------------------------------------------------------------------------------

    def _prints(self) -> dict[tuple[str, int], str]:
        return {member.id: model_fingerprint(member.module) for member in self.members}

    def _maps_unit(self, member: Member, request: Request, cell: Cell) -> Unit:
        def compute(labels: Sequence[str]) -> dict[str, Content]:
            return {request.label: work.compute_maps(member.module, self.x, self.y, request, self.seed)}

        return Unit(member, request.label, cell.key, {request.label: cell}, compute)

    def _compute_scores(self, member: Member, request: Request, labels: Sequence[str]) -> dict[str, Content]:
        maps = {label: work.as_attributions(self._maps_content(member, label)) for label in labels}
        return work.compute_scores(member.module, self.x, self.y, maps, request, self.seed)

    def _compute_attack(
        self, member: Member, request: Request, eps: Sequence[float], labels: Sequence[str]
    ) -> dict[str, Content]:
        content = work.compute_attack(member.module, self.x, self.y, request, eps, self.seed)
        return {request.label: content}

    def _maps_content(self, member: Member, label: str) -> Content:
        """Read a "maps" cell; a damaged one is named and computed again."""
        request, cell = self._methods[label][member.id]
        content = self._intact(cell)
        if content is None:
            failed = self._failures.get((*member.id, label))
            if failed is not None:
                raise SaliencyLabError(f"there are no maps by '{label}' of {member}: {failed}") from failed
            content = work.compute_maps(member.module, self.x, self.y, request, self.seed)
            self.store.write(cell, content)
        return content

    def _intact(self, cell: Cell) -> Content | None:
        """Return the content of a cell, None where it has to be computed."""
        try:
            return self.store.read(cell)
        except DamagedCellError as error:
            warnings.warn(f"{error}; it is computed again", stacklevel=2)
            return None

    def _missing(self, unit: Unit) -> list[str]:
        missing = []
        for label, cell in unit.cells.items():
            if cell.kind == "maps":  # large: read when needed
                found = self.store.has(cell)
            else:
                if cell.key not in self._loaded and (content := self._intact(cell)) is not None:
                    self._loaded[cell.key] = content
                found = cell.key in self._loaded
            if found:
                self._failures.pop((*unit.member.id, _failure_name(unit, label)), None)
            else:
                missing.append(label)
        return missing

    def _run(self, units: Sequence[Unit], verb: str) -> None:
        """Compute what is missing; what other processes are at work on is waited for at the end."""
        todo = [unit for unit in units if self._missing(unit)]
        done = failed = 0
        error: BaseException | None = None
        with progress(label=verb, total=len(todo)) as bar:
            for wait in (False, True):
                busy = []
                for unit in todo:
                    bar.set_postfix_str(str(unit))
                    try:
                        with self.store.lock(unit.lock, wait=wait):
                            problems = self._finish(unit, self._missing(unit))
                    except Busy:
                        busy.append(unit)
                        continue
                    done += len(unit.cells) - len(problems)
                    failed += len(problems)
                    error = error or next(iter(problems.values()), None)
                    bar.update()
                todo = busy
        if error is not None and not done:
            raise error
        if error is not None:
            warnings.warn(
                f"{failed} of {failed + done} cells failed and the rest went on; study.failures says why "
                f"(the first: {error})",
                stacklevel=3,
            )

    def _finish(self, unit: Unit, labels: Sequence[str]) -> dict[str, BaseException]:
        """Compute and keep some cells of a unit; return the errors by label."""
        if not labels:
            return {}
        try:
            contents = unit.compute(labels)
        except Exception as error:
            if len(labels) > 1:  # one by one, so that only the bad one is lost
                problems: dict[str, BaseException] = {}
                for label in labels:
                    problems |= self._finish(unit, [label])
                return problems
            self._failures[(*unit.member.id, _failure_name(unit, labels[0]))] = error
            return {labels[0]: error}
        for label, content in contents.items():
            cell = unit.cells[label]
            self.store.write(cell, content)
            if cell.kind != "maps":
                self._loaded[cell.key] = content
            self._failures.pop((*unit.member.id, _failure_name(unit, label)), None)
        return {}

    def _contents(self, cells: Mapping[tuple[str, int], Cell]) -> Iterator[tuple[Member, Content]]:
        for member in self.members:
            cell = cells.get(member.id)
            if cell is not None and cell.key in self._loaded:
                yield member, self._loaded[cell.key]


class _LazyMaps(Mapping[str, Attributions]):
    """Maps of one member by method, read when asked for."""

    def __init__(self, study: Study, member: Member) -> None:
        self._study, self._member = study, member

    def __getitem__(self, method: str) -> Attributions:
        return self._study.read_maps(self._member.model, method, self._member.seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._study._methods)

    def __len__(self) -> int:
        return len(self._study._methods)


def _failure_name(unit: Unit, label: str) -> str:
    return label if label == unit.what else f"{unit.what} of {label}"


def _members(models: Mapping[str, nn.Module | Sequence[nn.Module]]) -> list[Member]:
    if not isinstance(models, Mapping) or not models:
        raise InputError("models must map names to modules, such as {'standard': model}, with one at least")
    members = []
    for name, given in models.items():
        modules = [given] if isinstance(given, nn.Module) else list(given)
        if not modules or not all(isinstance(module, nn.Module) for module in modules):
            raise InputError(f"model '{name}' must be an nn.Module or a sequence of them")
        cards = [getattr(module, "card", None) for module in modules]
        seeds: list[Any] = [getattr(card, "seed", None) for card in cards]
        if None in seeds or len(set(seeds)) < len(seeds):
            seeds = list(range(len(modules)))
        for seed, card, module in zip(seeds, cards, modules, strict=True):
            recipe = (getattr(card, "recipe", None) or {}).get("name") or ""
            members.append(Member(name, seed, str(recipe), module))
    return members


def _table(
    parts: Sequence[tuple[Member, Mapping[str, Any], Mapping[str, Any]]], columns: list[str]
) -> pd.DataFrame:
    frames = []
    for member, keys, values in parts:
        count = len(next(iter(values.values())))
        facts = {"model": member.model, "recipe": member.recipe, "seed": member.seed, **keys}
        frames.append(pd.DataFrame({**facts, "sample": range(count), **values}))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return table[columns]
