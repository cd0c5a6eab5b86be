"""The picture of a recording: what its columns are the mean of, and that there are never more than fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.frontend import Waterfall
from blockyard.tasks.signal.frontend.spectra import averaged
from blockyard.tasks.signal.frontend.votes import Found
from blockyard.tasks.signal.frontend.waterfall import BINS, MOST_COLUMNS, MOST_FOUND
from blockyard.tasks.signal.recordings.recording import Recording, Span
from tests.fixtures.foreign_recordings import noise

pytest.importorskip("matplotlib", reason="extra report")


def samples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(count, np.random.default_rng(seed)).astype(np.complex64))


@pytest.mark.parametrize("size", [1000, 1 << 16, 1 << 22], ids=lambda size: f"blocks of {size}")
def test_columns_are_means_over_their_stretch_of_time(tmp_path, monkeypatch, size: int) -> None:
    monkeypatch.setattr("blockyard.tasks.signal.frontend.waterfall.MOST_COLUMNS", 64)
    picture, count = Waterfall(tmp_path / "a.png"), 64 * 512 * 8
    wide = samples(count)
    # Louder and louder, so that columns differ.
    wide *= torch.linspace(1, 4, count)
    for start in range(0, count, size):
        picture.add(start, wide[start : start + size])
    power, width = picture._decibels()
    assert len(power) <= 64 and width == 4096
    for column in (0, 20, 63):
        expected = averaged(wide[column * width : (column + 1) * width], BINS).mean()
        found = float((10 ** (power[column] / 10)).mean())
        assert found == pytest.approx(float(expected), rel=0.12)


def test_an_hour_takes_no_more_columns_than_a_second(tmp_path) -> None:
    picture = Waterfall(tmp_path / "a.png")
    block = samples(1 << 20)
    # The same million samples as if an hour of two million a second had gone by between them.
    for number in range(40):
        picture.add(number * 180_000_000, block)
    assert len(picture._sum) <= MOST_COLUMNS and picture._width * MOST_COLUMNS >= 7_000_000_000
    for number in range(3 * MOST_FOUND):
        picture.mark(Found(number, number + 1, "a", 1.0, 1))
    assert len(picture._found) <= 2 * MOST_FOUND + 1
    recording = Recording("x", "numbers", None, (Span(0, None, 100e6),), 2e6)
    picture.write(recording, "an hour")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_strip_has_the_class_that_took_most_of_each_column(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("blockyard.tasks.signal.frontend.waterfall.MOST_COLUMNS", 8)
    picture = Waterfall(tmp_path / "a.png")
    expected = torch.zeros(2, 8 * 1024)
    place = 0
    for number, count in enumerate((700, 300, 2048, 512, 3000, 1632)):
        picture.add(place, samples(count))
        name = "ab"[number % 2]
        picture.mark(Found(place, place + count, name, 0.9, count // 100))
        expected["ab".index(name), place : place + count] = 1
        place += count
    assert place == 8 * 1024 and picture._width == 1024
    for row, name in zip(expected, "ab"):
        assert picture._strip[name].tolist() == pytest.approx(row.view(8, 1024).mean(1).tolist(), abs=1e-3)
    assert picture._counts == {"a": 7 + 20 + 30, "b": 3 + 5 + 16}
    picture.write(Recording("x", "numbers", None, (Span(0, None),), None), "two classes")


def test_a_place_that_is_none_is_refused_before_the_work(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (("a.xyz", "should end in one of"), ("file/a.png", "cannot write")):
        with pytest.raises(InputError, match=message):
            Waterfall(tmp_path / name)
    with pytest.raises(InputError, match="fewer samples than the 512"):
        Waterfall(tmp_path / "a.png").write(Recording("x", "numbers", None, (), 1.0), "")
