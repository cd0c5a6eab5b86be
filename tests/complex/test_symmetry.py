"""Equivariance under a turn of all numbers: which options keep it, and a check that finds those that do not."""

from __future__ import annotations

import json

import pytest
import torch

from blockyard import InputError
from blockyard.complex.linear import ComplexLinear
from blockyard.complex.norms import COMPLEX_NORMS
from blockyard.complex.symmetry import check_equivariance, symmetry_table
from blockyard.protocol.block import build_block
from blockyard.registry.pattern import parse_choice
from tests.fixtures.complex_numbers import D, H

BREAKERS = {
    ("linear", "bias=true"),
    ("complex", "bias=true"),
    ("complex", "pe=… (additive)"),
    ("complex_swiglu", "bias=true"),
    ("gate of a SwiGLU", "a complex factor g ⊙ u"),
    ("activation", "ReLU of each part"),
}


def test_the_symmetry_table_says_which_options_keep_the_symmetry():
    rows = symmetry_table()
    assert {(r.part, r.option) for r in rows if not r.symmetry} == BREAKERS
    assert all(r.symmetry for r in rows if r.default)
    assert all(r.symmetry.error > 1e-3 for r in rows if not r.symmetry), "a violation is no matter of rounding"


@pytest.mark.parametrize("norm", sorted(COMPLEX_NORMS))
@pytest.mark.parametrize("position", ["pre", "post"])
def test_whole_blocks_are_equivariant(norm, position):
    spec = parse_choice("complex[score=phase,gate=magnitude]")[0]
    block = build_block(spec, d_model=D, n_heads=H, causal=True, norm=norm, norm_position=position, complex_valued=True)
    found = check_equivariance(block)
    assert found and found.kind == "equivariant", found


def test_the_check_leaves_its_module_alone_and_randomises_a_copy():
    layer = ComplexLinear(D, D, bias=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert not check_equivariance(layer), "a bias that starts at zero hides nothing"
    assert check_equivariance(layer, randomise=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    with pytest.raises(InputError, match=r"dtype torch.float32"):
        check_equivariance(layer, torch.ones(2, D))
    with pytest.raises(InputError, match="has no d_model"):
        check_equivariance(torch.nn.Identity())


def test_the_symmetry_command_prints_the_table_and_judges_a_named_class(run):
    table = run("symmetry")
    assert table.status == 0 and "BROKEN" in table.out and "score=phase" in table.out
    assert run("symmetry", "complex", "--with", "score=phase").status == 0
    broken = run("symmetry", "complex_swiglu", "--with", "bias=true", "--json")
    assert broken.status == 1 and json.loads(broken.out)[0]["kept"] is False
    assert run("symmetry", "standard").status == 2
