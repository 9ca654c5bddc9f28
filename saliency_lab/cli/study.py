"""`saliency-lab study STUDY.toml`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Literal

import typer

from saliency_lab._common.errors import InputError

EXIT_FAILED = 1


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(study)


def study(
    declaration: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="What to train, score and compare.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The store; by default runs/NAME. Run again to go on.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Only check every file of the store.")] = False,
    executor: Annotated[
        str, typer.Option(help="Who computes: serial, processes, or dask (needs the extra 'distributed').")
    ] = "serial",
    workers: Annotated[int, typer.Option(min=1, help="How many processes, or local Dask workers.")] = 2,
    address: Annotated[
        str | None, typer.Option(help="Of a running Dask scheduler, such as tcp://host:8786.")
    ] = None,
) -> None:
    """Train, attribute, score, attack and compare what a TOML file declares; nothing is computed twice.

    Exits with 1 if some cells failed; they are tried again the next time.
    """
    from saliency_lab.study.declaration import read_declaration
    from saliency_lab.study.declared import plan_declared, run_declared
    from saliency_lab.study.store import FolderStore, existing_folder

    declared = read_declaration(declaration)
    store = out or Path("runs") / declaration.stem
    if verify:
        damaged = FolderStore(existing_folder(store)).verify()
        print("every cell is intact" if damaged.empty else damaged.to_string(index=False))
        raise typer.Exit(EXIT_FAILED if len(damaged) else 0)
    if plan:
        table = plan_declared(declared, store)
        print(table.to_string(index=False, na_rep="", float_format="{:.1f}".format))
        print(f"{table['missing'].sum()} of {table['cells'].sum()} are missing in '{store}'")
        return
    with _executor(executor, workers, address) as pool:
        done, comparison = run_declared(declared, store, executor=pool)
    print(comparison)
    for path in done.write_tables():
        print(path)
    if len(done.failures):
        print(done.failures[["model", "seed", "what", "error"]].to_string(index=False))
        raise typer.Exit(EXIT_FAILED)


@contextlib.contextmanager
def _executor(name: str, workers: int, address: str | None) -> Iterator[Executor | None]:
    kinds: tuple[Literal["serial", "processes", "dask"], ...] = ("serial", "processes", "dask")
    if name not in kinds:
        raise InputError(f"--executor must be one of {', '.join(kinds)}, not '{name}'")
    if name == "serial":
        yield None
    elif name == "processes":
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
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
