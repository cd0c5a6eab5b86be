"""What `MultiheadAttention` needs to know of torch's own: its weights' names, its encoders' shortcut, its masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.standard.attention import StandardAttention

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_KEYS = ("in_proj_weight", *_APART, "in_proj_bias", "out_proj.weight", "out_proj.bias", "bias_k", "bias_v")


class Unpacked:
    """A stand-in for packed weights, where there are none.

    torch's encoders read `in_proj_weight` and `out_proj.weight` before they decide to bypass `forward` and compute with
    them; something with a `__torch_function__` of its own among these tells them not to.
    """

    requires_grad = False

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return NotImplemented

    @property
    def weight(self) -> Unpacked:
        return self

    bias = weight


def translated(state: dict[str, Tensor], prefix: str, mixer: nn.Module, name: str) -> bool:
    """Give torch's weights in a state dict the names of standard attention's, in place; whether there were any.

    Args:
        state: the state dict.
        prefix: what stands before the names of the module.
        mixer: what the weights are for.
        name: its registered name.

    Raises:
        InputError: naming the key for which the mixer has no place, or one of another shape.
    """
    found = [key for key in _KEYS if prefix + key in state]
    if not found:
        return False
    first = prefix + found[0]
    if not isinstance(mixer, StandardAttention):
        raise InputError(f"{first}: attention {name!r} has no such projections; torch's weights fit mixer='standard'")
    if mixer.q_norm is not None:
        raise InputError(
            f"{first}: this attention normalises queries and keys, torch's does not; build it with "
            "options={'rope': 'none', 'qk_norm': False}"
        )
    for key in found:
        if key in ("bias_k", "bias_v"):
            raise InputError(f"{prefix}{key}: no mixer here has the extra key of add_bias_kv")
        kind = "bias" if key.endswith("bias") else "weight"
        targets = ["output_proj"] if key.startswith("out") else ["q_proj", "k_proj", "v_proj"]
        targets = [f"{key[0]}_proj"] if key in _APART else targets
        parts = _parts(state, prefix + key, [getattr(getattr(mixer, target), kind) for target in targets])
        del state[prefix + key]
        for target, part in zip(targets, parts):
            state[f"{prefix}mixer.{target}.{kind}"] = part
    return True


def _parts(state: dict[str, Tensor], key: str, wanted: list[Tensor | None]) -> list[Tensor]:
    """Return a packed tensor cut along its first axis into parts of the wanted shapes."""
    packed, shapes = state[key], []
    for parameter in wanted:
        if parameter is None:
            raise InputError(f"{key}: this attention has no biases; build it with bias=True")
        shapes.append(tuple(parameter.shape))
    rows = sum(shape[0] for shape in shapes)
    if len({shape[1:] for shape in shapes}) > 1 or tuple(packed.shape) != (rows, *shapes[0][1:]):
        raise InputError(f"{key} has shape {tuple(packed.shape)}, expected {' and '.join(map(str, shapes))}")
    # Copies: with assign=True three parameters would otherwise share one memory.
    return [part.clone() for part in packed.split([shape[0] for shape in shapes])]


def one_sequence(a: Tensor, b: Tensor) -> bool:
    """Return whether two arguments are the same tensor, or show the same memory with the same shape and strides.

    Raises:
        InputError: where that cannot be known, or where one is the other detached: the same numbers, other gradients.
    """
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.stride() != b.stride():
        return False
    if torch.compiler.is_compiling():
        from blockyard.nn.uncompiled import uncompiled

        shared, kin = uncompiled(_related, a, b)
    else:
        shared, kin = _related(a, b)
    if shared and not kin:
        raise InputError(
            "one of query, key and value is another one detached: the same numbers, with other gradients; pass "
            "self_attention=True to take them as one, or a clone for attention between two sequences"
        )
    return shared


def _related(a: Tensor, b: Tensor) -> tuple[bool, bool]:
    """Return whether they show the same memory, and whether a gradient for one is a gradient for the other."""
    try:
        shared = a.is_set_to(b)
    except RuntimeError as error:
        # Under torch.func.vmap nothing has a memory that could be asked for.
        raise InputError("query, key and value cannot be compared here; pass self_attention=True or False") from error
    if not shared or not torch.is_grad_enabled() or not (a.requires_grad or b.requires_grad):
        return shared, True
    roots = [x._base if x._base is not None else x for x in (a, b)]
    return shared, a.requires_grad == b.requires_grad and roots[0] is roots[1]


def kept_keys(mask: Tensor, key: Tensor, adds: bool) -> tuple[Tensor, Tensor | None]:
    """Return torch's key_padding_mask as [B, S] with True = keep, and what it adds to the scores of what is kept, if
    anything.

    Args:
        mask: [B, S] or [S]: bool with True = ignore, or float, which is added to the scores.
        key: [B, S, width].
        adds: whether the mixer can add to its scores; otherwise only 0 and -inf are taken.
    """
    mask = mask.unsqueeze(0) if mask.ndim == 1 else mask
    if mask.shape != key.shape[:2]:
        raise InputError(f"key_padding_mask has shape {tuple(mask.shape)}, expected {tuple(key.shape[:2])}")
    if mask.dtype == torch.bool:
        return ~mask, None
    if not mask.is_floating_point():
        raise InputError(
            f"key_padding_mask has dtype {mask.dtype}; it should be bool (True = ignore) or floating (added)"
        )
    ignored = torch.isneginf(mask)
    plain = ((mask == 0) | ignored).all()
    if torch.compiler.is_compiling():
        # Compiled code cannot choose by numbers; it fails where it meets others.
        torch._assert_async(plain, "key_padding_mask should hold 0 (keep) and -inf (ignore) in compiled code")
    elif not bool(plain):
        if not adds:
            raise InputError(
                "key_padding_mask should hold 0 (keep) and -inf (ignore): this mixer adds nothing to scores"
            )
        return ~ignored, mask.masked_fill(ignored, 0.0)
    return ~ignored, None


def added(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return an attention mask of ours (bool with True = attend, or additive) with a bias per key [B, S] added."""
    bias = bias[:, None, None]
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=bias.dtype).masked_fill_(~mask, float("-inf"))
    return mask + bias
