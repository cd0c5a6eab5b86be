"""Files that may be compressed, read as what they hold.

What a file is compressed with is told by its first bytes: names are what users change, and a reader that guesses a
dialect must never see compressed bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from blockyard.errors import InputError, require

# The formats' own magic numbers: RFC 1952, bzip2, xz, RFC 8878, and zip's local file header.
_GZIP, _BZ2, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"

# What Python's readers raise, on opening or on reading, for content that is cut off, damaged or packed in a way unknown
# to them; pyarrow raises OSError, as they all do where the file itself cannot be read.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, struct.error)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed if it is gzip, bzip2, xz, Zstandard or a zip archive of one file.

    Raises:
        InputError: for an archive of several files.
        OSError: when the file cannot be opened. Damage inside shows on reading, as the libraries' own errors.
    """
    with path.open("rb") as file:
        first = file.read(6)
    if first.startswith(_GZIP):
        return cast("IO[bytes]", gzip.open(path))
    if first.startswith(_BZ2):
        return bz2.open(path)
    if first.startswith(_XZ):
        return lzma.open(path)
    if first.startswith(_ZSTD):
        arrow: Any = require("pyarrow", extra="train")
        return io.BufferedReader(_Zstandard(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd")))
    if first.startswith(_ZIP):
        return _only_member(path)
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """pyarrow's stream as Python's own are: it gives bytes, but cannot be asked for lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of the buffer as is there; 0 at the end."""
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _only_member(path: Path) -> IO[bytes]:
    """Open the one file of a zip archive."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise InputError(f"{path} is an archive of {len(names)} files; unpack it and name the one to read")
    if archive.getinfo(names[0]).flag_bits & 1:
        raise InputError(f"{path} is encrypted; unpack it and name the file to read")
    return archive.open(names[0])
