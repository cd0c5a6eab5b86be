"""The bursts of a recording, classified: a row for each, the vote of its frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from blockyard.tasks.signal.answering import Question, batches
from blockyard.tasks.signal.frontend.cutting import Part, Wanted, bursts_of
from blockyard.tasks.signal.frontend.detection import ROW, Burst
from blockyard.tasks.signal.frontend.resampling import plan_for
from blockyard.tasks.signal.frontend.votes import Found, Votes, known_label
from blockyard.tasks.signal.session import COMPARED, Session, scale_of

# Frames of a burst that are compared with the training's.
FEW = 8
# An annotation speaks of a burst if they share so much of what they cover together, in time and in frequency.
SAME = 0.3


def burst_rows(session: Session) -> Iterator[dict[str, Any]]:
    """Yield an entry per burst, when it has ended."""
    familiar = session.assets.familiar
    # A row of the spectrogram is the least that can be looked at.
    session.recording.check_length(ROW, "a row of the spectrogram that --detect looks at")
    per_symbol = None
    if session.per_symbol is not None:
        plan = plan_for(familiar, session.trained_with, session.per_symbol, None)
        per_symbol = (session.per_symbol, plan.per_symbol or session.per_symbol)
    wanted = Wanted(session.length, familiar.bandwidth if familiar is not None else None, per_symbol)
    total = session.recording.count or 0

    def seen(start: int, block: Any) -> None:
        if session.waterfall is not None:
            session.waterfall.add(start, block)
        session.progress("classifying", start + len(block), total)

    def questions() -> Iterator[Question]:
        for part in bursts_of(session.recording, session.asked.channel, wanted, seen):
            for question in _questions(session, part, factors):
                if sum(map(len, compared)) < COMPARED and len(question.frames):
                    compared.append(question.frames[:FEW])
                yield question

    # Some frames of every burst, which are held against the training's when there are enough.
    compared: list[Tensor] = []
    factors: dict[int, float] = {}
    votes: dict[int, Votes] = {}
    found: list[Found] = []
    for answer in session.ask(questions()):
        burst, is_last = answer.question.about
        mine = votes.setdefault(burst.number, Votes(len(session.answering.answers)))
        mine.add(answer.probabilities)
        if is_last:
            del votes[burst.number]
            yield _row(session, burst, mine)
            found.append(_found(session, burst, mine))
    if compared:
        session.compare(torch.cat(compared))
    if not found:
        name = session.recording.name
        print(f"nothing stands above the noise in {name}: no burst, no row", file=sys.stderr)
    # Annotations stand in the order of their first samples, bursts are known in the order of their last.
    for entry in sorted(found, key=lambda f: f.start):
        session.found(entry)


def _questions(session: Session, part: Part, factors: dict[int, float]) -> Iterator[Question]:
    """Yield the frames of a part of a burst, each burst on the training's scale."""
    burst, frames = part.burst, part.frames
    if len(frames):
        if burst.number not in factors:
            factors[burst.number] = scale_of(frames, session.power, session.options.scale, quiet=True)
        frames = frames * factors[burst.number]
    if not burst.is_open:
        factors.pop(burst.number, None)
    told = None
    if session.model.config.condition == "snr":
        least, most = session.assets.snr
        level = burst.snr if session.options.snr is None else session.options.snr
        told = torch.full((len(frames),), min(max(level, least), most))
    nowhere = torch.zeros(len(frames), dtype=torch.long)
    asked = list(batches(frames, nowhere, nowhere, told))
    for number, question in enumerate(asked, start=1):
        is_last = number == len(asked) and not burst.is_open
        yield Question(question.frames, question.starts, question.stops, question.told, (burst, is_last))


def _hertz(session: Session, burst: Burst) -> tuple[float, float]:
    """Return edges of a burst's band: Hz, as the recording's centre is known; cycles per sample without a rate."""
    rate = session.recording.sample_rate
    if rate is None:
        return round(burst.lower, 5), round(burst.upper, 5)
    span = next(s for s in reversed(session.recording.spans) if s.start <= burst.start)
    lower, upper = ((span.frequency or 0.0) + edge * rate for edge in (burst.lower, burst.upper))
    return round(lower, 1), round(upper, 1)


def _row(session: Session, burst: Burst, votes: Votes) -> dict[str, Any]:
    rate, count = session.recording.sample_rate, burst.stop - burst.start
    row: dict[str, Any] = {"burst": burst.number, **session.where(burst.start), "samples": count}
    if rate is not None:
        row["duration"] = round(count / rate, 9)
    row["lower"], row["upper"] = _hertz(session, burst)
    row |= {"snr": round(burst.snr, 1), "frames": votes.frames}
    label = _label(session, burst)
    if label is not None and votes.frames:
        row["label"] = label
    # Shorter than a frame of what the model knows: that it is there is all that can be said.
    return row | {"is": session.likeliest(votes.probabilities()[None])[0] if votes.frames else []}


def _label(session: Session, burst: Burst) -> str | None:
    """Return the answer that the file's own annotation of a burst names; None where there is none."""
    best, label = SAME, None
    edges = _hertz(session, burst)
    for annotation in session.recording.annotations:
        if annotation.count is None or annotation.lower is None or annotation.upper is None:
            continue
        time = shared((burst.start, burst.stop), (annotation.start, annotation.start + annotation.count))
        # Both shares count: next to a burst another may be sent at the same time.
        found = min(time, shared(edges, (annotation.lower, annotation.upper))) if time > best else 0.0
        if found > best:
            best, label = found, known_label(annotation.label, session.answering.answers)
    return label


def shared(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return how much two stretches have in common, over what they cover together."""
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) / max(max(a[1], b[1]) - min(a[0], b[0]), 1e-12)


def _found(session: Session, burst: Burst, votes: Votes) -> Found:
    label, probability = "too short", 0.0
    if votes.frames:
        best = session.likeliest(votes.probabilities()[None])[0][0]
        label, probability = best["class"], best["probability"]
    return Found(burst.start, burst.stop, label, probability, votes.frames, burst.snr, burst.lower, burst.upper)
