"""Transplants on tiny Llama-like models: exact where nothing is lost, close where little is, refused where unread."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.latent.attention import LatentAttention
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.models.trunk import seeded
from blockyard.registry.pattern import parse_choice
from blockyard.transplant import gather_moments, needs_moments, pieces_of, token_losses, transplant
from blockyard.transplant.latents import mean_turns
from blockyard.transplant.model import refusals
from blockyard.transplant.source import components_of, read_source

LENGTH, VOCABULARY = 40, 61
# Keys that heads share, in groups of two and of one, and in the other pairing.
FORMS = {
    "grouped": "standard[n_kv_heads=2,qk_norm=false]",
    "multi-head": "standard[qk_norm=false]",
    "interleaved": "standard[n_kv_heads=2,qk_norm=false,rope=interleaved]",
    "other frequencies": "standard[n_kv_heads=2,qk_norm=false,rope_frequencies=1 0.4 0.1 0.02]",
    "biases of queries, keys and values": "standard[n_kv_heads=2,qk_norm=false,bias=qkv]",
    "biases everywhere": "standard[n_kv_heads=2,qk_norm=false,bias=true]",
    "half-rotated heads": "standard[n_kv_heads=2,qk_norm=false,rope_dim=4]",
    "interleaved pairs of a part": "standard[n_kv_heads=2,qk_norm=false,rope=interleaved,rope_dim=4]",
    "no rotation": "standard[n_kv_heads=2,qk_norm=false,rope=none]",
}


def build(blocks: str = FORMS["grouped"], **options) -> TransformerLM:
    config = {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "rope_theta": 100.0} | options
    with seeded(5):
        model = TransformerLM(LMConfig(blocks=blocks, zero_init_outputs=False, tied=True, context=64, **config))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Larger than at the start of training, so that attention looks somewhere.
                parameter.mul_(2.5 if "attn" in name else 1.0)
                if name.endswith("bias"):
                    parameter.normal_(0, 0.5)
    return model.eval().requires_grad_(False)


def text(pieces: int = 6, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(VOCABULARY, (pieces, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def far(new, old, ids) -> float:
    return float((new(ids).logits - old(ids).logits).abs().max())


def exact(form: str) -> list[str]:
    heads = 4 if form == "multi-head" else 2
    return [
        f"standard[window={LENGTH + 9},sinks=2]",
        "standard[head_dim=8,v_dim=8]",
        f"standard[n_kv_heads=1,head_dim={8 * heads},v_dim={8 * heads}]",
        f"mla[kv_rank={8 * heads},rope_dim={8 * heads}]",
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", range(4), ids=["a long window", "whole heads", "all components", "all latents"])
def test_nothing_is_lost_where_there_is_room_for_all(form, which):
    model, ids = build(FORMS[form]), text()
    new = transplant(model, exact(form)[which], moments=gather_moments(model, ids))
    # Float32 sums in another order, of logits of some ten units; the fits themselves are float64.
    assert far(new, model, text(2, 55)) < 1e-3 if which else far(new, model, text(2, 45)) < 1e-3


def test_scaled_frequencies_of_the_whole_model_are_read():
    # Yarn makes cosines and sines longer, too.
    for scaling in ("llama3[factor=8,original=16]", "yarn[factor=4,original=16]"):
        model, ids = build(rope_scaling=scaling), text()
        moments = gather_moments(model, ids)
        for blocks in exact("grouped")[1:]:
            assert far(transplant(model, blocks, moments=moments), model, ids) < 1e-3


def test_two_key_heads_of_four_hold_their_pairs():
    model, ids = build(FORMS["multi-head"]), text()
    new = transplant(model, "standard[n_kv_heads=2,head_dim=16,v_dim=16]", moments=gather_moments(model, ids))
    attention = new.layers[0].attn
    assert attention.n_kv_heads == 2 and attention.rope_heads == 1
    assert far(new, model, ids) < 1e-3


@pytest.mark.parametrize(
    "blocks",
    ["standard[n_kv_heads=1,head_dim={},v_dim={}]", "standard[head_dim={},v_dim={}]", "mla[kv_rank={1},rope_dim={0}]"],
    ids=["rotary PCA", "thin", "mla"],
)
def test_more_room_loses_less_and_the_cache_is_as_asked_for(blocks):
    model, ids = build(), text(8)
    moments = gather_moments(model, ids)
    widths = [(4, 4), (6, 6), (8, 8)] if blocks.startswith("standard[head") else [(4, 4), (10, 10), (16, 16)]
    # By the output of the first layer, whose inputs are the same: what follows is no longer a least-squares matter.
    x = model.layers[0].ln1(model.token_embeddings(ids))
    wanted, errors = model.layers[0].attn(x)[0], []
    for pair in widths:
        new = transplant(model, blocks.format(*pair), layers=[0], moments=moments)
        with torch.no_grad():
            errors.append(float((new.layers[0].attn(x)[0] - wanted).square().mean() / wanted.square().mean()))
        assert new.config.layers[1] == model.config.layers[1]
        assert far(new, transplant(model, blocks.format(*pair), layers=[0], moments=moments), ids) == 0
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-6, errors


def test_decoding_with_a_cache_gives_what_the_whole_text_gives():
    model, ids = build(), text(2)
    moments = gather_moments(model, ids)
    new = transplant(model, "standard[n_kv_heads=1,head_dim=12,v_dim=10,window=9,sinks=2]", layers=[0], moments=moments)
    new = transplant(new, "mla[kv_rank=12,rope_dim=6,window=8,sinks=1]", layers=[1], moments=moments)
    cache, parts = new.new_cache(2), []
    with torch.no_grad():
        for start, end in ((0, 13), (13, 14), (14, 30), (30, LENGTH)):
            parts.append(new(ids[:, start:end], cache=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), new(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_window_changes_no_weight_and_needs_no_text():
    model = build()
    new = transplant(model, "standard[window=8,sinks=2]", layers=[1])
    assert (new.layers[1].attn.window, new.layers[1].attn.sinks, new.layers[0].attn.window) == (8, 2, None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name])
    assert not needs_moments("standard[window=8]") and needs_moments("mla[kv_rank=8,rope_dim=4]")
    assert far(new, model, text()) > 0


def test_the_model_is_left_as_it_is_and_its_type_and_mode_are_kept():
    model = build().to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = transplant(model, "mla[kv_rank=8,rope_dim=4]", moments=gather_moments(model, text()))
    assert new.training and model.training and next(new.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(new.layers[0].attn, LatentAttention)
    assert new.lm_head.weight is new.token_embeddings.weight, "tied matrices stay tied"


def test_all_components_together_are_the_keys():
    model = build()
    source = read_source(model.layers[0].attn)
    moments = gather_moments(model, text()).of(0)
    parts = components_of(source, range(2), moments.of_keys, moments.uniform)
    assert (parts.strength.diff(dim=1) <= 0).all()
    for g in range(2):
        back = torch.einsum("jc,jcd->jd", parts.mix[:, g], parts.key_rows) / parts.size[g].unsqueeze(-1)
        torch.testing.assert_close(back, source.keys[g], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:the FFNs of trained models hardly compress")
def test_a_vein_as_wide_as_what_the_ffn_reads_and_writes_changes_nothing():
    model, ids = build(), text()
    with torch.no_grad():
        # Inputs and outputs in twenty directions of thirty-two.
        for layer in model.layers:
            layer.ffn.w2.weight[20:] = 0
            layer.ln2.weight[20:] = 0
    new = transplant(model, "vft[rank=20]", moments=gather_moments(model, ids, ffns=True))
    assert new.layers[0].ffn.rank == 20 and far(new, model, ids) < 1e-3
    narrow = transplant(model, "vft[rank=8]", layers=[1], moments=gather_moments(model, ids, ffns=True))
    assert narrow.config.layers[0] == model.config.layers[0] and far(narrow, model, ids) > 1e-3


def test_a_vein_ffn_comes_with_its_warning():
    model = build()
    with pytest.warns(UserWarning, match="hardly compress"):
        transplant(model, "vft[rank=8]", moments=gather_moments(model, text(1), ffns=True))
    other = build("standard[n_kv_heads=2,qk_norm=false]+standard")
    with pytest.raises(InputError, match="layer 0 has StandardFFN; a vein is fitted to swiglu"):
        transplant(other, "vft[rank=8]", moments=gather_moments(other, text(1), ffns=True))


def test_mean_turns_of_a_head_that_looks_at_one_distance_are_that_turn():
    distances = torch.zeros(2, 9, dtype=torch.float64)
    distances[0, 0] = distances[1, 4] = 1
    turns = mean_turns(distances, torch.tensor([0.3, 0.01], dtype=torch.float64))
    torch.testing.assert_close(turns[0], torch.ones(2, dtype=torch.complex128))
    torch.testing.assert_close(turns[1].angle(), torch.tensor([-1.2, -0.04], dtype=torch.float64))


REFUSED = {
    "too wide a key": ("standard[n_kv_heads=1,head_dim=18]", "head_dim=18 should be even, at least 2 and at most 16"),
    "too wide a value": ("standard[v_dim=9]", "v_dim=9 should be at least 1 and at most 8"),
    "key heads that do not divide": ("standard[n_kv_heads=3]", "should divide the 2 key heads there are: 1, 2"),
    "an odd rotary key": ("mla[kv_rank=8,rope_dim=5]", "rope_dim=5 should be even"),
    "an FFN of another kind": ("swiglu[d_ff=3]", "'swiglu': an FFN is fitted as a vein"),
    "a rank above what there is": ("mla[kv_rank=30,rope_dim=4]", "kv_rank=30 should be at least 1 and at most 28"),
    "mla without widths": ("mla[kv_rank=8]", "mla needs kv_rank and rope_dim"),
    "what the weights decide": ("standard[qk_norm=true]", "qk_norm=True is decided by the trained weights"),
    "another mixer": ("spectral", "'spectral' cannot be fitted to trained attention: use standard or mla"),
    "veins": ("tva[rank=4]", r"standard\[head_dim=…,v_dim=…\] is the same attention"),
    "both at once": ("standard[window=4]+moe", "should be one mixer or FFN"),
    "a vein of two sizes": ("vft[rank=4,r_hidden=8]", "fitted as a vein of a rank alone"),
    "a vein without its moments": ("vft[rank=4]", "gather them with ffns=True"),
    "nothing": ("standard", "changes nothing"),
    "an unknown option": ("standard[windw=4]", "did you mean 'window'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused_in_one_line(case):
    blocks, words = REFUSED[case]
    model = build()
    with pytest.raises(InputError, match=words) as error:
        transplant(model, blocks, moments=gather_moments(model, text(1)))
    assert "\n" not in str(error.value)


def test_keys_that_are_not_linear_are_refused_by_name_and_values_are_fitted_all_the_same():
    for blocks, words in (
        ("standard[n_kv_heads=2]", "normalised queries and keys"),
        ("standard[n_kv_heads=2,qk_norm=whole]", "normalised queries and keys"),
        ("standard[n_kv_heads=2,qk_norm=false,rope_frequencies=1 0.4 0.1 0.02 2 0.3 0.1 0.01]", "frequencies of their"),
    ):
        model, ids = build(blocks), text()
        moments = gather_moments(model, ids)
        with pytest.raises(InputError, match=f"layer 0 has .*{words}") as error:
            transplant(model, "mla[kv_rank=8,rope_dim=4]", moments=moments)
        assert "\n" not in str(error.value)
        assert far(transplant(model, "standard[v_dim=8]", moments=moments), model, ids) < 1e-3
        thin = transplant(model, "standard[v_dim=6]", moments=moments)
        assert thin.layers[0].attn.v_dim == 6 and far(thin, model, ids) > 1e-3


def test_a_window_of_the_source_is_kept():
    model, ids = build("standard[n_kv_heads=2,qk_norm=false,window=7,sinks=1]"), text()
    moments = gather_moments(model, ids)
    for blocks in exact("grouped")[1:]:
        new = transplant(model, blocks, moments=moments)
        assert (new.layers[0].attn.window, new.layers[0].attn.sinks) == (7, 1) and far(new, model, ids) < 1e-3
    with pytest.raises(InputError, match="layer 0 has a window, which method=palu has no place for"):
        transplant(model, "mla[kv_rank=8,method=palu]", moments=moments)


def test_fitted_latents_take_a_window_at_once_and_afterwards():
    model, ids = build(), text()
    moments = gather_moments(model, ids)
    whole = transplant(model, "mla[kv_rank=12,rope_dim=6]", moments=moments)
    at_once = transplant(model, "mla[kv_rank=12,rope_dim=6,window=9,sinks=2]", moments=moments)
    after = transplant(whole, "mla[window=9,sinks=2]")
    assert not needs_moments("mla[window=9,sinks=2]") and after.layers[1].attn.window == 9
    assert far(at_once, after, ids) == 0 and far(after, whole, ids) > 1e-3
    assert far(transplant(whole, f"mla[window={LENGTH + 9}]"), whole, ids) < 1e-4
    with pytest.raises(InputError, match="layer 0 has mla; write mla"):
        transplant(whole, "standard[window=9]")
    with pytest.raises(InputError, match="mla needs kv_rank and rope_dim here"):
        transplant(model, "mla[window=9]")


def test_frequencies_that_go_by_the_length_of_a_text_are_refused():
    model = build(rope_scaling="dynamic[factor=2,original=8]")
    with pytest.raises(InputError, match="which goes by the text's length"):
        transplant(model, "mla[kv_rank=8,rope_dim=4]", moments=gather_moments(model, text(1)))


def test_layers_that_are_not_there_and_missing_moments_are_refused():
    model = build()
    with pytest.raises(InputError, match="layers=1,7: name some of 0 to 1"):
        transplant(model, "standard[window=4]", layers=[7, 1])
    with pytest.raises(InputError, match="give moments, from gather_moments"):
        transplant(model, "standard[head_dim=4]")
    with pytest.raises(InputError, match=r"layer 0 has mla; write mla\[window=…\] to give it a window"):
        transplant(build("mla/standard"), "standard[window=4]")


def test_losses_are_paired_and_a_short_text_is_refused():
    model, ids = build(), pieces_of(torch.arange(200) % VOCABULARY, 30)
    assert ids.shape == (6, 30)
    losses = token_losses(model, ids)
    expected = model(ids[:, :-1], targets=ids[:, 1:]).loss
    torch.testing.assert_close(losses.mean(), expected)
    with pytest.raises(InputError, match="the text has 20 tokens; 1 pieces of 30 take 30"):
        pieces_of(torch.arange(20), 30)


def test_the_new_layers_are_written_as_text_that_reads_back():
    model, ids = build(), text()
    new = transplant(model, "standard[n_kv_heads=1,head_dim=12]", layers=[0], moments=gather_moments(model, ids))
    new = transplant(new, "mla[kv_rank=12,rope_dim=6]", layers=[1], moments=gather_moments(model, ids))
    assert parse_choice(new.config.choice) == new.config.layers


@pytest.mark.filterwarnings("ignore:the FFNs of trained models")
@pytest.mark.parametrize(
    "blocks",
    [
        "standard[head_dim=6,v_dim=5]",
        "standard[n_kv_heads=1,head_dim=12,v_dim=9]",
        "standard[v_dim=5]",
        "mla[kv_rank=10,rope_dim=6]",
        "mla[kv_rank=10,method=palu]",
        "vft[rank=12]",
    ],
)
def test_what_makes_a_number_and_what_reads_it_have_one_size_so_that_they_can_be_trained(blocks):
    model = build()
    block = transplant(model, blocks, layers=[1], moments=gather_moments(model, text(12), ffns=True)).layers[1]
    attn, ffn = block.attn, block.ffn

    def sizes(weight, groups):
        """Roots of the mean squares of what belongs to each number; zeros are no weights."""
        there = [weight[groups == i] for i in range(int(groups.max()) + 1)]
        return torch.stack([w[w != 0].square().mean().sqrt() for w in there])

    def pairs(heads, width, shared=1):
        """The number that each row of keys (or of the queries that meet them) belongs to: the pair of its head."""
        own = torch.arange(heads)[:, None, None] * (width // 2) + torch.arange(width) % (width // 2)
        return own.expand(heads, shared, width).flatten()

    if blocks.startswith("standard"):
        heads, width = attn.n_kv_heads, attn.v_dim
        values = torch.arange(heads * width).view(heads, 1, width)
        read = sizes(attn.output_proj.weight.T, values.expand(heads, 4 // heads, width).flatten())
        both = [(sizes(attn.v_proj.weight, values.flatten()), read)]
        if "head_dim" in blocks:
            keys = pairs(heads, attn.head_dim), pairs(heads, attn.head_dim, 4 // heads)
            both.append((sizes(attn.k_proj.weight, keys[0]), sizes(attn.q_proj.weight, keys[1])))
    elif blocks.startswith("mla"):
        latent = attn.kv_down_proj.weight[:10]
        each = torch.arange(10)
        both = [(sizes(latent, each), sizes(torch.cat([attn.k_up, attn.v_up], 1).flatten(0, 1).T, each))]
        if "rope_dim" in blocks:
            rotary = attn.q_proj.weight.unflatten(0, (4, -1))[:, -6:].flatten(0, 1)
            both.append((sizes(attn.kv_down_proj.weight[10:], pairs(1, 6)), sizes(rotary, pairs(1, 6, 4))))
    else:
        each = torch.arange(12)
        both = [(sizes(ffn.vein.V.weight, each), sizes(torch.cat([ffn.w1.weight, ffn.w3.weight]).T, each))]
        both.append((sizes(ffn.w2.weight, each), sizes(ffn.vein.U.weight.T, each)))
    for made, read in both:
        torch.testing.assert_close(made, read, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", ["mla[kv_rank=40,rope_dim=8]", "mla[kv_rank=40,method=palu]"])
def test_a_latent_wider_than_the_model_is_refused_before_any_text_is_read(form):
    (said,) = set(refusals(build("standard[qk_norm=false]"), form, [0]).values())
    assert said == "kv_rank=40 should be at most d_model=32: a latent holds no more"


def test_a_layer_that_writes_nothing_stays_so():
    model = build()
    model.layers[1].attn.output_proj.weight.zero_()
    new = transplant(model, "mla[kv_rank=16,rope_dim=8]", layers=[1], moments=gather_moments(model, text()))
    assert far(new, model, text()) < 1e-4


@pytest.mark.parametrize("options", ["", ",method=transmla", ",method=mha2mla", ",method=svd"])
def test_values_that_are_nothing_stay_so(options):
    model = build()
    model.layers[1].attn.v_proj.weight.zero_()
    form = f"mla[kv_rank=8,rope_dim=8{options}]"
    new = transplant(model, form, layers=[1], moments=gather_moments(model, text()))
    assert far(new, model, text()) < 1e-4
