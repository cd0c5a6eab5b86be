"""Learnt merges against the slow definition: count every pair anew, merge the best, repeat."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.text import BPETokenizer
from blockyard.text.bpe_training import count_words, learn_merges


def naive_merges(word_counts: dict[bytes, int], vocab_size: int) -> list[tuple[bytes, bytes]]:
    words = {word: [bytes((byte,)) for byte in word] for word in word_counts}
    vocab = {bytes((byte,)) for byte in range(256)}
    merges: list[tuple[bytes, bytes]] = []
    while len(vocab) < vocab_size:
        counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, tokens in words.items():
            for pair in itertools.pairwise(tokens):
                counts[pair] += word_counts[word]
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        vocab.add(best[0] + best[1])
        for word, tokens in words.items():
            merged: list[bytes] = []
            for token in tokens:
                merged.append(token)
            at = 0
            while at < len(merged) - 1:
                if (merged[at], merged[at + 1]) == best:
                    merged[at : at + 2] = [best[0] + best[1]]
                at += 1
            words[word] = merged
    return merges


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=12), st.integers(1, 3), min_size=1, max_size=8),
    st.integers(256, 276),
)
def test_merges_of_tie_heavy_words_equal_naive_recounting(words, vocab_size):
    counts = {word.encode(): count for word, count in words.items()}
    assert learn_merges(counts, vocab_size)[1] == naive_merges(counts, vocab_size)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.binary(min_size=1, max_size=8), st.integers(1, 2), min_size=1, max_size=12))
def test_merges_of_any_bytes_equal_naive_recounting(counts):
    assert learn_merges(counts, 290)[1] == naive_merges(counts, 290)


def test_merges_of_real_code_equal_naive_recounting():
    import blockyard.errors

    source = Path(blockyard.errors.__file__).read_text("utf-8")
    tokenizer = BPETokenizer.train([source], 256 + 60, special_tokens=())
    words = Counter(word.encode() for word in gpt2_words(source))
    assert tokenizer.merges == naive_merges(words, 256 + 60)


def test_of_equally_frequent_pairs_the_greatest_is_merged_first():
    _, merges = learn_merges({b"ab": 2, b"ac": 2, b"ba": 1}, 258)
    assert merges == [(b"a", b"c"), (b"a", b"b")]


def test_a_longer_left_part_beats_its_own_prefix_in_a_tie():
    # After (a, b): the pairs (ab, c) and (a, d) occur twice each, and b"ab" > b"a".
    _, merges = learn_merges({b"abc": 2, b"ad": 2, b"ab": 1}, 258)
    assert merges == [(b"a", b"b"), (b"ab", b"c")]


def test_merges_never_cross_pretokens():
    tokenizer = BPETokenizer.train(["ab ab ab ab, 12ab"] * 4, 400)
    for left, right in tokenizer.merges:
        assert len(gpt2_words((left + right).decode())) == 1


def test_merges_never_reach_across_documents():
    tokenizer = BPETokenizer.train(["x", "y"] * 50, 300)
    assert tokenizer.merges == []


def test_special_tokens_are_left_out_of_the_learning():
    tokenizer = BPETokenizer.train(["<|endoftext|>" * 20 + "abab"], 300)
    assert tokenizer.merges == [(b"a", b"b"), (b"ab", b"ab")]


def test_the_vocabulary_holds_bytes_then_merges_then_specials():
    tokenizer = BPETokenizer.train(["hello hello"], 260, special_tokens=("<s>", "</s>"))
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes((i,)) for i in range(256)]
    assert [tokenizer.token_bytes(i) for i in (256, 257)] == [left + right for left, right in tokenizer.merges]
    assert tokenizer.special_tokens == {"<s>": 258, "</s>": 259}
    assert tokenizer.vocab_size == 260


def test_training_stops_when_no_pair_is_left():
    tokenizer = BPETokenizer.train(["ab"], 1000)
    assert tokenizer.merges == [(b"a", b"b")]
    assert tokenizer.vocab_size == 258


def test_training_reports_its_progress():
    seen: list[tuple[int, int]] = []
    BPETokenizer.train(["abc abc"], 259, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(257, 258), (258, 258)]


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(InputError, match=r"vocab_size=256 is too small.*257"):
        BPETokenizer.train(["abc"], 256)


@pytest.mark.parametrize("specials", [("",), ("<s>", "<s>")], ids=["empty", "repeated"])
def test_a_bad_special_token_is_refused(specials):
    with pytest.raises(InputError, match="special_tokens"):
        BPETokenizer.train(["abc"], 300, special_tokens=specials)


def gpt2_words(text: str) -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    from blockyard.text.pretokens import GPT2_PATTERN

    return [word for word, _ in pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated").pre_tokenize_str(text)]


def test_few_different_words_are_counted_exactly() -> None:
    blocks = [["a", "b", "a"], ["c"], ["b", "ä"]]
    assert count_words(blocks) == {b"a": 2, b"b": 2, b"c": 1, "ä".encode(): 1}


def test_counting_many_different_words_keeps_the_frequent_ones_in_bounded_memory(monkeypatch) -> None:
    monkeypatch.setattr("blockyard.text.bpe_training.MOST_WORDS", 50)

    def blocks():
        for number in range(300):
            yield [f"common{number % 20}"] * 5 + [f"rare{number}"]

    counts = count_words(blocks())
    exact = Counter(word.encode() for block in blocks() for word in block)
    assert len(counts) == 50
    assert {f"common{number}".encode() for number in range(20)} <= counts.keys()
    assert all(counts[word] == exact[word] for word in counts)
