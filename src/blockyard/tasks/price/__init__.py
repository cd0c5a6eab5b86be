"""tasks/price."""
