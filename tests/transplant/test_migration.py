"""From standard blocks to vein blocks: exact at full rank, closer with more rank, and distilled further."""

import pytest
import torch

from blockyard.errors import InputError
from blockyard.protocol.block import ResidualBlock
from blockyard.standard.attention import StandardAttention
from blockyard.standard.dense import StandardFFN
from blockyard.transplant.migration import distill, from_standard
from blockyard.vein.attention import TVAAttention

D, H = 32, 2
# Matrices this small are slower on several threads.
torch.set_num_threads(1)


def standard(**options) -> ResidualBlock:
    torch.manual_seed(0)
    attn = StandardAttention(D, H, causal=True, **options)
    return ResidualBlock(attn, StandardFFN(D), D).double()


def sample() -> torch.Tensor:
    torch.manual_seed(1)
    # Activations that lie mostly in few directions, as trained ones do.
    return torch.randn(8, 24, D).double() * 0.7 ** torch.arange(D)


def attention_error(block: ResidualBlock, rank: int) -> float:
    x = sample()
    copy = from_standard(block, rank, x)
    with torch.no_grad():
        wanted, got = block.attn(block.ln1(x))[0], copy.attn(copy.ln1(x))[0]
    return float((wanted - got).norm() / wanted.norm())


@pytest.mark.parametrize(
    "options",
    [
        {"rope": "none", "qk_norm": False},
        {"rope": "half", "qk_norm": False},
        {"rope": "interleaved"},
        {"rope": "half", "n_kv_heads": 1},
    ],
    ids=str,
)
def test_at_the_full_head_width_the_attention_is_the_same(options):
    assert attention_error(standard(**options), D // H) < 1e-6


def test_dropout_and_the_floors_of_the_norms_come_along():
    block = standard(dropout=0.25)
    block.ln1.eps = block.ln2.eps = block.attn.q_norm.eps = block.attn.k_norm.eps = 0.3
    copy, x = from_standard(block.train(), D // H, sample()), sample()
    assert copy.attn.attn_dropout.p == 0.25 and copy.training
    again = from_standard(block, D // H, sample())
    assert all(torch.equal(a, b) for a, b in zip(copy.ffn.parameters(), again.ffn.parameters()))
    block.eval(), copy.eval()
    with torch.no_grad():
        wanted, got = block.attn(block.ln1(x))[0], copy.attn(copy.ln1(x))[0]
    assert float((wanted - got).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("rope", ["none", "half"])
def test_more_rank_is_closer(rope):
    errors = [attention_error(standard(rope=rope, qk_norm=False), rank) for rank in (2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)


def test_the_svd_start_beats_a_random_start():
    block, x = standard(rope="none", qk_norm=False), sample()
    random = TVAAttention(D, H, 4, causal=True, rope="none").double()
    with torch.no_grad():
        wanted, got = block.attn(block.ln1(x))[0], random(block.ln1(x))[0]
    assert attention_error(block, 4) < 0.5 * float((wanted - got).norm() / wanted.norm())


def test_the_rank_follows_the_spectrum():
    ranks = [from_standard(standard(rope="none"), None, sample(), energy=e).attn.rank for e in (0.3, 0.9, 0.999)]
    assert ranks == sorted(ranks) and 2 <= ranks[0] < ranks[-1] <= D // H


def test_distillation_brings_the_block_closer():
    block = standard()
    copy = from_standard(block, 8, sample())
    errors = distill(copy, block, [sample() + 0.01 * i for i in range(30)], lr=3e-3)
    assert errors[-1] < 0.7 * errors[0] < 0.7


@pytest.mark.parametrize(
    ("options", "rank", "words"),
    [
        ({}, 5, "rank=5 does not fit rotary heads of width 16; use 2, 4, 8, 16"),
        ({}, 17, "rank=17 should be at least 1 and at most the head width 16"),
        ({"window": 4}, 4, "cannot copy a window or biases"),
    ],
)
def test_what_cannot_be_copied_is_refused(options, rank, words):
    with pytest.raises(InputError) as caught:
        from_standard(standard(**options), rank, sample())
    assert words in str(caught.value)
