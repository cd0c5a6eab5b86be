"""compat.basics: the document's names, call forms and examples; and what it says of the conjugate key."""

import pytest
import torch

from blockyard.compat.basics import Embedding, Linear, RMSNorm, RotaryPositionalEmbedding, SwiGLU
from blockyard.errors import InputError
from tests.fixtures.documents import python_examples, seed

SKIPPED = {0: "not python: prose inside the fence, and `def __init__(self, ...)`"}


def namespace() -> dict:
    """What the examples leave undefined: complex queries, keys and rotation factors [T, d/2]."""
    q, k = torch.randn(2, 5, 4, dtype=torch.complex64), torch.randn(2, 5, 4, dtype=torch.complex64)
    freqs = torch.polar(torch.ones(5, 4), torch.arange(5.0)[:, None] * 0.5 ** torch.arange(4.0))
    return {"torch": torch, "nn": torch.nn, "q_complex": q, "k_complex": k, "freqs": freqs}


def test_every_runnable_example_runs_as_written():
    shared = namespace()
    examples = python_examples(seed("basics.md"))
    assert len(examples) == 4
    for number, code in enumerate(examples):
        if number not in SKIPPED:
            exec(compile(code, f"basics.md#{number}", "exec"), shared)
    assert shared["attention_scores"].shape == (2, 5, 5)


@pytest.mark.parametrize("number", SKIPPED)
def test_a_skipped_example_could_not_run(number):
    with pytest.raises(SyntaxError):
        compile(python_examples(seed("basics.md"))[number], "basics.md", "exec")


def test_linear_takes_features_device_and_dtype():
    layer = Linear(6, 4, device="cpu", dtype=torch.float64)
    assert layer.weight.shape == (4, 6) and layer.weight.dtype == torch.float64 and layer.bias is None
    x = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)


def test_linear_starts_within_three_standard_deviations():
    weight = Linear(300, 200).weight
    std = (2 / 500) ** 0.5
    assert weight.abs().max() <= 3 * std
    assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)


def test_embedding_takes_ids_of_any_shape():
    table = Embedding(num_embeddings=11, embedding_dim=5)
    ids = torch.tensor([[1, 2, 3], [4, 5, 10]])
    assert torch.equal(table(ids), table.weight[ids]) and table.weight.abs().max() <= 3


def test_rms_norm_is_the_documents_formula():
    norm, x = RMSNorm(d_model=6, eps=1e-5), torch.randn(3, 6)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_swiglu_is_the_documents_formula():
    ffn, x = SwiGLU(d_model=6, d_ff=10), torch.randn(3, 6)
    gate = x @ ffn.w1.weight.T
    torch.testing.assert_close(ffn(x), (gate * gate.sigmoid() * (x @ ffn.w3.weight.T)) @ ffn.w2.weight.T)
    assert SwiGLU(384).d_ff == 1024 and SwiGLU(6, 10, dtype=torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("positions", [torch.tensor([3, 0, 7, 7]), torch.tensor([[3, 0, 7, 7], [0, 1, 2, 3]])])
def test_rotary_turns_pairs_by_their_token_positions(positions):
    rope, x = RotaryPositionalEmbedding(theta=100.0, d_k=6, max_seq_len=8), torch.randn(2, 3, 4, 6)
    angles = positions[..., None] * 100.0 ** (-torch.arange(0, 6, 2) / 6)
    turns = torch.polar(torch.ones_like(angles), angles)
    turns = turns[:, None] if positions.ndim == 2 else turns
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (3, 2))) * turns).flatten(-2)
    torch.testing.assert_close(rope(x, positions), expected, rtol=1e-5, atol=1e-5)


def test_rotary_refuses_positions_beyond_its_table_and_keeps_no_state():
    rope = RotaryPositionalEmbedding(10_000.0, 4, 8)
    assert rope.state_dict() == {}
    with pytest.raises(InputError, match="beyond max_seq_len=8"):
        rope(torch.randn(1, 1, 4), torch.tensor([8]))


def spread(conjugate_key: bool) -> float:
    """Largest difference between scores of pairs (m, n) with equal m − n, in float64."""
    torch.manual_seed(0)
    q, k = torch.randn(8, dtype=torch.complex128), torch.randn(8, dtype=torch.complex128)
    turns = torch.polar(torch.ones(64, 8).double(), torch.arange(64.0)[:, None].double() * 0.5 ** torch.arange(8.0))
    rotated_q, rotated_k = q * turns, k * (turns.conj() if conjugate_key else turns)
    flat_q, flat_k = torch.view_as_real(rotated_q).flatten(1), torch.view_as_real(rotated_k).flatten(1)
    scores = flat_q @ flat_k.T
    diagonals = [scores.diagonal(offset) for offset in range(-63, 64)]
    return max(float(d.max() - d.min()) for d in diagonals)


def test_scores_depend_on_the_distance_alone_when_both_are_turned_the_same_way():
    assert spread(conjugate_key=False) < 5e-14


def test_conjugating_the_key_makes_scores_depend_on_more_than_the_distance():
    assert spread(conjugate_key=True) > 1


def test_without_the_conjugate_position_is_lost_only_where_both_are_equal():
    rope, q, k = RotaryPositionalEmbedding(100.0, 8, 16), torch.randn(8).double(), torch.randn(8).double()
    turned_q, turned_k = rope(q.expand(16, 8)), rope(k.expand(16, 8))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores.diagonal(), (q @ k).expand(16))
    assert (scores[0, 1:] - q @ k).abs().max() > 0.01
