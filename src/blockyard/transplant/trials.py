"""Choices measured on text that decides: layers one at a time for an order, and whole choices.

One layer at a time is the larger part of the work, so it is done piece by piece: the original reads a piece once, what
entered each layer is kept, and a layer's trial runs from there on only. Layers are ordered by KL(original ‖ new), the
loss that is to be expected of a text like the one the original would write: it has no noise of which token came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from blockyard.models.lm import TransformerLM
from blockyard.nn.parity import evaluating
from blockyard.transplant.measure import Difference, difference_over

# Rows of logits at a time: a vocabulary is wide.
ROWS = 256


def lone_costs(
    model: TransformerLM,
    layers: Mapping[int, nn.Module],
    piece: Tensor,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, tuple[float, float]]:
    """Measure layers of another model, each alone among a model's own, on one piece of text.

    Args:
        model: whose other layers stay.
        layers: the other ones, by number.
        piece: token ids [T].
        progress: called with the layers done.

    Returns: by layer, nats per token: KL(model ‖ with the other layer), and how much larger the loss is.
    """
    piece = piece.to(next(model.parameters()).device)
    with evaluating(model, *layers.values()):
        x = model.embedded(piece[None, :-1])
        entries = []
        for layer in model.layers:
            entries.append(x)
            x, _ = layer(x)
        # The original's distributions are held: every layer's are compared with them.
        wanted = torch.cat([part.log_softmax(-1) for part in _logits(model, x)])
        targets = piece[1:, None]
        losses = -wanted.gather(1, targets).squeeze(1)
        found = {}
        for done, (i, other) in enumerate(layers.items(), 1):
            x, _ = other(entries[i])
            for layer in model.layers[i + 1 :]:
                x, _ = layer(x)
            kl = above = 0.0
            for start, part in zip(range(0, len(wanted), ROWS), _logits(model, x)):
                there, here = wanted[start : start + ROWS], part.log_softmax(-1)
                kl += float((there.exp() * (there - here)).sum(dtype=torch.float64))
                new = -here.gather(1, targets[start : start + ROWS]).squeeze(1)
                above += float((new - losses[start : start + ROWS]).sum(dtype=torch.float64))
            found[i] = (kl / len(wanted), above / len(wanted))
            progress(done)
    return found


def _logits(model: TransformerLM, x: Tensor) -> Iterator[Tensor]:
    """Yield the logits [ROWS, vocab_size] of what left the last block [1, T, d_model], in float32."""
    for part in model.ln_final(x)[0].split(ROWS):
        yield model.scored(part).float()


def over_kinds(each: Sequence[float], kinds: Sequence[int], tokens: int) -> Difference:
    """Return the mean of differences, one of each piece, with its interval within kinds.

    Args:
        each: nats per token, by piece.
        kinds: of which kind each piece is.
        tokens: scored in a piece.
    """
    found = torch.tensor(each, dtype=torch.float64)
    of = torch.tensor(kinds)
    new = [found[of == kind, None].expand(-1, tokens) for kind in sorted(set(kinds))]
    return difference_over(new, [torch.zeros_like(one) for one in new])


@contextmanager
def mixed(fitted: TransformerLM, model: TransformerLM, chosen: Iterable[int]) -> Iterator[None]:
    """Let the fitted model have its own layers where chosen, and the original's elsewhere, within it."""
    own, taken = list(fitted.layers), set(chosen)
    try:
        for i, layer in enumerate(model.layers):
            fitted.layers[i] = own[i] if i in taken else layer
        yield
    finally:
        for i, layer in enumerate(own):
            fitted.layers[i] = layer


def share_weights(made: nn.Module, model: nn.Module) -> None:
    """Let a model that is only measured hold another one's weights where they are equal: half the memory."""
    modules = dict(made.named_modules())
    for name, weight in model.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        mine = getattr(modules.get(owner), leaf, None)
        if isinstance(mine, nn.Parameter) and mine.shape == weight.shape and torch.equal(mine, weight):
            setattr(modules[owner], leaf, weight)
