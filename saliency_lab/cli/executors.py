"""Who computes the results of a study: this process, other processes, or Dask's workers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Annotated

import typer

from saliency_lab._common.errors import InputError

KINDS = ("auto", "serial", "processes", "dask")

ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        help="Who computes: serial (this process), processes, dask (needs the extra 'distributed'), or auto: "
        "processes if there are several cores, no GPU, and enough work.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="How many processes, or local Dask workers; by default one per core."
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Address of a running Dask scheduler, such as tcp://host:8786."),
]


@contextlib.contextmanager
def open_executor(
    name: str, workers: int | None, address: str | None, device: str
) -> Iterator[Executor | None]:
    """Yield the executor of a name, None for this process itself; `device` is where models run."""
    if name not in KINDS:
        raise InputError(f"--executor must be one of {', '.join(KINDS)}, not '{name}'")
    if address is not None and name != "dask":
        raise InputError("--address is a Dask scheduler's; add --executor dask, or leave it out")
    if workers is not None and name == "serial":
        raise InputError("--workers is for several processes; leave it out, or choose another --executor")
    from saliency_lab._common.cores import usable_cores
    from saliency_lab._common.inference import named_device
    from saliency_lab.study.processes import SECONDS_TO_PAY, LocalProcesses

    workers = usable_cores() if workers is None else workers
    if name == "serial" or (name == "auto" and (workers == 1 or named_device(device).type != "cpu")):
        yield None
    elif name != "dask":
        with LocalProcesses(workers, least=SECONDS_TO_PAY if name == "auto" else 0.0) as pool:
            yield pool
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
