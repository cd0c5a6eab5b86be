"""`generate` from the command line: the same text for the same seed, streamed, and clear refusals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockyard.cli import main
from cli_helpers import TEXT, error_of, words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run."""
    folder = tmp_path_factory.mktemp("cli_generate")
    (folder / "text.txt").write_text(TEXT)
    assert main([*words(folder), "--out", str(folder / "run")]) == 0
    return str(folder / "run")


def text_of(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    capsys.readouterr()
    assert main(["generate", *given]) == 0
    return capsys.readouterr().out


def test_same_seed_gives_the_same_text(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "20", "--seed", "3")
    first = text_of(capsys, *command)
    assert first == text_of(capsys, *command)
    assert first.startswith("line")
    assert first.endswith("\n")


def test_another_seed_gives_another_text(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "40", "--seed")
    assert text_of(capsys, *command, "3") != text_of(capsys, *command, "4")


def test_unechoed_text_is_the_continuation_alone(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "20", "--seed", "3")
    assert "line" + text_of(capsys, *command, "--echo", "false") == text_of(capsys, *command)


def test_prompt_comes_from_standard_input(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (run, "--tokens", "20", "--seed", "3", "--prompt")
    expected = text_of(capsys, *command, "line\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"line\n")))
    assert text_of(capsys, *command, "-") == expected


def test_prompt_may_begin_with_a_dash(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text_of(capsys, run, "--prompt", "-line", "--tokens", "2", "--seed", "0").startswith("-line")


def test_empty_prompt_begins_a_document(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text_of(capsys, run, "--prompt", "", "--tokens", "8", "--seed", "0").endswith("\n")


def test_samples_have_seeds_one_after_the_other(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "20")
    both = text_of(capsys, *command, "--seed", "3", "--num_samples", "2")
    singles = [text_of(capsys, *command, "--seed", seed) for seed in ("3", "4")]
    assert both == f"--- 1 of 2\n{singles[0]}--- 2 of 2\n{singles[1]}"


def test_text_ends_before_a_stop_string(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "40", "--seed", "3", "--echo", "false")
    whole = text_of(capsys, *command)
    stop = next(character for character in whole[5:] if character.isprintable())
    assert text_of(capsys, *command, "--stop", "never this", "--stop", stop) == whole.split(stop)[0] + "\n"


def test_every_sampling_option_is_accepted(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--temperature 0.7 --top_k 20 --top-p 0.9 --min_p 0.01 --repetition_penalty 1.2 --past_context slide"
    assert text_of(capsys, run, "--prompt", "x", "--tokens", "40", "--seed", "1", *options.split())


def test_seed_that_was_drawn_is_told(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", run, "--prompt", "line", "--tokens", "2"]) == 0
    assert capsys.readouterr().err.startswith("note: seed ")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--tokens", "many"], "--tokens='many' should be int"),
        (["--tokens", "0"], "--tokens=0 should be 1 or more"),
        (["--num_samples", "0"], "--num_samples=0 should be 1 or more"),
        (["--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["--top_p", "2"], "top_p=2.0 is out of range"),
        (["--past_context", "jump"], "--past_context='jump' should be slide | stop"),
        (["--tempreature", "1"], "unknown option '--tempreature' (did you mean '--temperature'?)"),
        (["--prompt", "a prompt longer than sixteen", "--past_context", "stop"], "the model's context is 16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_option_is_told(run: str, capsys: pytest.CaptureFixture[str], given: list[str], told: str) -> None:
    assert told in error_of(capsys, "generate", run, "--seed", "0", *given)


def test_missing_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "generate").startswith("which run?")


def test_folder_without_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in error_of(capsys, "generate", str(tmp_path), "--prompt", "x")


def test_prompt_that_is_not_utf8_is_told(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert "not UTF-8" in error_of(capsys, "generate", run, "--prompt", "-")


@pytest.mark.parametrize("how", ["ctrl-c", "closed pipe"])
def test_interrupted_stream_ends_without_a_traceback(run: str, how: str) -> None:
    command = [sys.executable, "-m", "blockyard", "generate", run, "--prompt", "x", "--tokens", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None and process.stderr is not None
    # The first bytes come long before the last: the text is streamed.
    assert process.stdout.read(8)
    if how == "ctrl-c":
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == (130 if how == "ctrl-c" else 0)
    assert "Traceback" not in error


def test_plugin_of_a_run_is_found_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "cli_generate_plugin.py").write_text(
        "from blockyard.mixers.standard import StandardAttention\n"
        "from blockyard.registry import register_attn\n"
        "register_attn('cli_generated')(type('Mine', (StandardAttention,), {'__module__': __name__}))\n"
    )
    # As a console script runs: the current folder is not on the path.
    script = "import sys; from blockyard.cli import main; sys.path = [p for p in sys.path if p]; sys.exit(main())"
    train = [*words(tmp_path), "--out", "run", "--plugin", "cli_generate_plugin", "--attn.impl", "cli_generated"]
    for command in (train, ["generate", "run", "--tokens", "3", "--seed", "1"]):
        done = subprocess.run([sys.executable, "-c", script, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
