"""From a trained standard block to a vein block: low-rank starts by SVD on activations, then distillation.

The vein-flow document migrates step by step (FFN, attention, whole block) but starts each vein at random. Here the
attention starts as the best low-rank copy of the standard one on given activations, and the FFN's direct path as the
best linear copy of the standard FFN; what is non-linear is left to distillation or training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.linear import weight_of
from blockyard.nn.norms import LayerNorm, RMSNorm
from blockyard.nn.parity import evaluating
from blockyard.protocol.block import ResidualBlock
from blockyard.protocol.mixer import check_input
from blockyard.standard.attention import StandardAttention
from blockyard.vein.attention import TVAAttention
from blockyard.vein.block import VFTBlock


@torch.no_grad()
def from_standard(
    block: ResidualBlock,
    rank: int | None,
    calibration_x: Tensor,
    *,
    energy: float = 0.9,
    ffn_rank: int | None = None,
    stabilizer_rank: int | None = None,
) -> VFTBlock:
    """Return a vein block that starts close to a standard one.

    Args:
        block: standard attention (any rotary layout or none over whole heads, no window, no biases) and any FFN.
        rank: directions per head; None = the fewest that keep `energy` of the attention's value paths.
        calibration_x: [B, T, d_model], inputs of the block that are typical of its use.
        energy: share of squared singular values to keep when the rank is chosen.
        ffn_rank: directions of the FFN's vein; None = d_model / 4.
        stabilizer_rank: rank of the direct path; None = the same as ffn_rank.

    Values start as the best approximation of their rank; queries and keys too where nothing stands between the two
    projections. With rotary positions every (head_dim / rank)-th rotary pair is kept, because just these turn at
    the speeds of a rank-wide rotary embedding.

    Raises:
        InputError: for another mixer or an option that a vein cannot copy, a rank that does not suit the rotary
            pairs, or a calibration_x of the wrong shape.
    """
    attn = block.attn
    _check(attn)
    if block.parallel or block.norm_position == "branch":
        raise InputError("from_standard copies pre- and post-norm blocks, whose FFN reads what the mixer has added to")
    check_input(calibration_x, attn.d_model)
    x = calibration_x.to(attn.q_proj.weight.dtype)
    read = block.ln1(x) if block.pre else x
    root = _root_of_covariance(read)
    paths = _value_paths(attn, root)
    if rank is None:
        rank = _rank_from_spectrum(paths[1], energy)
        if attn.rope is not None:
            rank = next(r for r in range(rank, attn.head_dim + 1) if attn.head_dim % r == 0 and r % 2 == 0)
    _check_rank(attn, rank)
    ffn_rank = ffn_rank if ffn_rank is not None else max(1, attn.d_model // 4)
    vein_block = VFTBlock(
        attn.d_model,
        attn.n_heads,
        rank,
        ffn_rank=ffn_rank,
        stabilizer="lowrank",
        stabilizer_rank=stabilizer_rank if stabilizer_rank is not None else ffn_rank,
        causal=attn.causal,
        rope="none" if attn.rope is None else attn.rope.layout,
        rope_theta=10_000.0 if attn.rope is None else attn.rope.theta,
        qk_norm=isinstance(attn.q_norm, RMSNorm),
        attn_dropout=attn.attn_dropout.p,
        norm="layer" if isinstance(block.ln1, LayerNorm) else "rms",
        norm_position="pre" if block.pre else "post",
    ).to(attn.q_proj.weight)
    for mine, its in ((block.ln1, vein_block.ln1), (block.ln2, vein_block.ln2)):
        its.load_state_dict(mine.state_dict())
        its.eps = mine.eps
    _copy_values(vein_block.attn, paths)
    _copy_queries_and_keys(attn, vein_block.attn, root)
    # Corrections start at nothing: what the copies miss is not along random directions.
    vein_block.normals.zero_init_output()
    # Copied is what the block computes, not what its dropout makes of it in training.
    with evaluating(block):
        after = x + attn(read)[0] if block.pre else block.ln1(x + attn(read)[0])
        _copy_ffn(block.ffn, vein_block, block.ln2(after) if block.pre else after)
    return vein_block.train(block.training)


def _check(attn: nn.Module) -> None:
    if not isinstance(attn, StandardAttention):
        raise InputError(f"from_standard copies standard attention, not {type(attn).__name__}")
    if attn.window is not None or attn.q_proj.bias is not None:
        raise InputError("from_standard cannot copy a window or biases: a vein attention has neither")
    if attn.norms_whole or (
        attn.rope is not None and (attn.rope.d_k != attn.head_dim or attn.rope.scaling is not None)
    ):
        raise InputError(
            "from_standard cannot copy qk_norm=whole, rope_dim or rope_scaling: a rank-wide rotation has other angles"
        )


def _check_rank(attn: StandardAttention, rank: int) -> None:
    if not 1 <= rank <= attn.head_dim:
        raise InputError(f"rank={rank} should be at least 1 and at most the head width {attn.head_dim}")
    if attn.rope is not None and (attn.head_dim % rank or rank % 2):
        fitting = [r for r in range(2, attn.head_dim + 1, 2) if attn.head_dim % r == 0]
        raise InputError(
            f"rank={rank} does not fit rotary heads of width {attn.head_dim}; use {', '.join(map(str, fitting))}"
        )


def _heads(attn: StandardAttention) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the maps of each query head in float64: q, k [H, head_dim, d_model], v [H, v_dim, d_model], output
    [H, d_model, v_dim]."""
    shared = attn.n_heads // attn.n_kv_heads
    widths = (attn.head_dim, attn.head_dim, attn.v_dim)
    parts = zip((attn.q_proj, attn.k_proj, attn.v_proj), widths)
    q, k, v = (weight_of(p).double().unflatten(0, (-1, width)) for p, width in parts)
    out = weight_of(attn.output_proj).double().unflatten(1, (-1, attn.v_dim)).movedim(1, 0)
    return q, k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0), out


