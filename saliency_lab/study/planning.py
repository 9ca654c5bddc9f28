"""What a study would compute, and how long that takes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab.attribution import attribute
from saliency_lab.study.cache.results import Cell
from saliency_lab.study.members import Member
from saliency_lab.study.requests import Request, Requests, read_attacks, read_requests
from saliency_lab.study.study import Study
from saliency_lab.study.tasks import Task

_MEASURED = 16
"""Images that `plan` measures on."""
_ATTACKED = (8, 32)
"""Images that it measures attacks and audits on: they cost much for one image, and little for one more."""


class Scout(Study):
    """A study that notes its cells and computes none."""

    def __init__(self, study: Study) -> None:
        models: dict[str, list[nn.Module]] = {}
        for member in study.members:
            models.setdefault(member.model, []).append(member.net)
        super().__init__(models, study.sample, seed=study.seed)
        self._held = study._held.copy()
        self._runner.loaded.update(study._runner.loaded)
        self.noted: list[Cell] = []

    def _warn_of_copies(self) -> None:
        """Say nothing: the study itself has."""

    def _compute(self, tasks: Sequence[tuple[Member, Task]], prints: Mapping[Member, str], verb: str) -> None:
        self.noted += [cell for _, task in tasks for cell in task.cells.values()]


class _Withstands(nn.Module):
    """A network whose prediction, class 0, no attack changes: what attacks on it cost is the most they do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `net`, the first raised beyond reach."""
        logits = self.net(x)
        beyond = torch.zeros_like(logits)
        beyond[:, 0] = 1e4
        return logits + beyond

    def __getattr__(self, name: str) -> Any:
        """What the network has, for an attack of the user's own that looks into it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)


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

    def for_few(settings: Mapping[str, Any], n: int = len(few.y)) -> dict[str, Any]:
        """Cut what holds one entry an image."""
        return {
            key: value[:n] if isinstance(value, Tensor) and value.shape[:1] == study.y.shape else value
            for key, value in settings.items()
        }

    def seconds(whose: Study, step: str, request: Request, settings: Mapping[str, Any]) -> float:
        started = time.perf_counter()
        do(whose, step, request, settings)
        return time.perf_counter() - started

    def most(step: str, request: Request, images: int) -> float:
        """Seconds of an attack or audit of so many images that withstand it."""

        def of(n: int) -> float:
            strong = {first.model: _Withstands(first.net)}
            whose = Study(strong, (study.x[:n], torch.zeros_like(study.y[:n])), seed=study.seed)
            whose._held.attacks |= scout._held.attacks  # an audit without settings has theirs
            settings = for_few(request.settings, n) | ({"images": None} if step == "audit" else {})
            return seconds(whose, step, request, settings)

        sizes = sorted({min(n, images) for n in _ATTACKED})
        taken = [of(n) for n in sizes]
        more = (taken[-1] - taken[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else 0.0
        return taken[-1] + max(more, 0.0) * (images - sizes[-1])

    @functools.cache
    def warm() -> None:
        """Make the first passes, which start a GPU, before any is timed."""
        with contextlib.suppress(SaliencyLabError):  # a network without a gradient is told elsewhere
            attribute(first.net, few.x, few.y)

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
            warm()
            share = missing / len(scout.noted) * len(study.members)
            if step in ("attack", "audit"):
                images = request.settings.get("images") if step == "audit" else None
                row["seconds"] = most(step, request, len(study.x) if images is None else images) * share
            else:
                taken = seconds(measure, step, request, for_few(request.settings))
                row["seconds"] = taken * share * len(study.x) / len(measure.x)
        rows.append(row)

    for request in read_requests(methods, "method") if methods else []:
        look("attribute", request)
    for request in read_requests(metrics, "metric") if metrics else []:
        for made in scout._held.methods.values():
            if made.label not in measure._held.methods:
                do(measure, "attribute", made, for_few(made.settings))
        look("score", request)
    for request in read_attacks(attacks):
        look("attack", request)
    for request in read_attacks(audits):
        look("audit", request)
    return pd.DataFrame(rows, columns=["step", "what", "cells", "missing", "seconds"])
