"""One answer of many frames, and runs of frames that are answered alike.

The frames of a recording are not independent: they share its receiver, its channel, its offsets, and a model that is
wrong about one of them for such a reason is wrong about all. The product of their probabilities, which is right for
independent frames, would be sure after ten. Voted is the geometric mean instead, the product's n-th root, normalised:
the same class as the product's, and never surer than the frames are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

# One frame counts against a class for at most a thousand to one: a click or a fade is no proof.
LEAST = 1e-3


class Votes:
    """The vote of frames.

    Args:
        answers: how many classes there are.
    """

    def __init__(self, answers: int) -> None:
        self._sum = torch.zeros(answers, dtype=torch.float64)
        self.frames = 0
        self._level, self._measured = 0.0, 0

    def add(self, probabilities: Tensor, snr: Tensor | None = None) -> None:
        """Count frames: [n, answers], and [n] in dB, NaN where nothing is known."""
        if snr is not None:
            level = snr[torch.isfinite(snr)]
            self._level += float(level.double().sum())
            self._measured += len(level)
        self._sum += probabilities.double().clamp(min=LEAST).log().sum(0)
        self.frames += len(probabilities)

    @property
    def snr(self) -> float | None:
        """Mean SNR of the frames whose SNR is known, dB; None where it is of none."""
        return round(self._level / self._measured, 1) if self._measured else None

    def probabilities(self) -> Tensor:
        """Return the geometric mean of the frames' probabilities, of sum 1: [answers]; NaN without frames."""
        return (self._sum / self.frames).softmax(-1) if self.frames else torch.full_like(self._sum, torch.nan)


@dataclass(frozen=True)
class Found:
    """Something that was classified: a burst, or frames in a row of one class.

    Args:
        start: its first sample in the recording.
        stop: the sample after its last.
        label: the likeliest class.
        probability: its vote.
        frames: how many.
        snr: in the occupied band, dB; None where nothing can be said.
        lower: edge of its band, cycles per sample; None for the whole band.
        upper: edge.
    """

    start: int
    stop: int
    label: str
    probability: float
    frames: int
    snr: float | None = None
    lower: float | None = None
    upper: float | None = None


class Runs:
    """Frames in a row with the same likeliest class, as one each.

    Args:
        classes: names of the answers.
        begins: first samples of stretches: none reaches from one into the next, which may be of another frequency.
    """

    def __init__(self, classes: Sequence[str], begins: Collection[int] = ()) -> None:
        self._classes, self._begins = classes, begins
        self._found: Found | None = None
        self._sum = torch.zeros(len(classes), dtype=torch.float64)
        self._levels: list[float] = []

    def add(
        self, starts: Sequence[int], stops: Sequence[int], probabilities: Tensor, snr: Tensor | None
    ) -> list[Found]:
        """Take in frames in a row; return the runs that have ended."""
        ended = []
        likeliest = probabilities.argmax(-1)
        logs = probabilities.double().clamp(min=LEAST).log()
        # Where a run of these frames begins.
        cuts = [0, *((likeliest[1:] != likeliest[:-1]).nonzero()[:, 0] + 1).tolist(), len(likeliest)]
        for first, last in pairwise(cuts):
            label = self._classes[int(likeliest[first])]
            known = self._found
            apart = known is None or known.stop < starts[first] or starts[first] in self._begins
            if known is None or apart or known.label != label:
                ended += self.finish()
                known = Found(starts[first], stops[first], label, 0.0, 0)
                self._sum, self._levels = torch.zeros_like(self._sum), []
            self._sum = self._sum + logs[first:last].sum(0)
            if snr is not None:
                part = snr[first:last]
                part = part[torch.isfinite(part)]
                if len(part):
                    # A median over medians is enough for a label.
                    self._levels = [*self._levels[-63:], float(part.median())]
            self._found = replace(known, stop=stops[last - 1], frames=known.frames + last - first)
        return ended

    def finish(self) -> list[Found]:
        """End the run and return it."""
        if self._found is None:
            return []
        found, self._found = self._found, None
        shares = (self._sum / found.frames).softmax(-1)
        level = sorted(self._levels)[len(self._levels) // 2] if self._levels else None
        return [replace(found, probability=float(shares.max()), snr=level)]


def known_label(label: str | None, answers: tuple[str, ...]) -> str | None:
    """Return the answer that a label names, however it is written (QPSK, 16-QAM); None for other labels."""

    def plain(name: str) -> str:
        return "".join(sign for sign in name.lower() if sign.isalnum())

    return None if label is None else next((name for name in answers if plain(name) == plain(label)), None)
