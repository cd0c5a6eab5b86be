"""The samples of one file at once, and its frames: for loops of one's own, and files that fit into memory.

What the program itself reads goes through `recordings/`, block by block.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.recordings.arrays import ArraySamples
from blockyard.tasks.signal.recordings.opening import open_recordings
from blockyard.tasks.signal.recordings.recording import Recording
from blockyard.tasks.signal.recordings.sigmf import SNR


def read_iq(path: Path | str) -> Tensor:
    """Return the samples of a file: complex64 [n], or [frames, n] as an array of frames holds them.

    Raises:
        InputError: for a missing, unreadable or damaged file, one that is not complex or not finite, or one with gaps.
    """
    recording = _only(path)
    if isinstance(recording.samples, ArraySamples) and not recording.samples.is_flat:
        return recording.read().view(recording.samples.frames, recording.samples.length)
    if len(recording.spans) > 1:
        raise InputError(
            f"{recording.name} has {len(recording.spans)} captures, and samples of one do not go on in the next: "
            "open_recordings(path)[0].frames(length) cuts each by itself"
        )
    return recording.read()


def frames_of(samples: Tensor, length: int, path: Path | str = "the file") -> Tensor:
    """Return samples cut into frames [n, length]; a rest shorter than a frame is left out.

    Args:
        samples: [n] or [frames, n].
        length: samples per frame.
        path: where they are from, for messages.

    Raises:
        InputError: when there are fewer samples than one frame has.
    """
    rows = samples.reshape(-1, samples.shape[-1])
    count = rows.shape[1] // length
    if count == 0:
        raise InputError(f"{path} holds {rows.shape[1]} samples in a row; a frame has {length}")
    return rows[:, : count * length].reshape(-1, length)


def annotated_snr(path: Path | str, length: int, frames: int) -> Tensor | None:
    """Return what a SigMF file's annotations say of the SNR of its frames, [frames] in dB; None where there is nothing.

    It is SNRdB of SigMF's extension capture_details: the power of the signal over that of the noise, per sample. A
    frame takes it from the last annotation that covers its middle.

    Args:
        path: any file of samples; only SigMF has annotations.
        length: samples per frame.
        frames: frames in the file.

    Raises:
        InputError: for an annotation that cannot be read, or a frame that none of them covers.
    """
    if Path(path).suffix not in (".sigmf-meta", ".sigmf-data"):
        return None
    recording = _only(path)
    starts = [span.start + length * torch.arange((span.count or 0) // length) for span in recording.spans]
    return snr_at(recording, torch.cat(starts)[:frames] + length // 2)


def snr_at(recording: Recording, samples: Tensor) -> Tensor | None:
    """Return what annotations say of the SNR at some samples, [n] in dB; None where they say nothing.

    Raises:
        InputError: for a sample that none of them covers.
    """
    stated = [annotation for annotation in recording.annotations if annotation.snr_db is not None]
    if not stated:
        return None
    found = torch.full((len(samples),), torch.nan)
    for annotation in stated:
        assert annotation.snr_db is not None
        # Without a count an annotation reaches to the end; of several that cover a sample the last one counts.
        end = torch.inf if annotation.count is None else annotation.start + annotation.count
        found[(samples >= annotation.start) & (samples < end)] = annotation.snr_db
    missing = int((~torch.isfinite(found)).sum())
    if missing:
        raise InputError(
            f"{recording.name}: annotations give {SNR} for {len(samples) - missing} of {len(samples)} frames; "
            "--snr for all"
        )
    return found


def _only(path: Path | str) -> Recording:
    found = open_recordings(path)
    if len(found) > 1:
        raise InputError(f"{path} holds {len(found)} recordings; unpack it and name one")
    return found[0]
