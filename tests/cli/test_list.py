"""`list` on the command line: every name, plug-ins among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockyard.registry import register as registry
from tests.fixtures.cli import shown


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
