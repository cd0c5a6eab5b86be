"""`blockyard.MultiheadAttention`: torch's constructor and call, in torch's own layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import blockyard
from blockyard import InputError, MultiheadAttention, list_attention
from blockyard.registry.register import implementation

# Bit for bit the same in eager code and compiled code is promised nowhere: sums may run in another order.
CLOSE = {"atol": 2e-6, "rtol": 1e-5}
# What torch's module does: all positions see all others, and padding is left out.
TRAITS = {name: implementation("attn", name).traits for name in list_attention()}
ALL = [name for name, traits in TRAITS.items() if traits.bidirectional and traits.padding]
MIXERS = [name for name in ALL if not TRAITS[name].complex_valued]
WIDTH, HEADS, LENGTH, BATCH = 16, 4, 7, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pair(**options):
    theirs = nn.MultiheadAttention(WIDTH, HEADS, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():  # torch starts biases at zero, which would hide a wrong one
            parameter.uniform_(-0.4, 0.4)
    return theirs, MultiheadAttention.from_torch(theirs)


MASKS = {
    "none": lambda: None,
    "bool": lambda: torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(2),
    "float": lambda: torch.randn(LENGTH, LENGTH),
    "per head": lambda: torch.rand(BATCH * HEADS, LENGTH, LENGTH) > 0.8,
}
PADDING = {
    "none": lambda: None,
    "added": lambda: torch.randn(BATCH, LENGTH).masked_fill(PADDING["bool"](), float("-inf")),
    "bool": lambda: torch.arange(LENGTH).expand(BATCH, -1) >= torch.tensor([[7], [5], [6]]),
    "float": lambda: PADDING["bool"]().float().masked_fill(PADDING["bool"](), float("-inf")),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mask,padding", list(itertools.product(MASKS, PADDING)))
def test_it_equals_torchs_module_under_every_mask(mask, padding, batch_first):
    theirs, ours = pair(batch_first=batch_first)
    x = torch.randn((BATCH, LENGTH, WIDTH) if batch_first else (LENGTH, BATCH, WIDTH))
    attn_mask, padded = MASKS[mask](), PADDING[padding]()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask[..., 0] = False  # rows that see nothing are NaN there and 0 here
    if attn_mask is not None and padded is not None and attn_mask.dtype != padded.dtype:
        if padding == "added":
            attn_mask = torch.zeros(attn_mask.shape).masked_fill(attn_mask, float("-inf"))
        else:
            padded = PADDING["float" if attn_mask.is_floating_point() else "bool"]()  # torch wants one kind
    for average in (True, False):
        expected, weights = theirs(x, x, x, padded, True, attn_mask, average)
        out, found = ours(x, x, x, padded, True, attn_mask, average)
        torch.testing.assert_close(out, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(found, weights, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_cross_attention_and_unbatched_calls_equal_torchs(bias):
    theirs, ours = pair(bias=bias)
    x, memory = torch.randn(LENGTH, WIDTH), torch.randn(5, WIDTH)
    for expected, found in zip(theirs(x, memory, memory), ours(x, memory, memory)):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_gradients_equal_torchs():
    theirs, ours = pair(batch_first=True)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    grads = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        module(given, given, given)[0].square().sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_mixer_works_in_torchs_encoder(mixer, mode):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
    layer.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    getattr(encoder, mode)()
    calls = []
    for inner in encoder.layers:
        inner.self_attn.mixer.register_forward_hook(lambda *_: calls.append(1))
    x, padded = torch.randn(BATCH, LENGTH, WIDTH), PADDING["bool"]()
    with torch.set_grad_enabled(mode == "train"):
        out = encoder(x, src_key_padding_mask=padded)
    assert len(calls) == 2, "torch bypassed the mixer"
    changed = torch.where(padded[..., None], torch.randn_like(x), x)
    with torch.set_grad_enabled(mode == "train"):
        again = encoder(changed, src_key_padding_mask=padded)
    torch.testing.assert_close(again[~padded], out[~padded], atol=1e-5, rtol=1e-5)
    if mode == "train":
        out.square().sum().backward()
        assert all(p.grad is not None for p in encoder.layers[0].self_attn.parameters())


@pytest.mark.parametrize("mixer", [m for m in MIXERS if TRAITS[m].causal])
def test_a_causal_encoder_hides_the_future(mixer):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
    layer.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer, causal=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    x = torch.randn(1, LENGTH, WIDTH)
    later = torch.cat([x[:, :4], torch.randn(1, LENGTH - 4, WIDTH)], dim=1)
    with torch.no_grad():
        a, b = (encoder(v, mask=mask, is_causal=True) for v in (x, later))
    torch.testing.assert_close(a[:, :4], b[:, :4], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize("mixer", [m for m in MIXERS if TRAITS[m].cross])
def test_a_decoder_layer_of_torchs_attends_to_its_memory(mixer):
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True).eval()
    layer.multihead_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer)
    x, memory = torch.randn(1, LENGTH, WIDTH), torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        assert not torch.allclose(layer(x, memory), layer(x, memory.flip(-1)))


def test_state_dict_survives_a_round_trip():
    first, second = (MultiheadAttention(WIDTH, HEADS, mixer="tva", options={"rank": 2}) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(LENGTH, BATCH, WIDTH)
    torch.testing.assert_close(first(x, x, x)[0], second(x, x, x)[0])


REFUSED = {
    "add_bias_kv": ({"add_bias_kv": True}, "add_bias_kv=True is not supported"),
    "kdim": ({"kdim": 3, "mixer": "mla"}, "kdim=3, vdim=None should be embed_dim=16 .* 'mla' reads keys and values"),
    "no width": ({"vdim": 0}, "v_proj cannot read vectors of width 0"),
    "no such mixer": ({"mixer": "standart"}, "Did you mean 'standard'"),
    "no such option": ({"options": {"widnow": 3}}, "did you mean 'window'"),
    "an option of the model": ({"options": {"n_heads": 3}}, "give n_heads to the constructor"),
    "bias where there is none": ({"mixer": "tva", "bias": True}, "no option for biases"),
}


@pytest.mark.parametrize("options,message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        MultiheadAttention(WIDTH, HEADS, **options)


def test_calls_that_do_not_fit_are_refused_by_name():
    ours, x = MultiheadAttention(WIDTH, HEADS, batch_first=True), torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.raises(InputError, match="value should be the same tensor as key: attention 'mla' reads both"):
        MultiheadAttention(WIDTH, HEADS, mixer="mla")(x, x, x.clone())
    with pytest.raises(InputError, match=r"query has shape \(3, 7, 5\)"):
        ours(x[..., :5], x, x)
    with pytest.raises(InputError, match="key_padding_mask has shape"):
        ours(x, x, x, torch.zeros(BATCH, 3, dtype=torch.bool))
    with pytest.raises(InputError, match=r"key_padding_mask has dtype torch.uint8"):
        ours(x, x, x, torch.zeros(BATCH, LENGTH, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"key_padding_mask should hold 0 .* this mixer adds nothing"):
        MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer="spectral")(x, x, x, torch.ones(BATCH, LENGTH))
    with pytest.raises(InputError, match="attn_mask has shape"):
        ours(x, x, x, attn_mask=torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"attn_mask has dtype torch.int64"):
        ours(x, x, x, attn_mask=torch.zeros(LENGTH, LENGTH, dtype=torch.long))
    with pytest.raises(InputError, match="is_causal=True between two sequences needs the attn_mask"):
        ours(x, x[:, :3], x[:, :3], is_causal=True)
    with pytest.raises(InputError, match=r"values come from \(3, 5, 16\), expected \(3, 7, 16\)"):
        ours(x, x, x[:, :5])
    with pytest.raises(InputError, match="key has 3 axes, query has 2; all have a batch, or none has"):
        ours(x[0], x[:1], x[:1])


# Which calls are self-attention.


@pytest.fixture
def positioned():
    """Attention that tells self-attention from cross-attention by its rotation."""
    return MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()


VIEWS = {
    "rows of a stack": lambda x: (x[0], x[0], x[0]),
    "transposed": lambda x: (x.transpose(0, 1).transpose(0, 1), x, x.view_as(x)),
    "slices": lambda x: (x[:, 1:5], x[:, 1:5], x[:, 1:5]),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_views_of_one_memory_are_self_attention(positioned, views, grad, recwarn):
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=grad)
    q, k, v = views(x)
    torch.testing.assert_close(positioned(q, k, v)[0], positioned(q, q, q)[0], **CLOSE)
    assert not recwarn.list
    if grad:
        (viewed,) = torch.autograd.grad(positioned(q, k, v)[0].square().sum(), x)
        (plain,) = torch.autograd.grad(positioned(q, q, q)[0].square().sum(), x)
        torch.testing.assert_close(viewed, plain, **CLOSE)


def test_a_shifted_window_of_the_same_memory_is_another_sequence(positioned):
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.warns(UserWarning, match="taken for another sequence"):
        shifted = positioned(x[:, :5], x[:, 1:6], x[:, 1:6])[0]
    cross = positioned(x[:, :5], x[:, 1:6], x[:, 1:6], self_attention=False)[0]
    torch.testing.assert_close(shifted, cross, **CLOSE)


def test_a_copy_is_self_attention_when_it_is_said_so(positioned, recwarn):
    x = torch.randn(BATCH, LENGTH, WIDTH)
    expected = positioned(x, x, x)[0]
    torch.testing.assert_close(positioned(x, x.clone(), x.clone(), self_attention=True)[0], expected, **CLOSE)
    positioned.self_attention = True
    torch.testing.assert_close(positioned(x, x.clone(), x.clone())[0], expected, **CLOSE)
    assert (positioned(x, x, x, self_attention=False)[0] - expected).abs().max() > 0.01
    holes = torch.where(torch.arange(LENGTH)[:, None] == 6, float("nan"), x)
    positioned(holes, holes.clone(), holes)
    assert not recwarn.list
    with pytest.raises(InputError, match="self_attention=True: key holds other numbers than query"):
        positioned(x, x + 1, x)
    with pytest.raises(InputError, match=r"self_attention=True: value has shape \(3, 6, 16\)"):
        positioned(x, x, x[:, 1:])


def test_cross_attention_of_equal_lengths_is_noted_once(positioned, recwarn):
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.warns(UserWarning, match="pass self_attention=True for a copy of query") as noted:
        first = positioned(x, x.clone(), x.clone())[0]
    assert noted[0].filename == __file__
    again = positioned(x, x.clone(), x.clone())[0]
    torch.testing.assert_close(again, first, **CLOSE)
    plain = MultiheadAttention(WIDTH, HEADS, options={"rope": "none"})  # without positions both are the same
    torch.testing.assert_close(plain(x, x.clone(), x.clone())[0], plain(x, x, x)[0], **CLOSE)
    positioned(x, x[:, 1:], x[:, 1:])
    assert not recwarn.list


def test_a_detached_key_is_not_taken_for_the_query(positioned):
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    for other in (x.detach(), x.detach().requires_grad_()):
        with pytest.raises(InputError, match="another one detached: the same numbers, with other gradients"):
            positioned(x, other, other)
        positioned(x, other, other, self_attention=True)
        with torch.no_grad():
            torch.testing.assert_close(positioned(x, other, other)[0], positioned(x, x, x)[0], **CLOSE)


@pytest.mark.parametrize("mixer", ["standard", "spectral"])
def test_compiled_calls_decide_as_eager_ones_do(mixer):
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer).eval()
    x = torch.randn(BATCH, LENGTH, WIDTH)
    padded = PADDING["float"]()

    @torch.compile(backend="eager")
    def compiled(x):
        return ours(x, x, x, padded)[0], ours(x[0], x[0], x[0])[0]

    with torch.no_grad():
        for found, expected in zip(compiled(x), (ours(x, x, x, padded)[0], ours(x[0], x[0], x[0])[0])):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        padded += 0.5
        with pytest.raises(RuntimeError, match="key_padding_mask should hold 0"):
            compiled(x)


def complex_or_real(mixer, *shape):
    return torch.randn(*shape, dtype=torch.complex64 if mixer == "complex" else torch.float32)


@pytest.mark.parametrize("mixer", ALL)
def test_unbatched_input_is_a_batch_of_one(mixer):
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer).eval()
    traits, x = TRAITS[mixer], complex_or_real(mixer, LENGTH, WIDTH)
    padded = torch.arange(LENGTH) >= 5
    out, weights = ours(x, x, x, padded)
    expected, theirs = ours(x[None], x[None], x[None], padded[None])
    torch.testing.assert_close(out, expected[0], **CLOSE)
    assert (weights is None) is not traits.weights
    if traits.weights:
        torch.testing.assert_close(weights, theirs[0], **CLOSE)
        per_head = ours(x, x, x, attn_mask=torch.ones(HEADS, LENGTH, LENGTH).triu(1) > 0, average_attn_weights=False)[1]
        assert per_head.shape == (HEADS, LENGTH, LENGTH) and not per_head.triu(1).any()


@pytest.mark.parametrize("shape", [(0, LENGTH, WIDTH), (BATCH, 0, WIDTH)], ids=["no rows", "no positions"])
@pytest.mark.parametrize("mixer", ALL)
def test_an_empty_batch_gives_an_empty_result_and_gradients_of_zero(mixer, shape):
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    x = complex_or_real(mixer, *shape).requires_grad_()
    out, weights = ours(x, x, x, torch.zeros(shape[:2], dtype=torch.bool))
    real = torch.zeros(shape)
    expected, expected_weights = theirs(real, real, real)
    assert out.shape == expected.shape and out.dtype == x.dtype
    assert weights is None or weights.shape == expected_weights.shape
    out.abs().sum().backward()
    assert x.grad.shape == x.shape and all(not p.grad.any() for p in ours.parameters())


def test_an_empty_batch_of_cross_attention_is_empty_too():
    ours = MultiheadAttention(WIDTH, HEADS)
    x, memory = torch.randn(LENGTH, 0, WIDTH), torch.randn(5, 0, WIDTH, requires_grad=True)
    out, weights = ours(x, memory, memory, average_attn_weights=False)
    assert out.shape == x.shape and weights.shape == (0, HEADS, LENGTH, 5)
    out.sum().backward()
    assert memory.grad.shape == memory.shape
    with pytest.raises(InputError, match="key has batch 2, query has 0"):
        ours(x, torch.randn(5, 2, WIDTH), torch.randn(5, 2, WIDTH))


def test_a_causal_module_hides_the_future_whether_the_call_says_so_or_not():
    ours, x = MultiheadAttention(WIDTH, HEADS, batch_first=True, causal=True).eval(), torch.randn(1, LENGTH, WIDTH)
    assert not ours(x, x, x)[1].triu(1).any()
    torch.testing.assert_close(ours(x, x, x)[0], ours(x, x, x, is_causal=True)[0], **CLOSE)
    assert ours(x, x[:, :5], x[:, :5])[1].triu(1).any()  # another sequence has no future


def test_a_causal_mask_between_two_sequences_is_read():
    theirs, ours = pair(batch_first=True)
    x, memory = torch.randn(2, BATCH, LENGTH, WIDTH).unbind()
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    expected = theirs(x, memory, memory, attn_mask=mask, is_causal=True)[0]
    torch.testing.assert_close(ours(x, memory, memory, attn_mask=mask, is_causal=True)[0], expected, **CLOSE)


# Values and widths of their own.


@pytest.mark.parametrize("widths", [{}, {"kdim": 6}, {"vdim": 9}, {"kdim": 6, "vdim": 9}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_of_their_own_equal_torchs(widths, bias):
    theirs, ours = pair(batch_first=True, bias=bias, **widths)
    x = torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    k, v = (torch.randn(BATCH, 5, widths.get(name, WIDTH), requires_grad=True) for name in ("kdim", "vdim"))
    padded, mask = PADDING["bool"]()[:, :5], torch.ones(LENGTH, 5, dtype=torch.bool).triu(1)
    expected, found = (module(x, k, v, padded, attn_mask=mask) for module in (theirs, ours))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **CLOSE)
    slopes = [torch.autograd.grad(out.square().sum(), (x, k, v)) for out, _ in (expected, found)]
    for a, b in zip(*slopes):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
    cost = ours.mixer.cost(LENGTH)
    assert cost.parameters == sum(p.numel() for p in ours.parameters())


def test_values_of_their_own_beside_keys_that_rotate():
    ours, x = MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(BATCH, LENGTH, WIDTH)
    out, weights = ours(x, x, x.flip(1), average_attn_weights=False)
    torch.testing.assert_close(weights, ours(x, x, x, average_attn_weights=False)[1], **CLOSE)
    values = ours.mixer.v_proj(x.flip(1)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    expected = ours.mixer.output_proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(ours(x, x, x.clone())[0], ours(x, x, x)[0], **CLOSE)


def test_a_module_with_other_keys_has_no_self_attention():
    ours, x = MultiheadAttention(WIDTH, HEADS, batch_first=True, vdim=9), torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.raises(InputError, match=r"values come from \(3, 7, 16\), expected \(3, 7, 9\)"):
        ours.mixer(x)
    with pytest.raises(InputError, match=r"values come from \(3, 7, 16\), expected \(3, 7, 9\)"):
        ours(x, x, x)
    with pytest.raises(InputError, match=r"value has shape \(3, 7, 16\), expected \[length, batch, 9\]"):
        MultiheadAttention(WIDTH, HEADS, vdim=9)(x, x, x.clone())


# torch's state dicts.


def plain(**options):
    return MultiheadAttention(WIDTH, HEADS, options={"rope": "none", "qk_norm": False}, **options)


@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 9}], ids=["packed", "apart"])
@pytest.mark.parametrize("assign", [False, True])
def test_torchs_state_dict_is_loaded(widths, assign):
    theirs, _ = pair(**widths)
    ours = plain(bias=True, **widths)
    ours.load_state_dict(theirs.state_dict(), assign=assign)
    x, k, v = torch.randn(4, 2, WIDTH), torch.randn(5, 2, theirs.kdim), torch.randn(5, 2, theirs.vdim)
    torch.testing.assert_close(ours(x, k, v)[0], theirs(x, k, v)[0], **CLOSE)
    again = plain(bias=True, **widths)
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(x, k, v)[0], theirs(x, k, v)[0], **CLOSE)


def test_an_encoders_state_dict_is_loaded_into_one_with_exchanged_attention():
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0), 2, enable_nested_tensor=False
    )
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0)
    layer.self_attn = plain(bias=True)
    ours = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(LENGTH, BATCH, WIDTH)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


UNLOADABLE = {
    "another mixer": ({"mixer": "mla"}, {}, "in_proj_weight: attention 'mla' has no such projections"),
    "QK-norm": ({}, {}, "in_proj_weight: this attention normalises queries and keys"),
    "no biases here": (
        {"options": {"rope": "none", "qk_norm": False}},
        {},
        "in_proj_bias: this attention has no biases",
    ),
    "grouped heads": (
        *({"options": {"rope": "none", "qk_norm": False, "n_kv_heads": 2}, "bias": True}, {}),
        r"in_proj_weight has shape \(48, 16\), expected \(16, 16\) and \(8, 16\) and \(8, 16\)",
    ),
    "widths apart": (
        *({"options": {"rope": "none", "qk_norm": False}, "bias": True}, {"kdim": 6}),
        r"k_proj_weight has shape \(16, 6\), expected \(16, 16\)",
    ),
    "an extra key": (
        *({"options": {"rope": "none", "qk_norm": False}, "bias": True}, {"add_bias_kv": True}),
        "bias_k: no mixer here has the extra key",
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "line"), UNLOADABLE.values(), ids=UNLOADABLE)
def test_keys_that_have_no_place_are_refused_by_name(ours, theirs, line):
    state = nn.MultiheadAttention(WIDTH, HEADS, **theirs).state_dict()
    with pytest.raises(InputError, match=line):
        MultiheadAttention(WIDTH, HEADS, **ours).load_state_dict(state)


def test_a_missing_key_is_named_by_torch():
    state = nn.MultiheadAttention(WIDTH, HEADS).state_dict()
    del state["out_proj.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*mixer.output_proj.weight"):
        plain(bias=True).load_state_dict(state)


def test_torchs_weights_in_attention_that_rotates_are_noted():
    ours = MultiheadAttention(WIDTH, HEADS, bias=True, options={"qk_norm": False})
    with pytest.warns(UserWarning, match="the outputs are not torch's"):
        ours.load_state_dict(nn.MultiheadAttention(WIDTH, HEADS).state_dict())


def test_a_module_that_computes_otherwise_is_not_taken_over():
    theirs = nn.MultiheadAttention(WIDTH, HEADS)
    theirs.register_forward_hook(lambda module, given, out: (out[0] * 2, out[1]))
    with pytest.raises(InputError, match="the MultiheadAttention computes what its weights do not tell"):
        MultiheadAttention.from_torch(theirs)
    with pytest.raises(InputError, match="add_bias_kv or add_zero_attn cannot be taken over"):
        MultiheadAttention.from_torch(nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True))


# torch's encoder in eval mode, which makes nested tensors of a padding mask.


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("exchanged", [[0, 1, 2], [0], [1]], ids=["all layers", "the first", "the second"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_attention_exchanged_in_a_built_encoder_works_in_eval_mode_with_padding(mixer, exchanged):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3)
    assert encoder.use_nested_tensor
    for number in exchanged:
        encoder.layers[number].self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True, mixer=mixer)
    x, padded = torch.randn(BATCH, LENGTH, WIDTH), PADDING["bool"]()
    with torch.no_grad():
        found = encoder.eval()(x, src_key_padding_mask=padded)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            expected = encoder(x, src_key_padding_mask=padded)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(found[~padded], expected[~padded], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_take_no_masks_and_give_no_weights():
    ours = MultiheadAttention(WIDTH, HEADS, batch_first=True)
    rows = torch.nested.nested_tensor([torch.randn(4, WIDTH), torch.randn(2, WIDTH)])
    with pytest.raises(InputError, match="need_weights with a nested tensor"):
        ours(rows, rows, rows, need_weights=True)
    with pytest.raises(InputError, match="query, key and value at once"):
        ours(rows, rows, torch.randn(2, 4, WIDTH))


def test_the_output_projection_has_torchs_name():
    ours = MultiheadAttention(WIDTH, HEADS)
    assert ours.out_proj is ours.mixer.output_proj and "out_proj.weight" not in ours.state_dict()


def test_it_is_exported_at_the_top():
    assert blockyard.MultiheadAttention is MultiheadAttention
