"""Speculative decoding: the draft changes how fast a text comes, never which text or how likely it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blockyard.errors import InputError
from blockyard.generation import Batch, SamplingConfig, generate, generate_text
from blockyard.generation.sampling import draw_weighted
from blockyard.generation.speculative import residual, verify
from blockyard.registry import register as registry
from blockyard.registry.register import Traits
from tests.fixtures.generation import PROMPT, build

GREEDY = SamplingConfig(temperature=0)


def run(model, draft, tokens=30, sampling=GREEDY, prompt=PROMPT, **options):
    batch = Batch(model, [prompt], max_new_tokens=tokens, sampling=sampling, draft=draft, **options)
    return [token for ((new, _),) in batch for token in new], batch


def drafts(model, **options):
    """A stranger, the model itself, and the model with a little noise."""
    near = build(**options)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return {"stranger": build(seed=9, **options), "itself": model, "near": near}


@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
@pytest.mark.parametrize("who", ["stranger", "itself", "near"])
@pytest.mark.parametrize(
    "blocks", ["standard", "standard[window=4]/tva", "standard[n_kv_heads=1]", "mla", "mla[rope=full]"]
)
def test_greedy_text_is_the_models_own_token_for_token(blocks, who, draft_tokens):
    model = build(blocks=blocks)
    expected = list(generate(model, PROMPT, max_new_tokens=24, sampling=GREEDY))
    found, batch = run(model, drafts(model, blocks=blocks)[who], 24, draft_tokens=draft_tokens)
    assert found == expected
    assert batch.acceptance is not None
    # Every pass yields what it accepts and one more; the last round may have gone beyond what was asked for.
    made = batch.acceptance.accepted + batch.acceptance.passes
    assert 24 <= made <= 24 + draft_tokens
    if who == "itself":
        assert batch.acceptance.rate == 1
        assert batch.acceptance.passes == math.ceil(24 / (draft_tokens + 1))


@pytest.mark.parametrize(
    "blocks", ["standard[window=4]", pytest.param("standard[window=4]/spectral", marks=pytest.mark.slow)]
)
def test_more_proposals_than_a_window_goes_back_over_are_read_again(blocks):
    model = build(200, blocks)
    expected = list(generate(model, PROMPT, max_new_tokens=100, sampling=GREEDY))
    found, batch = run(model, build(200, seed=9), 100, draft_tokens=90)
    assert found == expected
    assert batch.acceptance is not None and batch.acceptance.rate < 1


@pytest.mark.parametrize("draft_context", [5, 12, 40])
@pytest.mark.parametrize("context", [5, 12])
def test_windows_slide_where_they_would_without_a_draft(context, draft_context):
    model = build(context)
    for draft in (build(draft_context), build(draft_context, seed=4)):
        found, _ = run(model, draft, 40, draft_tokens=3)
        assert found == list(generate(model, PROMPT, max_new_tokens=40, sampling=GREEDY))


def test_stopping_at_the_context_ends_at_the_same_token():
    model = build(12)
    expected = list(generate(model, PROMPT, max_new_tokens=40, sampling=GREEDY, past_context="stop"))
    found, batch = run(model, build(seed=4), 40, past_context="stop")
    assert found == expected
    assert batch.finished == ["context"]


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.7}, {"repetition_penalty": 0.5}],
    ids=str,
)
def test_a_repetition_penalty_counts_what_was_only_proposed_until_it_is_known(options):
    model, sampling = build(vocab_size=24), SamplingConfig(temperature=0, **options)
    for draft in drafts(model, vocab_size=24).values():
        found, _ = run(model, draft, 30, sampling, [1, 2])
        assert found == list(generate(model, [1, 2], max_new_tokens=30, sampling=sampling))


def test_without_caches_the_text_is_the_same():
    model, draft = build(), build(seed=4)
    assert run(model, draft, use_cache=False)[0] == run(model, draft)[0]


def test_text_and_stop_strings_work_as_without_a_draft():
    class Bytes:
        def encode(self, text):
            return list(text.encode())

        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    model, options = build(), {"max_new_tokens": 40, "sampling": GREEDY}
    whole = "".join(generate_text(model, Bytes(), "abc", **options))
    stop = whole[12:14]
    fast = generate_text(model, Bytes(), "abc", **options, draft=build(seed=4), stop=stop)
    assert "".join(fast) == whole[: whole.index(stop)]


# A recurrent state


class Sum(nn.Module):
    """out = W (decayed sum of x): a recurrent mixer."""

    def __init__(self, d_model: int):
        super().__init__()
        self.inward, self.outward = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        return SumState(batch, self.inward.in_features)

    def forward(self, x, cache=None):
        state, states = torch.zeros_like(x[:, 0]) if cache is None else cache.state, []
        for new in self.inward(x).unbind(1):
            state = 0.9 * state + new
            states.append(state)
        if cache is not None:
            cache.state, cache.length = state, cache.length + x.shape[1]
            cache.read += x.shape[1]
        return self.outward(torch.stack(states, 1)), None


class SumState:
    """The state, which goes back to a snapshot and nowhere else."""

    read = 0

    def __init__(self, batch, width):
        self.batch, self.length, self.state = batch, 0, torch.zeros(batch, width)

    def snapshot(self):
        return self.length, self.state

    def rollback(self, point):
        self.length, self.state = point

    def crop(self, length):
        raise InputError(f"crop({length}): a sum goes back to a snapshot only")


@pytest.fixture
def sums(monkeypatch):
    monkeypatch.setattr(registry._register, "entries", dict(registry._register.entries))
    registry.register_attn("sum", traits=Traits(causal=True, bidirectional=False, cache="recurrent"))(Sum)


@pytest.mark.parametrize("blocks", ["sum", "sum/standard", "standard/sum"])
def test_a_state_that_cannot_be_cropped_is_rolled_back_and_reads_what_was_accepted_again(sums, blocks):
    model = build(blocks=blocks, context=64)
    expected = list(generate(model, PROMPT, max_new_tokens=50, sampling=GREEDY))
    for who, draft in drafts(model, blocks=blocks, context=64).items():
        found, batch = run(model, draft, 50)
        assert found == expected, who
        layer = batch._decoder._target._cache.layers[blocks.split("/").index("sum")]
        assert layer.read < 50 * 11, f"{who}: {layer.read} tokens were read for 50"


# The distribution


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=st.integers(2, 7))
def test_keeping_and_replacing_together_give_the_models_distribution_exactly(data, size):
    weights = st.lists(st.sampled_from([0.0, 1.0, 2.0, 7.0]) | st.floats(0, 9), min_size=size, max_size=size)
    p, q = (torch.tensor(data.draw(weights), dtype=torch.float64) + 1e-3 * (torch.arange(size) == i) for i in (0, 1))
    p, q = p / p.sum(), q / q.sum()
    kept = torch.minimum(p, q)  # q · min(1, p / q)
    over = residual(p, q)
    torch.testing.assert_close(kept + (1 - kept.sum()) * over / over.sum(), p, rtol=0, atol=1e-12)


def test_a_round_follows_that_rule_for_every_proposal_and_random_number():
    p = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    q = torch.tensor([[0.2, 0.5, 0.1, 0.2]], dtype=torch.float64)
    grid = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    first, second = torch.zeros(4), torch.zeros(4)
    for proposal in range(4):
        for u in grid:
            for w in grid:
                tokens = verify(p, q, torch.tensor([proposal]), u[None], w[None])
                first[tokens[0]] += q[0, proposal] / 1600
                if len(tokens) == 2:
                    second[tokens[1]] += q[0, proposal] / 1600
    torch.testing.assert_close(first, p[0].float(), rtol=0, atol=0.02)
    torch.testing.assert_close(second / second.sum(), p[1].float(), rtol=0, atol=0.03)
    # What is kept is the overlap of the two.
    assert abs(second.sum() - torch.minimum(p[0], q[0]).sum()) < 0.02


def test_impossible_proposals_are_never_kept_and_impossible_tokens_never_drawn():
    p = torch.tensor([[0.0, 1.0, 0.0]] * 2, dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    for u in (0.0, 0.5, 1 - 2**-53):
        number = torch.tensor([u], dtype=torch.float64)
        assert verify(p, q, torch.tensor([0]), number, number) == [1]
    assert draw_weighted(residual(p[:1], p[:1]), torch.tensor([0.5])).item() == 1


def chi_square(observed, expected):
    """The statistic in standard deviations of a normal variable (Wilson and Hilferty), rare cells taken together."""
    rare = expected < 5
    cells = [(float(o), float(e)) for o, e in zip(observed[~rare], expected[~rare])]
    if rare.any():
        cells.append((float(observed[rare].sum()), float(expected[rare].sum())))
    statistic = sum((o - e) ** 2 / e for o, e in cells if e > 0)
    assert all(o == 0 for o, e in cells if e == 0)
    freedom = len(cells) - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def pairs_expected(model, sampling, prompt):
    """The probability [V, V] of the next two tokens under a model."""
    from blockyard.generation.sampling import probabilities

    vocabulary = model.config.vocab_size
    seen = torch.zeros(1, vocabulary, dtype=torch.bool)
    seen[0, prompt] = True
    with torch.no_grad():
        first = probabilities(model(torch.tensor([prompt])).logits[:, -1], sampling, seen)[0]
        texts = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        then = seen.repeat(vocabulary, 1) | torch.eye(vocabulary, dtype=torch.bool)
        second = probabilities(model(texts).logits[:, -1], sampling, then)
    return first[:, None] * second


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.3}],
    ids=str,
)
def test_sampled_tokens_follow_the_models_distribution_and_not_the_drafts(options):
    shape = {"vocab_size": 6, "sharpness": 0.7, "n_layers": 1}
    model, draft, prompt, count = build(**shape), build(seed=3, **shape), [1, 2, 3], 300
    observed = torch.zeros(6, 6)
    for seed in range(count):
        tokens, _ = run(model, draft, 2, SamplingConfig(seed=seed, **options), prompt, draft_tokens=2)
        observed[tokens[0], tokens[1]] += 1
    sampling = SamplingConfig(**options)
    assert chi_square(observed, count * pairs_expected(model, sampling, prompt)) < 3.5
    wrong = pairs_expected(draft, sampling, prompt) + 1e-9
    assert chi_square(observed, count * wrong / wrong.sum()) > 6, "the test should tell the two apart"


def test_the_same_seed_gives_the_same_text():
    model, draft = build(), build(seed=4)
    texts = [run(model, draft, sampling=SamplingConfig(seed=seed))[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"draft_tokens": 0}, "draft_tokens=0 should be at least 1"),
        ({"draft": build(vocab_size=128)}, "the draft has a vocabulary of 128 tokens, the model one of 256"),
        ({"prompts": [PROMPT, PROMPT]}, "a draft serves one prompt at a time, not 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_drafts_are_refused(arguments, told):
    with pytest.raises(InputError, match=told):
        Batch(**{"model": build(), "prompts": [PROMPT], "draft": build(), "max_new_tokens": 3, **arguments})
