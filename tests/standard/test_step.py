"""Decoding steps and fused residuals of standard attention: the numbers of the long way, for every width of heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.nn.norms import LayerNorm, RMSNorm
from blockyard.protocol.block import ResidualBlock
from blockyard.standard.attention import LENGTHWISE_UP_TO, StandardAttention
from blockyard.standard.gated import SwiGLU
from blockyard.vein.attention import TVAAttention

D = 32
SHAPES = {
    "usual": {},
    "thin": {"head_dim": 2},
    "wide": {"head_dim": 24},
    "wide, grouped": {"head_dim": 24, "n_kv_heads": 1, "v_dim": 10},
    "grouped": {"n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1, "head_dim": 4},
    "wider values": {"head_dim": 2, "v_dim": 7, "n_kv_heads": 2},
    "interleaved": {"rope": "interleaved", "qk_norm": False},
    "no positions": {"rope": "none"},
}


def build(cls: type = StandardAttention, **options) -> nn.Module:
    with own_random(0):
        attention = cls(D, 4, causal=True, **options)
        randomise(attention)
    return attention.double().eval().requires_grad_(False)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_steps_give_what_one_pass_gives(options):
    attention, x = build(**options), random(3, 7, D)
    cache = attention.new_cache(3)
    parts = [attention(part, cache=cache)[0] for part in x.split([3, 1, 1, 1, 1], dim=1)]
    assert "attention" in cache.prepared
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{"window": 3}, {"bias": True}, {"kernel": "sdpa"}], ids=str)
@torch.no_grad()
def test_what_a_step_does_not_know_goes_the_long_way(options):
    attention, x = build(**options), random(2, 6, D)
    cache = attention.new_cache(2)
    parts = [attention(part, cache=cache)[0] for part in x.split([4, 1, 1], dim=1)]
    assert not cache.prepared
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x)[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_values_of_their_own_go_the_long_way():
    attention, x, values = build(), random(2, 5, D), random(2, 5, D, seed=7)
    cache = attention.new_cache(2)
    parts = [attention(x[:, i : i + 1], values=values[:, i : i + 1], cache=cache)[0] for i in range(5)]
    assert not cache.prepared
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x, values=values)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [LENGTHWISE_UP_TO, LENGTHWISE_UP_TO + 1])
def test_wide_heads_keep_tokens_whole(width):
    cache = StandardAttention(D, 1, head_dim=width, rope="none", causal=True).new_cache(1)
    assert cache.lengthwise == (width <= LENGTHWISE_UP_TO)


def test_a_vein_and_standard_attention_of_its_width_are_one_function_bit_for_bit():
    with own_random(0):
        vein = TVAAttention(D, 4, 3, v_rank=5, rope="none", causal=True)
    standard = StandardAttention(D, 4, head_dim=3, v_dim=5, rope="none", qk_norm=False, causal=True)
    standard.load_state_dict(vein.state_dict())
    x, found = random(2, 40, D, dtype=torch.float32), []
    for attention in (vein, standard):
        own = x.clone().requires_grad_()
        out = attention(own)[0]
        cache = attention.eval().new_cache(2)
        with torch.no_grad():
            steps = [attention(part, cache=cache)[0] for part in x.split([38, 1, 1], dim=1)]
        gradients = torch.autograd.grad(out.square().sum(), [own, *attention.parameters()])
        found.append((out, *steps, *gradients))
    for mine, its in zip(*found):
        assert torch.equal(mine, its)


class Scaled(StandardAttention):
    """A subclass with a forward of its own."""

    def forward(self, x, **arguments):
        out, weights = super().forward(x, **arguments)
        return 3 * out, weights


def listen(attention):
    attention.register_forward_hook(lambda module, given, out: (3 * out[0], out[1]))


def replace(attention):
    attention.output_proj = nn.Sequential(attention.output_proj, nn.Tanh())


def patch(attention):
    forward = attention.forward
    attention.forward = lambda x, **arguments: (3 * forward(x, **arguments)[0], None)


@pytest.mark.parametrize("change", [None, listen, replace, patch, Scaled])
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("options", [{"head_dim": 2}, {}], ids=["thin", "usual"])
def test_a_block_gives_what_its_parts_give(options, norm, change):
    attention = build(change if change is Scaled else StandardAttention, **options)
    if change not in (None, Scaled):
        change(attention)
    block = ResidualBlock(attention, SwiGLU(D), D, norm="rms" if norm is RMSNorm else "layer").double().eval()
    # A row more than what is stacked, and fewer.
    for x in (random(3, 40, D), random(1, 5, D)):
        h = x + attention(block.ln1(x))[0]
        torch.testing.assert_close(block(x)[0], h + block.ffn(block.ln2(h)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padded", [False, True])
def test_a_blocks_gradients_and_masks_are_those_of_its_parts(padded):
    attention, x = build(head_dim=2).requires_grad_(), random(3, 40, D).requires_grad_()
    block = ResidualBlock(attention, SwiGLU(D), D).double()
    keep = None
    if padded:
        keep = torch.ones(3, 40)
        keep[1, :7] = 0
    h = x + attention(block.ln1(x), padding_mask=keep)[0]
    wanted = [x, *block.parameters()]
    slow = torch.autograd.grad((h + block.ffn(block.ln2(h))).sin().sum(), wanted)
    fast = torch.autograd.grad(block(x, padding_mask=keep)[0].sin().sum(), wanted)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
