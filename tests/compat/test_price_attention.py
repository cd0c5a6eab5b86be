"""compat.price_transformer: the document's examples run with only their import lines changed."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from blockyard.compat import price_transformer as compat
from blockyard.compat.price_transformer import PricePredictionConfig, TransformerBlock, precompute_freqs_cis
from blockyard.errors import InputError
from tests.fixtures.documents import python_examples, seed

# Numbers of the document's python blocks that run, in order.
EXAMPLES = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
SKIPPED = {2: "a formula, not code: Q, K and X are nothing"}


def small(**fields):
    return PricePredictionConfig(**{"d_model": 32, "n_heads": 4, "kv_lora_rank": 12, "intermediate_size": 48} | fields)


def namespace():
    """What the examples leave undefined: names of their imports, a configuration and sizes."""
    names = {name: getattr(compat, name) for name in compat.__all__}
    sizes = {"n_heads": 8, "seq_len": 180, "head_dim": 64, "kv_lora_rank": 256, "batch_size": 2}
    modules = {"torch": torch, "nn": torch.nn, "F": F, "config": PricePredictionConfig(n_layers=1)}
    return {"__name__": "price_examples", **names, **sizes, **modules}


def examples():
    code = python_examples(seed("price-transformer.md"))
    # The document keeps its presets in a module of their own.
    ours = "blockyard.compat.price_transformer"
    return [re.sub(r"src\.price_prediction\.(price_transformer|config)", ours, block) for block in code]


def test_the_documents_examples_run_with_only_their_imports_changed(capsys):
    code, shared = examples(), namespace()
    assert sorted([*EXAMPLES, *SKIPPED]) == list(range(len(code)))
    for number in EXAMPLES:
        exec(compile(code[number], f"price-transformer.md#{number}", "exec"), shared)
    assert shared["outputs"]["price_predictions"].shape == (4, 10)
    assert shared["outputs"]["strategy_features"].shape == (4, 512)
    assert shared["output"].shape == (4, 180, 512)
    said = capsys.readouterr().out
    assert "节省比例" in said and "价格预测: torch.Size([4, 10])" in said


def test_the_documents_own_rotation_gives_what_ours_gives():
    shared, code = namespace(), examples()[4]
    exec(compile(code, "price-transformer.md#4", "exec"), shared)
    theirs = shared["precompute_freqs_cis"](16, 50, 500.0)
    torch.testing.assert_close(precompute_freqs_cis(16, 50, 500.0), theirs, rtol=1e-5, atol=1e-5)
    q, k = torch.randn(2, 50, 3, 16), torch.randn(2, 50, 1, 16)
    for ours, expected in zip(compat.apply_rotary_emb(q, k, theirs), shared["apply_rotary_emb"](q, k, theirs)):
        torch.testing.assert_close(ours, expected)
    x = torch.randn(2, 50, 3, 8, dtype=torch.complex64)
    assert torch.equal(compat.reshape_for_broadcast(theirs, x), shared["reshape_for_broadcast"](theirs, x))


def test_the_attention_is_the_documents_formula_with_heads_in_front_and_an_output_projection():
    torch.manual_seed(0)
    attention = compat.MultiHeadLatentAttention(small()).eval().requires_grad_(False)
    w, x, turns = attention.mla, torch.randn(2, 7, 32), precompute_freqs_cis(8, 7)
    c = F.rms_norm(w.kv_down_proj(x), (12,), w.kv_norm.weight, w.kv_norm.eps)
    q = w.q_proj(x).view(2, 7, 4, 8)
    k, v = ((c @ up.flatten(0, 1).T).view(2, 7, 4, 8) for up in (w.k_up, w.v_up))
    q, k = compat.apply_rotary_emb(q, k, turns)
    for causal in (False, True):
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal)
        expected = w.output_proj(out.transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(x, turns, is_causal=causal), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_and_causality_act_together():
    block, x, turns = TransformerBlock(small(), 0).eval(), torch.randn(1, 6, 32), precompute_freqs_cis(8, 6)
    lower = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(block(x, turns, attn_mask=lower), block(x, turns, is_causal=True))
    near = lower & ~lower.tril(-3)
    banded = ~torch.ones(6, 6, dtype=torch.bool).tril(-3)
    torch.testing.assert_close(block(x, turns, attn_mask=banded, is_causal=True), block(x, turns, attn_mask=near))


def test_the_given_factors_are_what_rotates():
    block, x = TransformerBlock(small(), 0).eval(), torch.randn(1, 6, 32)
    turns = precompute_freqs_cis(8, 12)
    torch.testing.assert_close(block(x, turns[:6]), block(x, turns[6:]))
    assert not torch.allclose(block(x, turns[:6]), block(x, turns[::2]))


def test_a_layer_takes_its_overrides_and_a_copy_of_the_configuration():
    config = small(layer_overrides={1: {"kv_lora_rank": 4, "intermediate_size": 64}})
    before = copy.deepcopy(config)
    first, second = TransformerBlock(config, 0), TransformerBlock(config, layer_idx=1)
    assert (first.attn.mla.kv_rank, second.attn.mla.kv_rank) == (12, 4)
    assert (first.ffn.d_ff, second.ffn.d_ff) == (48, 64) and config == before
    config.kv_lora_rank = 8
    assert first.attn.mla.kv_rank == 12 and TransformerBlock(config).attn.mla.kv_rank == 8


def test_the_ffn_is_any_registered_one():
    config, x = small(), torch.randn(2, 3, 32)
    for name in ("swiglu", "standard", "relu2", "vft"):
        assert compat.get_ffn(config, ffn_type=name)(x).shape == x.shape
    with pytest.raises(InputError, match="no FFN named 'swigl'"):
        compat.get_ffn(config, "swigl")


def test_double_precision_stays_double():
    block, x = TransformerBlock(small()).double().eval(), torch.randn(1, 5, 32, dtype=torch.float64)
    wide = precompute_freqs_cis(8, 5).to(torch.complex128)
    coarse = block(x, wide)
    assert coarse.dtype == torch.float64
    turned, _ = compat.apply_rotary_emb(x.unflatten(-1, (4, 8)), x.unflatten(-1, (4, 8)), wide)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 4, 2))) * wide[:, None]).flatten(3)
    torch.testing.assert_close(turned, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compat.MultiHeadLatentAttention(small(n_heads=5)), "n_heads=5 does not divide"),
        (lambda: compat.MultiHeadLatentAttention(small(n_heads=32)), "use an even width"),
        (lambda: TransformerBlock(small(), -1), "layer_idx=-1"),
        (lambda: TransformerBlock(small(layer_overrides={0: {"rank": 3}})), "names 'rank'"),
        (lambda: precompute_freqs_cis(7, 5), "dim=7"),
        (lambda: precompute_freqs_cis(8, 0), "end=0"),
        (lambda: TransformerBlock(small())(torch.randn(1, 5, 32), precompute_freqs_cis(8, 6)), r"expected \(5, 4\)"),
        (lambda: TransformerBlock(small())(torch.randn(1, 5, 32), torch.randn(5, 4)), "expected complex factors"),
        (lambda: compat.apply_rotary_emb(*[torch.randn(1, 5, 2, 8)] * 2, precompute_freqs_cis(8, 4)), "freqs_cis has"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(call, words):
    with pytest.raises(InputError, match=words):
        call()
