"""`check` on the command line: the conformance suite on a name, a module's class or a file's."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockyard
from blockyard.cli import main
from blockyard.registry.plugins import import_file
from blockyard.registry.register import implementation
from tests.fixtures.cli import error_of, shown
from tests.fixtures.folders import FIXTURES


def test_check_passes_for_a_registered_ffn(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "check", "swiglu")
    assert "conformance of blockyard.standard.gated:SwiGLU" in text
    assert "\nok: " in text


LEAKY = """
import torch
from torch import nn

class Leaky(nn.Module):
    '''Sees the future.'''
    def __init__(self, d_model: int, n_heads: int, *, share: float = 0.5, causal: bool = False):
        super().__init__()
        self.share, self.mix = share, nn.Linear(d_model, d_model)
    def forward(self, x, causal=None):
        return self.mix(x) + self.share * x.mean(1, keepdim=True), None

def function(): ...
"""


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cli_leaky.py").write_text(LEAKY)
    monkeypatch.syspath_prepend(tmp_path)
    return "cli_leaky:Leaky"


def test_check_of_a_leaky_mixer_exits_with_status_1(leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", leaky]) == 1
    text = capsys.readouterr().out
    assert "failed" in text
    assert "\nFAILED: " in text


def test_what_is_skipped_is_told_by_reason_unless_each_is_asked_for(
    leaky: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", leaky, "--all"]) == main(["check", leaky]) == 1
    each, short = capsys.readouterr().out.split("conformance of ")[1:]
    named = re.findall(r"^  skipped  (.+?): its traits do not claim (\w+)$", each, re.M)
    (line,) = re.findall(r"^  skipped  (\d+) checks: its traits do not claim (.*); --all names them$", short, re.M)
    told = {trait: int(count) for trait, count in re.findall(r"(\w+) \((\d+)\)", line[1])}
    assert int(line[0]) == len(named) == sum(told.values()) and told == Counter(trait for _, trait in named)
    # None is lost: what is counted and what is named are all that the last line says.
    lines = re.findall(r"^  skipped  (?:(\d+) checks: )?", short, re.M)
    assert f"{sum(int(count or 1) for count in lines)} skipped" in short and len(lines) < 10
    rest = [[row for row in text.splitlines() if not row.startswith("  skipped")] for text in (each, short)]
    assert [row for row in rest[0] if row] == [row for row in rest[1] if row]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that imports its neighbour, in a folder that is nowhere on the path."""
    folder = tmp_path / "my files"
    folder.mkdir()
    (folder / "cli_neighbour.py").write_text(LEAKY)
    (folder / "cli_own.py").write_text(
        "from cli_neighbour import Leaky\n\nclass Own(Leaky):\n    pass\n\n"
        "class Strange(Leaky):\n    def __init__(self, dim, heads): ...\n"
    )
    modules, path = __import__("sys").modules, list(__import__("sys").path)
    monkeypatch.setattr("sys.path", path)
    yield folder / "cli_own.py"
    for name in ("cli_own", "cli_neighbour"):
        modules.pop(name, None)


def test_check_takes_a_class_of_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a file that was imported is not run again
        assert main(["check", f"{file}:Own", "--json"]) == 1
        (report,) = json.loads(capsys.readouterr().out)
        assert report["subject"] == "cli_own:Own"
        failed = [row["name"] for row in report["rows"] if row["outcome"] == "failed"]
        assert "changing the future leaves the past as it was" in failed


def test_a_file_of_a_package_on_the_path_is_the_module_that_an_import_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(blockyard.__file__).parent
    assert import_file(str(own / "latent" / "attention.py"), "check") is attention_module("mla")
    assert main(["check", f"{own}/standard/gated.py:SwiGLU"]) == 0
    assert "conformance of blockyard.standard.gated:SwiGLU" in capsys.readouterr().out
    package = tmp_path / "cli_package"
    package.mkdir()
    (package / "__init__.py").write_text("SHARE = 0.5\n")
    (package / "cli_inner.py").write_text("from . import SHARE\nimport cli_beside\nclass Here: ...\n")
    (package / "cli_beside.py").write_text("")
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    for _ in range(2):
        assert import_file(str(package / "cli_inner.py"), "check").__name__ == "cli_package.cli_inner"
    for name in ("cli_package.cli_inner", "cli_package", "cli_beside"):
        sys.modules.pop(name)


def attention_module(name: str) -> object:
    return sys.modules[implementation("attn", name).cls.__module__]


def test_check_of_a_file_that_is_not_as_it_should_be_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, "check", f"{file.parent}/none.py:Own").startswith("check: no file ")
    assert error_of(capsys, "check", f"{file}:Owm").endswith("cli_own.py' has no class 'Owm' (did you mean 'Own'?)")
    assert error_of(capsys, "check", str(file)).endswith(f"which class of the file? Write {file}:Own or :Strange")
    told = error_of(capsys, "check", f"{file}:Strange")
    assert "needs dim, heads (dim is d_model here, heads is n_heads here); a model gives it those of d_model" in told


def test_check_says_what_is_no_fault_below_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    own = FIXTURES / "unordered_blocks.py"
    text = shown(capsys, "check", f"{own}:Running")
    assert text.startswith("conformance of unordered_blocks:Running as a mixer\n")
    assert "\nnote: no positions of its own: " in text and text.endswith("1 noted\n\n")


def test_check_as_json_is_one_document(leaky: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", leaky, "--json", "--with", "share=0.25"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["subject"] == "cli_leaky:Leaky"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "check what? Give a class: blockyard check pkg.module:Class (or FILE.py:Class)"),
        (["no_such_pkg:X"], "check: no module named 'no_such_pkg'"),
        (["cli_leaky:Leeky"], "module 'cli_leaky' has no class 'Leeky' (did you mean 'Leaky'?)"),
        (["cli_leaky:function"], "cli_leaky:function is a function, not a class"),
        (["swigul"], "'swigul' is no registered name (did you mean 'swiglu'?); a class is given as "
         "pkg.module:Class or FILE.py:Class"),
        (["cli_leaky:Leaky", "--with", "share"], "--with 'share' should be KEY=VALUE, such as rank=8"),
        (["cli_leaky:Leaky", "--with", "shrae=1"],
         "--with shrae=1: Leaky has no option 'shrae' (did you mean 'share'?)"),
        (["cli_leaky:Leaky", "--with", "share=lots"], "--with share='lots' should be float"),
        (["cli_leaky:Leaky", "--kind", "mixer"],
         "--kind: invalid choice: 'mixer' (choose from 'attn', 'ffn')"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_check_of_nothing_that_can_be_checked_exits_with_status_2(
    leaky: str, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["check", *words]) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_check_on_a_device_that_is_not_there_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "device='cuda:99'" in error_of(capsys, "check", "standard", "--device", "cuda:99")


def test_check_of_a_class_that_is_no_module_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "json:JSONDecoder"]) == 2
    assert "is not a torch module class" in capsys.readouterr().err
