"""Learning the merges of byte-level BPE (Sennrich et al., arXiv 1508.07909, on bytes as in GPT-2).

Again and again the most frequent pair of neighbours becomes one token; of equally frequent pairs the lexicographically
greatest wins, compared as (left bytes, right bytes). Instead of recounting after each merge, the counts are kept, and a
merge touches only the words that hold its pair.

Memory is what bounds this in Python, so nothing is held twice: words are the mapping's own bytes until a merge changes
them, and a pair's words are numbers of four bytes in an array (a set of them takes fifteen times that).
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

Pair = tuple[int, int]

# Words that merges are learnt from, at most; in a hundred megabytes of mixed text the 300,000 most frequent of 505,000
# different ones made up 98.6 % of all. Learning from so many takes about half a GB.
MOST_WORDS = 300_000


def count_words(words: Iterable[Iterable[str]]) -> dict[bytes, int]:
    """Count pre-tokens, in bounded memory.

    When twice `MOST_WORDS` different ones are held, the rarer half is forgotten; of equally frequent ones those that
    came later go. A text with no more different words than that is counted exactly.

    Args:
        words: the text's pre-tokens, in lists as they come.

    Returns:
        the most frequent pre-tokens, at most `MOST_WORDS`, with their counts (too low, by what was forgotten, for those
        that were away).
    """
    counts: Counter[str] = Counter()
    for block in words:
        counts.update(block)
        if len(counts) > 2 * MOST_WORDS:
            counts = Counter(dict(counts.most_common(MOST_WORDS)))
    kept = counts if len(counts) <= MOST_WORDS else dict(counts.most_common(MOST_WORDS))
    return {word.encode(): count for word, count in kept.items()}


def learn_merges(
    word_counts: Mapping[bytes, int], vocab_size: int, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Learn merges from pre-tokens and how often each occurs.

    Args:
        word_counts: pre-token -> occurrences.
        vocab_size: stop at this many tokens, the 256 bytes included (or earlier, when no pair is left).
        progress: called with (tokens so far, vocab_size).

    Returns:
        token bytes -> id (a byte's id is its value), and the merges in the order they were learnt.
    """
    return _Learner(word_counts).run(vocab_size, progress)


class _Learner:
    def __init__(self, word_counts: Mapping[bytes, int]) -> None:
        # Bytes and tuples alike are sequences of ids.
        self.words: list[bytes | tuple[int, ...]] = list(word_counts)
        self.frequencies = list(word_counts.values())
        self.tokens = [bytes((byte,)) for byte in range(256)]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        # Strings that sort in the opposite order of the tokens' bytes: the heap is a min-heap.
        self.descending = [_descending(token) for token in self.tokens]
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.words_with: defaultdict[Pair, array[int]] = defaultdict(lambda: array("I"))
        for number, word in enumerate(self.words):
            for pair in pairwise(word):
                self.counts[pair] += self.frequencies[number]
                self._note(pair, number)
        # Most pairs are rare and never become a token, so those below a bound stay out of the heap until it is empty.
        self.bound = 4 * max(self.counts.values(), default=1)
        self.heap: list[tuple[int, str, Pair]] = []

    def run(
        self, vocab_size: int, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
        merges: list[tuple[bytes, bytes]] = []
        while len(self.tokens) < vocab_size and (pair := self._most_frequent()) is not None:
            left, right = self.tokens[pair[0]], self.tokens[pair[1]]
            merges.append((left, right))
            self._merge(pair, self._token(left + right))
            if progress is not None:
                progress(len(self.tokens), vocab_size)
        return self.ids, merges

    def _most_frequent(self) -> Pair | None:
        # Entries are not updated when a count falls: one that promises too much is put back with what is true now.
        while True:
            while self.heap:
                promised, _, pair = self.heap[0]
                count = self.counts.get(pair, 0)
                if count == -promised:
                    return pair
                if count >= self.bound:
                    heapq.heapreplace(self.heap, self._entry(pair))
                else:
                    heapq.heappop(self.heap)
            if self.bound == 1:
                return None
            self.bound = max(1, self.bound // 4)
            self.heap = [self._entry(pair) for pair, count in self.counts.items() if count >= self.bound]
            heapq.heapify(self.heap)

    def _entry(self, pair: Pair) -> tuple[int, str, Pair]:
        return -self.counts[pair], self.descending[pair[0]] + self.descending[pair[1]], pair

    def _token(self, text: bytes) -> int:
        # Two different pairs may spell the same bytes; they are one token.
        if text not in self.ids:
            self.ids[text] = len(self.tokens)
            self.tokens.append(text)
            self.descending.append(_descending(text))
        return self.ids[text]

    def _note(self, pair: Pair, number: int) -> None:
        """Note that a word holds a pair. A word that is noted twice is only looked at twice."""
        holders = self.words_with[pair]
        if not holders or holders[-1] != number:
            holders.append(number)

    def _lose(self, pair: Pair, frequency: int) -> None:
        """Take a word's occurrence of a pair away; a pair that no word holds any more is forgotten."""
        self.counts[pair] -= frequency
        if not self.counts[pair]:
            del self.counts[pair]
            self.words_with.pop(pair, None)

    def _merge(self, pair: Pair, token: int) -> None:
        counts, grown = self.counts, set()
        left, right = pair
        for number in self.words_with.pop(pair):
            word, frequency = self.words[number], self.frequencies[number]
            merged: list[int] = []
            at, end = 0, len(word)
            while at < end:
                try:
                    found = word.index(left, at, end - 1)
                except ValueError:
                    merged += word[at:]
                    break
                merged += word[at:found]
                if word[found + 1] != right:
                    merged.append(left)
                    at = found + 1
                    continue
                if merged:
                    self._lose((merged[-1], left), frequency)
                    before = (merged[-1], token)
                    counts[before] += frequency
                    self._note(before, number)
                    grown.add(before)
                if found + 2 < end:
                    self._lose((right, word[found + 2]), frequency)
                    after = (token, word[found + 2])
                    counts[after] += frequency
                    self._note(after, number)
                    grown.add(after)
                merged.append(token)
                at = found + 2
            self.words[number] = tuple(merged)
        counts.pop(pair, None)
        for changed in grown:
            if counts.get(changed, 0) >= self.bound:
                heapq.heappush(self.heap, self._entry(changed))


def _descending(token: bytes) -> str:
    """Return a string that sorts before another's exactly when the token sorts after the other's.

    The end mark is greater than every character, so a token comes before its own prefixes, and two such strings joined
    compare as pairs of tokens do.
    """
    return "".join([chr(255 - byte) for byte in token]) + "\u0100"
