"""The frames of a recording, classified in a row: a row for each, or votes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.signal.answering import Answer, Question, batches
from blockyard.tasks.signal.frontend.filling import NoiseFilling
from blockyard.tasks.signal.frontend.resampling import Plan, Resampler, plan_for
from blockyard.tasks.signal.frontend.spectra import BINS, SHORTEST, averaged, occupied_band, windows_of
from blockyard.tasks.signal.frontend.votes import Runs, Votes, known_label
from blockyard.tasks.signal.recordings.recording import Annotation
from blockyard.tasks.signal.session import Session

# Votes of annotations that are told beside the rows of frames.
MOST_TOLD = 8


def frame_rows(session: Session) -> Iterator[dict[str, Any]]:
    """Yield an entry per frame or symbol, or per annotation or file if votes are asked for."""
    options, recording = session.options, session.recording
    if options.by == "annotation" and not recording.annotations:
        raise InputError(f"--by annotation: {recording.name} has no annotations; --by file votes over all of it")
    blocks = recording.blocks(session.asked.channel, multiple=session.length)
    first = next(blocks, None)
    if first is None:
        raise InputError(f"{recording.name} holds no samples")
    plan = plan_of(session, first[1])
    if plan.why:
        session.notes.append(f"{recording.name}: {plan.why}")
    if plan.ratio == 1:
        recording.check_length(session.length)
    answers = session.ask(_questions(session, plan, chain([first], blocks)), plan)
    names = session.answering.answers
    whole, noted = Votes(len(names)), _Noted(recording.annotations, len(names))
    runs, number = Runs(names, {span.start for span in recording.spans}), 0
    for answer in answers:
        if options.by == "frame":
            yield from _rows(session, answer, number)
        number += len(answer.question.frames)
        if not session.assets.symbols:
            whole.add(answer.probabilities, answer.snr)
            noted.add(answer)
            if session.annotations is not None or session.waterfall is not None:
                starts, stops = answer.question.starts.tolist(), answer.question.stops.tolist()
                for found in runs.add(starts, stops, answer.probabilities, answer.snr):
                    session.found(found)
    if not number:
        at = f" at {float(plan.ratio):.3g} of their rate" if plan.ratio != 1 else ""
        raise InputError(f"{recording.name} holds fewer samples{at} than the {session.length} of one frame")
    for found in runs.finish():
        session.found(found)
    if options.by == "file":
        yield {"frames": whole.frames, "snr": whole.snr, "is": session.likeliest(whole.probabilities()[None])[0]}
    elif options.by == "annotation":
        for index, (annotation, votes) in enumerate(noted.votes):
            yield _noted_row(session, index, annotation, votes)
    elif not session.assets.symbols:
        _tell(session, whole, noted)


def plan_of(session: Session, samples: Tensor) -> Plan:
    """Return what the recording needs, as its first samples tell."""
    familiar = session.assets.familiar
    band = None
    if session.per_symbol is None and familiar is not None and familiar.bandwidth is not None and len(samples) >= BINS:
        band = occupied_band(averaged(samples, BINS), windows_of(len(samples), BINS))
    return plan_for(familiar, session.trained_with, session.per_symbol, band)


def _questions(session: Session, plan: Plan, blocks: Iterator[tuple[int, Tensor]]) -> Iterator[Question]:
    """Yield frames in batches, resampled where the plan says so; none reaches from one stretch into the next."""
    begins = {span.start for span in session.recording.spans}
    cutting: _Cutting | None = None
    total = session.recording.count or 0
    for start, block in blocks:
        if start in begins:
            if cutting is not None:
                yield from cutting.questions(block[:0], last=True)
            cutting = _Cutting(session, plan, start)
        assert cutting is not None  # every block lies in a stretch
        if session.waterfall is not None:
            session.waterfall.add(start, block)
        yield from cutting.questions(block)
        session.progress("classifying", start + len(block), total)
    if cutting is not None:
        yield from cutting.questions(torch.zeros(0, dtype=torch.complex64), last=True)


class _Cutting:
    """A stretch of samples, resampled and cut into frames.

    Args:
        session: what is asked for.
        plan: the resampling.
        start: number of the stretch's first sample.
    """

    def __init__(self, session: Session, plan: Plan, start: int) -> None:
        self.session, self.start = session, start
        self.ratio = plan.ratio
        self._resampler = Resampler(plan.ratio)
        self._fill = NoiseFilling(self._resampler, session.length)
        self._rest = torch.zeros(0, dtype=torch.complex64)
        self._frames = 0

    def questions(self, samples: Tensor, last: bool = False) -> Iterator[Question]:
        """Yield the frames that samples complete."""
        length = self.session.length
        made = self._resampler.push(samples, last)
        found = torch.cat([self._rest, made]) if len(self._rest) else made
        whole = len(found) // length
        self._rest = found[whole * length :].clone()
        if not whole:
            return
        frames, known = self._fill(found[: whole * length].view(whole, length))
        frames = self.session.scaled(frames)
        # Output m lies at the time of input m·q/p.
        place = torch.arange(self._frames, self._frames + whole + 1) * length * self.ratio.denominator
        place = self.start + (2 * place + self.ratio.numerator) // (2 * self.ratio.numerator)
        self._frames += whole
        levels = self.session.levels
        told = None if levels is None else levels.at((place[:-1] + place[1:]) // 2)
        yield from batches(frames, place[:-1], place[1:], told, known=known)


def _rows(session: Session, answer: Answer, number: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch of frames."""
    rate, symbols = session.recording.sample_rate, session.assets.symbols
    starts = answer.question.starts.tolist()
    found = session.likeliest(answer.probabilities)
    if symbols:
        for index, answers in enumerate(found):
            frame = index // symbols
            row = {"frame": number + frame, **session.where(starts[frame]), "symbol": index % symbols}
            yield row | {"is": answers}
        return
    levels = [None] * len(starts)
    if measures(session.length):
        levels = [None if level != level else round(level, 1) for level in answer.snr.tolist()]
    for frame, (start, level, answers) in enumerate(zip(starts, levels, found), start=number):
        row = {"frame": frame, "sample": start}
        if rate is not None:
            row["seconds"] = round(start / rate, 9)
        if measures(session.length):
            row["snr"] = level
        row["is"] = answers
        yield row


