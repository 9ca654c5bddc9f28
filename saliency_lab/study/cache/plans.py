"""How passes ran in a study, in files, so that a run that goes on computes as it did before."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from saliency_lab._common.files import atomic_path
from saliency_lab._common.passes import PassPlan


class PlanFolder(MutableMapping[str, PassPlan]):
    """Plans as files `passes/KEY.json` of a store; the first process that measures one decides for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "passes"

    def __getitem__(self, key: str) -> PassPlan:
        try:
            return PassPlan(**json.loads(self._path(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:  # missing or damaged: it is measured again
            raise KeyError(key) from error

    def __setitem__(self, key: str, plan: PassPlan) -> None:
        with atomic_path(self._path(key), durable=False) as temporary:
            temporary.write_text(json.dumps(plan.facts(), indent=2) + "\n", encoding="utf-8")

    def __delitem__(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("[!.]*.json")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
