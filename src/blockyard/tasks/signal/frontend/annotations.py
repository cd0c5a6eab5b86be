"""What was found as SigMF metadata: an annotation for each burst, or for each run of frames of one class.

The metadata name the recording's own file of samples where that lies beside them; else they say that they have none.
They are written as they come, so that an hour of annotations takes no more memory than a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from blockyard import __version__
from blockyard.errors import InputError
from blockyard.files import is_same_file, parse_json, writing
from blockyard.tasks.signal.frontend.votes import Found
from blockyard.tasks.signal.recordings.raw import RawFile, sigmf_name
from blockyard.tasks.signal.recordings.recording import Recording

SUFFIX, DATA = ".sigmf-meta", ".sigmf-data"


class Annotations:
    """An open file of metadata.

    Args:
        file: where it is written.
        recording: what it is about.
        meta: its own metadata; {} where it has none.
    """

    def __init__(self, file: IO[bytes], recording: Recording, meta: dict[str, Any]) -> None:
        self._file, self._recording = file, recording
        self._offset = int(meta.get("global", {}).get("core:offset", 0))
        self._count = 0

    def add(self, found: Found) -> None:
        """Write one annotation."""
        row: dict[str, Any] = {
            "core:sample_start": found.start + self._offset, "core:sample_count": found.stop - found.start,
            "core:label": found.label, "core:generator": f"blockyard {__version__}",
        }  # fmt: skip
        span = next(s for s in reversed(self._recording.spans) if s.start <= found.start)
        rate, centre = self._recording.sample_rate, span.frequency
        # SigMF's edges are absolute: without the centre nobody knows them.
        if rate is not None and centre is not None:
            lower, upper = (-0.5, 0.5) if found.lower is None or found.upper is None else (found.lower, found.upper)
            row |= {"core:freq_lower_edge": centre + lower * rate, "core:freq_upper_edge": centre + upper * rate}
        frames = f"{found.frames} frame{'s' * (found.frames != 1)}"
        level = f", {found.snr:.1f} dB in its band" if found.snr is not None else ""
        row["core:comment"] = f"probability {found.probability:.3f} ({frames}{level})"
        self._file.write(("," * bool(self._count) + "\n  " + json.dumps(row)).encode())
        self._count += 1


@contextmanager
def annotating(path: Path, recording: Recording) -> Iterator[Annotations]:
    """Yield a file of metadata to add annotations to; it takes its name when all is written.

    Raises:
        InputError: when it cannot be written, or is the recording's own.
    """
    meta = own_metadata(recording)
    check_apart(path, recording, "--out")
    check_not_there(path)
    # Annotations are written by themselves, in order; what surrounds them is one object.
    about = {"global": describing(path, recording, meta), "captures": captures_of(recording, meta)}
    head = json.dumps(about, indent=2).rstrip().removesuffix("}").rstrip()
    with writing(path) as file:
        file.write(f'{head},\n "annotations": ['.encode())
        annotations = Annotations(file, recording, meta)
        yield annotations
        file.write(b"\n ]\n}\n")


def check_apart(path: Path | None, recording: Recording, option: str) -> None:
    """Raise InputError if the file would take the place of the recording's own samples or metadata."""
    if path is None:
        return
    samples = recording.samples.path if isinstance(recording.samples, RawFile) else Path(recording.name)
    for own, what in ((own_path(recording), "metadata"), (samples, "samples")):
        if own is not None and is_same_file(path, own):
            raise InputError(
                f"{option} {path}: these are the recording's own {what}, which are not written over; name another file"
            )


def check_not_there(path: Path) -> None:
    """Raise InputError if the file would take the place of metadata."""
    if path.exists():
        raise InputError(f"--out {path} exists, and metadata that are there are not written over: name another file")


def own_path(recording: Recording) -> Path | None:
    """Return the metadata file of a SigMF pair; None for what is not one."""
    path = Path(recording.name)
    return path if path.suffix == SUFFIX and path.is_file() else None


def own_metadata(recording: Recording) -> dict[str, Any]:
    """Return the metadata of a SigMF pair, which was checked when it was opened; {} for what is not one."""
    path = own_path(recording)
    if path is None:
        return {}
    found: dict[str, Any] = parse_json(path.read_bytes().decode("utf-8"))
    return found


def describing(path: Path, recording: Recording, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the global object: the recording's own where it has one, with the file of its samples."""
    samples = recording.samples
    about: dict[str, Any] = dict(meta.get("global", {}))
    data = samples.path if isinstance(samples, RawFile) else None
    kind = samples.type if isinstance(samples, RawFile) else getattr(samples, "type", None)
    if not about:
        # What lies in an npy, HDF5 or wav file is no SigMF dataset, but has been read as this.
        about = {"core:datatype": sigmf_name(kind) if kind is not None else "cf32_le", "core:num_channels": 1}
        about["core:description"] = f"{recording.name}: {recording.kind}"
    about.pop("core:dataset", None)
    about["core:version"] = "1.2.0"
    if recording.sample_rate is not None:
        about["core:sample_rate"] = recording.sample_rate
    is_beside = data is not None and data.parent.resolve() == path.parent.resolve() and ":" not in recording.name
    if not is_beside:
        about["core:metadata_only"] = True
        about.pop("core:sha512", None)
    elif data is not None and data != path.with_suffix(DATA):
        about["core:dataset"] = data.name
    return about


def captures_of(recording: Recording, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the captures: the recording's own, or its stretches."""
    if meta.get("captures"):
        return list(meta["captures"])
    found = []
    for span in recording.spans:
        capture: dict[str, Any] = {"core:sample_start": span.start}
        if span.frequency is not None:
            capture["core:frequency"] = span.frequency
        if span.time is not None:
            capture["core:datetime"] = span.time
        found.append(capture)
    return found
