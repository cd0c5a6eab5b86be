"""What the `bench` commands share: their options from a dataclass, their files and their table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from blockyard.cli.parser import Parser


def add_bench_arguments(parser: Parser, config: type, folder: str) -> None:
    """Declare `--out` and the options of a benchmark's configuration."""
    from blockyard.cli.settings import add_flat
    from blockyard.registry.options import options_of

    parser.plain(
        "--out", f"folder of bench.json, bench.html, bench.md and the figures ({folder})", metavar="DIR", default=folder
    )
    add_flat(parser, "timing", "what is timed", options_of(config))


def run_bench(arguments: argparse.Namespace, name: str, config: type, measure: Callable[..., Any]) -> int:
    """Read the options, measure, write every form of the result, and print the table and the page's path."""
    from blockyard.bench.write import table, write_bench
    from blockyard.cli.settings import read_flat
    from blockyard.cli.table import print_table
    from blockyard.errors import require
    from blockyard.files import check_writable
    from blockyard.registry.options import options_of
    from blockyard.report.units import command_line

    asked: Any = config(**read_flat(arguments, options_of(config)))
    # Before minutes of measuring, not after.
    require("matplotlib", extra="report")
    check_writable(arguments.out, folder=True)
    changed = [(f.name, getattr(asked, f.name)) for f in fields(asked) if getattr(asked, f.name) != f.default]
    changed += [("plugin", module) for module in arguments.plugin] + [("out", arguments.out)]
    bench = measure(
        asked,
        command=command_line(f"blockyard {name}", changed),
        say=lambda line: print(f"measuring: {line}", file=sys.stderr, flush=True),
    )
    files = write_bench(bench, Path(arguments.out))
    print_table(bench["title"], *table(bench, brief=True))
    print(files["html"])
    return 0
