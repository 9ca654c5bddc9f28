"""`saliency-lab study STUDY.toml` and `saliency-lab reproduce NAME`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saliency_lab._common.errors import InputError
from saliency_lab.cli.executors import Address, ExecutorName, Workers, open_executor
from saliency_lab.cli.options import Compile, Dtype, Trust, numbers, pass_settings, several
from saliency_lab.cli.verify import print_problems

if TYPE_CHECKING:
    from saliency_lab.experiment.part import Part
    from saliency_lab.experiment.retraining import Retrained
    from saliency_lab.experiment.run import Outcome
    from saliency_lab.experiment.schema import Declaration

EXIT_FAILED = 1

Store = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder of the store; by default runs/NAME. Run the command again to continue."
    ),
]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")]
Verify = Annotated[bool, typer.Option("--verify", help="Only check every file of the store.")]
Page = Annotated[
    Path | None,
    typer.Option(
        "--page", metavar="DIR", help="Folder for the study's page with its claims, tables and figures."
    ),
]
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Redraw the page from results that --pack wrote, without data, training or networks; figures "
        "that need images, maps or curves are left out. Give it once for each part that --only or --seeds "
        "computed, and --pack to write the parts into one file.",
    ),
]
Pack = Annotated[
    Path | None,
    typer.Option(
        "--pack",
        metavar="FILE.tar.xz",
        help="Also write the results into one small file, without images, maps and networks, from which "
        "--from redraws the page.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="MODEL,...",
        help="Compute only these models of the study, for example on this machine; see --from.",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", metavar="SEED,...", help="Train and compute only networks with these seeds."),
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
    packed: From = None,
    pack: Pack = None,
    only: Only = None,
    seeds: Seeds = None,
    data: StudyData = None,
    data_root: StudyRoot = None,
    device: StudyDevice = "auto",
    compile: Compile = None,
    dtype: Dtype = None,
    plan: Plan = False,
    verify: Verify = False,
    trust: Trust = False,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Train, attribute, score, attack and compare what a TOML file declares; nothing is computed twice.

    Exits with 1 if some results failed; they are tried again the next time.
    """
    from saliency_lab.experiment.run import run_declared
    from saliency_lab.experiment.schema import read_declaration

    store = out or Path("runs") / declaration.stem
    if verify:
        print_problems(store)
    declared = read_declaration(declaration, _changes(data, data_root), trust=trust)
    declared = _with_passes(declared, compile, dtype)
    part = _part(packed, only, seeds)
    if plan:
        _print_plan(declared, store, device, part, trust=trust)
        return
    _check_outputs(page, pack)
    options = _data_options(data, data_root) + _dtype_option(dtype) + _part_options(only, seeds, trust=trust)
    command = f"saliency-lab study {shlex.quote(declaration.name)} --page DIR{options}"
    if packed:
        _redraw(declared, packed, pack, page or Path(), declaration.stem, command, trust=trust)
        return
    with open_executor(executor, workers, address, device) as pool:
        outcome = run_declared(declared, store, executor=pool, device=device, trust=trust, part=part)
    _print_outcome(declared, outcome, store, page, pack, declaration.stem, command)


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A bundled study: mnist, cifar10, ... (`saliency-lab list studies`)."
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="The short form of the study, which takes minutes on two cores.")
    ] = False,
    out: Store = None,
    page: Page = None,
    packed: From = None,
    pack: Pack = None,
    only: Only = None,
    seeds: Seeds = None,
    data: StudyData = None,
    data_root: StudyRoot = None,
    device: StudyDevice = "auto",
    compile: Compile = None,
    dtype: Dtype = None,
    plan: Plan = False,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Run a bundled study that tests claims about saliency-guided training; write its page.

    It can be interrupted: run the same command again to continue.
    """
    from saliency_lab.experiment.run import run_declared
    from saliency_lab.experiment.schema import bundled_study, read_declaration

    name = f"{name}-quick" if quick else name
    declared = read_declaration(bundled_study(name), _changes(data, data_root))
    declared = _with_passes(declared, compile, dtype)
    store = out or Path("runs") / name
    part = _part(packed, only, seeds)
    if plan:
        _print_plan(declared, store, device, part)
        return
    _check_outputs(page, pack)
    short = " --quick" if name.endswith("-quick") else ""
    options = short + _data_options(data, data_root) + _dtype_option(dtype) + _part_options(only, seeds)
    command = f"saliency-lab reproduce {name.removesuffix('-quick')}{options}"
    if packed:
        _redraw(declared, packed, pack, page or Path(), name, command)
        return
    with open_executor(executor, workers, address, device) as pool:
        outcome = run_declared(declared, store, executor=pool, device=device, part=part)
    _print_outcome(declared, outcome, store, page or store / "results", pack, name, command)


def _check_outputs(page: Path | None, pack: Path | None) -> None:
    """Refuse places that cannot be written to, before anything is computed."""
    from saliency_lab._common.files import output_file, writable_folder

    if page is not None:
        writable_folder(page)
    if pack is not None:
        output_file(pack, ".tar.xz", name="--pack")


def _data_options(data: str | None, root: Path | None) -> str:
    """Return the options that name other data, as the page prints them, without folders of this machine."""
    if data is None:
        return ""
    return f" --data {shlex.quote(data)}" + ("" if root is None else f" --data-root {shlex.quote(root.name)}")


def _dtype_option(dtype: str | None) -> str:
    """Return the option of the precision, which changes results; --compile does not."""
    return "" if dtype is None else f" --dtype {dtype}"


def _part_options(only: str | None, seeds: str | None, *, trust: bool = False) -> str:
    """Return the options that choose a part of a study, and the one that its file needs."""
    chosen = "" if only is None else f" --only {shlex.quote(only)}"
    chosen += "" if seeds is None else f" --seeds {shlex.quote(seeds)}"
    return chosen + (" --trust" if trust else "")


def _changes(name: str | None, root: Path | None) -> dict[str, dict[str, str]]:
    """Return what the options of other data change in the file of a study."""
    data = {} if name is None else {"name": name}
    if root is not None:
        data["root"] = str(root.resolve())
    recipes = {} if name is None or name == "image_folder" else {"data.name": name}  # whose own name may stay
    return {key: table for key, table in (("data", data), ("overrides", recipes)) if table}


def _part(packed: list[Path] | None, only: str | None, seeds: str | None) -> Part:
    """Read --only and --seeds."""
    from saliency_lab.experiment.part import Part

    if packed and (only is not None or seeds is not None):
        raise InputError("--only and --seeds choose what is computed, and --from computes nothing")
    models = () if only is None else tuple(several([only]))
    if only is not None and not models:
        raise InputError("--only must name models of the study, such as standard,sgt")
    return Part(models, () if seeds is None else tuple(numbers("--seeds", seeds, int)))


def _print_plan(declared: Declaration, store: Path, device: str, part: Part, *, trust: bool = False) -> None:
    """Print what there is to do, and about how long it takes."""
    from saliency_lab.experiment.planning import plan_declared
    from saliency_lab.metrics.cost import duration

    table = plan_declared(declared, store, device=device, trust=trust, part=part)
    print(table.to_string(index=False, na_rep="", float_format="{:.1f}".format))
    print(
        f"{table['missing'].sum()} of {table['results'].sum()} are missing in '{store}', "
        f"about {duration(table['seconds'].sum())} of work for one process; attacks and audits are "
        "estimated as if they broke no image"
    )


def _with_passes(declared: Declaration, compile: str | None, dtype: str | None) -> Declaration:
    from saliency_lab.experiment.schema import PassSettings

    given = pass_settings(compile, dtype)
    changed = (declared.execution or PassSettings()).model_copy(update=given)
    return declared.model_copy(update={"execution": changed}) if given else declared


def _redraw(
    declared: Declaration,
    packed: Sequence[Path],
    pack: Path | None,
    page: Path,
    name: str,
    command: str,
    *,
    trust: bool = False,
) -> None:
    """Write a study's page from packed results; also pack them again, joined, if a file is given."""
    from tempfile import TemporaryDirectory

    from saliency_lab.experiment.packing import pack_results, unpack_results
    from saliency_lab.reporting.markdown import write_page

    if declared.roar is not None or declared.kar is not None:
        print("The results of [roar] and [kar] are not packed, so the page is without them.")
    with TemporaryDirectory() as scratch:
        done, runs = unpack_results(declared, packed, Path(scratch), trust=trust)
        if pack is not None:
            print(pack_results(declared, done, runs, pack))
        print(write_page(declared, runs, done, done.compare(), page, name=name, command=command))


