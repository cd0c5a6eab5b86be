"""Tables for the terminal: rich's when it is installed and someone is looking, plain columns otherwise."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the last column may be long and wraps on a terminal, the others never do."""
    if sys.stdout.isatty():
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table
        except ModuleNotFoundError:
            pass
        else:
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
            # Nine columns of traits fit eighty characters so.
            table.pad_edge, table.collapse_padding = False, True
            for number, name in enumerate(head):
                last = number == len(head) - 1
                table.add_column(name, no_wrap=not last, style="" if number else "cyan")
            for row in rows:
                # Plain text: a name with brackets is not markup.
                from rich.text import Text

                table.add_row(*(Text(cell) for cell in row))
            Console().print(table)
            return
    print(plain_table(title, head, rows))


def plain_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table as lines of aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [title, *(_line(row, widths) for row in [head, ["-" * width for width in widths], *rows])]
    return "\n".join(lines) + "\n"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()
