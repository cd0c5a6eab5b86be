"""Scales of fitted weights that can be trained: what makes a number and what reads it have entries of one size.

A latent may be multiplied by any factor if what reads it is divided by it. Fits leave rows that differ by orders of
magnitude, or make large numbers that are read by tiny weights; Adam moves every weight by the learning rate, which is
nothing to the one and all of the other. The factor that gives both the same root mean square, √(reader / writer), is
the one of the smallest sum of squares, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def balanced_attention(options: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a fitted attention with balanced scales; what it computes stays.

    Args:
        options: of the new mixer.
        weights: by name, as many as the fit gives; queries and keys in the half layout.
    """
    made = dict(weights)
    if "kv_down_proj.weight" in weights:
        _balance_latent(options, made)
        return made
    if "k_proj.weight" in weights:
        _balance_keys(made, options["n_kv_heads"], options["head_dim"])
    if "v_proj.weight" in weights:
        _balance_values(made, options["v_dim"])
    return made


def balanced_vein(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a fitted vein FFN with balanced scales: of what it reads, and of what it writes."""
    made = dict(weights)
    read = factors(made["vein.V.weight"], torch.cat([made["w1.weight"], made["w3.weight"]]).mT)
    made["vein.V.weight"] = made["vein.V.weight"] * read[:, None]
    made |= {name: made[name] / read for name in ("w1.weight", "w3.weight")}
    written = factors(made["w2.weight"], made["vein.U.weight"].mT)
    made["w2.weight"], made["w2.bias"] = made["w2.weight"] * written[:, None], made["w2.bias"] * written
    made["vein.U.weight"] = made["vein.U.weight"] / written
    return made


def factors(writers: Tensor, readers: Tensor) -> Tensor:
    """Return what each number is to be multiplied by [n], and its readers divided by.

    Args:
        writers: the weights that make each number [n, a].
        readers: those that read it [n, b]; zeros stand for no weight.
    """
    written, read = _size(writers), _size(readers)
    # A number that nobody writes or reads may have any scale.
    free = (written == 0) | (read == 0)
    return torch.where(free, 1.0, (torch.where(free, 1.0, read) / torch.where(free, 1.0, written)).sqrt())


def _size(weights: Tensor) -> Tensor:
    return (weights.square().sum(-1) / (weights != 0).sum(-1).clamp(min=1)).sqrt()


def _balance_keys(made: dict[str, Tensor], heads: int, head_dim: int) -> None:
    """Balance the pairs of every key head with the queries that meet them: both numbers of a pair turn into each
    other."""
    keys = made["k_proj.weight"].unflatten(0, (heads, 2, head_dim // 2))  # [G, 2, pairs, d]
    queries = made["q_proj.weight"].unflatten(0, (heads, -1, 2, head_dim // 2))  # [G, shared, 2, pairs, d]
    found = factors(keys.transpose(1, 2).flatten(2), queries.movedim(3, 1).flatten(2))[:, None, :, None]
    made["k_proj.weight"] = (keys * found).flatten(0, 2)
    made["q_proj.weight"] = (queries / found[:, None]).flatten(0, 3)


def _balance_values(made: dict[str, Tensor], v_dim: int) -> None:
    """Balance values with the output maps of the heads that share them."""
    values = made["v_proj.weight"].unflatten(0, (-1, v_dim))  # [G, v, d]
    outputs = made["output_proj.weight"].unflatten(1, (len(values), -1, v_dim))  # [d, G, shared, v]
    found = factors(values, outputs.permute(1, 3, 0, 2).flatten(2))
    made["v_proj.weight"] = (values * found[..., None]).flatten(0, 1)
    made["output_proj.weight"] = (outputs / found[:, None]).flatten(1)


def _balance_latent(options: Mapping[str, Any], made: dict[str, Tensor]) -> None:
    """Balance the latent with the keys and values made of it, and the pairs of the rotary key with their queries."""
    latent, keys = made["kv_down_proj.weight"].tensor_split([options["kv_rank"]])
    found = factors(latent, torch.cat([made[name].flatten(0, 1) for name in ("k_up", "v_up")]).mT)
    made |= {name: made[name] / found for name in ("k_up", "v_up")}
    pairs = len(keys) // 2
    if pairs:
        heads = len(made["k_up"])
        plain, rotary = made["q_proj.weight"].unflatten(0, (heads, -1)).tensor_split([options["nope_dim"]], 1)
        keys, rotary = keys.unflatten(0, (2, pairs)), rotary.unflatten(1, (2, pairs))  # [2, n, d], [H, 2, n, d]
        turned = factors(keys.transpose(0, 1).flatten(1), rotary.movedim(2, 0).flatten(1))[:, None]
        keys = (keys * turned).flatten(0, 1)
        made["q_proj.weight"] = torch.cat([plain, (rotary / turned).flatten(1, 2)], 1).flatten(0, 1)
    made["kv_down_proj.weight"] = torch.cat([latent * found[:, None], keys])
