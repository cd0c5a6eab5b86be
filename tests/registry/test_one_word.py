"""A word where a list of words may stand, and paths where text may: in Python and in files of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockyard.errors import InputError
from blockyard.registry.options import options_of
from blockyard.registry.schema import option_schema
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.text.config import TextDataConfig

FILES = options_of(PriceDataConfig)["path"]


@pytest.mark.parametrize("given", ["a, b.csv", Path("a, b.csv"), ["a, b.csv"], (Path("a, b.csv"),)])
def test_one_file_of_prices_needs_no_list(given) -> None:
    # A comma may be part of a name; on the command line it separates, as there is nothing else that could.
    assert FILES.check(given) == ("a, b.csv",)


def test_none_and_wrong_types_are_as_they_were() -> None:
    assert FILES.check(None) is None
    for wrong in (3, [3], {"a": 1}, b"a.csv", Path):
        with pytest.raises(InputError, match=r"should be list of str"):
            FILES.check(wrong)


def test_a_path_is_text_where_one_file_is_wanted() -> None:
    path = options_of(TextDataConfig)["path"]
    assert path.check(Path("texts")) == "texts"
    with pytest.raises(InputError, match="path"):
        path.check(["texts"])


def test_the_schema_for_editors_takes_both() -> None:
    assert {"type": "string"} in option_schema(FILES)["anyOf"][0]["anyOf"]
