"""The attention of whole models exchanged: the same outputs where they can be, a report, and refusals in one line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import blockyard
from blockyard import InputError, MultiheadAttention
from blockyard.multihead.llama import LlamaAttention

transformers = pytest.importorskip("transformers")

WIDTH, HEADS, LENGTH = 16, 4, 9
TINY = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMAS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama with biases": ("LlamaConfig", "LlamaForCausalLM", {"attention_bias": True}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 6}),
    "mistral with a window": ("MistralConfig", "MistralForCausalLM", {"head_dim": 4, "sliding_window": 4}),
}


def llama(name: str, **more: object) -> nn.Module:
    config, model, own = LLAMAS[name]
    torch.manual_seed(0)
    found = getattr(transformers, model)(getattr(transformers, config)(**TINY, **own, **more)).eval()
    for parameter in found.parameters():
        # Gains and biases of their own, which a carrier may forget.
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return found


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, the first with three tokens of padding in front."""
    torch.manual_seed(1)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :3] = 0
    return torch.randint(1, 50, (2, LENGTH)) * mask, mask


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
def test_torchs_encoder_gives_what_it_gave(padded: bool, causal: bool):
    model, x = encoder(), torch.randn(3, LENGTH, WIDTH)
    padding = torch.zeros(3, LENGTH, dtype=torch.bool)
    padding[1, 6:] = padded
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH) if causal else None
    call = {"mask": mask, "src_key_padding_mask": padding if padded else None, "is_causal": causal}
    with torch.no_grad():
        before = model(x, **call)
        report = blockyard.swap(model)
        after = model(x, **call)
    torch.testing.assert_close(after[~padding], before[~padding], atol=2e-6, rtol=1e-5)
    assert [s.path for s in report.swapped] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert all(s.same and not s.fresh for s in report.swapped)
    assert isinstance(model.layers[0].self_attn, MultiheadAttention)


def test_torchs_decoder_gives_what_it_gave():
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, HEADS, 1, 1, 32, batch_first=True).eval()
    source, target = torch.randn(2, 7, WIDTH), torch.randn(2, 5, WIDTH)
    with torch.no_grad():
        before = model(source, target)
        assert len(blockyard.swap(model).swapped) == 3
        torch.testing.assert_close(model(source, target), before, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name", LLAMAS)
def test_models_of_transformers_give_what_they_gave(name: str, kernel: str):
    model = llama(name, attn_implementation=kernel)
    tokens, mask = ids()
    with torch.no_grad():
        whole, padded = model(tokens[1:]).logits, model(tokens, attention_mask=mask).logits
        text = model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False)
        report = blockyard.swap(model)
        assert all(s.same for s in report.swapped) and len(report.swapped) == 2
        torch.testing.assert_close(model(tokens[1:]).logits, whole, atol=2e-5, rtol=1e-4)
        after = model(tokens, attention_mask=mask).logits
        torch.testing.assert_close(after[mask.bool()], padded[mask.bool()], atol=2e-5, rtol=1e-4)
        again = model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, text)


SCALED = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("kind", SCALED)
@torch.no_grad()
def test_a_scaled_rotation_is_passed_on(kind: str):
    """Rows longer than the original context and than the model's own, where the scalings differ most."""
    model = llama("llama", rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **SCALED[kind]})
    tokens = torch.randint(1, 50, (2, 80))
    before = model(tokens).logits
    assert all(s.same for s in blockyard.swap(model).swapped)
    torch.testing.assert_close(model(tokens).logits, before, atol=2e-5, rtol=1e-4)


def test_other_mixers_rotate_by_the_models_scaling_too():
    model = llama("llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0})
    blockyard.swap(model, "mla", kv_rank=4)
    rope = model.model.layers[0].self_attn.mixer.rope
    assert (rope.theta, rope.scaled) == (500.0, "linear[factor=4.0]")


def test_deepseeks_latent_attention_becomes_ours():
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        **{**TINY, "num_key_value_heads": HEADS},
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=None,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
    )
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    tokens, mask = ids()
    with torch.no_grad():
        before = model(tokens, attention_mask=mask).logits
        with pytest.raises(InputError, match=r"no attention of a known form.*latent attention, which mixer='mla'"):
            blockyard.swap(model)
        assert all(s.same for s in blockyard.swap(model, "mla").swapped)
        after = model(tokens, attention_mask=mask).logits
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], atol=2e-5, rtol=1e-4)


OTHERS = {"mla": {}, "tva": {"rank": 2}, "spectral": {"window": 8, "chunk": 4}}


@pytest.mark.parametrize("mixer", OTHERS)
def test_any_mixer_stands_in_and_padding_changes_nothing(mixer: str):
    model = llama("llama")
    tokens, mask = ids()
    report = blockyard.swap(model, mixer, **OTHERS[mixer])
    with torch.no_grad():
        padded = model(tokens, attention_mask=mask).logits[0, 3:]
        torch.testing.assert_close(padded, model(tokens[:1, 3:]).logits[0], atol=1e-5, rtol=1e-4)
        model.generate(tokens, attention_mask=mask, max_new_tokens=2)
    model.train()
    model(input_ids=tokens, attention_mask=mask, labels=tokens).loss.backward()
    attention = model.model.layers[0].self_attn
    assert isinstance(attention, LlamaAttention) and all(p.grad is not None for p in attention.parameters())
    assert not any(s.same for s in report.swapped) and all(s.fresh for s in report.swapped)


@pytest.mark.parametrize("mixer", ["standard", *OTHERS])
def test_a_foreign_cache_is_refused_where_the_last_token_alone_would_be_seen(mixer: str):
    model = llama("llama")
    report = blockyard.swap(model, mixer, **OTHERS.get(mixer, {}))
    assert model.config.use_cache is False and "use_cache is False now" in report.notes[0]
    with pytest.raises(InputError, match="would see the last token alone; pass use_cache=False"):
        model(ids()[0], use_cache=True)


