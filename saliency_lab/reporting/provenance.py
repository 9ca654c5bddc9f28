"""Where every number comes from: models, cells with their settings and keys, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saliency_lab._common.provenance import machine, versions
from saliency_lab.comparison.format import count
from saliency_lab.reporting.tables import Cell, Column, Table, model_cell
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
    missing: str
    problems: Table


def provenance(study: Study, unread: Missing) -> Provenance:
    """Read the facts of every cell; `unread` are maps that could not be read."""
    models = study.models
    weights: dict[tuple[str, int], str] = {}
    ran: dict[str, set[str]] = {}
    rows, lost = [], []
    for place, key in study.cells.items():
        described = study.store.describe(place.kind, key)
        if described is None:
            lost.append((place.model, place.seed, place.what))
            continue
        cell, info = described
        weights[place.model, place.seed] = str(cell.depends["model"])
        source: Mapping[str, Any] = info.get("provenance") or {}
        for package, version in (source.get("versions") or cell.depends["versions"]).items():
            ran.setdefault(package, set()).add(str(version))
        seconds = float(info.get("seconds", 0.0))
        rows.append(
            [
                Cell(place.kind),
                Cell(place.what),
                model_cell(models, place.model),
                Cell(str(place.seed), place.seed),
                Cell(_settings(cell.depends)),
                Cell(f"{seconds:.2f}", seconds),
                Cell(str(source.get("device", ""))),
                Cell(key),
            ]
        )
    missing, problems = _problems(study, unread, lost)
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
        missing=missing,
        problems=problems,
    )


def _facts(study: Study) -> list[tuple[str, str]]:
    channels, height, width = study.x.shape[1:]
    return [
        ("images", f"{len(study.x):,}, {channels} × {height} × {width}, of {len(set(study.labels))} classes"),
        ("fingerprint of images and labels", study.sample.images),
        *(
            [("fingerprint with the masks", study.sample.fingerprint)]
            if study.sample.masks is not None
            else []
        ),
        ("seed of every draw", str(study.seed)),
        ("processor and threads", machines(study)),
    ]


def machines(study: Study) -> str:
    """Name the processors and threads that computed the results, and those of this process."""
    computed = []
    for place, key in study.cells.items():
        described = study.store.describe(place.kind, key)
        source = (described[1].get("provenance") or {}) if described is not None else {}
        if "processor" in source:
            computed.append(f"{source['processor']}, {count(source['threads'], 'thread')}")
    here = machine()
    written = f"{here['processor']}, {count(int(here['threads']), 'thread')}"
    names = list(dict.fromkeys(computed))
    if not names:
        return f"{written} (this page; the results do not say)"
    return "; ".join(names) if names == [written] else f"{'; '.join(names)} (results); {written} (this page)"


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


def _problems(study: Study, unread: Missing, lost: list[tuple[str, int, str]]) -> tuple[str, Table]:
    """Say how much is missing; and what, of which networks, and why: a row a cause."""
    why = {
        (row["model"], row["seed"], row["what"]): row["error"] for row in study.failures.to_dict("records")
    }
    for cell in lost:
        why.setdefault(cell, "not in the store: it failed, is unfinished or is damaged")
    for model, method, error in unread:
        if not any((model, method) == (each, what) for each, _, what in why):
            why[model, next(m.seed for m in study.members if m.model == model), method] = error
    causes: dict[tuple[str, str], list[str]] = {}
    for (model, seed, what), error in why.items():
        causes.setdefault((what, error), []).append(f"{model} (seed {seed})")
    rows = [[Cell(what), Cell(", ".join(of)), Cell(error)] for (what, error), of in causes.items()]
    verb = "is" if len(why) == 1 else "are"
    summary = f"{count(len(why), 'result')} of this study {verb} missing." if why else ""
    columns = [Column("what"), Column("of"), Column("why")]
    return summary, Table("problems", "What is missing, and why", columns, rows)


def _settings(depends: Mapping[str, Any]) -> str:
    """What a cell depends on besides the network, the images and the versions."""
    shown = {key: depends[key] for key in ("target", "engine", "eps", "budget") if key in depends}
    given = {**dict(depends.get("settings") or {}), **shown}
    return ", ".join(
        f"{key} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()
    )
