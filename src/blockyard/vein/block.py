"""The vein-flow block: tri-vein attention, a vein FFN and normal compensation around one residual stream.

The vein-flow document's `VFTBlock`. Preset `seed` is its mathematics, parameter for parameter; `fast` (the default)
folds the attention, ties the vein so that the error is one in [0, 1], and leaves the square stabiliser out.

Definition in loops and float64: tests/vein/twin.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.attention_kernels import Kernel
from blockyard.nn.derivatives import transformed
from blockyard.nn.fused import Stamp, norm_linear
from blockyard.nn.norms import make_norm
from blockyard.nn.products import linear
from blockyard.nn.segments import Segments
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.costs import Cost
from blockyard.protocol.mixer import check_input
from blockyard.registry.register import register_block
from blockyard.vein.attention import TVAAttention
from blockyard.vein.compensator import Form, NormalCompensator
from blockyard.vein.ffn import Activation, StabilizerKind, VFTFeedForward
from blockyard.vein.metrics import token_metrics
from blockyard.vein.projector import Implementation, InitMethod, VeinProjector, check_choice

# Layout of a saved block; raised when saved blocks of the old layout would mean something else.
VERSION = 1


@register_block("tva", "vft", group="vft")
class VFTBlock(nn.Module):
    """Attention and FFN in low-rank veins, with a correction for tokens far from them (vein-flow document).

    Options that default to None follow the preset. The FFN and the reconstruction error share one vein of d_model.

    Args:
        d_model: width of the residual stream.
        n_heads: number of attention heads.
        rank: directions per attention head and of the FFN's vein; None = half a head's width, and d_model / 2 (seed:
            d_model / 4).
        preset: fast, or seed (the document's mathematics).
        n_kv_heads: number of key-value heads of the attention; None = n_heads.
        v_rank: width of values per head; None = the attention's rank.
        ffn_rank: directions of the FFN's vein when they should differ from rank.
        r_hidden: hidden width of the FFN inside the vein; None = 4 · its rank, or d_model if no rank is named.
        s: number of correction directions; 0 = no correction.
        tau: tokens whose reconstruction error exceeds it are corrected.
        alpha_scale: largest weight of a correction.
        eps: relative error ‖h − ĥ‖ / ‖h‖ (fast), or absolute ‖h − ĥ‖ (seed, the document's formula; about √d_model).
        factored: keep square projections in front of the attention's vein, as the document does; None = in seed.
        tied: rebuild with the transpose of an orthonormal projection; None = in fast.
        implementation: how the vein stores its matrices, linear or parameter.
        init_method: how the vein starts: orthogonal, normal or xavier.
        gated: gate the FFN's hidden layer, as SwiGLU does; None = in fast.
        gate_norm: normalise what the correction's gate reads; None = in seed.
        activation: gelu, relu or silu.
        stabilizer: direct path beside the vein FFN: none (fast), diag, lowrank or full (seed).
        use_stabilizer: the document's switch: true = full, false = none.
        stabilizer_rank: rank of the lowrank stabiliser; None = d_model / 16.
        correction: dense, gather or auto; see NormalCompensator.
        causal: hide the future.
        rope: rotary positions within the vein: half (fast), interleaved or none (seed).
        rope_theta: base of the rotary wavelengths.
        rope_scaling: of the rotary frequencies, as in standard attention.
        qk_norm: RMS-normalise queries and keys per head; None = in fast.
        dropout: probability for attn_dropout and ffn_dropout where these are not given.
        attn_dropout: probability of dropping an attention weight in training.
        ffn_dropout: probability of dropping a hidden element of the FFN in training.
        proj_dropout: probability of dropping an element of the attention's output in training.
        kernel: auto, matmul, sdpa or flex.
        norm: rms or layer; None = layer.
        norm_position: pre or post.
        norm_eps: added to the mean square or variance in the norms.
        metrics: report the reconstruction error in the aux of every forward.

    Shapes: x [B, T, d_model] -> (the same, aux | None).
    Raises: InputError where TVAAttention, VFTFeedForward or NormalCompensator do.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        rank: int | None = None,
        *,
        preset: Literal["fast", "seed"] = "fast",
        n_kv_heads: int | None = None,
        v_rank: int | None = None,
        ffn_rank: int | None = None,
        r_hidden: int | None = None,
        s: int = 1,
        tau: float = 0.18,
        alpha_scale: float = 0.5,
        eps: Literal["relative", "absolute"] | None = None,
        factored: bool | None = None,
        tied: bool | None = None,
        implementation: Implementation = "linear",
        init_method: InitMethod = "orthogonal",
        gated: bool | None = None,
        gate_norm: bool | None = None,
        activation: Activation = "silu",
        stabilizer: StabilizerKind | None = None,
        use_stabilizer: bool | None = None,
        stabilizer_rank: int | None = None,
        correction: Form = "auto",
        causal: bool = False,
        rope: Literal["half", "interleaved", "none"] | None = None,
        rope_theta: float = 10_000.0,
        rope_scaling: str | None = None,
        qk_norm: bool | None = None,
        dropout: float = 0.0,
        attn_dropout: float | None = None,
        ffn_dropout: float | None = None,
        proj_dropout: float = 0.0,
        kernel: Kernel = "auto",
        norm: Literal["rms", "layer"] | None = None,
        norm_position: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-5,
        metrics: bool = False,
    ) -> None:
        super().__init__()
        check_choice("preset", preset, tuple(PRESETS))
        default = PRESETS[preset]
        self.d_model, self.metrics, self.pre = d_model, metrics, norm_position == "pre"
        # What tau is compared with: relative errors lie in [0, 1] (tied), absolute ones near √d_model, 27.8 at 768,
        # where the document's thresholds correct every token.
        self.eps = eps if eps is not None else default.eps
        check_choice("eps", self.eps, ("relative", "absolute"))
        self.ln1 = make_norm(norm or default.norm, d_model, norm_eps)
        self.attn = TVAAttention(
            d_model,
            n_heads,
            rank,
            n_kv_heads=n_kv_heads,
            v_rank=v_rank,
            factored=default.factored if factored is None else factored,
            causal=causal,
            rope=rope if rope is not None else default.rope,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            norm_eps=norm_eps,
            qk_norm=default.qk_norm if qk_norm is None else qk_norm,
            attn_dropout=dropout if attn_dropout is None else attn_dropout,
            proj_dropout=proj_dropout,
            kernel=kernel,
        )
        self.ln2 = make_norm(norm or default.norm, d_model, norm_eps)
        ffn_rank = ffn_rank if ffn_rank is not None else rank
        if default.wide and ffn_rank is None:
            ffn_rank, r_hidden = max(1, d_model // 2), d_model if r_hidden is None else r_hidden
        if stabilizer is None and use_stabilizer is None:
            stabilizer = default.stabilizer
        self.ffn = VFTFeedForward(
            d_model,
            ffn_rank,
            r_hidden,
            activation,
            dropout if ffn_dropout is None else ffn_dropout,
            gated=default.gated if gated is None else gated,
            stabilizer=stabilizer,
            use_stabilizer=True if use_stabilizer is None else use_stabilizer,
            stabilizer_rank=stabilizer_rank,
            tied=default.tied if tied is None else tied,
            implementation=implementation,
            init_method=init_method,
        )
        gate_norm = default.gate_norm if gate_norm is None else gate_norm
        self.normals = NormalCompensator(d_model, s, tau, alpha_scale, gate_norm=gate_norm, form=correction)
        self.saved_as: Tensor
        self.register_buffer("saved_as", torch.tensor([VERSION, self.vein.rank, s]))

    @property
    def vein(self) -> VeinProjector:
        """The vein that the FFN and the reconstruction error share."""
        return self.ffn.vein

    @property
    def rank(self) -> int:
        """Directions of that vein."""
        return self.vein.rank

    def forward(
        self,
        x: Tensor,
        *,
        attn_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        segments: Segments | None = None,
        return_metrics: bool = False,
    ) -> tuple[Tensor, dict[str, Any] | None]:
        """Return one block.

        Args:
            x: [B, T, d_model].
            attn_mask: bool (True = attend) or additive, broadcastable to [B, H, T, S].
            padding_mask: [B, T], nonzero = keep; with a cache [B, past + T].
            positions: [T] or [B, T].
            cache: from `new_cache`.
            segments: documents in the rows that are mixed apart, in place of the four above.
            return_metrics: return the metrics themselves instead of the aux: eps_mean, eps_max, eps_frac_over_tau,
                correction_norm, effective_rank (detached scalars without a device sync; padding is left out), rank.
        """
        check_input(x, self.d_model)
        if segments is None:
            x = self._attended(x, attn_mask=attn_mask, padding_mask=padding_mask, positions=positions, cache=cache)
        else:
            x, padding_mask = segments.apart(self._attended, x, self.attn), segments.keep
        # FFN and error read the same vein, so z = V h is computed once.
        v, u = self._veins(x, cache)
        wanted = return_metrics or self.metrics
        if self.pre and not (wanted or self.normals.s or self.ffn.reads_all):
            # Nothing reads the normalised stream itself: norm and projection become one thin product.
            x, z = norm_linear(x, self.ln2, v)
            return self.ffn.add_to(x, None, z, u), None
        h = self._read(x)
        z = linear(h, v)
        if not (wanted or self.normals.s):
            return self._finish(self.ffn.add_to(x, h, z, u)), None
        # A threshold is compared and metrics are reported: nothing is learnt through them, in forward mode either.
        eps = self.vein.error_from(h.detach(), z.detach(), u.detach(), relative=self.eps == "relative")
        out = self.ffn.add_to(x, h, z, u)
        # Corrected is the stream behind the FFN, by the error of what the FFN read.
        corrected = self.normals(out, eps)
        if not wanted:
            return self._finish(corrected), None
        found = token_metrics(eps, self.normals.tau, corrected.detach() - out.detach(), z.detach(), padding_mask)
        found["rank"] = self.vein.rank_in_use
        return self._finish(corrected), found if return_metrics else {"losses": {}, "stats": found}

    def _attended(self, x: Tensor, **arguments: Any) -> Tensor:
        """Return the residual stream behind the attention."""
        if not self.pre:
            return self.ln1(x + self.attn(x, **arguments)[0])
        if isinstance(self.attn, TVAAttention):
            return self.attn.add_to(x, self.ln1, **arguments)
        return x + self.attn(self.ln1(x), **arguments)[0]

    def _veins(self, x: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor]:
        """Compute V and U. Tied, seeing whether they are still orthonormal takes a pass over V: not for each of many
        steps."""
        if cache is None or x.shape[1] > 1 or not self.vein.tied:
            return self.vein.matrices()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
            return self.vein.matrices()
        read = self.vein.stored() if self.vein.active is None else [*self.vein.stored(), self.vein.active]
        kept = cache.prepared.get("vein")
        if kept is None or not kept[0].holds(read):
            kept = cache.prepared["vein"] = Stamp(read), self.vein.matrices()
        return kept[1]

    def _read(self, x: Tensor) -> Tensor:
        """Return what the FFN reads of it."""
        return self.ln2(x) if self.pre else x

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.pre else self.ln2(x)

    @torch.no_grad()
    def reconstruction_error(
        self, x: Tensor, *, attn_mask: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Return the error [B, T] of every token of a block input x, by the block's own choice of relative or
        absolute."""
        check_input(x, self.d_model)
        h = self._read(self._attended(x, attn_mask=attn_mask, padding_mask=padding_mask))
        v, u = self.vein.matrices()
        return self.vein.error_from(h, linear(h, v), u, relative=self.eps == "relative")

    def calibrate_tau(
        self, x: Tensor, fraction: float = 0.1, *, attn_mask: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> float:
        """Set tau so that the given fraction of x's tokens is corrected; returns it.

        At random input the relative error is near √(1 − rank/d_model) for every token, so a guessed tau corrects all
        or none. A larger tau corrects fewer tokens.

        Args:
            x: [B, T, d_model], inputs of this block.
            fraction: share of tokens to correct, 0 to 1.
            attn_mask: as in `forward`.
            padding_mask: as in `forward`; padding is not counted.
        """
        if not 0.0 <= fraction <= 1.0:
            raise InputError(f"fraction={fraction} should be between 0 and 1")
        eps = self.reconstruction_error(x, attn_mask=attn_mask, padding_mask=padding_mask)
        if padding_mask is not None:
            eps = eps[padding_mask.to(torch.bool)]
        ordered = eps.flatten().float().sort(descending=True).values
        corrected = round(fraction * ordered.numel())
        # Exactly `corrected` tokens lie above the next one, ties aside.
        tau = float(ordered[corrected] if corrected < ordered.numel() else ordered[-1].nextafter(ordered[-1] - 1))
        self.normals.set_tau(tau)
        return tau

    @torch.no_grad()
    def diagnose(
        self, x: Tensor, *, attn_mask: Tensor | None = None, padding_mask: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the metrics of `forward` on a block input x, and attention_entropy: that of a query's weights, in
        nats."""
        _, metrics = self(x, attn_mask=attn_mask, padding_mask=padding_mask, return_metrics=True)
        masks: dict[str, Any] = {"attn_mask": attn_mask, "padding_mask": padding_mask}
        _, weights = self.attn(self.ln1(x) if self.pre else x, return_weights=True, **masks)
        if padding_mask is not None:
            weights = weights.transpose(1, 2)[padding_mask.to(torch.bool)]
        # 0 · log 0 = 0: hidden keys have no part in it.
        entropy = -torch.special.xlogy(weights.double(), weights.double()).sum(-1).mean()
        return {**metrics, "attention_entropy": entropy}

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache | RingCache:
        """Return the attention's cache."""
        return self.attn.new_cache(batch, max_len, dtype, device)

    def cost(self, tokens: int) -> Cost:
        """Return parameters, FLOPs (every token corrected, no metrics) and cache bytes per token."""
        norms = sum(p.numel() for norm in (self.ln1, self.ln2) for p in norm.parameters())
        # The error of an untied vein needs x̂ = U z; a tied one's follows from two norms.
        rebuilt = 0
        if self.normals.s and not self.vein.tied:
            rebuilt = 2 * tokens * self.vein.rank * self.d_model
        return self.attn.cost(tokens) + self.ffn.cost(tokens) + self.normals.cost(tokens) + Cost(norms, rebuilt)

    def zero_init_output(self) -> None:
        """Make the block the identity."""
        for member in (self.attn, self.ffn, self.normals):
            member.zero_init_output()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        # Before torch complains of shapes, and where shapes alone would let a wrong block pass.
        saved = state_dict.get(f"{prefix}saved_as")
        if saved is not None and saved.device.type != "meta":
            # Not with the buffer, which after `to_empty` holds whatever its memory did.
            mine = (VERSION, self.vein.rank, self.normals.s)
            for name, theirs, ours in zip(("version", "rank", "s"), saved.tolist(), mine):
                if theirs != ours:
                    raise InputError(f"the saved vein block has {name}={theirs}, but this one has {name}={ours}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class Preset:
    """What an option left at None means."""

    factored: bool
    tied: bool
    gated: bool
    gate_norm: bool
    qk_norm: bool
    wide: bool  # where no rank is named, the FFN's vein is d_model / 2 and its hidden layer d_model wide
    stabilizer: StabilizerKind
    eps: Literal["relative", "absolute"]
    rope: Literal["half", "interleaved", "none"]
    norm: Literal["rms", "layer"]


PRESETS = {
    "fast": Preset(
        factored=False,
        tied=True,
        gated=True,
        gate_norm=False,
        qk_norm=True,
        wide=True,
        stabilizer="none",
        eps="relative",
        rope="half",
        norm="layer",
    ),
    "seed": Preset(
        factored=True,
        tied=False,
        gated=False,
        gate_norm=True,
        qk_norm=False,
        wide=False,
        stabilizer="full",
        eps="absolute",
        rope="none",
        norm="layer",
    ),
}
