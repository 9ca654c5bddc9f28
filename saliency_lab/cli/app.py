"""The command itself: its subcommands, and errors as one paragraph with an exit code."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import saliency_lab
from saliency_lab._common.errors import SaliencyLabError
from saliency_lab.cli import (
    attack,
    attribute,
    audit,
    demo,
    doctor,
    download,
    listing,
    power,
    report,
    roar,
    score,
    study,
    train,
    verify,
)

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def _print_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


def _without_flag_types(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A subcommand in whose paths `~` is the home folder.

    It refuses an option given twice, where only the last value would count. Its help breaks lines between
    paragraphs only.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.help:
            self.help = "\n\n".join(" ".join(part.split()) for part in self.help.split("\n\n"))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; the help shows no type for flags, which take no value."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises
        ------
        typer.BadParameter
            If an option of one value is given more than once.
        """
        options = args[: args.index("--")] if "--" in args else args
        names = [word.partition("=")[0] for word in options]
        for option in self.params:
            if getattr(option, "multiple", True) or getattr(option, "is_flag", True):
                continue
            given = sum(name in option.opts for name in names)
            if given > 1:
                problem = f"it is given {given} times and takes one value"
                raise typer.BadParameter(problem, ctx=ctx, param=option)  # type: ignore[arg-type]
        rest = super().parse_args(ctx, args)
        for option in self.params:
            given = ctx.params.get(option.name)
            if isinstance(given, Path):
                ctx.params[option.name] = _expanded(given, option)
            elif isinstance(given, list):
                ctx.params[option.name] = [
                    _expanded(each, option) if isinstance(each, Path) else each for each in given
                ]
        return rest


def _expanded(path: Path, option: Any) -> Path:
    """Return a path with the home folder in place of ~, which a shell leaves after an equals sign."""
    from saliency_lab._common.arguments import check_path

    return check_path(path, option.opts[-1]) if f"{path}".startswith("~") else path


class Commands(TyperGroup):
    """Turns this package's errors into a message and an exit code; a bug still shows its traceback."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options of all subcommands, as `Command` does."""
        return _without_flag_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        warnings.showwarning = _print_warning  # type: ignore[assignment]
        logging.basicConfig(format="%(message)s")
        logging.getLogger("saliency_lab").setLevel(logging.INFO)
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # raises here, not at exit, if the output cannot be written
            return result
        except SaliencyLabError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(getattr(error, "exit_code", EXIT_ERROR)) from None
        except BrokenPipeError:  # of `| head`: the frame below ends quietly
            raise
        except OSError as error:
            where = f"'{error.filename}': " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            print("\ninterrupted; run the same command again to continue from what is saved", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None


class App(typer.Typer):
    """The application, whose subcommands are all of the class `Command`."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Register a subcommand."""
        return super().command(name, **{"cls": Command, **settings})


app = App(
    name="saliency-lab",
    cls=Commands,
    help="Train models by recipe, compute saliency maps, score the maps, attack the models, and compare.",
    epilog="New here? `saliency-lab demo` runs a complete example in minutes and downloads nothing.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for verb in (
    demo,
    train,
    attribute,
    score,
    attack,
    study,
    roar,
    audit,
    report,
    power,
    verify,
    listing,
    download,
    doctor,
):
    verb.add_to(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"saliency-lab {saliency_lab.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train models by recipe, compute saliency maps, score the maps, attack the models, and compare."""


def main() -> None:
    """Entry point of the `saliency-lab` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal or a file may be of an encoding without ε
    app()
