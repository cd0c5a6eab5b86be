"""Options read from signatures: a wrong one is named, with the nearest or its owner."""

import pytest

from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.register import (
    get_attention,
    get_ffn,
)


def test_misspelt_option_suggests_the_nearest():
    with pytest.raises(InputError, match=r"'windw' \(did you mean 'window'\?\)"):
        get_attention("standard", d_model=8, n_heads=2, windw=3)


def test_option_of_another_implementation_says_whose_it_is():
    with pytest.raises(InputError, match=r"'activation' is an option of: standard"):
        get_ffn("swiglu", d_model=8, activation="gelu")


@pytest.mark.parametrize("value", ["3", 2.5, True], ids=repr)
def test_wrong_type_names_option_value_and_type(value):
    with pytest.raises(InputError, match=r"window=.* should be int \| none"):
        get_attention("standard", d_model=8, n_heads=2, window=value)


def test_missing_required_option_is_named():
    with pytest.raises(InputError, match="needs n_heads"):
        get_attention("standard", d_model=8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2.4M", "rate='2.4M' should be float | none, such as 2400000"),
        ("2.4 MHz", "rate='2.4 MHz' should be float | none, such as 2400000"),
        ("2,400,000", "rate='2,400,000' should be float | none, such as 2400000"),
        ("0.25k", "rate='0.25k' should be float | none, such as 250"),
        ("5m", "rate='5m' should be float | none"),
        ("24,000,00", "rate='24,000,00' should be float | none"),
    ],
)
def test_a_number_with_a_prefix_or_commas_is_refused_with_how_it_is_written(text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        Option("rate", float | None, None).parse(text)
    assert str(raised.value) == words


def test_a_part_of_a_whole_number_gets_no_such_advice() -> None:
    with pytest.raises(InputError, match=r"steps='1.5' should be int$"):
        Option("steps", int, 1).parse("1.5")
