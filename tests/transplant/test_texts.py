"""The sets of text: as large as asked for, disjoint, begun alike, or refused with what is there and what is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockyard.errors import InputError
from blockyard.text import ByteTokenizer
from blockyard.transplant import HealSettings, Pieces, Texts
from blockyard.transplant.texts import ROLES, kinds_of, read_texts

CONTEXT = 64


def read(texts, sizes, tokenizer=None, **options):
    return read_texts(texts, sizes, tokenizer or ByteTokenizer(), CONTEXT, show=False, **options)


def test_no_piece_is_in_two_roles_and_every_kind_has_its_share(texts, sizes):
    found = read(texts, sizes, training=[HealSettings(tokens=128, length=16)])
    assert [kind.name for kind in found.kinds] == ["vowels", "k"]
    rows = [tuple(row.tolist()) for role in ROLES for row in found.together(role)]
    assert len(set(rows)) == len(rows)
    for kind in found.kinds:
        assert {role: kind.tokens(role) for role in ROLES} == {
            "calibrate": 128, "train": 64, "select": 192, "report": 96
        }  # fmt: skip
    # Kinds take turns, so that a first part is as varied as the whole.
    assert found.kinds_of("select") == [0, 1] * 6
    assert torch.equal(found.together("select")[1], found.kinds[1].select[0])


def test_pieces_are_spread_over_the_text_and_the_report_stands_last(texts, sizes, tmp_path):
    (tmp_path / "numbered.txt").write_text("".join(f"{n:07d} " for n in range(2000)))
    kind = read(Texts(path=(str(tmp_path / "numbered.txt"),), cache_dir=texts.cache_dir), sizes).kinds[0]

    def place(row):
        return int(ByteTokenizer().decode(row.tolist()).split()[1])

    places = {role: [place(row) for row in getattr(kind, role)] for role in ("calibrate", "select", "report")}
    assert max(places["calibrate"]) < min(places["select"]) and max(places["select"]) < min(places["report"])
    assert max(places["report"]) > 1700 and max(places["calibrate"]) > 500


def test_every_piece_begins_with_what_the_tokenizer_puts_before_a_text(texts):
    class Begun(ByteTokenizer):
        prefix_ids = (1,)

    sizes = Pieces(calibrate=64, select=192, report=64, length=32)
    found = read(texts, sizes, Begun())
    assert found.first == (1,)
    for role in ("calibrate", "select", "report"):
        assert (found.together(role)[:, 0] == 1).all() and found.together(role).shape[1] == 32
    bare = read(texts, Pieces(64, 192, 64, 32, first="none"), Begun())
    assert bare.first == () and not (bare.together("report")[:, 0] == 1).any()


def test_too_short_a_text_is_refused_with_what_is_there_and_what_is_needed(texts, sizes, tmp_path):
    (tmp_path / "short.txt").write_text("no more than this " * 4)
    with pytest.raises(InputError, match=r"text 'short' .* has 72 tokens and needs 832, pieces of 32: 8 to calibrate"):
        read(Texts(path=(str(tmp_path / "short.txt"),), cache_dir=texts.cache_dir), sizes)


def test_a_text_that_repeats_itself_gives_no_piece_to_two_sets(texts, sizes, tmp_path):
    (tmp_path / "same.txt").write_text("x" * 9000)
    with pytest.raises(InputError, match=r"'same' .* repeats itself: there are no 8 pieces to calibrate"):
        read(Texts(path=(str(tmp_path / "same.txt"),), cache_dir=texts.cache_dir), sizes)


@pytest.mark.parametrize(
    "paths, names",
    [
        (("a/verse.txt",), ["verse"]),
        (("a/code/",), ["code"]),
        (("a/docs/*.md",), ["docs"]),
        (("x=a.txt", "b.tar.gz"), ["x", "b"]),
        (("a/b=c.txt",), ["b=c"]),
        (None, ["python"]),
    ],
)
def test_kinds_are_named_after_their_paths_or_as_written(paths, names):
    assert [name for name, _ in kinds_of(paths)] == names


@pytest.mark.parametrize(
    "paths", [("a.txt", "b/a.txt"), ("x=a.txt", "y=a.txt"), ("",), ("x=",), ("=a",), ("all=a.txt",), ("a/all/",)]
)
def test_kinds_without_a_name_or_path_of_their_own_are_refused(paths):
    with pytest.raises(InputError, match=r"data\.path"):
        kinds_of(paths)


def test_a_file_that_two_kinds_would_read_is_refused(texts, sizes):
    folder = Path(texts.path[1]).parent
    for other in (str(folder), f"{folder}/*.txt", f"{folder}/../{folder.name}/k.txt"):
        with pytest.raises(InputError, match=r"the kinds 'k' and 'other' both read .*k\.txt"):
            read(Texts(path=(texts.path[1], f"other={other}"), cache_dir=texts.cache_dir), sizes)


def test_one_kind_of_text_is_said_to_be_one(texts, sizes):
    found = read(Texts(path=texts.path[:1], cache_dir=texts.cache_dir), sizes)
    assert any("one kind" in note for note in found.notes)
    assert not read(texts, sizes).notes


@pytest.mark.parametrize(
    "sizes, reason",
    [(Pieces(length=65), "beyond the model's context of 64"), (Pieces(select=10**9), "has .* tokens and needs")],
)
def test_pieces_beyond_the_context_or_the_text_are_refused(texts, sizes, reason):
    with pytest.raises(InputError, match=reason):
        read(texts, sizes)
