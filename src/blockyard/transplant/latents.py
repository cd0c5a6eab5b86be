"""Latent attention (MLA) fitted to standard attention: a few rotary components, and one latent for all the rest.

Some key components stay rotary, in the one rotary key that all heads share. The others lose their rotation: the queries
that meet them are multiplied by the mean turn over the distances that their head looks at, ρ_hj = E[e^(−iθ_j Δ)]. What
is left of the keys, and the values, become one latent: the principal components of [a · k, z] (`source.value_paths`),
a = ½ √(tr V / tr K).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.transplant.moments import LayerMoments
from blockyard.transplant.source import Components, Source, components_of, leading, real, value_paths

# Weight of keys beside values in the latent, measured: docs/transplant.md.
KEYS = 0.5


def fit_latent(
    source: Source, moments: LayerMoments, *, kv_rank: int, rope_dim: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit latent attention.

    Args:
        source: the trained attention.
        moments: of its inputs.
        kv_rank: width of the latent.
        rope_dim: width of the rotary key, even: two numbers for each component that stays rotary.

    Returns: options of the new `mla`, and its weights in float64. It is exact where every component stays rotary and
        the latent holds all values.

    Raises:
        InputError: for widths beyond what there is, or an odd rotary one.
    """
    check_latent(source, kv_rank=kv_rank, rope_dim=rope_dim)
    components = components_of(source, range(source.key_heads), moments.of_keys, moments.uniform)
    turns = mean_turns(moments.distances, source.frequencies)
    rotary = _rotary(components.strength, turns, rope_dim // 2, source.head_dim)
    still = (~rotary).nonzero(as_tuple=True)
    chosen = rotary.nonzero(as_tuple=True)
    queries = [components.query_rows(source, h, source.key_head(h))[chosen] for h in range(source.heads)]
    down, k_up, v_up = _latent(source, components, moments, still, turns, kv_rank)
    return latent_attention(
        source,
        keys=components.key_rows[chosen],
        queries=torch.stack(queries),
        frequencies=source.frequencies[chosen[0]],
        down=down,
        k_up=k_up,
        v_up=v_up,
    )


def check_latent(source: Source, *, kv_rank: int, rope_dim: int) -> None:
    """Refuse widths beyond what there is, or an odd rotary one, as `fit_latent` does."""
    most = source.key_heads * source.head_dim
    if rope_dim % 2 or not 2 <= rope_dim <= most:
        raise InputError(f"rope_dim={rope_dim} should be even, at least 2 and at most {most}, what all key heads hold")
    held = most - rope_dim + source.key_heads * source.v_dim
    if not 1 <= kv_rank <= held:
        raise InputError(
            f"kv_rank={kv_rank} should be at least 1 and at most {held}, what the other keys and the values hold"
        )
    check_rank(source, kv_rank)


def check_rank(source: Source, kv_rank: int) -> None:
    """Refuse a latent wider than what it is made of, as the mixer would once its weights were fitted."""
    if kv_rank > (width := source.outputs.shape[1]):
        raise InputError(f"kv_rank={kv_rank} should be at most d_model={width}: a latent holds no more")


def latent_attention(
    source: Source,
    *,
    keys: Tensor,
    queries: Tensor,
    frequencies: Tensor,
    down: Tensor,
    k_up: Tensor,
    v_up: Tensor,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put the parts of a fitted latent attention together.

    Args:
        source: whose queries meet what the latent holds of keys, and whose output maps stay.
        keys: rows of the rotary key, complex [n, width].
        queries: rows of each head's rotary queries, complex [H, n, width].
        frequencies: of the n pairs, radians per position.
        down: rows of the latent [kv_rank, width].
        k_up: each head's keys without rotation from the latent [H, head_dim, kv_rank], real parts in front.
        v_up: its values [H, v, kv_rank].

    Returns: options of the new `mla` that differ from its defaults, and its weights in float64.
    """
    rope_dim = 2 * keys.shape[0]
    # Scores are divided by the root of the new key's width, nope and rope together.
    scale = ((source.head_dim + rope_dim) / source.head_dim) ** 0.5
    weights = {
        "q_proj.weight": scale * torch.cat([real(source.queries), real(queries)], 1).flatten(0, 1),
        "kv_down_proj.weight": torch.cat([down, real(keys)]),
        "k_up": k_up,
        "v_up": v_up,
        "output_proj.weight": torch.cat(list(source.outputs), 1),
    }
    options = {
        "kv_rank": len(down),
        "rope_dim": rope_dim,
        "nope_dim": source.head_dim,
        "v_dim": source.v_dim,
        "latent_norm": False,
        "rope_frequencies": tuple(frequencies.tolist()),
    }
    return options, weights


def mean_turns(distances: Tensor, frequencies: Tensor) -> Tensor:
    """Compute ρ_hj = E[e^(−iθ_j Δ)] over the distances that head h attends to: complex [H, pairs].

    Args:
        distances: shares of the attention by distance [H, context].
        frequencies: θ [pairs], radians per position.
    """
    angles = torch.arange(distances.shape[1], dtype=torch.float64)[:, None] * frequencies
    return distances.to(torch.complex128) @ torch.polar(torch.ones_like(angles), -angles)


def _rotary(strength: Tensor, turns: Tensor, count: int, head_dim: int) -> Tensor:
    """Return which components stay rotary: bool [pairs, components]."""
    if 2 * count == head_dim:
        # One for each frequency, the strongest: then the table of frequencies is the usual one.
        best = torch.zeros_like(strength, dtype=torch.bool)
        best[:, 0] = True
        return best
    # What a lost rotation costs: the part of the energy that the mean turn does not keep.
    lost = strength * (1 - turns.abs().square().mean(0)).unsqueeze(-1)
    best = torch.zeros(lost.numel(), dtype=torch.bool)
    best[lost.flatten().argsort(descending=True)[:count]] = True
    return best.view(lost.shape)


def _latent(
    source: Source,
    components: Components,
    moments: LayerMoments,
    still: tuple[Tensor, ...],
    turns: Tensor,
    kv_rank: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of the latent [kv_rank, d_model], and each head's k_up [H, head_dim, kv_rank] and v_up
    [H, v, kv_rank]."""
    paths, moment = value_paths(source, range(source.key_heads)), moments.of_both
    rows = components.key_rows[still]
    keys = real(rows)
    of_keys, of_values = (((r @ moment) * r).sum() for r in (keys, paths.rows))
    # A layer that writes nothing has no values to weigh keys against, and division by nothing gives none.
    weighed = len(keys) and of_keys > 0 and of_values > 0
    weight = KEYS * (of_values / of_keys).sqrt() if weighed else torch.ones((), dtype=torch.float64)
    both = torch.cat([weight * keys, paths.rows])
    back = leading(both, moment, kv_rank)
    # [a k, z] ≈ back · c.
    down = back.mT @ both
    of_k, of_z = back[: len(keys)] / weight, back[len(keys) :]
    k_up, v_up = [], []
    for head in range(source.heads):
        g, out = source.key_head(head), source.outputs[head]
        k_up.append(_meeting(source, components, head, still, turns[head]).mT @ of_k)
        # W_o M^(−½) is W_o times this: the output map stays the trained one.
        inner = torch.linalg.pinv(out) @ paths.outputs[head]
        v_up.append(inner @ of_z[g * source.v_dim : (g + 1) * source.v_dim])
    return down, torch.stack(k_up), torch.stack(v_up)


def _meeting(source: Source, components: Components, head: int, still: tuple[Tensor, ...], turns: Tensor) -> Tensor:
    """Return what a head's query [head_dim] becomes where it meets the components without rotation: real
    [2n, head_dim]."""
    place, pairs = source.key_head(head), source.head_dim // 2
    factors = components.mix[:, place].conj() / components.size[place].unsqueeze(-1) * turns.conj().unsqueeze(-1)
    n = len(still[0])
    complex_map = torch.zeros(n, pairs, dtype=torch.complex128)
    complex_map[torch.arange(n), still[0]] = factors[still]
    # (a + ib)(q + ip): real part aq − bp, imaginary part bq + ap.
    real, imaginary = complex_map.real, complex_map.imag
    return torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
