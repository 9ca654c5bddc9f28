"""Progress: bars in a terminal and in Jupyter, lines in a log; silenced by one switch."""

from __future__ import annotations

import functools
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from saliency_lab._common.arguments import check_flag

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_A_LINE = 60.0

_enabled = os.environ.get("SALIENCY_LAB_PROGRESS", "1") not in {"0", "false", "no"}


def show_progress(enabled: bool) -> None:
    """Turn progress bars, and their lines in a log, on or off for the rest of the process.

    The environment variable `SALIENCY_LAB_PROGRESS=0` does the same.

    Parameters
    ----------
    enabled : bool
        Whether progress is shown.

    Examples
    --------
    >>> show_progress(False)
    """
    global _enabled
    _enabled = check_flag(enabled, "enabled")


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
    """Return whether a stream is a terminal; a closed or missing stream is not."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def watched() -> bool:
    """Return whether somebody may be watching, at a terminal or in a notebook."""
    return is_terminal(sys.stderr) or "ipykernel" in sys.modules


@functools.cache
def _lines() -> type[tqdm[Any]]:
    """Return the class of bars for a log; there is one, because each class of bars keeps a thread."""
    from tqdm.auto import tqdm

    class Lines(tqdm):
        """A bar that a log can hold: it writes whole lines and overwrites none."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.written = time.monotonic()
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Write a line about the progress if the last line was written long ago."""
            now = time.monotonic()
            if msg is None and now - self.written >= SECONDS_A_LINE:
                self.written = now
                self.fp.write(f"{self}\n")
                self.fp.flush()

    return Lines


SECONDS_UNSEEN = 0.5
"""Work that takes less shows no bar in a notebook."""


def _in_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


@functools.cache
def _cell_bars() -> type[tqdm[Any]]:
    """Return the class of bars for the cells of a notebook.

    The bars of `tqdm.notebook` leave one empty output each. All bars of a cell share one place here, nested
    ones are not shown, and a bar that is done leaves nothing visible.
    """
    from IPython import get_ipython
    from IPython.display import HTML, display
    from tqdm.std import tqdm

    places: dict[int, Any] = {}

    class CellBar(tqdm):
        """A bar in the output of a notebook's cell."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.cell = get_ipython().execution_count
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Show the bar at the place of its cell; with an empty message, remove it."""
            if self.pos or (msg == "" and self.cell not in places):
                return
            html = HTML("" if msg == "" else self.html())
            if self.cell in places:
                places[self.cell].update(html)
            else:
                places.clear()
                places[self.cell] = display(html, display_id=True)

        def html(self) -> str:
            """Return the bar, and what it counts, as HTML."""
            known = f'value="{self.n}" max="{self.total}"' if self.total else ""
            facts: dict[str, Any] = {**self.format_dict}
            facts["bar_format"] = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
            return f"<progress {known}></progress> {escape(self.format_meter(**facts))}"

    return CellBar


def announce(message: str) -> None:
    """Write a line to the error stream, unless progress is turned off or there is no such stream."""
    if _enabled and not getattr(sys.stderr, "closed", sys.stderr is None):
        from tqdm.auto import tqdm

        tqdm.write(message, file=sys.stderr)


def progress(items: Iterable[Any] | None = None, *, label: str, total: int | None = None) -> tqdm[Any]:
    """Wrap `items` in a bar that disappears when done; with `total` alone, call `.update(n)` on it.

    Outside of terminals and notebooks, long work writes one line per minute instead.
    """
    if _in_notebook():
        return _cell_bars()(
            items,
            desc=label,
            total=total,
            leave=False,
            disable=not _enabled,
            file=io.StringIO(),
            delay=SECONDS_UNSEEN,
            mininterval=0.25,
        )
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
