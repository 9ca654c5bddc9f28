"""Progress bars (a terminal and Jupyter alike), silenced by one switch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_enabled = os.environ.get("SALIENCY_LAB_PROGRESS", "1") not in {"0", "false", "no"}


def show_progress(enabled: bool) -> None:
    """Turn all progress bars on or off (also: the environment variable `SALIENCY_LAB_PROGRESS=0`)."""
    global _enabled
    _enabled = enabled


@contextmanager
def no_progress() -> Iterator[None]:
    """Show no bars inside: for short work that is part of longer work with a bar of its own."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def progress(items: Iterable[Any] | None = None, *, label: str, total: int | None = None) -> tqdm[Any]:
    """Wrap `items` in a bar that disappears when done; with `total` alone, call `.update(n)` on it.

    Nothing is shown where nobody watches: neither a terminal nor a notebook.
    """
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    hidden = not (_enabled and watched)
    return tqdm(items, desc=label, total=total, leave=False, disable=hidden, dynamic_ncols=True)
