"""Checks that the future does not reach the past.

A NaN in the future is *not* fed to a whole forward pass: softmax attention multiplies masked values by an exact
zero, and 0 · NaN is NaN in every implementation, PyTorch's own included. The Jacobian says the same thing exactly,
and the caching checks put a NaN chunk into a cache and roll it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.conformance.subject import LENGTH, Built, Subject, at_lengths, close, own_random, random, reals, skip
from blockyard.conformance.suite import check_of

# Far below what a leak could be and still carry anything, far above float64's rounding in a Fourier transform.
LEAK = 1e-9

# Where a kernel that works in pieces of a usual size could let the future through, by length: few, since each is a pass
# over a long input. Prefixes are cheaper, and there are more of them.
BORDERS = {257: (64, 129, 256), 1031: (512, 1024)}
OUTPUTS = {257: (63, 128), 1031: (511,)}
PREFIXES = (64, 127, 128, 129, 255, 256, 257, 512, 513, 1024)


def leak_tolerance(subject: Subject) -> float:
    return LEAK if subject.precise else 1e-5


@check_of("attn", "causal")
def changing_the_future_leaves_the_past_as_it_was(subject: Subject) -> str:
    mixer, x = subject.build(True), subject.x(length=13)
    expected = mixer(x)
    for now in range(1, 13):
        for size in (1.0, 1e4):
            changed = torch.cat([x[:, :now], size * subject.x(length=13 - now, seed=now + 10)], dim=1)
            past = mixer(changed)[:, :now]
            # The tolerance grows with what was put in: an FFT's rounding does, a leak far more.
            close(past, expected[:, :now], f"outputs before t={now}", tolerance=leak_tolerance(subject) * size)
    return at_lengths(lambda length: _change_the_future(subject, mixer, length, BORDERS[length]))


def _change_the_future(subject: Subject, mixer: Built, length: int, borders: Sequence[int]) -> None:
    x = subject.x(batch=1, length=length)
    with torch.no_grad():
        expected = mixer(x)
        for now in borders:
            changed = torch.cat([x[:, :now], subject.x(batch=1, length=length - now, seed=now + 10)], dim=1)
            close(mixer(changed)[:, :now], expected[:, :now], f"outputs before t={now}", leak_tolerance(subject))


@check_of("attn", "causal")
def the_jacobian_of_the_past_in_the_future_is_zero(subject: Subject) -> str:
    mixer = subject.build(True)
    _no_gradient_from_the_past(subject, mixer, LENGTH, range(LENGTH))
    return at_lengths(
        lambda length: _no_gradient_from_the_past(subject, mixer, length, OUTPUTS[length]),
        least=LENGTH,
    )


def _no_gradient_from_the_past(subject: Subject, mixer: Built, length: int, places: Sequence[int]) -> None:
    x = subject.x(batch=1, length=length).requires_grad_()
    out = mixer(x)
    probe = random(length, subject.d_model, seed=4, dtype=out.dtype)
    for now in places:
        (gradient,) = torch.autograd.grad(reals(out[0, now] * probe[now]).sum(), x, retain_graph=True)
        leaked = gradient[0, now + 1 :]
        close(leaked, torch.zeros_like(leaked), f"gradient of output {now} in later inputs", leak_tolerance(subject))
        assert gradient[0, now].any(), f"output {now} does not depend on its own input"


@check_of("attn", "causal")
def a_longer_input_continues_a_shorter_one(subject: Subject) -> str:
    # Also catches what depends on the length itself: normalising by T, padding to a block, a transform's period.
    mixer, x = subject.build(True), subject.x(length=67)
    expected = mixer(x)
    for length in (1, 2, 3, 16, 31, 64, 66):
        close(mixer(x[:, :length]), expected[:, :length], f"the first {length} positions alone")
    return at_lengths(lambda length: _continue(subject, mixer, length), least=67)


def _continue(subject: Subject, mixer: Built, whole: int) -> None:
    x = subject.x(batch=1, length=whole)
    with torch.no_grad():
        expected = mixer(x)
        for length in (length for length in PREFIXES if length < whole):
            close(mixer(x[:, :length]), expected[:, :length], f"the first {length} positions alone")


@check_of("attn", fact=True)
def whether_it_hides_the_future_by_itself_is_found_out(subject: Subject) -> str:
    if subject.declared or subject.traits.causal:
        skip("its traits or its signatures say so")
    mixer = subject.build(False)
    try:
        _change_the_future(subject, mixer, 13, range(1, 13))
    except AssertionError:
        return "it sees the future, and takes neither causal, is_causal nor attn_mask: no language model can use it"
    reached = at_lengths(lambda length: _change_the_future(subject, mixer, length, BORDERS[length]))
    return (
        f"it hides the future without saying so ({reached}): a language model takes it when it is registered with "
        "Traits(causal=True, bidirectional=False)"
    )


@check_of("attn", "causal", "bidirectional")
def the_causal_argument_overrides_or_is_refused(subject: Subject) -> None:
    if not {"causal"} <= set(subject.constructor) & subject.arguments:
        skip("its constructor and its forward do not both name causal")
    x = subject.x()
    for built, asked in ((False, True), (True, False)):
        other, same = subject.build(built), subject.build(asked)
        try:
            out = other(x, causal=asked)
        except (ValueError, NotImplementedError):
            continue
        close(out, same(x), f"built with causal={built}, called with causal={asked}")


@check_of("attn", "causal", slow=True)
def random_tokens_cannot_be_predicted(subject: Subject) -> None:
    """Refuse one that learns them: a tiny model trained on fresh random tokens cannot go below ln V, unless it sees
    what it has to predict."""
    vocabulary, length, steps = 16, 24, 200
    with own_random(0):
        mixer = subject.build(True, torch.float32)
        model = _TinyModel(vocabulary, subject, mixer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            loss = _next_token_loss(model, torch.randint(vocabulary, (16, length + 1)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = _next_token_loss(model, torch.randint(vocabulary, (128, length + 1))).item()
    floor = math.log(vocabulary)
    assert held_out > floor - 0.03, f"loss {held_out:.3f} on random tokens is below ln V = {floor:.3f}: it sees ahead"


class _TinyModel(nn.Module):
    """Embedding, one residual mixer, head. Complex vectors are read as twice as many reals."""

    def __init__(self, vocabulary: int, subject: Subject, mixer: Built) -> None:
        super().__init__()
        self.complex_valued = subject.traits.complex_valued
        width = subject.d_model * (2 if self.complex_valued else 1)
        self.embed = nn.Embedding(vocabulary, width)
        self.mixer, self.call = mixer.module.train(), mixer
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        data = torch.view_as_complex(x.unflatten(-1, (-1, 2))) if self.complex_valued else x
        return self.head(self.norm(x + reals(self.call(data)).reshape(x.shape)))


def _next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
