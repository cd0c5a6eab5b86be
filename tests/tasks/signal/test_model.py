"""The signal model: symmetries, patches, order, and an SNR that it is told."""

from __future__ import annotations

import math

import pytest
import torch

from blockyard import InputError
from blockyard.complex.symmetry import check_equivariance
from blockyard.tasks.run import make_task
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tasks.signal.condition import WAVES, SnrModulation
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.data import SignalData
from blockyard.tasks.signal.figures import signal_figures
from blockyard.tasks.signal.layers import OnParts
from blockyard.tasks.signal.model import SignalConfig, SignalTransformer, predict
from blockyard.tasks.signal.task import SignalTask
from blockyard.training.config import TrainConfig
from tests.fixtures.signals import DATA, SMALL, built, iq

CHOICES = ["standard", "standard[rope=none]+relu2", "complex", "complex[score=phase,gate=magnitude]",
           "complex/standard[rope=none]", "tva+vft", "complex+moe[expert=complex_swiglu,n_experts=4,k=2]"]  # fmt: skip


@pytest.mark.parametrize("blocks", CHOICES)
@pytest.mark.parametrize("options", [{}, {"symbols": 6, "patch": 2, "n_classes": 4}], ids=["frames", "symbols"])
def test_real_and_complex_blocks_classify_frames_and_symbols(blocks, options):
    model = built(blocks=blocks, **options)
    classes = options.get("n_classes", 6)
    shape = (3, 6) if options else (3,)
    output = model(iq(), targets=torch.randint(classes, shape))
    assert output.logits.shape == (*shape, classes)
    output.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    cost = model.cost(model.config.length)
    assert cost.parameters == sum(p.numel() for p in model.parameters()) and cost.flops > 0


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"blocks": "complex"}, True),
        ({"blocks": "complex", "norm": "whiten", "patch": 3, "normalise": True}, True),
        ({"blocks": "complex", "norm_position": "post"}, True),
        ({"blocks": "complex+moe[expert=complex_swiglu,n_experts=4,k=2]"}, True),
        ({"blocks": "complex", "condition": "snr"}, True),
        ({"blocks": "complex", "readout": "parts"}, False),
        ({"blocks": "complex/standard"}, False),
        ({"blocks": "standard"}, False),
    ],
    ids=str,
)
def test_which_models_do_not_see_a_turn_of_the_frame(options, kept):
    told = {"snr": torch.tensor([-10.0, 3.0, 17.0])} if "condition" in options else {}
    found = check_equivariance(built(**options), iq().to(torch.complex128), call=lambda model, x: model(x, **told))
    assert found.kind == "invariant" and bool(found) is kept, found


def test_normalised_frames_have_no_scale():
    model = built(blocks="complex", normalise=True).eval()
    torch.testing.assert_close(model(1e4 * iq()).logits, model(iq()).logits, rtol=1e-3, atol=1e-4)
    plain = built(blocks="complex").eval()
    assert not torch.allclose(plain(3 * iq()).logits, plain(iq()).logits, atol=1e-3)


TOLD = {"blocks": "standard", "condition": "snr"}


@pytest.mark.parametrize("blocks", ["standard", "complex"])
@pytest.mark.parametrize("options", [{}, {"symbols": 6, "patch": 2, "n_classes": 4}], ids=["frames", "symbols"])
def test_a_model_that_is_told_the_snr_starts_without_using_it_and_learns_to(blocks, options):
    torch.manual_seed(0)
    model = SignalTransformer(
        SignalConfig(**{**SMALL, **TOLD, "blocks": blocks, "zero_init_outputs": False, **options})
    )
    low, high = torch.full((3,), -10.0), torch.full((3,), 20.0)
    assert torch.equal(model(iq(), snr=low).logits, model(iq(), snr=high).logits)
    targets = torch.zeros(3, 6, dtype=torch.long) if options else torch.tensor([0, 1, 2])
    model(iq(), targets=targets, snr=low).loss.backward()
    told = {name: p for name, p in model.named_parameters() if "_snr" in name}
    assert len(told) == 4 and all(p.grad.abs().sum() > 0 for p in told.values())
    moved = built(**TOLD, **options)
    assert not torch.allclose(moved(iq(), snr=low).logits, moved(iq(), snr=high).logits, atol=1e-3)
    cost = model.cost(model.config.length)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("blocks", ["standard", "complex"])
