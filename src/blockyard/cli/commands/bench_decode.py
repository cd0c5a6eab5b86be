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
    parser.plain("--run", "take blocks, d_model and n_heads from this run, which may be imported; whole layers are "
                 "timed unless --part says otherwise", metavar="DIR")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from blockyard.bench.decode import DecodeBenchConfig, bench_decode

    if arguments.run is not None:
        for flag, word in as_words(arguments.run).items():
            vars(arguments).setdefault(flag, word)
    return run_bench(arguments, COMMAND.name, DecodeBenchConfig, bench_decode)


def as_words(folder: str) -> dict[str, str]:
    """Return the shape of a run's model as words of this command; layers that differ are choices of their own."""
    from blockyard.tasks.run import read_run

    model = read_run(folder).model
    blocks = ";".join(dict.fromkeys(map(str, model.layers)))
    shape = {name: str(getattr(model, name)) for name in ("d_model", "n_heads")}
    return {f"--{name}": word for name, word in {"blocks": blocks, "part": "layer", **shape}.items()}


COMMAND = Command(
    "bench decode",
    "time and cache bytes of one more token, over context length and batch",
    add_arguments,
    run,
    order=40,
    purpose="compare",
    builds=True,
    example="blockyard bench decode --blocks 'standard;standard[n_kv_heads=2];tva' --contexts 512,4096",
)
