"""Latent attention: one function in every form, by every cache; what it saves; what it refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.errors import InputError
from blockyard.latent.absorbing import absorbing_pays
from blockyard.latent.attention import LatentAttention
from blockyard.nn.roles import roles
from blockyard.standard.attention import StandardAttention
from blockyard.training.config import TrainConfig
from blockyard.training.muon import Muon
from blockyard.training.optim import Optimizers
from tests.latent.twin import latent_attention

OPTIONS = [
    {},
    {"decode": "naive", "q_rank": 6},
    {"decode": "absorbed", "bias": True},
    {"decode": "absorbed", "kernel": "sdpa", "rope_layout": "interleaved", "bias": "qkv"},
    {"rope_dim": 6, "nope_dim": 5, "v_dim": 7, "kv_rank": 11},
    {"nope_dim": 2, "v_dim": 9, "kv_rank": 4, "bias": "all"},
    {"rope": "full"},
    {"rope": "full", "rope_layout": "interleaved", "v_dim": 7, "rope_theta": 50.0},
    {"latent_norm": False, "kernel": "matmul"},
    {"window": 3},
    {"window": 2, "sinks": 2, "decode": "absorbed"},
    {"window": 3, "sinks": 1, "decode": "naive", "cache": "expanded"},
]
CACHES = ["latent", "mixed", "expanded"]


def build(seed=0, dtype=torch.float64, **options):
    with own_random(seed):
        attention = LatentAttention(16, 4, **{"kv_rank": 6, **options})
        randomise(attention)
    return attention.to(dtype).eval().requires_grad_(False)


def like(attention, **options):
    """The same weights under other options."""
    twin = build(**options)
    twin.load_state_dict(attention.state_dict())
    return twin


def assert_equal_to_twin(attention, x, keep=None, mask=None, causal=False, tolerance=1e-9):
    arguments = {"causal": causal, "attn_mask": mask, "padding_mask": keep}
    out, weights = attention(x, return_weights=True, **arguments)
    fast, _ = attention(x, **arguments)
    for row in range(len(x)):
        kept = None if keep is None else keep[row]
        expected, expected_weights = latent_attention(attention, x[row], causal=causal, keep=kept, mask=mask)
        real = slice(None) if kept is None else kept.bool()
        torch.testing.assert_close(out[row][real], expected[real], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(fast[row][real], expected[real], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(weights[row][:, real], expected_weights[:, real], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_equals_its_definition(options, causal):
    assert_equal_to_twin(build(**options), random(2, 7, 16), causal=causal)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padded_and_masked_attention_equals_its_definition(options):
    keep = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    mask = (random(7, 7, seed=3) > -0.5) | torch.eye(7, dtype=torch.bool)
    for chosen in (None, mask, torch.where(mask, random(7, 7, seed=4), -torch.inf)):
        assert_equal_to_twin(build(**options), random(2, 7, 16), keep, chosen, causal=True)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), length=st.integers(1, 9), causal=st.booleans(), rank=st.integers(1, 16))
def test_any_sizes_and_padding_equal_the_definition(data, length, causal, rank):
    widths = {name: data.draw(st.integers(1, 9)) for name in ("nope_dim", "v_dim")}
    options = {"kv_rank": rank, "kernel": data.draw(st.sampled_from(["auto", "matmul", "sdpa"])), **widths}
    options |= {
        "rope_dim": data.draw(st.sampled_from([2, 8])),
        "decode": data.draw(st.sampled_from(["auto", "absorbed"])),
    }
    pads = data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2))
    keep = torch.stack([(torch.arange(length) >= pad).long() for pad in pads])
    assert_equal_to_twin(build(**options), random(2, length, 16), keep, causal=causal)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_attention_equals_its_definition(options):
    attention, x, context = build(**options), random(1, 5, 16), random(1, 8, 16, seed=2)
    expected, weights = latent_attention(attention, x[0], context=context[0])
    out, found = attention(x, context=context, return_weights=True)
    torch.testing.assert_close(out[0], expected)
    torch.testing.assert_close(found[0], weights)
    torch.testing.assert_close(attention(x, context=context)[0][0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decode", ["naive", "absorbed"])
def test_lower_precision_stays_close_to_the_definition(decode, dtype):
    attention, x = build(dtype=dtype, decode=decode), random(1, 7, 16, dtype=dtype)
    expected, _ = latent_attention(attention.double(), x[0].double(), causal=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    found = build(dtype=dtype, decode=decode)(x, causal=True)[0][0].double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", ["auto", "matmul", "sdpa"])
@pytest.mark.parametrize("cache", ["none", "latent", "mixed"])
@pytest.mark.parametrize("queries", [1, 4, 13])
def test_absorbed_equals_naive_to_twelve_digits(cache, queries, kernel):
    options = {} if cache == "none" else {"cache": cache}
    naive = build(decode="naive", kernel=kernel, **options)
    absorbed, x = like(naive, decode="absorbed", kernel=kernel, **options), random(2, 13, 16)
    outputs = []
    for attention in (naive, absorbed):
        held = None if cache == "none" else attention.new_cache(2)
        if held is not None and queries < 13:
            attention(x[:, :-queries], cache=held, causal=True)
        outputs.append(attention(x[:, -queries:], cache=held, causal=True)[0])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 5, 17])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"decode": "naive"}, {"rope": "full"}, {"rope": "full", "v_dim": 3}),
        *({"window": 4}, {"window": 3, "sinks": 2}, {"window": 3, "sinks": 2, "decode": "naive"}),
    ],
    ids=str,
)
def test_incremental_equals_full_for_every_rope_cache_and_chunk_size(options, cache, chunk):
    attention, x = build(causal=True, cache=cache, **options), random(2, 17, 16)
    held = attention.new_cache(2)
    pieces = [attention(piece, cache=held)[0] for piece in x.split(chunk, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), attention(x)[0], rtol=1e-11, atol=1e-11)
    assert held.nbytes == 2 * 17 * 2 * attention.cost(17).cache_bytes_per_token  # float64: twice float32's bytes


@pytest.mark.parametrize("cache", CACHES)
def test_all_caches_give_one_function(cache):
    reference, x = build(causal=True), random(1, 9, 16)
    attention = like(reference, causal=True, cache=cache)
    held = attention.new_cache(1)
    out = torch.cat([attention(piece, cache=held)[0] for piece in x.split(2, dim=1)], dim=1)
    torch.testing.assert_close(out, reference(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rope", ["decoupled", "full"])
@pytest.mark.parametrize("cache", CACHES)
def test_padded_rows_decode_as_they_do_alone_with_every_cache(cache, rope):
    attention, x = build(causal=True, rope=rope, cache=cache), random(2, 9, 16)
    keep = torch.ones(2, 9)
    keep[1, :3] = 0
    held, pieces = attention.new_cache(2), []
    for start, end in itertools.pairwise([0, 5, 6, 9]):
        pieces.append(attention(x[:, start:end], cache=held, padding_mask=keep[:, :end])[0])
    out = torch.cat(pieces, dim=1)
    torch.testing.assert_close(out[:1], attention(x[:1])[0])
    torch.testing.assert_close(out[1:, 3:], attention(x[1:, 3:])[0])


@pytest.mark.parametrize(
    ("rank", "cache", "expected"),
    [(256, "latent", 1152), (128, "latent", 640), (256, "mixed", 3072), (128, "mixed", 2560), (256, "expanded", 4096)],
)
def test_a_cached_token_takes_the_bytes_of_the_formula(rank, cache, expected):
    rope = {"rope_dim": 32} if cache == "latent" else {"rope": "full"}
    attention = LatentAttention(512, 8, kv_rank=rank, cache=cache, causal=True, **rope)
    held = attention.new_cache(3)
    with torch.no_grad():
        attention(torch.randn(3, 5, 512), cache=held)
    assert attention.cost(1).cache_bytes_per_token == expected
    assert held.nbytes == 3 * 5 * expected == sum(held[name].nbytes for name in held.slots)
    assert StandardAttention(512, 8).cost(1).cache_bytes_per_token == 4096


def test_the_documents_form_is_multi_head_attention_with_low_rank_keys_and_values():
    latent = build(rope="full", latent_norm=False, rope_layout="interleaved", causal=True)
    standard = StandardAttention(16, 4, rope="interleaved", qk_norm=False, causal=True).double()
    with torch.no_grad():
        standard.q_proj.weight.copy_(latent.q_proj.weight)
        standard.k_proj.weight.copy_(latent.k_up.flatten(0, 1) @ latent.kv_down_proj.weight)
        standard.v_proj.weight.copy_(latent.v_up.flatten(0, 1) @ latent.kv_down_proj.weight)
        standard.output_proj.weight.copy_(latent.output_proj.weight)
    x = random(2, 9, 16)
    torch.testing.assert_close(latent(x)[0], standard(x)[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rope", ["decoupled", "full"])
def test_shifting_all_positions_changes_nothing(rope):
    attention, x, positions = build(rope=rope, causal=True), random(2, 7, 16), torch.arange(7)
    torch.testing.assert_close(attention(x, positions=positions + 5)[0], attention(x)[0])
    assert not torch.allclose(attention(x, positions=2 * positions)[0], attention(x)[0])


def test_rotary_tables_grow_with_the_cache():
    attention, x = build(causal=True, dtype=torch.float32, rope_theta=777.0), random(1, 700, 16, dtype=torch.float32)
    held = attention.new_cache(1)
    for piece in x.split([200, 1, 499], dim=1):
        last = attention(piece, cache=held)[0]
    torch.testing.assert_close(last, attention(x)[0][:, 201:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_len", [None, 9])
def test_a_step_writes_into_the_cache_that_is_there(max_len):
    attention, x = build(causal=True), random(1, 9, 16)
    held = attention.new_cache(1, max_len=max_len)
    attention(x[:, :5], cache=held)
    before = held["latent"].data_ptr()
    for t in range(5, 9):
        attention(x[:, t : t + 1], cache=held)
    assert held["latent"].data_ptr() == before and held.length == 9
    if max_len is not None:
        with pytest.raises(InputError, match="exceed max_len=9"):
            attention(x[:, :1], cache=held)


def test_a_cache_may_be_of_another_dtype_than_the_weights():
    attention, x = build(causal=True, dtype=torch.float32), random(1, 9, 16, dtype=torch.float32)
    held = attention.new_cache(1, dtype=torch.bfloat16)
    out = torch.cat([attention(piece, cache=held)[0] for piece in x.split([4, 1, 4], dim=1)], dim=1)
    assert held.bytes_per_token == 2 * 8 and out.dtype == torch.float32
    torch.testing.assert_close(out, attention(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "other",
    [{"cache": "mixed"}, {"kv_rank": 5}, {"rope_dim": 4}, {"rope": "full", "cache": "latent"}],
    ids=str,
)
def test_a_cache_of_another_attention_is_refused(other):
    attention = build(causal=True)
    with pytest.raises(InputError, match=r"cache\.append got|cache slot 'latent' got shape"):
        attention(random(2, 3, 16), cache=build(**other).new_cache(2))


def test_a_cache_of_another_batch_is_refused():
    with pytest.raises(InputError, match="the cache is of 3 sequences"):
        build(causal=True)(random(2, 3, 16), cache=build().new_cache(3))


def test_positions_cannot_be_given_where_keys_are_rotated_anew():
    attention = build(causal=True, rope="full", cache="latent")
    with pytest.raises(InputError, match="positions with rope='full' and cache='latent'"):
        attention(random(1, 3, 16), cache=attention.new_cache(1), positions=torch.arange(3))
    mixed = like(attention, causal=True, rope="full", cache="mixed")
    mixed(random(1, 3, 16), cache=mixed.new_cache(1), positions=torch.arange(3))


def test_dropout_drops_in_training_alone():
    attention, x = build(dropout=0.5), random(2, 9, 16)
    assert torch.equal(attention(x)[0], attention(x)[0])
    attention.train()
    assert not torch.equal(attention(x)[0], attention(x)[0])


@pytest.mark.parametrize("widths", [{}, {"kv_rank": 12}, {"kv_rank": 3}, {"nope_dim": 9, "v_dim": 2}], ids=str)
def test_up_projections_start_as_isometries_that_differ_between_heads(widths):
    with own_random(0):
        attention = LatentAttention(16, 4, **{"kv_rank": 6, **widths})
    for stack in (attention.k_up.detach(), attention.v_up.detach()):
        _, width, rank = stack.shape
        # Every vector that is not lost altogether keeps its size, up to what more or fewer numbers make of it.
        values = torch.linalg.svdvals(stack.double())
        torch.testing.assert_close(values, torch.full_like(values, max(1.0, width / rank) ** 0.5), rtol=1e-5, atol=1e-5)
        c = random(1000, rank, dtype=torch.float32)
        assert float((c @ stack[0].T).square().mean() / c.square().mean()) == pytest.approx(1.0, abs=0.25)
        assert not torch.allclose(stack[0], stack[1])
    first = attention.v_up.detach().clone()
    with own_random(0):
        assert torch.equal(LatentAttention(16, 4, **{"kv_rank": 6, **widths}).v_up, first)


def test_muon_makes_the_up_projections_orthogonal_head_by_head():
    with own_random(0):
        attention = LatentAttention(16, 4, kv_rank=6)
    found = roles(attention)
    assert all(found[name].kind == "matrix" and found[name].axes == (-2, -1) for name in ("k_up", "v_up"))
    before = attention.k_up.detach().clone()
    attention(random(2, 9, 16, dtype=torch.float32))[0].square().sum().backward()
    group = {"params": [attention.k_up], "axes": [(-2, -1)], "weight_decay": 0.0}
    Muon([group], lr=1.0, momentum=0.0, steps=5).step()
    values = torch.linalg.svdvals((before - attention.k_up.detach()).double())  # [heads, 4]
    assert values.shape == (4, 4)
    assert (values.amax(-1) / values.amin(-1)).max() < 1.5


def test_muon_treats_the_latent_and_the_rotary_key_as_the_two_maps_that_they_are():
    with own_random(0):
        attention = LatentAttention(16, 4, kv_rank=6, rope_dim=2)
    assert roles(attention)["kv_down_proj.weight"].parts == (6, 2)
    weight = attention.kv_down_proj.weight
    before = weight.detach().clone()
    config = TrainConfig(steps=1, warmup=0, momentum=0.0, weight_decay=0.0, matrix_lr=1.0, orthogonal_steps=5)
    optimizers = Optimizers(attention, config)
    # One direction that both need: each of the two maps goes along it as far as if it were alone.
    weight.grad = torch.ones(8, 1) * random(1, 16, dtype=torch.float32)
    optimizers.step(0)
    moved = before - weight.detach()
    sizes = [float(torch.linalg.matrix_norm(part, 2)) for part in moved.split([6, 2])]
    assert sizes == pytest.approx([0.2 * 16**0.5] * 2, rel=0.25)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rope_dim": 5}, "rope_dim=5: rotation turns pairs"),
        ({"rope_dim": 0}, "rope_dim=0"),
        ({"rope": "full", "nope_dim": 5}, "nope_dim=5 with rope='full'"),
        ({"rope": "full", "rope_dim": 4}, "rope_dim=4 with rope='full'"),
        ({"rope": "full", "decode": "absorbed"}, "decode='absorbed' with rope='full'"),
        ({"cache": "expanded", "decode": "absorbed"}, "decode='absorbed' with cache='expanded'"),
        ({"kv_rank": 0}, "kv_rank=0 should be at least 1 and at most d_model=16"),
        ({"kv_rank": 17}, "kv_rank=17"),
        ({"q_rank": 0}, "q_rank=0"),
        ({"q_rank": -3}, "q_rank=-3"),
        ({"nope_dim": 0}, "nope_dim=0"),
        ({"v_dim": -1}, "v_dim=-1"),
        ({"n_heads": 0}, "n_heads=0"),
        ({"n_heads": 3}, "n_heads=3 does not divide"),
        ({"rope_theta": 0.0}, "theta=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
    ids=str,
)
def test_absurd_options_are_one_clear_line(options, words):
    with pytest.raises(InputError, match=words):
        LatentAttention(**{"d_model": 16, "n_heads": 4, **options})


def test_heads_need_not_divide_the_model_when_widths_are_given():
    attention = LatentAttention(16, 3, nope_dim=4, v_dim=4, rope_dim=2)
    assert attention(random(1, 5, 16, dtype=torch.float32))[0].shape == (1, 5, 16)


# The rule


def flops_of(decode, queries, keys, **widths):
    """FLOPs of `queries` tokens at the end of `keys`, as counted."""
    attention = LatentAttention(64, 4, causal=True, decode=decode, **widths).eval()
    held = attention.new_cache(1)
    x = random(1, keys, 64, dtype=torch.float32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if keys > queries:
            attention(x[:, :-queries], cache=held)
        with FlopCounterMode(display=False) as counter:
            attention(x[:, -queries:], cache=held)
    return counter.get_total_flops()


WIDTHS = [
    {"kv_rank": 64},
    {"kv_rank": 12},
    {"kv_rank": 32, "nope_dim": 8, "v_dim": 40},
    {"kv_rank": 32, "nope_dim": 40, "v_dim": 8},
]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("keys", [1, 40, 600])
def test_the_automatic_form_is_never_much_dearer_than_the_cheaper_one(widths, keys):
    for queries in (1, 2, 5, 10, 20, 40, 150, 600):
        if queries <= keys:
            auto, naive, absorbed = (flops_of(d, queries, keys, **widths) for d in ("auto", "naive", "absorbed"))
            assert auto <= 1.3 * min(naive, absorbed), f"{queries} queries, {keys} keys: {auto}, {naive}, {absorbed}"


def test_against_many_keys_the_rule_is_the_papers_threshold():
    for rank, nope, v in ((256, 64, 64), (512, 128, 128), (100, 30, 70)):
        threshold = rank * (nope + v) / (2 * rank - nope - v)
        pays = [absorbing_pays(queries, 10**9, rank, nope, v) for queries in range(1, 400)]
        assert pays == [queries < threshold for queries in range(1, 400)]
    assert all(absorbing_pays(queries, 8192, 64, 64, 64) for queries in (1, 100, 8191))


def test_a_decoding_step_is_absorbed_and_a_long_prompt_is_not():
    assert absorbing_pays(1, 2048, 256, 64, 64) and not absorbing_pays(2048, 2048, 256, 64, 64)
