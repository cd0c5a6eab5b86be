"""Recall data: every answer is in the row, and a batch is a function of seed and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.recall.config import TASKS, RecallConfig
from blockyard.tasks.recall.data import IGNORED, RecallData


def rows(task: str, **options: Any) -> tuple[list[list[int]], list[list[int]]]:
    batch = RecallData(RecallConfig(task, **options)).batch(3, 5, 24)  # type: ignore[arg-type]
    return batch["input_ids"].tolist(), batch["targets"].tolist()


def test_mqar_asks_every_key_once_more_for_its_value() -> None:
    for ids, targets in zip(*rows("mqar", length=40, vocab_size=65, sizes=(3, 8))):
        asked = [t for t, wanted in enumerate(targets) if wanted != IGNORED]
        pairs = len(asked)
        assert pairs in (3, 8)
        value_of = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2]))
        assert len(value_of) == pairs
        assert sorted(ids[t] for t in asked) == sorted(value_of)
        assert all(targets[t] == value_of[ids[t]] and t >= 2 * pairs for t in asked)


def test_induction_ends_with_the_marker_and_asks_what_followed_it() -> None:
    for ids, targets in zip(*rows("induction", length=20, vocab_size=16, sizes=(2, 7))):
        first = ids.index(15)
        assert ids[-1] == 15 and ids.count(15) == 2 and 19 - first in (2, 7)
        assert targets[:-1] == [IGNORED] * 19 and targets[-1] == ids[first + 1]


def test_copy_writes_the_string_again() -> None:
    for ids, targets in zip(*rows("copy", length=12, vocab_size=16, sizes=(2, 5))):
        separator = ids.index(15)
        count = 11 - separator
        assert ids[separator - count : separator] == ids[separator + 1 :]
        assert targets[separator:-1] == ids[separator + 1 :] and count in (2, 5)
        assert set(targets[:separator] + targets[-1:]) == {IGNORED}


def test_lag_asks_for_the_token_so_many_positions_ago() -> None:
    for ids, targets in zip(*rows("lag", length=12, sizes=(4,))):
        assert targets == [IGNORED] * 4 + ids[:-4]


def test_selective_copy_asks_for_the_scattered_tokens_in_order() -> None:
    for ids, targets in zip(*rows("selective_copy", length=20, vocab_size=16, sizes=(3, 6))):
        answers = [wanted for wanted in targets if wanted != IGNORED]
        assert len(answers) in (3, 6)
        assert ids[-len(answers) :] == [15] * len(answers)
        assert [i for i in ids[: -len(answers)] if i] == answers == targets[-len(answers) :]


def test_random_tokens_are_uniform_and_each_asks_for_the_next() -> None:
    ids, targets = rows("random", length=400, vocab_size=8)
    assert ids[0][1:] == targets[0][:-1]
    counts = torch.tensor(ids).flatten().bincount(minlength=8) / (24 * 400)
    assert counts.min() > 0.11 and counts.max() < 0.14


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_a_function_of_seed_and_step_and_splits_into_rows(task: str) -> None:
    data = RecallData(RecallConfig(task))  # type: ignore[arg-type]
    whole, again = data.batch(1, 2, 10), data.batch(1, 2, 10)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert not torch.equal(whole["input_ids"], data.batch(1, 3, 10)["input_ids"])
    assert not torch.equal(whole["input_ids"], data.batch(2, 2, 10)["input_ids"])
    assert torch.equal(whole["targets"][4:7], data.batch(1, 2, 10, slice(4, 7))["targets"])
    for size in data.config.all_sizes:
        validation = data.val_rows(size)["input_ids"]
        assert torch.equal(validation, data.val_rows(size)["input_ids"])
        assert int(validation.min()) >= 0 and int(validation.max()) < data.config.vocab_size


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task": "recal"}, "data.task='recal' is not one of: mqar"),
        ({"sizes": (32,)}, "mqar with 32 key-value pairs takes 128 tokens, data.length is 64"),
        ({"sizes": (8,), "vocab_size": 12}, "only 5 of 12 tokens are keys"),
        ({"task": "lag", "sizes": (2, 4)}, "the lag task has one lag"),
        ({"task": "induction", "sizes": (1,)}, "at distance 1"),
        ({"sizes": (0,)}, "at least 1"),
        ({"length": 2}, "data.length=2 is too small"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        RecallConfig(**options)