def measures(length: int) -> bool:
    """Return whether frames are long enough for a spectrum of their own."""
    return length >= SHORTEST


@dataclass
class _Open:
    annotation: Annotation
    votes: Votes


class _Noted:
    """Votes over the frames whose middle an annotation covers.

    Args:
        annotations: of the file.
        answers: how many classes there are.
    """

    def __init__(self, annotations: tuple[Annotation, ...], answers: int) -> None:
        self._all = [_Open(a, Votes(answers)) for a in annotations]
        # By their beginnings; those that have begun, and not ended before the frames that come next.
        self._next = sorted(self._all, key=lambda entry: entry.annotation.start, reverse=True)
        self._open: list[_Open] = []

    def add(self, answer: Answer) -> None:
        """Count frames."""
        middle = (answer.question.starts + answer.question.stops) // 2
        first, last = int(middle[0]), int(middle[-1])
        while self._next and self._next[-1].annotation.start <= last:
            self._open.append(self._next.pop())
        for entry in self._open:
            start, count = entry.annotation.start, entry.annotation.count
            inside = (middle >= start) & (middle < (torch.inf if count is None else start + count))
            if bool(inside.any()):
                entry.votes.add(answer.probabilities[inside], answer.snr[inside])
        self._open = [
            e for e in self._open if e.annotation.count is None or e.annotation.start + e.annotation.count > first
        ]

    @property
    def votes(self) -> list[tuple[Annotation, Votes]]:
        return [(entry.annotation, entry.votes) for entry in self._all]


def _noted_row(session: Session, index: int, annotation: Annotation, votes: Votes) -> dict[str, Any]:
    row: dict[str, Any] = {"annotation": index, **session.where(annotation.start)}
    row |= {"samples": annotation.count, "frames": votes.frames, "snr": votes.snr}
    # What it is called counts as the truth only where it is the name of an answer.
    label = known_label(annotation.label, session.answering.answers)
    if label is not None and votes.frames:
        row["label"] = label
    return row | {"is": session.likeliest(votes.probabilities()[None])[0] if votes.frames else []}


def _tell(session: Session, whole: Votes, noted: _Noted) -> None:
    """Say what the frames together are taken for."""
    name = session.recording.name
    print(f"vote over {name}: {_said(session, whole)}", file=sys.stderr)
    for annotation, votes in noted.votes[:MOST_TOLD]:
        label = f" ({annotation.label})" if annotation.label else ""
        end = "" if annotation.count is None else f"{annotation.start + annotation.count - 1:,}"
        print(f"  annotation {annotation.start:,} … {end}{label}: {_said(session, votes)}", file=sys.stderr)
    if len(noted.votes) > MOST_TOLD:
        more = len(noted.votes) - MOST_TOLD
        print(f"  … and {more} more annotations: --by annotation lists them", file=sys.stderr)


def _said(session: Session, votes: Votes) -> str:
    if not votes.frames:
        return "no frame"
    found = session.likeliest(votes.probabilities()[None])[0]
    shares = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in found)
    level = "" if votes.snr is None else f", {votes.snr:.1f} dB"
    return f"{shares} ({votes.frames:,} frame{'s' * (votes.frames != 1)}{level})"
