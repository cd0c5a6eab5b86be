"""A recording that is being classified: what is asked, the model's answers, and the files beside the rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.answering import Answer, Answering, Question
from blockyard.tasks.signal.frontend.annotations import annotating
from blockyard.tasks.signal.frontend.resampling import Plan
from blockyard.tasks.signal.frontend.votes import Found
from blockyard.tasks.signal.frontend.waterfall import Waterfall
from blockyard.tasks.signal.levels import Levels
from blockyard.tasks.signal.recordings.opening import RecordingOptions, samples_per_symbol
from blockyard.tasks.signal.recordings.recording import Recording

if TYPE_CHECKING:
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import Trained

# Frames of a recording that are compared with the training's.
COMPARED = 256


class Session:
    """A recording, classified.

    Args:
        trained: model, assets, run.
        recording: the samples.
        asked: how it is read.
        options: what is asked for.
        progress: told how far it is.
        notes: what is to be told before the first row; more are added.

    Raises:
        InputError: when the model is told the SNR and nothing says it, there is no whole frame, or a file cannot be
            written.
    """

    def __init__(
        self, trained: Trained, recording: Recording, asked: RecordingOptions, options: ClassifyOptions, progress: Any,
        notes: list[str],
    ) -> None:  # fmt: skip
        self.model, self.assets, self.run = trained
        self.recording, self.asked, self.options = recording, asked, options
        self.progress, self.notes = progress, notes
        self.length: int = self.assets.length
        self.per_symbol = samples_per_symbol(recording, asked)
        # Where `familiar` does not say it, the configuration does: one number.
        one = self.run.data.samples_per_symbol if self.run.data.path is None and self.assets.familiar is None else None
        self.trained_with = None if one is None else float(one)
        self.levels: Levels | None = None
        self.power: tuple[float, float] | None = self.assets.power
        if self.model.config.condition == "snr" and not options.detect:
            self.levels = Levels(recording, self.assets, self.per_symbol or one or 1, options.snr)
            self.power = self.levels.power
        self.factor: float | None = None
        self.answering = Answering(self.model, self.assets, measured=False)
        self.waterfall: Waterfall | None = None
        self.annotations: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Session:
        if self.options.waterfall is not None:
            self.waterfall = Waterfall(self.options.waterfall)
        if self.options.annotations is not None:
            self.annotations = self._stack.enter_context(annotating(self.options.annotations, self.recording))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def tell(self) -> None:
        """Print the notes that there are."""
        while self.notes:
            print(f"note: {self.notes.pop(0)}", file=sys.stderr)

    def ask(self, questions: Iterator[Question], plan: Plan | None = None) -> Iterator[Answer]:
        """Answer questions about frames that are as `plan` says; without one their SNR is not measured."""
        per_symbol = plan.per_symbol if plan is not None else None
        measured = not self.assets.symbols and plan is not None
        self.answering = Answering(self.model, self.assets, measured=measured, per_symbol=per_symbol)
        return self.answering.over(questions)

    def likeliest(self, probabilities: Tensor) -> list[list[dict[str, Any]]]:
        """Return the `top` classes of every row of [n, answers] with their probabilities, the likeliest first."""
        names = self.answering.answers
        values, places = probabilities.double().topk(min(self.options.top, len(names)), dim=-1)
        rounded = (values * 1e4).round() / 1e4
        return [
            [{"class": names[c], "probability": p} for c, p in zip(row_of, row)]
            for row_of, row in zip(places.tolist(), rounded.tolist())
        ]

    def scaled(self, frames: Tensor) -> Tensor:
        """Return frames on the scale of the training's, as the first of them tell it; says when they are unlike any of
        it."""
        if self.factor is None:
            self.factor = scale_of(frames, self.power, self.options.scale)
            self.compare(frames[:COMPARED] * self.factor)
        return frames if self.factor == 1 else frames * self.factor

    def compare(self, frames: Tensor) -> None:
        """Say when frames lie outside what the training had."""
        if self.assets.familiar is None:
            return
        outside = self.assets.familiar.outside(frames)
        if outside:
            self.notes.append(f"{self.recording.name} is unlike the training: {outside}")

    def where(self, sample: int) -> dict[str, Any]:
        """Return the place of a sample, as rows have it."""
        rate = self.recording.sample_rate
        return {"sample": sample} if rate is None else {"sample": sample, "seconds": round(sample / rate, 9)}

    def found(self, found: Found) -> None:
        """Note something that was found, in the files beside the rows."""
        if self.annotations is not None:
            self.annotations.add(found)
        if self.waterfall is not None:
            self.waterfall.mark(found)


def scale_of(frames: Tensor, power: tuple[float, float] | None, scale: str, *, quiet: bool = False) -> float:
    """Return the factor that brings frames to the scale of the training's, by the mean power of all of them.

    Args:
        frames: [frames, length]; the first block of a recording stands for all of it.
        power: lowest and highest mean power expected of them; None = any.
        scale: auto, power or none, as the options say.
        quiet: whether to say nothing of it.

    Raises:
        InputError: when the samples are all zero and a scale is wanted.
    """
    if power is None or scale == "none":
        return 1.0
    low, high = power
    mean = float(frames.abs().square().mean())
    if scale == "auto" and 0.5 * low <= mean <= 2 * high:
        return 1.0
    if mean == 0:
        raise InputError("the samples are all zero")
    # Signal power 1 and the noise of the middle SNR, where half of the decibels lie on either side.
    wanted = 1 + ((low - 1) * (high - 1)) ** 0.5
    if not quiet:
        expected = f"expected {low:.3g} to {high:.3g}; scaled to {wanted:.3g} (--scale none: as is)"
        print(f"note: mean power {mean:.3g}, {expected}", file=sys.stderr)
    return (wanted / mean) ** 0.5
