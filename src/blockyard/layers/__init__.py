"""Layers that mixers, FFNs and models are built from."""
