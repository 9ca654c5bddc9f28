"""The command's frame: the verbs, and errors as one paragraph and an exit code."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

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
    score,
    study,
    train,
)

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def _print_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"warning: {message}", file=sys.stderr)


class Commands(TyperGroup):
    """Turns this package's errors into a message and an exit code; a bug still shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        warnings.showwarning = _print_warning  # type: ignore[assignment]
        logging.basicConfig(format="%(message)s")
        logging.getLogger("saliency_lab").setLevel(logging.INFO)
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written is told here, not on the way out
            return result
        except SaliencyLabError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(EXIT_ERROR) from None
        except BrokenPipeError:  # of `| head`: the frame below ends quietly
            raise
        except OSError as error:
            where = f"'{error.filename}': " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            print("\ninterrupted; the same command again goes on from what is saved", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    name="saliency-lab",
    cls=Commands,
    help="Train models by recipe, attribute, score the maps, attack, compare.",
    epilog="New here? `saliency-lab demo` does the whole job in minutes and downloads nothing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for verb in (demo, train, attribute, score, attack, study, audit, report, power, listing, download, doctor):
    verb.add_to(app)


def main() -> None:
    """Entry point of the `saliency-lab` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal or a file may be of an encoding without ε
    app()
