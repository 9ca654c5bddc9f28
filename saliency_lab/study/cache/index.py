"""What a study holds: where each cell stands, of which networks, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from saliency_lab.metrics.catalogue import Better
from saliency_lab.study.cache.manifest import Place
from saliency_lab.study.cache.results import Cell, Kind
from saliency_lab.study.members import Member
from saliency_lab.study.requests import Request


@dataclass
class Held:
    """Places and keys, without the content, which is in the store."""

    weights: dict[tuple[str, int], str]
    """Fingerprints of the networks that the cells are of, by model and seed; none where an older store does
    not tell."""
    cells: dict[Place, str] = field(default_factory=dict)
    """Where each stands → its key."""
    methods: dict[str, Request] = field(default_factory=dict)
    attacks: dict[str, Request] = field(default_factory=dict)
    better: dict[str, Better] = field(default_factory=dict)
    """By metric."""
    classes: Sequence[str] = ()
    """Their names, as the store tells them."""

    def copy(self) -> Held:
        """Return another that changes on its own."""
        return replace(
            self,
            weights=dict(self.weights),
            cells=dict(self.cells),
            methods=dict(self.methods),
            attacks=dict(self.attacks),
            better=dict(self.better),
        )

    def labels(self, kind: Kind) -> list[str]:
        """Labels of the cells of a kind, each once."""
        return list(dict.fromkeys(at.label for at in self.cells if at.kind == kind))

    @property
    def metrics(self) -> list[str]:
        """Labels of the metrics, each once."""
        return list(dict.fromkeys(at.metric for at in self.cells if at.metric))

    def key(self, kind: Kind, label: str, member: Member) -> str | None:
        """Key of a member's maps, attack or audit under a label, None if it is not held."""
        return self.cells.get(Place(kind, label, "", member.model, member.seed))

    def attack_audited(self, request: Request) -> Request:
        """Return what to audit: the attack made under that label, where nothing else is asked for."""
        made = self.attacks.get(request.label)
        if made is None or made.what != request.what or request.settings.keys() - {"norm"}:
            return request  # the norm may be said again: the label has it
        same = all(made.settings.get(key) == value for key, value in request.settings.items())
        return made if same else request

    def place(self, cells: Mapping[Place, Cell], prints: Mapping[Member, str]) -> list[Place]:
        """Hold these cells of these networks; return what goes, made of others or of old maps."""
        gone = []
        for member, model in prints.items():
            who = member.model, member.seed
            if self.weights[who] != model:
                gone += [at for at in self.cells if (at.model, at.seed) == who]
                self.weights[who] = model
        for at, cell in cells.items():
            if at.kind == "maps" and self.cells.get(at, cell.key) != cell.key:
                maps = (at.label, at.model, at.seed)
                scores = [each for each in self.cells if each.kind == "scores"]
                gone += [each for each in scores if (each.label, each.model, each.seed) == maps]
        gone = list(dict.fromkeys(gone))
        for at in gone:
            del self.cells[at]
        self.cells |= {at: cell.key for at, cell in cells.items()}
        return gone
