"""Transplants into models as they come: mixtures of experts, windows, biases, heads that are rotated in part."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.pretrained import load_pretrained
from blockyard.transplant import gather_moments, transplant
from blockyard.transplant.model import refusals
from tests.fixtures.pretrained import tiny

pytest.importorskip("transformers")
# Key heads of these models, and their width.
WHOLE = {
    "llama-2": (4, 8),
    "qwen2-yarn": (2, 8),
    "phi3-partial": (2, 8),
    "pythia": (4, 8),
    "gpt2": (4, 8),
    "mixtral": (2, 8),
    "qwen2-moe": (2, 8),
    "mistral": (2, 8),
}


def text(vocabulary: int = 96, pieces: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(3, vocabulary, (pieces, length), generator=torch.Generator().manual_seed(2))


def blocks_of(name: str) -> dict[str, str]:
    heads, width = WHOLE[name]
    whole = heads * width
    found = {
        "rotary PCA": f"standard[n_kv_heads=1,head_dim={whole},v_dim={whole}]",
        "values": f"standard[v_dim={width}]",
        "mean_pool": f"standard[n_kv_heads={heads},method=mean_pool]",
    }
    found["mla"] = f"mla[kv_rank={whole},rope_dim={whole}]"
    found["transmla"] = f"mla[kv_rank={whole},rope_dim={whole},method=transmla]"
    # Its keys are made anew of what the cache holds, which no window goes with; and no latent is wider than a model.
    if name != "mistral" and 2 * whole <= 32:
        found["palu"] = f"mla[kv_rank={2 * whole},method=palu]"
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_of_transformers_gives_the_same_logits_with_other_attention(name):
    theirs, model, ids = tiny(name), load_pretrained(tiny(name), check=False).model, text()
    moments = gather_moments(model, ids)
    with torch.no_grad():
        expected = theirs(ids).logits
        # Float32 sums in another order, of logits of some ten units.
        for kind, blocks in blocks_of(name).items():
            found = transplant(model, blocks, moments=moments)(ids).logits
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, msg=lambda m, kind=kind: f"{kind}: {m}")


def test_a_window_is_not_widened():
    model = load_pretrained(tiny("qwen2"), check=False).model
    for blocks in ("standard[window=6]", "standard[v_dim=8,window=6,sinks=2]", "standard[window=none]"):
        with pytest.raises(InputError, match=r"layer 1 has a window of 5; window=.* would show it more"):
            transplant(model, blocks, moments=gather_moments(model, text()))
    assert refusals(model, "standard[window=6]", range(3)).keys() == {1, 2}
    assert [layer.attn.window for layer in transplant(model, "standard[window=5]").layers] == [5, 5, 5]


def test_experts_and_their_routers_stay():
    model = load_pretrained(tiny("mixtral"), check=False).model
    new = transplant(model, "mla[kv_rank=10,rope_dim=8]", moments=gather_moments(model, text()))
    for old_layer, new_layer in zip(model.layers, new.layers):
        assert type(new_layer.ffn) is type(old_layer.ffn) and new_layer.attn is not old_layer.attn
        for name, tensor in old_layer.ffn.state_dict().items():
            assert torch.equal(tensor, new_layer.ffn.state_dict()[name]), name


def test_windows_of_some_layers_stay_theirs():
    model, ids = load_pretrained(tiny("qwen2"), check=False).model, text()
    new = transplant(model, "mla[kv_rank=16,rope_dim=16]", moments=gather_moments(model, ids))
    assert [layer.attn.window for layer in new.layers] == [layer.attn.window for layer in model.layers] == [None, 5, 5]
    torch.testing.assert_close(new(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen3", "normalised queries and keys"),
        ("qwen3-moe", "normalised queries and keys"),
        ("olmo2", "normalised queries and keys"),
        ("llama-dynamic", "which goes by the text's length"),
        ("phi3-longrope", "which goes by the text's length"),
    ],
)
def test_where_keys_are_not_read_values_are_fitted(name, words):
    model, ids = load_pretrained(tiny(name), check=False).model, text()
    model.eval().requires_grad_(False)
    moments, width = gather_moments(model, ids), model.layers[0].attn.v_dim
    with pytest.raises(InputError, match=f"layer 0 has .*{words}") as error:
        transplant(model, "standard[n_kv_heads=1,head_dim=16,v_dim=16]", moments=moments)
    assert "\n" not in str(error.value)
    same = transplant(model, f"standard[v_dim={width}]", moments=moments)
    torch.testing.assert_close(same(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    thin = transplant(model, "standard[v_dim=4]", moments=moments)
    assert thin.layers[0].attn.v_dim == 4 and thin.new_cache(1).bytes_per_token < model.new_cache(1).bytes_per_token


def test_latent_attention_is_no_source():
    model = load_pretrained(tiny("deepseek-v2"), check=False).model
    with pytest.raises(InputError, match="no layer of this model has standard attention"):
        gather_moments(model, text())
    with pytest.raises(InputError, match="layer 0 has mla; what is fitted starts from standard attention"):
        transplant(model, "standard[v_dim=4]")
    # A window hides keys and moves none, so that it goes with latents, too.
    assert transplant(model, "mla[window=4]").layers[1].attn.window == 4
