"""From words to a command, an exit status and at most one line of error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockyard.cli import main
from blockyard.cli.finding import command_names, load_command
from blockyard.cli.parser import Parser, underscored
from blockyard.errors import InputError
from blockyard.registry.builtin import TASKS
from tests.fixtures.cli import error_of


def test_top_level_help_imports_no_torch() -> None:
    script = (
        "import sys; from blockyard.cli import main; main(['--help']);"
        "sys.exit(any(name.split('.')[0] in ('torch', 'numpy', 'yaml', 'rich') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train lm" in done.stdout


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in command_names():
        assert f" {name} {load_command(name).summary}" in shown


@pytest.mark.parametrize("name", command_names())
def test_command_file_declares_the_name_of_its_file(name: str) -> None:
    assert load_command(name).name == name


@pytest.mark.parametrize("name", command_names())
def test_command_help_exits_with_status_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: blockyard {name}")


def test_help_of_a_first_word_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "train lm" in shown
    assert "generate" not in shown


def test_a_mistyped_option_before_any_command_is_told_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "--hlep") == "unknown option '--hlep' (did you mean '--help'?); see `blockyard --help`"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from blockyard import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"blockyard {__version__}\n"


def test_misspelt_command_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "trian", "lm").startswith("no command named 'trian' (did you mean 'train'?)")


def test_misspelt_second_word_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "train", "ml").startswith("no command named 'train ml'")


def test_missing_second_word_is_told_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    # Every task that is added has its command.
    told = error_of(capsys, "train")
    assert told.startswith("'train' needs to know what: blockyard train ")
    assert all(f"blockyard train {task}" in told for task in TASKS)


def test_unexpected_word_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "list", "mixers") == "unexpected argument 'mixers'; see `blockyard list --help`"


def test_unknown_plain_option_is_told_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown option '--jsom' (did you mean '--json'?)" in error_of(capsys, "list", "--jsom")


def test_option_without_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "train", "lm", "--model.d_model") == "--model.d_model: expected one argument"


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("--model.d-model", "--model.d_model"),
        ("--model.d-model=a-b", "--model.d_model=a-b"),
        ("--top-k", "--top_k"),
        ("-", "-"),
        ("a-b", "a-b"),
        ("--", "--"),
        ("-- not a flag", "-- not a flag"),
    ],
)
def test_dashes_in_option_names_read_as_underscores(word: str, read: str) -> None:
    assert underscored(word) == read


@pytest.mark.parametrize(
    "words",
    [["run", "--top", "3", "x.npy"], ["--top", "3", "run", "x.npy"], ["run", "x.npy", "--top=3"]],
    ids=["between", "before", "behind"],
)
def test_options_may_stand_anywhere_among_the_arguments(words: list[str]) -> None:
    parser = Parser("classify", "says what is what")
    parser.plain("run", "", nargs="?")
    parser.plain("file", "", nargs="?")
    parser.plain("--top", "")
    found = parser.parse(words)
    assert (found.run, found.file, found.top) == ("run", "x.npy", "3")


@pytest.mark.parametrize("words, value", [(["--on", "x.npy"], "true"), (["--on", "false", "x.npy"], "false"),
                                          (["x.npy", "--on"], "true"), (["--on=no", "x.npy"], "no")])  # fmt: skip
def test_a_switch_takes_no_word_but_a_truth_value(words: list[str], value: str) -> None:
    parser = Parser("classify", "says what is what")
    parser.plain("file", "")
    parser.plain("--on", "", nargs="?", const="true")
    found = parser.parse(words)
    assert (found.file, found.on) == ("x.npy", value)


def test_parser_raises_where_argparse_would_exit() -> None:
    parser = Parser("toy", "a toy")
    parser.add_argument("--number", type=int)
    with pytest.raises(InputError, match="--number: invalid int value"):
        parser.parse(["--number", "x"])


def test_options_are_not_abbreviated() -> None:
    parser = Parser("toy", "a toy")
    parser.add_argument("--number")
    with pytest.raises(InputError, match=r"unknown option '--num' \(did you mean '--number'\?\)"):
        parser.parse(["--num=3"])


def test_only_rank_0_prints_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == ""


def test_error_of_several_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    from blockyard.cli.app import say_error

    say_error("first\n  second\n")
    assert capsys.readouterr().err == "error: first second\n"


def test_interrupt_ends_with_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("blockyard.cli.app.dispatch", interrupted)
    assert main(["list"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_closed_pipe_ends_quietly() -> None:
    script = (
        "import sys; from blockyard.cli import app;"
        "app.dispatch = lambda words: [print('x' * 80) for _ in range(10_000)] and 0;"
        "sys.exit(app.run_words([]))"
    )
    done = subprocess.run(
        f"{sys.executable} -c {script!r} | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("lines", [1, 10_000], ids=["at the end", "half-way"])
def test_full_disk_under_the_output_is_one_line_and_status_2(lines: int) -> None:
    script = (
        "import sys; from blockyard.cli import app;"
        f"app.dispatch = lambda words: [print('x' * 80) for _ in range({lines})] and 0;"
        "sys.exit(app.run_words([]))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        raise RuntimeError("broken")

    monkeypatch.setattr("blockyard.cli.app.dispatch", broken)
    with pytest.raises(RuntimeError, match="broken"):
        main(["list"])


def test_missing_plugin_module_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "list", "--plugin", "no_such_pkg.blocks") == "--plugin: no module named 'no_such_pkg'"


def test_a_plugin_that_is_nearly_named_or_named_as_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("my_gate.py", "inner/blocks.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    told = error_of(capsys, "list", "--plugin", "my_gat")
    assert told == "--plugin: no module named 'my_gat' (did you mean 'my_gate'?)"
    told = error_of(capsys, "list", "--plugin", "my_gate.py")
    assert told == "--plugin: 'my_gate.py' is a file; name its module, as an import does: my_gate"
    told = error_of(capsys, "list", "--plugin", "inner/blocks.py")
    assert told.endswith("as an import does: blocks, from the folder 'inner'")


def test_plugin_with_a_path_for_a_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "list", "--plugin", "dir/blocks.py").startswith(
        "--plugin: 'dir/blocks.py' is not a module's name"
    )
