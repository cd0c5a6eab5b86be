"""From a file's name to its recordings."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import user_path
from blockyard.tasks.signal.recordings.arrays import read_array, read_hdf5, read_wav
from blockyard.tasks.signal.recordings.raw import RAW_FORMATS, RawPipe, raw_type, whole_file
from blockyard.tasks.signal.recordings.recording import Recording, Span
from blockyard.tasks.signal.recordings.sigmf import read_archive, read_sigmf

# Files that say themselves what they are; a SigMF pair goes by its metadata.
SELF_DESCRIBED = (".npy", ".npz", ".h5", ".hdf5", ".wav", ".sigmf", ".sigmf-meta", ".sigmf-data")
# Names of raw files that programs write with the format as suffix.
RAW_SUFFIXES = tuple(f".{name}" for name in RAW_FORMATS)


@dataclass(frozen=True)
class RecordingOptions:
    """How recordings are read.

    Args:
        format: of raw samples: cu8, cs8, cs16, cs32, cf32, cf64 (with _be: high byte first); auto reads files that say
            what they are (npy, npz, HDF5, wav, SigMF) and raw ones whose suffix is their format.
        sample_rate: samples per second; none means what the file says, if it does.
        symbol_rate: symbols per second (per sample where the sample rate is not known), if known: `classify` brings
            samples to as many a symbol as a run was trained with.
        channel: which of several channels.

    Raises:
        InputError: when a value is out of range.
    """

    format: str = "auto"
    sample_rate: float | None = None
    channel: int = 0
    symbol_rate: float | None = None

    def __post_init__(self) -> None:
        if self.format != "auto":
            raw_type(self.format)
        if self.sample_rate is not None and not 0 < self.sample_rate < float("inf"):
            raise InputError(f"data.sample_rate={self.sample_rate} should be a number of samples per second above 0")
        if self.symbol_rate is not None and not 0 < self.symbol_rate < float("inf"):
            raise InputError(f"data.symbol_rate={self.symbol_rate} should be a number of symbols per second above 0")
        if self.channel < 0:
            raise InputError(f"data.channel={self.channel} should be at least 0")


def open_recordings(path: Path | str, options: RecordingOptions | None = None) -> list[Recording]:
    """Return the recordings of a file (an archive may hold several), or of standard input for `-`.

    Raises:
        InputError: for a file that is missing, damaged, empty, or of a kind that nobody knows.
    """
    options = options or RecordingOptions()
    found = [_with_rate(recording, options) for recording in _open(path, options)]
    for recording in found:
        if recording.count == 0:
            raise InputError(f"{recording.name} holds no samples")
        recording.check_channel(options.channel)
    return found


def samples_per_symbol(recording: Recording, options: RecordingOptions) -> float | None:
    """Return how many samples a symbol has; None where no symbol rate is given.

    Raises:
        InputError: for a symbol rate above the sample rate, or one that must be in hertz where that is not known.
    """
    if options.symbol_rate is None:
        return None
    rate = recording.sample_rate
    if rate is None and options.symbol_rate > 0.5:
        asked = f"data.symbol_rate={options.symbol_rate:g} needs the sample rate"
        raise InputError(f"{asked}, which {recording.name} does not say: give --data.sample_rate")
    found = (rate or 1.0) / options.symbol_rate
    if found < 1:
        raise InputError(f"data.symbol_rate={options.symbol_rate:g} is above the sample rate of {rate or 1:g}")
    return found


def _open(path: Path | str, options: RecordingOptions) -> list[Recording]:
    if str(path) == "-":
        if options.format == "auto":
            raise InputError("samples from a pipe need --data.format (cu8, cs16, cf32, …)")
        kind = raw_type(options.format)
        pipe = RawPipe(sys.stdin.buffer, kind, "standard input")
        return [Recording("standard input", f"raw, {kind.name}", pipe, (Span(0, None),))]
    where = user_path(path)
    if not where.is_file():
        raise InputError(f"{path}: no such file; give .npy, .npz, .h5, .wav, .sigmf-meta, .sigmf or raw samples")
    suffix = where.suffix.lower()
    if options.format != "auto" or suffix in RAW_SUFFIXES:
        kind = raw_type(options.format if options.format != "auto" else suffix[1:])
        samples = whole_file(where, kind)
        count = samples.stretches[0].count
        return [Recording(str(path), f"raw, {kind.name}", samples, (Span(0, count),) if count else ())]
    if suffix in (".sigmf-meta", ".sigmf-data"):
        return [read_sigmf(where)]
    if suffix == ".sigmf":
        return read_archive(where)
    if suffix in (".npy", ".npz"):
        return [read_array(where)]
    if suffix in (".h5", ".hdf5"):
        return [read_hdf5(where)]
    if suffix == ".wav":
        return [read_wav(where)]
    raise InputError(
        f"{path}: files are .npy, .npz, .h5, .wav, .sigmf-meta or .sigmf, not {where.suffix or 'without a suffix'!r}; "
        "raw samples need --data.format (cu8, cs16, cf32, …)"
    )


def _with_rate(recording: Recording, options: RecordingOptions) -> Recording:
    if options.sample_rate is None:
        return recording
    if recording.sample_rate not in (None, options.sample_rate):
        note = f"the file says {recording.sample_rate:g} samples per second; {options.sample_rate:g} is taken, as asked"
        recording = replace(recording, notes=(*recording.notes, note))
    return replace(recording, sample_rate=options.sample_rate)
