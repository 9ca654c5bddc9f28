"""Progress bars (a terminal and Jupyter alike), silenced by one switch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_enabled = os.environ.get("SALIENCY_LAB_PROGRESS", "1") not in {"0", "false", "no"}


def show_progress(enabled: bool) -> None:
    """Turn all progress bars on or off (also: the environment variable `SALIENCY_LAB_PROGRESS=0`)."""
    global _enabled
    _enabled = enabled


def progress(items: Iterable[Any] | None = None, *, label: str, total: int | None = None) -> tqdm[Any]:
    """Wrap `items` in a bar that disappears when done; with `total` alone, call `.update(n)` on it."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=label, total=total, leave=False, disable=not _enabled, dynamic_ncols=True)
