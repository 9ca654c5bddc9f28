"""Who computes the results of a study: this process, other processes, or Dask's workers."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Annotated, Literal

import typer

from saliency_lab._common.errors import InputError

ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor", help="Who computes: serial, processes, or dask (needs the extra 'distributed')."
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="How many processes, or local Dask workers.")]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Address of a running Dask scheduler, such as tcp://host:8786."),
]


@contextlib.contextmanager
def open_executor(name: str, workers: int, address: str | None) -> Iterator[Executor | None]:
    """Yield the executor of a name, None for this process itself."""
    kinds: tuple[Literal["serial", "processes", "dask"], ...] = ("serial", "processes", "dask")
    if name not in kinds:
        raise InputError(f"--executor must be one of {', '.join(kinds)}, not '{name}'")
    if address is not None and name != "dask":
        raise InputError("--address is a Dask scheduler's; add --executor dask, or leave it out")
    if name == "serial":
        yield None
    elif name == "processes":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
            _start(pool, workers)
            try:
                yield pool
            except BaseException:  # of an error too: nobody could interrupt the wait for deaf workers
                _stop(pool)
                raise
    else:
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise InputError("Dask is missing; install it with: pip install '.[distributed]'") from error
        logging.getLogger("distributed").setLevel(logging.ERROR)
        with contextlib.ExitStack() as stack:
            if address is None:
                cluster = LocalCluster(
                    n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
                )
                stack.enter_context(cluster)
                client = Client(cluster)
            else:
                client = Client(address)
            stack.enter_context(client)
            yield client.get_executor()


def _end_with_parent() -> None:
    """End this worker when the process that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _start(pool: ProcessPoolExecutor, workers: int) -> None:
    """Start workers that ignore Ctrl-C, which a terminal sends to them too: this process ends them."""
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
