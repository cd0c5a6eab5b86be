"""Published methods: exact where their papers' are, decoded as they are read, and refused in one line."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import gather_moments, needs_moments, parse_transplant_choice, transplant
from blockyard.transplant.published import METHODS, largest_pairs
from blockyard.transplant.source import read_source
from tests.transplant.test_transplant import FORMS, build, far, text

# Two key heads of 8, and of values 8: full width.
FULL = {
    "mean_pool": "standard[n_kv_heads=2,method=mean_pool]",
    "svd of heads": "standard[head_dim=8,v_dim=8,method=svd]",
    "svd of latents": "mla[kv_rank=16,rope_dim=16,method=svd]",
    "mha2mla": "mla[kv_rank=16,rope_dim=16,method=mha2mla]",
    "transmla": "mla[kv_rank=16,rope_dim=16,method=transmla]",
    "palu": "mla[kv_rank=32,method=palu]",
    "palu by head": "mla[kv_rank=32,method=palu,group=1]",
}
PARTS = {
    "svd of heads": "standard[head_dim=6,v_dim=5,method=svd]",
    "svd of latents": "mla[kv_rank=16,rope_dim=8,method=svd]",
    "mha2mla": "mla[kv_rank=16,rope_dim=8,method=mha2mla]",
    "transmla": "mla[kv_rank=16,rope_dim=8,method=transmla]",
    "transmla, folded": "mla[kv_rank=14,rope_dim=4,method=transmla,fold=2]",
    "palu": "mla[kv_rank=20,method=palu]",
    "palu by head, fewer keys": "mla[kv_rank=20,method=palu,group=1,keys=8]",
    "mean_pool": "standard[n_kv_heads=1,method=mean_pool]",
}


def moments_of(model, blocks, ids):
    return gather_moments(model, ids) if needs_moments(blocks) else None


@pytest.mark.parametrize("form", ["grouped", "interleaved", "biases everywhere", "half-rotated heads"])
@pytest.mark.parametrize("name", FULL)
def test_a_published_method_is_exact_at_full_width(name, form):
    model, ids = build(FORMS[form]), text(3)
    new = transplant(model, FULL[name], moments=moments_of(model, FULL[name], ids))
    # As for this package's own fits: float64 weights, float32 sums in another order.
    assert far(new, model, text(2, 55)) < 1e-3


@pytest.mark.parametrize("name", PARTS)
def test_a_narrower_one_changes_the_model_and_decodes_as_it_reads(name):
    model, ids = build(), text(2)
    new = transplant(model, PARTS[name], moments=moments_of(model, PARTS[name], ids))
    assert far(new, model, ids) > 1e-3
    cache, parts = new.new_cache(2), []
    with torch.no_grad():
        for start, end in ((0, 13), (13, 14), (14, 30), (30, ids.shape[1])):
            parts.append(new(ids[:, start:end], cache=cache).logits)
        torch.testing.assert_close(torch.cat(parts, 1), new(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_caches_are_as_small_as_they_say():
    model, ids = build(), text(2)
    moments = gather_moments(model, ids)
    for blocks, numbers in (
        ("mla[kv_rank=20,method=palu]", 20),
        ("mla[kv_rank=16,rope_dim=8,method=mha2mla]", 24),
        ("mla[kv_rank=14,rope_dim=4,method=transmla,fold=2]", 18),
        ("standard[n_kv_heads=1,method=mean_pool]", 16),
    ):
        attention = transplant(model, blocks, moments=moments).layers[0].attn
        assert attention.cost(8).cache_bytes_per_token == 4 * numbers, blocks


def test_a_group_of_like_key_heads_is_pooled_without_loss():
    model, ids = build(), text(2)
    with torch.no_grad():
        for layer in model.layers:
            for projection in (layer.attn.k_proj, layer.attn.v_proj):
                projection.weight[8:] = projection.weight[:8]
    assert far(transplant(model, "standard[n_kv_heads=1,method=mean_pool]"), model, ids) < 1e-3


def test_real_rotations_gather_what_key_heads_share():
    """Keys that are one head's, turned by a real rotation, need that head's width alone, folded or not."""
    model, ids = build(), text(4)
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.k_proj.weight[8:] = -0.7 * layer.attn.k_proj.weight[:8]
    moments = gather_moments(model, ids)
    assert far(transplant(model, "mla[kv_rank=16,rope_dim=8,method=transmla]", moments=moments), model, ids) < 1e-3


def test_equal_frequencies_fold_without_loss():
    model, ids = build("standard[n_kv_heads=2,qk_norm=false,rope_frequencies=0.5 0.5 0.1 0.1]"), text(4)
    moments = gather_moments(model, ids)
    assert (
        far(transplant(model, "mla[kv_rank=16,rope_dim=16,method=transmla,fold=2]", moments=moments), model, ids) < 1e-3
    )
    assert (
        far(transplant(build(), "mla[kv_rank=16,rope_dim=16,method=transmla,fold=2]", moments=moments), model, ids)
        > 1e-3
    )


def test_kept_pairs_are_those_of_the_largest_norms():
    model = build()
    source = read_source(model.layers[0].attn)
    uniform = gather_moments(model, text(2)).of(0).uniform
    root = torch.linalg.cholesky(uniform + 1e-9 * torch.eye(len(uniform)))
    for g, chosen in enumerate(largest_pairs(source, uniform, 2).tolist()):
        scores = []
        for pair in range(4):
            key = (source.keys[g, pair] @ root.to(source.keys.dtype)).norm()
            queries = [(source.queries[h, pair] @ root.to(source.keys.dtype)).norm() for h in (2 * g, 2 * g + 1)]
            scores.append(float(sum(query * key for query in queries)))
        assert sorted(chosen) == sorted(sorted(range(4), key=scores.__getitem__)[-2:])


def test_a_choice_is_written_as_it_is_read_and_says_what_it_needs():
    for blocks in (*FULL.values(), *PARTS.values(), "mla[kv_rank=8,rope_dim=4]", "standard[window=8,sinks=2]"):
        assert str(parse_transplant_choice(blocks)) == blocks
    spaced = parse_transplant_choice(" mla[ fold = 1, method = transmla, kv_rank=8, rope_dim=4 ]")
    assert str(spaced) == "mla[kv_rank=8,rope_dim=4,method=transmla]"
    assert {name for name, method in METHODS.items() if not method.needs_moments} == {"mean_pool", "svd"}
    with pytest.raises(InputError, match="method=transmla] is fitted to a text: give moments"):
        transplant(build(), "mla[kv_rank=8,rope_dim=8,method=transmla]")


def test_a_window_goes_with_a_method_that_makes_standard_attention():
    model = build()
    new = transplant(model, "standard[n_kv_heads=1,window=9,sinks=2,method=mean_pool]")
    assert (new.layers[0].attn.window, new.layers[0].attn.sinks, new.layers[0].attn.n_kv_heads) == (9, 2, 1)


REFUSED = {
    "an unknown method": ("mla[kv_rank=8,rope_dim=4,method=x]", "method=x: there are mean_pool, svd"),
    "two methods": ("mla[kv_rank=8,rope_dim=4,method=svd,method=palu]", "method stands twice"),
    "another mixer": ("mla[method=mean_pool]", r"method=mean_pool fits standard\[n_kv_heads=…\], not mla"),
    "a width too many": ("mla[kv_rank=8,rope_dim=4,method=palu]", "method=palu does not change rope_dim"),
    "a width too few": ("mla[kv_rank=8,method=transmla]", "method=transmla needs rope_dim=… in mla"),
    "a width that is none": ("mla[kv_rank=8,rope_dim=none,method=transmla]", "method=transmla needs rope_dim"),
    "an option that it lacks": ("mla[kv_rank=8,rope_dim=4,method=mha2mla,fold=2]", "'mla' has no option 'fold'"),
    "an option without a number": ("mla[kv_rank=8,rope_dim=4,method=transmla,fold=x]", "should be a whole number"),
    "a method's option alone": ("mla[kv_rank=8,rope_dim=4,fold=2]", "'mla' has no option 'fold'"),
    "an FFN": ("vft[rank=4,method=svd]", "the published methods fit attention"),
    "a fold that leaves no pairs": ("mla[kv_rank=8,rope_dim=4,method=transmla]", "use fold=2, 4"),
    "unequal pairs of key heads": ("mla[kv_rank=8,rope_dim=6,method=mha2mla]", "should be a multiple of 4"),
    "no divisor": ("standard[n_kv_heads=3,method=mean_pool]", "should divide the 2 key heads there are: 1, 2"),
    "a group that is none": ("mla[kv_rank=8,method=palu,group=3]", "group=3 should divide the 2 key heads"),
    "more than keys hold": ("mla[kv_rank=30,method=palu,keys=20]", "leaves 20 numbers for keys"),
    "a width beyond": ("standard[head_dim=10,v_dim=4,method=svd]", "head_dim=10 should be even and at most 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_do_is_refused_in_one_line(case):
    blocks, words = REFUSED[case]
    model = build()
    with pytest.raises(InputError, match=words) as error:
        transplant(model, blocks, moments=gather_moments(model, text(1)))
    assert "\n" not in str(error.value)
