"""Labelled data: the split keeps every class and group, an epoch goes through all documents once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.classify.config import LabelledConfig
from blockyard.tasks.classify.data import load_labelled, split
from blockyard.tasks.classify.reader import Row
from tests.fixtures.labelled import groups


def test_one_label_alone_and_labels_never_trained_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    (tmp_path / "two.csv").write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    (tmp_path / "new.csv").write_text("text,label\na,z\n")
    with pytest.raises(InputError, match="every row has the label 'x'"):
        load_labelled(LabelledConfig(str(tmp_path / "one.csv")), 8, 1)
    with pytest.raises(InputError, match="no training row has the label 'z'"):
        load_labelled(LabelledConfig(str(tmp_path / "two.csv"), str(tmp_path / "new.csv")), 8, 1)


def test_the_split_keeps_a_share_of_every_class_and_groups_together() -> None:
    rows = [Row(f"{label} {i}", label, f"{label}{i // 4}") for label in ("a", "b") for i in range(40)]
    train_rows, val_rows = split(rows, 0.2)
    assert sorted(map(str, train_rows + val_rows)) == sorted(map(str, rows))
    assert {label: sum(row.label == label for row in val_rows) for label in ("a", "b")} == {"a": 8, "b": 8}
    assert not {row.group for row in train_rows} & {row.group for row in val_rows}
    shuffled = split(rows[::-1], 0.2)[1]
    assert {row.group for row in shuffled} == {row.group for row in val_rows}


def test_an_epoch_goes_through_all_documents_once_and_batches_split_into_rows(sounds: Path) -> None:
    options = groups(sounds)["data"]
    data = load_labelled(LabelledConfig(**options), 32, 2)
    count = len(data.train_classes)
    seen = torch.cat([data.batch(0, step, count // 4)["targets"] for step in range(4)])
    assert sorted(seen.tolist()) == sorted(data.train_classes[data._order(0, 0)][: len(seen)].tolist())
    whole, part = data.batch(3, 7, 12), data.batch(3, 7, 12, slice(4, 8))
    assert torch.equal(whole["targets"][4:8], part["targets"])
    assert whole["padding_mask"].sum() == (data.batch(3, 7, 12)["padding_mask"]).sum()
