"""A recording: where its samples lie, which stretches of them have no gap, and what is noted of them.

Samples are read in blocks, so that an hour of them takes no more memory than a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from blockyard.errors import InputError

if TYPE_CHECKING:
    import numpy as np

BLOCK_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Span:
    """A stretch of samples without a gap.

    Args:
        start: number of its first sample in the recording.
        count: samples; none for a pipe, which ends when it ends.
        frequency: centre frequency, Hz.
        time: when the first sample was taken, as the file says it (ISO 8601).
    """

    start: int
    count: int | None
    frequency: float | None = None
    time: str | None = None


@dataclass(frozen=True)
class Annotation:
    """What a file says of some of its samples.

    Args:
        start: number of the first sample.
        count: samples; none means until the end.
        label: what it is.
        snr_db: power of the signal over that of the noise, per sample.
        lower: edge of its band, Hz; None where it is not said.
        upper: edge.
    """

    start: int
    count: int | None
    label: str | None = None
    snr_db: float | None = None
    lower: float | None = None
    upper: float | None = None


class Samples(Protocol):
    """Where samples lie.

    Attributes:
        channels: how many there are side by side.
    """

    channels: int

    def read(self, start: int, count: int, channel: int) -> np.ndarray[Any, Any]:
        """Return complex64 [at most count] of one channel, fewer only at the end of a pipe.

        Raises:
            InputError: when they cannot be read.
        """
        ...


@dataclass(frozen=True)
class Recording:
    """Samples of one receiver, channel beside channel.

    Args:
        name: what to call it in messages: its file.
        kind: what it was read as, for people.
        samples: where they lie.
        spans: the stretches without a gap, in order.
        sample_rate: samples per second, where the file or an option says it.
        annotations: what is noted of them.
        notes: what whoever reads it should know, one line each.
    """

    name: str
    kind: str
    samples: Samples
    spans: tuple[Span, ...]
    sample_rate: float | None = None
    annotations: tuple[Annotation, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        """Samples in all; none for a pipe."""
        counts = [span.count for span in self.spans]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def channels(self) -> int:
        return self.samples.channels

    def check_channel(self, channel: int) -> None:
        """Raise InputError for a channel that is not there."""
        if not 0 <= channel < self.channels:
            many = f"{self.channels} channel{'s' * (self.channels > 1)}"
            raise InputError(f"{self.name} has {many}; data.channel={channel} is none of them (the first is 0)")

    def check_length(self, length: int, what: str = "a frame") -> None:
        """Raise InputError when no stretch holds `what`, of this length; of a pipe nobody knows."""
        counts = [span.count for span in self.spans]
        longest = max((count for count in counts if count is not None), default=0)
        if None not in counts and longest < length:
            many = f"{longest} sample{'s' * (longest != 1)}"
            raise InputError(f"{self.name} holds {many} in a row; {what} has {length}")

    def blocks(self, channel: int = 0, size: int | None = None, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the first sample, complex64 [n]) from beginning to end; no block reaches over a gap.

        Args:
            channel: which one.
            size: samples per block, about; none means a million.
            multiple: all blocks but the last of a stretch hold a multiple of so many.

        Raises:
            InputError: for a channel that is not there, samples that cannot be read or are NaN or infinite.
        """
        self.check_channel(channel)
        size = max((size or BLOCK_SAMPLES) // multiple, 1) * multiple
        for span in self.spans:
            start = span.start
            end = None if span.count is None else span.start + span.count
            while end is None or start < end:
                wanted = size if end is None else min(size, end - start)
                block = self.samples.read(start, wanted, channel)
                if len(block):
                    yield start, finite(torch.from_numpy(block), self.name, start)
                start += len(block)
                if len(block) < wanted:
                    break

    def read(self, channel: int = 0) -> Tensor:
        """Return all samples of a channel: complex64 [n]."""
        parts = [block for _, block in self.blocks(channel)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.complex64)

    def frames(self, length: int, channel: int = 0) -> tuple[Tensor, Tensor]:
        """Cut the recording into frames.

        What is left at the end of a stretch, shorter than a frame, is left out; no frame reaches over a gap.

        Returns: complex64 [frames, length], and the number of each one's first sample, [frames].

        Raises:
            InputError: when there is not one whole frame.
        """
        self.check_length(length)
        found, starts = [], []
        for start, block in self.blocks(channel, multiple=length):
            whole = len(block) // length
            found.append(block[: whole * length].view(whole, length))
            starts.append(start + length * torch.arange(whole))
        return torch.cat(found), torch.cat(starts)


def finite(samples: Tensor, name: str, start: int = 0) -> Tensor:
    """Return the samples.

    Raises:
        InputError: for one that is NaN or infinite, with its number.
    """
    # One that is not makes the sum so; a sum may be beyond float32 by itself, and is looked into then.
    if bool(torch.isfinite(torch.view_as_real(samples).sum())):
        return samples
    bad = ~torch.isfinite(torch.view_as_real(samples)).all(-1)
    if bool(bad.any()):
        first = start + int(bad.nonzero()[0, 0])
        raise InputError(f"{name} holds samples that are NaN or infinite, the first is number {first}")
    return samples
