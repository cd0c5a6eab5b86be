"""Associative recall as zoology defines it: rows against the twin, their statistics, their settings."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.tasks.recall import data
from blockyard.tasks.recall.config import RecallConfig
from blockyard.tasks.recall.data import IGNORED, Draw, RecallData, make_rows
from tests.tasks.recall import twin


@st.composite
def configs(draw: st.DrawFn) -> RecallConfig:
    """Settings that fit, with one size."""
    pairs, passes = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    shortest = max(4, 2 * pairs * (passes + 1))
    return RecallConfig(
        length=shortest + 2 * draw(st.integers(0, 8)),
        vocab_size=draw(st.integers(max(4, 2 * pairs + 2), 40)),
        sizes=(pairs,),
        noise=draw(st.sampled_from(["random", "zeros"])),
        power_a=draw(st.sampled_from([0.01, 0.5, 1.0, 2.0])),
        passes=passes,
    )


def drawn(config: RecallConfig, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_rows(config, config.all_sizes[0], rows, Draw(seed, 1))


@settings(deadline=None, max_examples=200)
@given(configs(), st.integers(0, 2**32))
def test_a_row_is_what_the_definition_makes_of_its_draws(config: RecallConfig, seed: int) -> None:
    (pairs,), vocab = config.all_sizes, config.n_tokens
    end = 2 * pairs * config.passes
    for ids, targets in zip(*(found.tolist() for found in drawn(config, 3, seed))):
        keys, values = ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2]
        assert len(set(keys)) == pairs and all(1 <= key < vocab // 2 for key in keys)
        assert len(set(values)) == pairs and all(vocab // 2 <= value < vocab for value in values)
        asked = [t for t, wanted in enumerate(targets) if wanted != IGNORED]
        assert len(asked) == pairs and all(t >= end and t % 2 == 0 for t in asked)
        places = [next((t - end) // 2 for t in asked if ids[t] == key) for key in keys]
        fill = ids if config.noise == "random" else [0] * len(ids)
        assert (ids, targets) == twin.row(keys, values, places, fill, config.passes)
        assert all(0 <= token < vocab for token in ids)


@pytest.mark.parametrize("power_a", [0.01, 1.0, 2.0])
def test_places_follow_the_power_law_without_replacement(power_a: float) -> None:
    """Every way to give three of four places, against its exact probability; five standard errors and 24 ways."""
    config, rows = RecallConfig(length=14, vocab_size=16, sizes=(3,), power_a=power_a, noise="zeros"), 40_000
    ids, _ = drawn(config, rows)
    places = np.stack([(ids[:, 6:] == ids[:, [2 * i]]).argmax(axis=1) // 2 for i in range(3)], axis=1)
    counts, expected = Counter(map(tuple, places.tolist())), twin.chances(4, 3, power_a)
    assert sum(expected.values()) == pytest.approx(1)
    for way, chance in expected.items():
        assert abs(counts[way] - rows * chance) < 5 * (rows * chance * (1 - chance)) ** 0.5, way


def test_the_first_key_stands_at_its_distance_by_the_power_law() -> None:
    """The default row's 28 places; the share of the first is exact to a percent, and so is the mean."""
    config, rows = RecallConfig(sizes=(4,), vocab_size=4096, noise="zeros"), 30_000
    ids, _ = drawn(config, rows)
    first = (ids[:, 8:] == ids[:, [0]]).argmax(axis=1) // 2
    weights = np.array([twin.weight(place, 0.01) for place in range(28)])
    chances = weights / weights.sum()
    mean = (chances * np.arange(28)).sum()
    deviation = ((chances * np.arange(28) ** 2).sum() - mean**2) ** 0.5
    assert abs(first.mean() - mean) < 5 * deviation / rows**0.5
    assert abs((first == 0).mean() - chances[0]) < 5 * (chances[0] * (1 - chances[0]) / rows) ** 0.5


def test_keys_and_values_are_drawn_evenly_and_noise_is_of_the_whole_vocabulary() -> None:
    rows = 6000
    ids, targets = drawn(RecallConfig(length=12, vocab_size=13, sizes=(2,)), rows)
    for column, tokens in ((0, range(1, 6)), (2, range(1, 6)), (1, range(6, 13)), (3, range(6, 13))):
        counts = Counter(ids[:, column].tolist())
        assert set(counts) == set(tokens)
        even = rows / len(tokens)
        assert all(abs(count - even) < 5 * even**0.5 for count in counts.values())
    noise = Counter(ids[:, 5::2].ravel().tolist())  # questions stand at even positions
    assert set(noise) == set(range(13))
    even = sum(noise.values()) / 13
    assert all(abs(count - even) < 5 * even**0.5 for count in noise.values())
    assert (targets[:, 1::2] == IGNORED).all()


