"""A short training after a transplant: the new parts learn to give the original's predictions back.

The loss is KL(original ‖ new) of the next token, so any text will do, and it needs no labels. What was transplanted
trains, and by option low-rank additions to the other matrices (LoRA); all else stays. It helps on text like the one it
sees, and less elsewhere: take it as varied as the use. Pieces of different kinds of text come in turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.moe.router import Router
from blockyard.nn.parity import evaluating
from blockyard.transplant.adapters import adapt, take_off
from blockyard.transplant.divergence import divergence
from blockyard.transplant.measure import token_losses
from blockyard.transplant.parts import (
    Parts,
    PartSettings,
    StepProgress,
    fingerprint,
    in_turns,
    pieces_by_kind,
    train_parts,
    training_only,
)

# Losses before the first step, beside the run's metrics.
START = "start.json"
# What a line of metrics calls the loss of a kind of text.
ON = "on/"


@dataclass(frozen=True)
class HealSettings(PartSettings):
    """How a model is healed.

    Args:
        seed: of the order of the pieces, and of LoRA's starts.
        lora: rank of what is added to the matrices that were not transplanted; 0 leaves them.
        points: how often losses on other text are taken on the way, the last one at the end.

    Raises:
        InputError: for a number that is out of range, or fewer tokens than one step reads.
    """

    group: ClassVar[str] = "heal"
    least: ClassVar[Mapping[str, int]] = {**PartSettings.least, "lora": 0, "points": 1}

    # Measured with balanced scales: docs/transplant.md.
    lr: float = 3e-4
    lora: int = 0
    points: int = 6


@dataclass(frozen=True)
class HealPoint:
    """A model on the way.

    Attributes:
        tokens: of text that it had been healed with.
        loss: nats per token by kind of text, of the text that tells of the healing.
    """

    tokens: int
    loss: dict[str, float]


@dataclass(frozen=True)
class Healing:
    """What a healing did.

    Attributes:
        tokens: of text that were read.
        divergences: KL(original ‖ new) in nats per token, of every step before it was made.
        curve: losses on other text, from before the first step to the end; empty where none was given.
        parameters: how many trained, a shared one once.
        cpu_seconds: of all steps together.
    """

    tokens: int
    divergences: tuple[float, ...]
    curve: tuple[HealPoint, ...]
    parameters: int
    cpu_seconds: float


def heal(
    model: TransformerLM,
    original: TransformerLM,
    texts: Mapping[str, Tensor],
    *,
    settings: HealSettings = HealSettings(),
    folder: str | Path | None = None,
    select: Mapping[str, Tensor] | None = None,
    first: int | None = None,
    progress: StepProgress | None = None,
) -> Healing:
    """Train what was transplanted to give the original's predictions.

    Args:
        model: from `transplant`, on one device with the original; trained in place. Its other weights stay, also tied
            ones; with `settings.lora` what was added to them is merged in at the end.
        original: what it was made of.
        texts: token ids by kind of text, int64 [n] each; every kind gives equally many pieces, in turns.
        settings: how.
        folder: for its state: a healing that was ended there goes on, and ends with the same weights bit for bit; one
            that was finished is read. None keeps nothing.
        select: token ids by kind of text [pieces, length], none of them in `texts`: losses on them are taken on the
            way. Not the text that is reported on.
        first: a token to begin every piece of `texts` with, such as the model's first one.
        progress: called after every step with its number, how many there are, and its divergence.

    Raises:
        InputError: for models of other shapes, or one in which nothing was transplanted; texts too short for
            `settings.tokens`; a folder that holds another healing.
        Interrupted: after SIGTERM or SIGINT, when the state has been saved in the folder.
    """
    new = transplanted(model, original)
    select = select or {}
    pieces = pieces_by_kind(texts, settings, first, model.config.vocab_size)
    for ids in select.values():
        check_ids(ids, model.config.vocab_size)
    known = fingerprint(model, original, heal=pieces, select=select)
    adapted = adapt(_rest(model, set(new)), settings.lora, settings.seed) if settings.lora else {}
    # Merged only by a healing that came to its end: until then the run folder has the additions.
    merge = False
    try:
        parts = {**new, **{f"{name}.weight": added for name, (_, added) in adapted.items()}}
        with training_only(model, list(parts.values())) as trained:
            task = Distilling(model, original, parts, in_turns(pieces, settings.seed), settings, select, known)
            every = -(-settings.steps // settings.points)
            rows = train_parts(task, settings, folder, progress, eval_every=every)
            merge = True
        curve = [HealPoint(0, task.start)] if task.start else []
        for row in rows:
            if loss := {kind: row[ON + kind] for kind in select if ON + kind in row}:
                curve.append(HealPoint(int(row["tokens"]), loss))
        return Healing(
            tokens=settings.steps * task.tokens_per_step,
            divergences=tuple(float(row["loss"]) for row in rows),
            curve=tuple(curve),
            parameters=sum(p.numel() for p in trained),
            cpu_seconds=float(rows[-1]["cpu_seconds"]),
        )
    finally:
        take_off(adapted.values(), merge=merge)


def transplanted(model: TransformerLM, original: TransformerLM) -> dict[str, nn.Module]:
    """Return the mixers and FFNs that are others than the original's, by their names in the model.

    Raises:
        InputError: for models of other vocabularies or depths, or without any.
    """
    if model.config.vocab_size != original.config.vocab_size or len(model.layers) != len(original.layers):
        raise InputError("these models have other vocabularies or depths: heal takes a model and what it was made of")
    found: dict[str, nn.Module] = {}
    for i, (block, new, old) in enumerate(zip(model.layers, model.config.layers, original.config.layers)):
        if (new.attn, new.attn_options) != (old.attn, old.attn_options):
            found[f"layers.{i}.attn"] = block.attn
        if (new.ffn, new.ffn_options) != (old.ffn, old.ffn_options):
            found[f"layers.{i}.ffn"] = block.ffn
    if not found:
        raise InputError("nothing was transplanted in this model: its blocks are the original's")
    return found


def _rest(model: TransformerLM, new: set[str]) -> list[tuple[str, nn.Module]]:
    """Return the modules of mixers and FFNs that were not transplanted, by their names in the model."""
    found = []
    for i, block in enumerate(model.layers):
        for part in ("attn", "ffn"):
            name, module = f"layers.{i}.{part}", getattr(block, part)
            if name in new:
                continue
            # Nothing keeps the load of experts even here, so who is sent where stays as it was learned.
            routing = {inner for each in module.modules() if isinstance(each, Router) for inner in each.modules()}
            found += [(f"{name}.{inner}", m) for inner, m in module.named_modules() if inner and m not in routing]
    return found


class Distilling:
    """The task that the loop trains: pieces in turns, KL to the original."""

    def __init__(
        self,
        model: TransformerLM,
        original: TransformerLM,
        parts: Mapping[str, nn.Module],
        order: list[Tensor],
        settings: HealSettings,
        select: Mapping[str, Tensor],
        known: dict[str, Any],
    ) -> None:
        self.whole, self.original, self.select = model, original, select
        self.model: nn.Module = Parts(parts, self._divergence)
        self.order, self.fingerprint = order, known
        # Below it both models are one: they compute the same, and no gradient is wanted.
        self.lowest = min(int(name.split(".")[1]) for name in parts)
        self.batch_size = settings.batch
        self.tokens_per_step = settings.length * settings.batch
        self.flops_per_step = settings.batch * self._flops(settings.length)
        self.start: dict[str, float] = {}

    def _flops(self, length: int) -> int:
        """Return FLOPs of one piece: the original forward, the new one forward and back, gradients of what trains."""
        shared = sum(layer.cost(length).flops for layer in self.original.layers[: self.lowest])
        trained = sum(p.numel() for p in self.model.parameters())
        own = self.whole.cost(length).flops - shared
        return self.original.cost(length).flops + 2 * own + 2 * length * trained

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        start = step * self.batch_size
        return {"ids": torch.stack(self.order[start + rows.start : start + rows.stop])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch["ids"]), {}

    def _divergence(self, ids: Tensor) -> Tensor:
        x, wanted = self._original(ids)
        for layer in self.whole.layers[self.lowest :]:
            x, _ = layer(x)
        return divergence(self.whole.ln_final(x), wanted, _scores(self.whole), _scores(self.original))

    def _original(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the original's lowest layer that differs reads, and what its head reads, both [B, T, d]."""
        read: list[Tensor] = []
        layers = self.original.layers
        handles = [
            layers[self.lowest].register_forward_pre_hook(lambda module, given: read.append(given[0])),
            layers[-1].register_forward_hook(lambda module, given, out: read.append(out[0])),
        ]
        try:
            with evaluating(self.original):
                # Of its own logits the fewest: the head is applied with the other model's, some rows at a time.
                self.original(ids, last=1)
                x, last = read
                return x, self.original.ln_final(last)
        finally:
            for handle in handles:
                handle.remove()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {f"{ON}{kind}": loss for kind, loss in self._losses().items()}

    def _losses(self) -> dict[str, float]:
        """Return the loss by kind of text, in nats per token."""
        device = next(self.whole.parameters()).device
        # As it will be used, whatever it is trained in.
        with torch.autocast(device.type, enabled=False):
            return {k: float(token_losses(self.whole, ids.to(device)).mean()) for k, ids in self.select.items()}

    def save_assets(self, folder: Path) -> None:
        """Keep the losses before the first step: asked for before any weight is trained or read back."""
        path = folder / START
        if not path.exists():
            write_atomically(path, json.dumps(self._losses()))
        self.start = parse_json(path.read_text(encoding="utf-8"))


def _scores(model: TransformerLM) -> Any:
    """Return what makes logits of the last activations."""

    def score(x: Tensor) -> Tensor:
        logits = model.lm_head(x)
        cap = model.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return score
