"""Tables on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    import pandas as pd

WIDTH_OF_FILES = 160
"""Columns of a table that goes to a file or a pipe."""


def print_table(table: pd.DataFrame, title: str | None = None) -> None:
    """Print a table with its index as the first column; numbers are aligned to the right."""
    import pandas as pd
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = table.reset_index() if table.index.name or table.index.nlevels > 1 else table
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(shown.columns):
        right = pd.api.types.is_numeric_dtype(shown[column])
        grid.add_column(
            str(column), justify="right" if right else "left", overflow="fold", no_wrap=right or not position
        )
    for row in shown.itertuples(index=False):
        grid.add_row(*("" if pd.isna(value) else _text(value) for value in row))
    Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES).print(grid)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
