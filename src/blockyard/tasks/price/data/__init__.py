"""Prices in, windows without leaks out.

Files, in reading order:

    table.py        Asset and Prices: series in memory; rhythm.py: their step, sessions and holes
    steps.py        which returns are of a step, of a night, of a hole
    config.py       PriceDataConfig: what to read, how strictly, where the parts part
    reader.py       from sources to Prices, by the steps below
    dialect.py      encoding and separator, told by the bytes
    header.py       where the names stand; shapes.py: tables without any, known by their shape
    sources.py      files and frames as tables with plain names; workbook.py: Excel's
    numbers.py      1,234.5 and 1.234,5, 1.25M, 0.45%; kinds.py: what a cell looks like; units.py: times as numbers
    columns.py      which column plays which part; names.py: the spellings
    reading.py      one asset's rows, and the line that names a wrong one
    clock.py        when they are, on the file's own clock
    checks.py       what is refused, in one line with file, row and column
    features.py     features of row t, known at its close, and targets, which look ahead
    covariates.py   features of columns beside prices: in units of price, known in advance, of the asset
    windows.py      training, validation and test parts by date, purged, and the windows that a model is fed
    leakage.py      does anything look ahead? the future changed, the past compared

Nothing is read by a guess that the rows do not bear out: what cannot be known is refused, with the option that says it.
Their names are offered by blockyard.tasks.price. How leaks are kept out: docs/prices.md.
"""
