"""Calibrated probabilities, the answer unknown, and what a training's frames look like."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.calibration import (
    FILE,
    PRIOR,
    Calibration,
    calibration_curve,
    fit_calibration,
    fit_temperature,
    logistic,
)
from blockyard.tasks.signal.familiar import FILE as FAMILIAR
from blockyard.tasks.signal.familiar import Familiar, averaged_spectrum, statistics
from tests.fixtures.signals import generator


def scores(n=3000, classes=3, sharp=1.0, seed=0):
    """Logits whose softmax at temperature `sharp` is exactly the probability of the targets."""
    drawn = 2 * torch.randn(n, classes, generator=generator(seed))
    targets = drawn.softmax(-1).multinomial(1, generator=generator(seed + 1)).squeeze(1)
    return sharp * drawn, targets


@pytest.mark.parametrize("sharp", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_by_which_logits_are_too_sharp(sharp):
    logits, targets = scores(20_000, sharp=sharp)
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(sharp, rel=0.06)
    grid = [i / 20 for i in range(-20, 30)]
    costs = [float(torch.nn.functional.cross_entropy(logits.double() / math.exp(t), targets)) for t in grid]
    assert abs(math.log(found) - grid[costs.index(min(costs))]) <= 0.05


def test_the_error_is_the_distance_of_confidence_from_accuracy_bin_by_bin():
    p = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, True, True, False, True, False])
    found = calibration_curve(p, right, bins=10)
    assert found["share"] == pytest.approx([1 / 3, 2 / 3]) and found["accuracy"] == pytest.approx([0.5, 0.75])
    assert found["ece"] == pytest.approx(1 / 3 * 0.05 + 2 / 3 * 0.2)
    logits, targets = scores(50_000)
    top, chosen = logits.softmax(-1).max(-1)
    assert calibration_curve(top, chosen == targets)["ece"] < 0.01
    top, chosen = (3 * logits).softmax(-1).max(-1)
    assert calibration_curve(top, chosen == targets)["ece"] > 0.05


def test_the_regression_gives_the_posterior_of_two_gaussians():
    """Equal covariances: the logit of the posterior is linear in the scores, with the log odds of the prior."""
    inside = torch.randn(60_000, 2, generator=generator(), dtype=torch.float64)
    outside = torch.randn(60_000, 2, generator=generator(1), dtype=torch.float64) + torch.tensor([2.0, 0.0])
    first, second, constant = logistic(inside, outside)
    assert first == pytest.approx(2, abs=0.1) and second == pytest.approx(0, abs=0.05)
    assert constant == pytest.approx(-2 + math.log(PRIOR / (1 - PRIOR)), abs=0.1)


def fitted():
    """Three classes along axes of six features; strange frames far from all of them."""
    targets = torch.randint(3, (900,), generator=generator())
    features = 0.3 * torch.randn(900, 6, generator=generator(1))
    features[torch.arange(900), targets] += 2
    strange = 0.3 * torch.randn(300, 6, generator=generator(2)) + torch.tensor([0, 0, 0, 3.0, 0, 0])
    logits = [4 * f[:, :3] for f in (features, strange)]
    return (
        fit_calibration(("a", "b", "c"), logits[0], features, targets, (logits[1], strange)),
        targets,
        features,
        strange,
    )


def test_strange_frames_are_unknown_and_frames_of_the_classes_are_not():
    calibration, targets, features, strange = fitted()
    assert calibration.answers == ("a", "b", "c", "unknown")
    known, unknown = (calibration.probabilities(4 * f[:, :3], f) for f in (features, strange))
    for found in (known, unknown):
        torch.testing.assert_close(found.sum(1), torch.ones(len(found)), rtol=0, atol=1e-6)
    assert float((known.argmax(1) == targets).double().mean()) > 0.98
    assert float((unknown.argmax(1) == 3).double().mean()) > 0.98


def test_the_distance_is_that_of_mahalanobis_from_the_nearest_mean():
    calibration, _, features, _ = fitted()
    x = features[5].double()
    precision = torch.tensor(calibration.precision, dtype=torch.float64)
    slow = min(float((x - m) @ precision @ (x - m)) for m in torch.tensor(calibration.means, dtype=torch.float64))
    _, _, middle, spread = calibration.scale[int(features[5, :3].argmax())]
    found = calibration.strangeness(4 * features[5:6, :3], features[5:6])[0, 1]
    assert float(found) == pytest.approx((math.log(slow) - middle) / spread, rel=1e-6)


def test_without_strange_frames_there_is_no_unknown():
    logits, targets = scores(300)
    calibration = fit_calibration(("a", "b", "c"), logits, logits, targets)
    assert calibration.answers == ("a", "b", "c")
    found = calibration.probabilities(logits)
    torch.testing.assert_close(found, (logits.double() / calibration.temperature).softmax(-1).float())


def test_a_calibration_is_kept_and_a_damaged_one_is_refused_in_a_line(tmp_path):
    calibration = fitted()[0]
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path, ("a", "b", "c")) == calibration
    assert Calibration.load(tmp_path / "nothing", ("a",)) is None
    good = json.loads((tmp_path / FILE).read_text())
    for change in (
        {"temperature": 0.0}, {"temperature": "hot"}, {"weights": [1.0]}, {"means": [[1.0]]}, {"scale": [[0.0, 0.0]]},
        {"precision": good["precision"][:-1]}, {"classes": ["a", "b"]}, {"weights": [1.0, float("inf"), 0.0]},
    ):  # fmt: skip
        (tmp_path / FILE).write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=r"calibration\.json is damaged .*; remove it"):
            Calibration.load(tmp_path, ("a", "b", "c"))
    (tmp_path / FILE).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Calibration.load(tmp_path, ("a", "b", "c"))


# Familiar frames


def tone(frequency, n=20, length=1024, noise=0.05):
    turned = torch.polar(torch.ones(length), 2 * math.pi * frequency * torch.arange(length))
    return turned + noise * torch.randn(n, length, generator=generator(), dtype=torch.complex64)


def band(width, n=20, length=1024, noise=0.05):
    """Noise within a band of a share of the sample rate, in less noise everywhere."""
    spectrum = torch.randn(n, length, generator=generator(), dtype=torch.complex64)
    inside = torch.fft.fftfreq(length).abs() <= width / 2
    x = torch.fft.ifft(spectrum * inside)
    x = x / x.abs().square().mean(1, keepdim=True).sqrt()
    return x + noise * torch.randn(n, length, generator=generator(1), dtype=torch.complex64)


def test_statistics_are_what_they_are_called():
    found = statistics(band(0.25))
    assert float(found["bandwidth"].median()) == pytest.approx(0.25, abs=0.05)
    assert float(found["level"].median()) == pytest.approx(0, abs=0.1)
    assert float(statistics(tone(0.1))["offset"].median()) == pytest.approx(0.1, abs=0.01)
    assert float(statistics(tone(0.1, noise=0.0))["peak"].median()) == pytest.approx(0, abs=0.01)
    assert float(statistics(10 * band(0.25))["level"].median()) == pytest.approx(20, abs=0.1)
    assert torch.isnan(statistics(band(1.0, noise=1.0))["bandwidth"]).double().mean() > 0.5
    x = band(0.25)
    torch.testing.assert_close(statistics(3 * x)["peak"], statistics(x)["peak"], rtol=1e-5, atol=1e-5)


def test_the_averaged_spectrum_of_a_tone_is_a_line_at_its_frequency():
    found = averaged_spectrum(tone(0.25))[0]
    assert int(found.argmax()) == 32 + 16 and float(found[46:51].sum() / found.sum()) > 0.95


def test_a_recording_that_looks_otherwise_is_named_with_what_is_odd():
    familiar = Familiar.of(band(0.25, n=200), normalised=True)
    assert familiar.outside(band(0.25)) == "" and familiar.outside(100 * band(0.25)) == ""
    assert familiar.outside(band(0.6)).startswith("bandwidth 0.6")
    line = replace(familiar, normalised=False).outside(100 * band(0.25))
    assert line.startswith("mean power 40") and "above)" in line and "\n" not in line
    assert "offset" in Familiar.of(band(0.1, n=200)).outside(band(0.1) * tone(0.3, noise=0.0)[:1])


def test_ranges_are_kept_and_damaged_ones_refused_in_a_line(tmp_path):
    familiar = Familiar.of(band(0.25), normalised=True, samples_per_symbol=(4.0, 16.0), bandwidth=(0.07, 0.4))
    familiar.save(tmp_path)
    assert Familiar.load(tmp_path) == familiar and Familiar.load(tmp_path / "x") is None
    good = json.loads((tmp_path / FAMILIAR).read_text())
    for change in ({"ranges": 3}, {"ranges": {"level": [2, 1]}}, {"bandwidth": [1]}):
        (tmp_path / FAMILIAR).write_text(json.dumps({**good, **change}))
        with pytest.raises(InputError, match=r"familiar\.json is damaged"):
            Familiar.load(tmp_path)
