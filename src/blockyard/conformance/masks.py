"""Checks of padding and attention masks: what is masked has no influence, and masking everything is no NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.conformance.subject import BATCH, LENGTH, Subject, close, influence, random, reals
from blockyard.conformance.suite import check_of

PAD = 3


def padded(x: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """Return (x with three positions of garbage in its second row's side, mask [2, T + 3]); the first row is all
    real."""
    garbage = 1e2 * random(x.shape[0], PAD, x.shape[2], seed=9, dtype=x.dtype)
    wide = torch.cat([garbage, x] if left else [x, garbage], dim=1)
    keep = torch.ones(wide.shape[:2], dtype=torch.long)
    keep[1:, :PAD] = 0 if left else 1
    keep[1:, -PAD:] = 1 if left else 0
    return wide, keep


@check_of("attn", "padding")
def a_row_padded_on_the_left_gives_what_it_gives_alone(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        wide, keep = padded(x, left=True)
        out = mixer(wide, padding_mask=keep)
        close(out[1:, PAD:], mixer(x[1:]), f"a row padded on the left, causal={causal}")
        close(out[:1], mixer(wide[:1]), f"the unpadded row beside it, causal={causal}")
        close(mixer(wide, padding_mask=keep.bool())[:, PAD:], out[:, PAD:], "a mask of dtype bool")


@check_of("attn", "padding")
def a_row_padded_on_the_right_gives_what_it_gives_alone(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        wide, keep = padded(x, left=False)
        close(mixer(wide, padding_mask=keep)[1:, :-PAD], mixer(x[1:]), f"padded on the right, causal={causal}")


@check_of("attn", "padding")
def padding_has_no_influence_and_no_gradient(subject: Subject) -> None:
    for causal in subject.modes:
        mixer = subject.build(causal)
        wide, keep = padded(subject.x(), left=True)
        wide.requires_grad_()
        out = mixer(wide, padding_mask=keep)
        (gradient,) = torch.autograd.grad(reals(out[1, PAD:]).sum(), wide)
        close(gradient[1, :PAD], torch.zeros_like(gradient[1, :PAD]), "gradient of real outputs in padding", 1e-9)


@check_of("attn", "padding")
def a_mask_that_keeps_everything_changes_nothing(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        close(mixer(x, padding_mask=torch.ones(BATCH, LENGTH)), mixer(x), f"a mask of ones, causal={causal}")


@check_of("attn", "padding")
def a_row_of_nothing_but_padding_is_finite(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x().requires_grad_()
        keep = torch.ones(BATCH, LENGTH)
        keep[1] = 0
        out = mixer(x, padding_mask=keep)
        assert torch.isfinite(out).all(), "a row of padding alone makes the output NaN"
        close(out[:1], mixer(x[:1]), "the row beside one of padding alone")
        gradients = torch.autograd.grad(reals(out).sum(), [x, *_used(mixer.module)], allow_unused=True)
        assert all(g is None or torch.isfinite(g).all() for g in gradients), "its gradient is not finite"


@check_of("attn", "attn_mask")
def a_boolean_mask_hides_exactly_what_it_says(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x, visible = subject.build(causal), subject.x(), _some_mask()
        # Compared with what is seen without a mask: causality or a window hides more.
        expected, seen = influence(mixer, x) & visible, influence(mixer, x, attn_mask=visible)
        for t in range(LENGTH):
            hidden, missed = (seen[t] & ~expected[t]).nonzero(), (expected[t] & ~seen[t]).nonzero()
            assert not len(hidden), f"position {t} sees {hidden.flatten().tolist()}, masked (causal={causal})"
            assert not len(missed), f"position {t} misses {missed.flatten().tolist()} (causal={causal})"


@check_of("attn", "attn_mask")
def an_additive_mask_of_minus_infinity_equals_the_boolean_one(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        visible = _some_mask()
        additive = torch.zeros(LENGTH, LENGTH, dtype=subject.real_dtype).masked_fill(~visible, -torch.inf)
        close(mixer(x, attn_mask=additive), mixer(x, attn_mask=visible), f"additive mask, causal={causal}")
        bias = random(LENGTH, LENGTH, seed=6, dtype=subject.real_dtype)
        difference = (mixer(x, attn_mask=bias) - mixer(x)).abs().max()
        assert difference > 1e-6, "an additive mask with finite numbers is ignored"


@check_of("attn", "attn_mask")
def masks_broadcast_over_batch_and_heads(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        per_row = torch.stack([_some_mask(), _some_mask().flip(0) | torch.eye(LENGTH, dtype=torch.bool)])
        out = mixer(x, attn_mask=per_row[:, None])
        for row in range(BATCH):
            close(out[row : row + 1], mixer(x[row : row + 1], attn_mask=per_row[row]), f"mask [B, 1, T, S], row {row}")


@check_of("attn", "attn_mask")
def a_query_that_may_see_nothing_gives_zero_and_no_nan(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x().requires_grad_()
        visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
        visible[2] = False
        for mask in (visible, torch.zeros(LENGTH, LENGTH, dtype=subject.real_dtype).masked_fill(~visible, -torch.inf)):
            out = mixer(x, attn_mask=mask)
            assert torch.isfinite(out).all(), f"a fully masked row ({mask.dtype}) makes the output NaN"
            # An output bias is added to what attention gives, which is 0.
            biased = any(name.endswith("bias") for name, _ in mixer.module.named_parameters())
            rest = out[:, 2] - mixer(3 * x, attn_mask=mask)[:, 2] if biased else out[:, 2]
            close(rest, torch.zeros_like(rest), f"a fully masked row ({mask.dtype})")
            gradients = torch.autograd.grad(reals(out).sum(), [x, *_used(mixer.module)], allow_unused=True)
            assert all(g is None or torch.isfinite(g).all() for g in gradients), "its gradient is not finite"


@check_of("attn", "attn_mask", "padding")
def padding_and_attention_mask_act_together(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        wide, keep = padded(x, left=True)
        mask = torch.ones(LENGTH + PAD, LENGTH + PAD, dtype=torch.bool)
        mask[PAD:, PAD:] = _some_mask()
        out = mixer(wide, padding_mask=keep, attn_mask=mask)
        close(out[1:, PAD:], mixer(x[1:], attn_mask=_some_mask()), f"padding and mask, causal={causal}")


def _some_mask() -> Tensor:
    """Return a mask without pattern in which every position sees itself."""
    return (random(LENGTH, LENGTH, seed=5) > 0) | torch.eye(LENGTH, dtype=torch.bool)


def _used(module: torch.nn.Module) -> list[Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
