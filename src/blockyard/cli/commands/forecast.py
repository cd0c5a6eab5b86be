"""`blockyard forecast`: the next steps of a file of prices, as quantiles."""

from __future__ import annotations

import argparse
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError

# What figures are written as.
PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.price_files import add_files

    parser.plain("--out", "the table: .csv or .parquet", metavar="FILE", default="forecast.csv")
    parser.plain(
        "--at", "forecast from this date on, and look at no later row; by default from the last one", metavar="DATE"
    )
    parser.plain(
        "--plot",
        "picture of the fans (.png, .svg, .pdf); by default beside the table; none draws nothing",
        metavar="FILE",
    )
    add_files(parser, "to forecast")


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from blockyard.cli.console import say
    from blockyard.cli.price_files import read_files
    from blockyard.errors import MissingExtra
    from blockyard.files import check_writable
    from blockyard.tasks.price.data.clock import in_zone
    from blockyard.tasks.price.forecaster import future_table, load_forecaster, write_table

    out = Path(arguments.out)
    if out.suffix.lower() not in (".csv", ".parquet", ".pq"):
        raise InputError(f"--out={arguments.out} should end in .csv or .parquet")
    plot = None if arguments.plot == "none" else Path(arguments.plot) if arguments.plot else out.with_suffix(".png")
    check_writable(out)
    if plot is not None:
        check_writable(plot)
        if plot.suffix.lower() not in PICTURES:
            raise InputError(f"--plot={arguments.plot} should end in one of {', '.join(PICTURES)}")
    folder, prices, config = read_files(arguments, "forecast")
    forecaster, seen, _ = load_forecaster(folder, trust=arguments.trust)
    for note in seen.unlike(prices):
        say(f"note: {note}")
    frame = future_table(forecaster, prices, arguments.at, calendar=config.calendar)
    write_table(frame, out)
    print(frame.to_string(index=False, max_rows=40, float_format=lambda v: f"{v:.5g}"))
    print(out)
    drawn = [f"q{level:g}" for level in forecaster.config.quantiles if f"q{level:g}" in frame]
    if plot is None or not drawn:
        return 0
    histories = {}
    for asset in prices.assets:
        cutoff = frame.loc[frame["unique_id"] == asset.unique_id, "cutoff"].iloc[0]
        known = in_zone(asset.ds, asset.zone) <= (np.datetime64(cutoff, "ns") if asset.dated else cutoff)
        histories[asset.unique_id] = asset.close[known][-90:].tolist()
    try:
        from blockyard.tasks.price.charts import save_fans

        print(save_fans(frame, histories, forecaster.config.quantiles, plot))
    except MissingExtra as error:
        if arguments.plot:
            raise
        print(f"no plot: {error}")
    return 0


COMMAND = Command(
    "forecast",
    "quantile forecasts of prices, as a table and a plot",
    add_arguments,
    run,
    order=22,
    builds=True,
    common=("--out", "--at", "--plot", "--data.date_column", "--data.price_column", "--data.decimal"),
    example="blockyard forecast runs/prices prices.csv --out forecast.csv",
)
