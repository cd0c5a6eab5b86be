"""A file's text as UTF-8 bytes, whatever it is compressed with and whichever Unicode encoding its mark names."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from blockyard.errors import InputError
from blockyard.text.compressed import DAMAGE, open_bytes

BLOCK_BYTES = 1 << 20
# Byte-order marks, the longer first: UTF-32's little-endian one begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the file's content, decompressed, as a stream of UTF-8 bytes; a mark of UTF-8 is left in it.

    Raises:
        InputError: for a file that cannot be read, whose compressed content is damaged, or that is not what its
            byte-order mark says, here or while it is read.
    """
    where = f"data.path={str(path)!r}"
    try:
        encoding = encoding_of(path)
        with open_bytes(path) as file:
            yield file if encoding is None else cast("IO[bytes]", io.BufferedReader(_Recoded(file, encoding)))
    except UnicodeDecodeError as error:
        if error.encoding.startswith("utf-8"):
            raise
        raise InputError(f"{where} begins with a mark of {error.encoding}, but is not: {error.reason}") from error
    except DAMAGE as error:
        raise InputError(f"{where} is damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error


def encoding_of(path: Path) -> str | None:
    """Return the encoding that a byte-order mark at the beginning names; None for UTF-8, with a mark or without."""
    with open_bytes(path) as file:
        first = file.read(4)
    return next((name for mark, name in _MARKS if first.startswith(mark)), None)


class _Recoded(io.RawIOBase):
    """A stream of UTF-8 bytes over one in another encoding.

    Args:
        file: the bytes as they are.
        encoding: of these; the mark at the beginning is consumed.
    """

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder(encoding)()
        self._held = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of the buffer as is there; 0 at the end."""
        while not self._held and not self._ended:
            block = self._file.read(BLOCK_BYTES)
            self._ended = not block
            self._held = self._decoder.decode(block, final=self._ended).encode("utf-8", "surrogatepass")
        part, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def read_text_file(path: Path) -> Iterator[str]:
    """Yield a text file in blocks cut between characters.

    Raises:
        InputError: a NUL byte (the file is binary) or a byte that is not UTF-8, each with its byte offset.
    """
    decode = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with opened(path) as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if (nul := block.find(0)) >= 0:
                raise InputError(
                    f"data.path={str(path)!r} is binary, not text (NUL byte at offset {offset + nul}); "
                    "give text, JSONL or parquet, compressed or not"
                )
            pending = len(decode.getstate()[0])
            try:
                text = decode.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise not_utf8(f"data.path={str(path)!r}", offset - pending + error.start) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) of a file of lines, blank ones left out; the place names file and line for errors.

    Raises:
        InputError: for a line with a NUL byte or one that is not UTF-8.
    """
    offset = 0
    with opened(path) as file:
        for number, raw in enumerate(cast(Any, file), 1):
            where = f"data.path={str(path)!r} line {number}"
            if 0 in raw:
                raise InputError(f"{where} is binary, not JSONL (NUL byte at offset {offset + raw.index(0)})")
            try:
                line = raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
            except UnicodeDecodeError as error:
                raise not_utf8(where, offset + error.start) from error
            offset += len(raw)
            if line.strip():
                yield where, line


# Nearly any bytes are text in each of these: which one it is, only who wrote it can say.
CONVERT = (
    "convert it from its encoding, e.g. with iconv -f cp1252 -t utf-8 (cp1252: Western Europe; cp1251: Cyrillic; "
    "gb18030: Chinese; shift_jis: Japanese)"
)


def not_utf8(where: str, offset: int) -> InputError:
    """Return the error for bytes that are no UTF-8, with what to do."""
    return InputError(f"{where} is not UTF-8 (byte offset {offset}); {CONVERT}")
