"""Every family that is read: logits as transformers', padded and cached too; through files; and back bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from blockyard.conformance.subject import own_random
from blockyard.errors import InputError
from blockyard.generation import SamplingConfig, generate_batch
from blockyard.pretrained import load_pretrained
from blockyard.pretrained.families import FAMILIES
from blockyard.pretrained.load import read_config
from blockyard.pretrained.weights import write_weights
from tests.fixtures.pretrained import MODELS, tiny

pytest.importorskip("transformers")

# Float32 sums in two orders, through three layers, in parts of the largest logit.
ROUNDING = 1e-5
every = pytest.mark.parametrize("name", MODELS)


def ids_of(rows, length, seed=0):
    with own_random(seed):
        return torch.randint(3, 96, (rows, length))


def assert_close(actual, expected):
    assert (actual - expected).abs().max() <= ROUNDING * expected.abs().max()


@every
@torch.no_grad()
def test_logits_are_those_of_transformers(name):
    original, ours = tiny(name), load_pretrained(tiny(name)).model
    ids = ids_of(2, 33)
    assert_close(ours(ids).logits, original(ids).logits)


@every
@torch.no_grad()
def test_logits_of_rows_as_long_as_the_context_are_too(name):
    """Beyond every window, and beyond the original context of every scaled rotation."""
    original, ours = tiny(name), load_pretrained(tiny(name), check=False).model
    ids = ids_of(1, 128)
    assert_close(ours(ids).logits, original(ids).logits)


@every
@torch.no_grad()
def test_left_padded_and_cached_logits_are_those_of_transformers(name):
    original, ours = tiny(name), load_pretrained(tiny(name), check=False).model
    ids, keep = ids_of(2, 22), torch.ones(2, 22, dtype=torch.long)
    keep[0, :5] = 0
    places = (keep.cumsum(-1) - 1).clamp(min=0)
    expected = original(ids, attention_mask=keep, position_ids=places).logits
    cache = ours.new_cache(2)
    pieces = []
    for start, end in ((0, 9), (9, 20), (20, 21), (21, 22)):
        pieces.append(ours(ids[:, start:end], padding_mask=keep[:, :end], cache=cache).logits)
    actual = torch.cat(pieces, dim=1)
    assert_close(actual[keep.bool()], expected[keep.bool()])


@every
def test_a_saved_model_is_read_as_the_one_in_memory_and_goes_back_bit_for_bit(name, tmp_path):
    from safetensors.torch import load_file

    original = tiny(name)
    original.save_pretrained(tmp_path, max_shard_size="40KB")
    found = load_pretrained(tmp_path, check=False)
    in_memory = load_pretrained(original, check=False).model.state_dict()
    for key, weight in found.model.state_dict().items():
        assert torch.equal(weight, in_memory[key]), key
    kept = {}
    for file in tmp_path.glob("*.safetensors"):
        kept |= load_file(file)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    written = write_weights(FAMILIES[found.config["model_type"]], found.model)
    assert written.keys() == kept.keys()
    for key, weight in written.items():
        assert torch.equal(weight, kept[key]), key


def test_bfloat16_weights_are_read_exactly(tmp_path):
    half = copy.deepcopy(tiny("llama")).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path)
    assert found.dtype == "bfloat16" and found.parity is not None
    assert found.model.layers[0].attn.q_proj.weight.dtype == torch.float32
    assert torch.equal(found.model.layers[0].attn.q_proj.weight, half.model.layers[0].self_attn.q_proj.weight.float())
    kept = load_pretrained(tmp_path, dtype=None, check=False).model
    assert next(kept.parameters()).dtype == torch.bfloat16


@torch.no_grad()
def test_longrope_turns_long_rows_by_its_long_factors_as_transformers_does():
    original, ours = tiny("phi3-longrope"), load_pretrained(tiny("phi3-longrope"), check=False).model
    ids = ids_of(1, 64)
    assert_close(ours(ids).logits, original(ids).logits)
    cache = ours.new_cache(1)
    ours(ids[:, :40], cache=cache)
    with pytest.raises(InputError, match="read the row again as a whole"):
        ours(ids[:, 40:41], cache=cache)


@pytest.mark.parametrize("name", ["phi3-longrope", "llama-dynamic"])
@torch.no_grad()
def test_text_grows_past_the_length_at_which_the_rotation_changes(name):
    """Rows of unequal length, each as it is when it is read again as a whole for every token."""
    ours = load_pretrained(tiny(name), check=False).model
    (scaling,) = {layer.attn.rope.scaling for layer in ours.layers}
    prompts = [ids_of(1, scaling.original - 3)[0].tolist(), ids_of(1, scaling.original - 9, seed=1)[0].tolist()]
    # The model's own context ends where dynamic scaling begins.
    ours.config = replace(ours.config, context=scaling.original + 64)
    greedy, asked = SamplingConfig(temperature=0.0), {"max_new_tokens": 14}
    cached = generate_batch(ours, prompts, sampling=greedy, **asked)
    assert cached == generate_batch(ours, prompts, sampling=greedy, use_cache=False, **asked)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not understood"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_key_value_heads": 3}, "n_kv_heads=3 does not divide"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "rope_type is 'mrope'"),
        ({"rope_parameters": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "twist": 2}}, "twist=2 is not understood"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "one set for all layers"),
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not read: its capped scores"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"tie_word_embeddings": True}, "is tied to the embedding by the configuration, and holds other numbers"),
        ({"num_hidden_layers": 2}, "no place for model.layers.2"),
        ({"num_hidden_layers": 4}, "has no model.layers.3"),
        ({"intermediate_size": 64}, "has shape"),
        ({"attention_bias": True}, "has no model.layers.0.self_attn.q_proj.bias"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused_by_its_name(change, named, tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError) as refused:
        load_pretrained(tmp_path, check=False)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_fields_that_say_nothing_of_the_function_are_passed_over(tmp_path):
    """As SmolLM2's and its like have them, with the rotary settings of before version 5."""
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    older = {"rope_theta": 10000.0, "rope_scaling": None, "is_llama_config": True, "rope_interleaved": False}
    older |= {"pretraining_tp": 1, "torch_dtype": "float32", "transformers.js_config": {"dtype": "q4"}, "top_p": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({**config, **older}))
    assert load_pretrained(tmp_path).parity is not None
    (tmp_path / "config.json").write_text(json.dumps({**config, **older, "rope_interleaved": True}))
    with pytest.raises(InputError, match="rope_interleaved=True is not understood"):
        load_pretrained(tmp_path, check=False)


