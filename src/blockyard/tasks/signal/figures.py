"""What a report shows of a trained signal model, as plain data: accuracy over SNR, confusion, calibration, bounds."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from blockyard.tasks.signal.bound import Bound, maximum_likelihood_bound
from blockyard.tasks.signal.calibration import calibration_curve, fit_temperature
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.data import SignalData
from blockyard.tasks.signal.generator import Frames
from blockyard.tasks.signal.model import SignalTransformer, predict
from blockyard.tasks.signal.unlocked import average_likelihood_bound

# Samples shown of each modulation in a report.
_SHOWN = 400
# Frames per SNR for the bound of unknown phase and timing: 100 CPU-seconds up to 10 dB on the scenario's own grid.
_UNLOCKED = 500


def signal_figures(data: SignalData, model: SignalTransformer) -> dict[str, Any]:
    """Return what a report shows of a trained model, as plain data.

    Args:
        data: the signals and their validation frames.
        model: in eval mode.
    """
    config, frames = data.config, data.source.validation
    logits = predict(model, frames.iq, frames.snr if model.config.condition == "snr" else None)
    chosen = logits.argmax(-1)
    targets = data.source.targets(frames)
    found: dict[str, Any] = {
        "target": config.target, "classes": list(data.assets.classes), "condition": model.config.condition
    }  # fmt: skip
    if config.target == "modulation":
        found["calibration"] = calibration_figures(logits, targets)
    if config.path is not None:
        found["confusion"] = {"all": confusion(chosen, targets, len(data.assets.classes))}
        return found
    at = {f"{snr:g}": frames.snr == snr for snr in config.snr_grid}
    found["snr"] = list(config.snr_grid)
    found["per_sample"] = per_sample(config)
    found["accuracy"] = [float((chosen[rows] == targets[rows]).double().mean()) for rows in at.values()]
    found["frames_per_snr"] = int(next(iter(at.values())).sum())
    if config.target == "modulation":
        count = len(data.assets.classes)
        found["confusion"] = {snr: confusion(chosen[rows], targets[rows], count) for snr, rows in at.items()}
        if config.scenario == "synchronised":
            found["constellations"] = constellations(frames, config)
        bound = bound_of(config)
        if bound is not None:
            found["bound"] = {"accuracy": list(bound.accuracy), "frames": bound.frames, "coherent": bound.coherent}
    return found


def confusion(chosen: Tensor, targets: Tensor, classes: int) -> list[list[float]]:
    """Return [true class][chosen class], shares of each true class."""
    counts = torch.zeros(classes, classes)
    counts.index_put_((targets.flatten(), chosen.flatten()), torch.ones(targets.numel()), accumulate=True)
    return (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()


def constellations(frames: Frames, config: SignalDataConfig) -> dict[str, list[list[float]]]:
    """Return some samples of every modulation at the highest SNR of the grid: {class: [[re, im], …]}.

    Where every frame has a phase of its own they are those of one frame.
    """
    best = frames.snr == max(config.snr_grid)
    phase = config.phase if config.test_phase is None else config.test_phase
    alike = not phase and not config.frequency and config.fading == "none"
    most = _SHOWN if alike else config.length
    shown = {}
    for number, name in enumerate(config.classes):
        samples = frames.iq[best & (frames.modulation == number)].flatten()[:most]
        shown[name] = [[round(float(z.real), 3), round(float(z.imag), 3)] for z in samples]
    return shown


def per_sample(config: SignalDataConfig) -> list[float]:
    """Return how many dB the SNR of a sample lies below Es/N0: [least, most] over the samples per symbol of the frames.

    Of signals without symbols the SNR is that within their own bandwidth, and as much lower per sample as they have
    room beside them.
    """
    return [10 * math.log10(value) for value in config.samples_per_symbol_range]


def calibration_figures(logits: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return how far the model's probabilities can be trusted: as they are, and with a temperature.

    Frames take turns: the temperature that half of them have least cross-entropy with is judged by the others.
    """
    half = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1)) % 2 == 0
    found: dict[str, Any] = {}
    temperatures = [fit_temperature(logits[side], targets[side]) for side in (half, ~half)]
    scaled = logits.double() / torch.where(half, temperatures[1], temperatures[0]).unsqueeze(1)
    for name, values in (("raw", logits.double()), ("calibrated", scaled)):
        top, chosen = values.softmax(-1).max(-1)
        found[name] = calibration_curve(top, chosen == targets)
    return {**found, "temperature": sum(temperatures) / 2}


def bound_of(config: SignalDataConfig) -> Bound | None:
    """Return the accuracy that no classifier of a configuration's frames exceeds; None where nobody knows it.

    Synchronised symbols in white noise, up to a turn of the frame, are what the coherent bound is exact for; a carrier
    offset only makes it harder, so that the bound is still one.
    """
    if config.path is not None or config.target != "modulation":
        return None
    if config.scenario == "unlocked":
        return average_likelihood(
            config.classes, config.length, config.samples_per_symbol, config.rolloff, config.snr_grid
        )
    if config.scenario == "synchronised" and config.samples_per_symbol == 1 and config.fading == "none":
        return maximum_likelihood(config.classes, config.length, config.snr_grid)
    return None


@cache
def maximum_likelihood(classes: tuple[str, ...], length: int, snr: tuple[float, ...]) -> Bound:
    """Return the coherent bound, computed once for all runs of a comparison."""
    return maximum_likelihood_bound(classes, length, snr)


@cache
def average_likelihood(
    classes: tuple[str, ...], length: int, samples_per_symbol: int, rolloff: float, snr: tuple[float, ...]
) -> Bound:
    """Return the bound of unknown phase and timing, computed once for all runs of a comparison."""
    return average_likelihood_bound(
        classes, length, snr, samples_per_symbol=samples_per_symbol, rolloff=rolloff, frames=_UNLOCKED
    )
