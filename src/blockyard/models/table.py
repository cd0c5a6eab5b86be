"""A model as a small table for a notebook: its layers, their parameters, and what decoding keeps of a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from blockyard.models.config import BlocksConfig
from blockyard.registry.pattern import LayerSpec
from blockyard.report import units
from blockyard.report.notebook import small_table

# Different kinds of layers in the table: a cell is to be read, not scrolled.
MOST_KINDS = 12


def model_table(model: nn.Module, config: BlocksConfig, layers: Sequence[nn.Module]) -> str:
    """Return the table as HTML; layers that are alike share a row.

    Args:
        model: a trunk, whole.
        config: its configuration.
        layers: its blocks in order.
    """
    rows: list[list[str]] = []
    for name, child in model.named_children():
        if child is layers:
            rows += _layer_rows(layers, config)
        elif many := _count([child]):
            rows.append([name, type(child).__name__, units.count(many), ""])
    rows.append(["whole model", "", units.count(_count([model])), _kept(layers, config.length)])
    columns = ["part", "what it is", "parameters", "cache per token (float32)"]
    if not config.is_causal:
        # An encoder is not asked for the next token.
        columns, rows = columns[:3], [row[:3] for row in rows]
    heading = (
        f"{type(model).__name__}: {config.n_layers} layers, width {config.d_model}, {config.n_heads} heads, "
        f"{config.length} positions"
    )
    return small_table(heading, columns, rows, _below(model))


def _layer_rows(layers: Sequence[nn.Module], config: BlocksConfig) -> list[list[str]]:
    groups = _alike(layers, config.layers)
    rows = [
        [_numbered(numbers), words, units.count(_count(members)), _kept(members, config.length)]
        for words, numbers, members in groups[:MOST_KINDS]
    ]
    if len(groups) > MOST_KINDS:
        rest = [layer for _, _, members in groups[MOST_KINDS:] for layer in members]
        more = f"{len(groups) - MOST_KINDS} more kinds of layers"
        rows.append([f"{len(rest)} layers", more, units.count(_count(rest)), _kept(rest, config.length)])
    return rows


def _below(model: nn.Module) -> str:
    """Return on what device and in which types the parameters are, what is shared and what does not learn."""
    parameters = list(model.parameters())
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    devices = sorted({str(p.device) for p in parameters})
    told = f"{', '.join(kinds)} on {', '.join(devices)}"
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    if frozen:
        told += f"; {units.count(frozen)} parameters do not learn"
    if len(parameters) < len(list(model.named_parameters(remove_duplicate=False))):
        told += "; a matrix that stands in two parts is counted once in the whole"
    return told


def _alike(layers: Sequence[nn.Module], specs: Sequence[LayerSpec]) -> list[tuple[str, list[int], list[nn.Module]]]:
    """Return the kinds of layers: their choice in words, their numbers, themselves."""
    found: dict[tuple[str, int], tuple[list[int], list[nn.Module]]] = {}
    for i, layer in enumerate(layers):
        words = str(specs[i]) if i < len(specs) else type(layer).__name__
        # Of one choice, yet not alike: one whose vein was trimmed.
        numbers, members = found.setdefault((words, _count([layer])), ([], []))
        numbers.append(i)
        members.append(layer)
    return [(words, numbers, members) for (words, _), (numbers, members) in found.items()]


def _count(modules: Iterable[nn.Module]) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def _kept(layers: Sequence[nn.Module], length: int) -> str:
    """Return cache bytes per token by formula; a dash where a mixer has none: a glance runs no pass of a model."""
    total = 0
    for layer in layers:
        members = [getattr(layer, name, layer) for name in ("attn", "ffn")]
        if not all(hasattr(member, "cost") for member in members):
            return units.NOTHING
        total += layer.cost(length).cache_bytes_per_token  # type: ignore[operator]
    return units.size(total)


def _numbered(numbers: Sequence[int]) -> str:
    """Word 0, 1, 2, 5 as "layers 0–2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    if len(words) > 6:
        # A pattern that alternates over a hundred layers would be a line of numbers.
        words = [*words[:5], f"… ({len(numbers)} in all)"]
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(words)}"
