"""Completion: which words may follow, and that bash, zsh and fish really offer them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockyard.cli.commands.completion import SCRIPTS
from blockyard.cli.completing import following
from tests.fixtures.cli import error_of, shown


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache of shapes for the whole file, as a user has one."""
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path_factory.getbasetemp() / "help-cache"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("comp", ["compare", "completion"]),
        ("train l", ["lm"]),
        ("help train l", ["lm"]),
        ("schema tune r", ["recall"]),
        ("train lm --attn.i", ["--attn.impl"]),
        ("train lm --attn.impl s", ["standard", "spectral"]),
        ("train lm --attn.impl=s", ["standard", "spectral"]),
        # As bash hands it over.
        ("train lm --attn.impl = s", ["standard", "spectral"]),
        ("train lm --attn.impl =", ["standard", "mla", "tva", "spectral"]),
        ("train signal --attn.impl com", ["complex"]),
        ("train lm --moe.expert v", ["vft"]),
        ("train lm --train.tensorboard ", ["true", "false"]),
        ("train lm --model.norm r", ["rms"]),
        ("train lm --help sp", ["spectral"]),
        ("completion ", ["bash", "zsh", "fish", "words"]),
        # Files are the shell's own.
        ("train lm --data.path my", []),
        ("generate ru", []),
        ("nosuch a", []),
        ("train nosuch --a", []),
    ],
)
def test_what_may_follow(line: str, found: list[str]) -> None:
    offered = following(line.split(" "))
    # Plug-ins of other tests in this process may be offered, too.
    assert [word for word in offered if word in found] == found and (found or not offered)


def test_options_of_chosen_blocks_alone_are_offered() -> None:
    offered = following(["train", "lm", "--attn.impl", "tva", "--"])
    assert "--vft.v_rank" in offered and "--train.steps" in offered and "--help" in offered
    assert not [word for word in offered if word.startswith(("--mla.", "--moe."))]


def test_a_line_that_is_typed_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        shown(capsys, "completion", "words", "--", "train", "lm", "--plugin", "no.such", "--attn.im") == "--attn.impl\n"
    )


def test_scripts_are_printed_and_mistakes_told(capsys: pytest.CaptureFixture[str]) -> None:
    for shell, script in SCRIPTS.items():
        assert shown(capsys, "completion", shell) == script
    assert error_of(capsys, "completion") == "completion for which shell? blockyard completion bash | zsh | fish"
    assert "invalid choice: 'tcsh'" in error_of(capsys, "completion", "tcsh")
    assert "unexpected argument 'train'" in error_of(capsys, "completion", "bash", "train")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a command `blockyard`, the scripts, and a file to be offered."""
    command = tmp_path / "bin" / "blockyard"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m blockyard "$@"\n')
    command.chmod(0o755)
    (tmp_path / "my_texts").mkdir()
    for shell, script in SCRIPTS.items():
        (tmp_path / f"blockyard.{shell}").write_text(script)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "TERM": "dumb",
        "PS1": "$ ",
        "COLUMNS": "200",
    }


def typed(home: Path, shell: list[str], lines: list[str], wanted: str) -> str:
    """What a shell at a terminal shows when lines are typed into it; a TAB is a TAB."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(home)
        os.execvpe(shell[0], shell, environment(home))
    shown, until = "", time.monotonic() + 60
    try:
        for line in lines:
            os.write(terminal, line.encode())
            # A line is typed when what was typed before has been read.
            time.sleep(0.3)
        while time.monotonic() < until and wanted not in shown:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.close(terminal)
        os.kill(process, 9)
        os.waitpid(process, 0)
    return shown


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("blockyard train lm --attn.im\t", "--attn.impl "),
        ("blockyard train lm --attn.impl=spec\t", "--attn.impl=spectral "),
        ("blockyard train lm --data.path my_t\t", "my_texts/"),
    ],
    ids=["option", "value", "file"],
)
def test_bash_completes(home: Path, line: str, wanted: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    begin = ["bash", "--norc", "--noprofile", "-i"]
    found = typed(home, begin, ["source blockyard.bash\n", line], f"$ {line.split()[0]} {wanted}"[-len(wanted) :])
    assert wanted in found


@pytest.mark.parametrize("way", ["sourced", "in fpath"])
def test_zsh_completes(home: Path, way: str) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    if way == "sourced":
        begin = "autoload -U compinit; compinit -u; source blockyard.zsh\n"
    else:
        begin = "mkdir f; cp blockyard.zsh f/_blockyard; fpath=($PWD/f $fpath); autoload -U compinit; compinit -u\n"
    found = typed(home, ["zsh", "-f", "-i"], [begin, "blockyard train lm --attn.impl=spec\t"], "=spectral")
    assert "--attn.impl=spectral" in found


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("blockyard train lm --attn.im", "--attn.impl"),
        ("blockyard train lm --attn.impl=spec", "--attn.impl=spectral"),
        ("blockyard train lm --data.path my_t", "my_texts/"),
    ],
    ids=["option", "value", "file"],
)
def test_fish_completes(home: Path, line: str, wanted: str) -> None:
    if shutil.which("fish") is None:
        pytest.skip("no fish here")
    script = f"source blockyard.fish; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "-N", "-c", script], capture_output=True, text=True, cwd=home, env=environment(home), timeout=60
    )
    assert done.stdout.split() == [wanted], done.stderr
