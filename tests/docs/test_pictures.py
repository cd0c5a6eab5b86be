"""The pictures of the ideas are what benchmarks/idea_pictures.py draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from idea_pictures import PICTURES, main
from tests.fixtures.folders import ROOT


def test_every_picture_of_an_idea_is_drawn_by_the_script() -> None:
    there = {file.name.removesuffix("-idea.png") for file in (ROOT / "docs" / "images").glob("*-idea.png")}
    assert there == set(PICTURES)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_png_of_its_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--only", name]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f"{name}-idea.png")]
    assert (tmp_path / f"{name}-idea.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file"), "--only", "moe"]) == 2
    assert capsys.readouterr().out.startswith("error: ")
