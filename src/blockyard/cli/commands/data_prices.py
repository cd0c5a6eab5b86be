"""`blockyard data prices FILE`: what is understood of files of prices, before anything is trained on them."""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.price_files import groups
    from blockyard.cli.settings import add_groups

    parser.usage = "%(prog)s [FILE ...] [options]"
    parser.plain(
        "files", "CSV, Excel or parquet files of prices; the S&P 500 when not given", metavar="FILE", nargs="*"
    )
    parser.plain("--json", "print it as JSON", action="store_true")
    add_groups(parser, groups())


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.price_files import groups
    from blockyard.cli.settings import given_words, read_given
    from blockyard.tasks.price.data.config import PriceDataConfig
    from blockyard.tasks.price.data.reader import read_prices

    given = read_given(groups(), given_words(arguments))["data"]
    prices = read_prices(list(arguments.files) or None, PriceDataConfig(**given))
    if arguments.json:
        import json

        print(json.dumps(prices.as_dict()))
    else:
        print(prices.report())
    return 0


COMMAND = Command(
    "data prices",
    "what is understood of files of prices: columns, clock, step, sessions, holes",
    add_arguments,
    run,
    order=21,
    purpose="understand",
    example="blockyard data prices prices.csv",
)
