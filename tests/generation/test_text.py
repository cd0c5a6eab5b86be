"""Streaming text: whole characters only, stop strings found across tokens, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.generation.text import Detokenizer, StopMatcher, TextStream


class Bytes:
    """One token per byte."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


class Words:
    """A decoder that drops the space in front of the first token, as SentencePiece ones do."""

    words = (" a", " bc", "d", " ü", "")

    def decode(self, ids):
        return "".join(self.words[i] for i in ids).removeprefix(" ")


class Pieces:
    """Tokens of several bytes, some of which end or begin inside a character."""

    table = tuple("aé中😀".encode()[i:j] for i in range(10) for j in range(i + 1, min(i + 5, 11)))

    def decode(self, ids):
        return b"".join(self.table[i] for i in ids).decode("utf-8", errors="replace")


def stream(decoder, ids, stop=()):
    text, tokens, pieces = TextStream(decoder, stop), [], []
    for token in ids:
        ready, piece = text.push(token)
        tokens += ready
        pieces.append(piece)
        if text.stopped:
            break
    ready, piece = text.finish()
    return tokens + ready, pieces + [piece]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_streamed_bytes_equal_the_text_and_never_hold_half_a_character(text):
    ids = list(text.encode("utf-8"))
    tokens, pieces = stream(Bytes(), ids)
    assert tokens == ids
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_streamed_text_equals_the_decode_of_all_tokens_even_for_broken_utf8(data):
    tokens, pieces = stream(Bytes(), list(data))
    assert "".join(pieces) == Bytes().decode(data)
    assert tokens == list(data)


@pytest.mark.parametrize("decoder", [Words(), Pieces()], ids=["first is special", "tokens cut characters"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_streamed_text_equals_the_decode_of_all_tokens(decoder, data):
    size = len(getattr(decoder, "words", None) or decoder.table)
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=60))
    tokens, pieces = stream(decoder, ids)
    assert "".join(pieces) == decoder.decode(ids)
    assert tokens == ids


def test_a_long_text_is_decoded_in_a_short_window():
    longest = 0

    class Watched(Bytes):
        def decode(self, ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return super().decode(ids)

    text = "中文 and ascii 😀" * 40
    assert "".join(stream(Watched(), list(text.encode()))[1]) == text
    assert longest < 32


def cut_at_first_stop(text, stops):
    """The obvious definition: read character by character until the text ends in a stop string."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_at_the_same_place_however_the_text_is_cut_into_pieces(pieces, stops):
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        out += matcher.push(piece)
        assert not any(stop in out for stop in stops)
    out += matcher.finish()
    assert (out, matcher.stopped) == cut_at_first_stop("".join(pieces), stops)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_not():
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.push("one E") == "one "
    assert matcher.push("N") == ""
    assert matcher.push("O") == "ENO"
    assert matcher.push("\n") == ""
    assert matcher.finish() == "\n"


def test_a_token_that_straddles_the_stop_string_is_not_among_the_tokens():
    class Table:
        table = ("one", " tw", "o EN", "D of it")

        def decode(self, ids):
            return "".join(self.table[i] for i in ids)

    tokens, pieces = stream(Table(), [0, 1, 2, 3], ["END"])
    assert "".join(pieces) == "one two "
    assert tokens == [0, 1]


def test_a_stop_string_inside_a_multibyte_character_sequence_leaves_no_half_character_token():
    ids = list("aé!".encode())
    tokens, pieces = stream(Bytes(), ids, ["é"])
    assert tokens == ids[:1]
    assert "".join(pieces) == "a"


@pytest.mark.parametrize("stop", ["", ["a", ""]], ids=["empty", "one empty"])
def test_an_empty_stop_string_is_refused(stop):
    with pytest.raises(InputError, match="can never end a text"):
        StopMatcher([stop] if stop == "" else stop)


def test_detokenizer_reports_an_unfinished_character_at_the_end():
    detokenizer = Detokenizer(Bytes())
    assert detokenizer.push(0xE4) == ""
    assert detokenizer.pending
    assert detokenizer.finish() == "\ufffd"
