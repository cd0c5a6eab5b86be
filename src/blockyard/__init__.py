"""A yard of interchangeable Transformer blocks: one protocol, honest comparisons."""

__version__ = "0.1.0"
