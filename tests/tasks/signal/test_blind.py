"""The blind scenario: waveforms beside their definitions, what channels and receivers do, and purity."""

from __future__ import annotations

import math

import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.channel import ECHO, imbalance, multipath, turn
from blockyard.tasks.signal.config import BLIND_ONLY, OWN, SignalDataConfig
from blockyard.tasks.signal.generator import GeneratedSignals, SignalGenerator, strange_kinds
from blockyard.tasks.signal.kinds import BLIND, KINDS, STRANGE_CALIBRATION, STRANGE_TEST, parse_kinds
from blockyard.tasks.signal.modulations import constellation
from blockyard.tasks.signal.waveforms import MARGIN, continuous_phase, cubic, linear, message, ofdm
from tests.fixtures.signals import generator
from tests.tasks.signal import twin

# Nothing but the signal itself.
PLAIN = {"fading": "none", "phase": 0.0, "frequency": 0.0, "phase_noise": 0.0, "iq_gain": 0.0, "iq_phase": 0.0,
         "dc": 0.0, "clock": 0.0}  # fmt: skip


def made(kind, n=32, snr=100.0, seed=0, **options):
    config = SignalDataConfig(modulations=f"{kind},{'tone' if kind != 'tone' else 'noise'}", **{**PLAIN, **options})
    modulation, levels = torch.zeros(n, dtype=torch.long), torch.full((n,), snr)
    return SignalGenerator(config).generate(n, generator(seed), modulation=modulation, snr=levels).iq


def spectrum(iq):
    """Mean power over the frames at each frequency, lowest first, by windowed transforms; and the frequencies."""
    window = torch.hann_window(iq.shape[1])
    power = torch.fft.fftshift(torch.fft.fft(iq * window).abs().square().mean(0))
    return power / power.sum(), torch.fft.fftshift(torch.fft.fftfreq(iq.shape[1]))


# Waveforms


@pytest.mark.parametrize("rolloff", [0.2, 0.35, 0.5, 1.0])
def test_shaped_symbols_are_the_sum_of_their_pulses(rolloff):
    symbols = torch.zeros(1, 48, dtype=torch.complex64)
    points = constellation("16qam")
    symbols[0, 16:32] = points[torch.randint(16, (16,), generator=generator())].to(torch.complex64)
    instants = torch.arange(40).view(1, -1) / 3.7 + 9.3
    found = linear(symbols, instants, torch.tensor([[rolloff]]))
    expected = twin.linear(symbols[0].tolist(), instants[0].tolist(), rolloff, MARGIN)
    # A cubic between eight instants of a symbol; the pulses of the fast way come round its ends.
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.complex64), atol=6e-3, rtol=0)


@pytest.mark.parametrize("index, bt", [(0.5, math.inf), (1.0, math.inf), (0.5, 0.3), (0.33, 0.5)])
def test_keyed_frequencies_add_up_to_the_phase(index, bt):
    levels = 2.0 * torch.randint(2, (1, 32), generator=generator()) - 1
    instants = torch.arange(60).view(1, -1) / 5.3 + 0.4
    found = continuous_phase(levels, instants, torch.tensor([[index]]), torch.tensor([[bt]]))
    expected = torch.tensor(twin.keyed(levels[0].tolist(), instants[0].tolist(), index, bt, MARGIN))
    # Where the phase began is not told: both are turned to begin at 0.
    difference = (found[0] * expected.conj().to(torch.complex64)).angle()
    off = torch.polar(torch.ones(60), difference - difference[0]).angle().abs().max()
    assert off < 0.03


@pytest.mark.parametrize("kind", ["2fsk", "4fsk", "gfsk", "msk", "gmsk", "cpfsk", "fm"])
def test_keyed_and_frequency_modulated_signals_have_a_constant_envelope_and_no_jump_of_phase(kind):
    iq = made(kind, samples_per_symbol=8)
    assert (iq.abs() - 1).abs().max() < 1e-3
    step = (iq[:, 1:] * iq[:, :-1].conj()).angle().abs()
    # The largest deviation: h/2 (levels − 1) symbol rates; a Gaussian message's tails.
    most = KINDS[kind].index[1] / 2 * (KINDS[kind].levels - 1) / 8 if kind != "fm" else 0.45
    assert step.max() <= 2 * math.pi * most + 1e-3


