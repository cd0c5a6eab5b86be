"""A model as a graph of ATen's operators, of any batch and length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.models.trunk import Trunk
from blockyard.nn.exporting import holding_constants
from blockyard.pretrained.folder import bare
from blockyard.registry.pattern import format_choice
from blockyard.tasks.classify.model import TextClassifier

# Traced: neither 0 nor 1, which are cases of their own, and not what a usual chunk or window is.
ROWS, LENGTH = 2, 19
# Operators that every reader of a graph has.
NAMESPACES = ("aten", "prim", "prims", "_operator", "math")


class Scorer(nn.Module):
    """A model as it is exported: named tensors in, logits out.

    Args:
        model: a language model (`input_ids` [B, T] -> logits [B, T, vocabulary]) or a text classifier (`input_ids` and
            `padding_mask` [B, T], 1 = keep -> logits [B, classes]).

    Raises: InputError for any other model.
    """

    def __init__(self, model: Trunk) -> None:
        super().__init__()
        if not isinstance(model, TransformerLM | TextClassifier):
            raise InputError(f"{type(model).__name__} is not exported: language models and text classifiers are")
        self.model = model

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that it takes, all int64 [batch, length]."""
        return ("input_ids", "padding_mask") if isinstance(self.model, TextClassifier) else ("input_ids",)

    @property
    def longest(self) -> int | None:
        """Tokens that a row may have; None for any number."""
        model = self.model
        learned = isinstance(model, TransformerLM) and model.position_embeddings is not None
        return model.config.length if learned else None

    def forward(self, input_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        if isinstance(self.model, TextClassifier):
            return self.model(input_ids, padding_mask=padding_mask).logits
        return self.model(input_ids).logits

    def example(self, rows: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs; where they can be padded, the last row is."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.model.config.vocab_size, (rows, length), generator=generator)
        if len(self.inputs) == 1:
            return (ids,)
        mask = torch.ones_like(ids)
        mask[-1, math.ceil(length * 0.6) :] = 0
        return ids, mask


def trace(model: Trunk) -> torch.export.ExportedProgram:
    """Return the graph of a language model or a text classifier, dynamic in batch and length.

    Args:
        model: in eval mode.

    Raises:
        InputError: for another model, one in training, or one whose mixer decides by a length or runs an operator that
            only this library has, which is named.
    """
    scorer = Scorer(model)
    if model.training:
        raise InputError("a model in training mode is not exported: call eval() first")
    longest = scorer.longest
    length = LENGTH if longest is None else min(LENGTH, longest)
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if length > 1:
        axes[1] = torch.export.Dim("length", min=1, max=longest)
    with torch.no_grad(), holding_constants(model):
        try:
            program = torch.export.export(
                scorer.eval(), scorer.example(ROWS, length), dynamic_shapes=dict.fromkeys(scorer.inputs, axes)
            )
        except InputError:
            raise
        except Exception as error:
            # torch has a dozen kinds of error here, AssertionError among them.
            raise InputError(_refusal(model, error)) from error
    _refuse_own_operators(model, program)
    for node in program.graph.nodes:
        # Lines and paths of whoever traced it.
        node.meta.pop("stack_trace", None)
    return program


def blocks_of(model: Trunk) -> str:
    """Return the layers as text, without the options that are what they are anyhow."""
    return format_choice([bare(spec) for spec in model.config.layers])


def _refusal(model: Trunk, error: Exception) -> str:
    """Return one line for what torch says of a model that it cannot trace, with the module that it was in."""
    inside, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and not isinstance(module, Scorer | Trunk | nn.ModuleList):
            inside = f", in {type(module).__name__}"
        frame = frame.tb_next
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Of guards the second line tells which.
    first = " ".join(said[:2]) if said else type(error).__name__
    return f"{blocks_of(model)} is no graph of every batch and length{inside}: {first}"


def _refuse_own_operators(model: Trunk, program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in NAMESPACES:
            where = [kind.rpartition(".")[2] for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
            raise InputError(
                f"{blocks_of(model)} is not exported: {where[-1] if where else 'it'} runs {target.name()}, an "
                "operator that a reader of the file would not have"
            )
