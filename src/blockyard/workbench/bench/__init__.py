"""Benchmarks of blocks: a shared timing core, subjects built from block choices, and what `bench` commands measure."""
