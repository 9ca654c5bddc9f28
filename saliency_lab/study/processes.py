"""Processes of this machine that train networks and compute results, started when there is enough work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.queues import Queue
from types import TracebackType
from typing import Any

import torch

from saliency_lab._common.cores import usable_cores
from saliency_lab._common.progress import show_progress

SECONDS_TO_PAY = 120.0
"""Work that takes longer than this is handed over.

On two cores two processes of one thread train in 0.84 of the time of one process of two threads, and take
some seconds to start; `benchmarks/parallel.py` measures both.
"""


class LocalProcesses(Executor):
    """A pool of processes that starts with the first work that is submitted.

    The threads of torch are divided among the processes, and what they log, this process logs. They ignore
    Ctrl-C, which a terminal sends to them too, and end with this process, whatever ends it; a block that is
    left by an exception ends them at once.

    Parameters
    ----------
    workers : int
        How many processes.
    least : float
        Seconds of work from which `pays` says that starting them is worth it.
    """

    def __init__(self, workers: int, least: float = 0.0) -> None:
        self.workers, self.least = workers, least
        self._pool: ProcessPoolExecutor | None = None
        self._listener: QueueListener | None = None

    def pays(self, seconds: float) -> bool:
        """Return whether work of so many seconds should be submitted."""
        return self._pool is not None or seconds >= self.least

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule a call, as any executor does."""
        if self._pool is None:
            self._pool = self._open()
        return self._pool.submit(fn, *args, **kwargs)

    def _open(self) -> ProcessPoolExecutor:
        """Start the processes."""
        context = multiprocessing.get_context("spawn")
        records: Queue[logging.LogRecord] = context.Queue()
        self._listener = QueueListener(records, _Here())
        self._listener.start()
        threads = min(torch.get_num_threads(), max(1, usable_cores() // self.workers))
        level = logging.getLogger("saliency_lab").getEffectiveLevel()
        pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=_prepare_worker,
            initargs=(threads, records, level),
        )
        _start(pool, self.workers)
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, after their work if `wait`."""
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=cancel_futures)
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None and error is not None:  # nobody could interrupt the wait for deaf workers
            _stop(self._pool)
        self.shutdown()


class _Here(logging.Handler):
    """Logs the records of other processes as if they were of this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record to the logger of its name."""
        logging.getLogger(record.name).handle(record)


def _prepare_worker(threads: int, records: Queue[logging.LogRecord], level: int) -> None:
    """Set up a worker, and end it when the process that started it is killed."""
    torch.set_num_threads(threads)
    show_progress(False)  # bars of several processes would overwrite each other
    logger = logging.getLogger("saliency_lab")
    logger.addHandler(QueueHandler(records))
    logger.setLevel(level)
    logger.propagate = False
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start workers that ignore Ctrl-C, which a terminal sends to them too: this process ends them."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread receives signals, and only it may say who does
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        for _ in range(workers):
            pool.submit(os.getpid)
    finally:
        signal.signal(signal.SIGINT, heard)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers at once; a run that is killed resumes to the bit."""
    pool.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + 10
    # Python 3.11 stumbles over a cancelled future when the workers die, unless the pool has dropped it before
    while getattr(pool, "_cancel_pending_futures", False) and time.monotonic() < until:
        time.sleep(0.01)
    for process in multiprocessing.active_children():
        process.terminate()
