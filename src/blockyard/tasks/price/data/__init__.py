"""Prices in, windows without leaks out.

Files, in reading order:

    table.py        Asset and Prices: series in memory
    config.py       PriceDataConfig: what to read, how strictly, where the parts part
    reader.py       CSV, parquet, pandas and polars; columns.py: which column plays which part
    checks.py       what is refused, in one line with file, row and column
    features.py     features of row t, known at its close, and targets, which look ahead
    windows.py      training, validation and test parts by date, purged, and the windows that a model is fed
    leakage.py      does anything look ahead? the future changed, the past compared

Their names are offered by blockyard.tasks.price. How leaks are kept out: docs/prices.md.
"""
