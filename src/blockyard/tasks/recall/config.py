"""Which recall task, how long, how hard; what rows of associative recall are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from blockyard.errors import InputError, at_least, one_of

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


Definition = Literal["zoology", "early"]
Noise = Literal["random", "zeros"]
Difficulty = Literal["64/4", "128/8", "256/16", "512/64"]
LENGTH, VOCAB_SIZE = 64, 256
# The paper's figure 2 (arXiv 2312.04927): length / pairs, over this many tokens, with blanks between the questions.
FIGURE_2_VOCAB_SIZE = 8192
# Exponents beyond it would only overflow.
MOST_POWER = 8.0
# What nobody could ask for before rows of mqar were zoology's, and what it was then.
EARLY: Mapping[str, Any] = MappingProxyType(
    {"definition": "early", "noise": None, "power_a": 0.01, "passes": 1, "difficulty": None}
)


@dataclass(frozen=True)
class RecallConfig:
    """A synthetic task that asks a mixer for what stood earlier in the sequence.

    What is left out is filled in: the configuration that was made has numbers, and no difficulty.

    Args:
        task: mqar (associative recall), induction, copy, lag, selective_copy, or random (nothing to recall).
        length: tokens of a sequence; none takes the difficulty's, or 64. Even for mqar.
        vocab_size: number of tokens, the tasks' own signs among them; none takes the difficulty's, or 256.
        sizes: how hard: pairs for mqar, distance for induction, tokens for copy and selective_copy, one lag for lag;
            every row is of one of these sizes, and accuracy is given for each. None takes the difficulty's, or the
            task's own.
        val_rows: rows of each size that accuracy is measured on.
        difficulty: length / pairs of a panel of zoology's figure 2: stands for both, a vocabulary of 8192, and
            noise=zeros; given options win. For mqar alone, like the following.
        noise: what stands in mqar between the questions: random tokens of the whole vocabulary (zoology's
            random_non_queries), or zeros; none takes the difficulty's, or random.
        power_a: of mqar's power law: a question stands at the n-th even place behind the pairs with a probability in
            proportion to n ** (power_a - 1). 1 is uniform.
        passes: how often mqar's pairs stand one after the other before any is asked.
        definition: how mqar's rows are drawn: as zoology does, or early, as this package did first: values of a row may
            repeat, and noise consists of values alone. For runs from then.

    Raises:
        InputError: when a size does not fit into the sequence or the vocabulary, or an option is of another task.
    """

    task: RecallTask = "mqar"
    length: int | None = None
    vocab_size: int | None = None
    sizes: tuple[int, ...] | None = None
    val_rows: int = 256
    difficulty: Difficulty | None = None
    noise: Noise | None = None
    power_a: float = 0.01
    passes: int = 1
    definition: Definition = "zoology"

    def __post_init__(self) -> None:
        known: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("task", TASKS),
            ("difficulty", (None, *get_args(Difficulty))),
            ("noise", (None, *get_args(Noise))),
            ("definition", get_args(Definition)),
        )
        for name, allowed in known:
            one_of(allowed, **{f"data.{name}": getattr(self, name)})
        self._check_mqar_options()
        self._fill_in()
        for name in ("length", "vocab_size", "val_rows"):
            if getattr(self, name) < (1 if name == "val_rows" else 4):
                raise InputError(f"data.{name}={getattr(self, name)} is too small; at least 4 (val_rows: 1)")
        if self.sizes is not None and (not self.sizes or min(self.sizes) < 1):
            raise InputError(f"data.sizes={','.join(map(str, self.sizes))} should be numbers of at least 1")
        if self.task == "lag" and len(self.all_sizes) > 1:
            raise InputError("data.sizes: the lag task has one lag: a row does not say which of several it is to use")
        if self._is_zoology and self.row_length % 2:
            raise InputError(
                f"data.length={self.length}: rows of mqar are of even length; use {self.row_length - 1} or "
                f"{self.row_length + 1}"
            )
        for size in self.all_sizes:
            self._check(size)

    def _check_mqar_options(self) -> None:
        """Refuse options where they mean nothing, and numbers that are none."""
        if not 0 < self.power_a <= MOST_POWER:
            raise InputError(f"data.power_a={self.power_a} should be above 0 and at most {MOST_POWER:g}; 1 is uniform")
        at_least(1, **{"data.passes": self.passes})
        if self._is_zoology:
            return
        where = f"the task is {self.task}" if self.task != "mqar" else "data.definition is early"
        for name, early in EARLY.items():
            given = getattr(self, name)
            if name != "definition" and given != early:
                raise InputError(f"data.{name}={given} is an option of mqar as zoology defines it; {where}")
        if self.task != "mqar" and self.definition != "zoology":
            raise InputError(f"data.definition={self.definition} is an option of mqar; {where}")

    def _fill_in(self) -> None:
        """Put what the difficulty, or nothing, stands for in place of what was left out."""
        stands: dict[str, Any] = {"length": LENGTH, "vocab_size": VOCAB_SIZE}
        if self._is_zoology:
            stands["noise"] = "random"
        if self.difficulty is not None:
            length, pairs = map(int, self.difficulty.split("/"))
            stands = {"length": length, "vocab_size": FIGURE_2_VOCAB_SIZE, "sizes": (pairs,), "noise": "zeros"}
        for name, value in stands.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "difficulty", None)

    @property
    def _is_zoology(self) -> bool:
        return self.task == "mqar" and self.definition == "zoology"

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        return LENGTH if self.length is None else self.length

    @property
    def n_tokens(self) -> int:
        """Tokens of the vocabulary."""
        return VOCAB_SIZE if self.vocab_size is None else self.vocab_size

    @property
    def halves(self) -> tuple[range, range]:
        """The keys and the values of mqar: halves of the vocabulary without the blank."""
        if self.definition == "early":
            half = (self.n_tokens - 1) // 2
            return range(1, 1 + half), range(1 + half, 1 + 2 * half)
        return range(1, self.n_tokens // 2), range(self.n_tokens // 2, self.n_tokens)

    @property
    def all_sizes(self) -> tuple[int, ...]:
        """The sizes in rising order; of the task's own, those that fit."""
        if self.sizes is not None:
            return tuple(sorted(set(self.sizes)))
        own = SIZES[self.task][1]
        return tuple(size for size in own if self._needs(size) <= self.row_length) or own[:1]

    @property
    def size_word(self) -> str:
        """What a size counts."""
        return SIZES[self.task][0]

    def _needs(self, size: int) -> int:
        """Return tokens that a row of a size takes at least."""
        if self.task == "mqar":
            # The pairs, and each key once more with a place behind it.
            return 2 * size * self.passes + 2 * size
        if self.task == "induction":
            return size + 2
        if self.task in ("copy", "selective_copy"):
            return 2 * size + 1
        return size + 1

    def _check(self, size: int) -> None:
        if self._needs(size) > self.row_length:
            raise InputError(
                f"data.sizes={size}: {self.task} with {size} {self.size_word} takes {self._needs(size)} tokens, "
                f"data.length is {self.length}"
            )
        if self.task == "induction" and size < 2:
            raise InputError("data.sizes=1: at distance 1 the marker would be followed by itself; use 2 or more")
        keys = len(self.halves[0])
        if self.task == "mqar" and size > keys:
            raise InputError(f"data.sizes={size}: only {keys} of {self.n_tokens} tokens are keys")
