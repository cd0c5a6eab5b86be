"""Fixtures of the classify task."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

ANIMALS = {"cat": ("meow", "purr"), "dog": ("woof", "bark"), "cow": ("moo", "munch")}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Sixty rows; the label follows from one word of the text."""
    path = tmp_path / "sounds.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sound", "animal"])
        for i in range(60):
            animal = list(ANIMALS)[i % 3]
            writer.writerow([f'it says "{ANIMALS[animal][i % 2]}", {i} times, {"and on " * (i % 5)}', animal])
    return path
