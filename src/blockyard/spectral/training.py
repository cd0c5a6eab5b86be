"""Training spectral mixers in a loop of your own: parameter groups with a decay of the gates' own."""

from __future__ import annotations

from typing import Any

from torch import nn

from blockyard.nn.roles import roles


def param_groups(
    model: nn.Module, lr: float = 5e-4, weight_decay: float = 0.01, gate_weight_decay: float = 0.1
) -> list[dict[str, Any]]:
    """Return groups for a torch optimizer: gates are decayed more; gains, biases and embeddings are not decayed.

    Decaying the matrices that compute the gates is the document's cure for a spectrum that oscillates in training.

    Args:
        model: what is trained.
        lr: learning rate of every group.
        weight_decay: decay of matrices.
        gate_weight_decay: decay of the matrices of spectral gates.
    """
    parameters = dict(model.named_parameters())
    decays = {"main": weight_decay, "gate": gate_weight_decay, "undecayed": 0.0}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in decays}
    for name, role in roles(model).items():
        # Vectors and embeddings are left alone: decay is against large matrices.
        decayed = role.kind in ("matrix", "head")
        group = "undecayed" if not decayed else "gate" if role.group == "gate" else "main"
        groups[group].append(parameters[name])
    return [
        {"name": name, "params": chosen, "lr": lr, "weight_decay": decays[name]}
        for name, chosen in groups.items()
        if chosen
    ]
