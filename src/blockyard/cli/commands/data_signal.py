"""`blockyard data signal FILE`: what a recording is understood as, before anything is trained on it or classified."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.tasks.signal.frontend.resampling import Plan
    from blockyard.tasks.signal.frontend.spectra import Band
    from blockyard.tasks.signal.recordings.opening import RecordingOptions
    from blockyard.tasks.signal.recordings.recording import Recording


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.commands.classify import recording_groups
    from blockyard.cli.settings import add_groups

    parser.usage = "%(prog)s FILE [FILE ...] [options]"
    parser.plain("files", "recordings: SigMF, .npy, .npz, .h5, .wav, or raw samples", metavar="FILE", nargs="+")
    parser.plain("--run", "say what `classify` with this run would do (else: with a run of `train signal` as it is)",
                 metavar="DIR")  # fmt: skip
    parser.plain("--json", "print it as JSON, a line for each recording", action="store_true")
    add_groups(parser, recording_groups())


def run(arguments: argparse.Namespace) -> int:
    import json

    from blockyard.cli.commands.classify import recording_groups
    from blockyard.cli.settings import given_words, read_given
    from blockyard.errors import InputError
    from blockyard.tasks.signal.recordings.opening import RecordingOptions, open_recordings
    from blockyard.tasks.signal.recordings.understanding import as_dict, understanding

    options = RecordingOptions(**read_given(recording_groups(), given_words(arguments)).get("data", {}))
    if "-" in arguments.files:
        raise InputError("a pipe is read once: write it into a file to look at it first")
    plan = _planner(arguments.run, options)
    for recording in [recording for name in arguments.files for recording in open_recordings(name, options)]:
        if arguments.json:
            print(json.dumps(as_dict(recording, options.channel, plan)))
        else:
            print("\n".join(understanding(recording, options.channel, plan)))
    return 0


def _planner(run: str | None, options: RecordingOptions) -> Callable[[Recording, Band | None], Plan]:
    """Return how a recording is brought to what a run was trained with; without a run, what `train signal` makes."""
    from pathlib import Path

    from blockyard.errors import InputError
    from blockyard.tasks.run import read_run
    from blockyard.tasks.signal.config import SignalDataConfig
    from blockyard.tasks.signal.familiar import Familiar
    from blockyard.tasks.signal.frontend.resampling import plan_for
    from blockyard.tasks.signal.recordings.opening import samples_per_symbol

    data = SignalDataConfig()
    familiar = None
    if run is not None:
        found = read_run(Path(run))
        if found.task != "signal":
            raise InputError(f"{run} is a run of `train {found.task}`; recordings are for runs of `train signal`")
        data, familiar = found.data, Familiar.load(Path(run))
    if familiar is None and data.path is None:
        low, high = data.samples_per_symbol_range
        band = ((1 + data.rolloff_range[0]) / high, (1 + data.rolloff_range[1]) / low) if high > 1 else None
        familiar = Familiar({}, samples_per_symbol=(low, high), bandwidth=band)
    return lambda recording, band: plan_for(familiar, None, samples_per_symbol(recording, options), band)


COMMAND = Command(
    "data signal",
    "what a recording is understood as: type, rate, stretches, level, band, annotations",
    add_arguments,
    run,
    order=23,
    purpose="understand",
    example="blockyard data signal recording.sigmf-meta",
)
