"""Names in any script in figures: drawn where a font has the letters, told in one line where none has."""

from __future__ import annotations

import io
import warnings

import pytest

from blockyard.report import fonts

figures = pytest.importorskip("matplotlib.figure")


def drawn(text: str) -> None:
    figure = figures.Figure()
    figure.text(0.5, 0.5, text)
    fonts.save_figure(figure, io.BytesIO(), format="png")


def test_letters_that_no_font_has_are_told_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fonts, "families", lambda: (fonts.OWN,))
    monkeypatch.setattr(fonts, "_told", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn("平安银行")
        said = capsys.readouterr().err
        assert said.startswith("note: no font here has the letters 平安银行; ") and said.count("\n") == 1
        drawn("平安")
        assert capsys.readouterr().err == ""


def test_other_warnings_are_passed_on() -> None:
    with pytest.warns(UserWarning, match="something else"), fonts.with_letters():
        warnings.warn("something else", stacklevel=1)


def test_an_installed_font_with_more_letters_stands_behind_the_own_one(capsys: pytest.CaptureFixture[str]) -> None:
    if len(fonts.families()) == 1:
        pytest.skip("no font with letters of East Asia is installed")
    assert fonts.families()[0] == fonts.OWN
    drawn("平安银行 日付")
    assert capsys.readouterr().err == ""
