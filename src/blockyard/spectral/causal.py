"""Spectral mixing that never sees ahead: kernels of a window of past tokens, gates from the tokens before.

    y_t = Σ_{l=0}^{min(t, L−1)} h_t[l] · v_{t−l},   h_t = irfft(gate_t, n = 2L)[:L]

The paper's form leaks the future twice, through the circular kernel's negative lags and through pooling over all
tokens; its decoder is causal but computes another function than was trained. Here both are one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from blockyard.nn.exporting import ConstantHolder
from blockyard.nn.roles import Role
from blockyard.protocol.cache_base import sent
from blockyard.protocol.cache_ring import RingCache
from blockyard.spectral.basis import Interpolation, Spacing, kernel_basis
from blockyard.spectral.chunks import chunk_convolution, chunk_flops
from blockyard.spectral.exported import (
    chunk_constants,
    chunks_by_products,
    means_before,
    token_constants,
    tokens_by_products,
)
from blockyard.spectral.gate import SpectralGate
from blockyard.spectral.padding import groups
from blockyard.spectral.tokens import token_convolution, token_flops

GateKind = Literal["chunk", "token"]
Project = Callable[[Tensor], Tensor]


class Piece(NamedTuple):
    """New tokens behind a cache; what `CausalMixing.forward` is given, with `new` on the CPU."""

    x: Tensor
    v: Tensor
    project: Project
    gate: SpectralGate
    new: Tensor | None
    cache: RingCache
    seen: int


class CausalMixing(ConstantHolder):
    """The causal forms, in parallel and step by step.

    Args:
        width: number of channels.
        gate_kind: chunk: one kernel for each chunk, from the mean query of the tokens before it (the first chunk's
            comes from a learnt descriptor); token: one for each token, from the mean query up to it.
        window: kernel length L, in tokens.
        chunk: chunk length S, in tokens.
        buckets: anchors per gate.
        interpolation, bucket_spacing: of the anchors.
    """

    def __init__(
        self,
        width: int,
        *,
        gate_kind: GateKind,
        window: int,
        chunk: int,
        buckets: int,
        interpolation: Interpolation,
        bucket_spacing: Spacing,
    ) -> None:
        super().__init__()
        self.gate_kind, self.window, self.chunk, self.buckets = gate_kind, window, chunk, buckets
        self.interpolation, self.spacing = interpolation, bucket_spacing
        # Of the first chunk, before which there is nothing to summarise.
        self.first = nn.Parameter(torch.randn(width)) if gate_kind == "chunk" else None

    def parameter_roles(self) -> dict[str, Role]:
        return {"first": Role("vector")}

    def forward(
        self,
        x: Tensor,
        v: Tensor,
        project: Project,
        gate: SpectralGate,
        counts: Tensor | None,
        cache: RingCache | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """Return mixed values [B, D, T] of new tokens, which are then stored in the cache.

        Args:
            x: [B, T, D], 0 beyond a row's count.
            v: values [B, D, T], float32 or float64, 0 beyond a row's count.
            project: the query projection.
            gate: from descriptors to anchors.
            counts: tokens per row [B], or None when every row has all T.
            cache: past tokens of every row.
            seen: tokens of the piece before padding that all rows share was taken out; None = T.
        """
        if cache is None and self.held is not None and counts is None:
            return self._exported(x, v, project, gate, self.held)
        if cache is None:
            return self._extend(x, v, project, gate, None, v.new_zeros(v.shape[:2]), None, None)[0]
        seen = v.shape[2] if seen is None else seen
        # Refused now rather than after everything is computed.
        cache.check_reserve(seen)
        new = None if counts is None else counts.cpu()
        # All that a gate has to know of the past: projecting is linear, so the mean query is the query of the mean.
        if "sum" not in cache.state:
            cache.state["sum"] = v.new_zeros(v.shape[:2])
        piece = Piece(x, v, project, gate, new, cache, seen)
        return self._step(piece) if v.shape[2] == 1 else self._prefill(piece)

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        settings = (self.interpolation, self.spacing, like)
        if self.gate_kind == "token":
            return token_constants(self.buckets, self.window, *settings)
        return chunk_constants(self.buckets, self.window, self.chunk, *settings)

    def _exported(
        self, x: Tensor, v: Tensor, project: Project, gate: SpectralGate, constants: tuple[Tensor, ...]
    ) -> Tensor:
        """Return mixed values [B, D, T] of whole rows, in operations that every runtime has."""
        if self.gate_kind == "token":
            anchors = self._token_anchors(x, project, gate, None, v.new_zeros(v.shape[:2]))
            return tokens_by_products(v, anchors, constants)
        means, number = means_before(x, self.chunk, v.dtype)
        return chunks_by_products(v, gate(self._with_first(project(means), number)), self.chunk, constants)

    # One or more new tokens after any number of past ones, in parallel.

    def _prefill(self, piece: Piece) -> Tensor:
        """Work on rows at different places in their chunk, one place at a time."""
        x, v, project, gate, new, cache, seen = piece
        real = torch.full_like(cache.counts, v.shape[2]) if new is None else new
        total, old = cache.state["sum"], cache.state.get("anchors")
        out, anchors = torch.zeros_like(v), None
        phase = cache.counts % self.chunk if self.gate_kind == "chunk" else torch.zeros_like(cache.counts)
        for _, rows in groups(phase):
            here = sent(rows, v.device)
            columns = self._columns(cache.counts[rows])
            history = cache.last(columns, rows).to(v.dtype) if columns else None
            present = None if old is None else old[here]
            mixed, made = self._extend(
                x[here], v[here], project, gate, cache.counts[rows], total[here], history, present
            )
            out[here] = mixed
            if made is not None:
                # The kernel in use after the last real token; the next chunk's is made when its first token comes.
                last = sent(((int(phase[rows[0]]) + real[rows] - 1) // self.chunk).clamp(min=0), v.device)
                kept = made[torch.arange(len(rows), device=v.device), last]
                if present is not None:
                    kept = torch.where(sent(real[rows] > 0, v.device)[:, None, None], kept, present)
                anchors = kept.new_zeros(v.shape[0], *kept.shape[1:]) if anchors is None else anchors
                anchors[here] = kept
        cache.write(v, new, seen)
        cache.state = {"sum": total + x.sum(1, dtype=v.dtype)}
        if anchors is not None:
            cache.state["anchors"] = anchors
        return out

    def _columns(self, counts: Tensor) -> int:
        """Return past tokens that the new ones look back at, from the beginning of a chunk where there are chunks."""
        # L taps reach L − 1 tokens back.
        stored, back = int(counts.max()), self.window - 1
        if self.gate_kind == "token":
            return min(stored, back)
        # Whole chunks, since a chunk of values is transformed as one.
        phase = stored % self.chunk
        return phase + self.chunk * min(-(-back // self.chunk), stored // self.chunk)

    def _extend(
        self,
        x: Tensor,
        v: Tensor,
        project: Project,
        gate: SpectralGate,
        counts: Tensor | None,
        total: Tensor,
        history: Tensor | None,
        present: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return mixed values [B, D, T] of rows at one place in their chunk, and the anchors of their chunks.

        Args:
            counts: past tokens per row [B]; None = there are none.
            total: sum of the past inputs [B, D].
            history: past values [B, D, columns], see `_columns`.
            present: anchors of the chunk that the first new token lies in, when it has begun.
        """
        whole = v if history is None else torch.cat([history, v], dim=-1)
        settings = (self.interpolation, self.spacing)
        if self.gate_kind == "token":
            anchors = self._token_anchors(x, project, gate, counts, total)
            return token_convolution(whole, anchors, self.window, *settings), None
        phase = 0 if counts is None else int(counts[0]) % self.chunk
        columns = whole.shape[2] - v.shape[2]
        anchors = self._chunk_anchors(x, project, gate, counts, total, phase)
        if phase:
            assert present is not None
            anchors = torch.cat([present[:, None], anchors], dim=1)
        mixed = chunk_convolution(whole, anchors, columns // self.chunk, self.window, self.chunk, *settings)
        return mixed[..., phase:], anchors

    def _token_anchors(
        self, x: Tensor, project: Project, gate: SpectralGate, counts: Tensor | None, total: Tensor
    ) -> Tensor:
        """Return [B, T, kernels, 2K], from the mean of all inputs up to each."""
        # Sums in float32 at least: in bfloat16 one of a few hundred tokens no longer grows.
        running = total[:, None] + x.cumsum(1, dtype=total.dtype)
        number = _numbers(torch.arange(1, x.shape[1] + 1, device=x.device), counts)
        return gate(project(running / number[..., None]))

    def _chunk_anchors(
        self, x: Tensor, project: Project, gate: SpectralGate, counts: Tensor | None, total: Tensor, phase: int
    ) -> Tensor:
        """Return [B, chunks, kernels, 2K] of the chunks that begin within x, from the mean of all inputs before
        each."""
        lead = -phase % self.chunk
        if lead >= x.shape[1]:
            return x.new_zeros(x.shape[0], 0, gate.n_heads * gate.groups, 2 * gate.buckets, dtype=total.dtype)
        starts = torch.arange(lead, x.shape[1], self.chunk, device=x.device)
        # Only what lies before the last chunk's start counts.
        before = x[:, lead : int(lead + (len(starts) - 1) * self.chunk)]
        # Chunk by chunk first, so that what runs over time has one entry per chunk.
        sums = before.unflatten(1, (-1, self.chunk)).sum(2, dtype=total.dtype) if len(starts) > 1 else None
        begin = (total + x[:, :lead].sum(1, dtype=total.dtype))[:, None]
        running = begin if sums is None else torch.cat([begin, begin + sums.cumsum(1)], dim=1)
        # One row per chunk goes through the projection, where pooling behind it would send all tokens.
        number = _numbers(starts, counts)
        return gate(self._with_first(project(running / number.clamp(min=1)[..., None]), number))

    def _with_first(self, descriptors: Tensor, number: Tensor) -> Tensor:
        """Put the learnt descriptor where no token came before. descriptors [..., D], number [...]."""
        assert self.first is not None
        return torch.where((number == 0)[..., None], self.first.to(descriptors.dtype), descriptors)

    # One new token.

    def _step(self, piece: Piece) -> Tensor:
        """Return a token against the ring: y = Σ_l h[l] · v_{t−l}. Rows whose token is padding keep their state."""
        x, v, project, gate, new, cache, seen = piece
        # A copy: the cache takes the new state only after its ring has taken the token.
        state, counts = dict(cache.state), cache.counts
        total = state["sum"] + x[:, 0].to(v.dtype)
        if self.gate_kind == "token":
            number = sent(counts + 1, x.device)[:, None]
            kernel = self._kernel(gate(project(total / number)))
        else:
            kernel = self._chunk_kernel(project, gate, new, cache, state)
        state["sum"] = total
        cache.write(v, new, seen)
        cache.state = state
        # The ring holds tokens in no order of time: every slot meets the tap of its age, and empty slots hold 0.
        age = cache.ages()[:, None].expand(-1, kernel.shape[1], -1)
        taps = kernel.gather(2, age)[..., None]
        ring = cache.ring.to(v.dtype).unflatten(1, (kernel.shape[1], -1))
        return (ring @ taps).flatten(1, 2)

    def _chunk_kernel(
        self, project: Project, gate: SpectralGate, new: Tensor | None, cache: RingCache, state: dict[str, Tensor]
    ) -> Tensor:
        """Return the kernels [B, M, L] of the chunks that the tokens lie in; new ones are made where a chunk begins."""
        begins = cache.counts % self.chunk == 0
        if new is not None:
            begins = begins & (new > 0)
        if bool(begins.any()) or "anchors" not in state:
            device = state["sum"].device
            number = sent(cache.counts, device)
            # Of everything before the chunk: its own tokens have no say in its kernel, or an earlier one would see a
            # later.
            mean = cache.state["sum"] / number.clamp(min=1)[:, None]
            anchors = gate(self._with_first(project(mean), number))
            if "anchors" in state:
                anchors = torch.where(sent(begins, device)[:, None, None], anchors, state["anchors"])
            state["anchors"] = anchors
            # Made once a chunk, and used for each of its tokens.
            state.pop("kernel", None)
        if "kernel" not in state:
            state["kernel"] = self._kernel(state["anchors"])
        return state["kernel"]

    def _kernel(self, anchors: Tensor) -> Tensor:
        """Return anchors [..., 2K] -> kernels [..., L]."""
        buckets = anchors.shape[-1] // 2
        basis = kernel_basis(buckets, self.window, self.interpolation, self.spacing, anchors.dtype, anchors.device)
        return anchors @ basis

    def kernels(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return impulse responses [..., L] of anchors [..., 2K], and their lags [L]."""
        return self._kernel(anchors), torch.arange(self.window, device=anchors.device)

    def query_rows(self, tokens: int) -> int:
        """Return rows that go through the query projection and the gate."""
        return tokens if self.gate_kind == "token" else -(-tokens // self.chunk)

    def flops(self, tokens: int, gate: SpectralGate) -> int:
        """Return FLOPs beside the three projections."""
        width, kernels = gate.n_heads * gate.head_dim, gate.n_heads * gate.groups
        if self.gate_kind == "token":
            mixing = token_flops(1, width, gate.buckets, tokens, tokens, self.window)
        else:
            mixing = chunk_flops(1, width, kernels, gate.buckets, tokens, 0, self.window, self.chunk)
        return mixing + gate.flops(self.query_rows(tokens))


def _numbers(within: Tensor, counts: Tensor | None) -> Tensor:
    """Return token numbers [B, n], or [1, n] for rows without a past, of places [n] in the new tokens."""
    return within[None] if counts is None else sent(counts, within.device)[:, None] + within
