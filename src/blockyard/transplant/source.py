"""A trained standard attention as the fits read it: float64 matrices by head, rotary pairs as complex rows.

Pair j of a head is one complex number q_j = q[j] + i q[j + d/2] (half layout), turned by e^{iθ_j t}; a score is
Re Σ_j q_j conj(k_j) e^{iθ_j (t − s)} / √d. A unitary mix of key heads at one frequency commutes with that turning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.linear import weight_of
from blockyard.nn.rotary import convert_layout
from blockyard.nn.rotary_scaling import plain_frequencies
from blockyard.standard.attention import StandardAttention

# Eigenvalues below this share of the largest are rounding, not directions.
CUT = 1e-9


@dataclass(frozen=True)
class Source:
    """The matrices of an attention, in float64 on the CPU.

    Attributes:
        queries: complex rows [H, d/2, d_model].
        keys: complex rows [G, d/2, d_model], G key heads.
        values: [G, v, d_model].
        outputs: [H, d_model, v].
        frequencies: radians per position of each pair [d/2].
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    outputs: Tensor
    frequencies: Tensor

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
    def shared(self) -> int:
        """Query heads of each key head."""
        return self.heads // self.key_heads

    def key_head(self, head: int) -> int:
        """Return the key head that a query head meets."""
        return head // self.shared


def read_source(attention: object, layer: int | None = None) -> Source:
    """Read an attention.

    Raises:
        InputError: naming what the fits do not read: another mixer, biases, normalised queries and keys, rotation of a
            part of the heads, or frequencies that depend on the text's length or scale the keys.
    """
    where = "this attention" if layer is None else f"layer {layer}"
    if not isinstance(attention, StandardAttention):
        raise InputError(f"{where} has {type(attention).__name__}; what is fitted starts from standard attention")
    if not attention.causal:
        raise InputError(f"{where} sees the future; what is fitted starts from causal attention")
    rope, odd = attention.rope, None
    if any(getattr(attention, f"{name}_proj").bias is not None for name in ("q", "k", "v", "output")):
        odd = "biases"
    elif isinstance(attention.q_norm, torch.nn.Module) and not isinstance(attention.q_norm, torch.nn.Identity):
        odd = "normalised queries and keys (qk_norm)"
    elif attention.window is not None:
        odd = "a window, which changes what its heads see"
    elif rope is None or rope.d_k != attention.head_dim or attention.rope_heads > 1:
        odd = "no rotation of whole heads by shared frequencies (rope, rope_dim, rope_scaling)"
    elif rope.scaling is not None and (rope.scaling.by_length or rope.scaling.magnitude != 1.0):
        odd = f"rope_scaling={rope.scaled}, which goes by the text's length or scales the keys"
    if odd is not None:
        raise InputError(f"{where} has {odd}: such an attention is not fitted yet")
    assert rope is not None
    d = attention.head_dim

    def rows(name: str, heads: int) -> Tensor:
        weight = weight_of(getattr(attention, f"{name}_proj")).detach().cpu()
        # One layout for all fits: pairs lie d/2 apart, and each is one complex number.
        if rope.layout == "interleaved":
            weight = convert_layout(weight, heads, "half")
        real, imaginary = weight.double().unflatten(0, (heads, 2, d // 2)).unbind(1)
        return torch.complex(real, imaginary)

    cpu = torch.device("cpu")
    plain = plain_frequencies(d, rope.theta, cpu)
    outputs = weight_of(attention.output_proj).detach().cpu().double().unflatten(1, (attention.n_heads, -1))
    return Source(
        queries=rows("q", attention.n_heads),
        keys=rows("k", attention.n_kv_heads),
        values=weight_of(attention.v_proj).detach().cpu().double().unflatten(0, (attention.n_kv_heads, -1)),
        outputs=outputs.movedim(1, 0),
        frequencies=plain if rope.scaling is None else rope.scaling.frequencies(d, rope.theta, 0, cpu),
    )


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


def leading(rows: Tensor, moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors [n, count] of E[(rows x)(rows x)ᵀ], and the sizes (roots of the eigenvalues)
    [count]."""
    values, vectors = torch.linalg.eigh(rows @ moment @ rows.mT)
    return vectors[:, -count:].flip(-1), values[-count:].flip(-1).clamp(min=0).sqrt()


def even(sizes: Tensor) -> Tensor:
    """Return factors [n] that bring rows of these sizes to a common one; their readers are divided by them.

    Rows of principal components differ by orders of magnitude, and Adam moves them all alike.
    """
    largest = float(sizes.max()) if sizes.numel() else 0.0
    if largest == 0:
        return torch.ones_like(sizes)
    return largest / sizes.clamp(min=1e-3 * largest)
