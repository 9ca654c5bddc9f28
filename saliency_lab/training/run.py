"""The folder of a run: its recipe, its log, the state to resume from, and the finished model."""

from __future__ import annotations

import csv
import hashlib
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
from saliency_lab._common.files import atomic_path, read_checked_json, writable_folder, write_checked_json
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
            recorded = read_identity(self.path)
            if recorded != wanted:
                raise InputError(
                    f"'{self.path}' holds another run (it differs in "
                    f"{', '.join(_differences(recorded, wanted))}); choose another folder, or delete this one"
                )
        else:
            write_checked_json(self.path / RECIPE, wanted)

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
        content = packed.getvalue()
        with atomic_path(self.path / STATE) as beside:
            beside.write_bytes(_state_header(content) + content)

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
            return torch.load(io.BytesIO(_read_state(path)), map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"'{path}' is damaged ({error}); delete it to train from the start"
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


_STATE_HEADER = b"saliency_lab state "


def _state_header(content: bytes) -> bytes:
    return _STATE_HEADER + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _read_state(path: Path) -> bytes:
    """Read the packed state, and check it against the digest in front of it.

    Raises
    ------
    ValueError
        If it is not what was written, or has no digest, as those of earlier versions.
    """
    header, _, content = path.read_bytes().partition(b"\n")
    if not header.startswith(_STATE_HEADER):
        raise ValueError("it has no digest")
    if header + b"\n" != _state_header(content):
        raise ValueError("it does not match its digest")
    return content


def read_identity(folder: Path) -> dict[str, Any]:
    """Read what decides the run in a folder.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    path = folder / RECIPE
    try:
        identity = read_checked_json(path, ("recipe", "data", "architecture"))
        if "recipe" not in identity:
            raise ValueError("it has no recipe")
        return identity
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is damaged ({error}); delete '{folder}'") from error


def check_run(folder: Path) -> dict[Path, str]:
    """Check the files of a training run; return what is wrong with which of them."""
    problems = {}
    try:
        read_identity(folder)
    except CheckpointError as error:
        problems[folder / RECIPE] = str(error)
    if (folder / STATE).exists():
        try:
            _read_state(folder / STATE)
        except (OSError, ValueError) as error:
            problems[folder / STATE] = f"'{folder / STATE}' is damaged: {error}"
    return problems


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
