"""tasks/price/data."""
