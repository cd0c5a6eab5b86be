"""The streams of a command: whatever their encoding, closed or not, a text can be printed; and an error is one line.

A character that a stream's encoding lacks is written in readable ASCII (x for ×), so that no result is lost because of
the terminal it is shown on. The signs of our own tables are so on every stream that is not UTF-8: what such a stream is
piped into mostly takes it for UTF-8. Letters, as in the names of files, stay what they are wherever that is possible.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from blockyard.machine.launch import is_first

HANDLER = "blockyard.readable"
# Longer ones are not read to their end: what came is cut, what was expected stays.
LONGEST_LINE = 500
_STAND_INS = {
    "×": "x", "·": "*", "⊙": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "—": "-", "±": "+-", "→": "->", "←": "<-",
    "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "√": "sqrt", "‖": "|", "∫": "int", "⟨": "<", "⟩": ">", "⌊": "[",
    "⌋": "]", "…": "...", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "•": "*", "━": "-", "─": "-", "│": "|",
    "α": "alpha", "β": "beta", "γ": "gamma", "ε": "epsilon", "θ": "theta", "λ": "lambda", "π": "pi", "Π": "Pi",
    "σ": "sigma", "Σ": "Sigma", "τ": "tau", "µ": "u", "μ": "mu",
    "²": "2", "³": "3", "¹": "1", "\xa0": " ",
}  # fmt: skip
_TABLE = str.maketrans(_STAND_INS)


def readable(error: UnicodeError) -> tuple[str, int]:
    """Stand in for what an encoding lacks; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_stand_in(c) for c in error.object[error.start : error.end]), error.end


def _stand_in(character: str) -> str:
    if character in _STAND_INS:
        return _STAND_INS[character]
    # ² is 2, é is e, and a combining accent is nothing.
    plain = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
    return plain if plain or unicodedata.combining(character) else "?"


codecs.register_error(HANDLER, readable)


def fill_descriptors() -> None:
    """Open what the shell closed (`>&-`): a file that is opened later would take its number, and the output with it."""
    for wanted in (0, 1, 2):
        try:
            os.fstat(wanted)
        except OSError:
            # The lowest free number is taken, and those below are not free.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # To the end of the process, as the streams that it stands for.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


class PlainSigns:
    """A text stream that writes signs in ASCII and is otherwise the stream it is made of."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text.translate(_TABLE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Let standard output and error take every character."""
    before = sys.stdout, sys.stderr
    handlers: list[tuple[Any, str]] = []
    for name, stream in zip(("stdout", "stderr"), before):
        # What stands in for a stream (a test's capture, a notebook's) may take everything anyway.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            handler = stream.errors or "strict"
            # mypy: only a text stream that a program replaced has none.
            stream.reconfigure(errors=HANDLER)  # type: ignore[union-attr]
            handlers.append((stream, handler))
            if not stream.encoding.lower().replace("-", "").replace("_", "").startswith("utf"):
                setattr(sys, name, PlainSigns(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, handler in handlers:
            # Closed in the meantime, or its reader is gone.
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=handler)


def write_as_it_is(text: str) -> None:
    """Print text that is the user's or a model's and not ours, with every sign that the encoding has, at once."""
    stream: Any = sys.stdout
    stream = stream.stream if isinstance(stream, PlainSigns) else stream
    stream.write(text)
    stream.flush()


@contextlib.contextmanager
def minding_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function to be called now and then, which raises KeyboardInterrupt if one came and was lost.

    Python drops what is raised while it runs a finaliser or a weak reference's callback: a Ctrl-C at that moment would
    be printed and forgotten. Only a main thread is interrupted.
    """
    lost = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal lost
        lost = True
        raise KeyboardInterrupt

    def check() -> None:
        if lost:
            raise KeyboardInterrupt

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def one_line(message: str) -> str:
    """Return a message as one line of readable length, without control characters (they could steer a terminal)."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    # `isprintable` is false of escapes, of what turns the writing direction, and of lone surrogates.
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > LONGEST_LINE:
        # The end says what is expected.
        head = LONGEST_LINE * 2 // 3
        line = f"{line[:head]} … {line[head + 3 - LONGEST_LINE :]}"
    return line


def say(text: str) -> None:
    """Print on stderr, from rank 0 only when torchrun started several processes."""
    if is_first():
        # Nowhere to say it: the exit status does.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)
