"""Research: mixers that share nothing with attention, trained to give the outputs of the blocks that they replace.

What such a mixer computes (spectral: a convolution whose kernel goes by the text) is no function of attention's
weights, so nothing can be fitted to moments. Value and output maps are copied where the new mixer has them; then every
new mixer learns, on the inputs that the original's layer reads, to make its block give what the original's block gives.
Layers read the original's inputs and not each other's, so all of them learn in one pass over the text. What is left can
be healed (`heal`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM, build_lm
from blockyard.nn.linear import weight_of
from blockyard.nn.parity import evaluating
from blockyard.registry.builtin import COMPLEX_FFN
from blockyard.registry.pattern import DEFAULT_FFN, check_layer, parse_choice, split_outside
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.model import chosen_layers, fill
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

RESEARCH = (
    "research: a mixer that shares nothing with attention replaces a part of what its layer did, and cannot look "
    "things up; measure loss and recall before you use it"
)


@dataclass(frozen=True)
class OutputSettings(PartSettings):
    """How new mixers are trained on their blocks' outputs.

    Args:
        seed: of the order of the pieces, and of the mixers' starts.

    Raises:
        InputError: for a number that is out of range, or fewer tokens than one step reads.
    """

    group: ClassVar[str] = "outputs"

    tokens: int = 76_800
    lr: float = 1e-3


@dataclass(frozen=True)
class OutputFit:
    """A model whose new mixers were trained on their blocks' outputs.

    Attributes:
        model: the new one.
        errors: relative squared error by layer, over the last tenth of the steps, of text read for the first time:
            1 is as far off as a block that adds nothing.
        curve: the same of every step, by layer.
        tokens: of text that were read.
        cpu_seconds: of all steps together.
    """

    model: TransformerLM
    errors: dict[int, float]
    curve: dict[int, tuple[float, ...]]
    tokens: int
    cpu_seconds: float


def fit_by_output(
    model: TransformerLM,
    blocks: str,
    texts: Mapping[str, Tensor],
    *,
    layers: Iterable[int] | Literal["all"] = "all",
    settings: OutputSettings = OutputSettings(),
    folder: str | Path | None = None,
    first: int | None = None,
    progress: StepProgress | None = None,
) -> OutputFit:
    """Put a mixer that shares nothing with attention into some layers, and train it on their outputs. Research.

    Args:
        model: trained, with standard attention in these layers; it is left as it is.
        blocks: the mixer, as one layer of a choice, such as `spectral[window=512]`; the FFN stays.
        texts: token ids by kind of text, int64 [n] each, in turns.
        layers: which, from 0 on.
        settings: how.
        folder: for its state: one that was ended there goes on, and ends with the same weights bit for bit.
        first: a token to begin every piece with.
        progress: called after every step with its number, how many there are, and the mean error of all layers.

    Raises:
        InputError: for a mixer that is fitted to weights (`transplant`), one that cannot be causal, layers that are not
            there or have no standard attention, texts too short, or a folder that holds another training.
        Interrupted: after SIGTERM or SIGINT, when the state has been saved in the folder.
    """
    chosen = chosen_layers(layers, len(model.layers))
    made = _with_mixer(model, blocks, chosen, settings.seed)
    pieces = pieces_by_kind(texts, settings, first, model.config.vocab_size)
    # Seen at the caller's line.
    warnings.warn(RESEARCH, stacklevel=2)
    parts = {f"layers.{i}.attn": made.layers[i].attn for i in chosen}
    with training_only(made, list(parts.values())):
        known = fingerprint(made, model, outputs=pieces)
        task = _Imitating(made, model, chosen, parts, in_turns(pieces, settings.seed), settings, known)
        # Unclipped: a norm over all layers would let one of them slow the others down.
        rows = train_parts(task, settings, folder, progress, grad_clip=0.0)
    curve = {i: tuple(float(row[f"{ERROR}{i}"]) for row in rows) for i in chosen}
    last = max(1, len(rows) // 10)
    errors = {i: sum(found[-last:]) / last for i, found in curve.items()}
    tokens = settings.steps * task.tokens_per_step
    return OutputFit(made.train(model.training), errors, curve, tokens, float(rows[-1]["cpu_seconds"]))


# What a line of metrics calls the error of a layer.
ERROR = "error/"


def _with_mixer(model: TransformerLM, blocks: str, chosen: list[int], seed: int) -> TransformerLM:
    """Return a copy with new mixers, their value and output maps those of the attention where both have the shape."""
    specs = parse_choice(blocks)
    if specs[0].ffn == COMPLEX_FFN:
        raise InputError(f"blocks={blocks!r}: complex mixers read complex streams, and the model's is real")
    if len(specs) != 1 or len(split_outside(blocks, "+")) > 1 or specs[0].ffn != DEFAULT_FFN or specs[0].ffn_options:
        raise InputError(f"blocks={blocks!r} should be one mixer, and layers are chosen by number")
    target = specs[0]
    if target.attn in ("standard", "mla"):
        raise InputError(f"{target.attn} is fitted to the trained weights: use transplant")
    layers = list(model.config.layers)
    for i in chosen:
        attention = model.layers[i].attn
        if not isinstance(attention, StandardAttention):
            raise InputError(f"layer {i} has {layers[i].attn}; what replaces it starts from standard attention")
        layers[i] = check_layer(replace(layers[i], attn=target.attn, attn_options=target.attn_options))
    made = build_lm(replace(model.config, blocks=tuple(layers)), seed)
    first = next(model.parameters())
    made = made.to(first.device, first.dtype)
    states = {}
    for i in chosen:
        own = {name: tensor.detach() for name, tensor in made.layers[i].attn.state_dict().items()}
        for name, weight in _paths(model.layers[i].attn).items():
            if name in own and own[name].shape == weight.shape:
                own[name] = weight
        states[f"layers.{i}.attn."] = own
    fill(made, model, states)
    return made


@torch.no_grad()
def _paths(attention: StandardAttention) -> dict[str, Tensor]:
    """Return the attention's value and output maps, one value head for every query head."""
    shared = attention.n_heads // attention.n_kv_heads
    values = weight_of(attention.v_proj).unflatten(0, (attention.n_kv_heads, -1)).repeat_interleave(shared, 0)
    return {"v_proj.weight": values.flatten(0, 1), "output_proj.weight": weight_of(attention.output_proj)}


