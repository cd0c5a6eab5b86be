"""Rotary position embedding: queries and keys turn with their position, so that scores see only distances.

RoFormer (arXiv 2104.09864). Two layouts of the same rotation: `interleaved` pairs features (0, 1), (2, 3), …
as the basics document does; `half` pairs feature i with i + d/2, as Llama checkpoints do.

The basics document says to rotate keys by the conjugate. With a real dot product that makes scores depend on
m + n: conjugate in the score or in the rotation, not both. Here both are turned the same way.

Frequencies are θ^(−2i/d), or those scaled for longer texts (`nn/rotary_scaling.py`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.machine.memory import refuse_beyond_memory
from blockyard.nn.derivatives import HandWritten, hand_written, must_read, outlasting, transformed
from blockyard.nn.rotary_scaling import Scaling, plain_frequencies, scaling_of

Layout = Literal["interleaved", "half"]

# cos and sin by (theta, d, device, dtype, scaling, which of its frequencies), shared by all layers, grown on demand.
# Tables are plain tensors, not buffers: a buffer would be rounded by `model.to(torch.bfloat16)`, and copied for every
# layer.
_tables: dict[tuple[float, int, str, torch.dtype, Scaling | None, int], tuple[Tensor, Tensor]] = {}


def rotary_tables(
    length: int,
    d: int,
    theta: float,
    device: torch.device,
    dtype: torch.dtype,
    scaling: Scaling | None = None,
    row: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position · frequency, each [at least `length`, d/2], from the shared cache.

    Args:
        length: number of positions.
        d: width that is rotated.
        theta: base of the wavelengths.
        device: where.
        dtype: their type.
        scaling: of the frequencies θ^(−2i/d).
        row: positions of the whole row where the scaling goes by it; 0 for any that the scaling leaves as short.
    """
    key = (theta, d, str(device), dtype, scaling, row)
    table = _tables.get(key)
    if table is None or table[0].shape[0] < length:
        grown = max(length, 2 * table[0].shape[0] if table else _READY)
        table = _compute(grown, d, theta, device, dtype, scaling, row)
        # Inside a compiled graph the table is a temporary; only eager code fills the cache. Rows of every length have a
        # table of their own under some scalings, which none but they would ask for again.
        if not torch.compiler.is_compiling() and not row:
            _tables[key] = table
    return table


