"""Checks of gradients, checkpointing, compilation and saving."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from blockyard.conformance.subject import Built, Subject, close, own_random, reals, skip
from blockyard.conformance.suite import check_of
from blockyard.errors import InputError

# Of central differences, for inputs and parameters of order 1 in float64.
_STEP = 1e-6


def gradients(module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor | None]:
    """Return gradients of a scalar of the output in x and all parameters."""
    x = x.clone().requires_grad_()
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    out = call(x)
    out = reals(out)
    scalar = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    found = torch.autograd.grad(scalar, [x, *named.values()], allow_unused=True)
    return dict(zip(["x", *named], found))


def same_gradients(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], what: str) -> None:
    """Assert that both hold the same gradients."""
    for name, gradient in expected.items():
        other = actual[name]
        assert (gradient is None) == (other is None), f"{what}: only one of the two has a gradient of {name}"
        if gradient is not None and other is not None:
            close(other, gradient, f"{what}: gradient of {name}")


@check_of("attn")
def every_parameter_gets_a_gradient(subject: Subject) -> None:
    for causal in subject.modes:
        mixer = subject.build(causal)
        dead = _dead(mixer, subject.x())
        if dead:
            # Some parts act only beyond a certain length, such as the gate of a mixer that works in chunks.
            dead &= _dead(mixer, subject.x(length=67))
        assert not dead, f"no gradient reaches {', '.join(sorted(dead))} (causal={causal})"


def _dead(mixer: Built, x: Tensor) -> set[str]:
    """Return names of the parameters (or x) whose gradient is missing or 0."""
    found = gradients(mixer.module, mixer, x)
    return {name for name, gradient in found.items() if gradient is None or not gradient.any()}


@check_of("attn")
def gradients_equal_finite_differences(subject: Subject) -> None:
    if not subject.precise:
        skip("its traits do not claim float64")
    for causal in subject.modes:
        mixer = subject.build(causal)
        check_gradients(mixer.module, mixer, subject.x(batch=1, length=3))


def check_gradients(module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Run `gradcheck` in x and in all parameters, in its fast form (one random direction of each)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(
        lambda given, *_: call(given), (x.clone().requires_grad_(), *parameters), fast_mode=True, atol=1e-5
    )


@check_of("attn")
def second_derivatives_are_right_or_refused(subject: Subject) -> None:
    if not subject.precise:
        skip("its traits do not claim float64")
    for causal in subject.modes:
        mixer = subject.build(causal)
        check_second_derivatives(mixer.module, mixer, subject.x(batch=1, length=3))


def check_second_derivatives(module: torch.nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Compare the Hessian of a curved scalar times a direction, against central differences of the gradient.

    An error of the block's own is a refusal.
    """
    inputs = [x.clone().requires_grad_(), *(p for p in module.parameters() if p.requires_grad)]
    with own_random(0):
        direction = [torch.randn_like(t) for t in inputs]
    size = _row(direction, inputs).norm()

    def gradient(again: bool = False) -> list[Tensor | None]:
        out = reals(call(inputs[0]))
        scalar = (out * out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
        # Of chosen inputs: on this way autograd forgets that a function may be differentiated once only.
        return list(torch.autograd.grad(scalar, inputs, create_graph=again, allow_unused=True))

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for t, d in zip(inputs, direction):
                t.add_(d * (step / size))
        return _row(gradient(), inputs)

    try:
        first = gradient(again=True)
        along = sum((reals(g) * reals(d)).sum() for g, d in zip(first, direction) if g is not None)
        # mypy: torch takes any sequence.
        found = _row(torch.autograd.grad(along, inputs, allow_unused=True), inputs) / size  # type: ignore[arg-type]
    except (RuntimeError, InputError) as refusal:
        skip(f"it refuses second derivatives: {str(refusal).splitlines()[0]}")
    # There, back by twice the way, and home again.
    difference = (moved(_STEP) - moved(-2 * _STEP)) / (2 * _STEP)
    moved(_STEP)
    error = float((found - difference).norm() / difference.norm().clamp(min=1e-9))
    # Rounding of the gradient over the step is some 1e-9; a path that is left out shows in the first digits.
    assert error < 1e-4, f"second derivatives are wrong, and nothing is said: relative error {error:.1e}"


def _row(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Return all parts of all tensors in a row, 0 for None."""
    return torch.cat([reals(torch.zeros_like(o) if t is None else t).flatten() for t, o in zip(tensors, like)]).detach()


@check_of("attn")
def activation_checkpointing_changes_no_gradient(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal, **subject.dropout), subject.x()
        mixer.module.train()
        compare_checkpointed(mixer, x, f"checkpointed, causal={causal}")


def compare_checkpointed(built: Built, x: Tensor, what: str) -> None:
    """Assert equal gradients with and without recomputation, the random numbers of dropout being the same."""
    with own_random(0):
        expected = gradients(built.module, built, x)
    with own_random(0):
        found = gradients(built.module, lambda x: checkpoint(built, x, use_reentrant=False), x)
    same_gradients(found, expected, what)


@check_of("attn")
def a_saved_and_loaded_copy_gives_the_same_output(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        copy = subject.build(causal, seed=5)
        copy.module.load_state_dict(reloaded(mixer.module))
        assert torch.equal(copy(x), mixer(x)), f"a loaded copy gives another output (causal={causal})"


def reloaded(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the state dict after a way through a file, as tensors alone."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@check_of("attn")
def every_value_of_every_enumerated_option_trains_one_step(subject: Subject) -> None:
    train_every_value(subject, subject.modes)


def enumerated(subject: Subject) -> list[tuple[str, Any]]:
    """Return (option, value) for each choice and switch of the constructor that the caller has not set."""
    found = []
    for name, option in subject.constructor.items():
        values = option.choices or ((True, False) if bool in option.alternatives else ())
        if name != "causal" and name not in subject.options:
            found += [(name, value) for value in values]
    return found


def train_every_value(subject: Subject, modes: Sequence[bool] = (False,)) -> None:
    """Assert that one step of gradient descent works, and lowers the loss, under each value alone.

    Args:
        modes: values of `causal` to try; an option may belong to one form of a mixer and be refused in the other.
    """
    chosen = enumerated(subject)
    if not chosen:
        skip("it has no enumerated options")
    for name, value in chosen:
        refusal = None
        for causal in modes:
            try:
                built = subject.build(causal, **{name: value})
            except InputError as error:
                refusal = error
                continue
            _descend(built, f"{name}={value!r}")
            break
        else:
            # A value may contradict an option that the caller chose, never the defaults.
            if refusal is not None and not subject.options:
                raise refusal


def _descend(built: Built, what: str) -> None:
    x = built.subject.x()
    built.module.train()
    with own_random(0):
        loss = reals(built(x)).square().mean()
    loss.backward()
    slopes = [(p, p.grad) for p in built.module.parameters() if p.grad is not None]
    size = sum(g.square().sum() for _, g in slopes)
    with torch.no_grad():
        for parameter, gradient in slopes:
            # A step short enough for the slope to hold: it should lower the loss by a hundredth.
            parameter -= 1e-2 * loss / size * gradient
        # What is random in training falls out the same both times.
        with own_random(0):
            after = reals(built(x)).square().mean()
    assert torch.isfinite(after), f"{what}: the output is not finite after a step"
    assert after < loss, f"{what}: a step down the gradient raises the loss"


@check_of("attn")
def torch_compile_captures_it_as_one_graph(subject: Subject) -> None:
    for causal in subject.modes:
        mixer, x = subject.build(causal), subject.x()
        close(compiled(mixer)(x), mixer(x), f"compiled, causal={causal}")


def compiled(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the call captured by Dynamo without graph breaks; the eager backend suffices to prove that it can be."""
    torch.compiler.reset()
    return torch.compile(lambda x: call(x), fullgraph=True, backend="eager")