def test_a_frame_is_read_with_its_own_snr_whatever_stands_beside_it(blocks):
    model = built(**{**TOLD, "blocks": blocks}).double().eval()
    frames, snr = iq(4).to(torch.complex128), torch.tensor([-10.0, 0.0, 7.5, 20.0])
    together = model(frames, snr=snr).logits
    alone = torch.cat([model(frames[i : i + 1], snr=snr[i : i + 1]).logits for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(frames[order], snr=snr[order]).logits, together[order], rtol=1e-10, atol=1e-10)


def test_gains_and_shifts_are_the_waves_of_the_snr_term_by_term():
    """The slow way: γ(s) = b + Σ_k (a_k sin kπs/40 + c_k cos kπs/40), and β likewise."""
    modulation = SnrModulation(3, shift=True).double()
    with torch.no_grad():
        modulation.modulate.weight.normal_()
        modulation.modulate.bias.normal_()
    x, snr = torch.randn(2, 5, 3, dtype=torch.float64), [-7.0, 12.5]
    weight, bias = modulation.modulate.weight.tolist(), modulation.modulate.bias.tolist()

    def wave(row, level):
        total = bias[row]
        for k in range(WAVES):
            angle = (k + 1) * math.pi * level / 40
            total += weight[row][k] * math.sin(angle) + weight[row][WAVES + k] * math.cos(angle)
        return total

    expected = torch.tensor(
        [
            [[x[b, t, d] * (1 + wave(d, s)) + wave(3 + d, s) for d in range(3)] for t in range(5)]
            for b, s in enumerate(snr)
        ],
        dtype=torch.float64,
    )
    found = modulation(x, torch.tensor(snr, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # Where the noise is beyond telling apart, more of it changes nothing.
    assert torch.equal(modulation(x, torch.tensor([40.0, -40.0])), modulation(x, torch.tensor([90.0, -60.0])))


def test_an_snr_that_is_missing_or_not_asked_for_is_refused():
    for options, snr, message in (
        (TOLD, None, "this model is told the SNR"),
        ({}, torch.zeros(3), "this model takes none"),
        (TOLD, torch.zeros(2), r"expected \[3\]: dB, one for each frame"),
    ):
        with pytest.raises(InputError, match=message):
            built(**options)(iq(), snr=snr)
    with pytest.raises(InputError, match="should be none or snr"):
        SignalConfig(condition="noise")


def test_recordings_have_no_snr_to_tell(tmp_path):
    with pytest.raises(InputError, match=r"recordings \(data\.path\) come without"):
        resolve({}, "signal").kind.load_data(SignalDataConfig(path=str(tmp_path)), SignalConfig(condition="snr"))


def test_training_and_validation_tell_every_frame_its_own_snr(monkeypatch):
    data = SignalData(SignalDataConfig(**DATA))
    task = SignalTask(
        SignalConfig(**{**SMALL, **TOLD, "frame": 16, "n_classes": 2}), data, TrainConfig(eval_batches=99)
    )
    seen = []
    forward = task.model.forward
    monkeypatch.setattr(
        task.model, "forward", lambda iq, **given: seen.append((iq, given["snr"])) or forward(iq, **given)
    )
    batch = task.batch(3, slice(2, 6))
    task.loss(task.model, batch)
    with torch.no_grad():
        task.evaluate(task.model.eval())
        signal_figures(data, task.model)
    validation = data.source.validation
    assert torch.equal(seen[0][0], batch["iq"]) and torch.equal(seen[0][1], batch["snr"])
    for frames, snr in seen[1:]:
        rows = [(validation.iq == frame).all(1).nonzero()[0, 0] for frame in frames[:5]]
        assert torch.equal(validation.snr[torch.stack(rows)], snr[:5])
    assert sum(len(frames) for frames, _ in seen[1:]) == 2 * len(validation.iq)


def test_a_real_layer_in_a_complex_stream_sees_its_parts():
    model = built(blocks="complex/standard+swiglu[d_ff=8]")
    assert isinstance(model.layers[1], OnParts) and model.layers[1].block.d_model == 32
    assert model.complex_valued and not built(blocks="standard").complex_valued


def test_frames_and_settings_that_do_not_fit_are_refused():
    model = built()
    for given, message in ((iq(length=11), r"expected \[batch, 12\]"), (iq().real, "expected complex64")):
        with pytest.raises(InputError, match=message):
            model(given)
    with pytest.raises(InputError, match="should divide the frame of 12"):
        SignalConfig(frame=12, patch=5)
    with pytest.raises(InputError, match="as many whole symbols: leave it out for 2, the samples of one"):
        SignalConfig(frame=12, patch=1, symbols=6)
    with pytest.raises(InputError, match="patch=0 should be at least 1"):
        SignalConfig(frame=12, patch=0)


def test_no_frames_have_no_answer():
    with pytest.raises(InputError, match="no frame to answer for"):
        predict(built(), iq()[:0])


def test_a_patch_is_held_against_the_frame_of_the_data():
    data = {"length": 1000, "val_frames": 1}
    run = resolve({"task": "signal", "model": {"patch": 10}, "data": data})
    fitted = run.kind.fit(run.model, SignalData(run.data).assets)
    assert fitted.length == 100
    run = resolve({"task": "signal", "model": {"patch": 7}, "data": data})
    with pytest.raises(InputError, match="should divide the frame of 1000 samples"):
        run.kind.fit(run.model, SignalData(run.data).assets)
    with pytest.raises(InputError, match="frame=0 should be at least 1"):
        SignalTransformer(SignalConfig(frame=0))


@pytest.mark.parametrize(
    "options, samples",
    [({}, 1), ({"symbols": 12}, 1), ({"symbols": 3}, 4), ({"symbols": 3, "patch": 12}, 12), ({"patch": 3}, 3)],
    ids=str,
)
def test_a_position_holds_the_samples_of_a_symbol_unless_a_patch_is_given(options, samples):
    model = built(**options)
    assert model.config.samples_per_position == samples and model.config.length == 12 // samples
    assert model(iq()).logits.shape == (3, *([options["symbols"]] if "symbols" in options else []), 6)


def test_an_equaliser_needs_no_patch_for_more_than_one_sample_per_symbol():
    groups = {
        "model": {"d_model": 16, "n_heads": 2},
        "data": {
            "modulations": "qpsk,bpsk",
            "scenario": "synchronised",
            "target": "symbols",
            "length": 16,
            "samples_per_symbol": 4,
            "val_frames": 2,
        },
        "train": {"batch_size": 2},
    }
    task = make_task(resolve(groups, "signal"))
    assert task.model(task.batch(0, slice(0, 2))["iq"]).logits.shape == (2, 4, 4)


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for checkpoint in (False, True):
        model = built(blocks="complex")
        model.checkpoint_activations = checkpoint
        model(iq(), targets=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, True),
        ({"ordered": False}, False),
        ({"ordered": False, "positions": "yes"}, True),
        ({"positions": "no"}, False),
    ],
    ids=str,
)
def test_a_frame_without_order_is_seen_as_a_set(options, expected):
    """Without positions a model says the same of every order of the samples; each kind of mixer can do without."""
    for blocks in ("standard", "complex", "tva+vft"):
        model = built(blocks=blocks, **options).eval()
        frames = iq()
        same = torch.allclose(model(frames).logits, model(frames.flip(1)).logits, atol=1e-4)
        assert same is not expected
    assert built(blocks="mla", **options).config.has_positions is expected, "a mixer that cannot do without is left"


@pytest.mark.parametrize(
    "options, ordered",
    [
        ({}, False),
        ({"phase": 3.0, "test_phase": 1.0}, False),
        ({"frequency": 0.01}, True),
        ({"fading": "rician"}, True),
        ({"samples_per_symbol": 2}, True),
        ({"target": "symbols"}, True),
    ],
    ids=str,
)
def test_the_data_say_whether_the_order_of_samples_tells_anything(options, ordered):
    data = SignalData(SignalDataConfig(scenario="synchronised", length=8, **options))
    fitted = resolve({}, "signal").kind.fit(SignalConfig(**{**SMALL, "frame": 8}), data.assets)
    assert fitted.has_positions is ordered


def test_settings_survive_the_way_through_groups():
    groups = {
        "attn": {"impl": "complex"}, "complex": {"score": "phase"}, "model": {"patch": 2, "norm": "whiten"},
        "data": {"length": 32, "modulations": "bpsk,qpsk"},
    }  # fmt: skip
    first = resolve(groups, "signal")
    assert str(first.model.layers[0]) == "complex[score=phase]+complex_swiglu" and first.model.norm == "whiten"
    assert resolve(as_groups(first)) == first


# Features and received symbols


BLIND = {"frame": 256, "blind": True, "n_classes": 5}


@pytest.mark.parametrize("blocks", ["standard", "complex", "spectral"])
@pytest.mark.parametrize("features", ["none", "cumulants", "spectra", "all"])
@pytest.mark.parametrize("samples", ["raw", "received"])
def test_every_input_reaches_every_kind_of_block_and_the_head(blocks, features, samples):
    model = built(blocks=blocks, features=features, samples=samples, **BLIND)
    output = model(iq(4, 256), targets=torch.tensor([0, 1, 2, 4]))
    assert output.logits.shape == (4, 5) and output.features.shape == (4, model.head.weight.shape[1])
    output.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.config.length == (64 if samples == "received" else 16)
    cost = model.cost(model.config.length)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"blocks": "complex"}, True),
        ({"blocks": "complex", "samples": "received"}, True),
        ({"blocks": "standard"}, False),
        ({"blocks": "complex", "features": "none"}, True),
    ],
    ids=str,
)
def test_features_leave_complex_models_blind_to_a_turn_of_the_frame(options, kept):
    found = check_equivariance(built(**BLIND, **options), iq(3, 256).to(torch.complex128))
    assert found.kind == "invariant" and bool(found) is kept, found


