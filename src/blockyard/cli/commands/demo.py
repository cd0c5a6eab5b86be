"""`blockyard demo`: six block choices compared on text that every machine has, with a first answer in a minute."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from blockyard.cli.browser import WHEN
from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.compare.settings import CompareConfig, Groups
    from blockyard.report.schema import Report

OUT = "runs/demo"
TASK = "lm"
# The choices of the first answer: what everybody knows, and two that differ from it as much as any.
FEW = ("standard", "tva+vft", "spectral")
# What the extras bring that a comparison and its page need.
NEEDED = ("numpy", "yaml", "rich", "safetensors", "matplotlib", "scipy")


def add_arguments(parser: Parser) -> None:
    parser.plain(
        "--out", f"folder of the runs and the report; given again, the demo goes on ({OUT})", metavar="DIR", default=OUT
    )
    parser.plain(
        "--open",
        "open the report in a browser: yes, no, or auto, where a person is at a terminal with a display (auto)",
        metavar="WHEN",
        choices=WHEN,
        default="auto",
    )
    parser.plain("--first", "end with the first answer; the same command without it goes on", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.browser import open_page
    from blockyard.cli.console import say
    from blockyard.cli.tasks import tell_page
    from blockyard.files import check_writable
    from blockyard.training.interrupt import Interrupted

    check_extras()
    check_writable(arguments.out, folder=True)
    out, opened = Path(arguments.out), False
    page = out / "report.html"
    say(INTRODUCTION.format(out=arguments.out))
    # torch is imported from here on.
    from blockyard.compare.stages import compare_in_stages

    def told(report: Report, following: str) -> None:
        nonlocal opened
        say(f"\n{report['verdict']['headline']}")
        say(f"{'so far' if following else 'all of it'}: {page}")
        if not opened and open_page(page, arguments.open):
            opened = True
            say("opened in the browser" + ("; reload it when there is more" if following else ""))
        if following and not arguments.first:
            say(f"now: {following}\n")

    try:
        compare_in_stages(TASK, *demo_terms(), out, FEW, told, only_first=arguments.first)
    except (Interrupted, KeyboardInterrupt):
        best = f"the best report so far: {page}" if page.exists() else "there is no report yet"
        say(f"\n{best}\nto go on: {command_for(arguments)}")
        raise
    if arguments.first:
        say(f"to go on: {command_for(arguments)}")
    return tell_page(arguments.out)


INTRODUCTION = """\
Six Transformer blocks as small language models, on the source of Python's standard library: a first answer in about a
minute, the whole in about eight (two free cores). Ctrl-C ends it at any time, and the same command goes on.
The report: {out}/report.html
"""


def command_for(arguments: argparse.Namespace) -> str:
    """Return the line that goes on with the demo."""
    words = ["blockyard", "demo", *([] if arguments.out == OUT else ["--out", arguments.out])]
    return shlex.join([*words, *([] if arguments.open == "auto" else ["--open", arguments.open])])


def check_extras() -> None:
    """Refuse to begin what an installation of the core alone cannot end.

    Raises:
        MissingExtra: with the line that installs it.
    """
    from importlib.util import find_spec

    from blockyard.errors import MissingExtra

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(f"not installed: {', '.join(missing)}; run: pip install 'blockyard[train,report]'")


def demo_terms() -> tuple[CompareConfig, Groups]:
    """Return the terms of the demo and what its models share: those of `compare/demo.yaml`."""
    import blockyard
    from blockyard.cli.sources import given_in
    from blockyard.cli.tasks import compare_groups, compare_terms
    from blockyard.registry.yamlfile import read_yaml

    path = Path(blockyard.__file__).parent / "compare" / "demo.yaml"
    known = compare_groups(TASK)
    return compare_terms(TASK, known, given_in(path, read_yaml(path), known))


COMMAND = Command(
    "demo",
    "six block choices on text that is there: a first answer in a minute",
    add_arguments,
    run,
    order=29,
    purpose="compare",
    example="blockyard demo",
)
