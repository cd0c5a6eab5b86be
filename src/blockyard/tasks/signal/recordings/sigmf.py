"""SigMF recordings (https://sigmf.org, specification 1.2): samples in one file, JSON about them in another, or both in
an archive (.sigmf).

What is honoured: core:datatype (complex ones), core:num_channels, core:sample_rate, core:offset, core:dataset,
core:header_bytes and core:trailing_bytes, core:sha512, captures (each a stretch of its own, with its frequency and
time), annotations (labels, and SNRdB of the extension capture_details). What cannot be honoured is refused.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.tasks.signal.recordings.raw import RawFile, SampleType, Stretch, sample_type
from blockyard.tasks.signal.recordings.recording import Annotation, Recording, Span

SNR = "capture_details:SNRdB"
LOWER, UPPER = "core:freq_lower_edge", "core:freq_upper_edge"
_META, _DATA = ".sigmf-meta", ".sigmf-data"
# JSON about samples is small; a file that claims to be and is larger is something else.
MOST_META_BYTES = 256 << 20
# A century at a gigasample per second; far from where sums of two overflow.
MOST_SAMPLES = 1 << 62


def read_sigmf(path: Path) -> Recording:
    """Return the recording of a pair of files, by the name of either.

    Raises:
        InputError: when something is missing, damaged, cut short, or cannot be honoured.
    """
    meta_path = path.with_suffix(_META)
    meta = _metadata(_bytes_of(meta_path), meta_path)
    named = meta["global"].get("core:dataset")
    if meta["global"].get("core:metadata_only") is True:
        raise InputError(f"{meta_path} says core:metadata_only: there are no samples")
    data_path = path.with_suffix(_DATA)
    if named is not None:
        # A name beside the metadata, never a way to another folder.
        if not isinstance(named, str) or PurePosixPath(named).name != named or named in ("", ".", ".."):
            raise InputError(f"{meta_path}: core:dataset={named!r} should be the name of a file beside it")
        data_path = meta_path.with_name(named)
    if not data_path.is_file():
        described = f"{meta_path.name} says core:dataset={named!r}" if named else f"{meta_path.name} describes it"
        raise InputError(f"{data_path}: no such file, though {described}")
    return _recording(meta, str(meta_path), data_path, 0, data_path.stat().st_size)


def read_archive(path: Path) -> list[Recording]:
    """Return the recordings of an archive; their samples are read where they lie.

    Raises:
        InputError: for an archive that is damaged, compressed, or holds no recording.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = {m.name: m for m in archive.getmembers() if m.isreg()}
            found = []
            for name in sorted(members):
                if not name.endswith(_META):
                    continue
                data = members.get(name.removesuffix(_META) + _DATA)
                if data is None:
                    raise InputError(f"{path} holds {name}, but not its samples")
                if members[name].size > MOST_META_BYTES:
                    raise InputError(f"{path}: {name} has {members[name].size} bytes; metadata are far smaller")
                stream = archive.extractfile(members[name])
                raw = stream.read() if stream is not None else b""
                shown = f"{path}:{name}"
                found.append(_recording(_metadata(raw, shown), shown, path, data.offset_data, data.size))
    except InputError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise InputError(f"{path} is no readable SigMF archive (an uncompressed tar file): {error}") from error
    if not found:
        raise InputError(f"{path} holds no recording: no name in it ends with {_META}")
    return found


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_META_BYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes; metadata are far smaller")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, though its data is there") from None
    except OSError as error:
        raise InputError(f"{path} is no readable SigMF metadata: {error}") from error


def _metadata(raw: bytes, name: Path | str) -> dict[str, Any]:
    try:
        meta = parse_json(raw.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{name} is no readable SigMF metadata: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("global"), dict):
        raise InputError(f"{name}: SigMF metadata is an object with a key 'global'")
    for key in ("captures", "annotations"):
        if not isinstance(meta.get(key, []), list) or not all(isinstance(row, dict) for row in meta.get(key, [])):
            raise InputError(f"{name}: {key} should be a list of objects")
    return meta


