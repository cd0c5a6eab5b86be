"""`compare lm` from the command line: a tiny comparison end to end, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockyard.cli import main
from tests.fixtures.cli import TEXT, error_of

pytest.importorskip("matplotlib")
yaml = pytest.importorskip("yaml")


def words(folder: Path, *more: str) -> list[str]:
    """A comparison of a few hundred tokens."""
    (folder / "text.txt").write_text(TEXT)
    settings: dict[str, Any] = {
        "data.path": folder / "text.txt",
        "data.cache_dir": folder / "cache",
        "model.d_model": 16,
        "model.n_layers": 1,
        "model.n_heads": 2,
        "model.context": 16,
        "train.batch_size": 2,
        "train.eval_batches": 1,
        "train.compile": "off",
        "train.device": "cpu",
        "budget.unit": "tokens",
        "budget.value": 256,
        "seeds": 1,
        "sample_tokens": 8,
        "measure_memory": "false",
        "out": folder / "out",
    }
    return ["compare", "lm", *(f"--{name}={value}" for name, value in settings.items()), *more]


def test_comparison_writes_its_report_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "terms.yaml").write_text("blocks: standard,relu2\nmatch: none\nbudget: {value: 64}\nseeds: 2\n")
    assert main(words(tmp_path, "--config", str(tmp_path / "terms.yaml"))) == 0
    out = tmp_path / "out"
    printed, told = capsys.readouterr()
    assert printed == f"{out / 'report.html'}\n"
    report = json.loads((out / "report.json").read_text())
    assert told.endswith(f"\n{report['verdict']['headline']}\nreport: {out / 'report.html'}\n")
    assert [choice["name"] for choice in report["choices"]] == ["standard", "relu2"]
    # The file chose the blocks and the match; the words win where both speak.
    assert report["match"] == "none"
    assert report["budget"] == {"unit": "tokens", "value": 256}
    assert report["seeds"] == [0]
    for name in ("report.html", "report.csv", "report.md"):
        assert (out / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "--blocks must be given"),
        (["--blocks", "standart"], "no attention named 'standart'. Did you mean 'standard'?"),
        (["--blocks", "standard[windw=3]"], "'windw' (did you mean 'window'?)"),
        (["--blocks", "standard,standard"], "blocks names 'standard' twice"),
        (["--blocks", "standard", "--match", "size"], "--match='size' should be params | flops | none"),
        (["--blocks", "standard", "--budget.unit", "hours"],
         "--budget.unit='hours' should be tokens | seconds | flops"),
        (["--blocks", "standard", "--budget.value", "0"], "budget.value=0.0 must be a number above 0"),
        (["--blocks", "standard", "--seeds", "none"], "--seeds='none' should be int"),
        (["--blocks", "standard", "--attn.window", "4"],
         "--attn.window: an option of a block stands behind its name here, as in --blocks 'standard[window=...]'"),
        (["--blocks", "standard", "--train.steps", "4"], "--train.steps: no option 'steps'"),
        (["--blokcs", "standard"], "unknown option '--blokcs' (did you mean '--blocks'?)"),
        (["--blocks", "standard", "--model.n_heads", "3"], "n_heads=3 does not divide d_model=16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_terms_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert told in error_of(capsys, *words(tmp_path, *more))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("blcoks: standard\n", "no option group 'blcoks' (did you mean 'blocks'?)"),
        ("budget: {vlaue: 3}\n", "budget.vlaue: no option 'vlaue' (did you mean 'value'?)"),
        ("seeds: many\n", "seeds='many' should be int"),
        ("attn: {window: 4}\n", "no option group 'attn'"),
    ],
    ids=lambda value: value.strip() if "'" not in value else "",
)
def test_bad_terms_of_a_file_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text(text)
    said = error_of(capsys, "compare", "lm", "--config", str(path), "--out", str(tmp_path / "out"))
    assert said.startswith(f"{path}: ")
    assert told in said
