"""`make bench-check` tells a loss from noise, compares what is comparable, and keeps a history that can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bench_check
from bench_check import HISTORY, Row, main, names, newest, peer_of, read_history, word
from blockyard.errors import InputError

OLD = Row("train tva+relu2", "train plain", 0.8, 0.79, 0.82, 6, "Processor A", "2.13.0", "abc", "2030-01-31")


def times(factor: float, **other: str) -> Row:
    """A row like the old one whose time is so many times as long."""
    return OLD._replace(ratio=OLD.ratio * factor, low=OLD.low * factor, high=OLD.high * factor, **other)  # type: ignore[arg-type]


def write_history(folder: Path, *rows: Row) -> Path:
    path = folder / "history.jsonl"
    path.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    return path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """What successive measurements give, the first first; on a commit as it stands."""
    found: list[list[Row]] = []
    monkeypatch.setattr(bench_check, "measure", lambda asked, starts: found.pop(0))
    monkeypatch.setattr(bench_check, "commit", lambda: "def")
    return found


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.03, 1.2, "worse"),
        (1.01, 1.2, "undecided"),
        (0.9, 1.1, "undecided"),
        (0.985, 1.015, "equivalent"),
        (0.9, 0.97, "better"),
        (0.9, 0.99, "undecided"),
    ],
)
def test_the_word_follows_from_the_interval_and_not_from_a_point(low: float, high: float, said: str) -> None:
    assert word(low, high) == said


def test_a_loss_that_two_measurements_see_ends_with_status_1(tmp_path, measured, capsys) -> None:
    measured += [[times(1.2)], [times(1.15)]]
    assert main(["--history", str(write_history(tmp_path, OLD))]) == 1
    assert "slower than recorded: train tva+relu2" in capsys.readouterr().out


def test_a_loss_that_the_second_measurement_does_not_see_is_none(tmp_path, measured, capsys) -> None:
    measured += [[times(1.2)], [times(1.0)]]
    assert main(["--history", str(write_history(tmp_path, OLD))]) == 0
    assert "slower than recorded" not in capsys.readouterr().out


@pytest.mark.parametrize(("factor", "said"), [(0.8, "better"), (1.01, "undecided")])
def test_what_is_no_loss_is_measured_once(tmp_path, measured, capsys, factor: float, said: str) -> None:
    measured.append([times(factor)])
    assert main(["--history", str(write_history(tmp_path, OLD))]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(said)


@pytest.mark.parametrize(
    "other", [{"processor": "Processor B"}, {"name": "train mla+relu2"}, {"peer": "train standard+relu2"}]
)
def test_only_the_same_figure_of_the_same_processor_is_compared_with(tmp_path, measured, capsys, other) -> None:
    measured.append([times(2.0, **other)])
    assert main(["--history", str(write_history(tmp_path, OLD))]) == 0
    assert "nothing to compare 1 of 1 figures with" in capsys.readouterr().out


def test_the_newest_record_counts() -> None:
    assert newest([OLD, times(1.5, commit="later")], OLD).commit == "later"  # type: ignore[union-attr]
    assert newest([], OLD) is None


def test_another_torch_is_said(tmp_path, measured, capsys) -> None:
    measured.append([times(0.5, torch="3.0")])
    assert main(["--history", str(write_history(tmp_path, OLD))]) == 0
    assert "but with torch 2.13.0, now 3.0" in capsys.readouterr().out


def test_record_appends_and_keeps_what_was_there(tmp_path, measured) -> None:
    path = write_history(tmp_path, OLD)
    measured.append([times(0.9, commit="def")])
    assert main(["--history", str(path), "--record"]) == 0
    assert [row.commit for row in read_history(path)] == ["abc", "def"]


@pytest.mark.parametrize("state", ["", "abc+"])
def test_what_no_commit_has_is_not_recorded(tmp_path, measured, monkeypatch, capsys, state: str) -> None:
    monkeypatch.setattr(bench_check, "commit", lambda: state)
    assert main(["--history", str(tmp_path / "none.jsonl"), "--record"]) == 2
    assert "commit the changes" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", json.dumps(OLD._asdict() | {"extra": 1}), json.dumps(OLD._asdict() | {"low": 9})]
)
def test_a_damaged_history_is_one_line_with_its_number(tmp_path: Path, line: str) -> None:
    path = write_history(tmp_path, OLD)
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError, match="line 2 is no row of the history"):
        read_history(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--only", "tav"], "did you mean 'tva'?"), (["--starts", "5"], "--starts 5 should be at least 6")],
)
def test_bad_words_are_one_line(words: list[str], said: str, capsys) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_history_holds_every_figure_of_each_processor() -> None:
    rows = read_history(HISTORY)
    assert rows
    for processor in {row.processor for row in rows}:
        assert {row.name for row in rows if row.processor == processor} >= set(names())
    assert all(row.starts >= 6 and row.commit for row in rows)
    # What is measured now stands beside torch's own operations, on a processor whose family is told.
    now = [row for row in rows if "family" in row.processor]
    assert now and all(row.peer == peer_of(row.name) for row in now)


def test_a_step_of_every_kind_is_timed_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_check, "ROUNDS", 1)
    monkeypatch.setattr(bench_check, "ROUND_SECONDS", 1e-9)
    found = bench_check.measure_once(["train standard+vft", "decode standard+relu2"])
    assert found.keys() == {"train standard+vft", "decode standard+relu2"} and all(v > 0 for v in found.values())
