"""For the command-line tests: a family of toy blocks, registered only while a test runs, and small helpers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import Tensor, nn

from blockyard.cli import main
from blockyard.registry import register as registry

TEXT = "".join(f"line {n}: the quick brown fox jumps over {n * n} lazy dogs\n" for n in range(300))


def words(folder: Path, **settings: Any) -> list[str]:
    """A run of two steps of a tiny model on the text of the folder; settings by flag, with _ for the dot's dash."""
    flags: dict[str, Any] = {
        "data.path": folder / "text.txt",
        "data.cache_dir": folder / "cache",
        "train.steps": 2,
        "train.batch_size": 2,
        "train.eval_batches": 1,
        "train.log_every": 1,
        "train.compile": "off",
        "train.device": "cpu",
        "train.progress": "false",
        "model.d_model": 16,
        "model.n_layers": 1,
        "model.n_heads": 2,
        "model.context": 16,
        **settings,
    }
    return ["train", "lm", *(f"--{name}={value}" for name, value in flags.items())]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that must fail with status 2."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").strip()


class ToyMixer(nn.Module):
    """Mixes nothing.

    Args:
        vigour: how much of nothing.
        shade: in which colour.
        depth: differs from the FFN's in its default.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        vigour: int = 4,
        shade: Literal["red", "green"] = "red",
        loud: bool = False,
        depth: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()

    def forward(self, x: Tensor, *, causal: bool | None = None) -> tuple[Tensor, None]:
        return x, None


class ToyFFN(nn.Module):
    """Does nothing to each position.

    Args:
        vigour: how much of nothing.
        toy_width: only the FFN has it.
    """

    def __init__(self, d_model: int, *, vigour: int = 4, toy_width: float | None = None, depth: int = 2) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class NeedyMixer(nn.Module):
    """Cannot be built without its one option.

    Args:
        size: there is no good default.
    """

    def __init__(self, d_model: int, *, size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


@contextmanager
def toys() -> Iterator[None]:
    """toy_mixer and toy_ffn in the family `toy`, needy in its own."""
    registry.register_attn("toy_mixer", group="toy")(ToyMixer)
    registry.register_ffn("toy_ffn", group="toy")(ToyFFN)
    registry.register_attn("needy")(NeedyMixer)
    try:
        yield
    finally:
        # Only the toys go: a built-in that was loaded meanwhile would not come back.
        for key in (("attn", "toy_mixer"), ("ffn", "toy_ffn"), ("attn", "needy")):
            registry._register.entries.pop(key, None)
