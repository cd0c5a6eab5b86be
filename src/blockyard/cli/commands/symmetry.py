"""`blockyard symmetry`: which options of the complex blocks keep the phase symmetry, measured now."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.complex.symmetry import SymmetryRow


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [NAME] [options]"
    parser.plain(
        "target",
        "a complex mixer or FFN: a registered name, or pkg.module:Class of your own; every option "
        "of the library's when not given",
        metavar="NAME",
        nargs="?",
    )
    parser.plain(
        "--with",
        "an option of its constructor, such as score=phase; may be repeated",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
    )
    parser.plain("--json", "print it as JSON", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.complex.symmetry import symmetry_table

    rows = own(arguments.target, arguments.options) if arguments.target else symmetry_table()
    if arguments.json:
        import json

        found = [
            {
                "part": r.part,
                "option": r.option,
                "default": r.default,
                "kept": bool(r.symmetry),
                "error": r.symmetry.error,
            }
            for r in rows
        ]
        print(json.dumps(found, indent=2))
    else:
        from blockyard.cli.table import print_table

        title = "f(e^ia x) = e^ia f(x) at five angles in float64 with random parameters: the largest relative deviation"
        head = ["part", "option", "", "symmetry", "deviation"]
        print_table(title, head, [cells(row) for row in rows])
    # For a module that was named the exit status is the answer; the table holds breakers on purpose.
    return 0 if not arguments.target or all(row.symmetry for row in rows) else 1


def cells(row: SymmetryRow) -> list[str]:
    """Return a row of the table as text."""
    kept = "kept" if row.symmetry else "BROKEN"
    return [row.part, row.option, "default" if row.default else "", kept, f"{row.symmetry.error:.0e}"]


def own(target: str, words: list[str]) -> list[SymmetryRow]:
    """Return the rows of a named class, built at the sizes of the conformance suite."""
    from blockyard.cli.commands.check import read_options, targets
    from blockyard.complex.symmetry import SymmetryRow, check_equivariance
    from blockyard.conformance.subject import SIZES
    from blockyard.errors import InputError
    from blockyard.models.estimate import check_class
    from blockyard.registry.options import options_of

    rows = []
    for cls, _ in targets(target, None):
        options = {
            **{name: value for name, value in SIZES.items() if name in options_of(cls)},
            **read_options(cls, words),
        }
        if not getattr(cls, "complex_valued", False):
            raise InputError(f"{target!r} is real-valued; the phase symmetry is about complex inputs")
        check_class(cls, options, f"{cls.__name__} of this size")
        found = check_equivariance(cls(**options), shape=(2, 7, SIZES["d_model"]))
        rows.append(SymmetryRow(target, ", ".join(words) or "defaults", not words, found))
    return rows


COMMAND = Command(
    "symmetry",
    "which options of the complex blocks keep the phase symmetry",
    add_arguments,
    run,
    order=52,
    purpose="understand",
    builds=True,
    example="blockyard symmetry complex --with score=phase",
)
