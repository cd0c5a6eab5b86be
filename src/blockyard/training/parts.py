"""Checkpoints of a sharded run: every rank writes its parts, by torch.distributed.checkpoint, and reads no others.

The parts are safetensors files, which hold tensors and nothing that runs; DCP's own format is made of pickles. Any
number of ranks reads them, one rank too, whichever wrote them. As every checkpoint, one of parts appears complete or
not at all: the first rank renames the folder once every part is on the disk and its checksum noted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import writing_folder
from blockyard.training.checkpoint import Checkpoint, checkpoint_name, digest, write_state
from blockyard.training.distributed import Ranks

PARTS = "parts"
MODEL, OPTIMIZER = "model/", "optimizer/"


def save_parts(
    folder: Path,
    step: int,
    ranks: Ranks,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> bool:
    """Write a checkpoint, each rank its parts; a collective call.

    Args:
        folder: of the checkpoints.
        step: of the run.
        ranks: who writes.
        model: the state dict, sharded; tied weights once.
        optimizer: tensors by "parameter name/state key", sharded.
        state: what else the first rank writes; that of the others is not read.

    Returns: False, and nothing is written, where the ranks do not all see one folder: then its owner writes the whole.

    Raises:
        InputError: on every rank, when the disk is full or the folder cannot be written; earlier checkpoints are
            untouched.
    """
    tensors = {MODEL + n: t for n, t in model.items()} | {OPTIMIZER + n: t for n, t in optimizer.items()}
    final = folder / checkpoint_name(step)
    with ExitStack() as stack:
        # Only the first rank's: it makes the folder, and renames or removes it at the end.
        temporary = Path(ranks.share(ranks.together(lambda: _begin(stack, final), "")))
        if not all(_gathered(ranks, temporary.is_dir())):
            ranks.together(lambda: _abandon(stack), None)
            return False
        failed = _write(tensors, temporary / PARTS)
        sums = {} if failed else _sums(temporary, ranks)
        found = _gathered(ranks, (failed, sums))
        first = next((words for words, _ in found if words), None)

        def end() -> None:
            if first is not None:
                _abandon(stack)
                raise _unwritten(final, first)
            files = {name: value for _, own in found for name, value in sorted(own.items())}
            try:
                write_state(temporary, {**state, "parts": ranks.size}, files)
                stack.close()
            except OSError as error:
                raise _unwritten(final, error.strerror or str(error)) from error

        ranks.together(end, None)
    return True


def read_parts(
    loaded: Checkpoint, like: Mapping[str, Tensor] | None = None, states: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Return a checkpoint with the tensors of its parts; each rank reads those that it needs.

    Args:
        loaded: from `load_checkpoint`, with the folder of its parts.
        like: tensors of the model, by name, sharded as these are to be; whole on the CPU where there is none.
        states: parameters by name, as whose state the optimizer's is sharded.

    Raises:
        InputError: when a part cannot be read.
    """
    assert loaded.parts is not None
    like, states = like or {}, states or {}
    wanted = {MODEL + name: _room(tensor, like.get(name)) for name, tensor in loaded.model.items()}
    for name, tensor in loaded.optimizer.items():
        wanted[OPTIMIZER + name] = _room(tensor, states.get(name.rpartition("/")[0]))
    from torch.distributed import checkpoint as dcp

    try:
        with _quiet():
            reader = dcp.HuggingFaceStorageReader(str(loaded.parts))
            dcp.load(wanted, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    except (dcp.CheckpointException, OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{loaded.parts} cannot be read: {_reason(error)}") from error
    model = {n.removeprefix(MODEL): t for n, t in wanted.items() if n.startswith(MODEL)}
    optimizer = {n.removeprefix(OPTIMIZER): t for n, t in wanted.items() if n.startswith(OPTIMIZER)}
    return replace(loaded, model=model, optimizer=optimizer, parts=None)


def outline(parts: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of the model and of the optimizer without their content, as tensors without memory.

    Raises:
        InputError: when a part cannot be read, or the parts do not make whole tensors.
    """
    from torch.distributed import checkpoint as dcp

    try:
        with _quiet():
            found = dcp.HuggingFaceStorageReader(str(parts)).read_metadata().state_dict_metadata
    except Exception as error:
        raise InputError(f"{parts} holds no tensors that can be read: {_reason(error)}") from error
    model: dict[str, Tensor] = {}
    optimizer: dict[str, Tensor] = {}
    for name, entry in found.items():
        if not isinstance(entry, dcp.TensorStorageMetadata):
            raise InputError(f"{parts}: {name} is no tensor")
        # What a lost file held would be left as memory happens to be.
        if sum(chunk.sizes.numel() for chunk in entry.chunks) != entry.size.numel():
            raise InputError(f"{parts}: the parts of {name} do not make the whole")
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for prefix, into in ((MODEL, model), (OPTIMIZER, optimizer)):
            if name.startswith(prefix):
                into[name.removeprefix(prefix)] = tensor
    return model, optimizer


def own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict, sharded as it is; tied weights under their first name alone."""
    once = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in again}


def _begin(stack: ExitStack, final: Path) -> str:
    try:
        temporary = stack.enter_context(writing_folder(final))
        (temporary / PARTS).mkdir()
    except OSError as error:
        raise _unwritten(final, error.strerror or str(error)) from error
    return str(temporary)


class _Abandoned(Exception):
    """Ends the writing of a folder without renaming it."""


def _abandon(stack: ExitStack) -> None:
    # A folder that is written vanishes when its block fails.
    try:
        with stack.pop_all():
            raise _Abandoned
    except _Abandoned:
        return


def _write(tensors: dict[str, Tensor], parts: Path) -> str | None:
    """Write this rank's parts; returns what went wrong anywhere."""
    from torch.distributed import checkpoint as dcp

    try:
        with _quiet():
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(parts), save_distributed=True))
    except (dcp.CheckpointException, OSError, RuntimeError) as error:
        return _reason(error)
    return None


def _sums(temporary: Path, ranks: Ranks) -> dict[str, str]:
    """Return checksums of this rank's share of the files."""
    files = sorted((temporary / PARTS).iterdir())
    return {f"{PARTS}/{file.name}": digest(file) for file in files[ranks.rank :: ranks.size]}


def _gathered(ranks: Ranks, value: Any) -> list[Any]:
    """Return every rank's value, in their order."""
    if ranks.size == 1:
        return [value]
    found: list[Any] = [None] * ranks.size
    torch.distributed.all_gather_object(found, value)
    return found


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


def _unwritten(final: Path, reason: str) -> InputError:
    return InputError(f"cannot write checkpoint {final}: {reason}; the checkpoints before it are intact")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what DCP says of a process without a group: that it takes it to be alone, as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
