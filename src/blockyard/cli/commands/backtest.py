"""`blockyard backtest`: a trained forecaster walked forward over a file, beside baselines."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import at_least


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.price_files import add_files
    from blockyard.cli.settings import add_flat
    from blockyard.registry.options import options_of
    from blockyard.tasks.price.backtest import BacktestConfig

    parser.plain(
        "--out",
        "folder of the tear sheet, tables and plots; by default RUN/backtest, or RUN/backtest-2 … "
        "where that holds one with other settings",
        metavar="DIR",
    )
    parser.plain(
        "--from",
        "judge forecasts made after this date; by default after what training used",
        dest="start",
        metavar="DATE",
    )
    parser.plain("--folds", "stretches before each of which baselines are fitted anew (4)", type=int, default=4)
    parser.plain("--retrain", "train the model anew before each fold, too", action="store_true")
    add_flat(parser, "positions", "how forecasts become positions", options_of(BacktestConfig))
    add_files(parser, "to walk over")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.console import say
    from blockyard.cli.price_files import read_files
    from blockyard.cli.settings import read_flat
    from blockyard.errors import MissingExtra
    from blockyard.files import check_writable, without_nan, write_atomically
    from blockyard.registry.options import options_of
    from blockyard.tasks.price.backtest import HOLD, BacktestConfig, backtest_table
    from blockyard.tasks.price.backtest_folder import RESULTS, BacktestSpec, folder_for
    from blockyard.tasks.price.finish import save_summary
    from blockyard.tasks.price.forecaster import write_table
    from blockyard.tasks.price.sheet import headline, write_sheet
    from blockyard.tasks.price.summary import evaluation_table
    from blockyard.tasks.price.walk import walk_forward

    given = read_flat(arguments, options_of(BacktestConfig))
    config = BacktestConfig(**given)
    at_least(1, **{"--folds": arguments.folds})
    folder, prices, _ = read_files(arguments, "backtest")
    spec = BacktestSpec(config, prices.fingerprint(), arguments.start, arguments.folds, arguments.retrain)
    out = Path(arguments.out) if arguments.out else folder_for(folder, spec)
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
    write_atomically(out / RESULTS, json.dumps(without_nan(found.earned), indent=1) + "\n")
    if found.weights is not None:
        write_table(found.weights, out / "weights.csv")
    else:
        # Those of an earlier backtest into the same folder are not this one's.
        (out / "weights.csv").unlink(missing_ok=True)
    spec.save(out)
    print(prices.report())
    for note in found.notes:
        print(f"note: {note}")
    print("\n" + evaluation_table(found.summary))
    print(f"\n{config.describe()}; no forecast here is advice\n{backtest_table(found.earned)}")
    record = {
        "model": found.name,
        "horizon": config.horizon,
        "rule": config.describe(),
        "target": config.target_volatility,
        "source": prices.source,
        "settings": spec.words((found.earned[HOLD] or {})["steps_per_year"]),
        "data": prices.report().splitlines(),
        "notes": found.notes,
        "summary": without_nan(found.summary),
        "earned": without_nan(found.earned),
        "command": _command(arguments, given),
    }
    print("\n" + headline(record))
    try:
        print(write_sheet(record, out))
    except MissingExtra as error:
        print(f"no tear sheet: {error}")
    print(out)
    return 0


def _command(arguments: argparse.Namespace, given: dict[str, Any]) -> str:
    """Return the command as it is typed, but for what is a default."""
    from blockyard.cli.settings import given_words
    from blockyard.report.units import command_line

    words = ["blockyard backtest", shlex.quote(arguments.run), *map(shlex.quote, arguments.files)]
    options: list[tuple[str, Any]] = [("from", arguments.start)] if arguments.start else []
    options += [("folds", arguments.folds), *given.items()]
    options += [(f"{word.group}.{word.key}", word.value) for word in given_words(arguments) if word.group == "data"]
    options += [("out", arguments.out)] if arguments.out else []
    return command_line(" ".join(words), options) + " --retrain" * arguments.retrain


COMMAND = Command(
    "backtest",
    "walk-forward evaluation of a price forecaster beside baselines",
    add_arguments,
    run,
    order=24,
    builds=True,
    common=(
        "--out",
        "--from",
        "--folds",
        "--retrain",
        "--rule",
        "--lag",
        "--cost",
        "--horizon",
        "--data.date_column",
        "--data.price_column",
    ),
    example="blockyard backtest runs/prices prices.csv --folds 4 --rule volatility",
)
