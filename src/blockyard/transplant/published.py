"""Published ways to a smaller cache, beside this package's own: each a choice by name, written from its paper.

    mean_pool   a key head for several, the mean of theirs (GQA, arXiv 2305.13245, section 2.1)
    svd         the same ranks from the weights alone: pairs by the size of their rows, singular vectors of the matrices
    mha2mla     kept pairs: each key head keeps the rotation of its largest pairs; joint SVD of what is left
                (MHA2MLA, arXiv 2502.14837, sections 3.1 and 3.2)
    transmla    real rotations bring key heads together at each frequency; balanced PCA of what is left
                (TransMLA: RoRoPE, FreqFold, BKV-PCA, arXiv 2502.07864, section 4)
    palu        low rank per group of heads, keys rebuilt and rotated at every step (G-LRD, arXiv 2407.21118, section 3)

They are read from the same second moments, where the papers use activations; what differs from a paper is said in the
method. None of them weights tokens by the attention they receive, or values by what the output makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.transplant.latents import check_latent, check_rank, latent_attention
from blockyard.transplant.moments import LayerMoments
from blockyard.transplant.source import Source, leading, real

Fitted = tuple[dict[str, Any], dict[str, Tensor]]
# Key heads that share a latent in the grouped form that Palu advises, where they divide.
_GROUP = 4
# What is kept is the latent, as in the paper: rotated keys would be as large as they were.
_REBUILT: Mapping[str, str] = {"rope": "full", "cache": "latent"}
# Keys smaller than this share of the values are rounding of float32 weights.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        name: as a choice names it, method=NAME.
        widths: by mixer that it makes, the options that it needs.
        check: refuses widths and settings, by name, that a source has no room for.
        fit: options of the new mixer that differ from the source's, and its weights in float64, of a source, its
            moments (none where it needs none), and the widths and settings by name.
        needs_moments: whether it reads a text.
        settings: its own options, at their usual values.
        makes: options of the mixer that it always sets, and that say how much is cached.
    """

    name: str
    widths: Mapping[str, tuple[str, ...]]
    check: Callable[[Source, Mapping[str, int]], None]
    fit: Callable[[Source, LayerMoments | None, Mapping[str, int]], Fitted]
    needs_moments: bool
    settings: Mapping[str, int] = field(default_factory=dict)
    makes: Mapping[str, Any] = field(default_factory=dict)


def check_pooled(source: Source, asked: Mapping[str, int]) -> None:
    """Refuse key heads that do not divide the source's."""
    count, there = asked["n_kv_heads"], source.key_heads
    if not 1 <= count <= there or there % count:
        fitting = ", ".join(str(n) for n in range(1, there + 1) if there % n == 0)
        raise InputError(f"n_kv_heads={count} should divide the {there} key heads there are: {fitting}")


def mean_pool(source: Source, moments: LayerMoments | None, asked: Mapping[str, int]) -> Fitted:
    """Give neighbouring key heads one head, the mean of theirs; exact where they are alike."""
    count = asked["n_kv_heads"]
    size = source.key_heads // count
    keys = source.keys.unflatten(0, (count, size)).mean(1)
    weights = {
        "q_proj.weight": real(source.queries).flatten(0, 1),
        "k_proj.weight": real(keys).flatten(0, 1),
        "v_proj.weight": source.values.unflatten(0, (count, size)).mean(1).flatten(0, 1),
        "output_proj.weight": torch.cat(list(source.outputs), 1),
    }
    return {"n_kv_heads": count, **source.turning(source.frequencies.tolist(), 1)}, weights


def check_thinner(source: Source, asked: Mapping[str, int]) -> None:
    """Refuse widths beyond the source's, of heads or of a latent."""
    if "kv_rank" in asked:
        check_kept(source, asked)
        return
    for name, most in (("head_dim", source.head_dim), ("v_dim", source.v_dim)):
        if not 1 <= asked[name] <= most or (name == "head_dim" and asked[name] % 2):
            raise InputError(f"{name}={asked[name]} should be {'even and ' * (name == 'head_dim')}at most {most}")


