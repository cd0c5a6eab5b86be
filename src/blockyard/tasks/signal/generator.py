"""Radio signals made on the fly: linear modulations through a channel, every batch a pure function of (seed, step).

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

from blockyard.errors import InputError, at_least, one_of
from blockyard.tasks.signal.modulations import constellation, parse_modulations
from blockyard.tasks.signal.recordings.opening import RecordingOptions

Fading = Literal["none", "rayleigh", "rician"]
# Symbols on either side of one that its pulse reaches.
PULSE_SPAN = 6
# SNRs of a grid: each has its own frames and its own line in reports.
MOST_LEVELS = 1000


@dataclass(frozen=True)
class SignalDataConfig:
    """The signals of a run: what is sent and what the channel does to it.

    Args:
        modulations: names such as bpsk,qpsk,16qam; usual = bpsk,pam4,qpsk,8psk,16qam,64qam; all = every one.
        target: modulation (which one a frame is) or symbols (which point of the first one each symbol is, for
            equalisation).
        length: samples per frame.
        samples_per_symbol: 1 (symbols as they are), or more with root-raised-cosine pulses.
        rolloff: excess bandwidth of the pulses, above 0 and at most 1.
        snr_min: lowest SNR in training, dB (Es/N0).
        snr_max: highest.
        snr_step: grid on which validation takes the SNR, dB.
        phase: frames are turned by a random angle up to ± so many radians; 3.1416 is any angle.
        frequency: carrier offset up to ± so many cycles per sample.
        timing: sampling instants late by up to so many symbols; needs samples_per_symbol of at least 2.
        fading: none, rayleigh (every path random) or rician (a direct path twice as strong as the scattered ones).
        paths: taps of the fading channel, one sample apart, each half as strong as the one before.
        test_phase: phase of the validation frames instead of `phase`; none = the same.
        val_frames: validation frames for each modulation and SNR.
        val_seed: seed of the validation frames.
        path: train on recordings instead: a folder with a folder of files for each class; see docs/signals.md.
        split: of recordings, what is kept for validation: whole recordings, or (flattering) single frames.
        format: of raw recordings: cu8, cs8, cs16, cs32, cf32, cf64; auto takes what the files say.
        channel: which of a recording's channels.
    """

    modulations: str = "usual"
    target: Literal["modulation", "symbols"] = "modulation"
    length: int = 128
    samples_per_symbol: int = 1
    rolloff: float = 0.35
    snr_min: float = -10.0
    snr_max: float = 20.0
    snr_step: float = 5.0
    phase: float = 0.0
    frequency: float = 0.0
    timing: float = 0.0
    fading: Fading = "none"
    paths: int = 3
    test_phase: float | None = None
    val_frames: int = 100
    val_seed: int = 1_000_003
    path: str | None = None
    split: Literal["recording", "frame"] = "recording"
    format: str = "auto"
    channel: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "samples_per_symbol", "paths", "val_frames"):
            at_least(1, **{f"data.{name}": getattr(self, name)})
        if not 0 < self.rolloff <= 1:
            raise InputError(f"data.rolloff={self.rolloff} should be above 0 and at most 1")
        if not -60 <= self.snr_min <= self.snr_max <= 100:
            raise InputError(f"data.snr_min={self.snr_min} and data.snr_max={self.snr_max}: give dB, the lower first")
        if not self.snr_step > 0:
            raise InputError(f"data.snr_step={self.snr_step} should be above 0")
        if (self.snr_max - self.snr_min) / self.snr_step > MOST_LEVELS:
            raise InputError(f"data.snr_step={self.snr_step} makes more than {MOST_LEVELS} levels; take larger steps")
        for name in ("phase", "frequency", "timing", "test_phase"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"data.{name}={value} should be at least 0: offsets are drawn up to ± that")
        if self.timing > 1:
            raise InputError(f"data.timing={self.timing} is in symbols, at most 1")
        if self.frequency > 0.5:
            raise InputError(f"data.frequency={self.frequency} is beyond half a cycle per sample")
        if self.timing and self.samples_per_symbol < 2:
            raise InputError("data.timing needs pulses: set data.samples_per_symbol to 2 or more")
        if self.length % self.samples_per_symbol:
            raise InputError(
                f"data.length={self.length} should be a multiple of data.samples_per_symbol={self.samples_per_symbol}"
            )
        if self.fading not in ("none", "rayleigh", "rician"):
            raise InputError(f"data.fading={self.fading!r} should be none, rayleigh or rician")
        one_of(("recording", "frame"), **{"data.split": self.split})
        RecordingOptions(self.format, channel=self.channel)
        if self.path is None and (self.format, self.channel) != ("auto", 0):
            raise InputError("data.format and data.channel are of recordings: give data.path")
        parse_modulations(self.modulations)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the modulations."""
        return parse_modulations(self.modulations)

    @property
    def n_classes(self) -> int:
        """Outputs per frame, or per symbol when those are the target."""
        return len(self.classes) if self.target == "modulation" else len(constellation(self.classes[0]))

    @property
    def symbols(self) -> int:
        """Symbols per frame."""
        return self.length // self.samples_per_symbol

    @property
    def ordered(self) -> bool:
        """Whether the order of a frame's samples tells anything: not where each is a symbol of its own in noise."""
        independent = self.samples_per_symbol == 1 and self.fading == "none" and not self.frequency
        return self.target == "symbols" or self.path is not None or not independent

    @property
    def snr_grid(self) -> tuple[float, ...]:
        """SNRs of the validation frames, dB."""
        return tuple(self.snr_min + i * self.snr_step for i in range(self.snr_levels))

    @property
    def snr_levels(self) -> int:
        """How many there are."""
        return int((self.snr_max - self.snr_min) / self.snr_step + 1e-9) + 1


