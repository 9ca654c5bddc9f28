"""Where every number comes from: models, results with their settings and keys, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.provenance import machine, versions
from saliency_lab._common.text import number_of
from saliency_lab.comparison.content import Column, Entry, Table
from saliency_lab.reporting.tables import model_entry
from saliency_lab.study import Study
from saliency_lab.study.keys import method_dependencies
from saliency_lab.study.requests import Request

Missing = list[tuple[str, str, str]]
"""Model, what is missing, and why."""


@dataclass(frozen=True)
class Provenance:
    """The last section of a report, and what failed or is missing."""

    facts: list[tuple[str, str]]
    machines: str
    """The processors and threads that computed the results, and those of this process."""
    members: Table
    results: Table
    settings: Table
    versions: Table
    missing: str
    problems: Table


def provenance(study: Study, models: Sequence[str], unread: Missing) -> Provenance:
    """Read the facts of every result; `unread` are maps that could not be read."""
    weights: dict[tuple[str, int], str] = {}
    ran: dict[str, set[str]] = {}
    settings: dict[tuple[str, str], str] = {}
    rows, lost, computed, damaged = [], [], [], set(study.lost)
    for place, key in study.results.items():
        described = study.store.describe(place.kind, key)
        if described is None or place in damaged:
            lost.append((place.model, place.seed, place.what))
            continue
        result, info = described
        weights[place.model, place.seed] = str(result.depends["model"])
        label = place.metric or place.label
        written = _settings(result.depends, label)
        settings.setdefault((_KINDS[place.kind], label), written)
        source: Mapping[str, Any] = info.get("provenance") or {}
        for package, version in (source.get("versions") or result.depends["versions"]).items():
            ran.setdefault(package, set()).add(str(version))
        if "processor" in source:
            computed.append(_machine(source))
        seconds = float(info.get("seconds", 0.0))
        rows.append(
            [
                Entry(place.kind),
                Entry(place.what),
                model_entry(models, place.model),
                Entry(str(place.seed), place.seed),
                Entry(written),
                Entry(f"{seconds:.2f}", seconds),
                Entry(str(source.get("device", ""))),
                Entry(key),
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
    machines = _machines(computed)
    stored = f"The study's {number_of(len(rows), 'stored result')}"
    return Provenance(
        facts=_facts(study, machines),
        machines=machines,
        members=_members(study, models, weights),
        results=Table("results", stored, columns, rows, head=1),
        settings=Table(
            "settings",
            "Settings",
            [Column(""), Column("name"), Column("settings")],
            [_setting(kind, name, text) for (kind, name), text in settings.items()],
        ),
        versions=_versions(ran),
        missing=missing,
        problems=problems,
    )


def method_settings(requests: Sequence[Request]) -> list[list[Entry]]:
    """Return the rows of the settings' table for methods whose maps are not stored, as in a packed study."""
    return [
        _setting("method", request.label, _settings(method_dependencies(request), request.label))
        for request in requests
    ]


def _setting(kind: str, name: str, text: str) -> list[Entry]:
    return [Entry(kind), Entry(name), Entry(text)]


def _facts(study: Study, machines: str) -> list[tuple[str, str]]:
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
        ("processor and threads", machines),
    ]


def _machine(source: Mapping[str, Any]) -> str:
    return f"{source['processor']}, {number_of(int(source['threads']), 'thread')}"


def _machines(computed: Sequence[str]) -> str:
    """Name the machines that computed the results, and that of this process."""
    written = _machine(machine())
    names = list(dict.fromkeys(computed))
    if not names:
        return f"{written} (this page; the results do not say)"
    return "; ".join(names) if names == [written] else f"{'; '.join(names)} (results); {written} (this page)"


def _members(study: Study, models: Sequence[str], weights: Mapping[tuple[str, int], str]) -> Table:
    rows = [
        [
            model_entry(models, member.model),
            Entry(str(member.seed), member.seed),
            Entry(member.recipe or "not known"),
            Entry(weights.get((member.model, member.seed), "")),
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
        [
            Entry(package),
            Entry(", ".join(sorted(ran.get(package, set()))) or "–"),
            Entry(here.get(package, "–")),
        ]
        for package in dict.fromkeys([*here, *ran])
    ]
    columns = [Column("package"), Column("results were made with"), Column("this page was written with")]
    return Table("versions", "Versions", columns, rows)


def _problems(study: Study, unread: Missing, lost: list[tuple[str, int, str]]) -> tuple[str, Table]:
    """Say how much is missing, and list what, of which networks and why: one row per cause."""
    why = {
        (row["model"], row["seed"], row["what"]): row["error"] for row in study.failures.to_dict("records")
    }
    for place in lost:
        why.setdefault(place, "not in the store: it failed, is unfinished or is damaged")
    for model, method, error in unread:
        if not any((model, method) == (each, what) for each, _, what in why):
            why[model, next(m.seed for m in study.members if m.model == model), method] = error
    causes: dict[tuple[str, str], list[str]] = {}
    for (model, seed, what), error in why.items():
        causes.setdefault((what, error), []).append(f"{model} (seed {seed})")
    rows = [[Entry(what), Entry(", ".join(of)), Entry(error)] for (what, error), of in causes.items()]
    verb = "is" if len(why) == 1 else "are"
    summary = f"{number_of(len(why), 'result')} of this study {verb} missing." if why else ""
    columns = [Column("what"), Column("of"), Column("why")]
    return summary, Table("problems", "What is missing, and why", columns, rows)


def _settings(depends: Mapping[str, Any], label: str) -> str:
    """Write what a result depends on besides the network, the images and the versions.

    The name of the method, metric or attack is left out where the result has it as its label.
    """
    names = ("method", "metric", "attack", "eps")
    first = {key: depends[key] for key in names if key in depends and depends[key] != label}
    last = {
        key: depends[key] for key in ("target", "engine", "budget", "dtype", "stored as") if key in depends
    }
    given = {**first, **dict(depends.get("settings") or {}), **last}
    return ", ".join(f"{key} = {_written(key, value)}" for key, value in given.items())


def _written(key: str, value: Any) -> str:
    if key == "eps":
        several = isinstance(value, list | tuple)
        return f"[{', '.join(map(format_epsilon, value))}]" if several else format_epsilon(value)
    return str(value)


_KINDS = {"maps": "method", "scores": "metric", "attack": "attack", "audit": "audit"}
