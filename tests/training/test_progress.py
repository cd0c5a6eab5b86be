"""Progress: plain lines, or a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from blockyard.training import progress as progress_module
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


def test_the_time_left_is_that_of_steps_and_not_of_what_came_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of compiling before the first line says nothing of the steps that follow."""
    clock = iter([0.0, 60.0, 75.0, 90.0, 95.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Lines(100)
    for step in (10, 25, 40, 100):
        progress.update(step, {})
    assert stream.getvalue().splitlines() == [
        "step 10/100",
        "step 25/100  1:15 left",
        "step 40/100  1:00 left",
        "step 100/100  0:00 left",
    ]
