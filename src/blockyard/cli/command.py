"""What a subcommand is: a name, a line about it, its arguments and what it does.

A further subcommand is one file in `commands/`: `bench_decode.py` holds `COMMAND` and is reached as
`blockyard bench decode`. The file imports torch inside its functions only, so that the overview can read its summary
for nothing. `train`, `compare` and `tune` know every task without a file (words for the overview: `task_words.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from blockyard.cli.parser import Parser


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
    """

    name: str
    summary: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    prepare: Callable[[list[str]], None] = lambda words: None
    order: int = 50
    example: str = ""
    builds: bool = False
