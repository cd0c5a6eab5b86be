"""FlexAttention's masks and maps of blocks against the paths that a CPU takes, and where it is chosen.

The kernel itself is of CUDA; on a CPU torch runs FlexAttention uncompiled, forward alone. Gradients here are those of
the mask in plain products, which second derivatives take on every device.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, build_lm
from blockyard.models.order import randomise
from blockyard.nn import attention_flex as flex
from blockyard.nn.attention import attend
from blockyard.nn.segments import Segments
from blockyard.registry.register import create

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

lengths = st.integers(1, 300) | st.sampled_from([127, 128, 129, 256, 257])
windows = st.none() | st.integers(1, 300)


def filled(flags: Tensor) -> Tensor:
    """Flags of pairs [B, 1, T, S] by blocks of 128 x 128, [B, 1, Q, K, 128 · 128], False beyond the ends."""
    grown = torch.nn.functional.pad(flags, (0, -flags.shape[3] % 128, 0, -flags.shape[2] % 128))
    return grown.unflatten(3, (-1, 128)).unflatten(2, (-1, 128)).movedim(4, 3).flatten(-2)


def places_of(batch: int, length: int, share: float, seed: int) -> Tensor:
    """Places within documents that begin anywhere with that probability."""
    begins = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share
    begins[:, 0] = True
    steps = torch.arange(length)
    return steps - torch.where(begins, steps, 0).cummax(1).values


def by_loops(sight: flex.Sight, places: Tensor | None, row: int, q: int, k: int) -> bool:
    """Whether a query sees a key, said without tensors' arithmetic."""
    at = q + sight.keys - sight.queries
    kept = [True] * sight.keys if sight.keep is None else sight.keep[row].tolist()
    begin = 0 if places is None else at - int(places[row, q])
    end = sight.keys
    if places is not None:
        end = next((n for n in range(at + 1, sight.keys) if places[row, n] == 0), sight.keys)
    if not (begin <= k < end and kept[k]) or (sight.causal and k > at):
        return False
    first = [n for n in range(begin, end) if kept[n]][: sight.sinks]
    return sight.window is None or abs(at - k) < sight.window or k in first


@settings(max_examples=60, deadline=None)
@given(queries=lengths, past=st.integers(0, 200), causal=st.booleans(), window=windows, sinks=st.integers(0, 140),
       hides=st.sampled_from(["nothing", "padding", "documents"]), seed=st.integers(0, 99))  # fmt: skip
def test_who_sees_whom_is_the_definition_and_the_map_of_blocks_its_bound(
    queries, past, causal, window, sinks, hides, seed
):
    keys = queries + (0 if hides == "documents" else past)
    keep = places = None
    if hides == "padding":
        keep = torch.rand(2, keys, generator=torch.Generator().manual_seed(seed)) < 0.7
        keep[1] = torch.arange(keys) >= seed
    if hides == "documents":
        places = places_of(2, queries, 0.02, seed)
    sight = flex.sight_of(queries, keys, causal, window, sinks, keep, places)
    dense = flex.dense(sight, CPU)
    for n in range(40):
        row, q, k = (n * 7 + seed) % sight.batch, (n * 31 + seed) % queries, (n * 53 + seed) % keys
        assert dense[row, 0, q, k] == by_loops(sight, places, row, q, k), (row, q, k)
    some, every = flex.blocks(sight, CPU)
    pairs = filled(dense)
    assert not (some & every).any()
    # A block that is not listed is not computed, and of one that is listed whole no pair is asked about.
    assert not (pairs.any(-1) & ~(some | every)).any()
    assert not (every & ~pairs.all(-1)).any()
    assert torch.equal(flex.block_mask(sight, CPU).to_dense().bool(), some | every)
    if keep is None and places is None:
        # Places alone tell exactly.
        assert torch.equal(pairs.any(-1), some | every)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(2, 300), causal=st.booleans(), window=windows, sinks=st.integers(0, 9), padded=st.booleans(),
       shared=st.sampled_from(["none", "keys", "values"]), grad=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
