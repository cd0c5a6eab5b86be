"""`info` on the command line: options, figures, and what cannot be built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockyard.registry import register as registry
from blockyard.tasks.settings import as_groups, resolve
from blockyard.text import ByteTokenizer
from tests.fixtures.cli import error_of, shown, toys


@pytest.fixture
def with_toys() -> Iterator[None]:
    with toys():
        yield


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


def test_info_about_a_folder_without_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "info", str(tmp_path)) == f"{tmp_path} is a folder that holds no run (no config.yaml in it)"


def test_info_about_a_misspelt_name_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "info", "standart") == "no block named 'standart' (did you mean 'standard'?)"


def test_info_about_a_run_tells_the_options_of_its_blocks_that_are_not_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"kernel": "auto", "window": 16, "sinks": 0}
    groups = as_groups(resolve({"model": {"d_model": 32, "n_heads": 2, "n_layers": 2}, "attn": own}))
    # In the order of the signature, and so however often a run's file is read.
    assert list(groups["attn"]) == list(as_groups(resolve(groups))["attn"]) == ["impl", "window", "sinks", "kernel"]
    (tmp_path / "config.yaml").write_text(json.dumps(groups))
    ByteTokenizer().save(tmp_path / "tokenizer")
    text = shown(capsys, "info", str(tmp_path))
    assert "  standard[window=16]+relu2\n" in text
