"""Prices in, windows without leaks out: reader, validator, features, targets, purged splits, the look-ahead check."""
