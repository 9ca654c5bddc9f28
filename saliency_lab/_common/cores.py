"""How many processors this process may use, and work that all of them share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def usable_cores() -> int:
    """Return the number of processors that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bfloat16() -> bool:
    """Return whether the processor computes in bfloat16.

    Where it does not, bfloat16 is emulated: convolutions took about ten times as long as in float32.
    """
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or not torch.backends.mkldnn.is_available() or bool(supported())


def map_in_order(
    function: Callable[[Item], Value], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Value]:
    """Yield `function(item)` of each item, in order, computed by threads.

    At most `ahead` items are computed, or being computed, that were not yielded yet. The first error, in the
    order of the items, is raised; what was not begun by then is not computed.

    >>> list(map_in_order(str.upper, "abc", threads=2, ahead=2))
    ['A', 'B', 'C']
    """
    left = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            waiting = deque(pool.submit(function, item) for item in islice(left, ahead))
            while waiting:
                value = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(left, 1))
                yield value
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
