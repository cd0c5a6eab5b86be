"""Every option of every command on bad values: one line, status 2, and nothing left behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("optuna")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from blockyard.cli import main
from blockyard.cli.console import LONGEST_LINE
from blockyard.cli.finding import command_names, load_command
from blockyard.cli.parser import Parser
from blockyard.tasks.run import train
from tests.fixtures.contents import FIRST
from tests.fixtures.malicious import groups_of, inputs

QUICK, FULL = 150, 1_000
SECONDS = 60
# Values for whatever option: of no type, of the wrong size, or such as no file, block or device has.
VALUES = (
    "", "abc", "-1", "0", "1e999", "nan", "-inf", "9" * 5000, str(2**62), str(2**64), str(10**12), "1,2,x", "none",
    "true", "standard[window=8,window=9]", "standard[[", "standard*99999", "x" * 100_000, "\udcff\x1b[31m", "~nosuch/a",
    "a\nb",
    "/dev/null/a", "/", ".", "é×盘", "a.xyz", "--", "[", "{a: ", "cuda:99", "2024-99-99", "1-2-3", ",", ";",
    "/proc/self/mem",
)  # fmt: skip
# What makes a line of the command wrong whatever else it says, so that nothing is ever trained or measured here.
WRONG: dict[str, tuple[str, ...]] = {
    "train": ("--data.path=missing",), "tune": ("--data.path=missing", "--over=train.lr=1e-3,1e-2"),
    "compare": ("--data.path=missing", "--blocks=standard"), "bench": ("--device=nosuch",),
    "check": ("nosuch.module:Class",), "symmetry": ("nosuch",), "info": ("nosuch",), "list": ("--nosuch",),
    "generate": ("missing",), "classify": ("missing", "missing.csv"), "forecast": ("missing",),
    "backtest": ("missing",), "claims": ("nosuch",), "data": ("missing",), "import": ("missing", "--out=made"),
    "export": ("missing", "--out=made"), "transplant": ("missing", "--out=made", "--blocks=standard[window=4]"),
    "completion": ("nosuch",), "demo": ("--open=nosuch",), "schema": ("nosuch",),
}  # fmt: skip
# Tasks whose data are made up: a size that no option may have.
WRONG_RECALL, FILES_OF = ("--data.task=nosuch",), ("generate", "classify", "forecast", "backtest")


def options_of_command(name: str) -> list[str]:
    """Every option that the command declares, as the command line builds it."""
    command = load_command(name)
    command.prepare([])
    parser = Parser(command.name, command.summary)
    command.add_arguments(parser)
    found = [option for option in parser._option_string_actions if option.startswith("--") and option != "--help"]
    return [*found, "--plugin", *(["--force"] if command.builds else [])]


OPTIONS = {name: options_of_command(name) for name in command_names()}


@st.composite
def lines(draw: st.DrawFn, runs: dict[str, Path]) -> list[str]:
    """A command line that is wrong at least at its end."""
    name = draw(st.sampled_from(sorted(OPTIONS)))
    verb = name.split()[0]
    words = name.split()
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from(OPTIONS[name]))
        value = draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=12).filter(lambda text: "\0" not in text)))
        words += [f"{option}={value}"] if draw(st.integers(0, 9)) else [option]
    if verb in FILES_OF and draw(st.booleans()):
        # A run that is there, of this task or of another, and a file that is none.
        return [*words, str(draw(st.sampled_from(sorted(runs.values())))), "broken.csv"]
    if name.endswith(("recall",)) or (verb == "train" and name.endswith("signal")):
        return [*words, *(WRONG_RECALL if name.endswith("recall") else ("--data.path=missing",)), *WRONG[verb][1:]]
    if not WRONG[verb][0].startswith("-"):
        # In front: behind an option without a value it would be taken for that.
        return [*name.split(), *WRONG[verb], *words[len(name.split()) :]]
    return [*words, *WRONG[verb]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    harmless = inputs(tmp_path_factory.mktemp("inputs"))
    for task in ("lm", "classify", "price"):
        train(groups_of(task, harmless, folder / "cache"), folder / task, task=task)
    return {task: folder / task for task in ("lm", "classify", "price")}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    path, threads = list(sys.path), torch.get_num_threads()
    yield
    sys.path[:] = path
    torch.set_num_threads(threads)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(words: list[str], folder: Path) -> str:
    """Run a line that must be refused; what is wrong with how it was, or ""."""
    before, said, told = files_below(folder), io.StringIO(), io.StringIO()

    def hangs(*_: Any) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            status = main(words)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:600]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    error = told.getvalue()
    left = files_below(folder) - before
    if status != 2:
        return f"status {status}: {error[-300:]} {said.getvalue()[-300:]}"
    if not re.fullmatch(r"error: .+\n", error) or len(error) > LONGEST_LINE + 8 or not error[:-1].isprintable():
        return f"not one line: {error[:600]!r}"
    return f"left behind: {sorted(left)}" if left else ""


@pytest.mark.parametrize("count", [QUICK, pytest.param(FULL, marks=pytest.mark.slow)])
def test_a_bad_line_is_refused_in_one_line(
    count: int, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "broken.csv").write_bytes(b"\xff\0")
    wrong: list[str] = []
    tried = 0

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )  # fmt: skip
    @given(lines(runs))
    def over(words: list[str]) -> None:
        nonlocal tried
        tried += 1
        if trouble := refused(words, folder):
            wrong.append(f"{[word[:80] for word in words]}: {trouble}")

    over()
    assert tried >= count
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("content", [FIRST[n] for n in (0, 4, 6, 8, 9, 12)], ids=lambda data: repr(data[:12]))
@pytest.mark.parametrize("command", ["train lm", "compare lm", "tune lm"])
def test_a_bad_settings_file_is_one_line(
    command: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "a.yaml").write_bytes(content)
    verb = command.split()[0]
    assert refused([*command.split(), "--config", "a.yaml", *WRONG[verb]], folder) == ""


def test_every_command_and_option_is_covered() -> None:
    assert len(OPTIONS) >= 26 and {name.split()[0] for name in OPTIONS} == set(WRONG)
    assert sum(map(len, OPTIONS.values())) > 900
