"""Latent attention (MLA): keys and values come from one small vector per token, and only that vector is cached.

DeepSeek-V2 (arXiv 2405.04434, section 2.1) and the price document. They differ in what is rotated: DeepSeek keeps a
rotary key apart, shared by all heads, so that decoding can absorb the up-projections into the queries; the price
document rotates the whole key, which is low-rank multi-head attention and rules that out.
Defined in loops and float64 in tests/latent/twin.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.latent.absorbing import Form, cheapest_form, check_absorbing, isometries, per_head
from blockyard.latent.step import step_for
from blockyard.nn.attention import attend
from blockyard.nn.attention_kernels import Kernel
from blockyard.nn.attention_windows import windowed_pairs
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear, StackedLinear
from blockyard.nn.norms import RMSNorm
from blockyard.nn.roles import Role
from blockyard.nn.rotary import Layout, RotaryPositionalEmbedding, rotate
from blockyard.nn.rotary_scaling import given
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_sinks import SinkCache
from blockyard.protocol.cache_window import WindowCache
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Call, Mixer, Placement, check_heads, default_positions
from blockyard.protocol.windows import check_window, over_all, sinks_beside, visible
from blockyard.registry.register import ATTENTION, register_attn

if TYPE_CHECKING:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

# cos and sin of the positions, each [T, width / 2] or [B, T, width / 2]; None where nothing is rotated.
Turn = tuple[Tensor, Tensor] | None
# DeepSeek's; latents are small numbers at the start.
_EPS = 1e-6


@register_attn("mla", group="mla", traits=replace(ATTENTION, cache="latent"))
class LatentAttention(Mixer):
    """Attention over latents c = RMSNorm(W_c x): head h has keys W_uk,h c and values W_uv,h c.

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads.
        kv_rank: width of the latent c, at most d_model; None = d_model / 4.
        q_rank: width of a latent for the queries too, which saves parameters; None = queries straight from x.
        rope: decoupled (DeepSeek's): a rotary key beside the latent; full (the price document's): whole keys rotate.
        rope_dim: width of the rotary key that all heads share, even; None = half a head's. Only for decoupled.
        nope_dim: width per head of the keys from the latent; None = d_model / n_heads.
        v_dim: width per head of the values; None = d_model / n_heads.
        causal: hide the future; the forward argument overrides it.
        rope_layout: pairing of the rotation: half (Llama's) or interleaved (DeepSeek's and the price document's).
        rope_theta: base of the rotary wavelengths.
        rope_scaling: of the rotary frequencies, as in standard attention.
        rope_frequencies: radians per position of each rotated pair, in place of those of base and scaling.
        scale: factor of the scores; None = (nope_dim + rope_dim)^(-1/2).
        latent_norm: RMS-normalise the latents, with a gain.
        bias: biases in the maps into latents and in the output (DeepSeek's attention_bias), in those of queries and
            into latents (qkv), or in all of these.
        window: see only keys less than this many positions away; None = all. Only for decoupled.
        sinks: beside the window, see the first so many tokens of the sequence from everywhere.
        dropout: probability of dropping an attention weight in training.
        decode: naive expands every latent into keys and values; absorbed moves the up-projections to the queries
            and the output instead, and attends to the latents themselves; auto takes what costs fewer FLOPs.
        cache: what decoding keeps: latent (c and the rotary key), mixed (rotated keys, and c for the values), or
            expanded (keys and values, as standard attention does); None = latent, or mixed with rope=full.
        kernel: auto, matmul, sdpa or flex (FlexAttention, for windows); auto decides by length and device.

    Shapes: x [B, T, d_model] -> [B, T, d_model]; weights [B, n_heads, T, S]; cache [B, T, kv_rank + rope_dim] (latent).
    Raises: InputError for ranks or widths below 1, ranks above d_model, an odd rotary width, rope_dim with rope=full,
        decode=absorbed with rope=full (the rotation stands between q and W_uk) or with cache=expanded.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        kv_rank: int | None = None,
        q_rank: int | None = None,
        rope: Literal["decoupled", "full"] = "decoupled",
        rope_dim: int | None = None,
        nope_dim: int | None = None,
        v_dim: int | None = None,
        causal: bool = False,
        rope_layout: Layout = "half",
        rope_theta: float = 10_000.0,
        rope_scaling: str | None = None,
        rope_frequencies: tuple[float, ...] | None = None,
        scale: float | None = None,
        latent_norm: bool = True,
        bias: bool | Literal["qkv", "all"] = False,
        window: int | None = None,
        sinks: int = 0,
        dropout: float = 0.0,
        decode: Literal["auto", "naive", "absorbed"] = "auto",
        cache: Literal["latent", "mixed", "expanded"] | None = None,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        at_least(1, d_model=d_model, n_heads=n_heads)
        self.d_model, self.n_heads, self.causal, self.kernel = d_model, n_heads, causal, kernel
        self.decoupled = rope == "decoupled"
        self.kv_rank = _rank("kv_rank", max(1, d_model // 4) if kv_rank is None else kv_rank, d_model)
        self.q_rank = None if q_rank is None else _rank("q_rank", q_rank, d_model)
        # Where both widths are given, the heads need not divide the stream.
        head_dim = check_heads(d_model, n_heads) if nope_dim is None or v_dim is None else 0
        self.nope_dim, self.v_dim = _width("nope_dim", nope_dim, head_dim), _width("v_dim", v_dim, head_dim)
        self.rope_dim = self._rope_dim(rope_dim)
        self.decode = decode
        self.cache_kind = cache if cache is not None else "latent" if self.decoupled else "mixed"
        check_absorbing(decode, self.cache_kind, decoupled=self.decoupled)
        check_window(window, sinks)
        if window is not None and not self.decoupled:
            raise InputError(
                f"window={window} with rope='full': past keys are rotated anew by their places in the cache"
            )
        self.window, self.sinks = window, sinks
        queries = n_heads * (self.nope_dim + self.rope_dim)
        # Queries are not cached: a latent of theirs saves parameters, not memory.
        self.q_down_proj = Linear(d_model, self.q_rank, bias=bool(bias)) if self.q_rank else None
        self.q_norm = RMSNorm(self.q_rank, _EPS) if self.q_rank else None
        self.q_proj = Linear(self.q_rank or d_model, queries, bias=bias in ("qkv", "all"))
        # One product makes latent and rotary key; to the optimizer they are two maps.
        parts = (self.kv_rank, self.rope_dim) if self.decoupled else (self.kv_rank,)
        self.kv_down_proj = StackedLinear(d_model, parts, bias=bool(bias))
        self.kv_norm = RMSNorm(self.kv_rank, _EPS) if latent_norm else None
        self.k_up = nn.Parameter(torch.empty(n_heads, self.nope_dim, self.kv_rank))
        self.v_up = nn.Parameter(torch.empty(n_heads, self.v_dim, self.kv_rank))
        self.output_proj = Linear(n_heads * self.v_dim, d_model, bias=bias in (True, "all"))
        scaling = rope_scaling if rope_frequencies is None else given(rope_frequencies)
        width = self.rope_dim or self.nope_dim
        self.rope = RotaryPositionalEmbedding(rope_theta, width, layout=rope_layout, scaling=scaling)
        if scale is not None and not 0 < scale < float("inf"):
            raise InputError(f"scale={scale} should be above 0, or none")
        # Of the keys' own width, also where queries meet latents, which are wider.
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5 if scale is None else scale
        self.attn_dropout = Dropout(dropout)
        self.reset_parameters()

    def _rope_dim(self, rope_dim: int | None) -> int:
        if not self.decoupled:
            if rope_dim is not None:
                raise InputError(f"rope_dim={rope_dim} with rope='full': whole keys are rotated; set nope_dim, or none")
            if self.nope_dim % 2:
                raise InputError(f"nope_dim={self.nope_dim} with rope='full': rotation turns pairs; use an even width")
            return 0
        if rope_dim is None:
            return max(2, self.nope_dim // 4 * 2)
        if rope_dim < 2 or rope_dim % 2:
            raise InputError(f"rope_dim={rope_dim}: rotation turns pairs; use an even width of at least 2")
        return rope_dim

    def reset_parameters(self) -> None:
        """Start each head's up-projections as random isometries: keys and values have the latent's size.

        Keys and values are products of two matrices. If both were drawn at random, the product would favour a few
        directions and be smaller than one matrix is, which training has to mend first (docs/latent.md has figures).
        """
        # The norm gives latents of unit mean square, and isometries keep it.
        with torch.no_grad():
            for stack in (self.k_up, self.v_up):
                stack.copy_(isometries(*stack.shape).to(stack))

    def parameter_roles(self) -> dict[str, Role]:
        # One matrix per head, which Muon makes orthogonal head by head.
        return {"k_up": Role("matrix"), "v_up": Role("matrix")}

    def mix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        if call.context is not None:
            # A context shares no positions with x, so nothing is rotated.
            return self._attend(x, call, None, None)
        # Nine of ten calls while text is written.
        if call.cache is not None and (step := step_for(self, x, call)) is not None:
            return self.output_proj(step(x, call.cache)), None
        return self._attend(x, call, *self._turns(x, call))

    def forward_rotated(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, causal: bool | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Return the output alone, with the rotation given instead of positions.

        Args:
            x: [B, T, d_model].
            cos: cosines of the angles [T, width / 2], where `width` of each key is rotated.
            sin: their sines.
            causal: as in `forward`.
            attn_mask: as in `forward`.
        """
        call = Call(attn_mask=attn_mask, causal=causal)
        self.check_call(x, call)
        shape = (x.shape[1], (self.rope_dim or self.nope_dim) // 2)
        for name, table in (("cos", cos), ("sin", sin)):
            if tuple(table.shape) != shape:
                raise InputError(f"{name} has shape {tuple(table.shape)}, expected {shape} [length, width / 2]")
        return self._attend(x, call, (cos, sin), (cos, sin))[0]

    def _turns(self, x: Tensor, call: Call) -> tuple[Turn, Turn]:
        """Return rotations of the new tokens, and of the keys that are made in this call."""
        new, past, positions = x.shape[1], call.past, call.positions
        # Only latents of whole-key rotation are kept unrotated: their keys are made, and turned, at every step.
        anew = call.cache is not None and not self.decoupled and self.cache_kind == "latent"
        if anew and positions is not None:
            raise InputError(
                "positions with rope='full' and cache='latent': past keys are rotated anew, by positions counted from "
                "the cache; use cache='mixed', which keeps them rotated"
            )
        if positions is None:
            positions = default_positions(call.padding_mask, new)
        turn = self.rope.tables(new, x, positions, offset=past)
        return turn, self.rope.tables(past + new, x, default_positions(call.padding_mask, past + new)) if anew else turn

    def _attend(self, x: Tensor, call: Call, turn: Turn, key_turn: Turn) -> tuple[Tensor, Tensor | None]:
        """Return attention of x to itself and the cache, or to the context, with rotations already worked out."""
        q, latents = self._project(x, x if call.context is None else call.context, turn)
        # What products give: under autocast neither x's dtype nor the weights'. A cache may hold yet another.
        native = latents.dtype
        held = self._cached(latents, turn, call)
        # Where the cache holds values there is nothing left to absorb.
        form: Form = "naive" if "v" in held else self._form(x.shape[1], _tokens(held), "k" not in held)
        if form == "both":
            # q · (W_uk c) = (W_ukᵀ q) · c: the queries meet latents instead of keys, the same ones for all heads.
            q = [per_head(q[0], self.k_up), q[1]]
        k, v = self._met(held, form, key_turn, native)
        padding_mask, attn_mask, hidden, beside = call.padding_mask, call.attn_mask, 0, None
        if call.cache is not None and self.window is not None:
            # A windowed cache shows no more than the new tokens can see; the caller's masks cover all tokens.
            hidden = call.past + x.shape[1] - k.shape[2]
            if isinstance(call.cache, SinkCache):
                beside = sinks_beside(call.cache, hidden, lambda first: self._met(first, form, key_turn, native))
            shape = (*q[0].shape[:3], hidden + k.shape[2])
            padding_mask, attn_mask = visible(hidden, padding_mask, attn_mask, shape, beside)
        mixed, weights = attend(
            (torch.cat(q, dim=-1) if len(q) > 1 else q[0]).to(k.dtype),
            k,
            v,
            causal=bool(call.causal),
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            # A context is not a neighbourhood: its positions have no distance from x.
            window=self.window if call.context is None else None,
            # A cache has kept the first tokens, and shows them where a window has left them.
            sinks=self.sinks if call.cache is None else 0,
            beside=beside,
            scale=self.scale,
            kernel=self.kernel,
            dropout=self.attn_dropout.p if self.training else 0.0,
            dropout_keys=self.attn_dropout.keys,
            return_weights=call.return_weights,
        )
        if weights is not None and (hidden or beside is not None):
            weights = over_all(weights, hidden, beside)
        mixed = mixed.to(native)
        if form != "naive":
            # Σ p (W_uv c) = W_uv (Σ p c): the means of latents become means of values.
            mixed = per_head(mixed, self.v_up.mT)
        return self.output_proj(mixed.transpose(1, 2).flatten(2)), weights

    def _met(self, held: Mapping[str, Tensor], form: Form, turn: Turn, native: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the keys and values that queries meet [B, 1 or H, S, …], of what is held of tokens."""
        latents = held.get("latent")
        k, v = held.get("k"), held.get("v")
        if k is None:
            assert latents is not None
            k = latents.unsqueeze(1) if form == "both" else self._keys(latents.to(native), turn)
        if v is None:
            assert latents is not None
            v = self._values(latents.to(native)) if form == "naive" else latents[..., : self.kv_rank].unsqueeze(1)
        return k, v.to(k.dtype)

    def _cached(self, latents: Tensor, turn: Turn, call: Call) -> dict[str, Tensor]:
        """Return what is held of past and new tokens: k and v where the cache keeps them, and latents."""
        cache = call.cache
        if cache is None:
            return {"latent": latents}
        dtype = cache.dtype
        if self.cache_kind == "latent":
            new = {"latent": latents.to(dtype)}
        else:
            # Kept turned: a past token's position does not change.
            new = {"k": self._keys(latents, turn).to(dtype)}
            if self.cache_kind == "mixed":
                new["latent"] = latents[..., : self.kv_rank].to(dtype)
            else:
                new["v"] = self._values(latents).to(dtype)
        # The first tokens of a row are those behind its padding.
        padding = {"padding_mask": call.padding_mask} if isinstance(cache, SinkCache) else {}
        return dict(zip(new, cache.append(**new, **padding)))

    def _project(self, x: Tensor, source: Tensor, turn: Turn) -> tuple[list[Tensor], Tensor]:
        """Return queries and latents, with what is rotary in them rotated.

        Returns:
            The queries as [B, H, T, nope] and [B, H, T, rope], or whole; the latents with the rotary key beside them,
            [B, S, rank + rope].
        """
        q, latents = self._queries(x), self.kv_down_proj(source)
        c, k_rope = latents.split([self.kv_rank, self.rope_dim], dim=-1)
        # The rotary key is not normalised with it (DeepSeek-V2): its size is its own.
        if self.kv_norm is not None:
            c = self.kv_norm(c)
        cos, sin = (None, None) if turn is None else (table.unsqueeze(-2) for table in turn)
        if not self.decoupled:
            q = q if cos is None or sin is None else rotate(q, cos, sin, self.rope.layout)
            return [q.transpose(1, 2)], c
        q_nope, q_rope = q.split([self.nope_dim, self.rope_dim], dim=-1)
        if cos is not None and sin is not None:
            # All rotary parts in one call: half as many passes as one after the other.
            turned = rotate(torch.cat([q_rope, k_rope.unsqueeze(2)], dim=2), cos, sin, self.rope.layout)
            q_rope, k_rope = turned[:, :, :-1], turned[:, :, -1]
        return [q_nope.transpose(1, 2), q_rope.transpose(1, 2)], torch.cat([c, k_rope], dim=-1)

    def _form(self, queries: int, keys: int, keys_open: bool) -> Form:
        """Return what to absorb.

        Args:
            queries: number of queries.
            keys: number of latents.
            keys_open: whether the keys are not expanded yet.
        """
        can_absorb_keys = keys_open and self.decoupled
        if self.decode == "naive":
            return "naive"
        if self.decode == "absorbed":
            return "both" if can_absorb_keys else "values"
        if torch.compiler.is_exporting():
            # Where there are as many queries as keys their number does not matter: an exported graph is of any.
            queries = keys = 1
        return cheapest_form(queries, keys, self.kv_rank, self.nope_dim if can_absorb_keys else None, self.v_dim)

    def _queries(self, x: Tensor) -> Tensor:
        """Return [B, T, H, nope + rope], not rotated."""
        # Down, normed, up: the queries' own low rank.
        if self.q_down_proj is not None and self.q_norm is not None:
            x = self.q_norm(self.q_down_proj(x))
        return self.q_proj(x).unflatten(-1, (self.n_heads, -1))

    def _keys(self, latents: Tensor, turn: Turn) -> Tensor:
        """Return expanded keys [B, H, S, nope + rope]; `turn` rotates them where the latents hold no rotary key."""
        k = F.linear(latents[..., : self.kv_rank], self.k_up.flatten(0, 1)).unflatten(-1, (self.n_heads, -1))
        if self.decoupled:
            # One rotary key for all heads, without a copy of it for each until here.
            k_rope = latents[..., self.kv_rank :].unsqueeze(2).expand(-1, -1, self.n_heads, -1)
            k = torch.cat([k, k_rope], dim=-1)
        elif turn is not None:
            k = rotate(k, turn[0].unsqueeze(-2), turn[1].unsqueeze(-2), self.rope.layout)
        return k.transpose(1, 2)

    def _values(self, latents: Tensor) -> Tensor:
        """Return expanded values [B, H, S, v]."""
        v = F.linear(latents[..., : self.kv_rank], self.v_up.flatten(0, 1))
        return v.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def empty_cache(self, batch: int, max_len: int | None, placement: Placement) -> LayerCache:
        if self.window is not None and self.sinks:
            own = {"window": self.window, "sinks": self.sinks}
            return SinkCache(batch, self._slots(), **own, max_len=max_len, **placement)
        if self.window is not None:
            return WindowCache(batch, self._slots(), window=self.window, max_len=max_len, **placement)
        return LayerCache(batch, self._slots(), max_len=max_len, **placement)

    def _slots(self) -> dict[str, tuple[int, ...]]:
        key = (self.n_heads, self.nope_dim + self.rope_dim)
        if self.cache_kind == "latent":
            # Latent and rotary key lie side by side, so that an absorbed step scores both in one product.
            return {"latent": (self.kv_rank + self.rope_dim,)}
        if self.cache_kind == "mixed":
            return {"k": key, "latent": (self.kv_rank,)}
        return {"k": key, "v": (self.n_heads, self.v_dim)}

    def cost(self, tokens: int) -> Cost:
        heads, rank, key = self.n_heads, self.kv_rank, self.nope_dim + self.rope_dim
        shapes = [(self.q_rank or self.d_model, heads * key), (self.d_model, rank + self.rope_dim)]
        shapes += [(rank, heads * self.nope_dim), (rank, heads * self.v_dim), (heads * self.v_dim, self.d_model)]
        vectors = rank if self.kv_norm is not None else 0
        if self.q_rank:
            shapes.append((self.d_model, self.q_rank))
            vectors += self.q_rank
        maps = (self.q_down_proj, self.q_proj, self.kv_down_proj, self.output_proj)
        vectors += sum(each.weight.shape[0] for each in maps if each is not None and each.bias is not None)
        # With as many queries as keys, absorbing a matrix costs what expanding by it does; the pairs differ.
        form = self._form(tokens, tokens, True)
        pair = (rank + self.rope_dim if form == "both" else key) + (self.v_dim if form == "naive" else rank)
        scores = 2 * heads * pair * self._pairs(tokens)
        return Cost(
            parameters=sum(a * b for a, b in shapes) + vectors,
            flops=linear_flops(tokens, *shapes) + scores,
            pair_flops=scores if self.window is None else 0,
            cache_bytes_per_token=4 * sum(torch.Size(shape).numel() for shape in self._slots().values()),
        )

    def _pairs(self, tokens: int) -> int:
        """Return query-key pairs that are scored."""
        # A dense count, as the counter has it: causality earns no credit.
        if self.window is None or self.kernel == "flex":
            return tokens * tokens
        return windowed_pairs(tokens, self.window, self.causal, self.sinks)

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    @classmethod
    def from_hf(cls, module: DeepseekV3Attention) -> LatentAttention:
        """Return the same attention as a transformers `DeepseekV3Attention`, with copies of its weights.

        Others that compute the same are read too (DeepSeek-V2, GLM-4-MoE-Lite, MiniCPM3): the module is asked for its
        output on random input, and refused where it is another.

        Raises:
            InputError: for another kind of module, a key or a setting without counterpart here (by its name), a scaled
                rotary embedding (only the default type is known), or another output.
        """
        from blockyard.latent.deepseek import from_deepseek

        return from_deepseek(cls, module)

    def to_hf(self) -> DeepseekV3Attention:
        """Return the same attention as a transformers `DeepseekV3Attention` (extra `hf`), with copies of the weights.

        Raises:
            MissingExtra: when transformers is not installed.
            InputError: with rope="full" or without latent_norm, which it does not have.
        """
        from blockyard.latent.deepseek import to_deepseek

        return to_deepseek(self)

    def extra_repr(self) -> str:
        rope = f"rope_dim={self.rope_dim}" if self.decoupled else "rope=full"
        return (
            f"n_heads={self.n_heads}, kv_rank={self.kv_rank}, q_rank={self.q_rank}, {rope}, nope_dim={self.nope_dim}, "
            f"v_dim={self.v_dim}, decode={self.decode}, cache={self.cache_kind}, causal={self.causal}"
        )


def _tokens(held: Mapping[str, Tensor]) -> int:
    """Return how many tokens something is held of."""
    return next(iter(held.values())).shape[-2]


def _rank(name: str, value: int, d_model: int) -> int:
    if not 1 <= value <= d_model:
        raise InputError(f"{name}={value} should be at least 1 and at most d_model={d_model}: a latent holds no more")
    return value


def _width(name: str, value: int | None, usual: int) -> int:
    value = usual if value is None else value
    at_least(1, **{name: value})
    return value
