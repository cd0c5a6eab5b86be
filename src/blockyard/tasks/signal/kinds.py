"""The kinds of signals that the blind scenario makes: linear modulations, and those that no constellation describes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from blockyard.errors import InputError, suggest
from blockyard.tasks.signal.modulations import MODULATIONS, parse_modulations

Family = Literal["linear", "continuous", "am", "ssb", "fm", "ofdm", "tone", "noise", "chirp", "tones", "pulses"]


@dataclass(frozen=True)
class Kind:
    """A kind of signal.

    Args:
        family: how it is made.
        levels: of a continuous-phase modulation.
        index: lowest and highest modulation index h of one.
        bt: lowest and highest bandwidth of its Gaussian times the symbol; None without.
        suppressed: whether an AM signal has no carrier.
    """

    family: Family
    levels: int = 2
    index: tuple[float, float] = (0.5, 0.5)
    bt: tuple[float, float] | None = None
    suppressed: bool = False


_OTHERS = {
    "2fsk": Kind("continuous", index=(0.9, 1.1)),
    "4fsk": Kind("continuous", levels=4, index=(0.45, 0.55)),
    "gfsk": Kind("continuous", index=(0.28, 0.5), bt=(0.3, 0.5)),
    "msk": Kind("continuous"),
    "gmsk": Kind("continuous", bt=(0.3, 0.3)),
    "cpfsk": Kind("continuous", index=(0.65, 0.8)),
    "am-dsb": Kind("am"),
    "am-sc": Kind("am", suppressed=True),
    "am-ssb": Kind("ssb"),
    "fm": Kind("fm"),
    "ofdm": Kind("ofdm"),
    "tone": Kind("tone"),
    "noise": Kind("noise"),
    "chirp": Kind("chirp"),
    "tones": Kind("tones"),
    "pulses": Kind("pulses"),
}
KINDS: dict[str, Kind] = {**{name: Kind("linear") for name in MODULATIONS}, **_OTHERS}
# What a receiver meets most. Of the dense constellations 16QAM alone: at the SNRs of a recording frames of a hundred
# symbols do not tell 16 points from 64.
BLIND = (
    "bpsk", "qpsk", "8psk", "16qam", "ook", "2fsk", "gfsk", "msk", "am-dsb", "am-ssb", "fm", "ofdm", "tone", "noise",
)  # fmt: skip
# None of the default classes, and not seen in training: unknown is calibrated on the first and tested on the others.
STRANGE_CALIBRATION = ("4fsk", "am-sc", "chirp", "pam4")
STRANGE_TEST = ("cpfsk", "tones", "pulses", "4ask")


@cache
def parse_kinds(text: str) -> tuple[str, ...]:
    """Read `bpsk,fm,noise`, `blind` (the default classes), `usual` (the six usual linear ones) or `all`.

    Raises:
        InputError: for an unknown or repeated name, or fewer than two.
    """
    if text in ("blind", "all"):
        return BLIND if text == "blind" else tuple(KINDS)
    if text == "usual":
        return parse_modulations(text)
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if name not in KINDS:
            raise InputError(
                f"no modulation named {name!r}{suggest(name, KINDS) or '; there are: ' + ', '.join(KINDS)}"
            )
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"data.modulations={text!r} should be at least two different names, or blind, usual, all")
    return names
