"""`blockyard classify` for runs of `train signal`: frames of recorded samples, block by block."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import Trained
    from blockyard.tasks.signal.generator import SignalDataConfig
    from blockyard.tasks.signal.recordings.recording import Recording


def classify(trained: Trained, file: Path, options: ClassifyOptions) -> Iterator[dict[str, Any]]:
    """Yield an entry per frame (per symbol for an equaliser): where it is, the likeliest classes, their probabilities.

    Where it is: `recording` if the file holds several, the number of the `frame`, its first `sample` and, where the
    sample rate is known, the `seconds` until then. What is left at the end of a stretch, shorter than a frame, is left
    out; no frame reaches over a gap. Memory does not grow with the recording.

    Raises:
        InputError: for a file that cannot be used; for samples that are NaN also after some entries.
    """
    from blockyard.tasks.signal.recordings.opening import RecordingOptions, open_recordings
    from blockyard.text.progress import ReadingLines

    asked = RecordingOptions(**options.data)
    recordings = open_recordings(file, asked)
    model, _, run = trained
    if model.config.condition != "snr" and options.snr is not None:
        raise InputError(f"--snr={options.snr:g}: this run's model takes no SNR (it has model.condition=none)")
    progress = ReadingLines({"classifying": ("million samples", 1_000_000)})
    unseen = not_seen(run.data)
    notes = [f"trained with {unseen}; a recording that is otherwise is answered wrong, and surely"] if unseen else []
    for recording in recordings:
        notes += [f"{recording.name}: {note}" for note in recording.notes]
        named = {"recording": recording.name} if len(recordings) > 1 else {}
        for row in _Frames(trained, recording, asked.channel, options, run.data.samples_per_symbol).rows(progress):
            # Not before there is an answer: an error is one line.
            while notes:
                print(f"note: {notes.pop(0)}", file=sys.stderr)
            yield named | row


def not_seen(data: SignalDataConfig) -> str:
    """Say what recordings have and generated training signals had not; "" for recordings and for signals with all."""
    if data.path is not None:
        return ""
    missing = [
        ("one sample per symbol", data.samples_per_symbol == 1),
        ("no phase", not data.phase),
        ("no carrier offset", not data.frequency),
        ("no timing error", not data.timing),
    ]
    return ", ".join(name for name, is_missing in missing if is_missing)


class _Frames:
    """The frames of a recording, classified.

    Args:
        trained: model, assets, run.
        recording: the samples.
        channel: which of its channels.
        options: what is asked for.
        oversampling: samples per symbol of the training.

    Raises:
        InputError: when the model is told the SNR and nothing says it, or there is no whole frame.
    """

    def __init__(
        self, trained: Trained, recording: Recording, channel: int, options: ClassifyOptions, oversampling: int
    ) -> None:
        self.model, self.assets, _ = trained
        self.recording, self.channel, self.options = recording, channel, options
        self.length: int = self.assets.length
        recording.check_length(self.length)
        self.snr: _Levels | None = None
        self.power = self.assets.power
        if self.model.config.condition == "snr":
            self.snr = _Levels(recording, self.assets, oversampling, options.snr)
            # Signal power 1, and a symbol's share of the noise in every sample.
            self.power = tuple(1 + oversampling * 10 ** (-level / 10) for level in (self.snr.high, self.snr.low))
        self.factor: float | None = None

    def rows(self, progress: Any) -> Iterator[dict[str, Any]]:
        """Yield an entry per frame or symbol."""
        import torch

        from blockyard.tasks.kind import likeliest
        from blockyard.tasks.signal.model import predict

        rate, length, symbols = self.recording.sample_rate, self.length, max(self.assets.symbols, 1)
        number = 0
        for start, block in self.recording.blocks(self.channel, multiple=length):
            whole = len(block) // length
            if not whole:
                continue
            frames = block[: whole * length].view(whole, length)
            if self.factor is None:
                self.factor = scale_of(frames, self.power, self.options.scale)
            snr = None if self.snr is None else self.snr.at(start + length * torch.arange(whole) + length // 2)
            with torch.inference_mode():
                found = predict(self.model, frames * self.factor, snr).softmax(-1)
            for index, values in enumerate(found.reshape(-1, found.shape[-1]).tolist()):
                frame = index // symbols
                sample = start + frame * length
                row: dict[str, Any] = {"frame": number + frame, "sample": sample}
                if rate is not None:
                    row["seconds"] = round(sample / rate, 9)
                if self.assets.symbols:
                    row["symbol"] = index % symbols
                yield row | {"is": likeliest(values, self.assets.classes, self.options.top)}
            number += whole
            progress("classifying", start + len(block), self.recording.count or 0)
        if not number:
            raise InputError(f"{self.recording.name} holds fewer samples than the {length} of one frame")


class _Levels:
    """The SNR of every frame in dB (Es/N0), for a model that is told it: given, or what the file's annotations say.

    Args:
        recording: the samples.
        assets: of the run.
        oversampling: samples per symbol; annotations speak of samples, Es/N0 of symbols.
        given: for all frames; none asks the annotations.

    Raises:
        InputError: when neither says it, or it is no number.
    """

    def __init__(self, recording: Recording, assets: Any, oversampling: int, given: float | None) -> None:
        self.recording, self.given = recording, given
        self.least, self.most = assets.snr
        self.shift = 10 * math.log10(oversampling)
        if given is None:
            stated = [a.snr_db + self.shift for a in recording.annotations if a.snr_db is not None]
            if not stated:
                raise InputError(f"this run's model is told the SNR, and {recording.name} says none: give --snr DB")
        elif math.isfinite(given):
            stated = [given]
        else:
            raise InputError(f"--snr={given} should be a number of dB")
        if min(stated) < self.least or max(stated) > self.most:
            far = f"trained at {self.least:g} to {self.most:g} dB"
            print(f"note: {far}; what lies beyond is read as the nearest", file=sys.stderr)
        self.low, self.high = (min(max(level, self.least), self.most) for level in (min(stated), max(stated)))

    def at(self, samples: Tensor) -> Tensor:
        """Return the SNR at some samples, [n]."""
        import torch

        from blockyard.tasks.signal.files import snr_at

        if self.given is not None:
            return torch.full((len(samples),), self.low)
        found = snr_at(self.recording, samples)
        assert found is not None  # there are annotations with an SNR
        return (found + self.shift).clamp(self.least, self.most)


def scale_of(frames: Tensor, power: tuple[float, float] | None, scale: str) -> float:
    """Return the factor that brings frames to the scale of the training's, by the mean power of all of them.

    Args:
        frames: [frames, length]; the first block of a recording stands for all of it.
        power: lowest and highest mean power expected of them; None = any.
        scale: auto, power or none, as the options say.

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
    note = (
        f"note: mean power {mean:.3g}, expected {low:.3g} to {high:.3g}; scaled to {wanted:.3g} (--scale none: as is)"
    )
    print(note, file=sys.stderr)
    return (wanted / mean) ** 0.5
