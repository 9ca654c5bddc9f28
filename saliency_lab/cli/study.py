"""`saliency-lab study STUDY.toml` and `saliency-lab reproduce NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saliency_lab.cli.executors import Address, ExecutorName, Workers, open_executor

if TYPE_CHECKING:
    from saliency_lab.experiment.schema import Declaration

EXIT_FAILED = 1

Store = Annotated[
    Path | None, typer.Option("--out", help="The store; by default runs/NAME. Run again to go on.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")]
Verify = Annotated[bool, typer.Option("--verify", help="Only check every file of the store.")]
Page = Annotated[
    Path | None,
    typer.Option("--page", metavar="DIR", help="Write the study's page, claims, tables and figures, here."),
]
StudyData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Another data set, by name; image_folder reads the study's own images from train/CLASS and "
        "test/CLASS under --data-root.",
    ),
]
StudyDevice = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where models are trained and run: cpu, cuda, cuda:1, mps; auto is cuda if it is here, else cpu "
        "(an executor's workers run on cpu unless one is named).",
    ),
]
StudyRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder (or image_folder's .zip) of the data files.")
]


def add_to(app: typer.Typer) -> None:
    """Register the subcommands."""
    app.command()(study)
    app.command()(reproduce)


def study(
    declaration: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="What to train, score and compare.")
    ],
    out: Store = None,
    page: Page = None,
    data: StudyData = None,
    data_root: StudyRoot = None,
    device: StudyDevice = "auto",
    plan: Plan = False,
    verify: Verify = False,
    executor: ExecutorName = "serial",
    workers: Workers = 2,
    address: Address = None,
) -> None:
    """Train, attribute, score, attack and compare what a TOML file declares; nothing is computed twice.

    Exits with 1 if some results failed; they are tried again the next time.
    """
    from saliency_lab.experiment.schema import read_declaration

    declared = _with_data(read_declaration(declaration), data, data_root)
    store = out or Path("runs") / declaration.stem
    if _only_look(declared, store, device, plan, verify):
        return
    command = f"saliency-lab study {declaration.name} --page DIR{_said(data, data_root)}"
    _carry_out(declared, store, declaration.stem, page, command, device, executor, workers, address)


def reproduce(
    name: Annotated[
        str, typer.Argument(help="A bundled study: mnist, cifar10, ... (`saliency-lab list studies`).")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="The short form, minutes on two cores.")] = False,
    out: Store = None,
    page: Page = None,
    data: StudyData = None,
    data_root: StudyRoot = None,
    device: StudyDevice = "auto",
    plan: Plan = False,
    executor: ExecutorName = "serial",
    workers: Workers = 2,
    address: Address = None,
) -> None:
    """Put the claims about saliency-guided training to the test: a bundled study, its page and figures.

    It can be interrupted; the same command again goes on from what is finished.
    """
    from saliency_lab.experiment.schema import bundled_study, read_declaration

    name = f"{name}-quick" if quick else name
    declared = _with_data(read_declaration(bundled_study(name)), data, data_root)
    store = out or Path("runs") / name
    if _only_look(declared, store, device, plan, verify=False):
        return
    short = " --quick" if name.endswith("-quick") else ""
    command = f"saliency-lab reproduce {name.removesuffix('-quick')}{short}{_said(data, data_root)}"
    _carry_out(declared, store, name, page or store / "results", command, device, executor, workers, address)


def _said(data: str | None, root: Path | None) -> str:
    """The options of other data, for the page, without folders of this machine."""
    if data is None:
        return ""
    return f" --data {data}" + ("" if root is None else f" --data-root {root.name}")


def _with_data(declared: Declaration, name: str | None, root: Path | None) -> Declaration:
    changes = {} if name is None else {"name": name}
    if root is not None:
        changes["root"] = str(root.resolve())
    recipes = {} if name in (None, "image_folder") else {"data.name": name}  # whose own name may stay
    return declared.model_copy(
        update={
            "data": declared.data.model_copy(update=changes),
            "overrides": declared.overrides | recipes,
        }
    )


def _only_look(declared: Declaration, store: Path, device: str, plan: bool, verify: bool) -> bool:
    """Print the plan of a study or the check of its store; False if neither was asked for."""
    from saliency_lab.cli.verify import print_problems
    from saliency_lab.experiment.run import plan_declared

    if verify:
        print_problems(store)
    if plan:
        table = plan_declared(declared, store, device=device)
        print(table.to_string(index=False, na_rep="", float_format="{:.1f}".format))
        print(
            f"{table['missing'].sum()} of {table['results'].sum()} are missing in '{store}', "
            f"about {table['seconds'].sum() / 60:.0f} minutes of work for one process, with attacks and "
            "audits counted as if no image gave way"
        )
    return plan


def _carry_out(
    declared: Declaration,
    store: Path,
    name: str,
    page: Path | None,
    command: str,
    device: str,
    executor: str,
    workers: int,
    address: str | None,
) -> None:
    from saliency_lab._common.files import write_table
    from saliency_lab.cli.output import print_comparison, print_table
    from saliency_lab.comparison.claims import answer
    from saliency_lab.experiment.retraining import tabulate
    from saliency_lab.experiment.run import retrain_declared, run_declared
    from saliency_lab.reporting.markdown import write_page

    with open_executor(executor, workers, address) as pool:
        done, comparison, runs = run_declared(declared, store, executor=pool, device=device)
    print_comparison(comparison)
    for asked in answer(declared.claims, comparison):
        print(asked)
    for path in done.write_tables():
        print(path)
    retrained = retrain_declared(declared, store, device=device)
    if retrained:
        table = tabulate(retrained, declared.level)
        print_table(table)
        stem = store / "tables" / "retraining"
        write_table(stem, table)
        print(stem.with_suffix(".parquet"))
    if page is not None:
        print(
            write_page(
                declared, runs, done, comparison, page, name=name, command=command, retrained=retrained
            )
        )
    if len(done.failures):
        print(done.failures[["model", "seed", "what", "error"]].to_string(index=False))
        raise typer.Exit(EXIT_FAILED)
