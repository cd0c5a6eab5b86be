"""`blockyard bench decode`: time and bytes of one more token, for every mixer that has a cache."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

FOLDER = "bench-decode"


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.flat import add_flat
    from blockyard.options import options_of
    from blockyard.workbench.bench.decode import DecodeBenchConfig

    parser.plain("--out", f"folder of bench.json, bench.html, bench.md and the figures ({FOLDER})",
                 metavar="DIR", default=FOLDER)  # fmt: skip
    add_flat(parser, "what is timed", options_of(DecodeBenchConfig))


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.flat import read_flat
    from blockyard.cli.table import print_table
    from blockyard.errors import require
    from blockyard.options import options_of
    from blockyard.workbench.bench.decode import DecodeBenchConfig, bench_decode
    from blockyard.workbench.bench.write import table, write_bench
    from blockyard.workbench.shellwords import command_line

    config = DecodeBenchConfig(**read_flat(arguments, options_of(DecodeBenchConfig)))
    # Before minutes of measuring, not after.
    require("matplotlib", extra="report")
    changed = [(f.name, getattr(config, f.name)) for f in fields(config) if getattr(config, f.name) != f.default]
    changed += [("plugin", module) for module in arguments.plugin] + [("out", arguments.out)]
    bench = bench_decode(
        config,
        command=command_line("blockyard bench decode", changed),
        say=lambda line: print(f"measuring: {line}", file=sys.stderr, flush=True),
    )
    files = write_bench(bench, Path(arguments.out))
    print_table(bench["title"], *table(bench, brief=True))
    print(files["html"])
    return 0


COMMAND = Command(
    "bench decode", "time and cache bytes of one more token, over context length and batch", add_arguments, run,
    order=40, example="blockyard bench decode --blocks 'standard;standard[n_kv_heads=2];tva' --contexts 512,4096",
)  # fmt: skip
