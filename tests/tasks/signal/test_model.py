"""The signal model, its task, and its commands."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockyard import InputError
from blockyard.cli import main
from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.complex.symmetry import check_equivariance
from blockyard.tasks.run import load_run, make_task, train
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tasks.signal.bound import log_likelihoods
from blockyard.tasks.signal.condition import WAVES, SnrModulation
from blockyard.tasks.signal.generator import SignalDataConfig
from blockyard.tasks.signal.model import OnParts, SignalConfig, SignalTransformer, predict
from blockyard.tasks.signal.modulations import USUAL
from blockyard.tasks.signal.report import SignalParts
from blockyard.tasks.signal.task import SignalData, SignalTask, signal_figures
from blockyard.training.config import TrainConfig

Done = namedtuple("Done", "status out err")


@pytest.fixture
def run(capsys):
    """Runs a command in this process."""

    def call(*words):
        status = main(list(words))
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call


SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "frame": 12}


def built(**options):
    torch.manual_seed(0)
    model = SignalTransformer(SignalConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def iq(n=3, length=12, seed=0):
    return torch.randn(n, length, generator=torch.Generator().manual_seed(seed), dtype=torch.complex64)


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
        signal_figures(data.config, data, task.model)
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
    data = SignalData(SignalDataConfig(length=8, **options))
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


DATA = {"modulations": "bpsk,qpsk", "length": 16, "snr_min": 0.0, "snr_max": 20.0, "val_frames": 20}
TRAIN = {"steps": 120, "batch_size": 32, "eval_every": 60, "warmup": 5, "precision": "fp32", "compile": "off",
         "progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A complex model that tells BPSK from QPSK."""
    out = tmp_path_factory.mktemp("signal") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2}
    try:
        train({"attn": {"impl": "complex"}, "model": model, "data": DATA, "train": TRAIN}, out, task="signal")
    finally:
        torch.set_num_threads(threads)
    return out


def test_training_reaches_far_more_than_chance_and_the_run_loads(trained):
    model, assets, run = load_run(trained)
    assert assets.classes == ("bpsk", "qpsk") and assets.length == 16 and run.task == "signal"
    data = SignalData(run.data)
    with torch.no_grad():
        figures = signal_figures(run.data, data, model)
    assert figures["accuracy"][-1] > 0.85
    assert figures["bound"]["frames"] >= 20_000 and figures["bound"]["coherent"]
    assert all(a <= b + 0.15 for a, b in zip(figures["accuracy"], figures["bound"]["accuracy"]))
    for shares in figures["confusion"].values():
        assert all(sum(row) == pytest.approx(1) for row in shares)
    json.dumps(figures)


def test_a_trained_complex_model_says_the_same_of_turned_frames(trained):
    model, _, run = load_run(trained)
    frames = SignalData(run.data).source.validation.iq
    turned = frames * complex(math.cos(1.1), math.sin(1.1))
    torch.testing.assert_close(predict(model, turned), predict(model, frames), rtol=1e-3, atol=1e-3)


def test_evaluation_covers_all_snrs_and_classes_even_in_part():
    data = SignalData(SignalDataConfig(**{**DATA, "val_frames": 40}))
    first = next(data.validation_batches(100, 1))
    assert 30 < int(first["targets"].sum()) < 70 and len(first["snr"].unique()) == 5
    assert sum(len(batch["targets"]) for batch in data.validation_batches(64, 999)) == 5 * 2 * 40


def test_losses_of_blocks_are_part_of_the_tasks_loss():
    blocks = "complex+moe[expert=complex_swiglu,n_experts=4,k=2]"
    data = SignalData(SignalDataConfig(**DATA))
    task = SignalTask(SignalConfig(**{**SMALL, "frame": 16, "n_classes": 2}, blocks=blocks), data, TrainConfig())
    loss, stats = task.loss(task.model, task.batch(0, slice(0, 4)))
    assert loss > stats["class_loss"] and stats["loss/balance"] > 0


