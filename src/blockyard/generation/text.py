"""Text out of a stream of tokens: no half characters, and nothing from a stop string on.

A byte-level token may end in the middle of a character, and a stop string may be spread over several tokens;
both are held back until it is known what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blockyard.errors import InputError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """The one thing that streaming asks of a tokenizer: `decode` with replacement of broken characters."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Decodes tokens one by one; the pieces joined equal the decode of all tokens at once.

    Args:
        tokenizer: anything with `decode(ids) -> str` that replaces broken characters by U+FFFD.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self.pending = False  # whether the last character is unfinished
        # a window of the last tokens: decoding all of them each time would be quadratic
        self._ids: list[int] = []
        self._shown = 0  # how many characters of the window's decode are already out
        # where the window may begin next: in front of the last tokens that made whole characters
        self._cut = 0

    def push(self, token: int) -> str:
        """Return the text that this token makes certain; "" while a character is unfinished."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # An unfinished character decodes to exactly one U+FFFD at the end; everything before it is final.
        self.pending = text.endswith(REPLACEMENT)
        end = len(text) - self.pending
        piece, self._shown = text[self._shown : end], max(end, self._shown)
        if piece and not self.pending:
            if len(self._ids) > 16 and self._cut:
                # Some whole characters stay in front, since some decoders treat the first token differently.
                self._ids = self._ids[self._cut :]
                self._shown = len(self._tokenizer.decode(self._ids))
            self._cut = len(self._ids)
        return piece

    def finish(self) -> str:
        """Return what is left when no token follows: an unfinished character becomes U+FFFD."""
        text = self._tokenizer.decode(self._ids) if self._ids else ""
        piece, self._shown = text[self._shown :], len(text)
        self.pending = False
        return piece


class StopMatcher:
    """Cuts a stream of text before the first stop string.

    Args:
        stop: the strings that end the text; they are not part of it.

    Raises:
        InputError: when a stop string is empty (it would stop before the first character).
    """

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        self.stops = [stop] if isinstance(stop, str) else list(stop)
        for text in self.stops:
            if not isinstance(text, str) or not text:
                raise InputError(f"stop={text!r} can never end a text; use strings of one character or more")
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """Return what may be shown now: all but what a stop string cut off or could still begin with."""
        if self.stopped:
            return ""
        self._held += text
        # Only what is held back: what was shown was certain not to begin one.
        starts = ((self._held.find(stop), stop) for stop in self.stops)
        # The one completed first ends the text (of those, the longest), however the text was cut into pieces.
        found = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1], forget=True)
        return self._release(len(self._held) - self._possible_start())

    def finish(self) -> str:
        """Return what was held back in case a stop string had begun, when no text follows."""
        return self._release(len(self._held))

    def _possible_start(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        for length in range(min(len(self._held), max(map(len, self.stops), default=1) - 1), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0

    def _release(self, end: int, forget: bool = False) -> str:
        piece, self._held = self._held[:end], "" if forget else self._held[end:]
        return piece


class TextStream:
    """Tokens of one row in; certain text, and the tokens that lie wholly inside it, out.

    Args:
        tokenizer: see `Detokenizer`.
        stop: see `StopMatcher`.
    """

    def __init__(self, tokenizer: Decoder, stop: str | Sequence[str] = ()) -> None:
        self._detokenizer, self._matcher = Detokenizer(tokenizer), StopMatcher(stop)
        self._decoded = self._shown = 0
        self._waiting: list[tuple[int, int | None]] = []  # (token, where its text ends; None = not known yet)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._matcher.stopped

    def push(self, token: int) -> tuple[list[int], str]:
        """Return (tokens, text) that are certain after this token."""
        return self._advance(token, self._detokenizer.push(token))

    def finish(self) -> tuple[list[int], str]:
        """Return (tokens, text) still held back when the row ends without another token."""
        if self.stopped:
            return [], ""
        tokens, text = self._advance(None, self._detokenizer.finish())
        if self.stopped:
            return tokens, text
        text += self._matcher.finish()
        # Tokens of a character that never was finished are tokens all the same.
        tokens += [token for token, _ in self._waiting]
        self._waiting = []
        return tokens, text

    def _advance(self, token: int | None, decoded: str) -> tuple[list[int], str]:
        self._decoded += len(decoded)
        if token is not None:
            self._waiting.append((token, None))
        if not self._detokenizer.pending:
            # A token that ended inside a character belongs to the text that finished the character.
            self._waiting = [(each, self._decoded if end is None else end) for each, end in self._waiting]
        text = self._matcher.push(decoded)
        self._shown += len(text)
        ready = 0
        while ready < len(self._waiting):
            end = self._waiting[ready][1]
            # In order: a token waits behind one that waits, so that the tokens given are a prefix of the text.
            if end is None or end > self._shown:
                break
            ready += 1
        tokens = [each for each, _ in self._waiting[:ready]]
        self._waiting = self._waiting[ready:]
        return tokens, text
