"""Keeping freed memory."""

from __future__ import annotations

from blockyard.training.allocator import keep_freed_memory


def test_keeping_freed_memory_never_fails() -> None:
    assert keep_freed_memory() in (True, False)
