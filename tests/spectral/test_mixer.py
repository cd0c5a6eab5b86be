"""Spectral mixing: both forms against direct sums, causality, padding, decoding, and what it refuses."""

import itertools

import pytest
import torch

from blockyard.conformance.subject import randomise
from blockyard.errors import InputError
from blockyard.nn.dropout import set_dropout_keys
from blockyard.spectral.mixer import SpectralMixer
from tests.spectral import twin


def built(d_model=8, n_heads=2, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    options = {"num_groups": 2, "d_gate": 8, **options}
    mixer = SpectralMixer(d_model, n_heads, **options)
    randomise(mixer)
    return mixer.to(dtype).eval()


def causal(**options):
    return built(causal=True, **{"window": 8, "chunk": 3, "num_buckets": 5, **options})


def agree(actual, expected, tolerance):
    assert (actual - expected).abs().max() <= tolerance * (1 + expected.abs().max())


FORMS = {
    "chunk": {},
    "chunk, Toeplitz": {"use_toeplitz": True},
    "chunk of a power of two": {"window": 8, "chunk": 4},
    "chunk as long as the window": {"window": 5, "chunk": 5},
    "chunk of one token": {"window": 6, "chunk": 1},
    "token": {"gate": "token"},
    "window beyond the input": {"window": 40, "chunk": 7},
    "token, window beyond the input": {"window": 40, "gate": "token"},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_the_parallel_form_is_the_direct_sum(options):
    mixer, x = causal(**options), torch.randn(2, 23, 8, dtype=torch.float64)
    out = mixer(x)[0]
    for row in range(2):
        agree(out[row], twin.causal(mixer, x[row]), 1e-12)


@pytest.mark.parametrize(
    "length, n_fft, period",
    [(1, None, 1), (7, None, 8), (9, None, 9), (11, None, 12), (13, None, 15), (6, 13, 13), (6, 16, 16)],
)
def test_the_encoder_form_is_a_circular_convolution(length, n_fft, period):
    mixer = built(pooling_type="mean", num_buckets=5, memory_size=3, n_fft=n_fft)
    x = torch.randn(length, 8, dtype=torch.float64)
    agree(mixer(x[None])[0][0], twin.encoder(mixer, x, period), 1e-12)


@pytest.mark.parametrize("gate", ["chunk", "token"])
@pytest.mark.parametrize("prefill", [1, 2, 6, 7, 8, 9, 20])
def test_decoding_after_a_prefill_of_any_length_equals_the_parallel_form(gate, prefill):
    # 29 tokens pass the window of 8 three times and many a chunk of 3.
    mixer = causal(gate=gate, dtype=torch.float32)
    x = torch.randn(2, 29, 8)
    cache = mixer.new_cache(2)
    with torch.no_grad():
        expected = mixer(x)[0]
        out = [mixer(x[:, :prefill], cache=cache)[0]]
        out += [mixer(x[:, t : t + 1], cache=cache)[0] for t in range(prefill, 29)]
    agree(torch.cat(out, dim=1), expected, 1e-5)


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_chunks_of_any_sizes_go_through_the_cache(gate):
    mixer, x = causal(gate=gate), torch.randn(3, 31, 8, dtype=torch.float64)
    expected = mixer(x)[0]
    for sizes in ([5, 11, 1, 1, 13], [2, 1, 20, 8], [1, 30], [16, 15]):
        cache, at, out = mixer.new_cache(3), 0, []
        for size in sizes:
            with torch.no_grad():
                out.append(mixer(x[:, at : at + size], cache=cache)[0])
            at += size
        agree(torch.cat(out, dim=1), expected, 1e-12)


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_rows_with_padding_anywhere_decode_as_they_would_alone(gate):
    mixer, lengths = causal(gate=gate), (21, 13, 16)
    x = torch.randn(3, 21, 8, dtype=torch.float64)
    keep = torch.zeros(3, 21)
    keep[0] = 1
    keep[1, 8:] = 1
    keep[2, ::2], keep[2, -5:] = 1, 1
    lengths = keep.sum(1).long().tolist()
    alone = [mixer(x[row, keep[row].bool()][None])[0][0] for row in range(3)]
    for sizes in ([21], [9, 12], [10, 1, 1, 1, 8], [1] * 21):
        cache, at, out = mixer.new_cache(3), 0, []
        for size in sizes:
            with torch.no_grad():
                out.append(mixer(x[:, at : at + size], padding_mask=keep[:, : at + size], cache=cache)[0])
            at += size
        whole = torch.cat(out, dim=1)
        for row in range(3):
            agree(whole[row, keep[row].bool()], alone[row], 1e-12)
        assert cache.counts.tolist() == lengths


@pytest.mark.parametrize("form", ["chunk", "token", "encoder"])
def test_columns_that_no_row_fills_change_nothing(form, monkeypatch):
    # Elsewhere than on a CPU they stay: to see that they are empty, the device would have to be waited for.
    mixer = built(num_buckets=5) if form == "encoder" else causal(gate=form)
    x, keep = torch.randn(3, 14, 8, dtype=torch.float64), torch.zeros(3, 14)
    keep[0, 9:], keep[1, 2:5], keep[2, 13:] = 1, 1, 1

    def run():
        whole = mixer(x, padding_mask=keep)[0]
        if form == "encoder":
            return [whole]
        cache, pieces = mixer.new_cache(3), []
        for size in (3, 1, 6, 1, 3):
            seen = slice(cache.length, cache.length + size)
            with torch.no_grad():
                pieces.append(mixer(x[:, seen], padding_mask=keep[:, : seen.stop], cache=cache)[0])
        return [whole, torch.cat(pieces, 1)]

    trimmed = run()
    monkeypatch.setattr("blockyard.spectral.padding._width", lambda x, counts: x.shape[1])
    for out, expected in zip(run(), trimmed, strict=True):
        agree(out, expected, 1e-12)


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_nothing_that_comes_later_changes_what_came_before(gate):
    mixer, x = causal(gate=gate), torch.randn(1, 24, 8, dtype=torch.float64)
    expected = mixer(x)[0]
    for t in range(1, 24):
        changed = torch.cat([x[:, :t], torch.randn(1, 24 - t, 8, dtype=torch.float64)], dim=1)
        agree(mixer(changed)[0][:, :t], expected[:, :t], 1e-12)


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_the_jacobian_is_lower_triangular(gate):
    mixer = causal(gate=gate)
    x = torch.randn(13, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixer(x[None])[0][0], x)
    size = jacobian.abs().amax((1, 3))
    assert size.triu(1).max() < 1e-12 * size.max() and (size.tril() > 1e-6)[torch.ones(13, 13).tril().bool()].all()


def test_nan_in_a_future_chunk_stays_there():
    mixer, x = causal(), torch.randn(1, 24, 8, dtype=torch.float64)
    expected = mixer(x)[0]
    for chunk in range(1, 8):
        spoilt = x.clone()
        spoilt[:, 3 * chunk :] = torch.nan
        out = mixer(spoilt)[0]
        agree(out[:, : 3 * chunk], expected[:, : 3 * chunk], 1e-12)
        assert out[:, 3 * chunk :].isnan().all()


def test_the_gates_differ_between_chunks_and_tokens():
    # Were they constant, causality of the gate would prove nothing.
    for gate in ("chunk", "token"):
        mixer, x = causal(gate=gate), torch.randn(1, 24, 8, dtype=torch.float64)
        first, second = mixer.kernels(x[:, :9])[0], mixer.kernels(x[:, :12])[0]
        assert (first - second).abs().max() > 0.01 * first.abs().max()


@pytest.mark.parametrize("length", [1, 7, 12, 100, 1009])
@pytest.mark.parametrize("options", [{}, {"wavelet_on_rate": 0.3, "memory_size": 4}, {"causal": True}], ids=str)
def test_any_length_works_and_eval_is_deterministic(length, options):
    mixer, x = built(dtype=torch.float32, **options), torch.randn(1, length, 8)
    first, second = mixer(x)[0], mixer(x)[0]
    assert first.shape == x.shape and torch.isfinite(first).all() and torch.equal(first, second)


ENCODERS = [
    {"pooling_type": pooling, "interpolation": interpolation, "bucket_spacing": spacing, **more}
    for (pooling, interpolation, spacing), more in zip(
        itertools.product(["mean", "attention", "dct"], ["linear", "cubic"], ["linear", "log"]),
        itertools.cycle([{}, {"memory_size": 3, "use_toeplitz": True}, {"wavelet_on_rate": 1.0, "n_fft": 40}]),
    )
]


@pytest.mark.parametrize("options", ENCODERS, ids=str)
def test_padding_changes_no_other_output(options):
    mixer, x = built(**options), torch.randn(1, 9, 8, dtype=torch.float64)
    expected = mixer(x)[0]
    neighbour = torch.randn(1, 14, 8, dtype=torch.float64)
    for places in (range(9), range(5, 14), (0, 2, 3, 4, 7, 8, 10, 11, 13)):
        wide = 1e3 * torch.randn(2, 14, 8, dtype=torch.float64)
        wide[1] = neighbour
        wide[0, list(places)] = x[0]
        keep = torch.ones(2, 14)
        keep[0] = 0
        keep[0, list(places)] = 1
        out = mixer(wide, padding_mask=keep)[0]
        agree(out[0, list(places)], expected[0], 1e-12)
        agree(out[1], mixer(neighbour)[0][0], 1e-12)
        assert not out[0, keep[0] == 0].any()


FLAGS = [
    {"causal": causal, "interpolation": i, "bucket_spacing": s, "use_toeplitz": toeplitz, **more}
    for causal, mores in (
        (True, [{"gate": "chunk", "window": 16, "chunk": 4}, {"gate": "token", "window": 16}]),
        (False, [{"pooling_type": p} for p in ("mean", "attention", "dct")]),
        (False, [{"memory_size": 3, "memory_frozen": f, "wavelet_on_rate": 0.5, "wavelet_detach": f} for f in (0, 1)]),
    )
    for more in mores
    for i, s, toeplitz in (("linear", "linear", False), ("cubic", "log", True))
]


@pytest.mark.parametrize("options", FLAGS, ids=str)
def test_every_flag_constructs_and_trains(options):
    torch.manual_seed(0)
    options = {name: bool(v) if name in ("memory_frozen", "wavelet_detach") else v for name, v in options.items()}
    mixer = SpectralMixer(8, 2, num_groups=2, d_gate=8, **options).train()
    x, target = torch.randn(4, 18, 8), torch.randn(4, 18, 8)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        torch.manual_seed(1)
        loss = (mixer(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


def lag_copy(mixer, lag, steps, length=40):
    """Error of learning to repeat what stood `lag` tokens before, in units of the signal's variance."""
    optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
    for _ in range(steps):
        x = torch.randn(8, length, 8)
        loss = (mixer(x)[0][:, lag:] - x[:, :-lag]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("options", [{"causal": True, "window": 32, "chunk": 8, "num_buckets": 16}, {}], ids=str)
def test_copying_from_a_fixed_distance_is_learnt(options):
    torch.manual_seed(0)
    assert lag_copy(SpectralMixer(8, 2, d_gate=8, num_groups=2, **options), 5, 150) < 0.1


def test_a_wavelet_rate_of_one_half_reaches_half_of_the_samples_in_training():
    mixer = built(wavelet_on_rate=0.5, dtype=torch.float32)
    plain = built(wavelet_on_rate=0.0, dtype=torch.float32)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(400, 8, 8)
    with torch.no_grad():
        branch = mixer(x)[0] - plain(x)[0]
        trained = mixer.train()(x)[0] - plain(x)[0]
    changed = trained.abs().amax((1, 2)) > 1e-6
    agree(trained[changed], 2 * branch[changed], 1e-5)
    assert 150 < changed.sum() < 250


def test_a_keyed_wavelet_branch_follows_its_sample_through_a_padded_batch():
    mixer = built(wavelet_on_rate=0.5, dtype=torch.float32).train()
    x, keys = torch.randn(12, 24, 8), torch.arange(12) * 7919
    mask = torch.arange(24) < torch.tensor([24, 3, 17, 24, 9, 20, 3, 1, 24, 12, 16, 5])[:, None]
    set_dropout_keys(mixer, keys)
    with torch.no_grad():
        together = mixer(x, padding_mask=mask)[0]
        for row in range(12):
            set_dropout_keys(mixer, keys[row : row + 1])
            agree(mixer(x[row : row + 1], padding_mask=mask[row : row + 1])[0], together[row : row + 1], 1e-5)


def test_autocast_keeps_an_island_of_float32():
    mixer, x = built(causal=True, dtype=torch.float32), torch.randn(2, 90, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(x)[0]
        (gradient,) = torch.autograd.grad(out.float().square().sum(), mixer.gate.base)
    assert out.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    agree(out.float(), mixer(x)[0], 0.05)


def test_memory_is_set_fitted_or_learnt():
    mixer = built(memory_size=4, memory_frozen=True)
    assert "form.memory" not in dict(mixer.named_parameters()) and "form.memory" in mixer.state_dict()
    x = torch.randn(5, 10, 8, dtype=torch.float64)
    mixer.fit_memory(x)
    expected = torch.fft.rfft(x @ mixer.v_proj.weight.T, 10, dim=1).mean(0).T[:, :4]
    agree(torch.view_as_complex(mixer.form.memory), expected, 1e-12)
    mixer.set_memory(torch.zeros(8, 4, dtype=torch.complex128))
    assert not mixer.form.memory.any()
    with pytest.raises(InputError, match="expected complex"):
        mixer.set_memory(torch.zeros(8, 3, dtype=torch.complex128))
    with pytest.raises(InputError, match="no spectral memory"):
        built().fit_memory(x)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_groups": 3}, "num_groups=3 does not divide the head's width 4"),
        ({"num_buckets": 3}, "num_buckets=3 should be at least 4"),
        ({"window": 8}, "window=8 is an option of the causal form"),
        ({"gate": "token"}, "gate='token' is an option of the causal form"),
        ({"causal": True, "n_fft": 8}, "n_fft=8 is an option of the encoder form"),
        ({"causal": True, "pooling_type": "dct"}, "pooling_type='dct' is an option of the encoder form"),
        ({"causal": True, "wavelet_on_rate": 0.1}, "wavelet_on_rate=0.1 is an option of the encoder form"),
        ({"causal": True, "memory_size": 2}, "memory_size=2 is an option of the encoder form"),
        ({"causal": True, "window": 4, "chunk": 5}, "chunk=5 should be at most window=4"),
        ({"n_fft": 0}, "n_fft=0 should be at least 1"),
        ({"wavelet_on_rate": 1.5}, "between 0 and 1"),
        ({"memory_size": 99, "n_fft": 16}, "at most the 9 bins"),
    ],
)
def test_options_that_cannot_hold_are_refused(options, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        SpectralMixer(8, 2, **{"num_groups": 2, **options})


def test_an_input_longer_than_n_fft_is_refused_with_both_lengths():
    with pytest.raises(InputError, match=r"n_fft=8 is shorter than the input of 9 tokens.*n_fft=9"):
        built(n_fft=8)(torch.randn(1, 9, 8, dtype=torch.float64))
    # Padding does not count: nine columns hold eight tokens.
    keep = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]])
    built(n_fft=8)(torch.randn(1, 9, 8, dtype=torch.float64), padding_mask=keep)


def test_calls_of_the_other_form_are_refused():
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    with pytest.raises(InputError, match="causal=True, but this mixer was built with causal=False"):
        built()(x, causal=True)
    with pytest.raises(InputError, match="causal=True"):
        built().new_cache(1)


def test_parameters_gates_can_be_decayed_apart():
    from blockyard.nn.roles import roles

    found = roles(built(use_toeplitz=True))
    assert {name for name, role in found.items() if role.group == "gate"} == {"gate.hidden_weight", "gate.out_weight"}
    assert {found[name].kind for name in ("gate.base", "gate.taps", "gate.mod_bias", "form.pooling.orders")} == {
        "vector"
    }
