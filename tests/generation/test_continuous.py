"""Many prompts in few places: rows come and go, and each is token for token what it is alone."""

from __future__ import annotations

import random

import pytest
import torch

from blockyard.errors import InputError
from blockyard.generation import Batch, SamplingConfig, generate, generate_batch
from blockyard.generation.beginnings import in_common, shared_beginnings
from blockyard.generation.sampling import Sampler
from blockyard.machine.memory import forcing
from blockyard.registry import register as registry
from tests.fixtures.generation import PROMPT, build

GREEDY = SamplingConfig(temperature=0)
# Every kind of cache, and hybrids of them; the caches alone are tested in tests/protocol/test_cache_rows.py.
BLOCKS = [
    "standard",
    "standard[n_kv_heads=1]",
    "standard[window=4]",
    "standard[window=3,sinks=2]",
    "tva",
    "tva+vft",
    "mla",
    "mla[rope=full,cache=latent]",
    "mla[decode=absorbed]",
    "spectral[window=8,chunk=4]",
    "spectral[window=8,gate=token]",
    "standard+moe[n_experts=4]",
    "standard/spectral[window=8,chunk=4]/standard[window=4]",
]
# Mixed lengths, one token, a pair that is equal, one with the beginning of another, and one longer than the context.
PROMPTS = [PROMPT, [7], list(range(40, 52)), [200, 100], PROMPT, [*PROMPT, 9, 8], list(range(30)), [1, 2, 3]]
LIMITS = [9, 3, 14, 1, 6, 30, 5, 2]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(blocks, context=24, **options):
    return build(context, blocks, n_layers=max(2, 1 + blocks.count("/")), **options)


def alone(model, prompts, limits, sampling, **options):
    """One by one, each with the seed of its row."""
    seeds = [sampling if sampling.seed is None else SamplingConfig(seed=sampling.seed + i) for i in range(len(prompts))]
    each = zip(prompts, limits, seeds)
    return [list(generate(model, ids, max_new_tokens=n, sampling=seed, **options)) for ids, n, seed in each]


