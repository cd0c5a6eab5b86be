"""The runner of code blocks itself: what a page says is done, and a fault is told with page, block and line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from blockyard.registry import register
from tests.docs.blocks import bare, blocks_of
from tests.docs.form import faults
from tests.docs.pages import Failed, run_blocks
from tests.docs.theirs import make_theirs

BARS = "`" * 3


def page(folder: Path, text: str) -> Path:
    """A page whose fences are written as BARS."""
    file = folder / "page.md"
    file.write_text(dedent(text).replace("BARS", BARS), encoding="utf-8")
    return file


def wrong(folder: Path, text: str) -> list[str]:
    return [fault for block in blocks_of(page(folder, text)) for fault in faults(block)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("BARSsh\nblockyard train lm --attn.imp tva\nBARS", r"line 2: .*no option 'imp'"),
        ("BARSsh\nblockyard tain lm\nBARS", r"no command named 'tain'"),
        ("BARSsh\n\nls | blockyard generate runs/a --tokns 3\nBARS", r"line 3: .*unknown option '--tokns'"),
        ("BARSsh\ntorchrun -m blockyard train lm --odd 3\nBARS", r"unknown option '--odd'"),
        ("BARSsh\nblockyard compare lm --blocks 'standard;tba'\nBARS", r"'tba'"),
        ("BARSsh\nblockyard train lm --attn.impl tba\nBARS", r"'tba'"),
        ("BARSsh\nblockyard train lm --ffn.impl tba\nBARS", r"'tba'"),
        ("BARSsh\npip install 'blockyard[train,odd]'\nBARS", r"there is no extra 'odd'"),
        ("BARSsh\nmake nothing\nBARS", r"the Makefile has no nothing"),
        ("BARSpython\n\nx = (\nBARS", r"line 3: "),
        (
            "<!-- not run: a GPU -->\nBARSpython\nfrom blockyard import nothing\nBARS",
            r"line 3: blockyard has no not",
        ),
        ("<!-- not run: a GPU -->\nBARSsh\nblockyard train lm --attn.imp tva\nBARS", r"line 3: .*no option 'imp'"),
        (
            "<!-- run with: --tokns 3 -->\nBARSsh\nblockyard generate runs/a\nBARS",
            r"no command .* knows --tokns",
        ),
        ("<!-- run with: --tokens 3 -->\nBARSsh\nblockyard generate runs/a > b\nBARS", r"cannot add words"),
    ],
)
def test_a_wrong_form_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    found = wrong(tmp_path, text)
    assert len(found) == 1 or "cannot add" in told, found
    assert re.search(told, found[0]), found


@pytest.mark.parametrize(
    "text",
    [
        "BARSsh\nblockyard\nblockyard --help\nblockyard train\\\n  lm --help all # and more\nBARS",
        "BARSsh\npip install 'blockyard[train]'\ngit clone ADDRESS\ncd blockyard\nmake test\nBARS",
        "BARSsh\nblockyard train mine --plugin my_tasks --my.option 3\nBARS",
        "BARSsh\nblockyard train lm --plugin my_mixers --attn.impl mine --mine.decay .5 --train.steps 2\nBARS",
        "<!-- slow -->\n<!-- run with: --tokens 3 -->\nBARSsh\nblockyard generate runs/a\nBARS",
    ],
)
def test_a_right_form_is_left_alone(tmp_path: Path, text: str) -> None:
    assert wrong(tmp_path, text) == []


@pytest.mark.parametrize("note", ["not run", "not run:", "nto run: a GPU", "slow: very", "run with: tokens 3"])
def test_a_comment_that_means_nothing_is_refused(tmp_path: Path, note: str) -> None:
    with pytest.raises(ValueError, match=rf"page.md, line 2: the comment {note!r} is none of"):
        blocks_of(page(tmp_path, f"<!-- {note} -->\nBARSsh\nblockyard list\nBARS"))


def test_an_open_fence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the fence in line 1 is not closed"):
        blocks_of(page(tmp_path, "BARSsh\nblockyard list\n"))


def test_blocks_run_in_order_in_one_folder_with_one_namespace(tmp_path: Path) -> None:
    made = page(
        tmp_path,
        """
        BARSpython
        # my_blocks.py
        from blockyard import register_attn
        from blockyard.standard import StandardAttention

        @register_attn("ownword")
        class Own(StandardAttention):
            pass
        BARS

        <!-- before:
        BARSpython
        from pathlib import Path
        seen = ["hidden"]
        BARS
        -->

        - in a list:

          BARSpython
          import my_blocks
          seen.append(Path("my_blocks.py").exists())
          BARS

        <!-- slow -->
        BARSpython
        seen.append("slow")
        BARS

        <!-- not run: a cluster -->
        BARSpython
        seen.append("never")
        BARS

        BARSsh
        blockyard info ownword --plugin my_blocks
        printf '%s' "$(blockyard --version)" > version.txt
        BARS

        BARSpython
        Path("seen.txt").write_text(f"{seen} {__name__}")
        BARS
        """,
    )
    for slow, told in ((False, "['hidden', True] page"), (True, "['hidden', True, 'slow'] page")):
        folder = tmp_path / str(slow)
        folder.mkdir()
        assert run_blocks(blocks_of(made), folder, slow=slow) == 5 + slow
        assert (folder / "seen.txt").read_text() == told
        assert (folder / "version.txt").read_text().startswith("blockyard ")
    assert ("attn", "ownword") not in register._register.entries, "what a page registered is forgotten"
    assert "my_blocks" not in sys.modules and str(folder) not in sys.path


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("BARSpython\n\nx = 1 / 0\nBARS", r"page\.md, block 1 \(line 2\) fails:(?s:.*)line 3(?s:.*)ZeroDivisionError"),
        ("BARSsh\nblockyard list\nblockyard info nothing\nBARS", r"block 1 \(line 2\), line 3 ends with status 2"),
        ("BARSsh\nls nothing | cat\nBARS", r"line 2 ends with status 2: ls nothing \| cat(?s:.*)No such file"),
    ],
)
def test_a_block_that_fails_is_told_with_its_line(tmp_path: Path, block: str, told: str) -> None:
    made = page(tmp_path, block)
    (tmp_path / "run").mkdir()
    with pytest.raises(Failed, match=told):
        run_blocks(blocks_of(made), tmp_path / "run", slow=False)


def test_words_are_added_to_the_commands_that_know_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = page(tmp_path, "<!-- run with: --json -->\nBARSsh\nblockyard list\nblockyard schema train lm\nBARS")
    (tmp_path / "run").mkdir()
    run_blocks(blocks_of(made), tmp_path / "run", slow=False)
    out = capsys.readouterr().out
    assert "$ blockyard list --json\n" in out and "$ blockyard schema train lm\n" in out


def test_a_translation_is_the_same_but_for_its_comments(tmp_path: Path) -> None:
    english = page(tmp_path, "BARSsh\nblockyard list   # all of them\nBARS\n\nBARSpython\nx = 1  # one\nBARS")
    first = [bare(block) for block in blocks_of(english)]
    chinese = page(tmp_path, "BARSsh\nblockyard list # 全部\nBARS\n\nBARSpython\nx = 1\nBARS")
    assert first == [bare(block) for block in blocks_of(chinese)]
    other = page(tmp_path, "BARSsh\nblockyard info tva\nBARS\n\nBARSpython\nx = 2\nBARS")
    assert not set(first) & {bare(block) for block in blocks_of(other)}


def test_files_of_the_reader_are_made_where_a_page_means_them(tmp_path: Path) -> None:
    make_theirs(tmp_path, "blockyard train lm --data.path my_texts/ --out runs/my_prices.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["my_texts"]
