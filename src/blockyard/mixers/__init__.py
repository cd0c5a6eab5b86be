"""Mixers: modules that move information between positions, behind one protocol (`blockyard.mixers.base`)."""
