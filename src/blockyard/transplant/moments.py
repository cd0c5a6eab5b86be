"""Second moments of what a model's attentions read: all that the fits need of a text, since keys, values and queries
are linear maps of it.

Of each layer, over tokens t, heads h and the weights p_hts that a query gives:

    uniform    C = E[x xᵀ]
    received   R = E[Σ_s p_ts x_s x_sᵀ]: a token counts by the attention it receives, and the first one most of all
    mixed      X = E[x̄ x̄ᵀ], x̄_t = Σ_s p_ts x_s: what values become once they are mixed
    distances  how far away heads look: E[Σ_s p_ts 1(t − s = Δ)] for every head and Δ

and of its FFN, where that is asked for, what it reads and what it writes: E[h hᵀ], E[y yᵀ].

They are sums over pieces of text, so they can be kept after every few pieces and gone on with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.files import writing
from blockyard.machine.memory import refuse_beyond_memory
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.nn.parity import evaluating
from blockyard.standard.attention import StandardAttention
from blockyard.transplant.source import has_biases

FORMAT = "1"
ATTENTION, FFN = ("uniform", "received", "mixed", "distances"), ("read", "written")
# Pieces after which a file is written anew.
EVERY = 4
# Share of C in the others: a direction that no attended token has should not count as nothing.
SHRINK = 0.02


@dataclass(frozen=True)
class LayerMoments:
    """Moments of one attention's inputs, in float64.

    Where queries, keys and values have biases, x has a 1 behind it, and d is one more than d_model.

    Attributes:
        uniform: C [d, d].
        received: R [d, d].
        mixed: X [d, d].
        distances: [n_heads, context]; each row sums to 1.
    """

    uniform: Tensor
    received: Tensor
    mixed: Tensor
    distances: Tensor

    @property
    def of_values(self) -> Tensor:
        """What values are fitted under: X, and a little of C."""
        return self.mixed + SHRINK * self.uniform

    @property
    def of_keys(self) -> Tensor:
        """What keys are fitted under: R."""
        return self.received

    @property
    def of_both(self) -> Tensor:
        """What latents of keys and values together are fitted under: the mean of R and C."""
        return (self.received + self.uniform) / 2


@dataclass(frozen=True)
class FFNMoments:
    """Moments of one FFN, in float64.

    Attributes:
        read: of its inputs [d, d].
        written: of its outputs [d, d].
    """

    read: Tensor
    written: Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of a model's layers.

    Attributes:
        layers: by layer, of those whose mixer is standard attention.
        tokens: how many they are means over.
        ffns: by layer, of FFNs, where they were asked for.
    """

    layers: dict[int, LayerMoments]
    tokens: int
    ffns: dict[int, FFNMoments] = field(default_factory=dict)

    def of_ffn(self, layer: int) -> FFNMoments:
        """Return the moments of one layer's FFN; InputError for one that has none."""
        if layer not in self.ffns:
            raise InputError(f"layer {layer} has no moments of its FFN: gather them with ffns=True")
        return self.ffns[layer]

    def of(self, layer: int) -> LayerMoments:
        """Return the moments of one layer; InputError for one that has none."""
        if layer not in self.layers:
            raise InputError(f"layer {layer} has no moments: gathered are those of {sorted(self.layers)}")
        return self.layers[layer]


