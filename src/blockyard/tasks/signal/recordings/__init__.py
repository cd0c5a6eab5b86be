"""Recordings: samples that a receiver took, in the files that receivers' programs write.

A recording is a row of complex samples with gaps: stretches, each with its frequency and time where the file says
them. It is read in blocks, so that an hour takes no more memory than a second, and no frame reaches over a gap.

Files, in reading order:

    recording.py       Recording: where samples lie, stretches, annotations; blocks and frames of it
    raw.py             numbers by turns, in a file or a pipe: cu8, cs16, cf32, …
    sigmf.py           SigMF pairs and archives
    arrays.py          npy, npz, HDF5, wav
    opening.py         open_recordings: from a name to recordings; RecordingOptions
    understanding.py   what a recording is taken for: `blockyard data signal`
    labelled.py        RecordedSignals: folders of recordings by class, split by recording

What is read how: docs/signals.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.signal.recordings.labelled import RecordedSignals as RecordedSignals
    from blockyard.tasks.signal.recordings.opening import RecordingOptions as RecordingOptions
    from blockyard.tasks.signal.recordings.opening import open_recordings as open_recordings
    from blockyard.tasks.signal.recordings.recording import Recording as Recording
else:
    __all__ = exports(
        __name__,
        {
            "labelled": "RecordedSignals",
            "opening": "RecordingOptions open_recordings",
            "recording": "Recording",
        },
    )
