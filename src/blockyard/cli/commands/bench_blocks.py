"""`blockyard bench blocks`: time, FLOPs and memory of whole sequences, for every causal mixer."""

from __future__ import annotations

import argparse

from blockyard.cli.benches import add_bench_arguments, run_bench
from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

FOLDER = "bench-blocks"


def add_arguments(parser: Parser) -> None:
    from blockyard.bench.blocks import BlocksBenchConfig

    add_bench_arguments(parser, BlocksBenchConfig, FOLDER)


def run(arguments: argparse.Namespace) -> int:
    from functools import partial

    from blockyard.bench.blocks import BlocksBenchConfig, bench_blocks

    measure = partial(bench_blocks, plugins=tuple(arguments.plugin))
    return run_bench(arguments, COMMAND.name, BlocksBenchConfig, measure)


COMMAND = Command(
    "bench blocks",
    "time, FLOPs and memory of whole sequences, forward and backward, over their length",
    add_arguments,
    run,
    order=41,
    purpose="compare",
    builds=True,
    example="blockyard bench blocks --blocks 'standard;tva+vft' --part layer --lengths 128,1024",
)
