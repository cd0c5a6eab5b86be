"""Generation with a language model: the cache changes nothing, rows do not disturb each other, and it stops."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.generation import (
    Batch,
    SamplingConfig,
    generate,
    generate_batch,
    generate_text,
    prompt_tokens,
)
from blockyard.registry import register as registry
from blockyard.text.tokenizer import ByteTokenizer as LibraryByteTokenizer
from tests.fixtures.generation import PROMPT, build

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class ByteTokenizer:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def greedy_by_hand(model, prompt, steps):
    """The definition: read the window again for each token; past the context keep its last half."""
    window, out = list(prompt), []
    for _ in range(steps):
        if len(window) > model.config.context:
            window = window[-max(1, model.config.context // 2) :]
        with torch.no_grad():
            token = model(torch.tensor([window])).logits[0, -1].argmax().item()
        window.append(token)
        out.append(token)
    return out


@pytest.mark.parametrize("blocks", ["standard", "standard[window=4]", "tva+vft", "tva/standard", "mla"])
def test_greedy_generation_with_a_cache_equals_reading_everything_again(blocks):
    model = build(blocks=blocks)
    tokens = list(generate(model, PROMPT, max_new_tokens=20, sampling=GREEDY))
    assert tokens == greedy_by_hand(model, PROMPT, 20)


@pytest.mark.parametrize("blocks", ["standard", "standard[window=4]", "tva+vft", "tva/standard", "mla"])
def test_sampling_with_a_cache_equals_sampling_without(blocks):
    model, sampling = build(blocks=blocks), SamplingConfig(seed=2)
    tokens = list(generate(model, PROMPT, max_new_tokens=40, sampling=sampling))
    assert len(set(tokens)) > 3
    assert tokens == list(generate(model, PROMPT, max_new_tokens=40, sampling=sampling, use_cache=False))


@pytest.mark.parametrize("context", [1, 2, 7, 8])
def test_sliding_past_the_context_reads_the_last_half_again(context):
    model, notes = build(context), []
    prompt = PROMPT[: min(context, 5)]
    tokens = list(generate(model, prompt, max_new_tokens=25, sampling=GREEDY, on_note=notes.append))
    assert tokens == greedy_by_hand(model, prompt, 25)
    assert len(notes) == 1
    assert notes[0].startswith(f"past the context of {context} tokens: going on with the last {max(1, context // 2)}")


def test_a_prompt_longer_than_the_context_is_read_from_its_end_and_says_so():
    model, notes = build(8), []
    prompt = list(range(20))
    tokens = list(generate(model, prompt, max_new_tokens=3, sampling=GREEDY, on_note=notes.append))
    assert tokens == greedy_by_hand(model, prompt[-8:], 3)
    assert notes[0] == "the prompt has 20 tokens: only the last 8, the context, are read"


def test_stopping_at_the_context_ends_when_it_is_full_and_says_so():
    batch = Batch(build(8), [PROMPT], max_new_tokens=50, sampling=GREEDY, past_context="stop")
    tokens = [token for ((new, _),) in batch for token in new]
    # Eight tokens are read at most; the one that the eighth predicts is the last that can be known.
    assert len(PROMPT) + len(tokens) == 9
    assert batch.finished == ["context"]
    assert batch.notes == ["stopped: the context of 8 tokens is full"]


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(seed=5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("blocks", ["standard", "tva", "mla[rope=full,cache=latent]"])
def test_rows_of_a_padded_batch_are_what_they_are_alone(sampling, blocks):
    model = build(12, blocks)
    prompts = [PROMPT, [7], list(range(40, 52)), [200, 100]]
    together = generate_batch(model, prompts, max_new_tokens=30, sampling=sampling)
    for row, prompt in enumerate(prompts):
        seed = None if sampling.seed is None else sampling.seed + row
        alone = SamplingConfig(temperature=sampling.temperature, seed=seed)
        assert together[row] == list(generate(model, prompt, max_new_tokens=30, sampling=alone)), f"row {row}"


def test_rows_that_end_early_do_not_disturb_the_others():
    model = build()
    prompts = [PROMPT, [7], [9, 9]]
    free = generate_batch(model, prompts, max_new_tokens=12, sampling=GREEDY)
    end = free[1][4]
    ended = generate_batch(model, prompts, max_new_tokens=12, sampling=GREEDY, end_tokens=[end])
    for row in range(3):
        at = free[row].index(end) if end in free[row] else 12
        assert ended[row] == free[row][:at]


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    model = build()

    def text(seed):
        torch.rand(3)  # whatever else draws numbers
        return list(generate(model, PROMPT, max_new_tokens=20, sampling=SamplingConfig(seed=seed)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_without_a_seed_each_call_draws_its_own_and_can_tell_it():
    model = build()
    first, second = (Batch(model, [PROMPT], max_new_tokens=20) for _ in range(2))
    tokens = [[t for ((new, _),) in batch for t in new] for batch in (first, second)]
    assert tokens[0] != tokens[1]
    assert tokens[0] == list(generate(model, PROMPT, max_new_tokens=20, sampling=SamplingConfig(seed=first.seed)))


def test_sampled_tokens_follow_the_models_distribution():
    model, count = build(vocab_size=6), 4000
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3]])).logits[0, -1].double().softmax(-1)
    rows = generate_batch(model, [[1, 2, 3]] * count, max_new_tokens=1, sampling=SamplingConfig(seed=11))
    observed = torch.bincount(torch.tensor(rows).flatten(), minlength=6) / count
    assert ((observed - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt() + 1e-9).all()


def test_a_repetition_penalty_counts_the_prompt_and_what_was_written():
    model = build(vocab_size=24)
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e6)
    tokens = list(generate(model, [1, 2], max_new_tokens=6, sampling=sampling))
    assert len({1, 2, *tokens}) == 8


def test_streamed_text_equals_the_decode_of_all_tokens():
    model, tokenizer = build(), ByteTokenizer()
    sampling = SamplingConfig(seed=4)
    pieces = list(generate_text(model, tokenizer, "abc", max_new_tokens=60, sampling=sampling))
    tokens = list(generate(model, list(b"abc"), max_new_tokens=60, sampling=sampling))
    assert "".join(pieces) == tokenizer.decode(tokens)
    assert len(pieces) > 10


def test_generation_stops_in_front_of_a_stop_string_that_spans_tokens():
    model, tokenizer = build(), ByteTokenizer()
    sampling = SamplingConfig(seed=4)
    tokens = list(generate(model, list(b"abc"), max_new_tokens=60, sampling=sampling))
    whole = tokenizer.decode(tokens)
    stop = whole[20:23]
    assert len(stop.encode()) > 1
    text = "".join(generate_text(model, tokenizer, "abc", max_new_tokens=60, sampling=sampling, stop=stop))
    assert text == whole[: whole.index(stop)]
    ids = list(b"abc")
    cut = list(generate(model, ids, max_new_tokens=60, sampling=sampling, stop=stop, tokenizer=tokenizer))
    assert tokens[: len(cut)] == cut
    assert text.startswith(tokenizer.decode(cut).rstrip("\ufffd"))


def test_an_unmet_stop_string_holds_nothing_back_at_the_end():
    model, tokenizer = build(), ByteTokenizer()
    sampling = SamplingConfig(seed=4)
    whole = "".join(generate_text(model, tokenizer, "abc", max_new_tokens=30, sampling=sampling))
    stop = whole[-1] + "\0never"
    held = "".join(generate_text(model, tokenizer, "abc", max_new_tokens=30, sampling=sampling, stop=stop))
    assert held == whole


def test_text_ends_where_the_model_ends_the_document_unless_told_otherwise():
    model, tokenizer = build(), ByteTokenizer()
    tokens = list(generate(model, list(b"abc"), max_new_tokens=20, sampling=GREEDY))
    tokenizer.separator_id = tokens[7]
    text = "".join(generate_text(model, tokenizer, "abc", max_new_tokens=20, sampling=GREEDY))
    assert text == tokenizer.decode(tokens[: tokens.index(tokenizer.separator_id)])
    on = "".join(generate_text(model, tokenizer, "abc", max_new_tokens=20, sampling=GREEDY, end_tokens=[]))
    assert on == tokenizer.decode(tokens)


def test_an_empty_prompt_begins_a_new_document_or_is_refused():
    tokenizer = ByteTokenizer()
    with pytest.raises(InputError, match="the prompt is empty, and this tokenizer has no separator"):
        prompt_tokens(tokenizer, "")
    tokenizer.separator_id = 17
    assert prompt_tokens(tokenizer, "") == [17]


@pytest.mark.parametrize("text", ["déjà vu, 中文 😀", ""], ids=["text", "empty"])
def test_the_librarys_own_tokenizer_serves(text):
    tokenizer = LibraryByteTokenizer()
    model = build(vocab_size=tokenizer.vocab_size)
    pieces = generate_text(model, tokenizer, text, max_new_tokens=9, sampling=SamplingConfig(seed=1), end_tokens=[])
    ids = prompt_tokens(tokenizer, text)
    tokens = generate(model, ids, max_new_tokens=9, sampling=SamplingConfig(seed=1))
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_the_model_is_left_in_its_mode_and_gathers_no_gradients():
    model = build(dropout=0.5)
    model.train()
    model.layers[0].eval()
    tokens = generate(model, PROMPT, max_new_tokens=10, sampling=GREEDY)
    first = next(tokens)
    assert model.training
    assert not model.layers[0].training
    assert torch.is_grad_enabled()
    assert [first, *tokens] == greedy_by_hand(model.eval(), PROMPT, 10)


def test_a_model_without_a_cache_reads_everything_again_and_says_so(monkeypatch):
    monkeypatch.setattr(registry._register, "entries", dict(registry._register.entries))

    @registry.register_attn("cacheless")
    class Cacheless(torch.nn.Module):
        def __init__(self, d_model, n_heads):
            super().__init__()
            self.attend = torch.nn.MultiheadAttention(d_model, n_heads, batch_first=True)

        def forward(self, x, attn_mask=None):
            return self.attend(x, x, x, attn_mask=attn_mask, need_weights=False)[0], None

    model, notes = build(blocks="cacheless/standard"), []
    tokens = list(generate(model, PROMPT, max_new_tokens=12, sampling=GREEDY, on_note=notes.append))
    assert tokens == greedy_by_hand(model, PROMPT, 12)
    assert notes == ["Cacheless has no cache: the whole text is read again for every token"]


def test_bfloat16_models_generate():
    assert len(list(generate(build().bfloat16(), PROMPT, max_new_tokens=5, sampling=GREEDY))) == 5


def test_no_new_tokens_is_an_empty_stream():
    batch = Batch(build(), [PROMPT], max_new_tokens=0)
    assert list(batch) == []
    assert batch.finished == ["length"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": []}, "the prompt is empty"),
        ({"prompt_ids": [3, 256]}, "token 256 of the prompt is outside the model's vocabulary of 256"),
        ({"prompt_ids": [-1]}, "token -1 of the prompt is outside"),
        ({"prompt_ids": torch.tensor([[1, 2]])}, "one prompt"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 is negative"),
        ({"stop": "x"}, "give the tokenizer too"),
        ({"stop": ["x", ""]}, "can never end a text"),
        ({"past_context": "wrap"}, "past_context='wrap' is not known; use 'slide' or 'stop'"),
        ({"prompt_ids": list(range(40)), "past_context": "stop"}, "has 40 tokens and the model's context is 32"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused_at_the_call(arguments, message):
    with pytest.raises(InputError, match=message):
        generate(**{"model": build(), "prompt_ids": PROMPT, "max_new_tokens": 3, **arguments})


def test_a_batch_without_prompts_is_refused():
    with pytest.raises(InputError, match="there is no prompt"):
        generate_batch(build(), [], max_new_tokens=3)


def test_weights_that_are_not_finite_are_an_error_and_not_text():
    model = build()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        list(generate(model, PROMPT, max_new_tokens=3))
