"""Where every number comes from: models, cells with their settings and keys, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saliency_lab._common.provenance import fingerprint, versions
from saliency_lab.report.numbers import count
from saliency_lab.report.tables import Cell, Column, Table, model_cell
from saliency_lab.study import Study

Missing = list[tuple[str, str, str]]
"""Model, what, and why there is none of it."""


@dataclass(frozen=True)
class Provenance:
    """The page's last section, and what failed or is missing."""

    facts: list[tuple[str, str]]
    members: Table
    cells: Table
    versions: Table
    problems: Table


def provenance(study: Study, unread: Missing) -> Provenance:
    """Read the facts of every cell; `unread` are maps that could not be read."""
    held = {
        cell.key: (cell, content)
        for cell, content in study.store.cells()
        if cell.key in set(study.cells.values())
    }
    models = study.models
    weights: dict[tuple[str, int], str] = {}
    ran: dict[str, set[str]] = {}
    rows, lost = [], []
    for place, key in study.cells.items():
        what = f"{place.metric} of {place.label}" if place.metric else place.label
        if key not in held:
            lost.append((place.model, place.seed, what))
            continue
        cell, content = held[key]
        weights[place.model, place.seed] = str(cell.depends["model"])
        source: Mapping[str, Any] = content.info.get("provenance") or {}
        for package, version in (source.get("versions") or cell.depends["versions"]).items():
            ran.setdefault(package, set()).add(str(version))
        seconds = float(content.info.get("seconds", 0.0))
        rows.append(
            [
                Cell(place.kind),
                Cell(what),
                model_cell(models, place.model),
                Cell(str(place.seed), place.seed),
                Cell(_settings(cell.depends)),
                Cell(f"{seconds:.2f}", seconds),
                Cell(str(source.get("device", ""))),
                Cell(key),
            ]
        )
    columns = [
        Column("kind", filtered=True),
        Column("what"),
        Column("model", filtered=True),
        Column("seed", "number"),
        Column("settings", "code"),
        Column("seconds", "number"),
        Column("device", "code"),
        Column("key", "code"),
    ]
    return Provenance(
        facts=_facts(study),
        members=_members(study, weights),
        cells=Table("cells", f"The study's {count(len(rows), 'finished cell')}", columns, rows, head=1),
        versions=_versions(ran),
        problems=_problems(study, unread, lost),
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    channels, height, width = study.x.shape[1:]
    return [
        ("images", f"{len(study.x):,}, {channels} × {height} × {width}, of {len(set(study.labels))} classes"),
        ("fingerprint of images and labels", fingerprint(study.x, study.y)),
        ("seed of every draw", str(study.seed)),
    ]


def _members(study: Study, weights: Mapping[tuple[str, int], str]) -> Table:
    rows = [
        [
            model_cell(study.models, member.model),
            Cell(str(member.seed), member.seed),
            Cell(member.recipe or "not known"),
            Cell(weights.get((member.model, member.seed), "")),
        ]
        for member in study.members
    ]
    columns = [
        Column("model"),
        Column("training seed", "number"),
        Column("recipe"),
        Column("fingerprint of the weights", "code"),
    ]
    return Table("members", "The networks", columns, rows)


def _versions(ran: Mapping[str, set[str]]) -> Table:
    here = versions()
    rows = [
        [Cell(package), Cell(", ".join(sorted(ran.get(package, set()))) or "–"), Cell(here.get(package, "–"))]
        for package in dict.fromkeys([*here, *ran])
    ]
    columns = [Column("package"), Column("results were made with"), Column("this page was written with")]
    return Table("versions", "Versions", columns, rows)


def _problems(study: Study, unread: Missing, lost: list[tuple[str, int, str]]) -> Table:
    """What failed, with the error; and what the study asked for but has no intact cell of."""
    told: set[tuple[str, str]] = set()
    rows = []
    for row in study.failures.to_dict("records"):
        told.add((row["model"], row["what"]))
        rows.append(
            _problem(study, row["model"], str(row["seed"]), row["what"], row["error"], row["traceback"])
        )
    for model, seed, what in lost:
        if (model, what) not in told:
            told.add((model, what))
            rows.append(
                _problem(study, model, str(seed), what, "not in the store: failed, unfinished or damaged")
            )
    for model, what, error in unread:
        if (model, what) not in told:
            rows.append(_problem(study, model, "", what, error))
    columns = [Column("what"), Column("model"), Column("seed"), Column("error")]
    return Table("problems", "What is missing, and why", columns, rows)


def _problem(study: Study, model: str, seed: str, what: str, error: str, trace: str = "") -> list[Cell]:
    return [Cell(what), model_cell(study.models, model), Cell(seed), Cell(error, more=trace)]


def _settings(depends: Mapping[str, Any]) -> str:
    """What a cell depends on besides the network, the images and the versions."""
    shown = {key: depends[key] for key in ("target", "engine", "eps", "budget") if key in depends}
    given = {**dict(depends.get("settings") or {}), **shown}
    return ", ".join(
        f"{key} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()
    )
