"""tasks/lm."""
