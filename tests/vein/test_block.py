"""The block made of veins: the document's mathematics, costs, metrics, presets and refusals."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.nn.roles import roles
from blockyard.registry.register import implementation
from blockyard.vein.block import VFTBlock
from blockyard.vein.compensator import NormalCompensator
from blockyard.vein.ffn import VFTFeedForward
from blockyard.vein.projector import VeinProjector
from tests.fixtures.vein_blocks import D, H, R, block, sample
from tests.vein.twin import seed_block


def test_the_seed_preset_is_the_documents_mathematics():
    seed = block(preset="seed", tau=5.4).double()
    x = sample(8).double()
    out, metrics = seed(x, return_metrics=True)
    twin, eps = seed_block(seed, x[0])
    torch.testing.assert_close(out[0], twin, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(seed.reconstruction_error(x)[0], eps, rtol=1e-12, atol=1e-12)
    assert 0 < metrics["eps_frac_over_tau"] < 1


def test_the_seed_preset_has_2964373_parameters_at_the_documents_size():
    with torch.device("meta"):
        seed = VFTBlock(768, 12, 4, preset="seed")
    assert sum(p.numel() for p in seed.parameters()) == 2_964_373 == seed.cost(128).parameters


@pytest.mark.parametrize("options", [{}, {"preset": "seed"}, {"s": 3, "ffn_rank": 6, "tied": False}, {"s": 0}], ids=str)
def test_block_cost_counts_what_torch_counts(options):
    made = block(correction="dense", **options)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        made(sample(5, batch=1))
    assert made.cost(5).flops == counter.get_total_flops()
    assert made.cost(5).parameters == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("preset", ["fast", "seed"])
def test_a_zero_initialised_block_is_the_identity_and_still_learns(preset):
    made, x = VFTBlock(D, H, R, preset=preset), sample()
    made.zero_init_output()
    out = made(x)[0]
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in made.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("preset", ["fast", "seed"])
def test_block_keeps_bfloat16(preset):
    assert block(preset=preset).bfloat16()(sample().bfloat16())[0].dtype == torch.bfloat16


def test_a_saved_block_carries_rank_s_and_tau_and_refuses_another():
    saved = block(tau=0.77).state_dict()
    other = VFTBlock(D, H, R)
    other.load_state_dict(saved)
    assert float(other.normals.tau) == pytest.approx(0.77)
    with pytest.raises(InputError, match="rank=4, but this one has rank=5"):
        VFTBlock(D, H, 5).load_state_dict(saved)


def test_choosing_tva_and_vft_builds_vein_blocks_with_their_options():
    choice = "tva[rank=4]+vft[tau=0.3,s=2,v_rank=6,r_hidden=10,stabilizer=diag]"
    model = TransformerLM(LMConfig(vocab_size=11, blocks=choice, d_model=32, n_layers=2, n_heads=2))
    layer = model.layers[0]
    assert isinstance(layer, VFTBlock) and layer.attn.causal
    assert (layer.attn.rank, layer.attn.v_rank, layer.rank, layer.ffn.r_hidden, layer.normals.s) == (4, 6, 4, 10, 2)
    ids = torch.randint(0, 11, (2, 9))
    model(ids, targets=ids).loss.backward()
    assert model.cost(9).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("choice", ["tva", "vft", "tva[factored=true,rank=4]", "tva+vft[preset=seed,rank=4,rope=half]"])
def test_a_model_of_veins_decodes_as_it_scores(choice):
    torch.manual_seed(0)
    config = LMConfig(vocab_size=11, blocks=choice, d_model=32, n_layers=2, n_heads=2, zero_init_outputs=False)
    model, ids = TransformerLM(config).eval(), torch.randint(0, 11, (2, 9))
    with torch.no_grad():
        cache = model.new_cache(2)
        parts = [model(part, cache=cache).logits for part in ids.split([5, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, rtol=1e-4, atol=1e-5)


def test_metrics_of_every_layer_reach_the_models_aux():
    model = TransformerLM(LMConfig(vocab_size=11, blocks="tva+vft[metrics=true]", d_model=32, n_layers=2, n_heads=2))
    stats = model(torch.randint(0, 11, (2, 9))).aux["stats"]
    assert set(stats) == {"layers.0", "layers.1"} and 0 < float(stats["layers.0"]["eps_mean"]) < 1


def test_projectors_are_a_parameter_group_of_their_own():
    for options in ({}, {"preset": "seed"}, {"implementation": "parameter"}):
        groups = {name: role.group for name, role in roles(block(**options)).items()}
        veins = {name for name, group in groups.items() if group == "vein"}
        assert veins == {name for name in groups if ".vein." in name}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: VeinProjector(8, 8), "rank=8 should be at least 1 and below the projected width 8"),
        (lambda: VeinProjector(8, 2, "lineal"), "implementation='lineal' should be one of linear, parameter"),
        (lambda: NormalCompensator(8, s=-1), "s=-1 should be at least 0"),
        (lambda: NormalCompensator(8)(torch.zeros(2, 8), torch.zeros(3)), "eps has shape (3,), expected one value"),
        (lambda: VFTFeedForward(8, 2, vein_projector=VeinProjector(8, 3)), "has rank 3, but rank=2"),
        (lambda: VFTFeedForward(8, 2, use_stabilizer=False, stabilizer="full"), "contradicts stabilizer='full'"),
        (lambda: VFTBlock(8, 2, 2, preset="slow"), "preset='slow' should be one of fast, seed"),
        (lambda: VFTBlock(8, 2, 2)(torch.zeros(2, 3, 9)), "expected [batch, length, 8]"),
        (lambda: VFTBlock(8, 2, 2).calibrate_tau(torch.zeros(1, 2, 8), 1.5), "fraction=1.5"),
    ],
)
def test_errors_say_what_came_and_what_would_be_right(build, words):
    with pytest.raises(InputError) as caught:
        build()
    assert words in str(caught.value)


def test_no_stabilizer_and_no_rotation_can_be_asked_for_in_words():
    assert implementation("ffn", "vft").options["stabilizer"].parse("none") == "none"
    assert implementation("block", "tva+vft").options["rope"].parse("none") == "none"


def test_the_ranks_of_attention_and_ffn_can_differ():
    config = LMConfig(vocab_size=11, blocks="tva[rank=4]+vft[ffn_rank=8]", d_model=32, n_layers=1, n_heads=2)
    layer = TransformerLM(config).layers[0]
    assert (layer.attn.rank, layer.rank) == (4, 8)
