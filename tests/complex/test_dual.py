"""The dual-stream block with all its variants, and the complex document's names and calls."""

from __future__ import annotations

import pytest
import torch

from blockyard import InputError
from blockyard.compat import complex_block as compat
from blockyard.complex.dual import DualStreamBlock
from blockyard.complex.symmetry import check_equivariance
from blockyard.nn.roles import roles
from blockyard.registry import register as registry
from tests.fixtures.documents import python_examples, seed

C = torch.complex128
D, H = 8, 2
VARIANTS = {
    "default": {},
    "interleaved": {"order": "interleaved"},
    "shared": {"share_weights": True},
    "gated": {"cross_gate": True},
    "post": {"norm_position": "post"},
    "whiten": {"norm": "whiten", "norm_groups": 2},
    "magnitude": {"attn": "complex[score=magnitude,gate=learned]"},
    "all": {"order": "interleaved", "share_weights": True, "cross_gate": True, "norm": "layer", "checkpoint": True},
}
each_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def randn(*shape, seed=0, dtype=C):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def built(seed=0, **options):
    torch.manual_seed(seed)
    block = DualStreamBlock(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_variant
def test_both_streams_turn_with_their_inputs(options):
    found = check_equivariance(built(**options), randn(2, 5, D), randn(2, 7, D, seed=1))
    assert found, found


@each_variant
def test_every_variant_trains_streams_of_unequal_length(options):
    block = built(**options).train()
    x_in, x_out = randn(2, 5, D), randn(2, 3, D, seed=1)
    losses = []
    for _ in range(2):
        a, b, aux = block(x_in, x_out)
        assert a.shape == x_in.shape and b.shape == x_out.shape and aux is None
        loss = a.abs().square().mean() + b.abs().square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(block.parameters()))
        assert all(g.any() for g in gradients), "a parameter has no gradient"
        size = sum(g.square().sum() for g in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(block.parameters(), gradients):
                parameter -= 1e-3 * loss / size * gradient
    assert losses[1] < losses[0]


def by_hand(block, x_in, x_out, order):
    """The definition, sublayer by sublayer (pre-norm)."""
    mine, other = block.streams[0], block.streams[-1]

    def itself(s, x):
        return x + s.attn(s.norm_attn(x))[0]

    def across(x, context):
        return x + block.cross(block.norm_cross(x), context=block.norm_context(context))[0]

    def feed(s, x):
        return x + s.ffn(s.norm_ffn(x))

    x_in, updated = itself(mine, x_in), itself(other, x_out)
    x_in = across(x_in, x_out if order == "sequential" else updated)
    return feed(mine, x_in), feed(other, updated)


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
def test_the_order_says_which_state_of_the_other_stream_is_read(order):
    block, x_in, x_out = built(order=order), randn(2, 5, D), randn(2, 3, D, seed=1)
    for found, expected in zip(block(x_in, x_out), by_hand(block, x_in, x_out, order)):
        close(found, expected)


def test_post_norm_adds_the_norm_of_what_a_sublayer_gives():
    block, x_in, x_out = built(norm_position="post"), randn(2, 5, D), randn(2, 3, D, seed=1)
    s = block.streams[-1]
    mixed = x_out + s.norm_attn(s.attn(x_out)[0])
    close(block(x_in, x_out)[1], mixed + s.norm_ffn(s.ffn(mixed)))


def test_shared_weights_are_stored_once_and_treat_both_streams_alike():
    shared, apart = built(share_weights=True), built()
    assert sum(p.numel() for p in shared.parameters()) < 0.65 * sum(p.numel() for p in apart.parameters())
    assert len(shared.state_dict()) == len({t.data_ptr() for t in shared.state_dict().values()})
    with torch.no_grad():
        shared.cross.output_proj.weight.zero_()
    x = randn(2, 5, D)
    a, b, _ = shared(x, x)
    close(a, b)


def test_a_closed_gate_leaves_the_cross_attention_out():
    block, x_in = built(cross_gate=True), randn(2, 5, D)
    with torch.no_grad():
        block.gate.weight.zero_()
        block.gate.bias.fill_(-100)
    close(block(x_in, randn(2, 3, D, seed=1))[0], block(x_in, randn(2, 4, D, seed=2))[0])


def test_checkpointing_changes_no_gradient():
    x_in, x_out = randn(2, 5, D), randn(2, 3, D, seed=1)
    gradients = []
    for checkpoint in (False, True):
        block = built(checkpoint=checkpoint, dropout=0.3).train()
        torch.manual_seed(5)
        a, b, _ = block(x_in, x_out)
        gradients.append(torch.autograd.grad(a.abs().sum() + b.abs().sum(), list(block.parameters())))
    for first, second in zip(*gradients):
        close(first, second)


@pytest.mark.parametrize("order", ["sequential", "interleaved"])
def test_decoding_both_streams_equals_the_full_pass(order):
    block = built(order=order, causal=True, cross_gate=True)
    x_in, x_out = randn(2, 7, D), randn(2, 7, D, seed=1)
    expected = block(x_in, x_out)
    cache = block.new_cache(2)
    assert len(cache) == 3
    with torch.no_grad():
        steps = [block(x_in[:, i:j], x_out[:, i:j], cache=cache) for i, j in ((0, 3), (3, 4), (4, 5), (5, 7))]
    for stream in (0, 1):
        close(torch.cat([s[stream] for s in steps], dim=1), expected[stream])
    point = cache.snapshot()
    with torch.no_grad():
        block(x_in[:, :2], x_out[:, :2], cache=cache)
    cache.rollback(point)
    assert cache.length == 7


def test_the_future_of_either_stream_has_no_influence_when_causal():
    block, x_in, x_out = built(causal=True), randn(2, 7, D), randn(2, 7, D, seed=1)
    expected = block(x_in, x_out)
    for changed in ((x_in.clone(), x_out), (x_in, x_out.clone())):
        for stream in changed:
            if stream is not x_in and stream is not x_out:
                stream[:, 4:] = 7
        for found, before in zip(block(*changed)[:2], expected):
            close(found[:, :4], before[:, :4])


def test_padding_of_both_streams_has_no_influence():
    block = built()
    x_in, x_out = randn(2, 5, D), randn(2, 6, D, seed=1)
    keep_in, keep_out = torch.ones(2, 5), torch.ones(2, 6)
    keep_in[1, 3:] = 0
    keep_out[1, 4:] = 0
    a, b, _ = block(x_in, x_out, padding_mask_in=keep_in, padding_mask_out=keep_out)
    alone_in, alone_out, _ = block(x_in[1:, :3], x_out[1:, :4])
    close(a[1:, :3], alone_in)
    close(b[1:, :4], alone_out)


def test_real_mixers_join_two_streams_as_well():
    block = DualStreamBlock(D, H, attn="standard", ffn="swiglu[d_ff=8]", cross_gate=True, order="interleaved")
    a, b, _ = block(randn(2, 5, D, dtype=torch.float32), randn(2, 3, D, dtype=torch.float32))
    assert a.shape == (2, 5, D) and b.shape == (2, 3, D) and a.dtype == torch.float32


def test_a_mixer_that_knows_no_context_is_refused():
    class Alone(torch.nn.Module):
        def __init__(self, d_model: int): ...
        def forward(self, x): ...

    registry.register_attn("alone_toy")(Alone)
    try:
        with pytest.raises(InputError, match="'alone_toy' cannot attend to a context"):
            DualStreamBlock(D, H, attn="alone_toy", ffn="swiglu")
    finally:
        registry._register.entries.pop(("attn", "alone_toy"))


def test_what_does_not_fit_is_one_clear_error():
    for options, message in (
        ({"attn": "standard"}, "ComplexSwiGLU is complex-valued, StandardAttention is real"),
        ({"attn": "standard", "ffn": "swiglu", "causal": True}, "no causal cross-attention; complex has it"),
        ({"order": "parallel"}, "order='parallel' should be sequential or interleaved"),
        ({"attn": "standard", "ffn": "swiglu", "norm_groups": 2}, "only complex norms have groups"),
    ):
        with pytest.raises(InputError, match=message):
            DualStreamBlock(D, H, **options)
    with pytest.raises(InputError, match="build the block with causal=True"):
        built().new_cache(2)
    with pytest.raises(InputError, match="one clock"):
        built(causal=True)(randn(1, 5, D), randn(1, 4, D))


def test_costs_and_roles_cover_all_parameters():
    for options in ({}, {"share_weights": True, "cross_gate": True}):
        block = built(**options)
        named = dict(block.named_parameters())
        assert block.cost(4).parameters == sum(p.numel() for p in named.values())
        found = roles(block)
        assert set(found) == set(named)
        assert all(role.pairs == (named[name].ndim == 3) for name, role in found.items() if role.kind == "matrix")


def test_zeroed_outputs_make_the_block_the_identity():
    block, x_in, x_out = built(), randn(2, 5, D), randn(2, 3, D, seed=1)
    block.zero_init_output()
    a, b, _ = block(x_in, x_out)
    close(a, x_in)
    close(b, x_out)


MOE = "moe[expert=complex_swiglu,expert.d_ff=6,n_experts=4,k={k}]"


def test_all_experts_chosen_is_the_dense_sum_by_magnitudes():
    from blockyard import get_ffn

    torch.manual_seed(0)
    ffn = get_ffn("moe", d_model=D, expert="complex_swiglu", n_experts=3, k=3, expert_options={"d_ff": 6}).double()
    with torch.no_grad():
        ffn.router.linear.weight.normal_()
    x = randn(2, 5, D)
    shares = (x.abs() @ ffn.router.linear.weight.T).softmax(-1)
    expected = sum(shares[..., i : i + 1] * member(x) for i, member in enumerate(ffn.experts))
    close(ffn(x), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_mixtures_of_complex_experts_keep_the_symmetry_and_return_their_losses(shared):
    block = built(ffn=MOE.format(k=2), share_weights=shared)
    assert check_equivariance(block, randn(2, 5, D), randn(2, 3, D, seed=1))
    a, b, aux = block(randn(2, 5, D), randn(2, 3, D, seed=1))
    assert set(aux["stats"]) == {"in", "out"} and aux["losses"]["balance"].ndim == 0
    (a.abs().sum() + b.abs().sum() + aux["losses"]["balance"]).backward()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_mixtures_of_either_stream_are_told_what_is_padding(checkpointed):
    block = built(ffn=MOE.format(k=2), checkpoint=checkpointed).train()
    x_in, x_out = randn(2, 5, D), randn(2, 7, D, seed=1)
    keep_in, keep_out = torch.ones(2, 5), torch.ones(2, 7)
    keep_in[0, :3], keep_out[1, 4:] = 0, 0
    _, _, aux = block(x_in, x_out, padding_mask_in=keep_in, padding_mask_out=keep_out)
    assert [int(aux["stats"][name]["load"].sum()) for name in ("in", "out")] == [2 * 7, 2 * 11]


def test_a_stream_of_padded_rows_gets_from_its_capacity_what_the_rows_get_alone():
    ffn = "moe[expert=complex_swiglu,expert.d_ff=6,n_experts=4,k=2,capacity=0.5]"
    block, x = built(ffn=ffn, attn="complex[rope=none]").train(), randn(2, 7, D)
    keep = torch.ones(2, 7)
    keep[0, :4] = 0
    wide = block(x, x, padding_mask_in=keep, padding_mask_out=keep)
    for row, first in ((0, 4), (1, 0)):
        alone = block(*[x[row : row + 1, first:]] * 2)
        for stream in range(2):
            close(wide[stream][row : row + 1, first:], alone[stream])


# The document's names and calls


def parts(*shape, seed=0):
    z = randn(*shape, seed=seed, dtype=torch.complex64)
    return z.real, z.imag


def eight(feature, heads=H, seq_in=6, seq_out=4):
    return [
        tensor
        for number, shape in enumerate([(2, heads, seq_in, feature), (2, heads, seq_out, feature)] * 2)
        for tensor in parts(*shape, seed=number)
    ]


def as_four(streams):
    return [torch.complex(streams[0], streams[1]), torch.complex(streams[2], streams[3])]


@pytest.fixture(scope="module")
def ran():
    """The namespace after the document's examples ran with its names from here."""
    shared = {name: getattr(compat, name) for name in compat.__all__} | {"torch": torch}
    names = ["x_in_r", "x_in_i", "x_out_r", "x_out_i", "pe_in_r", "pe_in_i", "pe_out_r", "pe_out_i"]
    shared |= dict(zip(names, eight(48, 8)))
    done = []
    for number, code in enumerate(python_examples(seed("complex-block.md"))):
        try:
            compile(code, "", "exec")
        except SyntaxError:
            continue
        if "..." in code:
            # Its `...` stands for the eight tensors, of which a cache wants equally many steps.
            code = code.replace("...", ", ".join(names))
            shared |= dict(zip(names, eight(48, 8, 5, 5)))
        if not code.isascii() and "TransformerBlock" not in code:
            # Prose between code fences.
            continue
        exec(code, shared)
        done.append(number)
    return shared, done


def test_the_documents_examples_run_with_only_their_import_changed(ran):
    shared, done = ran
    assert len(done) >= 2
    assert shared["out_in_r"].shape == (2, 8, 6, 48) and shared["out_out_i"].shape == (2, 8, 4, 48)
    assert shared["model"].use_kv_cache and shared["model"]._cache is None


def test_parameters_are_eight_to_eleven_million_dense():
    with torch.device("meta"):
        block = compat.TransformerBlock(feature_dim=384, num_heads=8)
    assert 8e6 < sum(p.numel() for p in block.parameters()) < 11e6


def test_heads_of_the_whole_width_are_streams_that_share_weights():
    block = compat.TransformerBlock(D, H).eval()
    given = eight(D)
    whole = block(*given)
    for head in range(H):
        one = compat.TransformerBlock(D, 1).eval()
        one.load_state_dict(block.state_dict())
        alone = one(*(t[:, head : head + 1] for t in given))
        for a, b in zip(whole, alone):
            close(a[:, head : head + 1], b, 1e-4)


def test_heads_of_their_share_of_the_width_are_one_vector():
    block = compat.TransformerBlock(D, H).eval()
    given = eight(D // H)
    found = as_four(block(*given))
    core = block.block
    joined = [torch.complex(*given[i : i + 2]).transpose(1, 2).flatten(2) for i in range(0, 8, 2)]
    expected = core(joined[0], joined[1], pe_in=joined[2], pe_out=joined[3])
    for a, b in zip(found, expected[:2]):
        close(a.transpose(1, 2).flatten(2), b, 1e-5)
    assert core.streams[0].norm_attn.groups == H and core.cross.n_heads == H


@pytest.mark.parametrize("feature", [D, D // H], ids=["streams", "heads"])
def test_cached_calls_equal_the_full_one_and_clear_cache_starts_again(feature):
    block = compat.TransformerBlock(D, H, use_kv_cache=True).eval()
    given = eight(feature, seq_in=6, seq_out=6)
    full = block(*given)
    for _ in range(2):
        with torch.no_grad():
            steps = [block(*(t[:, :, i:j] for t in given), use_cache=True) for i, j in ((0, 3), (3, 4), (4, 6))]
        for number, expected in enumerate(full):
            close(torch.cat([s[number] for s in steps], dim=2), expected, 1e-4)
        block.clear_cache()
    with torch.no_grad():
        block(*given, use_cache=True)
        with pytest.raises(InputError, match=r"the cache holds .* clear_cache\(\) starts again"):
            block(*(t[:1] for t in given), use_cache=True)
    with pytest.raises(InputError, match="use_cache=True needs a block built with use_kv_cache=True"):
        compat.TransformerBlock(D, H)(*given, use_cache=True)


def test_components_take_and_return_parts():
    x = parts(2, 3, D)
    z = torch.complex(*x)
    for module, core in (
        (linear := compat.ComplexLinear(D, 5, bias=True), super(compat.ComplexLinear, linear).forward),
        (norm := compat.ComplexLayerNorm(D), norm.norm),
        (gated := compat.ComplexSwiGLU(D, 6), super(compat.ComplexSwiGLU, gated).forward),
    ):
        real, imaginary = module(*x)
        close(torch.complex(real, imaginary), core(z), 1e-5)
    attention, given = compat.ComplexAttention(D, H).eval(), eight(D // H)
    assert attention(*given[:2], *given[4:6])[0].shape == given[0].shape
    crossed = attention(*given[:2], *given[4:6], *given[2:4], *given[6:])
    assert crossed[1].shape == given[0].shape


def test_shapes_of_neither_reading_are_refused_by_name():
    block = compat.TransformerBlock(D, H)
    with pytest.raises(InputError, match=r"x_in has shape .*, expected \[b, 2, seq, 8\] .* or \[b, 2, seq, 4\]"):
        block(*eight(5))
    with pytest.raises(InputError, match="pe_in_r and pe_in_i belong together"):
        block(*eight(D)[:5])
    with pytest.raises(InputError, match="in one reading"):
        block(*eight(D)[:2], *eight(D // H)[2:4])
