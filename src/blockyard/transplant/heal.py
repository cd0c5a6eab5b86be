"""A short training after a transplant: the new parts learn to give the original's predictions back.

The loss is KL(original ‖ new) of the next token, so any text will do, and it needs no labels. What was transplanted
trains, and by option low-rank additions to the other matrices (LoRA); all else stays. It helps on text like the one it
sees, and less elsewhere: take it as varied as the use. Pieces of different kinds of text come in turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.nn.parity import evaluating
from blockyard.training import TrainConfig
from blockyard.transplant.adapters import adapt, take_off
from blockyard.transplant.divergence import divergence
from blockyard.transplant.measure import token_losses
from blockyard.transplant.moments import add_weights
from blockyard.transplant.parts import Parts, StepProgress, train_parts, training_only

# Losses before the first step, beside the run's metrics.
START = "start.json"
# What a line of metrics calls the loss of a kind of text.
ON = "on/"


@dataclass(frozen=True)
class HealSettings:
    """How a model is healed.

    Args:
        tokens: of text to read; a multiple of `length · batch` is what is read of them.
        length: tokens of a piece, read from position 0: some hundred, and no more than the context of use.
        batch: pieces of a step.
        lr: learning rate of AdamW at its height: it rises over the first tenth of the steps and falls along a cosine.
        lora: rank of what is added to the matrices that were not transplanted; 0 leaves them.
        seed: of the order of the pieces, and of LoRA's starts.
        points: how often losses on other text are taken on the way, the last one at the end.
        save_every: steps between checkpoints.
        precision: `fp32`, `bf16` (mixed), or `auto`: bf16 where the machine has units for it.

    Raises:
        InputError: for a number that is out of range, or fewer tokens than one step reads.
    """

    tokens: int = 46_080
    length: int = 512
    batch: int = 1
    lr: float = 1e-4
    lora: int = 0
    seed: int = 0
    points: int = 6
    save_every: int = 15
    precision: Literal["auto", "fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("batch", 1), ("lora", 0), ("seed", 0), ("points", 1), ("save_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"heal.{name}={getattr(self, name)} should be at least {least}")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"heal.lr={self.lr} should be a number above 0")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"heal.precision={self.precision!r} should be auto, fp32 or bf16")
        if self.steps < 1:
            raise InputError(
                f"heal.tokens={self.tokens} is less than one step reads, {self.batch} x {self.length} tokens"
            )

    @property
    def steps(self) -> int:
        """Steps of the whole healing."""
        return self.tokens // (self.length * self.batch)


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
    pieces = _pieces(texts, settings, first)
    for ids in [*pieces.values(), *(select or {}).values()]:
        check_ids(ids, model.config.vocab_size)
    task_text, task_models = _text_digest(pieces, select), _models_digest(model, original)
    rest = _rest(model, set(new))
    adapted = adapt(rest, settings.lora, settings.seed) if settings.lora else {}
    # Merged only by a healing that came to its end: the run folder has the additions until then.
    merge = False
    try:
        parts = {**new, **{f"{name}.weight": added for name, (_, added) in adapted.items()}}
        with training_only(model, list(parts.values())) as trained:
            task = _Distilling(model, original, parts, pieces, settings, select or {})
            task.fingerprint = {"source": ", ".join(pieces), "sha256": task_text, "models_sha256": task_models}
            config, resolved = _options(settings)
            rows = train_parts(task, config, resolved, None if folder is None else Path(folder), progress)
            merge = True
            return _healing(task, rows, settings, sum(p.numel() for p in trained))
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
            name = f"layers.{i}.{part}"
            if name not in new:
                found += [(f"{name}.{inner}", m) for inner, m in getattr(block, part).named_modules() if inner]
    return found


def _pieces(texts: Mapping[str, Tensor], settings: HealSettings, first: int | None) -> dict[str, Tensor]:
    """Cut each kind's tokens into pieces [n, length].

    Raises:
        InputError: naming the kind that has too few.
    """
    if not texts:
        raise InputError("healing needs text: give token ids by kind of text")
    own = settings.length - (first is not None)
    # Of every kind equally many, as they come in turns; the first kinds have one more where it does not come out even.
    needed = settings.steps * settings.batch
    cut = {}
    for i, (kind, tokens) in enumerate(texts.items()):
        if tokens.ndim != 1:
            raise InputError(f"the {kind} text has shape {tuple(tokens.shape)}, expected token ids [n]")
        share = (needed - i + len(texts) - 1) // len(texts)
        there = len(tokens) // own
        if there < share:
            raise InputError(
                f"the {kind} text has {len(tokens):,} tokens; heal.tokens={settings.tokens} of {len(texts)} kinds takes "
                f"{share * own:,} of it"
            )
        pieces = tokens[: there * own].view(there, own)
        if first is not None:
            pieces = torch.cat([pieces.new_full((there, 1), first), pieces], 1)
        cut[kind] = pieces
    return cut


def _order(pieces: Mapping[str, Tensor], seed: int) -> list[Tensor]:
    """Return the pieces as they are read: kinds in turns, those of a kind shuffled by the seed."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [ids[torch.randperm(len(ids), generator=generator)] for ids in pieces.values()]
    most = max(len(ids) for ids in shuffled)
    # The same whatever the number of steps: more tokens go on with what fewer began.
    return [ids[i] for i in range(most) for ids in shuffled if i < len(ids)]


