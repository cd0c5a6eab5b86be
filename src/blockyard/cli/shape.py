"""A command's arguments as plain data: what help, completion and schemas of settings files are made of.

A parser gathers it while a command declares its arguments, which imports the classes that take them and with those
torch; as data it is kept between calls (`shape_cache.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What an option means.

    Args:
        text: its text with its default.
        blocks: the blocks that mean it so, as "attn:tva"; none where no block has to do with it.
    """

    text: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flag:
    """One argument of a command.

    Args:
        words: as it is typed: "--out"; none for an argument by its place.
        metavar: what stands for its value; "" for none.
        meanings: what it means, for one block or another.
        shared: whether all that share its group mean the same, so that nobody need be named.
        value: "needed", "optional" (a switch with `true` and `false`) or "none".
        values: values that it may have, where they are few.
        chooses: "attn" or "ffn" where the value is the name of a block of that kind.
        default: the name of that block.
        follows: for the FFN: its default beside mixers that want another one.
        schema: of its value in a settings file; None for what no file holds.
    """

    words: tuple[str, ...]
    metavar: str = ""
    meanings: tuple[Meaning, ...] = ()
    shared: bool = True
    value: str = "needed"
    values: tuple[str, ...] = ()
    chooses: str = ""
    default: str = ""
    follows: Mapping[str, str] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its long form, or what stands for its place."""
        return self.words[-1] if self.words else self.metavar

    @property
    def blocks(self) -> frozenset[str]:
        """The blocks that have it; none where it exists whatever is chosen."""
        return frozenset(block for meaning in self.meanings for block in meaning.blocks)

    def help(self, chosen: frozenset[str] | None = None) -> str:
        """Return its text; where blocks mean it differently, each one's.

        Args:
            chosen: the blocks that count; None for all.
        """
        told = []
        alone = chosen is not None and len(self.blocks & chosen) == 1
        for meaning in self.meanings:
            of = [block for block in meaning.blocks if chosen is None or block in chosen]
            if of or not meaning.blocks:
                named = [block.partition(":")[2] for block in of]
                bare = self.shared or alone or not of
                told.append(meaning.text if bare else f"[{', '.join(named)}] {meaning.text}")
        return "; ".join(told).strip()


@dataclass(frozen=True)
class Section:
    """Arguments under one heading.

    Args:
        name: as `--help NAME` asks for it.
        title: what they are for.
        flags: the arguments.
    """

    name: str
    title: str
    flags: tuple[Flag, ...]


@dataclass(frozen=True)
class Shape:
    """All arguments of a command.

    Args:
        usage: how it is called, after its name.
        sections: the command's own first.
    """

    usage: str
    sections: tuple[Section, ...]

    @property
    def flags(self) -> list[Flag]:
        """All arguments in order."""
        return [flag for section in self.sections for flag in section.flags]

    def find(self, word: str) -> Flag | None:
        """Return the argument that is typed so."""
        return next((flag for flag in self.flags if word in flag.words), None)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shape:
        """Read what `to_dict` gave.

        Raises:
            KeyError, TypeError: when it is something else.
        """
        sections = [
            Section(section["name"], section["title"], tuple(_flag(flag) for flag in section["flags"]))
            for section in data["sections"]
        ]
        return cls(data["usage"], tuple(sections))


def _flag(data: Mapping[str, Any]) -> Flag:
    lists = {name: tuple(data[name]) for name in ("words", "values")}
    meanings = tuple(Meaning(meaning["text"], tuple(meaning["blocks"])) for meaning in data["meanings"])
    return Flag(**{**data, **lists, "meanings": meanings})


def given_values(shape: Shape, words: Iterable[str]) -> dict[str, str]:
    """Return the last value given for each flag on a line that need not be whole or right."""
    found: dict[str, str] = {}
    waiting = None
    for word in words:
        if waiting is not None and not word.startswith("--"):
            found[waiting] = word
            waiting = None
            continue
        name, equals, value = word.partition("=")
        flag = shape.find(name)
        waiting = None
        if flag is not None and equals:
            found[flag.name] = value
        elif flag is not None and flag.value == "needed":
            waiting = flag.name
    return found


def chosen_blocks(shape: Shape, words: Iterable[str]) -> frozenset[str] | None:
    """Return the blocks that a line chooses, as "attn:tva"; None when it chooses none."""
    given = given_values(shape, words)
    mixer, ffn = shape.find("--attn.impl"), shape.find("--ffn.impl")
    if mixer is None or ffn is None or not given.keys() & {"--attn.impl", "--ffn.impl", "--model.pattern"}:
        return None
    usual = given.get("--ffn.impl")
    pattern = given.get("--model.pattern", "none")
    pairs = [(given.get("--attn.impl", mixer.default), None)] if pattern == "none" else list(_layers(pattern))
    found: set[str] = set()
    for attn, own in pairs:
        feed = own or usual or ffn.follows.get(attn, ffn.default)
        found |= {f"attn:{attn}", f"ffn:{feed}", f"block:{attn}+{feed}"}
    for flag in shape.flags:
        # A mixture's expert is an FFN with options, too.
        if flag.chooses and flag not in (mixer, ffn) and flag.blocks & found:
            found.add(f"{flag.chooses}:{given.get(flag.name, flag.default)}")
    return frozenset(found)


def _layers(pattern: str) -> Iterable[tuple[str, str | None]]:
    """Yield mixer and FFN of the layers of a pattern, whose options in brackets are left out."""
    depth, outside = 0, ""
    for character in pattern:
        depth += (character == "[") - (character == "]")
        outside += character if depth <= 0 and character != "]" else ""
    for layer in outside.split("/"):
        attn, _, ffn = layer.partition("*")[0].partition("+")
        yield attn.strip(), ffn.strip() or None
