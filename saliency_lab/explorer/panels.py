"""The maps that are shown: read where the study has them, computed on the model where it does not."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from saliency_lab._common.checks import format_epsilon
from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.execution import run_under
from saliency_lab._common.passes import Predictions, predict_classes
from saliency_lab._common.progress import no_progress
from saliency_lab.attacks.api import run_attack
from saliency_lab.attribution import list_methods
from saliency_lab.attribution.api import run_call
from saliency_lab.study.requests import Request, read_methods

if TYPE_CHECKING:
    from saliency_lab.study import Study
    from saliency_lab.study.sample import Member


@dataclass(frozen=True)
class NoMaps:
    """Why there are no maps; `detail` is the traceback, for what is not one of this package's own errors."""

    message: str
    detail: str = ""


class Panel(NamedTuple):
    """Maps (n, C, H, W), and what the model predicts, if there is a model."""

    maps: Tensor
    predictions: Predictions | None


class StudyAttack(NamedTuple):
    """An attack of the study at one ε."""

    label: str
    eps: float

    def __str__(self) -> str:
        return f"{self.label}, ε = {format_epsilon(self.eps)}"


class PanelSource:
    """Maps of a study's images by member and method; what was read or computed once is kept.

    Everything is also available for the images as an attack of the study changes them.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._maps: dict[tuple[Member, str, StudyAttack | None, int], Tensor] = {}
        self._images: dict[tuple[Member, StudyAttack, int], Tensor] = {}
        self.stored = list(dict.fromkeys(method for maps in study.maps.values() for method in maps))

    @property
    def live(self) -> bool:
        """Whether there is a model to compute maps on."""
        return any(member.module is not None for member in self._study.members)

    @property
    def methods(self) -> list[str]:
        """What can be shown: the study's own methods first, then what can be computed."""
        others: list[str] = list(list_methods().index) if self.live else []
        return [*self.stored, *(name for name in others if name not in self.stored)]

    def read(
        self, member: Member, method: str, rows: Sequence[int], attacked: StudyAttack | None = None
    ) -> Panel | NoMaps:
        """Return maps (n, C, H, W) and predictions of the images at `rows`, or why there are none.

        Without a model there are no predictions.
        """
        missing = [row for row in rows if (member, method, attacked, row) not in self._maps]
        try:
            if missing:
                maps = self._fetch(member, method, missing, attacked)
                for row, each in zip(missing, maps, strict=True):
                    self._maps[member, method, attacked, row] = each
            x = self.images(member, rows, attacked) if member.module is not None else None
            predictions = None if x is None else predict_classes(member.net, x)
        except SaliencyLabError as error:
            return NoMaps(str(error))
        except Exception as error:  # a callback's exception would be lost in Jupyter's log
            return NoMaps(f"{type(error).__name__}: {error}", traceback.format_exc())
        maps = torch.stack([self._maps[member, method, attacked, row] for row in rows])
        return Panel(maps, predictions)

    def images(self, member: Member, rows: Sequence[int], attacked: StudyAttack | None) -> Tensor:
        """Return the images at `rows`, as they are or attacked on a member, (n, C, H, W)."""
        x, y = self._study.x, self._study.y
        if attacked is None:
            return x[list(rows)]
        missing = [row for row in rows if (member, attacked, row) not in self._images]
        if missing:
            request = self._request("attack", attacked.label)
            with no_progress(), run_under(request.execution):
                result = run_attack(
                    member.net,
                    x[missing],
                    y[missing],
                    *request.attack,
                    eps=attacked.eps,
                    seed=self._study.seed,
                )
            for row, each in zip(missing, result.adversarial, strict=True):
                self._images[member, attacked, row] = each
        return torch.stack([self._images[member, attacked, row] for row in rows])

    def _request(self, kind: Literal["maps", "attack"], label: str) -> Request:
        """Return a method or an attack of the study, with its settings.

        Raises
        ------
        SaliencyLabError
            If it is a function that this process does not have, or has settings that no store contains.
        """
        request = self._study.read_request(kind, label)
        if request is None:
            noun, verb = ("method", "attribute") if kind == "maps" else ("attack", "attack")
            raise SaliencyLabError(
                f"the {noun} '{label}' is a function that this process does not have, or has a tensor among "
                f"its settings, which a store does not contain; call study.{verb} with it again"
            )
        return request

    def _fetch(self, member: Member, method: str, rows: list[int], attacked: StudyAttack | None) -> Tensor:
        study = self._study
        if method in self.stored and attacked is None:
            return study.read_maps(member.model, method, member.seed).values[rows]
        x = self.images(member, rows, attacked)
        if method in self.stored:
            request = self._request("maps", method)
        else:
            (request,) = read_methods(method)
        call = request.of_rows(torch.tensor(rows)).method_call
        with no_progress(), run_under(request.execution):
            return run_call(member.net, x, study.y[rows], call, study.seed).values
