"""The folder of a run: its recipe, its log, the state to resume from, and the finished model."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from saliency_lab._common.errors import CheckpointError, InputError
from saliency_lab._common.files import atomic_path, writable_folder, write_json
from saliency_lab.models.checkpoint import CARD, WEIGHTS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RECIPE, STATE, LOG, LOCK = "recipe.json", "state.pt", "log.csv", ".lock"


class RunFolder:
    """One training run on disk.

    Parameters
    ----------
    path : folder; made if it does not exist
    identity : JSON-able mapping (the recipe and the data's fingerprint) that decides the run

    Raises
    ------
    InputError
        If the folder holds a run of another identity, or cannot be written.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = writable_folder(path)
        self._writer: SummaryWriter | None = None
        wanted = json.loads(json.dumps(identity))
        if (self.path / RECIPE).exists():
            held = self._held()
            if held != wanted:
                raise InputError(
                    f"'{self.path}' holds another run (it differs in "
                    f"{', '.join(_differences(held, wanted))}); choose another folder, or delete this one"
                )
        else:
            write_json(self.path / RECIPE, wanted)

    def _held(self) -> Any:
        try:
            return json.loads((self.path / RECIPE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"'{self.path / RECIPE}' is damaged ({error}); delete '{self.path}'"
            ) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from training here; what one that was killed has left half written is removed.

        Raises
        ------
        InputError
            If another is at it: two would write the same files. Its lock ends with it, however it ends.
        """
        try:
            lock = FileLock(self.path / LOCK).acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"another process is training in '{self.path}'; wait for it, or name another folder"
            ) from None
        with lock:
            for name in (STATE, LOG, WEIGHTS, CARD):
                for left_behind in self.path.glob(f".{name}.*"):
                    left_behind.unlink(missing_ok=True)
            try:
                yield
            finally:
                if self._writer is not None:
                    self._writer.close()  # it has a thread and a file
        if self.finished:  # who had the file open finds the run finished
            (self.path / LOCK).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the model has been written, of which the card is the last part."""
        return (self.path / CARD).exists()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the state to resume from, replacing the last one."""
        packed = io.BytesIO()
        torch.save(dict(state), packed)
        with atomic_path(self.path / STATE) as beside:
            beside.write_bytes(packed.getbuffer())

    def load_state(self) -> dict[str, Any] | None:
        """Read the state to resume from; None if there is none.

        Raises
        ------
        CheckpointError
            If it is damaged.
        """
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"'{path}' is damaged ({type(error).__name__}); delete it to train from the start"
            ) from error

    def close(self) -> None:
        """Remove what only an unfinished run needs."""
        (self.path / STATE).unlink(missing_ok=True)

    def mirror_to_tensorboard(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row to TensorBoard's event files, if TensorBoard is installed."""
        if find_spec("tensorboard") is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["epoch"])
        for key, value in row.items():
            self._writer.add_scalar(key, value, row["epoch"])
        self._writer.flush()

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write the log, one row an epoch."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(self.path / LOG) as beside:
            beside.write_text(text.getvalue(), encoding="utf-8")


def _differences(held: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two JSON values differ."""
    if not (isinstance(held, dict) and isinstance(wanted, dict)):
        return [prefix or "its format"]
    found: list[str] = []
    for key in sorted(held.keys() | wanted.keys()):
        if held.get(key) != wanted.get(key):
            inside = isinstance(held.get(key), dict) and isinstance(wanted.get(key), dict)
            dotted = f"{prefix}.{key}" if prefix else key
            found += _differences(held[key], wanted[key], dotted) if inside else [dotted]
    return found
