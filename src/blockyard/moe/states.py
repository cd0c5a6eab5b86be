"""A mixture's state dict from the weights of another's, and the keys that checkpoints of transformers have for it.

`weights.py` reads modules; a whole model is read without any, and its mixtures' options come from its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.moe.mixture import MoE
from blockyard.moe.weights import read_weights, to_hf


def read_state(moe: MoE, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a mixture whose options are known, from another's weights.

    Args:
        moe: its shape; its own weights may be on the meta device.
        weights: with names relative to the mixture, every one of which has to have its place.

    Raises:
        InputError: for a key without a place, or another shape.
    """
    found = read_weights(weights)
    state = {"router.linear.weight": found.router}
    state |= {f"experts.body.{name}.weight": stack for name, stack in found.experts.items()}
    if found.bias is not None:
        state["router.bias"] = found.bias[1].reshape(-1)
    shared = {} if found.shared is None else found.shared
    home = "shared" if found.gate is None else "gated"
    for name, stack in shared.items():
        state |= {f"{home}.{i}.{name}.weight": matrix for i, matrix in enumerate(stack)}
    if found.gate is not None:
        state["gated.gate"] = found.gate[0]
    expected = {name: tuple(tensor.shape) for name, tensor in moe.state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        given = tuple(state[name].shape) if name in state else "nothing"
        if given != expected.get(name, "nothing"):
            raise InputError(f"{name} is {given}, where the configuration makes it {expected.get(name, 'nothing')}")
    return state


def checkpoint_state(moe: MoE, model: str, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights as checkpoints of transformers have them, expert by expert.

    Args:
        moe: the mixture.
        model: transformers' model type, one of `weights.FAMILIES`.
        names: of an expert's gate, value and way back.
    """
    state = to_hf(moe, model)
    both, back = state.pop("experts.gate_up_proj"), state.pop("experts.down_proj")
    gate, up = both.chunk(2, dim=1)
    for number in range(moe.n_experts):
        for name, stack in zip(names, (gate, up, back)):
            state[f"experts.{number}.{name}.weight"] = stack[number].clone(memory_format=torch.contiguous_format)
    return state
