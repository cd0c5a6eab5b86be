"""The trained model that claims about migration are measured on, its texts, and what other blocks in it cost.

The texts are those that every machine with Python has: the standard library's source, and the help texts that it
carries. Half of each is for the moments, and pieces from the other half are reported on.
"""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from blockyard.claims.keep import recall
from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.pretrained.load import load_pretrained
from blockyard.text.tokenizer import Tokenizer
from blockyard.transplant.measure import pieces_of, token_losses
from blockyard.transplant.model import needs_moments, transplant
from blockyard.transplant.moments import Moments, gather_moments, stamp_of

LENGTH = 512
# Pieces of each kind: six for the moments, four that are reported on.
CALIBRATE, REPORT = 6, 4
# Characters that are read of each half of a kind; a token has three or more, and training takes most of them.
CHARACTERS = 120_000


@dataclass(frozen=True)
class Step:
    """A mixer or an FFN put into some layers.

    Attributes:
        blocks: as for `transplant`.
        layers: which; None = all.
    """

    blocks: str
    layers: tuple[int, ...] | None = None


class Trained:
    """A trained model, and what becomes of its loss with other blocks.

    Args:
        folder: of a pretrained model that `load_pretrained` reads.

    Attributes:
        calibrate: token ids [12, 512] for the moments.
        report: token ids [8, 512] that losses are measured on.
        running: token ids by kind of text, to train on; the moments' are among them.

    Raises:
        InputError: for a model that is not read, or comes without its tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        found = load_pretrained(folder, check=False)
        if found.tokenizer is None:
            raise InputError(f"{folder} has no tokenizer: claims about a trained model are measured on text")
        self.name, self.model = Path(found.where).name, found.model
        self.calibrate, self.report, self.running = _texts(found.tokenizer)

    @cached_property
    def stamp(self) -> str:
        """What tells measurements of this model and text from those of others."""
        return stamp_of(self.model, torch.cat([self.calibrate, self.report]))[:12]

    @cached_property
    def moments(self) -> Moments:
        """Moments of attentions and FFNs, gathered once."""
        return gather_moments(self.model, self.calibrate, ffns=True)

    @cached_property
    def original(self) -> float:
        """Loss of the model as it is, in nats per token."""
        return self.loss(())

    def loss(self, steps: Sequence[Step]) -> float:
        """Return the loss with these blocks in place, in nats per token.

        Args:
            steps: put in one after the other; each starts from the original's moments.
        """
        name = " then ".join(f"{step.blocks} in {step.layers or 'all'}" for step in steps) or "as it is"

        def measured() -> dict[str, float]:
            changed = self.model
            for step in steps:
                changed = self.with_step(changed, step)
            return {"loss": float(token_losses(changed, self.report).double().mean())}

        return recall(measured, f"trained {self.stamp} {name}")["loss"]

    def excess(self, *steps: Step) -> float:
        """Return by which part of it the loss is above the original's."""
        return self.loss(steps) / self.original - 1

    def with_step(self, model: TransformerLM, step: Step) -> TransformerLM:
        """Return a model in which one step more is made."""
        moments = self.moments if needs_moments(step.blocks) else None
        with warnings.catch_warnings():
            # That FFNs hardly compress is what is measured.
            warnings.simplefilter("ignore", UserWarning)
            return transplant(model, step.blocks, layers="all" if step.layers is None else step.layers, moments=moments)


def _texts(tokenizer: Tokenizer) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return pieces for the moments, pieces to report on, and what comes before the latter by kind, of code and of
    prose."""
    calibrate, report, running = list[Tensor](), list[Tensor](), dict[str, Tensor]()
    for kind, text in (("code", _code()), ("prose", _prose())):
        # From the two halves of a text, so that no piece continues one of the other role.
        running[kind] = torch.tensor(tokenizer.encode(text[: min(CHARACTERS, len(text) // 2)]))
        calibrate.append(pieces_of(running[kind], LENGTH, CALIBRATE))
        rest = tokenizer.encode(text[len(text) // 2 :][:CHARACTERS])
        report.append(pieces_of(torch.tensor(rest), LENGTH, REPORT))
    return torch.cat(calibrate), torch.cat(report), running


def _code() -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in sorted(library.glob("*.py"))[:60])


def _prose() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


_current: ContextVar[Trained | None] = ContextVar("trained", default=None)


@contextmanager
def measuring_on(folder: str | Path | None) -> Iterator[None]:
    """Measure claims about a trained model on the one in a folder, within it; none for no folder.

    Raises:
        InputError: as `Trained` does.
    """
    token = _current.set(None if folder is None else Trained(folder))
    try:
        yield
    finally:
        _current.reset(token)


def trained() -> Trained:
    """Return the model that claims are measured on.

    Raises:
        InputError: when none was given.
    """
    found = _current.get()
    if found is None:
        raise InputError("this claim is measured on a trained model: name its folder with --model")
    return found
