"""tasks/recall."""
