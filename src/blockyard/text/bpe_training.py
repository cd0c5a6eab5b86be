"""Learning the merges of byte-level BPE (Sennrich et al., arXiv 1508.07909, on bytes as in GPT-2).

Again and again the most frequent pair of neighbours becomes one token; of equally frequent pairs the lexicographically
greatest wins, compared as (left bytes, right bytes). Instead of recounting after each merge, the counts are kept, and a
merge touches only the words that hold its pair.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

Pair = tuple[int, int]


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
        self.words = [list(word) for word in word_counts]
        self.frequencies = list(word_counts.values())
        self.tokens = [bytes((byte,)) for byte in range(256)]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        # Strings that sort in the opposite order of the tokens' bytes: the heap is a min-heap.
        self.descending = [_descending(token) for token in self.tokens]
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.words_with: defaultdict[Pair, set[int]] = defaultdict(set)
        for number, word in enumerate(self.words):
            for pair in pairwise(word):
                self.counts[pair] += self.frequencies[number]
                self.words_with[pair].add(number)
        self.heap = [self._entry(pair) for pair in self.counts]
        heapq.heapify(self.heap)

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
        while self.heap:
            promised, _, pair = self.heap[0]
            count = self.counts.get(pair, 0)
            if count == -promised:
                return pair
            if count > 0:
                heapq.heapreplace(self.heap, self._entry(pair))
            else:
                heapq.heappop(self.heap)
        return None

    def _entry(self, pair: Pair) -> tuple[int, str, Pair]:
        return -self.counts[pair], self.descending[pair[0]] + self.descending[pair[1]], pair

    def _token(self, text: bytes) -> int:
        # Two different pairs may spell the same bytes; they are one token.
        if text not in self.ids:
            self.ids[text] = len(self.tokens)
            self.tokens.append(text)
            self.descending.append(_descending(text))
        return self.ids[text]

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
                    counts[merged[-1], left] -= frequency
                    before = (merged[-1], token)
                    counts[before] += frequency
                    self.words_with[before].add(number)
                    grown.add(before)
                if found + 2 < end:
                    counts[right, word[found + 2]] -= frequency
                    after = (token, word[found + 2])
                    counts[after] += frequency
                    self.words_with[after].add(number)
                    grown.add(after)
                merged.append(token)
                at = found + 2
            self.words[number] = merged
        counts.pop(pair, None)
        for changed in grown:
            if counts[changed] > 0:
                heapq.heappush(self.heap, self._entry(changed))


def _descending(token: bytes) -> str:
    """Return a string that sorts before another's exactly when the token sorts after the other's.

    The end mark is greater than every character, so a token comes before its own prefixes, and two such strings joined
    compare as pairs of tokens do.
    """
    return "".join([chr(255 - byte) for byte in token]) + "\u0100"
