"""The grammar of block choices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig
from blockyard.registry.pattern import LayerSpec, format_choice, parse_choice, repeat_to_depth, split_choices


def test_mixer_alone_takes_the_default_ffn():
    assert parse_choice("standard") == [LayerSpec("standard", "swiglu")]


def test_lone_ffn_name_means_standard_attention():
    assert parse_choice("relu2[d_ff=64]") == [LayerSpec("standard", "relu2", {}, {"d_ff": 64})]


def test_options_are_read_by_their_types():
    [layer] = parse_choice("standard[window=256, qk_norm=false, rope=none]")
    assert layer.attn_options == {"window": 256, "qk_norm": False, "rope": "none"}


def test_repeats_and_joins():
    layers = parse_choice("standard[window=8]*3/standard+relu2")
    assert [layer.ffn for layer in layers] == ["swiglu"] * 3 + ["relu2"]
    assert LMConfig(vocab_size=5, blocks="standard*3/relu2", n_layers=8).layers[3].ffn == "relu2"


def test_short_pattern_repeats_over_the_depth():
    layers = [LayerSpec("standard", "relu2"), LayerSpec()]
    assert [layer.ffn for layer in repeat_to_depth(layers, 5)] == ["relu2", "swiglu", "relu2", "swiglu", "relu2"]


def test_pattern_longer_than_the_depth_is_refused():
    with pytest.raises(InputError, match="names 3 layers, but n_layers=2"):
        repeat_to_depth([LayerSpec()] * 3, 2)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("standard,relu2", ["standard", "relu2"]),
        ("standard[window=8,qk_norm=true]", ["standard[window=8,qk_norm=true]"]),
        ("standard;relu2[d_ff=64];", ["standard", "relu2[d_ff=64]"]),
    ],
)
def test_choices_are_separated_by_semicolon_or_comma(text, choices):
    assert split_choices(text) == choices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("standart", r"no attention named 'standart'\. Did you mean 'standard'\?"),
        ("standard[windw=3]", r"'windw' \(did you mean 'window'\?\)"),
        ("standard[window=three]", r"window='three' should be int \| none"),
        ("standard[window]", "key=value"),
        ("standard[window=3", "unbalanced"),
        ("standard+swiglu+glu", "should be MIXER"),
        ("standard+", "should be MIXER"),
        ("standard*0", "repeated 1 to 10000 times"),
        ("standard*100000000000", "repeated 1 to 10000 times"),
        ("swiglu[activation=gelu]", "'activation' is an option of: standard"),
        ("standard[d_model=3]", "has no option 'd_model'"),
    ],
)
def test_wrong_text_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_choice(text)
    assert "\n" not in str(raised.value)


TABLES = st.lists(st.floats(0, 4), min_size=1, max_size=3).map(tuple)
MIXER = {"window": st.integers(1, 99) | st.none(), "qk_norm": st.booleans(), "rope_frequencies": TABLES}
layer_specs = st.builds(
    LayerSpec,
    st.just("standard"),
    st.sampled_from(["swiglu", "relu2", "standard"]),
    st.fixed_dictionaries({}, optional=MIXER),
    st.fixed_dictionaries({}, optional={"d_ff": st.integers(1, 999)}),
)


STABILIZERS = st.sampled_from([None, "none", "diag", "full"])
vein_specs = st.builds(
    LayerSpec,
    st.just("tva"),
    st.just("vft"),
    st.fixed_dictionaries({}, optional={"stabilizer": STABILIZERS, "rope": st.sampled_from(["none", "half"])}),
    st.fixed_dictionaries({}, optional={"stabilizer": STABILIZERS}),
)


@given(st.lists(layer_specs | vein_specs, min_size=1, max_size=5))
def test_formatted_choice_reads_back_as_itself(layers):
    assert parse_choice(format_choice(layers)) == layers