def _recording(meta: dict[str, Any], name: str, data: Path, first: int, size: int) -> Recording:
    """Return what metadata and a part of a file make together.

    Args:
        meta: the metadata.
        name: for messages.
        data: the file of samples.
        first: bytes of it before them.
        size: bytes of them.
    """
    about = meta["global"]
    kind = _type(about, name)
    channels = _number(about, "core:num_channels", name, 1, least=1)
    _check_sum(about, name, data, first, size)
    captures = meta.get("captures", [])
    offset = _number(about, "core:offset", name, 0)
    trailing = _number(about, "core:trailing_bytes", name, 0)
    headers = [_number(capture, "core:header_bytes", name, 0) for capture in captures]
    width = kind.bytes * channels
    left = size - trailing - sum(headers)
    if left < 0 or left % width:
        apart = f" ({sum(headers)} of headers, {trailing} behind the samples)" if trailing or any(headers) else ""
        beside = f" of {channels} channels" if channels > 1 else ""
        what = f"{kind.name} samples{beside}"
        raise InputError(f"{data} holds {size} bytes{apart}, no whole number of {what}: it is cut short")
    count = left // width
    # Without captures the file is one stretch; samples before the first capture are none of any.
    begins = [_number(capture, "core:sample_start", name, offset) - offset for capture in captures] or [0]
    if begins != sorted(begins) or begins[0] < 0:
        raise InputError(f"{name}: captures should stand in the order of core:sample_start, from core:offset on")
    if captures and begins[-1] > count:
        raise InputError(f"{name}: a capture begins at sample {begins[-1]}, but there are {count}")
    spans, stretches, skipped = [], [], 0
    for number, (begin, end) in enumerate(zip(begins, [*begins[1:], count])):
        skipped += headers[number] if captures else 0
        if end > begin:
            capture = captures[number] if captures else {}
            stretches.append(Stretch(begin, end - begin, first + skipped + begin * width))
            when = capture.get("core:datetime")
            time = when if isinstance(when, str) else None
            spans.append(Span(begin, end - begin, _real(capture, "core:frequency", name), time))
    rate = _real(about, "core:sample_rate", name)
    if rate is not None and rate <= 0:
        raise InputError(f"{name}: core:sample_rate={rate} should be above 0")
    notes = [f"{begins[0]} samples before the first capture are left out"] if begins[0] else []
    return Recording(
        name, f"SigMF, {kind.name}", RawFile(data, kind, stretches, channels), tuple(spans), rate,
        tuple(_annotations(meta.get("annotations", []), offset, name)), tuple(notes),
    )  # fmt: skip


def _type(about: dict[str, Any], name: str) -> SampleType:
    written = about.get("core:datatype", "")
    kind = sample_type(written) if isinstance(written, str) and "s" not in written else None
    if kind is None:
        raise InputError(f"{name}: core:datatype={written!r} should be a SigMF type such as cf32_le or ci16_le")
    if not kind.is_complex:
        raise InputError(f"{name}: core:datatype={written!r} is real; complex samples (c…) are wanted")
    return kind


def _check_sum(about: dict[str, Any], name: str, data: Path, first: int, size: int) -> None:
    stated = about.get("core:sha512")
    if stated is None:
        return
    digest = hashlib.sha512()
    try:
        with data.open("rb") as file:
            file.seek(first)
            while size and (block := file.read(min(size, 1 << 20))):
                digest.update(block)
                size -= len(block)
    except OSError as error:
        raise InputError(f"{data} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != str(stated).lower():
        raise InputError(f"{data} is not what core:sha512 of {name} says: samples or metadata were changed")


def _annotations(rows: list[dict[str, Any]], offset: int, name: str) -> list[Annotation]:
    found = []
    for row in rows:
        try:
            start, count = int(row["core:sample_start"]) - offset, row.get("core:sample_count")
            if max(abs(start), abs(int(count or 0))) > MOST_SAMPLES:
                raise ValueError("a number of samples that no recording has")
            snr, label = row.get(SNR), row.get("core:label")
            found.append(
                Annotation(
                    start,
                    None if count is None else int(count),
                    None if label is None else str(label),
                    None if snr is None else float(snr),
                    *(None if row.get(key) is None else float(row[key]) for key in (LOWER, UPPER)),
                )
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            what = f"an annotation with {SNR}" if SNR in row else "an annotation"
            raise InputError(f"{name}: {what} cannot be read: {error!r}") from error
    return found


def _number(row: dict[str, Any], key: str, name: str, default: int, least: int = 0) -> int:
    value = row.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST_SAMPLES
    if not is_number or value != int(value):
        raise InputError(f"{name}: {key}={value!r} should be a whole number")
    if value < least:
        raise InputError(f"{name}: {key}={value!r} should be at least {least}")
    return int(value)


def _real(row: dict[str, Any], key: str, name: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise InputError(f"{name}: {key}={value!r} should be a number")
    return float(value)
