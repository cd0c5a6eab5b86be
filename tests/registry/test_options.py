"""Options read from signatures: a wrong one is named, with the nearest or its owner."""

import pytest

from blockyard.errors import InputError
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
