"""Derivatives beyond the one backward pass of training: second ones, forward mode, and the transforms of torch.func.

Hand-written passes and fused kernels know one backward pass. Beside each stands the plain formula of what it computes,
which torch can differentiate as often and in whichever way is asked. It takes over when a backward pass builds a graph
of its own (`create_graph=True`), and from the start inside `torch.func` and forward-mode differentiation. Then time and
memory are those of autograd without fused passes; training pays for none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from blockyard.errors import InputError

Plain = Callable[..., Any]


def transformed() -> bool:
    """Return whether code runs inside a transform of torch.func, or inside forward-mode differentiation, in eager
    mode."""
    if torch.compiler.is_compiling():
        return False
    # autograd.Function asks the first itself, to raise; forward mode has no public question.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def needs_plain() -> bool:
    """Return, in a backward pass, whether it must go by operations that torch differentiates, or that vmap batches.

    Autograd enables gradients in a backward pass exactly when `create_graph` is given. Compilers refuse a second
    derivative themselves.
    """
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or transformed())


def hidden(tensor: Tensor) -> bool:
    """Return whether `torch.func.vmap` keeps the values of a tensor from being read: they stand for a whole batch."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def must_read(tensor: Tensor, what: str) -> None:
    """Refuse a tensor whose values decide what is computed where vmap hides them.

    Args:
        tensor: the values.
        what: who reads them and why, the beginning of a sentence.

    Raises:
        InputError: inside `torch.func.vmap`, when the tensor is batched.
    """
    if hidden(tensor):
        raise InputError(f"{what}, which torch.func.vmap hides; loop over the samples instead")


@contextmanager
def outlasting() -> Iterator[None]:
    """Make constants within it that are kept: no inference tensors, and untouched by transforms under way."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        yield


class HandWritten(torch.autograd.Function):
    """A function with a forward and a backward pass written by hand, and the plain formula of the same.

    A subclass has `forward`, `backward` and `plain`, which is made of operations that torch differentiates. Among the
    inputs tensors come first, then settings. `backward` serves first derivatives only, may write over what it made
    itself, and takes what `forward` saved by `keep`. Call it by `hand_written`.

    Attributes:
        differentiable: `backward` is itself made of such operations, on gradients, inputs and outputs, and serves all
            derivatives: a linear function need not keep its input then.
    """

    differentiable: ClassVar[bool] = False

    @staticmethod
    def plain(*inputs: Any) -> Any:
        """Return the formula in operations that torch differentiates, of the same inputs as `forward`."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.differentiable:
            # Guarded here, so that none can be forgotten.
            # mypy: the one place that wraps a class's backward pass.
            cls.backward = staticmethod(_guarded(cls.plain, cls.backward))  # type: ignore[method-assign]


def keep(ctx: Any, tensors: Sequence[Tensor | None], settings: Sequence[Any] = (), *made: Tensor | None) -> None:
    """Save what both backward passes need, in a forward pass.

    Args:
        ctx: the function's context.
        tensors: all tensor inputs, as they were given: a view made in `forward` would have lost its graph.
        settings: the inputs after them.
        made: what only the hand-written pass reads.
    """
    ctx.save_for_backward(*tensors, *made)
    ctx.settings = tuple(settings)


def hand_written(function: type[HandWritten], *inputs: Any) -> Any:
    """Return the function of the inputs, by its hand-written passes where they serve."""
    return function.plain(*inputs) if transformed() else function.apply(*inputs)


def fused_or_plain(out: Tensor, plain: Plain, tensors: Sequence[Tensor | None], settings: Sequence[Any] = ()) -> Tensor:
    """Return the result of a kernel of torch whose own backward pass cannot be differentiated again, mended.

    Gradients go back through the kernel, but through `plain` when a graph of them is wanted.

    Args:
        out: what the kernel gave, of the tensors.
        plain: the same of (*tensors, *settings), in operations that torch differentiates.
        tensors: the tensors that the kernel was given, which it keeps anyway.
        settings: further arguments.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and out.requires_grad):
        return out
    return _FusedOrPlain.apply(out, plain, tuple(settings), *tensors)


class _FusedOrPlain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, plain: Plain, settings: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        ctx.plain, ctx.settings = plain, settings
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        if not needs_plain():
            # Saved tensors are not touched: asking for them costs as much as all the rest.
            return grad, None, None, *(None for _ in needs)
        # Nothing goes to the kernel, or gradients would count twice.
        return None, None, None, *differentiate(ctx.plain, ctx.saved_tensors, ctx.settings, needs, (grad,))


def differentiate(
    plain: Plain,
    tensors: Sequence[Tensor | None],
    settings: Sequence[Any],
    needs: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the vector-Jacobian product of a plain formula, with a graph of its own where gradients are enabled.

    Args:
        plain: of (*tensors, *settings), a tensor or several.
        tensors: its inputs, which carry the graph that further derivatives go back through.
        settings: its other arguments.
        needs: which of the tensors want a gradient.
        grads: gradients of the results; None for 0.

    Returns: one gradient per tensor, None where none is wanted or none comes.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Through views of their own: where one input was made of another, the gradient of this use alone is meant.
        own = [t.view_as(t) if t is not None and need else t for t, need in zip(tensors, needs)]
        found = plain(*own, *settings)
        outs = found if isinstance(found, tuple) else (found,)
        # Non-differentiable results come last. Under autocast a kernel's result may be narrower than the formula's.
        pairs = [(out, grad.to(out.dtype)) for out, grad in zip(outs, grads) if grad is not None and out.requires_grad]
        wanted = [t for t, need in zip(own, needs) if t is not None and need]
        if not pairs or not wanted:
            return tuple(None for _ in tensors)
        results = iter(
            torch.autograd.grad(
                [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=again, allow_unused=True
            )
        )
        return tuple(next(results) if need else None for need in needs)


def differentiate_all(plain: Plain, ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the same for a function's context: one gradient for each of its inputs, tensors first and then
    `ctx.settings`."""
    count = len(ctx.needs_input_grad) - len(ctx.settings)
    # Read once: activation checkpointing gives every saved tensor back one time.
    tensors = ctx.saved_tensors[:count]
    found = differentiate(plain, tensors, ctx.settings, ctx.needs_input_grad[:count], grads)
    return *found, *(None for _ in ctx.settings)


def _guarded(plain: Plain, backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hand-written backward pass, or the plain one where a graph of the gradients is wanted."""

    def either(ctx: Any, *grads: Any) -> Any:
        return differentiate_all(plain, ctx, grads) if needs_plain() else backward(ctx, *grads)

    return either
