"""The folder of a training run: recipe, log, the state to resume from, and the finished model."""

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
from saliency_lab._common.hashing import fingerprint
from saliency_lab.models.checkpoint import CARD, WEIGHTS
from saliency_lab.training.recipe import Recipe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RECIPE, STATE, LOG, LOCK = "recipe.json", "state.pt", "log.csv", ".lock"


class RunFolder:
    """One training run on disk.

    Parameters
    ----------
    path : path
        The folder, which is created if it does not exist.
    identity : mapping
        JSON values that determine the run: the recipe and the fingerprint of the data.

    Raises
    ------
    InputError
        If the folder holds another run, or cannot be written to.
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
        """Lock the folder against other processes, and remove half-written files of killed ones.

        Raises
        ------
        InputError
            If another process is training here. Its lock ends with the process, however that ends.
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
                    self._writer.close()  # it keeps a thread and a file
        if self.finished:  # a process that waits for the lock then finds the run finished
            (self.path / LOCK).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the model has been written completely; its card is written last."""
        return (self.path / CARD).exists()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write the state to resume from, in place of the last one."""
        packed = io.BytesIO()
        torch.save(dict(state), packed)
        content = packed.getvalue()
        with atomic_path(self.path / STATE) as temporary:
            temporary.write_bytes(_state_header(content) + content)

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
        """Remove the files that only an unfinished run needs."""
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
        """Write the log with one row per epoch."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(self.path / LOG) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


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


def run_folder_name(recipe: Recipe, seed: int, *content: str) -> str:
    """Return the name of the folder of a run: recipe and seed, and a hash of what decides the result.

    `content` are the fingerprints of the data and, where there is one, of the custom network.
    """
    key = fingerprint({**recipe.portable(), "seed": seed}, *content, *recipe.own_code().values())
    return f"{recipe.name.replace('/', '-')}-seed-{seed}-{key[:12]}"


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


def _differences(stored: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two JSON values differ."""
    if not (isinstance(stored, dict) and isinstance(wanted, dict)):
        return [prefix or "its format"]
    differing: list[str] = []
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            nested = isinstance(stored.get(key), dict) and isinstance(wanted.get(key), dict)
            dotted = f"{prefix}.{key}" if prefix else key
            differing += _differences(stored[key], wanted[key], dotted) if nested else [dotted]
    return differing
