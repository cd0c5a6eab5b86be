"""Weights of a foreign model into one of ours, and back: every key has its place or is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.pretrained.parts import Family, Mixture, Part, cut, joined

MOST_NAMED = 4


class Keys:
    """Keys of which every one has to be taken.

    Args:
        names: theirs.
        family: whose.
    """

    def __init__(self, names: frozenset[str], family: Family, n_layers: int) -> None:
        # A base model's checkpoint has no prefix.
        bare = not any(name.startswith(f"{family.prefix}.") for name in names)
        self.prefix = "" if bare else f"{family.prefix}."
        self.left = {name for name in names if not name.endswith(family.derived)}
        if family.more_layers:
            self.left = {name for name in self.left if not self._is_beyond(name, n_layers)}

    def _is_beyond(self, name: str, n_layers: int) -> bool:
        found = re.match(rf"{re.escape(self.prefix)}layers\.(\d+)\.", name)
        return found is not None and int(found[1]) >= n_layers

    def take(self, name: str) -> str | None:
        """Return the key of a module or parameter below the prefix; None where there is none."""
        key = f"{self.prefix}{name}"
        if key not in self.left:
            return None
        self.left.remove(key)
        return key


def read_weights(
    family: Family, names: frozenset[str], get: Callable[[str], Tensor], model: Any, where: str
) -> dict[str, Tensor]:
    """Read theirs into the state dict of one of our models.

    Args:
        family: whose they are.
        names: all keys.
        get: a weight by its key.
        model: ours, whose shapes are taken; its weights may be on the meta device.
        where: the source, as errors name it.

    Raises:
        InputError: for a key that is missing, has no place here, or has another shape.
    """
    # Ours says what is looked for, and theirs what is left over: neither may lack anything.
    ours = model.state_dict()
    keys, state = Keys(names, family, len(model.layers)), dict[str, Tensor]()
    heads = model.config.n_heads
    # Our names lead: what a configuration leaves out (a bias, a norm) is then not looked for.
    for part, number in _every(family.parts, len(model.layers)):
        modules = [name.format(i=number) for name in part.ours]
        for suffix in _suffixes(part, modules[0], number, ours):
            mine = [f"{module}{suffix}" for module in modules]
            key = keys.take(part.theirs.format(i=number) + (suffix or ".weight"))
            if key is None:
                wanted = keys.prefix + part.theirs.format(i=number) + (suffix or ".weight")
                raise InputError(f"{where} has no {wanted}, which a {family.name} of its configuration has")
            shapes = [tuple(ours[name].shape) for name in mine]
            state |= dict(zip(mine, _fitting(part, get(key), shapes, heads, f"{where}: {key}")))
    for mixture in family.mixtures:
        for number, layer in enumerate(model.layers):
            if hasattr(layer.ffn, "router"):
                state |= _mixture(mixture, number, layer.ffn, keys, get, where)
    state |= _head(family, keys, get, ours, state, model.config.tied, where)
    _check_whole(family, keys, ours, state, where)
    return state


def _every(parts: Any, n_layers: int) -> Iterator[tuple[Part, int]]:
    for part in parts:
        for number in range(n_layers) if "{i}" in part.theirs else (0,):
            yield part, number


def _suffixes(part: Part, module: str, number: int, ours: Mapping[str, Tensor]) -> list[str]:
    """Return what our model has of a part: ".weight", ".bias", or "" for a parameter of that name; nothing where
    none."""
    # Two names for one module, of which the configuration decides.
    beside = part.beside.removeprefix("not ").format(i=number)
    if beside and (f"{beside}.weight" in ours) == part.beside.startswith("not "):
        return []
    if module in ours:
        return [""]
    return [suffix for suffix in (".weight", ".bias") if f"{module}{suffix}" in ours]


def _fitting(part: Part, whole: Tensor, shapes: list[tuple[int, ...]], heads: int, where: str) -> list[Tensor]:
    # Wrong sizes show as another number of pieces, or as none that could be cut.
    try:
        found = cut(part, whole, shapes, heads)
    except (RuntimeError, ValueError):
        found = []
    if [tuple(piece.shape) for piece in found] != shapes:
        expected = " and ".join(map(str, shapes))
        raise InputError(f"{where} has shape {tuple(whole.shape)}, which does not make {expected}")
    return found


def _mixture(
    mixture: Mixture, number: int, moe: Any, keys: Keys, get: Callable[[str], Tensor], where: str
) -> dict[str, Tensor]:
    """Return a mixture's weights, read by its own wing."""
    from blockyard.moe.states import read_state

    # The checkpoint's own place first, then that of a model in memory.
    for prefix in mixture.theirs:
        stem = f"{keys.prefix}{prefix.format(i=number)}."
        mine = sorted(name for name in keys.left if name.startswith(stem))
        if mine:
            keys.left -= set(mine)
            names = dict(zip(mixture.experts, ("gate_proj", "up_proj", "down_proj")))
            held = {_plain(name.removeprefix(stem), names): get(name) for name in mine}
            try:
                state = read_state(moe, held)
            except InputError as error:
                raise InputError(f"{where}: {stem.rstrip('.')}: {error}") from None
            return {f"{mixture.ours.format(i=number)}.{name}": tensor for name, tensor in state.items()}
    raise InputError(f"{where} has no {keys.prefix}{mixture.theirs[0].format(i=number)}, the mixture of layer {number}")