def test_zeros_stand_where_nothing_else_does() -> None:
    ids, targets = drawn(RecallConfig(length=20, vocab_size=32, sizes=(3,), noise="zeros"), 50)
    assert ((ids[:, 6:] != 0) == (targets[:, 6:] != IGNORED)).all()


def test_the_default_draws_values_without_repetition() -> None:
    """Sixteen of 127 values repeat in most rows where they are drawn with replacement."""
    for definition, repeats in (("zoology", False), ("early", True)):
        values = drawn(RecallConfig(sizes=(16,), definition=definition), 200)[0][:, 1:32:2]  # type: ignore[arg-type]
        assert any(len(set(row)) < 16 for row in values.tolist()) is repeats


@pytest.mark.parametrize(
    ("difficulty", "length", "pairs"), [("64/4", 64, 4), ("128/8", 128, 8), ("256/16", 256, 16), ("512/64", 512, 64)]
)
def test_a_difficulty_stands_for_numbers(difficulty: Any, length: int, pairs: int) -> None:
    config = RecallConfig(difficulty=difficulty)
    assert config == RecallConfig(length=length, vocab_size=8192, sizes=(pairs,), noise="zeros")
    ids, targets = drawn(config, 2)
    assert ids.shape == (2, length) and ((targets != IGNORED).sum(1) == pairs).all() and ids.max() >= 4096


def test_given_options_win_over_the_difficulty() -> None:
    config = RecallConfig(difficulty="128/8", vocab_size=512, noise="random", sizes=(4, 16))
    assert (config.length, config.vocab_size, config.sizes, config.noise) == (128, 512, (4, 16), "random")


def test_few_rows_at_once_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(RecallConfig(), 10)
    for most in (1, 400):
        monkeypatch.setattr(data, "MOST_AT_ONCE", most)
        assert all(np.array_equal(a, b) for a, b in zip(whole, drawn(RecallConfig(), 10)))


EARLY_SUMS: list[tuple[dict[str, Any], str]] = [
    ({}, "ccc26fa1ec63e05a"),
    ({"length": 41, "vocab_size": 64, "sizes": (3, 8)}, "87abb1d28c907cea"),
    ({"length": 24, "vocab_size": 33, "sizes": (4,)}, "458f24c1c508090c"),
]


def test_early_rows_are_what_they_were_to_the_bit() -> None:
    """The sums of batches that the version before drew with the same settings."""
    for options, digest in EARLY_SUMS:
        batch = RecallData(RecallConfig(definition="early", **options)).batch(3, 5, 24)
        whole = b"".join(batch[name].numpy().astype("<i8").tobytes() for name in ("input_ids", "targets"))
        assert sha256(whole).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"length": 63}, "data.length=63: rows of mqar are of even length; use 62 or 64"),
        ({"passes": 3, "sizes": (16,)}, "mqar with 16 key-value pairs takes 128 tokens, data.length is 64"),
        ({"vocab_size": 32, "sizes": (16,)}, "only 15 of 32 tokens are keys"),
        ({"difficulty": "512/64", "length": 128}, "takes 256 tokens, data.length is 128"),
        ({"difficulty": "64/8"}, "data.difficulty='64/8' is not one of: 64/4, 128/8"),
        ({"noise": "values"}, "data.noise='values' is not one of: random, zeros"),
        ({"definition": "late"}, "data.definition='late' is not one of: zoology, early"),
        ({"power_a": 0.0}, "data.power_a=0.0 should be above 0"),
        ({"power_a": float("nan")}, "data.power_a=nan should be above 0"),
        ({"power_a": float("inf")}, "data.power_a=inf should be above 0"),
        ({"passes": 0}, "data.passes=0 should be at least 1"),
        ({"definition": "early", "noise": "zeros"}, "data.noise=zeros is an option .* data.definition is early"),
        ({"definition": "early", "difficulty": "64/4"}, "data.difficulty=64/4 is an option of mqar"),
        ({"task": "copy", "passes": 2}, "data.passes=2 is an option of mqar .* the task is copy"),
        ({"task": "copy", "definition": "early"}, "data.definition=early is an option of mqar"),
    ],
    ids=str,
)
def test_settings_of_mqar_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        RecallConfig(**options)
