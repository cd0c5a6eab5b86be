"""Plain tables."""

from __future__ import annotations

from blockyard.cli.table import plain_table


def test_plain_table_aligns_its_columns() -> None:
    assert plain_table("T", ["name", "x"], [["a", "yes"], ["longer", "-"]]) == (
        "T\n  name    x\n  ------  ---\n  a       yes\n  longer  -\n"
    )
