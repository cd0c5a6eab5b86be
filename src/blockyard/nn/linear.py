"""Linear maps and token embeddings with the initialisation of the basics document (section 3.4).

They are torch's own classes with another start, so that whatever selects `nn.Linear` or `nn.Embedding` (adapters,
quantisers, pruning, parametrisations) finds them. Who computes with a weight elsewhere than in `forward` asks `plain`
whether the weight alone says what a call gives, or `weight_of` for the matrix that a call multiplies by.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from blockyard.errors import InputError
from blockyard.nn.products import linear
from blockyard.nn.roles import Role


class Linear(nn.Linear):
    """y = x Wᵀ (+ b), with W stored as [d_out, d_in].

    Args:
        d_in: width of the input.
        d_out: width of the output.
        bias: add a bias, zero at the start (off: most language models have none).

    Shapes: x [..., d_in] -> [..., d_out].
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_in, d_out, bias=bias, device=device, dtype=dtype)
        if not bias:
            # An attribute of the object's own is found at once; torch searches parameters for it, at every call.
            del self._parameters["bias"]
            self.bias = None  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        """Draw from a truncated normal, variance 2 / (d_in + d_out), cut at three standard deviations."""
        d_out, d_in = self.weight.shape
        std = math.sqrt(2.0 / (d_in + d_out))
        # trunc_normal_ takes the cut in absolute units, not in standard deviations.
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        d_out, d_in = self.weight.shape
        return f"{d_in} -> {d_out}{', bias' if self.bias is not None else ''}"


class StackedLinear(Linear):
    """Several maps of one input with their weights stacked in one matrix: one product makes all outputs.

    To the optimizer they stay the maps that they are (`Role.parts`): orthogonalised as one matrix, a direction that
    several of them need would be shared out among them.

    Args:
        d_in: width of the input.
        d_outs: widths of the outputs, which lie side by side.
        bias: as in `Linear`.

    Shapes: x [..., d_in] -> [..., sum of d_outs].
    """

    def __init__(self, d_in: int, d_outs: tuple[int, ...], *, bias: bool = False) -> None:
        super().__init__(d_in, sum(d_outs), bias=bias)
        self.d_outs = d_outs

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("matrix", parts=self.d_outs)}


# What a weight is when nobody put something of their own in its place (torchao a quantised tensor, FSDP a sharded one).
_DENSE = (nn.Parameter, Tensor)


def plain(*modules: nn.Module) -> bool:
    """Return whether these are bare `Linear`s without bias, so that their weights alone say what calling them would
    give.

    One that was replaced (by an adapter such as LoRA), parametrised, pruned, quantised or hooked has to be called.
    """
    # Asked at every step of decoding: `hooked` and `_is_dense` written out, which takes half the time.
    for m in modules:
        if type(m) is not Linear or m.bias is not None or "forward" in m.__dict__:
            return False
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks:
            return False
        if type(m._parameters.get("weight")) not in _DENSE:
            return False
    return True


def untouched(module: nn.Module) -> bool:
    """Return whether this is a linear module whose own weight (and bias) say what calling it would give."""
    return _multiplies(module) and not hooked(module) and _is_dense(module)


def _multiplies(module: nn.Module) -> bool:
    """Return whether calling its class's `forward` multiplies by its weight and adds its bias, and no more."""
    return isinstance(module, nn.Linear) and type(module).forward in (nn.Linear.forward, Linear.forward)


def _is_dense(module: nn.Module) -> bool:
    # Among the parameters: what is parametrised or pruned is none any more.
    return type(module._parameters.get("weight")) in _DENSE


def hooked(module: nn.Module) -> bool:
    """Return whether someone listens to calls of this module, or answers them in its place, so that it has to be
    called."""
    listens = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return bool(listens) or "forward" in module.__dict__


def weight_of(module: nn.Module) -> Tensor:
    """Return the matrix [d_out, d_in] that a call of this linear module multiplies by, with its gradients.

    Parametrised, pruned and quantised modules give what they compute with; others (adapters such as LoRA, hooks) are
    asked for the images of the unit vectors, d_in rows more.

    Raises:
        InputError: for a module that drops elements in training (its matrix is another one for every token), or one
            that does not say how wide its input is.
    """
    if untouched(module):
        return module.weight  # type: ignore[return-value]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            # The pruned weight is made anew before every call, and this is one.
            hook(module, ())
    pruned = all(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values())
    listens = module._forward_hooks or module._backward_hooks or "forward" in module.__dict__
    if _multiplies(module) and pruned and not listens:
        weight: Tensor = module.weight  # type: ignore[assignment]
        # A quantised tensor says what it stands for; a sharded one (FSDP) is what it is.
        quantised = type(weight).dequantize is not Tensor.dequantize
        return weight.dequantize() if quantised else weight
    return _asked(module)


def _asked(module: nn.Module) -> Tensor:
    """Return what the module makes of the unit vectors, as a matrix [d_out, d_in]; a bias is what it makes of 0."""
    for part in module.modules():
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            raise InputError(
                f"{type(module).__name__} drops elements with probability {part.p} in training, but its matrix is "
                "multiplied with others before any token is; set its dropout to 0, or leave this module out"
            )
    known = getattr(module, "weight", None)
    if not isinstance(known, Tensor) or known.ndim != 2:
        raise InputError(
            f"{type(module).__name__} stands for a linear map here, but has no matrix `weight` to tell its size"
        )
    # A weight that is nowhere now is fetched for the call, and the input goes where it is fetched to.
    device = torch.device("cpu") if known.is_meta else known.device
    units = torch.eye(known.shape[1] + 1, known.shape[1], dtype=known.dtype, device=device)
    images = module(units)
    return (images[:-1] - images[-1:]).mT


@torch.no_grad()
def cut(module: nn.Module, kept: slice, *, inputs: bool) -> None:
    """Cut a linear module in place to some of what it reads, or of what it gives.

    Raises:
        InputError: for one that is more than its own weight.
    """
    if not isinstance(module, nn.Linear) or not untouched(module):
        raise InputError(f"{type(module).__name__} cannot be cut; merge adapters and undo changes of its weight first")
    weight, bias = module.weight, module.bias
    module.weight = nn.Parameter((weight[:, kept] if inputs else weight[kept]).clone())
    if bias is not None and not inputs:
        module.bias = nn.Parameter(bias[kept].clone())
    module.out_features, module.in_features = module.weight.shape


class Embedding(nn.Embedding):
    """A table of token vectors, looked up by id; N(0, 1) cut at ±3 at the start.

    Args:
        vocab_size: number of rows.
        d_model: width of a row.

    Shapes: ids [...] (integers) -> [..., d_model].
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(vocab_size, d_model, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=1.0, a=-3.0, b=3.0)

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("embedding")}

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"


def check_width(x: Tensor, d_model: int) -> None:
    """Raise InputError unless the last axis of x is d_model wide."""
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise InputError(f"x has shape {tuple(x.shape)}, expected [..., {d_model}]")
