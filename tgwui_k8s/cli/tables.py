"""Tables on the terminal; plain text with one line per row when stdout is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import rich_click as click


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows below their headings.

    Without a terminal the columns are separated by tabs and nothing is cut or coloured, so that
    the output can be piped.
    """
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(row))
        return
    # Imported here because a server that starts has no use for it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
