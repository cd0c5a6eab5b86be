"""What tests of comparisons share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blockyard.compare import measure
from blockyard.report import html, write
from blockyard.report import text as report_text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One thread, measuring loops that only prove that they run, and reports without figures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    monkeypatch.setattr(measure, "DECODE_ROUNDS", 1)
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    yield
    torch.set_num_threads(threads)
