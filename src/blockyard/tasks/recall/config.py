"""Which recall task, how long, how hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockyard.errors import InputError

RecallTask = Literal["mqar", "induction", "copy", "lag", "selective_copy", "random"]
TASKS: tuple[RecallTask, ...] = ("mqar", "induction", "copy", "lag", "selective_copy", "random")
# What a row's size is, and the sizes that are trained and asked when none are given.
SIZES: dict[RecallTask, tuple[str, tuple[int, ...]]] = {
    "mqar": ("key-value pairs", (4, 8, 16)),
    "induction": ("distance", (4, 16, 48)),
    "copy": ("tokens to copy", (4, 8, 16)),
    "lag": ("lag", (8,)),
    "selective_copy": ("tokens to copy", (4, 8, 16)),
    "random": ("sequence", (1,)),
}


@dataclass(frozen=True)
class RecallConfig:
    """A synthetic task that asks a mixer for what stood earlier in the sequence.

    Args:
        task: mqar (associative recall), induction, copy, lag, selective_copy, or random (nothing to recall).
        length: tokens of a sequence.
        vocab_size: number of tokens, the tasks' own signs among them.
        sizes: how hard: pairs for mqar, distance for induction, tokens for copy and selective_copy, one lag for lag;
            every row is of one of these sizes, and accuracy is given for each. None takes the task's own.
        val_rows: rows of each size that accuracy is measured on.

    Raises:
        InputError: when a size does not fit into the sequence or the vocabulary.
    """

    task: RecallTask = "mqar"
    length: int = 64
    vocab_size: int = 256
    sizes: tuple[int, ...] | None = None
    val_rows: int = 256

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise InputError(f"data.task={self.task!r} is not one of: {', '.join(TASKS)}")
        for name in ("length", "vocab_size", "val_rows"):
            if getattr(self, name) < (1 if name == "val_rows" else 4):
                raise InputError(f"data.{name}={getattr(self, name)} is too small; at least 4 (val_rows: 1)")
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1):
            raise InputError(f"data.sizes={','.join(map(str, self.sizes))} should be numbers of at least 1")
        if self.task == "lag" and len(self.all_sizes) > 1:
            raise InputError("data.sizes: the lag task has one lag: a row does not say which of several it is to use")
        for size in self.all_sizes:
            self._check(size)

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """The sizes in rising order; of the task's own, those that fit."""
        if self.sizes is not None:
            return tuple(sorted(set(self.sizes)))
        own = SIZES[self.task][1]
        return tuple(size for size in own if self._needs(size) <= self.length) or own[:1]

    @property
    def size_word(self) -> str:
        """What a size counts."""
        return SIZES[self.task][0]

    def _needs(self, size: int) -> int:
        """Tokens that a row of a size takes at least."""
        if self.task == "mqar":
            return 4 * size  # each pair, and each key once more with the place of its answer
        if self.task == "induction":
            return size + 2
        if self.task in ("copy", "selective_copy"):
            return 2 * size + 1
        return size + 1

    def _check(self, size: int) -> None:
        if self._needs(size) > self.length:
            raise InputError(
                f"data.sizes={size}: {self.task} with {size} {self.size_word} takes {self._needs(size)} tokens, "
                f"data.length is {self.length}"
            )
        if self.task == "induction" and size < 2:
            raise InputError("data.sizes=1: at distance 1 the marker would be followed by itself; use 2 or more")
        keys = (self.vocab_size - 1) // 2
        if self.task == "mqar" and size > keys:
            raise InputError(
                f"data.sizes={size}: only {(self.vocab_size - 1) // 2} of {self.vocab_size} tokens are keys"
            )