def test_weights_are_carried_where_heads_and_shapes_allow():
    model = llama("llama")
    old = copy.deepcopy(model.model.layers[0].self_attn)
    found = blockyard.swap(model, "standard", n_kv_heads=4).swapped[0]
    new = model.model.layers[0].self_attn.mixer
    assert found.carried == ("q_proj.weight", "output_proj.weight")
    assert set(found.fresh) == {"k_proj.weight", "v_proj.weight"} and not found.same
    assert torch.equal(new.output_proj.weight, old.o_proj.weight) and torch.equal(new.q_proj.weight, old.q_proj.weight)
    assert "fresh: k_proj.weight" in str(found)


def test_dtype_mode_and_what_is_frozen_stay():
    model = llama("llama").to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    blockyard.swap(model)
    attention = model.model.layers[0].self_attn
    assert not attention.training and attention.mixer.q_proj.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.parameters())


def test_one_module_in_two_places_stays_one():
    model = encoder()
    model.layers[1].self_attn = model.layers[0].self_attn
    assert len(blockyard.swap(model).swapped) == 1
    assert model.layers[1].self_attn is model.layers[0].self_attn


class Sinks(nn.Module):
    """Has a parameter that decides what is computed, which nobody here knows."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(old.__dict__)
        self._parameters = {"sinks": nn.Parameter(torch.zeros(HEADS))}

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None):
        return hidden_states, None


def both_ways(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def with_sinks(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        layer.self_attn = Sinks(layer.self_attn)
    return model


REFUSED = {
    "no attention": (lambda: nn.Sequential(nn.Linear(2, 2)), "standard", {}, "the Sequential has no attention"),
    "itself": (lambda: nn.MultiheadAttention(8, 2), "standard", {}, "is itself a MultiheadAttention"),
    "a key of its own": (
        lambda: nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True)),
        "standard",
        {},
        r"^0: a module with add_bias_kv",
    ),
    "cross": (
        lambda: nn.TransformerDecoderLayer(16, 4, 8),
        "spectral",
        {"num_groups": 1},
        "multihead_attn: attention 'spectral' does not look at another sequence",
    ),
    "option": (encoder, "mla", {"kv_rnak": 4}, r"layers\.0\.self_attn: attention 'mla' has no option 'kv_rnak'"),
    "name": (encoder, "mal", {}, "no attention named 'mal'"),
    "unknown scaling": (
        lambda: renamed_rotation(llama("llama")),
        "standard",
        {},
        r"LlamaConfig: rope_parameters: rope_type is 'spiral'",
    ),
    "sinks": (lambda: with_sinks(llama("llama")), "standard", {}, "it has sinks, which is not known here"),
    "both ways": (lambda: both_ways(llama("llama")), "mla", {}, "it sees both ways"),
    "another scale of scores": (
        lambda: steeper(llama("llama")),
        "standard",
        {},
        r"model\.layers\.0\.self_attn: the LlamaAttention computes what its weights do not tell",
    ),
}


def steeper(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 2
    return model


def renamed_rotation(model: nn.Module) -> nn.Module:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "spiral"}
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_exchanged_is_refused_and_nothing_is_changed(what: str):
    make, mixer, options, line = REFUSED[what]
    model = make()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(InputError, match=line):
        blockyard.swap(model, mixer, **options)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_a_window_is_refused_by_a_mixer_that_scores_no_pairs():
    model = llama("mistral with a window")
    blockyard.swap(model, "spectral", num_groups=1)
    with pytest.raises(InputError, match="scores no pairs: it takes padding, but not the window"):
        model(ids()[0])


def test_an_argument_that_is_not_known_is_refused():
    attention = LlamaAttention.like(llama("llama").model.layers[0].self_attn, "standard", {})
    with pytest.raises(InputError, match="does not take cu_seq_lens_q"):
        attention(torch.randn(1, 4, WIDTH), cu_seq_lens_q=torch.tensor([0, 4]))


def test_a_complex_mixer_is_refused_before_a_real_model_is_touched():
    model = encoder()
    with pytest.raises(InputError, match=r"^layers\.0\.self_attn: attention 'complex' is complex-valued, but this"):
        blockyard.swap(model, mixer="complex")
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention


def test_what_the_model_says_is_no_option_of_the_mixer():
    with pytest.raises(InputError, match=r"^n_heads=2: n_heads is the model's own, and stays;"):
        blockyard.swap(encoder(), mixer="tva", n_heads=2)


def test_one_attention_is_told_as_one():
    assert str(blockyard.swap(encoder().layers[0], mixer="tva", rank=4)).startswith("1 attention is 'tva' now\n")


def test_a_model_that_is_exchanged_already_is_told_so():
    model = encoder()
    blockyard.swap(model, mixer="tva", rank=4)
    with pytest.raises(
        InputError, match=r"^the attention of the TransformerEncoder is exchanged already, for tva: begin"
    ):
        blockyard.swap(model, mixer="mla", kv_rank=8)
    # What is new in it is exchanged, and what is ours stays.
    model.layers[1].self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    report = blockyard.swap(model, mixer="mla", kv_rank=8, rope_dim=2)
    assert [one.path for one in report.swapped] == ["layers.1.self_attn"] and report.left == {}


def test_what_is_no_model_and_no_attention_is_told():
    with pytest.raises(InputError, match=r"^swap takes a model, an nn\.Module, not str$"):
        blockyard.swap("model.pt")
    with pytest.raises(InputError, match=r"^from_torch takes over an nn\.MultiheadAttention, not a Linear$"):
        MultiheadAttention.from_torch(nn.Linear(3, 3))
