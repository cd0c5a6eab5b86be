"""The source documents' python examples, found beside the repository and run as they stand."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest


def seed(name: str) -> str:
    """Text of shared/seeds/NAME; skips the test, with the reason, where the documents are not at hand."""
    roots = [Path(os.environ["BLOCKYARD_SHARED"])] if "BLOCKYARD_SHARED" in os.environ else []
    roots += [parent / "shared" for parent in Path(__file__).resolve().parents]
    for root in roots:
        path = root / "seeds" / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    pytest.skip(f"{name} is not here: set BLOCKYARD_SHARED to the folder that holds seeds/{name}")


def python_examples(text: str) -> list[str]:
    """The fenced python blocks of a document, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