@dataclass(frozen=True)
class Frames:
    """Signals and all that is known of them.

    Args:
        iq: complex64 [n, length].
        modulation: [n], index into the configuration's classes.
        symbols: [n, symbols per frame], index into the points of the frame's modulation.
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
        """n frames.

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
        # Pulses of symbols before and after the frame reach into it.
        margin = PULSE_SPAN + 1 if c.samples_per_symbol > 1 else 0
        index = torch.rand(n, c.symbols + 2 * margin, generator=generator) * self._sizes[modulation, None]
        # A product that rounds up would be one point too far.
        index = index.long().clamp_(max=self._sizes[modulation, None] - 1)
        sent = self._points[modulation[:, None], index]
        x = self._shape(sent, generator) if c.samples_per_symbol > 1 else sent
        x = self._fade(x, generator)
        x = self._turn(x, c.phase if phase is None else phase, generator)
        # Es = samples_per_symbol · mean power of a sample here, since the pulses are scaled to unit power.
        noise = torch.randn(x.shape, generator=generator, dtype=torch.complex64)
        deviation = 10 ** (-snr / 20) * c.samples_per_symbol**0.5
        x = x + noise * deviation[:, None].to(torch.float32)
        inside = index[:, margin : margin + c.symbols] if margin else index
        return Frames(x, modulation, inside, snr)

    def _shape(self, sent: Tensor, generator: torch.Generator) -> Tensor:
        """Pulses, sampled late by a random part of a symbol."""
        c = self.config
        n, count = sent.shape
        late = c.timing * torch.rand(n, 1, generator=generator)
        margin = PULSE_SPAN + 1
        # Instants of the samples in symbols, from the first symbol of the frame.
        at = torch.arange(c.length) / c.samples_per_symbol + late
        first = at.floor().long()
        out = torch.zeros(n, c.length, dtype=torch.complex64)
        for offset in range(-PULSE_SPAN, PULSE_SPAN + 1):
            symbol = first + offset
            picked = sent.gather(1, (symbol + margin).clamp(0, count - 1))
            out += picked * root_raised_cosine(at - symbol, c.rolloff)
        return out

    def _fade(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random channel of a few taps per frame, of unit mean power."""
        c = self.config
        if c.fading == "none":
            return x
        power = 0.5 ** torch.arange(c.paths)
        taps = torch.randn(x.shape[0], c.paths, generator=generator, dtype=torch.complex64)
        taps = taps * (power / power.sum()).sqrt()
        if c.fading == "rician":
            # Direct and scattered power as 2 : 1.
            taps = taps * (1 / 3) ** 0.5
            taps[:, 0] += (2 / 3) ** 0.5
        out = taps[:, :1] * x
        for delay in range(1, c.paths):
            # What was sent before the frame is unknown at one sample per symbol: the echo of its end stands in.
            out = out + taps[:, delay : delay + 1] * x.roll(delay, dims=1)
        return out

    def _turn(self, x: Tensor, phase: float, generator: torch.Generator) -> Tensor:
        """Phase and carrier offset."""
        if not phase and not self.config.frequency:
            return x
        start, speed = (2 * torch.rand(2, x.shape[0], 1, generator=generator) - 1).unbind(0)
        angle = phase * start + 2 * math.pi * self.config.frequency * speed * torch.arange(x.shape[1])
        return x * torch.polar(torch.ones_like(angle), angle)


def root_raised_cosine(t: Tensor, rolloff: float) -> Tensor:
    """The root-raised-cosine pulse of unit energy at times t in symbols (Proakis, Digital Communications, 9.2)."""
    wide = t.double()
    b = rolloff
    numerator = torch.sin(math.pi * wide * (1 - b)) + 4 * b * wide * torch.cos(math.pi * wide * (1 + b))
    denominator = math.pi * wide * (1 - (4 * b * wide).square())
    pulse = numerator / denominator
    # The two removable singularities.
    pulse = torch.where(wide.abs() < 1e-6, 1 - b + 4 * b / math.pi, pulse)
    edge = (b / 2**0.5) * (
        (1 + 2 / math.pi) * math.sin(math.pi / (4 * b)) + (1 - 2 / math.pi) * math.cos(math.pi / (4 * b))
    )
    return torch.where((4 * b * wide.abs() - 1).abs() < 1e-6, edge, pulse).float()


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
        """Rows of the global batch of a step, `{"iq", "targets", "snr"}`: a pure function of the arguments."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
        frames = self.generator.generate(batch_size, generator)
        return {"iq": frames.iq[rows], "targets": self.targets(frames)[rows], "snr": frames.snr[rows]}

    def targets(self, frames: Frames) -> Tensor:
        """[n] modulations, or [n, symbols] symbols."""
        return frames.modulation if self.config.target == "modulation" else frames.symbols

    @cached_property
    def validation(self) -> Frames:
        """The same number of frames for every modulation and SNR of the grid, always the same ones."""
        c = self.config
        count = len(c.classes) if c.target == "modulation" else 1
        parts = []
        for number, snr in enumerate(c.snr_grid):
            generator = torch.Generator().manual_seed(c.val_seed + number)
            modulation = torch.arange(count).repeat_interleave(c.val_frames)
            parts.append(
                self.generator.generate(
                    len(modulation),
                    generator,
                    modulation=modulation,
                    snr=torch.full((len(modulation),), snr),
                    phase=c.phase if c.test_phase is None else c.test_phase,
                )
            )
        return Frames(*(torch.cat([getattr(p, f) for p in parts]) for f in ("iq", "modulation", "symbols", "snr")))
