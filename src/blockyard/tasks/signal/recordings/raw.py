"""Raw samples: I and Q by turns, as numbers of one type, in a file or a pipe.

Integers are read so that the largest code stands for 1; unsigned ones have their middle at half of all codes, which is
how receivers of 8 bits (rtl_sdr) and SigMF mean them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from blockyard.errors import InputError, require, suggest

if TYPE_CHECKING:
    import numpy as np

# numpy's type, and what the largest code stands for.
_TYPES = {
    "f32": ("f4", 1.0), "f64": ("f8", 1.0), "i32": ("i4", 2.0**31), "i16": ("i2", 2.0**15), "i8": ("i1", 2.0**7),
    "u32": ("u4", 2.0**31), "u16": ("u2", 2.0**15), "u8": ("u1", 2.0**7),
}  # fmt: skip
# Names of raw formats as programs write them: GNU Radio and others say s for signed, SigMF says i.
RAW_FORMATS = ("cu8", "cs8", "cu16", "cs16", "cs32", "cf32", "cf64")


@dataclass(frozen=True)
class SampleType:
    """How a sample is written.

    Args:
        name: as SigMF has it: ci16_le.
        code: numpy's type of one number, with its byte order.
        full: what is divided by.
        unsigned: whether the middle lies at `full` and not at 0.
        is_complex: whether a sample has two numbers.
    """

    name: str
    code: str
    full: float
    unsigned: bool
    is_complex: bool

    @property
    def bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return int(self.code[-1]) * (2 if self.is_complex else 1)

    def to_complex(self, raw: np.ndarray[Any, Any], channels: int, channel: int) -> np.ndarray[Any, Any]:
        """Return one channel of numbers as they stand in the file: complex64 [n]."""
        np = require("numpy", extra="train")
        pairs = raw.reshape(-1, channels, 2)[:, channel]
        # What is beyond float32 becomes infinite, and is refused as that.
        with np.errstate(over="ignore"):
            values = pairs.astype(np.float32)
        if self.unsigned:
            values -= np.float32(self.full)
        if self.full != 1:
            values /= np.float32(self.full)
        return np.ascontiguousarray(values).view(np.complex64)[:, 0]


def sample_type(name: str) -> SampleType | None:
    """Return the type that a name of SigMF (`ci16_le`) or of a raw format (`cs16`) stands for; None for others."""
    match = re.fullmatch(r"([cr])([fius])(8|16|32|64)(?:_(le|be))?", name)
    if not match:
        return None
    kind = ("i" if match.group(2) == "s" else match.group(2)) + match.group(3)
    if kind not in _TYPES:
        return None
    code, full = _TYPES[kind]
    order = ">" if match.group(4) == "be" else "<"
    return SampleType(name, order + code, full, kind.startswith("u"), match.group(1) == "c")


def sigmf_name(type: SampleType) -> str:
    """Return what SigMF calls a type: ci16_le for cs16, cu8 for cu8."""
    base = type.name.split("_")[0].replace("s", "i")
    order = "" if base.endswith("8") else "_be" if type.code[0] == ">" else "_le"
    return base + order


def raw_type(name: str) -> SampleType:
    """Return the type of a raw format that a user names.

    Raises:
        InputError: for a name that is none, or one of real samples.
    """
    found = sample_type(name)
    if found is None:
        known = [*RAW_FORMATS, "auto"]
        listed = f"{', '.join(known)} (_be: high byte first)"
        raise InputError(f"data.format={name!r} is none of {listed}{suggest(name, known)}")
    if not found.is_complex:
        raise InputError(f"data.format={name!r} is real; complex samples (c…) are wanted")
    return found


@dataclass(frozen=True)
class Stretch:
    """Samples that lie in a row in a file.

    Args:
        start: number of the first sample.
        count: samples.
        offset: bytes of the file before them.
    """

    start: int
    count: int
    offset: int


class RawFile:
    """Samples in a file.

    Args:
        path: the file.
        type: of the samples.
        stretches: where they lie, in order.
        channels: how many samples stand side by side.
    """

    def __init__(self, path: Path, type: SampleType, stretches: Sequence[Stretch], channels: int = 1) -> None:
        self.path, self.type, self.stretches, self.channels = path, type, tuple(stretches), channels

    def read(self, start: int, count: int, channel: int) -> np.ndarray[Any, Any]:
        np = require("numpy", extra="train")
        stretch = next(s for s in self.stretches if s.start <= start < s.start + s.count)
        count = min(count, stretch.start + stretch.count - start)
        width = self.type.bytes * self.channels
        place = stretch.offset + (start - stretch.start) * width
        try:
            raw = np.fromfile(self.path, self.type.code, 2 * self.channels * count, offset=place)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if len(raw) != 2 * self.channels * count:
            raise InputError(f"{self.path} became shorter while it was read")
        return self.type.to_complex(raw, self.channels, channel)


class RawPipe:
    """Samples from a pipe, read once from beginning to end.

    Args:
        stream: of bytes.
        type: of the samples.
        name: for messages.
        channels: how many samples stand side by side.
    """

    def __init__(self, stream: IO[bytes], type: SampleType, name: str, channels: int = 1) -> None:
        self._stream, self.type, self.name, self.channels = stream, type, name, channels
        self._position = 0

    def read(self, start: int, count: int, channel: int) -> np.ndarray[Any, Any]:
        np = require("numpy", extra="train")
        if start != self._position:
            raise InputError(f"{self.name} is a pipe: it is read once, from beginning to end")
        width = self.type.bytes * self.channels
        # A pipe gives what it has; only an empty answer is its end.
        parts, missing = [], count * width
        while missing and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        raw = b"".join(parts)
        whole = len(raw) // width
        if len(raw) % width and missing:
            # A receiver that is stopped stops anywhere; what it sent until then counts.
            print(
                f"note: {self.name} ends within a sample: its last {len(raw) % width} bytes are left out",
                file=sys.stderr,
            )
            raw = raw[: whole * width]
        self._position += whole
        return self.type.to_complex(np.frombuffer(raw, self.type.code), self.channels, channel)


def whole_file(path: Path, type: SampleType, channels: int = 1) -> RawFile:
    """Return the samples of a file that holds nothing else.

    Raises:
        InputError: for a file that cannot be read, or one whose size is no whole number of samples.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    width = type.bytes * channels
    if size % width:
        raise InputError(
            f"{path} holds {size} bytes, no whole number of {type.name} samples: it is cut short, or of another format"
        )
    return RawFile(path, type, [Stretch(0, size // width, 0)], channels)
