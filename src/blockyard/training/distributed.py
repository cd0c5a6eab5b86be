"""Several processes as one run: torchrun's ranks, DDP or FSDP2, each rank on its rows of the same global batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, InUse
from blockyard.machine.launch import check_meeting_point, local_rank, rank, world_size

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of the run.

    Args:
        rank: number of this process.
        size: number of processes.
        device: where this process computes.
        started: whether this object started the process group, and so ends it.
    """

    rank: int
    size: int
    device: torch.device
    started: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def rows(self, micro: int, rows: int) -> slice:
        """Return this rank's rows of the global batch in forward pass `micro` of `rows` rows.

        Pass by pass the ranks take neighbouring rows, so that any number of ranks and passes sees one batch.
        """
        # Pass-major: with two ranks and two passes the rows are 0 1 | 2 3, as one rank in four passes has them.
        start = (micro * self.size + self.rank) * rows
        return slice(start, start + rows)

    def together(self, work: Callable[[], T], otherwise: T) -> T:
        """Let the first rank do `work`; if it fails, every rank raises the same InputError.

        Returns: what `work` returned on the first rank, `otherwise` on the others.
        """
        if self.size == 1:
            return work()
        result, failed = otherwise, None
        if self.first:
            try:
                result = work()
            except InputError as error:
                failed = (str(error), isinstance(error, InUse))
        # Text: the exception itself would be pickled, and may hold what cannot be.
        message = [failed]
        torch.distributed.broadcast_object_list(message, src=0)
        if message[0] is not None:
            told, in_use = message[0]
            raise InUse(told) if in_use else InputError(told)
        return result

    def share(self, value: T) -> T:
        """Return the first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Return every rank's value, in their order."""
        found = [value] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(found, value)
        return found

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
            # Sum, then division: gloo has no mean.
            tensor /= self.size
        return tensor

    def sum_of(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors among these summed over ranks, in one exchange; scalars stay as they are."""
        vectors = {name: v for name, v in counts.items() if v.ndim}
        if self.size == 1 or not vectors:
            return counts
        # One exchange: each costs the latency of a network, however few its numbers.
        flat = torch.cat([v.flatten().float() for v in vectors.values()])
        torch.distributed.all_reduce(flat)
        parts = flat.split([v.numel() for v in vectors.values()])
        return counts | {name: part.view(v.shape) for (name, v), part in zip(vectors.items(), parts)}

    def close(self) -> None:
        """End the process group, if it was started here."""
        if self.started and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join_ranks(device_option: str) -> Ranks:
    """Find this process's rank from torchrun's environment and start the process group.

    Args:
        device_option: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: when the device does not exist, or torchrun's variables make no sense.
    """
    size, number = world_size(), rank()
    device = pick_device(device_option, local_rank() if size > 1 else None)
    if size == 1:
        return Ranks(0, 1, device)
    # Otherwise torch waits, for minutes, for an address that nobody answers.
    check_meeting_point()
    # A program that has a group of its own keeps it: what we did not start we do not end.
    started = not torch.distributed.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if started:
        # Dynamo, which DDP imports, keeps what it finds in torch.distributed for ever: imported later, it would keep
        # the group and with it gloo's threads, and one of them that drops its last tensor while Python ends aborts.
        from torch import _dynamo  # noqa: F401

        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Ranks(number, size, device, started)


def pick_device(option: str, local_rank: int | None = None) -> torch.device:
    """Return the device an option names.

    Raises:
        InputError: when it does not exist here.
    """
    cuda = torch.cuda.is_available()
    if option == "auto":
        option = "cuda" if cuda else "cpu"
    try:
        device = torch.device(option)
    except RuntimeError as error:
        raise InputError(f"train.device={option!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not cuda:
            raise InputError(f"train.device={option!r}: torch finds no CUDA device here; use cpu")
        index = device.index if device.index is not None else (local_rank or 0)
        if index >= torch.cuda.device_count():
            raise InputError(f"train.device=cuda:{index}: there are {torch.cuda.device_count()} CUDA devices here")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise InputError(f"train.device={option!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def shard(model: nn.Module, blocks: list[nn.Module], ranks: Ranks) -> None:
    """Spread, by FSDP2, every block's parameters, then the rest, over the ranks, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    # Block by block, so that no more than one block's weights are whole at a time; then what is left, embeddings and
    # head.
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return DDP around the model."""
    from torch.nn.parallel import DistributedDataParallel

    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Gradients are views of what is sent: one copy of them less.
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


@contextlib.contextmanager
def last_pass_only(wrapped: nn.Module, last: bool, kind: Literal["none", "ddp", "fsdp2"]) -> Iterator[None]:
    """Exchange gradients only in the last of several accumulated passes."""
    if kind == "ddp" and not last:
        # mypy: DDP's own.
        with wrapped.no_sync():  # type: ignore[operator]
            yield
        return
    if kind == "fsdp2":
        # mypy: FSDP2's own.
        wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def whole_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Return the model's state dict as whole CPU tensors; a collective call when sharded.

    Args:
        keep: whether this rank wants them; the others only take part.
    """
    result = {}
    for name, tensor in model.state_dict().items():
        # By tensor: gathered all at once, a sharded model would need the room that sharding saves.
        full = whole(tensor.detach())
        if keep:
            result[name] = full.cpu()
    return result


def load_whole_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into the model, sharded as it is.

    Raises:
        InputError: when names, shapes or kinds of numbers differ from the model's.
    """
    own = model.state_dict()
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in state.items()})
    with torch.no_grad():
        for name, tensor in state.items():
            if kind_of(tensor) != kind_of(own[name]):
                # `copy_` would convert whole numbers, which no training writes.
                raise InputError(
                    f"the checkpoint does not fit the model: {name} is {str(tensor.dtype).removeprefix('torch.')}, "
                    f"the model's {str(own[name].dtype).removeprefix('torch.')}"
                )
            own[name].copy_(spread(tensor.to(own[name].device), own[name]))


def check_shapes(model: nn.Module, state: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes of a state dict with a model's, which may be one without memory.

    Raises:
        InputError: when they differ.
    """
    # Names of the state dict and not of parameters: buffers are a part of a run, too.
    own = model.state_dict()
    # A tied weight is written once; the other name shares its memory and is filled with it. What is sharded has no
    # address of its own (0, all alike), so it is asked which parameter a name stands for.
    tied = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    places = {n: tied.get(n) if is_sharded(t) or t.is_meta else t.data_ptr() for n, t in own.items() if t.numel()}
    filled = {place for n, place in places.items() if n in state}
    missing = [n for n in own if n not in state and (n not in places or places[n] not in filled)]
    extra = [n for n in state if n not in own]
    if missing or extra:
        raise InputError(
            f"the checkpoint does not fit the model: missing {missing[:3] or 'nothing'}, "
            f"unexpected {extra[:3] or 'nothing'}"
        )
    for name, shape in state.items():
        if tuple(own[name].shape) != shape:
            raise InputError(
                f"the checkpoint does not fit the model: {name} has shape {shape}, the model's {tuple(own[name].shape)}"
            )


def kind_of(tensor: Tensor) -> str:
    """Return what a tensor's numbers are, whatever their precision."""
    kind = tensor.dtype
    return (
        "complex" if kind.is_complex else "float" if kind.is_floating_point else "bool" if kind == torch.bool else "int"
    )


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor, told without importing the class."""
    # A run of one process need not pay for importing DTensor.
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, sharing memory with the tensor."""
    # mypy: a DTensor, as was just asked.
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor, gathered; a collective call, so every rank must make it."""
    # mypy: a DTensor, as was just asked.
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part(full: Tensor, model: Tensor) -> Tensor:
    """Return this rank's part of a whole that every rank holds, laid out as `model` is. Nothing is sent."""
    return local(spread(full, model))


def spread(full: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor that every rank holds, sharded as `model` is; one that is already stays. Nothing is
    sent."""
    if not is_sharded(model) or is_sharded(full):
        return full
    from torch.distributed.tensor import distribute_tensor

    # mypy: a DTensor, as was just asked.
    return distribute_tensor(
        full.contiguous(),
        model.device_mesh,  # type: ignore[attr-defined]
        model.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )


def like(mine: Tensor, model: Tensor) -> Tensor:
    """Return this rank's part as a tensor sharded as `model` is."""
    if not is_sharded(model):
        return mine
    from torch.distributed.tensor import DTensor

    # mypy: a DTensor, as was just asked.
    mesh, placements = model.device_mesh, model.placements  # type: ignore[attr-defined]
    return DTensor.from_local(mine, mesh, placements, shape=model.shape, stride=model.stride())
