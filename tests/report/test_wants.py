"""Conditions of a purpose: what may be typed, and who meets it."""

from __future__ import annotations

import pytest

from blockyard.errors import InputError
from blockyard.report.wants import FIGURES, figure_of, parse_want
from tests.fixtures.reports import synthetic_report

CHOICES = synthetic_report(names=("standard", "tva+vft", "spectral*3/standard"))["choices"]
NAMES = [choice["name"] for choice in CHOICES]


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("cache<1KiB", ["tva+vft"]),
        ("cache<=1024", ["tva+vft", "spectral*3/standard"]),
        ("cache <= 1.0 KiB", ["tva+vft", "spectral*3/standard"]),
        ("cache<=0.25*standard", ["tva+vft", "spectral*3/standard"]),
        ("decode>=standard", ["standard", "tva+vft"]),
        ("decode>standard", ["tva+vft"]),
        ("train>=0.6*standard", NAMES),
        ("train>10k", ["standard", "tva+vft"]),
        ("memory<=150MB", ["standard", "tva+vft"]),
        ("parameters<1e9", NAMES),
        ("flops<1_650_000", ["spectral*3/standard"]),
        ("cache<=spectral*3/standard", ["tva+vft", "spectral*3/standard"]),
        ("cache<=1*spectral*3/standard", ["tva+vft", "spectral*3/standard"]),
    ],
)
def test_conditions_select_the_choices_that_meet_them(text, met):
    want = parse_want(text, NAMES)
    assert [c["name"] for c in CHOICES if want.met_by(c, CHOICES)] == met


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("small", "should be a figure, < <= > or >="),
        ("cache=5", "should be a figure"),
        ("cashe<5", "'cashe' is not one of: cache, .*did you mean 'cache'"),
        ("cache<5 parsecs", "neither a number"),
        ("cache<standart", "nor one of the choices: standard, .*did you mean 'standard'"),
        ("cache<-1", "neither a number"),
        ("cache<x*standard", "neither a number"),
    ],
)
def test_other_words_are_refused_in_a_line(text, says):
    with pytest.raises(InputError, match=says):
        parse_want(text, NAMES)


def test_a_figure_that_was_not_measured_meets_nothing_and_is_said():
    blank = {**CHOICES[0], "cache_bytes_per_token": None, "speed": None, "memory": None}
    for figure in ("cache", "decode", "train", "memory"):
        assert figure_of(blank, figure) is None
        assert parse_want(f"{figure}<5", NAMES).met_by(blank, CHOICES) is None
        assert parse_want(f"{figure}<standard", NAMES).met_by(CHOICES[1], [blank]) is None
    assert all(figure_of(CHOICES[0], figure) for figure in FIGURES)


def test_a_speed_that_is_equal_but_for_noise_is_as_fast():
    near = {**CHOICES[1], "speed": {**CHOICES[1]["speed"], "decode_wall": {"median": 0.985 * 610}}}
    far = {**CHOICES[1], "speed": {**CHOICES[1]["speed"], "decode_wall": {"median": 0.975 * 610}}}
    want = parse_want("decode>=standard", NAMES)
    assert want.met_by(near, CHOICES) and not want.met_by(far, CHOICES)
