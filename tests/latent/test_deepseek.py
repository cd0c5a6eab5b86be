"""Latent attention against transformers' DeepseekV3Attention: the same weights give the same numbers, both ways."""

from __future__ import annotations

import importlib

import pytest
import torch

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.errors import InputError
from blockyard.latent.attention import LatentAttention
from blockyard.standard.attention import StandardAttention

deepseek = pytest.importorskip(
    "transformers.models.deepseek_v3.modeling_deepseek_v3", reason="transformers >= 5.6 is not installed"
)
import transformers  # noqa: E402
from transformers.cache_utils import DynamicCache  # noqa: E402
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config  # noqa: E402

LENGTH = 11
SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "num_key_value_heads")
SHAPES = [
    {},
    {"q_lora_rank": None, "rope_interleave": False},
    {"attention_bias": True, "v_head_dim": 20},
    {"q_lora_rank": None, "qk_nope_head_dim": 6, "v_head_dim": 5, "rope_interleave": False},
]


def theirs(dtype=torch.float32, **shape):
    """A DeepseekV3Attention with random weights."""
    config = DeepseekV3Config(
        **{
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 24,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "attn_implementation": "eager",
            **shape,
        }
    )
    with own_random(0):
        module = deepseek.DeepseekV3Attention(config, layer_idx=0)
        randomise(module)
    return module.to(dtype).eval()


def other(model, attention, **shape):
    """The attention of another model of the same sizes, with random weights."""
    modeling = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    config = getattr(transformers, attention.replace("Attention", "Config"))
    sizes = {name: getattr(theirs(**shape).config, name) for name in ("hidden_size", "num_attention_heads", *SIZES)}
    own = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "num_hidden_layers": 2} | shape
    with own_random(0):
        module = getattr(modeling, attention)(config(**sizes | own, attn_implementation="eager"), 0)
        randomise(module)
    return module.eval(), getattr(modeling, attention.replace("Attention", "RotaryEmbedding"))


def call(module, x, cache=None, rotary=None):
    """Their causal forward, which needs tables and a mask from outside."""
    past = 0 if cache is None else cache.get_seq_length()
    new = x.shape[1]
    positions = torch.arange(past, past + new)[None]
    rotary = (rotary or deepseek.DeepseekV3RotaryEmbedding)(module.config)
    # Their tables are made in the dtype of this argument; its numbers are not used.
    tables = rotary(x[:1], positions)
    mask = torch.zeros(new, past + new, dtype=x.dtype)
    mask.masked_fill_(torch.ones(new, past + new, dtype=torch.bool).triu(past + 1), torch.finfo(x.dtype).min)
    return module(x, position_embeddings=tables, attention_mask=mask[None, None], past_key_values=cache)[0]


