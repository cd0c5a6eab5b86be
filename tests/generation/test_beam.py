"""Beam search against trying everything, and its rows against one another."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from blockyard.errors import InputError
from blockyard.generation import SamplingConfig, beam_search, generate
from tests.fixtures.generation import PROMPT, build


def log_probability(model, prompt, tokens):
    """The definition: one full forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(tokens))


def everything(model, prompt, length, penalty, end=None):
    """All continuations of `length` tokens, or ended before, with their scores; best first."""
    found = []
    for tokens in itertools.product(range(model.config.vocab_size), repeat=length):
        if end in tokens:
            cut = tokens.index(end)
            if any(t != 0 for t in tokens[cut + 1 :]):
                continue  # counted once
            tokens = tokens[: cut + 1]
        score = log_probability(model, prompt, tokens) / len(tokens) ** penalty
        found.append((score, [t for t in tokens if t != end]))
    return sorted(found, key=lambda pair: -pair[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("end", [None, 3], ids=["no end", "an end"])
def test_with_enough_beams_the_best_of_all_continuations_are_found(penalty, end):
    model = build(vocab_size=5)
    expected = everything(model, [1, 2], 3, penalty, end)[:6]
    ((*found,),) = (
        beam_search(
            model, [[1, 2]], max_new_tokens=3, beams=25, n_best=6, length_penalty=penalty,
            end_tokens=[] if end is None else [end],
        ),
    )  # fmt: skip
    assert [h.tokens for h in found[0]] == [tokens for _, tokens in expected]
    for hypothesis, (score, _) in zip(found[0], expected):
        assert math.isclose(hypothesis.score, score, rel_tol=1e-4)


def test_one_beam_is_the_greedy_text():
    model = build()
    greedy = list(generate(model, PROMPT, max_new_tokens=12, sampling=SamplingConfig(temperature=0)))
    ((best,),) = beam_search(model, [PROMPT], max_new_tokens=12, beams=1)
    assert best.tokens == greedy
    assert best.finished == "length"
    assert math.isclose(best.log_probability, log_probability(model, PROMPT, greedy), rel_tol=1e-4)


def test_more_beams_find_a_text_at_least_as_probable():
    model = build(blocks="standard/tva")
    found = [
        beam_search(model, [PROMPT], max_new_tokens=6, beams=n, length_penalty=0)[0][0].log_probability for n in (1, 40)
    ]
    assert found[1] > found[0]


@pytest.mark.parametrize("blocks", ["standard", "standard[window=4]", "tva", "standard[n_kv_heads=1]", "mla"])
def test_prompts_of_different_length_are_searched_together_as_alone_and_as_without_a_cache(blocks):
    model = build(blocks=blocks, context=24)
    prompts = [PROMPT, [7], list(range(40, 52)), [200, 100]]
    options = {"max_new_tokens": 7, "beams": 3, "n_best": 2, "end_tokens": list(range(0, 256, 5))}
    together = beam_search(model, prompts, **options)
    for prompt, found in zip(prompts, together):
        for other in (
            beam_search(model, [prompt], **options),
            beam_search(model, [prompt], use_cache=False, **options),
        ):
            assert [h.tokens for h in found] == [h.tokens for h in other[0]]
            assert all(math.isclose(a.score, b.score, rel_tol=1e-3) for a, b in zip(found, other[0]))
    assert len({len(h.tokens) for found in together for h in found}) > 1, "prompts should end at different steps"


def test_the_context_limits_how_long_a_continuation_becomes():
    model = build(context=8)
    ((best,),) = beam_search(model, [PROMPT], max_new_tokens=50, beams=2)
    assert len(PROMPT) + len(best.tokens) == 9


def test_a_prompt_is_read_in_chunks_with_the_same_result():
    model = build(context=40)
    prompts = [list(range(30)), [5, 6]]
    whole, pieces = (beam_search(model, prompts, max_new_tokens=5, prefill_chunk=chunk) for chunk in (None, 4))
    assert [[h.tokens for h in found] for found in whole] == [[h.tokens for h in found] for found in pieces]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beams": 0}, "beams=0 should be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"n_best": 5}, "n_best=5 should be from 1 to beams=4"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0 should be 0 or more"),
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": [[]]}, "the prompt is empty"),
        ({"prompts": [list(range(40))]}, "the model's context is 32"),
        ({"prefill_chunk": 0}, "prefill_chunk=0 should be at least 1"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        beam_search(build(), **{"prompts": [PROMPT], "max_new_tokens": 3, **options})
