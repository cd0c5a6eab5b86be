"""The vein projector, the vein FFN, normal compensation and the block made of them."""

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
from blockyard.vein.projector import VeinProjector, orthonormal_rows, recommend_rank
from tests.vein.twin import seed_block

D, H, R = 24, 3, 4


def block(**options) -> VFTBlock:
    torch.manual_seed(0)
    made = VFTBlock(D, H, R, **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def sample(length: int = 6, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, D)


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


@pytest.mark.parametrize("implementation", ["linear", "parameter"])
@pytest.mark.parametrize("init_method", ["orthogonal", "normal", "xavier"])
def test_a_tied_vein_is_a_projection_whatever_its_parameter_is(implementation, init_method):
    vein = VeinProjector(D, R, implementation, init_method, tied=True).double()
    with torch.no_grad():
        next(vein.parameters()).mul_(3).add_(0.3)
    x = sample().double()
    torch.testing.assert_close(vein(vein(x)), vein(x), rtol=1e-12, atol=1e-12)
    error = vein.compute_reconstruction_error(x)
    assert (error > 0).all() and (error < 1).all()
    v, u = vein.matrices()
    torch.testing.assert_close(vein.error_from(x, x @ v.mT, u), error, rtol=1e-7, atol=1e-7)


def test_a_tied_vein_is_differentiable():
    vein = VeinProjector(6, 2, tied=True).double()
    assert torch.autograd.gradcheck(vein, (torch.randn(3, 6, dtype=torch.float64, requires_grad=True),))
    assert torch.autograd.gradcheck(orthonormal_rows, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("implementation", ["linear", "parameter"])
def test_both_implementations_have_the_same_size(implementation):
    assert sum(p.numel() for p in VeinProjector(D, R, implementation).parameters()) == 2 * D * R


def test_compression_ratio_and_recommended_ranks_are_what_the_formulas_give():
    assert VeinProjector(768, 4).get_compression_ratio() == 96
    assert [recommend_rank(d) for d in (768, 2048, 4096)] == [6, 11, 16]


def test_absolute_error_of_a_fresh_vein_is_about_the_root_of_the_width():
    vein, x = VeinProjector(768, 4), torch.randn(500, 768)
    assert abs(vein.compute_reconstruction_error(x, relative=False).mean() - 772**0.5) < 0.2
    tied = VeinProjector(768, 4, tied=True)
    assert abs(tied.compute_reconstruction_error(x).mean() - (1 - 4 / 768) ** 0.5) < 0.001


def test_the_error_of_a_zero_vector_is_zero():
    assert VeinProjector(D, R).compute_reconstruction_error(torch.zeros(2, D)).tolist() == [0, 0]


@pytest.mark.parametrize("gate_norm", [False, True])
@pytest.mark.parametrize("s", [1, 3])
def test_gathered_correction_equals_dense_correction(s, gate_norm):
    torch.manual_seed(0)
    dense = NormalCompensator(D, s, tau=0.5, gate_norm=gate_norm, form="dense").double()
    gather = NormalCompensator(D, s, tau=0.5, gate_norm=gate_norm, form="gather").double()
    gather.load_state_dict(dense.state_dict())
    x, eps = sample().double(), torch.rand(2, 6)
    torch.testing.assert_close(gather(x, eps), dense(x, eps))
    assert torch.equal(dense(x, eps)[eps <= 0.5], x[eps <= 0.5])
    assert (dense(x, eps)[eps > 0.5] != x[eps > 0.5]).any()


def test_no_directions_mean_no_parameters_and_no_change():
    none, x = NormalCompensator(D, s=0), sample()
    assert list(none.parameters()) == [] and none(x, torch.ones(2, 6)) is x


@pytest.mark.parametrize("stabilizer", ["none", "diag", "lowrank", "full"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("tied", [False, True])
def test_ffn_cost_counts_what_torch_counts_and_every_option_trains(stabilizer, gated, activation, tied):
    ffn = VFTFeedForward(D, R, activation=activation, gated=gated, stabilizer=stabilizer, tied=tied)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        ffn(sample())
    assert ffn.cost(12).flops == counter.get_total_flops()
    assert ffn.cost(12).parameters == sum(p.numel() for p in ffn.parameters())
    ffn(sample()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ffn.parameters())


def test_ffns_that_share_a_vein_add_up_inside_it():
    vein = VeinProjector(D, R, tied=True)
    experts = [VFTFeedForward(D, vein_projector=vein, stabilizer="none", gated=gated) for gated in (False, True)]
    x = sample()
    rebuilt = vein.reconstruct(sum(expert.core(vein.project(x)) for expert in experts))
    torch.testing.assert_close(rebuilt, experts[0](x) + experts[1](x))
    parts = [expert.core_cost(12) + vein.cost(12) for expert in experts]
    assert parts == [expert.cost(12) for expert in experts]


@pytest.mark.parametrize("options", [{}, {"preset": "seed"}, {"s": 3, "ffn_rank": 6, "tied": False}, {"s": 0}], ids=str)
def test_block_cost_counts_what_torch_counts(options):
    made = block(correction="dense", **options)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        made(sample(5, batch=1))
    assert made.cost(5).flops == counter.get_total_flops()
    assert made.cost(5).parameters == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("preset", ["fast", "seed"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_metrics_come_on_request_and_change_nothing(preset, norm_position):
    made, x = block(preset=preset, norm_position=norm_position), sample()
    out, none = made(x)
    same, metrics = made(x, return_metrics=True)
    # Without metrics the norm stands inside the product: other operations.
    torch.testing.assert_close(out, same)
    assert none is None
    assert {"eps_mean", "eps_max", "eps_frac_over_tau", "rank"} <= metrics.keys()
    assert not any(v.requires_grad for v in metrics.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_calibration_corrects_the_fraction_asked_for(fraction):
    made, x = block(), sample(20)
    made.calibrate_tau(x, fraction)
    assert float(made(x, return_metrics=True)[1]["eps_frac_over_tau"]) == pytest.approx(fraction)


def test_a_larger_tau_corrects_fewer_tokens():
    made, x = block(), sample(20)
    shares = []
    for tau in (0.0, 0.9, 1.0):
        made.normals.set_tau(tau)
        shares.append(float(made(x, return_metrics=True)[1]["eps_frac_over_tau"]))
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == 0


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


def test_a_diagnosis_adds_entropy_and_effective_rank_within_their_bounds():
    made, x = block(causal=True), sample(9)
    found = made.diagnose(x)
    assert 0 < float(found["attention_entropy"]) < torch.log(torch.tensor(9.0))
    assert 1 <= float(found["effective_rank"]) <= R
    torch.testing.assert_close(found["eps_mean"], made.reconstruction_error(x).mean())


def test_tokens_along_one_direction_have_effective_rank_one():
    made = block(norm="rms")
    made.attn.zero_init_output()
    x = torch.randn(2, 6, 1) * torch.randn(D)
    assert float(made.diagnose(x)["effective_rank"]) == pytest.approx(1, abs=1e-3)


def test_padding_is_left_out_of_a_diagnosis():
    made, x = block(causal=True, rope="none"), sample(6)
    padded = torch.cat([torch.randn(2, 3, D), x], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6] * 2)
    for name in ("attention_entropy", "effective_rank"):
        alone, beside = made.diagnose(x)[name], made.diagnose(padded, padding_mask=mask)[name]
        torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_the_ranks_of_attention_and_ffn_can_differ():
    config = LMConfig(vocab_size=11, blocks="tva[rank=4]+vft[ffn_rank=8]", d_model=32, n_layers=1, n_heads=2)
    layer = TransformerLM(config).layers[0]
    assert (layer.attn.rank, layer.rank) == (4, 8)


@pytest.mark.parametrize("cached", [0, 2])
def test_metrics_leave_padding_out(cached):
    made, x = block(tau=0.9, causal=True), sample(6)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        cache = made.new_cache(2) if cached else None
        if cached:
            made(x[:, :cached], cache=cache, padding_mask=mask[:, :cached])
        found = made(x[:, cached:], cache=cache, padding_mask=mask, return_metrics=True)[1]
        eps = made.reconstruction_error(x, padding_mask=mask)[:, cached:][mask[:, cached:].bool()]
    torch.testing.assert_close(found["eps_mean"], eps.mean())
    torch.testing.assert_close(found["eps_max"], eps.max())
    torch.testing.assert_close(found["eps_frac_over_tau"], (eps > 0.9).float().mean())
