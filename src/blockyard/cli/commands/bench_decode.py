"""`blockyard bench decode`: time and bytes of one more token, for every mixer that has a cache."""

from __future__ import annotations

import argparse

from blockyard.cli.benches import add_bench_arguments, run_bench
from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

FOLDER = "bench-decode"


def add_arguments(parser: Parser) -> None:
    from blockyard.bench.decode import DecodeBenchConfig

    add_bench_arguments(parser, DecodeBenchConfig, FOLDER)


def run(arguments: argparse.Namespace) -> int:
    from blockyard.bench.decode import DecodeBenchConfig, bench_decode

    return run_bench(arguments, COMMAND.name, DecodeBenchConfig, bench_decode)


COMMAND = Command(
    "bench decode",
    "time and cache bytes of one more token, over context length and batch",
    add_arguments,
    run,
    order=40,
    builds=True,
    example="blockyard bench decode --blocks 'standard;standard[n_kv_heads=2];tva' --contexts 512,4096",
)