class _Imitating:
    """The task that the loop trains: new blocks give the original blocks' outputs."""

    def __init__(
        self,
        made: TransformerLM,
        original: TransformerLM,
        chosen: list[int],
        parts: Mapping[str, nn.Module],
        order: list[Tensor],
        settings: OutputSettings,
        known: dict[str, Any],
    ) -> None:
        self.made, self.original, self.chosen, self.order = made, original, chosen, order
        self.model: nn.Module = Parts(parts, self._errors)
        self.batch_size, self.fingerprint = settings.batch, known
        self.tokens_per_step = settings.length * settings.batch
        trained = sum(p.numel() for p in self.model.parameters())
        blocks = sum(made.layers[i].cost(settings.length).flops for i in chosen)
        one = original.cost(settings.length).flops + 2 * blocks + 2 * settings.length * trained
        self.flops_per_step = settings.batch * one

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        start = step * self.batch_size
        return {"ids": torch.stack(self.order[start + rows.start : start + rows.stop])}

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        errors = model(batch["ids"])
        return errors.mean(), {f"{ERROR}{i}": e for i, e in zip(self.chosen, errors.detach())}

    def _errors(self, ids: Tensor) -> Tensor:
        """Return every chosen layer's relative squared error, of what its block adds to the stream."""
        errors = []
        for i, (x, wanted) in self._original(ids).items():
            found, _ = self.made.layers[i](x)
            # Without the first token: what a block adds there is hundreds of times as large as elsewhere.
            gap, whole = (found - wanted)[:, 1:], (wanted - x)[:, 1:]
            errors.append(gap.float().square().mean() / whole.float().square().mean())
        return torch.stack(errors)

    def _original(self, ids: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return what the original's chosen blocks read and give, [B, T, d] each."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def watch(layer: int) -> Any:
            def note(module: nn.Module, given: tuple[Tensor, ...], out: tuple[Tensor, Any]) -> None:
                seen[layer] = (given[0], out[0])

            return note

        handles = [self.original.layers[i].register_forward_hook(watch(i)) for i in self.chosen]
        try:
            with evaluating(self.original):
                self.original(ids, last=1)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        # Every piece is read once, so errors of the steps are those of new text.
        return {}

    def save_assets(self, folder: Path) -> None:
        return
