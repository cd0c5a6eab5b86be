"""Rotary tables: what no memory holds is refused before it is tried."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.nn.rotary import RotaryPositionalEmbedding


@pytest.mark.parametrize("length", [1 << 40, 2**63 - 1])
def test_a_length_that_no_memory_holds_is_refused(length: int) -> None:
    """A run's files may name any length, and the system would end the process for it."""
    rope = RotaryPositionalEmbedding(10_000.0, 64)
    with pytest.raises(InputError, match=f"rotary tables of {length:,} positions take at least"):
        rope.prepare(length)


def test_a_model_that_is_only_counted_makes_no_tables() -> None:
    with torch.device("meta"):
        RotaryPositionalEmbedding(10_000.0, 64).prepare(1 << 40)