def _plain(name: str, names: Mapping[str, str]) -> str:
    """Return a key of a mixture with an expert's matrices under the usual names."""
    return ".".join(names.get(word, word) for word in name.split("."))


def _head(
    family: Family, keys: Keys, get: Callable[[str], Tensor], ours: Mapping[str, Tensor], state: dict[str, Tensor],
    tied: bool, where: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the output matrix; where it is tied, a copy that the checkpoint holds has to be the same."""
    found = next((name for head in family.heads if (name := f"{head}.weight") in keys.left), None)
    embedding = state["token_embeddings.weight"]
    # Tied checkpoints mostly leave it out, and some hold the copy.
    if found is None:
        if not tied:
            raise InputError(
                f"{where} has no {family.heads[0]}.weight, and its configuration does not tie it to the embedding"
            )
        return {"lm_head.weight": embedding}
    keys.left.remove(found)
    head = get(found)
    if tied and not torch.equal(head, embedding):
        raise InputError(f"{where}: {found} is tied to the embedding by the configuration, and holds other numbers")
    if tuple(head.shape) != tuple(ours["lm_head.weight"].shape):
        raise InputError(
            f"{where}: {found} has shape {tuple(head.shape)}, expected {tuple(ours['lm_head.weight'].shape)}"
        )
    return {"lm_head.weight": embedding if tied else head}


def _check_whole(
    family: Family, keys: Keys, ours: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str
) -> None:
    if keys.left:
        rest = sorted(keys.left)
        more = f" and {len(rest) - MOST_NAMED} more" if len(rest) > MOST_NAMED else ""
        named = f"{', '.join(rest[:MOST_NAMED])}{more}"
        raise InputError(f"{where}: no place for {named}: a {family.name} of its configuration has no such weights")
    missing = sorted(ours.keys() - state.keys())
    if missing:
        # A part that the family's names do not reach: ours, not the user's fault.
        raise AssertionError(f"{family.name} gives no {', '.join(missing[:MOST_NAMED])}")


def write_weights(family: Family, model: Any) -> dict[str, Tensor]:
    """Return our weights under their names, as the family's checkpoints have them."""
    from blockyard.moe.states import checkpoint_state

    ours = model.state_dict()
    prefix, state, heads = f"{family.prefix}.", dict[str, Tensor](), model.config.n_heads
    for part, number in _every(family.parts, len(model.layers)):
        modules = [name.format(i=number) for name in part.ours]
        for suffix in _suffixes(part, modules[0], number, ours):
            key = prefix + part.theirs.format(i=number) + (suffix or ".weight")
            state[key] = joined(part, [ours[f"{module}{suffix}"] for module in modules], heads)
    for mixture in family.mixtures:
        for number, layer in enumerate(model.layers):
            if hasattr(layer.ffn, "router"):
                held = checkpoint_state(layer.ffn, mixture.model, mixture.experts)
                stem = mixture.theirs[0].format(i=number)
                state |= {f"{prefix}{stem}.{name}": tensor for name, tensor in held.items()}
    # A copy of a tied matrix would be another weight to whoever reads it.
    if not model.config.tied:
        state[f"{family.heads[0]}.weight"] = ours["lm_head.weight"]
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