def svd(source: Source, moments: LayerMoments | None, asked: Mapping[str, int]) -> Fitted:
    """Fit from the weights alone: MHA2MLA with every moment the identity, or thinner heads; exact at full width."""
    unknown = torch.eye(source.width, dtype=torch.float64)
    if "kv_rank" in asked:
        return _kept_pairs(source, unknown, asked["kv_rank"], asked["rope_dim"])
    head_dim, v_dim = asked["head_dim"], asked["v_dim"]
    chosen = largest_pairs(source, unknown, head_dim // 2)
    queries, keys, values, outputs, frequencies = [], [], [], [], list[float]()
    for g, pairs in enumerate(chosen):
        own = slice(g * source.shared, (g + 1) * source.shared)
        queries.append(real(source.queries[own][:, pairs]).flatten(0, 1))
        keys.append(real(source.keys[g, pairs]))
        frequencies += source.frequencies[pairs].tolist()
        basis = torch.linalg.svd(source.values[g], full_matrices=False)[0][:, :v_dim]
        values.append(basis.mT @ source.values[g])
        outputs += list(source.outputs[own] @ basis)
    weights = {
        # Scores are divided by the root of the width: the new one here, the old one in the source.
        "q_proj.weight": torch.cat(queries) * (head_dim / source.head_dim) ** 0.5,
        "k_proj.weight": torch.cat(keys),
        "v_proj.weight": torch.cat(values),
        "output_proj.weight": torch.cat(outputs, 1),
    }
    return {"head_dim": head_dim, "v_dim": v_dim, **source.turning(frequencies, source.key_heads)}, weights


def check_kept(source: Source, asked: Mapping[str, int]) -> None:
    """Refuse widths that there is no room for, or pairs that key heads cannot share evenly."""
    check_latent(source, kv_rank=asked["kv_rank"], rope_dim=asked["rope_dim"])
    if asked["rope_dim"] % (2 * source.key_heads):
        raise InputError(
            f"rope_dim={asked['rope_dim']} should be a multiple of {2 * source.key_heads}: each key head keeps as many "
            f"pairs"
        )


def mha2mla(source: Source, moments: LayerMoments | None, asked: Mapping[str, int]) -> Fitted:
    """Keep the rotation of each key head's pairs that contribute most to the scores, and take the joint SVD of the
    other keys' and the values' weights; exact where all pairs are kept and all values held.

    The paper ranks pairs by the product of mean norms E|q| E|k|, which moments do not tell; this by that of their roots
    of mean squares.
    """
    assert moments is not None
    return _kept_pairs(source, moments.uniform, asked["kv_rank"], asked["rope_dim"])


def _kept_pairs(source: Source, uniform: Tensor, kv_rank: int, rope_dim: int) -> Fitted:
    heads = source.key_heads
    chosen = largest_pairs(source, uniform, rope_dim // (2 * heads))
    kept = torch.zeros(heads, source.head_dim // 2, dtype=torch.bool)
    kept.scatter_(1, chosen, True)
    places = kept.nonzero(as_tuple=True)
    queries = torch.zeros(source.heads, len(places[0]), source.width, dtype=torch.complex128)
    for head in range(source.heads):
        # A pair of one key head meets the queries of its own heads alone.
        met = places[0] == source.key_head(head)
        queries[head, met] = source.queries[head, places[1][met]]
    still = (~kept).nonzero(as_tuple=True)
    keys, values = real(source.keys[still]), source.values.flatten(0, 1)
    left, sizes, right = torch.linalg.svd(torch.cat([keys, values]), full_matrices=False)
    down, up = right[:kv_rank], left[:, :kv_rank] * sizes[:kv_rank]
    return latent_attention(
        source,
        keys=source.keys[places],
        queries=queries,
        frequencies=source.frequencies[places[1]],
        down=down,
        k_up=torch.stack([_placed(source, head, still) @ up[: len(keys)] for head in range(source.heads)]),
        v_up=_of_heads(source, up[len(keys) :]),
    )


def check_folds(source: Source, asked: Mapping[str, int]) -> None:
    """Refuse widths that there is no room for, or groups of frequencies that do not divide them."""
    check_latent(source, kv_rank=asked["kv_rank"], rope_dim=asked["rope_dim"])
    pairs, width, fold = source.head_dim // 2, asked["rope_dim"], asked["fold"]
    if not 1 <= fold <= pairs or pairs % fold or width * fold % source.head_dim:
        fitting = [n for n in range(1, pairs + 1) if pairs % n == 0 and width * n % source.head_dim == 0]
        use = f"use fold={', '.join(map(str, fitting))}" if fitting else "use another rope_dim"
        raise InputError(
            f"fold={fold} with rope_dim={width}: each group of so many of the {pairs} frequencies keeps as many "
            f"components; {use}"
        )


def transmla(source: Source, moments: LayerMoments | None, asked: Mapping[str, int]) -> Fitted:
    """Mix key heads by real rotations at each frequency (RoRoPE), so that few components hold most of the keys, keep
    the rotation of the leading ones, and take the PCA of the others and the values, brought to one size; exact with
    fold=1 where every component stays rotary and all values are held.

    With `fold` M, M neighbouring frequencies are mixed as if they were one (FreqFold), which is not exact.
    """
    assert moments is not None
    kv_rank, rope_dim, fold = asked["kv_rank"], asked["rope_dim"], asked["fold"]
    pairs, heads, uniform = source.head_dim // 2, source.key_heads, moments.uniform
    groups, count = pairs // fold, rope_dim * fold // source.head_dim
    # [groups, heads · fold, d]: what one rotation mixes.
    keys = source.keys.unflatten(1, (groups, fold)).transpose(0, 1).flatten(1, 2)
    mixes = []
    for rows in keys:
        # Real and imaginary parts are mixed alike, or the rotation would not commute with the positions' turning.
        both = sum(part @ uniform @ part.mT for part in (rows.real, rows.imag))
        mixes.append(torch.linalg.eigh(both)[1].flip(-1))
    mix = torch.stack(mixes)
    components = mix.mT.to(keys.dtype) @ keys
    queries = torch.zeros(source.heads, groups, heads * fold, source.width, dtype=keys.dtype)
    readers = []
    for head in range(source.heads):
        own = mix.unflatten(1, (heads, fold))[:, source.key_head(head)]  # [groups, fold, components]
        queries[head] = own.mT.to(keys.dtype) @ source.queries[head].unflatten(0, (groups, fold))
        # Components back to the head's pairs: pair (l, m) is the sum of mix[l, m, c] times component (l, c).
        back = torch.zeros(groups, fold, groups, heads * fold - count, dtype=torch.float64)
        back[torch.arange(groups), :, torch.arange(groups)] = own[:, :, count:]
        readers.append(torch.block_diag(*[back.flatten(2).flatten(0, 1)] * 2))
    # Components of a group turn at frequencies spread over those that were folded into it.
    place = torch.arange(count) % fold if count > fold else torch.arange(count) * fold // count
    turning = source.frequencies.unflatten(0, (groups, fold))[:, place].flatten()
    nope, values = real(components[:, count:].flatten(0, 1)), source.values.flatten(0, 1)
    size = _balance(values, uniform)
    ratio = _balance(nope, uniform) / size if len(nope) and size else 1.0
    # What is left of keys that are all rotary is rounding, and must not be made as large as the values.
    ratio = ratio if ratio > _ROUNDING else 1.0
    down, up = _principal(torch.cat([nope / ratio, values]), uniform, kv_rank)
    return latent_attention(
        source,
        keys=components[:, :count].flatten(0, 1),
        queries=queries[:, :, :count].flatten(1, 2),
        frequencies=turning,
        down=down,
        k_up=torch.stack([reader @ up[: len(nope)] * ratio for reader in readers]),
        v_up=_of_heads(source, up[len(nope) :]),
    )


def _shares(source: Source, asked: Mapping[str, int]) -> tuple[int, int, int]:
    """Return Palu's groups of key heads, and the numbers of the latent for keys and for values."""
    heads = source.key_heads
    size = asked["group"] or max(n for n in range(1, _GROUP + 1) if heads % n == 0)
    of_keys = asked["keys"] or asked["kv_rank"] // 2
    return heads // size if heads % size == 0 else 0, of_keys, asked["kv_rank"] - of_keys


def check_shares(source: Source, asked: Mapping[str, int]) -> None:
    """Refuse a group that does not divide the key heads, and ranks that groups cannot share evenly or do not hold."""
    groups, of_keys, of_values = _shares(source, asked)
    if not groups:
        raise InputError(f"group={asked['group']} should divide the {source.key_heads} key heads there are")
    for name, rank, width in (("keys", of_keys, source.head_dim), ("values", of_values, source.v_dim)):
        if not groups <= rank <= source.key_heads * width or rank % groups:
            raise InputError(
                f"kv_rank={asked['kv_rank']} leaves {rank} numbers for {name}: they should be a multiple of the "
                f"{groups} groups and at most {source.key_heads * width}"
            )
    check_rank(source, asked["kv_rank"])


def palu(source: Source, moments: LayerMoments | None, asked: Mapping[str, int]) -> Fitted:
    """Give each group of key heads a latent for keys and one for values, of the rank that loses least of what they are
    on the text (the paper's whitened SVD); keys are rebuilt and rotated at every step. Exact at full rank.

    The paper spreads ranks over layers and matrices by Fisher information; here keys have `keys` numbers of the latent
    (0 = half), and groups share evenly. `group` key heads share a latent; 0 = the most up to 4 that divide.
    """
    assert moments is not None
    heads, (groups, of_keys, of_values) = source.key_heads, _shares(source, asked)
    size = heads // groups
    keys = real(source.keys).unflatten(0, (groups, size)).flatten(1, 2)
    values = source.values.unflatten(0, (groups, size)).flatten(1, 2)
    downs, ups = [], []
    for rows, rank in ((keys, of_keys // groups), (values, of_values // groups)):
        found = [_principal(each, moments.uniform, rank) for each in rows]
        downs += [down for down, _ in found]
        ups.append(torch.block_diag(*(up for _, up in found)).unflatten(0, (heads, -1)))
    k_up = torch.cat([ups[0], ups[0].new_zeros(heads, source.head_dim, of_values)], -1)
    v_up = torch.cat([ups[1].new_zeros(heads, source.v_dim, of_keys), ups[1]], -1)
    weights = {
        "q_proj.weight": real(source.queries).flatten(0, 1),
        "kv_down_proj.weight": torch.cat(downs),
        "k_up": k_up.repeat_interleave(source.shared, 0),
        "v_up": v_up.repeat_interleave(source.shared, 0),
        "output_proj.weight": torch.cat(list(source.outputs), 1),
    }
    options = {
        **_REBUILT,
        "kv_rank": of_keys + of_values,
        "nope_dim": source.head_dim,
        "v_dim": source.v_dim,
        "latent_norm": False,
        "rope_frequencies": tuple(source.frequencies.tolist()),
    }
    return options, weights


def largest_pairs(source: Source, moment: Tensor, count: int) -> Tensor:
    """Return the pairs of each key head that matter most to its scores, by frequency: int64 [G, count].

    They are those with the largest sum over the query heads of √(E|q_j|²) √(E|k_j|²).
    """

    def sizes(rows: Tensor) -> Tensor:
        return ((rows @ moment.to(rows.dtype)) * rows.conj()).sum(-1).real.clamp(min=0).sqrt()

    queries = sizes(source.queries).unflatten(0, (source.key_heads, source.shared)).sum(1)
    return (queries * sizes(source.keys)).argsort(-1, descending=True)[:, :count].sort(-1).values


def _principal(rows: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return rows of a latent [rank, d] and the map back [n, rank]: the projection of rows · x that loses least."""
    basis = leading(rows, moment, rank)
    return basis.mT @ rows, basis


def _balance(rows: Tensor, moment: Tensor) -> float:
    """Return the mean root of the mean squares of rows · x."""
    return float(((rows @ moment) * rows).sum(-1).clamp(min=0).sqrt().mean())


def _placed(source: Source, head: int, still: tuple[Tensor, ...]) -> Tensor:
    """Return the map of pairs without rotation (key head, pair), real parts in front, to a head's key [head_dim,
    2n]."""
    own = still[0] == source.key_head(head)
    into = torch.zeros(source.head_dim // 2, len(own), dtype=torch.float64)
    into[still[1][own], own.nonzero().flatten()] = 1.0
    return torch.block_diag(into, into)


def _of_heads(source: Source, values: Tensor) -> Tensor:
    """Return maps to all key heads' values [G · v, rank] for each query head [H, v, rank]."""
    return values.unflatten(0, (source.key_heads, -1)).repeat_interleave(source.shared, 0)


_LATENT = {"mla": ("kv_rank", "rope_dim")}
METHODS = {
    method.name: method
    for method in (
        Method("mean_pool", {"standard": ("n_kv_heads",)}, check_pooled, mean_pool, False),
        Method("svd", {"standard": ("head_dim", "v_dim"), **_LATENT}, check_thinner, svd, False),
        Method("mha2mla", _LATENT, check_kept, mha2mla, True),
        Method("transmla", _LATENT, check_folds, transmla, True, {"fold": 1}),
        Method("palu", {"mla": ("kv_rank",)}, check_shares, palu, True, {"group": 0, "keys": 0}, makes=_REBUILT),
    )
}
