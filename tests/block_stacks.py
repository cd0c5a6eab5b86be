"""For the tests of caches: stacks of causal blocks without embedding and head, with random weights everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from blockyard.conformance.subject import own_random, randomise
from blockyard.models.config import BlocksConfig
from blockyard.models.trunk import Trunk


@dataclass(frozen=True)
class Blocks(BlocksConfig):
    """Blocks alone: activations in, activations out."""

    complex_valued: bool = False

    @property
    def length(self):
        return 32

    @property
    def is_complex(self):
        return self.complex_valued


def stack(choice):
    config = Blocks(
        blocks=choice, d_model=16, n_layers=3, n_heads=4, complex_valued=choice.startswith("complex"),
        zero_init_outputs=False,
    )  # fmt: skip
    with own_random(0):
        trunk = Trunk(config)
        trunk.build_blocks()
        randomise(trunk)
    return trunk.double().eval()
