"""`blockyard classify` for runs of `train signal`: frames or bursts of recorded samples, block by block.

    recording -> resampled to what the run was trained with -> frames -> answers -> a row each, a vote of all
    recording -> bursts (--detect) -> the same for each        -> a row for each burst: the vote of its frames

Beside the rows goes what was found: as SigMF annotations, and over a waterfall.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import Trained
    from blockyard.tasks.signal.generator import SignalDataConfig


def classify(trained: Trained, file: Path, options: ClassifyOptions) -> Iterator[dict[str, Any]]:
    """Yield an entry per frame (per symbol for an equaliser), burst, annotation or file: where it is, the likeliest
    classes, their probabilities.

    Where it is: `recording` if the file holds several, the number of the `frame`, its first `sample` and, where the
    sample rate is known, the `seconds` until then; of a burst also how long it is and the edges of its band. `snr` is
    measured (see `frontend.spectra.frame_snr`). What is left at the end of a stretch, shorter than a frame, is left
    out; no frame reaches over a gap. Memory does not grow with the recording.

    Raises:
        InputError: for a file that cannot be used; for samples that are NaN also after some entries.
    """
    from blockyard.tasks.signal.bursts import burst_rows
    from blockyard.tasks.signal.frames import frame_rows
    from blockyard.tasks.signal.frontend.annotations import check_apart
    from blockyard.tasks.signal.recordings.opening import RecordingOptions, open_recordings
    from blockyard.tasks.signal.session import Session
    from blockyard.text.progress import ReadingLines

    asked = RecordingOptions(**options.data)
    model, assets, run = trained
    check(model, assets, options)
    recordings = open_recordings(file, asked)
    for recording in recordings:
        check_apart(options.out, recording, "--out")
        check_apart(None if options.waterfall is None else Path(options.waterfall), recording, "--waterfall")
    if len(recordings) > 1 and (options.waterfall or options.annotations):
        what = "a waterfall" if options.waterfall else "SigMF metadata"
        raise InputError(f"{file} holds {len(recordings)} recordings, and {what} tells of one: unpack it and name one")
    progress = ReadingLines({"classifying": ("million samples", 1_000_000)})
    unseen = not_seen(run.data)
    notes = [f"trained with {unseen}; a recording that is otherwise is answered wrong, and surely"] if unseen else []
    if not assets.symbols and assets.calibration is None:
        # Trained in Python, or stopped between the last step and the measurement.
        notes.append(
            "the run was neither calibrated nor measured after its training, and unknown is not among the answers; "
            "in Python, blockyard.tasks.signal.finish_run(RUN) does both"
        )
    for recording in recordings:
        notes += [f"{recording.name}: {note}" for note in recording.notes]
        named = {"recording": recording.name} if len(recordings) > 1 else {}
        with Session(trained, recording, asked, options, progress, notes) as session:
            for row in burst_rows(session) if options.detect else frame_rows(session):
                # Not before there is an answer: an error is one line.
                session.tell()
                yield named | row
            if session.waterfall is not None:
                session.waterfall.write(recording, f"{Path(recording.name).name}: {recording.kind}")
        session.tell()


def check(model: Any, assets: Any, options: ClassifyOptions) -> None:
    """Raise InputError for options that this run or one another exclude."""
    if model.config.condition != "snr" and options.snr is not None:
        raise InputError(f"--snr={options.snr:g}: this run's model takes no SNR (it has model.condition=none)")
    beyond = [name for name in ("detect", "waterfall", "annotations") if getattr(options, name)]
    if assets.symbols and (beyond or options.by != "frame"):
        name = beyond[0] if beyond else "by"
        raise InputError(f"--{name} is for classes of frames; this run tells symbols apart")
    if options.detect and options.by != "frame":
        raise InputError(f"--by={options.by} is of frames in a row; with --detect a row is a burst already")


def not_seen(data: SignalDataConfig) -> str:
    """Say what recordings have and generated training signals had not; "" for recordings and for signals with all."""
    if data.path is not None or data.scenario == "blind":
        return ""
    missing = [
        ("one sample per symbol", data.samples_per_symbol == 1),
        ("no phase", not data.phase),
        ("no carrier offset", not data.frequency),
        ("no timing error", not data.timing),
    ]
    return ", ".join(name for name, is_missing in missing if is_missing)