@pytest.mark.parametrize("sps, rolloff", [(4, 0.2), (8, 0.35), (16, 0.5)])
def test_symbols_occupy_the_band_of_their_pulse(sps, rolloff):
    power, frequency = spectrum(made("qpsk", 200, samples_per_symbol=sps, rolloff=rolloff))
    half = (1 + rolloff) / 2 / sps
    assert float(power[frequency.abs() > half + 4 / 1024].sum()) < 1e-4
    assert float(power[frequency.abs() < (1 - rolloff) / 2 / sps].sum()) == pytest.approx(1 - rolloff, abs=0.02)
    # Half the power density is at half the symbol rate.
    near = power[(frequency.abs() - 0.5 / sps).abs() < 1.5 / 1024].mean() / power[frequency.abs() < 0.2 / sps].mean()
    assert float(near) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("kind", sorted({*BLIND, *STRANGE_CALIBRATION, *STRANGE_TEST}))
def test_every_kind_is_finite_of_unit_power_and_its_own(kind):
    iq = made(kind, 64)
    assert torch.isfinite(torch.view_as_real(iq)).all()
    assert float(iq.abs().square().mean()) == pytest.approx(1, abs=0.15)
    assert not torch.allclose(iq[0], iq[1], atol=0.1)


@pytest.mark.parametrize("snr", [0.0, 15.0])
@pytest.mark.parametrize("sps", [4, 6, 16])
def test_the_snr_of_oversampled_symbols_is_their_energy_over_the_noise_density(sps, snr):
    clean, noisy = (made("8psk", 64, snr=level, samples_per_symbol=sps) for level in (100.0, snr))
    ratio = clean.abs().square().mean() / (noisy - clean).abs().square().mean()
    assert float(10 * torch.log10(sps * ratio)) == pytest.approx(snr, abs=0.2)


def test_symbol_rates_are_drawn_between_the_bounds_and_not_whole_numbers_only():
    iq = made("qpsk", 300, sps_min=5.0, sps_max=6.0, rolloff=0.5)
    lines = torch.fft.rfft(iq.abs().square() - iq.abs().square().mean(1, keepdim=True)).abs()
    # The squared envelope of shaped symbols has a line at the symbol rate.
    rate = lines[:, 100:300].argmax(1).add(100) / 1024
    inside = (rate > 1 / 6.0 - 2e-3) & (rate < 1 / 5.0 + 2e-3)
    assert float(inside.double().mean()) > 0.95 and rate[inside].unique().numel() > 20


def test_a_message_has_its_power_between_its_two_frequencies():
    low, high = torch.full((50, 1), 0.02), torch.full((50, 1), 0.05)
    found = message(50, 1024, low, high, generator())
    power, frequency = spectrum(found)
    assert float(power[(frequency > 0.018) & (frequency < 0.052)].sum()) > 0.995
    assert float(found.real.square().mean()) == pytest.approx(1, abs=1e-4)


def test_am_with_a_carrier_has_one_and_a_side_band_lies_on_one_side():
    power, frequency = spectrum(made("am-dsb", 100, snr=60.0))
    assert float(power[frequency.abs() < 3 / 1024].sum()) > 0.5
    one_sided = torch.fft.fft(made("am-ssb", 100)).abs().square()
    above = one_sided[:, 1:512].sum(1) / one_sided.sum(1)
    assert ((above > 0.93) | (above < 0.07)).all() and 0.2 < float((above > 0.5).double().mean()) < 0.8


def test_a_cyclic_prefix_repeats_the_end_of_its_symbol():
    instants = torch.arange(512).view(1, -1) / 64
    points = constellation("qpsk").to(torch.complex64).view(1, -1)
    found = ofdm(instants, torch.tensor([[32.0]]), torch.tensor([[0.25]]), points, generator())[0]
    for start in range(0, 480, 80):
        torch.testing.assert_close(found[start : start + 15], found[start + 64 : start + 79], atol=1e-2, rtol=0)
        assert not torch.allclose(found[start + 20 : start + 30], found[start + 84 : start + 94], atol=0.1)


