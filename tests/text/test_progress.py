"""What is shown while a text is read, learnt from and encoded."""

from __future__ import annotations

import io
from pathlib import Path

from blockyard.text import TextDataConfig, load_text
from blockyard.text.progress import ReadingLines


def test_every_stage_tells_how_far_it_is(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the same few words and a few more " * 3000)
    told: list[tuple[str, int, int]] = []
    config = TextDataConfig(path=str(text), tokenizer="bpe", vocab_size=270, cache_dir=str(tmp_path / "cache"))
    load_text(config, 16, lambda what, done, total: told.append((what, done, total)))
    size = text.stat().st_size
    last = {what: (done, total) for what, done, total in told}
    assert last == {
        "reading": (size, 0),
        "counting words": (size, size),
        "learning merges": (269, 269),  # the 270th is the separator
        "encoding": (size, size),
    }


def test_lines_come_late_and_seldom(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    lines = ReadingLines(seconds=5.0, out=out)
    lines("reading", 1_000_000, 0)
    assert out.getvalue() == ""
    for second in range(1, 21):
        now[0] = float(second)
        if second <= 10:
            lines("reading", second * 30_000_000, 0)
        else:
            lines("encoding", (second - 10) * 40_000_000, 1_200_000_000)
    assert out.getvalue().splitlines() == [
        "reading: 150 MB",
        "reading: 300 MB",
        "encoding: 200 of 1,200 MB, 0:20 left",
        "encoding: 400 of 1,200 MB, 0:18 left",
    ]
