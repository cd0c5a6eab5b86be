"""Recorded signals: complex samples from npy, npz and SigMF files, cut into frames.

SigMF (https://sigmf.org, specification 1.2): `name.sigmf-meta` is JSON that names the type of the samples in
`name.sigmf-data`. npy holds complex numbers, or real ones with a last axis of two (I and Q).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.files import parse_json
from blockyard.tasks.signal.generator import Frames, SignalDataConfig

SUFFIXES = (".npy", ".npz", ".sigmf-meta", ".sigmf-data")
# What the largest code of an integer type stands for is 1.
_SIGMF_TYPES = {"f32": ("f4", 1.0), "f64": ("f8", 1.0), "i32": ("i4", 2.0**31), "i16": ("i2", 2.0**15),
                "i8": ("i1", 2.0**7), "u32": ("u4", 2.0**31), "u16": ("u2", 2.0**15), "u8": ("u1", 2.0**7)}  # fmt: skip
_SIGMF_SNR = "capture_details:SNRdB"


def read_iq(path: Path | str) -> Tensor:
    """The samples of a file: complex64 [n], or [frames, n] as an npy file holds them.

    Raises:
        InputError: for a missing, unreadable or damaged file, one that is not complex, or one that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give .npy, .npz or .sigmf-meta")
    if path.suffix in (".sigmf-meta", ".sigmf-data"):
        samples = _read_sigmf(path)
    elif path.suffix in (".npy", ".npz"):
        samples = _complex_array(_load_array(path), path)
    else:
        raise InputError(f"{path}: files are .npy, .npz or .sigmf-meta, not {path.suffix or 'without a suffix'!r}")
    if samples.numel() == 0:
        raise InputError(f"{path} holds no samples")
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()):
        raise InputError(f"{path} holds samples that are NaN or infinite")
    return samples


def frames_of(samples: Tensor, length: int, path: Path | str = "the file") -> Tensor:
    """Samples cut into frames [n, length]; a rest shorter than a frame is left out.

    Raises:
        InputError: when there are fewer samples than one frame has.
    """
    rows = samples.reshape(-1, samples.shape[-1])
    count = rows.shape[1] // length
    if count == 0:
        raise InputError(f"{path} holds {rows.shape[1]} samples in a row; a frame has {length}")
    return rows[:, : count * length].reshape(-1, length)


def annotated_snr(path: Path | str, length: int, frames: int) -> Tensor | None:
    """Return what a SigMF file's annotations say of the SNR of its frames, [frames] in dB; None where there is nothing.

    It is SNRdB of SigMF's extension capture_details: the power of the signal over that of the noise, per sample. A
    frame takes it from the last annotation that covers its middle.

    Args:
        path: any file of samples; only SigMF has annotations.
        length: samples per frame.
        frames: frames in the file.

    Raises:
        InputError: for an annotation that cannot be read, or a frame that none of them covers.
    """
    path = Path(path)
    if path.suffix not in (".sigmf-meta", ".sigmf-data"):
        return None
    path = path.with_suffix(".sigmf-meta")
    meta = _sigmf_meta(path)
    offset = meta["global"].get("core:offset", 0)
    middle = torch.arange(frames) * length + length // 2
    snr = torch.full((frames,), torch.nan)
    try:
        stated = [a for a in meta.get("annotations", []) if _SIGMF_SNR in a]
        for a in stated:
            # Without a count an annotation reaches to the end.
            first, count = int(a["core:sample_start"]) - int(offset), a.get("core:sample_count")
            inside = (middle >= first) & (middle < (math.inf if count is None else first + int(count)))
            snr[inside] = float(a[_SIGMF_SNR])
    except (TypeError, KeyError, ValueError, OverflowError, RuntimeError) as error:
        # RuntimeError: torch's of a number that no index can be.
        raise InputError(f"{path}: an annotation with {_SIGMF_SNR} cannot be read: {error!r}") from error
    if not stated:
        return None
    missing = int((~torch.isfinite(snr)).sum())
    if missing:
        raise InputError(
            f"{path}: annotations give {_SIGMF_SNR} for {frames - missing} of {frames} frames; --snr for all"
        )
    return snr


def _load_array(path: Path) -> Any:
    np = require("numpy", extra="train")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            # By what it holds: an array or an archive may have either name.
            return loaded
        with loaded:
            name = "iq" if "iq" in loaded.files else loaded.files[0] if len(loaded.files) == 1 else None
            if name is None:
                raise InputError(f"{path} holds {', '.join(loaded.files)}; name the samples iq")
            found = loaded[name]
        if not isinstance(found, np.ndarray):
            raise ValueError("a file in the archive that is no array")
        return found
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # numpy, zipfile and zlib raise a dozen kinds for a damaged file. numpy advises loading what it cannot
        # read as Python objects, which would run code from the file.
        raise InputError(f"{path} is damaged, or no {path.suffix[1:]} file of numbers") from error