def test_a_cubic_reads_polynomials_of_third_degree_exactly():
    values = torch.arange(12, dtype=torch.float64).view(1, -1) ** 3
    at = torch.tensor([[1.0, 2.3, 5.75, 8.99]], dtype=torch.float64)
    torch.testing.assert_close(cubic(values, at), at**3, rtol=1e-12, atol=1e-9)


# Channel and receiver


def test_echoes_are_late_by_the_spread_in_symbols_whatever_the_rate():
    """The response to one pulse: how late its power comes on the average, in symbols."""
    found = []
    for sps in (4.0, 12.0):
        x = torch.zeros(4000, ECHO + 256, dtype=torch.complex64)
        x[:, ECHO] = 1
        heard = multipath(x, torch.full((4000, 1), sps), 3, torch.full((4000, 1), 0.5), False, generator())
        power = heard.abs().square()
        assert torch.allclose(power.sum(1), torch.ones(4000), atol=1e-3)
        # A late path between two samples rings a little, also before its time, round the ends.
        late = (power[:, :200] * torch.arange(200)).sum() / power[:, :200].sum() / sps
        found.append(float(late))
    # Paths of power 4/7, 2/7, 1/7 on the average, the later ones late by half a symbol, would make .214; that every
    # frame has the same power gives those whose echoes are strong more weight.
    assert 0.2 < found[0] < 0.32 and found[1] == pytest.approx(found[0], rel=0.2)


def test_a_direct_path_is_twice_as_strong_as_the_scattered_ones():
    x = torch.zeros(6000, ECHO + 64, dtype=torch.complex64)
    x[:, ECHO] = 1
    sure = [
        multipath(x, torch.ones(6000, 1), 3, torch.zeros(6000, 1), kind, generator())[:, 0] for kind in (True, False)
    ]
    # Power is restored frame by frame: what is left of the direct path is a mean that does not vanish.
    assert float(sure[0].mean().abs()) > 0.7 and float(sure[1].mean().abs()) < 0.05


def test_the_phase_walks_as_far_as_it_is_told():
    x = torch.ones(3000, 1001, dtype=torch.complex64)
    none = torch.zeros(3000, 1)
    angle = turn(x, none, none, torch.full((3000, 1), 0.2), generator()).angle()
    assert float((angle[:, 1000] - angle[:, 0]).std()) == pytest.approx(0.2, rel=0.06)
    assert float((angle[:, 250] - angle[:, 0]).std()) == pytest.approx(0.1, rel=0.06)
    offset = turn(x[:2], none[:2], torch.full((2, 1), 0.01), none[:2], generator()).angle()
    assert float(offset[0, 10]) == pytest.approx(0.2 * math.pi, abs=1e-4)


def test_an_imbalance_is_a_gain_and_an_angle_of_q():
    one, other = torch.ones(1, 4, dtype=torch.complex64), 1j * torch.ones(1, 4, dtype=torch.complex64)
    gain, skew = torch.tensor([[6.0206]]), torch.tensor([[30.0]])
    torch.testing.assert_close(imbalance(one, gain, skew)[0, 0], torch.tensor(1 + 1j), atol=1e-3, rtol=0)
    both = imbalance(other, gain, skew)[0, 0]
    assert abs(complex(both) - 2j * math.cos(math.pi / 6)) < 1e-3


@pytest.mark.parametrize("name", [n for n in (*BLIND_ONLY, "phase", "frequency", "timing") if not n.startswith("sps")])
def test_every_impairment_changes_frames_and_none_at_a_level_of_0(name):
    """Each on its own beside none at all; the same draws are made with and without."""
    none = {**PLAIN, "timing": 0.0, "delay_spread": 0.0}
    level = OWN["blind"][name]
    given = {name: level, **({"fading": "rician"} if name == "delay_spread" else {})}
    plain, changed = (made("qpsk", 8, samples_per_symbol=8, **{**none, **g}) for g in ({}, given))
    assert not torch.allclose(plain, changed, atol=1e-3)
    if name != "delay_spread":
        assert torch.equal(plain, made("qpsk", 8, samples_per_symbol=8, **{**none, name: 0.0}))


