"""`blockyard.MultiheadAttention`: torch's constructor and call, in torch's own layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import blockyard
from blockyard import InputError, MultiheadAttention, list_attention
from blockyard.registry import implementation

MIXERS = [name for name in list_attention() if "float32" in implementation("attn", name).traits.dtypes]
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


@pytest.mark.parametrize("mixer", [m for m in MIXERS if implementation("attn", m).traits.causal])
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


@pytest.mark.parametrize("mixer", [m for m in MIXERS if implementation("attn", m).traits.cross])
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
    "kdim": ({"kdim": 3}, "kdim=3 should be embed_dim=16"),
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
    with pytest.raises(InputError, match="value should be the same tensor"):
        ours(x, x, x.clone())
    with pytest.raises(InputError, match=r"query has shape \(3, 7, 5\)"):
        ours(x[..., :5], x, x)
    with pytest.raises(InputError, match="key_padding_mask has shape"):
        ours(x, x, x, torch.zeros(BATCH, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="key_padding_mask should hold 0"):
        ours(x, x, x, torch.ones(BATCH, LENGTH))
    with pytest.raises(InputError, match="attn_mask has shape"):
        ours(x, x, x, attn_mask=torch.zeros(3, 3))


def test_it_is_exported_at_the_top():
    assert blockyard.MultiheadAttention is MultiheadAttention
