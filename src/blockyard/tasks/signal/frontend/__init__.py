"""The front end: what stands between a recording and a model of frames, and between its answers and who reads them.

    recording -> (detection: bursts in time and frequency, each shifted to 0 Hz) -> resampling -> frames -> model
              -> rows, votes, SigMF annotations, a waterfall

A model knows frames of 4 to 16 samples a symbol around 0 Hz; a recording has its own rate, and often many signals side
by side. All of it streams: memory does not grow with the recording.

Files, in reading order:

    spectra.py       noise floors, occupied bands, the SNR of frames, the symbol rate: what a spectrum tells
    resampling.py    Resampler: scipy's resample_poly block by block; the ratio that a recording needs
    filling.py       noise for the empty part of the band that interpolation leaves
    regions.py       connected cells of a spectrogram, in a stream of its rows
    detection.py     Detector: what stands above the noise, in time and frequency
    cutting.py       a burst on its own: shifted to 0 Hz, filtered, resampled, cut into frames
    votes.py         Votes: one answer of many frames
    annotations.py   SigMF annotations of what was found
    waterfall.py     Waterfall: a picture of it

What is measured and how well: docs/signals.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.signal.frontend.detection import Detector as Detector
    from blockyard.tasks.signal.frontend.resampling import Resampler as Resampler
    from blockyard.tasks.signal.frontend.spectra import frame_snr as frame_snr
    from blockyard.tasks.signal.frontend.spectra import symbol_rate as symbol_rate
    from blockyard.tasks.signal.frontend.votes import Votes as Votes
    from blockyard.tasks.signal.frontend.waterfall import Waterfall as Waterfall
else:
    __all__ = exports(
        __name__,
        {
            "detection": "Detector",
            "resampling": "Resampler",
            "spectra": "frame_snr symbol_rate",
            "votes": "Votes",
            "waterfall": "Waterfall",
        },
    )
