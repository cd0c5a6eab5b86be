"""How windows of features become tokens: a step each by groups of features, or a patch of steps each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, suggest
from blockyard.nn.linear import Linear

GroupNorm = Literal["batch", "none"]


class GroupedEmbedding(nn.Module):
    """One token per step: each group of features is normalised and projected apart, the projections stand side by side.

    "Batch norm" is over batch and time together, with running statistics: a z-score over the window's own time axis
    would let later steps change earlier ones.

    Args:
        groups: feature numbers of each group; every feature belongs to one.
        d_model: width of a token; the groups share it in proportion to their sizes, so any width works.
        norm: batch or none.

    Shapes: x [B, T, F] -> [B, T, d_model].
    """

    def __init__(self, groups: Sequence[Sequence[int]], d_model: int, *, norm: GroupNorm = "batch") -> None:
        super().__init__()
        members = sorted(number for group in groups for number in group)
        if members != list(range(len(members))) or not all(len(group) for group in groups):
            raise InputError(f"groups={groups!r} must hold every feature exactly once, and no group may be empty")
        if d_model < len(groups):
            raise InputError(f"d_model={d_model} is less than the {len(groups)} groups of features")
        for number, group in enumerate(groups):
            self.register_buffer(f"group_{number}", torch.tensor(list(group)), persistent=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(len(g)) if norm == "batch" else nn.Identity() for g in groups)
        widths = shares(d_model, [len(group) for group in groups])
        self.projections = nn.ModuleList(Linear(len(g), w, bias=True) for g, w in zip(groups, widths))

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for number, (norm, projection) in enumerate(zip(self.norms, self.projections)):
            part = x[..., getattr(self, f"group_{number}")]
            # Batch and time are one axis here: [B · T, features].
            parts.append(projection(norm(part.flatten(0, 1)).view_as(part)))
        return torch.cat(parts, dim=-1)


class PatchEmbedding(nn.Module):
    """One token per patch of neighbouring steps, all features together (PatchTST, arXiv 2211.14730, mixing channels).

    Patches are counted from the end, so that the last one ends at the last step; steps at the beginning that fill no
    patch are left out.

    Args:
        features: features of a step.
        d_model: width of a token.
        patch: steps of a patch.
        stride: steps from one patch to the next.

    Shapes: x [B, T, F] -> [B, (T − patch) // stride + 1, d_model].
    """

    def __init__(self, features: int, d_model: int, *, patch: int = 16, stride: int = 8) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        self.projection = Linear(patch * features, d_model, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        unused = (x.shape[1] - self.patch) % self.stride
        patches = x[:, unused:].unfold(1, self.patch, self.stride)
        return self.projection(patches.flatten(-2))


def patches_in(context: int, patch: int, stride: int) -> int:
    """Return the number of tokens of a window."""
    return (context - patch) // stride + 1


def shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Return whole shares of `total` in proportion to sizes, at least 1 each, that add up to it."""
    room, whole = total - len(sizes), sum(sizes)
    borders = [round(room * sum(sizes[: i + 1]) / whole) for i in range(len(sizes))]
    return [1 + border - before for border, before in zip(borders, [0, *borders])]


def grouping(text: str, features: Sequence[str], known: dict[str, tuple[str, ...]]) -> list[list[int]]:
    """Return feature numbers by group.

    Args:
        text: `auto` (the known groups, and one for the rest), `one` (all together), or
            `name=feature,feature;name=…`, after which the features not named form a last group.
        features: names, in the order of the input.
        known: names of features by group, for `auto`.

    Raises:
        InputError: for a feature that does not exist or is named twice.
    """
    if text == "one":
        return [list(range(len(features)))]
    if text == "auto":
        named = [[name for name in members if name in features] for members in known.values()]
    else:
        named = []
        for part in text.split(";"):
            members = part.partition("=")[2] if "=" in part else part
            named.append([name.strip() for name in members.split(",") if name.strip()])
    flat = [name for group in named for name in group]
    for name in flat:
        if name not in features:
            raise InputError(f"model.groups names {name!r}, which is no feature{suggest(name, features)}")
        if flat.count(name) > 1:
            raise InputError(f"model.groups names {name!r} twice")
    named.append([name for name in features if name not in flat])
    return [[list(features).index(name) for name in group] for group in named if group]
