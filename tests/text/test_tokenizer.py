"""What a user of the tokenizers can see: round trips, special tokens, streaming, files."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.text import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from blockyard.text.bpe_files import from_printable, printable
from blockyard.text.pretokens import BLOCK_CHARACTERS, pretokens, settled_blocks

SAMPLE = (
    "def it's(we, they'll): return 'Don't — “stop”' # 12 naïve cafés\n\n  if x == 123:\n\tpass\r\n"
    "从前有座山，山里有座庙。\u3000庙里有个老和尚！ 한국어 텍스트, ひらがな カタカナ 𝔘𝔫𝔦 🙂🙂\u00a0end  \n"
)
SPECIALS = ("<|endoftext|>", "<|endoftext|><|endoftext|>", "<|a|>", "<|a", " x", "é", "a")
# Characters that meet every branch of the pre-token pattern and every prefix of the special tokens.
TRICKY = st.text(st.sampled_from(list(" \n\t'sltre1²aé<|>endoftx,\"!字，。\u00a0\u3000\x1c\u0085")), max_size=60)
FRAGMENTS = st.lists(st.one_of(TRICKY, st.sampled_from(SPECIALS)), max_size=6).map("".join)


def gpt2_pretokens(text: str) -> list[str]:
    from tokenizers import Regex, pre_tokenizers

    from blockyard.text.pretokens import GPT2_PATTERN

    return [word for word, _ in pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated").pre_tokenize_str(text)]


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([SAMPLE * 3], 256 + 80 + len(SPECIALS), special_tokens=SPECIALS)


@pytest.fixture(scope="module", params=["byte", "byte with specials", "bpe", "bpe with specials"])
def tokenizer(request, bpe) -> Tokenizer:
    if request.param.startswith("byte"):
        return ByteTokenizer(SPECIALS if "specials" in request.param else ())
    return bpe if "specials" in request.param else BPETokenizer(bpe.vocab, bpe.merges, {})


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=80, deadline=None)
@given(text=st.one_of(st.text(), FRAGMENTS))
def test_decoding_the_encoded_text_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(text=FRAGMENTS, places=st.lists(st.integers(0, 400), max_size=8))
def test_streaming_any_chunks_equals_encoding_the_joined_text(tokenizer, text, places):
    for special in (False, True):
        streamed = list(tokenizer.encode_iterable(cut(text, places), special=special))
        assert streamed == tokenizer.encode(text, special=special)


@settings(max_examples=40, deadline=None)
@given(text=FRAGMENTS)
def test_streaming_single_characters_equals_encoding_the_joined_text(tokenizer, text):
    for special in (False, True):
        assert list(tokenizer.encode_iterable(text, special=special)) == tokenizer.encode(text, special=special)


@settings(max_examples=200, deadline=None)
@given(text=TRICKY)
def test_pretokens_equal_the_gpt2_pattern(text):
    assert pretokens(text) == gpt2_pretokens(text)


@settings(max_examples=150, deadline=None)
@given(text=TRICKY, places=st.lists(st.integers(0, 400), max_size=6), block=st.integers(1, 12))
def test_pretokens_of_settled_blocks_equal_those_of_the_whole_text(text, places, block):
    with pytest.MonkeyPatch.context() as patch:
        # Tiny blocks, so that every place where a text may be cut is cut.
        patch.setattr("blockyard.text.pretokens.BLOCK_CHARACTERS", block)
        blocks = list(settled_blocks(cut(text, places)))
    assert [word for part in blocks for word in pretokens(str(part))] == gpt2_pretokens(text)


@settings(max_examples=100, deadline=None)
@given(text=TRICKY)
def test_bpe_encoding_equals_the_tokenizers_library_on_the_whole_text(bpe, text):
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers

    vocab = {printable(token): number for token, number in bpe.vocab.items()}
    merges = [(printable(left), printable(right)) for left, right in bpe.merges]
    reference = Reference(models.BPE(vocab, merges))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert BPETokenizer(bpe.vocab, bpe.merges, {}).encode(text) == reference.encode(text).ids


def test_of_overlapping_special_tokens_the_longest_wins(tokenizer):
    one, two = SPECIALS[0], SPECIALS[1]
    if not tokenizer.special_tokens:
        pytest.skip("this tokenizer has no special tokens")
    ids = [tokenizer.special_tokens[two], tokenizer.special_tokens[one]]
    assert tokenizer.encode(one * 3, special=True) == ids
    assert list(tokenizer.encode_iterable(one * 3, special=True)) == ids


def test_what_a_document_spells_is_text_and_no_special_token(tokenizer):
    text = f"say '{SPECIALS[0]}' and {SPECIALS[1]} now"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == text and list(tokenizer.encode_iterable(text)) == ids


def test_an_unfinished_special_token_is_ordinary_text():
    tokenizer = ByteTokenizer(["<|end|>", "<|end"])
    assert list(tokenizer.encode_iterable(["<|e", "nd", "|", "x"], special=True)) == [257, *b"|x"]
    assert list(tokenizer.encode_iterable(["<|e", "n"], special=True)) == list(b"<|en")


def test_streaming_yields_before_its_input_ends(tokenizer):
    def endless():
        while True:
            yield "word after word "

    stream = tokenizer.encode_iterable(endless())
    assert tokenizer.decode([next(stream) for _ in range(12)]).startswith("word after")


def test_streaming_holds_no_more_than_a_block_and_a_word(bpe):
    taken = 0

    def chunks():
        nonlocal taken
        for _ in range(50):
            taken += 1000
            yield "some text " * 100

    given_back = 0
    for token in bpe.encode_iterable(chunks()):
        given_back += len(bpe.token_bytes(token))
        assert taken - given_back <= 2 * BLOCK_CHARACTERS + 1000
    assert given_back == taken


def test_streaming_settles_text_without_spaces():
    blocks = list(settled_blocks(["山里有座庙，" * 40] * 100))
    assert max(len(str(block)) for block in blocks) < 2 * BLOCK_CHARACTERS


def test_decoding_replaces_what_is_not_utf8(tokenizer):
    assert tokenizer.decode([0xE5, 0xAD]) == "\ufffd"
    assert tokenizer.decode([*b"a", 0xFF, *b"b"]) == "a\ufffdb"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([0xFF], errors="strict")


@pytest.mark.parametrize("token", [-1, 100_000])
def test_decoding_an_unknown_id_is_refused(tokenizer, token):
    with pytest.raises(InputError, match=f"token {token} is outside the vocabulary; ids lie in 0"):
        tokenizer.decode([token])


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"lone surrogate U\+D800"):
        tokenizer.encode("ab\ud800")


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "made" / "here")
    loaded = load_tokenizer(tmp_path / "made" / "here")
    assert loaded.encode(SAMPLE + SPECIALS[1]) == tokenizer.encode(SAMPLE + SPECIALS[1])
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert (loaded.name, loaded.vocab_size, loaded.separator_id, loaded.special_tokens) == (
        tokenizer.name,
        tokenizer.vocab_size,
        tokenizer.separator_id,
        tokenizer.special_tokens,
    )


def test_a_saved_tokenizer_is_json_and_text(bpe, tmp_path):
    bpe.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blockyard_tokenizer.json", "merges.txt", "vocab.json"]
    left, right = bpe.merges[0]
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8"))[printable(left + right)] == 256
    assert (tmp_path / "merges.txt").read_text("utf-8").startswith("#version: 0.2\n")


def test_fingerprints_tell_tokenizers_apart(bpe):
    fewer = BPETokenizer.train([SAMPLE], 300)
    tokenizers = [ByteTokenizer(), ByteTokenizer(["x"]), bpe, fewer]
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == 4


def test_every_byte_has_its_own_printable_character():
    every = bytes(range(256))
    assert from_printable(printable(every)) == every
    assert len(set(printable(every))) == 256 and printable(every).isprintable()
    assert printable(b" hello\n") == "ĠhelloĊ"


def test_the_tokenizers_library_reads_our_files_as_gpt2s(bpe, tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    plain = BPETokenizer.train([SAMPLE * 3], 330, special_tokens=("<|endoftext|>",))
    plain.save(tmp_path)
    theirs = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert theirs.encode(SAMPLE).ids == plain.encode(SAMPLE)


def test_gpt2_files_without_our_description_load_with_their_special_token(tmp_path):
    plain = BPETokenizer.train([SAMPLE * 3], 330, special_tokens=("<|endoftext|>",))
    plain.save(tmp_path)
    (tmp_path / "blockyard_tokenizer.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == {"<|endoftext|>": 329}
    assert loaded.fingerprint() == plain.fingerprint()


def test_the_library_trained_files_load_and_encode_alike(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator([SAMPLE * 3], vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    theirs.save_model(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(SAMPLE) == theirs.encode(SAMPLE).ids
    assert loaded.separator_id == 0


def damage_merges(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a b\n", "utf-8")


def cut_vocab(folder):
    (folder / "vocab.json").write_text('{"a": 1,', "utf-8")


def unfit_merges(folder):
    lines = (folder / "merges.txt").read_text("utf-8").splitlines(True)
    (folder / "merges.txt").write_text("".join(lines[:-3]), "utf-8")


def unfit_merges_without_description(folder):
    unfit_merges(folder)
    (folder / "blockyard_tokenizer.json").unlink()


def drop_a_byte(folder):
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    del vocab["a"]
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")


def list_for_vocab(folder):
    (folder / "vocab.json").write_text("[1, 2]", "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_merges, "merges.txt line 2"),
        (cut_vocab, "vocab.json is damaged"),
        (unfit_merges, "does not describe this folder's merges"),
        (unfit_merges_without_description, "is it cut short"),
        (drop_a_byte, "without gaps"),
        (list_for_vocab, "not a map from tokens to ids"),
        (lambda folder: (folder / "merges.txt").unlink(), "cannot read .*merges.txt"),
        (lambda folder: (folder / "blockyard_tokenizer.json").write_text("{}"), "is not a tokenizer description"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_tokenizer_folder_is_refused_in_one_line(tmp_path, damage, message):
    BPETokenizer.train([SAMPLE], 320).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_tokenizer_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'byte'"):
        load_tokenizer("bytes")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="has neither"):
        load_tokenizer(tmp_path)
