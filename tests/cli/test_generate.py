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
from tests.fixtures.cli import TEXT, error_of, toys, words


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


def test_several_prompts_are_written_together_as_each_alone(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["line", "a prompt longer than sixteen", "fox"]
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    together = text_of(capsys, run, *given, "--tokens", "20", "--seed", "3")
    alone = [
        text_of(capsys, run, "--prompt", prompt, "--tokens", "20", "--seed", str(3 + n))
        for n, prompt in enumerate(prompts)
    ]
    assert together == "".join(f"--- {n + 1} of 3\n{text}" for n, text in enumerate(alone))
    for size in ("1", "2"):
        assert text_of(capsys, run, *given, "--tokens", "20", "--seed", "3", "--batch_size", size) == together


@pytest.fixture(scope="module")
def run_without_padding(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run of a mixer that knows neither padding nor a cache."""
    folder = tmp_path_factory.mktemp("cli_generate_toy")
    (folder / "text.txt").write_text(TEXT)
    with toys():
        assert main([*words(folder), "--attn.impl", "toy_mixer", "--out", str(folder / "run")]) == 0
    return str(folder / "run")


def test_unequal_prompts_for_beams_of_a_mixer_without_padding_are_refused_before_any_output(
    run_without_padding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with toys():
        capsys.readouterr()
        command = [
            "generate",
            run_without_padding,
            "--prompt",
            "line",
            "--prompt",
            "fox",
            "--tokens",
            "3",
            "--beams",
            "2",
        ]
        assert main(command) == 2
        assert capsys.readouterr() == (
            "",
            "error: ToyMixer does not take padding_mask, which prompts of unequal length need when they are read "
            "together: --batch_size 1 writes one after another\n",
        )
        assert text_of(capsys, *command[1:], "--batch_size", "1").startswith("--- 1 of 2")
        assert text_of(capsys, *command[1:], "--prompt", "dog", "--batch_size", "1").startswith("--- 1 of 3")
        equal = [run_without_padding, "--prompt", "dog", "--prompt", "fox", "--tokens", "3", "--beams", "2"]
        assert text_of(capsys, *equal).count("---") == 2


def test_a_mixer_without_padding_writes_texts_of_equal_length_together_and_says_so(
    run_without_padding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with toys():
        prompts = [word for prompt in ("line", "fox", "dogs", "the") for word in ("--prompt", prompt)]
        command = [run_without_padding, *prompts, "--tokens", "5", "--seed", "1"]
        assert main(["generate", *command]) == 0
        written = capsys.readouterr()
        assert (
            "note: ToyMixer does not take padding_mask: only texts of equal length are written together\n"
            in written.err
        )
        assert text_of(capsys, *command, "--batch_size", "1") == written.out


def test_prompts_come_from_files(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lines.txt").write_text("line\n\nfox\n")
    (tmp_path / "lines.jsonl").write_text('{"prompt": "quick"}\n"dogs\\n"\n')
    command = (run, "--tokens", "5", "--seed", "3")
    files = ["--prompt_file", str(tmp_path / "lines.txt"), "--prompt_file", str(tmp_path / "lines.jsonl")]
    given = [word for prompt in ("line", "fox", "quick", "dogs\n") for word in ("--prompt", prompt)]
    assert text_of(capsys, *command, *files) == text_of(capsys, *command, *given)


def test_prompts_come_from_lines_of_standard_input(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (run, "--tokens", "5", "--seed", "3")
    expected = text_of(capsys, *command, "--prompt", "line", "--prompt", "fox")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"line\n\nfox\n")))
    assert text_of(capsys, *command, "--prompt_file", "-") == expected


@pytest.mark.parametrize(
    ("given", "stdin", "told"),
    [
        (["--prompt_file", "-"], b" \n\n", "--prompt_file -: standard input holds no prompt"),
        (["--prompt_file", "-"], b"a\xff", "--prompt_file -: standard input is not UTF-8 text (byte 1)"),
        (
            ["--prompt_file", "-", "--prompt", "-"],
            b"a",
            "- is given twice, by --prompt or --prompt_file; standard input",
        ),
    ],
)
def test_bad_standard_input_is_told(
    run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    stdin: bytes,
    told: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert told in error_of(capsys, "generate", run, *given)


def test_beams_find_the_same_text_every_time_and_rank_several(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "8", "--beams", "3")
    best = text_of(capsys, *command)
    assert best.startswith("line")
    three = text_of(capsys, *command, "--num_samples", "3", "--prompt", "fox", "--length_penalty", "0")
    assert [int(line.split()[1]) for line in three.splitlines() if line.startswith("--- ")] == [1, 2, 3, 4, 5, 6]
    marks = [float(line.split()[-1]) for line in three.splitlines() if line.startswith("--- ")]
    assert marks[:3] == sorted(marks[:3], reverse=True)
    assert marks[3:] == sorted(marks[3:], reverse=True)


def test_one_beam_is_greedy_text(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (run, "--prompt", "line", "--tokens", "8")
    assert text_of(capsys, *command, "--beams", "1") == text_of(capsys, *command, "--temperature", "0")


def test_a_draft_writes_the_same_greedy_text_and_says_what_was_kept(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (run, "--prompt", "line", "--tokens", "40", "--temperature", "0")
    assert main(["generate", *command, "--draft", run, "--draft_tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert "proposed tokens were kept (100%)" in captured.err
    assert captured.out == text_of(capsys, *command)


def test_a_draft_with_another_tokenizer_is_refused(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    other = str(tmp_path / "other")
    flags = {"data.tokenizer": "bpe", "data.vocab_size": 270}
    assert main([*words(tmp_path, **flags), "--out", other]) == 0
    told = error_of(capsys, "generate", run, "--draft", other, "--seed", "0")
    assert "its tokenizer (bpe, 270 tokens) is not the run's (byte, 256 tokens)" in told


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
        (["--tokens", "0"], "--tokens=0 should be at least 1"),
        (["--num_samples", "0"], "--num_samples=0 should be at least 1"),
        (["--batch_size", "0"], "--batch_size=0 should be at least 1"),
        (["--prefill_chunk", "0"], "prefill_chunk=0 should be at least 1"),
        (["--beams", "2"], "--seed does not go with --beams"),
        (["--length_penalty", "2"], "--length_penalty belongs to beam search: give --beams N too"),
        (["--draft_tokens", "2"], "--draft_tokens needs a draft: name its run with --draft DIR"),
        (["--draft", "nowhere"], "nowhere"),
        (["--prompt_file", "nowhere.txt"], "--prompt_file: cannot read nowhere.txt"),
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--beams", "0"], "--beams=0 should be at least 1"),
        (["--beams", "2", "--num_samples", "3"], "there are no more texts than --beams=2"),
        (["--beams", "2", "--stop", "x"], "--stop does not go with --beams"),
        (["--beams", "2", "--past_context", "stop"], "--past_context does not go with --beams"),
        (["--beams", "2", "--prompt", "a prompt longer than sixteen"], "the model's context is 16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_beams_cannot_honour_are_told(
    run: str, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    assert told in error_of(capsys, "generate", run, *given)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", "\n\n", "holds no prompt"),
        ("bad.jsonl", '"fine"\n{"text": 1}\n', "prompt 2 of"),
        ("latin.txt", b"\xff", "is not UTF-8 text (byte 0)"),
    ],
    ids=["empty", "json", "bytes"],
)
def test_prompt_file_that_holds_no_prompts_is_told(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert told in error_of(capsys, "generate", run, "--prompt_file", str(tmp_path / name))


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
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ},
        # Where the tests run in the background of a script, ctrl-c is ignored, and so it would be in what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
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


def test_plugin_of_a_run_is_found_in_the_current_folder_once_agreed_to(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "cli_generate_plugin.py").write_text(
        "from blockyard.standard.attention import StandardAttention\n"
        "from blockyard.registry.register import register_attn\n"
        "register_attn('cli_generated')(type('Mine', (StandardAttention,), {'__module__': __name__}))\n"
    )
    # As a console script runs: the current folder is not on the path.
    script = "import sys; from blockyard.cli import main; sys.path = [p for p in sys.path if p]; sys.exit(main())"
    train = [*words(tmp_path), "--out", "run", "--plugin", "cli_generate_plugin", "--attn.impl", "cli_generated"]
    generate = ["generate", "run", "--tokens", "3", "--seed", "1"]
    named, trusted = [*generate, "--plugin", "cli_generate_plugin"], [*generate, "--trust"]
    for command, status in ((train, 0), (generate, 2), (named, 0), (trusted, 0)):
        done = subprocess.run([sys.executable, "-c", script, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        if status:
            assert done.stderr.startswith("error: run/config.yaml wants the plug-in cli_generate_plugin")
            assert done.stderr.count("\n") == 1
