"""`list`, `info` and `check`: the register and the conformance suite on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockyard.cli import main
from blockyard.cli.table import plain_table
from blockyard.registry import register as registry
from tests.fixtures.cli import error_of, toys
from tests.fixtures.folders import FIXTURES


@pytest.fixture
def with_toys() -> Iterator[None]:
    with toys():
        yield


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that succeeds prints."""
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_list_shows_every_registered_name(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "list")
    for name in [*registry.list_attention(), *registry.list_ffn()]:
        assert f"  {name} " in text


def test_list_as_json_holds_traits_options_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(shown(capsys, "list", "--json"))
    assert [mixer["name"] for mixer in listed["attention"]] == registry.list_attention()
    assert [ffn["name"] for ffn in listed["ffn"]] == registry.list_ffn()
    standard = listed["attention"][0]
    assert standard["traits"]["causal"] is True
    assert standard["options"]["window"] == {
        "type": "int | none", "required": False, "default": None,
        "help": standard["options"]["window"]["help"],
    }  # fmt: skip
    assert standard["source"] == "blockyard.standard.attention:StandardAttention"


def test_list_includes_a_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cli_plugin_listed.py").write_text(
        "from torch import nn\n"
        "from blockyard.registry.register import register_attn\n"
        "@register_attn('cli_listed')\n"
        "class Listed(nn.Module):\n"
        "    def __init__(self, d_model: int, n_heads: int): super().__init__()\n"
        "    def forward(self, x): return x, None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert "cli_listed" in shown(capsys, "list", "--plugin", "cli_plugin_listed")
    finally:
        registry._register.entries.pop(("attn", "cli_listed"), None)


def test_plugin_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cli_plugin_here.py").write_text("LOADED = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    shown(capsys, "list", "--plugin", "cli_plugin_here")
    assert __import__("sys").modules["cli_plugin_here"].LOADED


def test_info_shows_both_the_attention_and_the_ffn_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "info", "standard")
    assert "standard (attention)" in text
    assert "standard (FFN)" in text
    assert "--attn.window" in text
    assert "--ffn.d_ff" in text
    assert "blockyard.standard.attention:StandardAttention" in text


@pytest.mark.parametrize("name", ["tva", "vft"])
def test_info_shows_with_each_half_the_block_that_two_become_together(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "info", name)
    assert "tva+vft (paired block)" in text and "--vft.tau" in text and "--vft.s " in text
    assert [entry["kind"] for entry in json.loads(shown(capsys, "info", "tva+vft", "--json"))] == ["block"]


def test_info_tells_no_value_from_a_choice_called_none(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "info", "vft")
    assert "--vft.rope  half | interleaved | none | null, default null" in text
    assert "--vft.v_rank  int | none, default none" in text


def test_info_gives_the_figures_of_the_cost_formula(capsys: pytest.CaptureFixture[str]) -> None:
    attention, ffn = json.loads(shown(capsys, "info", "standard", "--json"))
    # Four projections and the gains of QK-norm; keys and values of 512 floats each.
    assert attention["costs"]["parameters"] == 4 * 512**2 + 2 * 64
    assert attention["costs"]["cache_bytes_per_token"] == 2 * 512 * 4
    assert ffn["costs"]["flops"] == 1024 * 2 * 2 * 512 * 2048


@pytest.mark.parametrize("kind", ["attn", "ffn", "block"])
def test_info_works_for_every_registered_name(kind: registry.Kind, capsys: pytest.CaptureFixture[str]) -> None:
    for name in registry.names(kind):
        assert "costs" in shown(capsys, "info", name)


def test_info_measures_a_class_without_a_cost_formula(with_toys: None, capsys: pytest.CaptureFixture[str]) -> None:
    expected = "0 parameters; 0.000 GFLOP forward; measured: the class has no cost formula"
    assert expected in shown(capsys, "info", "toy_mixer")


def test_info_says_why_a_class_was_not_constructed(with_toys: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not constructed: needs size" in shown(capsys, "info", "needy")


def test_info_shows_no_flag_for_an_option_that_only_python_can_pass(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "info", "vft")
    assert "vein_projector (from Python)" in text
    assert "--vft.vein_projector" not in text


def test_info_about_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "info").startswith("info about what?")


def test_info_about_a_misspelt_name_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "info", "standart") == "no block named 'standart' (did you mean 'standard'?)"


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


def test_check_of_a_file_that_is_not_as_it_should_be_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(capsys, "check", f"{file.parent}/none.py:Own").startswith("check: no file ")
    assert error_of(capsys, "check", f"{file}:Owm").endswith("cli_own.py' has no class 'Owm' (did you mean 'Own'?)")
    assert error_of(capsys, "check", str(file)).endswith(f"which class of the file? Write {file}:Class")
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


def test_check_of_a_class_that_is_no_module_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "json:JSONDecoder"]) == 2
    assert "is not a torch module class" in capsys.readouterr().err


def test_plain_table_aligns_its_columns() -> None:
    assert plain_table("T", ["name", "x"], [["a", "yes"], ["longer", "-"]]) == (
        "T\n  name    x\n  ------  ---\n  a       yes\n  longer  -\n"
    )
