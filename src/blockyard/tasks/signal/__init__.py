"""tasks/signal."""
