"""Radio signals made on the fly: modulations through a channel, every batch a pure function of (seed, step).

The usual recorded set for modulation classification (RML2016.10a) has wrong SNR labels; here what was done to a frame
is known exactly. SNR is Es/N0, symbol energy over noise density, which is also what a matched filter gives out. At one
sample per symbol there is no pulse: a sample is a symbol plus noise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.blind import BlindSignals
from blockyard.tasks.signal.config import SignalDataConfig as SignalDataConfig
from blockyard.tasks.signal.kinds import STRANGE_CALIBRATION, STRANGE_TEST
from blockyard.tasks.signal.modulations import constellation
from blockyard.tasks.signal.synchronised import PULSE_SPAN, fade, periodic, shape

# Frames that are made at once where many are wanted.
ROWS = 2048


@dataclass(frozen=True)
class Frames:
    """Signals and all that is known of them.

    Args:
        iq: complex64 [n, length].
        modulation: [n], index into the configuration's classes.
        symbols: [n, symbols per frame], index into the points of the frame's modulation; [n, 0] in the blind scenario.
        snr: [n], dB.
    """

    iq: Tensor
    modulation: Tensor
    symbols: Tensor
    snr: Tensor


class SignalGenerator:
    """Frames of a configuration: `generate(n, generator)` draws everything from one torch generator.

    Args:
        config: what is sent and what the channel does.
    """

    def __init__(self, config: SignalDataConfig) -> None:
        self.config = config
        self.blind = BlindSignals(config) if config.scenario == "blind" else None
        if self.blind is not None:
            return
        points = [constellation(name) for name in config.classes]
        self._sizes = torch.tensor([len(p) for p in points])
        self._points = torch.zeros(len(points), int(self._sizes.max()), dtype=torch.complex64)
        for row, p in zip(self._points, points):
            row[: len(p)] = p.to(torch.complex64)

    def generate(
        self,
        n: int,
        generator: torch.Generator,
        *,
        modulation: Tensor | None = None,
        snr: Tensor | None = None,
        phase: float | None = None,
    ) -> Frames:
        """Return n frames.

        Args:
            n: how many.
            generator: source of all randomness.
            modulation: [n] classes; drawn evenly when None.
            snr: [n] in dB; drawn evenly from the configuration's range when None.
            phase: largest phase offset instead of the configuration's.
        """
        c = self.config
        if modulation is None:
            count = len(c.classes) if c.target == "modulation" else 1
            modulation = torch.randint(count, (n,), generator=generator)
        if snr is None:
            snr = c.snr_min + (c.snr_max - c.snr_min) * torch.rand(n, generator=generator)
        if self.blind is not None:
            iq = self.blind.generate(modulation, snr, generator, phase=phase)
            return Frames(iq, modulation, torch.zeros(n, 0, dtype=torch.long), snr)
        # Pulses of symbols before and after the frame reach into it.
        margin = PULSE_SPAN + 1 if c.samples_per_symbol > 1 and c.scenario == "synchronised" else 0
        index = torch.rand(n, c.symbols + 2 * margin, generator=generator) * self._sizes[modulation, None]
        # A product that rounds up would be one point too far.
        index = index.long().clamp_(max=self._sizes[modulation, None] - 1)
        sent = self._points[modulation[:, None], index]
        if c.scenario == "unlocked":
            x = periodic(sent, c.samples_per_symbol, c.timing * torch.rand(n, 1, generator=generator), c.rolloff)
        else:
            x = fade(shape(sent, c, generator) if c.samples_per_symbol > 1 else sent, c, generator)
        x = self._turn(x, c.phase if phase is None else phase, generator)
        # Es = samples_per_symbol · mean power of a sample here, since the pulses are scaled to unit power.
        noise = torch.randn(x.shape, generator=generator, dtype=torch.complex64)
        deviation = 10 ** (-snr / 20) * c.samples_per_symbol**0.5
        x = x + noise * deviation[:, None].to(torch.float32)
        inside = index[:, margin : margin + c.symbols] if margin else index
        return Frames(x, modulation, inside, snr)

    def _turn(self, x: Tensor, phase: float, generator: torch.Generator) -> Tensor:
        """Turn by phase and carrier offset."""
        if not phase and not self.config.frequency:
            return x
        start, speed = (2 * torch.rand(2, x.shape[0], 1, generator=generator) - 1).unbind(0)
        angle = phase * start + 2 * math.pi * self.config.frequency * speed * torch.arange(x.shape[1])
        return x * torch.polar(torch.ones_like(angle), angle)


class GeneratedSignals:
    """Batches of generated frames: training ones by (seed, step), validation ones fixed.

    Args:
        config: the signals.
    """

    def __init__(self, config: SignalDataConfig) -> None:
        self.config = config
        self.generator = SignalGenerator(config)
        self.classes = config.classes

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data: the generator's settings.

        The outer ring of 32apsk lay elsewhere in versions before, whose runs with it do not go on with other signals.
        """
        moved = {"points_of_32apsk_sha256": "as in DVB-S2"} if "32apsk" in self.classes else {}
        return {"source": "generated", **asdict(self.config), **moved}

    def batch(self, seed: int, step: int, batch_size: int, rows: slice) -> dict[str, Tensor]:
        """Return rows of the global batch of a step, `{"iq", "targets", "snr"}`: a pure function of the arguments."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
        if self.config.train_frames is None:
            frames = self.generator.generate(batch_size, generator)
            return {"iq": frames.iq[rows], "targets": self.targets(frames)[rows], "snr": frames.snr[rows]}
        index = torch.randint(self.config.train_frames, (batch_size,), generator=generator)[rows]
        few = self.training_frames
        return {"iq": few.iq[index], "targets": self.targets(few)[index], "snr": few.snr[index]}

    @cached_property
    def training_frames(self) -> Frames:
        """The frames of a training on `train_frames` of them: the same for every seed of the weights."""
        generator = torch.Generator().manual_seed((self.config.val_seed + 7) * 1_000_003)
        return self.many(self.config.train_frames or 0, generator)

    def many(self, n: int, generator: torch.Generator) -> Frames:
        """Return frames as training has them, some at a time: what the makers hold beside a frame is larger than it."""
        return joined([self.generator.generate(min(ROWS, n - start), generator) for start in range(0, n, ROWS)])

    def strange(self, part: Literal["calibration", "test"], n: int) -> Frames:
        """Return frames of kinds that are none of the classes, drawn evenly over kinds and SNRs: for calibrating
        unknown, or others for testing it; `modulation` is the number of the kind.

        Raises:
            InputError: in scenarios that know no other kinds, or when all kinds of a part are classes.
        """
        kinds = strange_kinds(self.config, part)
        if not kinds:
            raise InputError(f"data.modulations={self.config.modulations} leaves no kinds for the {part} of unknown")
        maker = BlindSignals(self.config, kinds)
        generator = torch.Generator().manual_seed(self.config.val_seed * 31 + (0 if part == "calibration" else 1))
        parts = []
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            kind = torch.randint(len(kinds), (count,), generator=generator)
            c = self.config
            snr = c.snr_min + (c.snr_max - c.snr_min) * torch.rand(count, generator=generator)
            iq = maker.generate(kind, snr, generator)
            parts.append(Frames(iq, kind, torch.zeros(count, 0, dtype=torch.long), snr))
        return joined(parts)

    def targets(self, frames: Frames) -> Tensor:
        """Return [n] modulations, or [n, symbols] symbols."""
        return frames.modulation if self.config.target == "modulation" else frames.symbols

    @cached_property
    def validation(self) -> Frames:
        """The same number of frames for every modulation and SNR of the grid, always the same ones."""
        c = self.config
        count = len(c.classes) if c.target == "modulation" else 1
        parts: list[Frames] = []
        for number, snr in enumerate(c.snr_grid):
            generator = torch.Generator().manual_seed(c.val_seed + number)
            modulation = torch.arange(count).repeat_interleave(c.val_frames)
            parts += [
                self.generator.generate(
                    len(rows),
                    generator,
                    modulation=rows,
                    snr=torch.full((len(rows),), snr),
                    phase=c.phase if c.test_phase is None else c.test_phase,
                )
                for rows in modulation.split(ROWS if self.generator.blind else len(modulation))
            ]
        return joined(parts)


def joined(parts: list[Frames]) -> Frames:
    """Return frames one after another."""
    return Frames(*(torch.cat([getattr(p, f) for p in parts]) for f in ("iq", "modulation", "symbols", "snr")))


def strange_kinds(config: SignalDataConfig, part: Literal["calibration", "test"]) -> tuple[str, ...]:
    """Return kinds that are none of the classes: on which unknown is calibrated, or tested; () outside the blind
    scenario."""
    if config.scenario != "blind" or config.path is not None:
        return ()
    return tuple(k for k in (STRANGE_CALIBRATION if part == "calibration" else STRANGE_TEST) if k not in config.classes)
