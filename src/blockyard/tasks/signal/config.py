"""The options of the signals of a run, and what each scenario fills in where nothing is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from blockyard.errors import InputError, at_least, one_of
from blockyard.tasks.signal.kinds import KINDS, parse_kinds
from blockyard.tasks.signal.modulations import MODULATIONS, constellation, parse_modulations
from blockyard.tasks.signal.recordings.opening import RecordingOptions

Fading = Literal["none", "rayleigh", "rician"]
Scenario = Literal["blind", "unlocked", "synchronised"]
# SNRs of a grid: each has its own frames and its own line in reports.
MOST_LEVELS = 1000
# What an option is where it is not given; 0 where it is drawn.
_SYNCHRONISED: Mapping[str, Any] = MappingProxyType({
    "modulations": "usual", "length": 128, "samples_per_symbol": 1, "rolloff": 0.35, "snr_min": -10.0, "snr_max": 20.0,
    "phase": 0.0, "frequency": 0.0, "timing": 0.0, "fading": "none", "val_frames": 100, "delay_spread": 0.0,
    "phase_noise": 0.0, "iq_gain": 0.0, "iq_phase": 0.0, "dc": 0.0, "clock": 0.0,
})  # fmt: skip
OWN: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "synchronised": _SYNCHRONISED,
    "unlocked": {**_SYNCHRONISED, "length": 512, "samples_per_symbol": 4, "phase": 3.14159265, "timing": 1.0},
    "blind": {
        "modulations": "blind", "length": 1024, "samples_per_symbol": 0, "rolloff": 0.0, "snr_min": -5.0,
        "snr_max": 30.0, "phase": 3.14159265, "frequency": 0.01, "timing": 1.0, "fading": "rician", "val_frames": 50,
        "delay_spread": 0.25, "phase_noise": 0.1, "iq_gain": 1.0, "iq_phase": 5.0, "dc": 0.05, "clock": 50.0,
    },
})  # fmt: skip
# Options that only the blind scenario has.
BLIND_ONLY = ("sps_min", "sps_max", "delay_spread", "phase_noise", "iq_gain", "iq_phase", "dc", "clock")


@dataclass(frozen=True)
class SignalDataConfig:
    """The signals of a run: what is sent and what the channel does to it. What is not given is the scenario's own.

    Args:
        scenario: blind (frames as receivers record them: symbol rate, pulse, carrier, timing, channel and receiver's
            faults unknown), unlocked (phase and timing unknown, all else known), or synchronised (a sample is a
            symbol).
        modulations: names such as bpsk,qpsk,fm; blind = the classes of that scenario; usual =
            bpsk,pam4,qpsk,8psk,16qam,64qam; all = every one of the scenario.
        target: modulation (which one a frame is) or symbols (which point of the first one each symbol is, for
            equalisation; synchronised).
        length: samples per frame; 1024 blind, 512 unlocked, 128 synchronised.
        samples_per_symbol: 1 (symbols as they are), or more with root-raised-cosine pulses; 0 draws it for every frame,
            evenly in the logarithm, between sps_min and sps_max (blind).
        sps_min: lowest samples per symbol that are drawn.
        sps_max: highest.
        rolloff: excess bandwidth of the pulses, above 0 and at most 1; 0 draws it from .2 to .5 (blind).
        snr_min: lowest SNR in training, dB (Es/N0; of signals without symbols, power over noise in their bandwidth).
        snr_max: highest.
        snr_step: grid on which validation takes the SNR, dB.
        phase: frames are turned by a random angle up to ± so many radians; 3.1416 is any angle.
        frequency: carrier offset up to ± so many cycles per sample.
        timing: sampling instants late by up to so many symbols; needs samples_per_symbol of at least 2.
        fading: none, rayleigh (every path random) or rician (a direct path twice as strong as the scattered ones).
        paths: of the fading channel, each half as strong as the one before; one sample apart, where no delay_spread is.
        delay_spread: mean delay of a path behind the first, up to so many symbols, drawn for every frame (blind); 0 is
            no multipath.
        phase_noise: random walk of the phase, deviation after 1000 samples up to so many radians (blind).
        iq_gain: Q louder or softer than I by up to so many dB (blind).
        iq_phase: I and Q up to ± so many degrees off the right angle (blind).
        dc: a constant of up to so many times the frame's root mean square (blind).
        clock: sampling clock wrong by up to ± so many parts per million (blind).
        test_phase: phase of the validation frames instead of `phase`; none = the same.
        train_frames: train on so many frames again and again; none = every frame is new.
        val_frames: validation frames for each modulation and SNR.
        val_seed: seed of the validation frames.
        path: train on recordings instead: a folder with a folder of files for each class; see docs/signals.md.
        split: of recordings, what is kept for validation: whole recordings, or (flattering) single frames.
        format: of raw recordings: cu8, cs8, cs16, cs32, cf32, cf64; auto takes what the files say.
        channel: which of a recording's channels.
    """

    scenario: Scenario = "blind"
    # None until the scenario has filled them in: after construction each has a value of its type.
    modulations: str = None  # type: ignore[assignment]
    target: Literal["modulation", "symbols"] = "modulation"
    length: int = None  # type: ignore[assignment]
    samples_per_symbol: int = None  # type: ignore[assignment]
    sps_min: float = 4.0
    sps_max: float = 16.0
    rolloff: float = None  # type: ignore[assignment]
    snr_min: float = None  # type: ignore[assignment]
    snr_max: float = None  # type: ignore[assignment]
    snr_step: float = 5.0
    phase: float = None  # type: ignore[assignment]
    frequency: float = None  # type: ignore[assignment]
    timing: float = None  # type: ignore[assignment]
    fading: Fading = None  # type: ignore[assignment]
    paths: int = 3
    delay_spread: float = None  # type: ignore[assignment]
    phase_noise: float = None  # type: ignore[assignment]
    iq_gain: float = None  # type: ignore[assignment]
    iq_phase: float = None  # type: ignore[assignment]
    dc: float = None  # type: ignore[assignment]
    clock: float = None  # type: ignore[assignment]
    test_phase: float | None = None
    train_frames: int | None = None
    val_frames: int = None  # type: ignore[assignment]
    val_seed: int = 1_000_003
    path: str | None = None
    split: Literal["recording", "frame"] = "recording"
    format: str = "auto"
    channel: int = 0

    def __post_init__(self) -> None:
        one_of(tuple(OWN), **{"data.scenario": self.scenario})
        for name, value in OWN[self.scenario].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._check_sizes()
        self._check_offsets()
        self._check_scenario()
        one_of(("recording", "frame"), **{"data.split": self.split})
        RecordingOptions(self.format, channel=self.channel)
        if self.path is None and (self.format, self.channel) != ("auto", 0):
            raise InputError("data.format and data.channel are of recordings: give data.path")
        if self.path is not None and self.train_frames is not None:
            raise InputError("data.train_frames is of generated signals; leave it out for recordings (data.path)")
        self._classes()

    def _check_sizes(self) -> None:
        for name in ("length", "paths", "val_frames"):
            at_least(1, **{f"data.{name}": getattr(self, name)})
        at_least(0 if self.scenario == "blind" else 1, **{"data.samples_per_symbol": self.samples_per_symbol})
        if self.train_frames is not None:
            at_least(1, **{"data.train_frames": self.train_frames})
        if not 0 < self.rolloff <= 1 and not (self.rolloff == 0 and self.scenario == "blind"):
            raise InputError(f"data.rolloff={self.rolloff} should be above 0 and at most 1")
        if not -60 <= self.snr_min <= self.snr_max <= 100:
            raise InputError(f"data.snr_min={self.snr_min} and data.snr_max={self.snr_max}: give dB, the lower first")
        if not self.snr_step > 0:
            raise InputError(f"data.snr_step={self.snr_step} should be above 0")
        if (self.snr_max - self.snr_min) / self.snr_step > MOST_LEVELS:
            raise InputError(f"data.snr_step={self.snr_step} makes more than {MOST_LEVELS} levels; take larger steps")

    def _check_offsets(self) -> None:
        for name in ("phase", "frequency", "timing", "test_phase", "delay_spread", "phase_noise", "iq_gain", "iq_phase",
                     "dc", "clock"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"data.{name}={value} should be at least 0: offsets are drawn up to ± that")
        # Beyond these a signal is no more what it is called.
        most = {"timing": (1, "symbols"), "frequency": (0.5, "cycles per sample"), "iq_gain": (20, "dB"),
                "delay_spread": (4, "symbols"), "iq_phase": (45, "degrees"), "dc": (10, "times the root mean square"),
                "clock": (10_000, "parts per million")}  # fmt: skip
        for name, (limit, unit) in most.items():
            if getattr(self, name) > limit:
                raise InputError(f"data.{name}={getattr(self, name)} is in {unit}, at most {limit}")
        if self.timing and self.samples_per_symbol == 1:
            raise InputError("data.timing needs pulses: set data.samples_per_symbol to 2 or more")
        if self.fading not in ("none", "rayleigh", "rician"):
            raise InputError(f"data.fading={self.fading!r} should be none, rayleigh or rician")

    def _check_scenario(self) -> None:
        if self.scenario == "blind":
            if not 2 <= self.sps_min <= self.sps_max <= 64:
                raise InputError(f"data.sps_min={self.sps_min} and data.sps_max={self.sps_max}: from 2 to 64, in order")
            if self.samples_per_symbol == 1:
                raise InputError("data.samples_per_symbol=1 has no pulses: that is data.scenario=synchronised")
            if self.samples_per_symbol > 64:
                raise InputError(f"data.samples_per_symbol={self.samples_per_symbol} is at most 64 (blind)")
            if self.target == "symbols":
                raise InputError("data.target=symbols needs a known symbol rate: data.scenario=synchronised")
            if self.delay_spread and self.fading == "none" and self.delay_spread != OWN["blind"]["delay_spread"]:
                raise InputError("data.delay_spread needs data.fading=rician or rayleigh")
            return
        for f in fields(self):
            own = OWN[self.scenario].get(f.name, f.default)
            if f.name in BLIND_ONLY and getattr(self, f.name) != own:
                raise InputError(f"data.{f.name} is of data.scenario=blind, not {self.scenario}")
        if self.length % self.samples_per_symbol:
            raise InputError(
                f"data.length={self.length} should be a multiple of data.samples_per_symbol={self.samples_per_symbol}"
            )
        more = self.samples_per_symbol < 2 or self.fading != "none" or self.frequency or self.target == "symbols"
        if self.scenario == "unlocked" and more:
            raise InputError(
                "data.scenario=unlocked is phase and timing alone: samples_per_symbol of 2 or more, no fading, no "
                "frequency, target=modulation"
            )

    def _classes(self) -> tuple[str, ...]:
        if self.scenario == "blind":
            return parse_kinds(self.modulations)
        names = [name.strip().lower() for name in self.modulations.split(",")]
        other = [name for name in names if name in KINDS and name not in MODULATIONS]
        if other or self.modulations == "blind":
            raise InputError(
                f"data.modulations={self.modulations}: {', '.join(other) or 'blind'} has no constellation; "
                "data.scenario=blind makes it"
            )
        return parse_modulations(self.modulations)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the modulations."""
        return self._classes()

    @property
    def n_classes(self) -> int:
        """Outputs per frame, or per symbol when those are the target."""
        return len(self.classes) if self.target == "modulation" else len(constellation(self.classes[0]))

    @property
    def symbols(self) -> int:
        """Symbols per frame; 0 where frames differ in it."""
        return self.length // self.samples_per_symbol if self.samples_per_symbol and self.scenario != "blind" else 0

    @property
    def samples_per_symbol_range(self) -> tuple[float, float]:
        """Lowest and highest samples per symbol of the frames."""
        fixed = float(self.samples_per_symbol)
        return (fixed, fixed) if fixed else (self.sps_min, self.sps_max)

    @property
    def rolloff_range(self) -> tuple[float, float]:
        """Lowest and highest roll-off."""
        return (self.rolloff, self.rolloff) if self.rolloff else (0.2, 0.5)

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
