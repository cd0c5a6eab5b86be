"""Checkpoints: folders that appear complete or not at all, and hold no pickles.

A checkpoint is written to a temporary folder, every file is flushed to the disk, and the folder is renamed to
`step-00000100`: a kill at any moment leaves the previous checkpoints as they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.files import parse_json, remove_folder, writing_folder
from blockyard.training.distributed import Ranks
from blockyard.training.parts import PARTS, digest, outline, read_parts, write_parts

# Format 1, the first, has no checksum of state.json itself and does not name the data.
# Format 3 is that of a sharded run, whose tensors stand in parts.
FORMAT, IN_PARTS, READABLE = 2, 3, (1, 2, 3)
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
# The key under which state.json holds the checksum of all its other content.
# The tensors' checksums stand in state.json, so it is the one file whose own has to stand within it.
STATE_SUM = "sha256"
# Of the tensors' names, where model and optimizer stand together in parts.
_MODEL, _OPTIMIZER = "model/", "optimizer/"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """One loaded checkpoint: whole tensors on the CPU, whatever the number of ranks that wrote it, unless its parts are
    yet to be read.

    Args:
        model: the state dict.
        optimizer: tensors by "parameter name/state key".
        state: step, clocks, decisions, the data's fingerprint, and what else the trainer put in.
        parts: the folder in which the tensors' content still stands, in parts; none once it has been read.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    parts: Path | None = None


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints in `folder` by rising step."""
    if not folder.is_dir():
        return []
    # By name alone: a folder of that name appeared whole, by renaming.
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and p.is_dir()]
    return sorted(found)


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint atomically and return its folder.

    Raises:
        InputError: when the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    safetensors = require("safetensors.torch", extra="train")
    final = folder / checkpoint_name(step)
    try:
        with writing_folder(final) as temporary:
            safetensors.save_file(_apart(model), temporary / MODEL, metadata={"format": "pt"})
            safetensors.save_file(_apart(optimizer), temporary / OPTIMIZER)
            write_state(temporary, state, {name: digest(temporary / name) for name in (MODEL, OPTIMIZER)})
        # It replaces only a checkpoint of this very step: the same numbers, written once more.
    except (OSError, require("safetensors", extra="train").SafetensorError) as error:
        raise _unwritten(final, getattr(error, "strerror", None) or str(error)) from error
    return final


def save_in_parts(
    folder: Path,
    step: int,
    ranks: Ranks,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> bool:
    """Write a checkpoint of a sharded run, each rank its parts; a collective call.

    Args:
        folder: of the checkpoints.
        step: of the run.
        ranks: who writes.
        model: the state dict, sharded; tied weights once.
        optimizer: tensors by "parameter name/state key", sharded.
        state: what else the first rank writes; that of the others is not read.

    Returns: False, and nothing is written, where the ranks do not all see one folder.

    Raises:
        InputError: on every rank, when the disk is full or the folder cannot be written; earlier checkpoints are
            untouched.
    """
    tensors = _side_by_side(model, optimizer)
    final = folder / checkpoint_name(step)
    with ExitStack() as stack:

        def begin() -> str:
            try:
                temporary = stack.enter_context(writing_folder(final))
                (temporary / PARTS).mkdir()
            except OSError as error:
                raise _unwritten(final, error.strerror or str(error)) from error
            return str(temporary)

        # Only the first rank's: it makes the folder, and renames or removes it at the end.
        temporary = Path(ranks.share(ranks.together(begin, "")))
        if not all(ranks.gathered(temporary.is_dir())):
            ranks.together(lambda: _abandon(stack), None)
            return False
        sums, failed = write_parts(tensors, temporary, ranks)

        def end() -> None:
            if failed is not None:
                _abandon(stack)
                raise _unwritten(final, failed)
            try:
                write_state(temporary, {**state, "parts": ranks.size}, dict(sorted(sums.items())))
                stack.close()
            except OSError as error:
                raise _unwritten(final, error.strerror or str(error)) from error

        ranks.together(end, None)
    return True


class _Abandoned(Exception):
    """Ends the writing of a folder without renaming it."""


def _abandon(stack: ExitStack) -> None:
    # A folder that is written vanishes when its block fails.
    try:
        with stack.pop_all():
            raise _Abandoned
    except _Abandoned:
        return


def write_state(folder: Path, state: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write state.json into a checkpoint's folder, with the checksums of its other files and its own."""
    # What older versions cannot read says so by its number; all else they go on reading.
    content = {"format": IN_PARTS if "parts" in state else FORMAT, **state, "files": dict(files)}
    text = json.dumps({**content, STATE_SUM: state_digest(content)}, indent=1)
    (folder / STATE).write_text(text, encoding="utf-8")


def load_checkpoint(path: Path, *, with_optimizer: bool = True, in_parts: bool = False) -> Checkpoint:
    """Read a checkpoint and verify it.

    Args:
        path: its folder.
        with_optimizer: whether the optimizer's state is wanted.
        in_parts: leave the parts of a sharded run's where they are: its tensors have no content yet then
            (`with_content` reads them).

    Raises:
        InputError: naming the file that is missing, truncated or corrupt, and the checkpoint before it, if any.
    """
    safetensors = require("safetensors.torch", extra="train")
    safetensors_error = require("safetensors", extra="train").SafetensorError
    state_path = path / STATE
    try:
        state = parse_json(state_path.read_text(encoding="utf-8"))
        files = dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(state_path, "is missing or not a checkpoint's state") from error
    # Told by its number: a later format read as an earlier one would be a damaged file to the reader.
    if state.get("format") not in READABLE:
        raise InputError(f"{state_path} has format {state.get('format')!r}; this version reads format {FORMAT}")
    if (state["format"] >= 2 or STATE_SUM in state) and state.pop(STATE_SUM, None) != state_digest(state):
        raise _damaged(state_path, "is not as it was written (its checksum differs)")
    if state["format"] == IN_PARTS:
        return _load_parts(path, state, files, with_optimizer, in_parts)
    loaded = {}
    for name in (MODEL, OPTIMIZER) if with_optimizer else (MODEL,):
        file = path / name
        # Before it is parsed: safetensors would read what a disk made of it without a word.
        _check_sum(file, files.get(name))
        try:
            loaded[name] = safetensors.load_file(file)
        except OSError as error:
            raise _damaged(file, f"cannot be read ({error.strerror or error})") from error
        except safetensors_error as error:
            raise _damaged(file, f"is no file of tensors ({error})") from error
    return Checkpoint(loaded[MODEL], loaded.get(OPTIMIZER, {}), state)