def _root_of_covariance(x: Tensor) -> Tensor:
    """Compute S [d, d] with S Sᵀ = xᵀx / rows: W S has the size that W x has on average."""
    rows = x.double().flatten(0, -2)
    values, vectors = torch.linalg.eigh(rows.mT @ rows / len(rows))
    # Rounding leaves eigenvalues a little below 0 where x has fewer rows than features.
    return vectors * values.clamp_(min=0).sqrt()


def _value_paths(attn: StandardAttention, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the SVD of each head's path d_model -> d_model on the activations: left vectors, singular values, and the
    path itself.

    The best rank-r copy of a path P on x projects its output: U_r U_rᵀ P.
    """
    _, _, v, out = _heads(attn)
    # A head adds out (v x) to the stream: only the product counts, not where it is cut in two.
    path = out @ v
    left, values, _ = torch.linalg.svd(path @ root, full_matrices=False)
    return left, values[:, : attn.v_dim], path


def _rank_from_spectrum(values: Tensor, energy: float) -> int:
    if not 0.0 < energy <= 1.0:
        raise InputError(f"energy={energy} should be above 0 and at most 1")
    # The energy of all heads together, since one rank serves them all.
    kept = values.square().sum(0).cumsum(0)
    return max(2, 1 + int((kept < energy * kept[-1]).sum()))


def _copy_values(attn: TVAAttention, paths: tuple[Tensor, Tensor, Tensor]) -> None:
    left, _, path = paths
    # Eckart and Young: of all rank-r copies the leading left directions lose least of P on these x.
    left = left[..., : attn.v_rank]  # [H, d_model, v_rank]
    attn.output_proj.weight.copy_(left.movedim(0, 1).flatten(1))
    attn.v_proj.weight.copy_((left.mT @ path).flatten(0, 1))


def _copy_queries_and_keys(standard: StandardAttention, attn: TVAAttention, root: Tensor) -> None:
    q, k, _, _ = _heads(standard)
    # Scores are divided by the root of the head's width: of head_dim there, of rank here.
    # Half of the factor to queries and half to keys: a root of the root.
    scale = (attn.rank / standard.head_dim) ** 0.25
    if standard.rope is not None or isinstance(standard.q_norm, RMSNorm):
        pairs = torch.arange(0, standard.head_dim // 2, standard.head_dim // attn.rank)
        if standard.rope is not None and standard.rope.layout == "interleaved":
            kept = torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()
        else:
            kept = torch.cat([pairs, pairs + standard.head_dim // 2])
        kept = kept[: attn.rank]
        if isinstance(standard.q_norm, RMSNorm):
            # Normalised, the size of q and k does not matter; that of their gains does.
            gains: Any = [(attn.q_norm, standard.q_norm), (attn.k_norm, standard.k_norm)]
            for mine, its in gains:
                mine.weight.copy_(its.weight[kept] * scale)
                mine.eps = its.eps
            scale = 1.0
        attn.q_proj.weight.copy_((q[:, kept] * scale).flatten(0, 1))
        attn.k_proj.weight.copy_((k[:, kept] * scale).flatten(0, 1))
        return
    # With Q = q S = Lq Oq and K = k S = Lk Ok (orthonormal O), scores are Oqᵀ (Lqᵀ Lk) Ok: truncate the middle.
    lower_q, lower_k = (torch.linalg.qr((w @ root).mT).R.mT for w in (q, k))
    a, sizes, b = torch.linalg.svd(lower_q.mT @ lower_k)
    half = (sizes[:, : attn.rank].sqrt() * scale).unsqueeze(-1)
    into_q = half * (a.mT[:, : attn.rank] @ torch.linalg.pinv(lower_q))
    into_k = half * (b[:, : attn.rank] @ torch.linalg.pinv(lower_k))
    attn.q_proj.weight.copy_((into_q @ q).flatten(0, 1))
    attn.k_proj.weight.copy_((into_k @ k).flatten(0, 1))


def _copy_ffn(ffn: Any, block: VFTBlock, h: Tensor) -> None:
    """Fill the vein with principal directions of h, the direct path by low-rank regression; the core starts at 0."""
    rows = h.flatten(0, -2)
    vectors = torch.linalg.eigh(rows.double().mT @ rows.double()).eigenvectors
    # eigh sorts upwards: the principal directions are the last.
    block.vein.stored()[0].copy_(vectors[:, -block.vein.rank :].mT)
    direct = block.ffn.stabilizer
    assert direct is not None
    given, wanted = direct.norm(rows).double(), ffn(rows).double()
    # A little ridge: calibration rows may be fewer than d_model.
    gram = given.mT @ given
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    linear = torch.linalg.solve(gram + ridge, given.mT @ wanted).mT  # wanted ≈ given @ linearᵀ
    fitted = given @ linear.mT
    directions = torch.linalg.eigh(fitted.mT @ fitted).eigenvectors[:, -direct.down.weight.shape[0] :]
    # Reduced-rank regression: the least-squares map, cut to the leading directions of what it fits.
    direct.up.weight.copy_(directions)
    direct.down.weight.copy_(directions.mT @ linear)
    for parameter in block.ffn.w2.parameters():
        nn.init.zeros_(parameter)


def distill(student: nn.Module, teacher: nn.Module, inputs: Iterable[Tensor], *, lr: float = 1e-3) -> list[float]:
    """Train a block to give another block's output; returns the relative squared error of every step.

    Args:
        student: a block; trained in place with AdamW.
        teacher: the block to imitate.
        inputs: batches [B, T, d_model] of block inputs; one step each.
        lr: learning rate.
    """
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    errors = []
    for x in inputs:
        with torch.no_grad():
            wanted = teacher(x)[0]
        # Relative to what the block adds to the stream: 1 is as far off as adding nothing.
        loss = F.mse_loss(student(x)[0], wanted) / (wanted - x).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    return errors