@pytest.mark.parametrize(
    ("name", "said", "left_out"),
    [
        ("qwen2", {"max_window_layers": 1}, ("layer_types", "sliding_window")),
        ("qwen2", {"max_window_layers": 1, "sliding_window": None}, ("layer_types",)),
        ("qwen2-moe", {"max_window_layers": 2}, ("layer_types", "sliding_window")),
        ("qwen3-moe", {}, ("sliding_window",)),
        ("mistral", {}, ("sliding_window",)),
        ("mistral", {"sliding_window": None}, ()),
    ],
    ids=["qwen2", "qwen2 null", "qwen2-moe", "qwen3-moe", "mistral", "mistral null"],
)
def test_windows_that_a_configuration_does_not_spell_out_are_transformers(name, said, left_out):
    """Which layers slide, and how far, where older files say it in other words or not at all."""
    config = {**tiny(name).config.to_dict(), **({} if name == "mistral" else {"use_sliding_window": True}), **said}
    config = {field: value for field, value in config.items() if field not in left_out}
    theirs = type(tiny(name).config)(**{field: value for field, value in config.items() if field != "model_type"})
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    expected = [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    layers = read_config(config, "it")[1].layers
    assert [layer.attn_options.get("window") for layer in layers] == expected


@pytest.mark.parametrize("name", ["gpt2", "pythia"])
def test_checkpoints_of_base_models_with_their_buffers_are_read(name, tmp_path):
    """GPT-2's on the Hub has no prefix, and old ones hold masks and frequencies."""
    from safetensors.torch import load_file, save_file

    original = tiny(name)
    original.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if name == "gpt2":
        weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
        extra = {"h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    else:
        stem = "gpt_neox.layers.0.attention."
        extra = {f"{stem}bias": torch.ones(1, 1, 8, 8), f"{stem}rotary_emb.inv_freq": torch.ones(2)}
    save_file({**weights, **extra}, tmp_path / "model.safetensors")
    found = load_pretrained(tmp_path, check=False).model.state_dict()
    for key, weight in load_pretrained(original, check=False).model.state_dict().items():
        assert torch.equal(found[key], weight)


def test_another_function_of_the_same_weights_is_refused(tmp_path, monkeypatch):
    """The configuration says what the weights do not: here an eps that nobody would see."""
    original = tiny("llama")
    monkeypatch.setattr(original.config, "rms_norm_eps", 0.05)
    with pytest.raises(InputError, match="computes another function than what was read of it"):
        load_pretrained(original)


def test_a_key_without_a_place_is_refused_by_its_name(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.sinks": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no place for model\.layers\.0\.self_attn\.sinks"):
        load_pretrained(tmp_path, check=False)
