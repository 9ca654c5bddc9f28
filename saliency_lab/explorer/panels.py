"""The maps that are shown: read where the study holds them, computed on the model where it does not."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from saliency_lab._common.errors import SaliencyLabError
from saliency_lab._common.inference import predict
from saliency_lab._common.progress import no_progress
from saliency_lab.attribution import attribute, list_methods

if TYPE_CHECKING:
    from saliency_lab.study import Study
    from saliency_lab.study.sample import Member


@dataclass(frozen=True)
class Problem:
    """Why there are no maps; `detail` is the traceback, for what is not one of this package's own errors."""

    message: str
    detail: str = ""


class Found(NamedTuple):
    """Maps (n, C, H, W), and the classes that the model predicts, if there is a model."""

    maps: Tensor
    classes: list[int] | None


class Panels:
    """Maps of a study's images by member and method; what was read or computed once is kept."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._maps: dict[tuple[Member, str, int], Tensor] = {}
        self.held = list(dict.fromkeys(method for maps in study.maps.values() for method in maps))

    @property
    def live(self) -> bool:
        """Whether there is a model to compute maps on."""
        return any(member.module is not None for member in self._study.members)

    @property
    def methods(self) -> list[str]:
        """What can be shown: the study's own methods first, then what can be computed."""
        others: list[str] = list(list_methods().index) if self.live else []
        return [*self.held, *(name for name in others if name not in self.held)]

    def read(self, member: Member, method: str, rows: Sequence[int]) -> Found | Problem:
        """Maps (n, C, H, W) and predicted classes of the images at `rows`, or why there are none.

        Without a model there are no predictions.
        """
        missing = [row for row in rows if (member, method, row) not in self._maps]
        try:
            if missing:
                maps = self._fetch(member, method, missing)
                self._maps |= {(member, method, row): each for row, each in zip(missing, maps, strict=True)}
            classes = None if member.module is None else self._predict(member.module, rows)
        except SaliencyLabError as error:
            return Problem(str(error))
        except Exception as error:  # a callback's exception would be lost in Jupyter's log
            return Problem(f"{type(error).__name__}: {error}", traceback.format_exc())
        return Found(torch.stack([self._maps[member, method, row] for row in rows]), classes)

    def _predict(self, model: nn.Module, rows: Sequence[int]) -> list[int]:
        return predict(model, self._study.x[list(rows)]).argmax(1).tolist()

    def _fetch(self, member: Member, method: str, rows: list[int]) -> Tensor:
        study = self._study
        if method in self.held:
            return study.read_maps(member.model, method, member.seed).values[rows]
        with no_progress():
            return attribute(member.net, study.x[rows], study.y[rows], method, seed=study.seed).values