def test_blind_frames_have_no_scale_and_are_read_by_features_by_default():
    model = built(blocks="standard", **BLIND).eval()
    assert model.config.feature_kinds == "all" and model.config.normalises and model.config.samples_per_position == 16
    torch.testing.assert_close(model(1e3 * iq(3, 256)).logits, model(iq(3, 256)).logits, rtol=1e-2, atol=1e-2)
    plain = built(blocks="standard", frame=256)
    assert plain.config.feature_kinds == "none" and not plain.config.normalises and plain.config.length == 256


def test_what_does_not_fit_a_receiver_is_refused():
    with pytest.raises(InputError, match="need frames of 256 samples, not 64"):
        built(frame=64, features="all")
    with pytest.raises(InputError, match="are for whole frames"):
        SignalConfig(symbols=6, frame=12, features="all")
    with pytest.raises(InputError, match="should divide the 256 received symbols"):
        SignalConfig(samples="received", patch=7)


def test_where_phase_and_timing_alone_are_unknown_the_blocks_see_a_symbol_each():
    data = SignalData(SignalDataConfig(scenario="unlocked", length=128, modulations="bpsk,qpsk", val_frames=1))
    fitted = resolve({}, "signal").kind.fit(SignalConfig(**{**SMALL, "frame": 128}), data.assets)
    assert (fitted.known_rate, fitted.length, fitted.samples_per_position) == (4, 32, 1)
    assert not fitted.has_positions and fitted.feature_kinds == "all"
    model = SignalTransformer(fitted)
    assert model(data.source.validation.iq).logits.shape == (len(data.source.validation.iq), 2)
