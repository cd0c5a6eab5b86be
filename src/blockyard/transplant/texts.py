"""Sets of text by kind: to fit on, to train on, to choose on, to report on; no piece is in two of them.

Each kind's tokens are cut into stretches, one behind the other, as long as their shares, and pieces are spread
evenly over each: neighbours of a report's pieces are then pieces of the report, and all of a text has a say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.text.config import TextDataConfig
from blockyard.text.listing import listing_of
from blockyard.text.load import load_text
from blockyard.text.progress import ReadingLines
from blockyard.text.tokenizer import Tokenizer
from blockyard.transplant.parts import PartSettings
from blockyard.transplant.record import ALL
from blockyard.transplant.settings import LEAST_SELECT, Pieces, Texts

ROLES = ("calibrate", "train", "select", "report")
# A piece that stands in a text twice would be in two sets.
Key = bytes


@dataclass(frozen=True)
class Kind:
    """Pieces of one kind of text, int64 [pieces, length] each.

    Attributes:
        name: it.
        source: where it comes from.
        calibrate: to fit on.
        train: to heal on, say; none where nothing is trained.
        select: to choose on.
        report: to report on.
    """

    name: str
    source: str
    calibrate: Tensor
    train: Tensor
    select: Tensor
    report: Tensor

    def tokens(self, role: str) -> int:
        """Return how many tokens a role has."""
        return int(getattr(self, role).numel())


@dataclass(frozen=True)
class TextSets:
    """The text of a transplant.

    Attributes:
        kinds: by name, in the order given.
        length: tokens of a piece.
        first: ids that every piece begins with.
        notes: what whoever reads the results should know of the text.
    """

    kinds: tuple[Kind, ...]
    length: int
    first: tuple[int, ...]
    notes: tuple[str, ...]

    def together(self, role: str) -> Tensor:
        """Return the pieces of a role, kinds in turns: so that any first part of them is as varied as the whole."""
        rows = [(i, n, row) for n, kind in enumerate(self.kinds) for i, row in enumerate(getattr(kind, role))]
        found = [row for _, _, row in sorted(rows, key=lambda each: each[:2])]
        return torch.stack(found) if found else torch.zeros(0, self.length, dtype=torch.int64)

    def kinds_of(self, role: str) -> list[int]:
        """Return the kind, by number, of each piece of `together(role)`."""
        rows = [(i, n) for n, kind in enumerate(self.kinds) for i in range(len(getattr(kind, role)))]
        return [n for _, n in sorted(rows)]

    @property
    def digest(self) -> str:
        """What tells these pieces from others."""
        found = sha256()
        for role in ROLES:
            found.update(self.together(role).numpy().tobytes())
        return found.hexdigest()


def read_texts(
    texts: Texts,
    sizes: Pieces,
    tokenizer: Tokenizer,
    context: int,
    *,
    training: Sequence[PartSettings] = (),
    show: bool = True,
) -> TextSets:
    """Read the sets of every kind.

    Args:
        texts: where they are.
        sizes: how much of them.
        tokenizer: the model's.
        context: of the model.
        training: of what is trained, how much each reads; they share their text.
        show: tell on standard error how far the reading is.

    Raises:
        InputError: for a path that cannot be read, a name that stands twice, or a text that is too short.
    """
    first = tuple(getattr(tokenizer, "prefix_ids", ()))[-1:] if sizes.first == "auto" else ()
    length = min(context, 1024) if sizes.length is None else sizes.length
    if length > context:
        raise InputError(f"text.length={length} is beyond the model's context of {context}")
    if length <= len(first) + 1:
        raise InputError(f"text.length={length} leaves no text behind the {len(first)} tokens that begin one")
    named = kinds_of(texts.path)
    wanted = _pieces(sizes, length, len(named))
    for settings in training:
        if settings.length > context:
            raise InputError(f"{settings.group}.length={settings.length} is beyond the model's context of {context}")
        # Its pieces may be shorter than ours, and each begins as every text does.
        each = -(-settings.steps * settings.batch // len(named)) * (settings.length - len(first))
        wanted["train"] = max(wanted["train"], -(-each // (length - len(first))))
    kinds, notes, read_by = [], [], dict[Path, str]()
    for name, path in named:
        config = TextDataConfig(
            path=path,
            format=texts.format,
            text_field=texts.text_field,
            max_bytes=texts.max_bytes,
            cache_dir=texts.cache_dir,
            val_fraction=0.5,
        )
        for file in listing_of(config).files:
            # What one kind is fitted on, another one would report on.
            if (other := read_by.setdefault(file.resolve(), name)) != name:
                raise InputError(
                    f"data.path: the kinds {other!r} and {name!r} both read {file}; every file is of one kind"
                )
        data = load_text(config, 1, ReadingLines() if show else None, tokenizer=tokenizer)
        tokens = torch.from_numpy(_joined(data.train, data.val))
        source = "the Python standard library" if path is None else path
        kinds.append(_cut(name, source, tokens, wanted, length, first))
        # That a text goes on behind the limit is no loss: it was not asked to be read whole.
        notes += [f"{name}: {note}" for note in data.notes if "data.max_bytes" not in note]
    if len(kinds) == 1:
        notes.append(
            f"all text is of one kind ({kinds[0].source}): what is fitted, chosen and reported holds for that kind; "
            "name texts as varied as the use with --data.path verse=a.txt,code=src/,…"
        )
    return TextSets(tuple(kinds), length, first, tuple(notes))


def kinds_of(paths: tuple[str, ...] | None) -> list[tuple[str, str | None]]:
    """Return the name and path of each kind; None stands for the default text.

    Raises:
        InputError: for an empty path or name, or one that stands twice.
    """
    if paths is None:
        return [("python", None)]
    found: list[tuple[str, str | None]] = []
    for said in paths:
        name, equals, path = said.partition("=")
        # A path may hold a sign of equality, too.
        if not equals or "/" in name or Path(said).exists():
            path = said
            name = Path(said.rstrip("/")).name.partition(".")[0] or "text"
            if any(sign in name for sign in "*?["):
                name = Path(said).parent.name or "text"
        if not path or not name:
            raise InputError(f"data.path={said!r} should be a path, or NAME=PATH")
        if name == ALL:
            raise InputError(f"data.path={said!r}: {ALL!r} stands for all kinds together; call that one something else")
        found.append((name, path))
    for what, each in (("name", [name for name, _ in found]), ("path", [str(path) for _, path in found])):
        twice = next((one for one in each if each.count(one) > 1), None)
        if twice:
            more = "; write NAME=PATH to name them apart" if what == "name" else ""
            raise InputError(f"data.path has two kinds of text with the {what} {twice!r}{more}")
    return found


def _pieces(sizes: Pieces, length: int, kinds: int) -> dict[str, int]:
    """Return how many pieces a kind has in each role: as many tokens as asked for, at least."""
    found = {role: -(-getattr(sizes, role) // (length * kinds)) for role in ("calibrate", "select", "report")}
    found["train"] = 0
    # Fewer would not say how much pieces of a kind differ, and an interval is all that keeps a budget.
    return found | {"select": max(LEAST_SELECT, found["select"]), "report": max(2, found["report"])}


def _joined(train: Any, val: Any) -> Any:
    import numpy as np

    return np.concatenate([train, val]).astype(np.int64)


def _cut(
    name: str, source: str, tokens: Tensor, wanted: Mapping[str, int], length: int, first: tuple[int, ...]
) -> Kind:
    """Cut the tokens of a kind into its three sets."""
    own = length - len(first)
    needed = sum(wanted.values()) * own
    if len(tokens) < needed:
        told = ", ".join(f"{wanted[role]} to {role}" for role in ROLES if wanted[role])
        raise InputError(
            f"data.path: the text {name!r} ({source}) has {len(tokens):,} tokens and needs {needed:,}, pieces of "
            f"{own}: {told}; give more of it, or ask for less (text.calibrate, text.select, text.report, text.length)"
        )
    rows = tokens[: len(tokens) // own * own].view(-1, own)
    parts, start, seen = {}, 0, set[Key]()
    total = sum(wanted.values())
    for number, role in enumerate(ROLES):
        count = wanted[role]
        end = len(rows) if role == ROLES[-1] else start + max(count, len(rows) * count // total)
        # What is left must do for the roles behind.
        end = min(end, len(rows) - sum(wanted[later] for later in ROLES[number + 1 :]))
        chosen = _spread(rows, start, end, count, seen)
        if chosen is None:
            raise InputError(
                f"data.path: the text {name!r} ({source}) repeats itself: there are no {count} pieces to {role} that "
                "stand in no other set"
            )
        chosen_rows = rows[chosen] if chosen else rows[:0]
        parts[role] = torch.cat([torch.tensor(first, dtype=torch.int64).expand(count, -1), chosen_rows], 1)
        start = end
    return Kind(name, source, **parts)


def _spread(rows: Tensor, start: int, end: int, count: int, seen: set[Key]) -> list[int] | None:
    """Return `count` rows spread evenly over [start, end), none of them like one that was taken before; None where
    there are not so many."""
    found: list[int] = []
    for i in range(count):
        at = start + (end - start) * i // count
        limit = start + (end - start) * (i + 1) // count
        while at < limit and _key(rows[at]) in seen:
            at += 1
        if at == limit:
            return None
        seen.add(_key(rows[at]))
        found.append(at)
    return found


def _key(row: Tensor) -> Key:
    return sha256(row.contiguous().numpy().tobytes()).digest()
