"""Checks of what goes in and comes out: shapes, layouts, rows, precision, positions, weights, cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.conformance.subject import (
    BATCH,
    LENGTH,
    SIZES,
    Subject,
    at_lengths,
    close,
    influence,
    random,
    reals,
    skip,
)
from blockyard.conformance.suite import check_of
from blockyard.models.order import tells_order

LENGTHS = (1, 2, 3, 5, 13, 31, 67)


@check_of("attn")
def every_length_works_down_to_a_single_position(subject: Subject) -> str:
    mixers = [subject.build(causal) for causal in subject.modes]

    def works(length: int) -> None:
        x = subject.x(length=length)
        for mixer in mixers:
            out = mixer(x)
            assert out.shape == x.shape, f"T={length}: output {list(out.shape)} for input {list(x.shape)}"
            assert out.dtype == x.dtype, f"T={length}: output {out.dtype} for input {x.dtype}"
            assert torch.isfinite(out).all(), f"T={length}: the output is not finite"

    for length in LENGTHS:
        works(length)
    with torch.no_grad():
        return at_lengths(works, least=LENGTHS[-1])


@check_of("attn")
def the_output_is_bare_or_a_pair_with_no_weights_unless_asked(subject: Subject) -> None:
    result = subject.build(subject.modes[0]).full(subject.x())
    if isinstance(result, Tensor):
        return
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)
    assert pair, f"forward should return its output or (output, weights | None), not {type(result).__name__}"
    if subject.declared:
        assert result[1] is None, "weights were returned without being asked for; they cost memory"


@check_of("attn")
def rows_of_a_batch_do_not_mix(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x(batch=3)
        together = mixer(x)
        for row in range(3):
            close(together[row : row + 1], mixer(x[row : row + 1]), f"row {row} alone, causal={causal}")


@check_of("attn")
def non_contiguous_input_gives_the_same_output(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        expected = mixer(x)
        close(mixer(x.transpose(0, 1).contiguous().transpose(0, 1)), expected, "batch and length swapped in memory")
        wide = torch.stack([x, torch.full_like(x, 1e3)], dim=-1).flatten(-2)
        close(mixer(wide[..., ::2]), expected, "every other column of a wider tensor")


@check_of("attn")
def the_input_is_not_written_to(subject: Subject) -> None:
    mixer, x = subject.build(subject.modes[0]), subject.x()
    before = x.clone()
    mixer(x)
    assert torch.equal(x, before), "forward changed its input in place"


@check_of("attn")
def two_calls_in_eval_mode_agree_bit_for_bit(subject: Subject) -> None:
    mixer, x = subject.build(subject.modes[0], **subject.dropout), subject.x()
    assert torch.equal(mixer(x), mixer(x)), "two calls in eval mode differ (dropout left on?)"


@check_of("attn")
def bfloat16_weights_load_and_compute_close_to_float32(subject: Subject) -> None:
    if "bfloat16" not in subject.traits.dtypes:
        skip("its traits do not claim bfloat16")
    for causal in subject.modes:
        exact = subject.build(causal, torch.float32)
        half = subject.build(causal, torch.bfloat16, seed=5)
        state = {name: t.bfloat16() if t.is_floating_point() else t for name, t in exact.module.state_dict().items()}
        half.module.load_state_dict(state)
        x, single = subject.x(precision=torch.bfloat16), subject.data_dtype(torch.float32)
        out, expected = half(x), exact(x.to(single))
        assert out.dtype == x.dtype, f"{x.dtype} in, {out.dtype} out"
        # bfloat16 has 8 bits: about 0.4 % per operation, and a handful of operations in a row.
        close(out.to(single), expected, f"bfloat16 against float32, causal={causal}", tolerance=0.06)


@check_of("attn", fact=True)
def whether_it_knows_the_order_of_positions_is_found_out(subject: Subject) -> str | None:
    found = [
        tells_order(subject.build(causal), lambda length: subject.x(batch=1, length=length)) for causal in subject.modes
    ]
    claimed = subject.traits.order
    # The traits speak of the options' defaults.
    if claimed is not None and not set(subject.options) - set(SIZES):
        assert all(known == claimed for known in found), f"its traits say order={claimed}; it is order={not claimed}"
    if any(found):
        return None
    return (
        "no positions of its own: its output depends on which inputs there are, not on their order; a language model "
        "can give it positions (--model.positions auto or learned)"
    )


@check_of("attn", "positions")
def default_positions_count_from_zero(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        expected, count = mixer(x), torch.arange(LENGTH)
        close(mixer(x, positions=count), expected, "positions [T] given as 0, 1, 2, …")
        close(mixer(x, positions=count.expand(BATCH, -1)), expected, "positions [B, T] given as 0, 1, 2, …")


@check_of("attn", "positions", "bidirectional")
def permuted_input_with_permuted_positions_gives_permuted_output(subject: Subject) -> None:
    mixer, x = subject.build(False), subject.x()
    orders, seen = [torch.arange(LENGTH).flip(0), torch.tensor([3, 0, 6, 1, 5, 2, 4])], influence(mixer, x)
    # A window is counted in places, not in positions, and only the reversed order keeps who is near whom; the first
    # tokens seen beside it are first by place, too, and no order keeps them.
    orders = [order for order in orders if torch.equal(seen[order][:, order], seen)]
    if not orders:
        skip("whom a position sees depends on its place: no other order keeps that")
    for order in orders:
        close(mixer(x[:, order], positions=order), mixer(x)[:, order], f"the same tokens in the order {order.tolist()}")


@check_of("attn", "weights")
def weights_are_a_distribution_and_change_nothing(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        out, weights = mixer.full(x, return_weights=True)
        close(out, mixer(x), "the output with return_weights=True")
        assert weights is not None, "return_weights=True returned None"
        assert weights.ndim == 4 and weights.shape[0] == BATCH and weights.shape[-2:] == (LENGTH, LENGTH), (
            f"weights have shape {list(weights.shape)}, not [B, H, T, S]"
        )
        assert (weights >= 0).all(), "some weights are negative"
        close(weights.sum(-1), torch.ones_like(weights.sum(-1)), "the weights of each row summed")
        if causal:
            assert not weights.triu(1).any(), "causal weights look at the future"


@check_of("attn", "weights", "attn_mask", "bidirectional")
def weights_follow_an_additive_mask_as_a_softmax_does(subject: Subject) -> None:
    # softmax(s + m) is softmax(s) · exp(m), normalised: the returned weights are those of the scores themselves.
    mixer, x = subject.build(False), subject.x()
    bias = random(LENGTH, LENGTH, seed=3, dtype=subject.real_dtype)
    _, plain = mixer.full(x, return_weights=True)
    _, shifted = mixer.full(x, attn_mask=bias, return_weights=True)
    expected = plain * bias.exp()
    close(shifted, expected / expected.sum(-1, keepdim=True), "weights under an additive mask")


@check_of("attn", "cross")
def context_of_another_length_is_attended_to(subject: Subject) -> None:
    mixer, x = subject.build(False), subject.x()
    context = subject.x(length=5, seed=2).requires_grad_()
    out = mixer(x, context=context)
    assert out.shape == x.shape, f"output {list(out.shape)} for input {list(x.shape)} and context {list(context.shape)}"
    (gradient,) = torch.autograd.grad(reals(out).sum(), context)
    assert gradient.abs().sum(-1).all(), "some positions of the context have no influence"
    if subject.traits.padding:
        keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        padded = mixer(x, context=context, padding_mask=keep)
        close(padded[1:], mixer(x[1:], context=context[1:, :3]), "a context padded on the right")
