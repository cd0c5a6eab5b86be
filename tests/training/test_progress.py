"""Progress: plain lines, or a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from blockyard.training.progress import Bar, Lines, make_progress


def test_plain_lines_name_step_loss_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = make_progress(10, shown=True)
    assert isinstance(progress, Lines)
    progress.update(10, {"loss": 1.5, "tokens_per_second": 1234.0})
    assert "step 10/10" in stream.getvalue() and "loss 1.5000" in stream.getvalue()
    assert "1,234 tokens/s" in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    progress = make_progress(10, shown=True)
    assert isinstance(progress, Bar)
    progress.update(3, {"loss": 1.5, "tokens_per_second": 1234.0})
    progress.say("a line that stays")
    progress.close()
    assert "1.5000" in stream.getvalue() and "a line that stays" in stream.getvalue()