# Data


def test_batches_of_blind_frames_are_functions_of_seed_and_step_whoever_takes_which_rows():
    data = GeneratedSignals(SignalDataConfig(val_frames=1))
    whole = data.batch(3, 7, 24, slice(0, 24))
    parts = [data.batch(3, 7, 24, rows) for rows in (slice(0, 5), slice(5, 24))]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([p[key] for p in parts]))
    assert not torch.equal(whole["iq"], data.batch(3, 8, 24, slice(0, 24))["iq"])
    assert not torch.equal(whole["iq"], data.batch(4, 7, 24, slice(0, 24))["iq"])


def test_a_training_on_few_frames_sees_those_again_and_again():
    data = GeneratedSignals(SignalDataConfig(length=64, train_frames=5))
    seen = {tuple(row.real.tolist()) for step in range(20) for row in data.batch(0, step, 8, slice(0, 8))["iq"]}
    assert len(seen) == 5
    again = GeneratedSignals(SignalDataConfig(length=64, train_frames=5))
    batches = [d.batch(1, 3, 8, slice(2, 6)) for d in (data, again)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])
    held = {tuple(row.real.tolist()) for row in data.validation.iq}
    assert not seen & held


def test_other_signals_are_of_no_class_and_differ_between_calibration_and_test():
    config = SignalDataConfig(length=64)
    calibration, test = (strange_kinds(config, part) for part in ("calibration", "test"))
    assert calibration and test and not set(calibration) & set(test) and not {*calibration, *test} & set(config.classes)
    data = GeneratedSignals(config)
    first, again = (data.strange("test", 40).iq for _ in range(2))
    assert torch.equal(first, again) and len(first) == 40
    assert strange_kinds(SignalDataConfig(scenario="synchronised"), "test") == ()
    everything = GeneratedSignals(SignalDataConfig(modulations="all", length=64, val_frames=1))
    with pytest.raises(InputError, match="leaves no kinds for the test of unknown"):
        everything.strange("test", 4)


# Options


def test_a_scenario_fills_in_what_is_not_given_and_keeps_what_is():
    blind, synchronised = SignalDataConfig(), SignalDataConfig(scenario="synchronised")
    assert (blind.length, blind.classes, blind.samples_per_symbol_range) == (1024, BLIND, (4.0, 16.0))
    assert (synchronised.length, synchronised.samples_per_symbol, synchronised.phase) == (128, 1, 0.0)
    assert SignalDataConfig(length=512, phase=0.0).phase == 0.0
    assert SignalDataConfig(samples_per_symbol=8).samples_per_symbol_range == (8.0, 8.0)
    unlocked = SignalDataConfig(scenario="unlocked")
    assert unlocked.symbols == 128 and unlocked.timing == 1.0 and unlocked.phase == pytest.approx(math.pi)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scenario": "deaf"}, "data.scenario"),
        ({"scenario": "synchronised", "dc": 0.1}, "data.dc is of data.scenario=blind, not synchronised"),
        ({"scenario": "synchronised", "modulations": "bpsk,fm"}, "fm has no constellation; data.scenario=blind"),
        ({"scenario": "unlocked", "frequency": 0.01}, "phase and timing alone"),
        ({"samples_per_symbol": 1}, "data.timing needs pulses"),
        ({"target": "symbols"}, "needs a known symbol rate: data.scenario=synchronised"),
        ({"sps_min": 9.0, "sps_max": 4.0}, "from 2 to 64, in order"),
        ({"iq_phase": 90.0}, "in degrees, at most 45"),
        ({"modulations": "bpsk,16qma"}, "did you mean '16qam'"),
        ({"modulations": "fm"}, "at least two different names, or blind, usual, all"),
        ({"train_frames": 0}, "data.train_frames=0"),
        ({"delay_spread": 0.5, "fading": "none"}, "data.delay_spread needs data.fading"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        SignalDataConfig(**options)


def test_kinds_are_read_by_name_and_by_set():
    assert parse_kinds("blind") == BLIND and set(parse_kinds("all")) == set(KINDS)
    assert parse_kinds("FM, noise") == ("fm", "noise")