def model_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model's tensors in a checkpoint's folder, by name; nothing else of it is read.

    Raises:
        InputError: naming the file that cannot be read.
    """
    if (path / PARTS).is_dir():
        whole = outline(path / PARTS)
        return {n.removeprefix(_MODEL): tuple(t.shape) for n, t in whole.items() if n.startswith(_MODEL)}
    safetensors = require("safetensors", extra="train")
    try:
        with safetensors.safe_open(path / MODEL, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise _damaged(path / MODEL, f"cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise _damaged(path / MODEL, f"is no file of tensors ({error})") from error


def _load_parts(
    path: Path, state: dict[str, Any], files: Mapping[str, str], with_optimizer: bool, in_parts: bool
) -> Checkpoint:
    # Whatever else lies there would be read with them.
    there = {f"{PARTS}/{file.name}" for file in (path / PARTS).glob("*.safetensors")}
    odd = next(iter(sorted(there ^ set(files))), None)
    if odd is not None:
        raise _damaged(path / odd, "is not of this checkpoint" if odd in there else "is missing")
    for name, known in files.items():
        _check_sum(path / name, known)
    whole = outline(path / PARTS)
    model = {n.removeprefix(_MODEL): t for n, t in whole.items() if n.startswith(_MODEL)}
    optimizer = {n.removeprefix(_OPTIMIZER): t for n, t in whole.items() if n.startswith(_OPTIMIZER)}
    found = Checkpoint(model, optimizer if with_optimizer else {}, state, path / PARTS)
    return found if in_parts else with_content(found)


def with_content(
    loaded: Checkpoint, like: Mapping[str, Tensor] | None = None, states: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Return a checkpoint with the content of its tensors, read from its parts; each rank reads what it needs.

    Args:
        loaded: from `load_checkpoint`, with its parts where they are.
        like: tensors of the model by name, sharded as its own are to be; whole on the CPU where there is none.
        states: parameters by name, as which the optimizer's state of each is to be sharded.

    Raises:
        InputError: when a part cannot be read.
    """
    assert loaded.parts is not None
    wanted = _side_by_side(loaded.model, loaded.optimizer)
    shaped = {_MODEL + name: tensor for name, tensor in (like or {}).items()}
    for name in loaded.optimizer:
        parameter = (states or {}).get(name.rpartition("/")[0])
        if parameter is not None:
            shaped[_OPTIMIZER + name] = parameter
    found = read_parts(loaded.parts, wanted, shaped)
    return replace(
        loaded,
        model={name: found[_MODEL + name] for name in loaded.model},
        optimizer={name: found[_OPTIMIZER + name] for name in loaded.optimizer},
        parts=None,
    )


def prune_checkpoints(folder: Path, *, keep: int, best: int | None) -> None:
    """Remove all but the last `keep` checkpoints and the one of step `best`."""
    found = list_checkpoints(folder)
    # After the new one stands: at no moment are there fewer than `keep` that can be gone on from.
    for step, path in found[: max(len(found) - keep, 0)]:
        if step != best:
            remove_folder(path)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU tensors that share no memory, as the format wants: a tied weight is written once, under its first
    name."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    result = {}
    for name, tensor in tensors.items():
        # With strides: a square matrix and its transpose begin at one place and have one shape, but other entries.
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        # One tensor after the other, so a model on a device needs the room of its largest tensor here, not of all.
        result[name] = tensor.detach().cpu().contiguous()
    return result


def state_digest(content: Mapping[str, Any]) -> str:
    """Return the checksum of what state.json says, whatever its spaces and the order of its keys."""
    # By way of JSON, so that what is about to be written and what was read are the same: keys are text, tuples lists.
    # Sorted and without spaces below, so that an editor's reformatting is no damage and a changed number is.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _side_by_side(model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of both under the names that they have in parts."""
    return {_MODEL + n: t for n, t in model.items()} | {_OPTIMIZER + n: t for n, t in optimizer.items()}


def _check_sum(file: Path, known: str | None) -> None:
    try:
        found = digest(file)
    except OSError as error:
        raise _damaged(file, f"cannot be read ({error.strerror or error})") from error
    if found != known:
        raise _damaged(file, "is truncated or corrupt (its checksum differs)")


def _unwritten(final: Path, reason: str) -> InputError:
    return InputError(f"cannot write checkpoint {final}: {reason}; the checkpoints before it are intact")


def _damaged(file: Path, what: str) -> InputError:
    # Parts stand in a folder of their own within the checkpoint's.
    checkpoint = file.parent if _NAME.fullmatch(file.parent.name) else file.parent.parent
    older = [p.name for _, p in list_checkpoints(checkpoint.parent) if p.name < checkpoint.name]
    advice = (
        f"remove {checkpoint} to resume from {older[-1]}, which is older"
        if older
        else "there is no older checkpoint; train again from the start"
    )
    return InputError(f"{file} {what}; {advice}")
