"""A trained standard attention as the fits read it: float64 matrices by head, rotary pairs as complex rows.

Pair j of a head is one complex number q_j = q[j] + i q[j + d/2] (half layout), turned by e^{iθ_j t}; a score is
Re Σ_j q_j conj(k_j) e^{iθ_j (t − s)} / √d. A unitary mix of key heads at one frequency commutes with that turning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.linear import weight_of
from blockyard.nn.rotary_scaling import plain_frequencies
from blockyard.standard.attention import StandardAttention

# Eigenvalues below this share of the largest are rounding, not directions.
CUT = 1e-9


@dataclass(frozen=True)
class Source:
    """The matrices of an attention, in float64 on the CPU.

    Their width is d_model, or one more where queries, keys and values have biases: x then has a 1 behind it, as its
    moments have, and the last column is the bias.

    Attributes:
        queries: complex rows [H, d/2, width]; [H, 0, width] where keys were not asked for.
        keys: complex rows [G, d/2, width], G key heads.
        values: [G, v, width].
        outputs: [H, d_model, v].
        frequencies: radians per position of each pair [d/2]; 0 of those that do not turn.
        output_bias: [d_model], or None.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    frequencies: Tensor
    output_bias: Tensor | None = None

    @property
    def heads(self) -> int:
        return len(self.queries)

    @property
    def key_heads(self) -> int:
        return len(self.keys)

    @property
    def head_dim(self) -> int:
        return 2 * self.queries.shape[1]

    @property
    def v_dim(self) -> int:
        return self.values.shape[1]

    @property
    def width(self) -> int:
        return self.values.shape[2]

    @property
    def shared(self) -> int:
        """Query heads of each key head."""
        return self.heads // self.key_heads

    def key_head(self, head: int) -> int:
        """Return the key head that a query head meets."""
        return head // self.shared

    def turning(self, frequencies: list[float], key_heads: int) -> dict[str, Any]:
        """Return options of `standard` for keys that turn so: the frequencies of each key head in turn."""
        own = frequencies[: len(frequencies) // key_heads]
        # Key heads with the same frequencies share them.
        told = own if own * key_heads == frequencies else frequencies
        return {"rope": "half", "rope_dim": None, "rope_frequencies": tuple(told)}

    def finished(self, options: dict[str, Any], weights: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return options and weights [n, width] of a new attention with the biases that this one has, as it has them
        of its own."""
        made, biased = {}, self.width > self.outputs.shape[1]
        for name, weight in weights.items():
            if biased and name in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "kv_down_proj.weight"):
                made[name], made[name.replace("weight", "bias")] = weight[:, :-1], weight[:, -1]
            else:
                made[name] = weight
        if self.output_bias is not None:
            made["output_proj.bias"] = self.output_bias
        if not biased:
            return options, made
        # By the words of the new mixer: latent attention means by true what DeepSeek means.
        whole = "all" if "kv_rank" in options else True
        return {**options, "bias": "qkv" if self.output_bias is None else whole}, made


def read_source(attention: object, layer: int | None = None, *, keys: bool = True) -> Source:
    """Read an attention.

    Args:
        attention: causal and trained.
        layer: where it stands, for the error.
        keys: read queries and keys, too; values and output maps are linear whatever is done to those.

    Raises:
        InputError: naming what the fits do not read: another mixer, normalised queries and keys, key heads with
            frequencies of their own, or frequencies that depend on the text's length.
    """
    where = "this attention" if layer is None else f"layer {layer}"
    if not isinstance(attention, StandardAttention):
        raise InputError(f"{where} has {type(attention).__name__}; what is fitted starts from standard attention")
    if not attention.causal:
        raise InputError(f"{where} sees the future; what is fitted starts from causal attention")
    heads, d = attention.n_kv_heads, attention.head_dim
    values = _rows(attention, "v").unflatten(0, (heads, -1))
    outputs = weight_of(attention.output_proj).detach().cpu().double().unflatten(1, (attention.n_heads, -1))
    given = attention.output_proj.bias
    bias = None if given is None else given.detach().cpu().double()
    unread = torch.zeros(attention.n_heads, 0, values.shape[-1], dtype=torch.complex128)
    if not keys:
        return Source(unread, unread[:heads], values, outputs.movedim(1, 0), unread.real[0, :, 0], bias)
    if odd := _unread(attention):
        raise InputError(f"{where} has {odd}: keys of such an attention are not fitted yet, its values are (v_dim)")
    rope = attention.rope
    width = 0 if rope is None else rope.d_k

    def pairs(name: str, heads: int) -> Tensor:
        turned, still = _rows(attention, name).unflatten(0, (heads, d)).split([width, d - width], 1)
        # One layout for all fits: each pair is one complex number, those that turn in front.
        if rope is not None and rope.layout == "interleaved":
            turned = torch.cat([turned[:, 0::2], turned[:, 1::2]], 1)
        halves = (
            torch.complex(rows[:, : rows.shape[1] // 2], rows[:, rows.shape[1] // 2 :]) for rows in (turned, still)
        )
        return torch.cat(tuple(halves), 1)

    queries = pairs("q", attention.n_heads)
    frequencies = torch.zeros(d // 2, dtype=torch.float64)
    if rope is not None:
        cpu, scaling = torch.device("cpu"), rope.scaling
        plain = plain_frequencies(width, rope.theta, cpu)
        frequencies[: width // 2] = plain if scaling is None else scaling.frequencies(width, rope.theta, 0, cpu)
        # Longer cosines and sines make queries and keys longer: both of them in the queries is the same.
        queries[:, : width // 2] *= 1.0 if scaling is None else scaling.magnitude**2
    return Source(queries, pairs("k", heads), values, outputs.movedim(1, 0), frequencies, bias)


def _unread(attention: StandardAttention) -> str | None:
    """Return what stands in the way of reading queries and keys as linear maps that turn with their positions."""
    rope = attention.rope
    if not isinstance(attention.q_norm, torch.nn.Identity | None):
        return "normalised queries and keys (qk_norm)"
    if attention.rope_heads > 1:
        return "key heads with frequencies of their own"
    if attention.head_dim % 2:
        return f"heads of an odd width, {attention.head_dim}"
    if rope is not None and rope.scaling is not None and rope.scaling.by_length:
        return f"rope_scaling={rope.scaled}, which goes by the text's length"
    return None


def has_biases(attention: StandardAttention) -> bool:
    """Return whether queries, keys and values have biases, so that they are linear in x with a 1 behind it."""
    return any(projection.bias is not None for projection in (attention.q_proj, attention.k_proj, attention.v_proj))


def _rows(attention: StandardAttention, name: str) -> Tensor:
    """Return the rows of a projection in float64 [n, width], with the bias behind them where there are biases."""
    projection = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}[name]
    weight = weight_of(projection).detach().cpu().double()
    if not has_biases(attention):
        return weight
    bias = weight.new_zeros(len(weight)) if projection.bias is None else projection.bias.detach().cpu().double()
    return torch.cat([weight, bias.unsqueeze(1)], 1)


@dataclass(frozen=True)
class Components:
    """Key components of a group of key heads, frequency by frequency: k_gj = Σ_c U_gc s_c / w_g, queries to match.

    Attributes:
        strength: [d/2, m], E|s_jc|² weighted by the queries' size, falling along c.
        mix: unitary [d/2, m, m], U by key head of the group and component.
        size: [m, d/2], w_gj: root of the mean square of the queries that meet head g.
        key_rows: complex [d/2, m, d_model], s_jc = row · x.
    """

    strength: Tensor
    mix: Tensor
    size: Tensor
    key_rows: Tensor

    def query_rows(self, source: Source, head: int, place: int) -> Tensor:
        """Return rows of a query head's components, complex [d/2, m, d_model]; `place` is its key head's in the
        group."""
        turn = self.mix[:, place].conj() / self.size[place].unsqueeze(-1)
        return turn.unsqueeze(-1) * source.queries[head].unsqueeze(1)


def components_of(source: Source, group: range, of_keys: Tensor, uniform: Tensor) -> Components:
    """Return the components of some key heads: S = E[k̃ k̃ᴴ] with k̃_g = w_g k_g at each frequency, S = U Λ Uᴴ, s = Uᴴ
    k̃.

    Args:
        source: the attention.
        group: its key heads that are to share components.
        of_keys: the moment [d, d] that keys are fitted under.
        uniform: C, under which the queries' size is measured.
    """
    sizes = []
    for g in group:
        met = source.queries[g * source.shared : (g + 1) * source.shared]
        # E|q x|² = q C qᴴ of each row.
        sizes.append(((met @ uniform.to(met.dtype)) * met.conj()).sum(-1).real.sum(0))
    size = torch.stack(sizes).clamp(min=0)
    # What no query meets still needs a size to be divided by.
    size = size.clamp(min=CUT * float(size.max()) + torch.finfo(torch.float64).tiny).sqrt()
    scaled = size.unsqueeze(-1) * source.keys[group.start : group.stop]  # [m, d/2, d_model]
    scaled = scaled.transpose(0, 1)
    strength, mix = torch.linalg.eigh(scaled @ of_keys.to(scaled.dtype) @ scaled.mH)
    strength, mix = strength.flip(-1).clamp(min=0), mix.flip(-1)
    return Components(strength, mix, size, mix.mH @ scaled)


@dataclass(frozen=True)
class ValuePaths:
    """What a group of key heads' values are to the output: z = stack_g(M_g^½ W_v,g x), M_g = Σ_{h of g} W_o,hᵀ W_o,h.

    Attributes:
        rows: [m · v, d_model], z = rows · x.
        outputs: by query head of the group [d_model, v], W_o,h M_g^(−½): the output is theirs times z's part of g.
    """

    rows: Tensor
    outputs: list[Tensor]


def value_paths(source: Source, group: range) -> ValuePaths:
    """Scale a group's values by what the output maps make of them, so that least squares on z is least squares on the
    layer's output."""
    rows, outputs = [], []
    for g in group:
        heads = source.outputs[g * source.shared : (g + 1) * source.shared]
        sizes, vectors = torch.linalg.eigh((heads.mT @ heads).sum(0))
        kept = sizes > CUT * sizes.max()
        # Directions of a value that no output reads have no part in either.
        root = torch.where(kept, sizes, 0.0).sqrt()
        inverse = torch.where(kept, root, 1.0).reciprocal() * kept
        rows.append((vectors * root) @ vectors.mT @ source.values[g])
        outputs += list(heads @ ((vectors * inverse) @ vectors.mT))
    return ValuePaths(torch.cat(rows), outputs)


def leading(rows: Tensor, moment: Tensor, count: int) -> Tensor:
    """Return the leading eigenvectors [n, count] of E[(rows x)(rows x)ᵀ]."""
    return torch.linalg.eigh(rows @ moment @ rows.mT).eigenvectors[:, -count:].flip(-1)


def real(rows: Tensor) -> Tensor:
    """Return complex rows [..., n, d] as real ones in the half layout [..., 2n, d]."""
    return torch.cat([rows.real, rows.imag], -2)