@torch.no_grad()
def gather_moments(
    model: TransformerLM,
    ids: Tensor,
    *,
    ffns: bool = False,
    path: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """Read pieces of text and take the moments of every standard attention's inputs.

    A piece is read whole, from position 0, so its length should be the context of use: how far heads look, and what
    the first token receives, depend on it.

    Args:
        model: a causal language model.
        ids: token ids [pieces, length], on the model's device.
        ffns: take the moments of FFNs, too (pre-norm blocks).
        path: a file (safetensors) to keep the sums in; one that is there and belongs to this model and text is gone on
            with, so that a run that was ended loses a few pieces at most.
        progress: called with the pieces read and their number.

    Raises:
        InputError: for ids that are none of the model's, a model without standard attention, a file that belongs to
            another model or text, or moments beyond the memory.
    """
    check_ids(ids, model.config.vocab_size)
    watched = {i: block.attn for i, block in enumerate(model.layers) if _watchable(block)}
    read = {i: block for i, block in enumerate(model.layers) if ffns and getattr(block, "pre", False)}
    if ffns and not read:
        raise InputError("no layer of this model is a pre-norm block: there are no moments of FFNs to take")
    if not watched:
        raise InputError("no layer of this model has standard attention: there are no moments to take")
    width, heads, length = model.config.d_model, model.config.n_heads, ids.shape[1]
    needed = 8 * (len(watched) * (3 * width**2 + heads * length) + len(read) * 2 * width**2)
    refuse_beyond_memory(needed, "moments of all layers take {}")
    # With biases the heads are linear in x with a 1 behind it.
    sums = _Sums.empty({i: width + has_biases(attn) for i, attn in watched.items()}, read, width, heads, length)
    path = None if path is None else Path(path)
    # Sums of another model or text would be added to without a word.
    stamp = stamp_of(model, ids) if path is not None else ""
    done = sums.load(path, stamp) if path is not None and path.exists() else 0
    with evaluating(model), _watching(watched, read, sums):
        for piece in range(done, len(ids)):
            # Only what the layers read is wanted: one row of logits is the fewest that a model gives.
            model(ids[piece : piece + 1], last=1)
            if progress is not None:
                progress(piece + 1, len(ids))
            if path is not None and ((piece + 1) % EVERY == 0 or piece + 1 == len(ids)):
                sums.save(path, stamp, piece + 1)
    return sums.means(ids.numel())


def _watchable(block: Any) -> bool:
    attn = getattr(block, "attn", None)
    return isinstance(attn, StandardAttention) and attn.causal


class _Sums:
    """Sums over pieces, by layer and name."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def empty(cls, layers: dict[int, int], ffns: Iterable[int], width: int, heads: int, length: int) -> _Sums:
        """Return sums of nothing; `layers` are the attentions' widths."""
        made = {f"{i}.{name}": torch.zeros(width, width, dtype=torch.float64) for i in ffns for name in FFN}
        for i, own in layers.items():
            for name in ATTENTION[:3]:
                made[f"{i}.{name}"] = torch.zeros(own, own, dtype=torch.float64)
            made[f"{i}.distances"] = torch.zeros(heads, length, dtype=torch.float64)
        return cls(made)

    def add(self, layer: int, x: Tensor, weights: Tensor) -> None:
        """Take in a piece: x [T, d], and the weights [H, T, T] of its attention."""
        heads, length = weights.shape[0], len(x)
        # Products in float32 over one piece, sums over pieces in float64.
        x = x.float()
        if x.shape[1] < len(self.tensors[f"{layer}.uniform"]):
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        weights = weights.float()
        mixed = (weights @ x).flatten(0, 1)
        received = weights.sum((0, 1)).unsqueeze(1) / heads
        steps = torch.arange(length, device=x.device)
        away = (steps[:, None] - steps).clamp(min=0).flatten()
        distances = weights.new_zeros(heads, length).index_add_(1, away, weights.flatten(1))
        found = {
            "uniform": x.mT @ x,
            "received": x.mT @ (x * received),
            "mixed": mixed.mT @ mixed / heads,
            "distances": distances,
        }
        self._add(layer, found)

    def add_ffn(self, layer: int, h: Tensor, y: Tensor) -> None:
        """Take in what an FFN reads and writes of a piece, [T, d] each."""
        h, y = h.float(), y.float()
        self._add(layer, {"read": h.mT @ h, "written": y.mT @ y})

    def _add(self, layer: int, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            self.tensors[f"{layer}.{name}"] += value.to("cpu", torch.float64)

    def means(self, tokens: int) -> Moments:
        def of(names: tuple[str, ...]) -> dict[int, list[Tensor]]:
            layers = sorted(int(name.partition(".")[0]) for name in self.tensors if name.endswith(f".{names[0]}"))
            return {i: [self.tensors[f"{i}.{name}"] / tokens for name in names] for i in layers}

        attentions = {i: LayerMoments(*found) for i, found in of(ATTENTION).items()}
        return Moments(attentions, tokens, {i: FFNMoments(*found) for i, found in of(FFN).items()})

    def save(self, path: Path, stamp: str, pieces: int) -> None:
        safetensors = require("safetensors.torch", extra="train")
        with writing(path) as file:
            about = {"format": FORMAT, "stamp": stamp, "pieces": str(pieces)}
            file.write(safetensors.save(self.tensors, metadata=about))

    def load(self, path: Path, stamp: str) -> int:
        """Go on with a file's sums; returns how many pieces they hold."""
        safe_open = require("safetensors", extra="train").safe_open
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT or about.get("stamp") != stamp:
                    raise InputError(
                        f"{path} holds moments of another model or text, or none: remove it, or name another file"
                    )
                if set(file.keys()) != set(self.tensors):
                    raise InputError(f"{path} holds moments of other layers: remove it, or name another file")
                for name, tensor in self.tensors.items():
                    tensor.copy_(file.get_tensor(name))
                return int(about["pieces"])
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read as moments: {str(error).splitlines()[0]}") from error
        except require("safetensors", extra="train").SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}): remove it") from error


@contextmanager
def _watching(attentions: dict[int, StandardAttention], blocks: dict[int, Any], sums: _Sums) -> Iterator[None]:
    """Let every call of these attentions, and of the FFNs of these blocks, add to the sums within it."""

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "return_weights": True}

    def watch(layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
            sums.add(layer, args[0][0], output[1][0])

        return note

    def watch_ffn(layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # A block calls its FFN in more than one way; the norm in front of it in one.
            sums.add_ffn(layer, output[0], blocks[layer].ffn(output)[0])

        return note

    with ExitStack() as stack:
        for layer, block in blocks.items():
            stack.callback(block.ln2.register_forward_hook(watch_ffn(layer)).remove)
        for layer, attention in attentions.items():
            stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
            stack.callback(attention.register_forward_hook(watch(layer)).remove)
        yield


def stamp_of(model: TransformerLM, ids: Tensor) -> str:
    """Return what tells this model and text from others."""
    digest = hashlib.sha256(f"{architecture_of(model)} {tuple(ids.shape)}".encode())
    digest.update(ids.cpu().contiguous().numpy().tobytes())
    add_weights(digest, model)
    return digest.hexdigest()


def architecture_of(model: TransformerLM) -> str:
    """Return what tells models of equal weights apart: all of the configuration, since blocks alone say neither how
    many heads nor how fast they turn."""
    return repr(replace(model.config, blocks=model.config.choice))


def add_weights(digest: Any, model: nn.Module) -> None:
    """Let a digest of hashlib take in the weights of a model, by name."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        # As bytes: numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
