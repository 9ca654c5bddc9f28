"""Progress: bars in a terminal and in Jupyter, lines in a log; silenced by one switch."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_A_LINE = 60.0

_enabled = os.environ.get("SALIENCY_LAB_PROGRESS", "1") not in {"0", "false", "no"}


def show_progress(enabled: bool) -> None:
    """Turn bars, and their lines in a log, on or off (also: the variable `SALIENCY_LAB_PROGRESS=0`)."""
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


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; none, a closed one, and one that can only be written to are not."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def watched() -> bool:
    """Whether somebody may be looking: at a terminal, or at a notebook."""
    return is_terminal(sys.stderr) or "ipykernel" in sys.modules


@functools.cache
def _lines() -> type[tqdm[Any]]:
    """Bars for a log. They are of one class, as each class of bars keeps a thread that looks after them."""
    from tqdm.auto import tqdm

    class Lines(tqdm):
        """What a log can hold: whole lines, none written over."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.written = time.monotonic()
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Write where the work stands, if the last line is long ago; nothing to clear a bar."""
            now = time.monotonic()
            if msg is None and now - self.written >= SECONDS_A_LINE:
                self.written = now
                self.fp.write(f"{self}\n")
                self.fp.flush()

    return Lines


def announce(message: str) -> None:
    """Write a line to the error stream, unless progress is turned off or there is no such stream."""
    if _enabled and not getattr(sys.stderr, "closed", sys.stderr is None):
        from tqdm.auto import tqdm

        tqdm.write(message, file=sys.stderr)


def progress(items: Iterable[Any] | None = None, *, label: str, total: int | None = None) -> tqdm[Any]:
    """Wrap `items` in a bar that disappears when done; with `total` alone, call `.update(n)` on it.

    Where nobody watches, neither a terminal nor a notebook, long work writes a line a minute instead.
    """
    if watched():
        from tqdm.auto import tqdm

        return tqdm(items, desc=label, total=total, leave=False, disable=not _enabled, dynamic_ncols=True)
    return _lines()(
        items,
        desc=label,
        total=total,
        leave=False,
        disable=not _enabled or getattr(sys.stderr, "closed", sys.stderr is None),  # as in a service
        mininterval=SECONDS_A_LINE,
        bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
    )
