"""`blockyard data signal FILE`: what a recording is understood as, before anything is trained on it or classified."""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.commands.classify import recording_groups
    from blockyard.cli.settings import add_groups

    parser.usage = "%(prog)s FILE [FILE ...] [options]"
    parser.plain("files", "recordings: SigMF, .npy, .npz, .h5, .wav, or raw samples", metavar="FILE", nargs="+")
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
    for recording in [recording for name in arguments.files for recording in open_recordings(name, options)]:
        if arguments.json:
            print(json.dumps(as_dict(recording, options.channel)))
        else:
            print("\n".join(understanding(recording, options.channel)))
    return 0


COMMAND = Command(
    "data signal",
    "what a recording is understood as: type, rate, stretches, level, band, annotations",
    add_arguments,
    run,
    order=23,
    example="blockyard data signal recording.sigmf-meta",
)
