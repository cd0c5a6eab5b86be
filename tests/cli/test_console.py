"""The edge of every command: streams of any encoding or none, odd environments, and errors of one readable line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from blockyard.cli import main
from blockyard.cli.console import LONGEST_LINE, minding_interrupts, one_line
from blockyard.errors import InputError
from blockyard.files import cache_home, user_path
from blockyard.registry import register as registry
from blockyard.registry.options import MOST_THREADS
from blockyard.tasks import kind as kinds
from blockyard.training.distributed import join_ranks


def process(words: list[str], shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, with redirections of the shell's."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    line = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-m", "blockyard", *words]
    return subprocess.run(line, capture_output=True, text=True, env=env, timeout=120)


def written(monkeypatch: pytest.MonkeyPatch, encoding: str, words: list[str]) -> str:
    """What a command writes to a stream of an encoding."""
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(words) == 0
    assert sys.stdout is stream and stream.errors == "strict"
    return buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "utf-16"])
def test_a_console_that_is_not_utf8_shows_readable_signs(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    whole = written(monkeypatch, "utf-8", ["info", "tva"])
    shown = written(monkeypatch, encoding, ["info", "tva"])
    assert not whole.isascii()
    assert shown == whole if encoding == "utf-16" else shown.isascii()
    assert shown.count("\n") == whole.count("\n")
    assert shown.count("?") == whole.count("?")


def test_letters_stay_where_the_encoding_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from blockyard.cli.console import tolerant_streams, write_as_it_is

    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="cp1252"))
    with tolerant_streams():
        print("größe × 2 → Łódź 盘 \udcff")
        write_as_it_is("größe × 2\n")
    assert buffer.getvalue().decode("cp1252") == "größe x 2 -> ?ódz ? ?\ngröße × 2\n"


def test_closed_streams_and_a_closed_reader_leave_no_traceback() -> None:
    assert process(["--version"], ">&-").returncode == 0
    told = process(["trian"], "2>&-")
    assert (told.returncode, told.stdout, told.stderr) == (2, "", "")
    told = process(["trian"], "<&- >&-")
    assert told.returncode == 2 and told.stderr.startswith("error: no command named 'trian'")
    told = process(["--help"], "| true")
    assert told.stderr == ""


def test_a_file_does_not_take_the_number_of_a_closed_output(tmp_path: Path) -> None:
    """With descriptor 1 free, the next file opened would receive what is printed."""
    code = (
        "import os, sys\nfrom blockyard.cli.console import fill_descriptors\nfill_descriptors()\n"
        f"file = open({str(tmp_path / 'data')!r}, 'w')\nprint('a result')\nos.write(1, b'a result')\n"
        "sys.exit(0 if file.fileno() > 2 else 1)"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0
    assert (tmp_path / "data").read_text() == ""


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment's WORLD_SIZE='abc' should be a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "the environment's WORLD_SIZE='0' should be a whole number of at least 1"),
        ({"RANK": "abc"}, "the environment's RANK='abc' should be a whole number of at least 0"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK=5 should be below WORLD_SIZE=2; torchrun sets both"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK='-1' should be a whole number of at least 0"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 without MASTER_ADDR"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "70000"},
            "MASTER_PORT='70000' should be a port",
        ),
    ],
)
def test_an_odd_launch_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as told:
        join_ranks("cpu")
    assert line in str(told.value)


def test_an_error_is_heard_whatever_rank_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("abc", "3"):
        # Without WORLD_SIZE it is one process, and nobody else would say it.
        monkeypatch.setenv("RANK", value)
        assert main(["trian"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_number_of_threads_that_kills_the_process_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(MOST_THREADS + 1))
    assert main(["--version"]) == 2
    assert "OMP_NUM_THREADS=4097 should be at most 4096" in capsys.readouterr().err


def test_homes_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'~nosuch/a': there is no such home folder"):
        user_path("~nosuch/a")
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.delenv("BLOCKYARD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "blockyard"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match="set HOME, or BLOCKYARD_CACHE"):
        cache_home()


def test_an_error_line_is_short_and_steers_no_terminal() -> None:
    assert one_line("a  b\n  c") == "a  b c"
    assert one_line("\x1b[31mred\x07 \u202e \udcff") == r"\x1b[31mred\x07 \u202e \udcff"
    line = one_line("x" * 100_000 + " should be int")
    assert len(line) == LONGEST_LINE and line.endswith("x should be int")
    assert len(one_line("\udcff" * 500)) == LONGEST_LINE


def test_running_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from blockyard.cli import app

    for work in (lambda words: torch.empty(1 << 60), lambda words: bytearray(1 << 60)):
        monkeypatch.setattr(app, "dispatch", work)
        assert main(["list"]) == 2
        assert capsys.readouterr().err.startswith("error: out of memory")

    def faulty(words: list[str]) -> int:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(app, "dispatch", faulty)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        main(["list"])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed plug-in of every kind that fails when it is imported."""
    (tmp_path / "brk.py").write_text("raise RuntimeError('my own build is broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    # All that is built in first: what is loaded into a register that is thrown away would not come again.
    for kind in registry.BUILTIN:
        registry.entries(kind)
    monkeypatch.setattr(registry, "_register", registry._Register(dict(registry._register.entries)))

    def installed(group: str, path: Any = None) -> tuple[metadata.EntryPoint, ...]:
        return (metadata.EntryPoint("brk", "brk:Mixer", group),)

    monkeypatch.setattr(registry, "_installed", installed)
    monkeypatch.setattr(kinds.metadata, "entry_points", installed)


@pytest.mark.usefixtures("broken")
def test_a_broken_installed_plugin_is_named_once_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    told = capsys.readouterr()
    assert "standard" in told.out and "brk" not in told.out
    assert sorted(told.err.splitlines()) == [
        f"note: {word} 'brk' (brk:Mixer) cannot be imported: RuntimeError: my own build is broken; it is left out"
        for word in ("FFN", "attention")
    ]
    for words in (["train", "lm", "--help"], ["info", "standard"], ["tune", "lm", "--help"]):
        assert main(words) == 0
    assert capsys.readouterr().err == ""
    assert "brk" not in registry.list_attention()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("words", [["train", "brk"], ["train", "lm", "--attn.impl", "brk"]], ids=" ".join)
def test_a_broken_plugin_that_is_asked_for_is_an_error(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "'brk' (brk:Mixer) cannot be imported: RuntimeError" in error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_not_lost():
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), minding_interrupts() as check:
            check()
            Finalised()  # its KeyboardInterrupt goes nowhere
            check()
        with pytest.raises(KeyboardInterrupt), minding_interrupts():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
