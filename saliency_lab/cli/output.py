"""Tables on the terminal."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saliency_lab._common.files import atomic_path, output_file
from saliency_lab._common.progress import is_terminal

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from saliency_lab.comparison import Comparison

WIDTH_OF_FILES = 160
"""Columns of a table that goes to a file or a pipe."""
READABLE = 16
"""Columns below which text in a table is no longer read with ease."""


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison, within the columns of the terminal if it goes to one."""
    from saliency_lab.comparison.writers import as_text

    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
    print(as_text(comparison.content, columns))


class Output:
    """What a subcommand prints: tables and paths for a person, or JSON alone.

    Parameters
    ----------
    file : Path, optional
        Where JSON is written too; with "-" it goes to the standard output and everything else is left out.
    """

    def __init__(self, file: Path | None) -> None:
        self.silent = file is not None and str(file) == "-"
        self.file = file if file is None or self.silent else output_file(file, ".json", name="--json")

    def comparison(self, comparison: Comparison) -> None:
        """Print a comparison."""
        if not self.silent:
            print_comparison(comparison)

    def table(self, table: pd.DataFrame) -> None:
        """Print a table."""
        if not self.silent:
            print_table(table)

    def path(self, path: Path) -> None:
        """Print the path of a file that was written."""
        if not self.silent:
            print(path)

    def json(self, table: pd.DataFrame) -> None:
        """Write a table as a JSON list of rows, if it was asked for."""
        if self.file is None:
            return
        # pandas would write ten decimals, and so 0.0 for a small p
        rows = [{key: _plain(value) for key, value in row.items()} for row in table.to_dict("records")]
        text = json.dumps(rows, indent=2, ensure_ascii=False, default=str)
        if self.silent:
            print(text)
            return
        with atomic_path(self.file) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        print(self.file)


def _plain(value: Any) -> Any:
    """Return a value of a table as JSON has it: None for what is no number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(table: pd.DataFrame, title: str | None = None) -> None:
    """Print a table with its index as the first column; numbers are aligned to the right.

    Where the terminal is too narrow for the columns, each row is printed as a paragraph.
    """
    import pandas as pd
    from rich.console import Console

    shown = table.reset_index() if table.index.name or table.index.nlevels > 1 else table
    right = [pd.api.types.is_numeric_dtype(shown[column]) for column in shown.columns]
    rows = [
        ["" if pd.isna(value) else _text(value) for value in row] for row in shown.itertuples(index=False)
    ]
    columns = [str(column) for column in shown.columns]
    console = Console(width=None if is_terminal(sys.stdout) else WIDTH_OF_FILES, highlight=False)
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    least = widths[0] + sum(
        width if fixed else min(width, READABLE) for width, fixed in zip(widths[1:], right[1:], strict=True)
    )
    if least + 3 * len(columns) > console.width:
        _print_paragraphs(console, columns, rows, title)
    else:
        _print_grid(console, columns, rows, right, title)


def _print_grid(
    console: Console, columns: list[str], rows: list[list[str]], right: list[bool], title: str | None
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, (column, number) in enumerate(zip(columns, right, strict=True)):
        grid.add_column(
            column, justify="right" if number else "left", overflow="fold", no_wrap=number or not position
        )
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid)


def _print_paragraphs(console: Console, columns: list[str], rows: list[list[str]], title: str | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    if title is not None:
        console.print(Text(title, style="italic"))
    for name, *values in rows:
        console.print(Text(name, style="bold"))
        facts = [f"{column}: {value}" for column, value in zip(columns[1:], values, strict=True) if value]
        console.print(Padding(Text(" · ".join(facts)), (0, 0, 0, 4)))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
