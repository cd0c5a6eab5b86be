"""Checkpoints of a sharded run: every rank writes its parts, by torch.distributed.checkpoint, and reads no others.

The parts are safetensors files, which hold tensors and nothing that runs; DCP's own format is made of pickles. Any
number of ranks reads them, one rank too, whichever wrote them. As every checkpoint, one of parts appears complete or
not at all: the first rank renames the folder once every part is on the disk and its checksum noted.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.training.distributed import Ranks

PARTS = "parts"


def write_parts(tensors: dict[str, Tensor], folder: Path, ranks: Ranks) -> tuple[dict[str, str], str | None]:
    """Write tensors, each rank its parts; a collective call.

    Args:
        tensors: by name, sharded or the same on every rank.
        folder: takes a folder of the parts; all ranks see it.
        ranks: who writes.

    Returns: checksums of the files, by their paths within `folder`, and what went wrong on any rank.
    """
    from torch.distributed import checkpoint as dcp

    failed, sums = None, dict[str, str]()
    try:
        with _quiet():
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder / PARTS), save_distributed=True))
        # Each rank its share of the files, whoever wrote them.
        files = sorted((folder / PARTS).iterdir())
        sums = {f"{PARTS}/{file.name}": digest(file) for file in files[ranks.rank :: ranks.size]}
    except (dcp.CheckpointException, OSError, RuntimeError) as error:
        failed = _reason(error)
    found = ranks.gathered((sums, failed))
    every = {name: value for own, _ in found for name, value in own.items()}
    return every, next((words for _, words in found if words), None)


def read_parts(
    parts: Path,
    wanted: Mapping[str, Tensor],
    like: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Read tensors of a checkpoint in parts; each rank what it needs; a collective call where `like` is given.

    Args:
        parts: the folder of the parts.
        wanted: from `outline`: shapes and types.
        like: tensors of the same names, sharded as what is read is to be; whole on the CPU where there is none. Without
            any of them this process reads all alone, whether there are other ranks or not.

    Raises:
        InputError: when a part cannot be read.
    """
    from torch.distributed import checkpoint as dcp

    found = {name: _room(tensor, like.get(name)) for name, tensor in wanted.items()}
    try:
        with _quiet():
            reader = dcp.HuggingFaceStorageReader(str(parts))
            dcp.load(found, storage_reader=reader, no_dist=not like or not torch.distributed.is_initialized())
    except (dcp.CheckpointException, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{parts} cannot be read: {_reason(error)}") from error
    return found


def outline(parts: Path) -> dict[str, Tensor]:
    """Return the tensors in parts without their content, as tensors without memory.

    Raises:
        InputError: when a part cannot be read, or the parts do not make whole tensors.
    """
    from torch.distributed import checkpoint as dcp

    try:
        with _quiet():
            found = dcp.HuggingFaceStorageReader(str(parts)).read_metadata().state_dict_metadata
    except Exception as error:
        raise InputError(f"{parts} holds no tensors that can be read: {_reason(error)}") from error
    whole = {}
    for name, entry in found.items():
        if not isinstance(entry, dcp.TensorStorageMetadata):
            raise InputError(f"{parts}: {name} is no tensor")
        # What a lost file held would be left as memory happens to be.
        if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise InputError(f"{parts}: the parts of {name} do not make the whole")
        whole[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return whole


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, sharded as it is; tied weights under their first name alone."""
    once = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in again}


def digest(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _room(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Return memory for a tensor, sharded as another one of its shape."""
    if like is None or like.shape != tensor.shape:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.empty_like(like, dtype=tensor.dtype)


def _reason(error: BaseException) -> str:
    """Return one line of an error; DCP's hold those of the ranks."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what DCP says of a process without a group: that it takes it to be alone, as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
