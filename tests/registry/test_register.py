"""Names: what is registered, listed, made or refused with the nearest name."""

import json

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.registry import register as registry
from blockyard.registry.register import (
    Traits,
    get_attention,
    implementation,
    list_attention,
    list_ffn,
    register_attn,
    register_ffn,
)


@pytest.fixture
def clean_register():
    saved = dict(registry._register.entries)
    yield
    registry._register.entries.clear()
    registry._register.entries.update(saved)


def test_standard_names_are_listed():
    assert "standard" in list_attention()
    assert {"standard", "swiglu", "glu", "relu2"} <= set(list_ffn())


def test_details_are_json_and_hold_traits_and_options():
    details = {d["name"]: d for d in list_attention(details=True)}
    assert details["standard"]["traits"]["causal"] is True
    assert details["standard"]["options"]["window"]["type"] == "int | none"
    assert "rotary" in details["standard"]["options"]["rope"]["help"]
    json.dumps(details)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"no attention named 'standart'\. Did you mean 'standard'\?"):
        get_attention("standart", d_model=8, n_heads=2)


def test_custom_mixer_by_decorator_trains_in_a_language_model(clean_register):
    @register_attn("shift", traits=Traits(causal=True, bidirectional=False))
    class Shift(nn.Module):
        def __init__(self, d_model, n_heads, distance: int = 1, **kwargs):
            super().__init__()
            self.distance = distance
            self.map = nn.Linear(d_model, d_model)

        def forward(self, x):
            return self.map(nn.functional.pad(x, (0, 0, self.distance, 0))[:, : x.shape[1]]), None

    with pytest.raises(InputError, match=r"'distnce' \(did you mean 'distance'\?\)"):
        get_attention("shift", d_model=8, n_heads=2, distnce=2)
    model = TransformerLM(LMConfig(vocab_size=11, blocks="shift[distance=2]", d_model=8, n_layers=2, n_heads=2))
    assert model.layers[1].attn.distance == 2
    ids = torch.randint(0, 11, (2, 7))
    model(ids, targets=ids).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_foreign_mixer_that_only_knows_masks_is_made_causal_by_one(clean_register):
    @register_attn("masked")
    class Masked(nn.Module):
        def __init__(self, d_model, n_heads, **kwargs):
            super().__init__()
            self.inner = nn.MultiheadAttention(d_model, n_heads, batch_first=True)

        def forward(self, x, attn_mask=None, **kwargs):
            return self.inner(x, x, x, attn_mask=attn_mask, need_weights=False)

    config = LMConfig(vocab_size=11, blocks="masked", d_model=8, n_layers=1, n_heads=2, zero_init_outputs=False)
    model = TransformerLM(config).eval()
    ids = torch.randint(0, 11, (1, 9))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :5], model(changed).logits[:, :5])


def test_mixer_that_cannot_be_causal_is_refused_by_the_language_model(clean_register):
    register_attn("both_ways", traits=Traits(causal=False))(type("BothWays", (nn.Module,), {"__init__": _init}))
    with pytest.raises(InputError, match="'both_ways' cannot be causal"):
        TransformerLM(LMConfig(vocab_size=5, blocks="both_ways", d_model=8, n_heads=2))


def _init(self, d_model: int, n_heads: int) -> None:
    nn.Module.__init__(self)


def test_taken_name_is_refused(clean_register):
    with pytest.raises(InputError, match="'standard' is already registered"):
        register_attn("standard")(type("Other", (nn.Module,), {}))
    with pytest.raises(InputError, match="'relu2' is already registered"):
        register_ffn("relu2")(type("Other", (nn.Module,), {}))


def test_group_defaults_to_the_name(clean_register):
    register_ffn("mine")(type("Mine", (nn.Module,), {"__init__": lambda self, d_model, width: None}))
    assert implementation("ffn", "mine").group == "mine"
    assert list(implementation("ffn", "mine").options) == ["width"]
