"""`blockyard demo`: its terms, its words when it is stopped, and when a browser is opened."""

from __future__ import annotations

import importlib.util
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from blockyard.cli import browser, main
from blockyard.cli.commands import demo
from blockyard.compare import stages
from blockyard.compare.settings import CompareConfig
from blockyard.registry.pattern import parse_choice
from blockyard.training.interrupt import Interrupted
from tests.fixtures.cli import error_of

REPORT: Any = {"verdict": {"headline": "standard is ahead."}}


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let the stages end as a test wants; the demo writes below a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def let(end: BaseException | None = None, pages: int = 1) -> None:
        def stand_in(
            task: str, config: CompareConfig, groups: Any, out: Path, few: Any, told: Any, only_first: bool
        ) -> None:
            for page in range(1 if only_first else pages):
                out.mkdir(parents=True, exist_ok=True)
                (out / "report.html").write_text("a page")
                told(REPORT, "more" if end or page < pages - 1 else "")
            if end:
                raise end

        monkeypatch.setattr(stages, "compare_in_stages", stand_in)

    return let


def test_the_terms_are_six_choices_and_those_of_the_first_answer_among_them() -> None:
    config, groups = demo.demo_terms()
    assert len([parse_choice(name) for name in config.names]) == 6
    assert set(demo.FEW) < set(config.names) and config.names[0] == demo.FEW[0]
    assert (config.seeds, config.budget_unit, config.budget_value, config.match) == (3, "tokens", 300_000, "params")
    assert groups["model"] == {"d_model": 128, "n_layers": 4, "n_heads": 4, "context": 64}


def test_what_is_missing_is_told_in_one_line(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in ("rich", "scipy") else found(n))
    assert error_of(capsys, "demo") == "not installed: rich, scipy; run: pip install 'blockyard[train,report]'"
    assert list(tmp_path.iterdir()) == []


def test_bad_values_are_told_before_anything_begins(staged, capsys, tmp_path) -> None:
    staged()
    assert (
        error_of(capsys, "demo", "--open", "maybe")
        == "--open: invalid choice: 'maybe' (choose from 'auto', 'yes', 'no')"
    )
    (tmp_path / "file").write_text("")
    assert "file" in error_of(capsys, "demo", "--out", "file")


@pytest.mark.parametrize("end", [Interrupted(2, "stopped and saved"), KeyboardInterrupt()], ids=["saved", "between"])
@pytest.mark.parametrize("pages", [0, 1])
def test_stopped_it_names_the_best_report_and_the_line_that_goes_on(staged, capsys, end, pages) -> None:
    staged(end, pages)
    assert main(["demo", "--open", "no", "--out", "my demo"]) == 130
    told = capsys.readouterr().err
    assert "to go on: blockyard demo --out 'my demo' --open no\n" in told
    best = "the best report so far: my demo/report.html" if pages else "there is no report yet"
    assert f"\n{best}\n" in told


def test_the_answer_and_the_path_are_printed_after_every_stage(staged, capsys) -> None:
    staged(pages=2)
    assert main(["demo"]) == 0
    out, told = capsys.readouterr()
    assert out == "runs/demo/report.html\n"
    assert told.count("standard is ahead.\n") == 2
    assert "so far: runs/demo/report.html\nnow: more\n" in told and "all of it: runs/demo/report.html\n" in told


def test_the_first_answer_alone_can_be_asked_for(staged, capsys) -> None:
    staged(pages=3)
    assert main(["demo", "--first"]) == 0
    out, told = capsys.readouterr()
    assert out == "runs/demo/report.html\n" and told.count("standard is ahead.") == 1
    assert told.endswith("to go on: blockyard demo\n")


def test_the_page_is_opened_once(staged, capsys, monkeypatch, tmp_path) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    staged(pages=3)
    assert main(["demo", "--open", "yes"]) == 0
    assert opened == [(tmp_path / "runs" / "demo" / "report.html").as_uri()]
    assert "opened in the browser; reload it when there is more\n" in capsys.readouterr().err


def test_no_browser_is_no_error(staged, capsys, monkeypatch) -> None:
    def fails(address: str) -> bool:
        raise webbrowser.Error("none")

    monkeypatch.setattr(webbrowser, "open", fails)
    staged()
    assert main(["demo", "--open", "yes"]) == 0
    assert "opened" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "terminal", "variables", "there"),
    [
        ("linux", True, {"DISPLAY": ":0"}, True),
        ("linux", True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", True, {}, False),
        ("linux", True, {"SSH_CONNECTION": "a"}, False),
        ("linux", False, {"DISPLAY": ":0"}, False),
        ("linux", True, {"DISPLAY": ":0", "CI": "true"}, False),
        ("darwin", True, {}, True),
        ("darwin", True, {"SSH_CONNECTION": "a"}, False),
    ],
)
def test_a_browser_is_opened_for_a_person_only(platform, terminal, variables, there, monkeypatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(browser.sys, "platform", platform)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    assert browser.is_somebody_there() is there
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert browser.open_page(Path("page.html"), "auto") is there and len(opened) == there
    assert browser.open_page(Path("page.html"), "no") is False and len(opened) == there