def _compute(
    length: int, d: int, theta: float, device: torch.device, dtype: torch.dtype, scaling: Scaling | None, row: int
) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return _angles(torch.arange(length, device=device), d, theta, dtype, scaling, row)
    if length > _MANY:
        # A length may come from a file: angles and their cosines in float64, and both tables.
        what = f"rotary tables of {length:,} positions take at least {{}}"
        refuse_beyond_memory(length * (d // 2) * 24, what, device)
    with outlasting():
        return _angles(torch.arange(length, device=device), d, theta, dtype, scaling, row)


def _angles(
    positions: Tensor, d: int, theta: float, dtype: torch.dtype, scaling: Scaling | None, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of positions [...], in rows of `row` positions, a number or [..., 1] to go with them."""
    # In float64: at position 100,000 a float32 angle is already off by 0.004 rad.
    if scaling is None:
        angles = positions.to(torch.float64).unsqueeze(-1) * plain_frequencies(d, theta, positions.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)
    if isinstance(row, Tensor):
        row = row.unsqueeze(-1)
    angles = positions.to(torch.float64).unsqueeze(-1) * scaling.frequencies(d, theta, row, positions.device)
    if scaling.magnitude == 1.0:
        return angles.cos().to(dtype), angles.sin().to(dtype)
    return (angles.cos() * scaling.magnitude).to(dtype), (angles.sin() * scaling.magnitude).to(dtype)


# Positions every table holds from the start, and those from which on it is asked whether they fit into memory.
_READY, _MANY = 256, 1 << 20


class RotaryPositionalEmbedding(nn.Module):
    """Rotates the last axis of queries or keys by their positions. It has no parameters and no state.

    Args:
        theta: base of the wavelengths; the longest is about 2π·theta positions.
        d_k: width that is rotated, even.
        max_seq_len: positions at or beyond it are an error; None lets the tables grow on demand.
        layout: "interleaved" or "half", see the module's text.
        scaling: of the frequencies, as `nn/rotary_scaling.py` writes it: `llama3[factor=8,original=8192]`.

    Shapes: x [..., T, d_k], positions None (0…T−1 plus `offset`), [T], or [B, T] for x [B, ..., T, d_k].
    Raises: InputError for an odd d_k, a position beyond `max_seq_len`, or a scaling that is none.
    """

    def __init__(
        self,
        theta: float,
        d_k: int,
        max_seq_len: int | None = None,
        *,
        layout: Layout = "interleaved",
        scaling: str | None = None,
    ) -> None:
        super().__init__()
        if d_k < 2 or d_k % 2:
            raise InputError(f"d_k={d_k}: rotary embedding needs an even width, since it turns pairs of features")
        if theta <= 0:
            raise InputError(f"theta={theta} should be positive")
        self.theta = float(theta)
        self.d_k = d_k
        self.max_seq_len = max_seq_len
        self.layout = layout
        self.scaling = None if scaling is None else scaling_of(scaling)
        self.scaled = scaling
        if self.scaling is not None:
            # What does not go with this width is said here, and not by the first text.
            self.scaling.frequencies(d_k, self.theta, 1, torch.device("cpu"))
        # A compiled graph can only look a table up, not fill the cache, so a usual length is made ready here.
        self.prepare(_READY)

    def prepare(self, length: int, device: torch.device | str = "cpu") -> None:
        """Make the table for positions below `length` ready, so that compiled graphs find it.

        Raises:
            InputError: for a table beyond the memory.
        """
        if torch.get_default_device().type == "meta":
            return  # a model that is only counted turns nothing, and tables are real
        if self.scaling is not None and self.scaling.by_length:
            length = min(length, self.scaling.original)
        rotary_tables(length, self.d_k, self.theta, torch.device(device), torch.float32, self.scaling)

    @property
    def steps(self) -> bool:
        """Whether a position is turned the same in rows of any length, so that one table serves every step."""
        return self.scaling is None or not self.scaling.by_length

    def forward(self, x: Tensor, positions: Tensor | None = None, *, offset: int = 0) -> Tensor:
        cos, sin = self.tables(x.shape[-2], x, positions, offset=offset)
        if positions is not None and positions.ndim == 2:
            # [B, T, d/2] -> [B, 1, ..., T, d/2]: the same for every head.
            shape = (positions.shape[0], *(1,) * (x.ndim - 3), *cos.shape[-2:])
            cos, sin = cos.view(shape), sin.view(shape)
        return rotate(x, cos, sin, self.layout)

    def tables(
        self, length: int, x: Tensor, positions: Tensor | None = None, *, offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return cos and sin for `length` positions, each [T, d_k/2], or [B, T, d_k/2] for batched positions.

        Make them once for queries and keys. x gives device and precision.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if positions is None and torch.compiler.is_exporting():
            # A table ends somewhere, and a graph that is exported is of all lengths.
            positions = torch.arange(offset, offset + length, device=x.device)
        if positions is None:
            cos, sin = self._table(offset + length, x.device, dtype, offset)
            return cos[offset : offset + length], sin[offset : offset + length]
        # Given positions are turned into angles directly: looking them up would need the largest one first, which
        # stalls a GPU and breaks a compiled graph. So only a limit that must be enforced reads it.
        if self.max_seq_len is not None:
            must_read(positions, f"max_seq_len={self.max_seq_len} bounds positions by their values")
            if int(positions.max()) >= self.max_seq_len:
                raise InputError(f"position {int(positions.max())} is beyond max_seq_len={self.max_seq_len}")
        rows: int | Tensor = 0
        if self.scaling is not None and self.scaling.by_length:
            rows = positions.amax(-1, keepdim=True) + 1
            if offset:
                must_read(positions, "the length of a row decides how the rotary scaling turns it")
                before, now = positions.reshape(-1, positions.shape[-1])[:, 0].tolist(), rows.flatten().tolist()
                for past, length_now in zip(before, now):
                    self._check_past(past, length_now)
        return _angles(positions, self.d_k, self.theta, dtype, self.scaling, rows)

    def _table(self, length: int, device: torch.device, dtype: torch.dtype, past: int = 0) -> tuple[Tensor, Tensor]:
        if self.max_seq_len is not None and length > self.max_seq_len:
            raise InputError(f"position {length - 1} is beyond max_seq_len={self.max_seq_len}")
        row = 0
        if self.scaling is not None and self.scaling.by_length and length > self.scaling.original:
            row = length
            self._check_past(past, length)
        return rotary_tables(length, self.d_k, self.theta, device, dtype, self.scaling, row)

    def _check_past(self, past: int, length: int) -> None:
        """Refuse rows whose first tokens, in a cache, were turned as those of a shorter row are."""
        if self.scaling is not None and self.scaling.parts(past, length):
            raise InputError(
                f"{length} positions are more than the {self.scaling.original} up to which {self.scaled} turns alike, "
                "and the cache holds keys turned for a shorter row: read the row again as a whole, or keep it shorter"
            )

    def extra_repr(self) -> str:
        scaled = "" if self.scaled is None else f", scaling={self.scaled}"
        return f"theta={self.theta:g}, d_k={self.d_k}, layout={self.layout}{scaled}"


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Turn pairs of features of x [..., d] by angles whose cos and sin broadcast to [..., d/2]; keeps x's dtype."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Without gradients the wrapper alone would double the time of one token.
        if not (torch.is_grad_enabled() or transformed()):
            return _rotate_in_place(x, cos, sin, layout)
        # Tables are constants here; angles that learn have gradients of their own.
        if not (cos.requires_grad or sin.requires_grad):
            return hand_written(_Rotation, x, cos, sin, layout)
    return _rotate(x, cos, sin, layout)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    if layout == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class _Rotation(HandWritten):
    """The rotation in eager mode: in place where it can be, and undone by the opposite angle in the backward pass."""

    differentiable = True
    plain = staticmethod(_rotate)

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.layout = layout
        return _rotate_in_place(x, cos, sin, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin, ctx.layout), None, None, None


# Pairs per head below which eager mode is bound by the loop over heads (measured: 4 pairs 3 times faster).
_NARROW = 16


def _rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    wide = x.to(cos.dtype)
    if layout == "interleaved":
        # One complex product per pair.
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
        turns = torch.complex(cos, sin)
        if cos.shape[-1] < _NARROW and cos.ndim > 2 and cos.shape[-2] == 1:
            # A few numbers per head: with the turns written out for every head, the loop runs over all of them.
            turns = turns.expand(*turns.shape[:-2], *pairs.shape[-2:]).contiguous()
        turned = pairs * turns
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    out = wide * torch.cat([cos, cos], dim=-1)
    (a, b), (first, second) = wide.chunk(2, dim=-1), out.chunk(2, dim=-1)
    first.addcmul_(b, sin, value=-1.0)
    second.addcmul_(a, sin)
    return out.to(x.dtype)


# Tables for whole tokens, by (theta, d, layout, device, dtype, scaling).
_token_tables: dict[tuple[float, int, str, torch.device, torch.dtype, Scaling | None], tuple[Tensor, Tensor]] = {}


def turn_token(x: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Turn x [..., d] of one token by its position: `rotate` in half as many calls, for decoding in eager mode.

    Args:
        x: in float32 or float64; features beyond the rotated width stay as they are.
        cos: row of the token's position in the first of `token_tables`.
        sin: row in the second.
        layout: which features are pairs.
    """
    width = len(cos)
    turned = x if x.shape[-1] == width else x[..., :width]
    if layout == "half":
        partners = turned.roll(width // 2, -1)
    else:
        partners = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    out = torch.addcmul(turned * cos, partners, sin)
    return out if x.shape[-1] == width else torch.cat([out, x[..., width:]], dim=-1)


def token_tables(rope: RotaryPositionalEmbedding, position: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Make for each position up to this one and some more: cos for both features of a pair, and -sin and sin, [T, d].

    x gives device and precision. The frequencies are those of any row (`rope.steps`).
    """
    key = (rope.theta, rope.d_k, rope.layout, x.device, x.dtype, rope.scaling)
    table = _token_tables.get(key)
    if table is None or len(table[0]) <= position:
        with outlasting():
            cos, sin = rotary_tables(position + 1, rope.d_k, rope.theta, x.device, x.dtype, rope.scaling)
            if rope.layout == "half":
                table = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
            else:
                table = cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
        _token_tables[key] = table
    return table


def convert_layout(weight: Tensor, n_heads: int, to: Layout) -> Tensor:
    """Reorder the rows of a query or key projection so that the other layout gives the same scores.

    Args:
        weight: [n_heads · head_dim, d_in] (or a bias [n_heads · head_dim]).
        n_heads: number of heads in it.
        to: the layout wanted.
    """
    rows = weight.view(n_heads, -1, *weight.shape[1:])
    if to == "half":
        rows = torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1)
    else:
        rows = torch.stack(rows.chunk(2, dim=1), dim=2).flatten(1, 2)
    return rows.reshape(weight.shape)
