"""tasks/classify."""
