"""State that several threads change and put back, and hooks that other threads do not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module of torch keeps its hooks."""


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook of a module that does nothing where another thread runs the module at the same time."""
    thread = threading.get_ident()

    def bound(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == thread else None

    return bound


class SharedState:
    """Save and restore state of the process, or of shared objects, from any number of threads.

    A thread that saves state which another thread has already changed takes over the value that the other one
    found. On leaving it restores only what no other thread still relies on. So whichever thread is last puts
    the original value back. Within one thread, blocks nest as usual: an inner block restores what the outer
    one set, also if it was entered while another thread relied on the same state.

    Examples
    --------
    >>> box = {"mode": "train"}
    >>> state = SharedState()
    >>> with state.changed(box.copy, lambda: box.update(mode="eval"), box.__setitem__):
    ...     print(box)
    {'mode': 'eval'}
    >>> box
    {'mode': 'train'}
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: list[tuple[int, dict[Hashable, Any]]] = []

    @contextmanager
    def changed(
        self,
        read: Callable[[], Mapping[Any, Any]],
        change: Callable[[], object],
        restore: Callable[[Any, Any], object],
        *,
        exclusive: bool = False,
    ) -> Iterator[None]:
        """Change state inside, and restore it on leaving, also after an exception.

        Parameters
        ----------
        read : callable
            Returns key → present value.
        change : callable
            Makes the change. No other thread enters or leaves while it is made.
        restore : callable
            `restore(key, value)` puts a value back.
        exclusive : bool
            Whether other threads wait at their entry or exit until this block is left. Such a block must not
            wait for another thread.
        """
        with self._lock if exclusive else nullcontext(), self._entered(read, change, restore):
            yield

    @contextmanager
    def _entered(
        self,
        read: Callable[[], Mapping[Any, Any]],
        change: Callable[[], object],
        restore: Callable[[Any, Any], object],
    ) -> Iterator[None]:
        thread = threading.get_ident()
        with self._lock:
            saved = dict(read())
            own = {key for holder, mine in self._entries if holder == thread for key in mine}
            for _, other in reversed(self._of_others(thread)):  # the oldest entry has the original value
                saved |= {key: other[key] for key in (saved.keys() & other.keys()) - own}
            entry = (thread, saved)
            self._entries.append(entry)
        try:
            with self._lock:
                change()
            yield
        finally:
            with self._lock:
                self._entries = [each for each in self._entries if each is not entry]
                in_use = {key for _, other in self._of_others(thread) for key in other}
                for key, value in saved.items():
                    if key not in in_use:
                        restore(key, value)

    def _of_others(self, thread: int) -> list[tuple[int, dict[Hashable, Any]]]:
        return [entry for entry in self._entries if entry[0] != thread]