def test_symbols_of_a_frame_can_be_the_target():
    config = SignalDataConfig(modulations="qpsk,bpsk", target="symbols", length=16, samples_per_symbol=2, val_frames=4)
    data = SignalData(config)
    assert data.assets.symbols == 8 and len(data.assets.classes) == 4
    model = SignalConfig(d_model=16, n_heads=2, frame=16, symbols=8, n_classes=4, patch=2)
    task = SignalTask(model, data, TrainConfig(batch_size=4))
    loss, _ = task.loss(task.model, task.batch(0, slice(0, 4)))
    loss.backward()
    task.model.eval()
    with torch.no_grad():
        assert 0 <= task.evaluate(task.model)["val_accuracy"] <= 1
        assert "bound" not in signal_figures(config, data, task.model)


def test_signal_models_are_compared_over_snr_beside_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    config = CompareConfig("standard;complex", budget_value=6 * 8 * 16, seeds=2, evaluations=2, measure_memory=False)
    shared = {
        "model": {"d_model": 8, "n_heads": 2, "condition": "snr"},
        "data": {**DATA, "snr_step": 10.0, "val_frames": 10, "test_phase": 3.1416},
        "train": {"batch_size": 8, "compile": "off", "threads": 1, "device": "cpu"},
    }
    found = compare("signal", config, shared, tmp_path / "out", show=False)
    assert (found["quality"]["key"], found["quality"]["better"]) == ("val_accuracy", "higher")
    assert [choice["name"] for choice in found["choices"]] == ["standard", "complex"]
    bounds = set()
    for choice in found["choices"]:
        assert [run["status"] for run in choice["runs"]] == ["finished"] * 2
        for run in choice["runs"]:
            figures = run["figures"]
            assert figures["snr"] == [0.0, 10.0, 20.0] and figures["frames_per_snr"] == 20
            assert sum(figures["accuracy"]) / 3 == pytest.approx(run["final_quality"], abs=1e-6)
            # Shares of each class that was sent; both classes are sent equally often.
            for level, accuracy in zip(figures["snr"], figures["accuracy"]):
                shares = figures["confusion"][f"{level:g}"]
                assert (shares[0][0] + shares[1][1]) / 2 == pytest.approx(accuracy)
            assert set(figures["constellations"]) == {"bpsk", "qpsk"}
            bounds.add((figures["bound"]["frames"], *figures["bound"]["accuracy"]))
    ((frames, *accuracy),) = bounds
    assert frames >= 20_000 and 0.9 < accuracy[0] < accuracy[1] <= accuracy[2] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    words = (
        "Accuracy over SNR",
        "maximum likelihood",
        "What is taken for what",
        "Constellations",
        "20,000 frames per SNR",
        "The models are told the SNR, too.",
    )
    assert all(word in page for word in words)
    assert "| maximum likelihood |" in (tmp_path / "out" / "report.md").read_text()
    for name in ("accuracy-over-snr", "constellations"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 0
    for choice in found["choices"]:
        for run in choice["runs"]:
            run["figures"]["condition"] = "none"
    assert any("models are not told the SNR" in line for line in SignalParts().how_to_read(found))
    # Given again, with a third seed, the runs that are done stay as they are.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").rglob("*.safetensors")}
    again = compare("signal", replace(config, seeds=3), shared, tmp_path / "out", show=False)
    assert len(before) >= 4 and all(p.stat().st_mtime_ns == then for p, then in before.items())
    for choice, grown in zip(found["choices"], again["choices"]):
        for new, old in zip(grown["runs"], choice["runs"]):
            assert new["figures"] == {**old["figures"], "condition": "snr"}
        assert len(grown["runs"]) == 3


def test_classify_reads_files_and_prints_rows(run, trained, tmp_path):
    data = SignalData(load_run(trained).run.data).source.validation
    best = data.snr == 20
    np.save(tmp_path / "x.npy", data.iq[best].numpy())
    done = run("classify", str(trained), str(tmp_path / "x.npy"), "--format", "json", "--top", "2")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == int(best.sum()) and len(rows[0]["is"]) == 2
    right = [r["is"][0]["class"] == ("bpsk", "qpsk")[m] for r, m in zip(rows, data.modulation[best].tolist())]
    assert sum(right) / len(right) > 0.85
    assert run("classify", str(trained), str(tmp_path / "x.npy")).out.splitlines()[-1].startswith("likeliest: ")
    csv = run("classify", str(trained), str(tmp_path / "x.npy"), "--format", "csv").out.splitlines()
    assert csv[0] == "frame,class_1,probability_1" and len(csv) == len(rows) + 1
    np.save(tmp_path / "loud.npy", 1e3 * data.iq[best].numpy())
    loud = run("classify", str(trained), str(tmp_path / "loud.npy"), "--format", "json")
    # The noise of 10 dB beside signal power 1, the middle of 0 to 20 dB.
    assert loud.status == 0 and "scaled to 1.1 " in loud.err
    found = [json.loads(line)["is"][0]["class"] for line in loud.out.splitlines()]
    assert sum(a == b["is"][0]["class"] for a, b in zip(found, rows)) > 0.9 * len(rows)


def test_classify_says_what_is_wrong_in_one_line(run, trained, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros(3, np.complex64))
    for words, message in (
        (["classify", str(trained)], "which run and which file?"),
        (["classify", str(trained), str(tmp_path / "no.npy")], "no such file"),
        (["classify", str(trained), str(tmp_path / "short.npy")], "a frame has 16"),
        (["classify", str(tmp_path), str(tmp_path / "short.npy")], "holds no run"),
    ):
        done = run(*words)
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A small model that is told the SNR."""
    out = tmp_path_factory.mktemp("told") / "run"
    groups = {
        "model": {"d_model": 16, "n_heads": 2, "condition": "snr"},
        "data": {**DATA, "length": 32, "samples_per_symbol": 2, "val_frames": 10},
        "train": {**TRAIN, "steps": 40, "eval_every": 40},
    }
    train(groups, out, task="signal")
    return out


def sigmf(path, iq, annotations):
    iq.astype(np.complex64).tofile(path.with_suffix(".sigmf-data"))
    meta = {"global": {"core:datatype": "cf32_le"}, "captures": [], "annotations": annotations}
    path.with_suffix(".sigmf-meta").write_text(json.dumps(meta))


def test_classify_tells_the_model_the_snr_of_the_option_or_of_the_annotations(run, told, tmp_path):
    model, assets, _ = load_run(told)
    assert model.config.condition == "snr" and assets.snr == (0.0, 20.0)
    frames = SignalData(load_run(told).run.data).source.validation.iq[:4]
    np.save(tmp_path / "x.npy", frames.numpy())

    def probabilities(*words):
        done = run("classify", str(told), *words, "--format", "json", "--scale", "none")
        assert done.status == 0, done.err
        return [json.loads(line)["is"][0]["probability"] for line in done.out.splitlines()]

    def expected(*levels):
        with torch.no_grad():
            return predict(model, frames, torch.tensor(levels)).softmax(-1).amax(-1).tolist()

    given = probabilities(str(tmp_path / "x.npy"), "--snr", "4.5")
    assert given == pytest.approx(expected(4.5, 4.5, 4.5, 4.5), abs=1e-4)
    # Two samples per symbol: an SNR per sample is 3 dB lower than that per symbol.
    notes = [
        {"core:sample_start": 0, "capture_details:SNRdB": 3},
        {"core:sample_start": 64, "core:sample_count": 40, "capture_details:SNRdB": 10.5},
        {"core:sample_start": 0, "core:label": "no SNR here"},
    ]
    sigmf(tmp_path / "a", frames.numpy().ravel(), notes)
    double = 10 * math.log10(2)
    found = probabilities(str(tmp_path / "a.sigmf-meta"))
    assert found == pytest.approx(expected(3 + double, 3 + double, 10.5 + double, 3 + double), abs=1e-4)
    assert probabilities(str(tmp_path / "a.sigmf-data"), "--snr", "4.5") == given, "the option goes before"
    # The power that frames of this SNR have is known, too.
    np.save(tmp_path / "quiet.npy", 1e-3 * frames.numpy())
    quiet = run("classify", str(told), str(tmp_path / "quiet.npy"), "--snr", "0")
    assert quiet.status == 0 and "expected 3 to 3; scaled to 3 " in quiet.err
    beyond = run("classify", str(told), str(tmp_path / "x.npy"), "--snr", "35", "--scale", "none")
    assert beyond.status == 0 and "trained at 0 to 20 dB" in beyond.err


def test_an_snr_that_is_missing_or_not_wanted_is_one_line(run, told, trained, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(64, np.complex64))
    for name, notes in (
        ("part", [{"core:sample_start": 0, "core:sample_count": 40, "capture_details:SNRdB": 3}]),
        ("word", [{"core:sample_start": 0, "capture_details:SNRdB": "high"}]),
        ("odd", ["capture_details:SNRdB"]),
    ):
        sigmf(tmp_path / name, np.ones(64), notes)
    for words, message in (
        ([str(told), "x.npy"], "this run's model is told the SNR, and"),
        ([str(told), "x.npy", "--snr", "nan"], "should be a number of dB"),
        ([str(told), "part.sigmf-meta"], "for 1 of 2 frames; --snr for all"),
        ([str(told), "word.sigmf-meta"], "an annotation with capture_details:SNRdB cannot be read"),
        ([str(told), "odd.sigmf-meta"], "an annotation with capture_details:SNRdB cannot be read"),
        ([str(trained), "x.npy", "--snr", "3"], "this run's model takes no SNR"),
    ):
        done = run("classify", words[0], str(tmp_path / words[1]), *words[2:])
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1, done


def test_a_run_from_before_the_option_loads_and_says_the_same(trained, tmp_path):
    """Its folder names neither the condition nor the range of the SNR."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    for name, lines in (("config.yaml", ("condition:",)),):
        kept = [line for line in (old / name).read_text().splitlines() if line.strip().split(" ")[0] not in lines]
        assert len(kept) < len((old / name).read_text().splitlines())
        (old / name).write_text("\n".join(kept) + "\n")
    stored = json.loads((old / "signal.json").read_text())
    del stored["snr"]
    (old / "signal.json").write_text(json.dumps(stored))
    model, assets, _ = load_run(old)
    assert model.config.condition == "none" and assets.snr is None
    frames = iq(4, 16)
    assert torch.equal(predict(model, frames), predict(load_run(trained).model, frames))


def test_the_symmetry_command_prints_the_table_and_judges_a_named_class(run):
    table = run("symmetry")
    assert table.status == 0 and "BROKEN" in table.out and "score=phase" in table.out
    assert run("symmetry", "complex", "--with", "score=phase").status == 0
    broken = run("symmetry", "complex_swiglu", "--with", "bias=true", "--json")
    assert broken.status == 1 and json.loads(broken.out)[0]["kept"] is False
    assert run("symmetry", "standard").status == 2


def test_the_bound_is_not_beaten_by_knowing_less():
    """The likelihood that averages over phases cannot be right more often than the one that knows it."""
    from blockyard.tasks.signal.generator import SignalGenerator

    made = SignalGenerator(SignalDataConfig(length=64, snr_min=5, snr_max=5))
    frames = made.generate(600, torch.Generator().manual_seed(1))
    right = [
        (log_likelihoods(frames.iq, USUAL, 5.0, coherent=coherent).argmax(-1) == frames.modulation).float().mean()
        for coherent in (True, False)
    ]
    assert right[1] < right[0] + 0.03
