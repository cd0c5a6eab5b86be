"""What a subcommand is: a name, a line about it, its arguments and what it does.

A further subcommand is one file in `commands/`: `bench_decode.py` holds `COMMAND` and is reached as
`blockyard bench decode`. The file imports torch inside its functions only, so that the overview can read its summary
for nothing. `train`, `compare` and `tune` know every task without a file (words for the overview: `task_words.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from blockyard.cli.parser import Parser

Purpose = Literal["train", "use", "compare", "understand", "extend"]


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Args:
        name: the words that select it, such as "train lm".
        summary: one line for the overview and the head of its help.
        add_arguments: declares the arguments on the parser.
        run: does the work and returns the exit status.
        prepare: looks at the words before the arguments are declared, to import what adds to them.
        order: place in the overview, small first.
        example: a command line shown below the help.
        builds: it builds models, so it has `--force`.
        purpose: what people want of it, for the overview.
        common: options that people use, which its help shows where there are too many for all.
    """

    name: str
    summary: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    prepare: Callable[[list[str]], None] = lambda words: None
    order: int = 50
    example: str = ""
    builds: bool = False
    purpose: Purpose = "use"
    common: tuple[str, ...] = ()

    def parser(self) -> Parser:
        """Return a parser with all arguments declared; `prepare` has been called before."""
        parser = Parser(self.name, self.summary, self.example)
        self.add_arguments(parser)
        parser.plain(
            "--plugin",
            "import this module first (it registers blocks); may be repeated",
            action="append",
            metavar="PKG.MODULE",
            default=[],
        )
        if self.builds:
            parser.plain("--force", "build also what by its estimate does not fit into memory", action="store_true")
        return parser
