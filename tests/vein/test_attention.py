"""Tri-vein attention: its forms are one function, masks and caches hold, errors name both numbers."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blockyard.errors import InputError
from blockyard.registry.register import get_attention
from blockyard.standard.attention import StandardAttention
from blockyard.vein.attention import TVAAttention
from blockyard.vein.projector import VeinProjector
from tests.vein.twin import tri_vein_attention

D, H, R = 24, 3, 4


def make(**options) -> TVAAttention:
    torch.manual_seed(0)
    return TVAAttention(D, H, R, **options).double().eval()


def sample(length: int = 7, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, length, D, dtype=torch.float64)


FORMS = {
    "folded": {},
    "folded-v-rank": {"v_rank": 6},
    "factored": {"factored": True},
    "factored-v-rank": {"factored": True, "v_rank": 6},
    "head-wide": {"vein_projector": VeinProjector(D // H, R)},
    "head-wide-tied": {"vein_projector": VeinProjector(D // H, R, tied=True)},
    "model-wide": {"vein_projector": VeinProjector(D, R)},
    "model-wide-tied": {"vein_projector": VeinProjector(D, R, tied=True, implementation="parameter"), "v_rank": 6},
    "qk-norm": {"qk_norm": True},
    "grouped": {"n_kv_heads": 1, "v_rank": 6},
    "factored-grouped": {"factored": True, "n_kv_heads": 1},
    "odd-rank-values": {"rope": "interleaved", "v_rank": 5},
}
FACTORED = [name for name in FORMS if name not in ("folded", "folded-v-rank", "grouped", "qk-norm", "odd-rank-values")]


@pytest.mark.parametrize("causal", [False, True])
def test_factored_attention_is_the_documents_definition(causal):
    attn, x = make(factored=True, rope="none", causal=causal), sample()
    allowed = torch.ones(7, 7, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    w = attn.state_dict()
    projections = [w[f"{name}_proj.weight"] for name in ("q", "k", "v", "output")]
    twin = tri_vein_attention(x[0], *projections, w["vein.V.weight"], w["vein.U.weight"], H, allowed)
    torch.testing.assert_close(attn(x)[0][0], twin, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FACTORED)
def test_folding_changes_nothing(name):
    attn, x = make(**FORMS[name]), sample()
    folded = attn.fold()
    assert folded.form == "folded"
    torch.testing.assert_close(folded(x)[0], attn(x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FACTORED)
def test_values_of_their_own_sequence_fold_alike(name):
    attn, x, context, values = make(**FORMS[name]), sample(), sample(5), sample(5) * 2 + 1
    folded = attn.fold()
    for given in ({"values": x * 2 + 1}, {"context": context, "values": values}, {"context": context}):
        torch.testing.assert_close(folded(x, **given)[0], attn(x, **given)[0], rtol=1e-12, atol=1e-12)
        assert (attn(x, **given)[0] - attn(x)[0]).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"values come from \(2, 5, 24\), expected \(2, 7, 24\)"):
        attn(x, values=values)


@pytest.mark.parametrize("name", FORMS)
def test_contexts_of_other_widths_are_for_the_folded_form(name):
    attn = make(**FORMS[name])
    if attn.form != "folded":
        with pytest.raises(InputError, match=f"{attn.form} attention read vectors of d_model"):
            attn.widen_context(5, 7)
        return
    attn.widen_context(5, 7)
    wide, values = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 7, dtype=torch.float64)
    out = attn(sample(), context=wide, values=values)[0]
    shape = {"head_dim": R, "v_dim": attn.v_rank, "n_kv_heads": attn.n_kv_heads}
    standard = StandardAttention(D, H, **shape, qk_norm=name == "qk-norm").double()
    standard.widen_context(5, 7)
    standard.load_state_dict(attn.state_dict())
    torch.testing.assert_close(out, standard(sample(), context=wide, values=values)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["folded", "folded-v-rank", "grouped", "qk-norm"])
def test_unfolding_changes_nothing(name):
    attn, x = make(**FORMS[name]), sample()
    factored = attn.unfold()
    assert factored.form == "factored"
    torch.testing.assert_close(factored(x)[0], attn(x)[0], rtol=1e-12, atol=1e-12)


def test_folded_attention_is_multi_head_attention_with_head_dimension_rank():
    attn, x = make(causal=True), sample()
    standard = StandardAttention(D, H, head_dim=R, qk_norm=False, causal=True).double()
    standard.load_state_dict(attn.state_dict())
    torch.testing.assert_close(attn(x)[0], standard(x)[0], rtol=1e-12, atol=1e-12)


PROJECTIONS = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "output_proj.weight"]


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("folded", []),
        ("qk-norm", ["q_norm.weight", "k_norm.weight"]),
        ("factored", ["vein.V.weight", "vein.U.weight"]),
        ("factored-v-rank", ["vein.V.weight", "value_vein.V.weight", "value_vein.U.weight"]),
        ("model-wide-tied", ["vein.V"]),
    ],
)
def test_names_and_order_of_saved_weights_stay(name, behind):
    """Checkpoints and the states of their optimizers go by them."""
    assert [own for own, _ in make(**FORMS[name]).named_parameters()] == PROJECTIONS + behind


def test_folded_attention_at_the_documents_size_has_147456_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in TVAAttention(768, 12, 4).parameters()) == 147_456


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("rank", [2, 3, 5])
def test_shifting_all_positions_changes_nothing(rope, rank):
    attn = TVAAttention(D, H, rank, rope=rope, causal=True).double()
    x, positions = sample(), torch.arange(7)
    torch.testing.assert_close(attn(x, positions=positions)[0], attn(x, positions=positions + 11)[0])


@pytest.mark.parametrize("name", FORMS)
def test_cached_decoding_equals_one_pass(name):
    attn, x = make(causal=True, **FORMS[name]), sample(9)
    with torch.no_grad():
        cache = attn.new_cache(2)
        parts = [attn(part, cache=cache)[0] for part in x.split([4, 1, 3, 1], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), attn(x)[0], rtol=1e-12, atol=1e-12)
    assert cache.bytes_per_token == 2 * attn.cost(9).cache_bytes_per_token  # float64 against float32


@pytest.mark.parametrize("kernel", ["matmul", "sdpa"])
@pytest.mark.parametrize("name", FORMS)
def test_left_padding_leaves_the_kept_tokens_alone(name, kernel):
    attn, x = make(causal=True, kernel=kernel, **FORMS[name]), sample(6)
    padded = torch.cat([torch.randn(2, 3, D, dtype=torch.float64), x], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6] * 2)
    out = attn(padded, padding_mask=mask)[0]
    torch.testing.assert_close(out[:, 3:], attn(x)[0], rtol=1e-12, atol=1e-12)
    assert out[:, :3].abs().max() == 0  # a query that may see nothing gives 0


def test_both_kinds_of_mask_agree_with_causal():
    attn, x = make(), sample()
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    additive = torch.zeros(1, 1, 7, 7, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    expected = attn(x, causal=True)[0]
    torch.testing.assert_close(attn(x, attn_mask=allowed)[0], expected)
    torch.testing.assert_close(attn(x, attn_mask=additive)[0], expected)


def test_weights_are_returned_on_request_only():
    attn, x = make(causal=True), sample()
    assert attn(x)[1] is None
    out, weights = attn(x, return_weights=True)
    assert weights.shape == (2, H, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, H, 7, dtype=torch.float64))
    torch.testing.assert_close(out, attn(x)[0])


@pytest.mark.parametrize("name", ["folded-v-rank", "factored", "model-wide-tied"])
def test_cross_attention_reads_the_context(name):
    attn, x, context = make(**FORMS[name]), sample(5), sample(8)
    out, weights = attn(x, context=context, return_weights=True)
    assert out.shape == x.shape and weights.shape == (2, H, 5, 8)
    changed = attn(x, context=torch.cat([context[:, :-1], context[:, -1:] + 1], dim=1))[0]
    assert (changed - out).abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("name", FORMS)
def test_cost_formula_counts_what_torch_counts(name):
    attn, x = make(**FORMS[name]).float(), sample(11, batch=1).float()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        attn(x)
    cost = attn.cost(11)
    assert cost.flops == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in attn.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_in_gives_bfloat16_out(name):
    attn, x = make(**FORMS[name]).bfloat16(), sample().bfloat16()
    assert attn(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": D}, f"rank={D} and v_rank={D} should be below d_model={D}"),
        ({"rank": 8, "factored": True}, "rank=8, v_rank=8: factored, both should be below the head width 8"),
        ({"rank": 4, "vein_projector": VeinProjector(8, 2)}, "rank 2, but the attention has rank=4"),
        ({"rank": 4, "vein_projector": VeinProjector(12, 4)}, "12 wide; it should be 8 wide (one head) or 24 wide"),
        ({"rank": 1}, "rank=1 with rope='half'"),
        ({"rank": 4, "rnak": 4}, "'rnak' (did you mean 'rank'?)"),
    ],
)
def test_errors_name_both_numbers(options, numbers):
    with pytest.raises(InputError) as caught:
        get_attention("tva", d_model=D, n_heads=H, **options)
    assert numbers in str(caught.value)