def with_margin(model, prompts, texts):
    """Check that the greedy choice is no near tie on the way, so that no rounding decides it."""
    for prompt, text in zip(prompts, texts):
        window = list(prompt)
        for token in text:
            if len(window) > model.config.context:
                window = window[-(model.config.context // 2) :]
            with torch.no_grad():
                best = model(torch.tensor([window])).logits[0, -1].topk(2).values
            assert best[0] - best[1] > 1e-4, "a near tie: take another prompt"
            window.append(token)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_greedy_rows_that_come_and_go_are_what_they_are_alone(blocks):
    model = model_of(blocks)
    prompts = [prompt[-24:] for prompt in PROMPTS]
    expected = alone(model, prompts, LIMITS, GREEDY)
    with_margin(model, prompts, expected)
    for size in (1, 2, 3, 8):
        written = generate_batch(model, PROMPTS, max_new_tokens=LIMITS, sampling=GREEDY, batch_size=size)
        assert written == expected, f"batch_size={size}"


@pytest.mark.parametrize("blocks", BLOCKS)
def test_sampled_rows_draw_by_their_own_seed(blocks):
    model, sampling = model_of(blocks), SamplingConfig(seed=5)
    expected = alone(model, PROMPTS, LIMITS, sampling)
    assert len({tuple(text) for text in expected}) == len(PROMPTS)
    for size in (2, 5):
        written = generate_batch(model, PROMPTS, max_new_tokens=LIMITS, sampling=sampling, batch_size=size)
        assert written == expected, f"batch_size={size}"


@pytest.mark.parametrize("blocks", ["standard", "standard[window=4]", "spectral[window=8,chunk=4]"])
def test_scores_along_the_way_are_those_of_the_text_alone(blocks, monkeypatch):
    model, seen = model_of(blocks).double(), []
    draw = Sampler.read

    def listen(self, logits, rows, known=None):
        seen.extend(zip(rows, logits.clone()))
        return draw(self, logits, rows, known)

    monkeypatch.setattr(Sampler, "read", listen)
    texts = generate_batch(model, PROMPTS[:6], max_new_tokens=LIMITS[:6], sampling=GREEDY, batch_size=3)
    places = [0] * 6
    for row, logits in seen:
        window = [*PROMPTS[row], *texts[row][: places[row]]]
        places[row] += 1
        if len(window) <= 24:
            with torch.no_grad():
                torch.testing.assert_close(logits, model(torch.tensor([window])).logits[0, -1], rtol=1e-9, atol=1e-9)
    assert places == LIMITS[:6]


@pytest.mark.parametrize("past_context", ["slide", "stop"])
def test_a_row_that_passes_the_context_leaves_the_others_where_they_are(past_context):
    model = model_of("standard", context=10)
    prompts, limits = [PROMPT, [7], [200, 100, 3], [9] * 8], [30, 25, 4, 12]
    expected = alone(model, prompts, limits, GREEDY, past_context=past_context)
    options = {"max_new_tokens": limits, "sampling": GREEDY, "past_context": past_context}
    for size in (2, 4):
        assert generate_batch(model, prompts, batch_size=size, **options) == expected
    assert [len(text) for text in expected] == (limits if past_context == "slide" else [6, 10, 4, 3])


SCALINGS = ["dynamic[factor=2,original=8]", "longrope[short=1 1.1 1.2 1.3,long=2 3 4 5,original=8]"]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rows_that_are_turned_by_their_length_are_read_again_alone(scaling):
    model = model_of("standard", rope_scaling=scaling)
    expected = alone(model, PROMPTS, LIMITS, GREEDY, use_cache=False)
    for size in (1, 3, 8):
        assert generate_batch(model, PROMPTS, max_new_tokens=LIMITS, sampling=GREEDY, batch_size=size) == expected


def test_rows_that_end_at_once_leave_their_places():
    model = model_of("standard")
    prompts = [[7], PROMPT, [7], [1, 2, 3]]
    first = generate_batch(model, prompts, max_new_tokens=1, sampling=GREEDY)
    batch = Batch(model, prompts, max_new_tokens=5, sampling=GREEDY, end_tokens=[first[0][0]], batch_size=1)
    written = [[] for _ in prompts]
    for step in batch:
        for row, (tokens, _) in enumerate(step):
            written[row] += tokens
    assert written[0] == written[2] == []
    assert batch.finished[0] == batch.finished[2] == "end"
    assert written[1] == list(generate(model, PROMPT, max_new_tokens=5, sampling=GREEDY, end_tokens=[first[0][0]]))


def test_a_limit_of_its_own_for_each_prompt():
    model = model_of("standard")
    batch = Batch(model, [PROMPT, [7], [9]], max_new_tokens=[2, 0, 3], sampling=GREEDY, batch_size=1)
    written = [len([token for tokens, _ in rows for token in tokens]) for rows in zip(*batch)]
    assert written == [2, 0, 3]
    assert batch.finished == ["length"] * 3
    for limits, message in (([1], "has 1 limits for 3 prompts"), ([1, 2, -3], "is negative"), (-1, "is negative")):
        with pytest.raises(InputError, match=message):
            generate_batch(model, [PROMPT, [7], [9]], max_new_tokens=limits)


def test_a_repetition_penalty_counts_each_rows_own_tokens():
    model = build(vocab_size=24)
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e6)
    prompts, limits = [[1, 2], [3], [4, 5, 6], [7]], [6, 3, 8, 5]
    expected = [list(generate(model, p, max_new_tokens=n, sampling=sampling)) for p, n in zip(prompts, limits)]
    assert generate_batch(model, prompts, max_new_tokens=limits, sampling=sampling, batch_size=2) == expected


@pytest.mark.parametrize("blocks", ["standard", "standard[window=4]", "spectral[window=8,chunk=4]", "mla/standard"])
def test_a_beginning_that_prompts_share_is_read_once(blocks):
    model = model_of(blocks, context=128)
    system = [(7 * i) % 251 for i in range(50)]
    tails = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8], [1, 5]]
    prompts = [[*system, *tail] for tail in tails] + [[11, 12, 13]]
    expected = alone(model, prompts, [6] * 6, GREEDY)
    for size in (2, 6):
        batch = Batch(model, prompts, max_new_tokens=6, sampling=GREEDY, batch_size=size)
        written = [[token for tokens, _ in rows for token in tokens] for rows in zip(*batch)]
        assert written == expected, f"batch_size={size}"
        # Shorter tails read the end of the beginning again, where that can be copied in part.
        least = len(system) + sum(map(len, tails)) + 3
        assert least <= batch.tokens_read <= least + 5 * 6 < sum(map(len, prompts)) / 2