def _complex_array(array: Any, path: Path) -> Tensor:
    np = require("numpy", extra="train")
    # What is beyond float32 becomes infinite, and is refused as that.
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype.kind == "c":
            samples = array.astype(np.complex64)
        elif array.dtype.kind in "fiu" and array.ndim >= 2 and array.shape[-1] == 2:
            samples = array[..., 0].astype(np.float32) + 1j * array[..., 1].astype(np.float32)
        else:
            samples = None
    if samples is None:
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}; expected complex numbers, or real ones with a last axis of 2"
        )
    if samples.ndim not in (1, 2):
        raise InputError(f"{path} has shape {array.shape}; expected [samples] or [frames, samples]")
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.complex64))


def _read_sigmf(path: Path) -> Tensor:
    np = require("numpy", extra="train")
    meta_path, data_path = path.with_suffix(".sigmf-meta"), path.with_suffix(".sigmf-data")
    meta = _sigmf_meta(meta_path)
    datatype = str(meta["global"].get("core:datatype", ""))
    match = re.fullmatch(r"([cr])([fiu](?:8|16|32|64))(?:_(le|be))?", datatype)
    if not match or match.group(2) not in _SIGMF_TYPES:
        raise InputError(f"{meta_path}: core:datatype={datatype!r} should be a SigMF type such as cf32_le or ci16_le")
    if match.group(1) == "r":
        raise InputError(f"{meta_path}: core:datatype={datatype!r} is real; complex samples (c…) are wanted")
    code, full = _SIGMF_TYPES[match.group(2)]
    order = ">" if match.group(3) == "be" else "<"
    if not data_path.is_file():
        raise InputError(f"{data_path}: no such file, though {meta_path.name} describes it")
    kind = np.dtype(order + code)
    size = data_path.stat().st_size
    if size % (2 * kind.itemsize):
        raise InputError(f"{data_path} holds {size} bytes, no whole number of {datatype} samples: it is cut short")
    channels = meta["global"].get("core:num_channels", 1)
    if channels != 1:
        raise InputError(f"{meta_path}: core:num_channels={channels!r}; one channel is wanted")
    raw = np.fromfile(data_path, dtype=kind)
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32)
    if code.startswith("u"):
        values = values - np.float32(full)
    values = values / np.float32(full)
    return torch.view_as_complex(torch.from_numpy(np.ascontiguousarray(values)).view(-1, 2))


def _sigmf_meta(path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, though its data is there") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable SigMF metadata: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("global"), dict):
        raise InputError(f"{path}: SigMF metadata is an object with a key 'global'")
    return meta


class RecordedSignals:
    """Labelled recordings: a folder with one folder of files per class, `DIR/qpsk/a.sigmf-meta`.

    Every tenth frame of each class, picked evenly, is for validation. SNRs are not known: they are given as NaN.

    Args:
        config: `path`, `length` and `val_seed` count; what describes generation does not apply.

    Raises:
        InputError: for a folder without classes, or a class with fewer than ten frames.
    """

    def __init__(self, config: SignalDataConfig) -> None:
        self.config = config
        folder = Path(str(config.path))
        if not folder.is_dir():
            raise InputError(f"data.path={config.path!r} should be a folder with one folder of recordings per class")
        if config.target != "modulation":
            raise InputError("data.target=symbols needs generated signals: recordings do not say their symbols")
        self.classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and _recordings(p)))
        if len(self.classes) < 2:
            raise InputError(f"data.path={config.path!r} holds {len(self.classes)} folders with recordings; 2 or more")
        digest = hashlib.sha256()
        train, val = [], []
        for number, name in enumerate(self.classes):
            paths = _recordings(folder / name)
            frames = torch.cat([frames_of(read_iq(p), config.length, p) for p in paths])
            digest.update(name.encode() + frames.numpy().tobytes())
            if len(frames) < 10:
                raise InputError(f"{folder / name} holds {len(frames)} frames of {config.length} samples; at least 10")
            held = torch.arange(len(frames)) % 10 == 0
            labels = torch.full((len(frames),), number)
            train.append((frames[~held], labels[~held]))
            val.append((frames[held], labels[held]))
        self.iq, self.modulation = (torch.cat(parts) for parts in zip(*train))
        iq, modulation = (torch.cat(parts) for parts in zip(*val))
        self.validation = Frames(iq, modulation, torch.zeros(len(iq), 0), torch.full((len(iq),), torch.nan))
        self._sha256 = digest.hexdigest()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "source": str(self.config.path), "sha256": self._sha256, "frames": len(self.iq), **asdict(self.config),
        }  # fmt: skip

    def batch(self, seed: int, step: int, batch_size: int, rows: slice) -> dict[str, Tensor]:
        """Rows of the global batch of a step: classes drawn evenly, then frames of the class."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
        wanted = torch.randint(len(self.classes), (batch_size,), generator=generator)
        counts = torch.bincount(self.modulation, minlength=len(self.classes))
        starts = counts.cumsum(0) - counts
        share = torch.rand(batch_size, generator=generator, dtype=torch.float64)
        index = starts[wanted] + (share * counts[wanted]).long()
        return {"iq": self.iq[index][rows], "targets": self.modulation[index][rows]}

    def targets(self, frames: Frames) -> Tensor:
        """[n] classes."""
        return frames.modulation


def _recordings(folder: Path) -> Sequence[Path]:
    """The files of a class, SigMF ones by their metadata."""
    return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.suffix != ".sigmf-data")
