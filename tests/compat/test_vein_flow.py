"""compat.vein_flow: the document's examples run with only their import lines changed."""

import builtins

import pytest
import torch

from blockyard.compat import vein_flow
from blockyard.errors import InputError
from blockyard.registry import register as registry
from tests.fixtures.documents import python_examples, seed

SKIPPED = {27: "uses model.vein_params and model.vein, which nothing defines; param_groups is our replacement"}
# Times 100 forwards of each block; a few show as well that it runs.
TIMED = 21


def namespace() -> dict:
    """What examples leave undefined: sizes."""
    return {"__name__": "vein_flow_examples", "torch": torch, "d_model": 64, "n_heads": 4, "rank": 4}


@pytest.fixture(scope="module")
def ran():
    """The namespace after every runnable example has run, in order."""
    examples = python_examples(seed("vein-flow.md"))
    examples = [code.replace("apt_model.modeling.blocks", "blockyard.compat.vein_flow") for code in examples]
    shared, threads = namespace(), torch.get_num_threads()
    torch.set_num_threads(1)
    done = []
    try:
        for number, code in enumerate(examples):
            if number in SKIPPED:
                continue
            shared.pop("range", None)
            if number == TIMED:
                shared["range"] = lambda n: builtins.range(min(n, 1))
            exec(compile(code, f"vein-flow.md#{number}", "exec"), shared)
            done.append(number)
    finally:
        torch.set_num_threads(threads)
        # The document registers an attention of its own; it should not outlive this module's tests.
        registry._register.entries.pop(("attn", "my_custom_attn"), None)
    return shared, done, examples


def test_every_runnable_example_runs_with_only_its_import_changed(ran):
    _, done, examples = ran
    assert len(examples) == 28 and len(done) == 28 - len(SKIPPED)


def test_the_models_that_examples_define_compute(ran):
    shared = ran[0]
    x = torch.randn(2, 6, 64)
    assert shared["MyTransformerBlock"](64, 4, 4)(x).shape == x.shape
    assert shared["HybridModel"](d_model=64, n_layers=2, n_heads=4)(x).shape == x.shape
    for phase in ("Phase1Block", "Phase2Block"):
        block = shared[phase](64, 4, 4)
        assert block.ffn(block.attn(x)[0]).shape == x.shape


def test_the_documents_keyword_names_are_accepted():
    vein = vein_flow.VeinProjector(64, 4)
    attn = vein_flow.TVAAttention(64, 4, 4, attn_dropout=0.1, proj_dropout=0.1, vein_projector=vein)
    _, weights = attn.eval()(torch.randn(2, 6, 64), return_attention_weights=True)
    assert weights.shape == (2, 4, 6, 6)
    block = vein_flow.create_vft_block(
        d_model=64, n_heads=4, rank=4, r_hidden=8, s_normals=2, tau=0.3, attn_dropout=0.1, ffn_dropout=0.1,
        activation="gelu", use_stabilizer=True,
    )  # fmt: skip
    assert isinstance(block, vein_flow.VFTBlock) and block.normals.s == 2 and block.ffn.stabilizer.kind == "full"
    metrics = block(torch.randn(2, 6, 64), return_metrics=True)[1]
    assert {"eps_mean", "eps_max", "eps_frac_over_tau", "rank"} <= metrics.keys()
    assert vein_flow.VFTFeedForward(64, 4, use_stabilizer=False, vein_projector=vein).stabilizer is None
    assert vein_flow.VeinSubspaceShared is vein_flow.VeinProjector


def test_no_correction_directions_disable_the_correction():
    block, x = vein_flow.VFTBlock(64, 4, 4, s_normals=0), torch.randn(2, 6, 64)
    out, metrics = block(x, return_metrics=True)
    assert metrics["correction_norm"] == 0 and torch.equal(out, block(x)[0])


def test_the_seed_preset_has_the_documents_parameters():
    with torch.device("meta"):
        block = vein_flow.create_vft_block(768, 12, 4, preset="seed")
    assert sum(p.numel() for p in block.parameters()) == 2_964_373


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tua": 0.2}, "VFTBlock has no option 'tua' (did you mean 'tau'?)"),
        ({"tau": "high"}, "VFTBlock: tau='high' should be float"),
        ({"rank": 64}, "rank=64 and v_rank=64 should be below d_model=64"),
        ({"s_normals": -1}, "s=-1 should be at least 0 (0 corrects nothing)"),
    ],
)
def test_the_factory_says_what_is_wrong_with_an_option(options, told):
    with pytest.raises(InputError) as caught:
        vein_flow.create_vft_block(**({"d_model": 64, "n_heads": 4, "rank": 4} | options))
    assert str(caught.value) == told