def test_samples_of_one_prompt_read_it_once():
    model = model_of("standard", context=128)
    prompt = [(5 * i) % 251 for i in range(60)]
    batch = Batch(model, [prompt] * 20, max_new_tokens=2, sampling=SamplingConfig(seed=1), batch_size=8)
    texts = [[token for tokens, _ in rows for token in tokens] for rows in zip(*batch)]
    # All but the last token once, and that for each.
    assert batch.tokens_read == 59 + 20
    assert texts == alone(model, [prompt] * 20, [2] * 20, SamplingConfig(seed=1))


def test_shared_beginnings_are_those_of_comparing_all_pairs():
    rng = random.Random(3)
    for _ in range(200):
        prompts = [[rng.randrange(2) for _ in range(rng.randrange(1, 9))] for _ in range(rng.randrange(1, 9))]
        found = shared_beginnings(prompts, least=1)
        keys = [prompt[:-1] for prompt in prompts]
        for row, node in enumerate(found):
            others = [key for other, key in enumerate(keys) if other != row]
            assert (0 if node is None else node.length) == max((in_common(keys[row], key) for key in others), default=0)
            for each in [] if node is None else node.path():
                assert each.waiting == sum(key[: each.length] == keys[row][: each.length] for key in keys)


def test_beginnings_that_save_little_are_no_beginnings():
    long, short = list(range(40)), [1, 2, 3]
    assert shared_beginnings([[*short, 5], [*short, 6]]) == [None, None]
    prompts = [[*long, 1, 2], [*long, 1, 3], [*long, 9], [5]]
    found = shared_beginnings(prompts)
    # One token more, for two prompts, is worth no pass.
    assert [None if node is None else node.length for node in found] == [40, 40, 40, None]
    assert found[0] is found[2]
    assert found[0].waiting == 3


class Foreign(torch.nn.Module):
    """A mixer of another's making, with a cache that knows no more than it has to."""

    def __init__(self, d_model, n_heads, causal=True):
        super().__init__()
        self.causal, self.project = causal, torch.nn.Linear(d_model, d_model)

    def forward(self, x, padding_mask=None, cache=None):
        h = self.project(x)
        if padding_mask is not None:
            h = h * padding_mask[:, -h.shape[1] :, None]
        past = cache.add(h) if cache is not None else 0
        return h.cumsum(1) + past, None

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        class Sums:
            length, total, bytes_per_token = 0, 0, 0

            def __init__(self):
                self.batch = batch

            def add(self, h):
                past, self.length = self.total, self.length + h.shape[1]
                self.total = past + h.sum(1, keepdim=True)
                return past

            def select(self, index):
                self.batch, self.total = len(index), self.total[index]

        return Sums()


def test_a_cache_that_takes_no_rows_in_serves_one_batch_after_another(monkeypatch):
    monkeypatch.setattr(registry._register, "entries", dict(registry._register.entries))
    registry.register_attn("foreign")(Foreign)
    model = build(blocks="foreign/standard", context=12)
    expected = alone(model, PROMPTS, LIMITS, GREEDY, use_cache=False)
    for size in (1, 3, 8):
        assert generate_batch(model, PROMPTS, max_new_tokens=LIMITS, sampling=GREEDY, batch_size=size) == expected


def test_rows_are_as_many_as_the_memory_holds_unless_forced(monkeypatch):
    model = model_of("standard")
    expected = generate_batch(model, PROMPTS, max_new_tokens=4, sampling=GREEDY)
    monkeypatch.setattr("blockyard.generation.room.available_bytes", lambda device=None: 40_000)
    batch = Batch(model, PROMPTS, max_new_tokens=4, sampling=GREEDY)
    # 24 tokens of 2 layers, keys and values of 16 numbers, twice, and the scores of 256 tokens.
    assert batch.notes[1].startswith(
        "2 texts at a time instead of 8: with its cache each takes up to 18.4 kB, and 40.0 kB"
    )
    most, written = 0, [[] for _ in PROMPTS]
    for step in batch.steps():
        most = max(most, len(step))
        for row, (tokens, _) in step.items():
            written[row] += tokens
    assert (most, written) == (2, expected)
    with forcing():
        assert Batch(model, PROMPTS[:2], max_new_tokens=4).notes == []
    monkeypatch.setattr("blockyard.machine.memory.available_bytes", lambda device=None: 100)
    with pytest.raises(
        InputError, match=r"the cache of a prompt of 24 tokens takes at least 6\.1 kB, and this machine has 100"
    ):
        Batch(model, PROMPTS, max_new_tokens=4)


def test_no_row_at_a_time_is_refused():
    with pytest.raises(InputError, match="batch_size=0"):
        Batch(build(), PROMPTS, max_new_tokens=4, batch_size=0)
