"""Fewer and thinner key heads: standard attention fitted to standard attention.

Key heads are taken in groups of neighbours, one for each key head of the new attention. A group's keys become its n
strongest rotary components, each turned at its own frequency (`rope_frequencies`), its values one latent:

    groups of one head                       thin heads: each keeps its most energetic rotary pairs
    one group of all                         rotary PCA: multi-query attention with a wide key, cache 2n + v_dim
    between                                  fewer key heads

With n and v_dim as wide as the group's heads together the attention is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.transplant.moments import LayerMoments
from blockyard.transplant.source import Components, Source, components_of, leading, real, value_paths


def fit_grouped(
    source: Source, moments: LayerMoments, *, n_kv_heads: int, head_dim: int, v_dim: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit standard attention of other key heads.

    Args:
        source: the trained attention.
        moments: of its inputs.
        n_kv_heads: key heads of the new one, dividing the source's.
        head_dim: their width, even: two numbers for each component.
        v_dim: width of their values.

    Returns: options of the new `standard` that differ from the source's, and its weights in float64.

    Raises:
        InputError: for key heads that do not divide the source's, or widths beyond a group's heads together.
    """
    size = check_grouped(source, n_kv_heads=n_kv_heads, head_dim=head_dim, v_dim=v_dim)
    parts: dict[str, list[Tensor]] = {"q": [], "k": [], "v": [], "output": []}
    frequencies: list[float] = []
    for start in range(0, source.key_heads, size):
        group = range(start, start + size)
        components = components_of(source, group, moments.of_keys, moments.uniform)
        chosen = _strongest(components.strength, head_dim // 2)
        frequencies += source.frequencies[chosen[0]].tolist()
        q, k = _rotary_rows(source, components, group, chosen, head_dim)
        v, out = _values(source, group, moments, v_dim)
        for name, found in (("q", q), ("k", [k]), ("v", [v]), ("output", out)):
            parts[name] += found
    weights = {f"{name}_proj.weight": torch.cat(rows, 1 if name == "output" else 0) for name, rows in parts.items()}
    # Falling within each head, so that heads which chose alike have the same list.
    turning = source.turning(frequencies, n_kv_heads)
    return {"n_kv_heads": n_kv_heads, "head_dim": head_dim, "v_dim": v_dim, **turning}, weights


def fit_values(source: Source, moments: LayerMoments, *, v_dim: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit thinner values beside queries and keys that stay as they are, whatever is done to them.

    Args:
        source: the trained attention; its keys need not be read.
        moments: of its inputs.
        v_dim: width of the new values.

    Returns: options and weights as `fit_grouped`.

    Raises:
        InputError: for a width beyond the source's.
    """
    check_values(source, v_dim)
    found = [_values(source, range(g, g + 1), moments, v_dim) for g in range(source.key_heads)]
    outputs = [out for _, maps in found for out in maps]
    weights = {"v_proj.weight": torch.cat([rows for rows, _ in found]), "output_proj.weight": torch.cat(outputs, 1)}
    return {"v_dim": v_dim}, weights


def check_grouped(source: Source, *, n_kv_heads: int, head_dim: int, v_dim: int) -> int:
    """Refuse what `fit_grouped` does; returns how many key heads become one."""
    size = _group_size(source, n_kv_heads)
    _check_width("head_dim", head_dim, size * source.head_dim, even_only=True)
    _check_width("v_dim", v_dim, size * source.v_dim)
    return size


def check_values(source: Source, v_dim: int) -> None:
    """Refuse what `fit_values` does."""
    _check_width("v_dim", v_dim, source.v_dim)


def _group_size(source: Source, n_kv_heads: int) -> int:
    if not 1 <= n_kv_heads <= source.key_heads or source.key_heads % n_kv_heads:
        fitting = [n for n in range(1, source.key_heads + 1) if source.key_heads % n == 0]
        raise InputError(
            f"n_kv_heads={n_kv_heads} should divide the {source.key_heads} key heads there are: "
            f"{', '.join(map(str, fitting))}"
        )
    return source.key_heads // n_kv_heads


def _check_width(name: str, value: int, most: int, even_only: bool = False) -> None:
    if not 1 <= value <= most or (even_only and value % 2):
        kind = "even, at least 2" if even_only else "at least 1"
        raise InputError(
            f"{name}={value} should be {kind} and at most {most}, what the key heads that it replaces hold"
        )


def _strongest(strength: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the strongest components, (frequency, component), by falling frequency: int64 [count] each."""
    order = strength.flatten().argsort(descending=True)[:count].sort().values
    return order // strength.shape[1], order % strength.shape[1]


def _rotary_rows(
    source: Source, components: Components, group: range, chosen: tuple[Tensor, Tensor], head_dim: int
) -> tuple[list[Tensor], Tensor]:
    """Return real rows in the half layout: queries of each head of the group [head_dim, d_model], and their one
    key's."""
    queries = []
    for head in range(group.start * source.shared, group.stop * source.shared):
        rows = components.query_rows(source, head, source.key_head(head) - group.start)[chosen]
        # Scores are divided by the root of the width: the new one here, the old one in the source.
        queries.append(real(rows) * (head_dim / source.head_dim) ** 0.5)
    return queries, real(components.key_rows[chosen])


def _values(source: Source, group: range, moments: LayerMoments, v_dim: int) -> tuple[Tensor, list[Tensor]]:
    """Return rows of a group's value latent [v_dim, d_model], and output maps of its heads [d_model, v_dim]."""
    paths = value_paths(source, group)
    latent = leading(paths.rows, moments.of_values, v_dim)
    outputs = []
    for i, out in enumerate(paths.outputs):
        place = i // source.shared
        outputs.append(out @ latent[place * source.v_dim : (place + 1) * source.v_dim])
    return latent.mT @ paths.rows, outputs
