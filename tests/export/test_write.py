"""`blockyard export RUN --to pt2|onnx`: a folder that was read again before it took its name, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.cli import main
from blockyard.export import formats, parity, write_pt2
from tests.fixtures.cli import TEXT, error_of, shown, words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "text.txt").write_text(TEXT)
    given = words(folder, **{"data.tokenizer": "bpe", "data.vocab_size": 300})
    assert main([*given, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_folder_has_the_model_its_tokenizer_and_what_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = shown(capsys, "export", str(run), "--to", "pt2", "--out", str(out))
    assert "read again by torch: logits at lengths 1, 7, 33 and 300 differ by" in told
    assert told.splitlines()[-1] == str(out)
    assert {path.name for path in out.iterdir()} == {"model.pt2", "vocab.json", "merges.txt"}
    about = {formats.ABOUT: ""}
    torch.export.load(out / "model.pt2", extra_files=about)
    said = json.loads(about[formats.ABOUT])
    assert (said["task"], said["vocab_size"], said["tokenizer"]) == ("lm", 300, "bpe")
    # The path of whoever made it is nobody's business.
    assert str(Path(formats.__file__).parent.parent).encode() not in (out / "model.pt2").read_bytes()


def test_a_file_that_computes_something_else_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(folder: Path) -> Any:
        right = formats.load_pt2(folder)
        return lambda inputs: right(inputs) * (1 + 3 * parity.TOLERANCE)

    monkeypatch.setattr("blockyard.export.write.load_pt2", wrong)
    said = error_of(capsys, "export", str(run), "--to", "pt2", "--out", str(tmp_path / "out"))
    assert said.startswith("the file computes another function than the model, and is not kept: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_no_parity(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, value: float
) -> None:
    def wrong(folder: Path) -> Any:
        right = formats.load_pt2(folder)
        return lambda inputs: torch.full_like(right(inputs), value)

    monkeypatch.setattr("blockyard.export.write.load_pt2", wrong)
    assert "is not kept" in error_of(capsys, "export", str(run), "--to", "pt2", "--out", str(tmp_path / "out"))


def test_a_missing_extra_is_one_line_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    said = error_of(capsys, "export", str(tmp_path / "no run"), "--to", "onnx", "--out", str(tmp_path / "out"))
    assert said == "onnx is not installed; run: pip install 'blockyard[onnx]'"


def test_refusals(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("")
    given = ("export", str(run), "--to", "pt2", "--out")
    assert "is there already; name a new folder" in error_of(capsys, *given, str(tmp_path / "full"))
    assert "is no folder" in error_of(capsys, *given, str(tmp_path / "full" / "kept" / "out"))
    said = error_of(capsys, *given, str(tmp_path / "out"), "--as", "yard")
    assert said == "--as=yard is of --to hf; a graph has no architecture but its own"
    assert "holds no run" in error_of(capsys, "export", str(tmp_path), "--to", "pt2", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_says_what_it_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    out = tmp_path / "out"
    told = shown(capsys, "export", str(run), "--to", "onnx", "--out", str(out))
    assert "read again by onnxruntime: logits at lengths 1, 7, 33 and 300 differ by" in told
    session = runtime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("input_ids", ["batch", "length"])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", ["batch", "length", 300])]
    assert session.get_modelmeta().custom_metadata_map["blocks"].startswith("standard")


def test_python_gives_the_comparison(run: Path, tmp_path: Path) -> None:
    found = write_pt2(run, tmp_path / "out")
    assert 0 <= found.largest <= parity.TOLERANCE * found.size
    assert found.lengths == (1, 7, 33, 300)
