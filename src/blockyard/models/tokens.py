"""The one check of token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.derivatives import hidden


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise InputError unless the ids are integers [batch, length] within the vocabulary."""
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}, expected [batch, length], both at least 1")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise InputError(f"input_ids has dtype {input_ids.dtype}, expected integers")
    # Elsewhere than on a CPU the read would stall the device, and neither a compiled graph nor vmap can branch on it.
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and not hidden(input_ids):
        low, high = (int(end) for end in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise InputError(f"input_ids holds {wrong}, outside a vocabulary of {vocab_size} tokens")
