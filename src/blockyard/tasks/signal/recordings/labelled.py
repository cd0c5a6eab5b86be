"""Labelled recordings to train on: a folder with one folder of recordings per class, split by recording.

Frames of one recording share its receiver, its carrier offset, its channel and its noise. With some of them in training
and others in validation a model is asked whether it knows the recording again, not the class: five recordings a class
of tones at random frequencies, the class itself invisible, gave an accuracy of .917 where .5 is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.generator import Frames, SignalDataConfig
from blockyard.tasks.signal.recordings.opening import RAW_SUFFIXES, SELF_DESCRIBED, RecordingOptions, open_recordings

# Of the frames of a class, at least this share is for validation.
HELD_OUT = 0.1
LEAST_FRAMES = 10


class RecordedSignals:
    """Labelled recordings: a folder with one folder of files per class, `DIR/qpsk/a.sigmf-meta`.

    Validation holds whole recordings of each class, drawn by `val_seed` until they are a tenth of its frames; of a
    class with one recording its last tenth, a frame apart from the rest. With `split` = frame it is every tenth frame,
    as versions before had it. SNRs are not known: they are given as NaN.

    Args:
        config: `path`, `length`, `val_seed`, `split`, `format` and `channel` count; what describes generation does not
            apply.

    Raises:
        InputError: for a folder without classes, or a class with fewer than ten frames.
    """

    def __init__(self, config: SignalDataConfig) -> None:
        self.config = config
        folder = Path(str(config.path))
        if not folder.is_dir():
            raise InputError(f"data.path={config.path!r} should be a folder with one folder of recordings per class")
        if config.target != "modulation":
            raise InputError("data.target=symbols needs generated signals: recordings do not say their symbols")
        options = RecordingOptions(config.format, channel=config.channel)
        found = {p.name: files_of(p, options) for p in folder.iterdir() if p.is_dir()}
        self.classes = tuple(sorted(name for name, files in found.items() if files))
        if len(self.classes) < 2:
            raise InputError(f"data.path={config.path!r} holds {len(self.classes)} folders with recordings; 2 or more")
        digest = hashlib.sha256()
        train, val, counts = [], [], []
        for number, name in enumerate(self.classes):
            recordings = [r for path in found[name] for r in open_recordings(path, options)]
            parts = [r.frames(config.length, config.channel)[0] for r in recordings]
            frames = torch.cat(parts)
            digest.update(name.encode() + frames.numpy().tobytes())
            if len(frames) < LEAST_FRAMES:
                raise InputError(
                    f"{folder / name} holds {len(frames)} frames of {config.length} samples; at least {LEAST_FRAMES}"
                )
            held, left = held_out([len(part) for part in parts], config)
            labels = torch.full((len(frames),), number)
            train.append((frames[left], labels[left]))
            val.append((frames[held], labels[held]))
            counts.append((len(parts), sum(bool(part.any()) for part in held.split([len(p) for p in parts]))))
        self.iq, self.modulation = (torch.cat(parts) for parts in zip(*train))
        iq, modulation = (torch.cat(parts) for parts in zip(*val))
        self.validation = Frames(iq, modulation, torch.zeros(len(iq), 0), torch.full((len(iq),), torch.nan))
        self.notes = notes_on(self.classes, counts, config)
        self._sha256 = digest.hexdigest()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "source": str(self.config.path), "sha256": self._sha256, "frames": len(self.iq), **asdict(self.config),
        }  # fmt: skip

    def batch(self, seed: int, step: int, batch_size: int, rows: slice) -> dict[str, Tensor]:
        """Return rows of the global batch of a step: classes drawn evenly, then frames of the class."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
        wanted = torch.randint(len(self.classes), (batch_size,), generator=generator)
        counts = torch.bincount(self.modulation, minlength=len(self.classes))
        starts = counts.cumsum(0) - counts
        share = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        index = starts[wanted] + (share * counts[wanted]).long()
        return {"iq": self.iq[index][rows], "targets": self.modulation[index][rows]}

    def targets(self, frames: Frames) -> Tensor:
        """Return [n] classes."""
        return frames.modulation


def held_out(frames: Sequence[int], config: SignalDataConfig) -> tuple[Tensor, Tensor]:
    """Choose the frames of a class that are for validation, and those that are for training.

    Args:
        frames: how many each recording of the class has.

    Returns: two masks over all frames of the class; a frame between the two parts of one recording is in neither.
    """
    total = sum(frames)
    if config.split == "frame":
        held = torch.arange(total) % 10 == 0
        return held, ~held
    if len(frames) == 1:
        place = torch.arange(total)
        first = total - max(1, round(HELD_OUT * total))
        return place >= first, place < first - 1
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(config.val_seed)).tolist()
    chosen: set[int] = set()
    for number in order[:-1]:
        chosen.add(number)
        if sum(frames[n] for n in chosen) >= HELD_OUT * total:
            break
    held = torch.cat([torch.full((count,), number in chosen) for number, count in enumerate(frames)])
    return held, ~held


def notes_on(classes: Sequence[str], counts: Sequence[tuple[int, int]], config: SignalDataConfig) -> tuple[str, ...]:
    """Say what the validation accuracy can mean, one line each.

    Args:
        counts: of each class, its recordings and how many of them are (in part) for validation.
    """
    if config.split == "frame":
        return ("data.split=frame: frames of one recording are in training and validation; accuracy is flattered",)
    notes = []
    alone = [name for name, (recordings, _) in zip(classes, counts) if recordings == 1]
    if alone:
        notes.append(
            f"{', '.join(alone)}: one recording each, whose last tenth is for validation; of other recordings it tells "
            "nothing"
        )
    several = [held for recordings, held in counts if recordings > 1]
    if several:
        least = min(several)
        few = f"; accuracy over so few ({least}) says little of others" if least < 5 else ""
        notes.append(f"validation holds whole recordings, {least} or more of each class{few}")
    return tuple(notes)


def files_of(folder: Path, options: RecordingOptions) -> list[Path]:
    """Return the recordings of a class, SigMF ones by their metadata; with a raw format every file is one."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if options.format != "auto":
        return files
    known = SELF_DESCRIBED + RAW_SUFFIXES
    return [p for p in files if p.suffix.lower() in known and p.suffix.lower() != ".sigmf-data"]
