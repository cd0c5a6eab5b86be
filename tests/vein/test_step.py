"""Decoding steps of tri-vein attention: one token goes a short way, with the numbers of the long one."""

import copy

import pytest
import torch

from blockyard.errors import InputError
from blockyard.nn.rotary import RotaryPositionalEmbedding, token_tables, turn_token
from blockyard.vein.attention import TVAAttention
from blockyard.vein.block import VFTBlock

D = 24

# Thin ones multiply with one matrix made of three, wide ones with the three.
SHAPES = {
    "thin": {"n_heads": 2, "rank": 2},
    "thin, wider values": {"n_heads": 1, "rank": 2, "v_rank": 6},
    "thin, odd": {"n_heads": 2, "rank": 3},
    "wide": {"n_heads": 3, "rank": 6},
    "wide, thinner values": {"n_heads": 4, "rank": 8, "v_rank": 3},
}


def make(**options) -> TVAAttention:
    torch.manual_seed(0)
    attention = TVAAttention(D, causal=True, **options).double().eval()
    for norm in (attention.q_norm, attention.k_norm):
        for gain in norm.parameters():
            torch.nn.init.uniform_(gain, 0.5, 2.0)
    return attention


def sample(length: int, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, D, dtype=torch.float64)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rope", ["none", "half", "interleaved"])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_give_what_one_pass_gives(shape, rope, qk_norm):
    attention, x = make(rope=rope, qk_norm=qk_norm, **SHAPES[shape]), sample(6)
    cache = attention.new_cache(2)
    with torch.no_grad():
        parts = [attention(part, cache=cache)[0] for part in x.split([2, 1, 1, 1, 1], dim=1)]
        assert cache.prepared
        torch.testing.assert_close(torch.cat(parts, dim=1), attention(x)[0], rtol=1e-12, atol=1e-12)


def test_a_step_with_masks_or_weights_asked_for_goes_the_long_way():
    attention, token, keep = make(n_heads=2, rank=2), sample(1), torch.tensor([[1], [0]])
    caches = [attention.new_cache(2) for _ in range(2)]
    with torch.no_grad():
        assert attention(token, cache=caches[0], return_weights=True)[1].shape == (2, 2, 1, 1)
        blind = attention(token, cache=caches[1], padding_mask=keep)[0]
    assert not blind[1].any() and blind[0].any()
    assert not any(cache.prepared for cache in caches)


def change_in_place(attention):
    attention.k_proj.weight.mul_(2.0)


def change_gain(attention):
    attention.q_norm.weight.mul_(2.0)


def put_another_weight(attention):
    attention.v_proj.weight = torch.nn.Parameter(torch.ones_like(attention.v_proj.weight))


def put_another_module(attention):
    attention.q_proj = torch.nn.Sequential(attention.q_proj, torch.nn.Tanh())


def listen(attention):
    attention.q_proj.register_forward_hook(lambda module, given, out: out * 3)


@pytest.mark.parametrize("change", [change_in_place, change_gain, put_another_weight, put_another_module, listen])
def test_steps_notice_what_changes_between_them(change):
    attention, x = make(n_heads=2, rank=2, qk_norm=True), sample(4)
    with torch.no_grad():
        cache, twin = attention.new_cache(2), attention.new_cache(2)
        for part in x[:, :3].split([2, 1], dim=1):
            attention(part, cache=cache)
            attention(part, cache=twin)
        change(attention)
        found = attention(x[:, 3:], cache=cache)[0]
        # Weights are asked for, so this goes the long way.
        torch.testing.assert_close(found, attention(x[:, 3:], cache=twin, return_weights=True)[0])


@pytest.mark.parametrize("forget", [lambda cache: cache.reset(), lambda cache: cache.to(dtype=torch.float32)])
def test_what_steps_prepared_goes_with_the_cache(forget):
    attention = make(n_heads=2, rank=2)
    cache = attention.new_cache(1)
    with torch.no_grad():
        attention(sample(1, 1), cache=cache)
    assert cache.prepared
    forget(cache)
    assert not cache.prepared


def test_a_new_text_drops_what_steps_prepared_and_a_longer_piece_of_one_does_not():
    # Even a change that goes unnoticed, as one through `.data` does, is over with the next prompt.
    attention, x = make(n_heads=2, rank=2), sample(5)
    with torch.no_grad():
        cache = attention.new_cache(2)
        attention(x[:, :1], cache=cache)
        prepared = dict(cache.prepared)
        attention(x[:, 1:3], cache=cache)
        assert prepared and cache.prepared == prepared
        attention.q_proj.weight.data.mul_(2.0)
        cache.crop(0)
        parts = [attention(part, cache=cache)[0] for part in x.split([4, 1], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), attention(x)[0])


def test_steps_work_on_inference_tensors():
    with torch.inference_mode():
        attention, x = make(n_heads=2, rank=2), sample(3)
        cache = attention.new_cache(2)
        parts = [attention(part, cache=cache)[0] for part in x.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), attention(x)[0])


def test_a_step_that_would_need_gradients_is_refused():
    attention, x = make(n_heads=2, rank=2), sample(2)
    cache = attention.new_cache(2)
    with torch.no_grad():
        attention(x[:, :1], cache=cache)
    with pytest.raises(InputError, match="a cache is for inference"):
        attention(x[:, 1:], cache=cache)


@pytest.mark.parametrize("x", [torch.zeros(2, 1, D + 1), torch.zeros(3, 1, D), torch.zeros(2, D)])
def test_a_step_of_the_wrong_shape_is_refused(x):
    attention = make(n_heads=2, rank=2)
    with torch.no_grad(), pytest.raises(InputError, match="shape"):
        cache = attention.new_cache(2)
        attention(sample(2), cache=cache)
        attention(x.double(), cache=cache)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("position", [0, 7, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_turns_as_many_do(dtype, position, layout):
    rope, x = RotaryPositionalEmbedding(10_000.0, 6, layout=layout), torch.randn(2, 3, 1, 6, dtype=dtype)
    cos, sin = (table[position] for table in token_tables(rope, position, x))
    torch.testing.assert_close(turn_token(x, cos, sin, layout), rope(x, offset=position))


@pytest.mark.parametrize("change", ["in place", "rank in use", "another weight"])
def test_a_blocks_steps_notice_when_their_vein_changes(change):
    torch.manual_seed(0)
    block, x = VFTBlock(D, 2, 2, ffn_rank=6, tau=0.5, causal=True).double().eval(), sample(4)
    with torch.no_grad():
        cache = block.new_cache(2)
        for part in x[:, :3].split([2, 1], dim=1):
            block(part, cache=cache)
        if change == "in place":
            block.vein.V.weight[0].mul_(-1).add_(1.0)
        elif change == "rank in use":
            block.vein.use_rank(3)
        else:
            block.vein.V.weight = torch.nn.Parameter(torch.randn_like(block.vein.V.weight))
        twin = copy.deepcopy(cache)
        twin.prepared.clear()
        torch.testing.assert_close(block(x[:, 3:], cache=cache)[0], block(x[:, 3:], cache=twin)[0], rtol=0, atol=0)
        assert (block.vein.matrices()[0] - cache.prepared["vein"][1][0]).abs().max() == 0
