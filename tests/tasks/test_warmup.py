"""A warm-up that nobody names follows the run's length; runs of older versions, which wrote 20, go on with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.meaning import as_begun
from blockyard.tasks.run import load_run, train


def groups(steps: int, **options: Any) -> dict[str, Any]:
    quiet = {"batch_size": 2, "compile": "off", "threads": 1, "device": "cpu", "eval_batches": 1, "progress": False}
    return {
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1},
        "data": {"length": 16, "vocab_size": 16, "sizes": (2,), "val_rows": 2},
        "train": {"steps": steps, **quiet, **options},
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).model.state_dict()


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_whose_warm_up_was_an_older_versions_goes_on_with_it(tmp_path: Path) -> None:
    # What an older version wrote for want of a word.
    for name in ("old", "named", "other"):
        train(groups(24, warmup=20), tmp_path / name, task="recall")
    train(groups(26), tmp_path / "old", resume=True, task="recall")
    train(groups(26, warmup=20), tmp_path / "named", resume=True, task="recall")
    assert same(tmp_path / "old", tmp_path / "named")
    with pytest.raises(InputError, match=r"train\.warmup \(was 20, now 3\)"):
        train(groups(26, warmup=3), tmp_path / "other", resume=True, task="recall")


def test_more_steps_lengthen_a_warm_up_that_nobody_names(tmp_path: Path) -> None:
    train(groups(4), tmp_path / "run", task="recall")
    train(groups(40), tmp_path / "run", resume=True, task="recall")
    run = load_run(tmp_path / "run").run
    assert run.train.warmup is None and run.train.warm_steps == 5


@pytest.mark.parametrize(
    ("steps", "warmup", "kept"), [(300, 20, 20), (12, 1, 1), (12, 20, 20), (300, 5, None), (12, 2, None)]
)
def test_only_the_warm_up_that_older_versions_had_by_default_is_kept(steps: int, warmup: int, kept: int | None) -> None:
    begun = as_begun({"train": {"steps": 400}}, {"train": {"steps": steps, "warmup": warmup}}, "lm")
    assert begun["train"].get("warmup") == kept
    named = as_begun({"train": {"warmup": 7}}, {"train": {"steps": steps, "warmup": warmup}}, "lm")
    assert named["train"]["warmup"] == 7


@pytest.mark.parametrize("written", [{}, {"train": "nothing"}, {"train": {"steps": "many", "warmup": 20}}], ids=str)
def test_what_a_folder_says_in_other_words_is_left_to_the_comparison(written: dict[str, Any]) -> None:
    assert "warmup" not in as_begun({"train": {}}, written, "lm")["train"]
