"""What a study would compute, and how long that takes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor, nn

from saliency_lab.study.cells import Cell
from saliency_lab.study.members import Member
from saliency_lab.study.study import Study
from saliency_lab.study.task import Task
from saliency_lab.study.work import Request, Requests, read_attacks, read_requests

_MEASURED = 16
"""Images that `plan` measures on."""


class Scout(Study):
    """A study that notes its cells and computes none."""

    def __init__(self, study: Study) -> None:
        models: dict[str, list[nn.Module]] = {}
        for member in study.members:
            models.setdefault(member.model, []).append(member.net)
        super().__init__(models, study.sample, seed=study.seed)
        self._requests = dict(study._requests)
        self._cells = dict(study._cells)
        self._weights = dict(study._weights)
        self._runner.loaded.update(study._runner.loaded)
        self.noted: list[Cell] = []

    def _warn_of_copies(self) -> None:
        """Say nothing: the study itself has."""

    def _run(self, tasks: Sequence[tuple[Member, Task]], prints: Mapping[Member, str], verb: str) -> None:
        self.noted += [cell for _, task in tasks for cell in task.cells.values()]


def plan(
    study: Study,
    methods: Requests,
    metrics: Requests,
    attacks: Mapping[str, Mapping[str, Any]],
    audits: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """See `Study.plan`."""
    scout = Scout(study)
    first = study.members[0]
    few = study.sample.first(_MEASURED)
    measure = Study({first.model: first.net}, few, seed=study.seed)
    rows = []

    def for_few(settings: Mapping[str, Any]) -> dict[str, Any]:
        """Cut what holds one entry an image."""
        return {
            key: value[: len(few.y)]
            if isinstance(value, Tensor) and value.shape[:1] == study.y.shape
            else value
            for key, value in settings.items()
        }

    def do(whose: Study, step: str, request: Request, settings: Mapping[str, Any]) -> None:
        if step in ("attack", "audit"):
            getattr(whose, step)(request.what, label=request.label, **settings)
        else:
            kind = "method" if step == "attribute" else "metric"
            getattr(whose, step)({request.label: {kind: request.what, **settings}})

    def look(step: str, request: Request) -> None:
        scout.noted.clear()
        do(scout, step, request, request.settings)
        missing = sum(not study.store.has(cell.kind, cell.key) for cell in scout.noted)
        row = {"step": step, "what": request.label, "cells": len(scout.noted), "missing": missing}
        if missing:
            images = request.settings.get("images", len(study.x)) if step == "audit" else len(study.x)
            few_settings = for_few(request.settings) | ({"images": None} if step == "audit" else {})
            started = time.perf_counter()
            do(measure, step, request, few_settings)
            share = missing / len(scout.noted) * len(study.members)
            row["seconds"] = (time.perf_counter() - started) * share * images / len(measure.x)
        rows.append(row)

    for request in read_requests(methods, "method") if methods else []:
        look("attribute", request)
    for request in read_requests(metrics, "metric") if metrics else []:
        for made in scout._requests.values():
            if made.label not in measure._requests:
                do(measure, "attribute", made, for_few(made.settings))
        look("score", request)
    for request in read_attacks(attacks):
        look("attack", request)
    for request in read_attacks(audits):
        look("audit", request)
    return pd.DataFrame(rows, columns=["step", "what", "cells", "missing", "seconds"])
