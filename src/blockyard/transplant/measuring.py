"""The original and all choices measured on the text that nothing was chosen on; what was measured is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from blockyard.models.lm import TransformerLM
from blockyard.text.tokenizer import Tokenizer
from blockyard.transplant import account
from blockyard.transplant.measure import token_losses
from blockyard.transplant.record import Decode, Measures, made_from
from blockyard.transplant.state import Kept
from blockyard.transplant.texts import TextSets

# The original's name among the models.
ORIGINAL = ""
# What a worker keeps of a choice: its measures without times.
ANSWERS = "answers"


@dataclass(frozen=True)
class Measuring:
    """What measurements need beside the models.

    Attributes:
        texts: of which the reported part is read.
        tokenizer: turns samples into text.
        context: tokens at which caches are compared.
        state: keeps what was measured.
        progress: told what is being done, how much of it is, and out of how much.
        say: told in a line what begins.
    """

    texts: TextSets
    tokenizer: Tokenizer
    context: int
    state: Kept
    progress: Callable[[str, int, int], None]
    say: Callable[[str], None]

    def all(self, original: TransformerLM, made: Mapping[str, TransformerLM]) -> tuple[Measures, dict[str, Measures]]:
        """Measure the original and every choice; returns what was found of it, and of them by name."""
        reported, probe = self._asked(original)
        models = {ORIGINAL: original, **made}
        known = {name: self.state.known("measures", name) for name in models}
        if any(found is None for found in known.values()):
            costs = self._decode(models, reported)
            with self.state.timing("measure"):
                before = self._losses("the original", original, reported)
            for name, each in models.items():
                if known[name] is not None:
                    continue
                if (answers := self.state.known(ANSWERS, name)) is not None:
                    # Of a worker, which knows nothing of the times.
                    found = replace(made_from(Measures, answers), decode=costs[name])
                    known[name] = self.state.keep(asdict(found), "measures", name)
                    continue
                with self.state.timing(f"measure/{name}" if name else "measure"):
                    losses = self._losses(name, each, reported) if name else before
                    found = self._answers(name, each, probe, before if name else None, losses, costs[name])
                known[name] = self.state.keep(asdict(found), "measures", name)
        measures = {name: made_from(Measures, kept) for name, kept in known.items()}
        return measures.pop(ORIGINAL), measures

    def answers(self, original: TransformerLM, name: str, made: TransformerLM, before: dict[str, Tensor]) -> None:
        """Measure one choice, and keep what was found; but for times, which are taken of all models in turns.

        Args:
            original: the model that it was made of.
            name: of the choice.
            made: its model.
            before: the original's losses by kind of text; taken here where it is empty, for the choices that follow.
        """
        if self.state.known("measures", name) is not None or self.state.known(ANSWERS, name) is not None:
            return
        reported, probe = self._asked(original)
        with self.state.timing(f"measure/{name}"):
            if not before:
                before |= self._losses("the original", original, reported)
            losses = self._losses(name, made, reported)
            found = self._answers(name, made, probe, before, losses, ())
        self.state.keep(asdict(found), ANSWERS, name)

    def _asked(self, original: TransformerLM) -> tuple[dict[str, Tensor], account.Probe]:
        """Return the text that is reported on by kind, and what every model is asked."""
        reported = {kind.name: kind.report for kind in self.texts.kinds}
        first = self.texts.first[0] if self.texts.first else None
        return reported, account.make_probe(reported, first, context=original.config.context)

    def _answers(
        self,
        name: str,
        model: TransformerLM,
        probe: account.Probe,
        before: dict[str, Tensor] | None,
        losses: dict[str, Tensor],
        decode: tuple[Decode, ...],
    ) -> Measures:
        return account.measure(
            model,
            probe,
            self.tokenizer,
            original=before,
            losses=losses,
            decode=decode,
            say=partial(self._begins, name or "the original"),
        )

    def _decode(
        self, models: Mapping[str, TransformerLM], texts: Mapping[str, Tensor]
    ) -> dict[str, tuple[Decode, ...]]:
        """Time decoding, all models in turns; once, since times of two occasions are not compared."""
        known = self.state.known("decode")
        if known is None or set(known) != set(models):
            contexts = sorted({*(c for c in account.CONTEXTS if c < self.context), self.context})
            with self.state.timing("decode"):
                fill = account.decode_text(texts)
                told = partial(self._begins, "timing")
                costs = account.decode_costs(models, fill, contexts, reference=ORIGINAL, say=told)
            known = self.state.keep({name: [asdict(each) for each in found] for name, found in costs.items()}, "decode")
        return {name: tuple(made_from(Decode, each) for each in found) for name, found in known.items()}

    def _losses(self, name: str, model: TransformerLM, texts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of every token by kind, piece by piece for whoever watches."""
        found, done, total = dict[str, Tensor](), 0, sum(len(ids) for ids in texts.values())
        for kind, ids in texts.items():
            rows = []
            for piece in ids:
                rows.append(token_losses(model, piece[None]))
                done += 1
                self.progress(f"reporting on {name}", done, total)
            found[kind] = torch.cat(rows)
        return found

    def _begins(self, what: str, line: str) -> None:
        self.say(f"{what}: {line}")
