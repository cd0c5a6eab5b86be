"""Samples in arrays: npy, npz, HDF5 and wav files.

Complex numbers stand for themselves; real ones are I and Q along an axis of two, the last ([n, 2], [frames, n, 2]) or,
as RadioML's arrays have it, the one before ([2, n], [frames, 2, n]). An array of two axes holds frames, each a stretch
of its own: nothing says that one goes on where the other ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.errors import InputError, require
from blockyard.tasks.signal.recordings.recording import Recording, Span

if TYPE_CHECKING:
    import numpy as np

# What an array of samples may be called in a file of several: RadioML's HDF5 file says X.
NAMES = ("iq", "X")


class ArraySamples:
    """Samples in an array, which may lie in a file.

    Args:
        array: anything that numpy can slice.
        pairs: axis of I and Q; none for complex numbers.
        name: for messages.
        full: numbers are divided by this.
        middle: and this is taken away before.

    Attributes:
        frames: how many rows there are.
        length: samples of each.
        is_flat: whether the array has no axis of frames.
    """

    channels = 1

    def __init__(self, array: Any, pairs: int | None, name: str, full: float = 1.0, middle: float = 0.0) -> None:
        self.array, self.pairs, self.name = array, pairs, name
        self._full, self._middle = full, middle
        shape: list[int] = [size for axis, size in enumerate(array.shape) if axis != pairs]
        self.frames, self.length = (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
        self.is_flat = len(shape) == 1

    def read(self, start: int, count: int, channel: int) -> np.ndarray[Any, Any]:
        np = require("numpy", extra="train")
        frame, first = divmod(start, self.length) if self.length else (0, 0)
        where: list[Any] = [slice(first, min(first + count, self.length))]
        if not self.is_flat:
            where.insert(0, frame)
        if self.pairs is not None:
            where.insert(self.pairs, slice(None))
        try:
            part = np.asarray(self.array[tuple(where)])
        except OSError as error:
            raise InputError(f"{self.name} cannot be read: {error}") from error
        # What is beyond float32 becomes infinite, and is refused as that.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.pairs is None:
                # A copy: memory that lies in a file cannot be written to, as tensors may be.
                return np.array(part, np.complex64, order="C")
            # A frame's own axis is gone, so I and Q lie along the first or the last of two.
            axis = self.pairs - (0 if self.is_flat else 1)
            values = np.moveaxis(part, axis, -1).astype(np.float32)
            if self._middle or self._full != 1:
                values = (values - np.float32(self._middle)) / np.float32(self._full)
            return np.ascontiguousarray(values).view(np.complex64)[:, 0]


def array_recording(array: Any, path: Path, kind: str, *, sample_rate: float | None = None) -> Recording:
    """Return the recording that an array holds.

    Raises:
        InputError: for an array that cannot be samples.
    """
    # Integers of arrays stand for themselves: nothing says what their largest is meant to be.
    samples = ArraySamples(array, _axis_of_pairs(array, path), str(path))
    spans = tuple(Span(number * samples.length, samples.length) for number in range(samples.frames))
    shape = " × ".join(map(str, array.shape))
    return Recording(str(path), f"{kind}, {array.dtype} {shape}", samples, spans, sample_rate)


def _axis_of_pairs(array: Any, path: Path) -> int | None:
    kind, shape = array.dtype.kind, tuple(array.shape)
    if kind == "c" and len(shape) in (1, 2):
        return None
    if kind in "fiu" and len(shape) in (2, 3):
        if shape[-1] == 2:
            return len(shape) - 1
        if shape[-2] == 2:
            return len(shape) - 2
    raise InputError(
        f"{path} holds {array.dtype} {shape}; expected complex numbers, [samples] or [frames, samples], or real ones "
        "with an axis of 2 (I and Q) at the end or before it"
    )


def read_array(path: Path) -> Recording:
    """Return the recording of an npy or npz file; an npy file's samples stay where they are until they are wanted.

    Raises:
        InputError: for a file that is damaged, holds Python objects, or no samples.
    """
    np = require("numpy", extra="train")
    try:
        with path.open("rb") as file:
            # By what it holds: an array or an archive may have either name.
            if not file.read(2).startswith(b"PK"):
                return array_recording(_mapped(path), path, "npy")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                found = archive[_chosen(list(archive.files), path)]
        if not isinstance(found, np.ndarray):
            raise ValueError("a file in the archive that is no array")
        return array_recording(found, path, "npz")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # numpy, zipfile and zlib raise a dozen kinds for a damaged file. numpy advises loading what it cannot
        # read as Python objects, which would run code from the file.
        raise InputError(f"{path} is damaged, or no {path.suffix[1:]} file of numbers") from error


def _mapped(path: Path) -> Any:
    np = require("numpy", extra="train")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError:
        # An empty array cannot be mapped.
        with path.open("rb") as file:
            return np.load(file, allow_pickle=False)


def _chosen(names: list[str], path: Path) -> str:
    found = next((name for name in NAMES if name in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise InputError(f"{path} holds {', '.join(names) or 'nothing'}; name the samples iq")
    return found


def read_hdf5(path: Path) -> Recording:
    """Return the recording of an HDF5 file: the array called iq or X, or the only one.

    Raises:
        InputError: for a file that is damaged or holds no samples.
    """
    h5py = require("h5py", extra="signals")
    try:
        file = h5py.File(path, "r")
        # Links into other files are not followed: the file may come from anywhere.
        own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        array = file[_chosen([name for name in own if isinstance(file[name], h5py.Dataset)], path)]
        if array.external or array.is_virtual:
            raise InputError(f"{path}: its samples lie in other files, which is not read")
        return array_recording(array, path, "HDF5")
    except InputError:
        raise
    except Exception as error:
        # h5py raises OSError, KeyError, RuntimeError and more for a damaged file.
        raise InputError(f"{path} is damaged, or no HDF5 file of numbers: {error}") from error


def read_wav(path: Path) -> Recording:
    """Return the recording of a wav file of two channels, I and Q, as programs for receivers write it.

    Raises:
        InputError: for a file that is damaged or has another number of channels.
    """
    wavfile = require("scipy.io.wavfile", extra="signals")
    import warnings

    try:
        with warnings.catch_warnings():
            # Chunks that scipy does not know (a receiver's own) are no fault.
            warnings.simplefilter("ignore")
            try:
                rate, array = wavfile.read(path, mmap=True)
            except ValueError:
                # 24 bits cannot be mapped.
                rate, array = wavfile.read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # scipy raises ValueError, EOFError, struct.error and more for a damaged file.
        raise InputError(f"{path} is damaged, or no wav file: {error}") from error
    if array.ndim != 2 or array.shape[1] != 2:
        channels = 1 if array.ndim == 1 else array.shape[1]
        raise InputError(f"{path} has {channels} channel{'s' * (channels > 1)}; I and Q are two")
    # 8 bits are unsigned in wav files, more are signed.
    whole = {"i": (2.0 ** (8 * array.dtype.itemsize - 1), 0.0), "u": (128.0, 128.0)}
    full, middle = whole.get(array.dtype.kind, (1.0, 0.0))
    samples = ArraySamples(array, 1, str(path), full, middle)
    return Recording(str(path), f"wav, {array.dtype}", samples, (Span(0, len(array)),), float(rate))