@pytest.mark.parametrize("decode", ["auto", "naive", "absorbed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_full_forward_agrees(shape, decode):
    module, x = theirs(**shape), random(2, LENGTH, 48, dtype=torch.float32)
    attention = LatentAttention.from_hf(module)
    attention.decode = decode
    torch.testing.assert_close(attention(x)[0], call(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [7, 1, 1, 2]], ids=str)
@pytest.mark.parametrize("decode", ["naive", "absorbed"])
@torch.no_grad()
def test_incremental_decoding_agrees(decode, sizes):
    module, x = theirs(), random(2, LENGTH, 48, dtype=torch.float32)
    attention = LatentAttention.from_hf(module)
    attention.decode = decode
    ours, cache = attention.new_cache(2), DynamicCache()
    for piece in x.split(sizes, dim=1):
        torch.testing.assert_close(attention(piece, cache=ours)[0], call(module, piece, cache), rtol=1e-5, atol=1e-5)
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert ours.nbytes == held


@pytest.mark.parametrize("decode", ["naive", "absorbed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree(shape, decode):
    module, x = theirs(**shape), random(2, LENGTH, 48, dtype=torch.float32)
    attention = LatentAttention.from_hf(module)
    attention.decode = decode
    outputs, inputs = [], []
    for forward in (lambda x: attention(x)[0], lambda x: call(module, x)):
        inputs.append(x.clone().requires_grad_())
        outputs.append(forward(inputs[-1]))
        outputs[-1].square().mean().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-5, atol=1e-5)
    # Gradients of the weights, compared in their layout.
    with torch.no_grad():
        for parameter in [*attention.parameters(), *module.parameters()]:
            parameter.copy_(parameter.grad)
    converted = dict(attention.to_hf().named_parameters())
    for name, gradient in module.named_parameters():
        torch.testing.assert_close(converted[name], gradient, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16_agrees():
    module, x = theirs(torch.bfloat16), random(2, LENGTH, 48, dtype=torch.bfloat16)
    attention, exact = LatentAttention.from_hf(module), LatentAttention.from_hf(theirs())
    assert attention.k_up.dtype == torch.bfloat16
    expected = exact(x.float())[0]
    errors = [float((out.float() - expected).norm() / expected.norm()) for out in (attention(x)[0], call(module, x))]
    assert errors[0] < max(0.02, 1.5 * errors[1]), errors


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back_changes_no_bit(shape):
    module = theirs(**shape)
    again = LatentAttention.from_hf(module).to_hf()
    state = module.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    x = random(2, LENGTH, 48, dtype=torch.float32)
    torch.testing.assert_close(call(again, x), call(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_our_own_attention_becomes_theirs(layout):
    with own_random(0):
        ours = LatentAttention(
            48, 4, kv_rank=24, causal=True, rope_layout=layout, rope_theta=300.0, dropout=0.25
        ).eval()
    module, x = ours.to_hf(), random(2, LENGTH, 48, dtype=torch.float32)
    torch.testing.assert_close(call(module, x), ours(x)[0], rtol=1e-5, atol=1e-5)
    assert module.attention_dropout == 0.25 and not module.training


OTHERS = {
    "DeepSeek-V2": ("deepseek_v2", "DeepseekV2Attention", {"q_lora_rank": 16}),
    "V2 without a query latent": ("deepseek_v2", "DeepseekV2Attention", {"q_lora_rank": None}),
    "V2 with biases": ("deepseek_v2", "DeepseekV2Attention", {"q_lora_rank": 16, "attention_bias": True}),
    "GLM-4-MoE-Lite": ("glm4_moe_lite", "Glm4MoeLiteAttention", {"q_lora_rank": 16}),
    "MiniCPM3": ("minicpm3", "MiniCPM3Attention", {"q_lora_rank": 16}),
}


@pytest.mark.parametrize(("model", "attention", "shape"), OTHERS.values(), ids=OTHERS)
def test_the_same_attention_of_other_models_agrees_and_goes_back(model, attention, shape):
    module, rotary = other(model, attention, **shape)
    ours, x = LatentAttention.from_hf(module), random(2, LENGTH, 48, dtype=torch.float32)
    expected = call(module, x, rotary=rotary)
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-5, atol=1e-5)
    deepseek_v3 = ours.to_hf()
    torch.testing.assert_close(call(deepseek_v3, x), expected, rtol=1e-5, atol=1e-5)
    again, _ = other(model, attention, **shape)
    torch.nn.init.zeros_(again.o_proj.weight)
    again.load_state_dict(deepseek_v3.state_dict())
    torch.testing.assert_close(call(again, x, rotary=rotary), expected, rtol=1e-5, atol=1e-5)


UNLIKE = {
    "an indexer": ("deepseek_v32", "DeepseekV32Attention", {}, "no place here for indexer.k_norm.bias"),
    "a scale by position": (
        *("mistral4", "Mistral4Attention"),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}},
        r"rope_parameters\['llama_4_scaling_beta'\]=0.1 of the Mistral4Attention",
    ),
}


@pytest.mark.parametrize(("model", "attention", "shape", "line"), UNLIKE.values(), ids=UNLIKE)
def test_what_attends_otherwise_is_refused_by_name(model, attention, shape, line):
    with pytest.raises(InputError, match=line):
        LatentAttention.from_hf(other(model, attention, q_lora_rank=16, **shape)[0])


def test_settings_that_latent_attention_does_not_have_are_refused_by_name():
    module = theirs()
    module.scaling *= 1.1
    with pytest.raises(InputError, match=r"scaling=0.2459\d+ of the DeepseekV3Attention; here it is"):
        LatentAttention.from_hf(module)
    module = theirs()
    module.sliding_window = 7
    with pytest.raises(InputError, match="sliding_window=7 of the DeepseekV3Attention has no counterpart"):
        LatentAttention.from_hf(module)
    module = theirs()
    module.register_parameter("sinks", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(InputError, match="no place here for sinks of the DeepseekV3Attention"):
        LatentAttention.from_hf(module)
    module = theirs()
    module.kv_a_layernorm.register_forward_hook(lambda norm, given, out: out * 1.5)
    with pytest.raises(InputError, match=r"computes what neither its keys nor its settings tell: .* 0.\d+ of its size"):
        LatentAttention.from_hf(module)


def test_reading_leaves_the_modes_of_the_module_as_they_were():
    module = theirs().train()
    module.kv_a_layernorm.eval()
    assert LatentAttention.from_hf(module).training and module.training and not module.kv_a_layernorm.training


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(InputError, match="StandardAttention is no DeepseekV3Attention"):
        LatentAttention.from_hf(StandardAttention(48, 4))
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(InputError, match="rope_type='yarn'"):
        LatentAttention.from_hf(theirs(rope_parameters=yarn))
    with pytest.raises(InputError, match="rope='full' has no DeepseekV3Attention"):
        LatentAttention(48, 4, rope="full").to_hf()
    with pytest.raises(InputError, match="latent_norm=False has no DeepseekV3Attention"):
        LatentAttention(48, 4, latent_norm=False).to_hf()
