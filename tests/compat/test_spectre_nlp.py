"""compat.spectre_nlp: the document's names, arguments and examples."""

import types

import pytest
import torch
from torch import nn

from blockyard.compat.spectre_nlp import ComplexModReLU, SpectreBlockNLP, WaveletRefinement
from blockyard.errors import InputError
from tests.fixtures.documents import python_examples, seed


def test_every_example_runs_with_only_its_import_line_changed():
    shared = {"torch": torch, "nn": nn, "self": types.SimpleNamespace(), "embed_dim": 768, "num_heads": 12}
    keep = torch.ones(2, 20)
    keep[1, 13:] = 0
    shared |= {"input_emb": torch.randn(2, 20, 768), "mask": keep, "pos_emb": torch.randn(2, 20, 768)}
    examples = python_examples(seed("spectre-nlp.md"))
    assert len(examples) == 3
    for number, code in enumerate(examples):
        code = code.replace("from spectre_nlp import", "from blockyard.compat.spectre_nlp import")
        exec(compile(code, f"spectre-nlp.md#{number}", "exec"), shared)
    assert isinstance(shared["self"].attn, SpectreBlockNLP)
    assert shared["output"].shape == (2, 20, 768) and not shared["output"][1, 13:].any()


def test_the_documents_arguments_and_defaults():
    attn = SpectreBlockNLP(
        embed_dim=32, num_heads=2, n_fft=128, d_gate=16, use_toeplitz=True, dropout_p=0.2, pooling_type="attention",
        num_groups=8, num_buckets=6, wavelet_on_rate=0.05, memory_size=5,
    )  # fmt: skip
    assert attn.mixer.gate.buckets == 6 and attn.mixer.form.n_fft == 128 and attn.mixer.dropout.p == 0.2
    default = SpectreBlockNLP(32, 2)
    assert default.mixer.dropout.p == 0.1 and default.mixer.form.wavelet.on_rate == 0.1
    assert default.mixer.form.pooling.kind == "dct" and default.mixer.form.memory is None
    assert default.mixer.gate.hidden_weight.shape[0] == 256 and default.mixer.gate.groups == 4


def test_alone_it_is_a_mixer_and_as_a_block_it_holds_norms_residuals_and_an_ffn():
    mixer, block = SpectreBlockNLP(32, 2), SpectreBlockNLP(32, 2, block=True, mlp_ratio=2)
    assert sum(p.numel() for p in block.parameters()) == sum(p.numel() for p in mixer.parameters()) + 4 * 32 + 4 * 32**2
    x = torch.randn(2, 9, 32)
    block.eval()
    block.mixer.zero_init_output()
    block.ffn.zero_init_output()
    torch.testing.assert_close(block(x), x)
    with pytest.raises(InputError, match="mlp_ratio=4 belongs to the block"):
        SpectreBlockNLP(32, 2, mlp_ratio=4)


@pytest.mark.parametrize("block", [False, True])
def test_positions_are_added_before_the_projection(block):
    attn = SpectreBlockNLP(32, 2, block=block).eval()
    x, positions = torch.randn(2, 9, 32), torch.randn(9, 32)
    changed = attn(x, position_embeddings=positions)
    assert (changed - attn(x)).abs().max() > 1e-3
    torch.testing.assert_close(attn(x, position_embeddings=positions.expand(2, 9, 32)), changed)
    if not block:
        torch.testing.assert_close(changed, attn(x + positions))
    with pytest.raises(InputError, match="does not broadcast"):
        attn(x, position_embeddings=torch.randn(8, 32))


def test_the_public_parts():
    z = torch.randn(3, 5, dtype=torch.complex64)
    act = ComplexModReLU(5)
    torch.testing.assert_close(act(z), z)
    with torch.no_grad():
        act.bias.fill_(-0.5)
    out = act(z)
    torch.testing.assert_close(out.abs(), (z.abs() - 0.5).clamp(min=0), atol=1e-5, rtol=1e-4)
    kept = z.abs() > 0.6
    torch.testing.assert_close(out[kept].angle(), z[kept].angle())
    with pytest.raises(InputError, match="expected a complex type"):
        act(z.real)
    branch = WaveletRefinement(4, on_rate=1.0)
    with torch.no_grad():
        branch.gates.fill_(1)
    x = torch.randn(2, 4, 13)
    torch.testing.assert_close(branch(x), x)
