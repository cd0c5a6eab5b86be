"""A trained model asked about many frames: in batches, by as many threads as torch has, answers in order.

Batches are small enough for a core's cache, and each is computed by one thread: two threads on two batches need no
waiting for one another, as they do when each operation is shared out between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from blockyard.tasks.signal.calibration import answered
from blockyard.tasks.signal.frontend.spectra import frame_snr
from blockyard.tasks.signal.model import predict

# Samples of a batch.
BATCH = 1 << 17

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """Frames in a row.

    Args:
        frames: complex64 [n, length].
        starts: [n], the number of each one's first sample in the recording.
        stops: [n], of the sample after its last.
        told: SNR of each, for a model that is told it.
        about: whatever the asker wants to find again beside the answer.
        known: [n], whether each one's band holds its noise, by which its SNR is measured; None for all of them.
    """

    frames: Tensor
    starts: Tensor
    stops: Tensor
    told: Tensor | None = None
    about: Any = None
    known: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """What a model says of them.

    Args:
        question: what was asked.
        probabilities: [n, answers], or [n · symbols, answers] of an equaliser.
        snr: [n], measured, dB; NaN where nothing can be said.
    """

    question: Question
    probabilities: Tensor
    snr: Tensor


class Answering:
    """A model that answers.

    Args:
        model: in eval mode.
        assets: of its run: classes, and a calibration if there is one.
        measured: whether the SNR of frames is wanted.
        per_symbol: samples of a symbol of the frames, where that is known: the SNR is Es/N0 then.
    """

    def __init__(self, model: Any, assets: Any, *, measured: bool = True, per_symbol: float | None = None) -> None:
        self.model, self.measured, self.per_symbol = model, measured, per_symbol
        self.calibration = None if assets.symbols else assets.calibration
        self.answers: tuple[str, ...] = assets.classes if self.calibration is None else self.calibration.answers

    def __call__(self, question: Question) -> Answer:
        """Answer at once."""
        frames = question.frames
        if not len(frames):
            return Answer(question, torch.zeros(0, len(self.answers)), torch.zeros(0))
        with torch.inference_mode():
            if self.calibration is None:
                found = predict(self.model, frames, question.told).softmax(-1)
                found = found.reshape(-1, found.shape[-1])
            else:
                found = answered(self.model, self.calibration, frames, question.told)
            snr = frame_snr(frames, self.per_symbol) if self.measured else torch.full((len(frames),), torch.nan)
            if question.known is not None:
                snr = snr.masked_fill(~question.known, torch.nan)
        return Answer(question, found, snr)

    def over(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Answer in order; a few questions ahead, so that memory does not grow with their number."""
        return in_order(self, questions)


def in_order(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """Yield function(item) of every item, in order, computed by torch's number of threads, each with one of its own."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[T]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                while len(waiting) > 2 * threads or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # New threads of this process take the number that was set last.
        torch.set_num_threads(threads)


def batches(
    frames: Tensor,
    starts: Tensor,
    stops: Tensor,
    told: Tensor | None = None,
    about: Any = None,
    *,
    known: Tensor | None = None,
) -> Iterator[Question]:
    """Yield frames in batches, one of none where there are none; see `Question`."""
    rows = max(BATCH // frames.shape[1], 1)
    for first in range(0, max(len(frames), 1), rows):
        part = slice(first, first + rows)
        told_part, known_part = (None if values is None else values[part] for values in (told, known))
        yield Question(frames[part], starts[part], stops[part], told_part, about, known_part)