def _retraining_table(store: Path) -> Path:
    """Return where the table of ROAR and KAR is written, without a suffix."""
    return store / "tables" / "retraining"


def _print_retrained(declared: Declaration, retrained: Retrained, store: Path) -> None:
    """Print the results of ROAR and KAR, and write their table."""
    from saliency_lab._common.files import write_table
    from saliency_lab.cli.output import print_table
    from saliency_lab.experiment.retraining import tabulate

    table = tabulate(retrained, declared.level)
    print_table(table)
    stem = _retraining_table(store)
    write_table(stem, table)
    print(stem.with_suffix(".parquet"))


def _print_outcome(
    declared: Declaration,
    outcome: Outcome,
    store: Path,
    page: Path | None,
    pack: Path | None,
    name: str,
    command: str,
) -> None:
    """Print the comparison and the answers, and write the tables and the page of a study that was run."""
    from saliency_lab._common.files import remove_table
    from saliency_lab.cli.output import print_comparison
    from saliency_lab.comparison.claims import answer
    from saliency_lab.experiment.packing import pack_results
    from saliency_lab.reporting.markdown import write_page

    done, comparison, runs, retrained = outcome
    print_comparison(comparison)
    for asked in answer(declared.claims, comparison):
        print(asked)
    for path in done.write_tables():
        print(path)
    if retrained:
        _print_retrained(declared, retrained, store)
    else:
        remove_table(_retraining_table(store))
    if pack is not None:
        print(pack_results(declared, done, runs, pack))
    if page is not None:
        print(
            write_page(
                declared, runs, done, comparison, page, name=name, command=command, retrained=retrained
            )
        )
    if len(done.failures):
        print(done.failures[["model", "seed", "what", "error"]].to_string(index=False))
        raise typer.Exit(EXIT_FAILED)