def _text_digest(pieces: Mapping[str, Tensor], select: Mapping[str, Tensor] | None) -> str:
    digest = hashlib.sha256()
    for role, texts in (("heal", pieces), ("select", select or {})):
        for kind, ids in texts.items():
            digest.update(f"{role} {kind} {tuple(ids.shape)} ".encode())
            digest.update(ids.cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _models_digest(model: TransformerLM, original: TransformerLM) -> str:
    digest = hashlib.sha256()
    for each in (model, original):
        digest.update(each.config.choice.encode())
        add_weights(digest, each)
    return digest.hexdigest()


def _options(settings: HealSettings) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the loop's options, and all that a healing which is gone on with must share."""
    steps = settings.steps
    config = TrainConfig(
        steps=steps,
        batch_size=settings.batch,
        # One piece a pass: activations of a whole model are what memory goes for.
        accumulate=settings.batch,
        optimizer="adamw",
        lr=settings.lr,
        weight_decay=0.0,
        warmup=max(1, steps // 10),
        final_lr=0.0,
        # One piece is a small batch: a rare token must not move everything.
        grad_clip=1.0,
        precision=settings.precision,
        compile="off",
        seed=settings.seed,
        eval_every=max(1, -(-steps // settings.points)),
        save_every=settings.save_every,
        save_best=False,
        keep=1,
        log_every=1,
        progress=False,
    )
    named = asdict(settings)
    train = {name: named.pop(name) for name in ("lr", "seed", "save_every", "precision")}
    del named["tokens"], named["points"]
    return config, {"heal": named, "train": {**train, "steps": steps, "warmup": config.warmup}}


class _Distilling:
    """The task that the loop trains: pieces in turns, KL to the original."""

    def __init__(
        self,
        model: TransformerLM,
        original: TransformerLM,
        parts: Mapping[str, nn.Module],
        pieces: Mapping[str, Tensor],
        settings: HealSettings,
        select: Mapping[str, Tensor],
    ) -> None:
        self.whole, self.original, self.select = model, original, select
        self.model: nn.Module = Parts(parts, self._divergence)
        self.order = _order(pieces, settings.seed)
        # Below it both models are one: they compute the same, and no gradient is wanted.
        self.lowest = min(int(name.split(".")[1]) for name in parts)
        self.batch_size = settings.batch
        self.tokens_per_step = settings.length * settings.batch
        self.flops_per_step = settings.batch * self._flops(settings.length)
        self.fingerprint: dict[str, Any] = {}
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


def _healing(task: _Distilling, rows: list[dict[str, Any]], settings: HealSettings, parameters: int) -> Healing:
    curve = [HealPoint(0, task.start)] if task.start else []
    for row in rows:
        loss = {kind: row[ON + kind] for kind in task.select if ON + kind in row}
        if loss:
            curve.append(HealPoint(int(row["tokens"]), loss))
    return Healing(
        tokens=settings.steps * task.tokens_per_step,
        divergences=tuple(float(row["loss"]) for row in rows),
        curve=tuple(curve),
        parameters=parameters,
        cpu_seconds=float(rows[-1]["cpu_seconds"]) if rows else 0.0,
    )
