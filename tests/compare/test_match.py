"""The match solver: models of a comparison made equally large."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.compare.match import match, size_of
from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.registry.register import implementation, list_attention, list_ffn

REFERENCE = LMConfig(vocab_size=64, blocks="standard", d_model=64, n_layers=2, n_heads=4, context=32)


@pytest.mark.parametrize("blocks", ["standard", "standard*1/glu", "relu2", "standard+swiglu[d_ff=40]"])
def test_the_size_is_that_of_the_built_model(blocks):
    config = replace(REFERENCE, blocks=blocks)
    model = TransformerLM(config)
    head = 2 * config.d_model * config.vocab_size
    assert size_of(config).params == model.non_embedding_parameters
    assert size_of(config).flops == model.cost(config.context).flops // config.context - head


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["params", "flops"]),
    st.sampled_from(["relu2", "standard+standard", "glu", "standard[window=8]/relu2"]),
    st.sampled_from([64, 96, 128]),
    st.integers(2, 4),
)
def test_a_reachable_match_misses_by_at_most_two_percent(unit, blocks, width, depth):
    reference = replace(REFERENCE, d_model=width, n_layers=depth)
    found = match(reference, replace(reference, blocks=blocks), unit)
    assert abs(found.record["miss"]) <= 0.02
    assert size_of(found.config).of(unit) == found.record["got"]
    assert found.config.d_model % (2 * found.config.n_heads) == 0


def test_the_width_of_the_model_is_kept_when_the_hidden_width_is_enough():
    found = match(REFERENCE, replace(REFERENCE, blocks="relu2"), "params")
    assert found.config.d_model == REFERENCE.d_model
    assert set(found.record["changed"]) == {"d_ff"}


def test_an_option_the_user_wrote_is_never_changed():
    found = match(REFERENCE, replace(REFERENCE, blocks="swiglu[d_ff=32]"), "params")
    assert all(spec.ffn_options["d_ff"] == 32 for spec in found.config.layers)
    assert "d_ff" not in found.record["changed"]


def test_without_a_free_width_the_nearest_is_taken_and_its_miss_recorded():
    found = match(REFERENCE, replace(REFERENCE, blocks="relu2[d_ff=32]"), "params")
    assert found.record["changed"].keys() <= {"d_model", "n_layers"}
    assert 0.02 < abs(found.record["miss"]) < 0.05
    assert found.record["note"] == "the nearest that can be built"


def test_the_reference_and_an_unmatched_choice_stay_as_they_are():
    assert match(REFERENCE, REFERENCE, "params").config == REFERENCE
    other = replace(REFERENCE, blocks="relu2")
    unmatched = match(REFERENCE, other, "none")
    assert unmatched.config == other
    assert unmatched.record["miss"] != 0


def test_layers_of_a_pattern_are_scaled_together():
    found = match(REFERENCE, replace(REFERENCE, blocks="standard[window=8]+relu2/standard+standard"), "params")
    widths = [spec.ffn_options["d_ff"] for spec in found.config.layers]
    assert widths[0] == widths[1]


def test_an_unknown_unit_is_refused():
    with pytest.raises(InputError, match="not one of: params, flops, none"):
        match(REFERENCE, REFERENCE, "bytes")  # type: ignore[arg-type]


# Mixers that decode at all: what a language model can be built from.
CHOICES = [
    *(f"{name}+swiglu" for name in list_attention() if implementation("attn", name).traits.causal),
    *(f"standard+{name}" for name in list_ffn() if not implementation("ffn", name).traits.complex_valued),
    "tva+vft",
]


@pytest.mark.parametrize("blocks", CHOICES)
@pytest.mark.parametrize("unit", ["params", "flops"])
def test_every_registered_block_is_matched_within_two_percent(unit, blocks):
    reference = LMConfig(vocab_size=256, blocks="standard", d_model=128, n_layers=4, n_heads=4, context=128)
    model = replace(reference, blocks=blocks)
    try:
        _ = size_of(model)
    except InputError:
        pytest.skip("not for language models")
    assert abs(match(reference, model, unit).record["miss"]) <= 0.02
