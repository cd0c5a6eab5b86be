"""Signals as a task has them: generated or recorded, with what a model of them takes beside its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from blockyard.tasks.signal.calibration import Calibration
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.familiar import Familiar
from blockyard.tasks.signal.generator import GeneratedSignals
from blockyard.tasks.signal.modulations import constellation
from blockyard.tasks.signal.recordings.labelled import RecordedSignals
from blockyard.training.task import Batch


@dataclass(frozen=True)
class SignalAssets:
    """What using a trained model takes beside its weights.

    Args:
        classes: names of the modulations (or of the symbols' points, by number).
        length: samples per frame.
        symbols: symbols per frame that are told apart; 0 for whole frames.
        power: mean power of the frames it was trained on, lowest and highest, on the scale of the samples.
        ordered: whether the order of a frame's samples tells anything.
        snr: lowest and highest SNR that it was trained on, dB.
        calibration: what turns logits into probabilities, unknown among the answers; None for runs without.
        familiar: what the training's frames look like; None for runs that do not say.
        blind: whether the frames are of the blind scenario.
        known_rate: samples per symbol where they are known and the carrier lies at 0; else 0.
    """

    classes: tuple[str, ...]
    length: int
    symbols: int
    power: tuple[float, float] | None = None
    ordered: bool = True
    snr: tuple[float, float] | None = None
    calibration: Calibration | None = None
    familiar: Familiar | None = None
    blind: bool = False
    known_rate: int = 0


class SignalData:
    """Signals, generated or recorded, and what a model of them takes.

    Args:
        config: the signals.
    """

    def __init__(self, config: SignalDataConfig) -> None:
        self.config = config
        self.source: GeneratedSignals | RecordedSignals
        self.source = GeneratedSignals(config) if config.path is None else RecordedSignals(config)
        self.notes = () if isinstance(self.source, GeneratedSignals) else self.source.notes

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.source.fingerprint

    @property
    def assets(self) -> SignalAssets:
        c = self.config
        power, snr, blind = None, None, c.scenario == "blind"
        if c.path is None:
            snr = (c.snr_min, c.snr_max)
        if c.path is None and not blind:
            # Signal and noise; the signal's own power is 1.
            power = (
                1 + c.samples_per_symbol * 10 ** (-c.snr_max / 10),
                1 + c.samples_per_symbol * 10 ** (-c.snr_min / 10),
            )
        if c.target == "symbols":
            points = constellation(c.classes[0])
            names = tuple(f"{p.real:+.3f}{p.imag:+.3f}j" for p in points.tolist())
            return SignalAssets(names, c.length, c.symbols, power, c.ordered, snr)
        rate = c.samples_per_symbol if c.scenario == "unlocked" and c.path is None else 0
        return SignalAssets(self.source.classes, c.length, 0, power, c.ordered, snr, blind=blind, known_rate=rate)

    def validation_batches(self, rows: int, most: int) -> Iterator[Batch]:
        """Yield `{"iq", "targets", "snr"}` of up to `most` batches, in an order in which every part holds all SNRs and
        classes."""
        frames = self.source.validation
        targets = self.source.targets(frames)
        order = torch.randperm(len(frames.iq), generator=torch.Generator().manual_seed(0))
        for number, index in enumerate(order.split(rows)):
            if number < most:
                yield {"iq": frames.iq[index], "targets": targets[index], "snr": frames.snr[index]}