def test_it_gives_what_masks_and_blocks_of_queries_give(length, causal, window, sinks, padded, shared, grad, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [
        (2, 4, length, 16),
        (2, 4 if shared == "none" else 2, length, 16),
        (2, 1 if shared == "values" else 2, length, 24),
    ]
    if shared == "none":
        sizes[2] = (2, 4, length, 24)
    q, k, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    mask = None
    if padded:
        mask = torch.rand(2, length, generator=generator) < 0.6
        mask[1, : length // 2] = False
    given = {"causal": causal, "window": window, "sinks": sinks if window else 0, "padding_mask": mask}
    found, expected = [], []
    for kernel, into in (("flex", found), ("sdpa", expected)):
        leaves = [t.clone().requires_grad_(grad) for t in (q, k, v)]
        with torch.set_grad_enabled(grad):
            out, _ = attend(*leaves, kernel=kernel, **given)
        into.append(out.detach())
        if grad:
            into += torch.autograd.grad(out.square().sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(3, 200), window=windows, sinks=st.integers(0, 5), grad=st.booleans(), seed=st.integers(0, 99))
def test_documents_in_a_row_are_each_alone(length, window, sinks, grad, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, length, 16, generator=generator) for _ in range(3))
    places, sinks = places_of(2, length, 0.1, seed), sinks if window else 0
    for kernel in ("flex", "sdpa"):
        with torch.set_grad_enabled(grad):
            out, _ = attend(q, k, v, causal=True, window=window, sinks=sinks, documents=places, kernel=kernel)
        for row in range(2):
            starts = [*(places[row] == 0).nonzero().flatten().tolist(), length]
            for begin, end in itertools.pairwise(starts):
                part = [t[row : row + 1, :, begin:end] for t in (q, k, v)]
                alone, _ = attend(*part, causal=True, window=window, sinks=sinks)
                torch.testing.assert_close(out[row : row + 1, :, begin:end], alone, rtol=1e-4, atol=1e-5)


NUMBERS = torch.tensor([[0] * 7 + [1] + [2] * 9 + [-1] * 3, [0] * 20, [0] * 2 + [1] * 2 + [0] * 16])


@pytest.mark.parametrize(
    "blocks", ["standard[kernel=flex,window=3,sinks=1]", "tva[kernel=flex]+vft", "tva[kernel=flex,factored=true]"]
)
def test_a_model_that_mixes_documents_where_they_stand_gives_what_it_gives_apart(blocks, monkeypatch):
    model = build_lm(LMConfig(vocab_size=11, d_model=16, n_heads=2, n_layers=2, context=20, blocks=blocks), 0).double()
    randomise(model)
    ids = torch.randint(11, NUMBERS.shape, generator=torch.Generator().manual_seed(2))
    targets = ids.roll(-1, 1).where(NUMBERS >= 0, -100)
    calls = []
    dense = flex.dense
    monkeypatch.setattr(flex, "dense", lambda *given: calls.append(given) or dense(*given))

    def run():
        out = model(ids, targets=targets, segments=NUMBERS)
        return [out.logits[NUMBERS >= 0], *torch.autograd.grad(out.loss, model.parameters())]

    inside = run()
    assert len(calls) == 2
    monkeypatch.setattr(flex, "chosen", lambda *given: False)
    for one, other in zip(inside, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_weights_dropout_and_masks_of_the_callers_go_with_documents_by_another_kernel():
    mixer = create("attn", "standard", {"d_model": 16, "n_heads": 2, "causal": True, "kernel": "flex"}).double().eval()
    randomise(mixer)
    x, documents = torch.randn(3, 20, 16, dtype=torch.float64), Segments(NUMBERS)
    expected = documents.apart(lambda rows: mixer(rows)[0], x)
    out, weights = mixer(x, documents=documents, return_weights=True)
    torch.testing.assert_close(out, expected)
    assert torch.equal(
        weights[0, 0] > 0, flex.dense(flex.sight_of(20, 20, True, None, 0, None, documents.positions), CPU)[0, 0]
    )
    shown = torch.ones(20, 20, dtype=torch.bool)
    for mask in (shown, torch.zeros(20, 20, dtype=torch.float64)):
        torch.testing.assert_close(mixer(x, documents=documents, attn_mask=mask)[0], expected)
    cache = mixer.new_cache(3)
    for more in ({"cache": cache}, {"positions": torch.arange(20)}, {"context": x, "causal": False}):
        with pytest.raises(InputError, match="documents go without"):
            mixer(x, documents=documents, **more)
    with pytest.raises(InputError, match="documents has shape"):
        mixer(x[:, :9], documents=documents)


def test_a_compiler_captures_it_whole():
    mixer = create(
        "attn", "standard", {"d_model": 32, "n_heads": 2, "causal": True, "kernel": "flex", "window": 20, "sinks": 2}
    )
    randomise(mixer)
    x, mask = torch.randn(2, 150, 32), torch.arange(150) >= torch.tensor([[0], [31]])
    torch.compiler.reset()
    compiled = torch.compile(lambda x, mask: mixer(x, padding_mask=mask)[0], fullgraph=True, backend="eager")
    with torch.no_grad():
        for given in (None, mask):
            torch.testing.assert_close(compiled(x, given), mixer(x, padding_mask=given)[0], rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.slow
def test_the_compiled_kernel_goes_by_the_map(monkeypatch):
    # The one for a CPU, which has a forward pass alone; the uncompiled form reads the function and not the map.
    monkeypatch.setattr(flex, "_kernel", lambda device: flex._compiled())
    q, k, v = (torch.randn(2, 2, 700, 32) for _ in range(3))
    mask, places = torch.arange(700) >= torch.tensor([[0], [301]]), places_of(2, 700, 0.005, 3)
    hidden = {"window": {}, "padding": {"padding_mask": mask}, "documents": {"documents": places}}
    with torch.no_grad():
        for name, given in hidden.items():
            given = {"causal": True, "window": None if name == "documents" else 150, "sinks": 2, **given}
            given["sinks"] = 0 if name == "documents" else 2
            out, expected = (attend(q, k, v, kernel=kernel, **given)[0] for kernel in ("flex", "sdpa"))
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def like(device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What is asked about a tensor, without a device of that kind."""

    class Asked:
        def __init__(self) -> None:
            self.device, self.dtype = torch.device(device), dtype

    return Asked()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"kernel": "sdpa"}, False),
        ({"kernel": "matmul"}, False),
        ({"device": "cpu"}, False),
        ({"device": "cpu", "kernel": "flex"}, True),
        ({"length": 128}, False),
        ({"width": 8}, False),
        ({"width": 512}, False),
        ({"dtype": torch.float64}, False),
        ({"dtype": torch.float32}, True),
        ({"grad": False}, False),
        ({"grad": False, "length": 128, "kernel": "flex"}, True),
        ({"dtype": torch.float64, "kernel": "flex"}, False),
    ],
    ids=str,
)
def test_it_is_chosen_for_training_on_cuda_at_lengths_and_widths_that_it_takes(given, expected):
    asked = {
        "kernel": "auto",
        "device": "cuda",
        "dtype": torch.bfloat16,
        "length": 1024,
        "width": 64,
        "grad": True,
        **given,
    }
    with torch.set_grad_enabled(asked["grad"]):
        found = flex.chosen(asked["kernel"], like(asked["device"], asked["dtype"]), asked["length"], asked["width"], 64)
    assert found is expected


def test_a_trial_is_made_once_and_leaves_activation_checkpointing_alone(monkeypatch):
    monkeypatch.setattr(flex, "_tried", {})
    tries = []

    def call(q, k, v):
        tries.append(q.shape)
        return (q * k).exp() * v

    def layer(x):
        assert flex._works(call, [x, x, x])
        return (x * x).sin()

    x = torch.randn(1, 2, 3, 16, requires_grad=True)
    (found,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).sum(), x)
    torch.testing.assert_close(found, 2 * x * (x * x).cos())
    assert len(tries) == 1


def test_maps_by_places_alone_are_made_once_for_a_shape_and_not_without_end():
    flex._kept.cache_clear()
    sight = flex.Sight(256, 256, True, 64)
    assert flex.block_mask(sight, CPU) is flex.block_mask(flex.Sight(256, 256, True, 64), CPU)
    padded = flex.sight_of(256, 256, True, 64, 0, torch.ones(2, 256), None)
    assert flex.block_mask(padded, CPU) is not flex.block_mask(padded, CPU)
    assert flex._kept.cache_info().currsize == 1 and flex._kept.cache_info().maxsize == 32
