"""A short training after a transplant: the new mixers learn to give the original's predictions back.

The loss is KL(original ‖ new) of the next token, so any text will do, and it needs no labels; all but what was
transplanted stays as it is. It helps on text like the one it sees, and little elsewhere: take it as varied as the use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.nn.parity import evaluating


def heal(
    model: TransformerLM,
    original: TransformerLM,
    ids: Tensor,
    *,
    lr: float = 1e-4,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train what was transplanted to give the original's predictions; one step of AdamW for each piece of text.

    Args:
        model: from `transplant`; trained in place. Its other weights stay, also tied ones.
        original: what it was made of.
        ids: token ids [pieces, length]; some hundred tokens a piece.
        lr: learning rate at its height: it rises over the first tenth of the steps and falls to nothing.
        progress: called with each step's number, from 1 on, and its loss.

    Returns: KL(original ‖ model) in nats per token, of every piece before its step.

    Raises:
        InputError: for models of other shapes, or one in which nothing was transplanted.
    """
    check_ids(ids, model.config.vocab_size)
    trained = [p for module in _transplanted(model, original) for p in module.parameters()]
    wished = {parameter: parameter.requires_grad for parameter in model.parameters()}
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses = []
    try:
        # Tied and shared weights stay as they are, whoever else reads them.
        for parameter in wished:
            parameter.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        for step, piece in enumerate(ids):
            for group in optimizer.param_groups:
                group["lr"] = lr * _share(step, len(ids))
            with evaluating(original):
                wanted = original(piece[None]).logits[0].float().log_softmax(-1)
            found = model(piece[None]).logits[0].float().log_softmax(-1)
            # Towards the original's whole distribution: it says more of a token than the one that came.
            loss = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            # One piece is a small batch: a rare token must not move everything.
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(step + 1, losses[-1])
    finally:
        for parameter, wish in wished.items():
            parameter.requires_grad_(wish)
            parameter.grad = None
    return losses


def _share(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step."""
    warm = max(1, steps // 10)
    return min(1.0, (step + 1) / warm, (steps - step) / max(1, steps - warm))


def _transplanted(model: TransformerLM, original: TransformerLM) -> list[nn.Module]:
    """Return the mixers and FFNs that are others than the original's."""
    if model.config.vocab_size != original.config.vocab_size or len(model.layers) != len(original.layers):
        raise InputError("these models have other vocabularies or depths: heal takes a model and what it was made of")
    found = []
    for block, new, old in zip(model.layers, model.config.layers, original.config.layers):
        if (new.attn, new.attn_options) != (old.attn, old.attn_options):
            found.append(block.attn)
        if (new.ffn, new.ffn_options) != (old.ffn, old.ffn_options):
            found.append(block.ffn)
    if not found:
        raise InputError("nothing was transplanted in this model: its blocks are the original's")
    return found
