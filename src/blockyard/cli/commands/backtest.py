"""`blockyard backtest`: a trained forecaster walked forward over a file, beside baselines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import at_least


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.price_files import add_files
    from blockyard.cli.settings import add_flat
    from blockyard.registry.options import options_of
    from blockyard.tasks.price.backtest import BacktestConfig

    parser.plain("--out", "folder of the tables and plots; RUN/backtest when not given", metavar="DIR")
    parser.plain("--from", "judge forecasts made after this date; by default after what training used",
                 dest="start", metavar="DATE")  # fmt: skip
    parser.plain("--folds", "stretches before each of which baselines are fitted anew (4)", type=int, default=4)
    parser.plain("--retrain", "train the model anew before each fold, too", action="store_true")
    add_flat(parser, "how forecasts become positions", options_of(BacktestConfig))
    add_files(parser, "to walk over")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.console import say
    from blockyard.cli.price_files import read_files
    from blockyard.cli.settings import read_flat
    from blockyard.files import check_writable, without_nan, write_atomically
    from blockyard.registry.options import options_of
    from blockyard.tasks.price.backtest import BacktestConfig, backtest_table
    from blockyard.tasks.price.finish import save_summary
    from blockyard.tasks.price.summary import evaluation_table
    from blockyard.tasks.price.walk import walk_forward

    config = BacktestConfig(**read_flat(arguments, options_of(BacktestConfig)))
    at_least(1, **{"--folds": arguments.folds})
    folder, prices, _ = read_files(arguments, "backtest")
    out = Path(arguments.out) if arguments.out else folder / "backtest"
    check_writable(out, folder=True)
    found = walk_forward(
        folder,
        prices,
        config,
        start=arguments.start,
        folds=arguments.folds,
        retrain=arguments.retrain,
        out=out,
        trust=arguments.trust,
        say=say,
    )
    save_summary(found.summary, found.name, out)
    write_atomically(out / "backtest.json", json.dumps(without_nan(found.earned), indent=1) + "\n")
    print(prices.report())
    for note in found.notes:
        print(f"note: {note}")
    print("\n" + evaluation_table(found.summary))
    rule = f"rule {config.rule}, horizon {config.horizon}, lag {config.lag}, cost {config.cost:g} per unit traded"
    print(f"\n{rule}; no forecast here is advice\n{backtest_table(found.earned)}\n{out}")
    return 0


COMMAND = Command(
    "backtest", "walk-forward evaluation of a price forecaster beside baselines", add_arguments, run, order=24,
    builds=True, example="blockyard backtest runs/prices prices.csv --folds 4 --rule volatility",
)  # fmt: skip
