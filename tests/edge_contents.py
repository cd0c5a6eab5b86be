"""Contents of files that no reader should trip over: valid ones changed in every way, and such as belong elsewhere."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
from typing import Any

import numpy as np
from hypothesis import strategies as st

# The kinds that brought readers down once; put in place of whole files, and (as text) of parts of them.
FIRST: tuple[bytes, ...] = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 100_000, b"{" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"9" * 5000, b"a: " + b"[" * 5000, b"a: &a [*a]", b"a: &a {b: *a}", b"? [a]\n: b", b"a: 9" + b"9" * 5000,
    b"a: 2001-99-99", b"!!python/object/apply:os.getcwd []", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{",
    b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PAR1", b"PAR1PAR1", b'"\\ud800"',
    b'{"text": "\\ud800"}\n', b"text,label\n\"", b"null", b"[]", b"{}", b"0", b"NaN", b"1e999",
    "größe".encode("utf-16"), "a\u2028b\x85c".encode(), b"\x80" * 50,
    b"date,close\n" + b"9" * 400 + b"," + b"1" * 400 + b"\n",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([None, True, False, "", "a", "\ud800", "\x1b[31m", "x" * 2000, [], {}, [[]], [None], *NUMBERS]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)  # fmt: skip


@st.composite
def contents(draw: st.DrawFn, valid: bytes) -> bytes:
    """A file's content: the valid one with bytes or values changed, another's, or anything."""
    how = draw(st.sampled_from(["first", "cut", "bytes", "insert", "values", "values", "values", "text", "packed"]))
    if how == "first":
        return draw(st.sampled_from(FIRST))
    if how == "cut":
        start = draw(st.integers(0, len(valid)))
        return valid[:start] if draw(st.booleans()) else valid[start:]
    if how == "bytes":
        return draw(st.binary(max_size=200))
    if how == "packed":
        pack = draw(st.sampled_from([gzip.compress, bz2.compress, lzma.compress, zipped]))
        packed = pack(valid)
        return packed[: draw(st.integers(len(packed) // 2, len(packed)))]
    if how == "text":
        return draw(st.text(st.sampled_from("{}[]:,-\"'\n\t 0159eE.aé|&*!%@`#"), max_size=80)).encode()
    if how == "values":
        changed = other_values(draw, valid)
        if changed is not None:
            return changed
    place = draw(st.integers(0, len(valid)))
    removed = draw(st.integers(0, 12))
    middle = draw(
        st.one_of(st.sampled_from(FIRST), st.binary(max_size=8), st.sampled_from(NUMBERS).map(str).map(str.encode))
    )
    return valid[:place] + middle[:6000] + valid[place + removed :]


def other_values(draw: st.DrawFn, valid: bytes) -> bytes | None:
    """JSON (or a line of it, or YAML) with one of its values replaced, removed or moved; None where it is neither."""
    lines = valid.splitlines() if valid[:1] == b"{" and valid.count(b"\n{") else [valid]
    number = draw(st.integers(0, len(lines) - 1)) if len(lines) > 1 else 0
    try:
        value, write = json.loads(lines[number]), json.dumps
    except ValueError:
        import yaml

        try:
            value = yaml.safe_load(lines[number])
            write = lambda value: yaml.safe_dump(value, allow_unicode=True)  # noqa: E731
        except (yaml.YAMLError, ValueError):
            return None
        if not isinstance(value, dict):
            return None
    box: Any = [value]
    holder, key = box, 0
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 5)):
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    if draw(st.integers(0, 4)) == 0 and holder is not box:
        del holder[key]
    else:
        holder[key] = draw(VALUES)
    try:
        lines[number] = write(box[0]).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, yaml_error()):
        return None
    return b"\n".join(lines)


def yaml_error() -> type[Exception]:
    import yaml

    return yaml.YAMLError


def zipped(data: bytes) -> bytes:
    """The data as the one file of an archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@st.composite
def arrays(draw: st.DrawFn) -> bytes:
    """npy files: of every type, and with headers that do not fit what follows."""
    kind = draw(st.sampled_from(["c8", "c16", "f4", "f8", "f2", "i2", "u8", "b1", "U3", "S2", "M8[s]", "V4", "i4,f4"]))
    shape = draw(st.sampled_from([(), (0,), (5,), (8, 2), (2, 4), (2, 4, 2), (1, 1, 1, 1)]))
    data = npy(np.zeros(shape, np.dtype(kind)))
    said = draw(st.sampled_from([None, "(99999999999,)", "(-1,)", "(9**9**3,)", "('a',)", "[5]", "(" * 60, "(2**70,)"]))
    if said is None:
        return data
    described = draw(st.sampled_from(["<c8", "<f4", "|O", "<q9", "5", ""]))
    header = f"{{'descr': {described!r}, 'fortran_order': False, 'shape': {said}}}"
    raw = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data[:50]


@st.composite
def tensors(draw: st.DrawFn, valid: bytes) -> bytes:
    """safetensors files: the header's values changed, with its length made right."""
    size = int.from_bytes(valid[:8], "little")
    header = other_values(draw, valid[8 : 8 + size])
    if header is None:
        return draw(contents(valid))
    if draw(st.booleans()):
        kinds = ["I32", "F64", "F16", "BF16", "F8_E4M3", "BOOL", "U8", "I64", "C64", "XX"]
        header = header.replace(b'"F32"', f'"{draw(st.sampled_from(kinds))}"'.encode())
    return len(header).to_bytes(8, "little") + header + valid[8 + size :]
