"""The results of a study: its tables, maps and curves, their comparison, and summaries in text and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from saliency_lab._common.arguments import check_choice, check_count, check_path
from saliency_lab._common.checks import check_seed, format_epsilon
from saliency_lab._common.errors import InputError, SaliencyLabError, unknown_name
from saliency_lab._common.files import remove_table, write_table
from saliency_lab._common.fingerprints import model_fingerprint
from saliency_lab._common.html import facts, strip
from saliency_lab._common.passes import Predictions, predict_classes
from saliency_lab._common.text import number_of
from saliency_lab._common.warn import warn
from saliency_lab.attribution import Attributions
from saliency_lab.comparison.claims import Answered, Purpose, answer
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.schema import AUDITS, ROBUSTNESS, SCORES, tidy
from saliency_lab.study import compute
from saliency_lab.study.cache.index import ResultIndex, refuse_different_settings
from saliency_lab.study.cache.manifest import audited_attack
from saliency_lab.study.cache.results import Content, Place
from saliency_lab.study.cache.store import Store, read_intact
from saliency_lab.study.keys import maps_result, method_dependencies
from saliency_lab.study.requests import Request, stored_request
from saliency_lab.study.sample import Member, StudySample

_SHOWN = 8
"""Images in the HTML summary."""


class StudyResults:
    """The part of a study that reads: what was computed, and what follows from it."""

    _index: ResultIndex

    # --- what it compares -----------------------------------------------------------------------

    @property
    def sample(self) -> StudySample:
        """The images, labels and masks."""
        return self._index.sample

    @property
    def x(self) -> Tensor:
        """The images, (N, C, H, W)."""
        return self.sample.x

    @property
    def y(self) -> Tensor:
        """The labels, (N,)."""
        return self.sample.y

    @property
    def seed(self) -> int:
        """The seed of every random draw."""
        return self._index.seed

    @property
    def members(self) -> list[Member]:
        """The trained networks, by model and training seed."""
        return self._index.members

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order given."""
        return self._index.models

    @property
    def classes(self) -> Sequence[str]:
        """Names of all classes, where a model's card or the store has them; empty otherwise."""
        return self._index.classes

    @property
    def labels(self) -> list[str]:
        """The class of each image, by name where the names are known, otherwise by number."""
        return [self.class_name(label) for label in self.y.tolist()]

    def class_name(self, label: int) -> str:
        """Return the name of a class.

        Parameters
        ----------
        label : int
            Number of the class, from 0.

        Returns
        -------
        str
            Its name, as in `classes`, or its number where it has no name.

        Raises
        ------
        InputError
            If `label` is no whole number, or negative.
        """
        label, names = check_count(label, "label", least=0), self.classes
        return names[label] if label < len(names) else str(label)

    @property
    def purpose(self) -> Purpose:
        """Title, text and claims, which a report shows and answers, and the defaults of `compare`."""
        return self._index.purpose

    @purpose.setter
    def purpose(self, purpose: Purpose) -> None:
        self._index.purpose = purpose

    @property
    def store(self) -> Store:
        """Where the results are stored: a folder, or memory."""
        return self._index.store

    # --- results -------------------------------------------------------------------------

    @property
    def maps(self) -> Mapping[str, Mapping[str, Attributions]]:
        """`maps[model][method]`, of the first training seed, read when asked for."""
        return {model: StudyMaps(self, self._member(model)) for model in self.models}

    def read_maps(self, model: str, method: str, seed: int | None = None) -> Attributions:
        """Read the maps of one model by one method.

        Damaged maps are computed again, with a warning.

        Parameters
        ----------
        model : str
            Name of the model.
        method : str
            Label of the method in this study.
        seed : int, optional
            Training seed of the model; its first one by default.

        Returns
        -------
        Attributions
            Maps of all images of the study.

        Raises
        ------
        UnknownNameError
            If the study has no such model or method.
        SaliencyLabError
            If the maps do not exist, and cannot be computed.
        """
        check_choice(method, self._index.labels("maps"), "method of this study")
        member = self._member(model, seed)
        key = self._index.key("maps", method, member)
        if key is None:
            raise SaliencyLabError(f"there are no maps by '{method}' of {member}; call study.attribute")
        content = read_intact(self.store, "maps", key)
        if content is None:
            content = self._compute_maps_again(member, method, key)
        return compute.as_attributions(content)

    def read_predictions(self, model: str, seed: int | None = None) -> Predictions | None:
        """Read the class that a model predicts for each image, and its probability.

        They are stored with the maps.

        Parameters
        ----------
        model : str
            Name of the model.
        seed : int, optional
            Training seed of the model; its first one by default.

        Returns
        -------
        Predictions or None
            None if the network is not loaded, and there are no maps or an earlier version stored them without
            predictions.

        Raises
        ------
        InputError
            If the study has no such model, or no network of it with this seed.
        """
        member = self._member(model, seed)
        for method in self._index.labels("maps"):
            key = self._index.key("maps", method, member)
            content = None if key is None else read_intact(self.store, "maps", key)
            if content is not None and "predicted" in content.tensors:
                tensors = content.tensors
                return Predictions(tensors["predicted"].tolist(), tensors["probabilities"].tolist())
        return None if member.module is None else predict_classes(member.module, self.x)

    def read_curves(self, model: str, method: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Read the curves behind the scores of one model, such as those of pixel flipping.

        Parameters
        ----------
        model : str
            Name of the model.
        method : str
            Label of the method in this study.
        metric : str
            Label of the metric in this study.

        Returns
        -------
        (ndarray, ndarray) or None
            Curves (seeds, images, K) and their positions (K,). None if the metric has no curves, or their
            positions differ between images.

        Raises
        ------
        UnknownNameError
            If the study has no such model, method or metric.
        """
        index = self._index
        for kind, name, known in (
            ("model", model, self.models),
            ("method", method, index.labels("scores")),
            ("metric", metric, index.metrics),
        ):
            check_choice(name, known, f"{kind} of this study")
        contents = [
            read_intact(self.store, "scores", key)
            for place, key in index.results.items()
            if place[:4] == ("scores", method, metric, model) and key in index.contents
        ]
        curves = [each.tensors for each in contents if each is not None and "curve" in each.tensors]
        if not contents or len(curves) < len(contents) or any(tensors["at"].ndim > 1 for tensors in curves):
            return None
        return np.stack([tensors["curve"].numpy() for tensors in curves]), curves[0]["at"].numpy()

    def read_request(self, kind: Literal["maps", "attack"], label: str) -> Request | None:
        """Return the method or attack behind a label of this study, with its settings.

        Parameters
        ----------
        kind : {"maps", "attack"}
            Whether `label` is that of a method or of an attack.
        label : str
            Label of the method or attack in this study.

        Returns
        -------
        Request or None
            `what`, a registered name or the user's function, and its `settings`. None if it is a function
            that this process does not have, because a store does not contain functions.
        """
        index = self._index
        known = (index.methods if kind == "maps" else index.attacks).get(label)
        if known is not None:
            return known
        for place, key in index.results.items():
            described = self.store.describe(kind, key) if place[:2] == (kind, label) else None
            if described is not None:
                return stored_request(label, described[0].depends)
        return None

    @property
    def scores(self) -> pd.DataFrame:
        """One row per (model, recipe, seed, method, metric, sample): the score, NaN where undefined."""
        parts = []
        for place, member, content in self._index.of_kind("scores"):
            keys = {**_network(member), "method": place.label, "metric": place.metric}
            parts.append((keys, {"score": content.tensors["values"].numpy()}))
        return tidy(parts, SCORES)

    @property
    def robustness(self) -> pd.DataFrame:
        """One row per (model, recipe, seed, attack, ε, sample): whether it is still classified correctly.

        The rows of ε = 0 are those of the images without an attack.
        """
        parts = []
        for place, member, content in self._index.of_kind("attack"):
            for eps, robust in zip(content.info["eps"], content.tensors["robust"], strict=True):
                keys = {**_network(member), "attack": place.label, "eps": eps}
                parts.append((keys, {"robust": robust.numpy()}))
        return tidy(parts, ROBUSTNESS)

    @property
    def audits(self) -> pd.DataFrame:
        """One row per (model, recipe, seed, attack, ε, check), with the verdict of the whole audit.

        Columns: `n` images; `robust_accuracy` that the attack reports, `worst_case` over all attacks of the
        audit; its `verdict` and `reason`; `check`, `check_verdict` and `evidence` of one item.
        """
        rows = []
        for place, member, content in self._index.of_kind("audit"):
            audit = content.info
            whole = [audit[name] for name in ("n", "robust_accuracy", "worst_case", "verdict", "reason")]
            of = [member.model, member.recipe, member.seed, audited_attack(place.label), audit["eps"], *whole]
            rows += [[*of, check["check"], check["verdict"], check["evidence"]] for check in audit["checks"]]
        return pd.DataFrame(rows, columns=AUDITS)

    @property
    def failures(self) -> pd.DataFrame:
        """One row per result that failed, with error and traceback. The next run tries them again."""
        rows = [[*place, failure.error, failure.traceback] for place, failure in self._index.failures.items()]
        return pd.DataFrame(rows, columns=["model", "seed", "what", "error", "traceback"])

    @property
    def results(self) -> Mapping[Place, str]:
        """The key in the store of every result, by its place in the grid."""
        return dict(self._index.results)

    @property
    def lost(self) -> list[Place]:
        """Places of scores, attacks and audits whose files are damaged or missing.

        The tables are without them. The next run of the study computes them again.
        """
        results, known = self._index.results, self._index.contents
        return [place for place, key in results.items() if place.kind != "maps" and key not in known]

    def compare(self, baseline: str | None = None, *, level: float | None = None) -> Comparison:
        """Compare the models with a baseline on the same images.

        Parameters
        ----------
        baseline : str, optional
            The model that the others are compared with; by default that of `purpose`, or else the first.
        level : float, optional
            Level of the confidence intervals, in (0, 1); by default that of `purpose`, which is 0.95 unless
            the study says otherwise.

        Returns
        -------
        Comparison
            Tables, tests and figures.

        Raises
        ------
        InputError
            If there is no such model, if nothing has been scored or attacked yet, or if something was done to
            one model with other settings than to another (in another process, or before a merge).
        """
        refuse_different_settings(self.results.items(), self.store)
        if baseline is None:
            baseline = self.purpose.baseline or self.models[0]
            measured = [*dict.fromkeys([*self.scores["model"], *self.robustness["model"]])]
            if measured and baseline not in measured:
                left = next(model for model in self.models if model in measured)
                warn(
                    f"the baseline '{baseline}' has no results, so models are compared with '{left}'; see "
                    "study.failures",
                )
                baseline = left
        return Comparison(
            self.scores,
            self.robustness,
            baseline=baseline,
            level=self.purpose.level if level is None else level,
            seed=self.seed,
            better=self._index.better,
            bounds=self._index.bounds,
            audits=self.audits,
            seeds=self._index.seeds(),
            pictures=self,
        )

    def answers(self) -> list[Answered]:
        """Answer the questions of `purpose` by the intervals of `compare()`.

        Returns
        -------
        list of Answered
            One per question.
        """
        measured = len(self.scores) or len(self.robustness)
        return answer(self.purpose.claims, self.compare() if measured else None)

    def write_tables(self, folder: str | Path | None = None) -> list[Path]:
        """Write scores, robustness and audits as Parquet and CSV files, in place of earlier ones.

        Parameters
        ----------
        folder : path, optional
            Where to write them; by default the folder `tables` of the store.

        Returns
        -------
        list of Path
            The Parquet files; tables without rows are not written, and those of an earlier call are deleted.

        Raises
        ------
        InputError
            If something was done to two models with different settings, which the tables do not show.
        """
        folder = self._index.folder().folder / "tables" if folder is None else check_path(folder, "folder")
        refuse_different_settings(self.results.items(), self.store)
        tables = {"scores": self.scores, "robustness": self.robustness, "audits": self.audits}
        written = []
        for name, table in tables.items():
            if len(table):
                write_table(folder / name, table)
                written.append(folder / f"{name}.parquet")
            else:
                remove_table(folder / name)
        return written

    def __repr__(self) -> str:
        seeds = len(self.members)
        models = number_of(len(self.models), "model") + (
            f" ({seeds} seeds)" if seeds > len(self.models) else ""
        )
        listed = "".join(f"; {what}: {names}" for what, names in self._names().items())
        failed = f"; {len(self._index.failures)} failed" if self._index.failures else ""
        return f"Study({models}, {number_of(len(self.x), 'image')} {tuple(self.x.shape[1:])}{listed}{failed})"

    def _repr_html_(self) -> str:
        seeds = {name: sum(member.model == name for member in self.members) for name in self.models}
        rows = {
            "models": ", ".join(f"{name} ({n} seeds)" if n > 1 else name for name, n in seeds.items()),
            "images": f"{len(self.x)} × {tuple(self.x.shape[1:])}",
            **self._names(),
        }
        audited = self.audits.drop_duplicates(["model", "seed", "attack", "eps"])
        if len(audited):
            rows["audits"] = "; ".join(
                f"{row['model']}, {row['attack']} at ε = {format_epsilon(row['eps'])}: {row['verdict']}"
                for row in audited.to_dict("records")
            )
        if self._index.failures:
            rows["failed"] = f"{number_of(len(self._index.failures), 'result')}; study.failures says why"
        shown = self.x[:_SHOWN]
        return facts("study", rows) + strip(shown, f"the first {number_of(len(shown), 'image')}")

    def _names(self) -> dict[str, str]:
        index = self._index
        names = {"methods": index.labels("maps"), "metrics": index.metrics}
        names |= {"attacks": index.labels("attack"), "audits": index.labels("audit")}
        return {what: ", ".join(labels) for what, labels in names.items() if labels}

    def _member(self, model: str, seed: int | None = None) -> Member:
        """Return a network by model and training seed; without a seed, the first of the model."""
        check_choice(model, self.models, "model of this study")
        if seed is not None:
            check_seed(seed)
        for member in self.members:
            if member.model == model and seed in (None, member.seed):
                return member
        raise InputError(f"model '{model}' of this study has no network of the training seed {seed}")

    def _compute_maps_again(self, member: Member, method: str, key: str) -> Content:
        index = self._index
        failure = index.failures.get((member.model, member.seed, method))
        if failure is not None:
            raise SaliencyLabError(f"there are no maps by '{method}' of {member}: {failure.error}")
        request = index.methods.get(method)
        model = model_fingerprint(member.net)
        if request is not None:
            result = maps_result(model, member.net, index.images, method_dependencies(request), index.seed)
            if result.key == key:
                content = compute.compute_maps(member.net, index.sample, request, index.seed)
                index.store.write(result, content)
                return content
        raise SaliencyLabError(
            f"the maps by '{method}' of {member} are gone, and were made with other settings or weights than "
            "are known here; call study.attribute with that method again"
        )


def _network(member: Member) -> dict[str, Any]:
    return {"model": member.model, "recipe": member.recipe, "seed": member.seed}


class StudyMaps(Mapping[str, Attributions]):
    """The maps of one network by method, which are read when asked for."""

    def __init__(self, study: StudyResults, member: Member) -> None:
        self._study, self._member = study, member

    def __getitem__(self, method: str) -> Attributions:
        if method not in self:
            raise KeyError(str(unknown_name("method of this study:", method, list(self))))
        return self._study.read_maps(self._member.model, method, self._member.seed)

    def __contains__(self, method: object) -> bool:
        return method in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._study._index.labels("maps"))

    def __len__(self) -> int:
        return len(self._study._index.labels("maps"))
